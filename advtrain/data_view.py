"""Data sets and splits in a notebook: a table, and a strip of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .markup import table

if TYPE_CHECKING:
    from .dataset import Dataset, Split

PARTS = "train", "val", "test"
SHOWN = 10
"""Images of a strip at most: the first of each class."""


def dataset_text(data: Dataset) -> str:
    """For a terminal."""
    counts = ", ".join(f"{name} {count(getattr(data, name))}" for name in PARTS)
    return (
        f"Dataset {data.name!r}: {data.num_classes} classes, images of {'x'.join(map(str, data.shape))}\n"
        f"  {counts}\n"
        f"  mean ({numbers(data.mean)}), std ({numbers(data.std)}), {augmentation(data)}"
    )


def dataset_html(data: Dataset) -> str:
    """For a notebook: the splits, what is known of all of them, and training images."""
    splits = {name: getattr(data, name) for name in PARTS}
    rows = [
        (name, count(split), per_class(split, data.num_classes) if hasattr(split, "y") else "")
        for name, split in splits.items()
    ]
    caption = f"Dataset {data.name!r}: {data.num_classes} classes, images of {'×'.join(map(str, data.shape))}"
    below = [f"mean ({numbers(data.mean)}), standard deviation ({numbers(data.std)}), {augmentation(data)}"]
    first: Any = data.train if data.first is None else data.first  # of a DataLoader, its first batch
    pictures = strip_html(first, data.classes) if hasattr(first, "y") else ""
    return table(["split", "images", "of each class"], rows, caption=caption, below=below) + pictures


def count(split: Any) -> str:
    """How many images there are, as far as that is known."""
    return "none" if split is None else f"{len(split):,}" if hasattr(split, "y") else "a DataLoader"


def numbers(values: tuple[float, ...]) -> str:
    """Figures of the channels, with four digits."""
    return ", ".join(f"{value:.4f}" for value in values)


def augmentation(data: Dataset) -> str:
    """What training does with the images besides."""
    return "random crops and flips" if data.augment else "no augmentation"


def split_html(split: Split) -> str:
    """How many images, of what kind, and the first of each class."""
    total, *shape = split.shape
    classes = int(split.y.max()) + 1 if total else 0
    rows = [
        ("images", f"{total:,}"),
        ("shape", "×".join(map(str, shape))),
        ("type", str(split.dtype).removeprefix("torch.")),
        ("of each class", per_class(split, classes) if total else "none"),
    ]
    return table(None, rows, caption="Split") + (strip_html(split, tuple(map(str, range(classes)))) if total else "")


def per_class(split: Split, classes: int) -> str:
    """How many images the classes have: `104 to 139`."""
    counts = torch.bincount(split.y.cpu(), minlength=classes)
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def strip_html(split: Split, classes: tuple[str, ...]) -> str:
    """The first image of each class side by side; a sentence where the pixels are none that can be shown."""
    from .pictures import strip, tag  # Pillow is only needed here

    labels = split.y.tolist()
    places = sorted({label: place for place, label in reversed(list(enumerate(labels)))}.items())[:SHOWN]
    images = split.images([place for _, place in places]).cpu()
    low, high = float(images.min()), float(images.max())
    if images.shape[1] not in (1, 3):
        return f"<p>Images of {images.shape[1]} channels are not shown.</p>"
    if not (low >= 0 and high <= 1):  # NaN too
        return f"<p>Pixels from {low:g} to {high:g} are not in [0, 1], and not shown.</p>"
    names = ", ".join(classes[label] if label < len(classes) else str(label) for label, _ in places)
    return f"<p>{tag(strip(images), f'One image each of the classes {names}')}</p>"
