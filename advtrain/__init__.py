"""Fast adversarial training, to learn, use and judge.

import advtrain as at

data = at.load_data("digits")
threat = at.Threat("linf", eps=0.3)
model = at.build_model("small-cnn", data)
run = at.fit(model, at.defenses.FastAT(threat), data, epochs=30, seed=0)
print(at.evaluate(run.model, data.test, threat))
"""

from typing import TYPE_CHECKING, Any

from . import attacks, callbacks, defenses, errors, experiments, measure, schedules
from .autoattack import AutoAttackReport, autoattack
from .budget import Budget, budget
from .cost import Cost, Speed, calibrate, cost
from .data import Dataset, Split, as_dataset, load_data
from .defense import Batch, Defense, Step
from .diagnose import Diagnosis, diagnose
from .errors import AdvtrainError
from .evaluate import PROTOCOLS, Protocol, evaluate
from .experiments import Check, check_results_file, reproduce
from .export import export
from .foreign import load_model
from .models import build_model
from .modes import attacking
from .presets import PRESETS, Preset, preset
from .processes import joined
from .provenance import version
from .report import Report
from .results import PairedTest, PairedTests, Results, Trial, compare, load_results, recorded
from .rng import Rng
from .runs import Run, load_run
from .threads import side_by_side
from .threat import Threat
from .train import fit

__version__ = version()

__all__ = [
    "PRESETS", "PROTOCOLS", "AdvtrainError", "AutoAttackReport", "Batch", "Budget", "Check", "Cost", "Dataset",
    "Defense", "Diagnosis", "PairedTest", "PairedTests", "Preset", "Protocol", "Report", "Results", "Rng", "Run",
    "Speed", "Split", "Step", "Threat", "Trial", "as_dataset", "attacking", "attacks", "autoattack", "budget",
    "build_model", "calibrate", "callbacks", "check_results_file", "compare", "cost", "defenses", "diagnose", "errors",
    "evaluate", "experiments", "export", "fit", "joined", "load_data", "load_model", "load_results", "load_run",
    "measure", "preset", "recorded", "reproduce", "schedules", "side_by_side",
]  # fmt: skip

if TYPE_CHECKING:
    from . import plot as plot
    from . import widgets as widgets
else:  # a type checker would take any name for one that this finds

    def __getattr__(name: str) -> Any:
        """`plot` and `widgets` are imported on first use: they alone need matplotlib and ipywidgets (PEP 562)."""
        if name in ("plot", "widgets"):
            from importlib import import_module

            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "plot", "widgets"})
