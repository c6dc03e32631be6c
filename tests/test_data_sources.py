"""Where data come from: verified files, clear refusals, and downloads that leave nothing half-done."""

import dataclasses
import gzip

import numpy as np
import pytest
import torch
from images import rows, same, some_images

from advtrain.data import as_split, data_names, data_root, fetch, load_data
from advtrain.data_known import ARRAYS, SOURCES
from advtrain.errors import ArgumentError, DataError, FileError


def write(path, n=30, **changes):
    x, y = some_images(n)
    test = some_images(9, seed=1)
    arrays = {"x_train": x, "y_train": y, "x_test": test[0], "y_test": test[1], "classes": np.array(list("abcd"))}
    np.savez(path, **{key: value for key, value in {**arrays, **changes}.items() if value is not None})
    return x, y


def test_an_npz_file_loads_by_path_and_by_name_in_any_layout(data_folder):
    x, _ = write(data_folder / "mine.npz")
    data = load_data(data_folder / "mine.npz")
    assert data.classes == tuple("abcd") and data.name == "mine" and not data.augment
    assert same(data, load_data("mine")) and same(data, load_data(**data.spec)) and "mine" in data_names()
    write(data_folder / "hwc.npz", x_train=x.transpose(0, 2, 3, 1))
    assert same(data, load_data("hwc"))
    assert len(load_data("mine", root=data_folder, val=0).train) == 30


def test_a_file_may_leave_out_the_test_set_and_the_names(data_folder):
    write(data_folder / "bare.npz", x_test=None, y_test=None, classes=None)
    data = load_data("bare")
    assert len(data.test) == 6 and data.classes == ("0", "1", "2", "3")


@pytest.mark.parametrize("unpacked", [False, True])
def test_a_files_own_validation_images_are_those(data_folder, unpacked):
    x, y = some_images(7, seed=2)
    arrays = {"x_val": x, "y_val": y}
    write(data_folder / "mine.npz", **arrays)
    if unpacked:
        (data_folder / "folder").mkdir()
        for key, value in np.load(data_folder / "mine.npz").items():
            np.save(data_folder / "folder" / f"{key}.npy", value)
    data = load_data(data_folder / "folder" if unpacked else "mine", val=3)
    assert rows(data.val) == rows(as_split((x, y))) and (len(data.train), len(data.test)) == (30, 9)


def test_validation_images_come_with_their_labels_and_not_under_an_official_name(data_folder):
    x, y = some_images(7)
    write(data_folder / "mine.npz", x_val=x)
    with pytest.raises(FileError, match="x_val.* lacks y_val; wanted are"):
        load_data("mine")
    write(data_folder / "mnist.npz", x_val=x, y_val=y)
    with pytest.raises(FileError, match="holds x_val, which the official mnist has not: .* another name"):
        load_data("mnist")


def test_classes_to_judge_by_are_those_of_training_unless_a_file_names_them(data_folder):
    x, y = some_images(30, classes=3)
    write(data_folder / "mine.npz", y_train=y, classes=None, y_test=np.full(9, 3))
    with pytest.raises(DataError, match=r"mine test y=\[3\] is not among the classes of the .* an array `classes` of"):
        load_data("mine")
    write(data_folder / "mine.npz", y_train=y, y_test=np.full(9, 3))
    assert load_data("mine").num_classes == 4


def test_a_file_of_one_class_is_refused_unless_it_names_more(data_folder):
    only = {"y_train": np.zeros(30, int), "y_test": np.zeros(9, int)}
    for names, hint in ((None, "an array `classes`"), (np.array(["cat"]), "no other is named")):
        write(data_folder / "mine.npz", **only, classes=names)
        with pytest.raises(DataError, match=f"all 30 training images are of class 0: of one class .*{hint}"):
            load_data("mine")
    write(data_folder / "mine.npz", **only)
    assert load_data("mine").num_classes == 4


def test_grey_images_need_no_channel(data_folder):
    write(data_folder / "grey.npz", x_train=some_images(30)[0][:, 0], x_test=some_images(9, 1)[0][:, 0])
    assert load_data("grey").shape == (1, 8, 8)


