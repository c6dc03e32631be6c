"""The order in which images are judged: that of their hashes, whatever the order in which they came."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .dataset import Split, as_float
from .survey import hash_order, pixel_hashes


def order_of(split: Split) -> Tensor:
    """The positions of images in the order of their hashes, (N,) int64.

    Whoever judges images in this order gives each of them the same random draws in whatever order they came. The splits
    that `load_data` makes of 8-bit images are in this order: 0, 1, 2, ... An image of floats that are levels 0..255
    over 255 has the hash of these levels.

    Args:
        split: the images; its `salt` is that of the hash. They are looked at a few at a time.
    """
    return hash_order(_all_hashes(split), split.y, split.salt)


def digest_of(split: Split) -> str:
    """SHA-256 of images and labels in their order: one pair and another are the same if theirs is.

    Levels 0..255 and floats that are these levels over 255 are the same images.

    Args:
        split: the images, looked at a few at a time.
    """
    labels = split.y.cpu().numpy().astype("<i8").tobytes()
    return hashlib.sha256(_all_hashes(split).tobytes() + labels).hexdigest()


def _all_hashes(split: Split) -> np.ndarray[Any, Any]:
    parts = (few.detach().cpu() for block in split.blocks() for few in block.split(64))
    return np.concatenate([_hashes(part) for part in parts])


def _hashes(x: Tensor) -> np.ndarray[Any, Any]:
    """Of images (N, C, H, W), (N, 32) uint8; of floats that are levels over 255, that of the levels."""
    found = pixel_hashes([x])
    if not x.is_floating_point():
        return found
    levels = (x * 255).round().to(torch.uint8)
    exact = (as_float(levels, x.dtype) == x).flatten(1).all(1).numpy()
    return np.where(exact[:, None], pixel_hashes([levels]), found)
