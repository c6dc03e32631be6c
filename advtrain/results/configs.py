"""The configuration of a run: made of its experiment alone, every default written out.

Options come to the package over the years. The default of a new one must be what was done before it, so a configuration
without the key is the same as one with the default: `fill_config` and `fill_experiment` write it in.
"""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from typing import Any

from ..data import load_data
from ..defenses import DEFENSES
from ..evaluate import Protocol
from ..models import MODELS
from ..recipe import RECORDED
from ..threat import Threat
from ..train import fit

JUDGE = {"split": "test", "protocol": "strict", "limit": None, "batch_size": 512}
"""How networks are judged unless an experiment says otherwise."""


def config_of(experiment: dict[str, Any], method: str, seed: int) -> dict[str, Any]:
    """Everything that makes a run what it is.

    Args:
        experiment: the content of an experiment, as in `Experiment.content` and in a results file.
        method: the label of one of its methods.
        seed: one of its seeds.
    """
    entry = next(entry for entry in experiment["methods"] if entry["name"] == method)
    judge = {**experiment["judge"], "threat": experiment["threat"]}
    common = {"data": experiment["data"], "model": experiment["model"], "judge": judge}
    return plain({"seed": seed, **common, "defense": entry["defense"], "fit": entry["fit"]})


def plain(value: dict[str, Any]) -> dict[str, Any]:
    """As it will be when read back from JSON: tuples as lists."""
    read: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    return read


def readable(text: str, lines: bool = False) -> bool:
    """Whether a text has no control characters, which can move a terminal's cursor or reverse what follows.

    Args:
        text: to be printed.
        lines: line breaks are fine.
    """
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return not any(unicodedata.category(char) in hidden for char in text if not (lines and char in "\n\t"))


def fit_defaults() -> dict[str, Any]:
    """The arguments of `fit` that make a training what it is, without the seed."""
    # Not from the signature: Sphinx replaces it by one whose defaults are texts while it builds the book.
    defaults = fit.__kwdefaults__ or {}
    return {name: defaults[name] for name in (*RECORDED, "bf16") if name != "seed"}


def fill_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run with today's default for every option that it does not name.

    Args:
        config: as an earlier version wrote it.
    """
    filled = {key: FILL[key](value) if key in FILL else value for key, value in config.items()}
    if isinstance(filled.get("judge"), dict) and "threat" in filled["judge"]:
        filled["judge"] = {**filled["judge"], "threat": _fill(filled["judge"]["threat"], _fields(Threat))}
    return plain(filled)


def fill_experiment(content: dict[str, Any]) -> dict[str, Any]:
    """The content of an experiment, filled in the same way.

    Args:
        content: as an earlier version wrote it.
    """
    filled: dict[str, Any] = {key: FILL[key](value) if key in FILL else value for key, value in content.items()}
    filled["threat"] = _fill(filled["threat"], _fields(Threat))
    methods: list[dict[str, Any]] = filled["methods"]
    methods = [{**m, "defense": _defense(m["defense"]), "fit": _fill(m["fit"], fit_defaults())} for m in methods]
    return plain({**filled, "methods": methods})


def _fill(value: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {**value, **{key: default for key, default in defaults.items() if key not in value}}


def _fields(cls: type) -> dict[str, Any]:
    """The fields of a dataclass that have a default."""
    found = {}
    for field in dataclasses.fields(cls):
        if field.init and field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.init and field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


def _defense(value: dict[str, Any]) -> dict[str, Any]:
    cls = DEFENSES.get(str(value.get("name")))
    if cls is None:  # of a later version, or the user's own
        return value
    value = _fill(value, {key: default for key, default in _fields(cls).items() if key != "threat"})
    if isinstance(value.get("threat"), dict):
        value["threat"] = _fill(value["threat"], _fields(Threat))
    return value


def _model(value: dict[str, Any]) -> dict[str, Any]:
    entry = MODELS.get(str(value.get("name")))
    return value if entry is None else _fill(value, {"normalize": "data", **entry.options})


def _data(value: dict[str, Any]) -> dict[str, Any]:
    return _fill(value, {"val": (load_data.__kwdefaults__ or {})["val"]})


def _judge(value: dict[str, Any]) -> dict[str, Any]:
    value = _fill(value, {**JUDGE, "protocol": {}})
    return {**value, "protocol": _fill(value["protocol"], _fields(Protocol))}


def _fit(value: dict[str, Any]) -> dict[str, Any]:
    return _fill(value, fit_defaults())


FILL = {
    "data": _data, "model": _model, "judge": _judge, "defense": _defense,
    "fit": _fit,
}  # fmt: skip
