"""Several small trainings or judgements at a time, each on one core of the processor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from .errors import at_least
from .recipe import find_device


def side_by_side(
    function: Callable[..., Any], *arguments: Iterable[Any], device: str = "cpu", threads: int = 2
) -> list[Any]:
    """`list(map(function, *arguments))`, computed for a few arguments at a time.

    A network for 8x8 digits is too small to be divided among cores, but two such networks train beside each other in
    little more than the time of one. Each call has one thread of PyTorch for itself, however many there are at a time,
    so that the results do not depend on it.

    `build_model`, `fit`, `evaluate` and `autoattack` give what they give one after the other, if each call has a
    network of its own: an attack switches the modes and gradients of a network while it lasts. What draws from torch's
    global generator while it trains, as dropout does, gets other numbers each time; the caller's state is put back.

    >>> side_by_side(pow, [2, 3, 4], [5, 2, 1])
    [32, 9, 4]

    Args:
        function: called with one element of each of the `arguments`.
        *arguments: as for `map`; the shortest decides. Put the slowest first: what starts last is waited for.
        device: where the calls compute. On a GPU they follow each other: one fills it.
        threads: calls at a time on a CPU, but never more than it has cores.

    Returns:
        What the calls returned, in the order of the arguments.

    Raises:
        Exception: what the first failing call raised, in the order of the arguments; calls that have not begun are
            left out.
        ArgumentError: `threads` below 1, or an unknown device.
    """
    at_least("threads", threads, 1)
    if find_device(device).type != "cpu":
        return list(map(function, *arguments))
    before, state = torch.get_num_threads(), torch.get_rng_state()
    pool = ThreadPoolExecutor(min(threads, os.cpu_count() or 1), "advtrain", torch.set_num_threads, (1,))
    try:
        return list(pool.map(function, *arguments))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # what threads that start from now on go by
        torch.set_rng_state(state)  # of overlapping runs, the last to end put back what another had seeded
