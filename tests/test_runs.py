"""Run folders: whole or not there, read back as they were, and nothing in them is ever executed."""

import dataclasses
import json
import os
import pickle
import shutil

import numpy
import pytest
import torch
from torch import nn

import advtrain as at
from advtrain import provenance, runs
from advtrain.files import atomic, write_json
from advtrain.models.small_cnn import SmallCNN

THREAT = at.Threat("linf", 0.3)


@pytest.fixture(scope="module")
def digits():
    return at.load_data("digits")


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    model = at.build_model("small-cnn", digits, width=4)
    return at.fit(
        model,
        at.defenses.PGD(THREAT, steps=2, label_smoothing=0.1),
        digits,
        epochs=2,
        out=tmp_path_factory.mktemp("runs") / "x",
    )


def test_a_run_comes_back_with_model_data_threat_and_history(run, digits):
    again = at.load_run(run.path)
    x = digits.test.images()
    assert torch.equal(run.model(x), again.model(x))
    assert again.threat == THREAT and again.defense == run.defense and again.history == run.history
    assert torch.equal(again.data.test.x, digits.test.x) and torch.equal(again.data.val.y, digits.val.y)
    assert (again.options, again.status, again.best_epoch) == (run.options, "finished", 2)


def test_provenance_names_everything_that_made_the_figures(run):
    source = json.loads((run.path / "provenance.json").read_text())
    assert {"commit", "command", "seed", "date", "device", "threads", "python", "system", "versions"} <= source.keys()
    assert (
        source["versions"]["torch"] == torch.__version__.split("+")[0]
        or source["versions"]["torch"] == torch.__version__
    )
    assert not any(str(value).startswith("/") for value in source.values())


def test_every_defense_survives_json():
    for name, defense in at.defenses.DEFENSES.items():
        made = defense(at.Threat("linf", 8 / 255), bn="batch")
        assert at.defenses.from_config(json.loads(json.dumps(made.config))) == made and made.config["name"] == name


def test_own_models_and_data_are_given_back_by_their_owner(tmp_path):
    x, y = at.Rng(0).uniform(torch.empty(60, 1, 4, 4), 0, 1), torch.arange(60) % 3

    def net():
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    run = at.fit(net(), at.defenses.Standard(THREAT), (x, y), epochs=1, out=tmp_path / "own")
    with pytest.raises(at.errors.ArgumentError, match="not as build_model makes it"):
        at.load_run(tmp_path / "own")
    again = at.load_run(tmp_path / "own", model=net())
    assert torch.equal(again.model(x), run.model(x)) and again.data is None
    with pytest.raises(at.errors.ArgumentError, match="does not fit"):
        at.load_run(tmp_path / "own", model=nn.Linear(2, 2))


def test_a_defense_of_ones_own_is_given_back_by_its_owner(digits, tmp_path):
    class Mine(at.defenses.FastAT):
        pass

    at.fit(
        at.build_model("small-cnn", digits, width=4),
        Mine(THREAT),
        digits,
        epochs=1,
        out=tmp_path / "mine",
        validate_every=0,
    )
    with pytest.raises(at.errors.ArgumentError, match="defense=None is not given: this run's Mine is not part of"):
        at.load_run(tmp_path / "mine")
    assert type(at.load_run(tmp_path / "mine", defense=Mine(THREAT)).defense) is Mine


def test_a_changed_network_is_not_mistaken_for_the_one_it_was_built_as(digits, tmp_path):
    model = at.build_model("small-cnn", digits, width=4)
    model.head = nn.Linear(128, 12)
    at.fit(model, at.defenses.Standard(THREAT), digits, epochs=1, out=tmp_path / "x", validate_every=0)
    with pytest.raises(at.errors.ArgumentError, match="not as build_model makes it"):
        at.load_run(tmp_path / "x")
    assert at.load_run(tmp_path / "x", model=model).model is model


def test_a_defense_that_json_cannot_hold_is_trained_with_and_not_half_written(digits, tmp_path):
    @dataclasses.dataclass
    class Weighted(at.defenses.Standard):
        weights: torch.Tensor | None = None
        nested: dict | None = None

    few = at.as_dataset((digits.train.x[:32], digits.train.y[:32]), test=0, val=0, num_classes=10)
    model, defense = at.build_model("small-cnn", digits, width=4), Weighted(THREAT, weights=torch.ones(10))
    run = at.fit(model, defense, few, epochs=1)
    with pytest.raises(at.errors.ArgumentError, match="defense.weights=an object of type Tensor is not what a run fol"):
        run.save(tmp_path / "x")
    assert not (tmp_path / "x").exists()
    plain = Weighted(THREAT, nested={"scales": (1, 2.5, None), "threat": THREAT})
    assert at.fit(model, plain, few, epochs=1, out=tmp_path / "x").path.exists()


