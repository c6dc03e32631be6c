"""Models by name. Each takes pixels in [0, 1] and returns logits; normalisation is its first layer."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import at_least, bad, is_real, kind_of, one_of
from ..rng import Rng, global_draws
from .base import ACTIVATIONS, Classifier
from .lenet import LeNetPlus
from .normalize import Normalize, Standardize
from .preact_resnet import PreActResNet18, PreActResNet34, PreActResNet50
from .small_cnn import SmallCNN
from .wide_resnet import WideResNet

__all__ = ["ACTIVATIONS", "MODELS", "Classifier", "Entry", "Normalize", "Standardize", "build_model"]


@dataclass(frozen=True)
class Entry:
    """One registered model.

    Args:
        builder: called as `builder(shape, num_classes, **options)`, returns a `Classifier`.
    """

    builder: Callable[..., Classifier]

    @property
    def summary(self) -> str:
        """First line of the builder's docstring."""
        return (inspect.getdoc(self.builder) or "").partition("\n")[0]

    @property
    def options(self) -> dict[str, Any]:
        """The builder's options and their defaults."""
        parameters = inspect.signature(self.builder).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


MODELS: dict[str, Entry] = {
    "small-cnn": Entry(SmallCNN),
    "lenet+": Entry(LeNetPlus),
    "preactresnet18": Entry(PreActResNet18),
    "preactresnet34": Entry(PreActResNet34),
    "preactresnet50": Entry(PreActResNet50),
    "wideresnet": Entry(WideResNet),
}
"""Every model by name: one line adds one."""


def build_model(
    name: str,
    data: Any = None,
    *,
    shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    normalize: Any = "data",
    seed: int = 0,
    **options: Any,
) -> Classifier:
    """Build a model by name, for a data set or for given numbers.

    >>> model = build_model("small-cnn", shape=(1, 8, 8), num_classes=10, normalize=None, width=4)
    >>> model(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    >>> model.spec["width"], build_model(**model.spec).spec == model.spec
    (4, True)

    Args:
        name: one of `MODELS`.
        data: a `Dataset`, or anything with `shape`, `num_classes`, `mean` and `std`.
        shape: (C, H, W) of one image; taken from `data` if not given.
        num_classes: number of logits; taken from `data` if not given.
        normalize: the first layer. `"data"`: per channel with the mean and standard deviation of `data`; a pair
            `(mean, std)` of such numbers; `"image"`: each image by its own (`Standardize`); `None`: nothing.
        seed: names the initial weights. The same seed gives the same weights, and no global random state is touched.
        **options: of the model; see `MODELS[name].options`.

    Returns:
        The model, in training mode, on the default device, float32 unless the default is another. Its `spec` is a
        JSON-able dict, every default written out, such that `build_model(**spec)` builds the same architecture.

    Raises:
        ArgumentError: an unknown name or option, or a value outside what is accepted.
    """
    one_of("name", name, MODELS)
    entry = MODELS[name]
    for option in sorted(set(options) - set(entry.options)):
        one_of("option", option, entry.options)
    options = {**entry.options, **options}
    seed = at_least("seed", seed, 0)
    if data is not None and not all(hasattr(data, part) for part in ("shape", "num_classes", "mean", "std")):
        hint = f"load it first: at.load_data({data!r})" if isinstance(data, str) else "at.as_dataset((x, y)) makes one"
        bad("data", kind_of(data), "a Dataset", hint)
    shape = _shape(shape if shape is not None else getattr(data, "shape", None))
    num_classes = num_classes if num_classes is not None else getattr(data, "num_classes", None)
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
        bad("num_classes", num_classes, "an integer of at least 2", "give data or num_classes")
    normalize = _resolve(normalize, data, shape[0])

    # Weights are drawn on the CPU whatever the default device is, so a seed means the same weights everywhere. Only the
    # CPU generator is seeded and put back: `torch.manual_seed` would also reset those of every accelerator.
    device = torch.empty(0).device  # what `get_default_device` says, which in PyTorch 2.6 overlooks `with device:`
    where = torch.device("meta" if device.type == "meta" else "cpu")
    with global_draws(Rng(seed, "weights").seed), where:
        model = entry.builder(shape, num_classes, **options)
        if normalize == "image":
            model.normalize = Standardize()
        elif normalize is not None:
            model.normalize = Normalize(*normalize)
    model.spec = {"name": name, "shape": list(shape), "num_classes": num_classes, "normalize": normalize, **options}
    return model if device.type == "meta" else model.to(device)


def _shape(shape: Any) -> tuple[int, int, int]:
    hint = "give data or shape, for instance shape=(3, 32, 32)"
    if isinstance(shape, str) or not hasattr(shape, "__iter__"):
        bad("shape", shape, "(C, H, W)", hint)
    whole = [is_real(size) and isinstance(size, numbers.Integral) and int(size) > 0 for size in shape]
    if len(whole) != 3 or not all(whole):
        bad("shape", shape, "(C, H, W), three positive integers", hint)
    channels, height, width = map(int, shape)
    return channels, height, width


def _resolve(normalize: Any, data: Any, channels: int) -> Any:
    """The argument `normalize` as what JSON can hold: `None`, `"image"` or `[mean, std]`."""
    if normalize is None or normalize == "image":
        return normalize
    if normalize == "data":
        if data is None:
            bad("normalize", normalize, "possible without data", "give data, (mean, std), 'image' or None")
        normalize = (data.mean, data.std)
    try:
        mean, std = ([float(value) for value in values] for values in normalize)
    except (TypeError, ValueError, OverflowError):
        bad("normalize", normalize, "'data', 'image', None or (mean, std)", "mean and std have one number per channel")
    if len(mean) != channels or len(std) != channels:
        came = f"{len(mean)} means and {len(std)} deviations"
        bad("normalize", came, f"one of each for {channels} channels", "the images have as many: is shape (C, H, W)?")
    if max(map(abs, mean)) > 1:
        bad("normalize", [mean, std], "in units of a pixel in [0, 1]", "divide mean and std by 255")
    return [mean, std]
