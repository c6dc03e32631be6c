"""SAT-R2: the second regularizer for single-step adversarial training (Vivek and Babu, 2020)."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from ..attacks.gradient import input_gradient
from ..attacks.losses import cross_entropy
from ..checks import check_no_dropout
from ..defense import Batch, Defense, Step, number
from ..modes import attacking


@dataclass
class SATR2(Defense):
    r"""SAT-R2: FGSM images, and the logits that FGSM from the image and FGSM from beside it lead to drawn together.

    Vivek and Babu (2020), arXiv 2002.00614. On a network that masks its gradient, a small random step before FGSM
    changes what FGSM finds; the regularizer takes that difference away:

    .. math::

        x_{fgsm} &= \clip(x + ε \sign ∇_x \CE(f_θ(x), y)) \\
        x_{noisy} &= \clip(x' + ε \sign ∇_x \CE(f_θ(x'), y)), \quad x' = x + α \sign η, \quad η \sim N(0, 1) \\
        L &= \mean_B \CE(f_θ(x_{fgsm}), y) + λ \mean_B ‖f_θ(x_{fgsm}) - f_θ(x_{noisy})‖^2

    as in equation (4.8), with the squared length summed over the K logits, and no gradient stopped on either side. The
    noisy image lies up to ε + α from the image: outside the threat, as in the authors' code, which also leaves the
    start x' unclipped. (The attack R-FGSM keeps inside by a shorter second step.)

    Follows the authors' code (val-iisc/SAT-Rx): attacks see the model in evaluation mode, the loss is one pass in
    training mode over the 2B images. Dropout is refused, because two masks would make the difference of logits random.
    `at.measure.logit_gap(..., second="r-fgsm")` measures the property on any model.

    Cost: 4 forward and 4 backward passes of a batch.

    Args:
        lam: weight λ; 25 in the authors' code for CIFAR-10, 5 for MNIST.
        rel_alpha: length α of the random step in units of ε; 1/4 for CIFAR-10 (2/255), 1/30 for MNIST (0.01).
    """

    lam: float = 25.0
    rel_alpha: float = 0.25
    bn: str = field(default="eval", kw_only=True)

    name: ClassVar[str] = "sat-r2"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    inside: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("lam", number(self.lam, 0), "above 0", "it is λ; without the regularizer the method is 'fgsm'")
        self.require("rel_alpha", number(self.rel_alpha, 0, 1), "in (0, 1]", "it is α/ε; 0.25 is 2/255 at ε = 8/255")

    @property
    def reach(self) -> float:
        return self.threat.eps * (1 + self.rel_alpha)

    def __call__(self, model: nn.Module, batch: Batch, progress: float) -> Step:
        check_no_dropout(model, self.name)
        x, threat = batch.x, self.threat
        noise = batch.rng("noise").normal(x).sign()
        starts = torch.cat([x, x + self.rel_alpha * threat.eps * noise])
        y = torch.cat([batch.y, batch.y])
        with attacking(model, self.bn):
            grad, _ = input_gradient(model, starts, lambda logits: cross_entropy(logits, y))
        images = threat.into_box(starts + threat.eps * grad.sign())
        logits, others = model(images).to(x.dtype).chunk(2)
        ce = self.criterion(logits, batch.y)
        gap = (logits - others).square().sum(1).mean()
        return Step(ce + self.lam * gap, logits, images[: len(x)] - x, {"ce": ce.detach(), "gap": gap.detach()})
