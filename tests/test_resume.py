"""A training that was killed goes on as if nothing had been: to the same weights, bit for bit."""

import dataclasses
import functools
import json
import random
import shutil
import threading

import kills
import pytest
import torch

import advtrain as at
from advtrain import checkpoint_files, loop
from advtrain.checkpoint_files import KEEP, Checkpoints, read

DEFENSES = [*at.defenses.DEFENSES, "kept"]


pytestmark = pytest.mark.filterwarnings("ignore::advtrain.errors.AdvtrainWarning")  # some collapse, and say so


@pytest.fixture(autouse=True)
def one_thread():
    """As in the processes that are killed: sums are rounded in another order on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def server():
    with kills.Server() as found:
        yield found


class Killed(BaseException):
    """Nothing catches it."""


def weights(run):
    return run.model.state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def without_time(run):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in run.history]


def assert_alike(run, whole):
    """The same weights, figures and notes, but for how long it took and that it was taken up again."""
    assert same(weights(run), weights(whole))
    assert without_time(run) == without_time(whole) and run.best_epoch == whole.best_epoch
    assert [note for note in run.notes if "taken up" not in note] == whole.notes and run.status == whole.status


def dying(monkeypatch, step):
    """`fit` ends after so many updates, as if the process had been killed, but for what Python tidies up."""
    step_if, made = loop.step_if, [0]

    def deadly(*args):
        step_if(*args)
        made[0] += 1
        if made[0] == step:
            raise Killed

    monkeypatch.setattr(loop, "step_if", deadly)


assert len(DEFENSES) >= len(kills.SCHEDULES), "some schedule has no case below"


@pytest.mark.parametrize("number", range(len(DEFENSES)), ids=DEFENSES)
def test_every_defense_goes_on_to_the_same_weights_with_every_schedule_and_optimizer(number, tmp_path, monkeypatch):
    defense, chance = DEFENSES[number], random.Random(number)
    options = kills.random_options(chance)
    for name, all_of_them in (("schedule", kills.SCHEDULES), ("optimizer", kills.OPTIMIZERS)):
        options[name] = all_of_them[number % len(all_of_them)]
    whole = kills.fitted(None, defense, options)
    died = chance.randrange(1, kills.steps_of(defense))
    with monkeypatch.context() as patched, pytest.raises(Killed):
        dying(patched, died)
        kills.fitted(tmp_path / "x", defense, options, checkpoint_every=3)
    with monkeypatch.context() as patched:  # a second time, with no step between
        dying(patched, 1)
        if died < kills.steps_of(defense) - 3:
            with pytest.raises(Killed):
                kills.fitted(tmp_path / "x", defense, options, checkpoint_every=3, resume=True)
    run = kills.fitted(tmp_path / "x", defense, options, checkpoint_every=3, resume=True)
    assert_alike(run, whole)
    if died > 3:
        assert f"of {kills.steps_of(defense)}" in next(note for note in run.notes if "taken up" in note)
    assert not (tmp_path / "x" / "checkpoints").exists()


@pytest.mark.posix
@pytest.mark.parametrize("place", kills.PLACES)
def test_a_training_killed_at_any_place_loses_no_more_than_since_its_last_checkpoint(server, place, tmp_path):
    hunt(server, random.Random(place), tmp_path, rounds=1, place=place)


@pytest.mark.slow
@pytest.mark.posix
@pytest.mark.parametrize("seed", range(30))
def test_two_hundred_and_more_kills_at_random(server, seed, tmp_path):
    """Eight kills each, at random places and at random moments, of a random defense with random options."""
    hunt(server, random.Random(seed), tmp_path, rounds=8)


def hunt(server, chance, folder, rounds, place=None):
    """Kill a training again and again; then let it end, and compare it with one that was left alone."""
    defense = chance.choice(DEFENSES) if place is None else "fast-at"
    options = kills.random_options(chance)
    path, killed = folder / "x", 0
    for attempt in range(20 * rounds):
        if killed == rounds:
            break
        there = place or chance.choice([*kills.PLACES, None])
        after, delay = chance.randrange(8), chance.uniform(0, 1.5) if there is None else None
        kept, diary = newest(path), folder / f"diary-{attempt}"
        status = server.run(path, diary, defense, options, there, after, delay=delay)
        assert status == -9 or (status == 0 and finished(path))
        if finished(path):  # it came to its end before it came to the place
            shutil.rmtree(path)
            continue
        killed += 1
        began, made = kills.told(diary)
        assert began in (None, kept), "it did not take up the newest checkpoint"
        lost = (kept if began is None else began) + made - newest(path)
        assert 0 <= lost <= kills.EVERY, f"{lost} steps were lost by a kill in {there}"
        spared = killed  # each kill may come when an old one was about to go
        assert len(Checkpoints(path / "checkpoints").paths()) <= KEEP + spared
    assert killed == rounds
    assert server.run(path, folder / "diary", defense, options) == 0
    model = kills.network_for(defense)
    run = at.load_run(path, model=model, defense=kills.defense_of(defense), data=kills.DATA)
    assert_alike(run, kills.fitted(None, defense, options))
    files = {entry.name for entry in path.iterdir()}
    assert files == {".lock", "config.json", "history.json", "model.safetensors", "provenance.json"}


def finished(path):
    return (path / "config.json").exists() and json.loads((path / "config.json").read_text())["status"] == "finished"


def newest(path):
    """The step of the newest whole checkpoint; 0 if there is none."""
    found = [read(p)["steps"] for p in Checkpoints(path / "checkpoints").paths()]
    return max(found, default=0)


# -- what is in the folder ---------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """The folder of a training that died after 11 of 15 steps; its checkpoints are those of steps 10 and 9."""
    with monkeypatch.context() as patched, pytest.raises(Killed):
        dying(patched, 11)
        kills.fitted(tmp_path / "x", checkpoint_every=3)
    assert [p.name for p in Checkpoints(tmp_path / "x" / "checkpoints").paths()] == [
        "step-00000010.safetensors", "step-00000009.safetensors",
    ]  # fmt: skip
    return tmp_path / "x"


@pytest.fixture(scope="module")
def whole():
    return kills.fitted(None)


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "a web page", "a pickle"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken_up(damage, stopped, whole):
    newest, before = Checkpoints(stopped / "checkpoints").paths()
    content = newest.read_bytes()
    changed = {"truncated": content[: len(content) // 2], "empty": b"", "flipped": flipped(content, -40),
               "a web page": b"<html>", "a pickle": b"\x80\x04N."}  # fmt: skip
    newest.write_bytes(changed[damage])
    with pytest.warns(at.errors.AdvtrainWarning, match=f"{newest.name} is damaged.*goes on from .*{before.name}"):
        run = kills.fitted(stopped, resume=True, checkpoint_every=3)
    assert_alike(run, whole)


def test_a_checkpoint_with_any_bit_flipped_is_damaged(stopped, tmp_path):
    """A byte of every 97, of header and tensors alike: none is read as if nothing were."""
    (path, state), damaged = Checkpoints(stopped / "checkpoints").latest(), tmp_path / "damaged.safetensors"
    content = path.read_bytes()
    for place in range(0, len(content), 97):
        damaged.write_bytes(flipped(content, place))
        with pytest.raises(at.errors.FileError, match="is damaged|is no checkpoint"):
            read(damaged)
    for length in range(0, len(content), 997):
        damaged.write_bytes(content[:length])
        with pytest.raises(at.errors.FileError, match="is damaged"):
            read(damaged)
    assert read(path)["steps"] == state["steps"] == 10


def test_without_a_whole_checkpoint_nothing_begins_anew_in_silence(stopped):
    for path in Checkpoints(stopped / "checkpoints").paths():
        path.write_bytes(path.read_bytes()[:-1])
    before = {path.name: path.read_bytes() for path in stopped.glob("*.*")}
    with pytest.raises(
        at.errors.FileError, match="is damaged.*no other checkpoint is whole: train anew with overwrite"
    ):
        kills.fitted(stopped, resume=True)
    shutil.rmtree(stopped / "checkpoints")
    with pytest.raises(at.errors.FileError, match="has not finished, and no checkpoint of it: train anew"):
        kills.fitted(stopped, resume=True)
    assert {path.name: path.read_bytes() for path in stopped.glob("*.*")} == before


def test_a_full_disk_ends_the_training_and_what_was_written_stays(tmp_path, whole, monkeypatch):
    """With space again, it goes on from there."""
    save, calls = checkpoint_files.save_file, [0]

    def full(tensors, path, **options):
        calls[0] += 1
        if calls[0] == 5:
            path.write_bytes(b"half of it")
            raise checkpoint_files.SafetensorError("I/O error: No space left on device (os error 28)")
        save(tensors, path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_files, "save_file", full)
        with pytest.raises(
            at.errors.FileError, match="cannot write .*step-.*No space left.*earlier checkpoints are st"
        ):
            kills.fitted(tmp_path / "x", checkpoint_every=2)
    names = sorted(path.name for path in (tmp_path / "x" / "checkpoints").iterdir())
    assert names == ["step-00000004.safetensors", "step-00000005.safetensors"]
    assert_alike(kills.fitted(tmp_path / "x", resume=True), whole)


def test_another_training_is_not_taken_up_by_mistake(stopped):
    other = kills.DATA.train
    for change, message in (
        ({"lr": 0.1}, r"lr=0.1 is not what the run in .* began with, 0.02: to resume it, tell fit the same"),
        ({"epochs": 4}, "epochs=4 is not what the run"),
        ({"seed": 4}, "seed=4 is not what"),
        ({"optimizer": "adam"}, "optimizer='adam' is not what"),
        ({"defense": "free"}, "name='free' is not what the run in .* began with, 'fast-at'"),
    ):
        with pytest.raises(at.errors.ArgumentError, match=message):
            kills.fitted(stopped, **{"resume": True, **change})
    swapped = at.as_dataset((other.x.flip(0), other.y), val=0.2, test=0, num_classes=10)
    with pytest.raises(at.errors.ArgumentError, match="images=.* is not what the run in .* began with"):
        at.fit(kills.network(), kills.defense_of("fast-at"), swapped, **told_by_kills(), out=stopped, resume=True)
    narrow = at.build_model("small-cnn", kills.DATA, width=3)
    with pytest.raises(at.errors.ArgumentError, match="is not what the run"):
        at.fit(narrow, kills.defense_of("fast-at"), kills.DATA, **told_by_kills(), out=stopped, resume=True)


def told_by_kills():
    return {"epochs": kills.EPOCHS, "batch_size": kills.BATCH, "lr": 0.02, "val_steps": 2, "seed": 3}


def test_a_folder_with_a_training_in_it_says_how_to_go_on_with_it(stopped):
    with pytest.raises(at.errors.FileError, match=r"already holds a config.json.*To go on .* pass resume=True"):
        kills.fitted(stopped)
    (stopped / "config.json").unlink()  # as if killed in the first epoch
    with pytest.raises(at.errors.FileError, match=r"has checkpoints of a run.*overwrite=True.*pass resume=True"):
        kills.fitted(stopped)


def test_a_training_killed_before_its_first_step_goes_on(tmp_path, whole, monkeypatch):
    """Also in the folder of another one that had finished, and with no checkpoint but the first."""
    kills.fitted(tmp_path / "x", lr=0.5)
    for options in ({"overwrite": True}, {"resume": True}):
        with monkeypatch.context() as patched, pytest.raises(Killed):
            dying(patched, 1)
            kills.fitted(tmp_path / "x", **options)
    with pytest.raises(at.errors.ArgumentError, match="lr=0.5 is not what the run"):
        kills.fitted(tmp_path / "x", lr=0.5, resume=True)
    assert_alike(kills.fitted(tmp_path / "x", resume=True), whole)


def test_a_training_killed_after_its_first_save_goes_on(tmp_path, whole, monkeypatch):
    """Before the checkpoint of its first epoch."""

    def dead(record):
        raise Killed

    with pytest.raises(Killed):
        kills.fitted(tmp_path / "x", on_epoch=dead)
    assert (tmp_path / "x" / "config.json").exists()
    assert_alike(kills.fitted(tmp_path / "x", resume=True), whole)


def test_a_finished_training_is_not_taken_for_one_of_other_images(tmp_path):
    kills.fitted(tmp_path / "x")
    train = kills.DATA.train
    other = at.as_dataset((train.x.flip(0), train.y), val=0.2, test=0, num_classes=10)
    with pytest.raises(at.errors.ArgumentError, match="images=.* is not what the run"):
        at.fit(kills.network(), kills.defense_of("fast-at"), other, **told_by_kills(), out=tmp_path / "x", resume=True)


def test_a_network_of_ones_own_is_known_by_its_shapes(tmp_path, monkeypatch):
    def net(width):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, width), torch.nn.Linear(width, 10))

    options = {"defense": kills.defense_of("fast-at"), "data": kills.DATA, "out": tmp_path / "x"}
    with monkeypatch.context() as patched, pytest.raises(Killed):
        dying(patched, 3)
        at.fit(net(4), **options)
    with pytest.raises(at.errors.ArgumentError, match="1.weight=.5, 64. is not what the run"):
        at.fit(net(5), **options, resume=True)


def test_a_network_with_other_layers_of_the_same_shapes_is_not_taken_up(tmp_path, monkeypatch):
    def net(own, activation):
        if own:
            return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4), activation, torch.nn.Linear(4, 10))
        model = kills.network_for("sat-r1")
        model.body[1] = activation
        return model

    gelu, relu = torch.nn.GELU(), torch.nn.ReLU()
    for name, before, now, message in (
        ("own", net(True, gelu), net(True, relu), "layers='[0-9a-f]{16}' is not what the run in .* began with"),
        ("plain", net(False, gelu), net(False, relu), "model={.* is not what the run in .* began with, {'name': 'smal"),
        ("changed", net(False, relu), net(False, gelu), "model={'name': 'small-cnn'.* is not what the run in .* began"),
    ):
        options = {"defense": kills.defense_of("fast-at"), "data": kills.DATA, "out": tmp_path / name}
        with monkeypatch.context() as patched, pytest.raises(Killed):
            dying(patched, 3)
            at.fit(before, **options)
        with pytest.raises(at.errors.ArgumentError, match=message):
            at.fit(now, **options, resume=True)


def test_another_schedule_of_the_same_name_is_not_taken_up(tmp_path, monkeypatch):
    def own(factor, name):
        def schedule(step, total, per_epoch):
            return at.schedules.Rate(factor * (1 - step / total), 0.9)

        schedule.__name__ = name
        return schedule

    options = {"defense": kills.defense_of("fast-at"), "data": kills.DATA, "epochs": 1, "batch_size": 8}
    for number, (before, now) in enumerate([
        (own(1.0, "mine"), own(0.01, "mine")), (own(1.0, "cosine"), "cosine"), ("cosine", own(1.0, "cosine")),
        (functools.partial(own(1.0, "a")), functools.partial(own(0.5, "a"))),
    ]):  # fmt: skip
        options["out"] = tmp_path / f"{number}"
        with monkeypatch.context() as patched, pytest.raises(Killed):
            dying(patched, 2)
            at.fit(kills.network(), schedule=before, **options)
        with pytest.raises(at.errors.ArgumentError, match="schedule='.*' is not what the run in .* began with"):
            at.fit(kills.network(), schedule=now, **options, resume=True)
        for _ in range(2):  # a second time it has finished
            assert at.fit(kills.network(), schedule=before, **options, resume=True).status == "finished"
        with pytest.raises(at.errors.ArgumentError, match="schedule='.*' is not what the run in .* began with"):
            at.fit(kills.network(), schedule=now, **options, resume=True)


def test_a_schedule_of_this_package_has_one_name_however_it_is_given(tmp_path):
    for schedule in (at.schedules.one_cycle, "one-cycle"):
        run = kills.fitted(tmp_path / "x", schedule=schedule, resume=True)
        assert run.options["schedule"] == "one-cycle"


def test_a_defense_with_a_tuple_among_its_fields_is_known_again(tmp_path, monkeypatch):
    @dataclasses.dataclass
    class Scaled(at.defenses.Standard):
        scales: tuple[int, ...] = (1, 2)

    options = {"defense": Scaled(kills.THREAT), "data": kills.DATA, "out": tmp_path / "x", "epochs": 1}
    with monkeypatch.context() as patched, pytest.raises(Killed):
        dying(patched, 1)
        at.fit(kills.network(), **options)
    assert at.fit(kills.network(), **options, resume=True).status == "finished"


def test_a_damaged_checkpoint_does_not_count_among_those_that_are_kept(stopped):
    newest, before = Checkpoints(stopped / "checkpoints").paths()
    newest.write_bytes(b"")
    checkpoints = Checkpoints(stopped / "checkpoints")
    with pytest.warns(at.errors.AdvtrainWarning, match="is damaged"):
        _, state = checkpoints.latest()
    checkpoints.write(state["steps"], state)
    checkpoints.write(5, state)
    assert [path.name[5:13] for path in checkpoints.paths()] == ["00000009", "00000005"]
    checkpoints.clear()
    assert not (stopped / "checkpoints").exists()


def test_overwriting_begins_anew(stopped, whole):
    assert_alike(kills.fitted(stopped, overwrite=True), whole)
    assert not (stopped / "checkpoints").exists()


def test_resuming_where_nothing_is_begins_and_where_all_is_done_reads(tmp_path, whole):
    first = kills.fitted(tmp_path / "x", resume=True)
    assert_alike(first, whole)
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "x").iterdir() if path.name != ".lock"}
    again = kills.fitted(tmp_path / "x", resume=True)
    assert_alike(again, whole)
    assert again.path == tmp_path / "x"
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "x").iterdir() if p.name != ".lock"} == files
    with pytest.raises(at.errors.ArgumentError, match="lr=0.3 is not what the run"):
        kills.fitted(tmp_path / "x", resume=True, lr=0.3)


@pytest.mark.posix
@pytest.mark.parametrize("step", [4, 7, 15])
def test_ctrl_c_loses_no_step_at_all(step, tmp_path, whole, monkeypatch):
    """Not even of those since the last checkpoint: it writes one."""
    import signal

    step_if, made = loop.step_if, [0]

    def pressed(*args):
        made[0] += 1
        if made[0] == step:
            signal.raise_signal(signal.SIGINT)
        step_if(*args)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "step_if", pressed)
        run = kills.fitted(tmp_path / "x", checkpoint_every=100)
    assert run.status == "interrupted" and newest(tmp_path / "x") == step
    run = kills.fitted(tmp_path / "x", resume=True)
    assert_alike(run, whole)
    assert run.provenance["resumed"][0]["step"] == step and run.provenance["seed"] == 3


def test_no_checkpoints_are_written_where_none_are_wanted(tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Killed):
        dying(patched, 11)
        kills.fitted(tmp_path / "x", checkpoint_every=0)
    assert not (tmp_path / "x" / "checkpoints").exists() and (tmp_path / "x" / "config.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resume": True}, r"resume=True is not possible without a folder: name one: out='runs/x'"),
        ({"checkpoint_every": 5}, r"checkpoint_every=5 is not possible without a folder"),
        ({"out": "x", "checkpoint_every": -1}, r"checkpoint_every=-1 is not an integer of at least 0: 0 writes none"),
        ({"out": "x", "resume": "x"}, r"resume='x' is not True or False"),
        ({"out": "x", "resume": True, "overwrite": True}, r"resume=True is not possible with overwrite=True"),
        ({"on_overfit": "stop", "validate_every": 0}, r"on_overfit='stop' is not possible without validation"),
        ({"on_overfit": "halt"}, r"on_overfit='halt' is not one of warn, stop, rewind"),
    ],
)
def test_what_cannot_be_resumed_is_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(at.errors.ArgumentError, match=message):
        at.fit(kills.network(), kills.defense_of("fast-at"), kills.DATA, **options)
    assert not list(tmp_path.iterdir())


def test_a_training_that_is_refused_late_leaves_no_folder(tmp_path):
    defense = at.defenses.GradAlign(kills.THREAT)
    with pytest.raises(at.errors.ArgumentError, match="compile=True is not possible with gradalign"):
        at.fit(kills.network(), defense, kills.DATA, out=tmp_path / "new", compile=True)
    assert not list(tmp_path.iterdir())


class Foreign(at.defenses.Standard):
    def state_dict(self):
        return {"object": object()}


def test_a_defense_that_remembers_what_no_checkpoint_can_hold_is_named(tmp_path):
    with pytest.raises(at.errors.ArgumentError, match=r"defense.object='a object' is not a tensor, number"):
        at.fit(kills.network(), Foreign(kills.THREAT), kills.DATA, epochs=1, out=tmp_path / "x")


# -- one folder, one training ------------------------------------------------------------------------------------------


def test_two_trainings_in_one_folder_are_refused_also_from_two_threads(tmp_path, monkeypatch):
    begun, done, step_if = threading.Event(), threading.Event(), loop.step_if

    def hold(*args):
        if threading.current_thread() is thread and len(list((tmp_path / "x").glob("*.json"))) == 3:
            begun.set()
            assert done.wait(60)
        step_if(*args)

    monkeypatch.setattr(loop, "step_if", hold)
    thread = threading.Thread(target=kills.fitted, args=(tmp_path / "x",))
    thread.start()
    try:
        assert begun.wait(60)
        for options in ({"overwrite": True}, {"resume": True}):
            with pytest.raises(at.errors.FileError, match="x is in use: another training is writing to it. Wait"):
                kills.fitted(tmp_path / "x", **options)
        run = at.load_run(tmp_path / "x", model=kills.network())  # reading is free
        with pytest.raises(at.errors.FileError, match="x is in use"):
            run.save()
    finally:
        done.set()
        thread.join()
    kills.fitted(tmp_path / "x", overwrite=True, epochs=1)


@pytest.mark.posix
def test_a_folder_is_claimed_by_a_process_until_it_ends_however_it_ends(server, tmp_path):
    from advtrain.resume import claimed

    with claimed(tmp_path / "x"):
        assert server.run(tmp_path / "x", tmp_path / "diary", "fast-at", {}) == 1, "two at once"
    assert server.run(tmp_path / "x", tmp_path / "diary", "fast-at", {}, "an update", 6) == -9
    assert server.run(tmp_path / "x", tmp_path / "diary", "fast-at", {}) == 0


def test_a_callback_may_save_the_run_itself(tmp_path):
    run = kills.fitted(tmp_path / "x", callbacks=[lambda run: run.save()])
    assert run.status == "finished"


# -- the caller's own data, and several processes ----------------------------------------------------------------------


def test_an_epoch_whose_callback_failed_is_made_again_so_that_none_misses_it(tmp_path, whole):
    """Were it kept, a callback that would have ended the training there would be asked an epoch too late."""
    seen = []

    def failing(run):
        seen.append(len(run.history))
        if seen == [1, 2]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        kills.fitted(tmp_path / "x", callbacks=[failing])
    assert_alike(kills.fitted(tmp_path / "x", callbacks=[failing], resume=True), whole)
    assert seen == [1, 2, 2, 3]


class Noisy(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, i):
        x = kills.DIGITS.train.x[i] / 255
        return (x + 0.1 * torch.rand(x.shape)).clamp(0, 1), int(kills.DIGITS.train.y[i])


@pytest.mark.parametrize("defense", ["fast-at", "free"])
@pytest.mark.parametrize("own_generator", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataloader_gives_the_batches_that_it_would_have_given(
    defense, own_generator, workers, tmp_path, monkeypatch
):
    """Also where images are augmented by draws from PyTorch's global generator, and a batch is used several times."""

    def fitted(**options):
        generator = torch.Generator().manual_seed(5) if own_generator else None
        loader = torch.utils.data.DataLoader(Noisy(), 8, shuffle=True, generator=generator, num_workers=workers)
        data = at.as_dataset(loader, num_classes=10)
        return at.fit(kills.network(), kills.defense_of(defense), data, epochs=3, lr=0.02, **options)

    whole = fitted()
    for folder, options in ("within", {"checkpoint_every": 3}), ("between", {}):  # two epochs
        with monkeypatch.context() as patched, pytest.raises(Killed):
            dying(patched, 9 if folder == "within" else 6 * (8 if defense == "free" else 1))
            fitted(out=tmp_path / folder, **options)
        assert_alike(fitted(out=tmp_path / folder, resume=True), whole)


