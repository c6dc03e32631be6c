"""Perturbations that a network synthesizes from noise, without looking at the image or at any gradient.

The generator of Robustness-via-Synthesis (Baytaş and Deb, 2023, arXiv 2108.09713), the chain that turns its output into
admissible images, and what the paper claims of them measured: `pairwise_cosine` says how different from each other the
perturbations are, `transfer` how well the images fool other models. Both take the images of any attack, to compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .attacks.gradient import check_box
from .checks import check_images, check_labels, check_model, check_threat
from .errors import ModelError, at_least, bad, check_kind, kind_of
from .modes import attacking, evaluating
from .rng import Rng, as_rng, global_draws
from .threat import Threat


class Generator(nn.Module):
    """Noise in, raw perturbations out: for 3 x 32 x 32 images the generator of Robustness-via-Synthesis.

    Baytaş and Deb (2023), arXiv 2108.09713; code ALLab-Boun/robustness-via-synthesis, model.py. A dense layer makes a
    grid of a quarter of the image's sides (8 x 8 with 64 channels), two transposed convolutions (4 x 4, stride 2) each
    double its sides and halve its channels, both followed by batch normalisation and a leaky ReLU of slope 0.2, and a
    4 x 4 convolution gives the image's channels. Only the dense layer has a bias. There is no tanh: whoever
    uses the output clips it. Initial weights are theirs: uniform of variance 1/`noise_dim` in the dense layer, normal
    of variance 2/n in the others, n the 16 positions of the kernel times its input (transposed) or output channels.

    For other sizes, ours: the grid is rounded up and the result cropped at the bottom and the right.

    >>> generator = Generator((3, 33, 47))
    >>> generator(torch.zeros(2, 640)).shape
    torch.Size([2, 3, 33, 47])

    Args:
        shape: (C, H, W) of one image, each at least 1.
        noise_dim: length of the noise vector z, at least 1.
        width: channels before the last convolution, at least 1; the grid has four times as many.
        scale: the output's unit, above 0. Theirs is a pixel value of 0..255, hence 1/255 here.
        rng: names the initial weights, a seed or an `Rng`; None for always the same.

    Raises:
        ArgumentError: an argument is outside what is accepted.
    """

    __call__: Callable[..., Tensor]  # which nn.Module leaves open

    def __init__(
        self,
        shape: tuple[int, int, int],
        noise_dim: int = 640,
        *,
        width: int = 16,
        scale: float = 1 / 255,
        rng: Rng | int | None = None,
    ):
        super().__init__()
        if not isinstance(shape, (tuple, list, torch.Size)) or len(shape) != 3:
            bad("shape", shape, "(C, H, W)", "for instance (3, 32, 32)")
        self.shape = tuple(at_least("shape", size, 1) for size in shape)
        self.noise_dim, width = at_least("noise_dim", noise_dim, 1), at_least("width", width, 1)
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
            bad("scale", scale, "above 0", "pixels are in [0, 1]: write 1/255")
        self.scale = float(scale)
        self.grid = (4 * width, math.ceil(self.shape[1] / 4), math.ceil(self.shape[2] / 4))
        with global_draws():  # layers draw weights that are replaced below
            self.dense = nn.Linear(self.noise_dim, math.prod(self.grid))
            self.body = nn.Sequential(
                nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(2 * width, eps=1e-3),
                nn.LeakyReLU(0.2),
                nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width, eps=1e-3),
                nn.LeakyReLU(0.2),
                nn.ZeroPad2d((1, 2, 1, 2)),  # keeps the size: the window reaches one pixel back and two ahead
                nn.Conv2d(width, self.shape[0], 4, bias=False),
            )
        self._start(as_rng(rng))

    @torch.no_grad()
    def _start(self, rng: Rng) -> None:
        """Draw the initial weights, on the CPU, so that they do not depend on the device."""
        bound = math.sqrt(3 / self.noise_dim)
        self.dense.weight.copy_(rng.child("dense").uniform(torch.empty(self.dense.weight.shape), -bound, bound))
        self.dense.bias.zero_()
        for name, layer in self.body.named_children():
            if isinstance(layer, (nn.ConvTranspose2d, nn.Conv2d)):
                deviation = math.sqrt(2 / (16 * layer.weight.shape[0]))  # in: transposed; out: plain
                layer.weight.copy_(deviation * rng.child(name).normal(torch.empty(layer.weight.shape)))

    def noise(self, n: int, rng: Rng) -> Tensor:
        """Standard normal noise for n images, (n, noise_dim), drawn from `rng`, like the generator's weights."""
        return rng.normal(self.dense.weight.new_empty(n, self.noise_dim))

    def forward(self, z: Tensor) -> Tensor:
        """Raw perturbations (B, C, H, W), not clipped, of noise `z`, (B, noise_dim)."""
        if z.ndim != 2 or z.shape[1] != self.noise_dim:
            bad("z.shape", tuple(z.shape), f"(B, {self.noise_dim})", "generator.noise(n, rng) draws it")
        height, side = self.shape[1:]
        raw: Tensor = self.body(self.dense(z).unflatten(1, self.grid))
        return self.scale * raw[..., :height, :side]


