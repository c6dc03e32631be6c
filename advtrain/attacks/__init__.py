"""Attacks as pure functions: `attack(model, x, y, threat, ...) -> x_adv`.

They leave the model's modes and every `.grad` as they were, never move it between devices, and return images inside the
threat.
"""

from collections.abc import Callable

from torch import Tensor

from .adaptive import ADAPTIVE, adaptive, r_fgsm_pgd
from .apgd import apgd
from .fab import fab
from .feature_space import feature_attack, transport_attack
from .losses import LOSSES, cross_entropy, cw_margin, dlr, dlr_targeted
from .pgd import pgd
from .single import fgsm, i_fgsm, mi_fgsm, r_fgsm
from .square import square

ATTACKS: dict[str, Callable[..., Tensor]] = {
    "fgsm": fgsm, "r-fgsm": r_fgsm, "i-fgsm": i_fgsm, "mi-fgsm": mi_fgsm, "pgd": pgd, "apgd": apgd, "fab": fab,
    "square": square,
}  # fmt: skip
"""Attacks by the name that the command line and the papers use."""

__all__ = [
    "ADAPTIVE", "ATTACKS", "LOSSES", "adaptive", "apgd", "cross_entropy", "cw_margin", "dlr", "dlr_targeted", "fab",
    "feature_attack", "fgsm", "i_fgsm", "mi_fgsm", "pgd", "r_fgsm", "r_fgsm_pgd", "square", "transport_attack",
]  # fmt: skip
