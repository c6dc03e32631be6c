"""NuAT: nuclear-norm adversarial training (Sriramanan et al., 2021)."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..attacks.gradient import input_gradient
from ..attacks.losses import cross_entropy
from ..defense import Batch, Defense, Step, number
from ..errors import at_least
from ..modes import attacking, noting_statistics


def nuclear_norm(matrix: Tensor) -> Tensor:
    """Sum of the singular values of a (B, K) matrix, computed in float32 at least."""
    values: Tensor = torch.linalg.svdvals(matrix.double() if matrix.dtype == torch.float64 else matrix.float())
    return values.sum()


@dataclass
class NuAT(Defense):
    r"""NuAT: clean cross-entropy, and the change of a whole batch's logits kept small in the nuclear norm.

    Sriramanan et al. (2021), "Towards Efficient and Effective Adversarial Training", NeurIPS 2021. One step from a
    corner of a small cube, towards what hurts cross-entropy and, in every second batch, also changes the logits most:

    .. math::

        x' &= \clip(x + η), \quad η = ± ε/2 \text{ at random} \\
        x_{adv} &= Π_ε(x' + ε \sign ∇[\CE(f_θ(x'), y) + a λ ‖f_θ(x) - f_θ(x')‖_* / B]), \quad a = 0, 1, 0, 1, … \\
        L &= \CE(f_θ(x), y) + λ ‖f_θ(x) - f_θ(x_{adv})‖_* / B

    The nuclear norm ‖·‖_* of the (B, K) matrix of changes, the sum of its singular values, exceeds its Frobenius norm
    the more, the more directions the changes have: the attack is pushed to be diverse and the network to be smooth in
    all of them. λ grows from 0 to its full value during training. With weight averaging (`fit(ema=0.9998)`), NuAT-WA.

    Follows the authors' code (val-iisc/NuAT, NuAT_WA_cifar10.py): the attack sees the model in evaluation mode but
    f_θ(x) in training mode. That code passes the clean images twice, with the same result; one pass serves here, and
    the running statistics of batch normalisation move as if there had been two. Three differences: λ grows at every
    step and not once an epoch; B is the size of the batch at hand, also in a smaller last one; and a counts the batches
    through, where theirs begins each epoch at 0. The singular values make a GPU wait for its host in every step.

    Cost: 3 forward and 3 backward passes per batch.

    Args:
        lam: weight λ at the end of training; 4 for CIFAR-10 and ResNet-18.
        rel_noise: size of the random step in units of ε; 1/2, as 4/255 at ε = 8/255.
        ramp: let λ grow linearly from 0; False for the full λ throughout.
    """

    lam: float = 4.0
    rel_noise: float = 0.5
    ramp: bool = True
    bn: str = field(default="eval", kw_only=True)

    name: ClassVar[str] = "nuat"
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("lam", number(self.lam, 0), "above 0", "it is λ; without the regularizer it is 'standard'")
        self.require(
            "rel_noise", number(self.rel_noise, 0, 1), "in (0, 1]", "it is the noise divided by ε; 0.5 is usual"
        )
        self.require("ramp", isinstance(self.ramp, bool), "True or False")
        self._batches = 0

    def setup(self, model: nn.Module, shape: tuple[int, int, int], device: torch.device) -> None:
        self._batches = 0

    def __call__(self, model: nn.Module, batch: Batch, progress: float) -> Step:
        x, y, threat = batch.x, batch.y, self.threat
        lam = self.lam * (progress if self.ramp else 1.0)
        with_norm = lam if self._batches % 2 else 0.0
        self._batches += 1
        with noting_statistics(model) as clean_pass:
            clean = model(x).to(x.dtype)
        fixed = clean.detach()

        def harm(logits: Tensor) -> Tensor:
            ce = cross_entropy(logits, y).sum()
            return ce + with_norm * nuclear_norm(fixed - logits) if with_norm else ce

        noise = self.rel_noise * threat.eps * batch.rng("noise").uniform(x, -1.0, 1.0).sign()
        start = threat.into_box(x + noise)
        with attacking(model, self.bn):
            grad, _ = input_gradient(model, start, harm)
        x_adv = threat.project(threat.into_box(start + threat.eps * grad.sign()), x)
        logits = model(x_adv).to(x.dtype)
        clean_pass.again()
        natural, size = self.criterion(clean, y), nuclear_norm(clean - logits) / len(x)
        logs = {"natural": natural.detach(), "nuclear_norm": size.detach()}
        return Step(natural + lam * size, logits, x_adv - x, logs)

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self._batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._batches = at_least("state['batches']", state.get("batches"), 0, "it is not what NuAT's state_dict gave")
