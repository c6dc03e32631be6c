"""Images that lie in folders, one file each: the caller's own, and Tiny-ImageNet as its authors pack it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .data_rows import LIMIT
from .errors import DataError, FileError, words_of

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What an image file may be, whatever its name. Pillow knows more, and has Ghostscript run what is PostScript."""

TINY_COUNTS = {"classes": 200, "train": 100_000, "test": 10_000}


def read_folder(folder: Path, size: int | None = None) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a folder of images, `folder/CLASS/*.png`, or with parts, `folder/train/CLASS/*.png` and so on.

    Of `train`, `test` and `val` the first must be there for the others to be looked at. With no `test`, `val` is it.
    Classes are those of the training images, in alphabetical order. Images are turned as their EXIF data say, and are
    grey if all are. Those with 16 bits are scaled to 8; what is transparent becomes white.

    Args:
        folder: holds one folder for each class, at any depth below which its images are; or the parts.
        size: images are scaled and cropped around the middle to `size` x `size`; if not given, all must be alike.

    Returns:
        uint8 (N, H, W, C) or (N, H, W) as `x_train`, int64 as `y_train`, and likewise for the other parts; `classes`.

    Raises:
        FileError: no images there, a class without any, or a damaged one.
        DataError: images of different sizes and no `size`; more pixels than are read into memory; a class of test
            images that there is none to train on.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

    places = {kind: folder / kind for kind in ("train", "test", "val") if (folder / kind).is_dir()}
    if "train" not in places:
        places = {"train": folder}
    elif "test" not in places and "val" in places:
        places["test"] = places.pop("val")
    files: dict[str, list[tuple[str, int]]] = {}
    number: dict[str, int] = {}
    for kind, place in places.items():
        try:
            names, _ = find_classes(place)
            if kind != "train" and (strange := sorted(set(names) - number.keys())):
                raise DataError(f"{place} has classes that {places['train']} lacks: {', '.join(strange[:5])}")
            number = number or {name: index for index, name in enumerate(names)}
            wanted = {name: number[name] for name in names}
            files[kind] = make_dataset(place, wanted, extensions=IMG_EXTENSIONS)
        except FileNotFoundError as error:
            said = str(error).replace("\n", " ")
            raise FileError(f"{place} holds no images in folders, one for each class: {said}") from error
    arrays = {"classes": np.array(list(number))}
    pictures = read_images([path for found in files.values() for path, _ in found], size)
    for kind, found in files.items():
        arrays[f"x_{kind}"], pictures = pictures[: len(found)], pictures[len(found) :]
        arrays[f"y_{kind}"] = np.array([label for _, label in found], dtype=np.int64)
    return arrays


def read_images(paths: Sequence[str | Path], size: int | None = None) -> np.ndarray[Any, Any]:
    """Image files as one array: uint8, (N, H, W, 3), or (N, H, W) if all are grey; `size` as for `read_folder`.

    Raises:
        FileError: a damaged file, or one that holds no image.
        DataError: images of different sizes and no `size`; more pixels than are read into memory; more than 16 bits.
    """
    pixels: np.ndarray[Any, Any] = np.empty(0)
    shape, grey = None, True
    if size is not None:
        _check_total((size, size), len(paths))
    for index, path in enumerate(paths):
        image, is_grey = _read_image(path, size)
        grey = grey and is_grey
        if shape is None:
            shape = image.size
            _check_total(shape, len(paths))
            pixels = np.empty((len(paths), shape[1], shape[0], 3), dtype=np.uint8)
        if image.size != shape:
            raise DataError(
                f"{path} has {image.width}x{image.height} pixels and {paths[0]} {shape[0]}x{shape[1]}: size=64, say, "
                "makes them alike"
            )
        pixels[index] = np.asarray(image)
    return pixels[..., 0] if grey else pixels


def _read_image(path: str | Path, size: int | None) -> tuple[Any, bool]:
    """One of them in RGB, and whether it was grey."""
    from PIL import Image, ImageOps

    from .pictures import opaque

    try:
        with Image.open(path, formats=FORMATS) as file:
            image = ImageOps.exif_transpose(file)
        _check_bits(image, path)
        grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
        image = opaque(image)
        return (image if size is None else ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)), grey
    except DataError:
        raise
    except Exception as error:  # a damaged file can raise anything, and one that claims to be huge a MemoryError
        why = "it does not fit into memory" if isinstance(error, MemoryError) else words_of(error)
        raise FileError(f"{path} cannot be read as an image: {why}") from error


def _check_total(shape: tuple[int, int], count: int) -> None:
    if (total := 3 * shape[0] * shape[1] * count) > LIMIT:
        raise DataError(
            f"{count} images hold {total / 2**30:.1f} GiB of pixels, and {LIMIT / 2**30:g} GiB are read "
            "into memory at most: give a smaller size, or a DataLoader over torchvision.datasets.ImageFolder"
        )


def _check_bits(image: Any, path: str | Path) -> None:
    """Refuse pixels of which nobody knows what white is."""
    if image.mode == "F":
        raise DataError(f"{path} holds floating-point numbers, whose white nobody knows: convert it to 8 or 16 bits")
    if image.mode.startswith("I"):
        low, high = image.getextrema()
        if low < 0 or high > 65535:
            raise DataError(f"{path} has pixels in {low}..{high}: convert it to 8 or 16 bits")


def read_tiny_imagenet(root: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of Tiny-ImageNet below `root`: its 100,000 training images, and as test images its validation part.

    The labels of its own test images were never published.

    Raises:
        OSError, ValueError: files are missing, too many, or damaged.
    """
    folder = root / "tiny-imagenet-200"
    names = _lines(folder / "wnids.txt")
    number = {name: index for index, name in enumerate(sorted(names))}
    words = dict(line.split("\t", 1) for line in _lines(folder / "words.txt"))
    titles = [words.get(name, name).split(",")[0] for name in number]
    titles = [title if titles.count(title) == 1 else name for title, name in zip(titles, number, strict=True)]
    train = [(path, name) for name in number for path in sorted((folder / "train" / name / "images").iterdir())]
    told = (line.split("\t") for line in _lines(folder / "val" / "val_annotations.txt"))
    test = [(folder / "val" / "images" / path, name) for path, name, *_ in told]
    for kind, found in (("classes", len(number)), ("train", len(train)), ("test", len(test))):
        if found != TINY_COUNTS[kind]:
            raise ValueError(f"{found:,} instead of {TINY_COUNTS[kind]:,} ({kind})")
    arrays = {"classes": np.array(titles)}
    for kind, pairs in (("train", train), ("test", test)):
        arrays[f"x_{kind}"] = read_images([path for path, _ in pairs])
        arrays[f"y_{kind}"] = np.array([number[name] for _, name in pairs], dtype=np.int64)
    return arrays


def _lines(path: Path) -> Iterable[str]:
    return path.read_text(encoding="utf-8").splitlines()
