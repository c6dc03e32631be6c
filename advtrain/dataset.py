"""What a data set is here: splits of pixels and labels, in an order that is made from the pixels alone.

Images are sorted by the SHA-256 of their bytes. A set that was downloaded as pickles, as idx files or as an archive, in
any order, gives the same training, validation and test images in the same places; so a seed means one split everywhere.
"""

from __future__ import annotations

import hashlib
import numbers
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .data_view import dataset_html, dataset_text, split_html
from .errors import DataError, FileError, at_least, bad, kind_of
from .survey import hash_order, pixel_bytes, pixel_hashes, rows_of_a_block, statistics

MOST_CLASSES = 100_000
"""Labels from here on are taken for a mistake, such as a file number, and not for class numbers."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Args:
        x: (N, C, H, W), uint8 in 0..255 or floating in [0, 1].
        y: (N,) int64.
        salt: of the hash in whose order the images are judged: for training images the seed of their data set.

    Raises:
        DataError: shapes or types are not those. Values are not looked at; `as_split` does that.
    """

    x: Tensor
    y: Tensor
    salt: int = 0

    def __post_init__(self) -> None:
        at_least("salt", self.salt, 0)
        for name, value in (("x", self.x), ("y", self.y)):
            if not isinstance(value, Tensor):
                bad(name, kind_of(value), "a torch.Tensor", "at.as_dataset((x, y)) also takes arrays", kind=DataError)
        if self.x.ndim != 4 or self.y.ndim != 1 or len(self.x) != len(self.y):
            raise DataError(
                f"x of shape {tuple(self.x.shape)} and y of shape {tuple(self.y.shape)} are not (N, C, H, W) and (N,)"
            )
        if self.y.dtype != torch.int64 or not (self.x.dtype == torch.uint8 or self.x.is_floating_point()):
            raise DataError(f"x of {self.x.dtype} and y of {self.y.dtype} are not uint8 or floating, and int64")

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return self.x.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the pixels, as they are stored."""
        return self.x.dtype

    def __getitem__(self, index: slice | Tensor | list[int] | SupportsIndex) -> Split:
        """The images at `index` (a slice, positions, or a mask), as a `Split`; of one number, a split of one image."""
        index = rows_at(index, len(self))
        return Split(self.x[index], self.y[index], self.salt)

    def to(self, device: torch.device | str) -> Split:
        """The same on another device."""
        return Split(self.x.to(device), self.y.to(device), self.salt)

    def held(self, device: torch.device | str) -> Split:
        """What a training keeps: the images on its device, or where they are, if they do not fit there."""
        return self.to(device)

    def contiguous(self) -> Split:
        """The same, the pixels in one piece of memory."""
        return Split(self.x.contiguous(), self.y, self.salt)

    def salted(self, salt: int) -> Split:
        """The same, in an order of which `salt` is that of the hash."""
        return Split(self.x, self.y, salt)

    def in_place(self) -> Split:
        """The same images in the order in which they are read fastest."""
        return self

    def blocks(self) -> Iterator[Tensor]:
        """The pixels of consecutive images, a few megabytes at a time."""
        yield from self.x.split(rows_of_a_block(self.shape, self.dtype))

    def images(self, index: Any = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Pixels as floats in [0, 1], all of them or those at `index`, in memory of their own."""
        pixels = self.x if index is None else self.x[index]
        floats = as_float(pixels, dtype)
        return floats.clone() if floats is pixels else floats  # a model may write to its input, nobody to the data

    def _repr_html_(self) -> str:
        return split_html(self)

    def __repr__(self) -> str:
        n, *shape = self.shape
        kind = str(self.dtype).removeprefix("torch.")
        return f"{type(self).__name__}({n:,} images of {'x'.join(map(str, shape))}, {kind})"


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A data set, split for training, for choosing, and for the final word.

    Args:
        name: what to call it.
        train: a `Split`, or the caller's `DataLoader`.
        val: images to choose and stop by, `None` if none were set aside.
        test: images to judge by at the end, `None` if none were set aside.
        shape: (C, H, W) of one image.
        num_classes: number of classes.
        classes: their names; `classes[y]` is the name of label y.
        mean, std: per channel, of all training pixels (those of `val` too, so that a model's normalisation does not
            depend on how they were split) in [0, 1]. Of a `DataLoader`: of its first batch.
        augment: whether training uses random crops and flips.
        spec: `load_data(**spec)` makes it again; `None` for the caller's own data.
        first: the first batch of a `DataLoader`, for `probe`.
    """

    name: str
    train: Split | DataLoader[Any]
    val: Split | None
    test: Split | None
    shape: tuple[int, int, int]
    num_classes: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool = False
    spec: dict[str, Any] | None = None
    first: Split | None = field(default=None)

    def probe(self) -> Split:
        """A few training images, to try a model on."""
        if isinstance(self.train, Split):
            return self.train[:8]
        if self.first is None:
            bad("first", None, "the first batch of the DataLoader", "as_dataset(loader) finds it", kind=DataError)
        return self.first

    def _repr_html_(self) -> str:
        return dataset_html(self)

    def __repr__(self) -> str:
        return dataset_text(self)


def image_shape(x: Tensor) -> tuple[int, int, int]:
    """(C, H, W) of images (N, C, H, W)."""
    _, channels, height, width = x.shape
    return channels, height, width


def as_float(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels as floats in [0, 1]: uint8 divided by 255, floats as they are."""
    if x.dtype != torch.uint8:
        return x.to(dtype)
    # Divided in at least float32: half-precision quotients are off by one more rounding. On a GPU by a tensor: by a
    # number it divides through its reciprocal, and half of the pixels would differ from a processor's in the last bit.
    x = x.to(dtype if dtype.itemsize >= 4 else torch.float32)
    whole = 255 if x.device.type == "cpu" else torch.full((), 255, dtype=x.dtype, device=x.device)
    return x.div_(whole).to(dtype)


