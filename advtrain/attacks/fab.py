"""Fast Adaptive Boundary attack: along the decision boundary to the point nearest the image (Croce and Hein 2020)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import at_least
from ..modes import attacking
from ..rng import Rng, as_rng
from ..threat import Threat
from .apgd import sphere_start
from .gradient import check_attack
from .hyperplane import smallest_step
from .pursuit import Passes, Pursuit, State


def fab(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int = 100,
    restarts: int = 1,
    target: Tensor | None = None,
    rng: Rng | int | None = None,
    check: bool = True,
) -> Tensor:
    """FAB: look for the nearest misclassified point, and keep it if it is inside the threat.

    Croce and Hein (2020), arXiv 1907.02044, Algorithm 1, with the authors' α_max = 0.1, η = 1.05 and β = 0.9. Other
    attacks raise a loss inside the ball; this one lowers a distance. Each step takes the nearest decision boundary of
    the linearised model, projects both the current point and the image onto it, and goes to a mean of the two, a
    little beyond the boundary; from a misclassified point it goes back part of the way to the image. There is no step
    size to tune, and a rescaled or shifted loss changes nothing.

    Without a target a step looks at the boundaries to all K - 1 other classes, for 1 forward and K - 1 backward passes
    (FAB, in AutoAttack "plus"); with one it looks at the boundary to this class alone, 1 and 1 (FAB-T, in AutoAttack
    "standard"). One more forward pass judges the new point.

    Where it differs from the authors' code: an image leaves the batch once a misclassified point inside the threat is
    found, where theirs goes on to lower the norm, which changes no verdict. Points that they look at for the gradient
    alone are judged too: the start, and the points gone back to. And ε bounds the exact distance, not a rounded one.

    Args:
        model: returns logits (B, K).
        x: (B, C, H, W) float32 or float64 in the threat's pixel box.
        y: (B,) int64, the true labels.
        threat: the ball and the box that the attack may use.
        steps: boundary steps of each restart.
        restarts: independent runs, for the images that stand: the first from x, the others from random points at
            distance ε / 2.
        target: (B,) int64: walk along the boundary to these classes. Any misclassified point counts.
        rng: names the random starts: an `Rng` or a seed. That of an image depends on its place in x alone.
        check: False skips the checks of the inputs, for callers that have made them.

    Returns:
        x_adv, like x, inside the threat; misclassified where the attack succeeded, x itself elsewhere.

    Raises:
        ArgumentError: options out of range.
        DataError, ModelError: inputs that would make the result meaningless.
    """
    at_least("steps", steps, 1)
    at_least("restarts", restarts, 1)
    if check:
        check_attack(model, x, y, threat, target)
    rng, x, y = as_rng(rng), x.detach(), y.long()
    passes, x_adv = Passes(model), x.clone()
    left, half = torch.arange(len(x), device=x.device), dataclasses.replace(threat, eps=threat.eps / 2)
    with attacking(model):
        for restart in range(restarts):
            start = sphere_start(x[left], half, rng.child("restart", restart), left) if restart else None
            goal = None if target is None else target[left].long()
            hunt = run_fab(passes, x[left], y[left], threat, target=goal, start=start, steps=steps)
            x_adv[left] = hunt.x_adv
            left = left[~hunt.broken]
            if len(left) == 0:
                break
    return x_adv


@dataclass
class _Walk(State):
    """The tensors of one run, a row for each row of the batch."""

    x: Tensor
    y: Tensor
    target: Tensor | None
    now: Tensor


def run_fab(
    passes: Passes, x: Tensor, y: Tensor, threat: Threat, *,
    target: Tensor | None = None, start: Tensor | None = None, image: Tensor | None = None, steps: int = 100,
    alpha_max: float = 0.1, eta: float = 1.05, beta: float = 0.9,
) -> Pursuit:  # fmt: skip
    """One run of FAB, as rows that leave the batch when they, or another row of their image, are broken.

    A step takes a gradient at a point and judges the next one: two forward passes and one backward. The one that judges
    could serve the next gradient where the new point is still classified correctly. But steps go beyond the boundary by
    design: on the digits 70 to 99 % of them ended misclassified, and the gradient is then needed at the point gone back
    to. So every row takes all three passes, and no step has to wait for a device to sort the rows.

    Args:
        passes: through the model.
        x, y: (R, C, H, W) and (R,): images and labels, one per row.
        threat: the ball and the box.
        target: (R,) int64, the class of each row's boundary; the nearest boundary of each step if not given.
        start: (R, C, H, W), where to begin; x if not given.
        image: (R,) int64: which image a row stands for.
        steps: boundary steps.
        alpha_max: α_max, the largest weight of the projected image in the mean.
        eta: η, how far to go towards the boundary, where 1 ends on it.
        beta: β, the share of the distance to the image that is kept when going back from a misclassified point.

    Returns:
        A `Pursuit`; where a row is not broken its `x_adv` is x.
    """
    pursuit = Pursuit(passes, x, y, image)
    state = _Walk(x, y, target, x if start is None else start)
    project, rows = threat.projector(x), len(x)
    within = threat.eps * (1 + 1e-5)  # up to rounding, which the projection takes off

    def offer(points: Tensor, logits: Tensor) -> Tensor:
        wrong = logits.argmax(1) != state.y
        found = wrong & (_size(points - state.x, threat.norm) <= within)
        if found.device.type != "cpu" or bool(found.any()):  # to look costs nothing here, and a wait on a GPU
            pursuit.offer(project(points), found)
        return wrong.view(-1, 1, 1, 1)

    for _ in range(steps):
        if state.target is None:
            normal, gap, logits = _nearest_boundary(passes, state.now, state.y, threat.norm)
        else:
            normal, gap, logits = _boundary(passes, state.now, state.y, state.target)
        offer(state.now, logits)
        moved = _move(state, normal, gap, threat, alpha_max, eta)
        wrong = offer(moved, passes.logits(moved))
        state.now = torch.where(wrong, state.x + beta * (moved - state.x), moved)
        if not pursuit.thin(state):
            return pursuit
        if len(pursuit) != rows:
            project, rows = threat.projector(state.x), len(pursuit)
    pursuit.thin(state, now=True)
    return pursuit


def _size(delta: Tensor, norm: str) -> Tensor:
    """Length of each image in the norm, (B,)."""
    delta = delta.flatten(1)
    return delta.abs().amax(1) if norm == "linf" else torch.linalg.vector_norm(delta, dim=1)


def _finite(grad: Tensor) -> Tensor:
    """The gradient without pixels in which it is NaN or infinite: the attack goes on with the others."""
    return grad.nan_to_num(0.0, 0.0, 0.0)


def _move(state: _Walk, normal: Tensor, gap: Tensor, threat: Threat, alpha_max: float, eta: float) -> Tensor:
    """The next points, before they are judged: (1 - α)(x⁽ⁱ⁾ + η δ⁽ⁱ⁾) + α (x + η δ), clipped to the box.

    δ⁽ⁱ⁾ and δ are the smallest steps from the current point and from the image onto the hyperplane, and
    α = min(‖δ⁽ⁱ⁾‖ / (‖δ⁽ⁱ⁾‖ + ‖δ‖), α_max).

    Args:
        state: the images and the current points.
        normal: (B, C, H, W), of the hyperplanes.
        gap: (B,), how much ⟨normal, ·⟩ has to grow from the current points onto the hyperplanes.
        threat: norm and box.
        alpha_max, eta: as of `run_fab`.
    """
    flat, normal = state.now.flatten(1), normal.flatten(1)
    points, gap = torch.cat([flat, state.x.flatten(1)]), gap.nan_to_num(0.0)
    gaps = torch.cat([gap, gap + (normal * (flat - points[len(flat) :])).sum(1)])
    delta = smallest_step(points, normal.repeat(2, 1), gaps, threat.norm, threat.low, threat.high)
    size_now, size_x = _size(delta, threat.norm).clamp(min=1e-8).chunk(2)
    alpha = (size_now / (size_now + size_x)).clamp(max=alpha_max)[:, None]
    from_now, from_x = (points + eta * delta).chunk(2)
    return threat.into_box(((1 - alpha) * from_now + alpha * from_x).view_as(state.x))


def _boundary(passes: Passes, x: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The linearised boundary between each image's class and its target: normal, gap and logits."""

    def difference(logits: Tensor) -> Tensor:
        return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)

    normal, logits, value = passes.gradient(x, difference)
    return _finite(normal), -value, logits


