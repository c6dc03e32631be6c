"""A zoo of models on the digits: some mask their gradient, each in a known way, others are honest.

Networks are trained when first asked for, quickly, and kept for the session. A masked model is one of them with
something built in, mostly afterwards, so that the cause is known for sure.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

import advtrain as at
from advtrain.defense import Step

EPS = 0.3
THREAT = at.Threat("linf", EPS)
WEAK, TENTH, STRONG = at.Threat("linf", 0.05), at.Threat("linf", 0.1), at.Threat("linf", 0.4)
L2 = at.Threat("l2", 1.5)


@functools.cache
def digits():
    return at.load_data("digits")


@functools.cache
def trained(defense="standard", *, epochs=15, seed=0, threat=THREAT, **options):
    """A small network after training with a defense of that name; further options are those of the network."""
    made = {
        "standard": lambda: at.defenses.Standard(threat),
        "fgsm": lambda: at.defenses.FGSM(threat),
        "fast-at": lambda: at.defenses.FastAT(threat),
        "pgd": lambda: at.defenses.PGD(threat, steps=5),
        "trades": lambda: at.defenses.TRADES(threat, beta=1.0, steps=5),
        "nuat": lambda: at.defenses.NuAT(threat),
        "sat-r1": lambda: at.defenses.SATR1(threat, steps=10, samples=64, lam=0.5),
        "fast-bat": lambda: at.defenses.FastBAT(threat),
        "gradalign": lambda: at.defenses.GradAlign(threat, lam=1.0),
        "one-vs-all": lambda: OneVsAll(threat),
    }[defense]()
    data = digits()
    network = at.build_model("small-cnn", data, seed=seed, **options)
    return fit(network, made, data, epochs, seed)


def fit(network, defense, data, epochs, seed=0, lr=0.1):
    """Train quickly on the CPU, without a look at validation images."""
    at.fit(network, defense, data, epochs=epochs, lr=lr, seed=seed, validate_every=0, device="cpu", progress=False)
    return network.eval()


class OneVsAll(at.defenses.Standard):
    """Ten binary questions: the loss under which sigmoid outputs make sense."""

    def criterion(self, logits, y):
        return 10 * F.binary_cross_entropy_with_logits(logits, F.one_hot(y, logits.shape[1]).to(logits))


class Distillation(at.defenses.Standard):
    """Learn a teacher's soft answers (Papernot et al. 2016, arXiv 1511.04508)."""

    def __init__(self, threat, teacher):
        super().__init__(threat)
        self.teacher = teacher

    def __call__(self, model, batch, progress):
        with torch.no_grad():
            target = self.teacher(batch.x).softmax(1)
        logits = model(batch.x)
        return Step(F.cross_entropy(logits, target), logits, torch.zeros_like(batch.x))


class Through(nn.Module):
    """A network with something before it and something after it."""

    def __init__(self, network, before=None, after=None):
        super().__init__()
        self.network = network
        self.before, self.after = before or nn.Identity(), after or nn.Identity()

    def forward(self, x):
        return self.after(self.network(self.before(x)))


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def before(network, function):
    return Through(network, before=Apply(function)).eval()


def after(network, function):
    return Through(network, after=Apply(function)).eval()


def with_activations(network, function):
    """A copy of a small CNN whose activations are another function."""
    network = copy.deepcopy(network)
    for name, layer in network.body.named_children():
        if isinstance(layer, (nn.GELU, nn.ReLU)):
            setattr(network.body, name, Apply(function))
    return network


# -- quantisation and its kin ------------------------------------------------------------------------------------------


def quantise(levels, straight=False, detach=False):
    """Round pixels to that many levels; `straight` passes the gradient through, `detach` cuts it off."""

    def function(x):
        rounded = (x * (levels - 1)).round() / (levels - 1)
        if straight:
            return x + (rounded - x).detach()
        return rounded.detach() if detach else rounded

    return function


