"""What the model's conduct and its gradient give away: structural facts, which flag, and symptoms, which do not."""

from __future__ import annotations

import math

from . import causes
from .causes import Cause
from .conduct import Conduct
from .diagnosis import Finding
from .gradients import Gradients

# Each threshold stands between what honest models of the zoo (tests/zoo.py) showed and what masked ones did.
SAME = 1e-4  # of the logits' spread: honest passes differ by 0 (1e-6 on a GPU), random ones by 0.1 and more
ZERO = 0.1  # share of images: honest 0 (margin), masked 1.0; saturated units 0.07, which FAINT finds
FAINT = 0.25  # share of images: honest 0, saturated units 0.26 to 0.7
JUMP = 0.02  # honest 7e-5, up to 2e-3 of a constant one; saturated 3e-3, quantised 0.13 (256 levels) to 1
STIR = 0.05  # honest and cut about 1, saturated below 1e-2
FORETOLD = 0.3  # honest 0.99 and more (0.57 straight through 16 levels); shattered 0.05 and less
COARSE = 0.75  # the same of a gradient straight through steps: 16 levels 0.57 at ε = 0.3, 256 levels 0.99
WOBBLE = 0.9  # honest 1, random backward 0
STEEP = 1.0  # promise: honest 1.7 and more, ripples 20 and more, steep sigmoid units 0.3
ALIGNED, LINEAR = 0.2, 1.0  # only ever a note: honest 0.26 to 1, and 0 to 0.5


def gradient_cause(conduct: Conduct, gradients: Gradients) -> Cause | None:
    """Why the gradient does not say how the function changes; None if it does.

    Args:
        conduct: how the model behaves.
        gradients: what was measured of its gradient.
    """
    g = gradients
    if g.undefined:
        return causes.NAN
    steps = g.jump >= JUMP and not conduct.inner  # an optimisation inside may jump, too
    if g.broken or g.zero >= ZERO or g.faint >= FAINT:
        if steps and (g.broken or g.zero >= ZERO):
            return causes.QUANTISATION
        blind = g.broken or (g.zero >= ZERO and not g.tiny > 0.5)
        return causes.CUT if blind and not g.stir < STIR else causes.SATURATION
    if steps and g.flat >= 0.5 and g.small < COARSE:  # a gradient straight through the steps
        return causes.QUANTISATION
    if g.wobble < WOBBLE and conduct.wander < SAME:
        return causes.SHATTERED
    if _poor(g):
        return causes.SATURATION if g.promise < STEEP and g.jump < JUMP else causes.SHATTERED
    return None


def conduct_findings(conduct: Conduct) -> list[Finding]:
    """The checks of the model as a function.

    Args:
        conduct: how it behaves.
    """
    c = conduct
    layers = f"{len(c.moody)} layer(s) in training mode: {', '.join(c.moody[:3])}" + (", …" if len(c.moody) > 3 else "")
    known = c.labels > 1 and c.images >= 8
    gain, errors = c.accuracy[1] - c.accuracy[0], (1 - c.accuracy[0], 1 - c.accuracy[1])
    # Honest and robust networks like more contrast (their loss falls to a third at most, PGD-AT under l2 gains 6 points
    # at twice the loss). Where the range is wrong, errors fall to a half at least and the loss to a third, or accuracy
    # jumps. On the digits a missing normalisation may cost two points or thirteen, by the seed.
    # Noise inside the model is another matter: any range in which it weighs less is better.
    jumps = c.luck < 1e-3 and errors[1] <= errors[0] / 2 and c.wander < SAME
    jumps &= c.loss[1] <= c.loss[0] / 3 or (gain >= 0.1 and c.loss[1] < c.loss[0])
    better = f"{c.accuracy[0]:.1%} of plain pixels are right, {c.accuracy[1]:.1%} of pixels {c.better}"
    return [
        _finding("mode", "evaluation mode", layers if c.moody else "no layer in training mode", bool(c.moody),
                 causes.TRAINING_MODE, causes.CARLINI, {"layers": len(c.moody)}),
        _finding("randomness", "same answer twice",
                 f"passes differ by {c.wander:.2g} of the logits' spread, {c.turns:.1%} of the classes turn"
                 if c.wander >= SAME else "passes do not differ", c.wander >= SAME,
                 causes.RANDOMNESS, causes.ATHALYE, {"wander": c.wander, "turns": c.turns}),
        _finding("batch", "same answer in other company",
                 f"an answer moves by {c.company:.2g} of the logits' spread with the other images of its batch"
                 if c.company >= SAME else "an answer does not depend on the rest of the batch", c.company >= SAME,
                 causes.BATCH, causes.TRAMER, {"company": c.company}),
        _finding("constant", "more than one class", f"names {c.distinct} class(es), the images have {c.labels}",
                 known and c.distinct == 1 and not jumps, causes.CONSTANT, causes.CARLINI,
                 {"named": c.distinct, "labels": c.labels}),
        _finding("outputs", "logits, not probabilities",
                 "every row is in [0, 1] and sums to 1" if c.probabilities else "logits", c.probabilities,
                 causes.PROBABILITIES, causes.CARLINI, {"probabilities": float(c.probabilities)}),
        _finding("range", "pixels in [0, 1]", better if c.better else "no other range suits the model better", jumps,
                 causes.RANGE, causes.CARLINI, {"accuracy": c.accuracy[0], "better": c.accuracy[1], "luck": c.luck}),
        _finding("dynamic", "no optimisation inside",
                 f"the forward pass runs {len(c.inner)} kind(s) of backward operation, such as {c.inner[0]}"
                 if c.inner else "no backward operation in the forward pass", "note" if c.inner else "ok",
                 causes.DYNAMIC, causes.ADAPTIVE, {"operations": len(c.inner)}),
    ]  # fmt: skip


