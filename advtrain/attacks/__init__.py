"""Attacks as pure functions: `attack(model, x, y, threat, ...) -> x_adv`.

They leave the model's modes and every `.grad` as they were, never move it between devices, and return images inside the
threat.
"""

from .apgd import apgd
from .fab import fab
from .losses import LOSSES, cross_entropy, cw_margin, dlr, dlr_targeted
from .pgd import pgd
from .single import fgsm, i_fgsm, mi_fgsm, r_fgsm
from .square import square

ATTACKS = {
    "fgsm": fgsm, "r-fgsm": r_fgsm, "i-fgsm": i_fgsm, "mi-fgsm": mi_fgsm, "pgd": pgd, "apgd": apgd, "fab": fab,
    "square": square,
}  # fmt: skip
"""Attacks by the name that the command line and the papers use."""

__all__ = [
    "ATTACKS", "LOSSES", "apgd", "cross_entropy", "cw_margin", "dlr", "dlr_targeted", "fab", "fgsm", "i_fgsm",
    "mi_fgsm", "pgd", "r_fgsm", "square",
]  # fmt: skip
