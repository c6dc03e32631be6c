"""The attacks, each made once on all images, for every check that compares them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import attacks
from ..attacks.apgd import apgd
from ..attacks.gradient import input_gradient
from ..attacks.losses import cross_entropy
from ..attacks.square import square
from ..modes import attacking
from ..rng import Rng
from ..threat import Threat
from .subject import Subject

STEPS, RESTARTS = 20, 5  # of PGD
AUTO_STEPS = 50  # of APGD, for each loss
QUERIES = 500  # of Square
NOISES = 8  # random perturbations
SHARES = (0.25, 0.5, 0.75, 1.0)  # of ε, where the curves are drawn


@dataclass
class Battery:
    """What the attacks left, image by image.

    Args:
        right: by the attack's name, (N,) bool: which images are still classified correctly.
        margin: by the name of a single step, (N,): the margin after it.
        curve: by share of ε, [images right after PGD-10, sum of its loss, images right after FGSM, sum of its loss].
    """

    right: dict[str, Tensor] = field(default_factory=dict)
    margin: dict[str, Tensor] = field(default_factory=dict)
    curve: dict[float, list[float]] = field(default_factory=dict)

    def survivors(self, *names: str) -> Tensor:
        """(N,) bool: images that are right after all of these attacks."""
        return torch.stack([self.right[name] for name in names]).all(0)

    def add(self, other: Battery) -> None:
        """Append the images of another batch."""
        for mine, others in (self.right, other.right), (self.margin, other.margin):
            for name, values in others.items():
                mine[name] = torch.cat([mine[name], values]) if name in mine else values
        for share, numbers in other.curve.items():
            before = self.curve.get(share, [0.0] * len(numbers))
            self.curve[share] = [a + b for a, b in zip(before, numbers, strict=True)]


WHITE = ("pgd-10", "pgd", "apgd-ce", "apgd-margin")
"""The white-box attacks of many steps: together, the strong and honest attack that weaker ones must not beat."""

TITLES = {
    "clean": "no attack",
    "noise": f"random noise of size ε, best of {NOISES}",
    "fgsm": "one step of ε, cross-entropy",
    "fgsm-margin": "one step of ε, margin loss",
    "fgsm-half": "one step of ε/2, cross-entropy",
    "r-fgsm": "random step, then a gradient step, ε/2 each",
    "pgd-10": "10 steps, 1 start, cross-entropy",
    "pgd-first": f"{STEPS} steps, first start, cross-entropy",
    "pgd": f"{STEPS} steps, {RESTARTS} starts, cross-entropy",
    "apgd-ce": f"{AUTO_STEPS} steps, cross-entropy",
    "apgd-margin": f"{AUTO_STEPS} steps, margin loss",
    "transfer-fgsm": "one step against a surrogate",
    "transfer": f"{STEPS} steps against a surrogate",
    "square": f"Square Attack, {QUERIES} queries",
    "unbounded": f"{AUTO_STEPS} steps, no limit but the pixel box",
}
"""What each attack does, in words."""


def ticks(batches: int, strangers: int) -> int:
    """How often `fight` says that it is further, for so many batches and surrogates."""
    return batches * (len(SHARES) + len(TITLES) + NOISES + strangers * 2 - 3)


def fight(
    subject: Subject, strangers: list[nn.Module], x: Tensor, y: Tensor, threat: Threat, rng: Rng,
    tick: Callable[[int], object] = lambda n: None,
) -> Battery:  # fmt: skip
    """Make all attacks on one batch.

    Args:
        subject: the model under examination, inside `examined`.
        strangers: surrogates, for the attacks by transfer.
        x, y: (B, C, H, W) and (B,), one batch.
        threat: what the attacker may do.
        rng: names the random draws.
        tick: called after every attack.
    """
    found = Battery()

    def put(name: str, x_adv: Tensor) -> None:
        found.right[name] = (found.right[name] if name in found.right else True) & subject.right(x_adv, y).cpu()
        tick(1)

    def step(name: str, x_adv: Tensor) -> None:
        margin = subject.margin(x_adv, y).cpu()
        found.margin[name] = torch.minimum(found.margin[name], margin) if name in found.margin else margin
        put(name, x_adv)

    options: dict[str, Any] = {"check": False, "rng": rng}
    put("clean", x)
    for number in range(NOISES):
        noise = rng.child("noise", number).normal(x)
        put("noise", threat.project(threat.ascend(x, noise, threat.eps), x))
    for loss, name in (("ce", "fgsm"), ("cw", "fgsm-margin")):
        step(name, full_step(subject, x, y, threat, loss))
        step("r-fgsm", attacks.r_fgsm(subject, x, y, threat, loss=loss, **options))
    put("pgd-10", attacks.pgd(subject, x, y, threat, steps=10, **options))
    put("pgd-first", attacks.pgd(subject, x, y, threat, steps=STEPS, **options))
    left = found.right["pgd-first"].to(x.device)
    found.right["pgd"] = found.right["pgd-first"].clone()
    if bool(left.any()):
        again = {**options, "rng": rng.child("again")}
        x_adv = attacks.pgd(subject, x[left], y[left], threat, steps=STEPS, restarts=RESTARTS - 1, **again)
        found.right["pgd"][left.cpu()] = subject.right(x_adv, y[left]).cpu()
    for loss, name in (("ce", "apgd-ce"), ("cw", "apgd-margin")):
        put(name, apgd(subject, x, y, threat, loss=loss, steps=AUTO_STEPS, **options))
    for stranger in strangers:
        step("transfer-fgsm", full_step(stranger, x, y, threat, "ce"))
        put("transfer", attacks.pgd(stranger, x, y, threat, steps=STEPS, keep="last", **options))
    put("square", square(subject, x, y, threat, queries=QUERIES, **options))
    put("unbounded", apgd(subject, x, y, _unbounded(threat, x), loss="cw", steps=AUTO_STEPS, **options))
    put("fgsm-half", full_step(subject, x, y, dataclasses.replace(threat, eps=threat.eps / 2), "ce"))
    for share in SHARES:
        inner = dataclasses.replace(threat, eps=share * threat.eps)
        numbers: list[float] = []
        for x_adv in (
            attacks.pgd(subject, x, y, inner, steps=10, early_stop=False, **options),
            full_step(subject, x, y, inner, "ce"),
        ):
            with torch.no_grad():
                logits = subject(x_adv)
            numbers += [float((logits.argmax(1) == y).sum()), float(cross_entropy(logits, y).sum())]
        found.curve[share] = numbers
        tick(1)
    with torch.no_grad():
        logits = subject(x)
    clean = [float((logits.argmax(1) == y).sum()), float(cross_entropy(logits, y).sum())]
    found.curve[0.0] = clean * 2
    return found


def full_step(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, loss: str) -> Tensor:
    """The single step that uses all of ε inside the pixel box: the maximiser of the linearised loss.

    Under ℓ∞ it is FGSM. Under ℓ2 a step of length ε loses what the box cuts off, on black and white pixels a good part
    of it, and a robust model then withstands one step without masking anything. So the step is lengthened until what
    is left of it has length ε.

    Args:
        model: returns logits.
        x, y: (B, C, H, W) and (B,).
        threat: the ball and the box.
        loss: a name in `advtrain.attacks.LOSSES`.
    """
    if threat.norm == "linf":
        return attacks.fgsm(model, x, y, threat, loss=loss, check=False)
    with attacking(model):
        gradient, _ = input_gradient(model, x, lambda logits: attacks.LOSSES[loss](logits, y))
    low = torch.full((len(x), 1, 1, 1), threat.eps, dtype=x.dtype, device=x.device)
    high = 1e4 * low
    for _ in range(30):
        middle = (low + high) / 2
        step = threat.into_box(threat.ascend(x, gradient, middle)) - x
        short = step.flatten(1).norm(dim=1).view_as(middle) < threat.eps
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return threat.project(threat.ascend(x, gradient, low), x)


def _unbounded(threat: Threat, x: Tensor) -> Threat:
    """The same norm with a radius that reaches every image of the pixel box."""
    side = threat.high - threat.low
    return dataclasses.replace(threat, eps=side if threat.norm == "linf" else side * x[0].numel() ** 0.5)
