"""A few passes before the evaluation: what the model is, and how it can be asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..modes import attacking, channels_last


def can_be_frozen(model: nn.Module, x: Tensor) -> bool:
    """Whether the model answers while its parameters are frozen; a defense that adapts them while it answers does not.

    Args:
        model: any module.
        x: (B, C, H, W), a few images.

    Raises:
        ModelError: it cannot be asked with the gradient of its images in view, frozen or not.
    """
    for freeze in (True, False):
        with attacking(model, freeze=freeze):
            try:
                model(x.detach().clone().requires_grad_())
                return freeze
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = error
    raise ModelError(
        f"the model fails when its images need a gradient: {str(reason).strip().splitlines()[0]} Look in its forward "
        "for operations that change the images in place"
    ) from reason


@contextmanager
def faster_layout(model: nn.Module, x: Tensor) -> Iterator[torch.memory_format]:
    """The layout in which the model is asked: channels last where it gives the same answers, else as it came.

    A model that reshapes its features with `view` cannot do with another layout.

    Args:
        model: in evaluation mode.
        x: (B, C, H, W), a few images.
    """
    with torch.no_grad():
        plain = model(x.clone())
    with channels_last(model) as layout:
        if layout == torch.channels_last and _agrees(model, x, plain):
            yield layout
            return
    yield torch.contiguous_format


def _agrees(model: nn.Module, x: Tensor, plain: Tensor) -> bool:
    try:
        leaf = x.detach().clone(memory_format=torch.channels_last).requires_grad_()
        logits = model(leaf)
        if logits.requires_grad:
            torch.autograd.grad(logits.sum(), leaf, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return False
    scale = float(plain.abs().max()) + 1e-12
    return bool((logits.detach() - plain).abs().max() <= 1e-3 * scale)
