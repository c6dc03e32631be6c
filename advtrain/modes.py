"""How a model stands while it is attacked, and how it gets back exactly as it was."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import ModelError, check_kind, one_of

BN_MODES = ("eval", "train", "batch")
STATISTICS = ("num_batches_tracked", "running_mean", "running_var")  # of batch normalisation


def check_recording(call: str) -> None:
    """Refuse to begin under `torch.inference_mode()`, in which nothing has a gradient; `call` is what needs one.

    Raises:
        ModelError: it is on.
    """
    if torch.is_inference_mode_enabled():
        raise ModelError(
            f"torch.inference_mode() is on, under which nothing has a gradient, and {call} needs those: call it outside"
        )


@contextlib.contextmanager
def attacking(model: nn.Module, bn: str = "eval", *, freeze: bool = True) -> Iterator[nn.Module]:
    """Hold `model` still for an attack: parameters frozen, gradients enabled, modes as `bn` says.

    >>> model = nn.BatchNorm1d(2)
    >>> with attacking(model):
    ...     model.training, model.weight.requires_grad
    (False, False)
    >>> model.training, model.weight.requires_grad
    (True, True)

    Args:
        model: any module.
        bn: how batch normalisation (and dropout) behave inside.
            `"eval"`: the whole model in evaluation mode: running statistics, no dropout. For judging a model, and for
            training methods whose authors craft in evaluation mode (SAT, TRADES).
            `"train"`: every module as it is. A model in training mode uses batch statistics and **updates its running
            statistics at every forward**, as the code of FAST-AT, N-FGSM, GradAlign and FAST-BAT does.
            `"batch"`: as `"train"`, but running statistics are left alone.
        freeze: False leaves the parameters in the graph, for a defense that differentiates an attack's gradient.

    On leaving, also by an exception, each module and each parameter has its own flags back. A blanket `model.train()`
    would un-freeze layers that the caller froze on purpose.
    """
    check_kind("model", model, nn.Module, "at.build_model(name, data) makes one")
    one_of("bn", bn, BN_MODES)
    training = _flags(model) if bn == "eval" else []
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad] if freeze else []
    tracking = (
        [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats] if bn == "batch" else []
    )
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        if bn == "eval":
            into_evaluation(model)
        for layer in tracking:
            layer.track_running_stats = False
        with torch.enable_grad():
            yield model
    finally:
        for layer in tracking:
            layer.track_running_stats = True
        for module, flag in training:
            module.training = flag
        for parameter in frozen:
            parameter.requires_grad_(True)


class StatisticsUpdate:
    """What one pass in training mode did to the running statistics of batch normalisation: `again` does it once more.

    Some authors' code passes the same batch through the model twice, with the same result but for the running
    statistics, which move twice. One pass and `again` give the same numbers at half the price. See `noting_statistics`.
    """

    def __init__(self, model: nn.Module):
        alike: dict[object, list[_BatchNorm]] = {}
        for layer in model.modules():
            if isinstance(layer, _BatchNorm) and layer.training and layer.running_mean is not None:
                alike.setdefault((layer.momentum, layer.running_mean.dtype), []).append(layer)
        self._groups = [_Alike(layers) for layers in alike.values()]

    def finish(self) -> None:
        """The pass is over: note by how much each layer's statistics moved, and in how many uses of the layer."""
        for group in self._groups:
            group.finish()

    def again(self) -> None:
        """Move the running statistics once more, as another pass of the same batch would."""
        for group in self._groups:
            group.again()


