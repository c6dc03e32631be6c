"""What an experiment's file may say: keys, types and numbers are checked before anything trains."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ..data import load_data
from ..defense import Defense
from ..defenses import DEFENSES
from ..errors import ArgumentError, ModelError, at_least, bad, is_finite, one_of
from ..evaluate import PROTOCOLS, Protocol
from ..models import MODELS, build_model
from ..recipe import check_options
from ..results.configs import JUDGE, fit_defaults, readable
from ..threat import Threat, parse_eps
from ..train import fit

KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


@contextlib.contextmanager
def place(where: str) -> Iterator[None]:
    """Say of an error in the block where in the file it is."""
    try:
        yield
    except (ArgumentError, ModelError) as error:
        raise ArgumentError(f"{where}: {error}") from error


def check_keys(table: Any, accepted: Iterable[str], required: Iterable[str] = ()) -> dict[str, Any]:
    """Refuse what is no table, and keys that nobody reads: a misspelt option would otherwise do nothing."""
    if not isinstance(table, dict):
        raise ArgumentError(f"{table!r} is not a table of keys and values")
    for key in table:
        one_of("key", key, accepted)
    for key in required:
        if key not in table:
            raise ArgumentError(f"the key {key!r} is missing")
    return table


def check_type(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint` wants it: TOML has no None (written "none") and no fractions (written "8/255")."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    alternatives = typing.get_args(hint) if union else (hint,)
    kinds = [kind for kind in alternatives if kind in KINDS]
    optional = type(None) in alternatives
    if optional and value == "none":
        return None
    if type(value) in kinds or not kinds:
        if isinstance(value, float) and not is_finite(value):
            bad(name, value, "a finite number")
        return value
    if float in kinds and type(value) is int:
        return float(value) if is_finite(value) else bad(name, value, "a finite number")
    if float in kinds and isinstance(value, str) and "/" in value:
        with place(name):
            return parse_eps(value)
    quoted = isinstance(value, str) and str not in kinds
    accepted = [KINDS[kind] for kind in kinds] + (['"none"'] if optional else [])
    bad(name, value, " or ".join(accepted), "write it without quotes" if quoted and value != "none" else "")


def check_texts(table: dict[str, Any], *names: str, lines: bool = False) -> None:
    """Refuse what is no string, or empty, or has control characters; line breaks only if `lines`."""
    for name in names:
        if name in table and not (isinstance(table[name], str) and table[name].strip()):
            bad(name, table[name], "a string", "write it in quotes" if not isinstance(table[name], str) else "")
        if name in table and not readable(table[name], lines):
            bad(name, table[name], "free of control characters" if lines else "one line without control characters")


def typed(table: Any, hints: dict[str, Any], required: Iterable[str] = ()) -> dict[str, Any]:
    """A table whose keys are those of `hints`, its values checked and made of those types."""
    return {key: check_type(key, value, hints[key]) for key, value in check_keys(table, hints, required).items()}


def fit_options(table: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `fit` that `table` changes, the others at their defaults; without seed and device."""
    hints = typing.get_type_hints(fit)
    options = fit_defaults()
    options |= typed(table, {name: hints[name] for name in options})
    check_options({**options, "seed": 0})
    if options["select"] == "best" and not options["validate_every"]:
        bad("select", "best", "possible without validation", "keep validate_every above 0, or select = 'last'")
    return options


def make_threat(table: Any) -> Threat:
    """The threat model of a table with norm and eps."""
    return Threat(**typed(table, typing.get_type_hints(Threat), ("norm", "eps")))


def make_defense(name: Any, threat: Threat, options: Any) -> Defense:
    """The registered defense of that name with options for its fields."""
    one_of("defense", name, DEFENSES)
    cls = DEFENSES[name]
    hints = typing.get_type_hints(cls)
    fields = [field.name for field in dataclasses.fields(cls) if field.init and field.name != "threat"]
    with place(f"options of {name}"):
        return cls(threat, **typed(options, {field: hints[field] for field in fields}))


def data_options(table: Any) -> dict[str, Any]:
    """Name and validation share of the data; which seed and folder, the run knows."""
    hints = typing.get_type_hints(load_data)
    options = {
        "name": "",
        "val": (load_data.__kwdefaults__ or {})["val"],
        **typed(table, {"name": str, "val": hints["val"]}, ("name",)),
    }
    check_texts(options, "name")
    if options["val"] < 0 or (isinstance(options["val"], float) and options["val"] >= 1):
        bad("val", options["val"], "a share in [0, 1) or a count", "0.1 keeps a tenth, 1000 keeps a thousand images")
    return options


def model_options(table: Any) -> dict[str, Any]:
    """Name, first layer and options of the network, every default written out; tried on small images."""
    check_keys(table, table if isinstance(table, dict) else (), ("name",))
    one_of("name", table["name"], MODELS)
    entry = MODELS[table["name"]]
    builder: Any = entry.builder
    hints = typing.get_type_hints(builder if inspect.isfunction(builder) else builder.__init__)
    accepted = {"name": str, "normalize": Any, **{option: hints.get(option, Any) for option in entry.options}}
    options = {"name": "", "normalize": "data", **entry.options, **typed(table, accepted)}
    options["normalize"] = None if options["normalize"] == "none" else options["normalize"]
    trial = {**options, "normalize": None} if options["normalize"] == "data" else options
    channels = check_normalize(options["normalize"])
    with torch.device("meta"):
        build_model(**trial, shape=(channels, 32, 32), num_classes=10)
    return options


def check_normalize(value: Any) -> int:
    """Refuse a first layer that there is none of; returns for how many channels it is."""
    if value in (None, "data", "image"):
        return 1
    pair = isinstance(value, list) and len(value) == 2 and all(isinstance(part, list) and part for part in value)
    numbers = pair and all(is_finite(number) for part in value for number in part)
    if not numbers or len(value[0]) != len(value[1]) or min(value[1]) <= 0:
        accepted = '"data", "image", "none" or [[means], [standard deviations]]'
        bad("normalize", value, accepted, "one number for each channel, such as [[0.5], [0.25]]")
    return len(value[0])


def judge_options(table: Any) -> dict[str, Any]:
    """By which images and which protocol the trained networks are judged."""
    hints = {"split": str, "protocol": Any, "limit": int | None, "batch_size": int}
    options = {**JUDGE, **typed(table, hints)}
    one_of("split", options["split"], ("test", "val"))
    if options["limit"] is not None:
        at_least("limit", options["limit"], 1)
    at_least("batch_size", options["batch_size"], 1)
    protocol = options["protocol"]
    if isinstance(protocol, dict):
        with place("protocol"):
            protocol = Protocol(**typed(protocol, typing.get_type_hints(Protocol)))
    else:
        one_of("protocol", protocol, PROTOCOLS)
        protocol = PROTOCOLS[protocol]
    return {**options, "protocol": dataclasses.asdict(protocol)}
