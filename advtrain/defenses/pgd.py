"""PGD adversarial training (Madry et al., 2018)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from .. import attacks
from ..defense import Batch, Defense, Step, number


@dataclass
class PGD(Defense):
    r"""PGD adversarial training: learn from the strongest images that several ascent steps find.

    Madry et al. (2018), arXiv 1706.06083, eq. 2.1:

    .. math:: \min_θ \; \mathbb{E} \, \max_{δ ∈ S} \; \CE(f_θ(x + δ), y)

    The inner maximum is approximated by `steps` projected ascent steps from a random start. The reference that
    single-step methods are measured against.

    Follows the code of the FAST-BAT repository (OPTML-Group/Fast-BAT, mode "pgd"), with batch normalisation in training
    mode during the attack.

    Cost: `steps` + 1 forward and backward passes per batch.

    Args:
        steps: number of ascent steps. 10 here; 7 in the paper (CIFAR-10), 2 in the baseline PGD-2-AT.
        rel_step: step size in units of ε. 1/4, as 2/255 at ε = 8/255; PGD-2-AT uses 1/2.
    """

    steps: int = 10
    rel_step: float = 0.25

    name: ClassVar[str] = "pgd"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_count("steps")
        self.require("rel_step", number(self.rel_step, 0), "above 0", "it is the step size divided by ε; 0.25 is usual")

    def __call__(self, model: nn.Module, batch: Batch, progress: float) -> Step:
        x, y, threat = batch.x, batch.y, self.threat
        x_adv = attacks.pgd(
            model, x, y, threat, steps=self.steps, step_size=self.rel_step * threat.eps,
            keep="last", rng=batch.rng("init"), bn=self.bn, check=False,
        )  # fmt: skip
        logits = model(x_adv)
        return Step(self.criterion(logits, y), logits, x_adv - x)
