"""Checkpoints: all that a training needs to go on as if it had never stopped.

    runs/x/checkpoints/
      step-00001200.safetensors     the newest
      step-00001000.safetensors     the one before, in case the newest is damaged

A checkpoint is one safetensors file: tensors, and as JSON in its header what is no tensor, with a SHA-256 of both. It
is written beside its place and renamed, so there is no half of one; what a failing disk has changed is found by the
digest; and nothing in it is executed. A training that has finished removes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import AdvtrainWarning, FileError, bad
from .files import atomic, from_here

FORMAT = "advtrain checkpoint 1"
KEEP = 2
"""How many checkpoints are kept: the newest may be damaged."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are; made with the first.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def paths(self) -> list[Path]:
        """The files, newest first."""
        if not os.path.isdir(self.folder):  # also of a name that no folder can have
            return []
        found = [p for p in self.folder.glob("step-*.safetensors") if re.fullmatch(r"step-\d+", p.stem)]
        return sorted(found, key=lambda path: int(path.stem[5:]), reverse=True)

    def named(self) -> list[Path]:
        """The files as somebody at work in the current folder would write them, newest first."""
        return [from_here(path) for path in self.paths()]

    def write(self, step: int, state: dict[str, Any]) -> Path:
        """Write one, and remove all but the newest `KEEP`.

        Args:
            step: how many steps have been made.
            state: dicts, lists, tuples, tensors, numbers, texts, None.

        Raises:
            ArgumentError: something else is in `state`.
            FileError: it cannot be written; the earlier ones are left.
        """
        tensors: dict[str, Tensor] = {}
        text = json.dumps(_flat(state, "state", tensors))
        path = self.folder / f"step-{step:08d}.safetensors"
        with atomic(path) as partial:
            try:
                save_file(tensors, partial, metadata={"format": FORMAT, "state": text, "sha256": digest(text, tensors)})
            except SafetensorError as error:  # how safetensors says that the disk is full
                raise FileError(f"cannot write {path}: {error}; earlier checkpoints are still there") from error
        for old in self.paths()[KEEP:]:
            old.unlink(missing_ok=True)
        return path

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest that is whole, and its state; None if there are none.

        Raises:
            FileError: there are some, and none of them is whole.

        Warns:
            AdvtrainWarning: a newer one is damaged.
        """
        damaged: list[FileError] = []
        for path in self.paths():
            try:
                state = read(path)
            except FileError as error:
                damaged.append(error)
                continue
            for old in self.paths()[: len(damaged)]:  # out of the way, so that two whole ones are kept from here on
                old.replace(old.with_suffix(".damaged"))
            if damaged:
                text = f"{damaged[0]}. The training goes on from the checkpoint before it, {path.name}"
                warnings.warn(text, AdvtrainWarning, stacklevel=3)
            return path, state
        if damaged:
            raise FileError(f"{damaged[0]}, and no other checkpoint is whole: train anew with overwrite=True")
        return None

    def tidy(self) -> None:
        """Remove what killed writers have left half-written."""
        for path in self.folder.glob(".step-*.partial"):
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove them all."""
        self.tidy()
        for path in [*self.paths(), *self.folder.glob("step-*.damaged")]:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not there, or something of the user's is in it
            self.folder.rmdir()


def read(path: Path) -> dict[str, Any]:
    """The state in a checkpoint.

    Raises:
        FileError: it is missing, damaged, or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if header.get("format") != FORMAT:
            raise FileError(f"{path} is no checkpoint of this version: its format is {header.get('format')!r}")
        if digest(header["state"], tensors) != header["sha256"]:
            raise FileError(f"{path} is damaged: its content is not what was written")
        state: dict[str, Any] = _nested(json.loads(header["state"]), tensors)
    except FileError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError) as error:
        raise FileError(f"{path} is damaged or not a checkpoint: {error}") from error
    return state


def digest(text: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of a text and of tensors with their names, types and shapes, as 64 hexadecimal digits.

    Args:
        text: anything.
        tensors: on the CPU.
    """
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _flat(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, in which a tensor is the name under which it was put into `tensors`."""
    if isinstance(value, Tensor):
        key = f"{len(tensors)} {name}"  # the number keeps "a.b" apart from the "b" in "a"
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(value, dict):
        wrong = next((key for key in value if not isinstance(key, (str, int))), None)
        if wrong is not None:
            bad(f"a key of {name}", wrong, "a text or an integer", "that is what a checkpoint can hold")
        return {"dict": [[key, _flat(part, f"{name}.{key}", tensors)] for key, part in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_flat(part, f"{name}.{i}", tensors) for i, part in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    accepted = "a tensor, number, text or None, or a dict, list or tuple of them"
    bad(name, f"a {type(value).__name__}", accepted, "a checkpoint holds nothing that would have to be executed")


def _nested(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What `_flat` was given."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _nested(part, tensors) for key, part in content}
    parts = [_nested(part, tensors) for part in content]
    return tuple(parts) if kind == "tuple" else parts


def moved(state: Any, device: torch.device) -> Any:
    """The same with every tensor on `device`.

    Args:
        state: dicts, lists and tuples of tensors and others.
        device: where they are wanted.
    """
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: moved(part, device) for key, part in state.items()}
    return type(state)(moved(part, device) for part in state) if isinstance(state, (list, tuple)) else state
