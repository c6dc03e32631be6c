"""What an attack ascends: one number per image, larger means closer to misclassified.

All functions take logits (B, K) and labels (B,) and return (B,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import bad, kind_of, one_of


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, -log softmax(z)_y.

    Args:
        logits: z, (B, K).
        y: (B,) int64 labels.

    Returns:
        (B,), one value per image.
    """
    return F.cross_entropy(logits, y, reduction="none")


def cw_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Margin of Carlini and Wagner (2017, arXiv 1608.04644, f_6 without confidence): max_{i≠y} z_i - z_y.

    Positive exactly where the image is misclassified.

    Args:
        logits: z, (B, K).
        y: (B,) int64 labels.

    Returns:
        (B,), one value per image.
    """
    z_y = logits.gather(1, y[:, None]).squeeze(1)
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - z_y


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, arXiv 2003.01690, eq. 6), for at least three classes.

    The value is -(z_y - max_{i≠y} z_i) / (z_(1) - z_(3)), where z_(k) is the k-th largest logit: invariant to shifting
    and scaling the logits. As in the authors' code 1e-12 is added to the denominator, and the gradient flows through
    it.

    Args:
        logits: z, (B, K) with K ≥ 3.
        y: (B,) int64 labels.

    Returns:
        (B,), one value per image.

    Raises:
        ArgumentError: fewer than three classes.
    """
    if logits.shape[1] < 3:
        bad("loss", "dlr", f"defined for {logits.shape[1]} classes", "the DLR loss needs at least 3; use 'ce' or 'cw'")
    ordered, order = logits.sort(dim=1)
    best_other = torch.where(order[:, -1] == y, ordered[:, -2], ordered[:, -1])
    z_y = logits.gather(1, y[:, None]).squeeze(1)
    return -(z_y - best_other) / (ordered[:, -1] - ordered[:, -3] + 1e-12)


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted difference of logits ratio (Croce and Hein 2020, eq. 7), for at least four classes.

    The value is -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), where z_(k) is the k-th largest logit.

    Args:
        logits: z, (B, K) with K ≥ 4.
        y: (B,) int64 labels.
        target: (B,) int64, the classes t to move towards.

    Returns:
        (B,), one value per image.

    Raises:
        ArgumentError: fewer than four classes.
    """
    if logits.shape[1] < 4:
        bad(
            "loss",
            "dlr",
            f"defined for {logits.shape[1]} classes and a target",
            "the targeted DLR loss needs at least 4",
        )
    ordered = logits.sort(dim=1).values
    z_y, z_t = logits.gather(1, y[:, None]).squeeze(1), logits.gather(1, target[:, None]).squeeze(1)
    return -(z_y - z_t) / (ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4]) + 1e-12)


LOSSES = {"ce": cross_entropy, "cw": cw_margin, "dlr": dlr}
"""Losses that an attack takes by name; each takes (logits, y) and returns one value per image."""

Objective = Callable[[Tensor, Tensor, Any], Tensor]
"""What is ascended, a function of (logits, y, target); some need no target, and some more than classes."""


def objective(loss: str | Callable[[Tensor, Tensor], Tensor], targeted: bool) -> Objective:
    """What to ascend, as a function of (logits, y, target).

    Args:
        loss: a name in `LOSSES`, or a function of (logits, labels) that returns one value per image.
        targeted: ascend towards the target: minus the loss at the target; for `"dlr"` the targeted DLR loss.
    """
    if isinstance(loss, type):
        bad("loss", loss, "made yet", f"it is a class: write {loss.__name__}(reduction='none')")
    if not callable(loss):
        one_of("loss", loss, LOSSES)
    if targeted and loss == "dlr":
        return dlr_targeted
    function = loss if callable(loss) else LOSSES[loss]

    def ascend(logits: Tensor, y: Tensor, target: Any) -> Tensor:
        value = function(logits, target if targeted else y)
        if not isinstance(value, Tensor) or value.shape != y.shape:
            came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else kind_of(value)
            bad("loss", came, f"one value per image, {tuple(y.shape)}", "leave out its mean or sum: reduction='none'")
        return -value if targeted else value

    return ascend
