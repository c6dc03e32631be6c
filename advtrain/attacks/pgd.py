"""Projected gradient descent, in the variants that papers report under the same name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import at_least, bad, check_flag, one_of
from ..modes import attacking
from ..rng import Rng, as_rng
from ..threat import Threat
from .gradient import check_attack, check_steps, input_gradient
from .losses import objective
from .single import Loss


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int = 10,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    loss: Loss = "ce",
    target: Tensor | None = None,
    keep: str = "any",
    early_stop: bool | None = None,
    rng: Rng | int | None = None,
    bn: str = "eval",
    check: bool = True,
) -> Tensor:
    """Projected gradient descent: `steps` steepest-ascent steps from a random point of the ball, several times.

    Madry et al. (2018), arXiv 1706.06083. "PGD-50-10" is `steps=50, restarts=10`.

    >>> import advtrain as at
    >>> model, x, y = torch.nn.Flatten(), torch.tensor([[[[0.6, 0.4]]]]), torch.tensor([0])  # the pixels are the logits
    >>> threat = at.Threat("linf", eps=0.25)
    >>> x_adv = at.attacks.pgd(model, x, y, threat, steps=20, restarts=2, rng=0)
    >>> bool(threat.contains(x_adv, x)), model(x_adv).argmax(1)
    (True, tensor([1]))

    Args:
        model: returns logits (B, K).
        x: (B, C, H, W) float32 or float64 in the threat's pixel box.
        y: (B,) int64, the true labels.
        threat: the ball and the box that the attack may use.
        steps: ascent steps of each restart.
        step_size: in pixel units (ℓ∞) or units of length (ℓ2); 2.5 ε / steps if not given. Papers differ: FAST-BAT and
            GradAlign judge with ε/4, FAST-AT and N-FGSM with 2/255.
        restarts: independent runs; each image keeps its worst one.
        random_start: begin at a uniform draw from the ball (otherwise at x, and restarts beyond one are pointless).
        loss: `"ce"`, `"cw"`, `"dlr"`, or a function of (logits, y) with one value per image.
        target: (B,) int64: move towards these classes instead of away from y.
        keep: which iterates count. `"any"`: all of them, and a misclassified one outranks every loss; robust accuracy
            can then only fall with more steps or restarts. `"last"`: only the last of each restart, and among these the
            one of largest loss: the protocol of the FAST-AT and FAST-BAT papers.
        early_stop: stop working on an image once it is misclassified, and shrink the batch accordingly. The verdicts
            are the same. Needs `keep="any"` and `bn="eval"`, and is then the default.
        rng: names the random starts: an `Rng` or a seed. Start r is the same whatever the number of restarts.
        bn: see `advtrain.attacking`.
        check: False skips the checks of the inputs, for callers that have made them.

    Returns:
        x_adv, like x, inside the threat.

    Raises:
        ArgumentError: options out of range or at odds with each other.
        DataError, ModelError: inputs that would make the result meaningless.
    """
    check_steps(steps, step_size, threat)
    one_of("keep", keep, ("any", "last"))
    at_least("restarts", restarts, 1)
    check_flag("random_start", random_start)
    check_flag("early_stop", early_stop, none="stopping where nothing changes by it")
    if restarts > 1 and not random_start:
        bad("restarts", restarts, "1 without a random start", "every restart would be the same; set random_start=True")
    if early_stop and (keep, bn) != ("any", "eval"):
        hint = 'dropping images changes which iterate is kept, and batch statistics; use keep="any", bn="eval"'
        bad("early_stop", early_stop, f'possible with keep="{keep}", bn="{bn}"', hint)
    early_stop = (keep, bn) == ("any", "eval") if early_stop is None else early_stop
    if check:
        check_attack(model, x, y, threat, target, step_size)
    step_size = 2.5 * threat.eps / steps if step_size is None else step_size
    ascent = objective(loss, targeted=target is not None)
    rng = as_rng(rng)
    x, y = x.detach(), y.long()
    whole = threat.projector(x)

    best = x.clone()
    best_loss = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
    broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def climb(logits: Tensor) -> Tensor:
        return ascent(logits, labels, goal)

    with attacking(model, bn):
        for restart in range(restarts):
            start = threat.random_start(x, rng.child("restart", restart), whole) if random_start else x
            left = going_on(~broken) if early_stop else None
            rows = torch.arange(len(x), device=x.device) if left is None else left
            if len(rows) == 0:
                break
            everyone = len(rows) == len(x)
            x_adv, labels = (start, y) if everyone else (start[rows], y[rows])
            project = whole if everyone else threat.projector(x[rows])
            goal = None if target is None else target[rows]
            for step in range(steps + 1):
                if step == steps and restarts == 1 and keep == "last":
                    return x_adv  # nothing to compare it with: save the forward pass
                if step == steps:
                    with torch.no_grad():
                        logits = model(x_adv)
                else:
                    grad, logits = input_gradient(model, x_adv, climb)
                alive = None
                if keep == "any" or step == steps:
                    value = ascent(logits, labels, goal).to(x.dtype)
                    wrong = logits.argmax(1) != labels if goal is None else logits.argmax(1) == goal
                    better = value > best_loss[rows]
                    if keep == "any":  # a misclassified iterate outranks any loss
                        better = torch.where(wrong == broken[rows], better, wrong)
                    best[rows[better]] = x_adv[better]
                    best_loss[rows[better]] = value[better]
                    broken[rows] |= wrong
                    alive = ~wrong if early_stop else None
                if step == steps:
                    break
                x_adv = project(threat.ascend(x_adv, grad, step_size))
                on = None if alive is None else going_on(alive)
                if on is not None:
                    rows, x_adv, labels = rows[on], x_adv[on], labels[on]
                    goal = None if goal is None else goal[on]
                    if len(rows) == 0:
                        break
                    project = threat.projector(x[rows])
    return best


def grain(device: torch.device) -> int:
    """The size of a batch is a multiple of this: for every size, a GPU looks for its kernels anew."""
    return 1 if device.type == "cpu" else 64


def going_on(alive: Tensor) -> Tensor | None:
    """Which rows to go on with, where only the `alive` ones still matter: indices, or None for all.

    Some others go along, up to the next multiple of `grain`.
    """
    count, step = int(alive.sum()), grain(alive.device)
    size = min(len(alive), -(-count // step) * step)
    if size == len(alive):
        return None
    return alive.int().argsort(descending=True, stable=True)[:size].sort().values
