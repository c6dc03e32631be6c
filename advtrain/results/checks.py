"""Is a results file whole? What `load_results` refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import FileError, is_real
from ..files import digest_of
from .paired import METRICS

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
PROVENANCE = {"command": str, "start": str, "end": str, "device": str, "versions": dict}
MAY_BE_NONE = ("forwards", "forwards_total")
SHA256 = re.compile(r"[0-9a-f]{64}")


class _Damaged(Exception):
    """What is wrong, and where."""


def check_results(value: Any, path: Path, run_keys: list[str]) -> None:
    """Raise `FileError` unless `value` is what a results file holds."""
    assert {*run_keys, "digest"} == RUN.keys()
    try:
        _keys(value, {"format": int, "experiment": dict, "digest": str, "provenance": list, "runs": list}, "the file")
        _experiment(value["experiment"], value["digest"])
        for i, call in enumerate(value["provenance"]):
            _keys(call, PROVENANCE, f"provenance[{i}]", more=True)
        seen: set[tuple[str, int]] = set()
        labels = [method["name"] for method in value["experiment"]["methods"]]
        for i, run in enumerate(value["runs"]):
            where = f"runs[{i}]"
            _keys(run, RUN, where)
            _run(run, where, labels, value["experiment"]["seeds"], len(value["provenance"]))
            _claim((run["method"], run["seed"]) not in seen, where, "repeats an earlier run's method and seed")
            seen.add((run["method"], run["seed"]))
    except _Damaged as error:
        raise FileError(f"{path} is damaged: {error}") from error


def _claim(holds: bool, where: str, wrong: str) -> None:
    if not holds:
        raise _Damaged(f"{where} {wrong}")


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return is_real(value) and abs(value) < float("inf")
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _keys(value: Any, kinds: dict[str, type], where: str, more: bool = False) -> None:
    """A dict with these keys, values of these types, and no other keys unless `more`."""
    _claim(isinstance(value, dict), where, f"is {type(value).__name__}, not a set of keys and values")
    for key, kind in kinds.items():
        _claim(key in value, where, f"lacks {key!r}")
        good = _is(value[key], kind) or (key in MAY_BE_NONE and value[key] is None)
        _claim(good, f"{where}: {key}", f"is {type(value[key]).__name__}, not {kind.__name__}")
    for key in value if not more else ():
        _claim(key in kinds, where, f"has {key!r}, which is not part of the format")


def _experiment(value: dict[str, Any], digest: str) -> None:
    _keys(value, EXPERIMENT, "experiment")
    for i, method in enumerate(value["methods"]):
        _keys(method, {"name": str, "about": str, "defense": dict, "fit": dict}, f"experiment: methods[{i}]")
    for i, comparison in enumerate(value["compare"]):
        where = f"experiment: compare[{i}]"
        _keys(comparison, {"a": str, "b": str, "metric": str, "why": str}, where)
        labels = [method["name"] for method in value["methods"]]
        _claim(comparison["a"] in labels and comparison["b"] in labels, where, "names no method")
        _claim(comparison["metric"] in METRICS, where, "has an unknown metric")
    _claim(all(_is(seed, int) for seed in value["seeds"]), "experiment: seeds", "are not integers")
    for part in ("threat", "judge"):
        for key in {"threat": ("norm", "eps"), "judge": ("split", "protocol")}[part]:
            _claim(key in value[part], f"experiment: {part}", f"lacks {key!r}")
    _keys(value["judge"]["protocol"], {"steps": int, "restarts": int, "keep": str}, "experiment: protocol", more=True)
    _claim(digest_of(value) == digest, "experiment", "is not what the digest was made of: it was changed afterwards")


def _run(run: dict[str, Any], where: str, labels: list[str], seeds: list[int], calls: int) -> None:
    where = f"{where} ({run['method']}, seed {run['seed']})"
    _claim(run["method"] in labels and run["seed"] in seeds, where, "is not a run of the experiment")
    _claim(digest_of(run["config"]) == run["digest"], where, "has a config that its digest was not made of")
    _claim(0 <= run["call"] < calls, where, f"has call {run['call']}, and provenance has {calls} entries")
    _claim(run["status"] in ("finished", "failed"), where, f"has status {run['status']!r}")
    _claim(all(_is(note, str) for note in run["notes"]), f"{where}: notes", "are not texts")
    columns = run["history"]
    lengths = {len(column) if isinstance(column, list) else -1 for column in columns.values()}
    _claim(len(lengths) <= 1 and -1 not in lengths, f"{where}: history", "is not columns of one length")
    figures = [figure for column in columns.values() for figure in column] + list(run["logs"].values())
    _claim(all(figure is None or _is(figure, float) for figure in figures), f"{where}: history", "has a wrong figure")
    if run["status"] == "failed":
        _claim(bool(run["message"]), where, "failed without a message")
        return
    _keys(run["seconds"], {"train": float, "cpu": float, "judge": float}, f"{where}: seconds")
    _keys(run["rows"], dict.fromkeys(METRICS, dict), f"{where}: rows", more=True)
    for name, row in run["rows"].items():
        _keys(row, ROW, f"{where}: {name}")
        _claim(0 <= row["correct"] <= row["total"] > 0, f"{where}: {name}", "has counts that cannot be")
        _claim(SHA256.fullmatch(row["verdicts"]) is not None, f"{where}: {name}", "has verdicts that are no SHA-256")
    _claim(run["forwards"] is not None and run["forwards_total"] is not None, where, "lacks what it cost")
