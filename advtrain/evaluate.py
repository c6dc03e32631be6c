"""How often is the model right, on clean images and under attack, and how sure are we of that figure?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import attacks
from .attacks.gradient import check_box, check_room, input_gradient
from .attacks.losses import cross_entropy
from .autoattack import VERSIONS, judge_split
from .checks import check_model, check_threat
from .data import Split, as_split, digest_of, order_of
from .errors import ModelError, at_least, bad, check_flag, check_kind, is_real, one_of
from .modes import attacking, evaluating, place
from .progress import progress_bar
from .report import Report, Row, count
from .rng import Rng
from .threat import Threat, format_eps


@dataclass(frozen=True)
class Protocol:
    """One way of judging by PGD. Papers use the same name, PGD-50-10, for different ones.

    Args:
        steps, restarts: as in `advtrain.attacks.pgd`.
        rel_step: step size in units of ε.
        step_size: step size in pixel units; overrides `rel_step`.
        keep: `"any"` misclassified iterate counts, or the `"last"` of each restart, by the largest loss.
    """

    steps: int = 50
    restarts: int = 10
    rel_step: float = 0.25
    step_size: float | None = None
    keep: str = "any"

    def __post_init__(self) -> None:
        one_of("keep", self.keep, ("any", "last"))
        for name in ("steps", "restarts"):
            at_least(name, getattr(self, name), 1)
        for name in ("rel_step", "step_size"):
            value = getattr(self, name)
            if not (is_real(value) and 0 < value < math.inf) and (name, value) != ("step_size", None):
                bad(
                    name,
                    value,
                    "above 0 and finite",
                    "in units of ε" if name == "rel_step" else "in pixels: 2/255, say",
                )

    def size(self, threat: Threat) -> float:
        """The step size in pixel units."""
        return self.rel_step * threat.eps if self.step_size is None else self.step_size

    def describe(self, threat: Threat) -> str:
        """The protocol in a few words, such as "50 steps of 2/255, 10 restarts, any iterate"."""
        which = {"any": "any iterate", "last": "last iterate"}[self.keep]
        restarts = count(self.restarts, "restart")
        return f"{self.steps} steps of {format_eps(self.size(threat))}, {restarts}, {which}"


PROTOCOLS: dict[str, Protocol] = {
    # ours: step ε/4 as FAST-BAT and GradAlign, but no misclassified iterate is forgotten, so it never flatters more
    "strict": Protocol(),
    "fast-bat": Protocol(keep="last"),  # Zhang et al. 2022: PGD-50-10, step ε/4, restart of largest loss
    "gradalign": Protocol(keep="last"),  # Andriushchenko and Flammarion 2020: the same, on 1,000 images
    "fgsm-rs": Protocol(step_size=2 / 255, keep="last"),  # Wong et al. 2020: step 2/255
    "n-fgsm": Protocol(step_size=2 / 255, keep="last"),  # de Jorge et al. 2022: step 2/255
}
"""Protocols by name: ours, and those of the papers."""


def count_correct(model: nn.Module, split: Split, attack: Any = None, **options: Any) -> int:
    """How many images of `split` the model classifies correctly; arguments as of `find_correct`."""
    return int(find_correct(model, split, attack, **options).sum())


@torch.no_grad()
def find_correct(
    model: nn.Module,
    split: Split,
    attack: Callable[[Tensor, Tensor, Rng], Tensor] | None = None,
    *,
    batch_size: int = 512,
    seed: int = 0,
    order: Tensor | None = None,
    tick: Callable[[int], Any] = lambda n: None,
) -> Tensor:
    """Which images of `split` the model, in evaluation mode, classifies correctly after `attack(x, y, rng)`: (N,).

    Batches are taken in `order`, positions (N,), if it is given; the answers are in the order of `split` all the same.
    """
    device, dtype = place(model)
    correct = []
    with evaluating(model):
        for number, first in enumerate(range(0, len(split), batch_size)):
            rows = slice(first, first + batch_size)
            part = split[rows if order is None else order[rows]].to(device)
            x, y = part.images(dtype=dtype), part.y
            if attack is not None:
                x = attack(x, y, Rng(seed, "evaluate", number))
            correct.append(model(x).argmax(1) == y)
            tick(len(y))
    found = torch.cat(correct) if correct else torch.zeros(0, dtype=torch.bool)
    return found if order is None else found[order.argsort().to(found.device)]


def check_gradient(model: nn.Module, part: Split, dtype: torch.dtype) -> None:
    """Refuse a model whose input gradient is not finite: attacks are blind to it, and blindness looks like robustness.

    Raises:
        ModelError: no gradient, or NaN or infinity in that of some image.
    """
    try:
        with attacking(model, "eval"):
            x = part.images(dtype=dtype)
            grad, _ = input_gradient(model, x, lambda logits: cross_entropy(logits, part.y))
    except (torch.OutOfMemoryError, ModelError):
        raise
    except RuntimeError as error:
        raise ModelError(
            f"the model has no gradient with respect to its images, which attacks need: {str(error).rstrip('.')}. Look "
            "in its forward for no_grad, detach, numpy, rounding, or images changed in place"
        ) from error
    blind = int((~grad.isfinite()).flatten(1).any(1).sum())
    if blind:
        raise ModelError(
            f"the model's input gradient is NaN or infinite for {blind} of {len(part)} images, so that attacks "
            "would call it robust: look for a square root, norm or division at zero"
        )


def check_subject(model: nn.Module, split: Split, threat: Threat, batch_size: int) -> tuple[Tensor, int]:
    """Refuse what `evaluate` cannot judge; else the order in which it judges the images, and the number of logits.

    Costs one gradient of a batch.

    Args:
        model, threat, batch_size: as in `evaluate`.
        split: the images.

    Returns:
        (N,) int64, see `advtrain.data.order_of`; and how many logits the model returns.
    """
    at_least("batch_size", batch_size, 1)
    check_threat(threat)
    check_kind("model", model, nn.Module, "the order is evaluate(model, data, threat)")
    device, dtype = place(model)
    order = order_of(split)
    classes = check_model(model, split[order[:2]].to(device).images(dtype=dtype), int(split.y.max()) + 1)
    check_box(split, threat)
    check_gradient(model, split[order[:batch_size]].to(device), dtype)
    return order, classes


def evaluate(
    model: nn.Module,
    data: Any,
    threat: Threat,
    *,
    protocol: str | Protocol = "strict",
    autoattack: str | None = None,
    batch_size: int = 512,
    seed: int = 0,
    progress: bool | None = None,
) -> Report:
    """Clean accuracy, accuracy under FGSM, under PGD-50-10, and on request under AutoAttack, with 95% intervals.

    >>> import advtrain as at
    >>> data, model = at.load_data("digits"), at.load_results("digits").run("fgsm").model  # its gradient is masked
    >>> report = at.evaluate(model, data.test[:40], at.Threat("linf", eps=0.3))
    >>> report["clean"] > 0.9, report["fgsm"] > 0.4, report["pgd"] < 0.1
    (True, True, True)

    The order in which images are given plays no part: they are judged in that of their hashes, as in `load_data`, and
    their verdicts come in the caller's. The training and validation images of a seed have an order of that seed, which
    a `Split` keeps: pass `data.val` itself, for its tensors alone get other random starts.

    Args:
        model: returns logits; judged in evaluation mode on the device it is on, and left as it was.
        data: a `Split`, such as `data.test`; a `Dataset` (its test split); or a pair (x, y) with x (B, C, H, W) uint8
            in 0..255 or float in [0, 1] and y (B,) integers.
        threat: what the attacker may do.
        protocol: a name in `PROTOCOLS` (`"strict"`, `"fast-bat"`, `"gradalign"`, `"fgsm-rs"`, `"n-fgsm"`) or a
            `Protocol` with steps, restarts, step size and which iterate counts.
        autoattack: a version of AutoAttack, such as `"standard"`, to judge by as well: hundreds of times the work of
            PGD-50-10 for images that withstand it. See `advtrain.autoattack`, which tells more.
        batch_size: images per batch; changes nothing but memory, speed, and which random starts an image gets.
        seed: names the random starts.
        progress: show a bar; by default only in a terminal or a notebook.

    Returns:
        A `Report` with the rows `"clean"`, `"fgsm"`, `"pgd"`, and `"autoattack"` if asked for. Without the last it is
        an upper bound of robustness: only AutoAttack, or an attack made for the defense, supports the word robust.

    Raises:
        ArgumentError, DataError, ModelError: see `advtrain.errors`.

    Warns:
        AdvtrainWarning: AutoAttack's doubts, such as gradients that vanish; `report.warnings` keeps them.
    """
    if not isinstance(protocol, Protocol):
        one_of("protocol", protocol, PROTOCOLS)
        protocol = PROTOCOLS[protocol]
    if autoattack is not None:
        one_of("autoattack", autoattack, VERSIONS)
    seed = at_least("seed", seed, 0)
    check_flag("progress", progress, none="a bar where somebody watches")
    split = as_split(data)
    order, classes = check_subject(model, split, threat, batch_size)
    check_room("step_size", protocol.step_size, threat, split.shape[1:])

    def fgsm(x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        return attacks.fgsm(model, x, y, threat, check=False)

    def pgd(x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        return attacks.pgd(
            model, x, y, threat, steps=protocol.steps, step_size=protocol.size(threat), restarts=protocol.restarts,
            keep=protocol.keep, rng=rng, check=False,
        )  # fmt: skip

    plan = [("clean", None, ""), ("fgsm", fgsm, "one step of ε"), ("pgd", pgd, protocol.describe(threat))]
    report = Report(threat, classes=classes, images=digest_of(split))
    with progress_bar(progress, total=len(plan) * len(split), unit="img", desc="evaluate") as bar:
        for name, attack, details in plan:
            bar.set_description(f"evaluate {name}")
            options = {"batch_size": batch_size, "seed": seed, "order": order, "tick": bar.update}
            correct = find_correct(model, split, attack, **options).cpu()
            report.rows.append(Row(name, int(correct.sum()), len(split), details, correct))
    if autoattack is not None:
        verdict = judge_split(model, split, threat, autoattack, seed=seed, progress=progress)
        report.rows.append(verdict.rows[-1])
        report.warnings += verdict.warnings
    return report
