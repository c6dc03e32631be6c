"""Commands that judge a model: `advtrain evaluate`. They share how the model, its data and the threat are named.

A command that is decorated `@with_subject` takes either the folder of a run, or any network and what to judge it by.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from torch import nn

from .autoattack import VERSIONS, judge_split
from .cli_errors import Choice
from .data import Dataset, Split, load_data
from .errors import ArgumentError
from .evaluate import PROTOCOLS, check_subject, evaluate
from .factories import without_folder
from .files import check_file, write_json
from .foreign import open_model
from .modes import place
from .options import DATA_HELP, OVERWRITE, PROGRESS, Numbers, Radius, check_distinct, name_values, refuse
from .provenance import provenance
from .report import Report
from .runs import Run, load_run
from .survey import digest_of_images
from .threat import NORMS, Threat


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is judged.

    Args:
        title: its name and that of the images, for a person.
        model: the network, in evaluation mode.
        split: the images.
        threat: what the attacker may do.
        seed: as given; names the random starts.
        classes: the number of classes of the data; None of a run, whose model is known to suit them.
        source: where all this comes from, as JSON-able values for a report.
    """

    title: str
    model: nn.Module
    split: Split
    threat: Threat
    seed: int
    classes: int | None
    source: dict[str, Any]


# The options that make a subject, in the order of --help: of a network that is no run, and of both.
NETWORK = (
    click.option(
        "--model", metavar="NAME", help="Any network: package.module:factory, file.py:factory, or a built-in."
    ),
    click.option("--model-option", multiple=True, metavar="NAME=VALUE", help="An argument of the factory; repeatable."),
    click.option("--weights", metavar="FILE", help="Its weights: safetensors, or a state_dict that torch.save wrote."),
    click.option("--weights-key", metavar="KEY", help="The part of FILE to take, if it holds several, such as ema."),
    click.option("--mean", type=Numbers(), help="Normalisation that it expects: what to subtract, in [0, 1]."),
    click.option("--std", type=Numbers(), help="Normalisation that it expects: what to divide by, in (0, 1]."),
    click.option("--pick", metavar="KEY", help="Where the logits are, if it returns more: logits, or 0 of a tuple."),
    click.option("--data", metavar="NAME", help=f"What to judge it by: {DATA_HELP}"),
    click.option("--root", metavar="FOLDER", help="The data folder; by default ADVTRAIN_DATA, or the user's cache."),
    click.option("--size", type=click.IntRange(min=1), help="Images of ./FOLDER are scaled and cropped to this size."),
    click.option("--norm", type=Choice(NORMS), help="The norm of the threat: linf unless given."),
)
SHARED = (
    click.option("--eps", type=Radius(), help="The radius; by default the one that the run was trained against."),
    click.option("--split", type=Choice(["test", "val", "train"]), default="test", show_default=True),
    click.option("--limit", type=click.IntRange(min=1), help="Only the first N images."),
    click.option("--seed", type=int, default=0, show_default=True),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, …"),
)


RUN = click.argument("run_folder", metavar="[RUN]", required=False, type=click.Path(path_type=Path))


def _names(options: Iterable[Callable[..., Any]]) -> set[str]:
    """The names under which a command is given what these options say."""
    return {parameter.name for parameter in click.command("any")(_with(options, lambda: None)).params}


def _with(options: Iterable[Callable[..., Any]], command: Callable[..., Any]) -> Callable[..., Any]:
    return functools.reduce(lambda whole, option: option(whole), reversed([*options]), command)


