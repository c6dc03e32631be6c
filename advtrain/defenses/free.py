"""Free-AT: adversarial training for free (Shafahi et al., 2019)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..defense import Batch, Defense, Step, number
from ..errors import bad


@dataclass
class Free(Defense):
    r"""Free-AT: one backward pass serves both the weights and the perturbation, and each batch is used several times.

    Shafahi et al. (2019), arXiv 1904.12843, algorithm 1. A perturbation δ is kept from step to step, also into the next
    batch, whose images take it over by their position. In each of the `replays` steps on a batch:

    .. math::

        x_{adv} &= Π(x + δ) \\
        θ &← θ - lr \, ∇_θ \CE(f_θ(x_{adv}), y) \\
        δ &← Π(x_{adv} + ε \sign ∇_x \CE(f_θ(x_{adv}), y)) - x

    with both gradients from the same backward pass, before θ moves. Every step is an update of the weights: train for
    1 / `replays` of the usual epochs, which here count passes over the data.

    Follows the code of Wong, Rice and Kolter (locuslab/fast_adversarial, train_free.py), with one difference: there a
    δ taken over from the previous batch may leave the pixel box in the first replay on the new images; here it is
    projected before it is used, so that every image trained on is inside the threat. Where batch normalisation is in
    training mode, there is nothing to choose: the attack is the training pass.

    Cost: 1 forward and 1 backward pass per update, `replays` updates per batch.

    Args:
        replays: updates on each batch, m in the paper; 8 for CIFAR-10.
        rel_step: step size of δ in units of ε; 1 in the paper.
    """

    replays: int = 8  # type: ignore[misc]  # of the class in others, an option here
    rel_step: float = 1.0

    name: ClassVar[str] = "free"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_count("replays")
        self.require("rel_step", number(self.rel_step, 0), "above 0", "it is the step divided by ε; the paper uses 1")
        self._delta: torch.Tensor | None = None
        self._pass: tuple[torch.Tensor, torch.Tensor] | None = None  # x and x_adv of the step under way

    def setup(self, model: nn.Module, shape: tuple[int, int, int], device: torch.device) -> None:
        self._delta = self._pass = None

    def __call__(self, model: nn.Module, batch: Batch, progress: float) -> Step:
        x, known = batch.x, self._delta
        delta = torch.zeros_like(x)
        if known is not None:
            if known.shape[1:] != x.shape[1:]:
                fix = "the state is of a training on other images: call setup"
                bad("delta", tuple(known.shape[1:]), f"the shape of the images, {tuple(x.shape[1:])}", fix)
            n = min(len(x), len(known))
            delta[:n] = known[:n]
        x_adv = self.threat.project(x + delta, x).requires_grad_()
        self._pass = (x, x_adv)
        logits = model(x_adv)
        return Step(self.criterion(logits, batch.y), logits, x_adv.detach() - x)

    def after_backward(self, model: nn.Module) -> None:
        """Ascend by the gradient that the backward pass left at the images."""
        latest, self._pass = self._pass, None
        if latest is None:
            return
        (x, x_adv), threat = latest, self.threat
        if x_adv.grad is None:
            return
        delta = threat.project(threat.ascend(x_adv.detach(), x_adv.grad, self.rel_step * threat.eps), x) - x
        if self._delta is not None and len(self._delta) > len(x):  # a small last batch leaves the other rows alone
            delta = torch.cat([delta, self._delta[len(x) :]])
        self._delta = delta

    def state_dict(self) -> dict[str, Any]:
        return {} if self._delta is None else {"delta": self._delta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._delta = state.get("delta")
