"""What is packed in archives: nothing is written outside the folder that they are unpacked into, nothing half-done."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import FileError, words_of
from .files import atomic

MOST = 4 * 2**30
"""Bytes that an archive may hold, unpacked; the largest that is fetched here holds half a GiB."""

MEMBERS = 500_000
"""Files that an archive may hold; the largest that is fetched here holds 120,000."""

CHUNK = 2**16
DAMAGED = (OSError, EOFError, MemoryError, ValueError, RuntimeError, KeyError, OverflowError, struct.error, zlib.error,
           lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)  # fmt: skip
"""What the readers of archives raise when these are damaged."""


class _Large(Exception):
    """More than is allowed."""


def unpack(archive: Path, folder: Path, *, most: int = MOST) -> None:
    """Unpack a zip or tar file into a folder that is not there yet: all of it, or nothing.

    Args:
        archive: the file; what it is, its content says.
        folder: is made.
        most: how many bytes it may hold.

    Raises:
        FileError: a member that would be written outside the folder, a link or a device, more than `most` bytes, or a
            damaged file. The message names the member.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        place = Path(scratch) / "unpacked"
        place.mkdir()
        try:
            (_unzip if zipfile.is_zipfile(archive) else _untar)(archive, place, most)
            os.replace(place, folder)
        except FileError:
            raise
        except DAMAGED as error:
            raise FileError(f"{archive} cannot be unpacked: {words_of(error)}") from error


def _unzip(archive: Path, place: Path, most: int) -> None:
    with zipfile.ZipFile(archive) as packed:
        entries = packed.infolist()
        for entry in entries:
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise FileError(f"{archive} holds {entry.orig_filename!r}, a link or a device: it is not unpacked")
        # Not `entry.is_dir()`, which fails on a member without a name.
        members = [(e.orig_filename, e.file_size, e.orig_filename.endswith("/"), e) for e in entries]
        _write(archive, place, most, members, packed.open)


def _untar(archive: Path, place: Path, most: int) -> None:
    with tarfile.open(archive) as packed:
        members, held = [], 0
        for entry in packed:
            if not (entry.isreg() or entry.isdir()) or entry.issparse():
                raise FileError(f"{archive} holds {entry.name!r}, a link or a device: it is not unpacked")
            members.append((entry.name, entry.size, entry.isdir(), entry))
            _check_total(archive, len(members), held := held + entry.size, most)  # to list it is to unpack it
        _write(archive, place, most, members, packed.extractfile)


def _check_total(archive: Path, count: int, held: int, most: int) -> None:
    if count > MEMBERS or held > most:
        raise FileError(f"{archive} holds {count:,} files of {held:,} bytes or more: it is not unpacked")


def _write(archive: Path, place: Path, most: int, members: list[Any], content: Callable[[Any], Any]) -> None:
    """Write members, each a name, a size, whether it is a folder, and what `content` opens, after a look at all."""
    _check_total(archive, len(members), sum(size for _, size, _, _ in members), most)
    members = [each for each in members if not (each[2] and not PurePosixPath(each[0]).parts)]  # the folder itself, "."
    for name, *_ in members:
        parts = PurePosixPath(name).parts
        # Windows reads "x:", "\\", and ".. " like "..": what ends in dots or spaces is refused everywhere.
        odd = any(part[-1] in ". " for part in parts) or re.search(r"[\\:\x00-\x1f]", name)
        if not parts or name.startswith("/") or odd:
            raise FileError(f"{archive} holds {name!r}, which leads out of its folder: it is not unpacked")
    for name, size, is_folder, entry in members:
        path = place / name
        (path if is_folder else path.parent).mkdir(parents=True, exist_ok=True)
        if not is_folder:
            with content(entry) as source, open(path, "xb") as file:
                _copy(source, file, size)


def _copy(source: Any, file: Any, most: int) -> int:
    """Copy, and stop one byte behind `most`: how many bytes there were."""
    copied = 0
    while copied <= most and (part := source.read(min(CHUNK, most + 1 - copied))):
        file.write(part)
        copied += len(part)
    return copied


def gunzip(archive: Path, path: Path, *, most: int = MOST) -> None:
    """Unpack a gzip file, all of it or nothing.

    Args:
        archive: the file.
        path: where its content goes.
        most: how many bytes it may hold.

    Raises:
        FileError: more than that, or a damaged file.
    """
    try:
        with atomic(path) as partial, open(partial, "wb") as file, gzip.open(archive) as source:
            try:
                if _copy(source, file, most) > most:
                    raise _Large
            except gzip.BadGzipFile as error:  # an OSError, which `atomic` would take for one of writing
                raise EOFError(str(error)) from error
    except _Large:
        raise FileError(f"{archive} holds more than {most:,} bytes: it is not unpacked") from None
    except (EOFError, zlib.error) as error:
        raise FileError(f"{archive} cannot be unpacked: {error}") from error


def put(path: Path, root: Path, folder: str) -> None:
    """Put what was downloaded below `root`, unpacked: an archive as it is, a gzip file into `folder`.

    Args:
        path: of the download.
        root: is made; for an archive it must not be there yet.
        folder: below `root`, of the content of gzip files.

    Raises:
        FileError: see `unpack`.
    """
    if path.name.endswith((".zip", ".tar.gz")):
        unpack(path, root)
    elif path.suffix == ".gz":
        gunzip(path, root / folder / path.stem)
    else:
        root.mkdir(parents=True, exist_ok=True)
        shutil.move(path, root / path.name)
