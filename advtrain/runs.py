"""A run: what `fit` gives back, and the folder that holds it.

    runs/x/
      config.json         everything needed to make the run again: model, defense, data, training options
      history.json        one record per epoch
      provenance.json     commit, versions, device, command, date
      model.safetensors   the weights

Each file is written beside its place and renamed, so a folder is never half-written. Nothing in it is executed on
loading: JSON and safetensors only.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from .data import Dataset, load_data
from .defense import Defense
from .defenses import DEFENSES, from_config
from .errors import AdvtrainError, FileError, bad, check_kind, check_path
from .files import check_free_of, check_writable, read_json, write_json
from .models.spec import spec_of
from .modes import unchanged_on_error
from .recipe import check_recorded, find_device
from .report import count
from .resume import check_same, claimed
from .run_checks import check_data, check_run, network_of
from .run_view import as_html, as_text
from .threat import Threat
from .weights import load_weights, save_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 1


@dataclass
class Run:
    """A trained model with everything that led to it; `fit` and `load_run` make one.

    Args:
        model: the trained network, in evaluation mode, holding the selected weights.
        defense: what it was trained with.
        data: what it was trained on; None if the run was loaded and its data are not at hand.
        options: the arguments of `fit` that make the run what it is.
        history: one dict per epoch: `epoch`, `loss`, `accuracy` (on the training images as the defense perturbed them),
            `lr`, `seconds`, and where validated `val_clean`, `val_fgsm`, `val_pgd`; all accuracies in [0, 1].
        notes: what the training loop wants known, such as catastrophic overfitting.
        best_epoch: the epoch, counted from 1, whose weights the model holds, unless `status` is `"interrupted"`.
        status: `"finished"`; `"interrupted"` by Ctrl-C, where the model holds the weights that `notes` tell; or
            `"running"`, also of a folder whose run was killed or failed: it holds the last epoch that was written.
        provenance: commit, versions, device, command, date.
        path: the run folder, if there is one.
        written: whether it has been saved before.
    """

    model: nn.Module
    defense: Defense
    data: Dataset | None
    options: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    best_epoch: int = 0
    status: str = "running"
    provenance: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    written: bool = field(default=False, repr=False)  # this run has been saved before

    @property
    def threat(self) -> Threat:
        """The threat model that the run was trained against."""
        return self.defense.threat

    @property
    def config(self) -> dict[str, Any]:
        """What `load_run` needs, as JSON-able values."""
        return {
            "format": FORMAT,
            "status": self.status,
            "best_epoch": self.best_epoch,
            "notes": self.notes,
            "model": spec_of(self.model),
            "defense": self.defense.config,
            "data": None if self.data is None else self.data.spec,
            "options": self.options,
        }

    def save(self, path: str | Path | None = None, *, overwrite: bool = False) -> Path:
        """Write the run folder; atomic file by file, the weights before the configuration that speaks of them.

        Args:
            path: the folder; the run's own if not given.
            overwrite: replace another run that is there already.

        Raises:
            ArgumentError: there is no folder, or the defense has a field that JSON cannot hold.
            FileError: the folder cannot be written, holds another run, or another training is writing to it.
        """
        check_recorded(self.defense)
        path = path or self.path or bad("path", path, "a folder", "this run has none yet: run.save('runs/x')")
        folder = check_path("path", path, "folder")
        if self.path is not None and folder.absolute() == self.path.absolute():
            folder = self.path
        else:
            check_writable(folder, holding="config.json", overwrite=overwrite)
            check_free_of(folder, "model.json", "an export, whose weights these would replace")
        with claimed(folder):
            self.path = folder
            if not self.written:
                (folder / "report.json").unlink(missing_ok=True)  # an earlier run's verdict
                self.written = True
            at = {"epochs": str(len(self.history)), "epoch": str(self.best_epoch)}
            save_weights(self.model, folder / "model.safetensors", signed=at)
            write_json(folder / "history.json", self.history)
            write_json(folder / "provenance.json", self.provenance)
            write_json(folder / "config.json", self.config)
        return folder

    def export(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the model so that it runs with PyTorch alone: `advtrain.export`, with what the run knows of it.

        Args:
            path: the folder.
            overwrite: replace what an earlier export has left there.
        """
        from .export import export

        return export(self.model, path, data=self.data, defense=self.defense, overwrite=overwrite)

    def plot(self) -> Figure:
        """Draw loss and accuracies epoch by epoch: `advtrain.plot.history`. Needs matplotlib."""
        from .plot import history

        return history(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    def __str__(self) -> str:
        return as_text(self)

    def __repr__(self) -> str:
        last = self.history[-1] if self.history else {}
        parts = [self.defense.name, f"{self.status} after {count(len(self.history), 'epoch')}"]
        parts += [f"{key} {last[key]:.1%}" for key in ("accuracy", "val_clean", "val_pgd") if last.get(key) is not None]
        return f"Run({', '.join([*parts, *([str(self.path)] if self.path else [])])})"


def load_run(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    defense: Defense | None = None,
    data: Dataset | None = None,
    device: str = "cpu",
) -> Run:
    """Read a run folder: `run.model`, `run.data`, `run.threat`, `run.defense`, `run.history`.

    Args:
        path: the folder.
        model: a network of the same architecture, for a run whose model was not made by `build_model`. It or the one of
            the run may be inside `torch.compile` or `DataParallel`.
        defense: the defense, for a run whose defense is not registered in this package.
        data: the data of a run that was trained on the caller's own; otherwise loaded by name, and None if not at hand.
        device: where the model goes; `"auto"` is a GPU if there is one.

    Raises:
        FileError: no run there, or a damaged one.
        ArgumentError: the model or the defense must be given, or the model, the defense or the data given are not those
            of the run.

    Warns:
        AdvtrainWarning: the images that the run was trained on are others by now, or not those given.
    """
    folder = check_path("path", path, "run folder")
    for name, value, kind, hint in (
        ("model", model, nn.Module, "a network like that of the run, or None for one of build_model"),
        ("defense", defense, Defense, "at.defenses.FastAT(threat), say, or None for one of this package"),
        ("data", data, Dataset, "at.load_data(name), or at.as_dataset((x, y)), makes one"),
    ):
        if value is not None:
            check_kind(name, value, kind, hint)
    place = find_device(device)
    if not os.path.isfile(folder / "config.json"):  # which, unlike Path.is_file, also answers where nobody may look
        raise FileError(f"{folder} holds no run: there is no config.json in it")
    config = read_json(folder / "config.json")
    try:
        if config["format"] != FORMAT:
            raise FileError(
                f"{folder} has format {config['format']!r}, this version reads {FORMAT}: update advtrain-book"
            )
        history, told = read_json(folder / "history.json"), read_json(folder / "provenance.json")
        check_run(folder, config, history, told)
        known = DEFENSES.get(config["defense"]["name"])
        if defense is None and (known is None or known.__name__ != config["defense"]["class"]):
            bad("defense", None, "given", f"this run's {config['defense']['class']} is not part of this package")
        if defense is not None:
            before = {key: value for key, value in config["defense"].items() if key != "class"}  # it may have moved
            check_same(before, defense.config, folder, "give the defense that it was trained with")
        if model is None and not config["model"]:
            bad("model", None, "given", "this run's network is not as build_model makes it: pass one like it")
        try:
            made = from_config(config["defense"]) if defense is None else defense
            model = network_of(folder, config["model"]) if model is None else model  # of which some have no truth value
        except FileError:
            raise
        except (AdvtrainError, ValueError) as error:
            raise FileError(f"{folder / 'config.json'} is damaged: {error}") from error
        run = Run(
            model, made, data, dict(config["options"]), list(history), list(config["notes"]),
            config["best_epoch"], config["status"], dict(told), folder, True,
        )  # fmt: skip
        spec = config["data"] and {**config["data"], "download": False}  # whoever wrote the file, nothing is fetched
    except (KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{folder / 'config.json'} is damaged: {error!r}") from error
    with unchanged_on_error(model):
        at = load_weights(model, folder / "model.safetensors")
        if data is not None:
            check_data(folder, model, data, told, given=True)
    if at.keys() >= {"epoch", "epochs"}:  # they are written before what speaks of them, so they know best
        if not all(re.fullmatch(r"\d{1,9}", at[key], re.ASCII) for key in ("epoch", "epochs")):
            raise FileError(f"{folder / 'model.safetensors'} is damaged: it is of epoch {at['epoch'][:20]!r}")
        run.best_epoch = int(at["epoch"])
        if int(at["epochs"]) > len(run.history):
            run.notes.append(f"killed while epoch {at['epochs']} was written: its weights are here, its record is not")
    run.model.to(place).eval()
    if data is None and spec:
        try:
            run.data = load_data(**spec)
        except (AdvtrainError, TypeError, OSError):
            return run  # a set that is not on this machine any more: the weights are still of use
        check_data(folder, model, run.data, told, given=False)
    return run
