"""Attacks on a model's features: what its last layer is given, rather than what it answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ..checks import check_images
from ..errors import DataError, at_least, bad, check_flag, is_real
from ..features import logits_and_features
from ..modes import attacking
from ..rng import Rng
from ..threat import Threat
from ..transport import cost_matrix, sinkhorn_plan
from .gradient import check_steps
from .losses import objective
from .pursuit import Passes
from .single import Loss
from .stages import begin, over_restarts, run_stages


def feature_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    guided: bool = False,
    guides: Tensor | None = None,
    features: str | None = None,
    steps: int = 50,
    margin_steps: int | None = None,
    step_size: float | None = None,
    restarts: int = 10,
    loss: Loss = "cw",
    rng: Rng | int | None = None,
    check: bool = True,
) -> Tensor:
    """PGD on the features, away from the image's own or towards those of another class, then on the margin.

    With features φ (what the last layer is given) it ascends first ‖φ(x_adv) - φ(x)‖², or, guided, the negative of
    ‖φ(x_adv) - φ(guide)‖² as Sabour et al. (2016), arXiv 1511.05122. Restart r takes as guide the image nearest in
    features that the model puts in the r-th nearest other class. Features may move far without a change of class, so
    the last steps ascend the margin, from the iterate whose features were farthest, or nearest to the guide's.

    Args:
        model: returns logits (B, K).
        x: (B, C, H, W) float32 or float64 in the threat's pixel box.
        y: (B,) int64, the true labels.
        threat: the ball and the box that the attack may use.
        guided: move towards a guide instead of away. An image for which there is none moves away.
        guides: (P, C, H, W) images like x, from which guides are taken; x itself if not given.
        features: name of the layer whose input is φ; see `advtrain.features.classifying_layer`.
        steps: ascent steps of each restart, in all.
        margin_steps: how many of them, the last, ascend `loss`; half if not given. 0 leaves it to the features.
        step_size: in pixel units (ℓ∞) or units of length (ℓ2); ε/4 if not given.
        restarts: independent runs from uniform draws of the ball; each image keeps its worst one.
        loss: of the last steps: `"ce"`, `"cw"`, `"dlr"`, or a function of (logits, y) with one value per image.
        rng: names the random starts: an `Rng` or a seed. Start r is the same whatever the number of restarts.
        check: False skips the checks of the inputs, for callers that have made them.

    Returns:
        x_adv, like x, inside the threat; misclassified if any iterate was, else the one of largest margin among the
        ends of the restarts.

    Raises:
        ArgumentError: options out of range, or no such layer.
        DataError, ModelError: inputs that would make the result meaningless, or no layer whose input is one feature
            vector for each image.
    """
    check_flag("guided", guided)
    if guides is not None and not guided:
        bad("guides", "given", "of use without guided=True", "say guided=True, or leave out the guides")
    first, last = _split(steps, margin_steps)
    check_steps(steps, step_size, threat)
    x, y, rng = begin(model, x, y, threat, restarts, rng, check, step_size)
    ascent, step_size = objective(loss, targeted=False), threat.eps / 4 if step_size is None else step_size
    reader = _Reader(model, features)
    passes, (own, _) = Passes(reader), reader.read(x)
    nearest = _guides(reader, own, y, x if guides is None else _check_guides(guides, x)) if guided else None

    def run(restart: int, left: Tensor) -> Tensor:
        goal, sign = own, torch.ones_like(own[:, 0])
        if nearest is not None:
            towards, known = nearest(restart)
            goal, sign = torch.where(known[:, None], towards, own), torch.where(known, -sign, sign)

        def move(logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
            return sign[rows] * (reader.features.to(goal.dtype) - goal[rows]).square().sum(1)

        start = threat.random_start(x, rng.child("restart", restart))[left]
        stages = [(move, first), (ascent, last)]
        return run_stages(passes, x[left], y[left], threat, stages, start, step_size=step_size, target=left)

    return over_restarts(passes, x, y, restarts, run)


def transport_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    features: str | None = None,
    group: int = 64,
    sinkhorn_eps: float = 0.01,
    sinkhorn_iterations: int = 100,
    debiased: bool = False,
    steps: int = 50,
    margin_steps: int | None = None,
    step_size: float | None = None,
    restarts: int = 10,
    loss: Loss = "cw",
    rng: Rng | int | None = None,
    check: bool = True,
) -> Tensor:
    """PGD on the transport of a batch's features, as the generator of Robustness-via-Synthesis; then on the margin.

    It ascends OT(φ(x), φ(x_adv)), the `advtrain.transport.sinkhorn` of Baytaş and Deb (2023), arXiv 2108.09713, with
    their constants, but by the gradient at the pixels, which their generator does not see. The transport says of a
    whole group of images how far it moved, not which of them change class, so the last steps ascend the margin.

    Args:
        model: returns logits (B, K).
        x: (B, C, H, W) float32 or float64 in the threat's pixel box.
        y: (B,) int64, the true labels.
        threat: the ball and the box that the attack may use.
        features: name of the layer whose input is φ; see `advtrain.features.classifying_layer`.
        group: how many images are transported together; 64 is the authors' batch. Memory grows with its square, times
            the number of features.
        sinkhorn_eps: entropy of the transport, in squared feature distances.
        sinkhorn_iterations: iterations of the transport.
        debiased: take off the cost of moving each group onto itself.
        steps: ascent steps of each restart, in all.
        margin_steps: how many of them, the last, ascend `loss`; half if not given. 0 leaves it to the transport.
        step_size: in pixel units (ℓ∞) or units of length (ℓ2); ε/4 if not given.
        restarts: independent runs from uniform draws of the ball; each image keeps its worst one.
        loss: of the last steps: `"ce"`, `"cw"`, `"dlr"`, or a function of (logits, y) with one value per image.
        rng: names the random starts: an `Rng` or a seed. Start r is the same whatever the number of restarts.
        check: False skips the checks of the inputs, for callers that have made them.

    Returns:
        x_adv, like x, inside the threat; misclassified if any iterate was, else the one of largest margin among the
        ends of the restarts.

    Raises:
        ArgumentError: options out of range, or no such layer.
        DataError, ModelError: inputs that would make the result meaningless, or no layer whose input is one feature
            vector for each image.
    """
    check_flag("debiased", debiased)
    group, sinkhorn_iterations = at_least("group", group, 1), at_least("sinkhorn_iterations", sinkhorn_iterations, 1)
    if not (is_real(sinkhorn_eps) and 0 < sinkhorn_eps < float("inf")):
        bad("sinkhorn_eps", sinkhorn_eps, "a number above 0", "0.01 is the authors' entropy")
    first, last = _split(steps, margin_steps)
    check_steps(steps, step_size, threat)
    x, y, rng = begin(model, x, y, threat, restarts, rng, check, step_size)
    ascent, step_size = objective(loss, targeted=False), threat.eps / 4 if step_size is None else step_size
    reader, shares_of = _Reader(model, features), partial(_shares, eps=sinkhorn_eps, iterations=sinkhorn_iterations)
    passes, (own, _) = Passes(reader), reader.read(x)

    def move(logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """What each image pays of the cost of its group: the sum over all is the sum of the transports."""
        parts = []
        for natural, moved in zip(own[rows].split(group), reader.features.split(group), strict=True):
            shares = shares_of(natural, moved)
            parts.append(shares - shares_of(moved, moved) / 2 if debiased else shares)
        return torch.cat(parts)

    def run(restart: int, left: Tensor) -> Tensor:
        start = threat.random_start(x, rng.child("restart", restart))[left]
        stages = [(move, first), (ascent, last)]
        return run_stages(
            passes, x[left], y[left], threat, stages, start, step_size=step_size, target=left, together=True
        )

    return over_restarts(passes, x, y, restarts, run)


class _Reader(nn.Module):
    """A model that keeps the features of its latest pass."""

    def __init__(self, model: nn.Module, layer: str | None):
        super().__init__()
        self.model, self.layer = model, layer
        self.features = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        logits, self.features = logits_and_features(self.model, x, self.layer)
        return logits

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and classes of images, without a graph."""
        with attacking(self), torch.no_grad():
            classes = self(x).argmax(1)
        return self.features.to(x.dtype), classes


