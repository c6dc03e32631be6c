"""Accuracies: of a training epoch by epoch, of a report attack by attack, and along ε."""

from __future__ import annotations

import dataclasses
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from ..attacks.choice import Attack, choose, name_of, written
from ..checks import check_threat
from ..data import as_split
from ..errors import bad, check_kind, is_real
from ..evaluate import check_subject, find_correct
from ..report import NORMS, Report, Row, radius
from ..rng import Rng
from ..run_view import kept
from ..runs import Run
from ..threat import Threat, format_eps
from .canvas import BLUE, DARK, GREY, ORANGE, PINK, Picture, bars, canvas, looks, percent

CURVES = {
    "accuracy": ("training images, as attacked in training", PINK, ":", "^"),
    "val_clean": ("validation, clean", GREY, "-.", "D"),
    "val_fgsm": ("validation, FGSM", ORANGE, "--", "s"),
    "val_pgd": ("validation, PGD", BLUE, "-", "o"),
}
RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Those of `eps_curve`, in units of the threat's, unless told otherwise."""


def history(run: Run) -> Figure:
    """How a training went: loss, and accuracies in training and validation, epoch by epoch.

    Lines mark the epoch whose weights were kept, and the epochs of which the training loop noted something, such as
    catastrophic overfitting; the notes stand below.

    Args:
        run: a `Run` of `fit`, `load_run` or `Results.run`.

    Returns:
        A figure of two panels, one of the loss that the defense minimised, mean over images, one of the accuracies.

    Raises:
        ArgumentError: something else, or a run without a whole epoch.
    """
    check_kind("run", run, Run, "pass what at.fit or at.load_run returned")
    if not run.history:
        bad("run", run, "a run with at least one whole epoch", "it ended before its first epoch did")
    figure = Picture(figsize=(9, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, width_ratios=(1, 1.3))
    every = max(1, len(run.history) // 15)
    epochs, losses = curve_of(run.history, "loss") or ([], [])
    left.plot(epochs, losses, color=DARK, marker="o", markersize=4, markevery=every)
    left.set_ylabel("training loss, mean over images")
    for key, (label, colour, line, marker) in CURVES.items():
        if points := curve_of(run.history, key):
            look = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4.5}
            right.plot(*points, label=label, markevery=max(1, len(points[0]) // 15), **look)
    right.set_ylabel("accuracy")
    right.set_ylim(-0.03, 1.03)
    percent(right.yaxis)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
        if epoch := kept(run):
            ax.axvline(epoch, color=DARK, linewidth=1, label=f"weights of epoch {epoch} kept")
        for number, words in marked(run.notes):
            ax.axvline(number, color=ORANGE, linewidth=1.5, linestyle=(0, (1, 1)), label=f"epoch {number}: {words}")
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.grid(alpha=0.3)
    figure.legend(*right.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8.5, frameon=False)
    title = f"{run.defense.name}, {radius(run.threat)}: {run.status} after epoch {len(run.history)}"
    left.set_title(title, loc="left", fontsize=11)
    if run.notes:
        lines = [line for note in run.notes for line in textwrap.wrap(note, 140)]
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8.5)
    return figure


def curve_of(records: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]] | None:
    """Epochs and values of a figure where it was recorded; None where it never was. What is not finite is a gap."""
    points = [(record["epoch"], record[key]) for record in records if key in record]
    if all(value is None for _, value in points):
        return None
    return [epoch for epoch, _ in points], [math.nan if value is None else float(value) for _, value in points]


def marked(notes: list[str]) -> list[tuple[int, str]]:
    """The epochs that notes speak of, and the first words of each: `(7, "catastrophic overfitting")`."""
    found = [re.match(r"epoch (\d+): ([^.:]*)", note) for note in notes]
    return [(int(match[1]), textwrap.shorten(match[2], 36, placeholder=" …")) for match in found if match]


def report(report: Report, ax: Any = None) -> Figure:
    """What each attack of a report leaves, as bars with 95% intervals.

    Args:
        report: of `evaluate` or `autoattack`.
        ax: matplotlib axes to draw into; a new figure if not given.

    Returns:
        The figure. Notes, which begin with the warnings, stand below where the figure is new.

    Raises:
        ArgumentError: something else, or a report without rows.
    """
    check_kind("report", report, Report, "pass what at.evaluate or at.autoattack returned")
    if not report.rows:
        bad("report", report, "a report with at least one row")
    figure, axes = canvas(ax, (7.2, 1.7 + 0.36 * len(report.rows) + 0.16 * len(report.notes)))
    bars(axes, report.rows)
    axes.set_title(f"{report.rows[0].total:,} images, {radius(report.threat)}", fontsize=11)
    if ax is None and report.notes:
        lines = [line for note in report.notes for line in textwrap.wrap(note, 105)]
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8.5)
    return figure


