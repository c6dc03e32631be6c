"""Trained networks of an experiment in a folder, so that a later call can judge them without training them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..data import Dataset
from ..errors import FileError
from ..recipe import find_device
from ..results.networks import digest_of_weights, file_of, read_network
from ..weights import save_weights


class Kept:
    """Networks by the SHA-256 of their weights, under the names that they have in `book/results/weights`.

    Args:
        folder: where they are; made when the first comes. None keeps nothing.
    """

    def __init__(self, folder: str | Path | None):
        self.folder = None if folder is None else Path(folder)

    def put(self, model: nn.Module) -> None:
        """Keep a network.

        Raises:
            FileError: it cannot be written.
        """
        if self.folder is not None:
            save_weights(model, self.folder / file_of(digest_of_weights(model)))

    def get(self, weights: str, config: dict[str, Any], data: Dataset, device: str) -> nn.Module | None:
        """The network with these weights, in evaluation mode; None if it is not here.

        Args:
            weights: SHA-256 of them.
            config: of the run that made them.
            data: of the run.
            device: where it goes.

        Raises:
            FileError: the file is damaged.
        """
        path = None if self.folder is None else self.folder / file_of(weights)
        if path is None or not path.exists():
            return None
        model = read_network(path, weights, config, data)
        if model is None:
            raise FileError(f"{path} is damaged: it holds other weights than its name says. Delete it")
        return model.to(find_device(device))

    def state(self, weights: str) -> Path | None:
        """Where an evaluation by AutoAttack that is cut short leaves what it has found."""
        return None if self.folder is None else (self.folder / file_of(weights)).with_suffix(".autoattack")
