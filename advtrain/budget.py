"""What training would cost with each of several defenses: counted, and predicted for the reader's machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .cost import Cost, Speed, calibrate, cost, first_batch, part
from .data import Split, as_dataset
from .defense import Defense
from .defenses import Standard
from .errors import at_least, bad, check_kind, one_of
from .markup import table
from .modes import place
from .recipe import check_defense, check_network, undisturbed

CALL = "budget(defenses, model, data)"


@dataclass(frozen=True)
class Budget:
    """What each of several defenses costs: a table, in forward-equivalents and in time.

    `print(budget)` shows it; `budget["pgd"]` is the `Cost` counted on a few images, `budget.minutes("pgd")` the
    predicted time of the whole training, `budget.relative("pgd")` its cost in units of standard training.

    Args:
        costs: by name, in the order of the table.
        standard: the cost of standard training.
        epochs: passes over the training images.
        batches: mini-batches in an epoch, not necessarily whole.
        speed: of the machine.
    """

    costs: dict[str, Cost]
    standard: Cost
    epochs: int
    batches: float
    speed: Speed

    def __getitem__(self, name: str) -> Cost:
        one_of("name", name, self.costs)
        return self.costs[name]

    def relative(self, name: str) -> float:
        """Forward-equivalents in units of standard training."""
        return self[name].forwards / self.standard.forwards

    def seconds(self, name: str) -> float:
        """Predicted seconds of training, without validation."""
        return self.epochs * self.batches * self.speed.seconds(self[name])

    def minutes(self, name: str) -> float:
        """Predicted minutes of training, without validation."""
        return self.seconds(name) / 60

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The table as values: name, forward and backward passes and forward-equivalents per mini-batch, and so on."""
        return [
            {"name": name, "forward": cost.forward, "backward": cost.backward, "forwards": cost.forwards,
             "relative": self.relative(name), "minutes": self.minutes(name)}
            for name, cost in self.costs.items()
        ]  # fmt: skip

    def _cells(self) -> Iterator[tuple[str, ...]]:
        yield "", "forward", "backward", "equivalents", "relative", "time"
        for row in self.rows:
            figures = f"{row['forwards']:.1f}", f"{row['relative']:.1f}", _duration(60 * row["minutes"])
            yield row["name"], str(row["forward"]), str(row["backward"]), *figures

    @property
    def caption(self) -> str:
        """What the columns mean."""
        return (
            "Passes and forward-equivalents per mini-batch; cost relative to standard training; predicted time of "
            f"{self.epochs} epochs on {self.speed.device}, without validation"
        )

    def __str__(self) -> str:
        width = max(map(len, self.costs))
        lines = ["{:<{w}}{:>9}{:>10}{:>13}{:>10}{:>10}".format(*cells, w=width) for cells in self._cells()]
        return "\n".join([*lines, self.caption + "."])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *rows = self._cells()
        return table(["defense", *head[1:]], rows, caption=self.caption)


def budget(
    defenses: Defense | Iterable[Defense] | Mapping[str, Defense],
    model: nn.Module,
    data: Any,
    *,
    epochs: int = 30,
    batch_size: int = 64,
    speed: Speed | None = None,
) -> Budget:
    """Predict what training with each of several defenses costs, before any of it is done.

    >>> import advtrain as at
    >>> data, threat = at.load_data("digits"), at.Threat("linf", eps=0.3)
    >>> pair = [at.defenses.FGSM(threat), at.defenses.PGD(threat, steps=10)]
    >>> found = budget(pair, at.build_model("small-cnn", data), data, speed=at.Speed(update=0.004, forward=0.001))
    >>> round(found.relative("fgsm"), 1), round(found.relative("pgd"), 1)
    (1.7, 7.7)

    Args:
        defenses: several, or one; as a dict where two have the same name: `{"PGD-2": PGD(threat, steps=2), ...}`.
        model: the network to be trained; left as it was, see `cost`.
        data: what it would be trained on, as in `fit`.
        epochs: passes over the training images.
        batch_size: images per mini-batch (a `DataLoader` keeps its own).
        speed: of the machine; measured by `calibrate` on this one if not given.

    Returns:
        A `Budget`. Validation after each epoch, which `fit` does unless told otherwise, is not in it.

    Raises:
        ArgumentError, DataError, ModelError: an argument is not accepted.
    """
    epochs = at_least("epochs", epochs, 1)
    named = _named(defenses)
    check_network(model, CALL)
    if speed is not None:
        check_kind("speed", speed, Speed, "calibrate(model, data) measures one")
    device, dtype = place(model)
    with undisturbed(device):
        data = as_dataset(data, test=0)
        batch = first_batch(data, batch_size, device, dtype)
        batches = len(data.train) / len(batch.x) if isinstance(data.train, Split) else len(data.train)
        few = part(batch)
        costs = {name: cost(defense, model, few) for name, defense in named.items()}
        standard = cost(Standard(next(iter(named.values())).threat), model, few)
        return Budget(costs, standard, epochs, batches, speed or calibrate(model, data, batch_size=batch_size))


def _named(defenses: Any) -> dict[str, Defense]:
    """Each defense by its name in the table."""
    if isinstance(defenses, Mapping):
        named = dict(defenses)
        if wrong := [key for key in named if not (isinstance(key, str) and key.strip())]:
            bad("defenses", wrong, "a dict with names for keys", 'write texts: {"PGD-2": PGD(threat, steps=2), ...}')
        for name, defense in named.items():
            check_defense(f"defenses[{name!r}]", defense, CALL)
    else:
        single = isinstance(defenses, (Defense, nn.Module, str)) or not isinstance(defenses, Iterable)
        listed = [defenses] if single else list(defenses)
        for i, defense in enumerate(listed):
            check_defense("defenses" if single else f"defenses[{i}]", defense, CALL)
        named = {defense.name: defense for defense in listed}
        if len(named) < len(listed):
            hint = 'give each its own: {"PGD-2": PGD(threat, steps=2), "PGD-10": PGD(threat)}'
            bad("defenses", [defense.name for defense in listed], "of different names", hint)
    if not named:
        bad("defenses", defenses, "at least one Defense")
    return named


def _duration(seconds: float) -> str:
    """In the unit that suits what is written, after rounding.

    >>> _duration(0.01), _duration(8), _duration(200), _duration(9000)
    ('10.0 ms', '8.0 s', '3.3 min', '2.5 h')
    >>> _duration(0.09999), _duration(59.97), _duration(3599.9)
    ('0.1 s', '1.0 min', '1.0 h')
    """
    for size, name, least_of_next in ((0.001, "ms", 100), (1, "s", 60), (60, "min", 60)):
        if float(text := f"{seconds / size:.1f}") < least_of_next:
            return f"{text} {name}"
    return f"{seconds / 3600:.1f} h"
