"""The feature vector of any model, which is what its last layer is given, and how far a change of images moves it."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from .errors import ModelError, bad
from .transport import sinkhorn


def classifying_layer(model: nn.Module, features: str | None = None) -> nn.Module | None:
    """The layer whose input is a model's feature vector.

    Args:
        model: any network.
        features: the layer's name in `model.named_modules()`; by default `model.head` if there is one, else the last
            `nn.Linear`.

    Returns:
        The layer; None where no name is given and the model's `forward` has a parameter `return_features`.

    Raises:
        ArgumentError: no layer has that name.
        ModelError: there is no `head` and no `nn.Linear`.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile has wrapped
    if features is None and "return_features" in inspect.signature(model.forward).parameters:
        return None
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if features is not None:
        modules: dict[str, nn.Module] = dict(model.named_modules())
        if not features or features not in modules:
            near = f", such as {', '.join(linear[-3:])}" if linear else ""
            bad("features", features, f"the name of a layer of the model{near}", "its input is the feature vector")
        return modules[features]
    head = getattr(model, "head", None)
    if isinstance(head, nn.Module):
        return head
    if not linear:
        raise ModelError(f"{type(model).__name__} has neither a layer `head` nor an nn.Linear: name one in `features`")
    return model.get_submodule(linear[-1])


def logits_and_features(model: nn.Module, x: Tensor, features: str | None = None) -> tuple[Tensor, Tensor]:
    """One forward pass, and what its last layer was given.

    A model whose `forward` has a parameter `return_features` is called as `model(x, return_features=True)` and returns
    (logits, features); of any other the input of its `classifying_layer` is noted.

    Args:
        model: returns logits (B, K).
        x: (B, C, H, W) images.
        features: name of the layer whose input is wanted; see `classifying_layer`.

    Returns:
        logits (B, K) and features (B, F), flattened if need be, both in the graph.

    Raises:
        ArgumentError, ModelError: no such layer, or one that is not called exactly once on the whole batch.
    """
    layer = classifying_layer(model, features)
    inputs: list[Any] = []
    if layer is None:
        found = model(x, return_features=True)
        if not isinstance(found, (tuple, list)) or len(found) != 2 or not all(isinstance(t, Tensor) for t in found):
            raise ModelError("model(x, return_features=True) should return (logits, features): or name `features`")
        logits, inputs = found[0], [found[1]]
    else:
        hook = layer.register_forward_pre_hook(lambda module, given: inputs.append(given[0] if given else None))
        try:
            logits = model(x)
        finally:
            hook.remove()
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].ndim < 2 or len(inputs[0]) != len(x):
        came = [tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__ for given in inputs]
        raise ModelError(
            f"the feature layer {features or 'found'} was given {came} in one pass of {len(x)} images: name a layer in "
            "`features` that is called once, as a module, with one feature vector for each image"
        )
    return logits, inputs[0].flatten(1)


def feature_transport(
    model: nn.Module, x: Tensor, x_adv: Tensor, *, features: str | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """The cost of transporting the features of one batch to those of another, and the logits of the other.

    The batches pass one after the other, `x` first, so that batch normalisation in training mode sees each on its own.

    Args:
        model: returns logits (B, K).
        x: (B, C, H, W) images.
        x_adv: (B', C, H, W) images.
        features: name of the layer whose input is meant; see `classifying_layer`.
        **options: of `advtrain.transport.sinkhorn`.

    Returns:
        A scalar and logits (B', K), both in the graph.

    Raises:
        ArgumentError, ModelError: as `logits_and_features` and `sinkhorn` do.
    """
    _, natural = logits_and_features(model, x, features)
    logits, changed = logits_and_features(model, x_adv, features)
    return sinkhorn(natural, changed, **options), logits


__all__ = ["classifying_layer", "feature_transport", "logits_and_features"]
