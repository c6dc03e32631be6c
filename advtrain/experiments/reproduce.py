"""`advtrain reproduce`: make an experiment's results, and go on where an earlier call ended."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

from ..defenses import from_config
from ..errors import at_least, bad, check_flag, check_path, is_real
from ..files import check_writable
from ..models import build_model
from ..recipe import compiled, find_device
from ..report import count
from ..results import Results, Trial
from ..results.read import in_order, with_judgement
from .checks import place
from .read import load
from .spec import Experiment, Plan
from .store import open_results, save_results
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
    judge: bool = False,
    keep: str | Path | None = None,
    tell: Callable[[str], Any] = lambda text: None,
) -> Results:
    """Make all runs of an experiment, and the file with their results.

    The file is written after every run: what ends the call early, Ctrl-C or a power cut, loses the runs it was at. The
    same call, without `fresh`, goes on from there. Calls that write one file at the same time keep each other's runs.
    A run is skipped if the file has a finished one of the same configuration, to the last option; failed ones are tried
    again. On a CPU each run has one thread, and its verdicts do not depend on `workers`.

    Args:
        experiment: a name in `advtrain.experiments.names()`, the path of a `.toml` file, or an `Experiment`.
        out: the file; `runs/NAME.json` if not given.
        root: the data folder, as in `load_data`.
        workers: processes that make runs at the same time; by default one for each CPU core, or one on a GPU. 0 makes
            them in this process.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.
        methods: labels of the methods wanted; all if there is none.
        seeds: those wanted; all if there is none.
        fresh: make the runs anew. The file as it was is kept beside it, and to go on after an interruption say False.
        time_limit: stop after so many minutes; runs not finished by then are left to the next call. Without worker
            processes it is looked at between runs.
        judge: judge each run on the same images also by AutoAttack, standard version, and by `advtrain.diagnose`, which
            draws 256 of them. A run is in the file before it is judged. One that was there already is judged by its
            kept network, or else trained again; the weights must then come out the same, which they do where the file
            was made, and only on a CPU. Judged runs are skipped.
        keep: a folder for the network of each run, as safetensors under the beginning of the SHA-256 of its weights. A
            call whose time is up while AutoAttack is at work leaves there what it has found, and the next goes on.
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
    methods, seeds = several("methods", methods), several("seeds", seeds)
    plans = experiment.plan(methods, seeds)
    check_flag("fresh", fresh)
    check_flag("judge", judge)
    if root is not None:
        check_path("root", root, "folder")
    out = Path("runs") / f"{experiment.name}.json" if out is None else check_path("out", out, "results file")
    keep = None if keep is None else check_path("keep", keep, "folder")
    if not callable(tell):
        bad("tell", tell, "a function of a line of text", "such as print")
    found = find_device(device)
    if workers is None:
        workers = (os.cpu_count() or 1) if found.type == "cpu" else 1
    at_least("workers", workers, 0)
    if time_limit is not None and not (is_real(time_limit) and 0 < time_limit < math.inf):
        bad("time_limit", time_limit, "above 0 and finite", "it is in minutes")
    root = None if root is None else str(root)
    rehearse(plans, root)
    check_writable(out.parent, holding=out.name, overwrite=True)
    if keep is not None:
        check_writable(keep, holding="", overwrite=True)

    results = open_results(experiment, out, fresh, plans, tell)
    done = {run.key: run for run in results.runs if run.finished and (run.judged or not judge)}
    plans = [plan for plan in plans if plan.key not in done]
    if done:
        tell(f"{count(len(done), 'run')} {'is' if len(done) == 1 else 'are'} in {out} already{' and judged' * judge}")
    unjudged = {run.key: run.made.get("weights", "") for run in results.runs if run.finished and not run.judged}
    if not plans:
        return results
    wanted = {plan.key for plan in experiment.plan()}
    call = call_provenance(_command(experiment, methods, seeds, fresh, judge), found, workers)
    keep = None if keep is None else str(keep)
    tasks = [(plan.config, root, str(found), judge, unjudged.get(plan.key), keep) for plan in plans]
    deadline = None if time_limit is None else time.monotonic() + 60 * time_limit
    mine, begun = None, dict[int, int]()
    with contextlib.closing(made_trials(tasks, min(workers, len(tasks)), deadline)) as made:
        for number, value in made:
            plan = plans[number]
            position = f"[{begun.setdefault(number, len(begun) + 1)}/{len(plans)}]"
            judgement = value.get("judgement", value.get("message"))
            recorded = [run for run in results.runs if run.key == plan.key and run.finished and plan.key in unjudged]
            if recorded and isinstance(judgement, str):
                what = "not judged" if judge else "its network is not kept"
                tell(f"{position} {plan.method}, seed {plan.seed}: {what}: {judgement}")
                continue
            if mine is None:
                results.provenance.append(call)
                mine = len(results.provenance) - 1  # calls of other processes come behind it
            call["end"] = now()
            if recorded:
                row, opinion = value["judgement"]
                trial = with_judgement(recorded[0], row, {**opinion, "call": mine})
            else:
                trial = Trial(plan.method, plan.seed, plan.config, **value, call=mine)
                if trial.finished:
                    unjudged[plan.key] = trial.made["weights"]
            others = [run for run in results.runs if (run.method, run.seed) != (plan.method, plan.seed)]
            results.runs = in_order(results.experiment, [*others, trial])
            save_results(results, out, wanted)
            tell(f"{position} {_line(trial)}")
    return results