def gradient_findings(gradients: Gradients, cause: Cause | None) -> list[Finding]:
    """The checks of the gradient.

    Args:
        gradients: what was measured.
        cause: what `gradient_cause` says.
    """
    g = gradients
    missing = cause if cause in (causes.NAN, causes.CUT) else None
    if g.undefined:
        exists = f"NaN or infinite on {g.undefined} of {g.images} images"
    elif g.broken:
        exists = f"none: {g.broken}"
    else:
        exists = f"exactly zero on {g.zero:.0%} of the images, that of the cross-entropy on {g.zero_loss:.0%}; "
        exists += f"median norm {g.norm:.3g}"
    flat = f"unchanged by tiny steps on {g.flat:.0%} of the images, {_part(g.jump)} of a change comes in one jump"
    faint = f"promises {_times(g.promise)} of what noise moves, next to nothing on {g.faint:.0%} of the images"
    slopes = f"foretells {_part(g.tiny)} of tiny and {_part(g.small)} of small changes of the margin"
    shaken = "" if g.wobble >= WOBBLE or math.isnan(g.wobble) else ", and differs from one pass to the next"
    turning = g.alignment < ALIGNED or g.nearby < 0.9
    missed = "the margin after one step misses its prediction by "
    missed += "an unknown part" if math.isnan(g.linearity) else f"{g.linearity:.0%}"
    numbers = {"undefined": g.undefined, "zero": g.zero, "zero_loss": g.zero_loss, "norm": g.norm}
    slow = {"promise": g.promise, "faint": g.faint, "stir": g.stir}
    return [
        _finding("gradient", "gradient exists", exists, missing is not None or _note(max(g.zero_loss, g.zero) >= ZERO),
                 missing or causes.SATURATION, causes.ATHALYE, numbers),
        _finding("plateaus", "output without steps", flat, cause is causes.QUANTISATION, causes.QUANTISATION,
                 causes.ATHALYE, {"flat": g.flat, "jump": g.jump}),
        _finding("saturation", "gradient does not vanish", faint, cause is causes.SATURATION or _note(g.faint >= FAINT),
                 causes.SATURATION, causes.CW, slow),
        _finding("slopes", "gradient against finite differences", slopes + shaken,
                 cause is causes.SHATTERED or _note(_poor(g) or g.wobble < WOBBLE), causes.SHATTERED, causes.ATHALYE,
                 {"tiny": g.tiny, "small": g.small, "wobble": g.wobble}),
        _finding("alignment", "gradient alignment",
                 f"cosine {_number(g.alignment)} within ε, {_number(g.nearby)} within ε/100", _note(turning),
                 causes.SHATTERED, causes.GRADALIGN, {"alignment": g.alignment, "nearby": g.nearby}),
        _finding("linearity", "local linearity", missed, _note(g.linearity > LINEAR), causes.SINGLE_STEP, causes.VIVEK,
                 {"linearity": g.linearity}),
    ]  # fmt: skip


def _finding(
    name: str, title: str, figure: str, verdict: str | bool, cause: Cause, source: str, numbers: dict[str, float]
) -> Finding:
    if isinstance(verdict, bool):
        verdict = "flag" if verdict else "ok"
    numbers = {key: float(value) for key, value in numbers.items()}
    return Finding(name, title, figure, verdict, cause.name, source, cause.advice, numbers)


def _poor(gradients: Gradients) -> bool:
    """Whether the gradient foretells neither tiny nor small changes; where nothing changes it cannot be told."""
    return any(share < FORETOLD for share in (gradients.tiny, gradients.small))


def _note(symptom: bool) -> str:
    return "note" if symptom else "ok"


def _part(share: float) -> str:
    """A share of changes, which may be unknown, or worse than nothing."""
    return "an unknown part" if math.isnan(share) else "nothing" if share <= 0 else f"{share:.2g}"


def _times(value: float) -> str:
    return "an unknown multiple" if math.isnan(value) else f"{value:.2g} times"


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.2g}"
