"""Adversarial examples: in memory, or in a .npy file that is mapped into memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from ..data import Split
from ..errors import FileError


class Examples:
    """Where the adversarial examples go.

    Args:
        where: None for nowhere, True for a tensor in memory, or a path that ends in `.npy`. The file takes its name
            when the evaluation is complete; until then it is called `.npy.partial`, and a resumed evaluation goes on
            with it.
        split: the images; what is not broken stays as it is there.
        dtype: of the examples.
        resumed: whether earlier work counts, so that the partial file must be there.

    Raises:
        FileError: the file cannot be made, or the part that was written earlier is gone.
    """

    def __init__(self, where: bool | str | os.PathLike | None, split: Split, dtype: torch.dtype, *, resumed: bool):
        self.path: Path | None = None
        self.array: Tensor | numpy.ndarray | None = None
        if where is None or where is False:
            return
        if where is True:
            self.array = split.images(dtype=dtype).cpu().clone()
            return
        self.path = Path(where)
        self.partial = self.path.with_name(self.path.name + ".partial")
        kind = numpy.dtype(str(dtype).removeprefix("torch."))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if resumed and not self.partial.exists() and self.path.exists():
                os.replace(self.path, self.partial)  # the evaluation was complete
            if resumed and self.partial.exists():
                self.array = numpy.lib.format.open_memmap(self.partial, mode="r+")
                if self.array.shape != tuple(split.x.shape) or self.array.dtype != kind:
                    raise ValueError(f"it holds {self.array.shape} of {self.array.dtype}")
            elif resumed:
                raise FileError(f"{self.partial} is gone, and the state file counts on it: delete the state file")
            else:
                self.array = numpy.lib.format.open_memmap(
                    self.partial, mode="w+", dtype=kind, shape=tuple(split.x.shape)
                )
                for first in range(0, len(split), 1024):
                    self.array[first : first + 1024] = split[first : first + 1024].images(dtype=dtype).cpu().numpy()
        except (OSError, ValueError) as error:
            if isinstance(error, FileError):
                raise
            raise FileError(f"cannot keep adversarial examples in {self.partial}: {error}") from error

    def __setitem__(self, index: Tensor, x_adv: Tensor) -> None:
        """Write the examples of some images."""
        if self.array is None or len(index) == 0:
            return
        if self.path is None:
            self.array[index.cpu()] = x_adv.detach().cpu()
        else:
            self.array[index.cpu().numpy()] = x_adv.detach().cpu().numpy()

    def flush(self) -> None:
        """See to it that what was written is on disk."""
        if self.path is not None:
            self.array.flush()

    def finish(self) -> Any:
        """The examples: the tensor, or the array mapped from the file under its final name."""
        if self.path is None:
            return self.array
        self.flush()
        self.array = None  # closed, so that it can be renamed on every system
        os.replace(self.partial, self.path)
        return numpy.load(self.path, mmap_mode="r")
