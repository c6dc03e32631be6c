"""The threat model as one value: which perturbations the attacker may use.

This is the only place that knows ε, the norm and the pixel box.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from .errors import bad, is_finite, one_of
from .rng import Rng

NORMS = ("linf", "l2")


@dataclass(frozen=True)
class Threat:
    """All images within `eps` of the original one, in a norm, and inside the pixel box.

    Args:
        norm: `"linf"` (every pixel moves by at most eps) or `"l2"` (the Euclidean length of the change is at most eps).
        eps: radius ε, in units of a pixel in [low, high]. Under ℓ∞ in (0, high - low]: write `8 / 255`, not 8.
        low, high: the pixel box; [0, 1] everywhere in this package.

    Raises:
        ArgumentError: an unknown norm, a radius outside the accepted range, an empty box.

    Membership is meant literally: `contains` judges in float64, and whatever `project` returns is a member. Plain
    clamping to `x ± eps` leaves a good part of float32 pixels outside the ball by one rounding step; `project` rounds
    towards x instead.

    >>> Threat("linf", eps=8 / 255)
    Threat(norm='linf', eps=8/255)
    """

    norm: str
    eps: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        one_of("norm", self.norm, NORMS)
        for name in ("eps", "low", "high"):
            value = getattr(self, name)
            if not is_finite(value):
                hint = f"such as {name}=8/255" if name == "eps" else "pixels are in [0, 1]"
                bad(name, value, "a finite number", hint)
            object.__setattr__(self, name, float(value))
        if not 0 <= self.low < self.high <= 1:
            bad("(low, high)", (self.low, self.high), "a box inside [0, 1]", "pixels are in [0, 1] in this package")
        if self.norm == "linf" and not 0 < self.eps <= self.high - self.low:
            hint = f"pixels are in [{self.low:g}, {self.high:g}]"
            hint += f", did you mean {self.eps:g}/255?" if 1 < self.eps <= 255 else ", such as 8/255" * (self.eps <= 0)
            bad("eps", self.eps if self.eps % 1 else int(self.eps), f"in (0, {self.high - self.low:g}]", hint)
        if self.eps <= 0:
            bad("eps", self.eps, "above 0", "a radius is positive; 128/255 is usual for ℓ2 on CIFAR-10")

    def __repr__(self) -> str:
        box = "" if (self.low, self.high) == (0.0, 1.0) else f", low={self.low:g}, high={self.high:g}"
        eps = format_eps(self.eps)
        eps = eps if parse_eps(eps) == self.eps else repr(self.eps)
        return f"Threat(norm={self.norm!r}, eps={eps}{box})"

    def projector(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """`project` for a fixed x, with what depends on x alone computed once: for the inner loop of an attack."""
        if self.norm == "linf":
            lower = _add_towards(x, -self.eps).clamp(min=_inside(self.low, x.dtype, +1))
            upper = _add_towards(x, self.eps).clamp(max=_inside(self.high, x.dtype, -1))
            return lambda x_adv: torch.minimum(torch.maximum(x_adv, lower), upper)

        wide = torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64

        def onto_l2(x_adv: Tensor) -> Tensor:
            x_adv = self.into_box(x_adv)
            delta = x_adv.to(wide) - x.to(wide)
            length = _lengths(delta)
            # A hair inside the sphere, and rounded towards x, so that the result is a member in float64 as well.
            scale = self.eps * (1 - 1e-6) / length.clamp(min=self.eps)
            return torch.where(length <= self.eps, x_adv, _add_towards(x, (delta * scale).to(x.dtype)))

        return onto_l2

    def diameter(self, shape: Sequence[int]) -> float:
        """How far apart, in the norm, two images of shape (C, H, W) in the pixel box can be."""
        return (self.high - self.low) * (1 if self.norm == "linf" else math.sqrt(math.prod(shape)))

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The nearest admissible image (ℓ∞), or x_adv drawn back towards x until it is admissible (ℓ2).

        Args:
            x_adv, x: (B, C, H, W) float32 or float64; x inside the box.

        Returns:
            A tensor like x_adv for which `contains` holds. A member stays as it is.
        """
        return self.projector(x)(x_adv)

    def into_box(self, x: Tensor) -> Tensor:
        """x with every pixel moved into [low, high]; for methods that leave the ball on purpose."""
        return x.clamp(_inside(self.low, x.dtype, +1), _inside(self.high, x.dtype, -1))

    def random_start(
        self, x: Tensor, rng: Rng | None = None, project: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """x plus noise drawn uniformly from the ε-ball, projected: where PGD and FAST-AT begin.

        Args:
            x: (B, C, H, W) inside the box.
            rng: names the draw; the default is always the same draw.
            project: `projector(x)`, if the caller has it already.
        """
        rng, project = rng or Rng(0), project or self.projector(x)
        if self.norm == "linf":
            return project(x + rng.uniform(x, -self.eps, self.eps))
        direction = rng.normal(x)
        radius = rng.uniform(x[:, :1, :1, :1], 0.0, 1.0) ** (1.0 / x[0].numel())
        return project(x + self.eps * radius * direction / _lengths(direction).clamp(min=1e-12))

    def ascend(self, x_adv: Tensor, grad: Tensor, step_size: float | Tensor) -> Tensor:
        """One step of steepest ascent in the threat's norm: along the sign (ℓ∞), or along the unit gradient (ℓ2).

        The result may be outside the ball; `project` it. Where the gradient vanishes or is NaN, the image stays.
        """
        if self.norm == "linf":
            return x_adv + step_size * grad.sign()  # sign(NaN) is 0
        return x_adv + step_size * (grad / _lengths(grad).clamp(min=1e-30)).nan_to_num(0.0)

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Which images of the batch are admissible, judged in float64.

        Returns:
            (B,) bool. Images with NaN are not admissible.
        """
        x_adv, x = x_adv.detach().cpu().double(), x.detach().cpu().double()
        delta = (x_adv - x).flatten(1)
        size = delta.abs().amax(1) if self.norm == "linf" else _lengths(delta).flatten()
        return (size <= self.eps) & (x_adv >= self.low).flatten(1).all(1) & (x_adv <= self.high).flatten(1).all(1)


def format_eps(eps: float) -> str:
    """`8/255` for 8/255, `0.3` for 0.3: the way the papers write a radius."""
    steps = Fraction(eps * 255).limit_denominator(4)
    if steps and abs(eps * 255 - steps) < 1e-9 and len(f"{eps:g}") > 5:
        return f"{float(steps):g}/255"
    return f"{eps:g}"


def parse_eps(text: str) -> float:
    """`8/255` or `0.3` as a number.

    Raises:
        ArgumentError: it is neither a number nor a fraction of two numbers.
    """
    top, _, bottom = str(text).partition("/")
    try:
        return float(top) / float(bottom) if bottom else float(top)
    except (ValueError, ZeroDivisionError):
        bad("eps", text, "a number or a fraction", "write 0.3 or 8/255")


def _lengths(delta: Tensor) -> Tensor:
    """ℓ2 length of each image, (B, 1, …, 1)."""
    lengths: Tensor = torch.linalg.vector_norm(delta, dim=tuple(range(1, delta.ndim)), keepdim=True)
    return lengths


@functools.cache
def _inside(value: float, dtype: torch.dtype, direction: int) -> float:
    """`value` in `dtype`, rounded upwards (+1) or downwards (-1): a bound that is kept in float64 too."""
    rounded = torch.tensor(value, dtype=dtype)
    if (float(rounded) - value) * direction < 0:
        rounded = torch.nextafter(rounded, torch.tensor(math.inf * direction, dtype=dtype))
    return float(rounded)


def _add_towards(x: Tensor, delta: float | Tensor) -> Tensor:
    """x + delta, rounded towards x, so that the exact distance to x never exceeds |delta|.

    Knuth's two-sum gives the rounding error of a floating-point sum exactly; where the sum went beyond, step back by
    one unit in the last place.
    """
    if isinstance(delta, float):  # first to a number of x's own precision, not larger in magnitude
        delta = _inside(delta, x.dtype, -1 if delta > 0 else +1)
    total = x + delta
    virtual = total - x
    error = (x - (total - virtual)) + (delta - virtual)  # x + delta == total + error, exactly
    beyond = error.sign() * delta < 0
    return torch.where(beyond, torch.nextafter(total, x), total)
