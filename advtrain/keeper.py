"""Which weights a training run gives back: the last, the best, or their running average."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class Average(AveragedModel):
    """An exponential moving average of parameters and running statistics, as PyTorch's own, but nothing waits for it.

    PyTorch's carries its count to the device at every step, and takes each whole number on its own.

    Args:
        model: the network in training.
        decay: the weight of what was there before, in (0, 1); the first update copies.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the model's numbers, after an optimizer step, into the average."""
        both = zip(*(itertools.chain(each.parameters(), each.buffers()) for each in (self.module, model)), strict=True)
        alike: dict[torch.dtype, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for average, now in both:
            alike.setdefault(average.dtype, []).append((average.detach(), now.detach()))
        for dtype, pairs in alike.items():
            averages, news = ([pair[part] for pair in pairs] for part in (0, 1))
            if not self.n_averaged:  # a number of the processor
                torch._foreach_copy_(averages, news)
            elif dtype.is_floating_point or dtype.is_complex:
                torch._foreach_lerp_(averages, news, 1 - self.decay)
            else:
                before, after = (torch.cat([tensor.reshape(-1) for tensor in each]) for each in (averages, news))
                mean = before * self.decay + after * (1 - self.decay)
                parts = mean.to(dtype).split([tensor.numel() for tensor in averages])
                torch._foreach_copy_(averages, [part.view_as(to) for part, to in zip(parts, averages, strict=True)])
        self.n_averaged += 1


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
        self.average = Average(model, ema) if ema else None
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
