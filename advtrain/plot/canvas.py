"""What all figures have in common: colours that everyone can tell apart, and figures that belong to no window."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from io import BytesIO
from typing import Any, cast

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import ScaledTranslation

from ..errors import bad
from ..report import Row

# Okabe and Ito's colours: told apart by readers with any kind of colour vision. In grey, markers and hatches tell.
BLUE, ORANGE, GREEN, PINK, GREY, DARK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#999999", "#333333"
CLEAN, ONE, MANY, BLIND, ALL = "no attack", "one step", "many steps", "without the model's gradient", "all together"
KINDS = {
    "clean": CLEAN, "noise": BLIND, "square": BLIND, "transfer": BLIND, "transfer-fgsm": BLIND, "fgsm": ONE,
    "fgsm-margin": ONE, "fgsm-half": ONE, "r-fgsm": ONE, "autoattack": ALL, "autoattack-fast": ALL,
    "autoattack-rand": ALL,
}  # fmt: skip
LOOKS = {CLEAN: (GREY, ""), ONE: (ORANGE, "///"), MANY: (BLUE, ""), BLIND: (GREEN, "..."), ALL: (PINK, "xxx")}
STYLES = [(GREEN, "-.", "^"), (PINK, ":", "D"), (GREY, "-", "v"), (DARK, "--", "P")]
KNOWN = {"fgsm": (ORANGE, "--", "s"), "pgd": (BLUE, "-", "o")}


class Picture(Figure):
    """A matplotlib figure that belongs to no window: nothing has to be shown or closed.

    A notebook draws it where it is named last in a cell; `picture.savefig(path)` keeps it. `picture.numbers` holds the
    figures that it shows, where they were computed for it.
    """

    numbers: dict[str, Any] | None = None

    def _repr_png_(self) -> bytes:
        self.savefig(file := BytesIO(), format="png", metadata={"Software": None})
        return file.getvalue()


def canvas(ax: Any, size: tuple[float, float]) -> tuple[Picture, Any]:
    """Figure and axes to draw into: the caller's axes, or those of a new figure.

    Args:
        ax: matplotlib axes, or None.
        size: width and height of a new figure in inches.

    Raises:
        ArgumentError: `ax` is something else.
    """
    if ax is None:
        figure = Picture(figsize=size, layout="constrained")
        return figure, figure.subplots()
    if not isinstance(ax, Axes):
        bad("ax", type(ax).__name__, "matplotlib axes", "figure, ax = plt.subplots() makes one; of several take one")
    return cast(Picture, ax.figure), ax  # any figure can be given numbers


def looks(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """Colour, dashes and marker of a line for each attack: FGSM's and PGD's own, and whatever is left for others."""
    others = itertools.cycle(STYLES)
    return [KNOWN.get(name) or next(others) for name in names]


def reach(row: Row) -> tuple[float, float]:
    """How far the interval of an accuracy reaches to either side."""
    low, high = row.interval
    return max(row.accuracy - low, 0.0), max(high - row.accuracy, 0.0)


def bars(ax: Any, rows: list[Row], *, digits: int = 1) -> None:
    """A bar for each accuracy, from above to below, with its interval, and a legend of the kinds of attacks.

    Args:
        ax: where to draw.
        rows: of a report.
        digits: decimals of the percentages.
    """
    places = range(len(rows))[::-1]
    kinds = [KINDS.get(row.name, MANY) for row in rows]
    ax.barh(
        places, [row.accuracy for row in rows], color=[LOOKS[kind][0] for kind in kinds], edgecolor="white",
        hatch=[LOOKS[kind][1] for kind in kinds], xerr=list(zip(*map(reach, rows), strict=True)),
        error_kw={"elinewidth": 1, "ecolor": "black", "capsize": 2},
    )  # fmt: skip
    for place, row in zip(places, rows, strict=True):
        ax.text(row.interval[1] + 0.015, place, f"{row.accuracy:.{digits}%}", va="center", fontsize=8)
    ax.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
    ax.set_xlim(0, 1.18)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
    percent(ax.xaxis)
    ax.set_xlabel("accuracy left by the attack, with 95% interval")
    ax.grid(axis="x", alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    shown = [kind for kind in LOOKS if kind in kinds]
    patches = [Patch(facecolor=LOOKS[kind][0], hatch=LOOKS[kind][1], edgecolor="white", label=kind) for kind in shown]
    below = ax.transAxes + ScaledTranslation(0, -0.45, cast(Figure, ax.figure).dpi_scale_trans)  # inches
    ax.legend(
        handles=patches, fontsize=8, ncols=2, frameon=False, loc="upper left", bbox_to_anchor=(0, 0),
        bbox_transform=below, borderaxespad=0,
    )  # fmt: skip


def percent(axis: Any) -> None:
    """Write the ticks of an axis of shares in percent."""
    axis.set_major_formatter(PercentFormatter(1))
