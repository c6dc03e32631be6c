"""The caller's own images: tensors, arrays, torch data sets and loaders, checked and brought into one form."""

from __future__ import annotations

import math
import os
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from .checks import check_images, check_labels
from .dataset import MOST_CLASSES, Dataset, Split, assemble, check_shapes, count_classes, statistics
from .errors import DataError, bad
from .rng import global_draws

LIMIT = 4 * 2**30
"""Bytes of pixels that are held in memory at most; more has to come through a `DataLoader`."""


def as_split(data: Any, *, num_classes: int | None = None, name: str = "data") -> Split:
    """Images and labels in the caller's order, every pixel and label checked.

    Args:
        data: a `Split`; a `Dataset`, of which the test split is taken; a pair (x, y) of tensors or numpy arrays; a
            torch data set of pairs (image, label), where images are tensors or PIL images of mode L or RGB; or a
            `DataLoader` of batches. Tensors are (N, C, H, W); arrays also (N, H, W, C) or (N, H, W), where that is
            beyond doubt. Pixels are uint8 in 0..255 or floating in [0, 1].
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
        bad(name, data, "a data set", f"load it first: load_data({data!r})", kind=DataError)
    if isinstance(data, Split):
        x, y = data.x, data.y
    elif isinstance(data, (tuple, list)) and len(data) == 2:
        x, y = _images(data[0], name), _labels(data[1], name)
    elif isinstance(data, DataLoader):
        x, y = _join(iter(data), name)
    elif isinstance(data, TorchDataset) or (
        hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, dict)
    ):
        tensors = getattr(data, "tensors", ())
        x, y = tensors if len(tensors) == 2 else _join(_items(data, name), name)
    else:
        bad(name, type(data).__name__, "a Dataset, Split, pair (x, y), torch Dataset or DataLoader", kind=DataError)
    check_images(x, name=f"{name} x")
    check_labels(y, num_classes, name=f"{name} y", length=len(x))
    if x.dtype == torch.uint8 and int(x.max()) <= 1:
        bad(f"{name} x", f"uint8 with a maximum of {int(x.max())}", "0..255", "floats in [0, 1] cut to integers? pass "
            "the floats, or (x * 255).round().to(torch.uint8)", kind=DataError)  # fmt: skip
    x = x.detach()  # pixels with a history would be backpropagated into, and the second epoch fail
    return Split(x if x.dtype in (torch.uint8, torch.float64) else x.float(), y.long())


def as_dataset(
    data: Any,
    *,
    test: Any = None,
    val: Any = 0.1,
    seed: int = 0,
    num_classes: int | None = None,
    classes: Any = None,
    augment: bool = False,
    name: str | None = None,
) -> Dataset:
    """The caller's own images as a `Dataset`. Splits are by hash, as in `load_data`: the source's order plays no part.

    Args:
        data: what `as_split` takes; a `Dataset` passes through. A torch data set is read once: its random transforms
            would be frozen, so leave them out and use `augment`. A `DataLoader` is kept as it is, for sets that do not
            fit in memory: it brings its own order and augmentation.
        test: the test images, in any form that `as_split` takes, or a share or count of `data` to take for them; 0 for
            none. A fifth if not given; none beside a `DataLoader`.
        val: the same for validation: a tenth of what remains. Beside a `DataLoader` only images of its own count.
        seed: salts the hash that chooses the validation images.
        num_classes: number of classes; the number of `classes`, or the largest label plus one, if not given.
        classes: their names; `data.classes` or the numbers if not given.
        augment: train with random crops and flips.
        name: what to call it.

    Raises:
        ArgumentError, DataError: see `advtrain.errors`.
    """
    if isinstance(data, Dataset):
        return data
    name = name or "own data"
    stream = isinstance(data, DataLoader)
    inner = data.dataset if stream else data
    if classes is None and isinstance(getattr(inner, "classes", None), (list, tuple)):
        classes = inner.classes
    num_classes = num_classes if num_classes is not None or classes is None else len(classes)
    if num_classes is not None:
        _check_count(num_classes)
    train = None if stream else as_split(data, num_classes=num_classes, name="data")
    parts = {"val": val, "test": 0.2 if test is None else test}
    for key, part in parts.items():
        if not isinstance(part, (int, float)):
            parts[key] = as_split(part, num_classes=num_classes, name=key)
    own = [part for part in (train, *parts.values()) if isinstance(part, Split)]
    if num_classes is None:
        num_classes = _labelled(inner) if stream else count_classes(*(part.y for part in own))
    classes = tuple(map(str, range(num_classes) if classes is None else classes))
    if len(classes) != num_classes:
        bad("classes", len(classes), f"{num_classes} names", kind=DataError)
    if not stream:
        return assemble(train, parts["test"], val=parts["val"], seed=seed, name=name, classes=classes, augment=augment)
    first = _first(data, num_classes)
    shape = tuple(first.x.shape[1:])
    check_shapes(shape, **parts)
    val, test = (part if isinstance(part, Split) else None for part in parts.values())
    mean, std = statistics(first.x)
    return Dataset(name, data, val, test, shape, num_classes, classes, mean, std, augment, None, first)


def channels_first(x: np.ndarray, name: str) -> np.ndarray:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) as a view (N, C, H, W); channels are fewer than rows and columns.

    Raises:
        DataError: neither, or both.
    """
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[1] < min(x.shape[2:]):
        return x
    if x.ndim == 4 and x.shape[3] < min(x.shape[1:3]):
        return x.transpose(0, 3, 1, 2)
    hint = "a torch tensor is always read as (N, C, H, W)" if x.ndim == 4 else ""
    return bad(f"{name}.shape", x.shape, "(N, C, H, W), (N, H, W, C) or (N, H, W) beyond doubt", hint, kind=DataError)


