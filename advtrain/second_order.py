"""Layers whose derivative can be differentiated cheaply, for methods with a second-order term.

Such a method differentiates an input gradient, and with it the backward pass of every layer. Of batch normalisation,
PyTorch composes that second derivative of many passes over the activations, which is a good part of a FAST-BAT step on
PreActResNet-18. Written as one formula it takes a few, most of them inside kernels that PyTorch has. A rectifier's is
zero with respect to its input: PyTorch writes these zeros down, and adds them to what is there. And a convolution's,
with respect to its weights, it computes as a convolution with a filter as large as the image, for which GPUs have no
good kernels; since the gradient of the images is linear in both, it is the weights' gradient with other arguments.

With x̂ = (x - μ)/σ, n values per channel, a = γ/σ and ḡ, v̄ for means over a channel, the backward pass is
P(g) = a (g - ḡ - x̂ mean(g x̂)), and for a cotangent v::

    ⟨v, P(g)⟩ = n a S,   S = mean(g v) - ḡ v̄ - mean(g x̂) mean(v x̂)

whose derivatives with respect to g, x and γ are what `_Backward.backward` returns: P(v), since P is its own transpose;
a/σ times (ḡ - g) mean(v x̂) + (v̄ - v) mean(g x̂) + x̂ (2 mean(g x̂) mean(v x̂) - S); and n S/σ. The means are sums that
a backward pass takes anyway: of g and of v over x, and of g over v as if v were x and had the mean v̄.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

AS_FAST = ("cpu",)
"""Devices on which PyTorch's own second derivative of a convolution is as fast: there it stays."""


class TwiceDifferentiable(TorchFunctionMode):
    """Inside, convolutions, batch normalisation in training mode and rectifiers are made of this module's functions.

    The values and first derivatives are the same, and so are second ones up to rounding.

    Args:
        images_only: that of first derivatives with a graph, only those with respect to images are wanted: the weights'
            are then neither computed nor right.
    """

    def __init__(self, images_only: bool = False):
        super().__init__()
        self.images_only = images_only

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.conv2d:
            return _conv2d(*args, **kwargs, images_only=self.images_only)
        if function is F.batch_norm:
            function = _batch_norm
        elif function is F.relu:
            function = _relu
        return function(*args, **kwargs)


class _Shape(NamedTuple):
    """How a convolution lies on its images."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.conv2d(x, weight, bias, *self)

    def backward(self, g: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> list[Tensor | None]:
        """Gradients with respect to images, weights and bias, of those `wanted`."""
        sizes, (stride, padding, dilation, groups) = [weight.shape[0]], self
        found: list[Tensor | None] = torch.ops.aten.convolution_backward(
            g, x, weight, sizes, stride, padding, dilation, False, [0, 0], groups, wanted
        )
        return found


def _conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, images_only: bool,
) -> Tensor:  # fmt: skip
    if x.device.type in AS_FAST or isinstance(padding, str) or x.ndim != 4:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    stride, padding, dilation = ([e] * 2 if isinstance(e, int) else list(e) for e in (stride, padding, dilation))
    shape, kind, found = _Shape(stride, padding, dilation, groups), x.device.type, [x, weight, bias]
    apply: Callable[..., Tensor] = _Convolution.apply
    if not torch.is_autocast_enabled(kind):
        return apply(*found, shape, images_only)
    dtype = torch.get_autocast_dtype(kind)
    found = [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in found]
    with torch.autocast(kind, enabled=False):
        return apply(*found, shape, images_only)


class _Convolution(torch.autograd.Function):
    """A convolution, whose two gradients are made of one another's kernels once more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, shape: _Shape, images_only: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.shape, ctx.images_only = shape, images_only
        return shape.forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        if not torch.is_grad_enabled():
            return *ctx.shape.backward(g, x, weight, wanted), None, None
        images, weights, biases = wanted
        if ctx.images_only:
            weights = biases = False
        to_x = _ImageGradient.apply(g, x, weight, ctx.shape) if images else None
        to_weight = _WeightGradient.apply(g, x, weight, ctx.shape) if weights else None
        return to_x, to_weight, g.sum((0, 2, 3)) if biases else None, None, None


