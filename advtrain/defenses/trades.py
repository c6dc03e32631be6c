"""TRADES (Zhang et al., 2019)."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.gradient import input_gradient
from ..defense import Batch, Defense, Step, number
from ..modes import attacking, noting_statistics


def divergence(logits: Tensor, clean_logits: Tensor) -> Tensor:
    """KL(softmax(clean_logits) ‖ softmax(logits)) for each image, (B,).

    Args:
        logits: (B, K) on perturbed images.
        clean_logits: (B, K) on the images themselves.
    """
    return F.kl_div(logits.log_softmax(1), clean_logits.log_softmax(1), reduction="none", log_target=True).sum(1)


@dataclass
class TRADES(Defense):
    r"""TRADES: cross-entropy on clean images, and predictions that do not change within the ball.

    Zhang et al. (2019), arXiv 1901.08573, eq. 5:

    .. math:: \min_θ \; \mean \bigl[ \CE(f_θ(x), y) + β \max_{x' ∈ B} \; \KL(f_θ(x) ‖ f_θ(x')) \bigr]

    The inner maximum, over the ball B around the image, is found by projected sign steps on the divergence itself, from
    a start within a hair of the image. β trades natural accuracy against robustness. The gradient flows through both
    arguments of the divergence.

    Follows the authors' code (yaodongyu/TRADES): the attack sees the model in evaluation mode, starts at x plus 0.001
    times normal noise, and its constants there are ε = 0.031, step 0.007, 10 steps. That code passes the clean images
    twice in training mode, with the same result; one pass serves here, and the running statistics of batch
    normalisation move as if there had been two. Under ℓ2 the attack follows the unit gradient, like all here; the
    authors optimise by SGD.

    Cost: `steps` + 3 forward and `steps` + 2 backward passes per batch.

    Args:
        beta: weight β; 6 for CIFAR-10, 1 in the authors' MNIST script.
        steps: ascent steps; 10 for CIFAR-10, 40 for MNIST.
        rel_step: step size in units of ε; the authors' 0.007 is 0.226 of their 0.031.
        start: standard deviation of the normal noise, in pixels, at which the attack starts; 0 would be a stationary
            point of the divergence.
    """

    beta: float = 6.0
    steps: int = 10
    rel_step: float = 0.25
    start: float = 0.001
    bn: str = field(default="eval", kw_only=True)

    name: ClassVar[str] = "trades"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("beta", number(self.beta, 0), "above 0", "it is β; without the divergence it is 'standard'")
        self.require_count("steps")
        self.require("rel_step", number(self.rel_step, 0), "above 0", "it is the step size divided by ε; 0.25 is usual")
        self.require("start", number(self.start, 0), "above 0", "in pixels; at the image itself the gradient is zero")

    def attack(self, model: nn.Module, batch: Batch) -> Tensor:
        """The images inside the ball at which the predictions differ most from those on the clean images."""
        x, threat = batch.x, self.threat
        project = threat.projector(x)
        x_adv = x + self.start * batch.rng("init").normal(x)
        with attacking(model, self.bn):
            with torch.no_grad():
                clean = model(x).to(x.dtype)
            for _ in range(self.steps):
                grad, _ = input_gradient(model, x_adv, lambda logits: divergence(logits, clean))
                x_adv = project(threat.ascend(x_adv, grad, self.rel_step * threat.eps))
        return x_adv

    def __call__(self, model: nn.Module, batch: Batch, progress: float) -> Step:
        x_adv = self.attack(model, batch)
        with noting_statistics(model) as clean_pass:
            clean = model(batch.x)
        logits = model(x_adv)
        clean_pass.again()
        natural, kl = self.criterion(clean, batch.y), divergence(logits, clean).mean()
        logs = {"natural": natural.detach(), "kl": kl.detach()}
        return Step(natural + self.beta * kl, logits, x_adv - batch.x, logs)
