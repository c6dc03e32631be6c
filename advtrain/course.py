"""The batches of an epoch, also from its middle on: those that the training would have had."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .loader import Loader, StreamLoader, Triple
from .rng import global_state, set_global_state


class Course:
    """Where a training is in its data.

    The caller's own `DataLoader` may draw from PyTorch's global generators, as dropout does. So the states of these are
    kept as they were when the epoch began, which gives the same order again, and when the last batch was loaded.

    Args:
        loader: gives the batches.
        device: where the model trains.
    """

    def __init__(self, loader: Loader | StreamLoader, device: torch.device):
        self.loader, self.device = loader, device
        self.begun: list[Tensor] = []
        self.loaders: Any = None
        self.drawn: list[Tensor] = []

    def batches(self, number: int, skip: int, replay: int) -> Iterator[Triple]:
        """Those of an epoch that are left.

        Args:
            number: of the epoch, from 1.
            skip: how many batches an earlier process has done with.
            replay: how many steps it has made with the next one, which is then loaded again.
        """
        now = global_state(self.device)
        if skip or replay:
            set_global_state(self.begun, self.device)
            self.loader.set_state(self.loaders)
        else:
            self.begun, self.loaders = now, self.loader.state()
        left = self.loader.epoch(number - 1, skip)
        if skip or replay:
            set_global_state(self.drawn if replay else now, self.device)
        while True:
            self.drawn = global_state(self.device)
            if (batch := next(left, None)) is None:
                return
            if replay:
                set_global_state(now, self.device)
                replay = 0
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The states of the generators."""
        return {"begun": self.begun, "loaders": self.loaders, "drawn": self.drawn, "now": self.loader.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.begun, self.loaders, self.drawn = state["begun"], state["loaders"], state["drawn"]
        self.loader.set_state(state["now"])