# -- catastrophic overfitting ------------------------------------------------------------------------------------------

COLLAPSE = [(0.50, 0.40), (0.60, 0.50), (0.95, 0.02), (0.97, 0.01)]  # FGSM and PGD accuracy, epoch by epoch


@pytest.fixture
def collapsing(monkeypatch):
    """Validation that finds catastrophic overfitting in epoch 3, whatever the weights are."""

    def validate(self, split):
        fgsm, pgd = COLLAPSE[len(self.run.history)]
        return {"val_clean": 0.9, "val_fgsm": fgsm, "val_pgd": pgd}

    monkeypatch.setattr(loop.Loop, "validate", validate)


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize(("on_overfit", "epochs", "given"), [("warn", 4, 4), ("stop", 3, 3), ("rewind", 3, 2)])
def test_catastrophic_overfitting_warns_stops_or_goes_back(on_overfit, epochs, given, ema, collapsing, tmp_path):
    seen = []

    def look(run):
        seen.append({key: value.clone() for key, value in run.model.state_dict().items()})

    with pytest.warns(at.errors.OverfittingWarning, match="epoch 3: catastrophic overfitting"):
        run = kills.fitted(tmp_path / "x", epochs=4, on_overfit=on_overfit, ema=ema, callbacks=[look])
    assert (len(run.history), run.best_epoch, run.status) == (epochs, given, "finished")
    if ema is None:
        assert same(weights(run), seen[given - 1])
    assert ("stopped after 3 of 4 epochs: catastrophic overfitting" in run.notes) == (on_overfit != "warn")
    assert any("rewound to epoch 2" in note for note in run.notes) == (on_overfit == "rewind")
    again = at.load_run(tmp_path / "x", model=kills.network(), data=kills.DATA)
    assert same(weights(again), weights(run)) and again.best_epoch == given
    assert again.options["on_overfit"] == on_overfit