def _images(x: Any, name: str) -> Tensor:
    if isinstance(x, np.ndarray):
        x = channels_first(x, f"{name} x")
        if x.dtype.kind not in "uif" or (x.dtype.kind in "ui" and x.dtype != np.uint8):
            hint = "" if x.dtype.kind not in "ui" else "x.astype(np.uint8) if they are 0..255"
            bad(f"{name} x.dtype", str(x.dtype), "uint8 (0..255) or floating ([0, 1])", hint, kind=DataError)
        x = x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))
        with warnings.catch_warnings():  # a file that is mapped may be larger than the memory, and nobody writes to it
            warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)
            try:
                return torch.from_numpy(x)
            except ValueError:  # steps backwards, which tensors do not know
                return torch.from_numpy(x.copy())
    return x


def _labels(y: Any, name: str) -> Tensor:
    if isinstance(y, np.ndarray) and y.dtype.kind in "iu":
        return torch.from_numpy(y.astype(np.int64))
    if isinstance(y, (np.ndarray, list, tuple)):
        try:
            return torch.as_tensor(y)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(
                f"{name} y is not a list of class numbers: {error}. np.unique(y, return_inverse=True)[1] numbers names"
            ) from error
    return y


def _items(data: Any, name: str) -> Any:
    """The pairs of a map-style data set as batches of one, refused when they cannot fit in memory."""
    if not hasattr(data, "__len__"):
        raise DataError(f"{name} has no length: pass a DataLoader over it")
    for index in range(len(data)):
        item = data[index]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(f"{name}[{index}] is a {type(item).__name__}, not a pair (image, label)")
        image, label = item
        if not isinstance(image, Tensor):
            mode = getattr(image, "mode", "L")
            if mode not in ("L", "RGB"):  # its numbers may be indices of a palette, transparency, or ink
                raise DataError(
                    f"{name}[{index}] holds a PIL image of mode {mode!r}, not 'L' or 'RGB': let the data set return "
                    "image.convert('RGB'), which drops transparency"
                )
            array = np.array(image)  # a PIL image or an array
            if array.dtype != np.uint8 or array.ndim not in (2, 3):
                raise DataError(
                    f"{name}[{index}] holds a {type(image).__name__} of {array.dtype}, shape {array.shape}, not an "
                    "image: uint8, (H, W) or (H, W, C); image.convert('RGB') makes one"
                )
            image = torch.from_numpy(array)
            image = image[None] if image.ndim == 2 else image.permute(2, 0, 1)
        if index == 0 and (size := image.nbytes * len(data)) > LIMIT:
            raise DataError(
                f"{name} holds {size / 2**30:.1f} GiB of pixels, more than the {LIMIT / 2**30:g} GiB that are read "
                "into memory: pass a DataLoader over it, as_dataset(DataLoader(data, 64), num_classes=...)"
            )
        yield image[None], _label(label, f"{name}[{index}]")


