"""The command `advtrain data`."""

from __future__ import annotations

import click

from . import data as data_room
from .cli_errors import Commands
from .errors import FileError
from .options import PROGRESS


@click.group("data", cls=Commands)
def data_group() -> None:
    """Fetch data sets for offline work, and see which are at hand."""


@data_group.command("fetch")
@click.argument("names", nargs=-1, required=True, metavar="NAMES")
@click.option("--root", help="Folder to keep them in; by default ADVTRAIN_DATA, or the user's cache.")
@PROGRESS
def fetch_command(names: tuple[str, ...], root: str | None, progress: bool | None) -> None:
    """Download data sets from their authors, check them, and keep them as .npz files."""
    for name in names:
        click.echo(f"{name}: {data_room.fetch(name, root=root, progress=progress)}")


@data_group.command("list")
@click.option("--root", help="Folder to look in; by default ADVTRAIN_DATA, or the user's cache.")
def data_list_command(root: str | None) -> None:
    """Say which data sets are at hand, and where."""
    for name in data_room.data_names(root):
        try:
            place = "in the package" if name == "digits" else data_room.locate(name, root)
        except FileError:
            place = f"not here; advtrain data fetch {name} gets it"
        click.echo(f"{name:<14} {place}")