def _nearest_boundary(passes: Passes, x: Tensor, y: Tensor, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest of the K - 1 linearised boundaries of each image: normal, gap and logits.

    One backward pass for each class, through one graph; `passes` counts K - 1 gradients. All in one batched pass took
    longer on a CPU for all but tiny batches, in K - 1 times the memory; rows repeated for each class would repeat the
    forward pass.
    """
    graphs = []
    for _ in range(passes.eot):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            logits = passes.forward(leaf, passes.bf16)
            others = torch.arange(logits.shape[1] - 1, device=y.device)
            others = others + (others >= y[:, None])
            graphs.append((leaf, logits.gather(1, others) - logits.gather(1, y[:, None])))
    difference, classes = graphs[-1][1].detach(), others.shape[1]
    passes.count("gradients", len(x) * classes * passes.eot)
    normal, gap = torch.zeros_like(x), torch.zeros_like(difference[:, 0])
    nearest = torch.full_like(gap, torch.inf)
    for k in range(classes):
        total = torch.zeros_like(x)
        for leaf, values in graphs:
            if passes.sees(values):
                (part,) = torch.autograd.grad(values[:, k].sum(), leaf, retain_graph=k + 1 < classes, allow_unused=True)
                total = total if part is None else total + part / passes.eot
        total = _finite(total)
        slope = total.flatten(1).abs().sum(1) if norm == "linf" else _size(total, "l2")  # in the dual norm
        distance = difference[:, k].abs() / (slope + 1e-12)
        closer = distance < nearest
        nearest = torch.where(closer, distance, nearest)
        gap = torch.where(closer, -difference[:, k], gap)
        normal = torch.where(closer.view(-1, 1, 1, 1), total, normal)
    return normal, gap, logits.detach()
