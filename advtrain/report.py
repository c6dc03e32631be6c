"""What an evaluation found: accuracies with intervals, and what they mean in words."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy
from torch import Tensor

from .errors import at_least, bad, check_kind, one_of
from .markup import table
from .threat import Threat, format_eps

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Row:
    """One line of a report.

    Args:
        name: what the images went through: `"clean"`, or the name of an attack.
        correct: how many are classified correctly after it.
        total: how many there are.
        details: the attack's settings in words.
        verdicts: (total,) bool: for each image whether it is classified correctly; None of a report read from a file.
    """

    name: str
    correct: int
    total: int
    details: str = ""
    verdicts: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def accuracy(self) -> float:
        """Share of correct images, in [0, 1]."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson score interval for the accuracy on the distribution that the images were drawn from."""
        return wilson(self.correct, self.total)

    @property
    def digest(self) -> str | None:
        """SHA-256 of the verdicts, one bit for each image: equal only if every image met the same one.

        Bits are in the order of the split, packed by `numpy.packbits`: the first image is the highest bit of a byte.
        """
        if self.verdicts is None:
            return None
        return hashlib.sha256(numpy.packbits(self.verdicts.cpu().numpy()).tobytes()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Name, counts and details, without the verdicts."""
        return {"name": self.name, "correct": self.correct, "total": self.total, "details": self.details}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Row:
        """The row that `to_dict` wrote.

        Raises:
            ArgumentError: counts that cannot be, or a name that is no text.
        """
        row = cls(**value)
        check_kind("name", row.name, str, "a row is called by its attack")
        check_kind("details", row.details, str, "they are words")
        total = at_least("total", row.total, 1)
        if at_least("correct", row.correct, 0) > total:
            bad("correct", row.correct, f"in [0, total={total}]")
        return row


@dataclass
class Report:
    """Accuracies with intervals, and what they mean in words.

    `report["pgd"]` is the accuracy under that attack, in [0, 1]; `report.rows` has counts and intervals;
    `print(report)` shows a table.

    Args:
        threat: what the attacker was allowed.
        rows: one `Row` for the clean images, and one for each attack.
        warnings: what speaks against trusting the figures, such as vanishing gradients that AutoAttack met; by name.
        classes: how many the network tells apart, where it is known: what guessing reaches depends on it.
        images: SHA-256 of the images and labels in their order, where it is known; see `advtrain.data.digest_of`.
    """

    threat: Threat
    rows: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list, kw_only=True)
    classes: int | None = field(default=None, kw_only=True, repr=False, compare=False)
    images: str | None = field(default=None, kw_only=True, repr=False, compare=False)

    def __getitem__(self, name: str) -> float:
        return self.row(name).accuracy

    def row(self, name: str) -> Row:
        """The row of an attack: `"clean"`, `"fgsm"`, `"pgd"`."""
        one_of("name", name, [row.name for row in self.rows])
        return next(row for row in self.rows if row.name == name)

    @property
    def notes(self) -> list[str]:
        """What the figures mean, one sentence each, the warnings first."""
        words = interpret({row.name: row for row in self.rows}, warned=bool(self.warnings), classes=self.classes)
        return [f"Warning: {text}" for text in self.warnings] + words

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values; `Report.from_dict` reads them."""
        rows = [row.to_dict() for row in self.rows]
        told = {"threat": asdict(self.threat), "rows": rows, "warnings": list(self.warnings), "notes": self.notes}
        known = {"classes": self.classes, "images": self.images}
        return told | {key: value for key, value in known.items() if value is not None}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Report:
        """The report that `to_dict` wrote; older files know neither warnings nor classes nor images.

        Raises:
            ArgumentError: see `Row.from_dict`.
        """
        rows = [Row.from_dict(row) for row in value["rows"]]
        classes, images = value.get("classes"), value.get("images")
        classes = classes if classes is None else at_least("classes", classes, 1)
        if images is not None:
            check_kind("images", images, str, "they are a SHA-256 in hexadecimal digits")
        warnings = list(value.get("warnings", []))
        return cls(Threat(**value["threat"]), rows, warnings=warnings, classes=classes, images=images)

    def _cells(self) -> list[tuple[str, str, str, str]]:
        return [
            (row.name, f"{row.accuracy:.1%}", "{:.1%} – {:.1%}".format(*row.interval), row.details) for row in self.rows
        ]

    def _head(self) -> str:
        return f"{self.rows[0].total} images, {radius(self.threat)}" if self.rows else "no rows"

    def __str__(self) -> str:
        lines = [self._head()]
        wide = max((len(row.name) for row in self.rows), default=0) + 1
        lines += [
            f"{name:<{max(wide, 8)}}{value:>7}   95% interval {ends:<17}{details}".rstrip()
            for name, value, ends, details in self._cells()
        ]
        return "\n".join(lines + self.notes)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = ["attack", "accuracy", "95% interval", "settings"]
        return table(head, self._cells(), caption=self._head(), below=self.notes)

    def plot(self, ax: Any = None) -> Figure:
        """Draw what each attack leaves, with intervals: `advtrain.plot.report`. Needs matplotlib.

        Args:
            ax: matplotlib axes to draw into; a new figure if not given.
        """
        from .plot import report

        return report(self, ax)


def radius(threat: Threat) -> str:
    """`ℓ∞ ε = 8/255`: what the attacker was allowed, in a few characters."""
    return f"{NORMS[threat.norm]} ε = {format_eps(threat.eps)}"


def count(n: int, name: str) -> str:
    """A number with its noun: `1 run`, `2 runs`."""
    return f"{n:,} {name}" + ("" if n == 1 else "s")


NORMS = {"linf": "ℓ∞", "l2": "ℓ2"}
"""How norms are written."""


def interpret(rows: dict[str, Row], *, warned: bool = False, classes: int | None = None) -> list[str]:
    """Words for a set of accuracies: what FGSM and PGD together say about gradient masking.

    The measure is the share that PGD takes from what FGSM leaves correct. An honest model loses some of it, the more
    the larger ε is; where PGD takes most of a sizeable FGSM accuracy, the single step has been fooled.

    Args:
        rows: by name.
        warned: whether AutoAttack gave warnings: then nothing is called robust here.
        classes: how many the network tells apart; ten if nobody knows.
    """
    if not {"fgsm", "pgd"} <= rows.keys():
        return []
    fgsm, pgd = rows["fgsm"], rows["pgd"]
    figures = f"where FGSM leaves {fgsm.accuracy:.1%} correct, PGD leaves {pgd.accuracy:.1%}"
    if masked(fgsm.accuracy, pgd.accuracy) and fgsm.interval[0] > pgd.interval[1]:
        words = f"Gradient masking: {figures}. The model fools the single step; its FGSM accuracy says nothing."
    elif fgsm.correct < pgd.correct:
        words = f"Odd: {figures}. Either its steps are too few and short to cross the ball, or gradients are masked."
    elif "clean" in rows and rows["clean"].accuracy < guessed(classes or 10) and pgd.accuracy < 0.05:
        clean = f"{rows['clean'].accuracy:.1%} of the clean images are right, so attacks have next to nothing to break"
        words = f"Nothing to judge: {clean}. Are these the classes in the network's order, and its normalisation?"
    elif "clean" in rows and rows["clean"].accuracy < guessed(classes or 10) and rows["clean"].correct == pgd.correct:
        clean = f"{rows['clean'].accuracy:.1%} of the clean images are right, and no attack changes any of it"
        words = f"Nothing to judge: {clean}. Does the network give all images the same answer?"
    elif pgd.accuracy < 0.05:
        words = "Not robust: PGD breaks nearly every image."
    elif pgd.accuracy < (1 - CURVED) * fgsm.accuracy:
        words = f"Curved: {figures}. The loss is far from linear within ε: judge by PGD or stronger, never by FGSM."
    else:
        words = f"No sign of gradient masking{' in FGSM and PGD' * warned}: {figures}. That does not rule it out."
    judged = rows.get("autoattack")
    if judged is None:
        bound = "An upper bound: other attacks may break more images. Call nothing robust before AutoAttack has tried."
        return [words, bound]
    if judged.accuracy < pgd.accuracy - FLATTERED:
        return [words, f"PGD flatters: of its {pgd.accuracy:.1%} AutoAttack leaves {judged.accuracy:.1%}."]
    if warned:
        return [words, f"AutoAttack leaves {judged.accuracy:.1%}: heed its warnings before you call that robust."]
    return [words, f"Robust under AutoAttack: {judged.accuracy:.1%}. An attack made for the model may do more."]


FLATTERED = 0.05
"""How much lower than under PGD the accuracy under AutoAttack is before it is worth a word: on honest models it is a
few points."""

# What PGD takes of FGSM's accuracy, from which on there is talk of masking, or of curvature; and the FGSM accuracy
# below which there is nothing to mask. On the digits at ε = 0.3, FGSM-AT is above MASKED and PGD-AT below (test_story).
MASKED, CURVED, SIZEABLE = 2 / 3, 1 / 3, 0.3


def guessed(classes: int) -> float:
    """Clean accuracy that guessing may reach, in [0, 1]: half above chance, but no more than five points.

    >>> guessed(2), guessed(10), guessed(100)
    (0.55, 0.15, 0.015)

    Args:
        classes: how many there are.
    """
    return min(1.5 / classes, 1 / classes + 0.05)


def masked(fgsm: float, pgd: float) -> bool:
    """Whether PGD accuracy `pgd` betrays FGSM accuracy `fgsm`, both in [0, 1], as a product of masked gradients."""
    return fgsm > SIZEABLE and pgd < (1 - MASKED) * fgsm


def wilson(correct: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval for a proportion; by default the 95% one.

    >>> tuple(round(end, 3) for end in wilson(8, 10))
    (0.49, 0.943)

    Args:
        correct: successes, in [0, total].
        total: trials, at least 1.
        z: quantile of the normal distribution, 1.96 for 95%.

    Returns:
        The ends, both in [0, 1].

    Raises:
        ArgumentError: no trials, or more successes than trials.
    """
    if total < 1 or not 0 <= correct <= total:
        bad("correct", correct, f"in [0, total={total}]")
    share, weight = correct / total, z * z / total
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / total + weight / (4 * total)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)
