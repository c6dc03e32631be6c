"""Attacks that follow the gradient without keeping score: FGSM and its direct descendants.

Shapes and ranges are those of the whole package: `x` (B, C, H, W) float32 or float64 in the threat's pixel box, `y`
(B,) int64, and the result is like `x` and inside the threat. `model` returns logits. All raise `DataError` or
`ModelError` for inputs that would make the result meaningless; `check=False` skips that, for callers that have checked
already.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import bad, is_real
from ..modes import attacking
from ..rng import Rng, as_rng
from ..threat import Threat
from .gradient import check_attack, check_steps, input_gradient
from .losses import objective

Loss = str | Callable[[Tensor, Tensor], Tensor]


def fgsm(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, loss: Loss = "ce", bn: str = "eval", check: bool = True
) -> Tensor:
    """Fast gradient sign method: one full step of size ε from the image itself.

    The exact maximiser of the loss linearised at x over the ε-ball. Goodfellow, Shlens and Szegedy (2015), arXiv
    1412.6572. Under ℓ2 the step follows the unit gradient.

    >>> import advtrain as at
    >>> model, x, y = torch.nn.Flatten(), torch.tensor([[[[0.6, 0.4]]]]), torch.tensor([0])  # the pixels are the logits
    >>> at.attacks.fgsm(model, x, y, at.Threat("linf", eps=0.25))
    tensor([[[[0.3500, 0.6500]]]])

    Args:
        model: returns logits (B, K).
        x: (B, C, H, W) float32 or float64 in the threat's pixel box.
        y: (B,) int64, the true labels.
        threat: the ball and the box that the attack may use.
        loss: `"ce"`, `"cw"`, `"dlr"`, or a function of (logits, y) with one value per image.
        bn: see `advtrain.attacking`.
        check: False skips the checks of the inputs, for callers that have made them.

    Returns:
        x_adv, like x, inside the threat.

    Raises:
        DataError, ModelError: inputs that would make the result meaningless.
    """
    return i_fgsm(model, x, y, threat, steps=1, loss=loss, bn=bn, check=check)


def r_fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    alpha: float | None = None,
    loss: Loss = "ce",
    rng: Rng | int | None = None,
    bn: str = "eval",
    check: bool = True,
) -> Tensor:
    """R-FGSM (also RAND+FGSM): a random sign step of size α, then a gradient step of size ε - α.

    Tramèr et al. (2018), arXiv 1705.07204, eq. 7, with their α = ε/2 as default. The random step is meant to leave the
    region in which a masked model's gradient misleads; a model trained with random starts, or FGSM-AT on the digits of
    the book, may survive it all the same.

    Args:
        model: returns logits (B, K).
        x: (B, C, H, W) float32 or float64 in the threat's pixel box.
        y: (B,) int64, the true labels.
        threat: the ball and the box that the attack may use.
        alpha: length α of the random step, in (0, eps); ε/2 if not given.
        loss: `"ce"`, `"cw"`, `"dlr"`, or a function of (logits, y) with one value per image.
        rng: names the random draw, an `Rng` or a seed; the default is always the same draw.
        bn: see `advtrain.attacking`.
        check: False skips the checks of the inputs, for callers that have made them.

    Returns:
        x_adv, like x, inside the threat.

    Raises:
        ArgumentError: `alpha` outside (0, eps).
        DataError, ModelError: inputs that would make the result meaningless.
    """
    if check:
        check_attack(model, x, y, threat)
    alpha = threat.eps / 2 if alpha is None else alpha
    if not (is_real(alpha) and 0 < alpha < threat.eps):
        bad("alpha", alpha, f"in (0, eps={threat.eps:g})", "the random step must leave room for the gradient step")
    ascent, y = objective(loss, targeted=False), y.long()
    noise = as_rng(rng).child("r-fgsm").normal(x)
    start = threat.project(threat.ascend(x, noise, alpha), x)
    with attacking(model, bn):
        grad, _ = input_gradient(model, start, lambda logits: ascent(logits, y, None))
    return threat.project(threat.ascend(start, grad, threat.eps - alpha), x)


def i_fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int = 10,
    step_size: float | None = None,
    loss: Loss = "ce",
    bn: str = "eval",
    check: bool = True,
) -> Tensor:
    """Iterative FGSM: `steps` sign steps from the image, without a random start.

    Kurakin, Goodfellow and Bengio (2017), arXiv 1607.02533. The default step size is ε / steps, as in the regularizers
    of Vivek and Babu (2020).

    Args:
        model: returns logits (B, K).
        x: (B, C, H, W) float32 or float64 in the threat's pixel box.
        y: (B,) int64, the true labels.
        threat: the ball and the box that the attack may use.
        steps: number of steps.
        step_size: in pixel units (ℓ∞) or units of length (ℓ2); ε / steps if not given.
        loss: `"ce"`, `"cw"`, `"dlr"`, or a function of (logits, y) with one value per image.
        bn: see `advtrain.attacking`.
        check: False skips the checks of the inputs, for callers that have made them.

    Returns:
        x_adv, like x, inside the threat.

    Raises:
        ArgumentError: fewer than one step, or a step size that is not positive.
        DataError, ModelError: inputs that would make the result meaningless.
    """
    return mi_fgsm(model, x, y, threat, steps=steps, step_size=step_size, decay=0.0, loss=loss, bn=bn, check=check)


def mi_fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int = 10,
    step_size: float | None = None,
    decay: float = 1.0,
    loss: Loss = "ce",
    bn: str = "eval",
    check: bool = True,
) -> Tensor:
    """Momentum iterative FGSM: g ← μ g + ∇/‖∇‖₁, then a step along the sign of g.

    Dong et al. (2018), arXiv 1710.06081, algorithm 1. The momentum steadies the direction, which helps adversarial
    examples to transfer.

    Args:
        model: returns logits (B, K).
        x: (B, C, H, W) float32 or float64 in the threat's pixel box.
        y: (B,) int64, the true labels.
        threat: the ball and the box that the attack may use.
        steps: number of steps.
        step_size: in pixel units (ℓ∞) or units of length (ℓ2); ε / steps if not given, as in the paper.
        decay: μ ≥ 0; with 0 it is I-FGSM.
        loss: `"ce"`, `"cw"`, `"dlr"`, or a function of (logits, y) with one value per image.
        bn: see `advtrain.attacking`.
        check: False skips the checks of the inputs, for callers that have made them.

    Returns:
        x_adv, like x, inside the threat.

    Raises:
        ArgumentError: fewer than one step, or a step size or decay out of range.
        DataError, ModelError: inputs that would make the result meaningless.
    """
    check_steps(steps, step_size, threat)
    if not (is_real(decay) and 0 <= decay < float("inf")):
        bad("decay", decay, "at least 0 and finite", "1 is the paper's μ")
    if check:
        check_attack(model, x, y, threat, step_size=step_size)
    step_size = threat.eps / steps if step_size is None else step_size
    project, ascent, y = threat.projector(x), objective(loss, targeted=False), y.long()
    x_adv, velocity = x.detach(), torch.zeros_like(x)
    with attacking(model, bn):
        for _ in range(steps):
            grad, _ = input_gradient(model, x_adv, lambda logits: ascent(logits, y, None))
            if decay:
                size = grad.abs().flatten(1).sum(1).clamp(min=1e-30).view(-1, *[1] * (x.ndim - 1))
                velocity = grad = decay * velocity + grad / size
            x_adv = project(threat.ascend(x_adv, grad, step_size))
    return x_adv
