"""A look at all images of a set in the memory of a few: the order that hashes give, extremes, means, deviations."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from .dataset import Split

BLOCK = 2**22
"""Bytes of pixels that are looked at together."""


def rows_of_a_block(shape: torch.Size, dtype: torch.dtype) -> int:
    """How many of the images (N, C, H, W) fit into a block; at least one."""
    return max(1, BLOCK // max(1, dtype.itemsize * shape[1:].numel()))


def extremes(parts: Iterable[Tensor]) -> tuple[float, float]:
    """Lowest and highest pixel of all parts, NaN for both where one is NaN; on a GPU one wait for it."""
    found = torch.stack([torch.stack(part.detach().aminmax()) for part in parts])
    low, high = torch.stack([found[:, 0].amin(), found[:, 1].amax()]).tolist()
    return float(low), float(high)


def pixel_bytes(x: Tensor) -> Any:
    """Images as a C-ordered numpy array (N, H, W, C), uint8 or float32: rows from the top, channels within a pixel."""
    x = x.detach().cpu()
    return (x if x.dtype == torch.uint8 else x.float()).permute(0, 2, 3, 1).contiguous().numpy()


def pixel_hashes(parts: Iterable[Tensor]) -> np.ndarray[Any, Any]:
    """SHA-256 of every image's `pixel_bytes`: (N, 32) uint8."""
    return _rows(hashlib.sha256(image).digest() for part in parts for image in pixel_bytes(part))


def digest_of_images(split: Split) -> str:
    """SHA-256 of all `pixel_bytes`, one after the other, and of the labels as little-endian int64."""
    found = hashlib.sha256()
    for part in split.blocks():
        found.update(pixel_bytes(part))
    found.update(split.y.cpu().numpy().astype("<i8").tobytes())
    return found.hexdigest()


def hash_order(hashes: np.ndarray[Any, Any], y: Tensor, seed: int = 0) -> Tensor:
    """The order of images by hash, equal images by label, int64; `seed` salts the hash, 0 leaves it as it is."""
    if seed:
        salt = str(seed).encode() + b":"
        hashes = _rows(hashlib.sha256(salt + digest.tobytes()).digest() for digest in hashes)
    words = hashes.view(">u8").astype(np.uint64)  # numbers that compare as the bytes do
    return torch.from_numpy(np.lexsort((y.cpu().numpy(), *words.T[::-1])))


def _rows(digests: Iterator[bytes]) -> np.ndarray[Any, Any]:
    """Digests below one another, 32 bytes each; a list of them would take three times the memory."""
    found = bytearray()
    for digest in digests:
        found += digest
    return np.frombuffer(found, dtype=np.uint8).reshape(-1, 32)


def statistics(x: Tensor | Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel in [0, 1]; 1.0 for the deviation of a constant channel."""
    parts = iter([x]) if isinstance(x, Tensor) else x.blocks()
    means, deviations = zip(*(_by_counting if x.dtype == torch.uint8 else _by_merging)(parts), strict=True)
    return means, tuple(deviation if deviation > 1e-6 else 1.0 for deviation in deviations)


def _by_counting(parts: Iterator[Tensor]) -> list[tuple[float, float]]:
    """Mean and deviation of each channel of uint8: exact, and the same in any order of the images."""
    counts: Any = 0
    for part in parts:
        counts = counts + torch.stack(
            [torch.bincount(each.reshape(-1), minlength=256).cpu() for each in part.unbind(1)]
        )
    levels, found = torch.arange(256, dtype=torch.float64) / 255, []
    for weights in counts.double():
        mean = float((weights * levels).sum() / weights.sum())
        found.append((mean, math.sqrt((weights * (levels - mean).square()).sum() / weights.sum())))
    return found


def _by_merging(parts: Iterator[Tensor]) -> list[tuple[float, float]]:
    """Mean and deviation of each channel of floats, part by part in double precision."""
    n: int = 0
    found: list[tuple[float, float]] = []
    for part in parts:
        fresh = [torch.std_mean(each.cpu().double(), correction=0) for each in part.unbind(1)]
        pairs, m = [(float(mean), float(deviation)) for deviation, mean in fresh], len(part)
        found = [_merged(old, n, new, m) for old, new in zip(found, pairs, strict=True)] if n else pairs
        n += m
    return found


def _merged(a: tuple[float, float], n: int, b: tuple[float, float], m: int) -> tuple[float, float]:
    """Mean and deviation of `n` and `m` images together (Chan, Golub and LeVeque 1979)."""
    share, gap = m / (n + m), b[0] - a[0]
    return a[0] + gap * share, math.sqrt((1 - share) * a[1] ** 2 + share * b[1] ** 2 + share * (1 - share) * gap**2)
