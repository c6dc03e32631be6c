"""Reading results files: one, or several of the same experiment as one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..errors import FileError
from ..files import read_json
from .checks import check_results
from .configs import fill_config, fill_experiment
from .recorded import locate
from .results import FORMAT, Results
from .trial import Trial


def load_results(path: str | os.PathLike[str], *more: str | os.PathLike[str]) -> Results:
    """Read a results file that `advtrain reproduce` wrote, or several of one experiment, such as one for each method.

    Options that came to the package after a file was written are filled in with their defaults.

    >>> results = load_results("digits")
    >>> len(results.methods), results.missing, len(results.of("pgd"))
    (23, 0, 5)

    Args:
        path: the file, or the bare name of one that is recorded in the book and comes with the package: `"digits"`.
        *more: further files of the same experiment. A run that two of them have counts once.

    Returns:
        The `Results`: `print` them for the table; `.runs`, `.table()` and `.compare(a, b)` have the figures.

    Raises:
        FileError: a file is missing, damaged, of another format or of another experiment, or two files have the same
            run with different weights; the message says what and where.
    """
    results = _read(locate(path))
    for other in map(locate, more):
        merge(results, _read(other), other)
    return results


def _read(path: Path) -> Results:
    value = read_json(path)
    if isinstance(value, dict) and value.get("format") != FORMAT:
        found = f"format {value['format']!r}" if "format" in value else "no format"
        advice = "update advtrain-book" if "format" in value else "it is not a file of advtrain reproduce"
        raise FileError(f"{path} has {found}, this version reads {FORMAT}: {advice}")
    check_results(value, path)
    known = {field.name for field in fields(Trial)} - {"more"}
    runs = []
    for run in value["runs"]:
        parts = {key: part for key, part in run.items() if key in known}
        more = {key: part for key, part in run.items() if key not in known and key != "digest"}
        runs.append(Trial(**{**parts, "config": fill_config(run["config"])}, more=more))
    return Results(fill_experiment(value["experiment"]), runs, value["provenance"])


def merge(results: Results, other: Results, path: Path) -> None:
    """Take over from `other` what `results` lacks; raise `FileError` where they contradict each other."""
    if other.digest != results.digest:
        names = f"{other.experiment['name']!r}, not {results.experiment['name']!r}"
        same = "the same name and other content" if other.experiment["name"] == results.experiment["name"] else names
        raise FileError(f"{path} is of another experiment ({same}): only files of one experiment go together")
    there = {(run.method, run.seed): run for run in results.runs}
    for run in other.runs:
        mine = there.get((run.method, run.seed))
        if mine is not None and mine.finished and run.finished and _outcome(mine) != _outcome(run):
            raise FileError(
                f"{path} has other weights for {run.method}, seed {run.seed}, than another file: leave one out"
            )
    take_over(results, other, lambda run: True)


def _outcome(run: Trial) -> Any:
    """What two makings of a run must have in common; the earliest files do not have the digest of the weights."""
    return run.made.get("weights") or run.rows


def take_over(results: Results, other: Results, wanted: Callable[[Trial], bool]) -> None:
    """Add the wanted runs of `other` that `results` lacks, or has as failed where `other` has finished them."""
    there = {(run.method, run.seed): run for run in results.runs}
    for run in filter(wanted, other.runs):
        mine = there.get((run.method, run.seed))
        new = False
        if mine is None or (run.finished and not mine.finished):
            new, mine = True, replace(run, call=_place(results.provenance, other.provenance[run.call]))
        if run.judged and (new or not mine.judged) and _outcome(run) == _outcome(mine):
            call = _place(results.provenance, other.provenance[run.judged["call"]])
            mine = with_judgement(mine, run.rows["autoattack"], {**run.judged, "call": call})
        there[run.method, run.seed] = mine
    results.runs = in_order(results.experiment, there.values())


def with_judgement(run: Trial, row: dict[str, Any], judged: dict[str, Any]) -> Trial:
    """A finished run with what AutoAttack and a diagnosis say of it; the run given stays as it is.

    Args:
        run: as it was.
        row: of AutoAttack, as in `Trial.rows`.
        judged: see `Trial.judged`.
    """
    return replace(run, rows={**run.rows, "autoattack": row}, more={**run.more, "judged": judged})


def in_order(experiment: dict[str, Any], runs: Any) -> list[Trial]:
    """Runs by seed, and at each seed in the order of the methods."""
    labels = [method["name"] for method in experiment["methods"]]
    return sorted(runs, key=lambda run: (experiment["seeds"].index(run.seed), labels.index(run.method)))


def _place(calls: list[dict[str, Any]], call: dict[str, Any]) -> int:
    """Where in `calls` this call is; only its end moves while it is at work."""
    for place, known in enumerate(calls):
        if {**known, "end": ""} == {**call, "end": ""}:
            known["end"] = max(known["end"], call["end"])
            return place
    calls.append(dict(call))
    return len(calls) - 1


def drop_unused_calls(results: Results) -> None:
    """Leave out calls of which no run is left."""
    calls = sorted({call for run in results.runs for call in (run.call, run.judged.get("call", run.call))})
    results.provenance = [results.provenance[call] for call in calls]
    for run in results.runs:
        run.call = calls.index(run.call)
        if run.judged:
            run.more = {**run.more, "judged": {**run.judged, "call": calls.index(run.judged["call"])}}
