"""Is one method better than another? `compare` takes runs as a user has them, and pairs them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from ..errors import ArgumentError, FileError, at_least, bad, check_kind, check_path, is_real, kind_of, one_of
from ..files import read_json
from ..report import Report, Row
from ..runs import Run
from ..threat import Threat
from .paired import paired
from .results import Results
from .significance import PairedTest, PairedTests
from .trial import Trial

KINDS = "a Report, a Run with a folder, the path of a run folder, or a Trial"


class _Entry(NamedTuple):
    """What is known of one run: its seed, how it was judged, and what came out."""

    seed: int | None
    threat: Threat
    rows: dict[str, Row]
    where: str
    images: str | None = None


def compare(
    runs: Any,
    other: Any = None,
    *,
    metric: str = "pgd",
    against: str | None = None,
    alpha: float = 0.05,
) -> PairedTests:
    """Test whether methods differ, with what is paired taken as paired: runs of the same seed, or the same images.

    Differences between runs of one seed have the same split and the same initial weights in them, so they vary less
    than the runs do. Student's t test and the exact sign-flip test look at them over seeds. Two single reports of
    `evaluate` on the same images are compared image by image with the exact McNemar test: that says whether these two
    networks differ, and nothing of what another seed would give. Of several pairs all p-values are also given after
    Holm.

    >>> import advtrain as at
    >>> tests = compare(at.load_results("digits"), against="pgd")
    >>> round(100 * tests["fgsm", "pgd"].difference.mean)  # points under PGD
    -36

    Args:
        runs: a `Results`; or a dict from labels to runs, a list of them or one; or a list of such lists. A run is a
            `Report`, a run folder or its `Run` (with the report.json that `advtrain train` writes), or a `Trial`. Runs
            and trials are paired by their seed, reports by their place in the list.
        other: the runs of a second method, where `runs` is those of one.
        metric: the row that is compared: `"clean"`, `"fgsm"`, `"pgd"`, `"autoattack"`, or another that all have.
        against: a label: compare every other method with this one; all pairs if not given.
        alpha: the level in (0, 1) for which it is said whether there are enough seeds.

    Returns:
        `PairedTests`: `print` shows sentences, with a warning where the seeds are too few for the sign-flip test to
        reach `alpha`, whatever the differences are. `tests["pgd", "fgsm"].p` has the p-values.

    Raises:
        ArgumentError: fewer than two methods, no seed in common, a metric that is missing, runs judged under
            different threats, on different numbers of images, or on different images, where the reports tell.
        FileError: a run folder without a report.
    """
    if not (is_real(alpha) and 0 < alpha < 1):
        bad("alpha", alpha, "in (0, 1)", "0.05 is usual")
    groups, unjudged = _judged(_groups(runs, other), metric)
    methods = {label: _entries(label, group) for label, group in groups.items()}
    if len(methods) < 2:
        bad("runs", list(methods), "at least two methods", "give a second list, or a dict with two labels")
    if against is not None:
        one_of("against", against, methods)
    _check_rows(methods, metric)
    pairs = list(combinations(methods, 2))
    if against is not None:
        pairs = [(label, against) for label in methods if label != against]
    tests = [_test(a, b, metric, methods[a], methods[b]) for a, b in pairs]
    return PairedTests(tests, float(alpha), unjudged + _notes(methods, metric))


def _groups(runs: Any, other: Any) -> dict[str, list[Any]]:
    """Labels and their runs, whatever form they came in."""
    if isinstance(runs, Results):
        if other is not None:
            bad("other", kind_of(other), "of use beside a Results", "it has the methods in it")
        found = {label: runs.of(label) for label in runs.methods}
        return {label: made for label, made in found.items() if made}
    if other is not None:
        runs = [runs, other]
    elif isinstance(runs, Sequence) and not isinstance(runs, str) and not all(map(_is_list, runs)):
        bad("runs", "one list of runs", "the runs of two methods", "write compare(runs_of_a, runs_of_b)")
    if isinstance(runs, Sequence) and not isinstance(runs, str):
        if len(runs) > 26:
            bad("len(runs)", len(runs), "at most 26 without labels", "give a dict from labels to lists")
        runs = {chr(ord("a") + place): group for place, group in enumerate(runs)}
    check_kind("runs", runs, Mapping, 'write compare({"pgd": [...], "fgsm": [...]})')
    return {str(label): list(group) if _is_list(group) else [group] for label, group in runs.items()}


def _judged(groups: dict[str, list[Any]], metric: str) -> tuple[dict[str, list[Any]], list[str]]:
    """Without the trials that lack the row, which a results file in the making has; and how many there were."""

    def lacks(run: Any) -> bool:
        return isinstance(run, Trial) and run.finished and metric not in run.rows

    found = {label: [run for run in group if not lacks(run)] for label, group in groups.items()}
    left_out = sum(map(len, groups.values())) - sum(map(len, found.values()))
    if not left_out or not any(found.values()):
        return groups, []
    words = f"{left_out} run{' has' if left_out == 1 else 's have'} no row {metric!r} and are left out."
    return {label: group for label, group in found.items() if group}, [words]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, os.PathLike))


def _entries(label: str, group: list[Any]) -> dict[int, _Entry]:
    """The runs of a method by seed; by their place where none is known."""
    if not group:
        bad(f"runs[{label!r}]", group, "at least one run")
    entries = [_entry(run, f"runs[{label!r}][{i}]") for i, run in enumerate(group)]
    known = [entry.seed is not None for entry in entries]
    if any(known) and not all(known):
        raise ArgumentError(f"runs[{label!r}] mixes reports, which name no seed, with runs that do: give one kind")
    found: dict[int, _Entry] = {}
    for place, entry in enumerate(entries):
        seed = place if entry.seed is None else entry.seed
        if seed in found:
            raise ArgumentError(f"{found[seed].where} and {entry.where} are both of seed {seed}: one run for each seed")
        found[seed] = entry
    return found


def _entry(run: Any, where: str) -> _Entry:
    if isinstance(run, Report):
        return _Entry(None, run.threat, {row.name: row for row in run.rows}, where, run.images)
    if isinstance(run, Trial):
        if not run.finished:
            raise ArgumentError(f"{where} failed: {run.message}")
        return _Entry(run.seed, Threat(**run.config["judge"]["threat"]), {n: run.row(n) for n in run.rows}, where)
    path = run.path if isinstance(run, Run) else run
    if path is None and isinstance(run, Run):
        raise ArgumentError(f"{where} is a run without a folder, and so without a verdict: give at.evaluate(...) of it")
    if not isinstance(path, (str, os.PathLike)):
        bad(where, kind_of(run), KINDS)
    folder = check_path(where, path, "run folder")
    if not (folder / "report.json").is_file():
        hint = (
            "advtrain evaluate writes one with --out" if (folder / "config.json").is_file() else "it is no run folder"
        )
        raise FileError(f"{where}: {folder} has no report.json: {hint}")
    try:
        report = Report.from_dict(read_json(folder / "report.json"))
        seed = at_least("seed", read_json(folder / "config.json")["options"]["seed"], 0)
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{where}: {folder} is damaged: {error!r}") from error
    return _Entry(seed, report.threat, {row.name: row for row in report.rows}, where, report.images)


def _check_rows(methods: Mapping[str, dict[int, _Entry]], metric: str) -> None:
    """Refuse figures that are not of one kind."""
    entries = [entry for group in methods.values() for entry in group.values()]
    one_of("metric", metric, dict.fromkeys(name for entry in entries for name in entry.rows))
    for entry in entries:
        if metric not in entry.rows:
            raise ArgumentError(f"{entry.where} has no row {metric!r}, which others have: judge all in the same way")
    if metric != "clean" and len(threats := {repr(entry.threat): entry.where for entry in entries}) > 1:
        told = ", ".join(f"{where} under {threat}" for threat, where in threats.items())
        raise ArgumentError(f"the runs are judged under different threats: {told}: compare them under one")
    if len(totals := {entry.rows[metric].total: entry.where for entry in entries}) > 1:
        told = ", ".join(f"{where} on {total:,}" for total, where in totals.items())
        raise ArgumentError(f"the runs are judged on different numbers of images: {told}: judge all on the same")


def _test(a: str, b: str, metric: str, left: dict[int, _Entry], right: dict[int, _Entry]) -> PairedTest:
    of_a, of_b = ({seed: entry.rows[metric].accuracy for seed, entry in side.items()} for side in (left, right))
    difference = paired(a, b, metric, of_a, of_b)
    for first, second in ((left[seed], right[seed]) for seed in difference.seeds):
        if first.images and second.images and first.images != second.images:
            raise ArgumentError(f"{first.where} and {second.where} are judged on different images, or on the same in "
                                "another order, and cannot be paired: judge both on one split")  # fmt: skip
    one, other = (side[difference.seeds[0]].rows[metric].verdicts for side in (left, right))
    if len(difference.seeds) > 1 or one is None or other is None:
        return PairedTest(difference)
    one, other = one.cpu(), other.cpu()
    counts = int((one & ~other).sum()), int((other & ~one).sum()), len(one)
    return PairedTest(difference, counts)


def _notes(methods: Mapping[str, dict[int, _Entry]], metric: str) -> list[str]:
    """What makes figures less alike than they look."""
    entries = [entry.rows[metric] for group in methods.values() for entry in group.values()]
    lines = []
    if len(details := dict.fromkeys(row.details for row in entries)) > 1:
        lines.append(f"They are not judged alike: {'; '.join(text or 'nothing said' for text in details)}.")
    if len({frozenset(group) for group in methods.values()}) > 1:
        lines.append("Not every method has every seed: a pair is compared at the seeds that both have.")
    return lines
