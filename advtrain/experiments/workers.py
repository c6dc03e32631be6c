"""Work shared out to processes, of which any may be killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from typing import Any, NamedTuple

from tqdm.std import tqdm

from ..errors import TrainingError


class Crash(NamedTuple):
    """What is left of a task whose process ended.

    Args:
        message: how it ended.
    """

    message: str


class _Worker:
    """A process and the task that it is at."""

    def __init__(self, function: Callable[..., Any]):
        context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, function), daemon=True)
        with _deaf_to_ctrl_c():  # which the whole process group receives: this process alone answers it
            self.process.start()
        theirs.close()
        self.ready, self.task = False, -1

    def dismiss(self) -> None:
        """Let it end by itself: it has nothing more to do."""
        with contextlib.suppress(OSError):
            self.connection.send(None)
        self.process.join(5)
        self.end()

    def end(self) -> None:
        """End it, whatever it is at."""
        self.process.terminate()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


def in_workers(
    function: Callable[..., Any], tasks: list[tuple[Any, ...]], count: int, *, deadline: float | None = None
) -> Iterator[tuple[int, Any]]:
    """Call `function(*task)` for every task, in processes; yields (position of the task, a result of it) as they come.

    A process that ends in the middle of a task costs that task alone: its result is a `Crash`, and another process goes
    on with the rest. When the caller stops, by Ctrl-C or otherwise, the processes end at once; they also end when this
    process does, however that happens.

    Args:
        function: can be imported by another process; deals with its own exceptions. If it gives an iterator, each of
            what comes from that is a result.
        tasks: its arguments, which can be pickled.
        count: how many processes, at least 1.
        deadline: when to stop, by `time.monotonic`; tasks that are not done then yield nothing.

    Raises:
        TrainingError: no process can be started.
    """
    if _from_standard_input():
        raise TrainingError(
            "worker processes cannot start from a program read from standard input: say workers=0 (--workers 0), or "
            "save the program as a file"
        )
    waiting = list(reversed(range(len(tasks))))
    workers: list[_Worker] = []

    def give(worker: _Worker) -> None:
        worker.task = waiting.pop()
        with contextlib.suppress(OSError):  # it is dead; the next look notices
            worker.connection.send(tasks[worker.task])

    try:
        while waiting or workers:
            while waiting and len(workers) < count:
                workers.append(_Worker(function))
                give(workers[-1])
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            # A result may lie in the pipe of a process that has ended since: pipes are looked at, not processes.
            heard = wait([worker.connection for worker in workers], left)
            if not heard and deadline is not None and time.monotonic() >= deadline:
                return
            for worker in [worker for worker in workers if worker.connection in heard]:
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):
                    workers.remove(worker)
                    worker.end()
                    if not worker.ready:
                        raise TrainingError(
                            f"a worker process {_how(worker.process.exitcode)} before it began: a script needs "
                            'if __name__ == "__main__": around its calls, or workers=0'
                        ) from None
                    yield worker.task, Crash(f"the process of this run {_how(worker.process.exitcode)}")
                    continue
                if not worker.ready:
                    worker.ready = True
                    continue
                if message:
                    yield worker.task, *message
                elif waiting:
                    give(worker)
                else:
                    workers.remove(worker)
                    worker.dismiss()
    finally:
        for worker in workers:
            worker.end()


def _from_standard_input() -> bool:
    """Whether this program is text that went through a pipe: a new process would look for its file in vain."""
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    return path is not None and getattr(main, "__spec__", None) is None and not os.path.exists(path)


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-exitcode).name}"
    return f"ended with status {exitcode}"


def _serve(connection: Any, function: Callable[..., Any]) -> None:
    """What a process does: say that it is there; then, of each task, say its results, each in a tuple, and ()."""
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own is a system-wide semaphore, which a process that is killed leaves behind
    with contextlib.suppress(EOFError, OSError):
        connection.send("ready")
        while (task := connection.recv()) is not None:
            found = function(*task)
            for result in found if isinstance(found, Iterator) else (found,):
                connection.send((result,))
            connection.send(())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """A process started in the block ignores Ctrl-C from its first moment."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
