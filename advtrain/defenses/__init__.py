"""Defenses: one short file for each paper, and one line in this module that registers it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..defense import Defense
from ..errors import bad, check_kind, one_of
from ..threat import Threat

# One line for each defense, in the order of every list. The name stands twice to tell type checkers that it is public.
# isort: off
from .standard import Standard as Standard
from .fgsm import FGSM as FGSM
from .fast_at import FastAT as FastAT
from .n_fgsm import NFGSM as NFGSM
from .free import Free as Free
from .gradalign import GradAlign as GradAlign
from .pgd import PGD as PGD
from .trades import TRADES as TRADES
from .nuat import NuAT as NuAT
from .sat_r1 import SATR1 as SATR1
from .sat_r2 import SATR2 as SATR2
from .sat_r3 import SATR3 as SATR3
from .fast_bat import FastBAT as FastBAT
from .rvs import RvS as RvS
# isort: on

_REGISTERED: list[type[Defense]] = [
    each
    for each in list(globals().values())
    if isinstance(each, type) and issubclass(each, Defense) and each is not Defense
]
DEFENSES: dict[str, type[Defense]] = {defense.name: defense for defense in _REGISTERED}
"""Defenses by the name that the command line and run folders use."""


def from_config(config: dict[str, Any]) -> Defense:
    """Make the defense that `Defense.config` described.

    Args:
        config: its name, threat and fields, as JSON-able values.

    Raises:
        ArgumentError: an unknown name, or a field that the defense does not have.
    """
    check_kind("config", config, dict, "it is what a defense's own .config gives")
    fields = dict(config)
    name, threat = fields.pop("name", None), fields.pop("threat", None)
    one_of("defense", name, list(DEFENSES))
    if fields.pop("class", DEFENSES[name].__name__) != DEFENSES[name].__name__:
        bad(
            "class",
            config["class"],
            f"{DEFENSES[name].__name__}, which is registered as {name!r}",
            "give a class of your own a name of its own",
        )
    try:
        return DEFENSES[name](Threat(**(threat or {})), **fields)
    except TypeError as error:
        bad("config", config, f"a configuration of {name}", str(error).replace(".__init__()", ""))


if not TYPE_CHECKING:  # which take the lines above
    __all__ = ["DEFENSES", "Defense", "from_config", *(defense.__name__ for defense in _REGISTERED)]
