"""The table of an experiment's results: as values, in a terminal, in a notebook, in the book."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..markup import table
from ..report import radius
from ..threat import Threat
from .paired import deviation

if TYPE_CHECKING:
    from .results import Results
    from .trial import Trial

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
    clock, unit = ("cpu" if _on_cpus(results) else "train"), unit_of(results)
    for method in results.methods:
        runs = results.of(method)
        row: dict[str, Any] = {"method": method, "seeds": len(runs)}
        row["failed"] = sum(run.method == method for run in results.failed)
        row |= {name: summarize([run[name] for run in runs]) for name in ("clean", "fgsm", "pgd")}
        row["masked"] = sum(run.masked for run in runs)
        judged = [run for run in runs if run.judged]
        row["autoattack"] = summarize([run["autoattack"] for run in judged])
        verdicts = [run.judged["diagnose"]["verdict"] for run in judged]
        row["diagnose"] = {word: verdicts.count(word) for word in dict.fromkeys(verdicts)}
        logged = dict.fromkeys(key for run in runs for key in run.logs)
        row["logs"] = {key: _mean([run.logs.get(key) for run in runs]) for key in logged}
        row["forwards"] = _mean([run.forwards for run in runs])
        row["cost"] = _mean([_cost(run, unit) for run in runs])
        alike = len({_device(_call(results, run)) for run in runs}) == 1
        row["seconds"] = _mean([run.seconds[clock] for run in runs]) if alike else None
        rows.append(row)
    return rows


def _call(results: Results, run: Trial) -> dict[str, Any]:
    """Where a run comes from; nothing is known of runs made by hand."""
    return results.provenance[run.call] if run.call < len(results.provenance) else {}


def _device(call: dict[str, Any]) -> str:
    return str(call.get("cpu", "cpu") if call.get("device") == "cpu" else call.get("device"))


def _finished(results: Results) -> list[Trial]:
    return [run for run in results.runs if run.finished]


def _on_cpus(results: Results) -> bool:
    """Whether all runs were made on CPUs, which know what they spent on each."""
    return all(_call(results, run).get("device") == "cpu" and "cpu" in run.seconds for run in _finished(results))


def unit_of(results: Results) -> float | None:
    """What the first method with the defense `standard` costs, in forward-equivalents of an image; None without one."""
    names = [method["name"] for method in results.experiment["methods"] if method["defense"].get("name") == "standard"]
    return _mean([run.forwards_total for name in names[:1] for run in results.of(name)]) or None


def _cost(run: Trial, unit: float | None) -> float | None:
    """What the whole training cost, in that unit, or for each training image."""
    if unit is not None:
        return None if run.forwards_total is None else run.forwards_total / unit
    epochs = run.config["fit"].get("epochs")
    return run.forwards * epochs if run.forwards is not None and isinstance(epochs, (int, float)) else None


def _cells(results: Results) -> list[list[str]]:
    """Head and rows of the table as texts."""
    rows = table_rows(results)
    protocol = results.experiment["judge"]["protocol"]
    pgd = f"PGD-{protocol['steps']}-{protocol['restarts']}"
    # Columns that are empty in most experiments stand only where they say something.
    implicit = any(row["logs"].get("implicit_share") is not None for row in rows)
    failed = any(row["failed"] for row in rows)
    judged = any(row["diagnose"] for row in rows)
    head = ["method", "clean", "FGSM", pgd, *["AA", "diagnose"] * judged, *["implicit share"] * implicit]
    head += ["forwards", "cost", "CPU s" if _on_cpus(results) else "seconds", "seeds"]
    lines = [head + ["failed"] * failed]
    for row in rows:
        cells = [row["method"], *(percent(row[name]) for name in ("clean", "fgsm", "pgd"))]
        cells[3] += f" {MASKED}" if row["masked"] else ""
        cells += _verdicts(row) * judged
        cells += [_figure(row["logs"].get("implicit_share"), ".2g")] * implicit
        cells += [_figure(row["forwards"], ".1f"), _figure(row["cost"], ",.0f" if unit_of(results) is None else ".1f")]
        cells += [_figure(row["seconds"], ".1f"), str(row["seeds"])]
        lines.append(cells + [str(row["failed"])] * failed)
    return lines


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def percent(value: Summary | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value.mean:.1f}" + ("" if value.std is None else f" ± {100 * value.std:.1f}")


def _verdicts(row: dict[str, Any]) -> list[str]:
    """The cells of AutoAttack and of the diagnosis, with how many seeds they are of if not of all."""
    judged = sum(row["diagnose"].values())
    some = "" if judged in (0, row["seeds"]) else f" ({judged} of {row['seeds']})"
    words = [word if n == row["seeds"] else f"{word} {n}" for word, n in row["diagnose"].items()]
    return [f"{percent(row['autoattack'])}{some}", ", ".join(words) or "–"]


def _caption(results: Results) -> str:
    """What was judged, on what, and what the columns mean."""
    e = results.experiment
    limit = f"first {e['judge']['limit']:,} images of the " if e["judge"].get("limit") else ""
    where = f"{e['data'].get('name')}, {e['model'].get('name')}, {radius(Threat(**e['threat']))}"
    standard = unit_of(results) is not None
    cost = "as a multiple of standard training" if standard else "in forward-equivalents per training image"
    seconds = "CPU s: processor time" if _on_cpus(results) else "seconds: time on the clock"
    lines = [
        f"{where}; {limit}{e['judge']['split']} split. Accuracies in %, mean ± standard deviation over seeds; "
        f"forwards: forward-equivalents per mini-batch; cost: of all training, {cost}; {seconds} of training, mean"
    ]
    if any(run.judged for run in results.runs):
        lines[0] += "; AA: AutoAttack, standard version; diagnose: the first cause of at.diagnose, at how many seeds"
    if any(difference.interval for difference in results.comparisons):
        lines.append(
            "Intervals: 95% each, over seeds only (the randomness of training), not corrected for how many there are"
        )
    return ". ".join(lines)


def short(message: str) -> str:
    """The first line of a message, without control characters, of 200 characters at most."""
    first = next((line for line in message.splitlines() if line.strip()), "").strip()
    first = "".join(character if character.isprintable() else "\ufffd" for character in first)
    return first if len(first) <= 200 else f"{first[:199]}…"


def _plain(text: str) -> str:
    return text


def quoted(text: str) -> str:
    """Such that Markdown shows the text itself."""
    return re.sub(r"([\\`*_{}\[\]<>|#&$~^])", r"\\\1", text)


def _origins(results: Results) -> list[str]:
    """In what the origins of the finished runs differ: their figures are then not all of one making."""
    calls = [_call(results, run) for run in _finished(results)]
    commits = dict.fromkeys(
        str(call.get("commit"))[:12] + "+changes" * ("+" in str(call.get("commit"))) for call in calls
    )
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in sorted(call.get("versions", {}).items())) for call in calls
    )
    found = {"commit": commits, "set of versions": versions, "device": dict.fromkeys(map(_device, calls))}
    return [f"{name} ({'; '.join(values)})" for name, values in found.items() if len(values) > 1]


def _remarks(results: Results, quote: Callable[[str], str] = _plain) -> list[str]:
    """What must not be overlooked: masked gradients, failed runs, runs not made yet or not made alike."""
    rows = [row for row in table_rows(results) if row["masked"]]
    masked = [f"{quote(row['method'])} ({row['masked']} of {row['seeds']})" for row in rows]
    lines = []
    if masked:
        words = "Gradient masking: PGD takes most of what FGSM leaves correct, in runs of"
        lines.append(f"{MASKED} {words} {', '.join(masked)}.")
    lines += [f"Failed: {quote(run.method)}, seed {run.seed}: {quote(short(run.message))}" for run in results.failed]
    if results.missing:
        words = "is" if results.missing == 1 else "are"
        lines.append(f"{results.missing} of the experiment's runs {words} not in here.")
    if differing := _origins(results):
        lines.append(f"The finished runs come from more than one {quote(', and more than one '.join(differing))}.")
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
    head, *rows = _cells(results)
    below = [*_remarks(results), *map(str, results.comparisons)]
    return table(head, rows, caption=f"{results.experiment['title']}: {_caption(results)}", below=below)


def as_markdown(results: Results) -> str:
    """For the book."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    head, *rows = ([quoted(cell) for cell in cells] for cells in _cells(results))
    lines = [line(head), line(["---"] + ["---:"] * (len(head) - 1)), *map(line, rows)]
    below = [*_remarks(results, quoted), *(f"- {difference}" for difference in results.comparisons)]
    return "\n".join([*lines, "", f"{_caption(results)}.", *(["", *below] if below else [])]) + "\n"
