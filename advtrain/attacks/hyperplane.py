"""The smallest step onto a hyperplane that stays inside the pixel box: what the FAB attack repeats.

Find d of smallest norm with ⟨w, d⟩ = gap and low ≤ t + d ≤ high. Each pixel moves the way that closes the gap, by at
most its room c_i, the distance to the face of the box on that side. The best d is d_i = ± min(λ, c_i) under ℓ∞ and
d_i = ± min(λ |w_i|, c_i) under ℓ2, for one multiplier λ ≥ 0. What it gives, Σ |w_i d_i|, grows with λ along a piecewise
linear, concave curve whose corners are the multipliers at which a pixel has used up its room. Sorted, with running
sums, they tell the piece that meets the gap, and on this piece λ is a quotient: the answer is exact, for one sort.

Croce and Hein (2020), arXiv 1907.02044, section 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def project_linf(t: Tensor, w: Tensor, b: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """The step of smallest ℓ∞ norm from points onto hyperplanes, inside the box.

    Args:
        t: (R, n), points inside the box.
        w: (R, n), the normals, finite.
        b: (R,), the offsets: hyperplane r is {z: ⟨w_r, z⟩ = b_r}.
        low, high: the box.

    Returns:
        d (R, n): t + d lies on the hyperplane. Where the hyperplane does not meet the box, t + d is the point of the
        box that comes nearest to it in the value of ⟨w, ·⟩. Pixels of zero weight stay where they are.
    """
    return smallest_step(t, w, b - (w * t).sum(1), "linf", low, high)


def project_l2(t: Tensor, w: Tensor, b: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """The step of smallest ℓ2 norm from points onto hyperplanes, inside the box.

    The authors' code takes |w_i| below 1e-8 for zero. Here only zero is zero, and the scale of w does not matter.

    Args:
        t: (R, n), points inside the box.
        w: (R, n), the normals, finite.
        b: (R,), the offsets: hyperplane r is {z: ⟨w_r, z⟩ = b_r}.
        low, high: the box.

    Returns:
        d (R, n), as for `project_linf`.
    """
    return smallest_step(t, w, b - (w * t).sum(1), "l2", low, high)


def smallest_step(t: Tensor, w: Tensor, gap: Tensor, norm: str, low: float = 0.0, high: float = 1.0) -> Tensor:
    """The step d of smallest norm with ⟨w, d⟩ = gap that stays inside the box. Waits for no device.

    Args:
        t: (R, n), points inside the box.
        w: (R, n), the normals, finite.
        gap: (R,), how much ⟨w, ·⟩ is to grow.
        norm: `"linf"` or `"l2"`.
        low, high: the box.

    Returns:
        d (R, n), as for `project_linf`.
    """
    info = torch.finfo(t.dtype)
    scale = w.abs().amax(1, keepdim=True).clamp(min=info.tiny)
    w, gap = w / scale, gap[:, None] / scale  # the weights are at most 1: no square of theirs overflows
    direction, weight, missing = w.sign() * gap.sign(), w.abs(), gap.abs()
    room = torch.where(direction > 0, high - t, t - low).clamp(min=0)

    # Pixel i stops at the multiplier stop_i; until then it gives rate_i for each unit of it.
    rate, stop = (weight, room) if norm == "linf" else (weight.square(), room / weight.clamp(min=info.tiny))
    stop, order = stop.sort(1)
    rate = rate.gather(1, order)
    given = F.pad((rate * stop).cumsum(1), (1, 0))  # (R, n + 1): by the first k pixels that stop
    going = F.pad(rate.flip(1).cumsum(1).flip(1), (0, 1))  # (R, n + 1): the rate of the others
    corner = torch.searchsorted(given[:, 1:] + stop * going[:, 1:], missing)
    multiplier = (missing - given.gather(1, corner)) / going.gather(1, corner).clamp(min=info.tiny)
    multiplier = multiplier.clamp(max=info.max)  # out of reach nothing goes on: every room is used up
    return direction * torch.minimum(multiplier if norm == "linf" else multiplier * weight, room)
