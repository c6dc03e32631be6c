"""How a caller who checks types uses the package; `make check` reads it with mypy, and `tests/test_style.py` runs it.

Each line of `misuse` is wrong in the way that its comment says: mypy complains of a comment that it does not need.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

import advtrain as at

Attack = Callable[[nn.Module, Tensor, Tensor, at.Threat], Tensor]


@dataclass
class Halfway(at.Defense):
    """Trains on images halfway to those of PGD."""

    steps: int = 2

    name: ClassVar[str] = "halfway"
    select: ClassVar[str] = "clean"

    def __call__(self, model: nn.Module, batch: at.Batch, progress: float) -> at.Step:
        x_adv = at.attacks.pgd(model, batch.x, batch.y, self.threat, steps=self.steps, rng=batch.rng("init"))
        x = (batch.x + x_adv) / 2
        logits = model(x)
        loss = self.criterion(logits, batch.y)
        return at.Step(loss, logits, x - batch.x, {"progress": loss.new_tensor(progress)})


def images_of(split: at.Split | None) -> tuple[Tensor, Tensor]:
    """Pixels and labels of a split that a data set may not have."""
    assert split is not None
    return split.images(), split.y


def use(folder: Path) -> at.Report:
    """Train, look on, judge, diagnose, and read back what was written."""
    threat = at.Threat("linf", eps=0.3)
    data: at.Dataset = at.load_data("digits", seed=1)
    model = at.build_model("small-cnn", data, width=4, seed=1)
    logits: Tensor = model(images_of(data.val)[0])
    seen: list[dict[str, Any]] = []
    run: at.Run = at.fit(model, Halfway(threat, steps=1), data, epochs=1, seed=1, out=folder, on_epoch=seen.append)
    report = at.evaluate(run.model, data, run.threat, protocol=at.Protocol(steps=2, restarts=1), seed=1)
    x, y = (part[:8] for part in images_of(data.test))
    attacks: dict[str, Attack] = {"fgsm": at.attacks.fgsm, "pgd": at.attacks.pgd}
    moved = {name: float((attack(run.model, x, y, threat) - x).abs().max()) for name, attack in attacks.items()}
    verdict: at.AutoAttackReport = at.autoattack(run.model, x, y, threat, "fast", seed=1)
    accuracy: float = report["pgd"] + report.rows[0].accuracy + verdict.robust_accuracy
    again = at.load_run(folder, defense=run.defense)
    assert len(logits) and seen and moved and 0 <= accuracy <= 3 and again.defense.threat == threat
    return at.Report.from_dict(report.to_dict())


def misuse(model: nn.Module, data: at.Dataset, threat: at.Threat, x: Tensor, y: Tensor) -> None:
    """What a type checker finds before anything runs."""
    at.load_dta("digits")  # type: ignore[attr-defined]
    at.Threat("linf", eps="8/255")  # type: ignore[arg-type]
    at.fit(model, at.defenses.FastAT, data)  # type: ignore[arg-type]
    at.fit(model, at.defenses.FastAT(threat), data, epoch=3)  # type: ignore[call-arg]
    at.defenses.PGD(threat, steps="ten")  # type: ignore[arg-type]
    at.attacks.pgd(model, x, y, 0.3)  # type: ignore[arg-type]
    at.attacks.pgd(model, x, y, threat, 10)  # type: ignore[call-arg]
    at.autoattack(model, x, y, threat).robust.sum()  # type: ignore[union-attr]
    data.val.images()  # type: ignore[union-attr]
    at.evaluate(model, data, threat)["pgd"].mean()  # type: ignore[attr-defined]

    class NoProgress(at.Defense):
        def __call__(self, model: nn.Module, batch: at.Batch) -> at.Step:  # type: ignore[override]
            return at.Step(model(batch.x), batch.y, batch.x)

    class NoStep(at.Defense):
        def __call__(self, model: nn.Module, batch: at.Batch, progress: float) -> Tensor:  # type: ignore[override]
            return self.criterion(model(batch.x), batch.y)
