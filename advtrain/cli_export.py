"""The command `advtrain export`."""

from __future__ import annotations

from pathlib import Path

import click

from .runs import load_run


@click.command("export", short_help="Write the model of a run so that it runs with PyTorch alone.")
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FOLDER", help="Where to write it.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export in FOLDER.")
def export_command(run_folder: Path, out: Path, overwrite: bool) -> None:
    """Write the model of RUN, the folder of a run, so that it runs where this package is not installed.

    FOLDER gets model.pt2, a program for torch.export.load; model.safetensors, the weights alone; and README.md and
    model.json, which say what the model is.

    \b
        advtrain export runs/fast-at --out exported/fast-at
    """
    folder = load_run(run_folder).export(out, overwrite=overwrite)
    click.echo(f"exported to {folder}; {folder / 'README.md'} says how to run it")
