"""Optimal transport between two sets of features: how far one batch has to move to become the other.

Every point of a set weighs the same. Cuturi (2013), arXiv 1306.0895, made transport cheap by adding an entropy term to
it, which turns it into a repeated normalisation of the rows and columns of one matrix.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import at_least, bad, is_real


class Transport(NamedTuple):
    """What `sinkhorn_plan` returns.

    Args:
        value: a scalar, the cost ⟨P, C⟩ of the plan.
        plan: (n, m), P; how much of each point x_i goes to each y_j. Its columns sum to 1/m, its rows nearly to 1/n.
        cost: (n, m), C; squared distances.
    """

    value: Tensor
    plan: Tensor
    cost: Tensor


def cost_matrix(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances between two sets of points, C_ij = Σ_k (x_ik - y_jk)².

    The sum, not the mean, over features: with many features the numbers are large, and `eps` in `sinkhorn` is to be
    read beside them. Each difference is taken before it is squared. The usual shortcut ‖x‖² + ‖y‖² - 2⟨x, y⟩ would save
    memory, which is n · m · F numbers here, but a small distance between long vectors is lost in it.

    >>> cost_matrix(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0]]))
    tensor([[ 0.],
            [25.]])

    Args:
        x: (n, F) floating-point features.
        y: (m, F) floating-point features.

    Returns:
        (n, m), float64 if one of the two is, else float32.

    Raises:
        ArgumentError: the features are no matrices of floating-point numbers, empty, or of different width or device.
    """
    x, y = _features(x, y)
    with torch.autocast(x.device.type, enabled=False):
        return (x[:, None] - y[None]).square().sum(2)


def sinkhorn_plan(x: Tensor, y: Tensor, *, eps: float = 0.01, iterations: int = 100) -> Transport:
    """The entropic transport plan between two sets of points, after a fixed number of Sinkhorn iterations.

    With C the `cost_matrix` and u = v = 0 at the start, each iteration sets first u and then v::

        u_i = -ε log(n Σ_j exp((v_j - C_ij) / ε))        v_j = -ε log(m Σ_i exp((u_i - C_ij) / ε))

    and in the end P_ij = exp((u_i + v_j - C_ij) / ε). As v comes last, the columns of P are exact and the rows are as
    good as the iterations have made them. Gradients flow through all iterations.

    Computed on log P as a whole: an iteration is a `log_softmax` of its rows and one of its columns, which is the same
    in exact arithmetic, keeps u and v implicit, takes a fraction of the operations, and rounds less, because u, v and C
    may be large where log P is small. Autocast is off inside.

    Args:
        x: (n, F) floating-point features.
        y: (m, F) floating-point features; m may differ from n.
        eps: weight ε of the entropy, in units of C; above 0. Plans for small ε are sharp, and need more iterations.
        iterations: how often u and v are updated, at least 1. There is no test for convergence.

    Returns:
        A `Transport`: value, plan and cost.

    Raises:
        ArgumentError: an argument is outside what is accepted.
    """
    if not is_real(eps) or not 0 < eps < math.inf:
        hint = "without entropy it is a linear program, which this does not solve" if is_real(eps) and eps == 0 else ""
        bad("eps", eps, "a number above 0", hint)
    iterations = at_least("iterations", iterations, 1)
    cost = cost_matrix(x, y)
    with torch.autocast(cost.device.type, enabled=False):
        log_plan = -cost / eps
        for _ in range(iterations):
            log_plan = log_plan.log_softmax(1).log_softmax(0)
        plan = log_plan.exp() / cost.shape[1]
        return Transport((plan * cost).sum(), plan, cost)


def sinkhorn(x: Tensor, y: Tensor, *, eps: float = 0.01, iterations: int = 100, debiased: bool = False) -> Tensor:
    """The cost of moving one set of points onto another, by Sinkhorn's algorithm; differentiable in both.

    The value is that of `sinkhorn_plan`, OT(x, y) = ⟨P, C⟩: the transport cost alone, without the entropy term that P
    minimises with it. Once the iterations have converged it is at least the exact cost of transport; before, while the
    rows of P are not exact, it may also be below. It is not 0 for x = y, since the entropy spreads P. `debiased=True`
    takes that off::

        S(x, y) = OT(x, y) - (OT(x, x) + OT(y, y)) / 2

    in which each OT is this same value. S is 0 for x = y. The Sinkhorn divergence of Feydy et al. (2019), arXiv
    1810.08278, which the library geomloss computes, takes OT with the entropy term (its dual value) and half the
    squared distance; that one is never negative, whereas nothing guarantees it for this one.

    The loss of Robustness-via-Synthesis (Baytaş and Deb, 2023, arXiv 2108.09713; code
    ALLab-Boun/robustness-via-synthesis, model.py) with its defaults, not debiased. Their batch size is that of the
    images; ours is that of the features, so the two sets may differ in size.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> round(float(sinkhorn(x, x + 0.1)), 4), float(sinkhorn(x, x, debiased=True))
    (0.01, 0.0)

    Args:
        x: (n, F) floating-point features.
        y: (m, F) floating-point features.
        eps: weight ε of the entropy, in units of a squared distance; above 0.
        iterations: updates of each potential, at least 1.
        debiased: take off the cost of moving each set onto itself; three times the work.

    Returns:
        A scalar, float64 if one of the sets is, else float32.

    Raises:
        ArgumentError: an argument is outside what is accepted.
    """
    value = sinkhorn_plan(x, y, eps=eps, iterations=iterations).value
    if debiased:
        own = [sinkhorn_plan(points, points, eps=eps, iterations=iterations).value for points in (x, y)]
        value = value - (own[0] + own[1]) / 2
    return value


def _features(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets in a common dtype of at least float32."""
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            came = value.dtype if isinstance(value, Tensor) else type(value).__name__
            bad(name, came, "a floating-point tensor of features", f"{name}.float()")
        if value.ndim != 2 or 0 in value.shape:
            bad(f"{name}.shape", tuple(value.shape), "(n, F) with at least one point", f"{name}.flatten(1)")
    if x.shape[1] != y.shape[1]:
        bad("y.shape", tuple(y.shape), f"(m, {x.shape[1]}), as wide as x", "both are features of one model")
    if x.device != y.device:
        bad("y.device", y.device, f"{x.device}, where x is", "move one of them")
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return x.to(dtype), y.to(dtype)


__all__ = ["Transport", "cost_matrix", "sinkhorn", "sinkhorn_plan"]