def with_subject(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the argument RUN and the options that stand for it, and call it with the `Subject` they make.

    Args:
        command: called as `command(subject, **its own options)`.
    """
    names = _names((RUN, *NETWORK, *SHARED))

    @functools.wraps(command)
    def whole(**given: Any) -> Any:
        subject = find_subject(click.get_current_context(), **{name: given.pop(name) for name in names})
        return command(subject, **given)

    return _with((RUN, *NETWORK, *SHARED), whole)


def find_subject(context: click.Context, run_folder: Path | None, model: str | None, **given: Any) -> Subject:
    """The subject of a command: exactly one of RUN and `--model` must be given.

    Args:
        context: that of the running command.
        run_folder: RUN.
        model: `--model`.
        **given: the other options of `with_subject`, by name.
    """
    if run_folder is not None and model is None:
        refuse(context, "RUN", *{parameter.name for parameter in context.command.params} - _names(NETWORK))
        return _of_run(run_folder, **{name: given[name] for name in _names(SHARED)})
    if run_folder is None and model is not None:
        if missing := [option for option in ("--data", "--eps") if given[option[2:]] is None]:
            raise click.UsageError(f"--model needs {' and '.join(missing)} too, such as --data cifar10 --eps 8/255")
        return _of_network(model, **given)
    both = "RUN and --model exclude each other: a run has its own model"
    raise click.UsageError(both if model else "name the folder of a run, RUN, or any network with --model")


def _of_run(folder: Path, eps: float | None, split: str, limit: int | None, seed: int, device: str) -> Subject:
    run = load_run(folder, device=device)
    if run.data is None:
        raise ArgumentError(
            "data=None is not available: this run's data are not on this machine; see advtrain data --help"
        )
    threat = run.threat if eps is None else dataclasses.replace(run.threat, eps=eps)
    images, about = _images(run.data, split, limit, "the run was trained with val=0")
    source = {**source_of(run), "data": about}
    return Subject(
        f"{run.defense.name} on {run.data.name}, {split} split", run.model, images, threat, seed, None, source
    )


def _of_network(
    model: str, model_option: tuple[str, ...], weights: str | None, weights_key: str | None, mean: Any, std: Any,
    pick: str | None, data: str, root: str | None, size: int | None, norm: str | None, eps: float, split: str,
    limit: int | None, seed: int, device: str,
) -> Subject:  # fmt: skip
    threat, found = Threat(norm or "linf", eps), load_data(data, root=root, size=size)
    images, about = _images(found, split, limit, "this data set has none")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does: a factory may be a file beside the user
    mean, std = (value[0] if value and len(value) == 1 else value for value in (mean, std))
    picked = int(pick) if pick and pick.isdecimal() else pick
    options = name_values(model_option)
    network, origin = open_model(model, weights, options, found, weights_key, mean, std, picked, device, seed)
    made = provenance(seed, place(network)[0])
    source = {"model": origin, "data": about, "provenance": {**made, "command": _portable(made["command"])}}
    title = f"{origin['model']} on {found.name}, {split} split"
    return Subject(title, network, images, threat, seed, found.num_classes, source)


def _images(data: Dataset, split: str, limit: int | None, why: str) -> tuple[Split, dict[str, Any]]:
    """The images to judge by, and which they are."""
    images = getattr(data, split)
    if images is None:
        raise ArgumentError(f"split={split!r} is not there: {why}")
    images = images[:limit] if limit else images
    digest = digest_of_images(images)
    size = (data.spec or {}).get("size")
    scaled = {"size": size} if size else {}
    return images, {"name": data.name, **scaled, "split": split, "images": len(images), "sha256": digest}


def _portable(command: str) -> str:
    """A command line without the folders of this machine: of an absolute path the file name is left."""
    words = []
    for word in shlex.split(command):
        option, equals, value = word.partition("=")
        words.append(f"{option}={without_folder(value)}" if equals else without_folder(word))
    return shlex.join(words)


def source_of(run: Run) -> dict[str, Any]:
    """Everything needed to make a run again, as JSON-able values.

    Args:
        run: as `fit` and `load_run` give it.
    """
    return {"provenance": run.provenance, "run": run.config, "history": run.history}


def verdict(report: Report, protocol: Any, source: dict[str, Any]) -> dict[str, Any]:
    """A report with everything needed to make it again, as JSON-able values.

    Args:
        report: what was found.
        protocol: its name, or its numbers.
        source: of the model, the data and the code, as in `Subject`.
    """
    return {**report.to_dict(), "protocol": protocol, **source}


@click.command("evaluate", short_help="Judge a run, or any model: clean, FGSM, PGD-50-10, AutoAttack.")
@with_subject
@click.option("--protocol", type=Choice(list(PROTOCOLS)), default="strict", show_default=True, help="Whose PGD-50-10.")
@click.option("--steps", type=int, help="PGD steps instead of the protocol's.")
@click.option("--restarts", type=int, help="PGD restarts instead of the protocol's.")
@click.option("--step-size", type=Radius(), help="PGD step size in pixel units instead of the protocol's.")
@click.option("--autoattack", "version", type=Choice(list(VERSIONS)), help="Judge by AutoAttack as well.")
@click.option(
    "--state", metavar="FILE", help="What AutoAttack has done: the same command goes on there, but repeats FGSM, PGD."
)
@click.option("--examples", metavar="FILE.npy", help="Where to keep AutoAttack's adversarial examples.")
@click.option("--bf16", is_flag=True, help="AutoAttack searches in bfloat16: faster on a GPU, and not the standard.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Images at once: 512 unless given; AutoAttack finds its own then."
)
@PROGRESS
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the report as JSON.")
@OVERWRITE
def evaluate_command(
    subject: Subject, protocol: str, version: str | None, state: str | None, examples: str | None, bf16: bool,
    batch_size: int | None, progress: bool | None, out: Path | None, overwrite: bool, **changes: Any,
) -> None:  # fmt: skip
    """Judge a model: accuracy on clean images, under FGSM, PGD-50-10, and AutoAttack if asked, with 95% intervals.

    It is the one in RUN, the folder of a run, with the data and the threat that it was trained on; or any network,
    named by --model, on --data and within --eps. Python code that --model names is executed, a file of weights never.

    \b
        advtrain evaluate runs/fast-at
        advtrain evaluate --model torchvision.models:resnet18 --model-option num_classes=10 \\
            --weights resnet18.pt --mean 0.49,0.48,0.45 --std 0.25,0.24,0.26 --data cifar10 --eps 8/255
        advtrain evaluate runs/fast-at --autoattack standard --state runs/fast-at.aa
    """
    if version is None and (state or examples or bf16):
        raise click.UsageError("--state, --examples and --bf16 belong to AutoAttack: add --autoattack standard")
    check_distinct(
        ("--state", state), ("--examples", examples), ("--examples", examples and f"{examples}.partial"), ("--out", out)
    )
    given = {name: value for name, value in changes.items() if value is not None}
    chosen = dataclasses.replace(PROTOCOLS[protocol], **given)
    if out:
        check_file("--out", out, overwrite=overwrite)
    model, images, threat, seed = subject.model, subject.split, subject.threat, subject.seed
    size, found, judged = batch_size or 512, {}, None
    if version is not None:  # first of all, for its files may be refused
        check_subject(model, images, threat, size)
        judged = judge_split(
            model, images, threat, version, batch_size=batch_size, seed=seed, state=state,
            examples=examples, bf16=bf16, progress=progress,
        )  # fmt: skip
        found = {"autoattack": {**judged.to_dict(), "bf16": bf16}}
        click.echo(judged)
    report = evaluate(model, images, threat, protocol=chosen, batch_size=size, seed=seed, progress=progress)
    if judged is not None:
        report.rows.append(judged.rows[-1])
        report.warnings += judged.warnings
    click.echo(subject.title)
    click.echo(report)
    if subject.classes and report.row("clean").interval[0] <= 1 / subject.classes:
        click.echo(
            "Clean accuracy is that of guessing: does the model expect normalised pixels (--mean, --std), or count the "
            "classes in another order?"
        )
    if out:
        write_json(out, {**verdict(report, dataclasses.asdict(chosen), subject.source), **found})