@functools.cache
def thermometer(levels=10, epochs=15):
    """Each pixel as the thresholds that it exceeds (Buckman et al. 2018), learnt on top of it."""
    network = at.build_model("small-cnn", shape=(levels, 8, 8), num_classes=10, normalize=None)
    thresholds = torch.arange(levels).view(1, -1, 1, 1) / levels
    model = before(network, lambda x: (x > thresholds).to(x.dtype))
    return fit(model, at.defenses.Standard(THREAT), digits(), epochs)


def median_in_numpy(x):
    """A 3x3 median filter that leaves the graph, as those of image libraries do."""
    import numpy

    array = numpy.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    windows = numpy.lib.stride_tricks.sliding_window_view(array, (3, 3), axis=(2, 3))
    return torch.from_numpy(numpy.median(windows, axis=(4, 5))).to(x.dtype)


def median(x):
    """The same in torch: its gradient is that of the middle pixel, and honest."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4).median(4).values


# -- wrong backward passes ---------------------------------------------------------------------------------------------


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, kind):
        ctx.kind = kind
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        wrong = {"zero": torch.zeros_like, "flipped": torch.neg, "random": lambda g: torch.randn_like(g) * g.std()}
        return wrong[ctx.kind](grad), None


def backward(kind):
    """The identity with a backward pass that is zero, flipped or random."""
    return lambda x: _Backward.apply(x, kind)


# -- shattered gradients -----------------------------------------------------------------------------------------------


def k_wta(share):
    """Keep the largest activations of each image and layer (Xiao et al. 2020, arXiv 1905.10510)."""

    def function(x):
        flat = x.flatten(1)
        k = max(1, int(share * flat.shape[1]))
        least = flat.topk(k, dim=1).values[:, -1:]
        return (flat * (flat >= least)).view_as(x)

    return function


@functools.cache
def k_wta_network(share=0.1, defense="standard", epochs=20, seed=0):
    network = with_activations(at.build_model("small-cnn", digits(), seed=seed), k_wta(share))
    made = at.defenses.PGD(THREAT, steps=5) if defense == "pgd" else at.defenses.Standard(THREAT)
    return fit(network, made, digits(), epochs, seed, lr=0.03)


def sawtooth(amplitude, frequency):
    """x + a sin(w x): close to the identity, with a slope that is far from one."""
    return lambda x: x + amplitude * torch.sin(frequency * x)


def staircase(step):
    return lambda x: (x / step).floor() * step


# -- saturation --------------------------------------------------------------------------------------------------------


class SigmoidNet(nn.Module):
    """A perceptron with sigmoid units, whose steepness may be raised after training."""

    def __init__(self, steepness=1.0):
        super().__init__()
        self.steepness = steepness
        self.first, self.second, self.last = nn.Linear(64, 128), nn.Linear(128, 64), nn.Linear(64, 10)

    def forward(self, x):
        hidden = torch.sigmoid(self.steepness * self.first(x.flatten(1)))
        return self.last(torch.sigmoid(self.steepness * self.second(hidden)))


@functools.cache
def sigmoid_network(defense="standard", epochs=40):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SigmoidNet(4.0)
    made = at.defenses.PGD(THREAT, steps=5) if defense == "pgd" else at.defenses.Standard(THREAT)
    return fit(network, made, digits(), epochs, lr=0.3)


def saturated_units(steepness):
    network = copy.deepcopy(sigmoid_network())
    network.steepness = steepness
    return network


# -- randomness --------------------------------------------------------------------------------------------------------


def random_resize_pad(x):
    """Shrink to a random size and pad at a random place (Xie et al. 2018, arXiv 1711.01991)."""
    side = int(torch.randint(6, 9, ()))
    small = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
    top, left = (int(torch.randint(0, 9 - side, ())) for _ in range(2))
    return F.pad(small, (left, 8 - side - left, top, 8 - side - top))


@functools.cache
def resize_pad_network(epochs=20):
    network = at.build_model("small-cnn", digits())
    return fit(before(network, random_resize_pad), at.defenses.Standard(THREAT), digits(), epochs)


# -- other inputs than [0, 1] ------------------------------------------------------------------------------------------


@functools.cache
def scaled_network(function, epochs=15, seed=0):
    """A network that learnt on pixels after `function`, without it."""
    model = before(at.build_model("small-cnn", digits(), normalize=None, seed=seed), function)
    return fit(model, at.defenses.Standard(THREAT), digits(), epochs, seed).network


def normalised(x):
    data = digits()
    return (x - data.mean[0]) / data.std[0]


class Constant(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10] * 0.01 + 5 * F.one_hot(torch.tensor(3), 10)


def nan_gradient(x):
    """The identity; at x = 0 its derivative is infinity times zero."""
    return x + 0 * (x * 0).sqrt()


class Purifier(nn.Module):
    """Gradient steps towards a confident answer before the answer (a dynamic defense), cut off from the graph."""

    def __init__(self, network, steps=3, size=0.05):
        super().__init__()
        self.network, self.steps, self.size = network, steps, size

    def forward(self, x):
        clean = x.detach()
        with torch.enable_grad():
            for _ in range(self.steps):
                clean = clean.detach().requires_grad_()
                (grad,) = torch.autograd.grad(self.network(clean).logsumexp(1).sum(), clean)
                clean = (clean + self.size * grad.sign()).clamp(0, 1)
        return self.network(clean.detach())


@functools.cache
def dropout_network(epochs=15):
    network = at.build_model("small-cnn", digits())
    network.body = nn.Sequential(*network.body, nn.Dropout(0.3))
    return fit(network, at.defenses.Standard(THREAT), digits(), epochs)


@functools.cache
def batch_statistics(epochs=15):
    """Batch normalisation without running statistics: the batch's own, in either mode."""
    network = at.build_model("small-cnn", digits(), batch_norm=True)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
            layer.num_batches_tracked = None
    return fit(network, at.defenses.Standard(THREAT), digits(), epochs)


