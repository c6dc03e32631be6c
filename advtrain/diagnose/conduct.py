"""How the model behaves as a function, whatever its gradient: alone or in company, once or twice, in range or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..attacks.losses import cross_entropy
from ..rng import Rng
from .statistics import one_sided
from .subject import Subject, chance, moody_layers

PASSES = 6  # of the same batch: a defense that pads by one of nine offsets is missed once in 60,000 times


@dataclass(frozen=True)
class Conduct:
    """What was seen of the model's behaviour.

    Args:
        moody: names of the layers that were, or switched themselves, to training mode.
        wander: largest change of a logit from one pass to the next, in units of the logits' spread.
        turns: share of images whose class changed in one of the passes.
        company: median change of an image's logits when the others of its batch were replaced, in the same units.
        distinct: how many classes the model names, on the images and on noise.
        labels: how many classes the images have.
        images: how many images there were.
        probabilities: whether the model returns them.
        inner: names of the backward operations that ran inside the forward pass.
        better: the change of the pixels under which the model is most accurate; empty if none is better than none.
        accuracy: in [0, 1]: without a change, and with that one.
        loss: mean cross-entropy without a change, and with that one.
        luck: how probable a gain of accuracy so large would be by chance.
    """

    moody: tuple[str, ...]
    wander: float
    turns: float
    company: float
    distinct: int
    labels: int
    images: int
    probabilities: bool
    inner: tuple[str, ...]
    better: str
    accuracy: tuple[float, float]
    loss: tuple[float, float]
    luck: float


@torch.no_grad()
def observe(
    subject: Subject, x: Tensor, y: Tensor, more: tuple[Tensor, Tensor], moody: list[str], rng: Rng, batch_size: int
) -> Conduct:
    """Ask the model some images in several ways.

    Args:
        subject: the model under examination, inside `examined`.
        x, y: (N, C, H, W) and (N,): images and labels, one batch.
        more: further images and labels, to judge the range of pixels by.
        moody: the layers that were in training mode when the model came.
        rng: names the noise images.
        batch_size: images per batch of `more`.
    """
    first = subject(x)
    inside = moody_layers(subject.model)  # a forward pass may switch modes by itself
    scale = float(first.cpu().double().std()) or 1.0
    wander, turned = 0.0, torch.zeros_like(y, dtype=torch.bool)
    for _ in range(PASSES - 1):
        again = subject(x)
        wander = max(wander, float((again - first).abs().max()) / scale)
        turned |= again.argmax(1) != first.argmax(1)
    noise = rng.child("noise").uniform(x, 0.0, 1.0)
    seen = torch.cat([first, subject(noise)]).argmax(1)
    return Conduct(
        tuple(moody or inside), wander, float(turned.cpu().double().mean()), _company(subject, x, noise, scale),
        len(seen.unique()), len(y.unique()), len(x), subject.probabilities, _inner_passes(subject, x[:2]),
        *_best_range(subject, *more, batch_size),
    )  # fmt: skip


def _company(subject: Subject, x: Tensor, noise: Tensor, scale: float) -> float:
    """What becomes of the first half of a batch when the second half is replaced, with the same luck in both."""
    half = len(x) // 2
    if half == 0:
        return 0.0
    answers = []
    for others in (x[half:], noise[half:]):
        with chance(0, x.device):
            answers.append(subject(torch.cat([x[:half], others]))[:half])
    return float((answers[0] - answers[1]).abs().amax(1).median()) / scale


def _best_range(
    subject: Subject, x: Tensor, y: Tensor, batch_size: int
) -> tuple[str, tuple[float, float], tuple[float, float], float]:
    """The change of pixels under which accuracy is highest, with accuracies, losses and the chance of such a gain."""
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True).clamp(min=1e-6)
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "": lambda x: x,
        "multiplied by 255": lambda x: 255 * x,
        "divided by 255": lambda x: x / 255,
        "normalised by mean and deviation": lambda x: (x - mean) / std,
        "moved to [-1, 1]": lambda x: 2 * x - 1,
        "taken back through a normalisation": lambda x: x * std + mean,
        "moved from [-1, 1] to [0, 1]": lambda x: (x + 1) / 2,
    }
    right, loss = {}, {}
    for name, change in changes.items():
        try:
            logits = torch.cat([subject(part) for part in change(x).split(batch_size)])
        except Exception:  # nosec B112 # a model may refuse pixels outside [0, 1], and is right to do so
            continue
        right[name], loss[name] = logits.argmax(1) == y, float(cross_entropy(logits, y).mean())
    best = max(right, key=lambda name: int(right[name].sum()))
    luck = one_sided(int((right[best] & ~right[""]).sum()), int((right[""] & ~right[best]).sum()))
    accuracy = float(right[""].cpu().double().mean()), float(right[best].cpu().double().mean())
    return best, accuracy, (loss[""], loss[best]), luck


class _Watch(TorchDispatchMode):
    """Notes operations that only a backward pass runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "backward" in (name := function.overloadpacket.__name__):
            self.seen.add(name)
        return function(*args, **(kwargs or {}))


def _inner_passes(subject: nn.Module, x: Tensor) -> tuple[str, ...]:
    """Backward operations during a forward pass under `no_grad`: an optimisation of the model's own."""
    with _Watch() as watch:
        subject(x)
    return tuple(sorted(watch.seen))
