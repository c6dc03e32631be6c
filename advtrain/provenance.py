"""Where a result comes from: what was typed, on what machine, with which versions, from which state of the code."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy
import torch

from .processes import count, several


def provenance(seed: int, device: torch.device | str) -> dict[str, Any]:
    """Where a result comes from: commit, versions, device, command, date (UTC)."""
    device = torch.device(device)
    return {
        "commit": git_commit(),
        "command": command_line(),
        "seed": seed,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        **({"processes": count()} if several() else {}),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"torch": torch.__version__, "numpy": numpy.__version__, "advtrain-book": version()},
    }


def command_line() -> str:
    """What was typed to start this process, without the folders of the program; "interactive" if nothing was."""
    if not sys.argv or not sys.argv[0] or sys.argv[0] == "-c":
        return "interactive"
    program = Path(sys.argv[0])
    module = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    if (here := os.environ.get("LOCAL_WORLD_SIZE")) and "TORCHELASTIC_RUN_ID" in os.environ:
        machines = int(os.environ["WORLD_SIZE"]) // int(here)
        nodes = ["--nnodes", str(machines)] if machines > 1 else []
        module = ["torchrun", *nodes, "--nproc-per-node", here, *module[module[0] == "python" :]]
    return shlex.join([*module, *sys.argv[1:]])


@functools.cache
def version() -> str:
    """The installed version of this package; "0+unknown" when it runs from a source tree that is not installed."""
    try:
        return metadata.version("advtrain-book")
    except metadata.PackageNotFoundError:
        return "0+unknown"


@functools.cache
def git_commit() -> str | None:
    """The commit of the source tree that this package is imported from, with `+changes` if it was edited; or None.

    Looked up once a process: later commits are not what is running. A copy of the tree without its history is told by
    the environment variable ADVTRAIN_COMMIT what `git rev-parse HEAD` said where it was taken.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        told = os.environ.get("ADVTRAIN_COMMIT", "")
        return told if re.fullmatch(r"[0-9a-f]{40}(\+changes)?", told) else None
    try:

        def git(*words: str) -> str:
            return subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
            ).stdout

        return git("rev-parse", "HEAD").strip() + ("+changes" if git("status", "--porcelain", "-uno").strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None