def several(name: str, values: Any) -> tuple[Any, ...]:
    """`values` as a tuple; refuse a single one, of which a word would be taken letter by letter.

    Args:
        name: of the argument.
        values: what came.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        bad(name, values, "a list", f"also of a single one: {name}=[{values!r}]")
    return tuple(values)


def _command(experiment: Experiment, methods: Iterable[str], seeds: Iterable[int], fresh: bool, judge: bool) -> str:
    """What to type to make the same runs again, whatever started this call and wherever its files are."""
    words = ["advtrain", "reproduce", experiment.name]
    words += [word for method in methods for word in ("--method", method)]
    words += [word for seed in seeds for word in ("--seed", str(seed))]
    return shlex.join(words + ["--fresh"] * fresh + ["--judge"] * judge)


Made = Generator[tuple[int, Any], None, None]


def made_trials(tasks: list[tuple[Any, ...]], workers: int, deadline: float | None) -> Made:
    """What comes from `make_trial` for each task, in processes or in this one."""
    if workers:
        for place, value in in_workers(make_trial, tasks, workers, deadline=deadline):
            crashed = isinstance(value, Crash)
            yield place, {"status": "failed", "message": value.message, "date": now()} if crashed else value
        return
    for place, task in enumerate(tasks):
        if deadline is not None and time.monotonic() >= deadline:
            return
        for value in make_trial(*task):
            yield place, value


def rehearse(plans: list[Plan], root: str | None) -> None:
    """Refuse, before hours of work, data that are not here, and any method whose network or defense cannot be made."""
    config = plans[0].config
    data = data_of(config, root)
    images, limit = len(judged(data, {**config["judge"], "limit": None})), config["judge"]["limit"]
    if limit is not None and limit > images:
        bad("limit", limit, f"at most {images:,}", f"the {config['judge']['split']} split of {data.name} has no more")
    for plan in {plan.method: plan for plan in plans}.values():
        with place(plan.method):
            defense = from_config(plan.config["defense"])
            compiled(build_model(**plan.config["model"], data=data), defense, plan.config["fit"]["compile"])


def _line(trial: Trial) -> str:
    """A run in one line."""
    head = f"{trial.method}, seed {trial.seed}: "
    if not trial.finished:
        return f"{head}failed: {trial.message}"
    figures = ", ".join(f"{name} {trial[name]:.1%}" for name in trial.rows)
    verdict = f", diagnosed as {trial.judged['diagnose']['verdict']}" if trial.judged else ""
    seconds = trial.seconds["train"] + trial.seconds["judge"] + trial.judged.get("seconds", 0)
    return f"{head}{figures}{verdict} ({seconds:.0f} s)"
