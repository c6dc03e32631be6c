"""An attack by its name, or the caller's own, called in one way."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..errors import ArgumentError, at_least, bad, one_of
from ..rng import Rng
from ..threat import Threat

Attack = str | Callable[..., Tensor]
Chosen = Callable[[nn.Module, Tensor, Tensor, Threat, Rng], Tensor]


def name_of(attack: Any) -> str:
    """What to call an attack: its name, or that of the caller's function.

    Args:
        attack: a name in `advtrain.attacks.ATTACKS`, or a function.
    """
    return attack if isinstance(attack, str) else str(getattr(attack, "__name__", type(attack).__name__))


def written(attack: Any) -> str:
    """The name of an attack as texts write it: `PGD`, `R-FGSM`, `Square`; of the caller's own as it is.

    Args:
        attack: as in `name_of`.
    """
    name = name_of(attack)
    return "Square" if name == "square" else name.upper() if isinstance(attack, str) else name


def choose(attack: Attack, steps: int) -> Chosen:
    """`attack(model, x, y, threat, rng)` of an attack by its name, or of the caller's own.

    Args:
        attack: a name in `advtrain.attacks.ATTACKS`, called without its checks of the inputs; or a function of
            (model, x, y, threat) that returns images of the shape of x, which may leave the ball: that is the caller's
            to say.
        steps: steps of an iterated attack; its step size is its own default.

    Raises:
        ArgumentError: an unknown name, or steps below one; when called, a function that returns something else.
    """
    from . import ATTACKS  # it imports this module

    at_least("steps", steps, 1)
    if callable(attack):

        def own(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
            x_adv = attack(model, x, y, threat)
            if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
                came = tuple(x_adv.shape) if isinstance(x_adv, Tensor) else type(x_adv).__name__
                raise ArgumentError(f"{name_of(attack)} returned {came}, not images of shape {tuple(x.shape)}")
            return x_adv.detach()

        return own
    if not isinstance(attack, str):
        bad("attack", attack, "a name or a function", f"the names are {', '.join(ATTACKS)}")
    one_of("attack", attack, ATTACKS)
    function = ATTACKS[attack]

    def named(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        options = {key: value for key, value in {"steps": steps, "rng": rng}.items() if key in taken}
        return function(model, x, y, threat, check=False, **options)

    taken = inspect.signature(function).parameters
    return named
