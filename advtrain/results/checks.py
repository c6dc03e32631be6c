"""Is a results file whole, and does it agree with itself? What `load_results` refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, FileError, is_real
from ..evaluate import Protocol
from ..files import digest_of
from ..threat import Threat
from .configs import config_of, fill_config, fill_experiment, readable
from .paired import ALWAYS

FILE = {"format": int, "experiment": dict, "digest": str, "provenance": list, "runs": list, "sum": str}
EXPERIMENT = {
    "name": str, "title": str, "about": str, "data": dict, "model": dict, "threat": dict, "judge": dict, "seeds": list,
    "methods": list, "compare": list,
}  # fmt: skip
RUN = {
    "method": str, "seed": int, "digest": str, "config": dict, "status": str, "message": str, "rows": dict,
    "notes": list, "history": dict, "logs": dict, "best_epoch": int, "made": dict, "seconds": dict, "forwards": float,
    "forwards_total": int, "date": str, "call": int,
}  # fmt: skip
ROW = {"correct": int, "total": int, "details": str, "verdicts": str}
JUDGED = {"autoattack": dict, "diagnose": dict, "seconds": float, "call": int}
DIAGNOSIS = {"verdict": str, "causes": list}
PROVENANCE = {"command": str, "start": str, "end": str, "device": str, "versions": dict}
MAY_BE_NONE = ("forwards", "forwards_total")
MAY_BE_MISSING = ("made", "cpu", "sum")  # in the earliest files
SHA256 = re.compile(r"[0-9a-f]{64}")


class _Damaged(Exception):
    """What is wrong, and where."""


def check_results(value: Any, path: Path) -> None:
    """Raise `FileError` unless `value` is what a results file holds."""
    try:
        _text(value)
        _keys(value, FILE, "the file", more=False)
        experiment = value["experiment"]
        _experiment(experiment, value["digest"])
        for i, call in enumerate(value["provenance"]):
            _keys(call, PROVENANCE, f"provenance[{i}]")
            commit = call.get("commit")
            _claim(commit is None or _is(commit, str), f"provenance[{i}]: commit", "is no string")
        filled = fill_experiment(experiment)
        seen: set[tuple[str, int]] = set()
        labels = [method["name"] for method in experiment["methods"]]
        for i, run in enumerate(value["runs"]):
            where = f"runs[{i}]"
            _keys(run, RUN, where)
            where = f"{where} ({run['method']}, seed {run['seed']})"
            known = run["method"] in labels and run["seed"] in experiment["seeds"]
            _claim(known, where, "is not a run of the experiment")
            _config(run, filled, where)
            _run(run, where, len(value["provenance"]))
            _claim((run["method"], run["seed"]) not in seen, where, "repeats an earlier run's method and seed")
            seen.add((run["method"], run["seed"]))
        whole = digest_of({key: value[key] for key in ("provenance", "runs")})  # last: the others say more
        words = "are not what the sum was made of: something was changed afterwards; without its line 'sum' it is read"
        _claim(value.get("sum", whole) == whole, "provenance or runs", words)
    except _Damaged as error:
        raise FileError(f"{path} is damaged: {error}") from error


def _text(value: Any) -> None:
    """Refuse what Python's JSON reader lets pass and no file can hold: NaN, half a character, endless nesting."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise _Damaged(f"it holds what is not JSON: {error}") from error


def _claim(holds: bool, where: str, wrong: str) -> None:
    if not holds:
        raise _Damaged(f"{where} {wrong}")


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return is_real(value) and abs(value) < 1e300  # also of integers, which have no end in Python
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, kind)


def _keys(value: Any, kinds: Mapping[str, type], where: str, more: bool = True) -> None:
    """A dict with these keys, values of these types; with other keys only if `more`."""
    _claim(isinstance(value, dict), where, f"is {type(value).__name__}, not a set of keys and values")
    for key, kind in kinds.items():
        if key not in value and key in MAY_BE_MISSING:
            continue
        _claim(key in value, where, f"lacks {key!r}")
        good = _is(value[key], kind) or (key in MAY_BE_NONE and value[key] is None)
        large = kind in (int, float) and type(value[key]) in (int, kind)
        wrong = "is too large" if large else f"is {type(value[key]).__name__}, not {kind.__name__}"
        _claim(good, f"{where}: {key}", wrong)
    for key in value if not more else ():
        _claim(key in kinds, where, f"has {key!r}, which is not part of the format")


