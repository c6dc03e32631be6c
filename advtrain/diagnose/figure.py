"""A diagnosis as a picture: accuracy and loss along ε, and a bar for every attack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import AdvtrainError
from ..report import Row
from ..threat import format_eps

if TYPE_CHECKING:
    from .diagnosis import Diagnosis

# Okabe and Ito's colours: told apart by readers with any kind of colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
KINDS = {
    "clean": GREY, "noise": GREEN, "square": GREEN, "transfer": GREEN, "transfer-fgsm": GREEN, "fgsm": ORANGE,
    "fgsm-margin": ORANGE, "r-fgsm": ORANGE,
}  # fmt: skip
LEGEND = {GREY: "no attack", ORANGE: "one step", BLUE: "many steps", GREEN: "without the model's gradient"}


def draw(diagnosis: Diagnosis) -> Any:
    """Three panels, in a figure that belongs to no window: nothing has to be closed.

    Args:
        diagnosis: what to draw.

    Raises:
        AdvtrainError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
        from matplotlib.ticker import PercentFormatter
    except ModuleNotFoundError as error:
        raise AdvtrainError("Diagnosis.plot needs matplotlib: pip install matplotlib") from error

    figure = Figure(figsize=(12, 4.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.4))
    curve = diagnosis.curve
    lines = ("PGD, 10 steps", BLUE, "o", curve.pgd, curve.pgd_loss), (
        "FGSM, one step", ORANGE, "s", curve.fgsm, curve.fgsm_loss,
    )  # fmt: skip
    for label, colour, marker, accuracy, loss in lines:
        left.plot(curve.eps, accuracy, color=colour, marker=marker, label=label)
        middle.plot(curve.eps, loss, color=colour, marker=marker, label=label)
    norm = {"linf": "ℓ∞", "l2": "ℓ2"}[diagnosis.threat.norm]
    for axes, title in ((left, "Accuracy must fall with ε"), (middle, "The loss must rise with ε")):
        axes.set_title(title, fontsize=11)
        axes.set_xlabel(f"radius ε ({norm})")
        axes.set_xticks(curve.eps, [format_eps(eps) for eps in curve.eps], rotation=30)
        axes.grid(alpha=0.3)
    left.set_ylabel("accuracy")
    left.set_ylim(-0.03, 1.03)
    left.yaxis.set_major_formatter(PercentFormatter(1))
    middle.set_ylabel("mean cross-entropy (nats)")
    middle.set_ylim(bottom=0)
    left.legend(fontsize=9)

    rows = list(reversed(diagnosis.attacks))
    bars = right.barh(
        [row.name for row in rows], [row.accuracy for row in rows],
        color=[KINDS.get(row.name, BLUE) for row in rows],
        xerr=list(zip(*map(_reach, rows), strict=True)),
        error_kw={"elinewidth": 1, "ecolor": "black", "capsize": 2},
    )  # fmt: skip
    right.bar_label(bars, [f"{row.accuracy:.0%}" for row in rows], padding=8, fontsize=8)
    right.set_xlim(0, 1.18)
    right.set_xticks([0, 0.25, 0.5, 0.75, 1])
    right.xaxis.set_major_formatter(PercentFormatter(1))
    right.set_xlabel("accuracy left by the attack, with 95% interval")
    right.set_title("What each attack leaves", fontsize=11)
    right.legend(handles=[Patch(color=c, label=text) for c, text in LEGEND.items()], fontsize=8, loc="lower right")
    right.grid(axis="x", alpha=0.3)
    title = f"Flagged: {diagnosis.causes[0]}" if diagnosis.flagged else "No sign of gradient masking"
    figure.suptitle(title, fontsize=12)
    return figure


def _reach(row: Row) -> tuple[float, float]:
    """How far the interval of an accuracy reaches to either side."""
    low, high = row.interval
    return max(row.accuracy - low, 0.0), max(high - row.accuracy, 0.0)