def _split(steps: int, margin_steps: int | None) -> tuple[int, int]:
    """How many steps go to the features, and how many to the margin."""
    steps = at_least("steps", steps, 1)
    last = steps // 2 if margin_steps is None else at_least("margin_steps", margin_steps, 0)
    if last > steps:
        bad("margin_steps", last, f"at most steps={steps}", "they are the last of them")
    return steps - last, last


def _shares(natural: Tensor, moved: Tensor, *, eps: float, iterations: int) -> Tensor:
    """The cost of transport, divided among the points that were moved to: (B,)."""
    found = sinkhorn_plan(natural, moved, eps=eps, iterations=iterations)
    return (found.plan * found.cost).sum(0)


def _guides(reader: _Reader, own: Tensor, y: Tensor, images: Tensor) -> Callable[[int], tuple[Tensor, Tensor]]:
    """A function of the restart: features to move towards (B, F), and for which images there are any (B,).

    Of each class that the model gives to an image of the pool, the nearest one; the nearest classes first, y left out.
    """
    pool, classes = reader.read(images)
    known, distance = classes.unique(), cost_matrix(own, pool)
    found = [distance.masked_fill(classes != each, torch.inf).min(1) for each in known]
    far = torch.stack([each.values for each in found], 1).masked_fill(known == y[:, None], torch.inf)
    place, (far, order) = torch.stack([each.indices for each in found], 1), far.sort(1)
    count = far.isfinite().sum(1)

    def nearest(restart: int) -> tuple[Tensor, Tensor]:
        turn = (restart % count.clamp(min=1))[:, None]
        return pool[place.gather(1, order.gather(1, turn)).squeeze(1)], count > 0

    return nearest


def _check_guides(guides: Tensor, x: Tensor) -> Tensor:
    check_images(guides, name="guides")
    if guides.shape[1:] != x.shape[1:] or guides.dtype != x.dtype or guides.device != x.device:
        came, like = (f"{tuple(t.shape[1:])}, {t.dtype} on {t.device}" for t in (guides, x))
        bad("guides", came, f"like x: {like}", "they pass through the same model", kind=DataError)
    return guides.detach()


__all__ = ["feature_attack", "transport_attack"]
