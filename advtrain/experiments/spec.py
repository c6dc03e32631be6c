"""An experiment as values: methods, comparisons, and the runs that they amount to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..defense import Defense
from ..errors import one_of
from ..files import digest_of
from ..results.configs import config_of, plain
from ..threat import Threat


@dataclass(frozen=True)
class Method:
    """One row of the table: a defense, and how it is trained.

    Args:
        name: its label, unique in the experiment.
        defense: with its options.
        fit: the arguments of `fit` that make the training what it is, all of them but the seed.
        about: why it is in the experiment.
    """

    name: str
    defense: Defense
    fit: dict[str, Any]
    about: str = ""


@dataclass(frozen=True)
class Comparison:
    """A difference between two methods that the experiment is about.

    Args:
        a, b: labels of methods; the difference is a minus b.
        metric: one of `METRICS`.
        why: the question that it answers.
    """

    a: str
    b: str
    metric: str = "pgd"
    why: str = ""


@dataclass(frozen=True)
class Plan:
    """One run to be made.

    Args:
        method: the label of its method.
        seed: names all its randomness: the split, the initial weights, training and random starts of attacks.
        config: everything that makes the run what it is, as JSON-able values.
    """

    method: str
    seed: int
    config: dict[str, Any] = field(repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 of `config`: runs of the same digest are the same run."""
        return digest_of(self.config)

    @property
    def key(self) -> tuple[str, str]:
        """Label and digest: what a run in a results file is recognised by."""
        return self.method, self.digest


@dataclass(frozen=True)
class Experiment:
    """An experiment, complete and checked; `load` makes one.

    Args:
        name: of its file, without the ending.
        title: what it is called.
        about: why it is made.
        data: name and validation share, as `load_data` takes them.
        model: name, first layer and options, as `build_model` takes them.
        threat: what all methods are judged under, and trained against unless they say otherwise.
        judge: split, protocol, limit and batch size of the evaluation.
        seeds: each method is run once for each of them.
        methods: in the order of the table.
        compare: the comparisons that are meant.
    """

    name: str
    title: str
    about: str
    data: dict[str, Any]
    model: dict[str, Any]
    threat: Threat
    judge: dict[str, Any]
    seeds: tuple[int, ...]
    methods: tuple[Method, ...]
    compare: tuple[Comparison, ...] = ()

    @property
    def content(self) -> dict[str, Any]:
        """The experiment with every default written out, as JSON-able values."""
        methods = [{"name": m.name, "about": m.about, "defense": m.defense.config, "fit": m.fit} for m in self.methods]
        own = {"name": self.name, "title": self.title, "about": self.about, "data": self.data, "model": self.model}
        judged = {"threat": asdict(self.threat), "judge": self.judge, "seeds": self.seeds, "methods": methods}
        return plain({**own, **judged, "compare": [asdict(comparison) for comparison in self.compare]})

    @property
    def digest(self) -> str:
        """SHA-256 of `content`."""
        return digest_of(self.content)

    def plan(self, methods: tuple[str, ...] = (), seeds: tuple[int, ...] = ()) -> list[Plan]:
        """The runs, all methods of the first seed first.

        Args:
            methods: labels of those wanted; all if there is none.
            seeds: those wanted; all if there is none.

        Raises:
            ArgumentError: the experiment has no such method or seed.
        """
        for name in methods:
            one_of("method", name, [method.name for method in self.methods])
        for seed in seeds:
            one_of("seed", seed, self.seeds)
        content = self.content
        return [
            Plan(m.name, seed, config_of(content, m.name, seed))
            for seed in self.seeds
            if not seeds or seed in seeds
            for m in self.methods
            if not methods or m.name in methods
        ]
