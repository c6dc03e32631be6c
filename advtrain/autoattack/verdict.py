"""What AutoAttack found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy
from torch import Tensor

from ..report import Report, Row
from ..threat import Threat

STANDARD = ("standard", "plus")


@dataclass(repr=False)
class AutoAttackReport(Report):
    """Robust accuracy under AutoAttack, image by image.

    `report.robust_accuracy` is the figure that papers call AA. `report.rows` has the clean accuracy, the accuracy that
    is left after each attack, and the final one, called `"autoattack"` for the standard version and `"plus"`, and
    `"autoattack-fast"` or `"autoattack-rand"` for the others, so that nobody takes one for the other.

    Args:
        threat: what the attacker was allowed.
        rows: clean, one for each attack, and the final one; see `Report`.
        version: `"standard"`, `"plus"`, `"rand"` or `"fast"`.
        attacks: the names of its attacks, in their order.
        broken_by: (N,) int16: -1 where the image stands, 0 where it was misclassified before any attack, and k where
            the k-th attack broke it, counted from 1; None of a report read from a file.
        x_adv: (N, C, H, W), for each image that was broken the adversarial example and for the others the image
            itself: a tensor, or an array mapped to the file `path`; None if nobody asked.
        path: the file of `x_adv`.
        warnings: what speaks against trusting the verdict, such as randomness or vanishing gradients.
        passes: how many images went through the model for queries, and how many for gradients.
    """

    version: str = "standard"
    attacks: tuple[str, ...] = ()
    broken_by: Tensor | None = field(default=None, compare=False)
    x_adv: Tensor | numpy.ndarray[Any, Any] | None = field(default=None, compare=False)
    path: str | None = None
    passes: dict[str, int] = field(default_factory=dict, compare=False)

    @property
    def standard(self) -> bool:
        """Whether the verdict may be called AutoAttack: the standard version, or the more expensive `"plus"`."""
        return self.version in STANDARD

    @property
    def robust(self) -> Tensor | None:
        """(N,) bool: the images that every attack left correctly classified; None of a report read from a file."""
        return None if self.broken_by is None else self.broken_by == -1

    @property
    def clean_accuracy(self) -> float:
        """Share of images that are classified correctly, in [0, 1]."""
        return self["clean"]

    @property
    def robust_accuracy(self) -> float:
        """Share of images that stand, in [0, 1]."""
        return self.rows[-1].accuracy

    @property
    def notes(self) -> list[str]:
        """What the figures mean, one sentence each, the warnings first."""
        low, high = self.rows[-1].interval if self.rows else (0.0, 1.0)
        share = f"{low:.1%} to {high:.1%}"
        words = f"Of images like these, {share} withstand AutoAttack ({self.version})." if self.rows else ""
        if not self.standard:
            words = f"AutoAttack's version {self.version!r} is not the standard one: do not report it as AutoAttack."
        return [f"Warning: {text}" for text in self.warnings] + ([words] if self.rows else [])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values without the images and the verdicts; `from_dict` reads them."""
        own = {"version": self.version, "attacks": list(self.attacks), "warnings": self.warnings, "passes": self.passes}
        return {**super().to_dict(), **own}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> AutoAttackReport:
        """The report that `to_dict` wrote."""
        return cls(
            Threat(**value["threat"]), [Row.from_dict(row) for row in value["rows"]], value["version"],
            tuple(value["attacks"]), warnings=list(value["warnings"]), passes=dict(value["passes"]),
            images=value.get("images"),
        )  # fmt: skip


def final_name(version: str) -> str:
    """The name of the row that says how many images stand."""
    return "autoattack" if version in STANDARD else f"autoattack-{version}"


def rows_of(attacks: list[tuple[str, str]], broken_by: Tensor, version: str) -> list[Row]:
    """A row for the clean images, one for each attack, and the final one.

    Args:
        attacks: name and details of each attack that was run.
        broken_by: (N,), see `AutoAttackReport`.
        version: names the final row.
    """
    total = len(broken_by)
    rows = [Row("clean", int((broken_by != 0).sum()), total, "", broken_by != 0)]
    for number, (name, details) in enumerate(attacks, start=1):
        stands = (broken_by == -1) | (broken_by > number)
        rows.append(Row(name, int(stands.sum()), total, f"accuracy that is left after it; {details}", stands))
    stands = broken_by == -1
    details = f"AutoAttack, {version}: {', '.join(name for name, _ in attacks)}"
    if version not in STANDARD:
        details += "; not the standard version"
    return [*rows, Row(final_name(version), int(stands.sum()), total, details, stands)]
