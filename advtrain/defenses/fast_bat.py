"""FAST-BAT: fast adversarial training as bi-level optimization (Zhang et al., 2022)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..attacks.gradient import input_gradient
from ..attacks.losses import cross_entropy
from ..bilevel import Solution, interior
from ..defense import Batch, Defense, Step, carry, gradients, number, trained
from ..modes import attacking, noting_statistics


@dataclass
class FastBAT(Defense):
    r"""FAST-BAT: learn from smooth ascent steps, and account for how the perturbation follows the weights.

    Zhang et al. (2022), arXiv 2112.12376. Adversarial training as two coupled problems, equations (6.1) and (6.7):

    .. math::

        &\min_θ \; \CE(f_θ(x + δ^*(θ)), y) \\
        δ^*(θ) &= \argmin_{δ ∈ C} \; ⟨∇_δ ℓ_{atk}(θ, δ_0), δ - δ_0⟩ + λ/2 \, ‖δ - δ_0‖^2

    The lower level, ℓ_atk = -CE linearised at δ₀ with a quadratic term, is solved by a projected step of length 1/λ
    **without** a sign. Where δ* is inside its bounds (mask H) it moves with θ, which adds to the gradient the implicit
    term (KKT conditions; the lower level's Hessian taken as λI; equation (6.14)). It vanishes with a sign in place of
    the step: that is FAST-AT.

    .. math:: -\tfrac{1}{λ} ∇_θ ⟨∇_δ ℓ_{atk}(θ, δ_0), H ∘ ∇_{δ^*} \CE⟩

    Follows the authors' code (OPTML-Group/Fast-BAT): a random start, **two** steps of α on the batch-summed loss, the
    second at δ₀ = δ, and λ = 10 in the implicit term **whatever α is**, although the steps amount to λ = 1/α = 0.051:
    the term is then small, 10⁻⁵ to 4 · 10⁻⁴ of the gradient in the recorded reference steps; `lam=None` takes 1/α. Each
    epoch logs its share, ‖implicit‖ / ‖sum‖.
    Their code passes x + δ* twice; one pass serves here, and running statistics move as if there had been two.

    Cost: 3 forward and 3 backward passes per batch and differentiating one; without the implicit term 3 and 3.

    Args:
        step_size: step α, in pixels per unit of gradient of one image's cross-entropy; if not given 5000/255 for
            ε ≤ 8/255 and 2000/255 above, as in the authors' code.
        lam: λ of the implicit term; None for 1/α.
        implicit: False leaves the implicit term out: the same perturbation, trained on as if it were fixed.
        steps: ascent steps; 2 in the authors' code.
    """

    step_size: float | None = None
    lam: float | None = 10.0
    implicit: bool = True
    steps: int = 2

    name: ClassVar[str] = "fast-bat"
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    def __post_init__(self) -> None:
        super().__post_init__()
        hint = "the step is not signed: 5000/255 at ε = 8/255 is the authors' choice"
        self.require("step_size", self.step_size is None or number(self.step_size, 0), "above 0 or None", hint)
        self.require("lam", self.lam is None or number(self.lam, 0), "above 0 or None", "None takes λ = 1/α")
        self.require("implicit", isinstance(self.implicit, bool), "True or False")
        self.require_count("steps")

    @property  # of the class in others, of an option here
    def second_order(self) -> bool:  # type: ignore[override]
        """Whether the loss needs gradients of gradients: with the implicit term."""
        return self.implicit

    @property
    def alpha(self) -> float:
        """The step size α in use."""
        return self.step_size or (5000 / 255 if self.threat.eps <= 8 / 255 + 1e-9 else 2000 / 255)

    def ascend(self, model: nn.Module, batch: Batch, differentiable: bool) -> tuple[list[Tensor], list[Tensor]]:
        """The images from the random start on, and ∇_δ ℓ_atk at all but the last; the last of these with its graph."""
        project = self.threat.projector(batch.x)
        images, slopes = [self.threat.random_start(batch.x, batch.rng("init"), project)], []
        for left in reversed(range(self.steps)):
            graph = differentiable and not left
            with attacking(model, self.bn, freeze=not graph):
                grad, _ = input_gradient(
                    model, images[-1], lambda logits: cross_entropy(logits, batch.y), differentiable=graph
                )
            images.append(project(images[-1] + self.alpha * grad.detach()))
            slopes.append(-grad)
        return images, slopes

    def solve(self, model: nn.Module, batch: Batch) -> Solution:
        """Solve the lower level for a batch, and take the gradient of the upper level apart. Leaves `.grad` alone."""
        x, lam, size = batch.x, self.lam or 1 / self.alpha, len(batch.x)
        images, slopes = self.ascend(model, batch, differentiable=True)
        loss, logits = self.upper(model, images[-1].requires_grad_(), batch.y)
        *direct, outer = torch.autograd.grad(loss, [*trained(model), images[-1]], allow_unused=True)
        used = [(p, grad) for p, grad in zip(trained(model), direct, strict=True) if grad is not None]
        parameters, direct = ([pair[part] for pair in used] for part in (0, 1))
        points, outer = [(image - x).detach() for image in images], outer * size
        mask = interior(points[-1], x, self.threat)
        implicit = gradients((slopes[-1] * (mask * outer)).sum() / (-lam * size), parameters)
        slopes = [slope.detach() for slope in slopes]
        return Solution(points, slopes, mask, outer, lam, loss.detach(), logits.detach(), parameters, direct, implicit)

    def upper(self, model: nn.Module, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The upper level's loss and its logits."""
        with noting_statistics(model) as training_pass:
            logits = model(x_adv)
        if self.bn == "train":
            training_pass.again()
        return self.criterion(logits, y), logits

    def __call__(self, model: nn.Module, batch: Batch, progress: float) -> Step:
        if not self.implicit:
            x_adv = self.ascend(model, batch, differentiable=False)[0][-1]
            return Step(*self.upper(model, x_adv, batch.y), x_adv - batch.x)
        found = self.solve(model, batch)
        gradient, share = found.gradient_and_share()
        return Step(
            carry(found.loss, found.parameters, gradient), found.logits, found.points[-1], {"implicit_share": share}
        )
