"""Ctrl-C, taken between two steps instead of in the middle of one."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Hold back Ctrl-C inside the block; yields a function that raises `KeyboardInterrupt` if it was pressed.

    Weights are then never left half-updated. A second Ctrl-C acts at once. Nothing changes in a thread other than the
    main one, where Python delivers no signals, and where the program ignores Ctrl-C.
    """
    pressed = False
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda: None
        return

    def note(number: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            signal.default_int_handler(number, frame)
        pressed = True

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
