"""Weights from files that others wrote: read without executing anything in them, and fitted into a network.

A file of `torch.save` is a pickle, and a pickle may run any code when it is loaded. PyTorch's `weights_only` reader
builds tensors and plain containers alone. What else such a file holds beside its weights (options of a command line,
numbers of NumPy) is replaced by an empty object here, so that no code of the file, nor any that it names, is run.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import pickle  # nosec B403 # for the name of its error; nothing is unpickled with it
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from .errors import AdvtrainWarning, ArgumentError, FileError, bad, kind_of, one_of

NOT_WEIGHTS = {
    b"<": "it looks like a web page: the download has failed",
    b"version https://git-lfs": "it is a Git LFS pointer: `git lfs pull` fetches the file itself",
    b"\x89HDF": "it is an HDF5 file: read it with h5py in a factory of your own",
    b"\x1f\x8b": "it is compressed: unpack it with gunzip",
}
"""What other files begin with, and what to do."""

DEPTH = 3  # how many dicts deep a state_dict is looked for
SHOWN = 3  # how many names an error lists


class _Blank:
    """What stands for an object of a checkpoint that is no tensor: it takes whatever it is given and does nothing."""

    def __new__(cls, *args: Any, **options: Any) -> _Blank:
        return object.__new__(cls)

    def __init__(self, *args: Any, **options: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_weights(path: str | os.PathLike[str], key: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a state_dict from a safetensors file or from one that `torch.save` wrote. No code is executed.

    Args:
        path: the file. What it is, its content says, not its name.
        key: which entry of a checkpoint to take, such as `"ema"` or `"model.state_dict"`, where there are several.

    Returns:
        The tensors by name, on the CPU; and where they come from: `file` (its name), `sha256`, `key`.

    Raises:
        FileError: missing, damaged, no file of weights, or one that cannot be read without executing code.
        ArgumentError: there are several state_dicts and `key` does not choose one of them.
    """
    if not isinstance(path, (str, os.PathLike)):
        bad("weights", kind_of(path), "the name of a file", "model.load_state_dict(weights) takes tensors")
    name, path = os.fspath(path), Path(os.path.expanduser(path))
    try:
        content = path.read_bytes()
    except OSError as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        hint = "download it first" if re.match(r"\w\w+:/", name) else "is it elsewhere, or spelled otherwise?"
        raise FileError(f"weights={name!r} {why}: {hint}") from error
    found = dict(_state_dicts(_parse(content, path)))
    if not found:
        raise FileError(f"weights={str(path)!r} holds no state_dict, a dict of names and tensors: save one")
    if key is not None and "" in found:
        bad("weights_key", key, "in the file", f"{path.name} is one state_dict: leave it out")
    if key is not None:
        one_of("weights_key", key, found)
    elif len(found) > 1:
        hint = f"{path.name} holds several state_dicts; --weights-key chooses on the command line"
        bad("weights_key", None, f"one of {_some(list(found))}", hint)
    else:
        (key,) = found
    source = {"file": path.name, "sha256": hashlib.sha256(content).hexdigest(), "key": key or None}
    return {name: tensor.detach() for name, tensor in found[key].items()}, source


def _parse(content: bytes, path: Path) -> Any:
    """What the file holds, whatever that is."""
    if content[8:9] == b"{":
        try:
            return safetensors.torch.load(content)
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise FileError(f"weights={str(path)!r} is a damaged safetensors file: {error}") from error
    if not content.startswith((b"PK", b"\x80")):
        hint = next((hint for start, hint in NOT_WEIGHTS.items() if content.startswith(start)), "")
        empty = "empty" if not content else "neither a safetensors file nor one that torch.save wrote"
        raise FileError(f"weights={str(path)!r} is {empty}{': ' if hint else ''}{hint}")
    try:
        value = _unpickle(content)
    except Exception as error:  # a damaged pickle can raise anything
        raise FileError(_explain(error, path)) from error
    blanks = [thing for thing in [value, *(value.values() if isinstance(value, Mapping) else ())]
              if isinstance(thing, _Blank)]  # fmt: skip
    if blanks and not any(_state_dicts(value)):
        kind = f"{type(blanks[0]).__module__}.{type(blanks[0]).__qualname__}".strip(".")
        raise FileError(
            f"weights={str(path)!r} holds no state_dict but an object, {kind}: to load that would run code. {RESAVE}"
        )
    return value


