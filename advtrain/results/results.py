"""What an experiment found: one file with every run, where it came from, and the table made from it.

    {"format": 1,
     "experiment": {...},       the experiment with every default written out
     "digest": "…",             its SHA-256
     "provenance": [{...}],     one for each call that made runs: command, commit, machine, versions, dates
     "runs": [{...}],           one for each method and seed; see `Trial`
     "sum": "…"}                SHA-256 of provenance and runs, so that no figure changes unseen; the earliest lack it

Nothing in it is executed on loading. A reader of format 1 refuses what is not whole, and what a run or the experiment
says of itself that does not agree. Keys that it does not know, in a run and its parts, it keeps and writes back.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import bad, one_of
from ..files import atomic, digest_of
from ..runs import Run
from .configs import plain
from .networks import load_trial
from .paired import METRICS, Difference, paired
from .table import as_html, as_markdown, as_text, table_rows
from .trial import Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 1


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
    def digest(self) -> str:
        """SHA-256 of `experiment`."""
        return digest_of(self.experiment)

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

    def run(self, method: str, seed: int | None = None) -> Run:
        """A run as `advtrain.fit` returned it, network and all, instead of training once more.

        >>> import advtrain as at
        >>> at.load_results("digits").run("pgd").model.head
        Linear(in_features=128, out_features=10, bias=True)

        The weights of a few recorded runs come with the package: of `load_results("digits")` the first seeds of
        `"standard"`, `"fgsm"`, `"fast-at"`, `"nuat"`, `"sat-r1"`, `"sat-r2 (λ=0.5, α=ε/4)"`, `"sat-r3"`, `"pgd-2"` and
        `"pgd"`, and both runs of `load_results("chapters")`.

        Args:
            method: its label.
            seed: that of the run; the first finished one if not given.

        Returns:
            The `Run`, its network on the CPU and in evaluation mode. Figures of the history have six digits.

        Raises:
            ArgumentError: no finished run of this label and seed.
            FileError: its weights do not come with the package, or are not those that the results were made with.
        """
        runs = {run.seed: run for run in self.of(method)} or bad("method", method, "one with a finished run")
        seed = min(runs) if seed is None else seed
        one_of("seed", seed, runs)
        return load_trial(runs[seed], self.provenance[runs[seed].call])

    def table(self) -> list[dict[str, Any]]:
        """One dict for each method, in the order of the experiment.

        Returns:
            `method`; `seeds` that finished and runs that `failed`; `clean`, `fgsm`, `pgd` as a `Summary` over seeds
            (None without a finished run); `masked`: at how many seeds PGD takes most of what FGSM leaves; `autoattack`
            as a `Summary` over the seeds that were judged by it (None without one) and `diagnose`, at how many of these
            each verdict was given; `logs`: means over seeds of the defense's own figures in the last epoch; `forwards`,
            the forward-equivalents of a mini-batch; `cost` of the whole training, in units of the method with the
            defense `standard`, or, without one, in forward-equivalents per training image; and `seconds` of training:
            of the processor if all runs were made on CPUs, else on the clock, None where a method's runs were made on
            different devices. The last three are means over seeds.
        """
        return table_rows(self)

    def compare(self, a: str, b: str, metric: str = "pgd", why: str = "") -> Difference:
        """Method a minus method b at each seed at which both have finished.

        Args:
            a, b: labels of methods.
            metric: `"clean"`, `"fgsm"`, `"pgd"`, `"autoattack"`, or another row that both have: the accuracy compared,
                in [0, 1].
            why: the question that it answers.

        Raises:
            ArgumentError: an unknown label or metric, or no seed in common.
        """
        sides = [self.of(a), self.of(b)]
        one_of(
            "metric", metric, dict.fromkeys([*METRICS, *(name for runs in sides for run in runs for name in run.rows)])
        )
        left, right = ({run.seed: run[metric] for run in runs if metric in run.rows} for runs in sides)
        return paired(a, b, metric, left, right, why)

    @property
    def comparisons(self) -> list[Difference]:
        """Those that the experiment means, as far as there are runs for them."""

        def seeds(method: str, metric: str) -> set[int]:
            return {run.seed for run in self.of(method) if metric in run.rows}

        meant = [(c["a"], c["b"], c["metric"], c["why"]) for c in self.experiment["compare"]]
        return [self.compare(*c) for c in meant if seeds(c[0], c[2]) & seeds(c[1], c[2])]

    def plot(self, ax: Any = None) -> Figure:
        """Draw each method's accuracies, with their spread over seeds. Needs matplotlib.

        Args:
            ax: matplotlib axes to draw into; a new figure if not given.
        """
        from .figure import draw

        return draw(self, ax)

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
        head = {"format": FORMAT, "experiment": self.experiment, "digest": self.digest}
        return {**head, "provenance": self.provenance, "runs": [run.to_dict() for run in self.runs]}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, atomically; `load_results` reads it.

        Args:
            path: the file.

        Raises:
            FileError: it cannot be written.
        """
        value = self.to_dict()
        text = _layout({**value, "sum": sum_of(plain(value))})
        with atomic(path) as partial:
            partial.write_text(text, encoding="utf-8")


def sum_of(value: dict[str, Any]) -> str:
    """SHA-256 of what a results file says beside its experiment, which has one of its own."""
    return digest_of({key: value[key] for key in ("provenance", "runs")})


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
