"""Images, what an attack adds to them, and what the model reads before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..attacks.choice import Attack, choose, written
from ..attacks.gradient import check_attack
from ..errors import bad
from ..modes import evaluating, place
from ..report import radius
from ..rng import Rng
from ..threat import Threat
from .canvas import Picture

MOST = 12
"""Images that a grid shows at most."""

WRONG = "#B00000"  # dark enough for small letters


def adversarial_grid(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, attack: Attack = "pgd", steps: int = 10,
    classes: Sequence[str] | None = None, magnify: float | None = None, seed: int = 0,
) -> Figure:  # fmt: skip
    """Images, an attack's change to them and the result, with what the model reads and how sure it is.

    The change is magnified around mid-grey, by the factor that stands beside it. A wrong answer is bold, with the word
    "not" and the label.

    Args:
        model: returns logits; judged in evaluation mode on the device it is on, and left as it was.
        x: (B, C, H, W) float in the threat's pixel box, with one channel or three; at most 12 images.
        y: (B,) integers, the labels.
        threat: the ball and the box of the attack.
        attack: a name in `advtrain.attacks.ATTACKS`, or a function of (model, x, y, threat).
        steps: steps of an iterated attack.
        classes: the names of the classes, such as `data.classes`; their numbers if not given.
        magnify: how many times larger the change is shown; by default as much as fits between black and white.
        seed: names the attack's random start.

    Returns:
        The figure. `figure.numbers` holds `"x"`, `"change"` and `"x_adv"`, (B, C, H, W), the factor `"magnify"`, and
        the `"probabilities"` before and after, (2, B, K).

    Raises:
        ArgumentError, DataError, ModelError: see `advtrain.errors`.
    """
    device, dtype = place(model)
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        bad("x, y", (type(x).__name__, type(y).__name__), "tensors", "data.test[:8] has .images() and .y")
    x, y = x.detach().to(device), y.to(device)
    x = x.to(dtype) if x.is_floating_point() else x
    check_attack(model, x, y, threat)
    if x.shape[1] not in (1, 3) or len(x) > MOST:
        bad("x.shape", tuple(x.shape), f"at most {MOST} images of one channel or three", "x[:8], y[:8] are the first 8")
    x_adv = choose(attack, steps)(model, x, y, threat, Rng(seed, "grid"))
    change = x_adv - x
    factor = magnification(change) if magnify is None else magnify
    if not factor > 0:
        bad("magnify", magnify, "above 0")
    with evaluating(model):
        shares = torch.stack([model(each).to(x.dtype).softmax(1) for each in (x, x_adv)])
    x, change, x_adv, shares, y = (part.cpu() for part in (x, change, x_adv, shares, y))
    names = [f"{i}" for i in range(shares.shape[2])] if classes is None else [str(name) for name in classes]
    if len(names) < shares.shape[2]:
        bad("len(classes)", len(names), f"at least {shares.shape[2]}, as many as the model has logits")

    figure = Picture(figsize=(max(3.6, 1.15 * len(x) + 1.0), 4.9), layout="constrained")
    axes = figure.subplots(3, len(x), squeeze=False)
    for line, images in zip(axes, (x, magnified(change, factor), x_adv), strict=True):
        for ax, image in zip(line, images, strict=True):
            show(ax, image)
    for line, share in ((axes[0], shares[0]), (axes[2], shares[1])):
        for ax, row, label in zip(line, share, y.tolist(), strict=True):
            read(ax, row, label, names)
    for ax, label in zip(axes[:, 0], ("clean", f"change\n× {factor:g}", f"after\n{written(attack)}"), strict=True):
        ax.set_ylabel(label, rotation=0, ha="right", va="center", labelpad=10)
    figure.suptitle(f"What {written(attack)} changes, {radius(threat)}", fontsize=11)
    figure.numbers = {"x": x, "change": change, "x_adv": x_adv, "magnify": factor, "probabilities": shares}
    return figure


def magnification(change: Tensor) -> float:
    """How many times a change fits between black and white around mid-grey, rounded down to two digits."""
    largest = float(change.abs().max())
    if largest == 0:
        return 1.0
    digits = 10 ** (math.floor(math.log10(0.5 / largest)) - 1)
    return float(f"{math.floor(0.5 / largest / digits + 1e-6) * digits:.2g}")


def magnified(change: Tensor, factor: float) -> Tensor:
    """Changes as images in [0, 1]: mid-grey where there is none."""
    return (0.5 + factor * change).clamp(0, 1)


def show(ax: Any, image: Tensor) -> None:
    """One image, (C, H, W) in [0, 1], without a frame."""
    ax.imshow(image.float().permute(1, 2, 0).expand(-1, -1, 3).numpy(), interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def read(ax: Any, shares: Tensor, label: int, names: Sequence[str]) -> None:
    """Below an image what the model reads and how sure it is; a wrong answer is bold, and the label beside it."""
    answer = int(shares.argmax())
    words = f"{names[answer]}, {shares[answer]:.0%}"
    if answer == label:
        ax.set_xlabel(words, fontsize=9)
    else:
        ax.set_xlabel(f"{words}\nnot {names[label]}", fontsize=9, weight="bold", color=WRONG)
