"""A diagnosis as a picture: accuracy and loss along ε, and a bar for every attack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..plot.canvas import BLUE, ORANGE, Picture, bars, percent
from ..report import NORMS
from ..threat import format_eps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .diagnosis import Diagnosis


def draw(diagnosis: Diagnosis) -> Figure:
    """Three panels, in a figure that belongs to no window: nothing has to be closed.

    Args:
        diagnosis: what to draw.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = Picture(figsize=(12, 4.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.4))
    curve = diagnosis.curve
    lines = ("PGD, 10 steps", BLUE, "o-", curve.pgd, curve.pgd_loss), (
        "FGSM, one step", ORANGE, "s--", curve.fgsm, curve.fgsm_loss,
    )  # fmt: skip
    for label, colour, marker, accuracy, loss in lines:
        left.plot(curve.eps, accuracy, marker, color=colour, label=label)
        middle.plot(curve.eps, loss, marker, color=colour, label=label)
    for axes, title in ((left, "Accuracy must fall with ε"), (middle, "The loss must rise with ε")):
        axes.set_title(title, fontsize=11)
        axes.set_xlabel(f"radius ε ({NORMS[diagnosis.threat.norm]})")
        axes.set_xticks(curve.eps, [format_eps(eps) for eps in curve.eps], rotation=30)
        axes.grid(alpha=0.3)
    left.set_ylabel("accuracy")
    left.set_ylim(-0.03, 1.03)
    percent(left.yaxis)
    middle.set_ylabel("mean cross-entropy (nats)")
    middle.set_ylim(bottom=0)
    left.legend(fontsize=9)

    bars(right, list(diagnosis.attacks), digits=0)
    right.set_title("What each attack leaves", fontsize=11)
    title = f"Flagged: {diagnosis.causes[0]}" if diagnosis.flagged else "No sign of gradient masking"
    figure.suptitle(title, fontsize=12)
    return figure
