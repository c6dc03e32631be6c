"""What the input gradient says, and whether the function does what its gradient says.

All of it is measured on the margin z_y - max_{i≠y} z_i, which no softmax can flatten, and only the share of vanished
gradients on the cross-entropy as well. A model that answers at random draws the same numbers in the passes that are
compared, so that its randomness is not taken for something else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attacks.gradient import input_gradient
from ..attacks.losses import cross_entropy, cw_margin
from ..rng import Rng
from ..threat import Threat
from .subject import Subject, chance

DIRECTIONS = 12  # random ones, for each image
TINY, SMALL = 1e-4, 0.1  # steps: of the pixel box, so small that any honest function is linear; and of ε
HALVINGS = 14  # from ε/10 down to less than a 100,000th of it: a function that still jumps there is a staircase


@dataclass(frozen=True)
class Gradients:
    """What was measured of the gradient.

    Args:
        broken: what autograd complained of; empty if nothing.
        undefined: images whose gradient is NaN or infinite.
        zero_loss: share of images whose cross-entropy has a gradient of exactly zero.
        zero: the same of the margin.
        faint: share of images that move, but whose gradient promises less than a hundredth of that movement.
        promise: median over images of what the gradient promises at ε, relative to how far noise of that size moves
            the margin.
        norm: median norm of the margin's gradient: ℓ1, the dual of ℓ∞, or ℓ2 under an ℓ2 threat.
        flat: share of images whose output stays exactly the same under tiny steps.
        jump: median of the part of a change over ε/10 that is left over a 16,000th of that step; 0 for a continuous
            function, up to 1 for a staircase.
        stir: how steep the function is over a tiny step, relative to a small one; 1 for a smooth function.
        wobble: median cosine of two gradients at the same point, 1 for an honest backward pass.
        tiny, small: median over images of the share of the changes over a tiny and a small step that the gradient
            foretells: 1 for all of it, 0 for nothing, below 0 where it foretells the contrary.
        alignment: mean cosine of the cross-entropy's gradients at x and at a random point of the ball.
        nearby: the same for a point a hundredth of ε away.
        linearity: error of the linear prediction of the margin after one step of ε, relative to it.
        images: how many images were judged.
    """

    broken: str
    undefined: int
    zero_loss: float
    zero: float
    faint: float
    promise: float
    norm: float
    flat: float
    jump: float
    stir: float
    wobble: float
    tiny: float
    small: float
    alignment: float
    nearby: float
    linearity: float
    images: int


def inspect(subject: Subject, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Gradients:
    """Measure the gradient on one batch.

    Args:
        subject: the model under examination, inside `examined`.
        x, y: (N, C, H, W) and (N,): images and labels; those that are classified correctly, if there are any.
        threat: the ball.
        rng: names the directions and the noise.
    """
    with chance(0, x.device):
        slope = subject.slope(x, y)
    again = subject.slope(x, y)  # with other luck: a backward pass that draws at random shows
    with chance(0, x.device):
        rise = _rise(subject, x, y)
    undefined = int((~(slope.isfinite() & rise.isfinite())).flatten(1).any(1).sum())
    slope, again, rise = (_finite(g) for g in (slope, again, rise))
    zero, zero_loss = ((g == 0).flatten(1).all(1).cpu() for g in (slope, rise))
    steep = _rows(slope).norm(p=1 if threat.norm == "linf" else 2, dim=1)
    moved = _moved(subject, x, y, threat, rng)
    promise = steep * threat.eps / moved.clamp(min=1e-30)
    reach = SMALL * (threat.eps if threat.norm == "linf" else threat.eps / x[0].numel() ** 0.5)  # per pixel
    tiny, flat, shift = _foretold(subject, x, y, TINY, rng.child("tiny"))
    small, _, change = _foretold(subject, x, y, reach, rng.child("small"))
    stir = (shift / TINY) / (change / reach).clamp(min=1e-30)
    wobble = torch.cosine_similarity(_rows(slope), _rows(again))
    return Gradients(
        subject.broken, undefined, _mean(zero_loss), _mean(zero), _mean((promise < 0.01) & (moved > 0)),
        _median(promise[moved > 0]), _median(steep), _mean(flat), _jump(subject, x, y, reach, rng.child("small")),
        _median(stir[change > 0]), _median(wobble[~zero]), _median(tiny), _median(small),
        *_around(subject, x, y, threat, slope, rise, rng), len(x),
    )  # fmt: skip


def _finite(values: Tensor) -> Tensor:
    return values.nan_to_num(0.0, 0.0, 0.0)


def _rows(values: Tensor) -> Tensor:
    """(N, D) in float64, which not every device has: gradients of 1e-30 must not vanish when they are squared."""
    return values.detach().flatten(1).cpu().double()


def _mean(values: Tensor) -> float:
    return float(values.cpu().double().mean()) if values.numel() else float("nan")


def _median(values: Tensor) -> float:
    return float(values.cpu().double().median()) if values.numel() else float("nan")


def _rise(subject: Subject, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the cross-entropy (N, C, H, W), not a number where it is undefined."""
    return input_gradient(subject, x, lambda logits: cross_entropy(logits, y))[0]


