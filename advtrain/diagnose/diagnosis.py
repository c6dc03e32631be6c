"""What a diagnosis found: named checks with figures, causes in order, and a verdict in plain words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import one_of
from ..markup import table
from ..report import Row, radius
from ..threat import Threat

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERDICTS = ("ok", "note", "flag")
MARKS = {"ok": "ok", "note": "note", "flag": "FLAG"}


@dataclass(frozen=True)
class Finding:
    """One check and what it found.

    Args:
        name: of the check, as in `diagnosis["restarts"]`.
        title: the question that it asks, in a few words.
        figure: what was measured, as text.
        verdict: `"ok"`; `"note"` for a symptom, which accuses nobody by itself; `"flag"` for evidence.
        cause: what a flag of this check points to.
        source: where the check comes from.
        advice: what to do next, if it is not ok.
        numbers: the figures by name; NaN where something could not be measured.
    """

    name: str
    title: str
    figure: str
    verdict: str
    cause: str
    source: str
    advice: str
    numbers: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        one_of("verdict", self.verdict, VERDICTS)

    def __str__(self) -> str:
        lines = [f"{self.title}: {self.figure} [{MARKS[self.verdict]}]"]
        if self.verdict != "ok":
            lines += [f"points to: {self.cause}", self.advice]
        return "\n".join([*lines, f"source: {self.source}"])


@dataclass(frozen=True)
class Curve:
    """Accuracy and loss of two attacks as the radius grows.

    Args:
        eps: the radii, from 0 to that of the threat.
        pgd: share of images right after PGD with 10 steps, at each radius.
        pgd_loss: the mean cross-entropy that it reaches, in nats.
        fgsm, fgsm_loss: the same of one step.
    """

    eps: tuple[float, ...]
    pgd: tuple[float, ...]
    pgd_loss: tuple[float, ...]
    fgsm: tuple[float, ...]
    fgsm_loss: tuple[float, ...]


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """Does the robustness of a model hold, and if not, why does it look as if it did?

    `print(diagnosis)` shows every check and the verdict in words; `diagnosis["transfer"]` is one of them;
    `diagnosis.plot()` draws the attacks.

    Args:
        threat: what the attacker was allowed.
        images: how many images were judged.
        findings: every check, in the order in which they are shown.
        causes: why the model is flagged, from a fixed vocabulary, the primary cause first; empty if it is not.
        verdict: what was found, what it means, what to do next and what it cannot rule out.
        attacks: what every attack left, a `Row` each.
        curve: accuracy and loss along ε.
        seed: of the diagnosis.
    """

    threat: Threat
    images: int
    findings: tuple[Finding, ...]
    causes: tuple[str, ...]
    verdict: str
    attacks: tuple[Row, ...]
    curve: Curve
    seed: int = 0

    @property
    def flagged(self) -> bool:
        """Whether there is evidence that the robustness, or the way in which it was measured, does not hold."""
        return bool(self.causes)

    @property
    def checks(self) -> dict[str, Finding]:
        """Every check by its name."""
        return {finding.name: finding for finding in self.findings}

    def __getitem__(self, name: str) -> Finding:
        one_of("name", name, self.checks)
        return self.checks[name]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def accuracy(self, attack: str) -> float:
        """Share of images that are classified correctly after an attack, in [0, 1].

        Args:
            attack: its name, as in `attacks`: `"clean"`, `"fgsm"`, `"apgd-margin"`, `"square"`.
        """
        one_of("attack", attack, [row.name for row in self.attacks])
        return next(row for row in self.attacks if row.name == attack).accuracy

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values; `Diagnosis.from_dict` reads them. A number that could not be measured is null."""
        findings = [asdict(finding) for finding in self.findings]
        for finding in findings:
            numbers = finding["numbers"].items()
            finding["numbers"] = {name: None if value != value else value for name, value in numbers}
        return {
            "threat": asdict(self.threat), "images": self.images, "seed": self.seed, "flagged": self.flagged,
            "causes": list(self.causes), "verdict": self.verdict, "findings": findings,
            "attacks": [row.to_dict() for row in self.attacks],
            "curve": {name: list(values) for name, values in asdict(self.curve).items()},
        }  # fmt: skip

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Diagnosis:
        """The diagnosis that `to_dict` wrote.

        Args:
            value: what it returned, or what JSON made of that.
        """
        findings = []
        for entry in value["findings"]:
            numbers = {name: float("nan") if n is None else n for name, n in entry["numbers"].items()}
            findings.append(Finding(**{**entry, "numbers": numbers}))
        curve = Curve(**{name: tuple(values) for name, values in value["curve"].items()})
        return cls(
            Threat(**value["threat"]), value["images"], tuple(findings), tuple(value["causes"]), value["verdict"],
            tuple(Row.from_dict(row) for row in value["attacks"]), curve, value["seed"],
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Diagnosis):
            return NotImplemented
        return self.to_dict() == other.to_dict()  # NaN is equal to itself here

    def __hash__(self) -> int:
        return hash((self.threat, self.images, self.causes, self.verdict, self.seed))

    def _head(self) -> str:
        result = f"flagged: {self.causes[0]}" if self.flagged else "no sign of gradient masking"
        return f"{self.images} images, {radius(self.threat)}: {result}"

    def __str__(self) -> str:
        wide = max(len(finding.title) for finding in self.findings)
        lines = [self._head(), ""]
        lines += [f"{MARKS[f.verdict]:<5} {f.title:<{wide}}  {f.figure}" for f in self.findings]
        return "\n".join([*lines, "", *textwrap.wrap(self.verdict, 110)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = ["check", "verdict", "figure", "source"]
        rows = [(each.title, MARKS[each.verdict], each.figure, each.source) for each in self.findings]
        return table(head, rows, caption=self._head(), below=[self.verdict])

    def plot(self) -> Figure:
        """Draw accuracy and loss along ε, and what every attack leaves. Needs matplotlib.

        Returns:
            A `matplotlib.figure.Figure`; a notebook shows it, `figure.savefig(path)` keeps it.
        """
        from .figure import draw

        return draw(self)
