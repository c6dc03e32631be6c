"""Figures of a training, a report, a model under attack: one call each.

All return a matplotlib `Figure` that belongs to no window. A notebook draws it where it is named last in a cell, and
`figure.savefig("loss.png")` keeps it. Nothing is shown, closed or set for other figures. Lines differ in marker and
dashes as well as in colour. Where numbers are computed for a figure, `figure.numbers` has them. This module alone needs
matplotlib, and is imported on first use.
"""

try:
    from .accuracies import eps_curve, history, report
    from .images import adversarial_grid
    from .surface import loss_surface
except ImportError as error:
    raise ImportError("advtrain.plot needs matplotlib: pip install matplotlib", name="matplotlib") from error

__all__ = ["adversarial_grid", "eps_curve", "history", "loss_surface", "report"]
