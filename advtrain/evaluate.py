"""How often is the model right, on clean images and under attack, and how sure are we of that figure?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from . import attacks
from .checks import check_model
from .data import Split, as_split
from .errors import bad, one_of
from .modes import evaluating
from .progress import progress_bar
from .rng import Rng
from .threat import Threat, format_eps


@dataclass(frozen=True)
class Protocol:
    """One way of judging by PGD. Papers use the same name, PGD-50-10, for different ones.

    Args:
        steps, restarts: as in `advtrain.attacks.pgd`.
        rel_step: step size in units of ε; `step_size` in pixel units overrides it.
        keep: `"any"` misclassified iterate counts, or the `"last"` of each restart, by the largest loss.
    """

    steps: int = 50
    restarts: int = 10
    rel_step: float = 0.25
    step_size: float | None = None
    keep: str = "any"

    def size(self, threat: Threat) -> float:
        """The step size in pixel units."""
        return self.rel_step * threat.eps if self.step_size is None else self.step_size

    def describe(self, threat: Threat) -> str:
        which = {"any": "any iterate", "last": "last iterate"}[self.keep]
        return f"{self.steps} steps of {format_eps(self.size(threat))}, {self.restarts} restarts, {which}"


PROTOCOLS: dict[str, Protocol] = {
    # ours: step ε/4 as FAST-BAT and GradAlign, but no misclassified iterate is forgotten, so it never flatters more
    "strict": Protocol(),
    "fast-bat": Protocol(keep="last"),  # Zhang et al. 2022: PGD-50-10, step ε/4, restart of largest loss
    "gradalign": Protocol(keep="last"),  # Andriushchenko and Flammarion 2020: the same, on 1,000 images
    "fgsm-rs": Protocol(step_size=2 / 255, keep="last"),  # Wong et al. 2020: step 2/255
    "n-fgsm": Protocol(step_size=2 / 255, keep="last"),  # de Jorge et al. 2022: step 2/255
}


@dataclass(frozen=True)
class Row:
    """One line of a report: `correct` of `total` images are classified correctly under `name`."""

    name: str
    correct: int
    total: int
    details: str = ""

    @property
    def accuracy(self) -> float:
        """Share of correct images, in [0, 1]."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval for the accuracy on the distribution that the images were drawn from."""
        return wilson(self.correct, self.total)


@dataclass
class Report:
    """Accuracies with intervals, and what they mean in words.

    `report["pgd"]` is the accuracy under that attack, in [0, 1]; `report.rows` has counts and intervals;
    `print(report)` shows a table.
    """

    threat: Threat
    rows: list[Row] = field(default_factory=list)

    def __getitem__(self, name: str) -> float:
        return self.row(name).accuracy

    def row(self, name: str) -> Row:
        """The row of an attack: `"clean"`, `"fgsm"`, `"pgd"`."""
        one_of("name", name, [row.name for row in self.rows])
        return next(row for row in self.rows if row.name == name)

    @property
    def notes(self) -> list[str]:
        """What the figures mean, one sentence each."""
        return interpret({row.name: row for row in self.rows})

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values; `Report.from_dict` reads them."""
        return {"threat": asdict(self.threat), "rows": [asdict(row) for row in self.rows], "notes": self.notes}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Report:
        return cls(Threat(**value["threat"]), [Row(**row) for row in value["rows"]])

    def _cells(self) -> list[tuple[str, str, str, str]]:
        return [
            (row.name, f"{row.accuracy:.1%}", "{:.1%} – {:.1%}".format(*row.interval), row.details) for row in self.rows
        ]

    def __str__(self) -> str:
        norm = {"linf": "ℓ∞", "l2": "ℓ2"}[self.threat.norm]
        lines = [f"{self.rows[0].total} images, {norm} ε = {format_eps(self.threat.eps)}" if self.rows else "no rows"]
        lines += [
            f"{name:<8}{value:>7}   95 % interval {ends:<17}{details}".rstrip()
            for name, value, ends, details in self._cells()
        ]
        return "\n".join(lines + self.notes)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "<tr><th>attack</th><th>accuracy</th><th>95 % interval</th><th></th></tr>"
        rows = ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>" for cells in self._cells()]
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return f"<table>{head}{''.join(rows)}</table>{notes}"


def interpret(rows: dict[str, Row]) -> list[str]:
    """Words for a set of accuracies: what FGSM and PGD together say about gradient masking.

    The measure is the share of the images that survive FGSM and fall to PGD. An honest model loses some, the more the
    larger ε is; where PGD breaks most of what the single step leaves standing, the single step misleads.
    """
    if not {"fgsm", "pgd"} <= rows.keys():
        return []
    fgsm, pgd = rows["fgsm"], rows["pgd"]
    broken = 1 - pgd.correct / fgsm.correct if fgsm.correct else 0.0
    figures = f"PGD breaks {broken:.0%} of the images that FGSM leaves correct"
    notes = []
    if pgd.accuracy < 0.05:
        notes.append("Not robust: PGD breaks nearly every image.")
    if fgsm.interval[0] > pgd.interval[1] and broken > MASKED:
        notes.append(
            f"Gradient masking: {figures}. The model has learnt to fool the single step, not to resist; its FGSM "
            "accuracy says nothing about robustness."
        )
    elif fgsm.correct < pgd.correct:
        notes.append(
            "FGSM is stronger than PGD here, which should not happen: look for masked gradients or too few steps."
        )
    elif broken > CURVED:
        notes.append(f"{figures}: within ε the loss is far from linear. Judge by PGD or stronger, never by FGSM.")
    else:
        notes.append(f"{figures}: no sign of gradient masking in these two, which does not rule it out.")
    return [*notes, "An upper bound: other attacks may break more images. Robust is what survives AutoAttack."]


# Shares of FGSM's survivors that PGD breaks, above which a report speaks of masking, or of curvature. On the digits at
# ε = 0.3 PGD-AT loses a third to a half of them, FGSM-AT nearly all; PGD-AT on CIFAR-10 at ε = 8/255 about an eighth.
MASKED, CURVED = 2 / 3, 1 / 3


def wilson(correct: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval for a proportion; by default the 95 % one.

    >>> tuple(round(end, 3) for end in wilson(8, 10))
    (0.49, 0.943)
    """
    if total < 1 or not 0 <= correct <= total:
        bad("correct", correct, f"in [0, total={total}]")
    share, weight = correct / total, z * z / total
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / total + weight / (4 * total)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


