"""How surprising a paired difference were if there were none: p-values over seeds and over images, and after Holm."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy

from ..errors import at_least, bad, one_of
from ..markup import table
from .paired import Difference, deviation, points, t_p_value

TESTS = {"t": "paired t test", "sign-flip": "sign-flip test", "mcnemar": "exact McNemar test"}
"""The tests by the names under which p-values are kept."""

MOST_SEEDS = 20
"""Up to so many seeds every pattern of signs is looked at."""


@dataclass(frozen=True)
class PairedTest:
    """What the difference between two methods says, and how surprising it were if there were none.

    Args:
        difference: method a minus method b at each seed, with mean and interval.
        discordant: of the same images judged with both: how many a alone classifies correctly, how many b alone, and
            how many images there are. None unless each method is one network whose verdicts on each image are known.
    """

    difference: Difference
    discordant: tuple[int, int, int] | None = None

    @property
    def p(self) -> dict[str, float]:
        """P-values, two-sided, by the name of the test.

        `"t"`: Student's paired t over at least two seeds; it takes the differences for draws of one normal
        distribution. `"sign-flip"`: the share of all patterns of signs whose mean difference is as large; it takes no
        more than that a and b could be exchanged at each seed (Fisher, 1935), and of few seeds it cannot be small: see
        `least`. `"mcnemar"`: of images, the binomial probability that those on which the two networks differ fall so
        unevenly (McNemar, 1947, in its exact form); it says whether these two networks differ on such images, not
        whether their methods do.
        """
        found, values = {}, self.difference.values
        if len(values) > 1 and not self.difference.constant:
            error = deviation(values) / math.sqrt(len(values))
            found["t"] = t_p_value(self.difference.mean / error, len(values) - 1)
        if 1 < len(values) <= MOST_SEEDS:
            found["sign-flip"] = sign_flip(values)
        if self.discordant is not None:
            found["mcnemar"] = mcnemar(*self.discordant[:2])
        return found

    @property
    def least(self) -> float | None:
        """The smallest p that the sign-flip test can give; seeds without a difference do not count."""
        moved = sum(abs(value) > 1e-12 for value in self.difference.values)
        return min(1.0, 2.0 ** (1 - moved)) if "sign-flip" in self.p else None


@dataclass(repr=False)
class PairedTests:
    """The tests of `compare`; `print` says in words what they found.

    Args:
        tests: one `PairedTest` for each pair of methods.
        alpha: the level, such as 0.05.
        notes: what a reader must know besides, one sentence each.
    """

    tests: list[PairedTest]
    alpha: float = 0.05
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tests)

    def __getitem__(self, pair: int | tuple[str, str]) -> PairedTest:
        """A test by its number, or by the labels of its two methods, `tests["pgd", "fgsm"]`."""
        if isinstance(pair, int):
            return self.tests[pair]
        there = {(test.difference.a, test.difference.b): test for test in self.tests}
        if not isinstance(pair, tuple) or len(pair) != 2:
            bad("pair", pair, "a number, or two labels", 'tests["pgd", "fgsm"]')
        for label in pair:
            one_of("pair", label, dict.fromkeys(name for names in there for name in names))
        first, second = pair
        if pair not in there:
            turned = f"the other way round, [{second!r}, {first!r}]" if (second, first) in there else "of two methods"
            bad("pair", pair, turned, "a test is of the first method's accuracy minus the second's")
        return there[pair]

    def adjusted(self, test: str) -> list[float | None]:
        """P-values of one test over all pairs after Holm, see `holm`.

        Args:
            test: `"t"`, `"sign-flip"` or `"mcnemar"`.

        Returns:
            One for each pair, in order; None where the test cannot be made.
        """
        one_of("test", test, TESTS)
        return holm([each.p.get(test) for each in self.tests])

    @property
    def warnings(self) -> list[str]:
        """Where there are too few seeds to find anything, whatever the differences are."""
        lines = []
        if any(len(each.difference.values) == 1 and each.discordant is None for each in self.tests):
            lines.append(
                "One seed says nothing of the randomness of training: there is no test. Train at further seeds."
            )
        tested = [each for each in self.tests if "sign-flip" in each.p]
        enough = math.ceil(1 - math.log2(self.alpha / max(1, len(tested))))
        for n in sorted({len(each.difference.values) for each in tested}):
            if n < enough:
                times = f", and {len(tested)} times that by Holm" if len(tested) > 1 else ""
                lines.append(
                    f"{n} seeds are too few for the sign-flip test: it cannot give less than p = {2.0 ** (1 - n):.3g}"
                    f"{times}; p ≤ {self.alpha:g} needs {enough} seeds. The t test goes below only because it takes "
                    "the differences for normal."
                )
        return lines

    def _words(self) -> list[str]:
        adjusted = {name: self.adjusted(name) for name in TESTS}
        lines = []
        for i, each in enumerate(self.tests):
            words = [str(each.difference)]  # with mean, interval and signs
            if each.discordant is not None:
                a, b, total = each.discordant
                d = each.difference
                words = [f"{d.a} minus {d.b}, {d.what}: {points(d.mean)} points"]
                words.append(f"of {total:,} images {a} are right with {d.a} alone, {b} with {d.b} alone")
            for name, p in each.p.items():
                holm_words = f" (Holm, of {len(self)}: {_p(adjusted[name][i])})" if len(self) > 1 else ""
                words.append(f"{TESTS[name]}: {_p(p)}{holm_words}")
            lines.append("; ".join(words))
        return lines

    def __str__(self) -> str:
        return "\n".join([*self._words(), *self.notes, *self.warnings])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        adjusted = {name: self.adjusted(name) for name in TESTS}
        shown = [name for name in TESTS if any(value is not None for value in adjusted[name])]
        head = ["methods", "difference, points", "95% interval", "seeds"]
        head += [TESTS[name] + (", Holm" if len(self) > 1 else "") for name in shown]
        rows = []
        for i, each in enumerate(self.tests):
            d = each.difference
            ends = "–" if d.interval is None else " to ".join(map(points, d.interval))
            cells = [f"{d.a} minus {d.b}", points(d.mean), ends, str(len(d.values))]
            cells += [_p(adjusted[name][i]) for name in shown]
            rows.append(cells)
        return table(head, rows, below=[*self.notes, *self.warnings], named=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values; `PairedTests.from_dict` reads them. The p-values are among them for other readers."""
        adjusted = {name: self.adjusted(name) for name in TESTS}
        tests = []
        for i, each in enumerate(self.tests):
            d = each.difference
            found = {**dataclasses.asdict(d), "mean": d.mean, "interval": d.interval, "discordant": each.discordant}
            tests.append({**found, "p": each.p, "holm": {name: adjusted[name][i] for name in each.p}})
        return {"alpha": self.alpha, "tests": tests, "notes": self.notes, "warnings": self.warnings}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> PairedTests:
        """The tests that `to_dict` wrote; p-values are computed anew."""
        tests = []
        for entry in value["tests"]:
            own = {each.name: entry[each.name] for each in dataclasses.fields(Difference)}
            own |= {"seeds": tuple(own["seeds"]), "values": tuple(own["values"])}
            counts = entry["discordant"]
            tests.append(PairedTest(Difference(**own), None if counts is None else tuple(counts)))
        return cls(tests, value["alpha"], list(value["notes"]))


