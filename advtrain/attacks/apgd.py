"""Auto-PGD: projected gradient descent that finds its own step size (Croce and Hein 2020, arXiv 2003.01690)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import at_least, bad, is_real
from ..modes import attacking
from ..rng import Rng, as_rng
from ..threat import Threat
from .gradient import check_attack
from .losses import Objective, objective
from .pursuit import Passes, Pursuit, State
from .single import Loss


def apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    loss: Loss = "ce",
    steps: int = 100,
    restarts: int = 1,
    target: Tensor | None = None,
    eot: int = 1,
    rho: float = 0.75,
    rng: Rng | int | None = None,
    check: bool = True,
) -> Tensor:
    """Auto-PGD: momentum, a step size that starts at 2 ε and is halved where the loss no longer rises, and restarts.

    Croce and Hein (2020), arXiv 2003.01690, Algorithm 1. There is nothing to tune. At checkpoints, far apart
    at first and then closer, an image whose loss rose in fewer than a share ρ of the steps, or whose best
    loss did not move although the step size stayed, halves its step and goes back to the best point it has seen.

    Where it differs from the authors' code: an image that is misclassified leaves the batch; the first checkpoint
    compares with the loss of the start, as in the paper, where the code compares with zero; and under ℓ2 a step is
    clipped to the pixel box before it is drawn into the ball, so that none of the radius is lost and the result is a
    member of the threat to the last bit.

    >>> import advtrain as at
    >>> model, x, y = torch.nn.Flatten(), torch.tensor([[[[0.6, 0.4]]]]), torch.tensor([0])  # the pixels are the logits
    >>> at.attacks.apgd(model, x, y, at.Threat("linf", eps=0.05), steps=10, rng=0)  # too small to be fooled
    tensor([[[[0.5500, 0.4500]]]])

    Args:
        model: returns logits (B, K).
        x: (B, C, H, W) float32 or float64 in the threat's pixel box.
        y: (B,) int64, the true labels.
        threat: the ball and the box that the attack may use.
        loss: `"ce"`, `"cw"`, `"dlr"`, or a function of (logits, y) with one value per image.
        steps: gradient steps of each restart.
        restarts: independent runs from other starts, for the images that stand.
        target: (B,) int64: move towards these classes instead of away from y.
        eot: passes that are averaged for each gradient, for models that answer at random.
        rho: share of rising steps below which the step size is halved, in (0, 1].
        rng: names the random starts: an `Rng` or a seed. That of an image depends on its place in x alone.
        check: False skips the checks of the inputs, for callers that have made them.

    Returns:
        x_adv, like x, inside the threat; misclassified where the attack succeeded, which with a target means any class
        but y, and the point of largest loss elsewhere.

    Raises:
        ArgumentError: options out of range.
        DataError, ModelError: inputs that would make the result meaningless.
    """
    for name, value in (("steps", steps), ("restarts", restarts), ("eot", eot)):
        at_least(name, value, 1)
    if not (is_real(rho) and 0 < rho <= 1):
        bad("rho", rho, "in (0, 1]", "0.75 in the paper")
    if check:
        check_attack(model, x, y, threat, target)
    ascent = objective(loss, targeted=target is not None)
    rng, x, y = as_rng(rng), x.detach(), y.long()
    passes, best = Passes(model, eot=eot), x.clone()
    left = torch.arange(len(x), device=x.device)
    with attacking(model):
        for restart in range(restarts):
            begin = sphere_start(x[left], threat, rng.child("restart", restart), left)
            goal = None if target is None else target[left]
            hunt = run_apgd(passes, x[left], y[left], threat, ascent, begin, target=goal, steps=steps, rho=rho)
            fresh = hunt.broken if restart else torch.ones_like(hunt.broken)
            best[left[fresh]] = hunt.x_adv[fresh]
            left = left[~hunt.broken]
            if len(left) == 0:
                break
    return best


def sphere_start(x: Tensor, threat: Threat, rng: Rng, index: Tensor) -> Tensor:
    """Random points on the sphere of radius ε around x, clipped to the box: where APGD begins.

    Args:
        x: (B, C, H, W).
        threat: its norm and radius.
        rng: the stream; image i draws from its child i.
        index: (B,) int64, the number of each image: the draw is the same in whatever batch it stands.
    """
    like = torch.empty(x.shape[1:], dtype=x.dtype)
    streams = [rng.child(number) for number in index.tolist()]
    if threat.norm == "linf":
        noise = torch.stack([stream.uniform(like, -1.0, 1.0) for stream in streams])
        size = noise.flatten(1).abs().amax(1)
    else:
        noise = torch.stack([stream.normal(like) for stream in streams])
        size = torch.linalg.vector_norm(noise.flatten(1), dim=1)
    noise = noise / size.clamp(min=1e-12).view(-1, 1, 1, 1)
    return threat.project(x + threat.eps * noise.to(x.device), x)


@dataclass
class _Climb(State):
    """The tensors of one run, a row for each row of the batch."""

    x: Tensor
    y: Tensor
    target: Tensor | None
    now: Tensor
    before: Tensor
    grad: Tensor
    value: Tensor
    best: Tensor
    best_grad: Tensor
    best_value: Tensor
    value_at_check: Tensor
    halved: Tensor
    rises: Tensor
    size: Tensor


def run_apgd(
    passes: Passes, x: Tensor, y: Tensor, threat: Threat, ascent: Objective, start: Tensor, *,
    target: Tensor | None = None, image: Tensor | None = None, steps: int = 100, rho: float = 0.75,
) -> Pursuit:  # fmt: skip
    """One run of Auto-PGD, as rows that leave the batch when they, or another row of their image, are broken.

    Args:
        passes: through the model.
        x, y: (R, C, H, W) and (R,): images and labels, one per row.
        threat: the ball and the box.
        ascent: what is climbed, a function of (logits, y, target).
        start: (R, C, H, W), inside the threat.
        target: (R,) int64, if `ascent` needs it.
        image: (R,) int64: which image a row stands for.
        steps: gradient steps.
        rho: share of rising steps below which the step size is halved.

    Returns:
        A `Pursuit`; where a row is not broken its `x_adv` is the point of largest loss.
    """
    pursuit = Pursuit(passes, x, y, image)
    grad, logits, value = passes.gradient(start, lambda z: ascent(z, y, target))
    nothing = torch.zeros_like(value)
    state = _Climb(
        x, y, target, start, start, grad, value, start, grad, value, value, torch.ones_like(value, dtype=torch.bool),
        nothing, torch.full_like(value, 2 * threat.eps).view(-1, 1, 1, 1),
    )  # fmt: skip

    def climb(logits: Tensor) -> Tensor:
        return ascent(logits, state.y, state.target)

    pursuit.offer(start, logits.argmax(1) != y)
    project, rows = threat.projector(x), len(x)
    period, shorter, shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    due = period
    for step in range(steps):
        if not pursuit.thin(state):
            return pursuit
        if len(pursuit) != rows:
            project, rows = threat.projector(state.x), len(pursuit)
        weight = 0.75 if step else 1.0
        ahead = project(_ascend(state.now, state.grad, state.size, threat.norm))
        moved = state.now + weight * (ahead - state.now) + (1 - weight) * (state.now - state.before)
        state.before, state.now = state.now, project(moved)
        state.grad, logits, value = passes.gradient(state.now, climb)
        pursuit.offer(state.now, logits.argmax(1) != state.y)
        state.rises = state.rises + (value > state.value)
        state.value = value
        _keep_best(state)
        if step + 1 == due:
            _halve(state, rho * period)
            period = max(period - shorter, shortest)
            due += period
    if pursuit.thin(state, now=True):
        pursuit.x_adv[pursuit.rows] = state.best
    return pursuit


def _ascend(x: Tensor, grad: Tensor, size: Tensor, norm: str) -> Tensor:
    """A step of steepest ascent, of its own size for each row."""
    if norm == "linf":
        return x + size * grad.sign()
    length = torch.linalg.vector_norm(grad.flatten(1), dim=1).view(-1, 1, 1, 1)
    return x + size * grad.div(length.clamp(min=1e-30)).nan_to_num(0.0)


def _keep_best(state: _Climb) -> None:
    better = state.value > state.best_value
    wide = better.view(-1, 1, 1, 1)
    state.best = torch.where(wide, state.now, state.best)
    state.best_grad = torch.where(wide, state.grad, state.best_grad)
    state.best_value = torch.where(better, state.value, state.best_value)


def _halve(state: _Climb, enough: float) -> None:
    """A checkpoint: halve the step of rows that make no progress, and put them back to their best point.

    Args:
        state: changed in place.
        enough: more rising steps than this since the last checkpoint are progress.
    """
    stuck = ~state.halved & (state.value_at_check >= state.best_value)
    state.halved = (state.rises <= enough) | stuck
    state.value_at_check, state.rises = state.best_value, torch.zeros_like(state.rises)
    wide = state.halved.view(-1, 1, 1, 1)
    state.size = torch.where(wide, state.size / 2, state.size)
    state.now = torch.where(wide, state.best, state.now)
    state.grad = torch.where(wide, state.best_grad, state.grad)