def _label(label: Any, name: str) -> Tensor:
    """One class number as a tensor (1,)."""
    if isinstance(label, (Tensor, np.ndarray)) and math.prod(label.shape) != 1:
        hint = "one-hot? label.argmax()"
        bad(f"{name}: label.shape", tuple(label.shape), "that of one class number", hint, kind=DataError)
    try:
        number = torch.as_tensor(label)
    except (TypeError, ValueError, RuntimeError):
        number = torch.empty(0)
    if number.numel() != 1 or number.dtype == torch.bool or number.is_floating_point():
        hint = "number the names: classes.index(label)" if isinstance(label, str) else ""
        bad(f"{name}: label", label, "a class number, an integer", hint, kind=DataError)
    return number.reshape(1)


def _join(batches: Any, name: str) -> tuple[Tensor, Tensor]:
    """Batches of (x, y) as two tensors."""
    xs, ys, size = [], [], 0
    for number, batch in enumerate(batches):
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        if not pair or not all(isinstance(part, Tensor) for part in batch):
            raise DataError(f"{name}: batch {number} is not a pair of tensors (x, y)")
        x, y = batch
        if y.ndim != 1:
            check_labels(y, None, name=f"{name}: batch {number}: y")
        if xs and (x.shape[1:] != xs[0].shape[1:] or x.dtype != xs[0].dtype):
            raise DataError(
                f"{name}: images differ: {tuple(x.shape[1:])} {x.dtype} at number {number}, {tuple(xs[0].shape[1:])} "
                f"{xs[0].dtype} at number 0; resize them all to one shape"
            )
        size += x.nbytes
        if size > LIMIT:
            raise DataError(f"{name} holds more than {LIMIT / 2**30:g} GiB of pixels: use fewer images")
        xs.append(x)
        ys.append(y)
    if not xs:
        raise DataError(f"{name} is empty")
    return torch.cat(xs), torch.cat(ys)


def _check_count(num_classes: Any) -> None:
    whole = isinstance(num_classes, int) and not isinstance(num_classes, bool)
    if not whole or not 2 <= num_classes <= MOST_CLASSES:
        bad("num_classes", num_classes, f"an integer in 2..{MOST_CLASSES:,}", kind=DataError)


def _labelled(data: Any) -> int:
    """Number of classes of a torch data set that keeps its labels at hand."""
    labels = getattr(data, "targets", None)
    labels = data.tensors[1] if labels is None and len(getattr(data, "tensors", ())) == 2 else labels
    try:
        labels = _labels(labels, "data")
        check_labels(labels, None, name="data y")
    except DataError as error:
        why = "without reading it all" if labels is None else f"({error})"
        raise DataError(
            f"the classes of the DataLoader cannot be counted {why}: say how many there are, "
            "as_dataset(loader, num_classes=...)"
        ) from error
    return count_classes(labels)


def _first(loader: DataLoader, num_classes: int) -> Split:
    """The first batch, drawn on a copy of the global random state, which a `DataLoader` uses for its order."""
    with global_draws():
        batch = next(iter(loader), None)
    if batch is None:
        raise DataError("the DataLoader is empty")
    return as_split(batch, num_classes=num_classes, name="the DataLoader's first batch")
