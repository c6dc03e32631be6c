"""FAST-BAT's lower level: which pixels of its solution can move, and what they contribute to the upper level."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .threat import Threat

MARGIN = 1e-7
"""A pixel this close to a bound counts as resting on it, as in the authors' code."""


def interior(delta: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Where a perturbation is strictly inside its bounds, max(-ε, low - x) and min(ε, high - x): FAST-BAT's mask H.

    A pixel on a bound is held there by the constraint: a small change of the weights does not move it.

    Args:
        delta: (B, C, H, W) inside the threat.
        x: (B, C, H, W), the images.
        threat: an ℓ∞ threat.

    Returns:
        (B, C, H, W) bool.
    """
    low, high = (threat.low - x).clamp(min=-threat.eps), (threat.high - x).clamp(max=threat.eps)
    return (low + MARGIN < delta) & (delta < high - MARGIN)


class Solution(NamedTuple):
    """The lower level solved for a batch, and the gradient of the upper level taken apart.

    Args:
        points: the perturbations z, …, δ, δ* before and after each step, (B, C, H, W).
        slopes: ∇_δ ℓ_atk at each of `points` but the last, with ℓ_atk = -Σ_B CE.
        mask: H, bool: where δ* is strictly inside its bounds, so that it moves when θ moves.
        outer: ∇_{δ*} Σ_B CE; the loss of the upper level, with label smoothing if the defense has it.
        lam: λ of the implicit term.
        loss: mean CE at δ*, the value of the upper level.
        logits: (B, K) at δ*.
        parameters: θ, those that the loss depends on.
        direct: ∇_θ of the loss with δ* held fixed, a tensor for each parameter.
        implicit: the implicit term, -(1/λB) ∇_θ ⟨∇_δ ℓ_atk(θ, δ), H ∘ outer⟩, likewise.
    """

    points: list[Tensor]
    slopes: list[Tensor]
    mask: Tensor
    outer: Tensor
    lam: float
    loss: Tensor
    logits: Tensor
    parameters: list[Tensor]
    direct: list[Tensor]
    implicit: list[Tensor]

    @property
    def gradient(self) -> list[Tensor]:
        """The upper level's whole gradient: direct + implicit."""
        return list(torch._foreach_add(self.direct, self.implicit))

    @property
    def share(self) -> Tensor:
        """‖implicit‖ / ‖direct + implicit‖ over all parameters."""
        return self.gradient_and_share()[1]

    def gradient_and_share(self) -> tuple[list[Tensor], Tensor]:
        """Both, with the sum made once."""
        gradient = self.gradient
        return gradient, _norm(self.implicit) / _norm(gradient)


def _norm(tensors: list[Tensor]) -> Tensor:
    norm: Tensor = torch.stack(torch._foreach_norm(tensors)).norm()
    return norm
