"""Learning-rate schedules as pure functions of the optimizer step.

A schedule maps (step, total, per_epoch) to a `Rate`: the factor on the peak learning rate that update `step` (counted
from 0) uses, and, where a recipe cycles it, the momentum. `total` are the updates of the whole training, `per_epoch`
those of one epoch. Pure functions need no state to resume.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from .errors import bad, is_finite, kind_of, one_of


class Rate(NamedTuple):
    """What a schedule says of one update.

    Args:
        factor: multiplies the peak learning rate.
        momentum: overrides the optimizer's, unless None.
    """

    factor: float
    momentum: float | None = None


Schedule = Callable[[int, int, int], Rate]

LOOKED_AT = 1000
"""How many updates, spread over a training, a function is known by."""


def constant(step: int, total: int, per_epoch: int) -> Rate:
    """The peak learning rate throughout."""
    return Rate(1.0)


def cyclic(step: int, total: int, per_epoch: int) -> Rate:
    """Linearly up to the peak in the middle of training and down again, never exactly zero: every update counts."""
    return Rate(_triangle((step + 1) / (total + 1), 0.5))


def one_cycle(step: int, total: int, per_epoch: int) -> Rate:
    """Cosine-shaped cycle of Smith and Topin (2018), arXiv 1708.07120, with PyTorch's defaults.

    From 1/25 of the peak up in the first 30 % of the steps, then down to 1/250,000; momentum 0.95 to 0.85 and back.
    """
    t = step / max(total - 1, 1)
    if t <= 0.3:
        return Rate(_cosine(1 / 25, 1.0, t / 0.3), _cosine(0.95, 0.85, t / 0.3))
    return Rate(_cosine(1.0, 1 / 25e4, (t - 0.3) / 0.7), _cosine(0.85, 0.95, (t - 0.3) / 0.7))


def cosine(step: int, total: int, per_epoch: int) -> Rate:
    """From the peak down to zero along half a cosine."""
    return Rate(_cosine(1.0, 0.0, step / total))


def multistep(step: int, total: int, per_epoch: int) -> Rate:
    """A tenth after half of training, a hundredth after three quarters; Rice et al. (2020), arXiv 2002.11569."""
    return Rate(0.1 ** sum(step >= total * share for share in (0.5, 0.75)))


def fast_bat(step: int, total: int, per_epoch: int) -> Rate:
    """FAST-BAT (Zhang et al. 2022) and N-FGSM (de Jorge et al. 2022), as their scripts run.

    Linear 0 → peak → 0 with the peak after half of the steps. The first update has learning rate exactly 0, and because
    PyTorch's `CyclicLR` cycles momentum unless told otherwise, momentum goes 0.9 → 0.8 → 0.9.
    """
    height = _triangle(step / total, 0.5)
    return Rate(height, 0.9 - 0.1 * height)


def gradalign(step: int, total: int, per_epoch: int) -> Rate:
    """GradAlign (Andriushchenko and Flammarion 2020, arXiv 2007.02617): peak at 2/5 of training.

    The authors' code evaluates it at the end of each update's interval, so the last update has learning rate 0.
    """
    return Rate(_triangle((step + 1) / total, 0.4))


def nuat(step: int, total: int, per_epoch: int) -> Rate:
    """NuAT (Sriramanan et al. 2021): 0 → peak → 0 with the peak after a quarter; momentum 0.9 → 0.8 → 0.9."""
    height = _triangle(step / total, 0.25)
    return Rate(height, 0.9 - 0.1 * height)


def trades(step: int, total: int, per_epoch: int) -> Rate:
    """TRADES (Zhang et al. 2019): a tenth from epoch 75, a hundredth from 90, a thousandth from 100.

    arXiv 1901.08573. Epochs are counted from 1, as in the authors' loop, and do not scale with the length of training:
    of the 76 epochs of the published recipe the last two use the tenth, and fewer than 75 epochs keep the peak.
    """
    epoch = step // per_epoch + 1
    return Rate(0.1 ** sum(epoch >= first for first in (75, 90, 100)))


def sat(step: int, total: int, per_epoch: int) -> Rate:
    """SAT regularizers (Vivek and Babu 2020): 1/5, 1/25, 1/125.

    The authors' code lowers the rate *after* the epoch whose number, counted from 0, is a quarter, half, three quarters
    of the epochs in integer division: with 20 epochs the first six use the full rate.
    """
    epochs, epoch = total // per_epoch, step // per_epoch
    return Rate(5.0 ** -sum(epoch > epochs * quarter // 4 for quarter in (1, 2, 3)))


def rvs(step: int, total: int, per_epoch: int) -> Rate:
    """Robustness-via-Synthesis (Baytaş and Deb 2023), classifier: a tenth after 60/201, a hundredth after 90/201.

    With the authors' 201,000 steps these are steps 60,000 and 90,000; the step at the boundary keeps the old rate.
    """
    return Rate(0.1 ** sum(step * 201 > share * total for share in (60, 90)))


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "cyclic": cyclic,
    "one-cycle": one_cycle,
    "cosine": cosine,
    "multistep": multistep,
    "fast-bat": fast_bat,
    "n-fgsm": fast_bat,
    "gradalign": gradalign,
    "nuat": nuat,
    "trades": trades,
    "sat": sat,
    "rvs": rvs,
}
"""Schedules by the name that `fit` and the command line take."""


def get_schedule(schedule: str | Schedule) -> Schedule:
    """A schedule by its name, or the function itself.

    >>> schedule = get_schedule("cyclic")
    >>> [round(schedule(step, 9, 3).factor, 1) for step in range(9)]
    [0.2, 0.4, 0.6, 0.8, 1.0, 0.8, 0.6, 0.4, 0.2]

    Args:
        schedule: a name in `SCHEDULES`, or a function of (step, total, per_epoch).

    Raises:
        ArgumentError: an unknown name, or something else, such as a scheduler of PyTorch's.
    """
    if callable(schedule) and not isinstance(schedule, type):
        return schedule
    if schedule is not None and not isinstance(schedule, str):
        _refuse(schedule)
    one_of("schedule", schedule, SCHEDULES)
    return SCHEDULES[schedule]


def title_of(schedule: str | Schedule, total: int, per_epoch: int) -> str:
    """What a run is told of a schedule: its name in `SCHEDULES`, or of another function its name and what it says.

    The latter is no name in `SCHEDULES`, and another one for a function of the same name with other rates.

    >>> title_of("cosine", 9, 3), title_of(cosine, 9, 3), title_of(lambda step, total, per_epoch: Rate(1.0), 9, 3)
    ('cosine', 'cosine', '<lambda> (own, 53b94e58932f)')

    Args:
        schedule: as `get_schedule` takes it.
        total: updates of the whole training.
        per_epoch: those of one epoch.

    Raises:
        ArgumentError: what `check_schedule` refuses, at any of the updates that are looked at.
    """
    if isinstance(schedule, str):
        return schedule
    if known := [name for name, function in SCHEDULES.items() if function is schedule]:
        return known[0]
    check_schedule(schedule, total, per_epoch)
    found = hashlib.sha256()
    for place in range(min(total, LOOKED_AT)):
        rate = rate_at(schedule, place * total // min(total, LOOKED_AT), total, per_epoch)
        # Rounded, as the cosine of another machine may differ in its last bit.
        found.update(" ".join("-" if number is None else f"{number:.9g}" for number in rate).encode() + b"\n")
    name = getattr(schedule, "__name__", type(schedule).__name__)
    return f"{name} (own, {found.hexdigest()[:12]})"


def check_schedule(schedule: Schedule, total: int, per_epoch: int) -> None:
    """Refuse what is no schedule, and one that begins with what is no `Rate`: ask it for the first update.

    Args:
        schedule: what `get_schedule` returned.
        total, per_epoch: of the training.

    Raises:
        ArgumentError: as said.
    """
    try:
        inspect.signature(schedule).bind(0, total, per_epoch)
    except TypeError:
        _refuse(schedule)
    except ValueError:  # it is no function of Python's, and does not tell
        pass
    rate_at(schedule, 0, total, per_epoch)


def rate_at(schedule: Schedule, step: int, total: int, per_epoch: int) -> Rate:
    """What a schedule says of one update, if that can be. These are numbers of the host, so that looking is free.

    Args:
        schedule: a function of (step, total, per_epoch).
        step, total, per_epoch: what it is asked.

    Raises:
        ArgumentError: no `Rate`, a factor that is negative or not finite, or a momentum outside [0, 1).
    """
    rate, asked = schedule(step, total, per_epoch), f"schedule({step}, {total}, {per_epoch})"
    if not isinstance(rate, Rate):
        bad(asked, kind_of(rate), "a Rate", "return at.schedules.Rate(factor), the factor on the peak learning rate")
    factor, momentum = rate
    if not (is_finite(factor) and factor >= 0):
        bad(f"{asked}.factor", factor, "at least 0 and finite", "it multiplies the peak learning rate; 1 is the peak")
    if not (momentum is None or (is_finite(momentum) and 0 <= momentum < 1)):
        bad(f"{asked}.momentum", momentum, "in [0, 1)", "None leaves that of the optimizer")
    return Rate(float(factor), None if momentum is None else float(momentum))


def _refuse(schedule: Any) -> NoReturn:
    accepted = "a function of (step, total, per_epoch)"
    bad("schedule", schedule, accepted, "write one that returns at.schedules.Rate(factor), or take the name of one")


def _triangle(t: float, peak: float) -> float:
    """0 at t = 0 and t = 1, 1 at `peak`, linear between."""
    return t / peak if t <= peak else max(0.0, (1 - t) / (1 - peak))


def _cosine(start: float, end: float, t: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * t)) / 2
