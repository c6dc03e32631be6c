"""One run of an experiment: from its configuration to what a results file says of it."""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import json
import math
import os
import platform
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..cost import cost
from ..data import Dataset, Split, load_data
from ..defenses import from_config
from ..errors import AdvtrainWarning, DataError
from ..evaluate import Protocol, evaluate
from ..models import build_model
from ..provenance import provenance
from ..recipe import find_device
from ..results.networks import digest_of_weights
from ..results.trial import six_digits
from ..runs import Run
from ..threat import Threat
from ..train import fit
from .judging import as_entry, second_opinion
from .kept import Kept

LONGEST = 100
"""Epochs in a history; of longer trainings about so many are kept."""


def make_trial(
    config: dict[str, Any], root: str | None, device: str, judge: bool = False, weights: str | None = None,
    keep: str | None = None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Train, judge and describe one run; an error is described, too.

    Args:
        config: of a `Plan`.
        root: the data folder.
        device: where to train.
        judge: judge it by AutoAttack and a diagnosis besides.
        weights: SHA-256 of the weights of a run that is described already: `judge` them only.
        keep: a folder for its network, and for what AutoAttack has found when it is cut short.

    Yields:
        The fields of a `Trial` that the run decides, unless it is described already. Then, with `judge`, `judgement`: a
        row of AutoAttack and the content of `Trial.judged`, or the reason why there is none.
    """
    kept = Kept(keep)
    model: nn.Module | str
    try:
        with one_thread(device):
            if weights is None:
                model, found = _make(config, root, device)
                weights = found["made"]["weights"]
                yield {**found, "date": now()}
                kept.put(model)
            else:
                model = _again(config, root, device, weights, kept)
            if judge:
                data = data_of(config, root)
                state, split = kept.state(weights), judged(data, config["judge"])
                opinion = model if isinstance(model, str) else second_opinion(model, data, split, config, state)
                yield {"judgement": opinion}
    except (Exception, SystemExit) as error:  # whatever it is, the other runs go on
        yield {"status": "failed", "message": f"{type(error).__name__}: {error}", "date": now()}


def train(config: dict[str, Any], root: str | None, device: str) -> Run:
    """The training of one run; what it warns of is in its notes.

    Args:
        config: of a `Plan`.
        root: the data folder.
        device: where to train.
    """
    data = data_of(config, root)
    defense = from_config(config["defense"])
    model = build_model(**config["model"], data=data, seed=config["seed"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdvtrainWarning)  # they are in the notes
        run = fit(model, defense, data, **config["fit"], seed=config["seed"], device=device, progress=False)
    if run.status == "interrupted":
        raise KeyboardInterrupt
    return run


def _again(config: dict[str, Any], root: str | None, device: str, weights: str, kept: Kept) -> nn.Module | str:
    """The network of a run that was made before: one that was kept, or trained again; or in words why there is none."""
    if not weights:
        return "the file is too early to name the weights of its runs: make the run anew"
    model = kept.get(weights, config, data_of(config, root), device)
    if model is not None:
        return model
    model = train(config, root, device).model
    if digest_of_weights(model) == weights:
        return model
    return "training gives other weights here than the file has: judge it where it was made, or keep its network (keep)"


def _make(config: dict[str, Any], root: str | None, device: str) -> tuple[nn.Module, dict[str, Any]]:
    seed, options, judge = config["seed"], config["fit"], config["judge"]
    data = data_of(config, root)
    parts = (json.dumps(config[part]) for part in ("defense", "model", "data"))
    forwards = _forwards(*parts, options["batch_size"], root, device)
    started, busy = time.perf_counter(), time.process_time()
    run = train(config, root, device)
    trained, busy = time.perf_counter(), time.process_time() - busy
    report = evaluate(
        run.model, judged(data, judge), Threat(**judge["threat"]), protocol=Protocol(**judge["protocol"]),
        batch_size=judge["batch_size"], seed=seed, progress=False,
    )  # fmt: skip
    judging = time.perf_counter() - trained
    seconds = {"train": round(trained - started, 2), "cpu": round(busy, 2), "judge": round(judging, 2)}
    found = {
        "rows": {row.name: as_entry(row) for row in report.rows},
        "notes": run.notes, "history": columns(run), "logs": own_logs(run), "best_epoch": run.best_epoch,
        "made": {
            "data": _digest_of_loaded(config["data"]["name"], config["data"]["val"], seed, root),
            "weights": digest_of_weights(run.model),
            "precision": "bf16" if run.options["bf16"] else str(next(run.model.parameters()).dtype).partition(".")[2],
        },
        "seconds": seconds, "forwards": six_digits(forwards),
        "forwards_total": round(forwards * options["epochs"] * len(data.train)),
    }  # fmt: skip
    return run.model, found


def digest_of_data(data: Dataset) -> str:
    """SHA-256 of the pixels and labels of all splits."""
    found = hashlib.sha256()
    for split in (data.train, data.val, data.test):
        for part in (*split.blocks(), split.y) if isinstance(split, Split) else ():
            found.update(part.contiguous().cpu().numpy().tobytes())
    return found.hexdigest()


@functools.lru_cache(maxsize=2)
def _digest_of_loaded(name: str, val: float | int, seed: int, root: str | None) -> str:
    """`digest_of_data`, computed once for all runs of a seed."""
    return digest_of_data(_load(name, val, seed, root))


@functools.lru_cache(maxsize=2)
def _load(name: str, val: float | int, seed: int, root: str | None) -> Dataset:
    return load_data(name, val=val, seed=seed, root=root)


def data_of(config: dict[str, Any], root: str | None) -> Dataset:
    """The data of a run, loaded once for all runs of a seed."""
    return _load(config["data"]["name"], config["data"]["val"], config["seed"], root)


def judged(data: Dataset, judge: dict[str, Any]) -> Split:
    """The images that a run is judged by."""
    split: Split | None = getattr(data, judge["split"])
    if split is None:
        raise DataError(f"{data.name} has no images for split={judge['split']!r}")
    return split[: judge["limit"]] if judge["limit"] else split


@functools.cache
def _forwards(defense: str, model: str, data: str, batch_size: int, root: str | None, device: str) -> float:
    """Forward-equivalents of a mini-batch, counted once for all seeds."""
    loaded = data_of({"data": json.loads(data), "seed": 0}, root)
    net = build_model(**json.loads(model), data=loaded).to(device)
    return cost(from_config(json.loads(defense)), net, loaded, batch_size=batch_size).forwards


def columns(run: Run) -> dict[str, list[Any]]:
    """The history as a list for each figure, of about `LONGEST` epochs at most."""
    step = math.ceil(len(run.history) / LONGEST)
    kept = [record for record in run.history if record["epoch"] % step == 0 or record is run.history[-1]]
    names = dict.fromkeys(key for record in run.history for key in record)
    return {name: [six_digits(record.get(name)) for record in kept] for name in names}


def own_logs(run: Run) -> dict[str, float | None]:
    """What the defense itself logged in the last epoch."""
    common = {"epoch", "loss", "accuracy", "lr", "seconds", "val_clean", "val_fgsm", "val_pgd"}
    return {key: six_digits(value) for key, value in run.history[-1].items() if key not in common}


@contextlib.contextmanager
def one_thread(device: str) -> Iterator[None]:
    """On a CPU one thread: sums then have one order, whatever the machine and however many runs are made at once."""
    before = torch.get_num_threads()
    if find_device(device).type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def now() -> str:
    """Date and time, UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def call_provenance(command: str, device: torch.device, workers: int) -> dict[str, Any]:
    """Where the runs of one call come from: command, commit, machine, versions, dates."""
    found = provenance(0, device)
    return {
        "command": command,
        "commit": found["commit"],
        "start": now(),
        "end": now(),
        "device": found["device"],
        "devices": torch.cuda.device_count() if device.type == "cuda" else 1,
        "cpu": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "workers": workers,
        "threads": 1 if device.type == "cpu" else found["threads"],
        **{key: found[key] for key in ("python", "system", "versions")},
    }


def cpu_name() -> str:
    """The model of the CPU, as far as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