class Synthesis(NamedTuple):
    """What `synthesize` returns.

    Args:
        x_adv: (B, C, H, W) synthesized images, inside the threat.
        delta: (B, C, H, W) what the generator gave, clipped. Not x_adv - x, which also has the random start in it.
        start: (B, C, H, W) the images with uniform noise of the ε-ball, before `delta` is added.
    """

    x_adv: Tensor
    delta: Tensor
    start: Tensor


def perturb(generator: Generator, x: Tensor, threat: Threat, rng: Rng, clip: float | None = None) -> Synthesis:
    """The images that a generator makes of `x`, differentiable in its parameters; nothing is checked.

    With noise z and uniform noise u in ±ε::

        δ = clip(G(z), ±clip)        x_n = clip(x + u)        x_adv = clip(x_n + δ, x ± ε)

    where the last two also clip to the pixel box. Where δ is clipped, its gradient is zero.

    Args:
        generator: a `Generator`, used in the mode it is in.
        x: (B, C, H, W) images in the pixel box.
        threat: under ℓ∞; whatever comes out is a member.
        rng: where z (`"noise"`) and u (`"init"`) come from.
        clip: largest size of δ per pixel; ε if None.

    Returns:
        A `Synthesis` in the dtype of `x`.
    """
    clip, project = threat.eps if clip is None else clip, threat.projector(x)
    delta = generator(generator.noise(len(x), rng.child("noise"))).to(x.dtype).clamp(-clip, clip)
    start = threat.random_start(x, rng.child("init"), project)
    return Synthesis(project(start + delta), delta, start)


def synthesize(
    source: Any,
    x: Tensor,
    threat: Threat | None = None,
    rng: Rng | int | None = None,
    *,
    clip: float | None = None,
) -> Synthesis:
    """Adversarial images without a model: those that a trained generator synthesizes.

    All of `x` is one batch. A generator in training mode, such as that of a trained defense, normalises with the
    statistics of this batch, as in training, and its running ones are left alone; after `generator.eval()` it uses the
    running ones, and an image no longer depends on its neighbours.

    >>> made = synthesize(Generator((1, 4, 4)), torch.rand(3, 1, 4, 4), Threat("linf", eps=0.1), rng=0)
    >>> made.x_adv.shape, bool(made.delta.abs().max() <= 0.1)
    (torch.Size([3, 1, 4, 4]), True)

    Args:
        source: an `advtrain.defenses.RvS` after training, or a `Generator`.
        x: (B, C, H, W) float32 or float64 images in [0, 1], on the generator's device.
        threat: an ℓ∞ threat; by default that of the defense.
        rng: names the noise, a seed or an `Rng`; None for always the same.
        clip: largest size per pixel of what the generator adds; by default the defense's, or ε.

    Returns:
        A `Synthesis`: x_adv, delta and start, without a graph.

    Raises:
        ArgumentError: no generator, no threat, or one under another norm than ℓ∞.
        DataError: images that must not be attacked.
        ModelError: the generator makes images of another shape.
    """
    generator = getattr(source, "generator", source)
    if not isinstance(generator, Generator):
        came = "a defense without a generator" if generator is None else kind_of(generator)
        bad("source", came, "a Generator, or an RvS after training", "fit it first, or call setup")
    threat, clip = check_threat(threat or getattr(source, "threat", None)), clip or getattr(source, "clip", None)
    if threat.norm != "linf":
        bad("threat.norm", threat.norm, "linf", "the generator's output is clipped per pixel")
    check_images(x)
    if x.dtype not in (torch.float32, torch.float64):
        bad("x.dtype", x.dtype, "float32 or float64", "pixels are in [0, 1]: x / 255")
    check_box(x, threat)
    if tuple(x.shape[1:]) != generator.shape:
        raise ModelError(f"the generator makes images of shape {generator.shape}, and x has {tuple(x.shape[1:])}")
    with attacking(generator, "batch"), torch.no_grad():
        return perturb(generator, x, threat, as_rng(rng), clip)


