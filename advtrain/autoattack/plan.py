"""Which attacks a version of AutoAttack is made of. This is the only list of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import ModelError, one_of
from ..report import count


@dataclass(frozen=True)
class Stage:
    """One attack of the ensemble; it meets the images that stood all before it.

    Args:
        name: as in the authors' code: `"apgd-ce"`, `"apgd-dlr"`, `"apgd-t"`, `"fab"`, `"fab-t"`, `"square"`.
        kind: `"apgd"`, `"fab"` or `"square"`.
        loss: what APGD climbs.
        targets: towards how many other classes, the likeliest first; 0 for an untargeted attack.
        restarts: of an untargeted attack.
        steps: gradient steps of APGD and FAB, or queries of Square.
        eot: passes that make one gradient.
        classes: how many the model has.
        note: where the stage is not as published, and why.
    """

    name: str
    kind: str
    loss: str = ""
    targets: int = 0
    restarts: int = 1
    steps: int = 100
    eot: int = 1
    classes: int = 10
    note: str = ""

    @property
    def passes(self) -> int:
        """Roughly what an image that stands costs, in forward passes: for the progress bar."""
        fab = 3 if self.targets else 2 * self.classes - 1
        once = {"apgd": 2 * self.steps * self.eot, "fab": fab * self.steps, "square": self.steps}[self.kind]
        return once * self.restarts * max(self.targets, 1)

    def __str__(self) -> str:
        parts = [f"{self.steps} {'queries' if self.kind == 'square' else 'steps'}"]
        parts += [count(self.targets, "target")] * bool(self.targets)
        parts += [f"{self.restarts} restarts"] * (self.restarts > 1)
        parts += [f"{self.eot} passes a gradient"] * (self.eot > 1)
        return ", ".join(parts) + (f" ({self.note})" if self.note else "")


APGD_CE, APGD_DLR = Stage("apgd-ce", "apgd", "ce"), Stage("apgd-dlr", "apgd", "dlr")
APGD_T, FAB_T = Stage("apgd-t", "apgd", "dlr", targets=9), Stage("fab-t", "fab", targets=9)
FAB, SQUARE = Stage("fab", "fab"), Stage("square", "square", steps=5000)

VERSIONS: dict[str, tuple[Stage, ...]] = {
    "standard": (APGD_CE, APGD_T, FAB_T, SQUARE),
    "plus": (
        replace(APGD_CE, restarts=5), replace(APGD_DLR, restarts=5), replace(FAB, restarts=5), SQUARE, APGD_T, FAB_T,
    ),
    "rand": (replace(APGD_CE, eot=20), replace(APGD_DLR, eot=20)),
    "fast": (APGD_CE, APGD_T),
}  # fmt: skip
"""The versions of AutoAttack: three by its authors, and `"fast"`, which is ours: the first two attacks of the
standard version, which find nearly everything that it finds, at about a third of its passes. It is not the standard."""


def stages(version: str, classes: int) -> tuple[Stage, ...]:
    """The attacks of a version for a model with so many classes.

    With fewer than ten classes there are fewer targets than nine, as the authors advise. The DLR loss needs three
    classes and its targeted form four; below that the difference of two logits, its numerator, takes its place.

    Args:
        version: a name in `VERSIONS`.
        classes: how many logits the model has.

    Raises:
        ArgumentError: an unknown version.
        ModelError: fewer than two classes.
    """
    one_of("version", version, VERSIONS)
    if classes < 2:
        raise ModelError(
            f"the model has {classes} logit: an attack needs at least two classes. A single logit z says which of two "
            "classes it is: wrap the model so that it returns torch.cat([-z, z], 1)"
        )
    return tuple(_fit(stage, classes) for stage in VERSIONS[version])


def _fit(stage: Stage, classes: int) -> Stage:
    stage = replace(stage, classes=classes)
    if stage.targets:
        stage = replace(stage, targets=min(stage.targets, classes - 1))
    if stage.loss == "dlr" and classes < (4 if stage.targets else 3):
        note = f"difference of logits: the DLR loss is not defined for {classes} classes"
        stage = replace(stage, loss="margin", note=note)
    return stage
