"""Ctrl-C, taken between two steps instead of in the middle of one."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from .errors import TrainingError


@contextlib.contextmanager
def interruptible(wanted: bool = True) -> Iterator[Callable[[], None]]:
    """Hold back Ctrl-C inside the block, if that is wanted; yields what raises `KeyboardInterrupt` if it was pressed.

    Weights are then never left half-updated. A second Ctrl-C acts at once. Nothing changes in a thread other than the
    main one, where Python delivers no signals, and where the program ignores Ctrl-C.
    """
    pressed = told = False
    before = signal.getsignal(signal.SIGINT)
    if not wanted or threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda: None
        return

    def note(number: int, frame: Any) -> None:
        nonlocal pressed, told
        if pressed:  # the second time, do not wait
            told = True
            signal.default_int_handler(number, frame)
        pressed = True

    def check() -> None:
        nonlocal told
        if pressed:
            told = True
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed and not told:  # pressed after the last look
        raise KeyboardInterrupt


@contextlib.contextmanager
def blaming_ctrl_c(pause: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C reaches the worker processes of a `DataLoader` too, and kills them: their error then means Ctrl-C."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, TrainingError):
            pause()
        raise
