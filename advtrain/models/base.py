"""What every model of this package has in common: pixels in, logits out, features on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..errors import ModelError, bad, one_of

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": lambda: nn.Softplus(beta=10),
    "tanh": nn.Tanh,
}
"""Activation by name. `leaky_relu` has slope 0.1, as in the wide ResNet of Madry et al. (2018, arXiv:1706.06083);
`softplus` has β = 10, as in the code of FAST-BAT (Zhang et al., 2022, arXiv:2112.12376), close to a ReLU.
The smooth ones have a second derivative: methods with a second-order term can be compared with their closed form."""


class Classifier(nn.Module):
    """Normalisation, then `body`, then `head`: `forward(x) = head(forward_features(x))`.

    A subclass sets `self.body` (images to (B, F) features) and `self.head` (features to logits). `build_model` puts the
    normalisation in front and describes the result in `spec`.

    Args:
        shape: (C, H, W) of one image. Only images of this shape are accepted.
    """

    __call__: Callable[..., Tensor]  # which nn.Module leaves open
    body: nn.Module
    head: nn.Module
    spec: dict[str, Any]

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__()
        self.shape = tuple(shape)
        self.normalize: nn.Module = nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Penultimate features.

        Args:
            x: (B, C, H, W) float in [0, 1], not normalised: that is the model's first layer.

        Returns:
            (B, F), what `head` is applied to.

        Raises:
            ModelError: `x` has another shape than the model was built for, or is not of floating point.
        """
        # Only metadata is looked at: this runs at every attack step and must not wait for a GPU.
        if x.ndim != 4 or tuple(x.shape[1:]) != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise ModelError(
                f"the model was given a batch of shape {tuple(x.shape)} and accepts (B, {expected}): "
                "build the model for this data set, or resize the images"
            )
        if not x.is_floating_point():
            raise ModelError(f"the model was given {x.dtype} pixels and accepts floats in [0, 1]: x.float() / 255")
        features: Tensor = self.body(self.normalize(x))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (B, num_classes), of images `x`, (B, C, H, W) float in [0, 1]."""
        logits: Tensor = self.head(self.forward_features(x))
        return logits


class GlobalPool(nn.Module):
    """Mean over all pixels, (B, C, H, W) to (B, C).

    In place of the reference nets' `avg_pool2d(x, 4)` (or 8), with the same result on 32 x 32 images, and defined for
    any size. Unlike adaptive pooling, a mean has a deterministic backward pass on CUDA.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def activation_layer(name: str) -> nn.Module:
    """The activation of that name, one of `ACTIVATIONS`.

    Raises:
        ArgumentError: no activation has this name.
    """
    one_of("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


def square_enough(shape: tuple[int, int, int], side: int, name: str) -> None:
    """Raise `ArgumentError` when an image is smaller than the `side` x `side` pixels that the net `name` needs."""
    if min(shape[1:]) < side:
        bad("shape", shape, f"(C, H, W) with H and W of at least {side}", f"{name} halves its images")
