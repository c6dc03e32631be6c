"""Images that stay in their file: mapped into memory, they are read when a batch asks for them, never all at once."""

from __future__ import annotations

import mmap
import numbers
from collections.abc import Iterator
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from .dataset import Split, as_float, rows_at
from .errors import DataError, bad, kind_of
from .survey import rows_of_a_block


class MappedSplit(Split):
    """Images in a file that is mapped into memory, all of them or some, in any order, and their labels.

    Whatever is chosen of it, `split[:1000]` or `split[index]`, is of the same kind, and nothing has been read yet. That
    happens in `images()` and `to(device)`, and in `x`: ask for that of a part only, for it reads all images of the
    split. Nobody may write to them.

    `as_split` and `as_dataset` make it of an array that numpy has mapped. A tensor does not tell where its memory is:
    of one over a mapped file say it yourself, `as_dataset(MappedSplit(x, y))`.

    Args:
        pixels: (N, C, H, W), uint8 in 0..255 or floating in [0, 1]; its memory is that of the file.
        y: (M,) int64, in memory: a label for each image that is chosen.
        rows: (M,) int64: which images are chosen, and in what order; all N if not given.
        checked: the pixels have been looked at; else `as_split` does so, once.
        salt: see `Split`.

    Raises:
        DataError: as for `Split`.
    """

    pixels: Tensor
    rows: Tensor | None
    checked: bool

    def __init__(self, pixels: Tensor, y: Tensor, rows: Tensor | None = None, *, checked: bool = False, salt: int = 0):
        if rows is not None and not (isinstance(rows, Tensor) and rows.ndim == 1 and rows.dtype == torch.int64):
            bad("rows", kind_of(rows), "positions (M,), int64", "torch.tensor([0, 1, 2])", kind=DataError)
        if rows is not None and len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(pixels):
            span = f"{int(rows.min())} to {int(rows.max())}"
            bad("rows", span, f"inside 0 to {len(pixels) - 1}, the images there are", kind=DataError)
        Split(
            pixels if rows is None else pixels[:1].expand(len(rows), *pixels.shape[1:]), y, salt
        )  # refuses what is none
        for name, value in (("pixels", pixels), ("y", y), ("rows", rows), ("checked", checked), ("salt", salt)):
            object.__setattr__(self, name, value)

    @property
    def x(self) -> Tensor:
        """(N, C, H, W): the mapped file itself if these are all its images, else a copy of those chosen."""
        return self.pixels if self.rows is None else self.pixels[self.rows].contiguous()

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self.y), *self.pixels.shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """Of the pixels, as they are stored."""
        return self.pixels.dtype

    def __getitem__(self, index: slice | Tensor | list[int] | SupportsIndex) -> MappedSplit:
        """The images at `index` (a slice, positions, or a mask), not read yet."""
        index = rows_at(index, len(self))
        index = index.cpu() if isinstance(index, Tensor) else index
        same: dict[str, Any] = {"checked": self.checked, "salt": self.salt}
        if self.rows is not None:
            return MappedSplit(self.pixels, self.y[index], self.rows[index], **same)
        if isinstance(index, slice):
            return MappedSplit(self.pixels[index], self.y[index], **same)
        if not (isinstance(index, Tensor) and index.dtype == torch.int64):
            index = torch.arange(len(self))[index]
        return MappedSplit(self.pixels, self.y[index], torch.where(index < 0, index + len(self), index), **same)

    def to(self, device: torch.device | str) -> Split:
        """Read them, and move them to a device; to a GPU through pinned memory, so that nobody waits."""
        x, y = self.x, self.y
        if torch.device(device).type != "cuda":
            return Split(x.to(device), y.to(device), self.salt)
        x, y = (part.pin_memory().to(device, non_blocking=True) for part in (x, y))
        return Split(x, y, self.salt)

    def held(self, device: torch.device | str) -> MappedSplit:
        """The same: a training reads each batch, and moves that."""
        return self

    def contiguous(self) -> MappedSplit:
        """The same."""
        return self

    def salted(self, salt: int) -> MappedSplit:
        """The same, in an order of which `salt` is that of the hash."""
        return MappedSplit(self.pixels, self.y, self.rows, checked=self.checked, salt=salt)

    def in_place(self) -> MappedSplit:
        """The same images in the order in which the file has them."""
        return self if self.rows is None else self[self.rows.argsort()]

    def blocks(self) -> Iterator[Tensor]:
        """The pixels of consecutive images, a few megabytes at a time."""
        rows = rows_of_a_block(self.shape, self.dtype)
        return (self[first : first + rows].x for first in range(0, len(self), rows))

    def images(self, index: Any = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Pixels as floats in [0, 1], all of them or those at `index`, in memory of their own."""
        if isinstance(index, numbers.Integral) or getattr(index, "ndim", None) == 0:
            return self[index].images(dtype=dtype)[0]
        chosen = self if index is None else self[index]
        pixels = chosen.x
        floats = as_float(pixels, dtype)
        return floats.clone() if floats is pixels and chosen.rows is None else floats  # else it is the file itself


def is_mapped(array: Any) -> bool:
    """Whether an array of numpy, or what it is a view of, is a file that is mapped into memory."""
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


def check_plain(array: np.ndarray[Any, Any], name: str) -> None:
    """Refuse a mapped array that tensors can only have as a copy, which might not fit into memory.

    Raises:
        DataError: its bytes are in another machine's order, or it runs backwards.
    """
    if not array.dtype.isnative or min(array.strides) < 0:
        what = "runs backwards" if array.dtype.isnative else "has its bytes in the order of another machine"
        raise DataError(f"{name} is a mapped file and {what}, which a tensor cannot: write a file that does not")
