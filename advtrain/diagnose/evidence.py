"""What the attacks prove: an attack that should be weaker must not break images that a stronger one does not.

Every flag here rests on an exact test, so that a few images accuse nobody: a share counts as above a threshold only if
its one-sided 99% Clopper-Pearson bound is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import causes
from .battery import AUTO_STEPS, QUERIES, SHARES, STEPS, WHITE, Battery
from .diagnosis import Finding
from .signs import ZERO, _finding
from .statistics import at_least_share, at_most_share, one_sided

# Each threshold stands between what honest models of the zoo (tests/zoo.py) showed and what masked ones did.
BEATEN = 0.03  # share of all images: honest at most 7 of 256 (bound 0.009), shattered and cut 63 and more (0.19)
ESCAPED = 0.05  # share right without a bound on ε: honest 0, cut gradients 0.35 and more
BLIND = 0.05  # broken by the margin alone: honest at most 8% net (24% of logits x 0.01), logits x 300 60% and more
# One step against many. Of an accuracy under one step of at least `size`, many steps leave a share of at most `kept`:
# on robust networks 0.25 to 1, on FGSM-AT 0 to 0.06, on FAST-AT 0.1 to 0.24. But a curved loss does that as well: of
# networks trained against PGD and judged at 4/3 of their radius (0.39 to 0.03), of undefended ones (0.3 to 0.03), under
# ℓ2. So on a share `others` of the images a step that begins with noise has to do better than the model's own. Curved:
# 0 to 0.03 undefended, 0 to 0.14 robust, 0.18 at 4/3 of the radius; FGSM-AT 0.2 to 0.93. The emptier the figure, the
# fewer images need to show it: FGSM-AT with ReLU leaves 0.57 to one step, 0 to many, and has 0.19.
TIERS = (
    {"size": 0.3, "kept": 0.25, "others": 0.15},
    {"size": 0.45, "kept": 0.12, "others": 0.08},
    {"size": 0.2, "kept": 0.08, "others": 0.22},  # FGSM-AT with a deep MLP: 0.31, nothing, 0.33
)
STRANGERS = 0.25  # the same of a surrogate's step: undefended 0 to 0.1, FGSM-AT 0.6 to 0.9, but robust ones as well
FRESH = 0.25  # of the images, broken only by further starts: honest at most 0.15, masked up to 0.32


@dataclass(frozen=True)
class SingleStep:
    """How the single step fares, in counts of images.

    Args:
        right: images right after the better of two single steps, by cross-entropy and by margin.
        kept: those of them that many steps leave.
        random: images, of those right without attack, whose margin falls lower by a step that begins with noise.
        stranger: the same for the step of a surrogate.
        clean: images right without attack.
        images: all of them.
    """

    right: int
    kept: int
    random: int
    stranger: int
    clean: int
    images: int

    @property
    def worthless(self) -> bool:
        """Whether a sizeable accuracy under one step has next to nothing behind it."""
        return any(self._worthless(tier) for tier in TIERS)

    @property
    def led_astray(self) -> bool:
        """Whether others' steps do better than the model's own so often that curvature is no excuse.

        A curved loss makes one long step fall short, too. But then the step of another, or one from another place, is
        worse still: on an undefended network the own gradient is better on nine images of ten.
        """
        others = at_least_share(self.random, self.clean)
        strange = at_least_share(self.stranger, self.clean) >= STRANGERS
        return strange and any(self._worthless(tier) and others >= tier["others"] for tier in TIERS)

    def _worthless(self, tier: dict[str, float]) -> bool:
        sizeable = at_least_share(self.right, self.images) >= tier["size"]
        return sizeable and at_most_share(self.kept, self.right) <= tier["kept"]


def single_step(battery: Battery) -> SingleStep:
    """Count how the single step fares.

    Args:
        battery: what the attacks left.
    """
    clean = battery.right["clean"]
    own = torch.minimum(battery.margin["fgsm"], battery.margin["fgsm-margin"])
    right = battery.survivors("fgsm", "fgsm-margin")
    noise, stranger = (int(((battery.margin[name] < own) & clean).sum()) for name in ("r-fgsm", "transfer-fgsm"))
    kept = int((right & battery.survivors(*WHITE)).sum())
    return SingleStep(int(right.sum()), kept, noise, stranger, int(clean.sum()), len(clean))


def evidence_findings(battery: Battery, zero_loss: float, honest_gradient: bool) -> list[Finding]:
    """The checks that compare attacks.

    Args:
        battery: what the attacks left.
        zero_loss: share of images whose cross-entropy has no gradient.
        honest_gradient: whether nothing else is wrong with the gradient, so that logit scaling and single-step masking
            can be told.
    """
    return [
        _losses(battery, zero_loss, honest_gradient), _one_step(battery, honest_gradient), _restarts(battery),
        _radius(battery), _unbounded(battery),
        _weaker(battery, "transfer", ("transfer", "transfer-fgsm"), "white box against transfer",
                "images that the white-box attacks leave, a surrogate's break"),
        _weaker(battery, "black-box", ("square", "noise"), "white box against black box",
                f"images that the white-box attacks leave, {QUERIES} queries or noise break"),
        _weaker(battery, "many-steps", ("fgsm", "fgsm-margin", "r-fgsm"), "many steps against one",
                "images that many steps leave, a single step breaks"),
    ]  # fmt: skip


def _losses(battery: Battery, zero_loss: float, honest_gradient: bool) -> Finding:
    ce, margin = battery.right["apgd-ce"], battery.right["apgd-margin"]
    more, less, n = int((ce & ~margin).sum()), int((margin & ~ce).sum()), len(ce)
    apart = one_sided(more, less) < 1e-3 and at_least_share(more, n) - less / n >= BLIND
    verdict = "flag" if apart and zero_loss >= ZERO and honest_gradient else "note" if apart else "ok"
    figure = f"{_share(ce)} left by the cross-entropy, {_share(margin)} by the margin, {AUTO_STEPS} steps each"
    return _finding("losses", "cross-entropy against margin", figure, verdict, causes.SCALING, causes.CROCE,
                    {"ce": _mean(ce), "margin": _mean(margin), "more": more, "less": less})  # fmt: skip


def _one_step(battery: Battery, honest_gradient: bool) -> Finding:
    s = single_step(battery)
    verdict = "note" if s.worthless else "ok"
    rising = _rising(battery)
    if s.worthless and honest_gradient and (s.led_astray or rising):
        verdict = "flag"
    figure = f"{s.right / s.images:.1%} left by one step of ε, {s.kept / s.images:.1%} by many; a step from noise does "
    figure += f"better on {s.random / max(s.clean, 1):.0%}, a surrogate's on {s.stranger / max(s.clean, 1):.0%}"
    numbers = {"one": s.right / s.images, "many": s.kept / s.images, "kept": s.kept / max(s.right, 1),
               "noise": s.random / max(s.clean, 1), "surrogate": s.stranger / max(s.clean, 1),
               "rising": float(rising)}  # fmt: skip
    return _finding("single-step", "one step against many", figure, verdict, causes.SINGLE_STEP, causes.WONG, numbers)


def _rising(battery: Battery) -> bool:
    """Whether FGSM of full size leaves more images than at half of ε, by more than chance would have it."""
    half, full = battery.right["fgsm-half"], battery.right["fgsm"]
    return at_least_share(int((full & ~half).sum()), len(full)) - float((half & ~full).double().mean()) >= BLIND


def _restarts(battery: Battery) -> Finding:
    first, all_starts = battery.right["pgd-first"], battery.right["pgd"]
    fresh = int((first & ~all_starts).sum())
    figure = f"{_share(first)} left by one start of {STEPS} steps, {_share(all_starts)} by five"
    verdict = "note" if at_least_share(fresh, len(first)) >= FRESH / 2 and fresh / len(first) >= FRESH else "ok"
    return _finding("restarts", "random restarts", figure, verdict, causes.SHATTERED, causes.CARLINI,
                    {"one": _mean(first), "five": _mean(all_starts)})  # fmt: skip


def _radius(battery: Battery) -> Finding:
    shares, n = (0.0, *SHARES), len(battery.right["clean"])
    loss = [battery.curve[share][1] / n for share in shares]
    right = [battery.curve[share][0] / n for share in shares]
    falls = [b < a - 1e-3 * max(loss) for a, b in zip(loss, loss[1:], strict=False)]
    climbs = [b > a + 0.02 for a, b in zip(right, right[1:], strict=False)]
    figure = f"loss of PGD {loss[0]:.3g} at 0, {loss[2]:.3g} at ε/2, {loss[-1]:.3g} at ε; accuracy "
    figure += f"{right[0]:.1%}, {right[2]:.1%}, {right[-1]:.1%}"
    verdict = "note" if any(falls) or any(climbs) or not loss[-1] > loss[0] else "ok"
    return _finding("radius", "loss along ε", figure, verdict, causes.SHATTERED, causes.CARLINI,
                    {f"loss at {share:g}": value for share, value in zip(shares, loss, strict=True)})  # fmt: skip


def _unbounded(battery: Battery) -> Finding:
    left = battery.right["unbounded"]
    return _finding("unbounded", "no limit on ε", f"{_share(left)} left without a limit on ε, which should be none",
                    at_least_share(int(left.sum()), len(left)) >= ESCAPED, causes.UNKNOWN, causes.ATHALYE,
                    {"left": _mean(left)})  # fmt: skip


def _weaker(battery: Battery, name: str, weak: tuple[str, ...], title: str, words: str) -> Finding:
    white, others = battery.survivors(*WHITE), battery.survivors(*weak)
    more, n = int((white & ~others).sum()), len(white)
    figure = f"of {int(white.sum())} {words} {more}"
    return _finding(name, title, figure, at_least_share(more, n) >= BEATEN, causes.UNKNOWN, causes.PINTOR,
                    {"white": _mean(white), "weaker": _mean(others), "beaten": more})  # fmt: skip


def _mean(right: torch.Tensor) -> float:
    return float(right.double().mean())


def _share(right: torch.Tensor) -> str:
    return f"{_mean(right):.1%}"