@pytest.mark.filterwarnings("ignore::advtrain.errors.OverfittingWarning")
def test_what_was_stopped_by_overfitting_is_not_trained_on_by_resuming(collapsing, tmp_path, monkeypatch):
    """Killed between the end of the training and the last writing, it comes to the same end."""
    whole = kills.fitted(None, epochs=4, on_overfit="rewind")
    save = at.runs.Run.save

    def deadly(run, *args, **options):
        if run.status == "finished":
            raise Killed
        return save(run, *args, **options)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(at.runs.Run, "save", deadly)
        kills.fitted(tmp_path / "x", epochs=4, on_overfit="rewind")
    assert_alike(kills.fitted(tmp_path / "x", epochs=4, on_overfit="rewind", resume=True), whole)


@pytest.mark.gpu
@pytest.mark.parametrize("defense", ["fast-at", "free", "rvs"])
def test_a_training_on_a_gpu_goes_on_too(defense, tmp_path, monkeypatch):
    """To weights as close as those of two trainings that were left alone."""
    options = {"device": "cuda", "bf16": False, "lr": 0.001}
    whole = kills.fitted(None, defense, options)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        dying(patched, 9)
        kills.fitted(tmp_path / "x", defense, options, checkpoint_every=3)
    run = kills.fitted(tmp_path / "x", defense, options, resume=True)
    for name, value in weights(run).items():
        torch.testing.assert_close(value, weights(whole)[name], rtol=0.05, atol=0.01)
