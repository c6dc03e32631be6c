"""Batch normalisation whose derivative can be differentiated cheaply.

A method with a second-order term differentiates an input gradient, and with it the backward pass of every batch
normalisation. PyTorch composes that second derivative of many passes over the activations, which is a good part of a
FAST-BAT step on PreActResNet-18. Written as one formula it takes a few.

With x̂ = (x - μ)/σ, n values per channel, a = γ/σ and ḡ, v̄ for means over a channel, the backward pass is
P(g) = a (g - ḡ - x̂ mean(g x̂)), and for a cotangent v::

    ⟨v, P(g)⟩ = n a S,   S = mean(g v) - ḡ v̄ - mean(g x̂) mean(v x̂)

whose derivatives with respect to g, x and γ are what `_Backward.backward` returns: for x, a/σ times
ḡ mean(v x̂) + v̄ mean(g x̂) - v mean(g x̂) - g mean(v x̂) + x̂ (2 mean(g x̂) mean(v x̂) - S).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class TwiceDifferentiable(TorchFunctionMode):
    """Inside, batch normalisation in training mode is made of this module's functions; the values are the same."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return _batch_norm(*args, **kwargs) if function is F.batch_norm else function(*args, **kwargs)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training or x.numel() == x.shape[1]:  # of a single value per channel PyTorch complains itself
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    apply: Callable[..., Tensor] = _Forward.apply
    return apply(x, weight, bias, running_mean, running_var, momentum, eps)


class _Forward(torch.autograd.Function):
    """Normalise by the batch's statistics, and update the running ones."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
        running_var: Tensor | None, momentum: float, eps: float,
    ) -> Tensor:  # fmt: skip
        y, mean, rstd = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        needed = list(ctx.needs_input_grad[:3])
        apply: Callable[..., tuple[Tensor | None, ...]] = _Backward.apply
        grads = apply(g, *ctx.saved_tensors, ctx.eps, needed)
        return *(grad if need else None for grad, need in zip(grads, needed, strict=True)), None, None, None, None


class _Backward(torch.autograd.Function):
    """The derivative of `_Forward`: gradients with respect to x, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, eps: float,
        needed: list[bool],
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        ctx.save_for_backward(g, x, weight, mean, rstd)
        ctx.set_materialize_grads(False)
        grads: tuple[Tensor | None, ...] = torch.ops.aten.native_batch_norm_backward(
            g, x, weight, None, None, mean, rstd, True, eps, needed
        )
        return grads

    @staticmethod
    def backward(
        ctx: Any, v: Tensor | None, v_weight: Tensor | None, v_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # the statistics are constants here, so a graph would be wrong
            raise RuntimeError("a second derivative with create_graph=True is not available inside TwiceDifferentiable")
        g, x, weight, mean, rstd = ctx.saved_tensors
        dims, n = [0, *range(2, x.ndim)], x.numel() // x.shape[1]

        def wide(statistic: Tensor) -> Tensor:
            return statistic.view(1, -1, *[1] * (x.ndim - 2))

        normal = (x - wide(mean)) * wide(rstd)  # float32 at least: so are the statistics
        scale = rstd if weight is None else weight * rstd
        to_g = to_x = to_weight = None
        if v is not None:
            v_mean, g_mean = (t.mean(dims, dtype=normal.dtype) for t in (v, g))
            v_normal, g_normal, gv = (
                (a * b).mean(dims) for a, b in ((v, normal), (g, normal), (g, v.to(normal.dtype)))
            )
            s = gv - g_mean * v_mean - g_normal * v_normal
            to_g = torch.addcmul(v - wide(v_mean), normal, wide(v_normal), value=-1).mul_(wide(scale))
            to_weight = n * rstd * s
            slope = scale * rstd
            to_x = torch.addcmul(wide(slope * (g_mean * v_normal + v_mean * g_normal)), v, wide(-slope * g_normal))
            to_x.addcmul_(g, wide(-slope * v_normal)).addcmul_(normal, wide(slope * (2 * g_normal * v_normal - s)))
        if v_weight is not None:  # the weight's gradient is Σ g x̂
            push = g * wide(v_weight * rstd)
            push = push - push.mean(dims, keepdim=True) - normal * (push * normal).mean(dims, keepdim=True)
            to_x = push if to_x is None else to_x + push
            to_g = normal * wide(v_weight) if to_g is None else to_g + normal * wide(v_weight)
        if v_bias is not None:  # the bias's gradient is Σ g
            to_g = wide(v_bias).expand_as(g) if to_g is None else to_g + wide(v_bias)
        to_g = None if to_g is None else to_g.to(g.dtype)
        to_x = None if to_x is None else to_x.to(x.dtype)
        return to_g, to_x, None if weight is None else to_weight, None, None, None, None
