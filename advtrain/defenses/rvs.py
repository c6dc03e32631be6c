"""RvS: robustness via synthesis, a generator of perturbations against a classifier (Baytaş and Deb, 2023)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..checks import check_no_dropout
from ..defense import Batch, Step, number
from ..features import classifying_layer, feature_transport
from ..modes import attacking, place
from ..player import Player, TwoPlayers
from ..synthesis import Generator, pairwise_cosine, perturb, smooth_labels


@dataclass
class RvS(TwoPlayers[Generator]):
    r"""Robustness-via-Synthesis: learn from perturbations that a second network synthesizes from noise.

    Baytaş and Deb (2023), arXiv 2108.09713. With noise z ~ N(0, I), uniform u in ±ε and features φ (what the last layer
    is given), each step makes two moves, with fresh noise each, and OT = `sinkhorn` of φ_θ(x), φ_θ(x_adv):

    .. math:: x_{adv} = \clip(\clip(x + u) + \clip(G_w(z), ± c), x ± ε)
    .. math:: \max_w \OT, \quad \text{then} \quad \min_θ \; \CE(f_θ(x_{adv}), y') + \OT

    with c = `clip`, and y' = 1 - δ for the true class, δ/(K - 1) for each other: equations (5.8) to (5.11). There is no
    cross-entropy on clean images, no gradient at the images, and the generator does not see the image.

    Follows the authors' code (ALLab-Boun/robustness-via-synthesis): clean and synthesized images pass separately, each
    with its own batch statistics; OT is differentiated through both features and all iterations. Their clip is 8/255,
    ours ε, and the generator's unit is clip/8. Judge it by AutoAttack: relatives look far better under weaker attacks.

    Cost: 4 forward and 3 backward passes per batch, and the transport twice, with B² times the features in memory.

    Args:
        smoothing: δ, the weight of all wrong classes together, in [0, 1).
        ot_weight: weight of OT in the classifier's loss.
        sinkhorn_eps: entropy of the transport, in squared feature distances.
        sinkhorn_iterations: iterations of the transport.
        debiased: take off the cost of moving each batch onto itself; the authors do not.
        noise_dim: length of z.
        generator_lr: learning rate of the generator's SGD.
        generator_momentum: momentum of the generator's SGD, in [0, 1).
        clip: largest size per pixel of what the generator adds; ε if not given.
        kernel_decay: weight of Σ w² / 2 over the classifier's parameters of two dimensions or more, to be used with
            `fit(..., weight_decay=0)`; 2e-4 in the authors' code.
        features: name of the layer whose input is φ; by default `head`, or the last linear layer, or what the model's
            forward itself returns if it takes `return_features=True`: (logits, features).
    """

    smoothing: float = 0.5
    ot_weight: float = 1.0
    sinkhorn_eps: float = 0.01
    sinkhorn_iterations: int = 100
    debiased: bool = False
    noise_dim: int = 640
    generator_lr: float = 0.01
    generator_momentum: float = 0.9
    clip: float | None = None
    kernel_decay: float = 0.0
    features: str | None = None

    name: ClassVar[str] = "rvs"
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("label_smoothing", self.label_smoothing == 0, "0", "rvs smooths in its own way: set `smoothing`")
        for names, holds, accepted in (
            (("smoothing", "generator_momentum"), lambda v: number(v, -1) and 0 <= v < 1, "in [0, 1)"),
            (("ot_weight", "kernel_decay"), lambda v: number(v, -1) and v >= 0, "at least 0"),
            (("sinkhorn_eps", "generator_lr"), lambda v: number(v, 0), "above 0"),
            (("sinkhorn_iterations", "noise_dim"), lambda v: type(v) is int and v >= 1, "an integer of at least 1"),
            (("clip",), lambda v: v is None or number(v, 0, 1), "in (0, 1], pixels being in [0, 1]"),
            (("features",), lambda v: v is None or isinstance(v, str), "the name of a layer"),
            (("debiased",), lambda v: isinstance(v, bool), "True or False"),
        ):
            for name in names:
                self.require(name, holds(getattr(self, name)), accepted)

    def setup(self, model: nn.Module, shape: tuple[int, int, int], device: torch.device) -> None:
        check_no_dropout(model, self.name)
        classifying_layer(model, self.features)  # refuses a model that has none
        scale, seed = (self.clip or self.threat.eps) / 8, int(torch.randint(2**62, (), device="cpu"))
        generator = Generator(shape, self.noise_dim, scale=scale, rng=seed).to(device, place(model)[1])
        self.player = Player(generator, lr=self.generator_lr, momentum=self.generator_momentum)

    @property
    def generator(self) -> Generator | None:
        """The generator of perturbations; None before `setup`."""
        return None if self.player is None else self.player.network

    def criterion(self, logits: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy with the smoothed labels y'."""
        target = smooth_labels(y, logits.shape[1], self.smoothing, torch.promote_types(logits.dtype, torch.float32))
        return nn.functional.cross_entropy(logits.to(target.dtype), target)

    def transport(self, model: nn.Module, x: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        """OT between the features of two batches, and the logits of the second."""
        options = {"eps": self.sinkhorn_eps, "iterations": self.sinkhorn_iterations, "debiased": self.debiased}
        return feature_transport(model, x, x_adv, features=self.features, **options)

    def adversary_step(self, model: nn.Module, batch: Batch, progress: float) -> None:
        player = self.ready()
        with attacking(model, self.bn):
            x_adv = perturb(player.network, batch.x, self.threat, batch.rng("generator"), self.clip).x_adv
            player.ascend(self.transport(model, batch.x, x_adv)[0], len(batch.x))

    def __call__(self, model: nn.Module, batch: Batch, progress: float) -> Step:
        x, generator = batch.x, self.ready().network
        with attacking(generator, "batch"), torch.no_grad():  # only its own move counts for the generator's statistics
            x_adv = perturb(generator, x, self.threat, batch.rng("classifier"), self.clip).x_adv
        ot, logits = self.transport(model, x, x_adv)
        ce = self.criterion(logits, batch.y)
        loss = ce + self.ot_weight * ot
        if self.kernel_decay:
            loss = loss + self.kernel_decay / 2 * sum(w.square().sum() for w in model.parameters() if w.ndim >= 2)
        diversity = {"cosine": pairwise_cosine(x_adv - x)} if len(x) > 1 else {}
        return Step(loss, logits, x_adv - x, {"ce": ce.detach(), "ot": ot.detach(), **diversity})
