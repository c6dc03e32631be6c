"""Memory: judging takes that of a batch, a set that is mapped stays in its file, a long training needs no more at its
end than at its beginning."""

import dataclasses
import gc
import os
import sys
import warnings
import zipfile
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import MIB, LiveTensors, in_a_process, things
from torch import nn

import advtrain as at
from advtrain.data import MappedSplit, Split, as_dataset, as_split, load_data
from advtrain.defenses import DEFENSES
from advtrain.errors import AdvtrainWarning, ArgumentError, DataError, FileError
from advtrain.evaluate import Protocol

package = sys.modules["advtrain.autoattack"]  # `advtrain.autoattack` is the function
plans = sys.modules["advtrain.autoattack.plan"]
linux = pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="only Linux tells a process's own peak")

QUICK = Protocol(steps=2, restarts=1)
FEW = at.Threat("linf", eps=0.02)


def some_images(n, shape=(1, 8, 8), dtype="u1", seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    return x if dtype == "u1" else (x / 255).astype(dtype), rng.integers(0, 10, n)


def network(shape=(1, 8, 8)):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(shape[0], 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * (shape[1] - 2) * (shape[2] - 2), 10)
    )


def mapped(path, x):
    """The array in a file, and that mapped for reading."""
    np.save(path, x)
    return np.load(path, mmap_mode="r")


def shorten(monkeypatch, steps=2):
    """All attacks of every version of AutoAttack, with a few steps each."""
    for version, stages in plans.VERSIONS.items():
        less = {"steps": steps, "restarts": 1}
        short = [
            dataclasses.replace(each, **less, eot=min(each.eot, 2), targets=min(each.targets, 2)) for each in stages
        ]
        monkeypatch.setitem(plans.VERSIONS, version, tuple(short))


def doubting(version):
    """The warning that AutoAttack gives of a model that does not answer at random, which "rand" is meant for."""
    return pytest.warns(AdvtrainWarning, match="does not answer at random") if version == "rand" else nullcontext()


# Judging takes the memory of a batch.


@pytest.mark.parametrize("dtype", ["u1", "f2", "f4"])
@pytest.mark.parametrize("where", ["memory", "file"])
def test_evaluate_holds_as_much_for_ten_times_the_images(tmp_path, dtype, where):
    peaks = []
    for n in (64, 640):
        x, y = some_images(n, dtype=dtype)
        x = mapped(tmp_path / f"{n}.npy", x) if where == "file" else torch.from_numpy(x)
        with LiveTensors() as live:
            at.evaluate(network(), (x, y), FEW, protocol=QUICK, batch_size=32)
        peaks.append(live.peak)
    assert peaks[1] <= 1.05 * peaks[0], peaks


@pytest.mark.parametrize(("version", "norm"), [("plus", "l2"), ("standard", "linf"), ("rand", "linf")])
def test_autoattack_holds_as_much_for_ten_times_the_images(monkeypatch, version, norm):
    monkeypatch.setattr(package, "steady_memory", lambda: None)  # asks for 31 MiB once, whatever there is to judge
    shorten(monkeypatch)
    model, peaks = network((1, 24, 24)).eval(), []
    for n in (8, 80):
        x = torch.from_numpy(some_images(n, (1, 24, 24))[0])
        with torch.no_grad():
            y = model(x / 255).argmax(1)  # so that all meet the first attack
        threat = at.Threat(norm, eps=0.007 if norm == "linf" else 0.15)
        with doubting(version), LiveTensors() as live:
            report = at.autoattack(model, x, y, threat, version, batch_size=4)
        peaks.append(live.peak)
    assert 0.5 < report.robust_accuracy < 0.98, "whole batches meet every attack, and some images are broken"
    assert peaks[1] <= 1.05 * peaks[0], peaks


JUDGING = """
import dataclasses, json, sys
import torch, advtrain as at
from memory import peak_of
from advtrain.dataset import as_float
from test_load import QUICK, plans, some_images

torch.set_num_threads(1)
torch.manual_seed(0)
plans.VERSIONS["standard"] = tuple(
    dataclasses.replace(each, steps=2, targets=min(each.targets, 1)) for each in plans.VERSIONS["standard"]
)
found, threat = {}, at.Threat("linf", 1e-5)  # breaks nothing: batches are alike
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)).eval()
judges = {
    "evaluate": lambda x, y: at.evaluate(model, (x, y), threat, protocol=QUICK, batch_size=100),
    "autoattack": lambda x, y: at.autoattack(model, x, y, threat, batch_size=100),
}
for dtype in {"evaluate": ["f2"], "autoattack": ["f2", "u1"]}[sys.argv[1]]:
    x = torch.from_numpy(some_images(2000, (3, 32, 32), dtype)[0])
    with torch.no_grad():
        y = torch.cat([model(as_float(part)).argmax(1) for part in x.split(100)])
    peaks = [peak_of(lambda: judges[sys.argv[1]](x[:n], y[:n])) for n in (200, 200, 200, 2000)]
    found[dtype] = max(peaks[1:3]), peaks[3]
print(json.dumps(found))
"""


