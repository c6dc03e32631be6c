"""Adversarial examples: in memory, or in a .npy file that is mapped into memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from .. import errors
from ..data import Split
from ..errors import FileError, bad
from ..files import check_writable
from ..threat import Threat
from .state import State

BLOCK = 1024  # images that are looked at together


class Examples:
    """Where the adversarial examples go.

    A file takes its name when the evaluation is complete; until then it is called `.npy.partial`, and a resumed
    evaluation goes on with it. What is in it is held against the state then: an image that stands must be the image
    itself, also where a process was killed after it wrote an example and before it wrote the state.

    Args:
        where: None for nowhere, True for a tensor in memory, or a path that ends in `.npy`.
        split: the images; what is not broken stays as it is there.
        threat: what an example must be inside of.
        dtype: of the examples.
        state: what has been done.

    Raises:
        ArgumentError: another kind of `where`, a file of another ending, or the state file itself.
        FileError: the file cannot be made, does not hold what the state counts on, or another one has its name.
    """

    def __init__(
        self, where: bool | str | os.PathLike[str] | None, split: Split, threat: Threat, dtype: torch.dtype,
        state: State,
    ):  # fmt: skip
        self.split, self.threat, self.dtype, self.state = split, threat, dtype, state
        self.path: Path | None = None
        self.tensor: Tensor | None = None
        self.array: numpy.memmap[Any, Any] | None = None
        if where is None or where is False:
            return
        if where is True:
            if state.begun:
                raise FileError(
                    f"{state.path} holds work whose examples were in memory and are gone: name a file, "
                    "examples='adversarial.npy', or delete the state file"
                )
            self.tensor = split.images(dtype=dtype).detach().cpu().clone()
            return
        self.path = check_path(where, state.path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.final = state.complete and self.path.exists()
        if not self.final and os.path.lexists(self.path):  # this evaluation gives it that name when it is complete
            raise FileError(
                f"examples={str(where)!r} is there already, and not of this evaluation: name another file, or delete it"
            )
        try:
            if state.begun:
                self._reopen(self.path if self.final else self.partial)
            else:
                self._make()
        except FileError:
            raise
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise FileError(
                f"cannot keep adversarial examples in {self.partial}: {why}; choose a folder you may write to"
            ) from error

    def _make(self) -> None:
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        shape, kind = tuple(self.split.shape), numpy.dtype(str(self.dtype).removeprefix("torch."))
        array = self.array = numpy.lib.format.open_memmap(self.partial, mode="w+", dtype=kind, shape=shape)
        for first in range(0, len(self.split), BLOCK):
            array[first : first + BLOCK] = self._clean(slice(first, first + BLOCK)).numpy()

    def _reopen(self, file: Path) -> None:
        """Go on with the file, after a look at every image in it."""
        if not file.exists():
            raise FileError(f"{file} is gone, and the state file counts on it: delete the state file")
        array = self.array = numpy.load(file, mmap_mode="r" if self.final else "r+", allow_pickle=False)
        kind = str(array.dtype)
        if array.shape != tuple(self.split.shape) or kind != str(self.dtype).removeprefix("torch."):
            raise FileError(f"{file} holds {array.shape} of {kind}: it belongs to other images")
        for first in range(0, len(self.split), BLOCK):
            rows = slice(first, first + BLOCK)
            clean, kept = self._clean(rows), torch.from_numpy(array[rows].copy())
            changed, broken = (kept != clean).flatten(1).any(1), self.state.broken_by[rows] > 0
            if not bool((changed & self.threat.contains(kept, clean))[broken].all()):
                raise FileError(
                    f"{file} does not hold the examples that the state file counts on: it belongs to another "
                    "evaluation; name the right one, or delete the state file"
                )
            stale = first + (changed & ~broken).nonzero().squeeze(1)
            if len(stale) and not self.final:
                self[stale] = self._clean(stale)

    def _clean(self, index: slice | Tensor) -> Tensor:
        return self.split[index].images(dtype=self.dtype).detach().cpu()

    def __setitem__(self, index: Tensor, x_adv: Tensor) -> None:
        """Write the examples of some images."""
        if len(index) == 0:
            return
        if self.tensor is not None:
            self.tensor[index.cpu()] = x_adv.detach().cpu()
        elif self.array is not None:
            self.array[index.cpu().numpy()] = x_adv.detach().cpu().numpy()

    def flush(self) -> None:
        """See to it that what was written is on disk."""
        if self.array is not None and not self.final:
            self.array.flush()

    def finish(self) -> Tensor | numpy.ndarray[Any, Any] | None:
        """The examples: the tensor, or the array mapped from the file under its final name."""
        if self.path is None:
            return self.tensor
        self.flush()
        self.array = None  # closed, so that it can be renamed on every system
        if not self.final:
            os.replace(self.partial, self.path)
        array: numpy.memmap[Any, Any] = numpy.load(self.path, mmap_mode="r", allow_pickle=False)
        return array


def check_examples(where: Any, state: str | os.PathLike[str] | None) -> None:
    """Refuse a place for examples that cannot be one, before anything is written.

    Args:
        where: as of `Examples`.
        state: the file of the state, if there is one.
    """
    if where is not None and not isinstance(where, bool):
        path = check_path(where, None if state is None else Path(state))
        check_writable(path.parent, holding=path.name, overwrite=True)


def check_path(where: str | os.PathLike[str], state: Path | None) -> Path:
    """A path for examples, or an error that says what is wrong with it."""
    if not isinstance(where, (str, os.PathLike)):
        bad("examples", where, "True, None or a path that ends in .npy", "such as 'adversarial.npy'")
    path = errors.check_path("examples", where)
    if path.suffix != ".npy":
        bad("examples", str(where), "a path that ends in .npy", f"write {path.stem or 'adversarial'}.npy")
    if path.is_dir():
        raise FileError(f"{path} is a folder: name a file in it, such as {path / 'adversarial.npy'}")
    if state is not None and path.absolute() == state.absolute():
        bad("examples", str(where), "another file than the state", "give each its own")
    return path