def _around(
    subject: Subject, x: Tensor, y: Tensor, threat: Threat, slope: Tensor, rise: Tensor, rng: Rng
) -> tuple[float, float, float]:
    """Alignment in the ball and close by, and the error of the linear prediction: much as in `advtrain.measure`.

    Not by the functions of that module: they refuse models that are to be diagnosed here. And the prediction is judged
    on the margin, for the cross-entropy of a confident network is far from linear without masking anything.
    """
    cosines = []
    for part in (1.0, 0.01):
        noise = threat.random_start(x, rng.child("around"), project=lambda start: start) - x
        mine, other = _rows(rise), _rows(_finite(_rise(subject, x + part * noise, y)))
        cosine = (mine * other).sum(1) / (mine.norm(dim=1) * other.norm(dim=1))
        cosines.append(_mean(cosine[cosine.isfinite()]))  # where a gradient vanishes there is no direction
    x_adv = threat.project(threat.ascend(x, -slope, threat.eps), x)
    promised = (_rows(slope) * _rows(x_adv - x)).sum(1)
    kept = (subject.margin(x_adv, y) - subject.margin(x, y)).cpu().double()
    total = float(promised.abs().mean())
    return cosines[0], cosines[1], _mean((kept - promised).abs()) / total if total else float("nan")


def _moved(subject: Subject, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
    """(N,), the largest change of the margin under a few random perturbations of full size."""
    with chance(0, x.device):
        here = subject.margin(x, y)
    moved = torch.zeros_like(here)
    for number in range(4):
        noise = rng.child("moved", number).normal(x)
        with chance(0, x.device):
            there = subject.margin(threat.project(threat.ascend(x, noise, threat.eps), x), y)
        moved = torch.maximum(moved, (there - here).abs())
    return moved.cpu().double()


def _direction(x: Tensor, size: float, rng: Rng) -> Tensor:
    """A step of `size` in every pixel, up or down at random, or into the box where only one way leads there."""
    sign = rng.normal(x).sign()
    sign = torch.where(x + size * sign > 1, -1.0, torch.where(x + size * sign < 0, 1.0, sign))
    return size * sign


def _foretold(subject: Subject, x: Tensor, y: Tensor, size: float, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
    """For each image the share of the margin's changes that its gradient foretells, over random steps of one size.

    With changes c and predictions p over the directions it is 1 - Σ(c - p)²/Σc², cut off at -1. The gradient is taken
    half way, so that the curvature of an honest function cancels.

    Returns:
        The share, only of images that change at all; which images never change (N,); √(mean c²) (N,).
    """
    wrong, total = (torch.zeros(len(x), dtype=torch.float64) for _ in range(2))
    same = torch.ones(len(x), dtype=torch.bool)
    with chance(0, x.device), torch.no_grad():
        here = subject(x)
    for number in range(DIRECTIONS):
        step = _direction(x, size, rng.child(number))
        with chance(0, x.device), torch.no_grad():
            there = subject(x + step)
        with chance(0, x.device):
            half = _finite(subject.slope(x + step / 2, y))
        change = (cw_margin(here, y) - cw_margin(there, y)).cpu().double()
        foretold = (_rows(half) * _rows(step)).sum(1)
        wrong += (change - foretold) ** 2
        total += change**2
        same &= (here == there).all(1).cpu()
    moving = total > 0
    share = (1 - wrong[moving] / total[moving]).clamp(min=-1)
    return share, same, (total / DIRECTIONS).sqrt()


@torch.no_grad()
def _jump(subject: Subject, x: Tensor, y: Tensor, size: float, rng: Rng) -> float:
    """Follow the half of a step in which the output changes most, again and again: what is left of the change?"""
    low, high = x, x + _direction(x, size, rng.child(0))

    def answer(images: Tensor) -> Tensor:
        with chance(0, x.device):
            return subject(images)

    first, last = answer(low), answer(high)
    whole = (last - first).abs().amax(1)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        between = answer(middle)
        left = (between - first).abs().amax(1) >= (last - between).abs().amax(1)
        wide = left.view(-1, 1, 1, 1)
        low, high = torch.where(wide, low, middle), torch.where(wide, middle, high)
        first, last = torch.where(left[:, None], first, between), torch.where(left[:, None], between, last)
    moving = whole > 0
    return _median(((last - first).abs().amax(1) / whole)[moving])
