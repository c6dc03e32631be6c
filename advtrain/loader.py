"""Batches: from a set that lives on the device, or through a torch `DataLoader`.

Both have `len(loader)`, the number of batches, and `loader.epoch(k)`, which yields `(x, y, index)`; `index` is None
where nobody knows which of the training images these are. `loader.state()`, asked at the beginning of an epoch, and
`loader.epoch(k, skip)` let a training go on in the middle of an epoch, with the batches that it would have had.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from .checks import check_images, check_labels
from .data_rows import check_pair
from .data_user import as_split
from .dataset import Dataset, Split, as_float, image_shape
from .errors import DataError, at_least, bad
from .rng import Rng

PAD = 4
"""Pixels of zeros around an image before a crop of its size is taken, as on CIFAR since He et al. (2016)."""

Triple = tuple[Tensor, Tensor, Tensor | None]


class Loader:
    """Batches of a split that is held on the device as it is stored, one byte a pixel channel.

    One that is mapped into memory stays in its file: each batch is read when its turn comes, and goes to the device.

    Several processes that train together take a part of each batch each, as equal in size as can be.

    Order and augmentation of epoch k come from `(seed, k)` alone: whatever was drawn or loaded before, on whichever
    device, and however large the batches, image i of epoch k looks the same.

    A last batch of a single image for some process is joined to the one before: batch normalisation has no variance to
    take of one image whose features are 1x1, and torch refuses it, after a whole epoch of work.

    Args:
        split: the images.
        batch_size: images per batch, of all processes together.
        shuffle: a new order each epoch.
        augment: a random crop after padding with `PAD` zeros, and a horizontal flip with probability ½, per image.
        drop_last: leave out a last batch that is not full.
        seed: names the order and the augmentation.
        device: where the images are held and the batches come out.
        dtype: of the batches, in [0, 1].
        channels_last: memory format of the batches; faster convolutions on recent GPUs.
        part: (number of this process, from 0; how many there are).

    Raises:
        ArgumentError: a batch size that is not a positive integer, or larger than the split with `drop_last`; fewer
            images in a batch than processes.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        part: tuple[int, int] = (0, 1),
    ):
        batch_size = at_least("batch_size", batch_size, 1)
        self.rank, self.processes = part
        if min(batch_size, len(split)) < self.processes:
            accepted = f"at least {self.processes}, an image for each process"
            bad("batch_size", min(batch_size, len(split)), accepted, "start fewer processes, or take larger batches")
        if drop_last and batch_size > len(split):
            bad("batch_size", batch_size, f"at most {len(split)}, the number of images", "drop_last leaves no batch")
        self.split = split.held(device)
        self.batch_size, self.shuffle, self.augment, self.drop_last = batch_size, shuffle, augment, drop_last
        self.seed, self.device, self.dtype = seed, torch.empty(0, device=device).device, dtype
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __len__(self) -> int:
        """Batches per epoch."""
        full, rest = divmod(len(self.split), self.batch_size)
        joined = full > 0 and 0 < rest < 2 * self.processes
        return full if self.drop_last or joined else full + (rest > 0)

    def state(self) -> None:
        """Nothing: an epoch is made from the seed and its number."""

    def set_state(self, state: None) -> None:
        """Take back what `state` gave."""

    def epoch(self, number: int, skip: int = 0) -> Iterator[Triple]:
        """The batches of epoch `number`, without the first `skip`.

        Yields:
            x (B, C, H, W) in [0, 1], y (B,) int64, and index (B,) int64, the images' positions in the split; all on the
            device.
        """
        n = len(self.split)
        # Everything random is drawn at once on the CPU, the same for every device, and moved once: no batch waits.
        order = Rng(self.seed, "order", number).permutation(n) if self.shuffle else torch.arange(n)
        order = order.to(self.split.y.device)
        draws = draw_augmentation(n, Rng(self.seed, "augment", number)).to(self.device) if self.augment else None
        starts = range(0, len(self) * self.batch_size, self.batch_size)
        for start in starts[skip:]:
            end = n if start == starts[-1] and not self.drop_last else start + self.batch_size
            index = order[start:end].tensor_split(self.processes)[self.rank]
            part, index = self.split[index].to(self.device), index.to(self.device)
            images = part.x
            if draws is not None:
                images = crop_and_flip(images, draws[index])
            images = as_float(images, self.dtype)
            yield images.contiguous(memory_format=self.memory_format), part.y, index


def draw_augmentation(n: int, rng: Rng) -> Tensor:
    """Row offset and column offset in 0..2 PAD, and flip in 0..1, for `n` images: (n, 3) int64."""
    offsets = rng.child("crop").integers(0, 2 * PAD + 1, (n, 2))
    return torch.cat([offsets, rng.child("flip").integers(0, 2, (n, 1))], 1)


def crop_and_flip(x: Tensor, draws: Tensor) -> Tensor:
    """Pad with zeros, cut windows of the old size, mirror some of them; all images at once.

    Args:
        x: (B, C, H, W) of any dtype.
        draws: (B, 3), rows of `draw_augmentation`: offset (PAD, PAD) without a flip gives the image back.

    Returns:
        (B, C, H, W) like x.
    """
    batch, channels, height, width = x.shape
    down, right, flip = draws.unbind(1)
    rows = torch.arange(height, device=x.device) + down[:, None]
    columns = torch.arange(width, device=x.device)
    columns = torch.where(flip[:, None] == 1, width - 1 - columns, columns) + right[:, None]
    # One gather over flattened pixels: three times as fast on a CPU as indexing rows and columns apart.
    pixels = (rows[:, :, None] * (width + 2 * PAD) + columns[:, None, :]).view(batch, 1, height * width)
    padded = F.pad(x, (PAD,) * 4).view(batch, channels, -1)
    return padded.gather(2, pixels.expand(-1, channels, -1)).view(x.shape)


