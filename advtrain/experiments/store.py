"""The results file of an experiment at work: nothing that it held is lost, whoever else writes to it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import FileError
from ..files import atomic, locked
from ..report import count
from ..results import Results, load_results
from ..results.read import drop_unused_calls, take_over
from .spec import Experiment, Plan


def open_results(
    experiment: Experiment, out: Path, fresh: bool, plans: list[Plan], tell: Callable[[str], Any]
) -> Results:
    """What the file holds of this experiment's runs; what it holds besides is kept in another file.

    Args:
        experiment: as it is now.
        out: the results file.
        fresh: the planned runs are to be made anew.
        plans: what this call is to make.
        tell: called with a line of text where runs are put aside.

    Raises:
        FileError: it is damaged, or of an experiment of another name.
    """
    results = Results(experiment.content)
    if not out.exists():
        return results
    with locked(out):
        before = load_results(out)
        if (name := before.experiment["name"]) != experiment.name:
            raise FileError(
                f"{out} holds the results of {name!r}, not of {experiment.name!r}: name another file with out"
            )
        # Keys of a later version stay where they were.
        results.experiment = {**before.experiment, **results.experiment}
        wanted = {plan.key for plan in experiment.plan()} - ({plan.key for plan in plans} if fresh else set())
        results.runs = [run for run in before.runs if run.key in wanted]
        results.provenance = before.provenance
        if dropped := len(before.runs) - len(results.runs):
            aside = set_aside(out)
            words = "is" if dropped == 1 else "are"
            reason = "made anew" if fresh else "not of the experiment as it is now"
            tell(f"{count(dropped, 'run')} in {out} {words} {reason}; the file as it was is kept as {aside}")
        drop_unused_calls(results)
        if dropped or results.experiment != before.experiment:
            results.save(out)  # now: a call that goes on must not take up again what was put aside
    return results


def save_results(results: Results, out: Path, wanted: set[tuple[str, str]]) -> None:
    """Write the file, with the finished runs that another process has written there meanwhile.

    Args:
        results: of this process; takes over what it lacks.
        out: the results file.
        wanted: keys of the runs of the experiment as it is.
    """
    with locked(out):
        if out.exists():
            try:
                take_over(results, load_results(out), lambda run: run.finished and run.key in wanted)
            except FileError:  # somebody spoiled it: that must not cost the run that was just made
                set_aside(out)
        results.save(out)


def set_aside(out: Path) -> Path:
    """Copy the file under the first name that is free: X.before.json, X.before-2.json and so on."""
    number = 1
    while (aside := out.with_name(f"{out.stem}.before{f'-{number}' if number > 1 else ''}{out.suffix}")).exists():
        number += 1
    with atomic(aside) as partial:
        shutil.copyfile(out, partial)
    return aside