def sign_flip(values: Sequence[float]) -> float:
    """P-value of the exact sign-flip test: the share of all 2ⁿ patterns of signs with a sum as far from 0, two-sided.

    >>> sign_flip([0.1, 0.2, 0.3])
    0.25

    Args:
        values: paired differences, at most 20.

    Raises:
        ArgumentError: no values, or more.
    """
    if not 1 <= len(values) <= MOST_SEEDS:
        bad("len(values)", len(values), f"in 1..{MOST_SEEDS}", "the t test is for many")
    sums: numpy.ndarray[Any, Any] = numpy.zeros(1)
    for value in values:
        sums = numpy.concatenate([sums + value, sums - value])
    enough = abs(math.fsum(values)) - 1e-12 * math.fsum(map(abs, values))  # ties are ties, however they are rounded
    return float((numpy.abs(sums) >= enough).mean())


def mcnemar(a: int, b: int) -> float:
    """P-value of the exact McNemar test, two-sided: of a + b unlike pairs the binomial chance of so uneven a division.

    >>> mcnemar(1, 9)
    0.021484375

    Args:
        a, b: pairs in which the one is right and the other wrong, and the other way round.

    Raises:
        ArgumentError: a negative count.
    """
    a, b = at_least("a", a, 0), at_least("b", b, 0)
    tail = sum(math.comb(a + b, k) for k in range(min(a, b) + 1))
    return min(1.0, 2 * tail / (1 << (a + b)))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """P-values after the step-down method of Holm (1979), which allows for how many there are.

    Where nothing differs, the chance that any of them is at most α is at most α, whatever their dependence.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]

    Args:
        values: p-values; None stays None and does not count.
    """
    order = sorted((p, i) for i, p in enumerate(values) if p is not None)
    found: list[float | None] = [None] * len(values)
    highest = 0.0
    for place, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * p))
        found[i] = highest
    return found


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.3g}"
