"""Things that go wrong in silence: catastrophic overfitting, masked gradients, and a model with one answer for all."""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import AdvtrainWarning, OverfittingWarning
from .report import masked


@dataclass
class Monitor:
    """Watches training epoch by epoch and says what it sees, once per kind.

    Catastrophic overfitting (Wong, Rice and Kolter 2020, arXiv 2001.03994, section 5.4): accuracy under PGD collapses
    while accuracy under the training attack stays or rises. Reported in the epoch in which PGD accuracy is below half
    of its best value so far, and at least 10 points down, while the single step is still resisted: FGSM accuracy at
    least 15 points above PGD's. A run whose PGD accuracy never rose has nothing to collapse from; if it ends with PGD
    breaking most of what FGSM leaves correct, that is reported after the last epoch. (Early in training every defense
    passes through that state.)
    """

    best_pgd: float = 0.0
    said: set[str] = field(default_factory=set)

    def check(
        self, epoch: int, *, constant: bool, fgsm: float | None = None, pgd: float | None = None, final: bool = False
    ) -> list[tuple[type[AdvtrainWarning], str]]:
        """What is new after this epoch: kinds of warning and their messages.

        Args:
            epoch: counted from 1.
            constant: the model gave one and the same label to every training image of the epoch.
            fgsm, pgd: validation accuracies in [0, 1], where there is a validation.
            final: this was the last epoch.
        """
        found = []
        if constant and epoch > 1:
            message = (
                "the model gives every image the same label. The learning rate or ε is probably too large, or the data "
                "are in the wrong range."
            )
            found.append(("constant", AdvtrainWarning, message))
        if pgd is not None and fgsm is not None:
            self.best_pgd = max(self.best_pgd, pgd)
            advice = "Use a random start, a smaller step, or a stronger defense."
            standing = fgsm > pgd + 0.15
            if standing and pgd < self.best_pgd / 2 and pgd < self.best_pgd - 0.10:
                message = (
                    f"catastrophic overfitting. Validation accuracy under PGD fell from {self.best_pgd:.1%} to "
                    f"{pgd:.1%}, under FGSM it is {fgsm:.1%}: the model masks its gradient. {advice}"
                )
                found.append(("masking", OverfittingWarning, message))
            elif standing and final and masked(fgsm, pgd):
                message = (
                    f"training ends with masked gradients: validation accuracy is {fgsm:.1%} under FGSM and {pgd:.1%} "
                    f"under PGD. {advice}"
                )
                found.append(("masking", OverfittingWarning, message))
        fresh = [(category, f"epoch {epoch}: {message}") for kind, category, message in found if kind not in self.said]
        self.said |= {kind for kind, *_ in found}
        return fresh
