"""Command-line options made from the Python API: fields and signatures are the only list of options there is."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

import click

from .errors import ArgumentError
from .modes import BN_MODES
from .presets import PRESETS
from .recipe import OPTIMIZERS
from .schedules import SCHEDULES
from .threat import NORMS, parse_eps

CHOICES: dict[str, Iterable[str]] = {
    "bn": BN_MODES,
    "norm": NORMS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "code": ("gradalign", "fast-bat"),
    "select": ("last", "best"),
}


class Radius(click.ParamType):
    """A number or a fraction, such as 0.3 or 8/255."""

    name = "radius"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            return value if isinstance(value, float) else parse_eps(value)
        except ArgumentError as error:
            self.fail(str(error), param, ctx)


class Count(click.ParamType):
    """A whole number (5000) or a share (0.1); which of the two, the text says."""

    name = "number"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        for kind in (int, float):
            try:
                return value if isinstance(value, (int, float)) else kind(value)
            except ValueError:
                continue
        self.fail(f"{value!r} is not a number", param, ctx)


def field_options(cls: type, skip: Iterable[str] = ()) -> list[click.Option]:
    """One option per field of a dataclass."""
    hints, texts = typing.get_type_hints(cls), documented(cls)
    return [
        make_option(field.name, hints[field.name], field.default, texts.get(field.name, ""))
        for field in dataclasses.fields(cls)
        if field.name not in skip and field.init
    ]


def signature_options(function: Callable[..., Any], skip: Iterable[str] = ()) -> list[click.Option]:
    """One option per keyword-only parameter of a function."""
    hints, texts = typing.get_type_hints(function), documented(function)
    return [
        make_option(name, hints[name], parameter.default, texts.get(name, ""))
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in skip
    ]


def preset_options(defense: str) -> list[click.Option]:
    """`--preset`, for a defense that has published recipes: what the recipe says becomes the other options' default."""
    recipes = {preset.label: preset for preset in PRESETS.values() if preset.defense == defense}

    def use(ctx: click.Context, option: click.Parameter, label: str | None) -> None:
        if label:
            recipe = recipes[label]
            model_option = [f"{key}={value}".lower() for key, value in recipe.model_options.items()]
            names = {"data_name": recipe.data, "model_name": recipe.model, "model_option": model_option}
            ctx.default_map = {**names, "eps": recipe.eps, **recipe.options, **recipe.fit}

    text = "A published recipe: its constants are used wherever an option is not given."
    kind = click.Choice(list(recipes))
    return [click.Option(["--preset"], type=kind, is_eager=True, expose_value=False, callback=use, help=text)] * bool(
        recipes
    )


def make_option(name: str, hint: Any, default: Any, text: str) -> click.Option:
    """An option `--some-name` of the type and default of the Python parameter `some_name`."""
    kinds = [kind for kind in _alternatives(hint) if kind in (bool, int, float, str)]
    kind = kinds[0] if kinds else str
    flag = "--" + name.replace("_", "-")
    required = default in (inspect.Parameter.empty, dataclasses.MISSING)
    settings: dict[str, Any] = {
        "help": text,
        "required": required,
        "show_default": default is not None and not required,
    }
    if not required:
        settings["default"] = default
    if kind is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}"], **settings)
    if name in CHOICES:
        return click.Option([flag], type=click.Choice(list(CHOICES[name])), **settings)
    if name in ("eps", "step_size"):
        kind = Radius()
    elif {int, float} <= set(kinds):
        kind = Count()
    return click.Option([flag], type=kind, **settings)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """`(float, NoneType)` for `float | None`, `(float,)` for `float`."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def documented(thing: Any) -> dict[str, str]:
    """What the `Args:` sections of a docstring, and of the classes it inherits from, say of each argument."""
    texts: dict[str, str] = {}
    for owner in reversed(getattr(thing, "__mro__", (thing,))):
        section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.cleandoc(owner.__doc__ or ""), re.DOTALL | re.MULTILINE)
        for names, text in re.findall(
            r"^    (\w[\w, ]*): (.*?)(?=^    \w|\Z)", section[1] if section else "", re.DOTALL | re.MULTILINE
        ):
            for name in names.split(", "):
                texts[name] = " ".join(text.split()).replace("`", "")
    return texts


def summary(thing: Any) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]
