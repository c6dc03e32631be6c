"""Several processes that train as one: which of them this is, and what they tell each other.

`torchrun` starts them, `joined` brings them together, and `fit` then shares the work; `parallel` says how a step is
shared. Without any of this a program is the first of one process, and every function here gives back what it was given.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from .errors import AdvtrainError, ProcessLostError, bad

T = TypeVar("T")
LOST = re.compile(r"gloo/transport|closed by peer|communicator was aborted|NCCL")
PATIENCE = datetime.timedelta(hours=1)  # how long processes wait for one that downloads data or judges meanwhile
_STATE = threading.local()


def several() -> bool:
    """Whether this process is one of several that train together."""
    if getattr(_STATE, "alone", False):
        return False
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process works for itself, whatever the others do: a step is counted or timed, and not shared."""
    before, _STATE.alone = getattr(_STATE, "alone", False), True
    try:
        yield
    finally:
        _STATE.alone = before


def count() -> int:
    """How many processes train together; 1 for a program on its own."""
    return dist.get_world_size() if several() else 1


def rank() -> int:
    """The number of this process, from 0. The first is the one that writes files, warns and shows a bar."""
    return dist.get_rank() if several() else 0


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[int]:
    """Bring the processes together that `torchrun` has started, for the time of the block; yields this one's `rank`.

    On GPUs each process takes the one of its own number on its machine, and they talk through NCCL; on CPUs through
    gloo. A program that was started without `torchrun` runs the block as it is::

        with at.joined() as rank:  # torchrun --nproc-per-node 8 train.py
            run = at.fit(model, defense, data, batch_size=1024, out="runs/x")
        if rank == 0:
            print(at.evaluate(run.model, data.test, threat))

    `fit` is called by all of them alike; everything else works for the process that calls it. Tested with processes on
    a CPU; on GPUs it has not been tried yet.

    Args:
        device: auto, cuda or cpu, as for `fit`.

    Raises:
        ArgumentError: a device that is none of these, or fewer GPUs on a machine than processes.
        ProcessLostError: another process has ended before the block has.
    """
    size, local = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))
    if size == 1 or several():
        yield rank()
        return
    if device not in ("auto", "cuda", "cpu"):
        bad("device", device, "auto, cuda or cpu", f"each of the {size} processes takes a device of its own")
    options: dict[str, Any] = {"backend": "gloo"}
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        if local >= torch.cuda.device_count():
            wanted = os.environ.get("LOCAL_WORLD_SIZE", str(size))
            bad("--nproc-per-node", int(wanted), f"at most {torch.cuda.device_count()}, the GPUs of this machine")
        torch.cuda.set_device(local)
        options = {"backend": "nccl", "device_id": torch.device("cuda", local)}
    with naming_the_lost():
        dist.init_process_group(**options, timeout=PATIENCE)
        yield dist.get_rank()
        dist.destroy_process_group()  # not after an error: the others may be gone, and would be waited for


@contextlib.contextmanager
def naming_the_lost() -> Iterator[None]:
    """Say what a broken connection to another process means."""
    try:
        yield
    except RuntimeError as error:
        if not several() or isinstance(error, AdvtrainError):
            raise
        if isinstance(error, dist.DistError) or LOST.search(str(error)):
            raise ProcessLostError(
                f"process {rank()} of {count()} has lost another one, which has ended or no longer answers "
                f"({str(error).strip().splitlines()[0]}). The run folder, if there is one, holds what was last written"
            ) from error
        raise


def shared_device(device: str) -> str:
    """The device that this process is to train on with the others, where `device` is what `fit` was told.

    Raises:
        ArgumentError: it is not one that the processes talk through.
    """
    if not several():
        return device
    place = "cuda" if "nccl" in dist.get_backend() else "cpu"
    if device not in ("auto", place):
        bad("device", device, f"auto or {place}", f"the processes were joined by {dist.get_backend()}")
    return place


def gather(value: T) -> list[T]:
    """The `value` of every process, in the order of their ranks. All must call it, and it waits for the slowest."""
    if not several():
        return [value]
    found: list[Any] = [None] * count()
    with naming_the_lost():
        dist.all_gather_object(found, value)
    return found


def first_alone(function: Callable[[], T]) -> T:
    """What `function` returns or raises in the first process, in all of them; it is called in no other.

    What it returns travels between processes that belong to one job, and has to be something that pickle knows.
    """
    result, error = _tried_first(function)
    agreed: T = _agreed(*gather((result, error))[0])
    return agreed


def first_before_others(function: Callable[[], T]) -> T:
    """What `function` returns here, after the first process has called it: a download, say, that others then find.

    If it fails there, the same error is raised in all.
    """
    result, error = _tried_first(function)
    _agreed(None, gather(error)[0])
    return result if rank() == 0 else function()


def _tried_first(function: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What `function` returns in the first process, or the error that it raises: the others would wait for ever."""
    if rank() > 0:
        return None, None
    try:
        return function(), None
    except Exception as error:
        return None, error


def _agreed(result: Any, error: Any) -> Any:
    """The result of the first process, or its error, marked in the others as said already."""
    if error is not None:
        error.said = rank() > 0
        raise error
    return result


def agree(**told: Any) -> None:
    """Refuse, in all processes, what was not told to all of them alike.

    Args:
        **told: arguments by name; they are compared as they are written.

    Raises:
        ArgumentError: naming the first that differs.
    """
    parts = gather({name: repr(value) for name, value in told.items()})
    for name in told:
        if any(part[name] != parts[0][name] for part in parts):
            bad(name, told[name], "the same in all processes", f"they were given {', '.join(p[name] for p in parts)}")
