"""The whole protocol: a defense is a loss.

Given a model and a batch, a defense returns one scalar whose gradient is the complete parameter gradient, however the
method got there: one attack step, ten, an implicit gradient, a second player. So one training loop, `advtrain.fit`,
trains every defense, and a file in `advtrain/defenses` holds a paper's algorithm and nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_threat
from .errors import bad, is_finite, one_of
from .modes import BN_MODES
from .rng import Rng
from .threat import Threat


@dataclass
class Batch:
    """What a defense sees of the data.

    Args:
        x: (B, C, H, W) float images in the pixel box.
        y: (B,) int64 labels.
        index: (B,) int64 positions of the images in the training set, for methods that remember something per image;
            None where a `DataLoader` serves them in an order of its own.
        draws: where the batch's randomness comes from; keyed by seed and step by the training loop.
    """

    x: Tensor
    y: Tensor
    index: Tensor | None = None
    draws: Rng = field(default_factory=lambda: Rng(0))

    def rng(self, name: str) -> Rng:
        """The stream of random numbers called `name` for this batch. A defense draws from nowhere else."""
        return self.draws.child(name)


class Step(NamedTuple):
    """What a defense returns.

    Args:
        loss: a scalar; its gradient is the update direction, complete.
        logits: (B, K) of the images that were trained on, for the training accuracy.
        delta: (B, C, H, W) the perturbation that was trained on.
        logs: further scalars (detached) for the history.
    """

    loss: Tensor
    logits: Tensor
    delta: Tensor
    logs: dict[str, Tensor] = {}


@dataclass
class Defense:
    """Base of all defenses: a plain object with visible hyper-parameters, never an `nn.Module`.

    Write a defense by subclassing this as a dataclass, with the paper's defaults, and implementing `__call__`. The
    fields are its configuration: `repr`, JSON and the command line's options are made from them.

    Args:
        threat: the threat model to train against.
        label_smoothing: weight in [0, 1) of the uniform distribution over all classes, with which the training loss
            mixes the label; attacks use plain cross-entropy.
        bn: batch normalisation while attacking, see `advtrain.attacking`; the default is what the authors' code does.

    A subclass says the rest of itself in class attributes.

    Attributes:
        name: what the command line and run folders call it.
        replays: optimizer steps per mini-batch.
        second_order: whether the loss needs gradients of gradients; of an object, where it depends on an option.
        norms: the norms that the method is defined for.
        inside: whether the perturbation trained on stays inside the threat.
        select: what its best checkpoint is chosen by, accuracy under `"pgd"` or on `"clean"` images.
    """

    threat: Threat
    label_smoothing: float = field(default=0.0, kw_only=True)  # keywords, so that subclasses' fields come first
    bn: str = field(default="train", kw_only=True)

    name: ClassVar[str] = ""
    replays: ClassVar[int] = 1  # optimizer steps per mini-batch
    second_order: ClassVar[bool] = False  # needs gradients of gradients
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")  # the norms that the method is defined for
    inside: ClassVar[bool] = True  # the perturbation trained on stays inside the threat
    select: ClassVar[str] = "pgd"  # what its best checkpoint is chosen by: "pgd" or "clean"

    def __post_init__(self) -> None:
        if type(self).__call__ is Defense.__call__:
            hint = "take one of at.defenses, or write its __call__(self, model, batch, progress)"
            bad("defense", type(self).__name__, "a loss yet", hint)
        for each in dataclasses.fields(self):
            if isinstance(value := getattr(self, each.name), numpy.generic):
                setattr(self, each.name, value.item())  # NumPy's numbers are none that JSON knows
        check_threat(self.threat)
        if self.threat.norm not in self.norms:
            bad(
                "threat.norm",
                self.threat.norm,
                f"{' or '.join(self.norms)}",
                f"{type(self).__name__} is not defined for it",
            )
        one_of("bn", self.bn, BN_MODES)
        smoothing = self.label_smoothing
        self.require("label_smoothing", number(smoothing, -1, 1) and 0 <= smoothing < 1, "in [0, 1)")

    def require(self, name: str, holds: bool, accepted: str, hint: str = "") -> None:
        """Raise `ArgumentError` naming the field unless `holds`."""
        if not holds:
            bad(name, getattr(self, name), accepted, hint)

    def require_count(self, name: str) -> None:
        """Raise `ArgumentError` naming the field unless it is an integer of at least 1."""
        value = getattr(self, name)
        self.require(name, type(value) is int and value >= 1, "an integer of at least 1")

    # -- the protocol ------------------------------------------------------------------------------------------------

    def setup(self, model: nn.Module, shape: tuple[int, int, int], device: torch.device) -> None:
        """Called once before training (and before a state is loaded): make generators, buffers, copies."""

    def __call__(self, model: nn.Module, batch: Batch, progress: float) -> Step:
        """The training loss of one batch. `progress` in [0, 1) is the share of the training that is done."""
        raise NotImplementedError

    def adversary_step(self, model: nn.Module, batch: Batch, progress: float) -> None:
        """Two-player methods: update the adversary's own parameters, by `torch.autograd.grad` only."""

    def finite(self) -> Tensor | None:
        """Two-player methods: whether the last `adversary_step` met finite numbers alone, a bool scalar on the device.

        It must not make a step that did not; where it returns False, the model's own update is not made either, and
        the training ends.
        """
        return None

    def after_backward(self, model: nn.Module) -> None:
        """Called after each `__call__` and its backward pass, also if either failed: put back what was displaced."""

    def state_dict(self) -> dict[str, Any]:
        """Whatever must survive a resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; after `setup`, with every tensor on the device of the training."""

    # -- shared by most --------------------------------------------------------------------------------------------

    @property
    def reach(self) -> float:
        """How far, in the threat's norm, the perturbation trained on may lie from the image: ε where `inside`."""
        return self.threat.eps

    def criterion(self, logits: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy, with the defense's label smoothing."""
        return F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)

    @property
    def config(self) -> dict[str, Any]:
        """The defense as JSON-able values; `advtrain.defenses.from_config` makes it again."""
        return {"name": self.name, "class": type(self).__name__, **dataclasses.asdict(self)}


class _Carry(torch.autograd.Function):
    """The identity on a value, with a gradient that is known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *torch._foreach_mul(ctx.gradients, grad)


def carry(value: Tensor, parameters: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """A scalar of a given value whose gradient is given too: how a defense returns a gradient that it has computed.

    Args:
        value: the scalar.
        parameters: those that the gradient is with respect to.
        gradients: one for each parameter, of its shape.
    """
    apply: Callable[..., Tensor] = _Carry.apply
    return apply(value.detach(), gradients, *parameters)


def trained(model: nn.Module) -> list[Tensor]:
    """The parameters of a model that require a gradient.

    Args:
        model: the network in training.
    """
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def gradients(value: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The gradient of a scalar with respect to each of `inputs`, zero for one that it does not depend on.

    Args:
        value: the scalar; its graph is freed.
        inputs: tensors that require a gradient.
    """
    found = torch.autograd.grad(value, inputs, allow_unused=True)
    return [torch.zeros_like(x) if gradient is None else gradient for x, gradient in zip(inputs, found, strict=True)]


def number(value: Any, low: float, high: float = math.inf) -> bool:
    """True for a finite real number in (low, high].

    Args:
        value: whatever the caller was given.
        low: the bound that it must exceed.
        high: the bound that it may reach.
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low < value <= high and is_finite(value)


__all__ = ["Batch", "Defense", "Step", "carry", "gradients", "number", "trained"]
