"""One progress bar that is right in a terminal, in a notebook, and in a log file (where there is none)."""

from __future__ import annotations

import sys
import warnings
from typing import Any


def progress_bar(show: bool | None, **options: Any) -> Any:
    """A tqdm bar. `show=None`: only where somebody watches, a terminal or a notebook."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm's advice to install ipywidgets: the plain bar serves as well
        from tqdm.auto import tqdm
    if show is None:
        show = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(disable=not show, leave=False, dynamic_ncols=True, **options)
