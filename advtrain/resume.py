"""Taking a training up again: whose folder it is, what is in it, and whether it is the same training."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from .checkpoint_files import Checkpoints
from .dataset import Split
from .errors import FileError, bad, check_flag, check_path, shown
from .files import check_free_of, check_writable, read_json
from .models.spec import layers_of, spec_of
from .processes import count

if TYPE_CHECKING:
    from .runs import Run

KNOWN_BY = ("images", "layers")
"""What a run's provenance says of what it was told and no configuration holds."""


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep a run folder to this training alone. The claim ends with the process, however that ends.

    Args:
        folder: made if it is not there.

    Raises:
        FileError: another training is writing to it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A singleton may be taken again by the thread that has it: a callback may save the run.
        lock = FileLock(folder.resolve() / ".lock", timeout=0, is_singleton=True)
        lock.acquire()
    except Timeout as error:
        raise FileError(
            f"{folder} is in use: another training is writing to it. Wait for its end, or choose another folder"
        ) from error
    except NotImplementedError:  # a file system that knows no locks
        yield
        return
    except OSError as error:
        raise FileError(f"cannot write to {folder}: {error.strerror or error}; choose another folder") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def opened(folder: Path, *, overwrite: bool, resume: bool) -> Iterator[None]:
    """Claim a run folder to train into, once it is clear that this is what the caller wants.

    Args:
        folder: the run folder.
        overwrite: it may hold another run, which is to be replaced.
        resume: it may hold this run, which is to go on.

    Raises:
        FileError: it cannot be written, holds another run or an export, or another training is writing to it.
    """
    checkpoints = Checkpoints(folder / "checkpoints")

    def check() -> None:
        hint = "" if overwrite else " To go on with that run, pass resume=True (--resume)"
        try:
            check_writable(folder, holding="config.json", overwrite=overwrite or resume)
        except FileError as error:
            raise FileError(f"{error}.{hint}" if checkpoints.paths() else str(error)) from error
        check_free_of(folder, "model.json", "an export, whose weights these would replace")
        if checkpoints.paths() and not (overwrite or resume):
            raise FileError(f"{folder} has checkpoints of a run; choose another folder, or pass overwrite=True.{hint}")

    check()
    fresh = not folder.exists()
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_if_empty, folder.absolute(), fresh)
        stack.enter_context(claimed(folder))
        check()  # as it is now that nobody else changes it
        for name in ("model.safetensors", "history.json", "provenance.json", "config.json"):
            for debris in folder.glob(f".{name}.*.partial"):  # of a writer that was killed
                debris.unlink(missing_ok=True)
        checkpoints.tidy()
        if not resume:
            checkpoints.clear()
        yield


def _remove_if_empty(folder: Path, fresh: bool) -> None:
    """Leave no folder behind for a training that was refused before it wrote anything."""
    if fresh and [path.name for path in folder.glob("*")] in ([], [".lock"]):
        with contextlib.suppress(OSError):
            (folder / ".lock").unlink(missing_ok=True)
            folder.rmdir()


def told_of(run: Run, device: torch.device) -> dict[str, Any]:
    """What a training is told that makes it what it is: one that goes on must be told the same.

    Args:
        run: its configuration; its images and layers, as `images_of` and `layers_in` have put them into its provenance;
            and the shapes of its network, which count, as its layers do, where `build_model` did not make it.
        device: where it trains.
    """
    config = run.config
    told = {key: config[key] for key in ("model", "defense", "data", "options")}
    if told["model"] is None:
        told["model"] = {name: list(value.shape) for name, value in run.model.state_dict().items()}
    known = {key: value for key, value in run.provenance.items() if key in KNOWN_BY}
    return {**told, **known, "device": device.type, "processes": count()}


def images_of(train: Any) -> dict[str, str]:
    """`{"images": a short name for them}`, for a `Split`; nothing for a `DataLoader`."""
    return {"images": fingerprint(train)} if isinstance(train, Split) else {}


