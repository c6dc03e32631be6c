"""Numbers that are none: an update spoilt by NaN or infinity is not made, and the training ends soon after.

Whether a step is sound is decided where the model is, so that no GPU waits for its host: after the first bad step the
optimizer passes over every update, and buffers are put back. The host looks now and then, and then ends the training.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .processes import several

LOOK = 20
"""Steps between two looks of the host at what a GPU has found; a CPU is asked after every step."""

_LOSS, _GRADIENT, _PLAYER = 1, 2, 4


def all_finite(tensors: Iterable[Tensor | None]) -> Tensor:
    """Whether no number among `tensors` is NaN or infinite: a bool scalar where they are. Nothing waits for it.

    Args:
        tensors: of floating point; None stands for no tensor.
    """
    found = [tensor.detach() for tensor in tensors if tensor is not None]
    if not found:
        return torch.ones((), dtype=torch.bool)
    if found[0].device.type not in ("cpu", "cuda"):  # where a maximum may pass over NaN
        return torch.stack([tensor.isfinite().all() for tensor in found]).all()
    largest: Tensor = nn.utils.get_total_norm(found, norm_type=float("inf"))  # of NaN it is NaN
    return largest.isfinite()


def answers_at_once(value: Tensor) -> bool:
    """Whether the host can read a tensor without waiting for a device."""
    return value.device.type == "cpu"


def step_if(good: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """An optimizer's step, unless `good` is False, which then changes neither parameters nor the optimizer's state.

    Args:
        good: a bool scalar where the parameters are.
        optimizer: with gradients in place. A fused one is told on the device, by the attribute through which
            `torch.amp.GradScaler` tells it; another one waits for `good`.
    """
    if not answers_at_once(good) and all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif good:
        optimizer.step()


def begin_at_rest(optimizer: torch.optim.Optimizer) -> None:
    """Give SGD its momentum from the beginning, as zeros: a fused step would leave it undefined if the first is bad.

    Args:
        optimizer: one with momentum; others are left as they are.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)


class Copies:
    """Copies of tensors, to put them back where something turns out to be wrong.

    Args:
        tensors: all on one device.
    """

    def __init__(self, tensors: Iterable[Tensor]):
        alike: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            alike.setdefault(tensor.dtype, []).append(tensor.detach())
        self.groups = list(alike.values())
        self.take()

    def _rows(self) -> list[Tensor]:
        """All numbers of one dtype in a row: many small tensors would be as many operations of a GPU."""
        return [torch.cat([tensor.reshape(-1) for tensor in group]) for group in self.groups]

    @torch.no_grad()
    def take(self) -> None:
        """Copy the tensors as they are now."""
        self.copies = self._rows()

    @torch.no_grad()
    def put_back_unless(self, good: Tensor) -> None:
        """Give the tensors their copied values unless `good`, a bool scalar on their device. Nothing waits for it."""
        for group, now, copy in zip(self.groups, self._rows(), self.copies, strict=True):
            parts = torch.where(good, now, copy).split([tensor.numel() for tensor in group])
            torch._foreach_copy_(group, [part.view_as(tensor) for part, tensor in zip(parts, group, strict=True)])


class Found(NamedTuple):
    """The first bad step.

    Args:
        step: its number, from 0; None if nobody knows which it was.
        what: what was wrong, in words.
    """

    step: int | None
    what: str


class Guard:
    """Judges each step of a training, and knows the first bad one.

    Args:
        model: the network in training; the buffers of its layers are what a bad step would leave spoilt.
        device: where it is.
    """

    def __init__(self, model: nn.Module, device: torch.device):
        self.model = model
        self.buffers = Copies(model.buffers())
        self.good = torch.ones((), dtype=torch.bool, device=device)  # no bad step so far
        self.step = torch.full((), -1, dtype=torch.int64, device=device)
        self.what = torch.zeros((), dtype=torch.int64, device=device)
        self.loss = torch.zeros((), device=device)
        self.unseen = 0

    @contextlib.contextmanager
    def judging(self, step: int) -> Iterator[list[Tensor]]:
        """Around the passes of step number `step`; yields a list that takes the loss, and a player's verdict if any."""
        self.buffers.take()
        told: list[Tensor] = []
        yield told
        loss, *players = told
        sound = [loss.detach().isfinite(), all_finite(p.grad for p in self.model.parameters()), *players]
        codes = zip((_LOSS, _GRADIENT, _PLAYER), sound, strict=False)
        what = torch.stack([(~each).to(self.what) * code for code, each in codes]).sum()
        if several():  # all of them together make the update, or none does
            dist.all_reduce(what, dist.ReduceOp.MAX)
        first = self.good & (what > 0)
        self.step.copy_(torch.where(first, step, self.step))
        self.what.copy_(torch.where(first, what, self.what))
        self.loss.copy_(torch.where(first, loss.detach().to(self.loss), self.loss))
        self.good &= what == 0
        self.buffers.put_back_unless(self.good)
        self.unseen += 1

    def look(self, *, now: bool = False) -> Found | None:
        """What was found, if anything: asked after each step, it waits for the device at every `LOOK`-th only.

        Args:
            now: wait for it in any case, and look at the weights too.
        """
        if not (now or self.unseen >= LOOK or answers_at_once(self.good)):
            return None
        whole = now or self.unseen >= LOOK
        self.unseen = 0 if whole else self.unseen
        if not self.good:
            what = int(self.what)
            loss = float(self.loss)
            said = (
                f"the loss is {loss}" if not math.isfinite(loss) else "the loss of another process is NaN or infinite"
            )
            names = {_LOSS: said, _GRADIENT: "a gradient is NaN or infinite",
                     _PLAYER: "a gradient of the second player is NaN or infinite"}  # fmt: skip
            return Found(int(self.step), next(name for code, name in names.items() if what & code))
        if whole and not all_finite(p for p in self.model.parameters()):
            return Found(None, "a weight is NaN or infinite")
        return None
