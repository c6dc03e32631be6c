"""Pieces that every attack is made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..checks import check_images, check_labels, check_model, check_threat
from ..errors import DataError, bad
from ..threat import Threat


def input_gradient(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Gradient of the summed loss with respect to the images, and the logits it was taken at.

    The sum, not the mean: an image's gradient then does not depend on the size of its batch. Only the images receive a
    gradient; no `.grad` of any parameter is touched.

    Args:
        model: returns logits (B, K).
        x: (B, C, H, W).
        loss: a function of the logits that returns one value per image.

    Returns:
        gradient (B, C, H, W) and logits (B, K), both detached.
    """
    x = x.detach().requires_grad_()
    logits = model(x)
    (gradient,) = torch.autograd.grad(loss(logits.to(x.dtype)).sum(), x)  # under autocast the loss is float32 again
    return gradient, logits.detach()


def check_attack(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, target: Tensor | None = None) -> None:
    """Refuse what would make an attack meaningless, before the first gradient.

    Raises:
        DataError: images that are not finite floats inside the pixel box, labels that do not fit.
        ModelError: a model that returns probabilities, NaN, or too few logits.
    """
    check_threat(threat)
    check_images(x)
    if x.dtype == torch.uint8:
        bad("x.dtype", x.dtype, "float32 or float64", "attacks work on pixels in [0, 1]: x / 255", kind=DataError)
    if x.dtype not in (torch.float32, torch.float64):
        hint = "smaller types cannot hold an ε-ball; keep the images float32 and run the model under torch.autocast"
        bad("x.dtype", x.dtype, "float32 or float64", hint, kind=DataError)
    if x.min() < threat.low or x.max() > threat.high:
        box, hint = f"[{threat.low:g}, {threat.high:g}]", "attacks work on pixels; put normalisation inside the model"
        bad("x", f"{float(x.min()):g} to {float(x.max()):g}", f"inside the threat's box {box}", hint, kind=DataError)
    classes = check_model(model, x[:2])
    check_labels(y, classes, length=len(x))
    if target is not None:
        check_labels(target, classes, name="target", length=len(x))


def check_steps(steps: int, step_size: float | None, threat: Threat) -> None:
    """Refuse step counts below one and step sizes that are not positive."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        bad("steps", steps, "an integer of at least 1")
    if step_size is not None and not (0 < step_size < float("inf")):
        bad("step_size", step_size, "above 0", f"it is in pixel units; ε/4 is {threat.eps / 4:g} here")
