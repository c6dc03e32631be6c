"""Reading an experiment's file: from TOML to an `Experiment`, all of it checked."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, FileError, at_least, bad, one_of
from ..results.paired import METRICS
from ..threat import Threat
from .checks import (
    check_keys,
    check_texts,
    data_options,
    fit_options,
    judge_options,
    make_defense,
    make_threat,
    model_options,
    place,
)
from .spec import Comparison, Experiment, Method

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent
TABLES = ("data", "model", "threat", "fit", "judge")
REQUIRED = ("title", "seeds", "data", "model", "threat", "method")
KEYS = (*REQUIRED, "base", "about", "fit", "judge", "compare")


def names() -> list[str]:
    """The experiments that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str | Path) -> Experiment:
    """Read an experiment, and check all of it.

    Args:
        name: one of `names()`, or the path of a file that ends in `.toml`.

    Raises:
        ArgumentError: an unknown name; or the file says what is not accepted: the message names the entry and the key.
        FileError: the file cannot be read, or is not TOML.
    """
    path = _find(name, Path())
    with place(path.name):
        return _read(path.stem, _whole(path))


def _whole(path: Path, *above: Path) -> dict[str, Any]:
    """What a file says, over what its base says, and the base of that; `above` are the files that led here."""
    table = _parse(path)
    if "base" not in table:
        return table
    beneath, above = _find(table["base"], path.parent, "base"), (*above, path.resolve())
    if beneath.resolve() in above:
        bad("base", table["base"], "a file that leads to an end", f"it leads back to {beneath.name}")
    base = _whole(beneath, *above)
    both = [key for key in TABLES if isinstance(base.get(key), dict) and isinstance(table.get(key), dict)]
    return {**base, **table, **{key: {**base[key], **table[key]} for key in both}}


def _find(name: Any, beside: Path, key: str = "experiment") -> Path:
    if not isinstance(name, (str, Path)):
        bad(key, name, "a string", "the name of an experiment, or the path of a .toml file")
    if str(name).endswith(".toml"):
        return beside / os.path.expanduser(name)
    one_of(key, name, names())
    return FOLDER / f"{name}.toml"


def _parse(path: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return table
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist; advtrain reproduce --list shows those of the package") from error
    except (OSError, ValueError, RecursionError) as error:  # of which TOMLDecodeError is a ValueError
        raise FileError(f"{path} cannot be read as TOML: {error}") from error


def _read(name: str, table: dict[str, Any]) -> Experiment:
    """The experiment that a table describes."""
    check_keys(table, KEYS, REQUIRED)
    check_texts({"file name": name}, "file name")
    check_texts(table, "title")
    check_texts(table, "about", lines=True)
    seeds = table["seeds"]
    if not isinstance(seeds, list) or not seeds or len({repr(seed) for seed in seeds}) < len(seeds):
        bad("seeds", seeds, "a list of different integers", "such as seeds = [0, 1, 2]")
    seeds = tuple(at_least("seeds", seed, 0) for seed in seeds)
    with place("[data]"):
        data = data_options(table["data"])
    with place("[model]"):
        model = model_options(table["model"])
    with place("[threat]"):
        threat = make_threat(table["threat"])
    with place("[judge]"):
        judge = judge_options(table.get("judge", {}))
        if judge["split"] == "val" and not data["val"]:
            bad("split", "val", "possible with val = 0", "[data] sets no images aside for validation")
    with place("[fit]"):
        fit_options(table.get("fit", {}))
    methods: dict[str, Method] = {}
    for label, entry in _entries(table, "method"):
        with place(label):
            method = _method(entry, table, threat)
            if method.name in methods:
                bad("name", method.name, "unique", "each method needs a label of its own, such as 'pgd-2'")
            for other in methods.values():
                if (other.defense, other.fit) == (method.defense, method.fit):
                    hint = "with all defaults written out they are the same training: leave one out"
                    bad("name", method.name, f"another method than {other.name!r}", hint)
            if method.fit["select"] == "best" and not data["val"]:
                bad("select", "best", "possible with val = 0", "[data] sets no images aside for validation")
            methods[method.name] = method
    if not methods:
        raise ArgumentError("there is no [[method]]")
    compare = []
    for label, entry in _entries(table, "compare"):
        with place(label):
            check_keys(entry, ("a", "b", "metric", "why"), ("a", "b"))
            check_texts(entry, "why", lines=True)
            for side in ("a", "b"):
                one_of(side, entry[side], methods)
            one_of("metric", entry.get("metric", "pgd"), METRICS)
            if entry["a"] == entry["b"]:
                bad("b", entry["b"], "another method than a")
            compare.append(Comparison(**entry))
    about = table.get("about", "").strip()
    return Experiment(
        name, table["title"], about, data, model, threat, judge, seeds, tuple(methods.values()), tuple(compare)
    )


def _entries(table: dict[str, Any], key: str) -> list[tuple[str, Any]]:
    """The tables of an array with what an error calls each."""
    entries = table.get(key, [])
    if not isinstance(entries, list):
        raise ArgumentError(f"{key} is not a list of tables: begin each with [[{key}]]")
    named = [f" ({e['name']!r})" if isinstance(e, dict) and isinstance(e.get("name"), str) else "" for e in entries]
    return [(f"[[{key}]] {i}{words}", entry) for i, (entry, words) in enumerate(zip(entries, named, strict=True), 1)]


def _method(entry: Any, table: dict[str, Any], threat: Threat) -> Method:
    check_keys(entry, ("name", "defense", "options", "fit", "threat", "about"), ("name", "defense"))
    check_texts(entry, "name")
    check_texts(entry, "about", lines=True)
    if "threat" in entry:
        with place("threat"):
            threat = make_threat({**asdict(threat), **check_keys(entry["threat"], asdict(threat))})
    defense = make_defense(entry["defense"], threat, entry.get("options", {}))
    with place("fit"):
        options = fit_options({**table.get("fit", {}), **check_keys(entry.get("fit", {}), fit_options({}))})
    return Method(entry["name"], defense, options, entry.get("about", "").strip())
