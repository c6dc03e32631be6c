"""Images in folders, one's own and Tiny-ImageNet; and SVHN, whose files no other package of ours reads."""

import dataclasses
import hashlib
import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import advtrain as at
from advtrain import data_folders
from advtrain.cli import run as command
from advtrain.data import SOURCES, fetch, load_data
from advtrain.errors import ArgumentError, DataError, FileError


def image(number, size=(12, 9), mode="RGB"):
    """An image of its own for every number."""
    rng = np.random.default_rng(number)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


def folder_of(root, counts, **options):
    """`root/CLASS/NUMBER.png` for each class and its number of images; every image differs."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            own = zlib.crc32(f"{root.name}/{name}/{number}".encode())
            image(own, **options).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def animals(tmp_path):
    return folder_of(tmp_path / "animals", {"cat": 11, "dog": 9})


def test_a_folder_of_classes_is_a_data_set(animals):
    data = load_data(animals)
    assert (data.name, data.classes, data.shape) == ("animals", ("cat", "dog"), (3, 9, 12))
    assert (len(data.train), len(data.val), len(data.test)) == (14, 2, 4)  # a fifth to test, a tenth of the rest
    every = {bytes(x.permute(1, 2, 0).numpy().tobytes()): int(y) for part in (data.train, data.val, data.test)
             for x, y in zip(part.x, part.y, strict=True)}  # fmt: skip
    for label, name in enumerate(data.classes):
        for path in (animals / name).iterdir():
            assert every[np.asarray(Image.open(path)).tobytes()] == label


def test_parts_of_their_own_stay_what_they_are(tmp_path):
    root = tmp_path / "photos"
    for part, counts in {"train": (6, 5), "val": (3, 2), "test": (4, 4)}.items():
        folder_of(root / part, dict(zip(("a", "b"), counts, strict=True)))
    data = load_data(str(root))
    assert (len(data.train), len(data.val), len(data.test)) == (11, 5, 8)
    (root / "test").rename(tmp_path / "gone")
    data = load_data(root)  # now `val` is what is tested on
    assert (len(data.train), len(data.val), len(data.test)) == (10, 1, 5)


def test_size_makes_images_alike(tmp_path):
    root = folder_of(tmp_path / "x", {"a": 4, "b": 4})
    image(5, (30, 20)).save(root / "a" / "large.png")
    with pytest.raises(DataError, match=r"large.png has 30x20 pixels and .*0.png 12x9: size="):
        load_data(root)
    data = load_data(root, size=8)
    assert data.shape == (3, 8, 8) and data.spec["size"] == 8
    for value in (0, 2.5, True):
        with pytest.raises(ArgumentError, match="size"):
            load_data(root, size=value)
    with pytest.raises(ArgumentError, match="size=8 is not an option for digits"):
        load_data("digits", size=8)


def test_scaling_keeps_the_middle(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            pixels = np.full((10, 30, 3), 10 * number + (name == "b"), dtype=np.uint8)
            pixels[:, 10:20] = 200 - number  # the middle third, which is square
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    data = load_data(tmp_path, size=5)
    assert data.train.x[..., 1:4].min() >= 198 and data.train.x[..., [0, 4]].min() >= 150  # edges are mixed


def test_grey_images_have_one_channel_if_all_are_grey(tmp_path):
    root = folder_of(tmp_path / "grey", {"a": 5, "b": 5}, mode="L")
    assert load_data(root).shape == (1, 9, 12)
    image(3).save(root / "a" / "coloured.png")
    assert load_data(root).shape == (3, 9, 12)


def test_sixteen_bits_become_eight_and_what_is_transparent_becomes_white(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            deep = np.full((4, 4), 257 * (100 + number + 10 * (name == "b")), dtype=np.uint16)
            Image.fromarray(deep).save(tmp_path / name / f"{number}.png")
    data = load_data(tmp_path)
    assert data.shape == (1, 4, 4) and data.train.x.min() >= 100 and data.train.x.max() <= 113
    clear = np.zeros((4, 4, 4), dtype=np.uint8)
    clear[0] = (1, 2, 3, 255)
    Image.fromarray(clear).save(tmp_path / "a" / "clear.png")
    x = data_folders.read_images([tmp_path / "a" / "clear.png"])
    assert (x[0, 1:] == 255).all() and (x[0, 0] == (1, 2, 3)).all()
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "a" / "float.tiff")
    with pytest.raises(DataError, match="float.tiff holds floating-point numbers"):
        load_data(tmp_path)


def test_a_photograph_taken_sideways_is_turned(tmp_path):
    folder_of(tmp_path, {"a": 5, "b": 5}, size=(9, 12))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image(7, (12, 9)).save(tmp_path / "a" / "turned.png", exif=exif)
    assert load_data(tmp_path).shape == (3, 12, 9)


def test_an_image_for_which_there_is_no_memory_is_named(animals, monkeypatch):
    """A damaged file may claim to be enormous."""

    def full(image):
        raise MemoryError

    monkeypatch.setattr("advtrain.pictures.opaque", full)
    with pytest.raises(FileError, match=r"\.\w+ cannot be read as an image: it does not fit into memory"):
        load_data(animals)


def test_what_is_no_folder_of_images_is_refused_by_name(animals, tmp_path, monkeypatch):
    with pytest.raises(FileError, match="does not exist"):
        load_data(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="empty holds no images in folders, one for each class"):
        load_data(tmp_path / "empty")
    (animals / "emu").mkdir()
    with pytest.raises(FileError, match="animals holds no images .*emu"):
        load_data(animals)
    (animals / "emu").rmdir()
    (animals / "cat" / "broken.png").write_bytes(b"\x89PNG not really")
    with pytest.raises(FileError, match="broken.png cannot be read as an image"):
        load_data(animals)
    (animals / "cat" / "broken.png").unlink()
    monkeypatch.setattr(data_folders, "LIMIT", 100)
    with pytest.raises(DataError, match="20 images hold .* a DataLoader over torchvision.datasets.ImageFolder"):
        load_data(animals)


def test_a_class_that_nobody_trains_on_is_refused(tmp_path):
    folder_of(tmp_path / "train", {"a": 3, "b": 3})
    folder_of(tmp_path / "test", {"a": 3, "zebra": 3})
    with pytest.raises(DataError, match="test has classes that .*train lacks: zebra"):
        load_data(tmp_path)


def test_a_folder_named_like_a_known_set_is_the_callers_own(tmp_path):
    data = load_data(folder_of(tmp_path / "cifar10", {"a": 5, "b": 5}))
    assert data.classes == ("a", "b") and not data.augment


def test_a_folder_is_named_with_a_slash(animals, monkeypatch):
    monkeypatch.chdir(animals.parent)
    with pytest.raises(ArgumentError, match="name='animals' is not one of digits, .*: for the folder .* './animals'"):
        load_data("animals")
    assert load_data("./animals").name == "animals"
    data = load_data(Path("animals"), augment=True)  # which says that it is a path
    assert data.name == "animals" and data.augment and load_data(**data.spec).augment
    animals.rename("cifar10")
    data = load_data(Path("cifar10"))
    monkeypatch.chdir("/")
    assert data.classes == ("cat", "dog") and load_data(**data.spec).train.x.equal(data.train.x)
    with pytest.raises(FileError, match="digits does not exist: the set of that name is 'digits'"):
        load_data(Path("digits"))


def test_a_run_on_a_folder_finds_it_again(animals, tmp_path, capsys):
    words = ["train", "fgsm", "--data", str(animals), "--size", "8", "--eps", "8/255", "--epochs", "1"]
    command_line([*words, "--out", str(tmp_path / "run"), "--no-progress", "--device", "cpu"])
    run = at.load_run(tmp_path / "run")
    assert run.data.name == "animals" and run.data.shape == (3, 8, 8)
    assert torch.equal(run.data.train.x, load_data(animals, size=8).train.x)


def command_line(words):
    with pytest.raises(SystemExit) as end:
        command(words)
    assert end.value.code == 0


@pytest.fixture
def tiny(publish, monkeypatch):
    """Tiny-ImageNet with three classes of four images, served as its authors serve it."""
    names = {"n02": "goldfish, Carassius auratus", "n01": "tench", "n03": "goldfish, another one"}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:

        def put(path, content):
            archive.writestr(f"tiny-imagenet-200/{path}", content)

        put("wnids.txt", "\n".join(names) + "\n")
        put("words.txt", "".join(f"{name}\t{words}\n" for name, words in names.items()))
        number, told = 0, []
        for name in names:
            for part, count in (("train", 4), ("val", 2)):
                for index in range(count):
                    number += 1
                    file = io.BytesIO()
                    image(number, (64, 64), "L" if number == 5 else "RGB").save(file, "PNG")
                    if part == "train":
                        put(f"train/{name}/images/{name}_{index}.JPEG", file.getvalue())
                    else:
                        told.append(f"val_{number}.JPEG\t{name}\t0\t0\t62\t62\n")
                        put(f"val/images/val_{number}.JPEG", file.getvalue())
        put("val/val_annotations.txt", "".join(told))
    folder, _ = publish("tiny-imagenet", {"tiny-imagenet-200.zip": packed.getvalue()})
    monkeypatch.setattr(data_folders, "TINY_COUNTS", {"classes": 3, "train": 12, "test": 6})
    return folder / "tiny-imagenet-200.zip"


def test_tiny_imagenet_is_fetched_checked_and_kept(tiny, tmp_path, capsys):
    root = tmp_path / "data"
    data = load_data("tiny-imagenet", root=root, download=True, val=0)
    assert [path.name for path in root.iterdir()] == ["tiny-imagenet.npz"], "nothing else is left"
    assert data.shape == (3, 64, 64) and (len(data.train), len(data.test)) == (12, 6)
    assert data.classes == ("tench", "n02", "n03"), "two goldfish are told apart"
    assert data.augment and sorted(data.test.y.tolist()) == [0, 0, 1, 1, 2, 2]
    with zipfile.ZipFile(tiny) as archive:
        archive.extractall(tmp_path / "unpacked")
    again = load_data("tiny-imagenet", root=tmp_path / "unpacked", val=0)
    assert torch.equal(again.train.x, data.train.x) and torch.equal(again.train.y, data.train.y)


def test_a_damaged_tiny_imagenet_is_refused(tiny, tmp_path, monkeypatch):
    (remote,) = SOURCES["tiny-imagenet"].files
    other = (dataclasses.replace(remote, checksum="0" * 32),)  # as the one that is known of it, MD5
    monkeypatch.setitem(SOURCES, "tiny-imagenet", dataclasses.replace(SOURCES["tiny-imagenet"], files=other))
    with pytest.raises(FileError, match="cannot download tiny-imagenet.* has the MD5 .* and not 0000"):
        fetch("tiny-imagenet", tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())
    with zipfile.ZipFile(tiny) as archive:
        archive.extractall(tmp_path / "unpacked")
    (tmp_path / "unpacked" / "tiny-imagenet-200" / "train" / "n01" / "images" / "n01_0.JPEG").unlink()
    with pytest.raises(FileError, match="tiny-imagenet-200 is incomplete or damaged: 11 instead of 12"):
        load_data("tiny-imagenet", root=tmp_path / "unpacked")


@pytest.fixture
def svhn(publish, monkeypatch):
    """SVHN with a few house numbers, served as its authors serve it."""
    savemat = pytest.importorskip("scipy.io").savemat
    from torchvision.datasets import SVHN

    rng, split_list, files = np.random.default_rng(0), {}, {}
    for part, count in (("train", 30), ("test", 10)):
        x = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        y = np.arange(count, dtype=np.uint8)[:, None] % 10 + 1  # their ten is a nought
        file = io.BytesIO()
        savemat(file, {"X": x, "y": y})
        name = f"{part}_32x32.mat"
        files[name] = file.getvalue()
        split_list[part] = ["", name, hashlib.md5(files[name]).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", split_list)
    return publish("svhn", files)[0]


def test_svhn_is_fetched_and_what_torchvision_left_is_read(svhn, tmp_path):
    data = load_data("svhn", root=tmp_path / "data", download=True)
    assert data.shape == (3, 32, 32) and data.classes == tuple("0123456789") and not data.augment
    assert (len(data.train), len(data.val), len(data.test)) == (27, 3, 10)
    assert sorted(data.test.y.tolist()) == list(range(10))
    again = load_data("svhn", root=svhn)
    assert torch.equal(again.test.x, data.test.x) and torch.equal(again.test.y, data.test.y)
    (svhn / "test_32x32.mat").write_bytes(b"not a .mat file")
    with pytest.raises(FileError, match="svhn"):
        load_data("svhn", root=svhn)


def test_svhn_without_scipy_says_what_to_install(svhn, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(FileError, match="svhn needs scipy.* to be read: pip install scipy"):
        load_data("svhn", root=svhn)
