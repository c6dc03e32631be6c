"""Fast adversarial training, to learn, use and judge.

import advtrain as at

data = at.load_data("digits")
threat = at.Threat("linf", eps=0.3)
model = at.build_model("small-cnn", data)
run = at.fit(model, at.defenses.FastAT(threat), data, epochs=30, seed=0)
print(at.evaluate(run.model, data.test, threat))
"""

from . import attacks, defenses, errors, schedules
from .data import Dataset, Split, as_dataset, load_data
from .defense import Batch, Defense, Step
from .errors import AdvtrainError
from .evaluate import PROTOCOLS, Protocol, evaluate
from .models import build_model
from .modes import attacking
from .report import Report
from .rng import Rng
from .runs import Run, load_run, version
from .threat import Threat
from .train import fit

__version__ = version()

__all__ = [
    "PROTOCOLS", "AdvtrainError", "Batch", "Dataset", "Defense", "Protocol", "Report", "Rng", "Run", "Split", "Step",
    "Threat", "as_dataset", "attacking", "attacks", "build_model", "defenses", "errors", "evaluate", "fit", "load_data",
    "load_run", "schedules",
]  # fmt: skip
