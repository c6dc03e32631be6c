"""Files that are either whole or not there: write beside, then rename."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import FileError, check_path

RUN_FILES = ("config.json", "history.json", "provenance.json", "model.safetensors", ".lock")
"""What a run folder consists of, beside checkpoints; nothing else is written under these names in it."""


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes `path`'s place, on any error it vanishes.

    A reader sees the old file or the new one, never half of either, also when the process is killed.

    Raises:
        FileError: the folder cannot be made or written to, or the disk is full.
    """
    path = Path(os.path.expanduser(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        os.close(handle)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}; choose a folder you may write to") from error
    partial = Path(name)
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], *, stale: float = 60) -> Iterator[None]:
    """Let one process at a time read a file and write it anew: the others wait for the end of the block.

    The lock is a file beside `path`, created only where there is none. Blocks take a fraction of a second, so a lock
    that is older than `stale` seconds was left by a process that is gone, and is removed.

    Args:
        path: the file that is guarded.
        stale: seconds after which a lock is no longer believed.

    Raises:
        FileError: the folder cannot be made or written to.
    """
    path = Path(os.path.expanduser(path))
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                break
            except FileExistsError:
                with contextlib.suppress(FileNotFoundError):  # it went away meanwhile
                    if abs(time.time() - lock.stat().st_mtime) > stale:
                        lock.unlink()
                time.sleep(0.02)
    except OSError as error:
        raise FileError(f"cannot write {lock}: {error.strerror or error}; choose a folder you may write to") from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Let the new name of a file outlast a power cut, where folders can be written through."""
    with contextlib.suppress(OSError, AttributeError):  # Windows has no such flag
        handle = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as readable JSON, atomically. NaN and infinity are refused: they are not JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        FileError: it is missing, unreadable, damaged, or nested too deeply.
    """
    try:
        return json.loads(Path(os.path.expanduser(path)).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist") from error
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # of which UnicodeError and JSONDecodeError are ValueErrors
        raise FileError(f"{path} cannot be read as JSON: {error}; it is damaged, or another kind of file") from error


def check_writable(folder: str | os.PathLike[str], *, holding: str, overwrite: bool) -> None:
    """Refuse, before hours of work, a folder that could not be written to or that holds earlier results.

    A folder that is missing is not made yet: whoever writes into it first does that.

    Args:
        folder: where results shall go.
        holding: the name of the file by which earlier results are known.
        overwrite: earlier results may be replaced. They stay until the new ones are written.

    Raises:
        FileError: it cannot be written to, or it holds earlier results.
    """
    folder = check_path("out", folder, "folder")
    if os.path.exists(folder / holding) and not overwrite:  # which never raises, as Path.exists may
        raise FileError(
            f"{folder} already holds a {holding} of an earlier run or export; choose another folder, or pass "
            "overwrite=True (--overwrite)"
        )
    if holding and os.path.isdir(folder / holding):
        raise FileError(f"cannot write {folder / holding}: it is a folder; choose another name")
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # of names that are too long it says so
            os.lstat(folder / (f".{holding}.12345678.partial" if holding else ""))  # as `atomic` writes it
        there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
        if not os.path.isdir(there):
            what = "it" if there == folder else there
            raise FileError(f"cannot write to {folder}: {what} is no folder; choose another one")
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(
            f"cannot write to {folder}: {error.strerror or error}; choose a folder you may write to"
        ) from error


def check_file(option: str, path: str | os.PathLike[str], *, overwrite: bool, run: Any = None) -> None:
    """Refuse, before hours of work, a file to write that is there already, cannot be written, or that a run needs.

    Args:
        option: by which it was named, such as `--out`.
        path: the file.
        overwrite: one that is there may be replaced, unless a run folder consists of it.
        run: a folder that is to hold a run, if there is one.

    Raises:
        FileError: naming the option.
    """
    path = check_path(option, path)
    in_run = run is not None and os.path.realpath(path.parent) == os.path.realpath(check_path("out", run, "folder"))
    if path.name.lower() in RUN_FILES and (in_run or os.path.exists(path.parent / "config.json")):
        raise FileError(f"{option} {path} is a file that the run in {path.parent} consists of: choose another name")
    if os.path.lexists(path) and not (overwrite or os.path.isdir(path)):
        raise FileError(f"{option} {path} is there already: choose another name, or pass --overwrite to replace it")
    check_writable(path.parent, holding=path.name, overwrite=True)


def check_free_of(folder: str | os.PathLike[str], name: str, what: str) -> None:
    """Refuse a folder that holds something of another kind, which would be mixed with what is to be written.

    Args:
        folder: where results shall go.
        name: the file by which the other kind is known.
        what: it is, in words.

    Raises:
        FileError: it is there.
    """
    if os.path.exists(check_path("out", folder, "folder") / name):
        raise FileError(f"{folder} holds {what}, as its {name} says: choose another folder")


def from_here(path: Path) -> Path:
    """A path as a person at work in the current folder would write it.

    Args:
        path: absolute, or as it was given.
    """
    with contextlib.suppress(ValueError, OSError):  # elsewhere, or there is no current folder any more
        return path.relative_to(Path.cwd())
    return path


def digest_of(value: Any) -> str:
    """SHA-256 of JSON-able values, whatever the order of their keys, as 64 hexadecimal digits.

    Args:
        value: dicts, lists, strings, finite numbers.

    Raises:
        ValueError, RecursionError: it is not such a value.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
