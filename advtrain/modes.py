"""How a model stands while it is attacked, and how it gets back exactly as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import one_of

BN_MODES = ("eval", "train", "batch")


@contextlib.contextmanager
def attacking(model: nn.Module, bn: str = "eval") -> Iterator[nn.Module]:
    """Hold `model` still for an attack: parameters frozen, gradients enabled, modes as `bn` says.

    Args:
        model: any module.
        bn: how batch normalisation (and dropout) behave inside.
            `"eval"`: the whole model in evaluation mode: running statistics, no dropout. For judging a model, and for
            training methods whose authors craft in evaluation mode (SAT, TRADES).
            `"train"`: every module as it is. A model in training mode uses batch statistics and **updates its running
            statistics at every forward**, as the code of FAST-AT, N-FGSM, GradAlign and FAST-BAT does.
            `"batch"`: as `"train"`, but running statistics are left alone.

    On leaving, also by an exception, each module and each parameter has its own flags back. A blanket `model.train()`
    would un-freeze layers that the caller froze on purpose.
    """
    one_of("bn", bn, BN_MODES)
    training = [(module, module.training) for module in model.modules()] if bn == "eval" else []
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tracking = (
        [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats] if bn == "batch" else []
    )
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        if bn == "eval":
            model.eval()
        for module in tracking:
            module.track_running_stats = False
        with torch.enable_grad():
            yield model
    finally:
        for module in tracking:
            module.track_running_stats = True
        for module, flag in training:
            module.training = flag
        for parameter in frozen:
            parameter.requires_grad_(True)


def place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device of a model's parameters, and the dtype its images should have: float64 for a float64 model."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        return torch.device("cpu"), torch.float32
    return parameter.device, torch.float64 if parameter.dtype == torch.float64 else torch.float32


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """`model` in evaluation mode without gradients; every module's own flag comes back on leaving."""
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield model
    finally:
        for module, flag in training:
            module.training = flag
