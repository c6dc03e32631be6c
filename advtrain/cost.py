"""What a mini-batch costs: counted in forward passes, and measured in seconds.

The unit is the **forward-equivalent**: the floating-point operations of one clean forward pass. A backward pass needs
one product with the weights to carry the gradient to a layer's input, and one with its activations for the gradient of
the weights: about two forward-equivalents. The gradient with respect to the images alone needs only the first: about
one. So standard training costs about 3 per batch, each attack step about 2 more, and a defense whatever `cost` counts.
"""

from __future__ import annotations

import copy
import inspect
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_model
from .data import as_dataset
from .dataset import MOST_CLASSES, image_shape
from .defense import Batch, Defense
from .defenses import PGD, Standard
from .errors import AdvtrainWarning, ModelError, bad, is_real
from .loader import make_loader
from .loop import Loop
from .modes import place
from .processes import alone
from .recipe import RECORDED, check_defense, check_network, computes_in_bf16, find_device, steady_memory, undisturbed
from .runs import Run
from .schedules import Rate, constant
from .threat import Threat
from .train import fit

PROBE = 8
"""Images on which `budget` counts: operations per image do not depend on how many there are."""

PATIENCE = 30
"""Rounds that `calibrate` adds at most where noise makes an attack look free."""


@dataclass(frozen=True)
class Cost:
    """What one mini-batch costs, counted.

    Args:
        name: of the defense.
        forward, backward: passes through the model's logits.
        flops: floating-point operations of all updates on the mini-batch, in matrix products and convolutions.
        unit: those of one clean forward pass of the same mini-batch.
        updates: optimizer steps on the mini-batch; 1, or the replays of Free-AT.
    """

    name: str
    forward: int
    backward: int
    flops: int
    unit: int
    updates: int = 1

    @property
    def forwards(self) -> float:
        """The mini-batch's cost in forward-equivalents."""
        return self.flops / self.unit


@dataclass(frozen=True)
class Speed:
    """How fast a machine trains a certain model, in seconds per mini-batch.

    Args:
        update: seconds of one standard update: forward and backward pass, optimizer, and all that comes with them.
        forward: seconds of each forward-equivalent that a defense spends beyond.
        forwards: forward-equivalents of a standard update, about 3.
        device: where it was measured.
    """

    update: float
    forward: float
    forwards: float = 3.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("update", "forward", "forwards"):
            value = getattr(self, name)
            if not (is_real(value) and 0 < value < float("inf")):
                bad(name, value, "a positive number", "calibrate(model, data) measures one")

    def seconds(self, cost: Cost) -> float:
        """Predicted seconds for a mini-batch of this cost: its updates, and what the attack adds to them."""
        return cost.updates * self.update + (cost.forwards - cost.updates * self.forwards) * self.forward


def cost(defense: Defense, model: nn.Module, data: Any, *, batch_size: int = 64) -> Cost:
    """Count what one mini-batch of training costs, by doing it once on a copy of the model.

    It runs the training loop's own update, so that a second player, replays, second-order terms and all else are in
    the count. Elementwise work (activations, normalisation, the optimizer) is not: small, but in tiny networks.

    >>> model, data = nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), (torch.rand(8, 1, 3, 3), torch.arange(8) % 2)
    >>> cost(PGD(Threat("linf", 0.3), steps=7), model, data).forwards
    16.0

    Args:
        defense: such as `advtrain.defenses.FastAT(threat)`.
        model: returns logits (B, K). A copy of it runs, and it is left as it was; hooks are copied, too, and called.
        data: a `Batch`; or whatever `fit` takes, of which the first `batch_size` training images serve.
        batch_size: images in the mini-batch at most. The forward-equivalents hardly depend on it, but for a defense
            that treats a fixed number of images specially, such as SAT-R1.

    Returns:
        A `Cost`; `.forwards` is the number of forward-equivalents.

    Raises:
        ArgumentError, DataError: an argument is not accepted.
        ModelError: the model does not fit the images, or has neither matrix products nor convolutions to count.
    """
    check_defense("defense", defense, "cost(defense, model, data)")
    check_network(model, "cost(defense, model, data)")
    device, dtype = place(model)
    passes: Counter[str] = Counter()

    def after_forward(module: nn.Module, inputs: Any, logits: Tensor) -> None:
        passes["forward"] += 1
        if logits.requires_grad:
            logits.register_hook(lambda grad: passes.update(backward=1))

    with undisturbed(device), alone():
        batch = first_batch(data, batch_size, device, dtype)
        twin = _twin(model)
        check_model(twin, batch.x[:2], int(batch.y.max()) + 1)
        with torch.no_grad():
            unit = _flops(lambda: twin(batch.x))
        twin.register_forward_hook(after_forward)
        loop = _loop(twin, defense, batch)
        flops = _flops(lambda: _train_on(batch, loop))
    if not unit:
        raise ModelError(f"{type(model).__name__} has no matrix product or convolution: there are no FLOPs to count")
    return Cost(defense.name, passes["forward"], passes["backward"], flops, unit, defense.replays)


