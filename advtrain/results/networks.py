"""Networks of recorded runs, as far as their weights travel with the package: `weights/` beside the results files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import nn

from ..data import Dataset, load_data
from ..defenses import from_config
from ..errors import FileError
from ..models import build_model
from ..runs import Run
from ..weights import load_weights
from .recorded import FOLDERS
from .trial import Trial


def weights_file(trial: Trial) -> str:
    """The name under which the weights of a run are kept: by their content, whatever the run is called."""
    return file_of(trial.made["weights"]) if "weights" in trial.made else ""


def file_of(weights: str) -> str:
    """The name of a file by the SHA-256 of the weights in it."""
    return f"{weights[:16]}.safetensors"


def read_network(path: Path, weights: str, config: dict[str, Any], data: Dataset) -> nn.Module | None:
    """The network of a run from a file, in evaluation mode; None if the weights there are not those of this SHA-256."""
    model = build_model(**config["model"], data=data)
    load_weights(model, path)
    return model.eval() if digest_of_weights(model) == weights else None


def load_trial(trial: Trial, provenance: dict[str, Any]) -> Run:
    """See `Results.run`."""
    files = [folder / "weights" / weights_file(trial) for folder in FOLDERS]
    found = next(filter(Path.is_file, files), None)
    if found is None:
        raise FileError(
            f"the weights of {trial.method!r} at seed {trial.seed} do not come with the package: train the network, "
            "with advtrain.fit and the options in the config of the run"
        )
    config = trial.config
    data = load_data(**config["data"], seed=trial.seed)
    model = read_network(found, trial.made["weights"], config, data)
    if model is None:
        raise FileError(
            f"{found} is damaged: these are not the weights of {trial.method!r} at seed {trial.seed}. "
            "Install the package again"
        )
    return Run(
        model, from_config(config["defense"]), data, {**config["fit"], "seed": trial.seed}, trial.records,
        list(trial.notes), trial.best_epoch, trial.status, {**provenance, "seed": trial.seed},
    )  # fmt: skip


def digest_of_weights(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers, in the order of their names."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode() + value.contiguous().cpu().numpy().tobytes())
    return found.hexdigest()
