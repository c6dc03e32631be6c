"""One run of an experiment, as a results file holds it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import one_of
from ..files import digest_of
from ..report import Row, masked


@dataclass
class Trial:
    """One run of an experiment: a method at a seed.

    Args:
        method: the label of its method.
        seed: named all its randomness.
        config: everything that makes the run what it is.
        status: `"finished"` or `"failed"`.
        message: why it failed.
        rows: by name, `"clean"`, `"fgsm"`, `"pgd"`, and of a `judged` run `"autoattack"`: `correct` of `total` images,
            `details` of the attack, and `verdicts`: SHA-256 of one bit for each image, whether it was classified
            correctly; see `Row.digest`.
        notes: what the training loop noted, such as catastrophic overfitting.
        history: a list for each of `epoch`, `loss`, `accuracy` and so on, see `Run.history`; six significant digits,
            and of longer trainings about a hundred epochs, evenly spaced, with the last.
        logs: the defense's own figures in the last epoch.
        best_epoch: the epoch whose weights were judged.
        made: what it was made of and came to: SHA-256 of `data` (pixels and labels of all splits) and of the judged
            `weights`, and the `precision` of the passes.
        seconds: of `train`, with its validations, and of `judge`, on the clock: longer beside other runs on the same
            machine. `cpu` is what the processor spent on training, which hardly depends on them.
        forwards: what a mini-batch costs, in forward-equivalents of the mini-batch; see `advtrain.cost`.
        forwards_total: the same for the whole training, in forward-equivalents of one image.
        date: when it finished, UTC.
        call: which entry of the file's provenance made it.
        more: what a later version wrote of it besides, kept as it is.
    """

    method: str
    seed: int
    config: dict[str, Any] = field(repr=False)
    status: str = "finished"
    message: str = ""
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    history: dict[str, list[Any]] = field(default_factory=dict, repr=False)
    logs: dict[str, float | None] = field(default_factory=dict)
    best_epoch: int = 0
    made: dict[str, str] = field(default_factory=dict, repr=False)
    seconds: dict[str, float] = field(default_factory=dict)
    forwards: float | None = None
    forwards_total: int | None = None
    date: str = ""
    call: int = 0
    more: dict[str, Any] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> float:
        return self.row(name).accuracy

    def row(self, name: str) -> Row:
        """The counts on clean images or under an attack, with their interval; `name` is that of one of the `rows`."""
        one_of("name", name, self.rows)
        found = self.rows[name]
        return Row(name, found["correct"], found["total"], found["details"])

    @property
    def records(self) -> list[dict[str, Any]]:
        """The history as `Run.history` has it: a dict for each epoch."""
        return [dict(zip(self.history, row, strict=True)) for row in zip(*self.history.values(), strict=True)]

    @property
    def digest(self) -> str:
        """SHA-256 of `config`."""
        return digest_of(self.config)

    @property
    def key(self) -> tuple[str, str]:
        """Label and digest: what the run is recognised by."""
        return self.method, self.digest

    @property
    def finished(self) -> bool:
        """Whether there is something to judge it by."""
        return self.status == "finished"

    @property
    def judged(self) -> dict[str, Any]:
        """What `reproduce(..., judge=True)` added, empty without it: beside the row `"autoattack"`.

        `autoattack`: how many images were `left` after each of its attacks, and its `warnings` if there were any;
        `diagnose`: why the robustness is not what it seems, all `causes`, and as `verdict` the first of them, or
        `"no flag"`; `seconds` of both, and the `call` that made them, an entry of the file's provenance.
        """
        judged: dict[str, Any] = self.more.get("judged", {})
        return judged

    @property
    def masked(self) -> bool:
        """Whether PGD takes most of what FGSM leaves correct: the gradient is masked."""
        return self.finished and masked(self["fgsm"], self["pgd"])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values, as in the file."""
        found = {"method": self.method, "seed": self.seed, "digest": self.digest, **asdict(self)}
        more = found.pop("more")
        return {**found, **more}


def six_digits(value: Any) -> Any:
    """A float with six significant digits; NaN and infinity, which are not JSON, as None; anything else as it is."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None
