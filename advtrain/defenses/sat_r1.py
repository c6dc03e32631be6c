"""SAT-R1: the first regularizer for single-step adversarial training (Vivek and Babu, 2020)."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from .. import attacks
from ..checks import check_no_dropout
from ..defense import Batch, Defense, Step, number


@dataclass
class SATR1(Defense):
    r"""SAT-R1: FGSM images, and for one image of the batch the logits that FGSM and I-FGSM lead to drawn together.

    Vivek and Babu (2020), arXiv 2002.00614. A network that masks its gradient answers differently to the single-step
    image than to the iterated one; the regularizer takes that difference away:

    .. math:: L = \mean_B \CE(f_θ(x_{fgsm}), y) + λ ‖f_θ(x_{fgsm}) - f_θ(x_{ifgsm})‖^2

    as in equation (4.7), where the squared length is summed over the K logits and the I-FGSM image, made in `steps`
    steps of ε / `steps`, is that of the **last image of the batch** only: an iterated attack on one image costs next to
    nothing. No gradient is stopped on either side, and no clean image is trained on.

    Follows the authors' code (val-iisc/SAT-Rx): attacks see the model in evaluation mode, and the loss is one pass in
    training mode over FGSM images and I-FGSM image together, so that in batch normalisation the last image counts
    twice. Dropout is refused, because two masks would make the difference of logits random.
    `at.measure.logit_gap` measures the property on any model.

    Cost: 2 forward and 2 backward passes per batch, and `steps` + 1 on `samples` images.

    Args:
        lam: weight λ of the regularizer; 0.2 in the authors' code for MNIST and CIFAR-10.
        steps: steps of the iterated attack; 3 for CIFAR-10, 10 for MNIST.
        samples: how many of the batch's last images are regularised, the mean of their squared distances. 1 in the
            authors' code; the batch size for all of them.
    """

    lam: float = 0.2
    steps: int = 3
    samples: int = 1
    bn: str = field(default="eval", kw_only=True)

    name: ClassVar[str] = "sat-r1"
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("lam", number(self.lam, 0), "above 0", "it is λ; without the regularizer the method is 'fgsm'")
        for name in ("steps", "samples"):
            self.require_count(name)

    def __call__(self, model: nn.Module, batch: Batch, progress: float) -> Step:
        check_no_dropout(model, self.name)
        x, y, threat = batch.x, batch.y, self.threat
        n = min(self.samples, len(x))
        single = attacks.fgsm(model, x, y, threat, bn=self.bn, check=False)
        iterated = attacks.i_fgsm(model, x[-n:], y[-n:], threat, steps=self.steps, bn=self.bn, check=False)
        logits, others = model(torch.cat([single, iterated])).to(x.dtype).split([len(x), n])
        ce = self.criterion(logits, y)
        gap = (logits[-n:] - others).square().sum(1).mean()
        return Step(ce + self.lam * gap, logits, single - x, {"ce": ce.detach(), "gap": gap.detach()})
