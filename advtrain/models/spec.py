"""What a network was made from, as long as it still is that network."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from . import build_model


def spec_of(model: nn.Module) -> dict[str, Any] | None:
    """What `build_model` makes a like network from; None if it was not made by it, or was changed afterwards.

    A change is another layer anywhere, also one without weights, another setting of a layer, a hook on its forward
    pass, or a `forward` of its own. The values of parameters and buffers do not count: files of weights hold them.

    Args:
        model: any network. A `spec` that is not one of `build_model` is its owner's, and says nothing here.
    """
    spec = getattr(model, "spec", None)
    if not isinstance(spec, dict) or not all(isinstance(key, str) for key in spec):
        return None
    try:
        with torch.device("meta"):
            twin = build_model(**spec)
    except (TypeError, ValueError, AttributeError, RuntimeError):  # of which an ArgumentError is a ValueError
        return None
    return dict(twin.spec) if _alike(model, twin) else None


def layers_of(model: nn.Module) -> str:
    """The layers of a network in order, one a line: name, class and settings, without addresses in memory.

    Args:
        model: any network.
    """
    lines = (
        f"{name} {type(layer).__name__}({layer.extra_repr()})"
        for name, layer in model.named_modules(remove_duplicate=False)
    )
    return re.sub(r"\bat 0x[0-9a-fA-F]+", "", "\n".join(lines))


def _alike(model: nn.Module, twin: nn.Module) -> bool:
    """Whether `model` computes what `twin`, fresh from `build_model`, computes with the same weights."""
    pairs = [dict(network.named_modules(remove_duplicate=False)) for network in (model, twin)]
    shapes = [{key: value.shape for key, value in network.state_dict().items()} for network in (model, twin)]
    if [*pairs[0]] != [*pairs[1]] or shapes[0] != shapes[1]:
        return False
    return all(_same_layer(layer, pairs[1][name]) for name, layer in pairs[0].items())


def _same_layer(layer: nn.Module, fresh: nn.Module) -> bool:
    """The same class with the same settings, which are the public attributes that the fresh one has."""
    if type(layer) is not type(fresh) or layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
        return False
    settings = {name: value for name, value in vars(fresh).items() if not name.startswith("_")}
    own = vars(layer)
    return all(
        name in own and repr(own[name]) == repr(value)
        for name, value in settings.items()
        if name not in ("training", "spec")
    )
