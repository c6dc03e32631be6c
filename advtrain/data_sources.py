"""Where data sets come from: the package, an .npz file, a torchvision folder, or their authors' servers."""

from __future__ import annotations

import http.client
import os
import tarfile
import tempfile
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError, FileError, bad, one_of
from .files import atomic

ARRAYS = ("x_train", "y_train", "x_test", "y_test")

UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, AttributeError, EOFError, zlib.error, tarfile.TarError,
              zipfile.BadZipFile, http.client.HTTPException)  # fmt: skip
"""What the readers of files and servers raise when these are damaged, cut short, or something else."""


@dataclass(frozen=True)
class Source:
    """A data set known by name.

    Args:
        summary: one line for `advtrain list`.
        torchvision: its class in `torchvision.datasets`, `None` for the one in the package.
        folder: where that class keeps its files, below the root.
        augment: whether the literature trains on it with random crops and flips.
        classes: names of the classes, where the sources disagree.
        digests: SHA-256 of the arrays of `ARRAYS` in hash order (x as uint8 (N, H, W, C), y as little-endian int64).
    """

    summary: str
    torchvision: str | None = None
    folder: str = ""
    augment: bool = False
    classes: tuple[str, ...] | None = None
    digests: dict[str, str] | None = field(default=None, repr=False)


def _digests(*values: str) -> dict[str, str]:
    return dict(zip(ARRAYS, values, strict=True))


SOURCES: dict[str, Source] = {
    "digits": Source(
        "1,797 handwritten digits, 8x8, in the package",
        digests=_digests(
            "ae782d8a2690b9c434a7ff17c0a0eb7d3c8459384c1a63be9a055172b697f3f6",
            "b1b2b16dfbe6880288f5d288d6daa41d3e42b6799e23eb5b2a2a31713bc1ae77",
            "26bfe585b899bb2025cbd8391e0ae137d93e28f3ab8a48e0da335af815b84c25",
            "c2e37cb4d9b1877d40f182cbccf573f5740e484b67e321fa6a11a325e3d1f65b",
        ),
    ),
    "mnist": Source(
        "70,000 handwritten digits, 28x28 (LeCun et al., 1998)",
        "MNIST",
        "MNIST/raw",
        classes=tuple("0123456789"),
        digests=_digests(
            "f90a0ce73f8499a575989ad98a465320ad6b5e0ef2ff9fc1ebd17688e1bcc399",
            "850191a597db8afbd873af2689b51dac711a0e497a0ab1f83ed9235a3a4910c1",
            "3d6ce811fd2717370a0ef2557ce6e94d5f0d8e65a38651df153a4b6c86afe44a",
            "71f4464187a019ec0a6bcf405e0579782d941b9771b8f63b695d5df5c6104afd",
        ),
    ),
    "fashion-mnist": Source(
        "70,000 articles of clothing, 28x28 (Xiao et al., 2017)",
        "FashionMNIST",
        "FashionMNIST/raw",  # no digests: only the checksums of the download vouch for it
    ),
    "cifar10": Source(
        "60,000 photographs in 10 classes, 32x32 RGB (Krizhevsky, 2009)",
        "CIFAR10",
        "cifar-10-batches-py",
        augment=True,
        digests=_digests(
            "32b25bb65187cdb40e66b2bd4dbb2de04f62e2d521f74c46a56f39f2afb56e96",
            "f3310f288709b1d5f937ec6391f8e11244120dd5a1fd06df837d6d567a82aa1b",
            "27f7d008727f5b9a8f5b01f61503d2f52d3ba7f5ffb2c331b5b82775de2e2d72",
            "2208c2a7b2bea6724e7ab2fbc32a356589a8a5fb533ef97043ecbe6323d7d135",
        ),
    ),
    "cifar100": Source(
        "60,000 photographs in 100 classes, 32x32 RGB (Krizhevsky, 2009)",
        "CIFAR100",
        "cifar-100-python",
        augment=True,
        digests=_digests(
            "314214c52cf8821c3fd95fc3391792a3b938be3130d8a6fa1472491c1bf41022",
            "a30e0768231ae216e859a419e3579369b7400ee7c74d0f321da474d454ae3b67",
            "3649f267eb9a14c4acea5df2e2b437abe44b7a6b67c2ffd653ebea273d00305e",
            "3f74f2ccc3ec6fc2b565d8e392eb6aecdecf57b6b733caf93143772d52d8f745",
        ),
    ),
}
"""Data sets by name. Any other `NAME.npz` in the data folder is one, too."""


def data_root(root: str | os.PathLike | None = None) -> Path:
    """The folder of the data sets.

    Args:
        root: that folder; else `$ADVTRAIN_DATA`, else `advtrain` in the user's cache folder.
    """
    if root is not None:
        return Path(root).expanduser()
    if named := os.environ.get("ADVTRAIN_DATA"):
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "advtrain"


def data_names(root: str | os.PathLike | None = None) -> list[str]:
    """The known names, then those of the other .npz files in the data folder.

    Args:
        root: the data folder, see `data_root`.
    """
    folder = data_root(root)
    own = sorted(path.stem for path in folder.glob("*.npz")) if folder.is_dir() else []
    return [*SOURCES, *(name for name in own if name not in SOURCES)]


