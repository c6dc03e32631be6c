"""The command line: `advtrain train`, `evaluate`, `diagnose`, `reproduce`, `export`, `list`, `data`; also as
`python -m advtrain`.

Options are generated from the fields and signatures of the Python API, so that both say the same.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
import warnings
from typing import Any

import click
from torch import nn

from . import data as data_room
from .attacks import ATTACKS
from .callbacks import TensorBoard
from .cli_data import data_group
from .cli_diagnose import diagnose_command
from .cli_errors import Choice, Commands, one_line
from .cli_export import export_command
from .cli_judge import evaluate_command, source_of, verdict
from .cli_reproduce import reproduce_command
from .defense import Defense
from .defenses import DEFENSES
from .errors import AdvtrainError
from .evaluate import evaluate
from .files import check_file, check_free_of, check_writable, write_json
from .models import MODELS, build_model
from .options import (
    DATA_HELP,
    field_options,
    name_values,
    preset_options,
    signature_options,
    summary,
    with_preset,
)
from .presets import PRESETS
from .processes import first_alone, first_before_others, joined, rank, several, shared_device
from .provenance import version
from .recipe import RECORDED, check_data, check_options, compiled, find_device
from .report import count
from .resume import check_resume
from .runs import Run
from .schedules import SCHEDULES
from .threat import Threat
from .train import fit

TAKEN = ("name", "shape", "num_classes", "seed")  # what `advtrain train` gives build_model itself
DEFAULT_MODEL = {"digits": "small-cnn", "mnist": "lenet+", "fashion-mnist": "lenet+"}


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(version(), prog_name="advtrain")
@click.option("--debug", is_flag=True, help="Show the whole traceback of an error.")
def main(debug: bool) -> None:
    """Train, attack and judge: fast adversarial training.

    \b
    A first run, on data that come with the package:
        advtrain train fast-at --data digits --eps 0.3 --out runs/fast-at
        advtrain evaluate runs/fast-at
    """
    warnings.showwarning = _one_line_warning


class _Train(Commands):
    """`advtrain train DEFENSE`: one command per registered defense, its options made from its fields."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(DEFENSES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in DEFENSES:
            return None
        defense = DEFENSES[name]
        own = field_options(defense, skip=("threat",))
        groups = {
            "threat": field_options(Threat, skip=("low", "high")),
            "defense": own,
            "data": signature_options(data_room.load_data, skip=("seed",)),
            "fit": signature_options(fit, skip=("on_epoch", "callbacks")),
        }
        for option in groups["threat"]:
            if option.name == "norm":
                option.default, option.required = "linf", False
        general = [
            *preset_options(name),
            click.Option(
                ["--data", "data_name"],
                default="digits",
                show_default=True,
                help=DATA_HELP,
            ),
            click.Option(
                ["--model", "model_name"], type=Choice(list(MODELS)), help="By default one that suits the data."
            ),
            click.Option(
                ["--model-option"],
                multiple=True,
                metavar="NAME=VALUE",
                help="An option of the model, such as width=16.",
            ),
            click.Option(
                ["--evaluate/--no-evaluate", "judge"],
                default=True,
                show_default=True,
                help="Judge the run on the test set.",
            ),
            click.Option(
                ["--report", "report_path"], help="Where to write the verdict as JSON, with history and provenance."
            ),
            click.Option(["--tensorboard"], metavar="FOLDER", help="Where to write the history for TensorBoard."),
        ]

        def callback(
            data_name: str, model_name: str | None, model_option: tuple[str, ...], judge: bool, report_path: str | None,
            tensorboard: str | None, **values: Any,
        ) -> None:  # fmt: skip
            part = {group: {o.name: values[o.name] for o in options} for group, options in groups.items()}
            model_options = name_values(with_preset(click.get_current_context(), model_name, model_option), taken=TAKEN)
            train(defense, data_name, model_name, model_options, judge, report_path, tensorboard, part)

        return click.Command(
            name,
            params=[*general, *sum(groups.values(), [])],
            callback=callback,
            help=(inspect.getdoc(defense) or "").split("\n\nArgs:")[0].replace("::\n", ":\n"),
            short_help=summary(defense),
        )


TRAIN_HELP = """Train a model with a defense, and judge it.

`advtrain train DEFENSE --help` explains the defense and lists its options."""
main.add_command(_Train("train", help=TRAIN_HELP, short_help=TRAIN_HELP.partition("\n")[0]))


