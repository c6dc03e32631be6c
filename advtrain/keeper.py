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
    """

    def __init__(self, model: nn.Module, *, select: str, by: str, ema: float | None):
        self.model, self.select, self.by = model, select, by
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema), use_buffers=True) if ema else None
        self.best: tuple[tuple[float, float], dict[str, torch.Tensor]] | None = None
        self.epoch = 0  # the epoch whose weights would be given back now

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
        if self.select == "last":
            self.epoch = record["epoch"]
        elif "val_pgd" in record:
            clean, pgd = record["val_clean"], record["val_pgd"]
            score = (clean, pgd) if self.by == "clean" else (pgd, clean)
            if self.best is None or score > self.best[0]:
                self.best, self.epoch = (score, _copy(self.current)), record["epoch"]

    def restore(self) -> None:
        """Put the weights to keep into the model."""
        if self.best is not None:
            self.model.load_state_dict(self.best[1])
        elif self.average is not None and self.average.n_averaged > 0:
            self.model.load_state_dict(self.average.module.state_dict())

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Inside, the model holds the weights to keep; afterwards it has its own back and training can go on."""
        if self.best is None and self.average is None:
            yield
            return
        own = _copy(self.model)
        try:
            self.restore()
            yield
        finally:
            self.model.load_state_dict(own)


def _copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}