@linux
@pytest.mark.slow  # what the kernel counts moves by more than that on a machine that is busy with other things
@pytest.mark.parametrize("what", ["evaluate", "autoattack"])
def test_a_process_that_judges_needs_as_much_for_ten_times_the_images(what):
    for dtype, (few, many) in in_a_process(JUDGING, what).items():
        assert few > 8 * MIB, f"{dtype}: more than what the kernel rounds"
        assert many <= 1.05 * few, f"{dtype}: {few / MIB:.1f} and {many / MIB:.1f} MiB"


# A set that is mapped stays in its file.


def same(a, b):
    return torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and a.x.dtype == b.x.dtype


INDICES = st.one_of(
    st.slices(12),
    st.integers(-12, 11),
    st.lists(st.integers(-12, 11), max_size=20),
    st.lists(st.integers(-12, 11), max_size=20).map(lambda found: torch.tensor(found, dtype=torch.int64)),
    st.lists(st.booleans(), min_size=12, max_size=12).map(torch.tensor),
)


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    """Twelve images in memory and the same in a file, as bytes and as floats, rows before channels and after."""
    folder, made = tmp_path_factory.mktemp("twelve"), []
    for number, dtype in enumerate(("u1", "f2", "f4", "f8")):
        x, y = some_images(12, (3, 5, 6), dtype)
        x = x if number % 2 else x.transpose(0, 2, 3, 1)
        made.append((as_split((x, y)), as_split((mapped(folder / f"{number}.npy", x), y))))
    return made


@settings(max_examples=150, deadline=None)
@given(index=INDICES, second=st.lists(st.integers(0, 100), max_size=6), number=st.integers(0, 3))
def test_whatever_is_chosen_of_a_mapped_split_is_what_a_split_in_memory_gives(twelve, index, second, number):
    plain, lazy = twelve[number]
    if isinstance(index, slice) and (index.step or 1) < 1:
        for split in (plain, lazy):
            with pytest.raises(ValueError, match="step must be greater than zero"):
                split[index]
        return
    if not isinstance(index, slice):
        assert torch.equal(plain.images(index), lazy.images(index))
    a, b = plain[index], lazy[index]
    assert type(b) is MappedSplit and len(a) == len(b) and a.shape == b.shape and a.dtype == b.dtype and same(a, b)
    assert torch.equal(a.images(), b.images()) and type(b.to("cpu")) is Split and same(a, b.to("cpu"))
    again = [each % len(a) for each in second] if len(a) else []
    assert same(a[again], b[again]) and same(a[1:], b[1:]) and repr(b) == "Mapped" + repr(a)
    assert torch.equal(torch.cat([*b.blocks(), a.x[:0]]), a.x)
    assert sorted(map(bytes, b.in_place().x.numpy())) == sorted(map(bytes, a.x.numpy()))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(8, 30),
    seed=st.integers(0, 3),
    val=st.sampled_from([0, 0.1, 2, 5]),
    test=st.sampled_from([0, 0.25, 1]),
    data=st.data(),
)
def test_a_set_is_split_alike_from_memory_and_from_a_file(tmp_path_factory, n, seed, val, test, data):
    x, y = some_images(n, (1, 4, 5))
    x = x[data.draw(st.lists(st.integers(0, n - 1), min_size=n, max_size=n))]  # some images twice or more
    lazy = mapped(tmp_path_factory.mktemp("set") / "x.npy", x)
    options = {"seed": seed, "val": val, "test": test, "num_classes": 10}
    a, b = as_dataset((x, y), **options), as_dataset((lazy, y), **options)
    assert (a.shape, a.mean, a.std, a.classes) == (b.shape, b.mean, b.std, b.classes)
    for part in ("train", "val", "test"):
        one, other = getattr(a, part), getattr(b, part)
        assert (one is None) == (other is None) and (one is None or (type(other) is MappedSplit and same(one, other)))


