"""What a training run is told: its options checked, its device found, its optimizer made."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import warnings
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from .attacks.gradient import check_box, check_room
from .checks import one_class
from .dataset import Dataset, Split
from .defense import Defense, trained
from .defenses import DEFENSES
from .errors import AdvtrainWarning, ModelError, at_least, bad, check_kind, is_real, kind_of, one_of
from .finite import begin_at_rest
from .loader import Loader
from .modes import keeping_modes
from .processes import rank
from .rng import GLOBAL_STATE, Rng, global_draws
from .schedules import get_schedule

OPTIMIZERS = ("sgd", "adam", "adamw")
ON_OVERFIT = ("warn", "stop", "rewind")
# The arguments of `fit` that make a run what it is; kept in its configuration.
RECORDED = (
    "epochs", "batch_size", "lr", "schedule", "optimizer", "momentum", "weight_decay", "clip_grad", "ema", "compile",
    "select", "validate_every", "val_steps", "on_overfit", "seed",
)  # fmt: skip


def make_optimizer(model: nn.Module, options: dict[str, Any], device: torch.device) -> torch.optim.Optimizer:
    """The optimizer that `options` name, over the parameters that require a gradient."""
    parameters = trained(model)
    if not parameters:
        bad("model", type(model).__name__, "trainable", "no parameter requires a gradient")
    fused = device.type in ("cpu", "cuda")
    common: dict[str, Any] = {"lr": options["lr"], "weight_decay": options["weight_decay"], "fused": fused}
    if options["optimizer"] == "sgd":
        optimizer = torch.optim.SGD(parameters, momentum=options["momentum"], **common)
        begin_at_rest(optimizer)
        return optimizer
    kind = torch.optim.Adam if options["optimizer"] == "adam" else torch.optim.AdamW
    return kind(parameters, **common)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take back what the optimizer's `state_dict` gave, each tensor in the memory format of its parameter."""
    optimizer.load_state_dict(state)
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if name != "step" and isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                kept[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def find_device(device: str | torch.device) -> torch.device:
    """`"auto"` as the device there is, anything else as it is, tried out.

    Raises:
        ArgumentError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        why = f"{error}".strip().split("\n")[0].split(". ")[0][:120]
        bad("device", device, "available here", f"write auto (a GPU if there is one), cpu, cuda, cuda:1 or mps ({why})")
    return found


def computes_in_bf16(device: torch.device) -> bool:
    """Whether training on `device` is under bfloat16 autocast unless told otherwise."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


@contextlib.contextmanager
def own_global_randomness(seed: int, device: torch.device, *key: int | str) -> Iterator[None]:
    """Dropout draws from torch's global state: seed it for the run, and give the caller's back afterwards."""
    number = Rng(seed, "global", *key).seed
    before = contextlib.ExitStack()
    with GLOBAL_STATE:
        before.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        torch.default_generator.manual_seed(number)  # not torch.manual_seed, which seeds every device there is
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
    try:
        yield
    finally:
        with GLOBAL_STATE:
            before.close()


@contextlib.contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Randomness of its own, and gradients whatever the caller has switched off."""
    with own_global_randomness(0, device), torch.inference_mode(False), torch.enable_grad():
        yield


def steady_memory() -> None:
    """Keep glibc from handing memory back to the system after every step and faulting it in again at the next.

    Freeing one block just below 32 MiB raises the allocator's thresholds to that size (see `M_MMAP_THRESHOLD` in
    mallopt(3)). Training a small net on a CPU is a third faster for it; elsewhere it does nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def compiled(model: nn.Module, defense: Defense, wanted: bool) -> nn.Module:
    """`model` with its passes compiled if that is wanted; it keeps its parameters and buffers.

    Raises:
        ArgumentError: the defense differentiates a backward pass, which PyTorch cannot if it is compiled.
    """
    for name, layer in model.named_modules() if defense.second_order else ():
        where, remedy = f"model.{name}" if name else "model", ""
        if hasattr(layer, "_orig_mod"):
            remedy = f"take {where}._orig_mod"
        if getattr(layer, "_compiled_call_impl", None) is not None:  # by `compile()`, which leaves no other module
            remedy = "build the network without compile()"
        if remedy:
            hint = f"its second-order term needs an uncompiled backward pass: {remedy}"
            bad(where, "compiled", f"possible with {defense.name}", hint)
    if wanted and defense.second_order:
        bad(
            "compile",
            wanted,
            f"possible with {defense.name}",
            "its second-order term needs an uncompiled backward pass",
        )
    return cast(nn.Module, torch.compile(model)) if wanted else model


