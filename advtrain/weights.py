"""The weights of a network in a file of numbers: safetensors, which executes nothing."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .checkpoint_files import digest
from .errors import ArgumentError, FileError
from .files import atomic
from .modes import unchanged_on_error


def save_weights(model: nn.Module, path: str | Path, *, signed: dict[str, str] | None = None) -> None:
    """Write a model's parameters and buffers as safetensors, atomically.

    Args:
        model: whose they are.
        path: the file.
        signed: texts for its header, which then has a SHA-256 as well, by which `load_weights` knows damage.

    Raises:
        FileError: it cannot be written.
    """
    state = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    header = None if signed is None else {**signed, "sha256": digest(repr(sorted(signed.items())), state)}
    with atomic(path) as partial:
        try:
            save_file(state, partial, header)
        except SafetensorError as error:  # how safetensors says that the disk is full
            raise FileError(f"cannot write {path}: {error}") from error


def load_weights(model: nn.Module, path: str | Path) -> dict[str, str]:
    """Read weights that `save_weights` wrote into `model`, and the texts beside them; no code is executed.

    What `torch.compile` and `DataParallel` put in front of names is added or dropped, as the model has it.

    Raises:
        FileError: missing or damaged.
        ArgumentError: the weights are another architecture's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state, header = {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path} is damaged or not a safetensors file: {error}") from error
    said = header.pop("sha256", None)
    if said is not None and said != digest(repr(sorted(header.items())), state):
        raise FileError(f"{path} is damaged: its weights are not those that were written")
    if all(value.dtype == torch.float64 for value in state.values() if value.is_floating_point()):
        model.double()  # which build_model does not know of: the weights would be rounded
    try:
        with unchanged_on_error(model):
            model.load_state_dict(_renamed(state, model.state_dict()))
    except RuntimeError as error:
        hint = ""
        if "normalize." in str(error) and "normalize.mean" in state:
            n = state["normalize.mean"].numel()
            hint = (
                f". Wrap your network: at.load_model(net, mean=[0.5] * {n}, std=[0.5] * {n}), say, for that of the run "
            )
            hint += "was normalised, and its values replace these"
        why = " ".join(str(error).partition("\n")[2].split())
        why = why if len(why) <= 200 else why[:199] + "…"
        raise ArgumentError(f"model does not fit the weights in {path}: {why}{hint}") from error
    return header


def _renamed(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` under the names of `own`, where the marks of wrappers alone tell them apart."""
    ours = {_bare(key): key for key in own}
    found = {ours.get(_bare(key), key): value for key, value in state.items()}
    return state if state.keys() == own.keys() or len(found) < len(state) else found


def _bare(key: str) -> str:
    """A name without what wrappers have put in front; `torch.compile` may also have wrapped a part of a network."""
    return re.sub(r"^(module\.)+", "", key.replace("_orig_mod.", ""))
