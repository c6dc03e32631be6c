"""Standard training: no attack at all."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ..defense import Batch, Defense, Step


@dataclass
class Standard(Defense):
    r"""Standard training on clean images: the baseline that every defense is compared with.

    .. math:: \min_θ \; \mathbb{E} \, \CE(f_θ(x), y)

    The threat is not trained against; it is what validation attacks with.

    Cost: 1 forward and 1 backward pass per batch.
    """

    name: ClassVar[str] = "standard"
    select: ClassVar[str] = "clean"

    def __call__(self, model: nn.Module, batch: Batch, progress: float) -> Step:
        logits = model(batch.x)
        return Step(self.criterion(logits, batch.y), logits, torch.zeros_like(batch.x))
