"""Where data sets come from: the package, a file or folder, what torchvision keeps, or their authors' servers."""

from __future__ import annotations

import importlib
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .archives import put
from .data_folders import read_folder
from .data_known import ARRAYS, SOURCES
from .data_rows import LIMIT
from .downloads import download as fetch_file
from .errors import FileError, bad, check_path, one_of, words_of
from .files import atomic

MORE = ("x_val", "y_val", "classes")
"""Arrays that a file may hold beside `ARRAYS`."""

GROWTH = 100
"""How many times its size an archive of more than `LIMIT` bytes may unfold to: images hardly pack to a tenth."""


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the data sets.

    Args:
        root: that folder; else `$ADVTRAIN_DATA`, else `advtrain` in the user's cache folder.

    Raises:
        FileError: it is a file.
    """
    if root is not None:
        check_path("root", root, "folder")
    cache = os.environ.get("XDG_CACHE_HOME")
    usual = (Path(cache) if cache else Path.home() / ".cache") / "advtrain"
    folder = Path(root or os.environ.get("ADVTRAIN_DATA") or usual).expanduser()
    if os.path.exists(folder) and not os.path.isdir(folder):
        what = "ADVTRAIN_DATA" if root is None else "root"
        raise FileError(f"{what}={str(folder)!r} is a file: name the folder that holds the data sets")
    return folder


def data_names(root: str | os.PathLike[str] | None = None) -> list[str]:
    """The known names, then those of the other .npz files in the data folder.

    Args:
        root: the data folder, see `data_root`.
    """
    folder = data_root(root)
    own = sorted(path.stem for path in folder.glob("*.npz")) if os.path.isdir(folder) else []
    return [*SOURCES, *(name for name in own if name not in SOURCES)]


def locate(name: str | os.PathLike[str], root: str | os.PathLike[str] | None = None, download: bool = False) -> Path:
    """The file or folder that holds a set.

    Args:
        name: a data set's name, or the path of an .npz file, of a folder of images or of .npy files; a `pathlib.Path`
            is a path.
        root: the data folder, see `data_root`.
        download: fetch it if it is missing.

    Raises:
        ArgumentError: a name that is neither known nor a file in the data folder.
        FileError: the set is not here.
    """
    if not isinstance(name, (str, os.PathLike)):
        accepted = "the name of a data set, or the path of an .npz file or a folder of images"
        bad("name", name, accepted, "for images in memory: as_dataset")
    is_path, name, folder = isinstance(name, os.PathLike), os.fspath(name), data_root(root)
    if is_path or name.endswith(".npz") or os.sep in name or "/" in name:
        path = Path(name).expanduser()
        if not (os.path.isfile(path) or os.path.isdir(path)):
            hint = f"the set of that name is {name!r}" if name in SOURCES else "is it elsewhere, or spelled otherwise?"
            raise FileError(f"{name} does not exist: {hint}")
        return path
    if name == "digits":
        return Path(__file__).parent / "digits.npz"
    if os.path.isfile(path := folder / f"{name}.npz"):
        return path
    if name and name not in SOURCES and os.path.isdir(name):
        bad("name", name, f"one of {', '.join(data_names(root))}", f"for the folder of that name, write './{name}'")
    one_of("name", name, data_names(root))
    source = SOURCES[name]
    if os.path.exists(folder / source.folder):
        return folder / source.folder
    if download:
        return fetch(name, root)
    raise FileError(
        f"{name} is not in {folder}: run `advtrain data fetch {name}`, or load_data({name!r}, download=True), or name "
        "the folder that holds it with ADVTRAIN_DATA or root"
    )


def fetch(name: str, root: str | os.PathLike[str] | None = None, *, progress: bool | None = None) -> Path:
    """Download a set from its authors, check it, and keep it as `<root>/<name>.npz`.

    It comes by https, and every file must have the size and the checksum that are known of it. A set that is already
    there is left as it is. An interrupted download leaves nothing behind.

    Args:
        name: a known set other than the packaged digits.
        root: the data folder, see `data_root`.
        progress: show a bar for each file; by default only in a terminal or a notebook.

    Returns:
        The file.

    Raises:
        ArgumentError: no set of this name can be fetched.
        FileError: no connection, a damaged download, or a folder that cannot be written to.
    """
    one_of("name", name, [known for known, source in SOURCES.items() if source.files])
    folder, source = data_root(root), SOURCES[name]
    path = folder / f"{name}.npz"
    if path.is_file():
        return path
    _check_reader(name)  # before anything is downloaded in vain
    advice = (
        f"Check the connection and try again, or put {name}.npz, made elsewhere by `advtrain data fetch {name}`, or "
        f"{source.folder}, as its authors or torchvision have it, into the data folder (ADVTRAIN_DATA or root)"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as scratch:
            files = Path(scratch) / "files"
            for remote in source.files:
                put(fetch_file(remote, Path(scratch) / remote.name, advice=advice, progress=progress),
                    files, source.folder)  # fmt: skip
            arrays: dict[str, Any] = dict(read_original(name, files))
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"cannot write to {folder}: {error.strerror or error}; name another folder with root or "
                        "ADVTRAIN_DATA") from error  # fmt: skip
    with atomic(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)
    return path


def _check_reader(name: str) -> None:
    """Refuse a set whose files need a package that is not there."""
    try:
        if needed := SOURCES[name].needs:
            importlib.import_module(needed)
    except ImportError as error:
        package = (error.name or needed or "").partition(".")[0]
        raise FileError(f"{name} needs {package} to be read: pip install {package}") from error


def read_original(name: str, root: str | os.PathLike[str]) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a known set from the files of its authors below `root`.

    Raises:
        FileError: files are missing or damaged, or a package is missing that reads them.
    """
    source = SOURCES[name]
    _check_reader(name)
    try:
        return (source.read or source.from_torchvision)(Path(root))
    except Exception as error:  # the readers of damaged files raise anything
        raise FileError(f"{Path(root) / source.folder} is incomplete or damaged: {words_of(error)}. Delete it and run "
                        f"`advtrain data fetch {name}`") from error  # fmt: skip


