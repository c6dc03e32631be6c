"""What can go wrong, in one small family.

Every error of this package is an `AdvtrainError`; each kind is also the built-in exception a caller would expect, so
`except ValueError` keeps working. A message names the argument, what came, what is accepted, and the likely fix.
"""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any, NoReturn


class AdvtrainError(Exception):
    """Base of every error that this package raises on purpose."""


class ArgumentError(AdvtrainError, ValueError):
    """An argument is outside what the function accepts (`eps=8`, an unknown name, a negative step count)."""


class DataError(AdvtrainError, ValueError):
    """Images or labels that must not be trained on: NaN pixels, pixels in 0..255, labels out of range, no rows."""


class ModelError(AdvtrainError, ValueError):
    """The model does not fit the data or the method: wrong channels, too few logits, probabilities for logits."""


class FileError(AdvtrainError, OSError):
    """A file is missing, damaged, or cannot be written."""


class TrainingError(AdvtrainError, RuntimeError):
    """Training cannot go on: the loss or the weights are no longer finite."""


class ProcessLostError(TrainingError):
    """Of several processes that train together, another one has ended before its time."""


class AdvtrainWarning(UserWarning):
    """Something looks wrong but work goes on."""


class OverfittingWarning(AdvtrainWarning):
    """Catastrophic overfitting: accuracy under PGD has collapsed although the training attack is resisted."""


def bad(name: str, value: Any, accepted: str, hint: str = "", *, kind: type[AdvtrainError] = ArgumentError) -> NoReturn:
    """Raise `kind` with the message "name=value is not accepted: hint".

    >>> bad("eps", 8, "in (0, 1]", "pixels are in [0, 1], did you mean 8/255?")
    Traceback (most recent call last):
    ...
    advtrain.errors.ArgumentError: eps=8 is not in (0, 1]: pixels are in [0, 1], did you mean 8/255?

    Args:
        name: of the argument.
        value: what came.
        accepted: what would have been accepted, such as "in (0, 1]".
        hint: the likely fix.
        kind: the error to raise.
    """
    raise kind(f"{name}={value!r} is not {accepted}" + (f": {hint}" if hint else ""))


def one_of(name: str, value: Any, choices: Any) -> None:
    """Raise `ArgumentError` unless `value` is one of `choices`; the message lists them and the closest one.

    Args:
        name: of the argument.
        value: what came.
        choices: what is accepted.
    """
    import difflib

    choices = list(choices)
    if value not in choices:
        near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1, cutoff=0.5)
        bad(name, value, f"one of {', '.join(map(str, choices))}", f"did you mean {near[0]!r}?" if near else "")


def at_least(name: str, value: Any, low: int, hint: str = "") -> int:
    """`value` as an int if it is an integer of any type not below `low` (and no bool), else `ArgumentError`.

    Use what it returns: an integer of NumPy would fail later, where it is written as JSON.

    Args:
        name: of the argument.
        value: what came.
        low: the smallest that is accepted.
        hint: the likely fix.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < low:
        bad(name, value, f"an integer of at least {low}", hint)
    return operator.index(value)


def check_kind(name: str, value: Any, kind: type, hint: str) -> None:
    """Raise `ArgumentError` unless `value` is a `kind`; the message says what it is instead.

    Args:
        name: of the argument.
        value: what came.
        kind: the class of which it should be an instance.
        hint: the likely fix.
    """
    if not isinstance(value, kind):
        came = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        bad(name, came, f"a {kind.__name__}", hint)


def is_real(value: Any) -> bool:
    """Whether `value` is a real number of any type; a bool is none.

    Args:
        value: whatever the caller was given.
    """
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether `value` is a real number of any type that a float can hold; a bool is none.

    >>> is_finite(1), is_finite(float("nan")), is_finite(10**400)
    (True, False, False)

    Args:
        value: whatever the caller was given.
    """
    try:
        return is_real(value) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False
