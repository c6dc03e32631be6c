"""Data sets: by name, from a file, or the caller's own.

`digits`, in the package, are the 1,797 images of scikit-learn's `load_digits`: the test part of "Optical Recognition of
Handwritten Digits" by E. Alpaydin and C. Kaynak (1998), UCI Machine Learning Repository, doi:10.24432/C50P49, licensed
under CC BY 4.0. Their 17 grey levels 0..16 were scaled to 0..255 and rounded; in hash order the first 1,437 are the
training images, the other 360 the test images. The other sets are fetched from their authors, never packaged.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from .checks import check_classes
from .data_known import SOURCES, Source
from .data_order import digest_of, order_of
from .data_sources import data_names, data_root, fetch, locate, read
from .data_user import as_dataset, as_split, check_augment
from .dataset import MOST_CLASSES, Dataset, Split, assemble, check_seed, count_classes
from .errors import DataError, FileError, as_number, at_least, bad, check_flag
from .mapped import MappedSplit

__all__ = [
    "SOURCES",
    "Dataset",
    "MappedSplit",
    "Split",
    "as_dataset",
    "as_split",
    "data_names",
    "data_root",
    "digest_of",
    "fetch",
    "load_data",
    "locate",
    "order_of",
]


def load_data(
    name: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    val: float | int = 0.1,
    size: int | None = None,
    augment: bool | None = None,
    seed: int = 0,
    download: bool = False,
) -> Dataset:
    """Load a data set by name or from a file.

    >>> load_data("digits")
    Dataset 'digits': 10 classes, images of 1x8x8
      train 1,293, val 144, test 360
      mean (0.3053), std (0.3760), no augmentation

    Args:
        name: `"digits"` (in the package), `"mnist"`, `"fashion-mnist"`, `"cifar10"`, `"cifar100"`, `"svhn"` (its
            files need scipy), `"tiny-imagenet"`; the name of any other .npz file in the data folder; or a path: a
            `pathlib.Path`, or text with a slash in it or ending in `.npz`. An .npz file holds `x_train`, `y_train`
            and, if you like, `x_test`, `y_test` (else a fifth is taken for them), `x_val`, `y_val` and `classes`;
            images are uint8 in 0..255 or floating in [0, 1], (N, H, W), (N, H, W, C) or (N, C, H, W). Without
            `classes`, training images of one class alone are refused, and classes to judge by that training lacks.
            Nothing in it is unpickled. A folder
            holds one folder of image files for each class, or such folders in `train`, `test` and `val`, of which the
            first is needed. Or it holds the arrays of an .npz file, unpacked: `x_train.npy` and so on. These images
            stay in their files, mapped into memory, and may be more than fit there: see `as_dataset`.
        root: the data folder; else `$ADVTRAIN_DATA`, else `advtrain` in the user's cache folder. What torchvision
            left there is read, too.
        val: share in [0, 1) of the training images to set aside for validation, or their number; 0 for none. A share
            is rounded to whole images. A folder's own `val` beside `test` comes first, and so does a file's `x_val`.
        size: images of a folder are scaled and cropped around the middle to `size` x `size` pixels.
        augment: train with random crops and flips; if not given, on the sets on which the literature does.
        seed: salts the hash by which the images for validation are chosen; at least 0.
        download: fetch a known set that is not here.

    Returns:
        The `Dataset`. Its order depends on the pixels and the seed alone. Known sets are verified to be whole; for
        Fashion-MNIST, SVHN and Tiny-ImageNet only the checksum of their download vouches.

    Raises:
        ArgumentError: an unknown name, or a value outside what is accepted.
        FileError: the set is not here, is damaged, or is not the official one.
        DataError: a file of your own holds what must not be trained on.
    """
    seed, size = check_seed(seed), size if size is None else at_least("size", size, 1)
    val = as_number(val)
    check_augment(augment)
    check_flag("download", download)
    path = locate(name, root, download)
    own = path.is_dir() and (isinstance(name, os.PathLike) or name not in SOURCES)
    title = path.stem if path.suffix == ".npz" else path.resolve().name if own else str(name)
    source = Source("") if own else SOURCES.get(title, Source(""))
    arrays = read(path, str(path.absolute()) if own else title, size)
    classes = source.classes or _names(arrays.get("classes", np.zeros(0)), title)
    known = len(classes) or None
    parts = {
        kind: as_split((arrays[f"x_{kind}"], arrays[f"y_{kind}"]), num_classes=known, name=f"{title} {kind}")
        for kind in ("train", "test", "val")
        if f"x_{kind}" in arrays
    }
    if "val" in parts and title in SOURCES and not own:
        raise FileError(f"{path} holds x_val, which the official {title} has not: a set of your own needs another name")
    if len(classes) < 2:
        hint = "no other is named" if classes else "if it is meant so, an array `classes` of all their names says it"
        classes = classes or tuple(map(str, range(count_classes(*(part.y for part in parts.values())))))
        check_classes(parts["train"].y, hint, **{f"{title} {kind}": part for kind, part in parts.items()})
    spec = {"name": os.fspath(name), "val": val, "seed": seed, **({"size": size} if own else {})}
    if augment is not None:
        spec["augment"] = augment
    if own or os.fspath(name) != title:
        spec["name"] = str(path.absolute())
    elif root is not None:
        spec["root"] = str(Path(root).expanduser().absolute())
    return assemble(
        parts["train"],
        parts.get("test", 0.2),
        val=parts.get("val", val),
        seed=seed,
        name=title,
        classes=classes,
        augment=source.augment if augment is None else augment,
        spec=spec,
        digests=source.digests,
        origin=str(path),
    )


def _names(classes: np.ndarray[Any, Any], title: str) -> tuple[str, ...]:
    """What a file calls its classes."""
    if classes.ndim != 1 or len(classes) > MOST_CLASSES:
        hint = "one name for each class"
        bad(f"{title} classes", classes.shape, f"of shape (K,), K at most {MOST_CLASSES:,}", hint, kind=DataError)
    try:
        names = tuple(map(str, classes))
        "".join(names).encode()
    except (SystemError, ValueError) as error:  # numpy takes any 32 bits for a character
        raise DataError(f"{title} classes are not names: {error}") from error
    return names