@functools.cache
def distilled(temperature=100.0, epochs=15):
    """Teacher and student answer with softmax(z / T) in training, the student with softmax(z) afterwards.

    So their logits grow T times as large. Quick training does not get there by itself: z / T is learnt, z returned.
    """
    student = fit(at.build_model("small-cnn", digits(), seed=1), Distillation(THREAT, std()), digits(), epochs)
    return after(student, lambda z: temperature * z)


@functools.cache
def two_classes():
    """The odd against the even digits: data, and a network with two logits."""
    data = digits()
    train, test = ((part.images(), part.y % 2) for part in (data.train, data.test))
    data = at.as_dataset(train, test=test, val=0, name="odd digits")
    return data, at.build_model("small-cnn", data)


@functools.cache
def two_class_network(defense="pgd", epochs=15):
    data, network = two_classes()
    threat = at.Threat("linf", 0.15)  # at 0.3 this one learns nothing
    made = at.defenses.PGD(threat, steps=5) if defense == "pgd" else at.defenses.Standard(threat)
    return fit(network, made, data, epochs)


@functools.cache
def linear_network(defense="pgd", epochs=20):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        network[1].weight.zero_(), network[1].bias.zero_()
    made = at.defenses.PGD(TENTH, steps=5) if defense == "pgd" else at.defenses.Standard(TENTH)
    return fit(network, made, digits(), epochs)


