"""Strategies for the laws that hold for every attack and every defense, and what "nothing is touched" means."""

import contextlib
import copy
import random

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

import advtrain as at
from advtrain.rng import global_draws

CLASSES = 4
SEEDS = st.integers(0, 10**6)
SHAPES = st.tuples(st.sampled_from([1, 3]), st.integers(2, 6), st.integers(2, 6))
PRECISIONS = st.sampled_from(["float32", "float64", "bf16"])


@st.composite
def threats(draw, norms=("linf", "l2")):
    """Balls from far below a grey level to the whole box, in boxes that no float holds exactly, too."""
    norm = draw(st.sampled_from(norms))
    low, high = draw(
        st.sampled_from([(0.0, 1.0), (0.1, 0.9), (0.3, 1.0)])
        | st.tuples(st.floats(0, 0.45), st.floats(0.55, 1)).map(lambda box: (round(box[0], 3), round(box[1], 3)))
    )
    eps = draw(st.sampled_from([1e-9, 1e-6, 8 / 255, 1.0]) | st.floats(1e-3, 1.0))
    return at.Threat(norm, min(eps, high - low), low, high)  # no larger than the box of a single pixel


@st.composite
def images(draw, n, shape, threat, dtype):
    """Images of which many pixels, or all, are on a face of the box; or of one grey."""
    like = torch.empty(n, *shape, dtype=dtype)
    noise = at.Rng(draw(SEEDS), "images").uniform(like, threat.low - 0.2, threat.high + 0.2)
    kind = draw(st.sampled_from(["levels"] * 3 + ["clipped"] * 2 + ["corner", "low", "high", "grey"]))
    if kind == "corner":
        noise = torch.where(noise > noise.mean(), 2.0, -1.0).to(dtype)
    elif kind == "levels":  # of 8 bits, which are off the grid on which random floats are
        noise = (noise * 255).round() / 255
    elif kind != "clipped":
        noise = torch.full_like(like, {"low": -1.0, "high": 2.0, "grey": (threat.low + threat.high) / 2}[kind])
    return threat.into_box(noise)


@st.composite
def networks(draw, shape, dtype=torch.float32, dropout=True):
    """A small network with random statistics, whose modules and parameters stand in a mixture of states."""
    channels, height, width = shape
    with global_draws(draw(SEEDS)):
        body = [nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), draw(st.sampled_from([nn.ReLU, nn.GELU]))()]
        body += [nn.Dropout(0.3)] if dropout and draw(st.booleans()) else []
        linear = [nn.Flatten(), nn.Linear(channels * height * width, CLASSES)]
        curved = [*body, nn.Flatten(), nn.Linear(4 * height * width, 6), nn.Tanh(), nn.Linear(6, CLASSES)]
        net = nn.Sequential(*(curved if draw(st.integers(0, 3)) else linear))
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.running_mean, std=0.3)
                nn.init.uniform_(layer.running_var, 0.3, 2.0)
    with torch.no_grad():
        net[-1].bias -= 3  # for all classes alike; or by chance they may be taken for probabilities, and refused
    net = net.to(dtype).train(draw(st.booleans()))
    for module in net.modules():
        if draw(st.integers(0, 2)) == 0:
            module.training = not module.training
    for parameter in net.parameters():
        parameter.requires_grad_(draw(st.integers(0, 3)) > 0)
        if draw(st.booleans()):
            parameter.grad = torch.full_like(parameter, 7.0)
    return net


@st.composite
def close_calls(draw, net, n, shape, dtype=torch.float64):
    """Images, the network's answers, and a ball in which some of them fall and some stand: about as wide as the
    decision boundary is far. Only there it matters what an attack draws, and how long it goes on."""
    x, norm = (
        at.Rng(draw(SEEDS), "x").uniform(torch.empty(n, *shape, dtype=dtype), 0, 1),
        draw(st.sampled_from(["linf", "l2"])),
    )
    leaf = x.clone().requires_grad_()
    logits = copy.deepcopy(net).eval()(leaf)
    first, second = logits.topk(2).values.unbind(1)
    slope = torch.autograd.grad((first - second).sum(), leaf)[0].flatten(1).norm(p=1 if norm == "linf" else 2, dim=1)
    eps = ((first - second).detach() / slope.clamp(min=1e-9)).median() * draw(st.floats(0.5, 2))
    return x, logits.argmax(1), at.Threat(norm, min(max(float(eps), 1e-6), 1.0))


def draws_at_random(net):
    """Whether a pass in the modules' own modes draws from the global state."""
    return any(isinstance(module, nn.Dropout) and module.training for module in net.modules())


def dtype_of(precision):
    return torch.float64 if precision == "float64" else torch.float32


def under(precision):
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


@contextlib.contextmanager
def untouched(net, *tensors, draws=True, statistics=True):
    """Assert that what happens inside leaves these as they were, to the last bit: modes, flags, gradients, weights and
    hooks of a network, the caller's tensors, and all global randomness.

    Args:
        net: the network.
        tensors: those that the caller passes in.
        draws: False where the network itself draws from the global state.
        statistics: False where buffers may move.
    """
    named = dict(net.named_parameters())
    kept = {key: value.clone() for key, value in (net.state_dict() if statistics else named).items()}
    copies, versions = [tensor.clone() for tensor in tensors], [tensor._version for tensor in tensors]
    gradients = {key: (value.grad, None if value.grad is None else value.grad.clone()) for key, value in named.items()}

    def flags():
        modules = [(m.training, getattr(m, "track_running_stats", None)) for m in net.modules()]
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in net.modules()]
        asked = [(parameter.requires_grad, parameter.dtype, id(parameter)) for parameter in net.parameters()]
        return modules, hooks, asked, torch.is_grad_enabled(), torch.get_default_dtype()

    before = flags()
    state = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1:3]
    yield
    assert flags() == before
    for tensor, twin, version in zip(tensors, copies, versions, strict=True):
        assert torch.equal(tensor, twin) and tensor._version == version and not tensor.requires_grad
        assert tensor.grad is None
    now = net.state_dict() if statistics else dict(net.named_parameters())
    assert now.keys() == kept.keys() and all(torch.equal(value, kept[key]) for key, value in now.items())
    for key, parameter in net.named_parameters():
        gradient, twin = gradients[key]
        assert parameter.grad is gradient and (twin is None or torch.equal(gradient, twin)), f".grad of {key}"
    if draws:
        assert torch.equal(torch.random.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state()[1:3], state[2], strict=True))
