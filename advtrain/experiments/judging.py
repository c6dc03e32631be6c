"""Judging a trained network by more than PGD: AutoAttack, and a diagnosis of whether its robustness is real."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..autoattack import judge_split
from ..data import Dataset, Split
from ..diagnose import diagnose
from ..errors import AdvtrainWarning
from ..report import Row
from ..threat import Threat

Judgement = tuple[dict[str, Any], dict[str, Any]]
"""The row of AutoAttack, and the content of `Trial.judged` without its call."""


def as_entry(row: Row) -> dict[str, Any]:
    """A row as a results file holds it."""
    return {"correct": row.correct, "total": row.total, "details": row.details, "verdicts": row.digest}


def second_opinion(
    model: nn.Module, data: Dataset, split: Split, config: dict[str, Any], state: Path | None = None
) -> Judgement | str:
    """What AutoAttack (standard) and the diagnosis say of a network; in words why they cannot, if they fail.

    Args:
        model: trained.
        data: what it was trained on, on which the diagnosis trains its surrogates.
        split: the images that it is judged by.
        config: of the run, whose threat, batch size and seed are used.
        state: a file from which AutoAttack goes on where an earlier call ended; it is removed at the end.
    """
    try:
        found = _judge(model, data, split, config, state)
        if state is not None:
            state.unlink(missing_ok=True)
        return found
    except Exception as error:  # the run itself is good: it must not be lost
        return f"{type(error).__name__}: {error}"


def _judge(model: nn.Module, data: Dataset, split: Split, config: dict[str, Any], state: Path | None) -> Judgement:
    threat, seed, started = Threat(**config["judge"]["threat"]), config["seed"], time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdvtrainWarning)  # they are in the report
        size = config["judge"]["batch_size"]
        report = judge_split(model, split, threat, batch_size=size, seed=seed, state=state, progress=False)
        diagnosis = diagnose(model, replace(data, test=split), threat, seed=seed, progress=False)
    attacks: dict[str, Any] = {"left": {name: report.row(name).correct for name in report.attacks}}
    if report.warnings:
        attacks["warnings"] = list(report.warnings)
    verdict = {"verdict": diagnosis.causes[0] if diagnosis.flagged else "no flag", "causes": list(diagnosis.causes)}
    seconds = round(time.perf_counter() - started, 1)
    return as_entry(report.row("autoattack")), {"autoattack": attacks, "diagnose": verdict, "seconds": seconds}
