"""Any network, judged as our own: from a package, from a file of Python, with weights that were trained elsewhere."""

from __future__ import annotations

import itertools
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoints import fit_weights, read_weights
from .checks import check_model
from .data import Dataset
from .errors import AdvtrainWarning, ModelError, at_least, bad, check_kind, is_real, kind_of
from .factories import make, title, without_folder
from .models import MODELS, Normalize, build_model
from .modes import into_evaluation, place, unchanged_on_error
from .recipe import find_device, own_global_randomness
from .rng import GLOBAL_STATE


def load_model(
    model: Any,
    weights: str | os.PathLike[str] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    data: Dataset | None = None,
    weights_key: str | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    pick: str | int | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> nn.Module:
    """Load any network, to judge, attack or train it as if it were one of this package.

    `build_model` makes a new network of this package, `load_run` reads a run with all that belongs to it; this takes a
    network from anywhere. The Python code that is named is executed. The file of weights is not: it is read as
    safetensors, or by the `weights_only` reader of PyTorch.

    **Pixels are in [0, 1].** A network that was trained on normalised images needs `mean` and `std`: they become its
    first layer, so that ε stays in units of a pixel. Without them such a network is nearly blind, and its accuracy
    means nothing.

    >>> net = load_model("torch.nn:Flatten", mean=0.5, std=0.5)
    >>> net(torch.ones(1, 1, 1, 2))
    tensor([[1., 1.]])

    Args:
        model: the network: `"package.module:factory"` or `"file.py:factory"`, where the factory is a class of networks
            or a function that returns one; the name of a built-in network, one of `MODELS`; or, in Python, the factory
            or the network itself, into which the weights are then loaded.
        weights: the file: safetensors, or what `torch.save` wrote of a state_dict, or of a dict that holds one.
            Prefixes of wrappers (`module.`, `_orig_mod.`) do not matter. None if the factory brings its own weights.
        options: arguments for the factory, by name; for a built-in network those of `build_model`.
        data: the data set that the network is for. A built-in one takes its size from it; any is tried on two images
            and must have one logit for each class. Probabilities pass here, for `diagnose` and `autoattack` know what
            to do with them; what trains, attacks or evaluates refuses them.
        weights_key: which part of the file to take, where it holds several, such as `"ema"` or `"model.state_dict"`.
        mean: what to subtract from the pixels, in [0, 1]: a number, or one for each channel.
        std: what to divide by afterwards, in (0, 1]: a number, or one for each channel. Mean 0 and deviation 1/255
            serve a network that expects pixels in 0..255.
        pick: where the logits are, if the network returns more than them: the name of an attribute or key, or the
            position in a tuple. A classifier of Hugging Face's transformers is known: `"logits"`.
        device: where the model goes; `"auto"` is a GPU if there is one.
        seed: names the initial weights, where no file has others. The global random state stays as it was.

    Returns:
        The network in evaluation mode. Half-precision weights are widened to float32, which ε-balls need, with a
        warning.

    Raises:
        FileError: the weights are missing, damaged, or cannot be read without executing code.
        ArgumentError: there is no such factory, it takes other options, or the weights do not fit.
        ModelError: the factory fails, or what it returns is no network that can be judged on `data`.
    """
    return open_model(model, weights, options, data, weights_key, mean, std, pick, device, seed)[0]


def open_model(
    model: Any, weights: Any, options: Any, data: Any, weights_key: Any, mean: Any, std: Any, pick: Any, device: Any,
    seed: Any,
) -> tuple[nn.Module, dict[str, Any]]:  # fmt: skip
    """`load_model`, and where the model comes from: JSON-able values that hold no folder of this machine."""
    check_kind("options", {} if options is None else options, Mapping, "such as options={'num_classes': 10}")
    if strange := [key for key in options or () if not isinstance(key, str)]:
        bad("options", strange[0], "the name of an argument", "such as options={'num_classes': 10}")
    if not isinstance(pick, (str, int, type(None))) or isinstance(pick, bool):
        bad("pick", kind_of(pick), "a name, or a position", "such as 'logits', or 0 of a tuple")
    options, seed = dict(options or {}), at_least("seed", seed, 0)
    numbers, place_ = _numbers(mean, std), find_device(device)
    layer = None if numbers is None else Normalize(**numbers)
    if weights is None and weights_key is not None:
        bad("weights_key", weights_key, "used without weights", "leave it out, or give the file")
    if data is not None:
        check_kind("data", data, Dataset, "at.load_data(name), or at.as_dataset((x, y)), makes one")
    origin: dict[str, Any] = {"model": title(model), "options": {key: _plain(value) for key, value in options.items()}}
    doubts: list[str] = []
    with GLOBAL_STATE, own_global_randomness(seed, place_):
        if isinstance(model, str) and model in MODELS:
            network = _builtin(model, options, data, layer, seed)
            doubts += [f"model={model!r} has no weights: it is untrained"] * (weights is None)
        else:
            network, code = make(model, options)
            origin |= code
    name, given = f"model={origin['model']!r}", model if isinstance(model, nn.Module) else nn.Module()
    with unchanged_on_error(given):
        _check_tensors(network, name, "meta")
        origin["weights"] = None
        if weights is not None:
            state, origin["weights"] = read_weights(weights, weights_key)
            fit_weights(network, state, f"weights={origin['weights']['file']!r}")
        _check_tensors(network, name, "lazy")
        halves = {p.dtype for p in network.parameters() if p.dtype in (torch.bfloat16, torch.float16)}
        if halves:
            kinds = ", ".join(sorted(map(str, halves)))
            doubts.append(f"{name} has weights of {kinds}: they are widened to float32")
            network = network.float()
        guessed = (
            pick is None and getattr(network, "main_input_name", None) == "pixel_values"
        )  # as transformers have it
        pick = "logits" if guessed else pick
        if layer is not None or pick is not None:
            network = Adapted(network, layer, pick, guessed)
            origin |= {**(numbers or {}), "pick": pick}
        network = network.to(place_)
        into_evaluation(network)
        if data is not None:
            _try_on(network, data, name)
    for doubt in doubts:
        warnings.warn(doubt, AdvtrainWarning, stacklevel=3)
    return network, origin


class Adapted(nn.Module):
    """A network behind a normalisation, whose logits are picked from what it returns.

    Args:
        network: any; its parameters are those of the whole.
        normalize: the first layer; None if it takes pixels in [0, 1].
        pick: the attribute, key or position of the logits; None if it returns them alone.
        guessed: whether nobody has said so; logits that come alone, or first of a tuple, will do then.
    """

    def __init__(
        self, network: nn.Module, normalize: Normalize | None = None, pick: str | int | None = None,
        guessed: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.network, self.normalize, self.pick, self.guessed = network, normalize, pick, guessed

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (B, K), of images `x`, (B, C, H, W) in [0, 1]."""
        if self.normalize is not None:
            channels = self.normalize.mean.shape[1]
            if x.ndim != 4 or channels not in (1, x.shape[1]):  # one channel would silently become three
                raise ModelError(
                    f"mean and std have {channels} channels and the images are {tuple(x.shape)}: give one number for "
                    "each channel, or a single one"
                )
            x = self.normalize(x)
        out = self.network(x)
        if self.guessed and isinstance(out, (Tensor, tuple)):
            return out if isinstance(out, Tensor) else out[0]
        logits: Tensor = out if self.pick is None else self._picked(out, self.pick)
        return logits

    @staticmethod
    def _picked(out: Any, pick: str | int) -> Any:
        if isinstance(out, Tensor):  # of which a number would pick an image
            hint = f"it is one of shape {tuple(out.shape)}: leave out pick"
            bad("pick", pick, "in the Tensor that the model returns", hint, kind=ModelError)
        try:
            return out[pick] if isinstance(pick, int) or isinstance(out, Mapping) else getattr(out, pick)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            has = f"with {', '.join(map(str, out))}" if isinstance(out, Mapping) else ""
            has = f"of {len(out)}" if isinstance(out, (tuple, list)) else has
            bad("pick", pick, f"in the {type(out).__name__} {has}".rstrip() + " that the model returns",
                f"{type(error).__name__}: {error}", kind=ModelError)  # fmt: skip


def _numbers(mean: Any, std: Any) -> dict[str, list[float]] | None:
    """`mean` and `std` as lists of the same length, where one of them is a list; None if they are not given."""
    if mean is None and std is None:
        return None
    numbers = {}
    for name, value, other in (("mean", mean, "std"), ("std", std, "mean")):
        if value is None:
            neutral = {"mean": 0, "std": 1}[name]
            bad(name, None, f"given, and {other} is", f"give both; {name}={neutral} changes nothing")
        try:
            numbers[name] = [float(number) for number in ([value] if is_real(value) else value)]
        except (TypeError, ValueError):
            bad(name, value, "a number, or one for each channel", "such as (0.49, 0.48, 0.45)")
        for number in numbers[name]:
            if not 0 <= number <= 1:
                bad(name, value, "in [0, 1]", "pixels are in [0, 1] here: divide by 255")
        if not numbers[name]:
            bad(name, value, "a number, or one for each channel", "such as (0.49, 0.48, 0.45)")
    length = max(map(len, numbers.values()))
    return {name: value * length if len(value) == 1 else value for name, value in numbers.items()}


def _builtin(name: str, options: dict[str, Any], data: Any, layer: Normalize | None, seed: int) -> nn.Module:
    """A network of `MODELS`. With `mean` and `std` it has no normalisation of its own beside theirs."""
    for key in {"name", "data", "seed"} & options.keys():
        bad("options", key, "an option of the network", f"{key} is an argument of load_model itself")
    if layer is not None:
        options = {"normalize": None, **options}
    return build_model(name, data, **{"seed": seed, **options})


def _check_tensors(network: nn.Module, name: str, kind: str) -> None:
    """Refuse tensors that hold no numbers: on the meta device, or lazy ones that no image has met."""
    for key, tensor in itertools.chain(network.named_parameters(), network.named_buffers()):
        if kind == "meta" and tensor.is_meta:
            raise ModelError(
                f"{name}: {key} is on the meta device, which holds no numbers: make the network on the CPU, outside "
                "torch.device('meta')"
            )
        if kind == "lazy" and nn.parameter.is_lazy(tensor):
            raise ModelError(
                f"{name}: {key} is a lazy parameter without a shape: give weights, or pass images through the network "
                "once in its factory"
            )


def _try_on(network: nn.Module, data: Dataset, name: str) -> None:
    """Two images through the network, and one logit for each class."""
    device, dtype = place(network)
    images = "x".join(map(str, data.shape))
    try:
        logits = check_model(network, data.probe()[:2].to(device).images(dtype=dtype), probabilities=True)
    except ModelError as error:
        raise ModelError(f"{name} cannot be judged on {data.name}, images of {images}: {error}") from error
    if logits != data.num_classes:
        raise ModelError(
            f"{name} returns {logits} logits and {data.name} has {data.num_classes} classes: the network is for other "
            f"data, or needs options={{'num_classes': {data.num_classes}}} (--model-option)"
        )


def _plain(value: Any) -> Any:
    """An option as JSON can hold it, without folders of this machine."""
    if isinstance(value, str):
        return without_folder(value)
    try:
        json.dumps(value, allow_nan=False)
        return value
    except (TypeError, ValueError, RecursionError):
        return repr(value)