class _Alike:
    """Layers of one momentum, with their statistics in a row: many small tensors would be as many operations."""

    def __init__(self, layers: list[_BatchNorm]):
        self.layers, self.momentum = layers, layers[0].momentum
        self.sizes = [layer.num_features for layer in layers]
        self.before = self.read()

    def read(self) -> tuple[Tensor, Tensor]:
        """How often each layer was used; all running means and then all variances, in a row. Copies."""
        count, mean, variance = ([getattr(layer, name) for layer in self.layers] for name in STATISTICS)
        return torch.stack(count), torch.cat(mean + variance)

    def wide(self, each: Tensor) -> Tensor:
        """A number for each layer as one for each statistic."""
        numbers = zip(each.unbind(), self.sizes, strict=True)
        return torch.cat([number.expand(size) for number, size in numbers]).repeat(2)

    def kept(self, uses: Tensor, count: Tensor) -> Tensor:
        """The weight of the earlier statistics after the newest `uses` of a layer; a tensor, so that no host waits."""
        if self.momentum is None:  # a mean over all batches
            return self.wide(1 - uses / count.to(uses).clamp(min=1))
        return self.wide((1 - self.momentum) ** uses)

    def finish(self) -> None:
        count, after = self.read()
        uses = count - self.before[0]
        kept = self.kept(uses.to(after), count)
        self.found = uses, count, after - kept * self.before[1]

    def again(self) -> None:
        uses, count, move = self.found
        earlier, running = self.read()
        tracked = earlier + uses
        if self.momentum is None:  # what the pass brought weighs less by now
            move = move * self.wide(count.to(move) / tracked.to(move))
        running = running * self.kept(uses.to(move), tracked) + move
        mean, variance = (half.split(self.sizes) for half in running.chunk(2))
        moving = [layer.track_running_stats for layer in self.layers]
        for name, values in zip(STATISTICS, (tracked.unbind(), mean, variance), strict=True):
            # .data: a graph may hold the buffer, unused
            pairs = [(getattr(layer, name).data, value) for layer, value in zip(self.layers, values, strict=True)]
            old, now = ([pair[part] for pair, moves in zip(pairs, moving, strict=True) if moves] for part in (0, 1))
            if old:
                torch._foreach_copy_(old, now)


@contextlib.contextmanager
def noting_statistics(model: nn.Module) -> Iterator[StatisticsUpdate]:
    """Note how the one forward pass inside moves the running statistics, to move them `again` later.

    Args:
        model: any module; layers in evaluation mode do not take part.
    """
    update = StatisticsUpdate(model)
    yield update
    update.finish()


def place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device of a model's parameters, and the dtype its images should have: float64 for a float64 model.

    Of a model without parameters those of its buffers count.

    Raises:
        ModelError: the model is on the meta device.
    """
    parameter = next(itertools.chain(model.parameters(), model.buffers()), None)
    if parameter is None:
        return torch.device("cpu"), torch.float32
    if parameter.is_meta:
        raise ModelError("the model is on the meta device, which holds no numbers: load its weights on another one")
    return parameter.device, torch.float64 if parameter.dtype == torch.float64 else torch.float32


def _flags(model: nn.Module) -> list[tuple[nn.Module, bool]]:
    """Every module's own flag; a frozen TorchScript module has none."""
    return [(module, module.training) for module in model.modules() if hasattr(module, "training")]


def into_evaluation(model: nn.Module) -> None:
    """`model.eval()`, for models that can.

    Raises:
        ModelError: it is an exported program, whose modes are fixed.
    """
    try:
        model.eval()
    except NotImplementedError as error:
        hint = "of an exported program the mode is fixed; judge the network that it was exported from"
        raise ModelError(f"the model cannot be put into evaluation mode: {hint}") from error


@contextlib.contextmanager
def keeping_modes(model: nn.Module) -> Iterator[nn.Module]:
    """`model`, every module of which has its own flag back on leaving."""
    training = _flags(model)
    try:
        yield model
    finally:
        for module, flag in training:
            module.training = flag


@contextlib.contextmanager
def unchanged_on_error(model: nn.Module) -> Iterator[nn.Module]:
    """`model`, which after an error has its numbers, types, device and modes back.

    Holds a copy of all numbers meanwhile.
    """
    training, buffers = _flags(model), [(module, dict(module._buffers)) for module in model.modules()]
    tensors = [each for each in itertools.chain(model.parameters(), model.buffers()) if not nn.parameter.is_lazy(each)]
    kept = [(tensor, tensor.data, tensor.detach().clone()) for tensor in tensors]
    try:
        yield model
    except BaseException:
        for module, own in buffers:
            module._buffers.update(own)
        for tensor, data, values in kept:
            tensor.data = data
            data.copy_(values)
        for module, flag in training:
            module.training = flag
        raise


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """`model` in evaluation mode without gradients; every module's own flag comes back on leaving."""
    with keeping_modes(model):
        into_evaluation(model)
        with torch.no_grad():
            yield model


@contextlib.contextmanager
def channels_last(model: nn.Module) -> Iterator[torch.memory_format]:
    """Hold the convolutions' weights in the layout in which passes are faster; yields the layout for the images.

    The values are the same, the sums may be rounded differently. On leaving every parameter has its own memory back. A
    model without convolutions stays as it is.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    weights = [layer.weight for layer in layers if isinstance(layer.weight, nn.Parameter)]
    kept = [weight.data for weight in weights]
    try:
        for weight in weights:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        yield torch.channels_last if weights else torch.contiguous_format
    finally:
        for weight, data in zip(weights, kept, strict=True):
            weight.data = data
