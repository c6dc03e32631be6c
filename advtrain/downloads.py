"""Files from other people's servers: by https alone, also where a server sends on to another address.

A file has the size and the checksum that are known beforehand, or it is refused, and nothing of it stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .errors import FileError
from .files import atomic
from .progress import progress_bar

TIMEOUT = 30.0
"""Seconds without a byte, after which a server is given up."""

SLOWEST, PATIENCE = 10_000, 60
"""Bytes a second: a server that is slower than that on the whole is given up; so many seconds it has beside."""

CHUNK = 2**16


class _Refused(Exception):
    """A download that failed, or that brought something else, and why."""


@dataclass(frozen=True)
class Remote:
    """A file on somebody's server.

    Args:
        url: where, by https.
        size: how many bytes it has.
        checksum: of its content, in hexadecimal digits: SHA-256, or MD5 where no more is known.
    """

    url: str
    size: int
    checksum: str

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.url.rpartition("/")[2]


def download(remote: Remote, path: Path, *, advice: str = "", progress: bool | None = None) -> Path:
    """Fetch a file and check it; it takes its name when it is whole.

    Args:
        remote: where it is, and what it must be.
        path: where it goes.
        advice: the end of the message, if it fails: what else to do.
        progress: show a bar; by default only in a terminal or a notebook.

    Returns:
        `path`.

    Raises:
        FileError: no https, no connection, another content than is known; or it cannot be written.
    """
    try:
        _download(remote, path, progress)
    except _Refused as error:
        raise FileError(f"cannot download {remote.name}: {error}. {advice}".rstrip()) from error
    return path


def _download(remote: Remote, path: Path, progress: bool | None) -> None:
    long = len(remote.checksum) == 64
    name, found = ("SHA-256", hashlib.sha256()) if long else ("MD5", hashlib.md5(usedforsecurity=False))
    with (
        _opened(remote.url) as answer,
        atomic(path) as partial,
        open(partial, "wb") as file,
        progress_bar(progress, desc=remote.name, total=remote.size, unit="B", unit_scale=True) as bar,
    ):
        told = answer.headers.get("Content-Length", str(remote.size))
        if told != str(remote.size):
            raise _Refused(f"{remote.url} has {told} bytes and not {remote.size:,}: it is another file by now")
        got, latest = 0, time.monotonic() + PATIENCE + remote.size / SLOWEST
        while part := _read(answer, remote.url):
            got += len(part)
            if got > remote.size:
                raise _Refused(f"{remote.url} sends more than the {remote.size:,} bytes that it has")
            if time.monotonic() > latest:
                raise _Refused(f"{remote.url} is slower than {SLOWEST / 1000:g} kB a second")
            found.update(part)
            file.write(part)
            bar.update(len(part))
        if got < remote.size:
            raise _Refused(f"{remote.url} ended after {got:,} of {remote.size:,} bytes")
        if found.hexdigest() != remote.checksum:
            raise _Refused(
                f"{remote.url} has the {name} {found.hexdigest()} and not {remote.checksum}: it is another file by "
                "now, or was changed on its way"
            )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a server that sends on to another address, as long as that is one of https."""

    def redirect_request(self, request: Any, file: Any, code: int, message: str, headers: Any, new: str) -> Any:
        if urlsplit(new).scheme != "https":
            file.close()
            raise _Refused(f"{request.full_url} sends on to {new}, which is not https")
        return super().redirect_request(request, file, code, message, headers, new)


def opener() -> urllib.request.OpenerDirector:
    """What opens addresses of https, through a proxy where the environment names one, and no others."""
    made = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(), urllib.request.UnknownHandler(), urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(), urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        _Redirects(),
    ):  # fmt: skip
        made.add_handler(handler)
    return made


@contextlib.contextmanager
def _opened(url: str) -> Iterator[Any]:
    if urlsplit(url).scheme != "https":
        raise _Refused(f"{url} is not an address of https")
    # As it is: a body that is packed on its way would have another size.
    request = urllib.request.Request(url, headers={"User-Agent": "advtrain", "Accept-Encoding": "identity"})
    try:
        answer = opener().open(request, timeout=TIMEOUT)
    except _Refused:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is an answer as well
        raise _Refused(f"{url} does not answer: {_cause(error)}") from error
    with contextlib.closing(answer):
        yield answer


def _read(answer: Any, url: str) -> bytes:
    """The next bytes, as they come in."""
    try:
        part: bytes = answer.read1(CHUNK)
        return part
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Refused(f"{url} broke off: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) and not hasattr(error, "code") else error
    return " ".join(str(reason).split()) or type(error).__name__
