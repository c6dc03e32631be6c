"""What speaks against an honest verdict: the warnings of AutoAttack's authors.

Croce and Hein describe them in the documentation of their code. Each is a reason to look closer, with the remedy that
they name: expectation over transformation, adaptive attacks (Tramer et al. 2020, arXiv 2002.08347), or more queries.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.autograd
from torch import Tensor, nn

from ..attacks.pursuit import Passes
from ..errors import AdvtrainWarning

PASSES = 5
"""How often the same images go through the model to see whether it answers at random."""

DIFFERENT = 1e-4
"""Distance of two normalised vectors of logits from which on they are not the same answer; as in the authors' code."""

GAIN = 0.002
"""Share of images that Square may break after the gradient attacks without a word; as in the authors' code."""


def tell(text: str, into: list[str]) -> None:
    """Warn, once, where the caller of this package stands, and keep the words for the report."""
    if text not in into:
        say(text)
        into.append(text)


def say(text: str) -> None:
    """Warn where the caller of this package stands."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == __name__.split(".")[0]:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, AdvtrainWarning, stacklevel=level)


def randomness(passes: Passes, x: Tensor) -> float:
    """How much the model's answers to the same images differ: largest distance of two unit vectors of logits."""
    answers = torch.stack([_unit(passes.logits(x)) for _ in range(PASSES)])
    return max(float((answers[i] - answers[j]).norm(dim=-1).max()) for i in range(PASSES) for j in range(i))


def _unit(logits: Tensor) -> Tensor:
    return logits.div(logits.norm(dim=1, keepdim=True) + 1e-10)


def dynamic(model: nn.Module, x: Tensor) -> bool:
    """Whether the forward pass itself takes gradients or changes the model: a defense that adapts to its input.

    Args:
        model: in evaluation mode.
        x: (B, C, H, W).
    """
    held = [*model.parameters(), *model.buffers()]
    before = [value.detach().clone() for value in held]
    with _watching() as seen, torch.no_grad():
        model(x.clone())
    return bool(seen) or any(
        old.shape != now.shape or not torch.equal(old.nan_to_num(), now.detach().nan_to_num())
        for old, now in zip(before, held, strict=True)
    )


@contextmanager
def _watching() -> Iterator[list[str]]:
    """Note calls of the functions that compute gradients, wherever they are made from.

    Under a profiler written in C, such as cProfile, which cannot be interrupted, nothing is seen.
    """
    watched = {
        function.__code__: name
        for name, function in (
            ("torch.autograd.grad", torch.autograd.grad),
            ("torch.autograd.backward", torch.autograd.backward),
            ("torch.func.vjp", torch.func.vjp),
            ("torch.func.grad", torch.func.grad),
        )
        if hasattr(function, "__code__")
    }
    seen: list[str] = []
    earlier = sys.getprofile()
    if earlier is not None and not callable(earlier):
        yield seen
        return

    def look(frame: Any, event: Any, argument: Any) -> None:
        if event == "call" and frame.f_code in watched:
            seen.append(watched[frame.f_code])
        if earlier is not None:
            earlier(frame, event, argument)

    sys.setprofile(look)
    try:
        yield seen
    finally:
        sys.setprofile(earlier)


def examine(passes: Passes, x: Tensor, version: str, *, probabilities: bool, into: list[str]) -> None:
    """The warnings that can be given before the first attack.

    Args:
        passes: through the model, in evaluation mode.
        x: (B, C, H, W), a batch of the images.
        version: of AutoAttack.
        probabilities: whether the model returns them instead of logits.
        into: the list of warnings, which grows.
    """
    if probabilities:
        tell(
            "the model returns probabilities, not logits: the attacks work on their logarithms, but where a "
            "probability is rounded to 0 or 1 its gradient is gone; remove the softmax",
            into,
        )
    differs = randomness(passes, x)
    if differs > DIFFERENT and version != "rand":
        tell(
            f'the model answers at random (two passes differ by {differs:.2g}): judge it with version="rand", which '
            "averages gradients over transformations, and attack it adaptively",
            into,
        )
    elif differs <= DIFFERENT and version == "rand":
        tell('the model does not answer at random: version="standard" is the right and the stronger one', into)
    if dynamic(passes.model, x[:2]):
        tell(
            "the model takes gradients or changes itself while it answers: AutoAttack may judge such a defense too "
            "well, it needs an adaptive attack",
            into,
        )


def zero_gradients(zero: int, total: int, into: list[str]) -> None:
    """Warn of images whose input gradient vanishes at the start of an attack on a margin.

    Args:
        zero: how many they are.
        total: of how many.
        into: the list of warnings, which grows.
    """
    if zero:
        tell(
            f"the gradient is exactly zero or not finite for {zero} of {total} images where an attack begins: attacks "
            "by gradients are blind there, because of quantisation, saturation or a cut graph; at.diagnose says more",
            into,
        )


def square_gain(before: float, after: float, into: list[str]) -> None:
    """Warn when Square, which sees no gradient, breaks what the gradient attacks left.

    Args:
        before, after: robust accuracy before and after it, in [0, 1].
        into: the list of warnings, which grows.
    """
    if before - after > GAIN:
        tell(
            f"Square, which sees no gradient, lowers the robust accuracy from {before:.1%} to {after:.1%}: a sign of "
            "masked gradients; give it more queries, and attack the model adaptively",
            into,
        )