def train(
    kind: type[Defense],
    data_name: str,
    model_name: str | None,
    model_options: dict[str, Any],
    judge: bool,
    report_path: str | None,
    tensorboard: str | None,
    part: dict[str, dict[str, Any]],
) -> None:
    """What `advtrain train` does, given parsed options, in each process that `torchrun` may have started."""
    threat = Threat(**part["threat"])
    defense = kind(threat, **part["defense"])
    if report_path and not judge:
        raise click.UsageError("--report needs the evaluation: leave out --no-evaluate")
    with joined(part["fit"]["device"]) as number:
        data = first_before_others(lambda: data_room.load_data(data_name, seed=part["fit"]["seed"], **part["data"]))
        if report_path:
            again, out = part["fit"]["overwrite"] or part["fit"]["resume"], part["fit"]["out"]
            first_alone(lambda: check_file("--report", report_path, overwrite=again, run=out))
        usual = "preactresnet18" if data.shape[1] >= 32 else "small-cnn"
        callbacks = [TensorBoard(tensorboard, resume=part["fit"]["resume"])] if tensorboard else []
        model_name = model_name or DEFAULT_MODEL.get(data.name, usual)
        model = build_model(model_name, data, seed=part["fit"]["seed"], **model_options)
        check_training(model, defense, data, **part["fit"])
        if number == 0:
            click.echo(f"{defense.name} on {data.name} with {model_name}: {defense}")
        run = fit(model, defense, data, **part["fit"], callbacks=callbacks)
    if number == 0:
        tell(run, judge, report_path, part)


def check_training(model: nn.Module, defense: Defense, data: data_room.Dataset, **options: Any) -> None:
    """Refuse what `fit` would refuse, before anything is said."""
    check_data(data, defense)
    check_options({name: options[name] for name in RECORDED})
    find_device(shared_device(options["device"]))
    compiled(model, defense, options["compile"])
    out = options["out"]
    check_resume(options["resume"], options["checkpoint_every"], out, options["overwrite"])
    if out is not None and not options["resume"]:
        first_alone(lambda: check_writable(out, holding="config.json", overwrite=options["overwrite"]))
        first_alone(lambda: check_free_of(out, "model.json", "an export, whose weights these would replace"))


def tell(run: Run, judge: bool, report_path: str | None, part: dict[str, dict[str, Any]]) -> None:
    """Say what came of a training, judge it if that is wanted, and end with status 130 if it was interrupted."""
    for note in run.notes:
        click.echo(f"note: {note}")
    if run.history:
        last = run.history[-1]
        click.echo(
            f"{run.status} after {count(len(run.history), 'epoch')}: loss {last['loss']:.3f}, accuracy on its own "
            f"training images {last['accuracy']:.1%}; weights of epoch {run.best_epoch}"
        )
    if judge and run.status == "finished":
        options = {name: part["fit"][name] for name in ("seed", "progress")}
        report = evaluate(run.model, run.data, run.threat, **options)
        click.echo(report)
        for path in (run.path and run.path / "report.json", report_path):
            if path:
                write_json(path, verdict(report, "strict", source_of(run)))
    click.echo(f"saved in {run.path}" if run.path else "not saved: name a folder with --out to keep the model")
    if run.status == "interrupted":
        sys.exit(130)


@main.command("list")
@click.argument("what", type=Choice(["defenses", "attacks", "models", "data", "schedules", "presets"]), required=False)
def list_command(what: str | None) -> None:
    """List defenses, attacks, models, data sets, schedules and presets, each with one line of explanation."""
    rooms = {
        "defenses": {name: summary(defense) for name, defense in DEFENSES.items()},
        "attacks": {name: summary(attack) for name, attack in ATTACKS.items()},
        "models": {name: entry.summary for name, entry in MODELS.items()},
        "data": {name: source.summary for name, source in data_room.SOURCES.items()},
        "schedules": {name: summary(schedule) for name, schedule in SCHEDULES.items()},
        "presets": {name: preset.summary for name, preset in PRESETS.items()},
    }
    for room, entries in rooms.items():
        if what in (None, room):
            click.secho(room, bold=True)
            width = max(map(len, entries))
            for name, text in entries.items():
                click.echo(f"  {name:<{width}}  {text}")


main.add_command(evaluate_command)
main.add_command(diagnose_command)
main.add_command(data_group)
main.add_command(reproduce_command)
main.add_command(export_command)


def _one_line_warning(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
    click.secho(f"warning: {message}", fg="yellow", err=True)


def run(arguments: list[str] | None = None) -> None:
    """Entry point: as `main`, with what was wrong as one line and exit status 2."""
    given = sys.argv[1:] if arguments is None else arguments
    debug, given = "--debug" in given, [word for word in given if word != "--debug"]
    try:
        status = main.main(given, prog_name="advtrain", standalone_mode=False)
    except click.Abort:  # Ctrl-C where nothing is to be kept
        click.echo("Aborted!", err=True)
        sys.exit(1)
    except (AdvtrainError, click.ClickException) as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # of newer versions of click: `advtrain` alone shows its help
            click.echo(str(error), err=True)
            sys.exit(2)
        if debug:
            traceback.print_exc()
        number = rank() or int(os.environ.get("RANK", "0"))
        before_joining = number > 0 and not several()  # the options, which are the same in all processes
        if not (before_joining or getattr(error, "said", False)):
            text = one_line(error) if isinstance(error, click.ClickException) else str(error)
            click.secho(f"error: {f'in process {number}: ' * (number > 0)}{text}", fg="red", err=True)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)
