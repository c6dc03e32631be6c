"""Differences paired by seed, and how sure one can be of their mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ArgumentError, at_least, bad
from ..report import count

ALWAYS = ("clean", "fgsm", "pgd")
"""The rows that every finished run has: accuracy on clean images, under FGSM, and under PGD."""

METRICS = (*ALWAYS, "autoattack")
"""What an experiment can compare methods by: accuracy on clean images, under FGSM, under PGD, and, where the runs were
judged by it, under AutoAttack."""

WORDS = {
    "clean": "clean accuracy", "fgsm": "accuracy under FGSM", "pgd": "accuracy under PGD",
    "autoattack": "accuracy under AutoAttack",
}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """Method a minus method b at the same seeds: the same split, the same initial weights.

    Args:
        a, b: labels of the methods.
        metric: `"clean"`, `"fgsm"`, `"pgd"` or another attack: the accuracy that is compared.
        seeds: those at which both have finished.
        values: one difference for each seed, in [-1, 1].
        why: the question that it answers.
    """

    a: str
    b: str
    metric: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    why: str = ""

    @property
    def mean(self) -> float:
        """Mean difference."""
        return math.fsum(self.values) / len(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% interval of Student's t for the mean over seeds; None of a single seed, or where all seeds agree.

        It takes the differences for draws of one normal distribution. With five seeds it is 2.8 standard errors wide
        to each side; it speaks of the randomness of training on this data set, not of other data. Equal differences
        tell nothing of how much they vary: an interval of no width would claim that they never do.
        """
        return mean_interval(self.values)

    @property
    def what(self) -> str:
        """The metric in words."""
        return WORDS.get(self.metric, f"accuracy under {self.metric}")

    @property
    def constant(self) -> bool:
        """Whether the difference is the same at every seed."""
        return agree(self.values)

    @property
    def signs(self) -> tuple[int, int, int]:
        """At how many seeds a is above b, below b, and equal."""
        above, below = sum(value > 0 for value in self.values), sum(value < 0 for value in self.values)
        return above, below, len(self.values) - above - below

    def __str__(self) -> str:
        above, below, equal = self.signs
        signs = f"above at {above}, below at {below}" + (f", equal at {equal}" if equal else "")
        seeds = count(len(self.values), "seed")
        each = f"each {', '.join(map(points, self.values))}"
        ends = ""
        if self.interval is not None:
            ends = f", 95% interval {points(self.interval[0])} to {points(self.interval[1])}"
        elif len(self.values) > 1:
            each = "the same at every seed"
        text = f"{self.a} minus {self.b}, {self.what}: {points(self.mean)} points{ends} ({seeds}: {signs}; {each})"
        return f"{self.why} {text}".strip()


def points(value: float) -> str:
    """A difference of accuracies in percentage points; never minus zero.

    Args:
        value: in [-1, 1].
    """
    return f"{round(100 * value, 1) + 0.0:+.1f}"


def agree(values: Sequence[float]) -> bool:
    """Whether all values are the same, up to rounding.

    Args:
        values: at least one.
    """
    return max(values) - min(values) < 1e-9


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95% interval of Student's t for the mean; None of fewer than two values, or where all agree.

    Args:
        values: taken for draws of one normal distribution.
    """
    n = len(values)
    if n < 2 or agree(values):
        return None
    mean, half = math.fsum(values) / n, t_quantile(0.975, n - 1) * deviation(values) / math.sqrt(n)
    return mean - half, mean + half


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation, with n - 1 in the denominator.

    Args:
        values: at least two.
    """
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def t_quantile(p: float, df: int) -> float:
    """Quantile of Student's t distribution with a whole number of degrees of freedom.

    >>> round(t_quantile(0.975, 4), 4)
    2.7764

    By bisection of the distribution function, which for integers is a finite sum: Abramowitz and Stegun (1964),
    26.7.3 and 26.7.4.

    Args:
        p: probability, in (0, 1).
        df: degrees of freedom, at least 1.

    Raises:
        ArgumentError: a value outside those.
    """
    at_least("df", df, 1)
    if not 0 < p < 1:
        bad("p", p, "in (0, 1)")
    if p < 0.5:
        return -t_quantile(1 - p, df)
    low, high = 0.0, math.pi / 2
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if _inside(middle, df) < 2 * p - 1 else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2)


def t_p_value(t: float, df: int) -> float:
    """Two-sided p-value of Student's t, to about 1e-15: how probable a statistic as far from zero is by chance.

    >>> round(t_p_value(2.7764, 4), 4)
    0.05

    Args:
        t: the statistic.
        df: degrees of freedom, at least 1.

    Raises:
        ArgumentError: fewer degrees of freedom.
    """
    at_least("df", df, 1)
    return min(1.0, max(0.0, 1 - _inside(math.atan(abs(t) / math.sqrt(df)), df)))


def _inside(theta: float, df: int) -> float:
    """P(|T| < t) for t = √df tan θ."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = df % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(odd, df - 1, 2):
        total += term
        term *= (k + 1) / (k + 2) * cosine**2
    return 2 / math.pi * (theta + sine * total) if odd else sine * total


def paired(a: str, b: str, metric: str, left: dict[int, float], right: dict[int, float], why: str = "") -> Difference:
    """The differences at the seeds that both have.

    Args:
        a, b: labels of the methods.
        metric: what is compared.
        left, right: a figure for each seed, of a and of b.
        why: the question that it answers.

    Raises:
        ArgumentError: they have no seed in common.
    """
    seeds = tuple(sorted(left.keys() & right.keys()))
    if not seeds:
        raise ArgumentError(f"{a!r} and {b!r} have no seed at which both have finished: there is nothing to compare")
    return Difference(a, b, metric, seeds, tuple(left[seed] - right[seed] for seed in seeds), why)
