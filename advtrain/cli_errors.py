"""What is said of a wrong command line: what there is, what was probably meant, and where to read more."""

from __future__ import annotations

from typing import Any

import click

from .errors import ArgumentError, one_of


class Commands(click.Group):
    """A group whose error about an unknown command says which there are, and which was probably meant."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            try:
                one_of("command", name, self.list_commands(ctx))
            except ArgumentError as error:
                raise click.UsageError(str(error), ctx) from error
        return super().resolve_command(ctx, args)


def one_line(error: click.ClickException) -> str:
    """What click says of a wrong command line in one line, and where to read more.

    Args:
        error: as click raised it.
    """
    said = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{said} ({context.command_path} --help says more)" if context is not None else said


class Choice(click.Choice):
    """One of several words; its error also says which was probably meant."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            one_of("", value, self.choices)
        except ArgumentError as error:
            self.fail(str(error)[1:], param, ctx)
        return super().convert(value, param, ctx)