def layers_in(model: nn.Module) -> dict[str, str]:
    """`{"layers": a short name for them}`, for a network that `build_model` does not make; nothing for others."""
    own = spec_of(model) is None
    return {"layers": hashlib.sha256(layers_of(model).encode()).hexdigest()[:16]} if own else {}


@contextlib.contextmanager
def blaming_checkpoint(folder: Path) -> Iterator[None]:
    """Say of what goes wrong inside that the state was not that of this training.

    Raises:
        FileError: in place of whatever a state of another kind causes.
    """
    try:
        yield
    except FileError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise FileError(
            f"the checkpoint in {folder} is of another version or training: {what}. Train anew with overwrite=True"
        ) from error


def begun(folder: Path, told: dict[str, Any]) -> dict[str, Any] | None:
    """What there is of a run to go on with: None, `{"finished": True}`, or the state of its last good checkpoint.

    Args:
        folder: the run folder.
        told: what `fit` was told, JSON-able values by name; the run must have begun with the same.

    Raises:
        ArgumentError: naming what differs.
        FileError: the folder holds a run but no checkpoint that is whole.
    """
    found = Checkpoints(folder / "checkpoints").latest()  # which a finished run has no more
    if found is not None:
        with blaming_checkpoint(folder):
            before = dict(found[1]["told"])
        check_same(before, told, folder)
        return found[1]
    if not (folder / "config.json").exists():
        return None
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("status") != "finished":
        text = "holds a run that has not finished, and no checkpoint of it: train anew with overwrite=True"
        raise FileError(f"{folder} {text}")
    provenance = read_json(folder / "provenance.json")
    before = {key: config.get(key) for key in ("model", "defense", "data", "options") if config.get(key) is not None}
    if isinstance(provenance, dict):
        before |= {key: provenance[key] for key in KNOWN_BY if key in provenance}
    check_same(before, told, folder)
    return {"finished": True}


def check_same(
    before: dict[str, Any], now: dict[str, Any], folder: Path,
    hint: str = "to resume it, tell fit the same; or train anew with overwrite=True",
) -> None:  # fmt: skip
    """Refuse to go on with a training under another name.

    Args:
        before: what the run began with.
        now: what this one was told; what `before` does not have is not compared.
        folder: of the run, for the message.
        hint: what to do where they differ.

    Raises:
        ArgumentError: naming the first difference.
    """
    before, now = (json.loads(json.dumps(each, default=repr)) for each in (before, now))
    for part, old in before.items():
        new = now.get(part)
        pairs = {part: (old, new)}
        if isinstance(old, dict) and isinstance(new, dict) and old.keys() & new.keys():
            pairs = {key: (value, new.get(key)) for key, value in old.items()}
        for name, (theirs, ours) in pairs.items():
            if theirs != ours:
                accepted = f"what the run in {folder} began with, {shown(theirs)}"
                bad(name, ours, accepted, hint)


def fingerprint(images: Split, looked_at: int = 256) -> str:
    """A short name for images and labels, by which others are noticed: all labels count, and a sample of the images.

    Args:
        images: those to train on.
        looked_at: how many of them to read; a set may be larger than the memory.
    """
    found = hashlib.sha256(f"{tuple(images.shape)} {images.dtype}".encode())
    found.update(images.y.cpu().contiguous().numpy().data)
    places = torch.linspace(0, len(images) - 1, min(looked_at, len(images))).long()
    found.update(images[places].x.cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def check_resume(resume: bool, every: int | None, out: Any, overwrite: bool) -> None:
    """Refuse to resume, or to write checkpoints, where there is no folder; and to resume what is to be replaced."""
    check_flag("resume", resume)
    check_flag("overwrite", overwrite)
    if out is not None:
        check_path("out", out, "folder")
    if resume and overwrite:
        bad("resume", resume, "possible with overwrite=True", "to go on, or to begin anew: choose one")
    for name, value in (("resume", resume), ("checkpoint_every", every)):
        if value and out is None:
            bad(name, value, "possible without a folder", "name one: out='runs/x'")
