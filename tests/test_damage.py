"""A full disk, a folder that nobody may write to, a writer that is killed, a file that is cut or has a bit turned:
what was good stays good, and the message names the file."""

import contextlib
import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import advtrain as at
from advtrain.autoattack.state import FORMAT, State
from advtrain.data import load_data
from advtrain.errors import AdvtrainError, DataError, FileError
from advtrain.files import digest_of, read_json, write_json
from advtrain.results.results import sum_of

# Before Python 3.11 an archive that a full disk cut short complains once more when it is forgotten.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in.*ZipFile:pytest.PytestUnraisableExceptionWarning")


def everything(folder):
    """All files below a folder, hidden ones too, and what they hold."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def run():
    data = at.load_data("digits")
    model, defense = at.build_model("small-cnn", data, width=2), at.defenses.FGSM(at.Threat("linf", 0.1))
    part = (data.train.x[:40], data.train.y[:40])
    return at.fit(model, defense, part, epochs=1, validate_every=0, progress=False)


@pytest.fixture(scope="module")
def results():
    """A few runs of a recorded experiment."""
    whole = at.load_results("digits")
    kept = whole.methods[:3]
    whole.experiment["methods"] = [method for method in whole.experiment["methods"] if method["name"] in kept]
    whole.experiment["compare"] = [c for c in whole.experiment["compare"] if c["a"] in kept and c["b"] in kept]
    whole.runs = [run for run in whole.runs if run.method in kept]
    return whole


def arrays(number, count=30):
    rng = np.random.default_rng(number)
    return {
        "x_train": rng.integers(0, 256, (count, 3, 8, 8), np.uint8), "y_train": np.arange(count) % 4,
        "x_test": rng.integers(0, 256, (9, 3, 8, 8), np.uint8), "y_test": np.arange(9) % 4,
        "classes": np.array(list("abcd")),
    }  # fmt: skip


@contextlib.contextmanager
def small_disk(size):
    """Inside, no file grows beyond so many bytes: what comes after fails as on a full disk."""
    resource = pytest.importorskip("resource", reason="Windows knows no limit of this kind")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def writers(run, results):
    """{what is written: (how, how it is read again)}, each into a folder."""

    def fetched(folder):
        from advtrain.data_sources import atomic

        with atomic(folder / "set.npz") as partial, open(partial, "wb") as file:
            np.savez(file, **arrays(1))

    return {
        "results": (lambda f: results.save(f / "r.json"), lambda f: at.load_results(f / "r.json").to_dict()),
        "run": (lambda f: run.save(f / "run", overwrite=True), lambda f: at.load_run(f / "run").history),
        "json": (lambda f: write_json(f / "x.json", ["x" * 100] * 50), lambda f: read_json(f / "x.json")),
        "state": (lambda f: State(900, 3, {}, f / "s").save(), lambda f: State(900, 3, {}, f / "s").passes),
        "npz": (fetched, lambda f: load_data(f / "set.npz").test.x.tolist()),
    }


KINDS = ("results", "run", "json", "state", "npz")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 1, 700, 2000])
def test_a_full_disk_leaves_what_was_there_and_nothing_else(tmp_path, run, results, kind, size):
    write, read = writers(run, results)[kind]
    write(tmp_path)
    before, value = everything(tmp_path), read(tmp_path)
    with small_disk(size), pytest.raises(FileError, match="cannot write") as caught:
        write(tmp_path)
    assert str(tmp_path) in str(caught.value) and "arge" in str(caught.value), "the file, and why: it is too large"
    assert everything(tmp_path) == before and read(tmp_path) == value


@pytest.mark.parametrize("kind", ["results", "json"])
@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_disk_that_fails_late_leaves_what_was_there(tmp_path, run, results, kind, call, monkeypatch):
    write, _ = writers(run, results)[kind]
    write(tmp_path)
    before = everything(tmp_path)

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(FileError, match="cannot write .*: No space left on device"):
        write(tmp_path)
    monkeypatch.undo()
    assert everything(tmp_path) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_where_a_folder_should_be_is_named(tmp_path, run, results, kind):
    (tmp_path / "place").write_text("mine")
    write, _ = writers(run, results)[kind]
    with pytest.raises(FileError, match=r"cannot write .*place"):
        write(tmp_path / "place")
    assert everything(tmp_path) == {"place": b"mine"}


def without_privileges(function):
    """What the function returns, called in a thread to which the modes of files matter, also if root runs the tests."""
    found = []

    def call():
        if os.geteuid() == 0:  # on Linux each thread has its own privileges: this one gives up all of them
            head, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
            if ctypes.CDLL(None, use_errno=True).capset(head, none):
                raise OSError(ctypes.get_errno(), "capset")
        found.append(function())

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.posix
def test_a_folder_that_nobody_may_write_to_is_named(tmp_path, run, results):
    folder = tmp_path / "read-only"
    folder.mkdir()
    (folder / "r.json").write_text("mine")
    data = at.load_data("digits")
    part, ball = (data.train.x[:40], data.train.y[:40]), at.defenses.FGSM(run.threat)
    ways = {
        "results": lambda: results.save(folder / "r.json"),
        "results in a new folder": lambda: results.save(folder / "new" / "r.json"),
        "json": lambda: write_json(folder / "x.json", {}),
        "a run": lambda: at.fit(run.model, ball, part, epochs=1, validate_every=0, out=folder / "run", progress=False),
        "an export": lambda: run.export(folder / "export"),
        "a state": lambda: at.autoattack(
            run.model, data.test.images()[:4], data.test.y[:4], run.threat, state=folder / "state", progress=False
        ),
        "data": lambda: load_data("mnist", root=folder / "data", download=True),
    }

    def try_all():
        said = {}
        for name, write in ways.items():
            try:
                write()
                said[name] = "it was written"
            except FileError as error:
                said[name] = str(error)
        return said

    folder.chmod(0o555)
    try:
        said = without_privileges(try_all)
    finally:
        folder.chmod(0o755)
    for name in ways:
        assert "cannot write" in said[name] and str(folder) in said[name] and "Permission denied" in said[name], name
    assert everything(folder) == {"r.json": b"mine"}


KILLED = """
import json, os, signal, sys
from pathlib import Path
import advtrain as at

