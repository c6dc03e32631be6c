"""Files that are either whole or not there: write beside, then rename."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import FileError


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes `path`'s place, on any error it vanishes.

    A reader sees the old file or the new one, never half of either, also when the process is killed.

    Raises:
        FileError: the folder cannot be made or written to, or the disk is full.
    """
    path = Path(path)
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
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as readable JSON, atomically. NaN and infinity are refused: they are not JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        FileError: it is missing, unreadable or damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FileError(f"{path} cannot be read as JSON: {error}") from error


def check_writable(folder: str | os.PathLike, *, holding: str, overwrite: bool) -> None:
    """Refuse, before hours of work, a folder that could not be written to or that holds earlier results.

    Args:
        folder: where results shall go; made if missing.
        holding: the name of the file by which earlier results are known.
        overwrite: earlier results may be replaced. They stay until the new ones are written.

    Raises:
        FileError: it cannot be written to, or it holds earlier results.
    """
    folder = Path(folder)
    if (folder / holding).exists() and not overwrite:
        raise FileError(
            f"{folder} already holds a {holding} of an earlier run; choose another folder, or pass overwrite=True "
            "(--overwrite)"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FileError(
            f"cannot write to {folder}: {error.strerror or error}; choose a folder you may write to"
        ) from error


def digest_of(value: Any) -> str:
    """SHA-256 of JSON-able values, whatever the order of their keys, as 64 hexadecimal digits.

    Args:
        value: dicts, lists, texts, finite numbers.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
