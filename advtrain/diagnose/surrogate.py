"""Strangers: small networks that imitate the model, whose gradients nobody has masked."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..dataset import image_shape
from ..defense import Batch
from ..defenses import PGD, Standard
from ..models import build_model
from ..rng import Rng, global_draws
from ..threat import Threat
from .subject import Subject

STEPS = 300  # updates of each stranger: fifteen passes over the digits
BATCH = 64


def train_strangers(
    subject: Subject, x: Tensor, threat: Threat, rng: Rng, batch_size: int,
    tick: Callable[[int], object] = lambda n: None,
) -> list[nn.Module]:  # fmt: skip
    """Two small networks taught the model's answers: one on the images as they are, one against PGD-2.

    Papernot et al. (2017), arXiv 1602.02697, learn a substitute from the answers of a model. Examples against an
    adversarially trained substitute transfer better to a model that was trained so, those against an ordinary one to
    the others.

    Args:
        subject: the model that answers.
        x: (N, C, H, W), images to ask it about.
        threat: of the adversarially trained one.
        rng: names the weights and the order of the images.
        batch_size: images per question.
        tick: called after every update with 1.

    Returns:
        Both, in evaluation mode, on the device of `x`.
    """
    with torch.no_grad():
        y = torch.cat([subject(part).argmax(1) for part in x.split(batch_size)])
    strangers = []
    for number, defense in enumerate((Standard(threat), PGD(threat, steps=2, rel_step=0.5))):
        stream = rng.child("stranger", number)
        stranger = _network(image_shape(x), subject.classes, stream.seed % 2**31).to(x.device, x.dtype).train()
        optimizer = torch.optim.SGD(stranger.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=STEPS, cycle_momentum=False)
        order = torch.empty(0, dtype=torch.int64, device=x.device)
        for step in range(STEPS):
            if len(order) < min(BATCH, len(x)):
                order = stream.child("order", step).permutation(len(x), x.device)
            rows, order = order[:BATCH], order[BATCH:]
            loss = defense(stranger, Batch(x[rows], y[rows], None, stream.child("step", step)), step / STEPS).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(stranger.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            tick(1)
        strangers.append(stranger.eval())
    return strangers


def _network(shape: tuple[int, int, int], classes: int, seed: int) -> nn.Module:
    if min(shape[1:]) >= 8:
        return build_model("small-cnn", shape=shape, num_classes=classes, normalize=None, seed=seed)
    with global_draws(seed):
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 128), nn.GELU(), nn.Linear(128, classes))
