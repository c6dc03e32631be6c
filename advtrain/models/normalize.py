"""Normalisation as a layer.

Pixels are in [0, 1] everywhere outside the model, so that ε means the same for every model and the box is [0, 1].
Attacking in normalised space, with an ε that is in pixels, is the most common bug of the field.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import bad


class Normalize(nn.Module):
    """`(x - mean) / std` per channel, with fixed numbers (buffers: saved with the model, not trained).

    Args:
        mean: one number per channel, in pixels of [0, 1].
        std: one positive number per channel.

    Raises:
        ArgumentError: lengths differ, or a number is not finite, or a `std` is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        mean, std = [float(m) for m in mean], [float(s) for s in std]
        if len(mean) != len(std) or not mean:
            bad("std", tuple(std), f"as long as mean={tuple(mean)}", "give one number per channel")
        if not all(map(math.isfinite, mean)):
            bad("mean", tuple(mean), "finite")
        if not all(math.isfinite(s) and s > 0 for s in std):
            bad("std", tuple(std), "positive and finite", "a constant channel has no scale: use 1.0 for it")
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Images `x`, (B, C, H, W), normalised per channel."""
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        """The numbers, for `repr`."""

        def numbers(t: Tensor) -> str:
            return "meta" if t.is_meta else ", ".join(f"{v:.4f}" for v in t.flatten().tolist())

        return f"mean=({numbers(self.mean)}), std=({numbers(self.std)})"


class Standardize(nn.Module):
    """Per image: subtract its mean, divide by its standard deviation, over all channels and pixels.

    TensorFlow's `tf.image.per_image_standardization`: `(x - mean) / max(std, 1 / sqrt(numel))` with the biased standard
    deviation; the floor keeps a constant image finite. Used by Madry et al. (2018, arXiv:1706.06083) on CIFAR-10.
    It is part of the model, so attacks see its gradient.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Images `x`, (B, C, H, W), each standardised by its own mean and deviation."""
        centred = x - x.mean((1, 2, 3), keepdim=True)
        floor = 1 / x[0].numel()
        # The floor goes on the variance, before the root: the root's gradient is infinite at 0, and 0 * inf is NaN.
        variance = centred.square().mean((1, 2, 3), keepdim=True).clamp_min(floor)
        return centred / variance.sqrt()
