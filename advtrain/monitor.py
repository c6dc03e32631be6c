"""Two things that go wrong in silence: catastrophic overfitting, and a model that always gives the same answer."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Monitor:
    """Watches training epoch by epoch and says what it sees, once per kind.

    Catastrophic overfitting (Wong, Rice and Kolter 2020, arXiv 2001.03994, section 5.4): accuracy under PGD collapses
    while accuracy under the training attack stays or rises. Reported when PGD accuracy is below half of its best value so
    far, and at least 10 points down, while the single step is still resisted: FGSM accuracy at least 15 points above PGD's.
    """

    best_pgd: float = 0.0
    said: set[str] = field(default_factory=set)

    def check(self, epoch: int, *, constant: bool, fgsm: float | None = None, pgd: float | None = None) -> list[str]:
        """What is new after this epoch.

        Args:
            epoch: counted from 1.
            constant: the model gave one and the same label to every training image of the epoch.
            fgsm, pgd: validation accuracies in [0, 1], where there is a validation.
        """
        found = []
        if constant and epoch > 1:
            found.append(("constant", f"epoch {epoch}: the model gives every image the same label. The learning rate or ε "
                          "is probably too large, or the data are in the wrong range."))  # fmt: skip
        if pgd is not None and fgsm is not None:
            self.best_pgd = max(self.best_pgd, pgd)
            if pgd < self.best_pgd / 2 and pgd < self.best_pgd - 0.10 and fgsm > pgd + 0.15:
                found.append(("overfitting", f"epoch {epoch}: catastrophic overfitting. Validation accuracy under PGD fell "
                              f"from {self.best_pgd:.1%} to {pgd:.1%}, under FGSM it is {fgsm:.1%}. The model masks its "
                              "gradient; use a random start, a smaller step, or a regularized defense."))  # fmt: skip
        fresh = [(kind, message) for kind, message in found if kind not in self.said]
        self.said |= {kind for kind, _ in fresh}
        return [message for _, message in fresh]
