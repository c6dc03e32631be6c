"""From findings to causes, and from causes to words."""

from __future__ import annotations

import dataclasses
from typing import Any

from . import causes
from .battery import WHITE, Battery
from .causes import CAUSES, Cause
from .conduct import Conduct
from .diagnosis import Finding
from .evidence import evidence_findings
from .gradients import Gradients
from .signs import ALIGNED, STEEP, conduct_findings, gradient_cause, gradient_findings

EVIDENCE = ("transfer", "black-box", "many-steps", "unbounded")  # they prove that something is wrong, and not what
FEW = 64  # images, below which a difference between two attacks is chance unless it is large
RIPPLE = 15.0  # promise, of what noise achieves: honest 1.7 to 6.3, ripples 20 and more


def judge(conduct: Conduct, gradients: Gradients, battery: Battery) -> tuple[tuple[Finding, ...], tuple[Cause, ...]]:
    """All findings, and the causes behind those that flag, the primary one first.

    Args:
        conduct: how the model behaves.
        gradients: what was measured of its gradient.
        battery: what the attacks left.
    """
    about_model = conduct_findings(conduct)
    flagged = {finding.cause for finding in about_model if finding.verdict == "flag"}
    # A constant model has no robustness to explain; of a random one no difference between two attacks means anything.
    excused = {causes.CONSTANT.name, causes.RANDOMNESS.name, causes.BATCH.name} & flagged
    cause = None if causes.CONSTANT.name in flagged else gradient_cause(conduct, gradients)
    about_gradient = gradient_findings(gradients, cause)
    evidence = evidence_findings(battery, gradients.zero_loss, cause is None and not excused)
    if causes.CONSTANT.name in flagged:
        evidence = [_acquit(finding) for finding in evidence]
    findings = (*about_model, *about_gradient, *evidence)
    found = {finding.cause for finding in findings if finding.verdict == "flag" and finding.name not in EVIDENCE}
    proven = any(finding.verdict == "flag" for finding in findings)
    if conduct.inner and proven:  # an optimisation inside explains a gradient that is cut off or misleads
        found.add(causes.DYNAMIC.name)
    found = _shattered(gradients, found) if proven else found
    if proven and not found:
        found.add(causes.UNKNOWN.name)
    ordered = tuple(cause for cause in CAUSES if cause.name in found)
    if ordered:
        findings = tuple(_attribute(finding, ordered[0]) for finding in findings)
    return findings, ordered


def _shattered(gradients: Gradients, found: set[str]) -> set[str]:
    """What evidence without a better name is put down to, by the gradient: a ripple, or one that promises too little.

    A ripple promises many times what noise achieves, and points elsewhere at every point of the ball. One step then
    does as badly as anything, which looks like single-step masking.
    """
    ripple = gradients.promise >= RIPPLE and gradients.alignment < ALIGNED
    if (ripple and found <= {causes.SINGLE_STEP.name}) or (not found and gradients.promise < STEEP):
        return {causes.SHATTERED.name}
    return found


def _acquit(finding: Finding) -> Finding:
    return _with(finding, verdict="note") if finding.verdict == "flag" else finding


def _attribute(finding: Finding, cause: Cause) -> Finding:
    """Evidence names the cause that was found for it."""
    if finding.name in EVIDENCE and finding.verdict == "flag":
        return _with(finding, cause=cause.name, advice=cause.advice)
    return finding


def _with(finding: Finding, **changes: Any) -> Finding:
    return dataclasses.replace(finding, **changes)


def words(found: tuple[Cause, ...], findings: tuple[Finding, ...], battery: Battery) -> str:
    """The verdict as a paragraph: what was found, what it means, what to do next, what it cannot rule out.

    Args:
        found: the causes.
        findings: every check.
        battery: what the attacks left.
    """
    clean, white = battery.right["clean"], battery.survivors(*WHITE)
    everything = battery.survivors(*(name for name in battery.right if name not in ("unbounded", "fgsm-half")))
    left, n = f"{float(everything.double().mean()):.1%}", len(clean)
    checks = {finding.name: finding for finding in findings}
    if found:
        first = found[0]
        text = [f"Flagged: {first.name}. {first.meaning}"]
        proofs = [checks[name].figure for name in EVIDENCE if checks[name].verdict == "flag"]
        if proofs:
            text.append(f"The attacks agree: {'; '.join(proofs)}.")
        if more := [cause.name for cause in found[1:]]:
            text.append(f"Also found: {', '.join(more)}.")
        text.append(f"What to do next: {first.advice}")
        text.append(f"All attacks together leave {left} of {n} images right, and a better attack may leave fewer.")
        return " ".join(text)
    text = ["No sign of gradient masking."]
    if int(clean.sum()) < 10:
        text = [f"Only {int(clean.sum())} of {n} images are right without any attack: too few to judge by."]
    text.append(
        f"White-box attacks of many steps leave {float(white.double().mean()):.1%} of {n} images right, and those that "
        f"know less of the model find hardly more: all together leave {left}."
    )
    if n < FEW:
        text.append(f"So few as {n} images show only what is gross.")
    if notes := [finding.title for finding in findings if finding.verdict == "note"]:
        text.append(f"Worth a look, though no evidence: {', '.join(notes)}.")
    if checks["single-step"].verdict == "note":
        text.append("The loss is far from linear within ε: judge by many steps, never by one.")
    text.append(
        "No sign of masking does not mean robust. Robust is what survives AutoAttack (at.autoattack) and an attack "
        "made for the defense. A defense that hides its gradient in a way nobody has thought of may pass here."
    )
    return " ".join(text)
