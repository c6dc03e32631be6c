"""How many images fit into memory at once."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

SHARE = 0.4
"""Of the memory that is free, what a batch may take."""

MOST = 4096
"""Rows beyond which a GPU is busy and a batch no faster."""

CACHE, LEAST = 16 * 2**20, 32
"""On a CPU: what a batch may take to stay near the processor, and the rows that it has in any case. Batches that are
several times as large were measured a fifth to a half slower for each image."""


def rows_that_fit(model: nn.Module, x: Tensor) -> int:
    """How many rows a search may have at once, from what one image keeps in memory for its gradient.

    Args:
        model: the network, held as for an attack.
        x: (2, C, H, W) or more, on the model's device.
    """
    each = bytes_per_image(model, x[:2])
    fit = int(SHARE * free_bytes(x.device) / each)
    return max(1, min(fit, max(LEAST, int(CACHE / each)) if x.device.type == "cpu" else MOST))


def bytes_per_image(model: nn.Module, x: Tensor) -> float:
    """What one image keeps for its gradient, and as much again for the work, and the search's own tensors."""
    held: list[Tensor] = []  # by number: a graph whose hooks hold its own tensors holds itself, and is never freed

    def pack(tensor: Tensor) -> int:
        held.append(tensor)
        return len(held) - 1

    weights = {parameter.data_ptr() for parameter in model.parameters()}
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, held.__getitem__):
            model(x.detach().requires_grad_())
        kept = sum(tensor.numel() * tensor.element_size() for tensor in held if tensor.data_ptr() not in weights)
    finally:
        held.clear()
    return 2 * kept / len(x) + 24 * x[0].numel() * x.element_size() + 1


def free_bytes(device: torch.device) -> float:
    """Free memory of the device; where nobody knows, four gigabytes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return 1024.0 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / 2
    except (AttributeError, OSError, ValueError):
        return 4e9
