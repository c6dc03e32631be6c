"""GradAlign (Andriushchenko and Flammarion, 2020)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..attacks.gradient import input_gradient
from ..attacks.losses import cross_entropy
from ..defense import Batch, Defense, Step, number
from ..errors import one_of
from ..modes import attacking, noting_statistics


@dataclass
class GradAlign(Defense):
    r"""GradAlign: FGSM images, and input gradients at the image and at a random point beside it kept parallel.

    Andriushchenko and Flammarion (2020), arXiv 2007.02617, eq. 5. Where the loss is linear within the ball, FGSM is
    exact; the cosine between two input gradients measures how far it is from that (equation (4.13)):

    .. math::

        g &= ∇_x \CE(f_θ(x), y), \quad g' = ∇_x \CE(f_θ(x + η), y), \quad η \sim U(-ε, ε) \\
        δ &= \clip(α \sign g, -ε, ε) \\
        L &= \CE(f_θ(x + δ), y) + λ (1 - \mean \cos(g, g'))

    Follows the authors' code (tml-epfl/understanding-fast-adv-training): g is a constant and only g' is differentiated
    (the paper differentiates both); x + η may leave the pixel box; images of which either gradient is zero are left out
    of the mean; α = 1.25 ε, clipped to ε, so that the step matters only after a random start.
    `at.measure.gradient_alignment` measures the cosine on any model.

    Cost: 3 forward and 3 backward passes per batch, and differentiating one.

    Args:
        lam: weight λ of the regularizer; 0.2 at ε = 8/255 and 2.0 at 16/255 on CIFAR-10.
        rel_step: step size α in units of ε.
        random_start: begin FGSM at a uniform draw from the ball, where g is then taken too; where the start is outside
            the pixel box it is clipped for the gradient, which is zero there. The authors' commands begin at zero.
        code: whose code in what they do differently. `"gradalign"`: the authors', where g is **halved** at
            pixels of the images that are exactly 0 or 1, because a minimum or maximum of equal numbers shares its
            gradient between them. `"fast-bat"`: that of OPTML-Group/Fast-BAT, which has the true g, and passes the
            clean images twice, so that the running statistics of batch normalisation move once more.
    """

    lam: float = 0.2
    rel_step: float = 1.25
    random_start: bool = False
    code: str = "gradalign"

    name: ClassVar[str] = "gradalign"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    second_order: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("lam", number(self.lam, 0), "above 0", "it is λ; without the regularizer the method is 'fgsm'")
        self.require("rel_step", number(self.rel_step, 0), "above 0", "it is α/ε; the authors use 1.25")
        self.require("random_start", isinstance(self.random_start, bool), "True or False")
        one_of("code", self.code, ("gradalign", "fast-bat"))

    def __call__(self, model: nn.Module, batch: Batch, progress: float) -> Step:
        x, y, threat = batch.x, batch.y, self.threat

        def loss(logits: Tensor) -> Tensor:
            return cross_entropy(logits, y)

        start = x
        if self.random_start:
            start = x + batch.rng("init").uniform(x, -threat.eps, threat.eps)
        with attacking(model, self.bn), noting_statistics(model) as clean_pass:
            grad, _ = input_gradient(model, threat.into_box(start), loss)
        grad = grad * ((start >= threat.low) & (start <= threat.high))  # the gradient through the clipping to the box
        if self.code == "gradalign":
            grad = torch.where((start == threat.low) | (start == threat.high), grad / 2, grad)
        x_adv = threat.project(threat.ascend(start, grad, self.rel_step * threat.eps), x)
        logits = model(x_adv)
        if self.code == "fast-bat" and self.bn == "train":
            clean_pass.again()
        eta = batch.rng("eta").uniform(x, -threat.eps, threat.eps)
        with attacking(model, self.bn, freeze=False):
            beside, _ = input_gradient(model, x + eta, loss, differentiable=True)
        cosine = mean_cosine(grad, beside)
        reg = self.lam * (1 - cosine)
        return Step(self.criterion(logits, y) + reg, logits, x_adv - x, {"alignment": cosine.detach()})


def mean_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Mean cosine between the rows of a and b, (B, …), over the rows in which neither is zero; 1 if there are none."""
    scaled, counted = [], torch.ones(len(a), dtype=torch.bool, device=a.device)
    for rows in (a.flatten(1), b.flatten(1)):
        size = rows.detach().abs().amax(1, keepdim=True)  # squares of small gradients would underflow
        scaled.append(rows / torch.where(size > 0, size, torch.ones_like(size)))
        counted = counted & (size > 0).squeeze(1)
    a, b = scaled
    lengths = a.norm(dim=1) * b.norm(dim=1)
    cosines = (a * b).sum(1) / torch.where(counted, lengths, torch.ones_like(lengths))
    n = counted.sum()
    return torch.where(n > 0, (cosines * counted).sum() / n.clamp(min=1), torch.ones_like(lengths[0]))