@pytest.mark.parametrize("augment", [False, True])
def test_a_network_learns_the_same_from_a_file_as_from_memory(tmp_path, augment):
    x, y = some_images(200, (3, 8, 8))
    found = []
    for images in (x, mapped(tmp_path / "x.npy", x)):
        model = network((3, 8, 8))
        data = as_dataset((images, y), val=20, test=40, augment=augment)
        run = at.fit(model, at.defenses.FastAT(FEW), data, epochs=2, lr=0.02, progress=False)
        for record in run.history:
            record.pop("seconds")
        verdict = at.evaluate(model, data, FEW, protocol=QUICK).to_dict()
        found.append((run.history, verdict, torch.cat([each.flatten() for each in model.parameters()]).tolist()))
    assert found[0] == found[1] and isinstance(data.train, MappedSplit)


def test_nobody_copies_the_file_or_writes_to_it(tmp_path, monkeypatch):
    """A write to memory that is mapped for reading would kill the process."""
    monkeypatch.setattr("advtrain.survey.BLOCK", 2**12)
    x, y = some_images(2000, dtype="f4")
    lazy = mapped(tmp_path / "x.npy", x)

    class Greedy(nn.Sequential):
        def forward(self, x):
            return super().forward(x.clamp_(0, 0.9) if not x.requires_grad else x)

    split = as_split((lazy, y))
    assert split.x.data_ptr() == lazy.ctypes.data and split[8:].x.data_ptr() == lazy[8:].ctypes.data
    at.evaluate(Greedy(network()), split, FEW, protocol=QUICK, batch_size=64)
    with LiveTensors() as live:
        train = as_dataset((lazy, y), val=0, test=0).train
        assert train.pixels.data_ptr() == lazy.ctypes.data
    assert live.peak < x.nbytes / 2, "hashes, and the pixels of a block"
    assert split.images().data_ptr() != lazy.ctypes.data and np.array_equal(lazy, x)


def test_the_pixels_of_a_file_are_looked_at_once(tmp_path, monkeypatch):
    x, y = some_images(64, dtype="f4")
    split = as_split((mapped(tmp_path / "x.npy", x), y))
    monkeypatch.setattr("advtrain.data_user.check_images", lambda *_, **__: pytest.fail("again"))
    for each in (split, split[:10], split[torch.tensor([5, 3])]):
        assert same(as_split(each), each)


def test_a_mapped_split_of_ones_own_is_looked_at_like_any_other(tmp_path):
    x, y = some_images(20, dtype="f4")
    x[7, 0, 3, 3] = np.nan
    bad = torch.from_numpy(np.array(x))
    labels = torch.from_numpy(y)
    for data in (MappedSplit(bad, labels), MappedSplit(bad, labels[:3], torch.tensor([7, 2, 1]))):
        with pytest.raises(DataError, match=r"data x has NaN or infinite pixels in 1 image\(s\), the first at x\[7\]"):
            as_dataset(data)
    x[7] = 0.5
    lazy, plain = (as_dataset(data, val=0, test=0).train for data in (MappedSplit(torch.from_numpy(x), labels), (x, y)))
    assert isinstance(lazy, MappedSplit) and lazy.checked and same(lazy, plain)
    for pixels, rows in ((torch.from_numpy(x), torch.arange(19)), (torch.from_numpy(x)[:4], None)):
        with pytest.raises(DataError, match=r"are not \(N, C, H, W\) and \(N,\)"):
            MappedSplit(pixels, labels, rows)


def test_what_only_a_copy_could_hold_is_refused(tmp_path):
    x, y = some_images(20, dtype="f4")
    lazy = mapped(tmp_path / "x.npy", x)
    with pytest.raises(DataError, match="data x is a mapped file and runs backwards, which a tensor cannot"):
        as_split((lazy[::-1], y))
    lazy = mapped(tmp_path / "big.npy", x.astype(">f4"))
    with pytest.raises(DataError, match="data x is a mapped file and has its bytes in the order of another machine"):
        as_split((lazy, y))


@pytest.mark.parametrize("block", [1, 100, 10**6])
def test_means_and_deviations_do_not_depend_on_the_size_of_the_parts(monkeypatch, block):
    monkeypatch.setattr("advtrain.survey.BLOCK", block)
    x, y = some_images(50, (3, 4, 4), "f8")
    for values in (x, (x * 255).astype("u1"), x * 0 + 0.5):
        found = as_dataset((values, y), val=0, test=0)
        exact = (values / 255 if values.dtype == np.uint8 else values).transpose(1, 0, 2, 3).reshape(3, -1)
        assert np.allclose(found.mean, exact.mean(1), rtol=1e-12)
        assert np.allclose(found.std, np.where(exact.std(1) > 0, exact.std(1), 1), rtol=1e-12)


