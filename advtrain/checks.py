"""Refuse what must not be trained on or attacked, at once and by name, before any gradient is taken.

Every message says which argument, what came, what is accepted, and the usual cause.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .errors import DataError, ModelError, bad, check_kind, kind_of
from .modes import evaluating
from .rng import global_draws
from .survey import extremes, rows_of_a_block
from .threat import Threat


def _refuse(name: str, value: Any, accepted: str, hint: str = "") -> NoReturn:
    bad(name, value, accepted, hint, kind=DataError)


def check_threat(threat: Any) -> Threat:
    """The threat; refuse anything but a `Threat`, such as a bare radius.

    Raises:
        ArgumentError: it is something else.
    """
    if not isinstance(threat, Threat):
        bad("threat", kind_of(threat), "a Threat", 'write Threat("linf", eps=8/255)')
    return threat


def check_dense(x: Tensor, name: str) -> None:
    """Refuse tensors that keep their numbers otherwise than one after the other, such as sparse ones.

    Args:
        x: any tensor.
        name: how the caller calls it; its last word stands in the code of the hint.

    Raises:
        DataError: it is such a one.
    """
    if x.layout != torch.strided:
        _refuse(f"{name}.layout", str(x.layout), "torch.strided", f"{name.split()[-1]}.to_dense()")


def check_images(x: Tensor, *, name: str = "x") -> None:
    """Refuse anything but a batch of images: (B, C, H, W), uint8 in 0..255 or float in [0, 1].

    One pass over the pixels, and for images on a GPU one wait for it.

    Args:
        x: what the caller passed.
        name: how the caller calls it; its last word stands in the code of the hints.

    Raises:
        DataError: not a tensor, not four-dimensional, empty, another dtype, NaN or infinite, or outside [0, 1].
    """
    if not isinstance(x, Tensor):
        makes = "torch.stack(images)" if isinstance(x, (list, tuple)) else "torch.from_numpy(array)"
        _refuse(name, kind_of(x), "a torch.Tensor", f"{makes} makes one")
    check_dense(x, name)
    shape, code = tuple(x.shape), name.split()[-1]
    if x.ndim != 4:
        hints = {3: f"for one image {code}[None]; for grey images {code}[:, None]", 2: "images, not vectors"}
        hints[1] = "images come first, then labels: (x, y)"
        _refuse(f"{name}.shape", shape, "(B, C, H, W)", hints.get(x.ndim, ""))
    if x.numel() == 0:
        _refuse(f"{name}.shape", shape, "a batch of at least one image", "look where the images were selected")
    if shape[3] in (1, 3) and shape[3] < min(shape[1:3]):
        _refuse(f"{name}.shape", shape, "(B, C, H, W)", f"channels come first: {code}.permute(0, 3, 1, 2)")
    if x.dtype == torch.uint8:
        return
    if not x.is_floating_point():
        hint = f"{code}.float()" if x.dtype == torch.bool else f"{code}.to(torch.uint8) if they are 0..255"
        _refuse(f"{name}.dtype", x.dtype, "torch.uint8 (0..255) or floating ([0, 1])", hint)
    parts = x.detach().split(rows_of_a_block(x.shape, x.dtype))
    low, high = extremes(parts)  # NaN spreads to both
    if low != low or high in (float("inf"), float("-inf")) or low in (float("inf"), float("-inf")):
        wrong = torch.cat([(~part.isfinite()).flatten(1).any(1) for part in parts]).nonzero().flatten().tolist()
        raise DataError(
            f"{name} has NaN or infinite pixels in {len(wrong)} image(s), the first at {code}[{wrong[0]}]; pixels are "
            "in [0, 1]: leave these out, or find the division by zero"
        )
    if low < 0 or high > 1:
        if low < 0 and high < 20:
            hint = "normalised images? pass plain pixels: normalisation is the model's first layer (build_model)"
        elif high > 2 and low >= 0:
            hint = f"divide by 255: {code} / 255, or pass uint8: {code}.to(torch.uint8)"
        else:
            hint = f"resampling overshoots: {code}.clamp(0, 1)"
        _refuse(name, f"{low:g} to {high:g}", "inside [0, 1]", hint)


def check_labels(y: Tensor, num_classes: int | None, *, name: str = "y", length: int | None = None) -> None:
    """Refuse anything but class numbers: (B,) integers in 0..num_classes - 1.

    Args:
        y: what the caller passed.
        num_classes: how many classes there are; `None` where nobody knows yet.
        name: how the caller calls it; its last word stands in the code of the hints.
        length: number of images the labels belong to, if known.

    Raises:
        DataError: not a tensor, not one-dimensional, empty, not integers, out of range, or not one per image.
    """
    if not isinstance(y, Tensor):
        _refuse(name, kind_of(y), "a torch.Tensor", "torch.as_tensor(labels) makes one")
    check_dense(y, name)
    code = name.split()[-1]
    integers = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if y.ndim != 1:
        hint = f"one-hot? {code}.argmax(1)" if y.ndim == 2 and y.shape[1] > 1 else f"{code}.flatten()"
        _refuse(f"{name}.shape", tuple(y.shape), "(B,)", hint)
    if not integers:
        _refuse(f"{name}.dtype", y.dtype, "an integer type", f"class numbers: {code}.long()")
    if y.numel() == 0:
        _refuse(f"{name}.shape", tuple(y.shape), "at least one label", "look where the images were selected")
    if length is not None and len(y) != length:
        _refuse(f"len({name})", len(y), f"{length}, the number of images", "one label for each image")
    low, high = torch.stack(y.long().aminmax()).tolist()
    if low < 0 or (num_classes is not None and high >= num_classes):
        hint = "labels start at 0" if low >= 1 and high == num_classes else "labels are class numbers, counted from 0"
        accepted = "at least 0" if num_classes is None else f"inside 0..{num_classes - 1}, for {num_classes} classes"
        _refuse(name, f"{low} to {high}", accepted, hint)


def one_class(y: Tensor) -> bool:
    """Whether all labels are the same. On a GPU it waits for it.

    Args:
        y: (N,), at least one.
    """
    return bool((y == y[0]).all())


def check_classes(train: Tensor, hint: str, **others: Any) -> None:
    """Refuse labels that cannot be meant: one class to train on, or classes to judge by that training lacks.

    Where the caller has said how many classes there are, nobody needs to guess, and this is not asked.

    Args:
        train: the labels of all training images.
        hint: how the caller would say how many classes there are.
        others: by name the splits to judge by, or anything that is none.

    Raises:
        DataError: as said.
    """
    if one_class(train):
        raise DataError(
            f"all {len(train):,} training images are of class {int(train[0])}: of one class there is nothing to learn, "
            f"and one answer is right for all; {hint}"
        )
    known = train.cpu().unique()
    for name, part in others.items():
        if isinstance(y := getattr(part, "y", None), Tensor):
            strange = [label for label in y.cpu().unique().tolist() if label not in known]
            if strange:
                accepted = "among the classes of the training images"
                _refuse(f"{name} y", strange[:5], accepted, f"are both numbered alike? {hint[0].upper()}{hint[1:]}")


def check_no_dropout(model: nn.Module, method: str) -> None:
    """Refuse active dropout, for methods that compare the logits of two images of one batch.

    Dropout that is no layer but a call in the model's `forward` cannot be seen.

    Args:
        model: the network in training.
        method: the name of the method, for the message.

    Raises:
        ModelError: a layer in training mode drops out.
    """
    for name, module in model.named_modules():
        attribute = "dropout" if isinstance(module, nn.MultiheadAttention) else "p"
        drops = isinstance(module, (nn.modules.dropout._DropoutNd, nn.MultiheadAttention)) and module.training
        if drops and getattr(module, attribute) > 0:
            bad(
                f"model.{name}.{attribute}", getattr(module, attribute), f"0, which {method} needs",
                "two dropout masks would make the difference of logits random: build the model with dropout=0",
                kind=ModelError,
            )  # fmt: skip


def are_probabilities(outputs: Tensor) -> bool:
    """Whether a model's outputs look like probabilities: every row in [0, 1] and of sum 1, at least two rows.

    Args:
        outputs: (B, K).
    """
    values = outputs.detach().float()
    if len(values) < 2 or values.shape[1] < 2:
        return False
    slack = 1e-4 if outputs.dtype in (torch.float32, torch.float64) else 1e-2
    return bool((values >= 0).all() & (values <= 1).all() & ((values.sum(1) - 1).abs() < slack).all())


def _likely_cause(model: nn.Module, x: Tensor) -> str:
    """What a failing model and its images do not have in common, as the end of a message."""
    halves = sorted({str(p.dtype) for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)})
    if halves and x.dtype not in (torch.bfloat16, torch.float16):
        return f"; its weights are {' and '.join(halves)}: model.float() widens them, as ε-balls need"
    first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is not None and first.in_channels != x.shape[1]:
        return f"; its first convolution takes {first.in_channels} channels and the images have {x.shape[1]}"
    norm = next((layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)), None)
    if first is None and norm is not None and norm.num_features != x.shape[1]:
        return f"; its normalisation takes {norm.num_features} channels and the images have {x.shape[1]}"
    return ""


def check_model(model: nn.Module, x: Tensor, num_classes: int | None = None, *, probabilities: bool = False) -> int:
    """Refuse a model that cannot be trained or attacked on such images. Costs one forward pass.

    The pass is made in evaluation mode without gradients, on copies of the random states; every module's own flag
    comes back. Log-probabilities (`log_softmax`) are let through: cross-entropy, margins, DLR and KL do not change when
    a number is added to all logits of an image, and that is all `log_softmax` does. Probabilities are refused:
    cross-entropy applies its own softmax, and through two of them gradients vanish, which looks like robustness and is
    none.

    Args:
        model: returns logits.
        x: (B, C, H, W) float in [0, 1], on the model's device; two images suffice. Probabilities are only told from
            logits when there are at least two.
        num_classes: how many logits are needed at least; any number from one on if not given.
        probabilities: let them through, for callers that know what to do with them.

    Returns:
        The number of logits.

    Raises:
        ArgumentError: it is no `nn.Module`.
        ModelError: the model fails on `x`, or returns no (B, K) tensor, too few logits, NaN, or probabilities.
    """
    check_kind("model", model, nn.Module, "the model comes first: at.build_model(name, data) makes one")
    devices = [x.device] if x.device.type == "cuda" else []
    with global_draws(devices=devices), evaluating(model):
        try:
            logits = model(x)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"the model fails on a batch of shape {tuple(x.shape)}, {x.dtype} on {x.device}: "
                f"{type(error).__name__}: {(str(error).strip().splitlines() or [repr(error)])[0]}"
                f"{_likely_cause(model, x)}"
            ) from error
    if not isinstance(logits, Tensor):
        where = 0 if isinstance(logits, (tuple, list)) else "logits"
        raise ModelError(
            f"the model returns an object of type {type(logits).__name__}, not a tensor of logits (B, K): wrap it, as "
            f"at.load_model(model, pick={where!r}) does"
        )
    if logits.is_meta:
        raise ModelError("the model is on the meta device, which holds no numbers: load its weights on another one")
    if logits.ndim != 2 or len(logits) != len(x):
        raise ModelError(f"the model returns shape {tuple(logits.shape)} for {len(x)} images, not ({len(x)}, K) logits")
    if not logits.is_floating_point():
        raise ModelError(f"the model returns {logits.dtype}, not floating-point logits: leave out the argmax")
    if logits.shape[1] < (num_classes or 1):
        raise ModelError(
            f"the model returns {logits.shape[1]} logits and the data have {num_classes} classes: "
            f"build it with num_classes={num_classes}"
        )
    if not bool(logits.detach().isfinite().all()):
        raise ModelError("the model returns NaN or infinite logits: its weights are damaged or its input is not [0, 1]")
    if not probabilities and are_probabilities(logits):
        raise ModelError(
            "the model returns probabilities (every row is in [0, 1] and sums to 1): remove the softmax, training "
            "and attacks need logits"
        )
    return logits.shape[1]