@torch.no_grad()
def count_correct(
    model: nn.Module,
    split: Split,
    attack: Callable[[Tensor, Tensor, Rng], Tensor] | None = None,
    *,
    batch_size: int = 512,
    seed: int = 0,
    tick: Callable[[int], Any] = lambda n: None,
) -> int:
    """How many images of `split` the model, in evaluation mode, classifies correctly after `attack(x, y, rng)`."""
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    dtype = torch.float64 if parameter is not None and parameter.dtype == torch.float64 else torch.float32
    correct = torch.zeros((), dtype=torch.int64, device=device)
    with evaluating(model):
        for number, first in enumerate(range(0, len(split), batch_size)):
            part = split[first : first + batch_size].to(device)
            x, y = part.images(dtype=dtype), part.y
            if attack is not None:
                x = attack(x, y, Rng(seed, "evaluate", number))
            correct += (model(x).argmax(1) == y).sum()
            tick(len(y))
    return int(correct)


def evaluate(
    model: nn.Module,
    data: Any,
    threat: Threat,
    *,
    protocol: str | Protocol = "strict",
    batch_size: int = 512,
    seed: int = 0,
    progress: bool | None = None,
) -> Report:
    """Clean accuracy, accuracy under FGSM, and under PGD-50-10, with 95 % intervals.

    Args:
        model: returns logits; judged in evaluation mode on the device it is on, and left as it was.
        data: a `Split`, such as `data.test`; a `Dataset` (its test split); or a pair (x, y) with x (B, C, H, W) uint8
            in 0..255 or float in [0, 1] and y (B,) integers.
        threat: what the attacker may do.
        protocol: a name in `PROTOCOLS` (`"strict"`, `"fast-bat"`, `"gradalign"`, `"fgsm-rs"`, `"n-fgsm"`) or a
            `Protocol` with steps, restarts, step size and which iterate counts.
        batch_size: images per batch; changes nothing but memory, speed, and which random starts an image gets.
        seed: names the random starts.
        progress: show a bar; by default only in a terminal or a notebook.

    Returns:
        A `Report` with the rows `"clean"`, `"fgsm"`, `"pgd"`. This is an upper bound of robustness: only AutoAttack,
        or an attack made for the defense, supports the word robust.

    Raises:
        ArgumentError, DataError, ModelError: see `advtrain.errors`.
    """
    if not isinstance(protocol, Protocol):
        one_of("protocol", protocol, PROTOCOLS)
        protocol = PROTOCOLS[protocol]
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        bad("batch_size", batch_size, "an integer of at least 1")
    split = as_split(data)
    parameter = next(model.parameters(), None)
    probe = split[:2].to("cpu" if parameter is None else parameter.device)
    check_model(model, probe.images(), int(split.y.max()) + 1)

    def fgsm(x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        return attacks.fgsm(model, x, y, threat, check=False)

    def pgd(x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        return attacks.pgd(
            model, x, y, threat, steps=protocol.steps, step_size=protocol.size(threat), restarts=protocol.restarts,
            keep=protocol.keep, rng=rng, check=False,
        )  # fmt: skip

    plan = [("clean", None, ""), ("fgsm", fgsm, "one step of ε"), ("pgd", pgd, protocol.describe(threat))]
    report = Report(threat)
    with progress_bar(progress, total=len(plan) * len(split), unit="img", desc="evaluate") as bar:
        for name, attack, details in plan:
            bar.set_description(f"evaluate {name}")
            correct = count_correct(model, split, attack, batch_size=batch_size, seed=seed, tick=bar.update)
            report.rows.append(Row(name, correct, len(split), details))
    return report
