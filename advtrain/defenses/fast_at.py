"""FAST-AT, also FGSM-RS: fast is better than free (Wong, Rice and Kolter, 2020)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ..attacks.gradient import input_gradient
from ..attacks.losses import cross_entropy
from ..defense import Batch, Defense, Step, number
from ..modes import attacking


@dataclass
class FastAT(Defense):
    r"""FAST-AT, or FGSM-RS: learn from one gradient step that begins at a random point of the ball.

    Wong, Rice and Kolter (2020), arXiv 2001.03994, algorithm 3:

    .. math::

        η &\sim U(-ε, ε), \qquad x_0 = \clip(x + η) \\
        δ &= Π_ε(x_0 + α \sign ∇_x \CE(f_θ(x_0), y) - x) \\
        &\min_θ \; \mathbb{E} \, \CE(f_θ(x + δ), y)

    with α = 1.25 ε, equation (2.6). Random start and step size delay catastrophic overfitting; at large ε or with long
    training it still happens.

    Follows the code of the FAST-BAT repository (OPTML-Group/Fast-BAT, mode "fast_at"), in which the start is clipped to
    the pixel box and batch normalisation stays in training mode during the attack.

    Cost: 2 forward and 2 backward passes per batch.

    Args:
        rel_step: step size α in units of ε.
    """

    rel_step: float = 1.25

    name: ClassVar[str] = "fast-at"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("rel_step", number(self.rel_step, 0), "above 0", "it is α/ε; the paper uses 1.25")

    def __call__(self, model: nn.Module, batch: Batch, progress: float) -> Step:
        x, y, threat = batch.x, batch.y, self.threat
        project = threat.projector(x)
        with attacking(model, self.bn):
            start = threat.random_start(x, batch.rng("init"), project)
            grad, _ = input_gradient(model, start, lambda logits: cross_entropy(logits, y))
        x_adv = project(threat.ascend(start, grad, self.rel_step * threat.eps))
        logits = model(x_adv)
        return Step(self.criterion(logits, y), logits, x_adv - x)