folder, rounds = Path(sys.argv[1]), []
results = at.load_results(folder / "r.json")
runs = [at.load_run(folder / "run"), at.load_run(folder / "run")]
runs[1].history = runs[1].history * 2


def write(what, new):
    if what == "results":
        results.provenance[0]["command"] = "new " * 999 if new else "old"
        results.save(folder / "r.json")
    else:
        runs[new].save(folder / "run", overwrite=True)


def read(what):
    if what == "results":
        return {"old": "old", "new " * 999: "new"}[at.load_results(folder / "r.json").provenance[0]["command"]]
    return {1: "old", 2: "new"}[len(at.load_run(folder / "run").history)]


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(place):
    when, name = place.split()
    owner = Path if name == "write_text" else os
    own = getattr(owner, name)
    if when == "amid":  # half of it is written
        setattr(owner, name, lambda self, text, **options: (own(self, text[: len(text) // 2], **options), die()))
    else:
        setattr(owner, name, die if when == "before" else lambda *a, **k: (own(*a, **k), die()))


for what in ("results", "run"):
    for place in sys.argv[2:]:
        write(what, new=False)
        child = os.fork()
        if child == 0:
            die_at(place)
            write(what, new=True)
            os._exit(0)  # it was not killed
        _, status = os.waitpid(child, 0)
        rounds.append([what, place, os.WIFSIGNALED(status), read(what)])
    write(what, new=True)  # and nothing that the dead ones left is in the way
    assert read(what) == "new"
print(json.dumps(rounds))
"""
PLACES = ("before close", "amid write_text", "before fsync", "after fsync", "before replace", "after replace")


@pytest.mark.posix
def test_a_writer_that_is_killed_leaves_the_old_file_or_the_new_one(tmp_path, run, results):
    run.save(tmp_path / "run")
    results.save(tmp_path / "r.json")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), *PLACES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rounds = json.loads(done.stdout)
    assert len(rounds) == 2 * len(PLACES) and all(killed for *_, killed, _ in rounds), rounds
    for what, place, _, state in rounds:  # of a run the weights come first: what is told of it is then the old
        assert state == ("new" if (what, place) == ("results", "after replace") else "old"), (what, place)


# Files that were damaged after they were written.


def test_a_results_file_that_is_cut_anywhere_is_refused_by_name(tmp_path, results):
    results.save(tmp_path / "r.json")
    content, path = (tmp_path / "r.json").read_bytes(), tmp_path / "cut.json"
    for size in [*range(0, len(content) - 2, max(1, len(content) // 60)), len(content) - 2, len(content) - 3]:
        path.write_bytes(content[:size])
        with pytest.raises(FileError, match=r"cut\.json"):
            at.load_results(path)
    path.write_bytes(content[:-1])  # the line break at the end alone
    assert at.load_results(path).to_dict() == results.to_dict()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), more=st.integers(0, 2))
def test_a_results_file_with_bits_turned_is_refused_or_says_the_same(tmp_path, results, place, bit, more):
    path = tmp_path / "r.json"
    results.save(path)
    content = bytearray(path.read_bytes())
    for step in range(more + 1):
        content[(int(place * len(content)) + step * 7919) % len(content)] ^= 1 << bit
    path.write_bytes(content)
    try:
        found = at.load_results(path)
    except FileError as error:
        assert "r.json" in str(error)
    else:
        assert found.to_dict() == results.to_dict()


def test_no_figure_of_a_results_file_can_be_changed_unseen(tmp_path, results):
    """One more image right is as good a figure as the one before: only the sum knows."""
    results.save(tmp_path / "r.json")
    value = read_json(tmp_path / "r.json")
    assert value["sum"] == sum_of(value) == digest_of({"provenance": value["provenance"], "runs": value["runs"]})
    value["runs"][0]["rows"]["pgd"]["correct"] += 1
    write_json(tmp_path / "r.json", value)
    with pytest.raises(FileError, match=r"r\.json is damaged: provenance or runs are not what the sum was made of"):
        at.load_results(tmp_path / "r.json")
    del value["sum"]  # as whoever changes it on purpose can do, and as in the earliest files
    write_json(tmp_path / "r.json", value)
    before = results.runs[0].rows["pgd"]["correct"]
    assert at.load_results(tmp_path / "r.json").runs[0].rows["pgd"]["correct"] == before + 1


def test_the_sum_is_that_of_what_is_read_again(tmp_path, results):
    """JSON has texts for keys, in their own order, and lists for tuples."""
    results.runs[0].more = {"later": {10: (1, 2), 9: [0.1, -0.0, 1e300]}}
    results.save(tmp_path / "r.json")
    assert at.load_results(tmp_path / "r.json").runs[0].more == {"later": {"10": [1, 2], "9": [0.1, -0.0, 1e300]}}
    results.runs[0].more = {}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("npz") / "set.npz"
    np.savez(path, **arrays(0))
    return path


def same(a, b):
    parts = (a.train, b.train), (a.val, b.val), (a.test, b.test)
    alike = all(x.x.equal(y.x) and x.y.equal(y.y) for x, y in parts)
    return alike and (a.classes, a.mean, a.std) == (b.classes, b.mean, b.std)


def test_an_archive_that_is_cut_anywhere_is_refused_by_name(tmp_path, archive):
    content = archive.read_bytes()
    for size in range(0, len(content), 41):
        (tmp_path / "cut.npz").write_bytes(content[:size])
        with pytest.raises(FileError, match=r"cut\.npz"):
            load_data(tmp_path / "cut.npz")


def damaged_or_same(path, content, whole):
    path.write_bytes(content)
    try:
        found = load_data(path)
    except (FileError, DataError) as error:
        assert path.stem in str(error)
    else:
        assert same(found, whole)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_an_archive_with_a_bit_turned_is_refused_or_says_the_same(tmp_path, archive, place, bit):
    content = bytearray(archive.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    damaged_or_same(tmp_path / "set.npz", content, load_data(archive))


def heads(content):
    """Where the heads of the arrays are: type and shape, as text."""
    begin = [i for i in range(len(content)) if content.startswith(b"\x93NUMPY", i)]
    return [place for i in begin for place in range(i, content.index(b"\n", i) + 1)]


def test_no_digit_of_an_arrays_shape_can_be_turned_unseen(tmp_path, archive):
    """A shape that says fewer images is a good shape: numpy stops before the end, where the checksum stands."""
    content, whole = archive.read_bytes(), load_data(archive)
    digits = [place for place in heads(content) if content[place : place + 1].isdigit()]
    assert len(digits) > 10
    for place in digits:
        for bit in range(4):  # the others make no digit of it
            turned = bytearray(content)
            turned[place] ^= 1 << bit
            damaged_or_same(tmp_path / "set.npz", turned, whole)
    turned = content.replace(b"(4,)", b"(0,)")  # one bit: four names become none
    assert sum(a != b for a, b in zip(content, turned, strict=True)) == 1
    (tmp_path / "set.npz").write_bytes(turned)
    with pytest.raises(
        FileError, match=r"set\.npz cannot be read as \.npz: the checksum of classes\.npy does not hold"
    ):
        load_data(tmp_path / "set.npz")


@pytest.mark.slow
def test_no_bit_of_an_arrays_head_can_be_turned_unseen(tmp_path, archive):
    content, whole = archive.read_bytes(), load_data(archive)
    for place in heads(content):
        for bit in range(8):
            turned = bytearray(content)
            turned[place] ^= 1 << bit
            damaged_or_same(tmp_path / "set.npz", turned, whole)


@pytest.mark.parametrize("name", ["config.json", "history.json", "provenance.json", "model.safetensors"])
def test_a_run_folder_with_a_file_that_is_cut_or_gone_is_refused_by_name(tmp_path, run, name):
    folder = run.save(tmp_path / "run", overwrite=True)
    content = (folder / name).read_bytes()
    for size in sorted({*range(0, len(content) - 2, max(1, len(content) // 40)), len(content) - 3}):
        (folder / name).write_bytes(content[:size])
        with pytest.raises(FileError, match=name.replace(".", r"\.")):
            at.load_run(folder)
    (folder / name).unlink()
    with pytest.raises(FileError, match=name.replace(".", r"\.")):
        at.load_run(folder)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["config.json", "history.json", "provenance.json", "model.safetensors"]),
    place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7),
)  # fmt: skip
def test_a_run_folder_with_a_bit_turned_is_read_or_refused_and_nothing_else(tmp_path, run, name, place, bit):
    """It has no checksums: that a figure in it is another one can not be seen. That it is no run folder can."""
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    run.save(folder)
    content = bytearray((folder / name).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    (folder / name).write_bytes(content)
    try:
        found = at.load_run(folder)
    except AdvtrainError as error:
        assert str(folder) in str(error) or "defense" in str(error)
    else:
        assert str(found) and found._repr_html_()


def test_a_report_that_is_damaged_is_refused_by_name(tmp_path, run):
    for label in ("a", "b"):
        folder = run.save(tmp_path / label, overwrite=True)
        rows = [{"name": "clean", "correct": 5, "total": 9, "details": ""}]
        write_json(folder / "report.json", {"threat": {"norm": "linf", "eps": 0.1}, "rows": rows, "warnings": []})
    good = (folder / "report.json").read_bytes()
    assert at.compare([tmp_path / "a"], [tmp_path / "b"], metric="clean")
    bad = [good[:size] for size in range(0, len(good) - 2, 9)]
    for old, new in (
        (b"9", b"0"),
        (b"9", b"4"),
        (b"5", b"-5"),
        (b"5", b"1.5"),
        (b'"clean"', b"[]"),
        (b"0.1", b"1e999"),
        (b"0.1", b"9" * 400),
        (b'5,\n      "total": 9', b'0, "total": 0'),
    ):
        assert old in good
        bad.append(good.replace(old, new))
    for content in bad:
        (folder / "report.json").write_bytes(content)
        with pytest.raises(FileError, match=r"damaged|report\.json"):
            at.compare([tmp_path / "a"], [tmp_path / "b"], metric="clean")


def states(about):
    from safetensors.torch import save

    broken_by, met = torch.full((9,), -1, dtype=torch.int16), torch.zeros(3, 9, dtype=torch.uint8)
    return save({"broken_by": broken_by, "met": met}, metadata={"about": json.dumps(about)})


@pytest.mark.parametrize(
    "change",
    [
        {"passes": 0}, {"passes": []}, {"passes": {}}, {"passes": {"queries": 1}}, {"warnings": 0}, {"key": 0},
        {"key": "x"}, {"passes": {"queries": "\0", "gradients": 0}}, {"passes": {"queries": 1e999, "gradients": 0}},
        {"format": None},
    ],
)  # fmt: skip
def test_a_state_of_autoattack_that_no_one_wrote_is_refused_by_name(tmp_path, change):
    about = {"format": FORMAT, "key": {"model": "a"}, "passes": {"queries": 1, "gradients": 2}, "warnings": []}
    (tmp_path / "state").write_bytes(states(about))
    assert State(9, 2, {"model": "a"}, tmp_path / "state").passes == about["passes"]
    (tmp_path / "state").write_bytes(states({**about, **change}))
    with pytest.raises(FileError, match="state is (damaged|the state of another)"):
        State(9, 2, {"model": "a"}, tmp_path / "state")


CONFIG_CHANGES = [
    {"status": 1}, {"best_epoch": "x"}, {"best_epoch": -1}, {"best_epoch": 2**70}, {"notes": [1]}, {"notes": "x"},
    {"model": []}, {"data": "x"}, {"data": 0.5}, {"defense": {}}, {"defense": {"name": [], "class": "FGSM"}},
    {"options": []}, {"options": {"seed": -1}}, {"options": {"seed": {}}}, {"options": {"lr": float("nan")}},
    {"options": {"x": [[10**400]]}},
]  # fmt: skip
HISTORY = [
    {}, [1], "x", [{}], [{"epoch": "x"}], [{"epoch": 0}], [{"epoch": 1.5}], [{"epoch": True}], [{"loss": 1}],
    [{"epoch": 1, "loss": {}}], [{"epoch": 1, "lr": "x"}], [{"epoch": 1, "val_pgd": float("inf")}],
    [{"epoch": 1, "accuracy": 10**400}],
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changes"),
    [("config.json", CONFIG_CHANGES), ("history.json", HISTORY), ("provenance.json", [[], 1, "x", None])],
)
def test_a_run_folder_that_says_what_no_run_says_is_refused_by_name(tmp_path, run, name, changes):
    folder = run.save(tmp_path / "run", overwrite=True)
    good = read_json(folder / name)
    for change in changes:
        value = {**good, **change} if name == "config.json" else change
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
        with pytest.raises(FileError, match=rf"{name} is damaged: ".replace(".", r"\.")):
            at.load_run(folder)
    for key in good if name == "config.json" else ():
        write_json(folder / name, {other: value for other, value in good.items() if other != key})
        if key not in ("model", "data"):  # which may be none
            with pytest.raises(FileError, match=r"config\.json|has format"):
                at.load_run(folder)


def test_the_weights_that_come_with_the_package_are_checked_to_the_bit(tmp_path, monkeypatch):
    from advtrain.results import networks

    trial = at.load_results("digits").of("pgd")[0]
    source = next(folder / "weights" for folder in networks.FOLDERS if (folder / "weights").is_dir())
    name = networks.weights_file(trial)
    (tmp_path / "weights").mkdir()
    content = bytearray((source / name).read_bytes())
    content[-1000] ^= 1
    (tmp_path / "weights" / name).write_bytes(content)
    monkeypatch.setattr(networks, "FOLDERS", [Path(tmp_path)])
    with pytest.raises(FileError, match="is damaged: these are not the weights of 'pgd'"):
        at.load_results("digits").run("pgd")