def test_what_is_given_to_load_a_run_is_held_against_it(run, digits):
    def load(**given):
        return at.load_run(run.path, **given)

    pgd, other = at.defenses.PGD, at.Threat("linf", 0.1)
    for defense, message in (
        (
            pgd(other, steps=2, label_smoothing=0.1),
            "eps=0.1 is not what the run in .* began with, 0.3: give the defense",
        ),
        (
            pgd(THREAT, steps=3, label_smoothing=0.1),
            "steps=3 is not what the run in .* began with, 2: give the defense",
        ),
        (at.defenses.FGSM(THREAT), "name='fgsm' is not what the run in .* began with, 'pgd'"),
    ):
        with pytest.raises(at.errors.ArgumentError, match=message):
            load(defense=defense)
    assert load(defense=pgd(THREAT, steps=2, label_smoothing=0.1)).data is not None
    x, y = at.Rng(0).uniform(torch.empty(60, 1, 9, 9), 0, 1), torch.arange(60) % 12
    for data, message in (
        (
            at.as_dataset((x, y % 10), num_classes=10),
            "data='own data' is not what the run in .* batch of shape .2, 1, 9",
        ),
        (at.as_dataset((x[..., :8, :8], y)), "data='own data' is not what the run in .* was trained on: .* 12 classes"),
    ):
        model = at.build_model("small-cnn", digits, width=4, seed=5)
        before = model.head.weight.clone()
        with pytest.raises(at.errors.ArgumentError, match=message):
            load(data=data, model=model)
        assert torch.equal(model.head.weight, before), "a refused call leaves no changed model"
    with pytest.warns(
        at.errors.AdvtrainWarning, match="data='digits' is not what the run in .* other images or labels"
    ):
        load(data=dataclasses.replace(digits, train=digits.train[:100]))


