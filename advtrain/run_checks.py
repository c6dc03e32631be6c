"""Is what the JSON files of a run folder say what a run says? What `load_run` refuses beside damaged weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from .checks import check_model
from .data import Dataset
from .errors import AdvtrainError, AdvtrainWarning, ArgumentError, FileError, ModelError, is_real
from .models import Classifier, build_model
from .modes import place
from .resume import images_of

CONFIG = {"status": str, "best_epoch": int, "notes": list, "defense": dict, "options": dict}
RECORD = ("loss", "accuracy", "lr", "seconds", "val_clean", "val_fgsm", "val_pgd")
"""What an epoch's record tells as a number, where it tells it."""


def check_run(folder: Path, config: Any, history: Any, provenance: Any) -> None:
    """Refuse what no run has written; keys that are not known here are left alone.

    Args:
        folder: of the run, for the message.
        config: what `config.json` holds.
        history: the same of `history.json`.
        provenance: the same of `provenance.json`.

    Raises:
        FileError: a file holds something else; the message says which, and what.
    """
    where = folder / "config.json"
    _claim(isinstance(config, dict), where, "it is no set of keys and values")
    for key, kind in CONFIG.items():
        _claim(key in config, where, f"it lacks {key!r}")
        _claim(_is(config[key], kind), where, f"{key} is {_shown(config[key])}, not {kind.__name__}")
    for key in ("model", "data"):
        _claim(config.get(key) is None or isinstance(config[key], dict), where, f"{key} is {_shown(config[key])}")
    for key in ("name", "class"):
        found = config["defense"].get(key)
        _claim(isinstance(found, str), where, f"the {key} of its defense is {_shown(found)}, not str")
    _claim(all(isinstance(note, str) for note in config["notes"]), where, "its notes are not texts")
    seed = config["options"].get("seed", 0)
    _claim(_is(seed, int) and seed >= 0, where, f"its seed is {_shown(seed)}")
    _claim(_bounded(config), where, "it holds a number that is not finite, or too large")

    where = folder / "provenance.json"
    _claim(isinstance(provenance, dict), where, "it is no set of keys and values")

    where = folder / "history.json"
    records = isinstance(history, list) and all(isinstance(record, dict) for record in history)
    _claim(records, where, "it is not a list of records")
    for number, record in enumerate(history, start=1):
        epoch = record.get("epoch")
        _claim(_is(epoch, int) and epoch >= 1, where, f"record {number} is of epoch {_shown(epoch)}")
        for key in RECORD:
            figure = record.get(key)
            _claim(figure is None or _is(figure, float), where, f"{key} of record {number} is {_shown(figure)}")
    _claim(0 <= config["best_epoch"], folder / "config.json", f"best_epoch is {config['best_epoch']}")


def network_of(folder: Path, spec: dict[str, Any]) -> Classifier:
    """The network that a run's configuration describes, if the weights beside are of its sizes.

    That is looked at before it is built: one of other sizes could take all memory.

    Args:
        folder: of the run.
        spec: what `build_model` takes.

    Raises:
        FileError: the configuration describes no network, or another one; or the weights are missing or damaged.
    """
    path, weights = folder / "config.json", folder / "model.safetensors"
    try:
        with torch.device("meta"):
            wanted = {key: list(value.shape) for key, value in build_model(**spec).state_dict().items()}
    except (AdvtrainError, ValueError, TypeError, RuntimeError) as error:  # of which the last is of endless sizes
        raise FileError(f"{path} is damaged: {error}") from error
    try:
        with safe_open(weights, framework="pt") as file:
            found = {key: file.get_slice(key).get_shape() for key in file.keys()}
    except FileNotFoundError as error:
        raise FileError(f"{weights} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise FileError(f"{weights} is damaged or not a safetensors file: {error}") from error
    if other := [key for key in {**wanted, **found} if wanted.get(key) != found.get(key)]:
        text = f"{other[0]} is {wanted.get(other[0])} in the one and {found.get(other[0])} in the other"
        raise FileError(f"{path} and {weights.name} are of different networks, or damaged: {text}")
    return build_model(**spec)


def check_data(folder: Path, model: nn.Module, data: Dataset, told: dict[str, Any], *, given: bool) -> None:
    """Hold data against the run that is said to have been trained on them.

    Args:
        folder: of the run, for the message.
        model: the network of the run, with its weights.
        data: the data.
        told: the run's provenance, which knows the images that it was trained on.
        given: the caller gave them; else they were found where those of the run were.

    Raises:
        ArgumentError: given ones that the network cannot classify, of another shape or with more classes.

    Warns:
        AdvtrainWarning: the images to train on are not those of the run.
    """
    if given:
        plain = getattr(model, "_orig_mod", model)  # which need not be compiled for two images
        device, dtype = place(plain)
        try:
            check_model(plain, data.probe()[:2].to(device).images(dtype=dtype), data.num_classes, probabilities=True)
        except ModelError as error:
            raise ArgumentError(
                f"data={data.name!r} is not what the run in {folder} was trained on: {error}"
            ) from error
    now, before = images_of(data.train).get("images"), told.get("images")
    if now is not None and before is not None and now != before:
        what = f"data={data.name!r} is" if given else f"{data.name} has changed since, and is"
        text = f"{what} not what the run in {folder} was trained on: other images or labels, or split in another way"
        warnings.warn(text, AdvtrainWarning, stacklevel=3)


def _claim(holds: bool, path: Path, wrong: str) -> None:
    if not holds:
        raise FileError(f"{path} is damaged: {wrong}")


def _is(value: Any, kind: type) -> bool:
    """Python's JSON reader also knows numbers without end, and NaN."""
    if kind is float:
        return is_real(value) and abs(value) < 1e300
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, kind)


def _bounded(value: Any) -> bool:
    """Whether all numbers in nested values are finite, and none is larger than a tensor could count."""
    if isinstance(value, Mapping):
        return all(map(_bounded, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_bounded, value))
    return not is_real(value) or (math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
