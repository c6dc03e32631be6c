"""The data sets that are known by name, and who vouches for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .data_folders import read_tiny_imagenet
from .downloads import Remote

ARRAYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Source:
    """A data set known by name.

    Args:
        summary: one line for `advtrain list`.
        torchvision: its class in `torchvision.datasets`, `None` where there is none.
        folder: where its files are kept, below the root; or one of them.
        size: the shape (C, H, W) of an image, the numbers of training and test images, and that of the classes.
        augment: whether the literature trains on it with random crops and flips.
        classes: names of the classes, where the sources disagree or give none.
        digests: SHA-256 of the arrays of `ARRAYS` in hash order (x as uint8 (N, H, W, C), y as little-endian int64);
            where it is not known, the checksums of `files` alone vouch for a set.
        needs: a module that its files are read with, and that nothing else here needs.
        read: reads what is kept below a root, where torchvision has no class.
        files: what is fetched: archives, or single files.
    """

    summary: str
    torchvision: str | None = None
    folder: str = ""
    size: tuple[tuple[int, int, int], tuple[int, int], int] | None = None
    augment: bool = False
    classes: tuple[str, ...] | None = None
    digests: dict[str, str] | None = field(default=None, repr=False)
    needs: str | None = None
    read: Callable[[Path], dict[str, np.ndarray[Any, Any]]] | None = field(default=None, repr=False)
    files: tuple[Remote, ...] = field(default=(), repr=False)

    def from_torchvision(self, root: Path) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays as torchvision reads them below `root`.

        Those of CIFAR are pickles, which may run code: torchvision reads only those with the MD5 of the authors' own.
        """
        from torchvision import datasets  # a second of import time that nobody should pay for the digits

        assert self.torchvision is not None  # nosec B101 # only those are read so
        load = getattr(datasets, self.torchvision)
        by_name = "split" in inspect.signature(load).parameters  # SVHN has three parts, the others two
        which = [{"split": "train"}, {"split": "test"}] if by_name else [{"train": True}, {"train": False}]
        parts = [load(root, **each) for each in which]
        arrays = {"classes": np.array(self.classes or parts[0].classes)}
        for kind, part in zip(("train", "test"), parts, strict=True):
            arrays[f"x_{kind}"] = np.asarray(part.data)
            arrays[f"y_{kind}"] = np.asarray(part.labels if by_name else part.targets, dtype=np.int64)
        return arrays


def _digests(*values: str) -> dict[str, str]:
    return dict(zip(ARRAYS, values, strict=True))


# The servers of the authors, or, where these know no https, the same files elsewhere. Sizes and SHA-256 are as in the
# tables of TensorFlow Datasets, Keras, and the prototypes of torchvision. Of Tiny-ImageNet only an MD5 is known.
_MNIST = {
    "train-images-idx3-ubyte.gz": (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    "train-labels-idx1-ubyte.gz": (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    "t10k-images-idx3-ubyte.gz": (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    "t10k-labels-idx1-ubyte.gz": (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
}
_FASHION = {
    "train-images-idx3-ubyte.gz": (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
    "train-labels-idx1-ubyte.gz": (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
    "t10k-images-idx3-ubyte.gz": (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
    "t10k-labels-idx1-ubyte.gz": (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
}
_CIFAR10 = {
    "cifar-10-python.tar.gz": (170_498_071, "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),
}
_CIFAR100 = {
    "cifar-100-python.tar.gz": (169_001_437, "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"),
}
_SVHN = {
    "train_32x32.mat": (182_040_794, "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
    "test_32x32.mat": (64_275_384, "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),
}
_TINY = {"tiny-imagenet-200.zip": (248_100_043, "90528d7ca1a48142e341f4ef8d21d0de")}


def _at(server: str, files: dict[str, tuple[int, str]]) -> tuple[Remote, ...]:
    return tuple(Remote(f"https://{server}/{name}", size, checksum) for name, (size, checksum) in files.items())


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
        size=((1, 28, 28), (60_000, 10_000), 10),
        classes=tuple("0123456789"),
        digests=_digests(
            "f90a0ce73f8499a575989ad98a465320ad6b5e0ef2ff9fc1ebd17688e1bcc399",
            "850191a597db8afbd873af2689b51dac711a0e497a0ab1f83ed9235a3a4910c1",
            "3d6ce811fd2717370a0ef2557ce6e94d5f0d8e65a38651df153a4b6c86afe44a",
            "71f4464187a019ec0a6bcf405e0579782d941b9771b8f63b695d5df5c6104afd",
        ),
        files=_at("ossci-datasets.s3.amazonaws.com/mnist", _MNIST),
    ),
    "fashion-mnist": Source(
        "70,000 articles of clothing, 28x28 (Xiao et al., 2017)",
        "FashionMNIST",
        "FashionMNIST/raw",
        size=((1, 28, 28), (60_000, 10_000), 10),
        files=_at("fashion-mnist.s3.eu-central-1.amazonaws.com", _FASHION),
    ),
    "cifar10": Source(
        "60,000 photographs in 10 classes, 32x32 RGB (Krizhevsky, 2009)",
        "CIFAR10",
        "cifar-10-batches-py",
        size=((3, 32, 32), (50_000, 10_000), 10),
        augment=True,
        digests=_digests(
            "32b25bb65187cdb40e66b2bd4dbb2de04f62e2d521f74c46a56f39f2afb56e96",
            "f3310f288709b1d5f937ec6391f8e11244120dd5a1fd06df837d6d567a82aa1b",
            "27f7d008727f5b9a8f5b01f61503d2f52d3ba7f5ffb2c331b5b82775de2e2d72",
            "2208c2a7b2bea6724e7ab2fbc32a356589a8a5fb533ef97043ecbe6323d7d135",
        ),
        files=_at("www.cs.toronto.edu/~kriz", _CIFAR10),
    ),
    "cifar100": Source(
        "60,000 photographs in 100 classes, 32x32 RGB (Krizhevsky, 2009)",
        "CIFAR100",
        "cifar-100-python",
        size=((3, 32, 32), (50_000, 10_000), 100),
        augment=True,
        digests=_digests(
            "314214c52cf8821c3fd95fc3391792a3b938be3130d8a6fa1472491c1bf41022",
            "a30e0768231ae216e859a419e3579369b7400ee7c74d0f321da474d454ae3b67",
            "3649f267eb9a14c4acea5df2e2b437abe44b7a6b67c2ffd653ebea273d00305e",
            "3f74f2ccc3ec6fc2b565d8e392eb6aecdecf57b6b733caf93143772d52d8f745",
        ),
        files=_at("www.cs.toronto.edu/~kriz", _CIFAR100),
    ),
    "svhn": Source(
        "99,289 house numbers, 32x32 RGB, without the extra part (Netzer et al., 2011)",
        "SVHN",
        "train_32x32.mat",
        needs="scipy.io",
        size=((3, 32, 32), (73_257, 26_032), 10),
        classes=tuple("0123456789"),
        files=_at("ufldl.stanford.edu/housenumbers", _SVHN),
    ),
    "tiny-imagenet": Source(
        "110,000 photographs in 200 classes, 64x64 RGB (Le and Yang, 2015)",
        folder="tiny-imagenet-200",
        size=((3, 64, 64), (100_000, 10_000), 200),
        augment=True,
        read=read_tiny_imagenet,
        files=_at("cs231n.stanford.edu", _TINY),
    ),
}
"""Data sets by name. Any other `NAME.npz` in the data folder is one, too."""
