"""`advtrain reproduce`: make an experiment's results, go on where an earlier call ended, and check a results file."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FileError, at_least, bad, check_kind, is_real
from ..files import check_writable
from ..models import build_model
from ..recipe import find_device
from ..results import Results, Trial, load_results
from .read import load
from .spec import Experiment, Plan
from .trials import call_provenance, data_of, judged, make_trial, now
from .workers import Crash, in_workers


def reproduce(
    experiment: str | Path | Experiment,
    *,
    out: str | Path | None = None,
    root: str | Path | None = None,
    workers: int | None = None,
    device: str = "auto",
    methods: Iterable[str] = (),
    seeds: Iterable[int] = (),
    fresh: bool = False,
    time_limit: float | None = None,
    tell: Callable[[str], Any] = lambda text: None,
) -> Results:
    """Make all runs of an experiment, and the file with their results.

    The file is written after every run: what ends the call early, Ctrl-C or a power cut, loses the runs it was at. The
    same call goes on from there. A run is skipped if the file has a finished one of the same configuration, to the last
    option; failed ones are tried again. On a CPU each run has one thread, and its verdicts do not depend on `workers`.

    Args:
        experiment: a name in `advtrain.experiments.names()`, the path of a `.toml` file, or an `Experiment`.
        out: the file; `runs/NAME.json` if not given.
        root: the data folder, as in `load_data`.
        workers: processes that make runs at the same time; by default one for each CPU core, or one on a GPU. 0 makes
            them in this process.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.
        methods: labels of the methods wanted; all if there is none.
        seeds: those wanted; all if there is none.
        fresh: make all runs anew.
        time_limit: stop after so many minutes; runs not finished by then are left to the next call. Without worker
            processes it is looked at between runs.
        tell: called with a line of text after each run.

    Returns:
        The `Results`, with those runs of the file that were there before. A run that raises is among them, as failed.

    Raises:
        ArgumentError, DataError, FileError: before the first run.
        TrainingError: worker processes cannot be started.
        KeyboardInterrupt: by Ctrl-C; the file is then as after the last finished run.
    """
    if not isinstance(experiment, Experiment):
        experiment = load(experiment)
    plans = experiment.plan(tuple(methods), tuple(seeds))
    found = find_device(device)
    if workers is None:
        workers = (os.cpu_count() or 1) if found.type == "cpu" else 1
    at_least("workers", workers, 0)
    if time_limit is not None and not (is_real(time_limit) and time_limit > 0):
        bad("time_limit", time_limit, "above 0", "it is in minutes")
    out = Path(out) if out is not None else Path("runs") / f"{experiment.name}.json"
    root = None if root is None else str(root)
    check_writable(out.parent, holding="", overwrite=True)
    rehearse(plans, root)

    results = _earlier(experiment, out, fresh, plans, tell)
    done = {run.key for run in results.runs if run.finished}
    plans = [plan for plan in plans if plan.key not in done]
    if done:
        tell(f"{len(done)} runs are in {out} already")
    if not plans:
        return results
    order = {plan.key: place for place, plan in enumerate(experiment.plan())}
    call = call_provenance(_command(experiment, methods, seeds, fresh), found, workers)
    tasks = [(plan.config, root, str(found)) for plan in plans]
    deadline = None if time_limit is None else time.monotonic() + 60 * time_limit
    with contextlib.closing(_made(tasks, min(workers, len(tasks)), deadline)) as made:
        for count, (place, value) in enumerate(made, 1):
            plan = plans[place]
            if count == 1:
                results.provenance.append(call)
            call["end"] = now()
            trial = Trial(plan.method, plan.seed, plan.config, **value, call=len(results.provenance) - 1)
            others = [run for run in results.runs if run.key != plan.key]
            results.runs = sorted([*others, trial], key=lambda run: order[run.key])
            results.save(out)
            tell(f"[{count}/{len(plans)}] {_line(trial)}")
    return results


def _command(experiment: Experiment, methods: Iterable[str], seeds: Iterable[int], fresh: bool) -> str:
    """What to type to make the same runs again, whatever started this call and wherever its files are."""
    words = ["advtrain", "reproduce", experiment.name]
    words += [word for method in methods for word in ("--method", method)]
    words += [word for seed in seeds for word in ("--seed", str(seed))]
    return shlex.join(words + ["--fresh"] * fresh)


def _made(tasks: list[tuple[Any, ...]], workers: int, deadline: float | None) -> Iterator[tuple[int, Any]]:
    """What `make_trial` finds for each task, in processes or in this one."""
    if workers:
        for place, value in in_workers(make_trial, tasks, workers, deadline=deadline):
            crashed = isinstance(value, Crash)
            yield place, {"status": "failed", "message": value.message, "date": now()} if crashed else value
        return
    for place, task in enumerate(tasks):
        if deadline is not None and time.monotonic() >= deadline:
            return
        yield place, make_trial(*task)


def rehearse(plans: list[Plan], root: str | None) -> None:
    """Refuse, before hours of work, data that are not here and a network that does not fit them."""
    config = plans[0].config
    data = data_of(config, root)
    judged(data, config["judge"])
    build_model(**config["model"], data=data)


def _earlier(experiment: Experiment, out: Path, fresh: bool, plans: list[Plan], tell: Callable[[str], Any]) -> Results:
    """What the file holds of this experiment's runs; what it holds besides is kept in another file."""
    results = Results(experiment.content)
    if not out.exists():
        return results
    before = load_results(out)
    if before.experiment["name"] != experiment.name:
        name = before.experiment["name"]
        raise FileError(f"{out} holds the results of {name!r}, not of {experiment.name!r}: name another file with out")
    wanted = {plan.key for plan in experiment.plan()} - ({plan.key for plan in plans} if fresh else set())
    kept = [run for run in before.runs if run.key in wanted]
    if dropped := len(before.runs) - len(kept):
        aside = out.with_name(f"{out.stem}.before{out.suffix}")
        shutil.copyfile(out, aside)
        reason = "are made anew" if fresh else "are not of the experiment as it is now"
        tell(f"{dropped} runs in {out} {reason}; the file as it was is kept as {aside}")
    calls = sorted({run.call for run in kept})
    for run in kept:
        run.call = calls.index(run.call)
    results.runs, results.provenance = kept, [before.provenance[call] for call in calls]
    return results


