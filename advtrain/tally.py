"""What one epoch adds up: loss, accuracy and a defense's own figures, on the device, so that no step waits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .defense import Batch, Defense, Step
from .errors import bad, is_real, kind_of
from .parallel import pooled
from .processes import gather

OWN = {"epoch", "loss", "accuracy", "lr", "seconds", "val_clean", "val_fgsm", "val_pgd"}
"""Names in the history that a defense's own figures may not take."""


def check_step(defense: Defense, step: Any, batch: Batch) -> Step:
    """`step`, if it is what a defense must return. Only types and shapes are looked at, so that nobody waits for a GPU.

    Args:
        defense: returned it.
        step: what came.
        batch: what it was asked of.

    Raises:
        ArgumentError: no `Step`, or one that the training cannot go on with.
    """
    name = f"{type(defense).__name__}: "
    if not isinstance(step, Step):
        hint = "its __call__ ends with: return at.Step(loss, logits, delta)"
        bad(f"{name}what __call__ returns", kind_of(step), "a Step", hint)
    loss, logits, delta, logs = step
    if not isinstance(loss, Tensor):
        bad(f"{name}step.loss", kind_of(loss), "a torch.Tensor", "leave out .item() and float(): it is differentiated")
    if loss.ndim:
        bad(f"{name}step.loss.shape", tuple(loss.shape), "()", "one loss for all images, such as loss.mean()")
    if not loss.requires_grad:
        hint = "its gradient is the update: leave out detach() and no_grad()"
        bad(f"{name}step.loss", "detached", "a function of the model's parameters", hint)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else kind_of(logits)
    if not (isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == len(batch.x)):
        hint = "the model's answers to the images that were trained on"
        bad(f"{name}step.logits.shape", shape, f"({len(batch.x)}, K)", hint)
    shape = tuple(delta.shape) if isinstance(delta, Tensor) else kind_of(delta)
    if not (isinstance(delta, Tensor) and delta.shape == batch.x.shape):
        hint = "the perturbation that was trained on, such as x_adv - x"
        bad(f"{name}step.delta.shape", shape, f"{tuple(batch.x.shape)}", hint)
    if not isinstance(logs, Mapping):
        bad(f"{name}step.logs", kind_of(logs), "a dict", 'from names to numbers, such as {"gap": gap.detach()}')
    for key, value in logs.items():
        if isinstance(value, Tensor) and value.numel() != 1:
            bad(f"{name}step.logs[{key!r}].shape", tuple(value.shape), "()", "one number, such as its mean()")
        if not (isinstance(value, Tensor) or is_real(value)):
            bad(f"{name}step.logs[{key!r}]", kind_of(value), "one number", "the history keeps numbers alone")
    if taken := logs.keys() & OWN:
        bad(f"{name}step.logs", sorted(taken), "names of the defense's own", "the history uses these itself")
    return step


class Tally:
    """The sums of one epoch.

    Args:
        device: where the model trains.
    """

    def __init__(self, device: torch.device):
        self.seen = 0
        self.seconds = 0.0  # of earlier processes, for a training that was resumed
        self.loss = torch.zeros((), device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.constant = torch.ones((), dtype=torch.bool, device=device)  # one answer for all so far
        self.first: Tensor | None = None  # the first answer
        self.logs: dict[str, Tensor] = {}
        self.logged: dict[str, int] = {}  # a step may leave a figure out

    @torch.no_grad()
    def add(self, step: Step, y: Tensor) -> None:
        """Take in what a step of labels `y` gave."""
        answers = step.logits.detach().argmax(1)
        self.first = answers[0].clone() if self.first is None else self.first
        self.constant &= (answers == self.first).all()
        self.correct += (answers == y).sum()
        self.loss += step.loss.detach() * len(y)
        for key, value in step.logs.items():
            figure = torch.as_tensor(value).detach() * len(y)
            self.logs[key] = self.logs[key] + figure if key in self.logs else figure
            self.logged[key] = self.logged.get(key, 0) + len(y)
        self.seen += len(y)

    def record(self) -> dict[str, Any]:
        """Means over the images of all processes; None for a defense's figure that is not finite."""
        sums = {"loss": (float(self.loss), self.seen), "accuracy": (int(self.correct), self.seen)}
        means = pooled(sums | {key: (float(value), self.logged[key]) for key, value in self.logs.items()})
        record = {"loss": means.pop("loss"), "accuracy": means.pop("accuracy")}
        return record | {key: value if math.isfinite(value) else None for key, value in means.items()}

    def one_answer(self) -> bool:
        """Whether every image of the epoch was given the same label, in all processes."""
        only = gather(int(self.first) if self.first is not None and self.constant else None)
        return None not in only and len(set(only)) == 1

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; its tensors are on the device already."""
        vars(self).update(state)
