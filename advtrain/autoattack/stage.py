"""One attack of the ensemble on one batch of images."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..attacks.apgd import run_apgd, sphere_start
from ..attacks.fab import run_fab
from ..attacks.losses import Objective, objective
from ..attacks.pursuit import Passes, Pursuit
from ..attacks.square import run_square
from ..rng import Rng
from ..threat import Threat
from .plan import Stage


def attack(
    stage: Stage, passes: Passes, x: Tensor, y: Tensor, threat: Threat, *, index: Tensor, rng: Rng, rows: int
) -> tuple[Tensor, Tensor]:
    """Attack images that are classified correctly.

    Args:
        stage: which attack.
        passes: through the model.
        x, y: (B, C, H, W) and (B,).
        threat: the ball and the box.
        index: (B,) int64, the number of each image: it names the image's random draws.
        rng: the stream of this attack.
        rows: how many rows a batch may have: images, or pairs of image and target.

    Returns:
        broken (B,) bool, and x_adv like x, the adversarial example of every image that is broken.
    """
    index = index.to(x.device)
    broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    x_adv = x.clone()

    def collect(left: Tensor, pursuit: Pursuit) -> Tensor:
        """Note what a search found for the images numbered `left` in this batch; the numbers of those that stand."""
        row = pursuit.broken.nonzero().squeeze(1)
        image = pursuit.image[row]
        first = torch.full_like(left, len(pursuit.broken)).scatter_reduce(0, image, row, "amin")  # of an image's rows
        found = first < len(pursuit.broken)
        x_adv[left[found]] = pursuit.x_adv[first[found]]
        broken[left[found]] = True
        return left[~found]

    left = torch.arange(len(x), device=x.device)
    if stage.kind == "square":
        collect(left, run_square(passes, x, y, threat, index=index, rng=rng, queries=stage.steps))
    elif stage.targets:
        order = passes.logits(x).scatter(1, y[:, None], torch.inf).argsort(dim=1, descending=True, stable=True)[:, 1:]
        rank = 0
        while rank < stage.targets and len(left):
            # few images left: several targets at once fill the batch, and the first that succeeds ends the others
            together = max(1, min(stage.targets - rank, rows // len(left)))
            ranks = torch.arange(rank, rank + together, device=x.device)
            target = order[left][:, ranks].flatten()
            image = torch.arange(len(left), device=x.device).repeat_interleave(together)
            streams = [rng.child(int(number)) for number in ranks]
            left = collect(left, _run(stage, passes, x[left], y[left], threat, index[left], streams, image, target))
            rank += together
    else:
        for restart in range(stage.restarts):
            if len(left) == 0:
                break
            image = torch.arange(len(left), device=x.device)
            streams = [rng.child(restart)]
            pursuit = _run(stage, passes, x[left], y[left], threat, index[left], streams, image, first=restart == 0)
            left = collect(left, pursuit)
    return broken, x_adv


def _run(
    stage: Stage, passes: Passes, x: Tensor, y: Tensor, threat: Threat, index: Tensor, streams: list[Rng],
    image: Tensor, target: Tensor | None = None, first: bool = True,
) -> Pursuit:  # fmt: skip
    """A search with as many rows for each image as there are streams."""
    many, labels = x[image], y[image]
    if stage.kind == "fab":  # from the image itself, restarts from half the radius
        half = dataclasses.replace(threat, eps=threat.eps / 2)
        start = None if first else _starts(x, half, streams, index)
        return run_fab(passes, many, labels, threat, target=target, start=start, image=image, steps=stage.steps)
    start = _starts(x, threat, streams, index)
    return run_apgd(passes, many, labels, threat, ascent(stage), start, target=target, image=image, steps=stage.steps)


def _starts(x: Tensor, threat: Threat, streams: list[Rng], index: Tensor) -> Tensor:
    """A start for every row: those of an image stand together, one for each stream."""
    return torch.stack([sphere_start(x, threat, stream, index) for stream in streams], dim=1).flatten(0, 1)


def ascent(stage: Stage) -> Objective:
    """What APGD climbs in this stage, as a function of (logits, y, target)."""
    if stage.loss != "margin":
        return objective(stage.loss, targeted=stage.targets > 0)
    return difference if stage.targets else objective("cw", targeted=False)


def difference(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """z_t - z_y: the targeted DLR loss without its denominator, for fewer than four classes."""
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