def eps_curve(
    model: nn.Module, data: Any, threat: Threat, *, eps: Iterable[float] | None = None,
    attack: Attack | Sequence[Attack] = ("fgsm", "pgd"), steps: int = 10, batch_size: int = 512, seed: int = 0,
    ax: Any = None,
) -> Figure:  # fmt: skip
    """Accuracy against the radius ε, with 95% intervals: it must fall, and reach zero where every image is admissible.

    Where FGSM and PGD part, the single step is fooled: the gradient is masked.

    Args:
        model: returns logits; judged in evaluation mode on the device it is on, and left as it was.
        data: the images, as in `evaluate`: a `Split`, a `Dataset` (its test split), a pair (x, y). A few hundred do.
        threat: says the norm and the pixel box; its own radius is marked.
        eps: the radii, in pixel units, from 0 on; by default from 0 to twice the threat's, as far as the box goes.
        attack: a name in `advtrain.attacks.ATTACKS` or a function of (model, x, y, threat); or several of them.
        steps: steps of an iterated attack.
        batch_size: images per batch.
        seed: names the random starts.
        ax: matplotlib axes to draw into; a new figure if not given.

    Returns:
        The figure. `figure.numbers` holds `"eps"`, the radii in ascending order, and `"rows"`, which has for each
        attack by name a `Row` at each radius, with counts and intervals.

    Raises:
        ArgumentError, DataError, ModelError: see `advtrain.errors`.
    """
    check_threat(threat)
    widest = threat.high - threat.low if threat.norm == "linf" else math.inf
    radii = _radii(eps, threat, widest)
    attacks = [attack] if isinstance(attack, str) or callable(attack) else list(attack)
    chosen = {name_of(each): choose(each, steps) for each in attacks}
    titles = {name_of(each): written(each) for each in attacks}
    if not attacks or len(chosen) < len(attacks):
        bad("attack", attack, "one attack, or several of different names")
    figure, axes = canvas(ax, (6.4, 4.0))
    split = as_split(data)
    order, _ = check_subject(model, split, threat, batch_size)

    def row(name: str, eps: float) -> Row:
        def perturb(x: Tensor, y: Tensor, rng: Rng) -> Tensor:
            return chosen[name](model, x, y, dataclasses.replace(threat, eps=eps), rng)

        attacked = perturb if eps > 0 else None
        correct = find_correct(model, split, attacked, batch_size=batch_size, seed=seed, order=order).cpu()
        return Row(name, int(correct.sum()), len(split), f"ε = {format_eps(eps)}", correct)

    clean = row("clean", 0.0)
    found = {
        name: [row(name, eps) if eps > 0 else dataclasses.replace(clean, name=name) for eps in radii] for name in chosen
    }
    for (name, rows), (colour, line, marker) in zip(found.items(), looks(found), strict=True):
        middle, ends = [each.accuracy for each in rows], list(zip(*(each.interval for each in rows), strict=True))
        axes.fill_between(radii, *ends, color=colour, alpha=0.15, linewidth=0)
        axes.plot(radii, middle, color=colour, linestyle=line, marker=marker, markersize=5, label=titles[name])
    if min(radii) <= threat.eps <= max(radii):
        axes.axvline(
            threat.eps, color=DARK, linewidth=1, linestyle=":", label=f"the threat's ε = {format_eps(threat.eps)}"
        )
    axes.set_xticks(radii, [format_eps(eps) for eps in radii], rotation=30)
    axes.set_xlabel(f"radius ε ({NORMS[threat.norm]}, pixels in [0, 1])")
    axes.set_ylabel("accuracy, with 95% interval")
    axes.set_ylim(-0.03, 1.03)
    percent(axes.yaxis)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"Accuracy against ε, {len(split):,} images", fontsize=11)
    figure.numbers = {"eps": tuple(radii), "rows": found}
    return figure


def _radii(eps: Iterable[float] | None, threat: Threat, widest: float) -> list[float]:
    """In ascending order, checked."""
    if eps is None:
        return sorted({min(factor * threat.eps, widest) for factor in RADII})
    values = eps.tolist() if hasattr(eps, "tolist") else eps
    values = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else []
    if not values or not all(is_real(value) and 0 <= value <= widest for value in values):
        top = f"0 to {widest:g}" if math.isfinite(widest) else "0 on"
        bad("eps", eps, f"a list of radii from {top}", "write [0, 4/255, 8/255], not [0, 4, 8]")
    return sorted({float(value) for value in values})
