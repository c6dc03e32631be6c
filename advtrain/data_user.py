"""The caller's own images: tensors, arrays, torch data sets and loaders, checked and brought into one form."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from .checks import check_classes, check_images, check_labels
from .data_rows import check_pair, class_names, join
from .data_rows import images as read_images
from .data_rows import labels as read_labels
from .data_rows import rows as read_rows
from .dataset import MOST_CLASSES, Dataset, Split, assemble, check_shapes, count_classes, image_shape
from .errors import DataError, as_number, bad, kind_of
from .mapped import MappedSplit, is_mapped
from .rng import global_draws
from .survey import rows_of_a_block, statistics


def as_split(data: Any, *, num_classes: int | None = None, name: str = "data") -> Split:
    """Images and labels in the caller's order, every pixel and label checked.

    Args:
        data: a `Split`; a `Dataset`, of which the test split is taken; a pair (x, y) of tensors or numpy arrays; a
            torch data set of pairs (image, label), where images are tensors or PIL images of mode L or RGB, or one of
            Hugging Face's `datasets` with the columns `image` (or `img`) and `label`; or a `DataLoader` of batches.
            Tensors are (N, C, H, W); arrays also (N, H, W, C) or (N, H, W), where that is beyond doubt. Pixels are
            uint8 in 0..255 or floating in [0, 1]. An array that is mapped into memory stays in its file.
        num_classes: labels must be below it, if given.
        name: how the caller calls it.

    Raises:
        DataError: images or labels that must not be used, more than 4 GiB of pixels, or an object of another kind.
    """
    if isinstance(data, Dataset):
        if data.test is None:
            raise DataError(f"{name}={data.name!r} has no test split: pass the images to judge by, such as data.val")
        return data.test
    if isinstance(data, (str, os.PathLike)):
        data = os.fspath(data)
        bad(name, data, "a data set", f"load it first: at.load_data({data!r})", kind=DataError)
    rows, mapped, checked = None, isinstance(data, MappedSplit), False
    salt = data.salt if isinstance(data, Split) else 0
    if isinstance(data, MappedSplit):
        x, y, rows, checked = data.pixels, data.y, data.rows, data.checked
    elif isinstance(data, Split):
        x, y = data.x, data.y
    elif isinstance(data, (tuple, list)) and len(data) == 2:
        x, y, mapped = read_images(data[0], name), read_labels(data[1], name), is_mapped(data[0])
    elif isinstance(data, DataLoader):
        with global_draws():  # which even an ordered loader takes a number from
            x, y = join(iter(data), name)
    elif isinstance(data, TorchDataset) or (
        hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, dict)
    ):
        x, y = _tensors(data) or join(read_rows(data, name), name)
    else:
        hint = f"one of its parts is: {name}[{next(iter(data))!r}]" if isinstance(data, Mapping) and data else ""
        wanted = "a Dataset, Split, pair (x, y), torch Dataset or DataLoader"
        bad(name, kind_of(data), wanted, hint or "such as (x, y): images and their labels", kind=DataError)
    if not checked:
        _check_pixels(x, f"{name} x")
    check_labels(y, num_classes, name=f"{name} y", length=len(x if rows is None else rows))
    x = x.detach()  # pixels with a history would be backpropagated into, and the second epoch fail
    if mapped:
        return MappedSplit(x, y.long().cpu(), rows, checked=True, salt=salt)
    return Split(x, y.long(), salt)


def as_dataset(
    data: Any,
    *,
    test: Any = None,
    val: Any = 0.1,
    seed: int = 0,
    num_classes: int | None = None,
    classes: Any = None,
    augment: bool | None = None,
    name: str | None = None,
) -> Dataset:
    """The caller's own images as a `Dataset`. Splits are by hash, as in `load_data`: the source's order plays no part.

    >>> as_dataset((torch.rand(20, 1, 4, 4), torch.arange(20) % 2), val=4).num_classes
    2

    Images that do not fit in memory come as an array that is mapped into it, and are never copied as a whole::

        at.as_dataset((np.load("x.npy", mmap_mode="r"), np.load("y.npy")), val=2000)

    The file is read through from its beginning to its end two or three times here, and then by every epoch, image by
    image in random order: quick on a disk without moving parts, slow on others. The splits are then of the kind
    `advtrain.data.MappedSplit`, and what is trained on them is the same as from memory.

    Args:
        data: what `as_split` takes; a `Dataset` passes through, with `augment` if given. A torch data set is read
            once: its random transforms would be frozen, so leave them out and use `augment`. A `DataLoader` is kept as
            it is, for sets that do not fit in memory: it brings its own order and augmentation.
        test: the test images, in any form that `as_split` takes, or a share or count of `data` to take for them; 0 for
            none. A fifth if not given; none beside a `DataLoader`.
        val: the same for validation: a tenth of what remains. Beside a `DataLoader` only images of its own count.
        seed: salts the hash that chooses the validation images.
        num_classes: how many classes; if not given as many as `classes`, or the largest label plus one. With neither,
            training images of one class alone are refused, and classes to judge by that training lacks.
        classes: their names; if not given those that the data set knows, or the numbers.
        augment: train with random crops and flips; if not given, a `Dataset` stays as it is, and others do without.
        name: what to call it.

    Raises:
        ArgumentError, DataError: see `advtrain.errors`.
    """
    check_augment(augment)
    stream = isinstance(data.train if isinstance(data, Dataset) else data, DataLoader)
    if stream and augment:
        bad("augment", augment, "possible with a DataLoader", "it brings its own: crop and flip in its data set")
    if isinstance(data, Dataset):
        return data if augment is None else _augmented(data, augment)
    name, augment = name or "own data", bool(augment)
    inner = data.dataset if stream else data
    own_names, classes = classes is None, class_names(inner) if classes is None else _names(classes)
    if not isinstance(name, str):
        bad("name", name, "text", "it is only what to call the data")
    if num_classes is not None:
        num_classes = as_number(num_classes)
        _check_count(num_classes)
    elif classes is not None:
        if not 2 <= len(classes) <= MOST_CLASSES:
            called, hint = ("data.classes", "give classes=['cat', 'dog'], say") if own_names else ("classes", "")
            bad(called, list(classes), "the names of at least two classes", hint, kind=DataError)
        num_classes = len(classes)
    train = None if stream else as_split(data, num_classes=num_classes, name="data")
    given = {"val": val, "test": (0 if stream else 0.2) if test is None else test}
    parts: dict[str, Any] = {key: as_number(part) for key, part in given.items()}
    for key, part in parts.items():
        if stream and isinstance(part, (int, float)) and part and not (key == "val" and part == 0.1):  # the default
            hint = f"it keeps no images for it: pass those to use, or {key}=0"
            bad(key, part, "possible with a DataLoader", hint)
        if not isinstance(part, (int, float)):
            parts[key] = as_split(part, num_classes=num_classes, name=key)
    own = [part for part in (train, *parts.values()) if isinstance(part, Split)]
    if num_classes is None:
        labels = train.y if isinstance(train, Split) else _labelled(inner)
        num_classes = count_classes(labels, *(part.y for part in own))
        check_classes(labels, f"if it is meant so, say num_classes={num_classes}", **parts)
    classes = tuple(map(str, range(num_classes) if classes is None else classes))
    if len(classes) != num_classes:
        bad("classes", len(classes), f"{num_classes} names", "one for each class, or leave out one", kind=DataError)
    if train is not None:
        return assemble(train, parts["test"], val=parts["val"], seed=seed, name=name, classes=classes, augment=augment)
    first = _first(data, num_classes)
    shape = image_shape(first.x)
    check_shapes(shape, **parts)
    val, test = (part if isinstance(part, Split) else None for part in parts.values())
    mean, std = statistics(first.x)
    return Dataset(name, data, val, test, shape, num_classes, classes, mean, std, augment, None, first)


def check_augment(augment: Any) -> None:
    """Refuse anything but True, False, and None for what suits the data."""
    if not (augment is None or isinstance(augment, bool)):
        bad("augment", augment, "True, False or None", "random crops and flips are there or not")


def _augmented(data: Dataset, augment: bool) -> Dataset:
    """The same images, trained on with or without random crops and flips; what makes the set again says so, too."""
    return dataclasses.replace(data, augment=augment, spec=data.spec and {**data.spec, "augment": augment})


def _check_pixels(x: Any, name: str) -> None:
    """Refuse anything but images, and those whose pixels are all 0 or 1 out of 255."""
    check_images(x, name=name)
    if x.dtype == torch.uint8 and not any(int(part.max()) > 1 for part in x.split(rows_of_a_block(x.shape, x.dtype))):
        bad(name, f"uint8 with a maximum of {int(x.max())}", "0..255", "floats in [0, 1] cut to integers? pass the "
            "floats, or (x * 255).round().to(torch.uint8)", kind=DataError)  # fmt: skip


def _tensors(data: Any) -> Any:
    """The images and labels of a plain `TensorDataset` as they are; of its subclasses, who knows what a row becomes?"""
    return data.tensors if type(data) is TensorDataset and len(data.tensors) == 2 else ()


def _names(classes: Any) -> tuple[str, ...]:
    """The names of the classes as text."""
    if isinstance(classes, (str, bytes, int)) or not hasattr(classes, "__iter__"):
        bad("classes", classes, "a list of names", "such as ['cat', 'dog'], one for each class", kind=DataError)
    names = tuple(map(str, classes))
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        bad("classes", list(names), "a list of different names", f"{twice[0]!r} stands there twice", kind=DataError)
    return names


def _check_count(num_classes: Any) -> None:
    whole = isinstance(num_classes, int) and not isinstance(num_classes, bool)
    if not whole or not 2 <= num_classes <= MOST_CLASSES:
        hint = "labels are the class numbers 0 to num_classes - 1"
        bad("num_classes", num_classes, f"an integer in 2..{MOST_CLASSES:,}", hint, kind=DataError)


def _labelled(data: Any) -> Tensor:
    """The labels of a torch data set that keeps them at hand."""
    labels = getattr(data, "targets", None)
    labels = _tensors(data)[1] if labels is None and _tensors(data) else labels
    try:
        found: Tensor = read_labels(labels, "data")
        check_labels(found, None, name="data y")
    except DataError as error:
        why = "without reading it all" if labels is None else f"({error})"
        raise DataError(
            f"the classes of the DataLoader cannot be counted {why}: say how many there are, "
            "as_dataset(loader, num_classes=...)"
        ) from error
    return found


def _first(loader: DataLoader[Any], num_classes: int) -> Split:
    """The first batch, drawn on a copy of the global random state, which a `DataLoader` uses for its order."""
    with global_draws():
        batch = next(iter(loader), None)
    if batch is None:
        raise DataError("the DataLoader is empty")
    check_pair(batch, "the DataLoader's first batch")
    return as_split(batch, num_classes=num_classes, name="the DataLoader's first batch")
