"""PGD from a given start, on one loss after the other, over restarts: what adaptive attacks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ModelError, at_least
from ..modes import attacking, check_recording
from ..rng import Rng, as_rng
from ..threat import Threat
from .gradient import check_attack
from .losses import Objective, cw_margin
from .pursuit import Passes, Pursuit, State

Stage = tuple[Objective, int]
"""What is ascended, a function of (logits, y, target), and in how many steps."""


@dataclass
class _Walk(State):
    """The tensors of one run, a row for each row of the batch."""

    x: Tensor
    y: Tensor
    target: Tensor | None
    now: Tensor
    best: Tensor
    best_value: Tensor


def run_pgd(
    passes: Passes, x: Tensor, y: Tensor, threat: Threat, ascent: Objective, start: Tensor, *,
    steps: int, step_size: float, target: Tensor | None = None, together: bool = False,
) -> Pursuit:  # fmt: skip
    """One run of PGD from a given start, as rows that leave the batch when they are broken; any iterate counts.

    Args:
        passes: through the model.
        x, y: (R, C, H, W) and (R,): images and labels, one per row.
        threat: the ball and the box.
        ascent: what is climbed, a function of (logits, y, target).
        start: (R, C, H, W), inside the threat; the first iterate.
        steps: ascent steps; 0 judges the start alone.
        step_size: in pixel units (ℓ∞) or units of length (ℓ2).
        target: (R,) int64, if `ascent` needs it.
        together: `ascent` ties the rows to each other: they stay in the batch to the end, broken or not.

    Returns:
        A `Pursuit`; where a row is not broken its `x_adv` is the iterate of largest `ascent`.
    """
    pursuit = Pursuit(passes, x, y)
    lowest = torch.full(y.shape, -torch.inf, dtype=x.dtype, device=x.device)
    state = _Walk(x, y, target, start, start, lowest)

    def climb(logits: Tensor) -> Tensor:
        values = ascent(logits, state.y, state.target)
        if not values.requires_grad:
            check_recording("an attack")
            raise ModelError(
                "the model's output has no gradient at the images: something in it detaches, rounds or runs under "
                "torch.no_grad(), and an attack by gradients would call it robust"
            )
        return values

    project, rows = threat.projector(x), len(x)
    for step in range(steps + 1):
        if step < steps:
            grad, logits, value = passes.gradient(state.now, climb)
        else:
            logits = passes.logits(state.now)
            with torch.no_grad():
                value = ascent(logits, state.y, state.target)
        pursuit.offer(state.now, logits.argmax(1) != state.y)
        better = value > state.best_value
        state.best = torch.where(better.view(-1, 1, 1, 1), state.now, state.best)
        state.best_value = torch.where(better, value.to(lowest.dtype), state.best_value)
        if step < steps:
            state.now = project(threat.ascend(state.now, grad, step_size))
            if not together and not pursuit.thin(state):
                return pursuit
            if len(pursuit) != rows:
                project, rows = threat.projector(state.x), len(pursuit)
    if pursuit.thin(state, now=True):
        pursuit.x_adv[pursuit.rows] = state.best
    return pursuit


def run_stages(
    passes: Passes, x: Tensor, y: Tensor, threat: Threat, stages: Sequence[Stage], start: Tensor, *,
    step_size: float, target: Tensor | None = None, together: bool = False,
) -> Tensor:  # fmt: skip
    """PGD on one loss after the other; each stage begins at the iterate where the loss before was largest.

    Args:
        passes, x, y, threat, start, step_size, target: as of `run_pgd`.
        stages: what is ascended, and in how many steps.
        together: as of `run_pgd`, for the first stage alone.

    Returns:
        x_adv (R, C, H, W): misclassified if an iterate of any stage was, else the iterate of largest last loss.
    """
    x_adv, left = start, torch.arange(len(x), device=x.device)
    for number, (ascent, steps) in enumerate(stages):
        if number and not steps:
            continue  # its start was judged by the stage before
        goal = None if target is None else target[left]
        found = run_pgd(
            passes, x[left], y[left], threat, ascent, x_adv[left], steps=steps, step_size=step_size, target=goal,
            together=together and number == 0,
        )  # fmt: skip
        x_adv = x_adv.index_copy(0, left, found.x_adv)
        left = left[~found.broken]
        if len(left) == 0:
            break
    return x_adv


def over_restarts(passes: Passes, x: Tensor, y: Tensor, restarts: int, run: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Each image's worst over restarts: a misclassified one ends the work on it, else the one of largest margin counts.

    An image that is misclassified as it is needs no attack, and comes back unchanged.

    Args:
        passes: through the model.
        x, y: images and labels.
        restarts: how many.
        run: called with the number of the restart and the rows of x that still stand, (R,) int64; returns their x_adv.
    """
    best, margin = x.clone(), torch.full(y.shape, -torch.inf, dtype=x.dtype, device=x.device)
    with attacking(passes.model):
        left = (~passes.wrong(x, y)).nonzero().squeeze(1)
        for restart in range(restarts):
            if len(left) == 0:
                break
            x_adv = run(restart, left)
            broken = passes.wrong(x_adv, y[left])
            value = cw_margin(passes.logits(x_adv), y[left])
            better = broken | (value > margin[left])
            best[left[better]], margin[left[better]] = x_adv[better], value[better].to(margin.dtype)
            left = left[~broken]
    return best


def begin(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, restarts: int, rng: Rng | int | None, check: bool,
    step_size: float | None = None,
) -> tuple[Tensor, Tensor, Rng]:  # fmt: skip
    """Check what every adaptive attack is given; images and labels without a graph, and the random stream."""
    at_least("restarts", restarts, 1)
    if check:
        check_attack(model, x, y, threat, step_size=step_size)
    return x.detach(), y.long(), as_rng(rng)
