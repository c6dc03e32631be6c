"""What an experiment found: one file with every run, where it came from, and the table made from it.

    {"format": 1,
     "experiment": {...},       the experiment with every default written out
     "digest": "…",             its SHA-256
     "provenance": [{...}],     one for each call that made runs: command, commit, machine, versions, dates
     "runs": [{...}]}           one for each method and seed; see `Trial`

Nothing in it is executed on loading. A reader of format 1 refuses what is not whole.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import FileError, one_of
from ..files import atomic, digest_of, read_json
from ..report import Row, masked
from .checks import check_results
from .paired import METRICS, Difference, paired
from .table import as_html, as_markdown, as_text, table_rows

FORMAT = 1


@dataclass
class Trial:
    """One run of an experiment: a method at a seed.

    Args:
        method: the label of its method.
        seed: named all its randomness.
        config: everything that makes the run what it is.
        status: `"finished"` or `"failed"`.
        message: why it failed.
        rows: by name, `"clean"`, `"fgsm"`, `"pgd"`: `correct` of `total` images, `details` of the attack, and
            `verdicts`: SHA-256 of one bit for each image, whether it was classified correctly.
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

    def __getitem__(self, name: str) -> float:
        return self.row(name).accuracy

    def row(self, name: str) -> Row:
        """The counts on clean images or under an attack, with their interval: `"clean"`, `"fgsm"`, `"pgd"`."""
        one_of("name", name, self.rows)
        found = self.rows[name]
        return Row(name, found["correct"], found["total"], found["details"])

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
    def masked(self) -> bool:
        """Whether PGD takes most of what FGSM leaves correct: the gradient is masked."""
        return self.finished and masked(self["fgsm"], self["pgd"])


@dataclass(repr=False)
class Results:
    """The results of an experiment; `load_results` reads them, `reproduce` makes them.

    `print(results)` shows the table.

    Args:
        experiment: the experiment's content, every default written out.
        runs: one `Trial` for each method and seed.
        provenance: where they come from, one entry for each call that made runs.
    """

    experiment: dict[str, Any]
    runs: list[Trial] = field(default_factory=list)
    provenance: list[dict[str, Any]] = field(default_factory=list)

    @property
    def methods(self) -> list[str]:
        """The labels of the methods, in the order of the table."""
        return [method["name"] for method in self.experiment["methods"]]

    @property
    def failed(self) -> list[Trial]:
        """The runs that ended with an error."""
        return [run for run in self.runs if not run.finished]

    @property
    def missing(self) -> int:
        """How many runs of the experiment are still to be made."""
        return len(self.methods) * len(self.experiment["seeds"]) - len(self.runs)

    def of(self, method: str) -> list[Trial]:
        """The finished runs of a method, by seed.

        Args:
            method: its label.
        """
        one_of("method", method, self.methods)
        return sorted((run for run in self.runs if run.method == method and run.finished), key=lambda run: run.seed)

    def table(self) -> list[dict[str, Any]]:
        """One dict for each method, in the order of the experiment.

        Returns:
            `method`; `seeds` that finished and runs that `failed`; `clean`, `fgsm`, `pgd` as a `Summary` over seeds
            (None without a finished run); `masked`: at how many seeds PGD takes most of what FGSM leaves; `logs`: means
            over seeds of the defense's own figures in the last epoch; `seconds` of training, mean; and `forwards`, the
            forward-equivalents of a mini-batch, mean.
        """
        return table_rows(self)

    def compare(self, a: str, b: str, metric: str = "pgd", why: str = "") -> Difference:
        """Method a minus method b at each seed at which both have finished.

        Args:
            a, b: labels of methods.
            metric: `"clean"`, `"fgsm"` or `"pgd"`: the accuracy compared, in [0, 1].
            why: the question that it answers.

        Raises:
            ArgumentError: an unknown label or metric, or no seed in common.
        """
        one_of("metric", metric, METRICS)
        left, right = ({run.seed: run[metric] for run in self.of(method)} for method in (a, b))
        return paired(a, b, metric, left, right, why)

    @property
    def comparisons(self) -> list[Difference]:
        """Those that the experiment means, as far as there are runs for them."""
        finished = {method: {run.seed for run in self.of(method)} for method in self.methods}
        return [self.compare(**c) for c in self.experiment["compare"] if finished[c["a"]] & finished[c["b"]]]

    def markdown(self) -> str:
        """The table and the comparisons in Markdown, as the book shows them."""
        return as_markdown(self)

    def __str__(self) -> str:
        return as_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(self)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values, as in the file."""
        head = {"format": FORMAT, "experiment": self.experiment, "digest": digest_of(self.experiment)}
        runs = [{"method": r.method, "seed": r.seed, "digest": r.digest, **asdict(r)} for r in self.runs]
        return {**head, "provenance": self.provenance, "runs": runs}

    def save(self, path: str | os.PathLike) -> None:
        """Write the file, atomically; `load_results` reads it.

        Args:
            path: the file.

        Raises:
            FileError: it cannot be written.
        """
        text = _layout(self.to_dict())
        with atomic(path) as partial:
            partial.write_text(text, encoding="utf-8")


def load_results(path: str | os.PathLike) -> Results:
    """Read a results file that `advtrain reproduce` wrote.

    Args:
        path: the file.

    Returns:
        The `Results`: `print` them for the table; `.runs`, `.table()` and `.compare(a, b)` have the figures.

    Raises:
        FileError: it is missing, damaged, or of another format; the message says what and where.
    """
    path = Path(path)
    value = read_json(path)
    if isinstance(value, dict) and value.get("format") != FORMAT:
        found = f"format {value['format']!r}" if "format" in value else "no format"
        advice = "update advtrain-book" if "format" in value else "it is not a file of advtrain reproduce"
        raise FileError(f"{path} has {found}, this version reads {FORMAT}: {advice}")
    check_results(value, path, [f.name for f in fields(Trial)])
    runs = [Trial(**{key: part for key, part in run.items() if key != "digest"}) for run in value["runs"]]
    return Results(value["experiment"], runs, value["provenance"])


def six_digits(value: Any) -> Any:
    """A float with six significant digits; NaN and infinity, which are not JSON, as None; anything else as it is."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _layout(value: dict[str, Any]) -> str:
    """JSON with a line for each key of the file, of each run and of each call: readable, also as a diff."""

    def line(part: Any) -> str:
        return json.dumps(part, ensure_ascii=False, allow_nan=False)

    def block(part: dict[str, Any], indent: str) -> str:
        lines = ",\n".join(f"{indent}  {line(key)}: {line(item)}" for key, item in part.items())
        return f"{{\n{lines}\n{indent}}}"

    parts = []
    for key, part in value.items():
        if isinstance(part, list):
            text = "[\n    " + ",\n    ".join(block(item, "    ") for item in part) + "\n  ]" if part else "[]"
        else:
            text = block(part, "  ") if key == "experiment" else line(part)
        parts.append(f"  {line(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
