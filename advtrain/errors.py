"""What can go wrong, in one small family.

Every error of this package is an `AdvtrainError`; each kind is also the built-in exception a caller would expect, so
`except ValueError` keeps working. A message names the argument, what came, what is accepted, and the likely fix.
"""

from __future__ import annotations

import difflib
import math
import numbers
import operator
import os
import re
from pathlib import Path
from typing import Any, NoReturn

_SHOWN = 100
"""Characters of a value that a message shows at most."""


class AdvtrainError(Exception):
    """Base of every error that this package raises on purpose. Its message is one line, whatever it quotes."""

    def __init__(self, *args: Any):
        lines = (re.sub(r"\s*\n\s*", " ", arg) if isinstance(arg, str) else arg for arg in args)
        super().__init__(*lines)


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
        hint: the likely fix. Where a number is wanted and something like one came, the message says that instead.
        kind: the error to raise.
    """
    pair = hint and isinstance(value, (list, tuple))  # of several numbers, such as extremes: the hint knows better
    hint = (_slip(value) if _NUMERIC.match(accepted) and not pair else "") or hint
    raise kind(f"{name}={shown(value)} is not {accepted}" + (f": {hint}" if hint else ""))


_NUMERIC = re.compile(r"(an integer|a number(?! or a fraction)|a finite number|above|at least \d|in [\[(]|6n)")
"""What is accepted begins like this where it is a number."""


def shown(value: Any) -> str:
    """`value` in one line of a message: not longer than 100 characters, and without an address in memory.

    Args:
        value: whatever the caller was given.
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = repr(value)
    if "\n" in text or re.search(r"\bat 0x[0-9a-fA-F]+", text):
        name = getattr(value, "__qualname__", None)
        return f"the function {name}" if callable(value) and name else f"an object of type {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _slip(value: Any) -> str:
    """What to do about something that is nearly a number; nothing where it is one, or nothing like it."""
    if isinstance(value, bool):
        return "it is a number, not a switch"
    if isinstance(value, str):
        number = value.replace("/", "").replace(".", "").replace("e-", "").lstrip("-")
        return "write it without quotes" if number.isdecimal() else ""
    if isinstance(value, float):
        if not math.isfinite(value):
            return "look where it was computed: it is no finite number"
        return ""
    if isinstance(value, numbers.Number) or value is None:
        return ""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return "take the number out of it: .item()"
    return "one number, not several" if isinstance(value, (list, tuple)) else ""


def one_of(name: str, value: Any, choices: Any) -> None:
    """Raise `ArgumentError` unless `value` is one of `choices`; the message lists them and the closest one.

    Of many choices it lists the closest ones.

    Args:
        name: of the argument.
        value: what came.
        choices: what is accepted.
    """
    choices = list(choices)
    try:
        if value in choices:
            return
    except (RuntimeError, ValueError):  # of arrays, which compare element by element
        pass
    names = {str(choice).lower(): str(choice) for choice in choices}
    word = "" if value is None or isinstance(value, type) else str(value).lower()
    near = [word] if word in names else difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    listed = ", ".join(map(str, choices))
    if len(listed) > 4 * _SHOWN:
        closest = difflib.get_close_matches(word, names, n=4, cutoff=0) if word else list(names)[:4]
        listed = f"{len(choices)} names, such as {', '.join(names[each] for each in closest)}"
    words = not isinstance(value, str) and all(isinstance(choice, str) for choice in choices)
    hint = f"did you mean {names[near[0]]!r}?" if near else "write its name in quotes" if words else ""
    bad(name, value, f"one of {listed}", hint)


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
        if isinstance(value, float) and math.isfinite(value) and value >= low:
            hint = f"write {round(value)}"
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
        bad(name, kind_of(value), f"a {kind.__name__}", hint)


class _Said(str):
    """Words about a value, which a message shows without quotes."""

    __repr__ = str.__str__


def words_of(error: BaseException) -> str:
    """What an exception says, in one line; the name of its class if it says nothing.

    Args:
        error: any exception.
    """
    return " ".join(str(error).split()) or type(error).__name__


def kind_of(value: Any) -> Any:
    """What to show of a value of the wrong type: a word, a number, None or a class itself, of anything else its type.

    Args:
        value: what came.
    """
    plain = value is None or isinstance(value, (str, type, numbers.Number))
    return value if plain else _Said(f"an object of type {type(value).__name__}")


def check_flag(name: str, value: Any, *, none: str = "") -> None:
    """Raise `ArgumentError` unless `value` is True or False: of words, even "no" would count as true.

    Args:
        name: of the argument.
        value: what came.
        none: what None stands for, where it is accepted too.
    """
    if not (isinstance(value, bool) or (none and value is None)):
        text = "write it without quotes: of text even 'no' would count as true" if isinstance(value, str) else ""
        hint = f"None stands for {none}" if none else text
        bad(name, kind_of(value), "True, False or None" if none else "True or False", hint)


def check_path(name: str, value: Any, what: str = "file") -> Path:
    """`value` as a path, in which `~` is the home folder; else `ArgumentError`.

    Use what it returns: of the caller's text, `~` would be a folder of that name.

    Args:
        name: of the argument.
        value: what came.
        what: should be there.
    """
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not text or not isinstance(text, str):
        hint = "'.' is the current folder" if value == "" and what == "folder" else "write it as text, or as a Path"
        bad(name, kind_of(value), f"the path of a {what}", hint)
    if "\0" in text:
        bad(name, text, f"the path of a {what}", "no file can have a NUL character in its name")
    if text.encode(errors="replace").decode() != text:
        bad(name, text, f"the path of a {what}", "its name is not Unicode: rename what it leads through")
    return Path(os.path.expanduser(text))


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


def as_number(value: Any) -> Any:
    """A number of any type, such as NumPy's, as one that JSON knows; anything else, also a bool, as it came.

    Args:
        value: whatever the caller was given.
    """
    if not is_real(value):
        return value
    return operator.index(value) if isinstance(value, numbers.Integral) else float(value)
