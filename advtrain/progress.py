"""One progress bar that is right wherever it is shown: in a terminal, in a notebook, and as lines in a log file."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

from tqdm.std import tqdm

EVERY = 10.0
"""Seconds between two lines of a log."""


def progress_bar(show: bool | None, **options: Any) -> Any:
    """A bar with the methods of tqdm's that are used here, which closes at the end of its `with` block.

    A terminal gets one line, which is wiped at the end, and above which warnings are printed; a notebook gets a widget,
    or the same line where ipywidgets are missing; anything else, such as a log file, a line of text every ten seconds.

    Args:
        show: whether to show it; by default only where somebody watches, a terminal or a notebook.
        **options: `desc`, `total`, `unit`, `unit_scale`, as of tqdm.
    """
    kernel = _in_notebook()
    watched = kernel or (sys.stderr is not None and sys.stderr.isatty())
    if not (watched if show is None else show):
        return tqdm(disable=True, **options)
    kind = (kernel and _widget()) or (Line if watched else Log)
    return kind(**options)


def aside(bar: Any) -> contextlib.AbstractContextManager[None]:
    """Inside, what is printed does not run into a bar."""
    return bar.aside() if isinstance(bar, Line) else contextlib.nullcontext()


class Line(tqdm):  # type: ignore[misc]
    """The line in a terminal. Warnings are printed above it, if the bar is one of the main thread."""

    def __init__(self, **options: Any):
        self._hidden, self._before, self._show = 0, warnings.showwarning, self._warn
        super().__init__(leave=False, dynamic_ncols=True, **options)
        if threading.current_thread() is threading.main_thread():
            warnings.showwarning = self._show

    def _warn(self, *message: Any, **more: Any) -> None:
        with self.aside():
            self._before(*message, **more)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Inside, there is no line."""
        self.clear()
        self._hidden += 1
        try:
            yield
        finally:
            self._hidden -= 1
        self.refresh()

    def display(self, *message: Any, **more: Any) -> bool | None:
        """Draw the line, if this is the time for it."""
        if self._hidden:
            return None
        width = (self.dynamic_ncols(self.fp)[0] if self.dynamic_ncols else None) or 0
        if self.ncols is not None and width < self.ncols:
            self.sp = self.status_printer(self.fp)  # which would fill the line up to its earlier width
        drawn: bool | None = super().display(*message, **more)
        return drawn

    def close(self) -> None:
        """Wipe the line."""
        if warnings.showwarning is self._show:
            warnings.showwarning = self._before
        super().close()


class Log:
    """Lines for a file that somebody reads later: one every ten seconds, and one at the end.

    Args:
        desc: what is going on.
        total: how much there is to do; 0 if nobody knows.
        unit: of what.
        unit_scale: whether to shorten large numbers.
    """

    def __init__(self, desc: str = "", total: float = 0, unit: str = "it", unit_scale: bool = False):
        self.desc, self.total, self.unit, self.scale = desc, total, unit, unit_scale
        self.n: float = 0
        self.postfix, self.started, self.said = "", time.monotonic(), time.monotonic()

    def update(self, n: float = 1) -> None:
        """So much more is done."""
        self.n += n
        if time.monotonic() - self.said >= EVERY:
            self.say()

    def say(self) -> None:
        """Print a line."""
        self.said = time.monotonic()
        line = tqdm.format_meter(
            self.n, self.total, self.said - self.started, prefix=self.desc, unit=self.unit, unit_scale=self.scale,
            postfix=self.postfix, ncols=0,
        )  # fmt: skip
        print(line, file=sys.stderr, flush=True)

    def set_description(self, desc: str) -> None:
        """What is going on now."""
        self.desc = desc

    def set_postfix(self, figures: dict[str, Any]) -> None:
        """Figures for the next line."""
        self.postfix = ", ".join(f"{name}={value}" for name, value in figures.items())

    def refresh(self) -> None:
        """A line that is printed stays."""

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: Any) -> None:
        self.say()


def _in_notebook() -> bool:
    """Whether this is the kernel of a notebook; IPython in a terminal has none."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


@functools.cache
def _widget() -> type | None:
    """The class of the bar in a notebook; None where ipywidgets are missing."""
    from tqdm import notebook

    if notebook.IProgress is None:
        return None
    from IPython.display import display

    class Widget(notebook.tqdm):  # type: ignore[misc]
        """Leaves nothing behind: no bar that an exception has stopped, no widget that a stored notebook cannot find."""

        def __init__(self, **options: Any):
            super().__init__(leave=False, dynamic_ncols=True, display=False, **options)
            self.place = display(self.container, display_id=True)

        def display(self, *message: Any, **more: Any) -> None:
            self.container.children[1].max = self.total or 1  # it may have changed
            super().display(*message, **more)

        def close(self) -> None:
            if self.disable:
                return
            self.total, self.container.children[1].bar_style = self.n, ""  # short of its total it would stay, in red
            super().close()
            self.place.update({"text/plain": ""}, raw=True)

    return Widget
