"""Which weights a training run gives back: the last, the best, or their running average."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Keeper:
    """Averages weights while training goes on, and remembers the best.

    Args:
        model: the network in training.
        select: `"last"`, or `"best"` by validation.
        by: what the best is chosen by: `"pgd"` or `"clean"` accuracy; the other one decides between equals.
        ema: decay in (0, 1) of an exponential moving average of parameters and running statistics, or None. It looks
            back over about 1 / (1 - ema) steps; after fewer steps it is mostly the beginning.
        remember: keep the best at hand also where the last is selected, for `rewind`.
    """

    def __init__(self, model: nn.Module, *, select: str, by: str, ema: float | None, remember: bool = False):
        self.model, self.select, self.by, self.remember = model, select, by, remember
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema), use_buffers=True) if ema else None
        self.best: tuple[tuple[float, float], int, dict[str, torch.Tensor]] | None = None  # score, epoch, weights
        self.last = 0  # the epoch that ended last

    @property
    def epoch(self) -> int:
        """The epoch whose weights would be given back now; 0 if none has ended, or none was validated."""
        if self.select == "last":
            return self.last
        return self.best[1] if self.best else 0

    def after_step(self) -> None:
        """Take the weights after an optimizer step into the average."""
        if self.average is not None:
            self.average.update_parameters(self.model)

    @property
    def current(self) -> nn.Module:
        """The network to validate: the average if there is one."""
        return self.model if self.average is None else self.average.module

    def after_epoch(self, record: dict[str, Any]) -> None:
        """Remember the weights of this epoch if they are the ones to keep; a record without validation keeps none."""
        self.last = record["epoch"]
        if (self.select == "best" or self.remember) and "val_pgd" in record:
            clean, pgd = record["val_clean"], record["val_pgd"]
            score = (clean, pgd) if self.by == "clean" else (pgd, clean)
            if self.best is None or score > self.best[0]:
                self.best = (score, self.last, _copy(self.current))

    def rewind(self) -> None:
        """Give back the best weights, whatever was selected."""
        self.select = "best"

    @property
    def holds_best(self) -> bool:
        """Whether the weights to give back are those of an epoch that was remembered."""
        return self.select == "best" and self.best is not None

    def restore(self) -> None:
        """Put the weights to keep into the model."""
        if self.select == "best" and self.best is not None:
            self.model.load_state_dict(self.best[2])
        elif self.average is not None and self.average.n_averaged > 0:
            self.model.load_state_dict(self.average.module.state_dict())

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Inside, the model holds the weights to keep; afterwards it has its own back and training can go on."""
        if not self.holds_best and self.average is None:
            yield
            return
        own = _copy(self.model)
        try:
            self.restore()
            yield
        finally:
            self.model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """The average and the best weights so far."""
        average = None if self.average is None else self.average.state_dict()
        return {"average": average, "best": self.best, "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.last = state["last"]
        if state["best"] is not None:
            score, epoch, weights = state["best"]
            self.best = ((score[0], score[1]), epoch, weights)


def _copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}