def locate(name: str | os.PathLike, root: str | os.PathLike | None = None, download: bool = False) -> Path:
    """The file or folder that holds a set.

    Args:
        name: a data set's name, or the path of an .npz file.
        root: the data folder, see `data_root`.
        download: fetch it if it is missing.

    Raises:
        ArgumentError: a name that is neither known nor a file in the data folder.
        FileError: the set is not here.
    """
    if not isinstance(name, (str, os.PathLike)):
        bad("name", name, "the name of a data set or the path of an .npz file", "for your own images: as_dataset")
    name, folder = os.fspath(name), data_root(root)
    if name.endswith(".npz") or os.sep in name:
        if not Path(name).expanduser().is_file():
            raise FileError(f"{name} does not exist")
        return Path(name).expanduser()
    if name == "digits":
        return Path(__file__).parent / "digits.npz"
    if (path := folder / f"{name}.npz").is_file():
        return path
    one_of("name", name, data_names(root))
    source = SOURCES[name]
    if (folder / source.folder).is_dir():
        return folder / source.folder
    if download:
        return fetch(name, root)
    raise FileError(
        f"{name} is not in {folder}: run `advtrain data fetch {name}`, or load_data({name!r}, download=True), or name "
        "the folder that holds it with ADVTRAIN_DATA or root"
    )


def fetch(name: str, root: str | os.PathLike | None = None) -> Path:
    """Download a set from its authors through torchvision, which checks it, and keep it as `<root>/<name>.npz`.

    A set that is already there is left as it is. An interrupted download leaves nothing behind.

    Args:
        name: a known set other than the packaged digits.
        root: the data folder, see `data_root`.

    Returns:
        The file.

    Raises:
        ArgumentError: no set of this name can be fetched.
        FileError: no connection, a damaged download, or a folder that cannot be written to.
    """
    one_of("name", name, [known for known, source in SOURCES.items() if source.torchvision])
    folder = data_root(root)
    path = folder / f"{name}.npz"
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as scratch:
            arrays = read_torchvision(name, scratch, download=True)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"cannot write to {folder}: {error.strerror or error}; name another folder with root or "
                        "ADVTRAIN_DATA") from error  # fmt: skip
    with atomic(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)
    return path


def read_torchvision(name: str, root: str | os.PathLike, download: bool = False) -> dict[str, np.ndarray]:
    """The arrays of a known set from the files that torchvision keeps below `root`.

    Raises:
        FileError: files are missing or damaged, or the download fails.
    """
    from torchvision import datasets  # a second of import time that nobody should pay for the digits

    source = SOURCES[name]
    try:
        load = getattr(datasets, source.torchvision)
        parts = [load(root, train=train, download=download) for train in (True, False)]
    except UNREADABLE as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        if not download:
            raise FileError(f"{Path(root) / source.folder} is incomplete or damaged: {cause}. Delete it and run "
                            f"`advtrain data fetch {name}`") from error  # fmt: skip
        raise FileError(
            f"cannot download {name}: {cause}. Check the connection and try again, or put {name}.npz, made elsewhere "
            f"by `advtrain data fetch {name}`, into the data folder (ADVTRAIN_DATA or root)"
        ) from error
    arrays = {"classes": np.array(source.classes or parts[0].classes)}
    for kind, part in zip(("train", "test"), parts, strict=True):
        arrays[f"x_{kind}"] = np.asarray(part.data)
        arrays[f"y_{kind}"] = np.asarray(part.targets, dtype=np.int64)
    return arrays


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file: x_train and y_train, and if there x_test and y_test, classes. Nothing is unpickled.

    Raises:
        FileError: not an .npz file, damaged, or without the arrays.
    """
    try:
        # Opened here: numpy leaves the file open when it is no archive.
        with open(path, "rb") as handle:
            file = np.load(handle, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise ValueError("it holds a single array, as .npy files do")
            arrays = {key: file[key] for key in (*ARRAYS, "classes") if key in file.files}
            found = file.files
    except UNREADABLE as error:
        raise FileError(f"{path} cannot be read as .npz: {' '.join(str(error).split())}") from error
    wanted = ARRAYS if "x_test" in arrays or "y_test" in arrays else ARRAYS[:2]
    if missing := [key for key in wanted if key not in arrays]:
        raise FileError(f"{path} holds {', '.join(found) or 'nothing'} and lacks {', '.join(missing)}; wanted are "
                        "x_train, y_train, x_test, y_test and, if you like, classes")  # fmt: skip
    return arrays


def channels_first(x: np.ndarray, name: str) -> np.ndarray:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) as a view (N, C, H, W); channels are fewer than rows and columns.

    Raises:
        DataError: neither, or both.
    """
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[1] < min(x.shape[2:]):
        return x
    if x.ndim == 4 and x.shape[3] < min(x.shape[1:3]):
        return x.transpose(0, 3, 1, 2)
    hint = "a torch tensor is always read as (N, C, H, W)" if x.ndim == 4 else ""
    return bad(f"{name}.shape", x.shape, "(N, C, H, W), (N, H, W, C) or (N, H, W) beyond doubt", hint, kind=DataError)


def read(path: Path, name: str) -> dict[str, Any]:
    """The arrays at `path`, which `locate` found."""
    return read_npz(path) if path.is_file() else read_torchvision(name, path.parents[SOURCES[name].folder.count("/")])
