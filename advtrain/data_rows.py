"""Somebody else's arrays, the rows of a data set or the batches of a loader, as two tensors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import check_dense, check_labels
from .errors import DataError, bad
from .mapped import check_plain, is_mapped

COLUMNS = ("image", "img"), ("label", "labels")
"""What the columns with images and with labels are called in data sets of Hugging Face."""

LIMIT = 4 * 2**30
"""Bytes of pixels that are held in memory at most; more has to come through a `DataLoader`."""


def channels_first(x: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) as a view (N, C, H, W); channels are fewer than rows and columns.

    Raises:
        DataError: neither, or both.
    """
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[1] < min(x.shape[2:]):
        return x
    if x.ndim == 4 and x.shape[3] < min(x.shape[1:3]):
        turned: np.ndarray[Any, Any] = x.transpose(0, 3, 1, 2)
        return turned
    hint = "a torch tensor is always read as (N, C, H, W)" if x.ndim == 4 else ""
    return bad(f"{name}.shape", x.shape, "(N, C, H, W), (N, H, W, C) or (N, H, W) beyond doubt", hint, kind=DataError)


def images(x: Any, name: str) -> Any:
    """An array as a tensor; anything else as it came."""
    if isinstance(x, np.ndarray):
        x = channels_first(x, f"{name} x")
        if x.dtype.kind not in "uif" or (x.dtype.kind in "ui" and x.dtype != np.uint8):
            hint = "" if x.dtype.kind not in "ui" else "x.astype(np.uint8) if they are 0..255"
            bad(f"{name} x.dtype", str(x.dtype), "uint8 (0..255) or floating ([0, 1])", hint, kind=DataError)
        if x.dtype.kind == "f" and x.dtype.itemsize > 8:  # which tensors do not know
            bad(f"{name} x.dtype", str(x.dtype), "float64 or narrower", "x.astype(np.float32)", kind=DataError)
        if is_mapped(x):
            check_plain(x, f"{name} x")
        x = x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))
        with warnings.catch_warnings():  # a file that is mapped may be larger than the memory, and nobody writes to it
            warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)
            try:
                return torch.from_numpy(x)
            except ValueError:  # steps backwards, which tensors do not know
                return torch.from_numpy(x.copy())
    return x


def labels(y: Any, name: str) -> Any:
    """An array or a list as a tensor; anything else as it came."""
    if isinstance(y, np.ndarray) and y.dtype.kind in "iu":
        return torch.from_numpy(y.astype(np.int64))
    if isinstance(y, (np.ndarray, list, tuple)):
        try:
            return torch.as_tensor(y)
        except (TypeError, ValueError, RuntimeError) as error:
            why = str(error).partition(". The only supported")[0].rstrip(".")
            raise DataError(
                f"{name} y is not a list of class numbers: {why}. np.unique(y, return_inverse=True)[1] numbers names"
            ) from error
    return y


def rows(data: Any, name: str) -> Any:
    """The pairs of a map-style data set as batches of one, refused when they cannot fit in memory."""
    if not hasattr(data, "__len__"):
        raise DataError(f"{name} has no length: pass a DataLoader over it")
    for index in range(len(data)):
        item = _pair(data[index], f"{name}[{index}]")
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            hint = (
                f"give the labels too: ({name}, y)" if isinstance(item, (Tensor, np.ndarray)) else "one for each image"
            )
            raise DataError(f"{name}[{index}] is a {type(item).__name__}, not a pair (image, label): {hint}")
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
        check_dense(image, f"{name}[{index}]: image")
        if index == 0 and (size := image.nbytes * len(data)) > LIMIT:
            raise DataError(
                f"{name} holds {size / 2**30:.1f} GiB of pixels, more than the {LIMIT / 2**30:g} GiB that are read "
                "into memory: pass a DataLoader over it, as_dataset(DataLoader(data, 64), num_classes=...)"
            )
        yield image[None], _label(label, f"{name}[{index}]")


def _pair(item: Any, name: str) -> Any:
    """A row of a data set of Hugging Face, which is a dict, as a pair; anything else as it came."""
    if not isinstance(item, Mapping):
        return item
    found = [[key for key in keys if key in item] for keys in COLUMNS]
    if any(len(keys) != 1 for keys in found):
        raise DataError(
            f"{name} has the columns {', '.join(map(str, item))}, and not just one image and one label: rename them, "
            "data.rename_columns({'pixels': 'image', 'digit': 'label'})"
        )
    return tuple(item[key] for (key,) in found)


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
        hint = "number the names: classes.index(label)" if isinstance(label, str) else "labels are counted from 0"
        bad(f"{name}: label", label, "a class number, an integer", hint, kind=DataError)
    return number.reshape(1)


def check_pair(batch: Any, name: str) -> None:
    """Refuse a batch of a `DataLoader` that is not two things.

    Args:
        batch: what it gave.
        name: how to call it.

    Raises:
        DataError: it is something else, such as a dict.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return
    hint = ""
    if isinstance(batch, Mapping) and len(batch) > 1:
        x, y = list(batch)[:2]
        hint = f": give the DataLoader a collate_fn that returns one, such as batch[{x!r}], batch[{y!r}]"
    elif isinstance(batch, (tuple, list)):
        hint = f", but holds {len(batch)}"
    raise DataError(f"{name} is a {type(batch).__name__}, not a pair (x, y){hint}")


def join(batches: Any, name: str) -> tuple[Tensor, Tensor]:
    """Batches of (x, y) as two tensors."""
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    size = 0
    for number, batch in enumerate(batches):
        check_pair(batch, f"{name}: batch {number}")
        if not all(isinstance(part, Tensor) for part in batch):
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
        raise DataError(f"{name} is empty: it holds no images; a pair (x, y) of tensors does")
    return torch.cat(xs), torch.cat(ys)


def class_names(data: Any) -> Any:
    """The names of the classes, where a data set of torchvision or Hugging Face knows them."""
    names = getattr(data, "classes", None)
    if names is None and isinstance(getattr(data, "features", None), Mapping):
        names = next((getattr(data.features[key], "names", None) for key in COLUMNS[1] if key in data.features), None)
    return names if isinstance(names, (list, tuple)) else None
