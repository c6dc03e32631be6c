"""The results files that travel with the package: those of the book, found by name."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import FileError, check_path

PACKAGE = Path(__file__).resolve().parents[1]
FOLDERS = (PACKAGE / "recorded", PACKAGE.parent / "book" / "results")  # as installed; in a checkout


def recorded(name: str) -> Path:
    """The file of recorded results of that name, which comes with the package.

    >>> recorded("digits").name
    'digits.json'

    Args:
        name: the file's name without its ending. `load_results` takes it as well; this is for files of another
            format, such as `"autoattack-oracle"`.

    Raises:
        FileError: nothing is recorded under that name; the message lists what is.
    """
    files = {file.stem: file for folder in reversed(FOLDERS) for file in sorted(folder.glob("*.json"))}
    if name not in files:
        raise FileError(
            f"nothing is recorded under the name {name!r}; recorded are {', '.join(files) or 'no results at all'}. "
            "A file of your own is found by its path, with the ending"
        )
    return files[name]


def locate(path: str | os.PathLike[str]) -> Path:
    """The file that `path` means: itself, or if it is a bare name, the recorded file of that name."""
    file = check_path("path", path, "results file")
    bare = not file.suffix and file.name == os.fspath(path) and not file.exists()
    return recorded(file.name) if bare else file