def check_options(options: dict[str, Any]) -> None:
    """Refuse training options outside what `fit` accepts, each by its name; make NumPy's numbers in it Python's."""
    if not isinstance(options["compile"], bool):
        bad("compile", options["compile"], "True or False")
    for name in ("epochs", "batch_size", "val_steps"):
        options[name] = at_least(name, options[name], 1)
    options["validate_every"] = at_least("validate_every", options["validate_every"], 0, "0 switches validation off")
    for name, high in (("lr", math.inf), ("clip_grad", math.inf), ("ema", 1)):
        value = options[name]
        if not (is_real(value) and 0 < value < high) and (name == "lr" or value is not None):
            bad(name, value, f"in (0, {high})" if high < math.inf else "above 0 and finite")
    for name, high in (("momentum", 1), ("weight_decay", math.inf)):
        if not (is_real(options[name]) and 0 <= options[name] < high):
            bad(name, options[name], f"in [0, {high})" if high < math.inf else "at least 0 and finite")
    one_of("optimizer", options["optimizer"], OPTIMIZERS)
    one_of("select", options["select"], ("last", "best"))
    one_of("on_overfit", options["on_overfit"], ON_OVERFIT)
    get_schedule(options["schedule"])
    options["seed"] = at_least("seed", options["seed"], 0)
    for name in ("lr", "clip_grad", "ema", "momentum", "weight_decay"):
        options[name] = options[name] if isinstance(options[name], (int, float, type(None))) else float(options[name])


def check_data(data: Dataset, defense: Defense) -> None:
    """Refuse images that the threat does not allow, and a threat for which images of this size have no room."""
    check_room("eps", defense.threat.eps, defense.threat, data.shape)
    for part in (data.train, data.val):
        if isinstance(part, Split):
            check_box(part, defense.threat)


def smallest_batch(loader: Any) -> int | None:
    """How many images the smallest batch of some process will hold; None where nobody knows yet."""
    if isinstance(loader, Loader):
        full, rest = divmod(len(loader.split), loader.batch_size)
        least = rest if not full or (len(loader) > full) else loader.batch_size
        return least // loader.processes
    size, sampler = loader.loader.batch_size, loader.loader.sampler
    if size is None or not hasattr(sampler, "__len__"):
        return None
    full, rest = divmod(len(sampler), size)
    return int(rest if rest and not loader.loader.drop_last else size)


def check_single(model: nn.Module, loader: Any, x: Tensor) -> None:
    """Refuse batches of one image for a model that normalises over the batch alone. Costs a pass where there are any.

    Args:
        model: on its device.
        loader: gives the batches of the training.
        x: images for the model.

    Raises:
        ModelError: its batch normalisation has no variance to take.
    """
    if smallest_batch(loader) != 1:
        return
    devices = [x.device] if x.device.type == "cuda" else []
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # a pass in training moves them
    try:
        with keeping_modes(model), global_draws(devices=devices), torch.no_grad():
            if not model.training:
                model.train()
            torch.func.functional_call(model, buffers, (x[:1],))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        own = isinstance(loader, Loader)
        hint = "take a larger batch_size" if own else "give the DataLoader drop_last=True, or another batch_size"
        raise ModelError(f"some batch holds a single image, of which the model's batch normalisation cannot take the "
                         f"variance: {hint}") from error  # fmt: skip


def warn_of(data: Dataset) -> None:
    """Say where there is nothing to learn."""
    if isinstance(data.train, Split) and one_class(data.train.y) and rank() == 0:
        text = f"all {len(data.train):,} training images are of class {int(data.train.y[0])}"
        text += ": there is nothing to learn, and one answer is right for all"
        warnings.warn(text, AdvtrainWarning, stacklevel=3)


def check_network(model: Any, call: str) -> None:
    """Refuse what is no network; `call` shows the order of arguments."""
    build = isinstance(model, str)
    check_kind("model", model, nn.Module, "at.build_model(name, data) makes one" if build else f"the order is {call}")


def check_defense(name: str, value: Any, call: str) -> None:
    """Refuse what is no defense; `call` shows the order of arguments."""
    known = value if isinstance(value, type) else DEFENSES.get(value) if isinstance(value, str) else None
    made = known.__name__ if known is not None and known in DEFENSES.values() else "FastAT"
    swapped = isinstance(value, nn.Module)
    hint = f"the order is {call}" if swapped else f"make one with its threat: at.defenses.{made}(threat)"
    check_kind(name, value, Defense, hint)


def check_recorded(defense: Defense) -> None:
    """Refuse, before it is trained with, a defense that no run folder could tell of: its fields are written as JSON.

    Args:
        defense: to be written.

    Raises:
        ArgumentError: naming the first field that JSON cannot hold.
    """

    def fields_of(value: Any) -> dict[str, Any]:
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            raise TypeError(type(value))
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}

    for name, value in fields_of(defense).items():
        try:
            json.dumps(value, allow_nan=False, default=fields_of)
        except (TypeError, ValueError, RecursionError):
            hint = "numbers, texts and None, in lists and dicts; make anything else in setup, or train without out"
            bad(f"defense.{name}", kind_of(value), "what a run folder can hold", hint)
