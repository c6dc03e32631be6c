"""The command `advtrain reproduce`."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import click
import torch

from .cost import Cost, Speed, calibrate, cost
from .data_known import SOURCES
from .dataset import Dataset, Split, count_of
from .defense import Batch, Defense
from .defenses import Standard
from .errors import AdvtrainWarning, ArgumentError, FileError
from .experiments import Experiment, check_results_file, load, names, reproduce
from .experiments.trials import data_of, judged, one_thread
from .models import MODELS, build_model
from .options import refuse
from .report import count
from .rng import Rng
from .threat import Threat

ROUND = 4e9
"""Floating-point operations of a forward pass of the mini-batch that the speed of a network is measured with."""


@click.command("reproduce", short_help="Make the results of an experiment, and the table from them.")
@click.argument("name", metavar="EXPERIMENT", required=False)
@click.option("--out", type=click.Path(path_type=Path), help="The results file; by default runs/EXPERIMENT.json.")
@click.option("--root", help="The data folder; by default ADVTRAIN_DATA, or the user's cache.")
@click.option(
    "--workers", type=click.IntRange(min=0), help="Runs made at the same time; one per CPU core, or one on a GPU."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, …")
@click.option("--method", "methods", multiple=True, metavar="LABEL", help="Only this method; may be repeated.")
@click.option("--seed", "seeds", multiple=True, type=int, help="Only this seed; may be repeated.")
@click.option("--fresh", is_flag=True, help="Make the runs anew, also those that are in the file.")
@click.option("--judge", is_flag=True, help="Judge every run also by AutoAttack and a diagnosis; takes long.")
@click.option("--keep", type=click.Path(path_type=Path), help="A folder for the trained networks, to judge them later.")
@click.option("--time-limit", type=float, metavar="MINUTES", help="Stop after so many minutes; the next call goes on.")
@click.option("--list", "show_list", is_flag=True, help="Show what there is, or EXPERIMENT alone, and its cost.")
@click.option("--check", "check_path", type=click.Path(path_type=Path), help="Make one run of a results file again.")
@click.pass_context
def reproduce_command(
    context: click.Context,
    name: str | None,
    out: Path | None,
    root: str | None,
    workers: int | None,
    device: str,
    methods: tuple[str, ...],
    seeds: tuple[int, ...],
    fresh: bool,
    judge: bool,
    keep: Path | None,
    time_limit: float | None,
    show_list: bool,
    check_path: Path | None,
) -> None:
    """Make all runs of EXPERIMENT, a name or a .toml file, write them to a results file, and show the table.

    The file is written after every run, and the same command, without --fresh, goes on where an earlier one ended. The
    status is 0 if the file then has all runs that were asked for, none of them failed; 130 after Ctrl-C; 1 otherwise.

    --judge adds the columns AA (AutoAttack, standard version) and diagnose. A run that is in the file is judged by the
    network in the folder of --keep. If it is not there it is trained again, and only judged if its weights come out the
    same; so do it where the file was made, and not on a GPU. A judgement for which the time was not enough goes on.

    \b
        advtrain reproduce --list
        advtrain reproduce digits
        advtrain reproduce digits --judge
        advtrain reproduce --check runs/digits.json --method pgd
    """
    if show_list:
        refuse(context, "--list", "name", "root")
        for shipped in [name] if name else names():
            click.echo(describe(load(shipped), root))
    elif check_path is not None:
        refuse(context, "--check", "root", "workers", "device", "methods", "seeds")
        options: dict[str, Any] = {"root": root, "device": device, "methods": methods, "seeds": seeds}
        check = check_results_file(check_path, **options, workers=1 if workers is None else workers)
        click.echo(check)
        sys.exit(0 if check.agrees else 1)
    elif name is None:
        raise click.UsageError("name an experiment, or say --list, or --check FILE")
    else:
        experiment = load(name)
        place = out or Path("runs") / f"{experiment.name}.json"
        again = "the same command without --fresh goes on" if fresh else "the same command goes on"
        try:
            results = reproduce(
                experiment, out=place, root=root, workers=workers, device=device, methods=methods, seeds=seeds,
                fresh=fresh, judge=judge, keep=keep, time_limit=time_limit, tell=click.echo,
            )  # fmt: skip
        except KeyboardInterrupt:
            there = os.path.isfile(os.path.expanduser(place))
            kept = f"finished runs are in {place}, and {again} from there" if there else "no run has finished yet"
            click.echo(f"interrupted; {kept}", err=True)
            sys.exit(130)
        click.echo(results)
        wanted = {plan.key for plan in experiment.plan(methods, seeds)}
        made = [run for run in results.runs if run.key in wanted]
        if left := len(wanted) - len(made):
            words = "is" if left == 1 else "are"
            click.echo(f"time is up: {count(left, 'run')} {words} still to be made; {again}", err=True)
        if unjudged := judge * sum(run.finished and not run.judged for run in made):
            click.echo(f"{count(unjudged, 'run')} {'is' if unjudged == 1 else 'are'} not judged; {again}", err=True)
        sys.exit(1 if left or unjudged or not all(run.finished for run in made) else 0)


def describe(experiment: Experiment, root: str | None = None) -> str:
    """An experiment in two lines: its title, how many runs it has, and what they cost."""
    runs = len(experiment.plan())
    methods = count(len(experiment.methods), "method")
    head = f"{experiment.name}: {experiment.title}\n  {methods}, {count(runs, 'run')}"
    note = ""
    try:
        data_of(experiment.plan()[0].config, root)
    except FileError as error:
        note = f"\n  {error}"
    try:
        found = estimate(experiment, root)
    except (FileError, ArgumentError) as error:
        return f"{head}; {error}"
    minutes = max(1, round(found.seconds / 60))
    duration = count(minutes, "minute") if found.seconds < 7200 else f"{found.seconds / 3600:,.0f} hours"
    work = f"about {found.forwards:.1g} forward-equivalents of an image, {found.flops / 1e15:.2g} PFLOP"
    return f"{head}, {work}: {duration} on one core of this CPU, without --judge{note}"


class Estimate(NamedTuple):
    """What the runs of an experiment cost: training, validation, judging by PGD.

    Args:
        forwards: forward-equivalents of one image.
        flops: floating-point operations.
        seconds: on one core of this machine.
    """

    forwards: float
    flops: float
    seconds: float


def estimate(experiment: Experiment, root: str | None = None) -> Estimate:
    """What the runs cost, counted on a narrow network, and timed on a few images by this machine."""
    plan = experiment.plan()[0]
    data = data_or_blank(plan.config, root)
    protocol = experiment.judge["protocol"]
    # An attack's step is a forward pass and one back to the image. FGSM has one of them; each verdict one pass more.
    judge = len(judged(data, experiment.judge)) * (4 + protocol["restarts"] * (2 * protocol["steps"] + 1))
    speed, batch, flops = _speed(json.dumps(experiment.model), json.dumps(plan.config["data"]), root)
    forwards = seconds = 0.0
    for method in experiment.methods:
        fit = method.fit
        found = _cost(method.defense, experiment.model, data.shape, fit["batch_size"])
        every = fit["validate_every"]  # and the last epoch, whatever its number
        validated = math.ceil(fit["epochs"] / every) if every and data.val is not None else 0
        passes = judge + validated * len(data.val or ()) * (5 + 2 * fit["val_steps"])
        forwards += found.forwards * fit["epochs"] * len(data.train) + passes
        seconds += fit["epochs"] * len(data.train) / batch * speed.seconds(found)
        seconds += passes / batch * speed.forward
    seeds = len(experiment.seeds)
    return Estimate(forwards * seeds, forwards * seeds * flops, seconds * seeds)


def _cost(defense: Defense, model: dict[str, Any], shape: tuple[int, int, int], batch_size: int) -> Cost:
    """What a defense costs with a network, counted once for all experiments.

    Passes cost each other's multiples at any width and with any number of classes, so it is counted with few of both;
    and by how much a step is scaled, or a term weighted, does not change it, only whether it is there. Nor does the
    size of the mini-batch, but for a term that looks at a single image of it: in a small one that weighs a little more.
    """
    spec, batch_size = dict(model), min(batch_size, 32)
    if "width" in MODELS[spec["name"]].options:
        spec["width"] = 4
    spec["normalize"] = None
    essence = {name: bool(value) if isinstance(value, float) else value for name, value in asdict(defense).items()}
    key = json.dumps([defense.name, {**essence, "threat": defense.threat.norm}, spec, shape, batch_size])
    if key not in _COUNTED:
        images, labels = Rng(0).uniform(torch.empty(batch_size, *shape), 0, 1), torch.arange(batch_size) % 4
        network = build_model(**spec, shape=shape, num_classes=4)
        _COUNTED[key] = cost(defense, network, Batch(images, labels), batch_size=batch_size)
    return _COUNTED[key]


_COUNTED: dict[str, Cost] = {}


def data_or_blank(config: dict[str, Any], root: str | None) -> Dataset:
    """The data of a run, or of a known set that is not at hand as many equal images, which take no memory.

    Raises:
        FileError: they are not at hand, and their number is not known.
    """
    try:
        return data_of(config, root)
    except FileError:
        name, val = config["data"]["name"], config["data"]["val"]
        source = SOURCES.get(name)
        if source is None or source.size is None:
            raise
    shape, (train, test), classes = source.size
    kept = count_of(val, train, "val")
    image = (255 * torch.arange(math.prod(shape)) % 510).to(torch.uint8).view(1, *shape)  # no black one: it is refused
    blank = {
        part: Split(image.expand(n, *shape), torch.arange(n) % classes)
        for part, n in (("train", train - kept), ("val", kept), ("test", test))
    }
    statistics = (0.5,) * shape[0], (0.25,) * shape[0]
    names = tuple(map(str, range(classes)))
    parts = blank["train"], blank["val"] if kept else None, blank["test"]
    return Dataset(name, *parts, shape, classes, names, *statistics, source.augment)


@functools.cache
def _speed(model: str, data: str, root: str | None) -> tuple[Speed, int, float]:
    """How fast a network trains here on mini-batches of so many images, and the operations of a pass of one image.

    The mini-batch is small for a large network, as the figure need not be exact.

    Measured once for all experiments with the network.
    """
    loaded = data_or_blank({"data": json.loads(data), "seed": 0}, root)
    network = build_model(**json.loads(model), data=loaded)
    flops = cost(Standard(Threat("linf", 1 / 255)), network, loaded, batch_size=2).unit / 2
    batch = round(min(64, max(2, ROUND / flops)))
    with warnings.catch_warnings(), one_thread("cpu"):
        warnings.simplefilter("ignore", AdvtrainWarning)
        found = calibrate(network, loaded, batch_size=batch, device="cpu", seconds=0.5, clock=process_time)
    return found, batch, flops