# -- who is who --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A model of the zoo.

    Args:
        build: makes the model; trained networks are kept.
        cause: the beginning of its primary cause; empty for an honest model.
        threat: what it is judged by.
        data: makes the data, if they are not the digits.
        alone: a surrogate that is shared with other models tells too little of this one: let it have its own.
    """

    build: Callable[[], nn.Module]
    cause: str = ""
    threat: at.Threat = THREAT
    data: Callable[[], at.Dataset] = digits
    alone: bool = False


def rob(**options):
    return trained("pgd", **options)


def std(**options):
    return trained("standard", **options)


def masked(cause, builders):
    return {name: Case(build, cause) for name, build in builders.items()}


MASKED = {
    **masked("single-step masking", {
        "FGSM-AT": lambda: trained("fgsm", epochs=20),
        "FGSM-AT, seed 1": lambda: trained("fgsm", epochs=30, seed=1),
        "FGSM-AT, seed 2": lambda: trained("fgsm", epochs=30, seed=2),
        "FGSM-AT, 60 epochs": lambda: trained("fgsm", epochs=60, seed=3),
        "FGSM-AT with ReLU": lambda: trained("fgsm", epochs=20, activation="relu", seed=1),
        "GradAlign at λ=1": lambda: trained("gradalign", epochs=20),
    }),
    "FGSM-AT with BN": Case(
        lambda: trained("fgsm", epochs=20, batch_norm=True), "single-step masking", alone=True
    ),
    **masked("logit scaling", {
        "logits x 1000, standard": lambda: after(std(), lambda z: 1000 * z),
        "logits x 1000, PGD-AT": lambda: after(rob(), lambda z: 1000 * z),
        "logits x 300, PGD-AT": lambda: after(rob(), lambda z: 300 * z),
        "log_softmax of logits x 1000": lambda: after(rob(), lambda z: (1000 * z).log_softmax(1)),
        "defensive distillation": lambda: distilled(),
    }),
    **masked("saturation", {
        "saturated units x 100": lambda: saturated_units(400.0),
        "saturated units x 25": lambda: saturated_units(100.0),
        "saturated outputs": lambda: after(trained("one-vs-all"), lambda z: (100 * z).sigmoid()),
        "saturated tanh outputs": lambda: after(trained("one-vs-all"), lambda z: (60 * z).tanh()),
    }),
    **masked("non-differentiable operation (quantisation)", {
        "4 levels": lambda: before(std(), quantise(4)),
        "8 levels": lambda: before(rob(), quantise(8)),
        "16 levels": lambda: before(std(), quantise(16)),
        "16 levels, detached": lambda: before(rob(), quantise(16, detach=True)),
        "8 levels, straight through": lambda: before(rob(), quantise(8, straight=True)),
        "256 levels": lambda: before(rob(), quantise(256)),
        "thermometer": lambda: thermometer(),
        "staircase of units": lambda: with_activations(rob(), lambda x: staircase(0.1)(F.gelu(x))),
        "staircase of pixels": lambda: before(rob(), staircase(0.1)),
    }),
    **masked("non-differentiable operation (cut gradient)", {
        "median in numpy": lambda: before(std(), median_in_numpy),
        "detached input": lambda: before(rob(), lambda x: x.detach()),
        "zero backward": lambda: before(rob(), backward("zero")),
    }),
    **masked("shattered gradients", {
        "random backward": lambda: before(rob(), backward("random")),
        "flipped backward": lambda: before(std(), backward("flipped")),
        "flipped backward, PGD-AT": lambda: before(rob(), backward("flipped")),
        "k-WTA": lambda: k_wta_network(),
        "k-WTA, PGD-AT": lambda: k_wta_network(0.1, "pgd"),
        "sawtooth of pixels": lambda: before(std(), sawtooth(0.02, 500.0)),
        "sawtooth of pixels, PGD-AT": lambda: before(rob(), sawtooth(0.02, 500.0)),
        "sawtooth of units": lambda: with_activations(rob(), lambda x: sawtooth(0.1, 100.0)(F.gelu(x))),
    }),
    **masked("randomness", {
        "random noise": lambda: before(std(), lambda x: x + 0.15 * torch.randn_like(x)),
        "random resize and pad": lambda: resize_pad_network(),
        "functional dropout": lambda: before(std(), lambda x: F.dropout(x, 0.2)),
    }),
    **masked("probabilities", {
        "softmax": lambda: after(std(), lambda z: z.softmax(1)),
        "softmax, PGD-AT": lambda: after(rob(), lambda z: z.softmax(1)),
    }),
    **masked("training mode", {
        "BN in training mode": lambda: copy.deepcopy(std(batch_norm=True)).train(),
        "dropout in training mode": lambda: copy.deepcopy(dropout_network()).train(),
    }),
    **masked("input range", {
        "missing normalisation": lambda: scaled_network(normalised),
        "missing normalisation, seed 1": lambda: scaled_network(normalised, seed=1),
        "double normalisation": lambda: before(std(batch_norm=True), lambda x: 2 * x - 1),
        "pixels in 0..255 expected": lambda: before(std(), lambda x: x / 255),
        "pixels in -1..1 expected": lambda: before(rob(), lambda x: (x + 1) / 2),
    }),
    "BN without statistics": Case(lambda: batch_statistics(), "batch dependence"),
    "constant": Case(lambda: Constant(), "constant predictor"),
    "NaN gradient": Case(lambda: before(rob(), nan_gradient), "undefined gradients"),
    "purifier": Case(lambda: Purifier(std()), "optimisation in the forward pass"),
}  # fmt: skip

HONEST = {
    "PGD-AT": Case(rob),
    "PGD-AT, seed 1": Case(lambda: rob(seed=1, epochs=20)),
    "PGD-AT at 0.1": Case(lambda: rob(threat=TENTH), threat=TENTH),
    "PGD-AT judged at 0.05": Case(rob, threat=WEAK),
    "PGD-AT judged at 0.35": Case(rob, threat=at.Threat("linf", 0.35)),
    "PGD-AT judged at 0.4": Case(rob, threat=STRONG),
    "PGD-AT judged under l2": Case(rob, threat=L2),
    "PGD-AT under l2": Case(lambda: rob(threat=L2), threat=L2),
    "PGD-AT with BN": Case(lambda: rob(batch_norm=True)),
    "PGD-AT with ReLU": Case(lambda: rob(activation="relu", seed=1)),
    "TRADES": Case(lambda: trained("trades")),
    "NuAT": Case(lambda: trained("nuat", epochs=30)),
    "SAT-R1": Case(lambda: trained("sat-r1", epochs=20)),
    "FAST-BAT": Case(lambda: trained("fast-bat", epochs=20)),
    "FAST-BAT, seed 1": Case(lambda: trained("fast-bat", epochs=30, seed=1)),
    "FGSM-AT at 0.1": Case(lambda: trained("fgsm", threat=TENTH), threat=TENTH),
    "standard": Case(std),
    "standard at 0.05": Case(std, threat=WEAK),
    "standard at 0.1": Case(std, threat=TENTH),
    "standard at 0.2": Case(std, threat=at.Threat("linf", 0.2)),
    "standard at 0.4": Case(lambda: std(seed=2), threat=STRONG),
    "standard under l2": Case(std, threat=L2),
    "standard, ReLU": Case(lambda: std(activation="relu", epochs=20)),
    "standard, ReLU, at 0.15": Case(lambda: std(activation="relu", epochs=20), threat=at.Threat("linf", 0.15)),
    "standard with BN": Case(lambda: std(batch_norm=True)),
    "standard with dropout": Case(dropout_network),
    "log_softmax of PGD-AT": Case(lambda: after(rob(), lambda z: z.log_softmax(1))),
    "logits x 0.01": Case(lambda: after(rob(), lambda z: 0.01 * z)),
    "logits x 10": Case(lambda: after(rob(), lambda z: 10 * z)),
    "sigmoid units": Case(lambda: sigmoid_network()),
    "sigmoid units, PGD-AT": Case(lambda: sigmoid_network("pgd"), threat=TENTH),
    "two classes": Case(two_class_network, threat=at.Threat("linf", 0.15), data=lambda: two_classes()[0]),
    "two classes, standard": Case(lambda: two_class_network("standard"), data=lambda: two_classes()[0]),
    "linear": Case(linear_network, threat=TENTH),
    "linear, standard": Case(lambda: linear_network("standard"), threat=WEAK),
    "median in torch": Case(lambda: before(rob(), median)),
}
