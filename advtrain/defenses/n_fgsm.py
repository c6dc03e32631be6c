"""N-FGSM: make some noise (de Jorge et al., 2022)."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from ..attacks.gradient import input_gradient
from ..attacks.losses import cross_entropy
from ..defense import Batch, Defense, Step, number
from ..modes import attacking


@dataclass
class NFGSM(Defense):
    r"""N-FGSM: one full step from an image with strong noise, and no projection afterwards.

    de Jorge et al. (2022), arXiv 2202.01181, algorithm 1:

    .. math::

        η &\sim U(-kε, kε) \\
        δ &= η + α \sign ∇_x \CE(f_θ(x + η), y) \\
        &\min_θ \; \mathbb{E} \, \CE(f_θ(x + δ), y)

    with k = 2 and α = ε, equation (4.14). The images trained on lie up to kε + α = 3ε from the originals: outside the
    threat on purpose, since projecting back onto the ball is what made noise useless in earlier methods. Not to be
    confused with FAST-AT, whose noise is at most ε and whose result is projected.

    Follows the authors' code (pdejorge/N-FGSM): noise and result are clipped to the pixel box, batch normalisation
    stays in training mode. Their code works on normalised images, with every length divided by the channel's standard
    deviation; here the normalisation is in the model and pixels stay pixels, which is the same method.

    Cost: 2 forward and 2 backward passes per batch.

    Args:
        rel_noise: half-width k of the noise in units of ε; the authors use 3 for the largest radius on SVHN.
        rel_step: step size α in units of ε.
        rel_clip: radius, in units of ε, of the ℓ∞-ball onto which the result is projected; None for no projection.
    """

    rel_noise: float = 2.0
    rel_step: float = 1.0
    rel_clip: float | None = None

    name: ClassVar[str] = "n-fgsm"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    inside: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("rel_noise", number(self.rel_noise, 0), "above 0", "it is k, noise divided by ε; the paper uses 2")
        self.require("rel_step", number(self.rel_step, 0), "above 0", "it is α/ε; the paper uses 1")
        fits = self.rel_clip is None or number(self.rel_clip, 0)
        self.require("rel_clip", fits, "above 0 or None", "in units of ε; 1 projects onto the threat's own ball")

    @property
    def reach(self) -> float:
        return self.threat.eps * min(self.rel_noise + self.rel_step, self.rel_clip or float("inf"))

    def __call__(self, model: nn.Module, batch: Batch, progress: float) -> Step:
        x, y, threat = batch.x, batch.y, self.threat
        width = self.rel_noise * threat.eps
        start = threat.into_box(x + batch.rng("noise").uniform(x, -width, width))
        with attacking(model, self.bn):
            grad, _ = input_gradient(model, start, lambda logits: cross_entropy(logits, y))
        x_adv = threat.into_box(start + self.rel_step * threat.eps * grad.sign())
        if self.rel_clip is not None:
            radius = min(self.rel_clip * threat.eps, threat.high - threat.low)
            x_adv = replace(threat, eps=radius).project(x_adv, x)
        logits = model(x_adv)
        return Step(self.criterion(logits, y), logits, x_adv - x)
