"""A run in a few lines: for a terminal, and for a notebook with a small sketch of its curves."""

from __future__ import annotations

import math
import textwrap
from html import escape
from typing import TYPE_CHECKING, Any

from .markup import sketch, table
from .models.spec import spec_of
from .report import radius

if TYPE_CHECKING:
    from .runs import Run

NAMES = {"accuracy": "training", "val_clean": "clean", "val_fgsm": "FGSM", "val_pgd": "PGD"}
"""Accuracies of a record and what their columns are called; all but the first are of the validation."""


def facts(run: Run) -> list[tuple[str, str]]:
    """What the run is, as pairs of a name and words."""
    size = sum(parameter.numel() for parameter in run.model.parameters())
    name = (spec_of(run.model) or {}).get("name") or type(run.model).__name__
    options = {"lr": "peak rate", "batch_size": "batch size", "optimizer": "", "schedule": "schedule", "seed": "seed"}
    words = [f"{word} {run.options[key]}".strip() for key, word in options.items() if key in run.options]
    pairs = [
        ("model", f"{name}, {size:,} parameters"),
        ("defense", repr(run.defense)),
        ("data", "not at hand" if run.data is None else str(getattr(run.data, "name", type(run.data).__name__))),
        ("training", ", ".join(words)),
        ("status", f"{run.status} after {len(run.history)} of {run.options.get('epochs', '?')} epochs"),
        ("device", str(run.provenance.get("device", ""))),
        ("folder", "" if run.path is None else str(run.path)),
    ]
    return [(key, value) for key, value in pairs if value]


def kept(run: Run) -> int:
    """The epoch whose weights the model holds; 0 if they are of no whole epoch, as after Ctrl-C within one."""
    return 0 if run.status == "interrupted" and run.options.get("select") != "best" else run.best_epoch


def figures(run: Run) -> list[list[str]]:
    """Head and rows of the figures of the last epoch, and of the one whose weights were kept."""
    keys = [key for key in NAMES if any(record.get(key) is not None for record in run.history)]
    rows = [["", "loss", *(NAMES[key] for key in keys)]]
    last = len(run.history)
    for number in dict.fromkeys([last, kept(run)]):
        if not 1 <= number <= last:
            continue
        record = run.history[number - 1]
        what = [word for word, there in (("last", number == last), ("kept", number == kept(run))) if there]
        cells = [number_of(record.get("loss"), ".4g"), *(number_of(record.get(key), ".1%") for key in keys)]
        rows.append([f"epoch {number}, {' and '.join(what)}", *cells])
    return rows


def number_of(value: Any, form: str) -> str:
    """A figure as text; a dash where it was not recorded."""
    return "–" if value is None or not math.isfinite(value) else format(value, form)


def as_text(run: Run) -> str:
    """For a terminal."""
    lines = [f"Run of {run.defense.name}, {radius(run.threat)}"]
    lines += [f"  {key:<10}{value}" for key, value in facts(run)]
    for first, *cells in figures(run) if run.history else ():
        lines.append(f"  {first:<24}" + "".join(f"{cell:>10}" for cell in cells))
    for note in run.notes:
        lines += textwrap.wrap(note, 110, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)


def as_html(run: Run) -> str:
    """For a notebook."""
    title = f"Run of {run.defense.name}, {radius(run.threat)}"
    html = table(None, facts(run), caption=title)
    if run.history:
        (_, *head), *rows = figures(run)
        words = "Loss and accuracy in training, and accuracy in validation on clean images, under FGSM and under PGD"
        html += table(["epoch", *head], rows, caption=words)
    if len(run.history) > 1:
        html += sketch({"loss": {"loss": _points(run, "loss")}, "accuracy": _accuracies(run)}, _spoken(run))
    return html + "".join(f"<p>{escape(note)}</p>" for note in run.notes)


def _accuracies(run: Run) -> dict[str, list[tuple[float, float]]]:
    found = {NAMES[key]: _points(run, key) for key in ("val_pgd", "val_fgsm", "accuracy")}
    return {name: points for name, points in found.items() if points}


def _points(run: Run, key: str) -> list[tuple[float, float]]:
    return [(record["epoch"], float(record[key])) for record in run.history if record.get(key) is not None]


def _spoken(run: Run) -> str:
    """The sketch in words."""
    curves = {"loss": _points(run, "loss"), **_accuracies(run)}
    told = [f"{name} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for name, points in curves.items() if points]
    return f"Over {len(run.history)} epochs: {', '.join(told)}."