def calibrate(
    model: nn.Module,
    data: Any,
    *,
    batch_size: int = 64,
    device: str = "auto",
    seconds: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Speed:
    """Measure how fast this machine trains a model: a standard update, and a further forward-equivalent.

    Rounds of one standard update and one of PGD-AT with three steps, after a round that is not counted, until `seconds`
    have passed and at least three times, and `PATIENCE` times more at most while noise makes the attack look free; of
    each the median is taken. They are `fit`'s own updates on a copy of the model, at learning rate zero, under bfloat16
    where `fit` would use it. Two numbers, because an update does more than its passes, and an attack's have a pace.

    Args:
        model: returns logits (B, K); left as it was, see `cost`.
        data: a `Batch`; or whatever `fit` takes, of which the first `batch_size` training images serve.
        batch_size: images in a mini-batch.
        device: where to measure: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.
        seconds: how long to go on, above 0; a large model on a slow machine takes longer.
        clock: gives the time in seconds; `time.process_time` leaves out what other programs take of a CPU.

    Raises:
        ArgumentError, DataError, ModelError: an argument is not accepted.

    Warns:
        AdvtrainWarning: the attack still looks free; its passes are then taken to be as fast as a standard update's.
    """
    check_network(model, "calibrate(model, data)")
    if not (is_real(seconds) and 0 < seconds < float("inf")):
        bad("seconds", seconds, "above 0 and finite")
    found = find_device(device)
    threat = Threat("linf", 8 / 255)
    defenses = Standard(threat), PGD(threat, steps=3)
    steady_memory()
    with undisturbed(found), alone():
        batch = first_batch(data, batch_size, found, place(model)[1])
        counted = [cost(defense, model, part(batch)).forwards for defense in defenses]
        loops = [_loop(_twin(model, found), defense, batch) for defense in defenses]
        times: list[list[float]] = [[], []]
        started, patience = None, PATIENCE

        def pace() -> tuple[float, float, bool]:
            update, attacked = (statistics.median(record) for record in times)
            extra = (attacked - update) / (counted[1] - counted[0])
            return update, extra, extra > 1e-3 * update > 0

        while (started is None or len(times[0]) < 3 or clock() - started < seconds) or (
            not pace()[2] and (patience := patience - 1) >= 0
        ):
            for loop, record in zip(loops, times, strict=True):
                _wait(found)
                before = clock()
                _train_on(batch, loop)
                _wait(found)
                record.append(clock() - before)
            if started is None:  # the first round warms up
                started, times = clock(), [[], []]
    update, extra, believable = pace()
    if not update > 0:
        bad("clock", clock, "able to time an update", "take a larger batch_size, or time.perf_counter")
    if not believable:
        message = f"an attack of three steps took no longer than none in {len(times[0])} rounds, which cannot be"
        advice = "calibrate again with more seconds, a larger batch_size, or clock=time.process_time"
        warnings.warn(f"{message}: {advice}", AdvtrainWarning, stacklevel=2)
        extra = update / counted[0]
    return Speed(update, extra, counted[0], str(found))


class _Everywhere:
    """Every operation belongs to the whole."""

    parents = ("Global",)

    def __enter__(self) -> None: ...

    def __exit__(self, *args: Any) -> None: ...


def _flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of `work()`, by PyTorch's own formulas."""
    from torch.utils.flop_counter import FlopCounterMode  # slow to import, and seldom needed

    counter = FlopCounterMode(display=False)
    # Its bookkeeping by module hooks into the graph, and fails on gradients with respect to the input.
    counter.mod_tracker = _Everywhere()  # type: ignore[assignment]
    with counter:
        work()
    return counter.get_total_flops()


def first_batch(data: Any, batch_size: int, device: torch.device, dtype: torch.dtype) -> Batch:
    """The first training images of whatever `fit` takes, or of a `Batch`, as `fit` would see them."""
    if isinstance(data, Batch):  # of any classes, if only of one
        data = as_dataset((data.x, data.y), test=0, val=0, num_classes=MOST_CLASSES)
    data = as_dataset(data, test=0)
    loader = make_loader(data, batch_size, device=device, dtype=dtype, channels_last=device.type == "cuda")
    return Batch(*next(iter(loader.epoch(0))))


def part(batch: Batch) -> Batch:
    """The first few images of a batch."""
    return Batch(batch.x[:PROBE], batch.y[:PROBE])


def _twin(model: nn.Module, device: torch.device | None = None) -> nn.Module:
    """A copy of the model as `fit` would train it."""
    twin = copy.deepcopy(model).to(device)
    if device is not None and device.type == "cuda":
        twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload,unused-ignore]
    return twin if twin.training else twin.train()


def _loop(twin: nn.Module, defense: Defense, batch: Batch) -> Loop:
    """`fit`'s own loop around a copy, with its default options."""
    options = {name: p.default for name, p in inspect.signature(fit).parameters.items() if name in RECORDED}
    device = batch.x.device
    run, shape = Run(twin, copy.deepcopy(defense), None, options), image_shape(batch.x)
    return Loop(run, None, constant, lambda: None, shape=shape, val=None, bf16=computes_in_bf16(device), device=device)


def _train_on(batch: Batch, loop: Loop) -> None:
    for _ in range(loop.defense.replays):
        loop.update(batch, 0.0, Rate(0.0))


def _wait(device: torch.device) -> None:
    """Let an accelerator finish, so that the clock is read when the work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