def test_damaged_files_are_refused_by_name(data_folder):
    write(data_folder / "whole.npz")
    whole = (data_folder / "whole.npz").read_bytes()
    (data_folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (data_folder / "text.npz").write_text("not an archive")
    (data_folder / "flipped.npz").write_bytes(whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:])
    with (data_folder / "single.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    for name in ("cut", "text", "flipped", "single"):
        with pytest.raises(FileError, match=f"{name}.npz cannot be read"):
            load_data(name)
    np.savez(data_folder / "half.npz", x_train=np.zeros((2, 8, 8), np.uint8), labels=np.zeros(2))
    with pytest.raises(FileError, match="holds x_train, labels and lacks y_train"):
        load_data("half")


def test_pickles_in_a_file_are_not_executed(data_folder):
    write(data_folder / "evil.npz", y_train=np.array([print], dtype=object))
    with pytest.raises(FileError, match="cannot be read"):
        load_data("evil")


def test_a_file_with_images_that_cannot_be_used_is_refused(data_folder):
    write(data_folder / "nan.npz", x_train=np.full((30, 3, 8, 8), np.nan, np.float32))
    with pytest.raises(DataError, match="nan train x has NaN"):
        load_data("nan")
    write(data_folder / "labels.npz", y_train=np.full(30, 4))
    with pytest.raises(DataError, match=r"0\.\.3"):
        load_data("labels")


def test_splits_of_different_shapes_are_refused(data_folder):
    x, _ = some_images(9, shape=(3, 9, 9))
    write(data_folder / "two-sizes.npz", x_test=x)
    with pytest.raises(DataError, match=r"test images=\(3, 9, 9\) is not of shape \(3, 8, 8\)"):
        load_data("two-sizes")


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.array(["cat"] * 30), "odd train y is not a list of class numbers: .*np.unique"),
        (np.full(30, np.nan), "odd train y.dtype=torch.float64 is not an integer type"),
        (np.full(30, -1), "odd train y='-1 to -1' is not at least 0: "),
        (np.full(30, 20_000_000), r"max\(y\)=20000000 is not below 100,000"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused(data_folder, y, message):
    write(data_folder / "odd.npz", y_train=y, classes=None)
    with pytest.raises(DataError, match=message):
        load_data("odd")


def test_names_of_classes_are_a_list(data_folder):
    write(data_folder / "odd.npz", classes=np.zeros(200_000, "U0"))
    with pytest.raises(DataError, match=r"odd classes=\(200000,\) is not of shape \(K,\), K at most 100,000"):
        load_data("odd")
    write(data_folder / "odd.npz", classes=np.array("cat"))
    with pytest.raises(DataError, match=r"odd classes=\(\) is not of shape \(K,\)"):
        load_data("odd")


@pytest.mark.parametrize("code", [0x110000, 0xFFFFFFFF, 0xD800])
def test_names_of_classes_are_text(data_folder, code):
    """numpy takes any 32 bits for a character; Python knows no such, or cannot write it."""
    write(data_folder / "odd.npz", classes=np.array([97, 98, 99, code], dtype="<u4").view("<U1"))
    with pytest.raises(DataError, match="odd classes are not names"):
        load_data("odd")


def test_a_missing_set_says_how_to_get_it(data_folder):
    with pytest.raises(FileError) as caught:
        load_data("cifar10")
    for words in ("advtrain data fetch cifar10", "download=True", "ADVTRAIN_DATA", str(data_folder)):
        assert words in str(caught.value)
    with pytest.raises(FileError, match="does not exist"):
        load_data("no/such.npz")
    with pytest.raises(ArgumentError, match="did you mean 'cifar10'"):
        load_data("cifar-10")
    with pytest.raises(ArgumentError, match="as_dataset"):
        load_data(torch.zeros(1))


def test_the_data_folder_is_the_argument_then_the_variable_then_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ADVTRAIN_DATA", str(tmp_path / "a"))
    assert data_root() == tmp_path / "a" and data_root(tmp_path) == tmp_path
    monkeypatch.delenv("ADVTRAIN_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert data_root() == tmp_path / "b" / "advtrain"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert data_root() == tmp_path / "c" / ".cache" / "advtrain"
    assert data_names()[:1] == ["digits"]


def test_the_cifar_subset_loads(cifar10_mini):
    data = load_data(cifar10_mini)
    assert (len(data.train), len(data.val), len(data.test)) == (1800, 200, 1000)
    assert data.shape == (3, 32, 32) and data.classes[0] == "airplane" and data.name == "cifar10-mini"


def test_cifar10_is_verified_and_has_the_known_statistics(full_data, tmp_path):
    folder = full_data("cifar10")
    data = load_data("cifar10", root=folder, val=1000, seed=7)
    assert (len(data.train), len(data.val), len(data.test)) == (49_000, 1000, 10_000) and data.augment
    assert [round(m, 4) for m in data.mean] == [0.4914, 0.4822, 0.4465]
    assert [round(s, 4) for s in data.std] == [0.2470, 0.2435, 0.2616]
    assert data.spec == {"name": "cifar10", "val": 1000, "seed": 7, "root": str(folder)}


def test_a_subset_under_an_official_name_is_refused(cifar10_mini, data_folder):
    (data_folder / "cifar10.npz").write_bytes(cifar10_mini.read_bytes())
    with pytest.raises(
        FileError, match="not the official cifar10, or damaged: x_train differs.*another name"
    ) as caught:
        load_data("cifar10")
    assert "data fetch cifar10 --root" in str(caught.value)


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_nobody_is_told_to_delete_a_set_of_their_own(data_folder, name):
    write(data_folder / f"{name}.npz")
    with pytest.raises(FileError, match="A set of your own needs another name") as caught:
        load_data(data_folder / f"{name}.npz")
    advice = str(caught.value).replace(str(data_folder), "")
    assert "delete" not in advice.lower() and ("fetch" in advice) == (name != "digits")


def idx(array):
    """An array in the idx format of MNIST."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture(scope="module")
def mnist_files(full_data):
    """The four idx files of MNIST, rebuilt."""
    with np.load(full_data("mnist") / "mnist.npz") as file:
        return {
            f"{prefix}-{kind}-ubyte": idx(file[f"{key}_{part}"])
            for prefix, part in (("train", "train"), ("t10k", "test"))
            for kind, key in (("images-idx3", "x"), ("labels-idx1", "y"))
        }


def test_files_that_torchvision_left_are_read_and_give_the_same_set(full_data, mnist_files, data_folder):
    raw = data_folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in mnist_files.items():
        (raw / name).write_bytes(content)
    folder, archive = (load_data("mnist", root=root, val=5000, seed=2) for root in (None, full_data("mnist")))
    assert same(folder, archive) and folder.classes == archive.classes == tuple("0123456789")
    assert (round(folder.mean[0], 4), round(folder.std[0], 4)) == (0.1307, 0.3081) and not folder.augment
    damaged = bytearray(mnist_files["t10k-images-idx3-ubyte"])
    damaged[5000] ^= 1
    (raw / "t10k-images-idx3-ubyte").write_bytes(damaged)
    with pytest.raises(FileError, match="not the official mnist, or damaged: x_test differs"):
        load_data("mnist")
    (raw / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(FileError, match="incomplete or damaged.*fetch mnist"):
        load_data("mnist")


def packed(files):
    """The same as gzip files."""
    return {f"{name}.gz": gzip.compress(content, 1) for name, content in files.items()}


def test_fetch_downloads_converts_and_keeps_one_file(full_data, mnist_files, publish, data_folder):
    _, seen = publish("mnist", packed(mnist_files))
    data = load_data("mnist", download=True)
    assert [path.name for path in data_folder.iterdir()] == ["mnist.npz"], "nothing else is left"
    assert same(data, load_data("mnist", root=full_data("mnist")))
    requests = len(seen)
    assert requests and fetch("mnist") == data_folder / "mnist.npz"
    assert len(seen) == requests, "what is there is not fetched again"


def test_a_damaged_download_is_refused_and_leaves_nothing(publish, data_folder):
    files = {f"{p}-{k}-ubyte": b"x" * 100 for p in ("train", "t10k") for k in ("images-idx3", "labels-idx1")}
    folder, _ = publish("mnist", packed(files))
    changed = bytearray((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    changed[-1] ^= 1
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(changed)
    with pytest.raises(FileError, match="cannot download t10k-labels-idx1-ubyte.gz: .* has the SHA-256 .*and not"):
        fetch("mnist")
    assert not list(data_folder.iterdir())


def test_an_unreachable_server_is_an_error_with_cause_and_remedy(data_folder, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("mnist", "cifar10"):
        files = SOURCES[name].files
        nowhere = tuple(dataclasses.replace(file, url=f"https://127.0.0.1:9/{file.name}") for file in files)
        monkeypatch.setitem(SOURCES, name, dataclasses.replace(SOURCES[name], files=nowhere))
        with pytest.raises(FileError) as caught:
            load_data(name, download=True)
        message = str(caught.value)
        assert "refused" in message and "Check the connection" in message and f"{name}.npz" in message
        assert not list(data_folder.iterdir())


def test_fetch_refuses_names_and_folders_it_cannot_serve(tmp_path):
    with pytest.raises(ArgumentError, match="mnist, fashion-mnist, cifar10, cifar100"):
        fetch("digits")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write to"):
        fetch("mnist", tmp_path / "file" / "below")


def test_cifar_pickles_are_read_only_when_their_checksums_hold(data_folder):
    batches = data_folder / "cifar-10-batches-py"
    batches.mkdir()
    (batches / "data_batch_1").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(FileError, match="incomplete or damaged"):
        load_data("cifar10")


def test_every_known_set_has_a_line_and_digests_for_each_array():
    for name, source in SOURCES.items():
        assert source.summary and (source.digests is not None or name in ("fashion-mnist", "svhn", "tiny-imagenet"))
        assert source.digests is None or set(source.digests) == set(ARRAYS)
