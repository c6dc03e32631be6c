"""Is a results file true? One of its runs is made again and compared with what the file says of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..defenses import DEFENSES
from ..errors import FileError, at_least, check_path, one_of
from ..recipe import find_device
from ..report import count, wilson
from ..results import Results, Trial, load_results, t_quantile
from ..results.paired import deviation
from .reproduce import made_trials, several
from .trials import call_provenance

PLACE = ("device", "cpu", "instructions", "system", "versions")
"""What decides how sums are rounded: where all of it is the same, a run is the same bit for bit."""

NOTED = ("python", "commit")
"""What a reader wants to know of if it differs, and what does not excuse other results."""

Z99 = 2.5758293035489004


@dataclass(frozen=True)
class Check:
    """What came of making a run of a results file again.

    Args:
        trial: as the file has it.
        again: as it is now.
        same_place: whether versions and machine are those of the file's run, so that it must be the same bit for bit.
        agrees: whether the file is confirmed.
        words: how, or how not.
        runs: how many finished runs the file has.
    """

    trial: Trial
    again: Trial
    same_place: bool
    agrees: bool
    words: str
    runs: int = 1

    def __str__(self) -> str:
        head = f"1 of {count(self.runs, 'run')} made again"
        return f"{head}: {self.trial.method}, seed {self.trial.seed}: {self.words}"


def check_results_file(
    path: str | Path,
    *,
    root: str | Path | None = None,
    device: str = "auto",
    workers: int = 1,
    methods: Iterable[str] = (),
    seeds: Iterable[int] = (),
) -> Check:
    """Make one finished run of a results file again, as the file itself configures it.

    It is the cheapest of a defense that trains against an attack, since those are what a table is about; the cheapest
    of all if there is none. With the versions and the machine of the file's run, weights and verdicts must be the same
    bit for bit, and so must everything that the file says of the run besides durations. Elsewhere rounding differs, and
    training amplifies it: there each accuracy must lie where another seed of the method is to be expected, in the 99%
    prediction interval of Student's t from the file's own seeds, widened by half the width of the 99% Wilson interval;
    of a single seed, in the 99% Wilson interval made twice as wide. One confirmed run says nothing of the others.

    Args:
        path: the file.
        root: the data folder, as in `load_data`.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.
        workers: 1 makes the run in a process of its own, 0 in this one.
        methods: labels of those of which one is to be made; all if there is none.
        seeds: those of which one is to be made; all if there is none.

    Returns:
        A `Check`; `.agrees` says whether the file is confirmed, `print` says how.

    Raises:
        ArgumentError: the file has no such method or seed.
        FileError: the file is damaged, or has no such run that is finished.
    """
    results = load_results(path)
    one_of("workers", at_least("workers", workers, 0), (0, 1))
    methods, seeds = several("methods", methods), several("seeds", seeds)
    if root is not None:
        check_path("root", root, "folder")
    for method in methods:
        one_of("method", method, results.methods)
    for seed in seeds:
        one_of("seed", seed, results.experiment["seeds"])
    finished = [run for run in results.runs if run.finished]
    asked = [run for run in finished if run.method in (methods or results.methods) and (not seeds or run.seed in seeds)]
    if not asked:
        raise FileError(f"{path} has no finished run{' of those' if finished else ''}: there is nothing to check")
    trial = min(asked, key=lambda run: (not _attacks(run), run.forwards_total, run.method, run.seed))
    found = find_device(device)
    task = (trial.config, None if root is None else str(root), str(found))
    ((_, value),) = made_trials([task], workers, None)
    again = Trial(trial.method, trial.seed, trial.config, **value)
    here, there = call_provenance("", found, workers), results.provenance[trial.call]
    differing = [key for key in PLACE if here[key] != there.get(key)]
    noted = [key for key in NOTED if _commit(here[key]) != _commit(there.get(key))]
    agrees, words = _compare(results, trial, again, differing, noted)
    words += "; what AutoAttack found of it was not made again" if trial.judged else ""
    return Check(trial, again, not differing, agrees, words, len(finished))


def _attacks(run: Trial) -> bool:
    """Whether its defense trains against an attack."""
    cls = DEFENSES.get(str(run.config["defense"].get("name")))
    return cls is not None and cls.select != "clean"


def _commit(value: Any) -> Any:
    return value.removesuffix("+changes") if isinstance(value, str) else value


def _parts(run: Trial) -> dict[str, Any]:
    """All that a run's making decides, without its durations, by what it is called in words."""
    history = {key: column for key, column in run.history.items() if key != "seconds"}
    own = {"notes": run.notes, "history": history, "logs": run.logs, "best epoch": run.best_epoch}
    cost = {"forwards": run.forwards, "forwards_total": run.forwards_total}
    return {**{key: run.made[key] for key in ("weights", "data", "precision") if key in run.made}, **own, **cost}


