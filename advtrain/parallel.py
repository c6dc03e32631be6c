"""Any defense on several processes, each with its share of the batch: what `fit` tells `DistributedDataParallel`.

A defense passes images through the model many times before its loss is there, and `DistributedDataParallel` expects one
forward for each backward. So it is given a module whose forward is the whole training step::

    step = DistributedDataParallel(TrainStep(model, defense), broadcast_buffers=False)  # for each batch:
    defense.adversary_step(model, batch, progress)
    optimizer.zero_grad(set_to_none=True)
    try:
        loss, logits, delta, logs = step(batch, progress)
        loss.backward()
    finally:
        defense.after_backward(model)
    optimizer.step()
    average_buffers(model)  # before evaluating or saving only

With a loss that is a mean over images, and no batch normalisation, the gradient is that of one process with the whole
batch. Otherwise it is the mean over images of the processes' own gradients: batch statistics, and what a regularizer
computes of a batch as a whole, are those of each share.

`broadcast_buffers=False`: else each step would begin by throwing away the running statistics of all processes but one.
Give every process the same weights, the same global seed when `Defense.setup` runs, and random streams of its own
(`Rng(seed, "rank", rank)`).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from .defense import Batch, Defense, Step
from .processes import count, gather, several


class TrainStep(nn.Module):
    """A model and a defense as one module, whose forward is a training step: wrap this, not the model.

    Args:
        model: returns logits; its parameters are those of this module.
        defense: stays a plain object, so that nothing of it is broadcast or averaged.

    Attributes:
        weight: what the last step's loss was multiplied by, a scalar; None in a single process.
    """

    def __init__(self, model: nn.Module, defense: Defense):
        super().__init__()
        self.model, self.defense = model, defense
        self.weight: Tensor | None = None

    def forward(self, batch: Batch, progress: float) -> Step:
        """The step on this process's images, its loss weighted so that the mean over processes is that over all images.

        Args:
            batch: at least one image; the number may differ between processes, but each must take part in every step.
            progress: as in `Defense`.
        """
        step = self.defense(self.model, batch, progress)
        if not several() or not isinstance(getattr(step, "loss", None), Tensor):  # the latter the loop refuses
            return step
        self.weight = share(len(batch.x), step.loss)
        return step._replace(loss=step.loss * self.weight)


def synchronised(step: TrainStep, device: torch.device) -> nn.Module:
    """The step as all processes make it together, each keeping the same weights; in a single process, the step.

    All begin with the weights and running statistics of the first.
    """
    if not several():
        return step
    options: dict[str, Any] = {"device_ids": [torch.cuda.current_device()]} if device.type == "cuda" else {}
    known = inspect.signature(DistributedDataParallel).parameters
    options["forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"] = False  # its old name
    return DistributedDataParallel(step, **options)


def share(n: int, like: Tensor) -> Tensor:
    """n divided by the mean of all processes' n: the weight of this one in a mean over processes; 1 for a single one.

    Args:
        n: how many images this process has.
        like: gives the device (with NCCL a GPU) and the dtype. Nothing waits for the device.
    """
    if not several():
        return torch.ones((), dtype=like.dtype, device=like.device)
    total = torch.full((), float(n), dtype=torch.float64, device=like.device)  # no copy from the host
    dist.all_reduce(total)
    return (n * count() / total).to(like.dtype)


def average_gradients(gradients: list[Tensor] | tuple[Tensor, ...], n: int) -> list[Tensor]:
    """The mean over all processes, weighted by n, of gradients that `DistributedDataParallel` does not see.

    For a second player: in `Defense.adversary_step`, between `torch.autograd.grad` and the update. Every process must
    call it equally often. In one process it returns the gradients as they are.

    Args:
        gradients: tensors of the same shapes in every process.
        n: how many images this process's gradients are the mean of.
    """
    if not several() or not gradients:
        return list(gradients)
    weight = share(n, gradients[0]) / count()
    return _sum_over_processes([gradient * weight for gradient in gradients])


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Give every process the mean of all processes' running statistics of batch normalisation.

    Call it on every process before a model is evaluated or saved. The variance is then the mean of those within the
    shares, which is what the network was normalised with. Other buffers, such as counts of batches, stay.

    Args:
        model: changed in place.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    buffers = [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var) if buffer is not None]
    if several() and buffers:
        for buffer, total in zip(buffers, _sum_over_processes(buffers), strict=True):
            buffer.copy_(total / count())


def pooled(sums: dict[str, tuple[float, int]]) -> dict[str, float]:
    """Means over the images of all processes.

    Args:
        sums: for each name what this process has summed, and over how many images; a name may be missing here.
    """
    parts = gather(sums)
    names = dict.fromkeys(name for part in parts for name in part)
    found = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: sum(total for total, _ in each) / sum(n for _, n in each) for name, each in found.items()}


def _sum_over_processes(tensors: list[Tensor]) -> list[Tensor]:
    """One message for all of them: on a network, the number of messages is what takes the time."""
    flat = nn.utils.parameters_to_vector(tensors)
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


__all__ = ["TrainStep", "average_buffers", "average_gradients"]
