"""Standard training: no attack at all."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..defense import Batch, Defense, Step


@dataclass
class Standard(Defense):
    """Standard training on clean images: the baseline that every defense is compared with.

    min_θ E[CE(f_θ(x), y)]. One forward and one backward pass per batch. The threat is not trained against; it is what
    validation attacks with.
    """

    name: ClassVar[str] = "standard"
    select: ClassVar[str] = "clean"

    def __call__(self, model, batch: Batch, progress: float) -> Step:
        logits = model(batch.x)
        return Step(self.criterion(logits, batch.y), logits, torch.zeros_like(batch.x))