def rows_at(index: Any, n: int) -> Any:
    """An index of `n` images, one number of any type as a list of one."""
    one = isinstance(index, numbers.Integral) or getattr(index, "ndim", None) == 0
    return [range(n)[operator.index(index)]] if one else index


def count_of(share: float | int, n: int, name: str) -> int:
    """How many of `n` images a share in [0, 1) or a count is; at least one image must remain."""
    number = isinstance(share, (int, float)) and not isinstance(share, bool) and share == share
    if not number or share < 0 or (isinstance(share, float) and share >= 1):
        bad(name, share, "a share in [0, 1) or a count", "0.1 keeps a tenth, 1000 keeps a thousand images")
    count = share if isinstance(share, int) else round(n * share)
    if count >= n:
        bad(name, share, f"below {n}, the number of images", "some must remain for training")
    return count


def check_seed(seed: Any) -> int:
    """The seed as an `int`; numpy's integers are accepted."""
    return at_least("seed", seed, 0)


def check_shapes(shape: tuple[int, ...], **parts: Any) -> None:
    """Refuse splits whose images are not of the training images' shape (C, H, W)."""
    for key, part in parts.items():
        if isinstance(part, Split) and (found := tuple(part.shape[1:])) != tuple(shape):
            hint = "resize them all to one shape"
            bad(f"{key} images", found, f"of shape {tuple(shape)}, as the training images", hint, kind=DataError)


def count_classes(*labels: Tensor) -> int:
    """The largest label plus one, at least 2."""
    highest = max(int(y.max()) for y in labels)
    if highest >= MOST_CLASSES:
        hint = "number the classes from 0: torch.unique(y, return_inverse=True)[1]"
        bad("max(y)", highest, f"below {MOST_CLASSES:,}, as class numbers are", hint, kind=DataError)
    return max(2, highest + 1)


def assemble(
    train: Split,
    test: Split | float | int,
    *,
    val: float | int | Split,
    seed: int,
    name: str,
    classes: tuple[str, ...],
    augment: bool = False,
    spec: dict[str, Any] | None = None,
    digests: dict[str, str] | None = None,
    origin: str = "",
) -> Dataset:
    """Sort, verify, split.

    Args:
        train: all training images.
        test: the test images, or the share of `train` to take for them: the last by hash, whatever the seed.
        val: the share to set aside: the last by salted hash; or a split.
        seed: salts the hash; at least 0.
        digests: SHA-256 of the arrays x_train, y_train, x_test, y_test in plain hash order, where known.
        origin: where the images came from, for the message.

    Raises:
        ArgumentError: a share or the seed is not accepted.
        DataError: the images of the splits differ in shape.
        FileError: the arrays are not those of `digests`.
    """
    seed = check_seed(seed)
    check_shapes(tuple(train.shape[1:]), val=val, test=test)
    hashes = pixel_hashes(train.blocks())
    if not isinstance(test, Split):
        order = hash_order(hashes, train.y)
        kept = len(order) - count_of(test, len(order), "test")
        test = train[order[kept:]]
        train, hashes = train[order[:kept]], hashes[order[:kept].numpy()]
    test = test.salted(0)[hash_order(pixel_hashes(test.blocks()), test.y)]
    if digests is not None:
        _verify({"train": train[hash_order(hashes, train.y)], "test": test}, digests, name, origin)
    mean, std = statistics(train.in_place())
    train = train.salted(seed)[hash_order(hashes, train.y, seed)]
    if not isinstance(val, Split):
        kept = len(train) - count_of(val, len(train), "val")
        train, val = train[:kept], train[kept:]
    held, last = (part.contiguous() if len(part) else None for part in (val, test))
    _, channels, height, width = train.shape
    shape = channels, height, width
    return Dataset(name, train.contiguous(), held, last, shape, len(classes), classes, mean, std, augment, spec)


def _verify(splits: dict[str, Split], digests: dict[str, str], name: str, origin: str) -> None:
    for part, split in splits.items():
        for key, values in (f"x_{part}", pixel_bytes(split.x)), (f"y_{part}", split.y.numpy().astype("<i8").tobytes()):
            if hashlib.sha256(values).hexdigest() != digests[key]:
                # It may be the caller's own work under this name: nothing here tells anyone to delete it.
                fetch = f"; `advtrain data fetch {name} --root FOLDER` gets the official one into another folder"
                raise FileError(
                    f"{origin} is not the official {name}, or damaged: {key} differs. A set of your own needs another "
                    f"name{'' if name == 'digits' else fetch}"
                )
