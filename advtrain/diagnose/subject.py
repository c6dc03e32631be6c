"""The model under examination, held so that it can be asked anything and comes back as it was."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

import numpy
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ..attacks.gradient import input_gradient
from ..attacks.losses import cw_margin
from ..checks import check_model
from ..modes import attacking, evaluating, place
from ..recipe import own_global_randomness
from ..rng import Rng


class Subject(nn.Module):
    """A model as attacks need it: logits out, a gradient in any case.

    Where the model returns probabilities their logarithm is taken, which is what logits are up to a number for each
    image. Where autograd cannot follow the model its gradient is zero, instead of an error: an attack is then as blind
    as it would be, and goes on. The model gets a copy of the images, which it may change.

    Args:
        model: the caller's.
        x: (B, C, H, W): a few images to try it on.
        classes: how many logits there should be at least.

    Raises:
        ModelError: as of `advtrain.checks.check_model`, except for probabilities.

    Attributes:
        probabilities: whether the model returns them.
        broken: what autograd said when it was asked for a gradient; empty if nothing went wrong.
        classes: the number of logits.
    """

    __call__: Callable[..., Tensor]  # which nn.Module leaves open

    def __init__(self, model: nn.Module, x: Tensor, classes: int):
        super().__init__()
        self.model = model
        self.probabilities, self.broken = False, ""
        # Saturated outputs of a good classifier may sum to 1 on clear images. On mixed and inverted ones they do not.
        self.probabilities = len(x) > 1 and self._returns_probabilities(torch.cat([x, (x + x.flip(0)) / 2, 1 - x]))
        self.classes = check_model(self, torch.cat([x, 1 - x]), classes)
        self.broken = self._try_gradient(x[:2])

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        with torch.no_grad() if self.broken else contextlib.nullcontext():
            logits: Tensor = self.model(x.detach().clone() if self.broken else x.clone())
        if self.probabilities:
            logits = logits.to(x.dtype).clamp(min=torch.finfo(x.dtype).tiny).log()
        if x.requires_grad and torch.is_grad_enabled():  # a path from the image to the output there always is
            logits = logits + 0 * x.flatten(1).sum(1, keepdim=True).to(logits.dtype)
        return logits

    @torch.no_grad()
    def margin(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,), by how much the logit of the label leads the best other one; negative where misclassified."""
        return -cw_margin(self(x).to(x.dtype), y)

    def slope(self, x: Tensor, y: Tensor) -> Tensor:
        """(B, C, H, W), the gradient of `margin`; not a number where it is undefined."""
        return -input_gradient(self, x, lambda logits: cw_margin(logits, y))[0]

    @torch.no_grad()
    def right(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,) bool, which images are classified correctly."""
        return self(x).argmax(1) == y

    def _returns_probabilities(self, x: Tensor) -> bool:
        with evaluating(self.model):
            try:
                out = self.model(x.clone())
            except Exception:  # check_model says what is wrong
                return False
        if not (isinstance(out, Tensor) and out.ndim == 2 and out.is_floating_point() and out.shape[1] > 1):
            return False
        out = out.float()
        slack = 1e-4 if x.dtype == torch.float32 else 1e-2
        return bool(((out >= 0) & (out <= 1)).all() and ((out.sum(1) - 1).abs() < slack).all())

    def _try_gradient(self, x: Tensor) -> str:
        """What is wrong with the path of the gradient, as far as autograd complains."""
        with attacking(self.model, "eval"):
            leaf = x.detach().clone().requires_grad_()
            try:
                logits = self.model(leaf.clone())
                if not logits.requires_grad:
                    return "the output has no gradient at all"
                (gradient,) = torch.autograd.grad(logits.sum(), leaf, allow_unused=True)
            except Exception as error:
                return f"{type(error).__name__}: {(str(error).strip() or repr(error)).splitlines()[0]}"
        return "the output does not depend on the image as far as autograd knows" if gradient is None else ""


def moody_layers(model: nn.Module) -> list[str]:
    """Names of the layers in training mode whose answer depends on it: batch normalisation and dropout.

    Args:
        model: any module.
    """
    found = []
    for name, module in model.named_modules():
        drops = isinstance(module, _DropoutNd) and module.p > 0
        attends = isinstance(module, nn.MultiheadAttention) and module.dropout > 0
        if module.training and (isinstance(module, _BatchNorm) or drops or attends):
            found.append(name or type(module).__name__)
    return found


@contextlib.contextmanager
def examined(model: nn.Module, seed: int) -> Iterator[None]:
    """Evaluation mode and randomness of its own; buffers, modes, flags and random states come back on leaving.

    Buffers, because a model that normalises by the batch in spite of `eval()` moves its running statistics.

    Args:
        model: the caller's.
        seed: names the randomness of a model that draws from the global states of torch, numpy or Python.
    """
    device, _ = place(model)
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        with chance(seed, device), torch.inference_mode(False), torch.enable_grad(), attacking(model, "eval"):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


@contextlib.contextmanager
def chance(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global random states of torch, numpy and Python, and give the caller's back afterwards.

    Args:
        seed: the same seed lets a model that answers at random draw the same numbers again.
        device: of the model.
    """
    number, states = Rng(seed, "diagnose").seed, (random.getstate(), numpy.random.get_state())
    try:
        with own_global_randomness(seed, device):
            random.seed(number)
            numpy.random.seed(number % 2**32)
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
