"""What has been done, on disk, so that a killed evaluation goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..data import Split
from ..errors import FileError
from ..files import atomic, digest_of

FORMAT = "advtrain autoattack 1"


class State:
    """Which images stand, and which attacks each has met; on disk if there is a path.

    Args:
        total: how many images there are.
        attacks: how many attacks.
        key: SHA-256 of everything that the verdict depends on.
        path: the state file, or None.

    Attributes:
        broken_by: (N,) int16; see `AutoAttackReport`.
        met: (attacks + 1, N) bool: which images have been through the clean pass (row 0) and each attack.
        passes: how many images went through the model for queries, and how many for gradients.
        warnings: what has been warned of.

    Raises:
        FileError: the file is damaged, or belongs to another evaluation.
    """

    def __init__(self, total: int, attacks: int, key: dict[str, Any], path: str | os.PathLike[str] | None):
        self.path, self.key = None if path is None else Path(path), key
        self.broken_by = torch.full((total,), -1, dtype=torch.int16)
        self.met = torch.zeros(attacks + 1, total, dtype=torch.bool)
        self.passes = {"queries": 0, "gradients": 0}
        self.warnings: list[str] = []
        self._saved = -float("inf")
        if self.path is not None and self.path.exists():
            self._load()
        elif self.path is not None:
            self.save()  # an unwritable folder is found out before the work

    @property
    def begun(self) -> bool:
        """Whether anything has been done."""
        return bool(self.met.any())

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return bool(self.met[0].all() and (self.met.all(0) | (self.broken_by != -1)).all())

    @property
    def due(self) -> bool:
        """Whether it is time to write the file: every two seconds at most."""
        return self.path is not None and time.monotonic() - self._saved >= 2

    def save(self) -> None:
        """Write the file, if there is one."""
        if self.path is None:
            return
        about = {"format": FORMAT, "key": self.key, "passes": self.passes, "warnings": self.warnings}
        tensors = {"broken_by": self.broken_by, "met": self.met.to(torch.uint8)}
        with atomic(self.path) as partial:
            try:
                save_file(tensors, partial, metadata={"about": json.dumps(about)})
            except SafetensorError as error:  # how safetensors says that the disk is full
                raise OSError(f"{error}") from error
        self._saved = time.monotonic()

    def _load(self) -> None:
        try:
            with safe_open(self.path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["about"])
                broken_by, met = file.get_tensor("broken_by"), file.get_tensor("met").bool()
            kind, key, warnings = about["format"], dict(about["key"]), [str(text) for text in about["warnings"]]
            passes = {name: int(about["passes"][name]) for name in self.passes}
        except (SafetensorError, OSError, RecursionError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise FileError(f"{self.path} is damaged or no state of AutoAttack: {error}; delete it") from error
        other = [name for name in self.key if key.get(name) != self.key[name]]
        if kind != FORMAT or other or broken_by.shape != self.broken_by.shape or met.shape != self.met.shape:
            raise FileError(
                f"{self.path} is the state of another evaluation: {', '.join(other) or 'its size'} differs; choose "
                "another file, or delete it"
            )
        self.broken_by, self.met = broken_by, met
        self.passes, self.warnings = passes, warnings


def fingerprint(model: nn.Module, split: Split, options: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of the model, of the images and of the options, each by name.

    Args:
        model: its layers as it prints them, parameters and buffers count; not the code of its `forward`.
        split: pixels and labels.
        options: threat, version, seed and so on, as JSON-able values.
    """
    weights = hashlib.sha256(f"{type(model).__name__} {model}".encode())
    for name, value in sorted([*model.named_parameters(), *model.named_buffers()], key=lambda entry: entry[0]):
        weights.update(name.encode() + _bytes(value))
    pixels = hashlib.sha256(str(tuple(split.shape)).encode())
    for part in range(0, len(split), 1024):
        piece = split[part : part + 1024]
        pixels.update(_bytes(piece.x) + _bytes(piece.y))
    own = {name: digest_of(value) for name, value in options.items()}
    return {"model": weights.hexdigest(), "images": pixels.hexdigest(), **own}


def _bytes(value: Tensor) -> bytes:
    """The tensor's memory, for types that NumPy knows and for those that it does not."""
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
