"""Layers for second-order terms: the same values and derivatives as PyTorch's, in fewer operations."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import advtrain as at
from advtrain import second_order as module
from advtrain.second_order import TwiceDifferentiable

HERE = pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def second_order(x, v, weight, bias, momentum=0.1, also_parameters=False):
    """Derivatives of ⟨v, ∇_x loss⟩ (and, if asked, of the parameters' gradients too), and the running statistics."""
    running = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    y = F.batch_norm(x, *running, weight, bias, training=True, momentum=momentum)
    inputs = [t for t in (x, weight, bias) if t is not None]
    loss = (y.sin() * torch.linspace(-1, 2, y.numel()).to(x).view_as(y)).sum()
    first = torch.autograd.grad(loss, inputs, create_graph=True)
    value = (first[0] * v).sum()
    if also_parameters:
        value = value + sum((grad * grad.detach().cos()).sum() for grad in first[1:])
    return [y, *first, *torch.autograd.grad(value, inputs), *running]


@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (6, 3), (2, 3, 7), (2, 3, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("also_parameters", [False, True])
def test_values_and_both_derivatives_equal_pytorch_s(shape, affine, also_parameters):
    rng = at.Rng(0)
    x, v = (rng.normal(torch.empty(shape, dtype=torch.float64)) for _ in range(2))
    x.requires_grad_()
    weight, bias = (rng.normal(torch.empty(3, dtype=torch.float64)).requires_grad_() for _ in range(2))
    given = (x, v, weight, bias) if affine else (x, v, None, None)
    theirs = second_order(*given, also_parameters=also_parameters)
    with TwiceDifferentiable():
        ours = second_order(*given, also_parameters=also_parameters)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-12 * (1 + b.abs().max())


def test_the_formula_passes_a_numerical_check():
    with TwiceDifferentiable():
        inputs = [at.Rng(i).normal(torch.empty(s, dtype=torch.float64)).requires_grad_() for i, s in
                  enumerate([(3, 2, 2, 2), (2,), (2,)])]  # fmt: skip
        assert torch.autograd.gradgradcheck(lambda x, w, b: F.batch_norm(x, None, None, w, b, True), inputs)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("mean", [0.0, 30.0])
@HERE
def test_float32_is_as_exact_as_pytorch_s_also_far_from_zero(where, layout, mean):
    rng = at.Rng(0)
    x, v = (rng.normal(torch.empty(16, 4, 8, 8)) for _ in range(2))
    weight, bias = (rng.normal(torch.empty(4)) for _ in range(2))
    found = []
    for dtype, ours in ((torch.float64, False), (torch.float32, False), (torch.float32, True)):
        image = (x + mean).to(where, dtype, memory_format=layout).requires_grad_()
        parameters = [p.to(where, dtype).requires_grad_() for p in (weight, bias)]
        with TwiceDifferentiable() if ours else contextlib.nullcontext():
            found.append(second_order(image, v.to(where, dtype), *parameters)[4:6])
    for truth, theirs, ours in zip(*found, strict=True):
        error, allowed = (ours - truth).norm() / truth.norm(), (theirs - truth).norm() / truth.norm()
        assert error <= 3 * allowed + 1e-6


@HERE
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("affine", [True, False])
def test_bfloat16_activations_with_float32_parameters_give_the_float32_result_roughly(where, layout, affine):
    rng = at.Rng(0)
    x, v = (rng.normal(torch.empty(8, 3, 6, 6)).to(where) for _ in range(2))
    weight = torch.ones(3, device=where, requires_grad=True) if affine else None
    bias = torch.zeros(3, device=where, requires_grad=True) if affine else None
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        image = x.to(dtype, memory_format=layout).requires_grad_()
        with TwiceDifferentiable():
            y = F.batch_norm(image, None, None, weight, bias, training=True)
            (grad,) = torch.autograd.grad(y.float().sin().sum(), image, create_graph=True)
            results.append(torch.autograd.grad((grad.float() * v).sum(), [image, weight] if affine else [image]))
    assert results[1][0].dtype == torch.bfloat16 and results[1][-1].dtype == (
        torch.float32 if affine else torch.bfloat16
    )
    for a, b in zip(*results, strict=True):
        assert (a - b.float()).norm() <= 0.05 * a.norm()


@pytest.mark.parametrize(
    "rectifier", [F.relu, torch.nn.ReLU(), torch.nn.ReLU(inplace=True)], ids=["function", "layer", "in place"]
)
@HERE
def test_a_rectifier_has_the_same_derivatives_also_where_it_bends(where, rectifier):
    found = []
    for ours in (False, True):
        with TwiceDifferentiable() if ours else contextlib.nullcontext():
            x = torch.tensor([-1.0, -0.0, 0.0, 1e-30, 2.0, float("nan")], device=where, requires_grad=True)
            y = rectifier(x * 1)
            (first,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
            found.append([y, first, *torch.autograd.grad((first * torch.arange(1.0, 7.0, device=where)).sum(), x)])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def twice(ours, x, weight, bias, **options):
    """Values, derivatives, and derivatives of a function of these, of a convolution."""
    with TwiceDifferentiable() if ours else contextlib.nullcontext():
        y = F.conv2d(x, weight, bias, **options)
        inputs = [t for t in (x, weight, bias) if t is not None]
        first = torch.autograd.grad(y.sin().sum(), inputs, create_graph=True)
        return [y, *first, *torch.autograd.grad(sum(g.cos().sum() for g in first), inputs)]


@pytest.fixture
def everywhere(monkeypatch):
    """Ours also on a processor, which PyTorch's own serve as well."""
    monkeypatch.setattr(module, "AS_FAST", ())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1}, {"padding": (2, 0), "dilation": (1, 2)}, {"groups": 2, "stride": (2, 3)},
     {"padding": "same"}],
    ids=str,
)  # fmt: skip
@HERE
def test_a_convolution_s_derivatives_equal_pytorch_s(where, options, layout, everywhere):
    rng, groups = at.Rng(0), options.get("groups", 1)
    shapes = (3, 4, 7, 8), (6, 4 // groups, 3, 3), (6,)
    made = [rng.normal(torch.empty(shape, dtype=torch.float64)).to(where) for shape in shapes]
    x, weight = (t.contiguous(memory_format=layout).requires_grad_() for t in made[:2])
    for bias in (made[2].requires_grad_(), None):
        for a, b in zip(twice(True, x, weight, bias, **options), twice(False, x, weight, bias, **options), strict=True):
            assert (a - b).abs().max() <= 1e-12 * (1 + b.abs().max())


def test_the_derivatives_of_a_convolution_pass_a_numerical_check(everywhere):
    inputs = [at.Rng(i).normal(torch.empty(s, dtype=torch.float64)).requires_grad_() for i, s in
              enumerate([(2, 2, 4, 4), (3, 2, 3, 3), (3,)])]  # fmt: skip
    with TwiceDifferentiable():
        assert torch.autograd.gradcheck(lambda *t: F.conv2d(*t, stride=2, padding=1), inputs)
        assert torch.autograd.gradgradcheck(lambda *t: F.conv2d(*t, stride=2, padding=1), inputs)


@HERE
def test_under_autocast_convolutions_are_those_of_pytorch(where, everywhere):
    x = at.Rng(0).normal(torch.empty(4, 3, 8, 8)).to(where).requires_grad_()
    weight = at.Rng(1).normal(torch.empty(5, 3, 3, 3)).to(where).requires_grad_()
    found = []
    for ours in (False, True):
        with torch.autocast(where, torch.bfloat16), TwiceDifferentiable() if ours else contextlib.nullcontext():
            y = F.conv2d(x, weight, padding=1)
            (first,) = torch.autograd.grad(y.float().sin().sum(), x, create_graph=True)
        found.append([y, first, *torch.autograd.grad(first.square().sum(), [x, weight])])
    for theirs, ours in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype and (ours - theirs).float().norm() <= 0.02 * theirs.float().norm()


def test_of_first_derivatives_only_those_for_images_are_taken_if_no_others_are_wanted(everywhere):
    """What a weight's gradient costs, an attack does not pay; the second derivative has them all."""
    weight = torch.rand(2, 1, 3, 3, requires_grad=True)
    x = torch.rand(1, 1, 5, 5, requires_grad=True)
    with TwiceDifferentiable(images_only=True):
        loss = F.conv2d(x, weight).sin().sum()
    with Names() as names:
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
    assert names.wanted == [[True, False, False]]
    (ours,) = torch.autograd.grad(first.square().sum(), weight)
    (again,) = torch.autograd.grad(F.conv2d(x, weight).sin().sum(), x, create_graph=True)
    assert torch.allclose(ours, torch.autograd.grad(again.square().sum(), weight)[0], atol=1e-6)


class Names(TorchDispatchMode):
    """The operations inside, and which gradients each convolution's was asked for."""

    def __init__(self):
        super().__init__()
        self.all, self.wanted = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.all.append(function.overloadpacket.__name__)
        if self.all[-1] == "convolution_backward":
            self.wanted.append(args[-1])
        return function(*args, **(kwargs or {}))


def test_no_zeros_are_added_for_the_bend_of_a_rectifier():
    with TwiceDifferentiable():
        x = torch.linspace(-1, 1, 8, requires_grad=True)
        (first,) = torch.autograd.grad(F.relu(x).sin().sum(), x, create_graph=True)
    with Names() as names:
        torch.autograd.grad(first.square().sum(), x)
    assert "threshold_backward" in names.all and "zeros_like" not in names.all


def test_evaluation_mode_and_a_single_value_per_channel_are_left_to_pytorch():
    layer = torch.nn.BatchNorm1d(3)
    with TwiceDifferentiable():
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            layer(torch.rand(1, 3))
        layer.eval()
        assert torch.equal(layer(torch.ones(1, 3)), torch.ones(1, 3) / (1 + layer.eps) ** 0.5)


def test_third_derivatives_are_refused_not_wrong():
    x = torch.rand(4, 2, dtype=torch.float64, requires_grad=True)
    with TwiceDifferentiable():
        y = F.batch_norm(x, None, None, training=True)
        (first,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="create_graph=True is not available"):
        torch.autograd.grad(first.square().sum(), x, create_graph=True)