def read_npz(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an .npz file: `x_train`, `y_train`, and what it has of those for `test`, `val`, and `classes`.

    Nothing is unpickled.

    Raises:
        FileError: not an .npz file, damaged, or without the arrays.
    """
    try:
        # Opened here: numpy leaves the file open when it is no archive.
        with open(path, "rb") as handle:
            _check_archive(handle)
            file = np.load(handle, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise ValueError("it holds a single array, as .npy files do")
            arrays = {key: file[key] for key in (*ARRAYS, *MORE) if key in file.files}
            found = file.files
            _check_arrays(arrays)
            if huge := [
                key for key, value in arrays.items() if not value.nbytes and max(value.shape, default=0) > LIMIT
            ]:
                raise ValueError(f"{huge[0]} has the shape {arrays[huge[0]].shape} and holds nothing")
    except Exception as error:  # a damaged file can raise anything, and one of enormous arrays a MemoryError
        raise FileError(
            f"{path} cannot be read as .npz: {_why(error)}; np.savez(FILE, x_train=x, y_train=y) makes one"
        ) from error
    return _complete(arrays, found, path)


def _check_arrays(arrays: dict[str, Any]) -> None:
    if strange := [key for key, value in arrays.items() if not isinstance(value, np.ndarray)]:
        raise ValueError(f"{strange[0]} is no array")


def _why(error: Exception) -> str:
    """What NumPy says, unless it tells how to run code that is in the file."""
    kind = "it is another kind of file, or holds objects, of which only numbers and text are read"
    return kind if "pickle" in (words := words_of(error)) else words


def read_mapped(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an .npz file that was unpacked into a folder, `x_train.npy` and so on: images stay in their files.

    Raises:
        FileError: damaged, or without the arrays.
    """
    arrays, found = {}, sorted(path.stem for path in folder.glob("*.npy"))
    for key in (key for key in (*ARRAYS, *MORE) if key in found):
        path = folder / f"{key}.npy"
        try:
            arrays[key] = np.load(path, mmap_mode="r" if key.startswith("x_") else None, allow_pickle=False)
            _check_arrays(arrays)
        except Exception as error:
            raise FileError(f"{path} cannot be read as .npy: {_why(error)}") from error
    return _complete(arrays, found, folder)


def _complete(arrays: dict[str, np.ndarray[Any, Any]], found: list[str], path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays, if those that belong together are all there."""
    wanted = [*ARRAYS[:2], *(key for pair in (ARRAYS[2:], MORE[:2]) for key in pair if {*pair} & arrays.keys())]
    if missing := [key for key in wanted if key not in arrays]:
        raise FileError(f"{path} holds {', '.join(found) or 'nothing'} and lacks {', '.join(missing)}; wanted are "
                        "x_train, y_train, x_test, y_test and, if you like, x_val, y_val, classes")  # fmt: skip
    return arrays


def _check_archive(handle: Any) -> None:
    """Refuse an archive whose checksums do not hold, or that would fill the memory."""
    if zipfile.is_zipfile(handle):
        with zipfile.ZipFile(handle) as packed:
            unfolded, size = sum(entry.file_size for entry in packed.infolist()), handle.seek(0, os.SEEK_END)
            if unfolded > max(LIMIT, GROWTH * size):
                raise ValueError(f"it unfolds from {size:,} bytes to {unfolded:,}")
            # numpy looks at the checksum only if it reads to the end, which a smaller shape keeps it from
            if (damaged := packed.testzip()) is not None:
                raise ValueError(f"the checksum of {damaged} does not hold")
    handle.seek(0)


def read(path: Path, name: str, size: int | None = None) -> dict[str, Any]:
    """The arrays at `path`, which `locate` found for `name`; `size` is that of the images of a folder of one's own.

    Raises:
        ArgumentError: a size for a set whose images have one.
    """
    known = name in SOURCES
    mapped = not known and any((path / f"{key}.npy").is_file() for key in ARRAYS)
    if size is not None and (known or mapped or path.is_file()):
        bad("size", size, f"an option for {name}", "only the images of a folder are scaled; here leave it out")
    if path.suffix == ".npz" and path.is_file():
        return read_npz(path)
    if not known:
        return read_mapped(path) if mapped else read_folder(path, size)
    return read_original(name, path.parents[SOURCES[name].folder.count("/")])
