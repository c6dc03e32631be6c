"""Properties that tell an honest gradient from a masked one, measured on any model.

Regularizers of single-step training act upon them while a network learns. Measured afterwards they say whether the
regularizer did its work, and on a network trained without it, what is broken. They are symptoms, not verdicts: a model
with good values can still be fooled, which only an attack decides.

All of them judge the model in evaluation mode and leave it as it was, refuse the inputs that an attack refuses, and
refuse a model whose input gradient is NaN or infinite, since such a model would look honest.

>>> import advtrain as at
>>> test, threat = at.load_data("digits").test[:100], at.Threat("linf", eps=0.3)
>>> masked, honest = (at.load_results("digits").run(name).model for name in ("fgsm", "pgd"))
>>> gaps = [float(logit_gap(model, test.images(), test.y, threat)) for model in (masked, honest)]
>>> gaps[0] > 3 * gaps[1], float(linearity(honest, test.images(), test.y, threat)) > 0
(True, True)
>>> loss_curve(honest, test.images(), test.y, threat, points=5).monotone
True
>>> 0 < float(gradient_alignment(honest, test.images(), test.y, threat)) < 1
True
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attacks import ATTACKS
from .attacks.choice import choose
from .attacks.gradient import check_attack, input_gradient
from .attacks.losses import cross_entropy
from .checks import check_threat
from .errors import ModelError, at_least, one_of
from .modes import attacking, evaluating
from .rng import Rng, as_rng
from .threat import Threat


@dataclass(frozen=True, repr=False)
class Measurement:
    """The mean of a property over images.

    Args:
        name: what was measured.
        value: the mean; NaN where no image could be judged.
        error: standard error of the mean over images, NaN for fewer than two.
        images: how many images were judged.
    """

    name: str
    value: float
    error: float
    images: int

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        return f"{self.name}: {self.value:.4g} ± {self.error:.2g} ({self.images} images)"


@dataclass(frozen=True, repr=False)
class LossCurve:
    """The mean cross-entropy after an attack, for growing radius.

    Args:
        attack: the attack's name.
        eps: the radii, from 0 to that of the threat.
        loss: the mean loss at each of them, in nats.
    """

    attack: str
    eps: tuple[float, ...]
    loss: tuple[float, ...]

    @property
    def dips(self) -> tuple[float, ...]:
        """The radii at which the loss is lower than at the radius before; falls within rounding do not count."""
        slack = 1e-6 * max(self.loss)
        pairs = zip(self.loss, self.loss[1:], strict=False)
        return tuple(eps for eps, (before, after) in zip(self.eps[1:], pairs, strict=True) if after < before - slack)

    @property
    def monotone(self) -> bool:
        """Whether the loss never falls."""
        return not self.dips

    @property
    def drop(self) -> float:
        """How far below its highest value the loss ends, as a share of that value, in [0, 1]."""
        return 1 - self.loss[-1] / max(self.loss) if max(self.loss) > 0 else 0.0

    def __repr__(self) -> str:
        points = ", ".join(f"{eps:.3g}: {loss:.3g}" for eps, loss in zip(self.eps, self.loss, strict=True))
        verdict = "never falls" if self.monotone else f"falls, and ends {self.drop:.0%} below its peak"
        return f"loss against radius of {self.attack} {verdict} ({points})"


def logit_gap(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, first: str = "fgsm", second: str = "i-fgsm",
    steps: int = 10, rng: Rng | int | None = None, batch_size: int = 512,
) -> Measurement:  # fmt: skip
    """How differently the model answers to two attacks: mean over images of ‖z(x₁) - z(x₂)‖².

    The regularizers of Vivek and Babu (2020), arXiv 2002.00614, act upon it: SAT-R1 upon FGSM against I-FGSM, SAT-R2
    upon FGSM against R-FGSM. Where the loss is close to linear in the ball, one step and several arrive at the same
    place, and the gap is small. A model that masks its gradient leads the single step astray, while the others still
    arrive: the gap is several times as large as that of a model trained against PGD. Compare models of similar
    confidence only: logits that are twice as large have four times the gap.

    Args:
        model: returns logits (B, K).
        x, y: (B, C, H, W) float32 or float64 in the threat's pixel box, on the model's device; (B,) integer labels.
        threat: the ball and the box of both attacks.
        first: a name in `advtrain.attacks.ATTACKS`.
        second: another.
        steps: steps of an iterated attack; its step size is its own default.
        rng: names the random draws of `"r-fgsm"` and `"pgd"`: an `Rng` or a seed.
        batch_size: images per batch.

    Raises:
        ArgumentError, DataError, ModelError: see `advtrain.errors`.
    """
    one_of("first", first, ATTACKS)
    one_of("second", second, ATTACKS)
    at_least("steps", steps, 1)
    gaps = []
    for number, x_part, y_part, _ in _batches(model, x, y, threat, batch_size):
        draws = as_rng(rng).child("measure", number)
        images = [choose(name, steps)(model, x_part, y_part, threat, draws) for name in (first, second)]
        gaps.append((_logits(model, images[0]) - _logits(model, images[1])).square().sum(1))
    return _mean(f"squared distance of logits, {first} and {second}", gaps)


def loss_curve(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, points: int = 11, attack: str = "fgsm",
    steps: int = 10, rng: Rng | int | None = None, batch_size: int = 512,
) -> LossCurve:  # fmt: skip
    """The mean cross-entropy after an attack, as its radius grows from 0 to ε.

    SAT-R3 of Vivek and Babu (2020), arXiv 2002.00614, acts upon it: it penalises a loss that is nearly as high
    at a small radius as at the full one, or higher. An attacker who may do more should not achieve less, so the curve
    of an honest model rises. Where a model has learnt the answer to the full step, it peaks inside and comes down.

    A rising curve acquits nobody. Gradients can be masked without a peak, and are on the digits of the book: there the
    curve of FGSM rises, but lies far below that of `"i-fgsm"`, where an honest model has the two close together.

    Args:
        model: returns logits (B, K).
        x, y: (B, C, H, W) float32 or float64 in the threat's pixel box, on the model's device; (B,) integer labels.
        threat: its radius is the last of the curve.
        points: how many radii, evenly spaced, 0 and ε among them; at least 2.
        attack: a name in `advtrain.attacks.ATTACKS`. `"fgsm"` moves along one line; under `"r-fgsm"` every radius
            has the same random signs.
        steps: steps of an iterated attack.
        rng: names the random draws of `"r-fgsm"` and `"pgd"`: an `Rng` or a seed.
        batch_size: images per batch.

    Raises:
        ArgumentError, DataError, ModelError: see `advtrain.errors`.
    """
    check_threat(threat)
    at_least("points", points, 2, "the clean images and the full radius")
    one_of("attack", attack, ATTACKS)
    at_least("steps", steps, 1)
    radii = [threat.eps * point / (points - 1) for point in range(points - 1)] + [threat.eps]
    totals = torch.zeros(points, dtype=torch.float64)
    for number, x_part, y_part, _ in _batches(model, x, y, threat, batch_size):
        for point, eps in enumerate(radii):
            x_adv, draws = x_part, as_rng(rng).child("measure", number)
            if eps > 0:
                inner = dataclasses.replace(threat, eps=eps)
                x_adv = choose(attack, steps)(model, x_part, y_part, inner, draws)
            totals[point] += cross_entropy(_logits(model, x_adv), y_part).sum().item()
    return LossCurve(attack, tuple(radii), tuple((totals / len(x)).tolist()))


def gradient_alignment(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, rng: Rng | int | None = None, batch_size: int = 512
) -> Measurement:
    """Mean cosine between the input gradients at x and at a random point of the ball around it.

    GradAlign of Andriushchenko and Flammarion (2020), arXiv 2007.02617, eq. 5, acts upon it. 1 means that the gradient
    points the same way wherever one asks, as that of a linear model with two classes does. Close to 0 it points
    anywhere: a single step from x says little about the ball. They found on CIFAR-10 that it falls when catastrophic
    overfitting sets in. On the digits of the book it does not tell: where a network trained against PGD goes on with
    FGSM it goes up and down while robustness is lost, and ends near that of one which went on with PGD.

    Images whose gradient vanishes at either point have no direction and are left out, as in their code; a saturated
    softmax does that. As there, the random point x + η is not clipped to the pixel box.

    Args:
        model: returns logits (B, K).
        x, y: (B, C, H, W) float32 or float64 in the threat's pixel box, on the model's device; (B,) integer labels.
        threat: the ball from which η is drawn, uniformly.
        rng: names the draw of η: an `Rng` or a seed.
        batch_size: images per batch.

    Raises:
        ArgumentError, DataError, ModelError: see `advtrain.errors`.
    """
    cosines = []
    for number, x_part, y_part, gradient in _batches(model, x, y, threat, batch_size):
        draws = as_rng(rng).child("measure", number)
        beside = threat.random_start(x_part, draws, project=lambda start: start)
        other = _gradient(model, beside, y_part)
        directed = (gradient.flatten(1) != 0).any(1) & (other.flatten(1) != 0).any(1)
        # normalised in float64: gradients of 1e-20, as confident models have, would underflow when squared
        units = [F.normalize(g.flatten(1).cpu().double()[directed.cpu()], eps=0.0) for g in (gradient, other)]
        cosines.append((units[0] * units[1]).sum(1))
    return _mean("cosine of input gradients", cosines)


def linearity(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, batch_size: int = 512) -> Measurement:
    """How wrong the linear prediction is on which FGSM rests, relative to the rise that it promises.

    With δ the FGSM perturbation and ℓ the cross-entropy of an image: the mean absolute value of
    ℓ(x + δ) - ℓ(x) - ⟨∇ℓ(x), δ⟩, divided by that of ⟨∇ℓ(x), δ⟩. 0 for a loss that is linear along the step. GradAlign
    and the SAT regularizers all mean to lower it. A masked model promises a rise and does not keep the promise: the
    value is near 1 where the loss does not rise at all, above 1 where it falls, and large where the loss is curved. At
    a large ε it is no small number for an honest network either.

    Args:
        model: returns logits (B, K).
        x, y: (B, C, H, W) float32 or float64 in the threat's pixel box, on the model's device; (B,) integer labels.
        threat: the ball and the box of the step.
        batch_size: images per batch.

    Raises:
        ArgumentError, DataError, ModelError: see `advtrain.errors`.
    """
    wrong, promised = [], []
    for _, x_part, y_part, gradient in _batches(model, x, y, threat, batch_size):
        x_adv = threat.project(threat.ascend(x_part, gradient, threat.eps), x_part)
        promise = (gradient * (x_adv - x_part)).flatten(1).sum(1)
        rise = cross_entropy(_logits(model, x_adv), y_part) - cross_entropy(_logits(model, x_part), y_part)
        wrong.append((rise - promise).abs())
        promised.append(promise.abs())
    scale = torch.cat(promised).mean()
    return _mean("error of the linear prediction", [part / scale for part in wrong])


def _batches(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, batch_size: int
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Number, images, labels and input gradient of each batch, after the checks that every measurement needs."""
    at_least("batch_size", batch_size, 1)
    check_attack(model, x, y, threat)
    for number, first in enumerate(range(0, len(x), batch_size)):
        x_part, y_part = x[first : first + batch_size].detach(), y[first : first + batch_size].long()
        yield number, x_part, y_part, _gradient(model, x_part, y_part)


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with attacking(model, "eval"):
        gradient, _ = input_gradient(model, x, lambda logits: cross_entropy(logits, y))
    if not bool(gradient.isfinite().all()):
        raise ModelError("the model's input gradient is NaN or infinite: look for a root, norm or division at zero")
    return gradient


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    with evaluating(model):
        logits: Tensor = model(x)
    return logits.to(x.dtype)  # float32 again under autocast


def _mean(name: str, parts: list[Tensor]) -> Measurement:
    values = torch.cat([part.detach().cpu().double() for part in parts])
    n = len(values)
    error = float(values.std()) / math.sqrt(n) if n > 1 else math.nan
    return Measurement(name, float(values.mean()) if n else math.nan, error, n)


__all__ = ["LossCurve", "Measurement", "gradient_alignment", "linearity", "logit_gap", "loss_curve"]