def _line(trial: Trial) -> str:
    """A run in one line."""
    head = f"{trial.method}, seed {trial.seed}: "
    if not trial.finished:
        return f"{head}failed: {trial.message}"
    figures = ", ".join(f"{name} {trial[name]:.1%}" for name in trial.rows)
    return f"{head}{figures} ({sum(trial.seconds.values()):.0f} s)"


@dataclass(frozen=True)
class Check:
    """What came of making a run of a results file again.

    Args:
        trial: as the file has it.
        again: as it is now.
        same_place: whether versions and machine are those of the file's run, so that it must be the same bit for bit.
        agrees: whether the file is confirmed.
        words: how, or how not.
    """

    trial: Trial
    again: Trial
    same_place: bool
    agrees: bool
    words: str

    def __str__(self) -> str:
        return f"{self.trial.method}, seed {self.trial.seed}: {self.words}"


def check_results_file(
    path: str | Path, *, root: str | Path | None = None, device: str = "auto", workers: int = 1
) -> Check:
    """Make the cheapest finished run of a results file again, as the file itself configures it.

    With the versions and the machine of the file's run, each image must meet the same verdict. Elsewhere rounding
    differs, and training amplifies it: there each accuracy must lie in the 95% Wilson interval of the recorded one.

    Args:
        path: the file.
        root: the data folder, as in `load_data`.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.
        workers: 1 makes the run in a process of its own, 0 in this one.

    Returns:
        A `Check`; `.agrees` says whether the file is confirmed, `print` says how.

    Raises:
        FileError: the file is damaged, or has no finished run.
    """
    results = load_results(path)
    check_kind("workers", workers, int, "0 or 1")
    finished = [run for run in results.runs if run.finished]
    if not finished:
        raise FileError(f"{path} has no finished run: there is nothing to check")
    trial = min(finished, key=lambda run: (run.forwards_total, run.method, run.seed))
    found = find_device(device)
    task = (trial.config, None if root is None else str(root), str(found))
    ((_, value),) = _made([task], min(workers, 1), None)
    again = Trial(trial.method, trial.seed, trial.config, **value)
    here, there = call_provenance("", found, workers), results.provenance[trial.call]
    differing = [key for key in ("device", "cpu", "system", "versions") if here[key] != there.get(key)]
    return Check(trial, again, not differing, *_compare(trial, again, differing))


def _compare(trial: Trial, again: Trial, differing: list[str]) -> tuple[bool, str]:
    """Whether a run made again confirms the recorded one, and in words."""
    if not again.finished:
        return False, f"it fails now: {again.message}"
    rows, fresh = trial.rows, again.rows
    if rows == fresh:
        return True, "confirmed: every image meets the same verdict"
    changes = [
        f"{name} {row['correct']} of {row['total']}, now {fresh[name]['correct']} of {fresh[name]['total']}"
        for name, row in rows.items()
        if row != fresh[name]
    ]
    told = "; ".join(changes)
    if all(row["verdicts"] == fresh[name]["verdicts"] for name, row in rows.items()):
        return False, f"NOT confirmed: the verdicts are those of the file, but its other figures are not theirs: {told}"
    if not differing:
        return False, f"NOT confirmed, with the same versions on the same kind of machine: {told}"
    outside = [
        name
        for name in rows
        if fresh[name]["total"] != rows[name]["total"]
        or not trial.row(name).interval[0] <= again[name] <= trial.row(name).interval[1]
    ]
    place = f"another {', another '.join(differing)}"
    if outside:
        return False, f"NOT confirmed ({place}): outside the 95% interval for {', '.join(outside)}: {told}"
    return True, f"confirmed within the 95% intervals, not image by image ({place}): {told}"