# A folder of .npy files.


def test_an_npz_that_was_unpacked_is_the_same_set_and_stays_in_its_files(tmp_path):
    x, y = some_images(60)
    arrays = {
        "x_train": x[:40],
        "y_train": y[:40],
        "x_test": x[40:],
        "y_test": y[40:],
        "classes": np.array(list("abcdefghij")),
    }
    np.savez(tmp_path / "set.npz", **arrays)
    with zipfile.ZipFile(tmp_path / "set.npz") as archive:
        archive.extractall(tmp_path / "unpacked")
    packed, unpacked = load_data(tmp_path / "set.npz"), load_data(tmp_path / "unpacked")
    for part in ("train", "val", "test"):
        assert same(getattr(packed, part), getattr(unpacked, part))
        assert isinstance(getattr(unpacked, part), MappedSplit)
    assert (packed.classes, packed.mean, packed.std) == (unpacked.classes, unpacked.mean, unpacked.std)
    assert same(load_data(**unpacked.spec).train, unpacked.train), "a run that is loaded finds its data"
    assert "unpacked" in repr(unpacked) and "<img" in unpacked._repr_html_() and "<img" in unpacked.test._repr_html_()


def test_a_folder_of_npy_files_that_are_incomplete_or_damaged_is_refused_by_name(tmp_path):
    x, y = some_images(60)
    np.save(tmp_path / "x_train.npy", x)
    with pytest.raises(FileError, match=r"holds x_train and lacks y_train; wanted are"):
        load_data(tmp_path)
    np.save(tmp_path / "y_train.npy", y)
    with pytest.raises(ArgumentError, match="only the images of a folder are scaled"):
        load_data(tmp_path, size=8)
    whole = (tmp_path / "x_train.npy").read_bytes()
    (tmp_path / "x_train.npy").write_bytes(whole[:-100])
    with pytest.raises(FileError, match=r"x_train.npy cannot be read as .npy"):
        load_data(tmp_path)
    (tmp_path / "x_train.npy").write_bytes(whole)
    np.save(tmp_path / "y_train.npy", np.array(["a", None] * 30), allow_pickle=True)
    with pytest.raises(FileError, match=r"y_train.npy cannot be read as .npy"):
        load_data(tmp_path)
    np.save(tmp_path / "y_train.npy", y[:-1])
    with pytest.raises(DataError, match=r"len\(.* train y\)=59 is not 60"):
        load_data(tmp_path)


STREAMING = """
import json, sys, time
import torch, advtrain as at
from memory import Anonymous
from test_load import FEW, QUICK

torch.set_num_threads(1)
folder, defense, few = sys.argv[1], at.defenses.DEFENSES[sys.argv[2]](FEW), int(sys.argv[3])

def build(shape, classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(shape.numel(), classes))

small = at.as_dataset((torch.rand(300, 3, 8, 8), torch.arange(300) % 10))
warm = at.fit(build(torch.Size((3, 8, 8)), 10), defense, small, batch_size=100, epochs=1)
at.evaluate(warm.model, small, FEW, protocol=QUICK)
with Anonymous() as held:
    data = at.load_data(folder, val=few)
    model = build(torch.Size(data.shape), 10)
    run = at.fit(model, defense, data, batch_size=250, epochs=1, lr=0.001, val_steps=1)
    report = at.evaluate(model, data.test[:few], FEW, protocol=QUICK)
counts = len(data.train), len(data.val), report.rows[0].total, len(run.history)
print(json.dumps([held.growth, *counts]))
"""


def folder_of(path, n, test, shape, every):
    """A set of `n` training images in .npy files, of which every so many are noise and the others holes: black."""
    rng = np.random.default_rng(0)
    path.mkdir()
    for part, many in (("train", n), ("test", test)):
        x = np.lib.format.open_memmap(path / f"x_{part}.npy", mode="w+", dtype=np.uint8, shape=(many, *shape))
        for first in range(0, many, 100_000):
            chosen = x[first : first + 100_000 : every]
            chosen[:] = rng.integers(0, 256, chosen.shape, dtype=np.uint8)
        x.flush()
        np.save(path / f"y_{part}.npy", rng.integers(0, 10, many))
    return n * int(np.prod(shape))


@linux
def test_a_hundred_thousand_images_are_trained_on_and_judged_in_less_memory_than_they_take(tmp_path):
    size = folder_of(tmp_path / "set", 100_000, 2_000, (3, 16, 16), every=1)
    growth, *counts = in_a_process(STREAMING, tmp_path / "set", "standard", 500, exact=False)
    assert counts == [99_500, 500, 500, 1] and growth < size, (growth / MIB, size / MIB)


