"""Pieces that every attack is made of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..checks import check_images, check_labels, check_model, check_threat
from ..dataset import Split
from ..errors import DataError, ModelError, at_least, bad, is_real
from ..modes import check_recording
from ..second_order import TwiceDifferentiable
from ..survey import extremes
from ..threat import Threat

NO_GRADIENT = (
    "the model has no gradient with respect to its images, which attacks need: look in its forward for no_grad, "
    "detach, numpy, rounding, or images changed in place"
)


def input_gradient(
    model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], *, differentiable: bool = False
) -> tuple[Tensor, Tensor]:
    """Gradient of the summed loss with respect to the images, and the logits it was taken at.

    The sum, not the mean: an image's gradient then does not depend on the size of its batch. Only the images receive a
    gradient; no `.grad` of any parameter is touched.

    Args:
        model: returns logits (B, K).
        x: (B, C, H, W).
        loss: a function of the logits that returns one value per image, or their sum.
        differentiable: keep the graph of the gradient, to differentiate it with respect to the parameters.

    Returns:
        gradient (B, C, H, W), detached unless `differentiable`, and logits (B, K), detached.

    Raises:
        ModelError: the loss has no gradient.
    """
    x = x.detach().requires_grad_()
    with TwiceDifferentiable(images_only=True) if differentiable else contextlib.nullcontext():
        logits = model(x)
    value = loss(logits.to(x.dtype)).sum()  # under autocast the loss is float32 again
    if not value.requires_grad:
        check_recording("an attack")
        raise ModelError(NO_GRADIENT)
    (gradient,) = torch.autograd.grad(value, x, create_graph=differentiable)
    return gradient, logits.detach()


def check_attack(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, target: Tensor | None = None,
    step_size: float | None = None,
) -> None:  # fmt: skip
    """Refuse what would make an attack meaningless, before the first gradient.

    Raises:
        ArgumentError: a radius or a step of which the pixel box has no room.
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
    check_box(x, threat)
    check_room("step_size", step_size, threat, x.shape[1:])
    classes = check_model(model, x[:2])
    check_labels(y, classes, length=len(x))
    if target is not None:
        check_labels(target, classes, name="target", length=len(x))


def check_box(x: Tensor | Split, threat: Threat) -> None:
    """Refuse images, uint8 or float in [0, 1], that are not inside the pixel box of the threat.

    Raises:
        ArgumentError: the radius is larger than the box.
        DataError: some pixel is outside.
    """
    check_room("eps", threat.eps, threat, x.shape[1:])
    if (threat.low, threat.high) != (0.0, 1.0):
        parts = x.blocks() if isinstance(x, Split) else [x]
        low, high = (bound / (255 if x.dtype == torch.uint8 else 1) for bound in extremes(parts))
        if low < threat.low or high > threat.high:
            box, hint = f"[{threat.low:g}, {threat.high:g}]", "leave out low and high unless the images are inside"
            bad("x", f"{low:g} to {high:g}", f"inside the threat's pixel box {box}", hint, kind=DataError)


def check_room(name: str, value: float | None, threat: Threat, shape: Sequence[int]) -> None:
    """Refuse a radius or a step that leads across the whole pixel box and beyond: it was meant in 0..255.

    A step of up to three radii is none of these: some attacks begin with two.

    Raises:
        ArgumentError: `value`, which is called `name`, is such a one; None is none.
    """
    room = threat.diameter(shape)
    if value is not None and value > (room if name == "eps" else max(room, 3 * threat.eps)):
        which = "width of the pixel box"
        if threat.norm == "l2":
            which = f"diagonal of the pixel box of images of {'x'.join(map(str, shape))}"
        hint = f"pixels are in [{threat.low:g}, {threat.high:g}]"
        hint += f", did you mean {value:g}/255?" if value <= 255 * room else ""
        bad(name, value if value % 1 else int(value), f"at most {room:.4g}, the {which}", hint)


def check_steps(steps: int, step_size: float | None, threat: Threat) -> None:
    """Refuse step counts below one and step sizes that are not positive."""
    check_threat(threat)
    at_least("steps", steps, 1)
    if step_size is not None and not (is_real(step_size) and 0 < step_size < float("inf")):
        bad("step_size", step_size, "above 0", f"it is in pixel units; ε/4 is {threat.eps / 4:g} here")