def pairwise_cosine(delta: Tensor) -> Tensor:
    """How alike the perturbations of a batch are: the mean cosine of the angle between two of them.

    1 for one perturbation used for all images, about 0 for independent ones; the lower, the more diverse. A
    perturbation that is zero counts as perpendicular to all others.

    >>> one = torch.ones(1, 1, 2, 2)
    >>> float(pairwise_cosine(torch.cat([one, 3 * one]))), float(pairwise_cosine(torch.cat([one, -one])))
    (1.0, -1.0)

    Args:
        delta: (B, ...) floating-point perturbations of at least two images, such as x_adv - x.

    Returns:
        A scalar in [-1 / (B - 1), 1], up to rounding.

    Raises:
        ArgumentError: fewer than two perturbations, or no floating-point tensor.
    """
    if not isinstance(delta, Tensor) or not delta.is_floating_point():
        bad("delta", delta.dtype if isinstance(delta, Tensor) else type(delta).__name__, "a floating-point tensor")
    if delta.ndim < 2 or len(delta) < 2:
        bad("delta.shape", tuple(delta.shape), "(B, ...) with B of at least 2", "a pair is what is compared")
    flat = delta.flatten(1).to(torch.promote_types(delta.dtype, torch.float32))
    flat = flat / flat.abs().amax(1, keepdim=True).clamp(min=1e-30)  # squares of tiny numbers would vanish
    unit = flat / torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp(min=1e-30)
    pairs: Tensor = unit.sum(0).square().sum() - unit.square().sum()
    return pairs.div(len(unit) * (len(unit) - 1))


def transfer(x_adv: Tensor, y: Tensor, models: Mapping[str, nn.Module], *, batch_size: int = 256) -> dict[str, float]:
    """How right other models are on images that were made without them.

    An attack transfers when models that it never saw fail on its images. Take the models' accuracy on the clean images,
    and on those of another attack, beside it: `transfer(x, y, models)` says that too.

    Args:
        x_adv: (B, C, H, W) images in [0, 1], of `synthesize` or any attack, on the models' device.
        y: (B,) their true classes.
        models: networks by name; judged in evaluation mode and left as they were.
        batch_size: images judged at a time.

    Returns:
        A dict of accuracies in [0, 1] by name; low values mean that the images transfer.

    Raises:
        ArgumentError: `models` is no mapping of names to networks.
        DataError, ModelError: images, labels or models that do not fit.
    """
    check_kind("models", models, Mapping, 'write transfer(x_adv, y, {"name": model})')
    batch_size = at_least("batch_size", batch_size, 1)
    check_images(x_adv, name="x_adv")
    found = {}
    for name, model in models.items():
        check_kind(f"models[{name!r}]", model, nn.Module, "a network that returns logits")
        check_labels(y, check_model(model, x_adv[:2]), length=len(x_adv))
        with evaluating(model):
            parts = zip(x_adv.split(batch_size), y.split(batch_size), strict=True)
            found[name] = int(sum((model(images).argmax(1) == labels).sum() for images, labels in parts)) / len(y)
    return found


def smooth_labels(y: Tensor, num_classes: int, delta: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Target probabilities: 1 - δ for the true class, δ/(K - 1) for each of the others.

    Args:
        y: (B,) int64 classes.
        num_classes: K, at least 2.
        delta: δ, the weight of all wrong classes together, in [0, 1].
        dtype: of the result, (B, K).
    """
    wrong = delta / (at_least("num_classes", num_classes, 2) - 1)
    one_hot = torch.zeros(len(y), num_classes, dtype=dtype, device=y.device).scatter_(1, y[:, None], 1)
    return (1 - delta - wrong) * one_hot + wrong


__all__ = ["Generator", "Synthesis", "pairwise_cosine", "perturb", "smooth_labels", "synthesize", "transfer"]
