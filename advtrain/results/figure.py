"""The results of an experiment as a picture: the accuracies of each method, with their spread over seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..plot.canvas import BLUE, DARK, GREY, ORANGE, canvas, percent
from ..report import radius
from ..threat import Threat

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .results import Results

COLUMNS = {
    "clean": ("clean", GREY, "D"),
    "fgsm": ("FGSM", ORANGE, "s"),
    "pgd": ("PGD", BLUE, "o"),
    "autoattack": ("AutoAttack", DARK, "P"),
}


def draw(results: Results, ax: Any = None) -> Figure:
    """A line for each method, from above to below, with a mark for each accuracy: the mean, the smallest, the largest.

    Args:
        results: what to draw.
        ax: matplotlib axes to draw into; a new figure if not given.

    Raises:
        ImportError: matplotlib is not installed.
    """
    rows = results.table()
    figure, axes = canvas(ax, (7.6, 1.6 + 0.3 * len(rows)))
    places = range(len(rows))[::-1]
    for name, (label, colour, marker) in COLUMNS.items():
        there = [(row[name], place) for row, place in zip(rows, places, strict=True) if row[name] is not None]
        if there:
            means, heights = [found.mean for found, _ in there], [place for _, place in there]
            spread = [[found.mean - found.low for found, _ in there], [found.high - found.mean for found, _ in there]]
            spread = [[max(length, 0.0) for length in side] for side in spread]  # means are rounded
            look = {"fmt": marker, "color": colour, "markersize": 6, "elinewidth": 1.2, "capsize": 2.5}
            axes.errorbar(means, heights, xerr=spread, label=label, **look)
    axes.set_yticks(places, [row["method"] for row in rows])
    axes.set_xlim(-0.03, 1.03)
    percent(axes.xaxis)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("accuracy: mean over seeds, and from the smallest to the largest")
    axes.set_title(f"{results.experiment['title']}, {radius(Threat(**results.experiment['threat']))}", fontsize=11)
    below = (0.5, -0.55 / (0.5 + 0.3 * len(rows)))  # clear of the axis' label, however high the figure is
    axes.legend(fontsize=8.5, loc="upper center", bbox_to_anchor=below, ncols=4, frameon=False)
    return figure