@linux
@pytest.mark.slow
def test_a_million_images_are_trained_on_and_judged_in_200_mib(tmp_path):
    size = folder_of(tmp_path / "set", 1_000_000, 20_000, (3, 32, 32), every=16)
    assert size > 2900 * MIB
    growth, *counts = in_a_process(STREAMING, tmp_path / "set", "standard", 1000, exact=False)
    assert counts == [999_000, 1000, 1000, 1] and growth < 200 * MIB, growth / MIB


# A long training needs no more at its end than at its beginning.


def tiny(name):
    """A small network, a defense and 48 images."""
    x, y = some_images(48, (1, 6, 6))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 10))
    return model, DEFENSES[name](FEW, **({"samples": 8} if name == "sat-r1" else {})), as_dataset((x, y), val=8, test=8)


def look_on(model, defense, data, at_epochs, **options):
    """Train, and count tensors and objects after some epochs."""
    found = []
    gc.collect()
    gc.freeze()  # what was there before plays no part, and is not gone through again and again
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AdvtrainWarning)  # noise is all there is to learn
            watch = lambda record: found.append(things()) if record["epoch"] in at_epochs else None  # noqa: E731
            at.fit(model, defense, data, epochs=max(at_epochs), on_epoch=watch, progress=False, **options)
    finally:
        gc.unfreeze()
    return found


@pytest.mark.parametrize("name", DEFENSES)
def test_an_epoch_leaves_behind_its_record_and_nothing_else(name):
    options = {"batch_size": 16, "lr": 0.01, "ema": 0.9, "val_steps": 1}
    (tensors, objects), (later, more) = look_on(*tiny(name), at_epochs=(2, 6), **options)
    assert later == tensors and more - objects <= 4, "a record may be an object"


def test_a_validated_saved_and_watched_epoch_leaves_behind_its_record_and_nothing_else(tmp_path):
    pytest.importorskip("tensorboard")
    watching = [lambda run: None, at.callbacks.EarlyStopping(50), at.callbacks.TensorBoard(tmp_path / "board")]
    options = {"out": tmp_path / "run", "callbacks": watching, "select": "best", "ema": 0.9, "val_steps": 2}
    (tensors, objects), (later, more) = look_on(*tiny("fast-at"), at_epochs=(10, 30), batch_size=16, lr=0.01, **options)
    assert later == tensors and more - objects <= 20, "a record may be an object"


def test_a_judgement_leaves_nothing_behind(monkeypatch):
    shorten(monkeypatch)
    model, _, data = tiny("fast-at")

    def judge():
        at.evaluate(model, data, FEW, protocol=QUICK)
        at.autoattack(model, data.test.x, data.test.y, FEW)

    gc.collect()
    gc.freeze()
    try:
        for _ in range(3):
            judge()
        tensors, objects = things()
        for _ in range(12):
            judge()
        later, more = things()
        assert later == tensors and more - objects < 12, "less than an object each"
    finally:
        gc.unfreeze()


LONG = """
import json, sys
import torch, advtrain as at
from memory import anonymous, things
from test_load import FEW, tiny

torch.set_num_threads(1)
(name, out, epochs), found = sys.argv[1:], []
model, defense, data = tiny(name)

def look(run):
    if len(run.history) in (int(epochs) // 5, int(epochs)):
        found.append((*things(), anonymous(), len(json.dumps(run.history))))

watching = [look, at.callbacks.EarlyStopping(10**6), at.callbacks.TensorBoard(f"{out}/board")]
at.fit(model, defense, data, epochs=int(epochs), batch_size=16, lr=0.001, ema=0.9, val_steps=1, callbacks=watching,
       select="best", out=f"{out}/run", progress=False)
print(json.dumps(found))
"""


@linux
@pytest.mark.slow
@pytest.mark.parametrize("name", ["fast-at", "free", "fast-bat", "rvs"])
def test_a_thousand_epochs_take_four_kib_each_for_their_records_and_nothing_else(tmp_path, name):
    pytest.importorskip("tensorboard")
    (tensors, objects, held, _), (later, more, holds, _) = in_a_process(LONG, name, tmp_path, 1000)
    assert later == tensors and more - objects <= 800, "a record may be an object"
    # Measured: 0.7 KB an epoch for its record, and 1.5 KB more with a run folder, whose history is one text in memory.
    assert holds - held < 800 * 4096, (holds - held) / 800
