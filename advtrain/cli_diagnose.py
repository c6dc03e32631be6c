"""The command `advtrain diagnose`."""

from __future__ import annotations

from pathlib import Path

import click

from .cli_judge import Subject, with_subject
from .diagnose import diagnose
from .errors import AdvtrainError, bad
from .files import atomic, check_file, write_json
from .options import OVERWRITE, PROGRESS, check_distinct


@click.command("diagnose", short_help="Does the robustness of a run, or of any model, hold?")
@with_subject
@click.option("--images", type=click.IntRange(min=1), default=256, show_default=True, help="How many to judge by.")
@click.option("--batch-size", type=click.IntRange(min=1), default=512, show_default=True)
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Where to draw it: a .png, .svg or .pdf file."
)
@PROGRESS
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the diagnosis as JSON.")
@OVERWRITE
def diagnose_command(
    subject: Subject, images: int, batch_size: int, progress: bool | None, plot: Path | None, out: Path | None,
    overwrite: bool,
) -> None:  # fmt: skip
    """Look for gradient masking in every way known, and name the cause.

    The model is the one in RUN, the folder of a run; or any network, named by --model, on --data and within --eps. Some
    twenty checks, each with its figure and its source, and a verdict in words. Takes seconds on small networks.

    \b
        advtrain diagnose runs/fast-at
        advtrain diagnose --model package.module:factory --weights weights.pt --data cifar10 --eps 8/255
        advtrain diagnose --model mynet.py:Net --weights mynet.pt --data ./photographs --size 64 --eps 4/255
    """
    ending = drawn_as(plot) if plot else ""
    files = ("--plot", plot), ("--out", out)
    check_distinct(*files)
    for option, path in files:
        if path:
            check_file(option, path, overwrite=overwrite)
    found = diagnose(
        subject.model,
        subject.split,
        subject.threat,
        images=images,
        seed=subject.seed,
        batch_size=batch_size,
        progress=progress,
    )
    click.echo(subject.title)
    click.echo(found)
    if out:
        write_json(out, {**found.to_dict(), **subject.source})
    if plot:
        with atomic(plot) as partial:
            found.plot().savefig(partial, format=ending)


def drawn_as(path: Path) -> str:
    """The format of a picture, which its name ends in: png if there is no ending.

    Raises:
        ArgumentError: one that matplotlib does not write.
        AdvtrainError: there is no matplotlib.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise AdvtrainError(f"--plot needs matplotlib: pip install matplotlib ({error})") from error
    ending = path.suffix.lstrip(".").lower() or "png"
    if ending not in FigureCanvasBase.get_supported_filetypes():
        bad("plot", str(path), "a .png, .svg or .pdf file", f"write {path.stem}.png")
    return ending