class _ImageGradient(torch.autograd.Function):
    """A convolution's gradient with respect to its images: linear in g and in the weights."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, shape: _Shape) -> Tensor | None:
        ctx.save_for_backward(g, weight)
        ctx.shape = shape
        return shape.backward(g, x, weight, [True, False, False])[0]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        g, weight = ctx.saved_tensors
        to_g = ctx.shape.forward(v, weight) if ctx.needs_input_grad[0] else None
        to_weight = ctx.shape.backward(g, v, weight, [False, True, False])[1] if ctx.needs_input_grad[2] else None
        return to_g, None, to_weight, None


class _WeightGradient(torch.autograd.Function):
    """A convolution's gradient with respect to its weights: linear in g and in the images."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, shape: _Shape) -> Tensor | None:
        ctx.save_for_backward(g, x)
        ctx.shape = shape
        return shape.backward(g, x, weight, [False, True, False])[1]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        g, x = ctx.saved_tensors
        to_g = ctx.shape.forward(x, v) if ctx.needs_input_grad[0] else None
        to_x = ctx.shape.backward(g, x, v, [True, False, False])[0] if ctx.needs_input_grad[1] else None
        return to_g, to_x, None, None


def _relu(x: Tensor, inplace: bool = False) -> Tensor:
    apply: Callable[..., Tensor] = _Rectifier.apply
    return F.relu(x, inplace=True) if inplace else apply(x)


class _Rectifier(torch.autograd.Function):
    """max(x, 0), whose derivative does not change with x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.relu()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        slope: Tensor = torch.ops.aten.threshold_backward(g, y.detach(), 0)
        return slope


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
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        apply: Callable[..., tuple[Tensor, Tensor, Tensor]] = _Backward.apply
        grads = zip(apply(g, *ctx.saved_tensors), ctx.needs_input_grad[:3], strict=True)
        return *(grad if need else None for grad, need in grads), None, None, None, None


class _Backward(torch.autograd.Function):
    """The derivative of `_Forward`: P(g), and the gradients with respect to weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = _backward_pass(g, x, weight, mean, rstd)
        ctx.save_for_backward(g, x, weight, mean, rstd, *found[1:])
        ctx.set_materialize_grads(False)
        return found

    @staticmethod
    def backward(
        ctx: Any, v: Tensor | None, v_weight: Tensor | None, v_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # the statistics are constants here, so a graph would be wrong
            raise RuntimeError("a second derivative with create_graph=True is not available inside TwiceDifferentiable")
        g, x, weight, mean, rstd, g_normal, g_sum = ctx.saved_tensors
        n, to_g, to_weight = x.numel() // x.shape[1], None, None
        to_x = []
        if v is not None:
            to_g, v_normal, v_sum = _backward_pass(v, x, weight, mean, rstd)  # P is its own transpose
            # four in one: of so few numbers, every operation costs what its launch costs
            normal, level = (torch.stack([g_normal, v_normal, g_sum, v_sum]) / n).split(2)
            _, gv, _ = _backward_pass(g, v, weight, level[1], rstd, only_sums=True)  # Σ g (v - v̄) / σ
            both = (normal[0] * normal[1]).mul_(rstd)
            to_weight = gv.sub_(both, alpha=n)
            slope = rstd.square().neg_() if weight is None else rstd.square().neg_().mul_(weight)
            by_v, by_g = slope * normal
            by_x = (to_weight / n).sub_(both, alpha=2).mul_(slope)
            to_x = [(x, mean, by_x), (v, level[1], by_v), (g, level[0], by_g)]
        if v_weight is not None:  # the weight's gradient is Σ g x̂
            push = v_weight * rstd
            to_x += [(x, mean, -push * (g_normal / n) * rstd), (g, g_sum / n, push)]
        if v_weight is not None or v_bias is not None:  # and the bias's Σ g
            push = torch.zeros_like(mean) if v_weight is None else v_weight * rstd
            more = _mixture([(x, mean, push)], v_bias)
            to_g = more if to_g is None else to_g + more
        return to_g, _mixture(to_x) if to_x else None, None if weight is None else to_weight, None, None


def _backward_pass(
    g: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, only_sums: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """P(g), Σ g x̂ and Σ g by PyTorch's own kernel, which reads the activations twice; if `only_sums`, once."""
    weight = torch.ones_like(mean) if weight is None else weight
    wanted = [not only_sums, True, True]
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_batch_norm_backward(
        g, x, weight, None, None, mean, rstd, True, 0.0, wanted
    )
    return found


def _mixture(terms: list[tuple[Tensor, Tensor, Tensor]], constant: Tensor | None = None) -> Tensor:
    """Σ factor · (tensor - mean) + constant, where all but the tensors are one number for each channel.

    In the first tensor's form and precision; take for it the one whose mean is largest, for it meets all of the offset.
    """
    (first, mean, factor), *others = terms
    offset = mean * factor if constant is None else (mean * factor).sub_(constant)
    for _, mean, more in others:
        offset.addcmul_(mean, more)
    shape, result = [1, -1, *[1] * (first.ndim - 2)], torch.empty_like(first)
    torch.addcmul(offset.neg_().view(shape), first, factor.view(shape), out=result)
    for tensor, _, more in others:
        result.addcmul_(tensor, more.view(shape))
    return result
