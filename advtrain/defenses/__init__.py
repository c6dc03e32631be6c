"""Defenses: one short file for each paper, and one line in this module that registers it."""

from __future__ import annotations

from typing import Any

from ..defense import Defense
from ..errors import bad, one_of
from ..threat import Threat
from .fast_at import FastAT
from .fast_bat import FastBAT
from .fgsm import FGSM
from .free import Free
from .gradalign import GradAlign
from .n_fgsm import NFGSM
from .nuat import NuAT
from .pgd import PGD
from .rvs import RvS
from .sat_r1 import SATR1
from .sat_r2 import SATR2
from .sat_r3 import SATR3
from .standard import Standard
from .trades import TRADES

DEFENSES: dict[str, type[Defense]] = {
    defense.name: defense
    for defense in (
        Standard, FGSM, FastAT, NFGSM, Free, GradAlign, PGD, TRADES, NuAT, SATR1, SATR2, SATR3, FastBAT, RvS,
    )
}  # fmt: skip
"""Defenses by the name that the command line and run folders use."""


def from_config(config: dict[str, Any]) -> Defense:
    """Make the defense that `Defense.config` described.

    Args:
        config: its name, threat and fields, as JSON-able values.

    Raises:
        ArgumentError: an unknown name, or a field that the defense does not have.
    """
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
        bad("config", config, f"a configuration of {name}", str(error))


__all__ = [
    "DEFENSES", "FGSM", "NFGSM", "PGD", "SATR1", "SATR2", "SATR3", "TRADES", "Defense", "FastAT", "FastBAT", "Free",
    "GradAlign", "NuAT", "RvS", "Standard", "from_config",
]  # fmt: skip