class StreamLoader:
    """Batches of a torch `DataLoader`, for sets that do not fit in memory. Order and augmentation are its own.

    Args:
        loader: yields pairs (x, y), x (B, C, H, W) uint8 or float in [0, 1], y (B,) integers.
        num_classes: labels must be below it, if given.
        shape: (C, H, W) that images must have; that of the first batch if not given.
        device: where the batches come out.
        dtype: of the batches, in [0, 1].
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        *,
        num_classes: int | None = None,
        shape: tuple[int, int, int] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.loader, self.num_classes, self.shape = loader, num_classes, shape
        self.device, self.dtype = torch.device(device), dtype

    def __len__(self) -> int:
        """Batches per epoch."""
        try:
            return len(self.loader)
        except TypeError as error:
            raise DataError("the DataLoader has no length, and schedules count steps: give it a __len__") from error

    def state(self) -> dict[str, Tensor]:
        """The states of the generators that the `DataLoader` was given. Others, such as NumPy's, are not known here."""
        return {name: generator.get_state() for name, generator in self._generators().items()}

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for name, generator in self._generators().items():
            generator.set_state(state[name])

    def _generators(self) -> dict[str, torch.Generator]:
        within = getattr(self.loader.batch_sampler, "sampler", None)
        parts: dict[str, Any] = {"loader": self.loader, "sampler": self.loader.sampler, "batch_sampler": within}
        found = {name: getattr(part, "generator", None) for name, part in parts.items()}
        return {name: generator for name, generator in found.items() if generator is not None}

    def epoch(self, number: int, skip: int = 0) -> Iterator[Triple]:
        """The batches of epoch `number`; the first `skip` are loaded too, and left out, before this returns."""
        batches = self._batches(number)
        for _ in itertools.islice(batches, skip):
            pass
        return batches

    def _batches(self, number: int) -> Iterator[Triple]:
        """The batches of epoch `number`, each checked before it goes to the device.

        Yields:
            x (B, C, H, W) in [0, 1], y (B,) int64, and None for the index: a `DataLoader` does not say which images it
            has drawn.

        Raises:
            DataError: a batch that must not be trained on; the message says which. Also more or fewer batches than
                `len(loader)`, because schedules count steps.
        """
        expected = len(self)
        samplers: tuple[Any, ...] = self.loader.sampler, self.loader.batch_sampler
        for sampler in samplers:
            if hasattr(sampler, "set_epoch"):  # a DistributedSampler shuffles anew only when told
                sampler.set_epoch(number)
        given = 0
        for given, batch in enumerate(self.loader, 1):
            if given > expected:
                break
            x, y = self._checked(batch, f"batch {given - 1} of epoch {number}")
            x, y = (part.to(self.device, non_blocking=True) for part in (x.detach(), y.long()))
            yield as_float(x, self.dtype), y, None
        if given != expected:
            gave = f"only {given} batches" if given < expected else f"a batch number {given}"
            raise DataError(
                f"the DataLoader gave {gave} in epoch {number}, but len(loader) is {expected}, and schedules count "
                "steps: let its __len__ be what it yields, and each of several workers yield only its own part"
            )

    def _checked(self, batch: Any, name: str) -> tuple[Tensor, Tensor]:
        check_pair(batch, name)
        x, y = batch
        check_images(x, name=f"{name}: x")
        check_labels(y, self.num_classes, name=f"{name}: y", length=len(x))
        self.shape = self.shape or image_shape(x)
        if (shape := image_shape(x)) != tuple(self.shape):
            bad(f"{name}: x.shape[1:]", shape, f"{tuple(self.shape)}, the shape of the others", kind=DataError)
        return x, y


def make_loader(
    data: Any,
    batch_size: int,
    *,
    shuffle: bool = True,
    augment: bool | None = None,
    drop_last: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    part: tuple[int, int] = (0, 1),
) -> Loader | StreamLoader:
    """The loader that suits `data`, for training.

    Args:
        data: a `Dataset`, of which the training images are taken; a `DataLoader`, which keeps its own batches; or
            anything that `as_split` takes.
        augment: `data.augment` if not given.
        batch_size, shuffle, drop_last, seed, device, dtype, channels_last, part: see `Loader`.

    Raises:
        ArgumentError, DataError: see `Loader` and `as_split`.
    """
    source = data.train if isinstance(data, Dataset) else data
    if isinstance(source, DataLoader):
        known: dict[str, Any] = {}
        if isinstance(data, Dataset):
            known = {"num_classes": data.num_classes, "shape": data.shape}
        return StreamLoader(source, device=device, dtype=dtype, **known)
    augment = getattr(data, "augment", False) if augment is None else augment
    return Loader(
        as_split(source), batch_size, shuffle=shuffle, augment=augment, drop_last=drop_last, seed=seed, device=device,
        dtype=dtype, channels_last=channels_last, part=part,
    )  # fmt: skip