def _experiment(value: dict[str, Any], digest: str) -> None:
    _keys(value, EXPERIMENT, "experiment")
    for i, method in enumerate(value["methods"]):
        _keys(method, {"name": str, "about": str, "defense": dict, "fit": dict}, f"experiment: methods[{i}]")
    labels = [method["name"] for method in value["methods"]]
    _claim(len(set(labels)) == len(labels), "experiment: methods", "have a label twice")
    shown = all(map(readable, [value["name"], value["title"], *labels]))
    _claim(shown, "experiment", "has control characters in a name or the title")
    for i, comparison in enumerate(value["compare"]):
        where = f"experiment: compare[{i}]"
        _keys(comparison, {"a": str, "b": str, "metric": str, "why": str}, where)
        _claim(comparison["a"] in labels and comparison["b"] in labels, where, "names no method")
    _claim(all(_is(seed, int) for seed in value["seeds"]), "experiment: seeds", "are not integers")
    _keys(value["threat"], {"norm": str, "eps": float}, "experiment: threat")
    _keys(value["judge"], {"split": str, "protocol": dict}, "experiment: judge")
    limit = value["judge"].get("limit")
    _claim(limit is None or (_is(limit, int) and limit > 0), "experiment: judge", f"has limit {limit!r}")
    for part, table, cls in (("threat", value["threat"], Threat), ("protocol", value["judge"]["protocol"], Protocol)):
        try:
            cls(**{key: item for key, item in table.items() if key in cls.__dataclass_fields__})
        except ArgumentError as error:
            raise _Damaged(f"experiment: {part}: {error}") from error
    _claim(digest_of(value) == digest, "experiment", "is not what the digest was made of: it was changed afterwards")


def _config(run: dict[str, Any], experiment: dict[str, Any], where: str) -> None:
    """The configuration is that of the run's label and seed; `experiment` is filled."""
    _claim(digest_of(run["config"]) == run["digest"], where, "has a config that its digest was not made of")
    parts = ("data", "model", "judge", "defense", "fit")
    _keys(run["config"], {"seed": int, **dict.fromkeys(parts, dict)}, f"{where}: config")
    for key in ("protocol", "threat"):
        _claim(isinstance(run["config"]["judge"].get(key, {}), dict), f"{where}: config", f"has a {key} that is none")
    found, wanted = fill_config(run["config"]), config_of(experiment, run["method"], run["seed"])
    other = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    words = f"has a config that is not the experiment's for this method and seed: {', '.join(other)}"
    _claim(digest_of(found) == digest_of(wanted), where, words)


def _run(run: dict[str, Any], where: str, calls: int) -> None:
    _claim(0 <= run["call"] < calls, where, f"has call {run['call']}, and provenance has {calls} entries")
    _claim(run["status"] in ("finished", "failed"), where, f"has status {run['status']!r}")
    _claim(all(_is(note, str) for note in run["notes"]), f"{where}: notes", "are not strings")
    columns = run["history"]
    lengths = {len(column) if isinstance(column, list) else -1 for column in columns.values()}
    _claim(len(lengths) <= 1 and -1 not in lengths, f"{where}: history", "is not columns of one length")
    figures = [figure for column in columns.values() for figure in column] + list(run["logs"].values())
    _claim(all(figure is None or _is(figure, float) for figure in figures), f"{where}: history", "has a wrong figure")
    _claim(run["status"] == "finished" or "judged" not in run, where, "failed and was judged all the same")
    if run["status"] == "failed":
        _claim(bool(run["message"]), where, "failed without a message")
        return
    _keys(run["seconds"], {"train": float, "cpu": float, "judge": float}, f"{where}: seconds")
    costs = {f"seconds: {key}": run["seconds"].get(key, 0) for key in ("train", "cpu", "judge")}
    for name, figure in {**costs, **{key: run[key] for key in MAY_BE_NONE}}.items():
        _claim(figure is not None, where, "lacks what it cost")
        _claim(figure >= 0, f"{where}: {name}", "is negative")
    for key in ("data", "weights"):
        made = run.get("made", {}).get(key, "0" * 64)
        _claim(_is(made, str) and SHA256.fullmatch(made) is not None, f"{where}: made", f"has no SHA-256 of the {key}")
    _keys(run["rows"], dict.fromkeys(ALWAYS, dict), f"{where}: rows")
    for name, row in run["rows"].items():
        _keys(row, ROW, f"{where}: {name}")
        _claim(0 <= row["correct"] <= row["total"] > 0, f"{where}: {name}", "has counts that cannot be")
        _claim(SHA256.fullmatch(row["verdicts"]) is not None, f"{where}: {name}", "has verdicts that are no SHA-256")
    _claim(len({row["total"] for row in run["rows"].values()}) == 1, f"{where}: rows", "are of different images")
    if "judged" in run:
        _judged(run, where, calls)


def _judged(run: dict[str, Any], where: str, calls: int) -> None:
    """What AutoAttack and a diagnosis added to a run."""
    judged = run["judged"]
    _keys(judged, JUDGED, f"{where}: judged")
    _claim(0 <= judged["call"] < calls, f"{where}: judged", f"has call {judged['call']}, and there are {calls}")
    _claim(judged["seconds"] >= 0, f"{where}: judged", "took negative seconds")
    _claim("autoattack" in run["rows"], where, "was judged by AutoAttack and has no row of it")
    found = judged["diagnose"]
    _keys(found, DIAGNOSIS, f"{where}: diagnose")
    words = [found["verdict"], *found["causes"], *judged["autoattack"].get("warnings", [])]
    _claim(
        all(_is(word, str) and readable(word, True) for word in words), f"{where}: judged", "has words that are none"
    )
