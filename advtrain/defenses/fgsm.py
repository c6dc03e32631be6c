"""FGSM adversarial training (Goodfellow, Shlens and Szegedy, 2015)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ..attacks.gradient import input_gradient
from ..attacks.losses import cross_entropy
from ..defense import Batch, Defense, Step, number
from ..modes import attacking


@dataclass
class FGSM(Defense):
    r"""FGSM adversarial training: learn from FGSM images only.

    .. math:: \min_θ \; \mathbb{E} \, \CE(f_θ(x + δ), y), \quad δ = ε \sign ∇_x \CE(f_θ(x), y)

    as in equation (2.5). Goodfellow, Shlens and Szegedy (2015), arXiv 1412.6572, in the form that later papers call
    FGSM-AT: their paper mixes clean and adversarial loss half and half (its section 6), while FGSM-AT trains on the
    adversarial images alone.

    The method is the textbook case of **catastrophic overfitting**: the network learns to mask its gradient, so that
    the single step no longer finds the adversarial images which an iterated attack still finds. Not to be confused with
    FAST-AT, which differs by a random start and a longer step.

    Cost: 2 forward and 2 backward passes per batch.

    Args:
        rel_step: step size α in units of ε; 1, the full step.
    """

    rel_step: float = 1.0

    name: ClassVar[str] = "fgsm"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("rel_step", number(self.rel_step, 0), "above 0", "it is α/ε; 1 is the full FGSM step")

    def __call__(self, model: nn.Module, batch: Batch, progress: float) -> Step:
        x, y, threat = batch.x, batch.y, self.threat
        with attacking(model, self.bn):
            grad, _ = input_gradient(model, x, lambda logits: cross_entropy(logits, y))
        x_adv = threat.project(threat.ascend(x, grad, self.rel_step * threat.eps), x)
        logits = model(x_adv)
        return Step(self.criterion(logits, y), logits, x_adv - x)