def test_data_that_have_changed_since_the_training_are_noticed(tmp_path):
    x = at.Rng(0).uniform(torch.empty(60, 1, 8, 8), 0, 1).mul(255).byte().numpy()
    y = numpy.arange(60) % 3
    numpy.savez(tmp_path / "own.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    data = at.load_data(tmp_path / "own.npz")
    at.fit(at.build_model("small-cnn", data, width=4), at.defenses.Standard(THREAT), data, epochs=1, out=tmp_path / "x")
    assert len(at.load_run(tmp_path / "x").data.train) == len(data.train)
    numpy.savez(tmp_path / "own.npz", x_train=255 - x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    with pytest.warns(
        at.errors.AdvtrainWarning, match=r"own has changed since, and is not what the run in .* trained on"
    ):
        assert at.load_run(tmp_path / "x").data is not None


def another_forward(model):
    model.__class__ = type("SmallCNN", (type(model),), {"forward": lambda self, x: 2 * SmallCNN.forward(self, x)})


CHANGES = {
    "another activation": lambda model: model.body.__setitem__(1, nn.ReLU()),
    "another setting of a layer": lambda model: setattr(model.body[2], "padding_mode", "circular"),
    "a layer more": lambda model: model.body.append(nn.Tanh()),
    "layers in another order": lambda model: setattr(model, "body", nn.Sequential(*model.body[:8], nn.Tanh())),
    "another forward in a subclass": another_forward,
    "another forward of its own": lambda model: setattr(model, "forward", lambda x: type(model).forward(model, x) * 2),
    "a hook": lambda model: model.register_forward_hook(lambda module, given, out: out * 2),
    "a hook on what goes into a layer": lambda model: model.head.register_forward_pre_hook(lambda m, x: (x[0] * 2,)),
}
"""What leaves every weight in its shape and gives other logits."""


@pytest.mark.parametrize("change", CHANGES)
def test_a_network_changed_without_changing_shapes_is_asked_for(change, digits, tmp_path):
    def net(changed):
        model = at.build_model("small-cnn", digits, width=4)
        if changed:
            CHANGES[change](model)
        return model

    few = at.as_dataset((digits.train.x[:32], digits.train.y[:32]), test=0, val=0, num_classes=10)
    options = dict(defense=at.defenses.Standard(THREAT), data=few, epochs=1, out=tmp_path / "x")
    run = at.fit(net(True), **options)
    with pytest.raises(at.errors.ArgumentError, match="model=None is not given: this run's network is not as build_m"):
        at.load_run(tmp_path / "x", data=few)
    again = at.load_run(tmp_path / "x", model=net(True), data=few)
    assert torch.equal(again.model(few.probe().x[:4] / 255), run.model(few.probe().x[:4] / 255))
    with pytest.raises(at.errors.ArgumentError, match="layers=None is not what the run in .* began with"):
        at.fit(net(False), **options, resume=True)
    assert at.fit(net(True), **options, resume=True).status == "finished"
    about = json.loads((at.export(net(True), tmp_path / "exported") / "model.json").read_text())
    assert about["model"] == {"class": "SmallCNN"}, "build_model does not make it"


WRAPPERS = {
    "none": lambda net: net,
    "torch.compile": lambda net: torch.compile(net, backend="eager"),
    "DataParallel": nn.DataParallel,
    "both": lambda net: nn.DataParallel(torch.compile(net, backend="eager")),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("kind", ["built-in", "own"])
def test_a_run_of_a_wrapped_network_comes_back_wrapped_or_plain(kind, wrapper, digits, tmp_path):
    def net():
        if kind == "built-in":
            return at.build_model("small-cnn", digits, width=4)
        return nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(64, 10)))

    few = at.as_dataset((digits.train.x[:32], digits.train.y[:32]), test=0, val=0, num_classes=10)
    run = at.fit(WRAPPERS[wrapper](net()), at.defenses.Standard(THREAT), few, epochs=1, out=tmp_path / "x")
    x = few.probe().x[:4] / 255
    for wrap in WRAPPERS.values():
        model = wrap(net())
        again = at.load_run(tmp_path / "x", model=model, data=few)
        assert again.model is model and torch.equal(again.model(x), run.model(x))
    for other in (nn.Sequential(nn.Linear(64, 10)), nn.ModuleDict({"module": net(), "body": net()})):
        with pytest.raises(at.errors.ArgumentError, match="model does not fit the weights"):
            at.load_run(tmp_path / "x", model=other, data=few)


@pytest.mark.parametrize("spec", [{"a": 1}, {"name": "small-cnn"}, {1: 2}, {"name": "resnet", "shape": 3}, "mine"])
def test_a_networks_own_attribute_spec_says_nothing_here(spec, tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    net.spec = spec
    x, y = at.Rng(0).uniform(torch.empty(60, 1, 4, 4), 0, 1), torch.arange(60) % 3
    run = at.fit(net, at.defenses.Standard(THREAT), (x, y), epochs=1, out=tmp_path / "own")
    assert (
        "Sequential" in str(run)
        and run.config["model"] is None
        and at.load_run(tmp_path / "own", model=net).model is net
    )
    about = json.loads((at.export(net, tmp_path / "exported", shape=(1, 4, 4)) / "model.json").read_text())
    assert about["model"] == {"class": "Sequential"}


def test_values_alone_do_not_make_another_network(digits):
    model = at.build_model("small-cnn", digits, width=4, batch_norm=True).double().eval().requires_grad_(False)
    model.normalize.mean += 0.1
    model.remark = "of the user"
    assert runs.spec_of(model) == model.spec


def test_a_replaced_run_lives_until_the_new_one_is_written(digits, tmp_path):
    def model(**options):
        return at.build_model("small-cnn", digits, width=4, **options)

    at.fit(model(), at.defenses.Standard(THREAT), digits, epochs=1, out=tmp_path / "x", validate_every=0)
    write_json(tmp_path / "x" / "report.json", {"of": "the old run"})
    frozen = model().requires_grad_(False)
    with pytest.raises(at.errors.ArgumentError, match="no parameter requires a gradient"):
        at.fit(frozen, at.defenses.Standard(THREAT), digits, epochs=1, out=tmp_path / "x", overwrite=True)
    assert at.load_run(tmp_path / "x").status == "finished" and (tmp_path / "x" / "report.json").exists()
    new = at.fit(
        model(), at.defenses.FastAT(THREAT), digits, epochs=1, out=tmp_path / "x", overwrite=True, validate_every=0
    )
    assert at.load_run(tmp_path / "x").defense.name == "fast-at" and not (tmp_path / "x" / "report.json").exists()
    other = at.fit(model(), at.defenses.Standard(THREAT), digits, epochs=1, validate_every=0)
    with pytest.raises(at.errors.FileError, match="of an earlier run"):
        other.save(tmp_path / "x")
    assert other.save(tmp_path / "x", overwrite=True) == new.path


def copy(run, folder):
    again = at.load_run(run.path)
    return again.save(folder / "copy")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("config.json", lambda data: data[: len(data) // 2]),
        ("config.json", lambda data: b"[]"),
        ("config.json", lambda data: data.replace(b'"format": 1', b'"format": 99')),
        ("history.json", lambda data: b"\xff\xfe"),
        ("model.safetensors", lambda data: data[:-10]),
        ("model.safetensors", lambda data: b""),
        ("model.safetensors", lambda data: os.urandom(200)),
    ],
)
def test_damaged_files_are_named(run, tmp_path, name, damage):
    folder = copy(run, tmp_path)
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(at.errors.FileError) as error:
        at.load_run(folder)
    assert str(folder) in str(error.value)


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(at.errors.FileError, match="holds no run"):
        at.load_run(tmp_path / "nowhere")


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_pickle_in_place_of_the_weights_executes_nothing(run, tmp_path):
    folder = copy(run, tmp_path)
    (folder / "model.safetensors").write_bytes(pickle.dumps(_Bomb(str(tmp_path / "exploded"))))
    with pytest.raises(at.errors.FileError, match="not a safetensors file"):
        at.load_run(folder)
    assert not (tmp_path / "exploded").exists()


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(RuntimeError), atomic(tmp_path / "a.json") as partial:
        partial.write_text("half")
        raise RuntimeError
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}


def test_a_run_without_a_folder_says_so(digits):
    run = at.fit(
        at.build_model("small-cnn", digits, width=4), at.defenses.Standard(THREAT), digits, epochs=1, validate_every=0
    )
    with pytest.raises(at.errors.ArgumentError, match="path=None is not a folder"):
        run.save()
    assert "standard, finished after 1 epoch" in repr(run)


@pytest.mark.parametrize("told", ["ab" * 20, "ab" * 20 + "+changes", "main", ""])
def test_a_copy_without_its_history_is_told_its_commit(tmp_path, monkeypatch, told):
    """And what is no commit is not taken for one."""
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "advtrain" / "provenance.py"))
    monkeypatch.setenv("ADVTRAIN_COMMIT", told)
    assert provenance.git_commit.__wrapped__() == (told if told.startswith("ab") else None)


