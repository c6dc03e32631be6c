"""The table of an experiment's results: as values, in a terminal, in a notebook, in the book."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from ..threat import format_eps
from .paired import deviation

if TYPE_CHECKING:
    from .results import Results

MASKED = "†"


class Summary(NamedTuple):
    """A figure over seeds.

    Args:
        mean: over the seeds.
        std: sample standard deviation; None of a single seed.
        low, high: the smallest and the largest.
    """

    mean: float
    std: float | None
    low: float
    high: float


def summarize(values: list[float]) -> Summary | None:
    """Mean, spread and range of a figure; None where there is none.

    >>> summarize([0.5, 0.75])
    Summary(mean=0.625, std=0.1767766952966369, low=0.5, high=0.75)

    Args:
        values: one for each seed.
    """
    if not values:
        return None
    std = deviation(values) if len(values) > 1 else None
    return Summary(math.fsum(values) / len(values), std, min(values), max(values))


def _mean(values: list[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def table_rows(results: Results) -> list[dict[str, Any]]:
    """See `Results.table`."""
    rows = []
    for method in results.methods:
        runs = results.of(method)
        row: dict[str, Any] = {"method": method, "seeds": len(runs)}
        row["failed"] = sum(run.method == method for run in results.failed)
        row |= {name: summarize([run[name] for run in runs]) for name in ("clean", "fgsm", "pgd")}
        row["masked"] = sum(run.masked for run in runs)
        logged = dict.fromkeys(key for run in runs for key in run.logs)
        row["logs"] = {key: _mean([run.logs.get(key) for run in runs]) for key in logged}
        row["seconds"] = _mean([run.seconds["train"] for run in runs])
        row["forwards"] = _mean([run.forwards for run in runs])
        rows.append(row)
    return rows


def _cells(results: Results) -> list[list[str]]:
    """Head and rows of the table as texts."""
    rows = table_rows(results)
    protocol = results.experiment["judge"]["protocol"]
    pgd = f"PGD-{protocol['steps']}-{protocol['restarts']}"
    # Two columns that are empty in most experiments stand only where they say something.
    implicit = any(row["logs"].get("implicit_share") is not None for row in rows)
    failed = any(row["failed"] for row in rows)
    head = ["method", "clean", "FGSM", pgd, *["implicit share"] * implicit, "forwards", "seconds", "seeds"]
    table = [head + ["failed"] * failed]
    for row in rows:
        cells = [row["method"], *(_percent(row[name]) for name in ("clean", "fgsm", "pgd"))]
        cells[3] += f" {MASKED}" if row["masked"] else ""
        cells += [_figure(row["logs"].get("implicit_share"), ".2g")] * implicit
        cells += [_figure(row["forwards"], ".1f"), _figure(row["seconds"], ".1f"), str(row["seeds"])]
        table.append(cells + [str(row["failed"])] * failed)
    return table


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _percent(value: Summary | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value.mean:.1f}" + ("" if value.std is None else f" ± {100 * value.std:.1f}")


def _caption(results: Results) -> str:
    """What was judged, on what, and what the columns mean."""
    e = results.experiment
    norm = {"linf": "ℓ∞", "l2": "ℓ2"}[e["threat"]["norm"]]
    limit = f"first {e['judge']['limit']:,} images of the " if e["judge"].get("limit") else ""
    where = f"{e['data'].get('name')}, {e['model'].get('name')}, {norm} ε = {format_eps(e['threat']['eps'])}"
    return (
        f"{where}; {limit}{e['judge']['split']} split. Accuracies in %, mean ± standard deviation over seeds; "
        "forwards: forward-equivalents per mini-batch; seconds: of training, mean"
    )


def _remarks(results: Results) -> list[str]:
    """What must not be overlooked: masked gradients, failed runs, runs not made yet."""
    masked = [f"{row['method']} ({row['masked']} of {row['seeds']})" for row in table_rows(results) if row["masked"]]
    lines = []
    if masked:
        words = "Gradient masking: PGD takes most of what FGSM leaves correct, in runs of"
        lines.append(f"{MASKED} {words} {', '.join(masked)}.")
    lines += [f"Failed: {run.method}, seed {run.seed}: {run.message}" for run in results.failed]
    if results.missing:
        lines.append(f"{results.missing} of the experiment's runs are not in here.")
    return lines


def as_text(results: Results) -> str:
    """For a terminal."""
    table = _cells(results)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [results.experiment["title"]]
    for first, *rest in table:
        cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip())
    return "\n".join([*lines, f"{_caption(results)}.", *_remarks(results), *map(str, results.comparisons)])


def as_html(results: Results) -> str:
    """For a notebook."""
    head, *rows = ([escape(cell) for cell in cells] for cells in _cells(results))
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for name, *cells in rows
    )
    caption = escape(f"{results.experiment['title']}: {_caption(results)}")
    below = "".join(f"<p>{escape(str(line))}</p>" for line in [*_remarks(results), *results.comparisons])
    return (
        f'<table class="table"><caption>{caption}</caption><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table>{below}"
    )


def as_markdown(results: Results) -> str:
    """For the book."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    head, *rows = _cells(results)
    table = [line(head), line(["---"] + ["---:"] * (len(head) - 1)), *map(line, rows)]
    below = [*_remarks(results), *(f"- {difference}" for difference in results.comparisons)]
    return "\n".join([*table, "", f"{_caption(results)}.", *(["", *below] if below else [])]) + "\n"
