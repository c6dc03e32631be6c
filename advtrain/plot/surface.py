"""The loss of one image over a plane: the direction of an attack and a random one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from ..attacks.choice import Attack, choose, written
from ..attacks.gradient import check_attack
from ..attacks.losses import cross_entropy, cw_margin
from ..errors import DataError, at_least, bad
from ..modes import evaluating, place
from ..report import radius
from ..rng import Rng
from ..threat import Threat
from .canvas import canvas


def loss_surface(
    model: nn.Module, x: Tensor, y: Tensor | int, threat: Threat, *, attack: Attack = "fgsm", steps: int = 10,
    points: int = 21, seed: int = 0, batch_size: int = 512, ax: Any = None,
) -> Figure:  # fmt: skip
    """The cross-entropy of one image over a plane through it: along an attack's change u, and along a random v.

    Shown is the loss at x + a u + b v, with a and b from -1 to 1, projected onto the ball and the pixel box as an
    attack would. u is what the attack added, so that a = 1, b = 0 is its image; v has random signs and size ε (ℓ∞), or
    is a random direction of length ε perpendicular to u (ℓ2). Beyond the dashed line points were outside the ball
    before. Where the loss is lower at the attack's image than on the way there, the attack was fooled.

    Args:
        model: returns logits; judged in evaluation mode on the device it is on, and left as it was.
        x: the image, (1, C, H, W) or (C, H, W), float in the threat's pixel box.
        y: its label, of shape (1,) or a number.
        threat: the ball and the box.
        attack: whose direction: a name in `advtrain.attacks.ATTACKS`, such as `"fgsm"` or `"pgd"`, or a function of
            (model, x, y, threat).
        steps: steps of an iterated attack.
        points: values of a, and of b; odd, so that the image itself is among them.
        seed: names v, and the attack's random start.
        batch_size: images per batch.
        ax: matplotlib axes to draw into; a new figure if not given.

    Returns:
        The figure. `figure.numbers` holds `"a"`, `"b"`, (points,) each, and the arrays `"loss"` in nats and `"margin"`,
        (points, points), with the row for b and the column for a; the margin is positive where the image is
        misclassified.

    Raises:
        ArgumentError, DataError, ModelError: see `advtrain.errors`.
    """
    if at_least("points", points, 3) % 2 == 0:
        bad("points", points, "odd", "the image itself is the middle one")
    at_least("batch_size", batch_size, 1)
    x, y = one_image(model, x, y)
    check_attack(model, x, y, threat)
    chosen = choose(attack, steps)
    figure, axes = canvas(ax, (6.2, 4.9))
    u = chosen(model, x, y, threat, Rng(seed, "surface", "attack")) - x
    v = _beside(u, threat, Rng(seed, "surface"))
    steps_of = torch.linspace(-1, 1, points, dtype=torch.float64).to(x)
    b, a = (part.reshape(-1, 1, 1, 1) for part in torch.meshgrid(steps_of, steps_of, indexing="ij"))
    losses, margins, sizes = [], [], []
    with evaluating(model):
        for first in range(0, points * points, batch_size):
            moved = a[first : first + batch_size] * u + b[first : first + batch_size] * v
            origin, labels = x.expand_as(moved), y.expand(len(moved))
            logits = model(threat.project(origin + moved, origin)).to(x.dtype)
            losses.append(cross_entropy(logits, labels))
            margins.append(cw_margin(logits, labels))
            flat = moved.flatten(1)
            sizes.append(flat.abs().amax(1) if threat.norm == "linf" else flat.norm(dim=1))
    loss, margin, size = (
        torch.cat(part).reshape(points, points).cpu().double().numpy() for part in (losses, margins, sizes)
    )
    grid = np.linspace(-1, 1, points)
    _draw(figure, axes, grid, loss, margin, size / threat.eps)
    name = written(attack)
    axes.plot(0, 0, "o", color="white", markeredgecolor="black", markersize=8, label="the image")
    axes.plot(1, 0, "*", color="white", markeredgecolor="black", markersize=13, clip_on=False, label=f"after {name}")
    axes.set_xlabel(f"a, along {name}'s change u")
    kind = "random signs of size ε" if threat.norm == "linf" else "a random direction of length ε"
    axes.set_ylabel(f"b, along v: {kind} (seed {seed})")
    axes.set_title(f"Loss of one image, label {int(y)}, {radius(threat)}", fontsize=11)
    axes.legend(fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
    figure.numbers = {"a": grid, "b": grid, "loss": loss, "margin": margin}
    return figure


def one_image(model: nn.Module, x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """One image and its label as a batch on the model's device, (1, C, H, W) and (1,).

    Raises:
        DataError: several, or none.
    """
    if not isinstance(x, Tensor):
        bad("x", type(x).__name__, "a tensor", "data.test[:1].images() is one image", kind=DataError)
    if x.ndim != 3 and (x.ndim != 4 or len(x) != 1):
        bad("x.shape", tuple(x.shape), "that of one image, (1, C, H, W)", "x[:1] is the first", kind=DataError)
    device, dtype = place(model)
    x = x.reshape(1, *x.shape[-3:]).detach().to(device)
    x = x.to(dtype) if x.is_floating_point() else x
    return x, torch.as_tensor(y, device=device).reshape(-1)


def _beside(u: Tensor, threat: Threat, rng: Rng) -> Tensor:
    """A random change of size ε beside u: signs (ℓ∞), or a direction perpendicular to u (ℓ2)."""
    draw: Tensor = rng.normal(u)
    if threat.norm == "linf":
        return threat.eps * torch.where(draw < 0, -1.0, 1.0).to(u)
    along = u / u.norm().clamp(min=1e-30)
    draw = draw - (draw * along).sum() * along
    return draw.mul(threat.eps / float(draw.norm()))


def _draw(figure: Any, axes: Any, grid: Any, loss: Any, margin: Any, size: Any) -> None:
    """The loss as brightness and lines of equal loss, and where the answer changes."""
    mesh = axes.pcolormesh(grid, grid, loss, shading="gouraud", cmap="cividis")
    figure.colorbar(mesh, ax=axes, label="cross-entropy (nats)")
    low, high = float(loss.min()), float(loss.max())
    if high - low > 1e-6 * max(1.0, abs(high)):
        inner = [level for level in MaxNLocator(7).tick_values(low, high) if low < level < high]
        lines = axes.contour(grid, grid, loss, levels=inner, colors="white", linewidths=0.6)
        axes.clabel(lines, fontsize=7)
    if margin.min() < 0 < margin.max():
        axes.contour(grid, grid, margin, levels=[0], colors="white", linewidths=3.5)
        axes.contour(grid, grid, margin, levels=[0], colors="black", linewidths=2)
        axes.plot([], [], color="black", linewidth=2, label="the answer changes")
    if size.max() > 1.001:
        axes.contour(grid, grid, size, levels=[1.0005], colors="white", linewidths=1.2, linestyles="--")
        axes.plot([], [], color="grey", linewidth=1.2, linestyle="--", label="edge of the ball")
    axes.set_aspect("equal")
    axes.set(xlim=(-1, 1), ylim=(-1, 1), xticks=(-1, -0.5, 0, 0.5, 1), yticks=(-1, -0.5, 0, 0.5, 1))
