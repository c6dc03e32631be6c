"""Looking on while a network trains: what `fit` calls after every epoch.

A callback is a function of the run so far, `run.history[-1]` being the epoch that has just ended::

    def show(run):
        print(run.history[-1]["epoch"], run.history[-1]["val_pgd"])

    at.fit(model, defense, data, callbacks=[show, at.callbacks.EarlyStopping(patience=5)])

It may end the training with `raise at.callbacks.Stop("reason")`. A method `close`, if it has one, is called when the
training is over, however it ends. `run.model` holds the weights of the moment. Looking on changes nothing: the modes of
the model's layers and PyTorch's random state, on the processor and where the model trains, are put back afterwards.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .errors import AdvtrainError, FileError, at_least, bad, check_flag, check_path
from .files import check_writable
from .modes import keeping_modes
from .processes import gather, rank
from .rng import global_draws
from .runs import Run

__all__ = ["Callback", "EarlyStopping", "Stop", "TensorBoard"]

Callback = Callable[[Run], Any]
"""What `fit` calls after every epoch, with the run so far. What it returns plays no part."""


class Stop(Exception):
    """Raised by a callback, it ends the training after this epoch: the run is finished, and its notes say why."""


class EarlyStopping:
    """End the training when a figure has not improved for some epochs.

    Adversarial training overfits: at some point robust accuracy on unseen images falls while that on the training
    images still rises (Rice et al. 2020, arXiv:2002.11569). Use it with `select="best"`, which gives back the weights
    of the best epoch. A schedule is spread over all `epochs`, and a training that ends early never comes to its low
    rates: combine it with `schedule="constant"`, or with much patience.

    Args:
        patience: how many validated epochs in a row may bring nothing better.
        by: the figure of `run.history`; more is better, except of `"loss"`.
    """

    def __init__(self, patience: int = 5, by: str = "val_pgd"):
        if not isinstance(by, str):
            bad("by", by, "the name of a figure", "such as 'val_pgd' or 'loss'")
        self.patience, self.by = at_least("patience", patience, 1), by

    def __call__(self, run: Run) -> None:
        """Raise `Stop` if the time has come."""
        sign = -1 if self.by == "loss" else 1
        found = [(sign * record[self.by], record["epoch"]) for record in run.history if record.get(self.by) is not None]
        if not found and len(run.history) >= max(1, run.options["validate_every"]):
            there = ", ".join(run.history[-1])
            bad("by", self.by, f"a figure of this training, one of {there}", "val_pgd and its like need a validation")
        best, epoch = max(found, key=lambda each: (each[0], -each[1]), default=(0.0, 0))
        if sum(number > epoch for _, number in found) >= self.patience:
            raise Stop(f"{self.by} has not been better than {sign * best:.4g} since epoch {epoch}")


class TensorBoard:
    """Write the history for TensorBoard, epoch by epoch; `tensorboard --logdir FOLDER` shows it.

    The scalars are `loss/train`, `accuracy/train`, `accuracy/val_clean`, `accuracy/val_fgsm`, `accuracy/val_pgd`, `lr`
    and `seconds`, with what the defense logs of its own below `defense/`; the text `config` is what the run was told.

    Args:
        folder: where to write; one for each run.
        resume: the folder may have the events of this run, which `fit` takes up: those of epochs that are trained
            again are not shown twice.

    Raises:
        AdvtrainError: tensorboard is not installed.
        FileError: the folder cannot be written, or has the events of another run.
    """

    def __init__(self, folder: str | os.PathLike[str], *, resume: bool = False):
        place = check_path("folder", folder, "folder")
        check_flag("resume", resume)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise AdvtrainError("TensorBoard needs tensorboard: pip install tensorboard") from error
        self.folder, self.resume, self._make = place, resume, SummaryWriter
        self._writer: SummaryWriter | None = None
        self._check()

    def _check(self) -> None:
        check_writable(self.folder, holding="", overwrite=True)
        if not self.resume and any(self.folder.glob("events.out.tfevents.*")):
            raise FileError(
                f"{self.folder} already has the events of another run, and TensorBoard would draw both as one line; "
                "choose another folder"
            )

    def __call__(self, run: Run) -> None:
        """Write the last epoch."""
        if self._writer is None:
            self._check()
            first = run.history[-1]["epoch"] if self.resume else None
            self._writer = self._make(str(self.folder), purge_step=first)
            told = {key: run.config[key] for key in ("model", "defense", "data", "options")}
            self._writer.add_text("config", f"```json\n{json.dumps(told, indent=2)}\n```")
        record = run.history[-1]
        for key, value in record.items():
            if key != "epoch" and value is not None:
                self._writer.add_scalar(TAGS.get(key, f"defense/{key}"), value, record["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


TAGS = {
    "loss": "loss/train", "accuracy": "accuracy/train", "lr": "lr", "seconds": "seconds",
    **{key: f"accuracy/{key}" for key in ("val_clean", "val_fgsm", "val_pgd")},
}  # fmt: skip


def check_callbacks(callbacks: Any) -> None:
    """Refuse what is no list of functions of the run.

    Raises:
        ArgumentError: naming the one that is none.
    """
    if not isinstance(callbacks, (list, tuple)):
        bad("callbacks", callbacks, "a list of functions of the run", "also of a single one: callbacks=[…]")
    for callback in callbacks:
        if isinstance(callback, type):
            bad("callbacks", callback.__name__, "made yet", f"it is a class: write {callback.__name__}(…)")
        if not callable(callback):
            bad("callbacks", callback, "a function of the run", "such as at.callbacks.EarlyStopping()")


def tell(run: Run, functions: Sequence[Callable[[], Any]], device: torch.device) -> str | None:
    """Call all of them in the first process; returns, in every process, why the training shall stop, or None.

    Args:
        run: the run so far.
        functions: what to call.
        device: where the model trains.
    """
    reasons = []
    if rank() == 0 and functions:
        with keeping_modes(run.model), global_draws(devices=[device] if device.type == "cuda" else []):
            for function in functions:
                try:
                    function()
                except Stop as stop:
                    reasons.append(str(stop) or "a callback asked for it")
    return gather(reasons[0] if reasons else None)[0]
