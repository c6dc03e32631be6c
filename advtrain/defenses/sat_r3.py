"""SAT-R3: the third regularizer for single-step adversarial training (Vivek and Babu, 2020)."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from ..attacks.gradient import input_gradient
from ..attacks.losses import cross_entropy
from ..defense import Batch, Defense, Step, number
from ..modes import attacking


@dataclass
class SATR3(Defense):
    r"""SAT-R3: images of two strengths along one gradient, and a loss that may not be high at the weaker of them.

    Vivek and Babu (2020), arXiv 2002.00614. Along the FGSM direction an honest network's loss rises with ε; where the
    gradient is masked, it peaks near the image and falls again. The regularizer acts where the loss of the weak
    perturbation exceeds the share τ of that of the strong one:

    .. math::

        x_0 &= \clip(x + α \sign η), \quad η \sim N(0, 1), \qquad g = \sign ∇_x \CE(f_θ(x_0), y) \\
        x_{low} &= \clip(x_0 + ε_{low} g), \quad x_{high} = \clip(x_0 + ε g) \\
        L &= \CE_{high} + λ \max(0, \CE_{low} - τ \CE_{high})

    as in equation (4.9). The two losses are means over the batch, so the hinge opens for the batch as a whole; while it
    is open, its second half takes λτ from the weight of the strong one. The strong image lies up to ε + α from the
    original: outside the threat, as in the authors' code, whose budgets are not reduced by α.

    Follows the authors' code (val-iisc/SAT-Rx): the attack sees the model in evaluation mode, the loss is one pass in
    training mode over the 2B images. `at.measure.loss_curve` measures the property on any model.

    Cost: 3 forward and 3 backward passes of a batch.

    Args:
        lam: weight λ; 1 in the authors' code.
        tau: threshold τ in (0, 1]; 0.6 in the authors' code for CIFAR-10, 0.4 for MNIST.
        rel_eps_low: weak strength ε_low in units of ε, below 1; 1/4 for CIFAR-10 (2/255), 1/3 for MNIST (0.1).
        rel_alpha: length α of the random step in units of ε; 1/4 for CIFAR-10 (2/255), 1/30 for MNIST (0.01).
    """

    lam: float = 1.0
    tau: float = 0.6
    rel_eps_low: float = 0.25
    rel_alpha: float = 0.25
    bn: str = field(default="eval", kw_only=True)

    name: ClassVar[str] = "sat-r3"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    inside: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("lam", number(self.lam, 0), "above 0", "it is λ, the weight of the hinge; the authors use 1")
        self.require("tau", number(self.tau, 0, 1), "in (0, 1]", "it is τ, the share of the strong loss; 0.6 is usual")
        low = self.rel_eps_low
        hint = "it is ε_low/ε, and the weak perturbation must be weaker than the strong one; 0.25 is usual"
        self.require("rel_eps_low", number(low, 0, 1) and low < 1, "in (0, 1)", hint)
        self.require("rel_alpha", number(self.rel_alpha, 0, 1), "in (0, 1]", "it is α/ε; 0.25 is 2/255 at ε = 8/255")

    @property
    def reach(self) -> float:
        return self.threat.eps * (1 + self.rel_alpha)

    def __call__(self, model: nn.Module, batch: Batch, progress: float) -> Step:
        x, y, threat = batch.x, batch.y, self.threat
        noise = batch.rng("noise").normal(x).sign()
        start = threat.into_box(x + self.rel_alpha * threat.eps * noise)
        with attacking(model, self.bn):
            grad, _ = input_gradient(model, start, lambda logits: cross_entropy(logits, y))
        direction = threat.eps * grad.sign()
        weak, strong = (threat.into_box(start + share * direction) for share in (self.rel_eps_low, 1.0))
        low, logits = model(torch.cat([weak, strong])).chunk(2)
        ce_low, ce_high = self.criterion(low, y), self.criterion(logits, y)
        hinge = F.relu(ce_low - self.tau * ce_high)
        logs = {"ce_low": ce_low.detach(), "ce_high": ce_high.detach(), "hinge": hinge.detach()}
        return Step(ce_high + self.lam * hinge, logits, strong - x, logs)