RESAVE = (
    "If you trust where it comes from, load it once with torch.load(FILE, weights_only=False), and torch.save its "
    "state_dict alone"
)


def _unpickle(content: bytes) -> Any:
    """A file of `torch.save`, with a `_Blank` for everything that the `weights_only` reader does not know."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content))
    except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError):
        names = []  # older files: those with tensors alone can be read
    parts = [name.rpartition(".") for name in names]
    blanks: list[Any] = [type(name, (_Blank,), {"__module__": module}) for module, _, name in parts]
    with torch.serialization.safe_globals(blanks), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols: it works, or an error says why not
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _explain(error: Exception, path: Path) -> str:
    """Why `torch.load` refused the file, in one sentence."""
    text, name = str(error), f"weights={str(path)!r}"
    if "TorchScript" in text:
        return (
            f"{name} is a TorchScript archive, which holds code: write a factory that returns torch.jit.load(...), "
            "and name it as the model"
        )
    last = (text.partition("\n\nCheck the documentation")[0].strip().splitlines() or [type(error).__name__])[-1]
    last = last.rpartition("WeightsUnpickler error: ")[2].partition(" was not an allowed")[0].rstrip(".")
    if "GLOBAL" in last:
        return f"{name} cannot be read without running code: {last}. {RESAVE}"
    return f"{name} is damaged, or no file of torch.save with weights alone: {last.partition('. ')[0]}"


def _state_dicts(value: Any, path: str = "", depth: int = DEPTH) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """The state_dicts in a checkpoint and the keys that lead to them: "" to the checkpoint itself."""
    if not isinstance(value, Mapping) or not value or not all(isinstance(key, str) for key in value):
        return
    tensors = {key: item for key, item in value.items() if isinstance(item, Tensor) or not _is_extra(key)}
    if tensors and all(isinstance(item, Tensor) for item in tensors.values()):
        if any(item.is_floating_point() or item.is_complex() for item in tensors.values()):
            yield path, tensors
    elif depth:
        for key, item in value.items():
            yield from _state_dicts(item, f"{path}.{key}" if path else key, depth - 1)


def _is_extra(key: str) -> bool:
    """Whether an entry is what a module's `get_extra_state` returned, which may be anything."""
    return key.rpartition(".")[2] == "_extra_state"


def fit_weights(model: nn.Module, state: Mapping[str, Tensor], name: str = "weights") -> None:
    """Load a state_dict into a network, under the names that the network uses.

    Prefixes that wrappers put in front (`module.` of DataParallel, `_orig_mod.` of torch.compile, `model.` of training
    frameworks) are added or dropped where one is common to all names. Every parameter and buffer must be there, no
    other, and in its shape. Numbers are converted to the network's own type, but no integers to parameters, and no
    complex numbers to real ones. Of what modules keep beside tensors (`get_extra_state`) nothing is asked.

    Args:
        model: the network; after an error it may hold a part of the weights.
        state: tensors by name.
        name: what the caller calls the weights, for the message.

    Raises:
        ArgumentError: the weights are another network's; the message says how they differ.

    Warns:
        AdvtrainWarning: the network's modules keep more than tensors, and the weights do not bring it.
    """
    own = model.state_dict()
    state = {key: item for key, item in _renamed(state, own).items() if key in own or not _is_extra(key)}
    if left := [key for key in own if _is_extra(key) and key not in state]:
        text = f"{name} does not bring {_some(left)}, what modules of the model keep beside tensors: it stays as it is"
        warnings.warn(text, AdvtrainWarning, stacklevel=2)
    own = {key: item for key, item in own.items() if not _is_extra(key)}
    both = [key for key in own if key in state]
    if cut := [key for key in both if _rank(own[key]) and not _rank(state[key])]:
        raise ArgumentError(
            f"{name} holds integers ({state[cut[0]].dtype}) for {_some(cut)}: quantised weights are no longer the "
            "network's; give those from before"
        )
    if cut := [key for key in both if _rank(state[key]) > max(1, _rank(own[key]))]:
        raise ArgumentError(
            f"{name} holds complex numbers ({state[cut[0]].dtype}) for {_some(cut)}, of which a real network would "
            "lose a half: they are another network's"
        )
    try:
        missing, unexpected = map(sorted, model.load_state_dict(state, strict=False))  # not strict: the message is ours
        missing = [key for key in missing if not _is_extra(key)]
    except Exception as error:  # of sizes that differ, or out of the network's own hooks
        wrong = [key for key in own if key in state and _shape(own[key]) not in (None, _shape(state[key]))]
        if not wrong:
            raise ArgumentError(f"{name} cannot be loaded into the model: {error}") from error
        first = wrong[0]
        raise ArgumentError(
            f"{name} does not fit the model: {len(wrong)} of {len(own)} tensors have another shape, such as {first}, "
            f"{_shape(state[first])} in the file and {_shape(own[first])} in the model: {_why(own, state, wrong)}"
        ) from error
    if missing or unexpected:
        parts = [f"{len(keys)} {what} ({_some(keys)})" for keys, what in
                 ((missing, "missing from the file"), (unexpected, "not in the model")) if keys]  # fmt: skip
        raise ArgumentError(
            f"{name} does not fit the model: of its {len(own)} tensors {' and '.join(parts)}: "
            f"{_reason(own, state, missing, unexpected)}"
        )