def _compare(results: Results, trial: Trial, again: Trial, differing: list[str], noted: list[str]) -> tuple[bool, str]:
    """Whether a run made again confirms the recorded one, and in words."""
    if not again.finished:
        return False, f"it fails now: {again.message}"
    others = [f"{'other' if key.endswith('s') else 'another'} {key}" for key in (*differing, *noted)]
    place = ", ".join(others) or "in the same place"
    before, now = _parts(trial), _parts(again)
    rows = [name for name in trial.rows if name in again.rows]
    other = [key for key in before if key in now and before[key] != now[key]]
    changes = [
        f"{name} {trial.rows[name]['correct']} of {trial.rows[name]['total']}, "
        f"now {again.rows[name]['correct']} of {again.rows[name]['total']}"
        for name in rows
        if any(trial.rows[name].get(key) != value for key, value in again.rows[name].items())
    ]
    told = "; ".join([*changes, *([f"other {', '.join(other)}"] if other else [])])
    if not told:
        same = "the same weights bit for bit, and every" if "weights" in before else "every"
        return True, f"confirmed: {same} image meets the same verdict ({place})"
    if "data" in other:
        return False, f"NOT confirmed ({place}): it was made of other data: {told}"
    if all(trial.rows[name]["verdicts"] == again.rows[name]["verdicts"] for name in rows) and "weights" not in other:
        if changes or not differing:
            same = f"the verdicts {'and weights ' if 'weights' in before else ''}are those of the file"
            return False, f"NOT confirmed ({place}): {same}, but its other figures are not: {told}"
        return True, f"confirmed: every image meets the same verdict ({place}); {told}"
    if not differing:
        return False, f"NOT confirmed, with the same versions on the same kind of machine ({place}): {told}"
    outside, basis = [], ""
    for name in rows:
        low, high, basis = expected(results, trial, name)
        if again.rows[name]["total"] != trial.rows[name]["total"] or not low <= again[name] <= high:
            outside.append(f"{name} (expected {low:.1%} to {high:.1%})")
    if outside:
        return False, f"NOT confirmed ({place}): outside {basis}: {', '.join(outside)}; {told}"
    return True, f"confirmed within {basis}, not bit for bit ({place}): {told}"


def expected(results: Results, trial: Trial, name: str) -> tuple[float, float, str]:
    """Where the accuracy of a run made again in another place is to be expected, and by what.

    Args:
        results: of the file.
        trial: the recorded run.
        name: of the row.

    Returns:
        The ends, in [0, 1], and the interval in words.
    """
    row = trial.row(name)
    low, high = wilson(row.correct, row.total, Z99)
    half = (high - low) / 2
    values = [run[name] for run in results.of(trial.method) if name in run.rows]
    n = len(values)
    if n < 2:
        middle, half = row.accuracy, 2 * half
        words = "the 99% Wilson interval of the single seed, made twice as wide"
    else:
        middle = math.fsum(values) / n
        half += t_quantile(0.995, n - 1) * deviation(values) * math.sqrt(1 + 1 / n)
        words = f"the 99% prediction interval from the file's {n} seeds of the method, widened for the number of images"
    return max(0.0, middle - half), min(1.0, middle + half), words