@pytest.mark.parametrize("name", ["history.json", "provenance.json", "config.json"])
def test_a_run_killed_between_two_of_its_files_says_what_its_weights_are(digits, tmp_path, name, monkeypatch):
    """The weights are written before what speaks of them."""
    write, calls = runs.write_json, [0]

    def dying(path, value):
        calls[0] += path.name == name
        if calls[0] >= 2:
            raise KeyboardInterrupt
        write(path, value)

    model = at.build_model("small-cnn", digits, width=4)
    monkeypatch.setattr(runs, "write_json", dying)
    with pytest.raises(KeyboardInterrupt):
        at.fit(model, at.defenses.FGSM(at.Threat("linf", 0.1)), digits, epochs=2, out=tmp_path / "x", val_steps=1)
    run = at.load_run(tmp_path / "x")
    known = name != "history.json"
    assert len(run.history) == 1 + known and run.status == "running"
    assert any("killed while epoch 2 was written" in note for note in run.notes) == (not known)
    assert run.best_epoch == 2


def test_weights_with_any_bit_flipped_are_damaged(run, tmp_path):
    """A byte of every 211, in the header or in the numbers: never other weights in silence."""
    shutil.copytree(run.path, tmp_path / "x")
    path = tmp_path / "x" / "model.safetensors"
    content = path.read_bytes()
    for place in range(0, len(content), 211):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(at.errors.FileError, match="damaged"):
            at.load_run(tmp_path / "x")


def test_a_figure_that_was_not_recorded_is_left_out_of_a_runs_line(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "x")
    history = json.loads((tmp_path / "x" / "history.json").read_text())
    write_json(tmp_path / "x" / "history.json", [{**record, "accuracy": None} for record in history])
    assert "accuracy" in repr(at.load_run(run.path)) and "accuracy" not in repr(at.load_run(tmp_path / "x"))