def _rank(tensor: Tensor) -> int:
    """0 of integers, 1 of real numbers, 2 of complex ones."""
    return 2 if tensor.is_complex() else int(tensor.is_floating_point())


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (", …" if len(keys) > SHOWN else "")


def _shape(tensor: Tensor) -> tuple[int, ...] | None:
    """None of a lazy parameter, which takes any shape."""
    return None if nn.parameter.is_lazy(tensor) else tuple(tensor.shape)


def _why(own: Mapping[str, Tensor], state: Mapping[str, Tensor], wrong: list[str]) -> str:
    """The likely cause of shapes that differ."""
    theirs, ours = _shape(state[wrong[0]]), _shape(own[wrong[0]])
    if len(wrong) <= 2 and theirs and ours and theirs[1:] == ours[1:]:
        return f"a model of {theirs[0]} classes? then options={{'num_classes': {theirs[0]}}} (--model-option)"
    return "give the options (width, depth, num_classes) that the weights were trained with (--model-option)"


def _reason(own: Mapping[str, Tensor], state: Mapping[str, Tensor], missing: list[str], unexpected: list[str]) -> str:
    """The likely cause of names that differ."""
    if not own.keys() & state.keys():
        return "another architecture, or one inside a wrapper: no name is common to both"
    layer = [key for key in [*missing, *unexpected] if key.rpartition(".")[0].lower().startswith("normal")]
    if len(layer) == len(missing) + len(unexpected):
        if missing:
            return "the weights know no normalisation: give mean and std, and options={'normalize': None} to a built-in"
        return "the weights hold their own normalisation: leave out mean and std, or take a factory that has it"
    if not missing:
        return "the weights hold more than this network: save those of the network alone, or give its options"
    return "another architecture, or other options than the weights were trained with (--model-option)"


def _renamed(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` under the names of `own`, as far as prefixes of wrappers are what tells them apart."""
    # An averaged model (torch.optim.swa_utils) counts what it has averaged beside its weights.
    theirs = {key: key for key in state if key != "n_averaged" or key in own}
    pairs = itertools.product(_variants(theirs), _variants({key: key for key in own}))
    theirs, ours = max(pairs, key=lambda pair: len(pair[0].keys() & pair[1].keys()))
    return {ours.get(short, short): state[key] for short, key in theirs.items()}


def _variants(names: dict[str, str]) -> list[dict[str, str]]:
    """{short name: name}, with what is common to all in front cut off step by step; torch.compile's mark is cut first.

    The marks of torch.compile may also stand inside a name, where a part of a network was compiled.
    """
    found = [{short.replace("_orig_mod.", ""): name for short, name in names.items()}]
    while len({short.partition(".")[0] for short in found[-1]}) == 1 and all("." in short for short in found[-1]):
        found.append({short.partition(".")[2]: name for short, name in found[-1].items()})
    return found
