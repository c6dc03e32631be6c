"""Command-line options made from the Python API: fields and signatures are the only list of options there is."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

import click
from click.core import ParameterSource

from .cli_errors import Choice
from .errors import ArgumentError
from .modes import BN_MODES
from .presets import PRESETS, Preset
from .recipe import ON_OVERFIT, OPTIMIZERS
from .schedules import SCHEDULES
from .threat import NORMS, format_eps, parse_eps

CHOICES: dict[str, Iterable[str]] = {
    "bn": BN_MODES,
    "norm": NORMS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "code": ("gradalign", "fast-bat"),
    "select": ("last", "best"),
    "on_overfit": ON_OVERFIT,
}


DATA_HELP = (
    "digits, mnist, cifar10, …, an .npz file, or ./FOLDER with a folder of images for each class, or with x_train.npy "
    "and y_train.npy."
)

OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace files of earlier reports.")
PROGRESS = click.option(
    "--progress/--no-progress",
    default=None,
    help="Show a bar, or in a log file a line every ten seconds; by default only in a terminal.",
)


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


class Numbers(click.ParamType):
    """One number or several with commas between them, such as 0.49,0.48,0.45."""

    name = "number,…"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        try:
            return value if isinstance(value, tuple) else tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a number, or several with commas between them: 0.49,0.48,0.45", param, ctx)


class OrNone(click.ParamType):
    """What another type accepts, or the word `none`: that of a parameter `X | None`.

    Args:
        kind: the other type.
    """

    def __init__(self, kind: Any):
        self.kind = click.types.convert_type(kind)
        self.name = f"{self.kind.name}|none"

    def get_metavar(self, *where: Any, **context: Any) -> str:
        return f"{self.kind.get_metavar(*where, **context) or self.kind.name.upper()}|none"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return None if str(value).lower() == "none" else self.kind.convert(value, param, ctx)


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
            recipe = ctx.meta[_RECIPE] = recipes[label]
            given = {"data_name": recipe.data, "model_name": recipe.model, "eps": format_eps(recipe.eps)}
            given |= {name: "none" if value is None else value for name, value in (recipe.options | recipe.fit).items()}
            ctx.default_map = given
            for other in ctx.command.params:  # made anew for each call of the command line, so nobody else's
                if isinstance(other, click.Option) and other.name in given:
                    other.required, other.show_default = False, True

    text = "A published recipe: its constants are used wherever an option is not given."
    kind = Choice(list(recipes))
    return [click.Option(["--preset"], type=kind, is_eager=True, expose_value=False, callback=use, help=text)] * bool(
        recipes
    )


_RECIPE = "advtrain.preset"  # where the context keeps the recipe that was asked for


def with_preset(ctx: click.Context, model_name: str | None, pairs: tuple[str, ...]) -> tuple[str, ...]:
    """The model options that were given, behind those of the preset, so that of two with one name the given one wins.

    The options of the preset belong to its model; with another model they are left out, and stderr says so.

    Args:
        ctx: that of the running command.
        model_name: the model to build.
        pairs: the options as given, each as `name=value`.
    """
    recipe: Preset | None = ctx.meta.get(_RECIPE)
    if recipe is None or not recipe.model_options:
        return pairs
    own = tuple(f"{name}={value}".lower() for name, value in recipe.model_options.items())
    if model_name != recipe.model:
        message = f"note: the preset's options of {recipe.model} are not used for {model_name}: {', '.join(own)}"
        click.echo(message, err=True)
        return pairs
    return own + pairs


def name_values(pairs: Iterable[str], taken: Iterable[str] = ()) -> dict[str, Any]:
    """`("width=16", "activation=tanh")` as a dict: numbers as numbers; true, false and none as what they are in Python.

    Args:
        pairs: what `--model-option` was given.
        taken: names that are no options of the model.
    """
    options: dict[str, Any] = {}
    words = {"true": True, "false": False, "none": None}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE, such as width=16", param_hint="--model-option")
        if name in taken:
            raise click.BadParameter(f"{name} is not an option of the model itself", param_hint="--model-option")
        found: Any = words.get(value.lower(), value)
        for kind in (float, int):
            with contextlib.suppress(ValueError):
                found = kind(value) if math.isfinite(float(value)) else value
        options[name.replace("-", "_")] = found
    return options


def refuse(context: click.Context, option: str, *read: str) -> None:
    """Refuse what was given on the command line beside `option` and would do nothing with it.

    Args:
        context: that of the running command.
        option: what makes the others useless, such as `--list`.
        read: names of the parameters that have an effect beside it.
    """
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        if given and parameter.name not in read and option not in parameter.opts:
            name = parameter.human_readable_name.strip("[]")
            what = name if isinstance(parameter, click.Argument) else parameter.opts[0]
            raise click.UsageError(f"{what} does nothing with {option}: leave it out")


def make_option(name: str, hint: Any, default: Any, text: str) -> click.Option:
    """An option `--some-name` of the type and default of the Python parameter `some_name`."""
    accepted = _alternatives(hint)
    kinds = [kind for kind in accepted if kind in (bool, int, float, str)]
    kind: Any = kinds[0] if kinds else str
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
        kind = Choice(list(CHOICES[name]))
    elif name in ("eps", "step_size"):
        kind = Radius()
    elif {int, float} <= set(kinds):
        kind = Count()
    return click.Option([flag], type=OrNone(kind) if type(None) in accepted else kind, **settings)


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


def check_distinct(*files: tuple[str, Any]) -> None:
    """Refuse one file under two options, of which the second would be written over the first.

    Args:
        *files: pairs of an option and the path that it was given, or None.
    """
    named: dict[str, str] = {}
    for option, path in files:
        if not path:
            continue
        place = os.path.normcase(os.path.realpath(os.path.expanduser(path)))
        if (other := named.setdefault(place, option)) != option:
            raise click.UsageError(f"{other} and {option} name the same file, {path}: give each its own")
