"""`advtrain.autoattack` against the authors' own code: is it never weaker, and how much faster?

    python benchmarks/autoattack.py --store FOLDER --root DATA [--models NAME ...] [--images 1000] [--out FILE]

Trains small networks by several methods, once: they are kept in `--store` as run folders. Then both judge each network
on the same images, each with its own default of the batch size: AutoAttack as its authors publish it (`pip install
pyautoattack`), with the network as a user has it, and ours. Every judgement has a process of its own, so that neither
profits from what the other left behind (the allocator's thresholds, caches), and they take turns in going first. Both
have `--threads` threads.

For each network: the robust accuracy and the seconds after each attack; how many images withstand one of the two only;
and of the images that only theirs breaks, how many of their examples are inside the threat, judged in float64. The
ratios are of processor seconds, for wall-clock seconds depend on what else runs; both are in the results.

Images are test images; where there are too few (the digits), training images after them. `--train-only` trains and
stops; `--oracle-only` and `--ours-only` leave the other out.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import platform
import re
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import advtrain as at
from advtrain.files import write_json
from advtrain.provenance import command_line, provenance


@dataclass(frozen=True)
class Subject:
    """A network to judge, and how it is trained.

    Args:
        data: name of the data set.
        defense: name of the defense.
        norm, eps: the threat of training and of judgement.
        epochs, lr, batch_size, optimizer: of training.
        images: how many training images; all if None.
        options: fields of the defense.
        model: options of the network.
        network: its name.
        schedule: of training.
    """

    data: str
    defense: str
    norm: str
    eps: float
    epochs: int
    lr: float = 0.1
    batch_size: int = 64
    optimizer: str = "sgd"
    images: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    network: str = "small-cnn"
    schedule: str = "cyclic"
    augment: bool = False  # with random crops and flips, on all images

    @property
    def threat(self) -> at.Threat:
        return at.Threat(self.norm, self.eps)

    def load(self, root: str | None) -> at.Dataset:
        return at.load_data(self.data, root=None if self.data == "digits" else root, val=0)

    def train(self, folder: Path, root: str | None, device: str = "cpu") -> nn.Module:
        """The network from its run folder; trained first if it is not there."""
        if (folder / "config.json").is_file() and (run := at.load_run(folder, device=device)).status == "finished":
            return run.model
        data = self.load(root)
        train = data.train[: self.images] if self.images else data.train
        given = data if self.augment else (train.images(), train.y)
        model = at.build_model(self.network, data, **self.model)
        defense = at.defenses.DEFENSES[self.defense](self.threat, **self.options)
        at.fit(
            model, defense, given, epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, schedule=self.schedule,
            optimizer=self.optimizer, validate_every=0, device=device, out=folder, overwrite=True, progress=False,
        )  # fmt: skip
        return model.eval()


ADAM = {"optimizer": "adam", "lr": 1e-3, "model": {"width": 8}}
SUBJECTS = {
    "digits-standard": Subject("digits", "standard", "linf", 0.1, epochs=30),
    "digits-fgsm": Subject("digits", "fgsm", "linf", 0.3, epochs=60),
    "digits-pgd": Subject("digits", "pgd", "linf", 0.3, epochs=30),
    "digits-trades": Subject("digits", "trades", "linf", 0.3, epochs=30),
    "digits-pgd-l2": Subject("digits", "pgd", "l2", 1.0, epochs=30),
    "mnist-fgsm": Subject("mnist", "fgsm", "linf", 0.3, epochs=5, images=12_000, **ADAM),
    "mnist-pgd": Subject("mnist", "pgd", "linf", 0.3, epochs=8, images=12_000, **ADAM),
    "cifar10-fast-at": Subject("cifar10", "fast-at", "linf", 8 / 255, epochs=8, images=15_000, **ADAM),
}
LARGE = {
    "cifar10-resnet-fast-at": Subject(
        "cifar10", "fast-at", "linf", 8 / 255, epochs=15, lr=0.2, batch_size=128, network="preactresnet18",
        schedule="fast-bat", augment=True,
    ),
}  # fmt: skip
"""For a GPU; not among those that are judged by default."""


def by_authors(model: nn.Module, x: Tensor, y: Tensor, subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """The authors' code, unchanged; what happens after each attack is read from its log."""
    from pyautoattack import AutoAttack

    rows: dict[str, dict[str, float]] = {}
    clock = Clock()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if found := re.match(r"initial accuracy: ([\d.]+)%", text):
                rows["clean"] = {"accuracy": float(found[1]) / 100, **clock.lap()}
            if found := re.match(r"robust accuracy after (\S+): ([\d.]+)%", text):
                rows[found[1].lower()] = {"accuracy": float(found[2]) / 100, **clock.lap()}

    log = logging.getLogger("auto-attack")
    log.setLevel(logging.DEBUG)
    log.propagate = False
    log.addHandler(Listener())
    norm = {"linf": "Linf", "l2": "L2"}[subject.norm]
    attack = AutoAttack(
        model, norm=norm, eps=subject.eps, version=options.version, device=options.device, seed=options.seed
    )
    x_adv, answers = attack.run_standard_evaluation(x, y, batch_size=options.batch_size)
    return {"robust": (answers == y).numpy(), "x_adv": x_adv.numpy(), "attacks": rows, **clock.total()}


def by_us(model: nn.Module, x: Tensor, y: Tensor, subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Ours; the seconds of each attack are those of `Judge.stage`."""
    from advtrain.autoattack.judge import Judge

    laps: dict[str, dict[str, float]] = {}
    clock, stage = Clock(), Judge.stage

    def timed(self: Judge, number: int) -> None:
        laps.setdefault("clean", clock.lap())
        stage(self, number)
        laps[self.plan[number].name] = clock.lap()

    with mock.patch.object(Judge, "stage", timed), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        report = at.autoattack(
            model, x, y, subject.threat, options.version, batch_size=options.own_batch_size,
            seed=options.seed, bf16=options.bf16, progress=False,
        )  # fmt: skip
    spent = clock.total()
    attacks = {row.name: {"accuracy": row.accuracy, **laps[row.name]} for row in report.rows if row.name in laps}
    return {
        "robust": report.robust.numpy(), "attacks": attacks, **spent,
        "warnings": sorted({str(warning.message) for warning in said}),
    }  # fmt: skip


class Clock:
    """Seconds by the wall and seconds of the processor, since it was made and since the last lap."""

    def __init__(self) -> None:
        self.begin = self.last = self.now()

    @staticmethod
    def now() -> tuple[float, float]:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def lap(self) -> dict[str, float]:
        before, self.last = self.last, self.now()
        return self._between(before, self.last)

    def total(self) -> dict[str, float]:
        return self._between(self.begin, self.now())

    @staticmethod
    def _between(before: tuple[float, float], after: tuple[float, float]) -> dict[str, float]:
        wall, cpu = (round(b - a, 3) for a, b in zip(before, after, strict=True))
        return {"seconds": wall, "cpu_seconds": cpu}


def judge(way: Callable[..., dict[str, Any]], name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One judgement, in this process."""
    torch.set_num_threads(options.threads)
    subject = (SUBJECTS | LARGE)[name]
    model = subject.train(Path(options.store) / name, options.root, options.device)
    x, y = images(subject, options)
    load = os.getloadavg()[0]
    return {**way(model, x, y, subject, options), "load_average_before": round(load, 2)}


def images(subject: Subject, options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """The test images, and training images after them where there are too few."""
    data = subject.load(options.root)
    parts = [data.test[: options.images], data.train[: max(options.images - len(data.test), 0)]]
    parts = [part for part in parts if len(part)]
    return torch.cat([part.images() for part in parts]), torch.cat([part.y for part in parts])


def apart(way: Callable[..., dict[str, Any]], name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One judgement, in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(judge, way, name, options).result()


def compare(name: str, turn: int, options: argparse.Namespace) -> dict[str, Any]:
    """Both judgements of one network, and in what they differ."""
    subject = (SUBJECTS | LARGE)[name]
    ways = {"theirs": by_authors, "ours": by_us}
    order = [way for way in (ways if turn % 2 else reversed(ways)) if way in options.ways]
    found = {way: apart(ways[way], name, options) for way in order}
    row: dict[str, Any] = {
        "model": name, "data": subject.data, "defense": subject.defense, "norm": subject.norm, "eps": subject.eps,
        "images": options.images, "first": order[0],
    }  # fmt: skip
    robust = {way: torch.from_numpy(found[way].pop("robust")) for way in found}
    for way in found:
        row[way] = {"robust_accuracy": float(robust[way].double().mean()), **found[way]}
    if len(found) == 2:
        weaker, stronger = robust["ours"] & ~robust["theirs"], ~robust["ours"] & robust["theirs"]
        x, _ = images(subject, options)
        x_adv = torch.from_numpy(row["theirs"].pop("x_adv"))
        row["only_theirs_breaks"], row["only_ours_breaks"] = int(weaker.sum()), int(stronger.sum())
        row["only_theirs_breaks_inside"] = int(subject.threat.contains(x_adv, x)[weaker].sum())
        row["their_examples_outside"] = int((~subject.threat.contains(x_adv, x))[~robust["theirs"]].sum())
        for unit in ("seconds", "cpu_seconds"):
            row[f"ratio_{unit}"] = round(row["theirs"][unit] / row["ours"][unit], 3)
    elif "theirs" in row:
        row["theirs"].pop("x_adv")
    return row


def show(row: dict[str, Any]) -> None:
    print(f"\n{row['model']}: {row['images']} images, {row['norm']} eps {row['eps']:.4g}, {row['first']} first")
    for way in ("theirs", "ours"):
        if way in row:
            steps = (
                f"{attack} {step['accuracy']:.1%} ({step['cpu_seconds']:.1f} s)"
                for attack, step in row[way]["attacks"].items()
            )
            total = f"{row[way]['cpu_seconds']:.1f} s of the processor, {row[way]['seconds']:.1f} s by the wall"
            print(f"  {way:<7} robust {row[way]['robust_accuracy']:.1%}; {total}; {', '.join(steps)}")
    if "ratio_seconds" in row:
        print(
            f"  broken by theirs only {row['only_theirs_breaks']} ({row['only_theirs_breaks_inside']} of them inside), "
            f"by ours only {row['only_ours_breaks']}; theirs / ours {row['ratio_cpu_seconds']:.2f} of the processor, "
            f"{row['ratio_seconds']:.2f} by the wall",
            flush=True,
        )


def processor() -> str:
    """The name of the processor, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over the networks that both have judged."""
    both = [row for row in rows if "ratio_seconds" in row]
    total = {key: sum(row[key] for row in both) for key in ("images", "only_theirs_breaks", "only_ours_breaks")}
    for unit in ("seconds", "cpu_seconds"):
        theirs, ours = (sum(row[way][unit] for row in both) for way in ("theirs", "ours"))
        total |= {f"theirs_{unit}": round(theirs, 1), f"ours_{unit}": round(ours, 1)}
        total[f"ratio_{unit}"] = round(theirs / ours, 3) if ours else None
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--store", required=True, help="folder of the trained networks")
    parser.add_argument("--root", help="folder with mnist.npz and cifar10.npz")
    parser.add_argument("--models", nargs="+", choices=SUBJECTS | LARGE, default=list(SUBJECTS), metavar="NAME",
                        help=f"of {', '.join(SUBJECTS)}; all by default; and {', '.join(LARGE)}")  # fmt: skip
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=250, help="of theirs; 250 is the default there")
    parser.add_argument("--own-batch-size", type=int, help="of ours; found from the memory by default")
    parser.add_argument("--version", choices=("standard", "plus"), default="standard")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--bf16", action="store_true", help="let ours search in bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="where to write the results as JSON, after each network")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--train-only", action="store_const", const=(), dest="ways", default=("theirs", "ours"))
    only.add_argument("--oracle-only", action="store_const", const=("theirs",), dest="ways")
    only.add_argument("--ours-only", action="store_const", const=("ours",), dest="ways")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    failed = {}
    for turn, name in enumerate(options.models):
        subject, begun = (SUBJECTS | LARGE)[name], time.perf_counter()
        model = subject.train(Path(options.store) / name, options.root, options.device)
        if not options.ways:
            x, y = images(subject, options)
            model, x, y = model.cpu(), x.cpu(), y.cpu()
            with at.attacking(model), torch.no_grad():
                clean = (model(x).argmax(1) == y).double().mean()
            x_adv = at.attacks.pgd(model, x, y, subject.threat, steps=20)
            with torch.no_grad():
                attacked = (model(x_adv).argmax(1) == y).double().mean()
            print(f"{name}: clean {clean:.1%}, PGD-20 {attacked:.1%}, {time.perf_counter() - begun:.0f} s", flush=True)
            continue
        try:
            rows.append(compare(name, turn, options))
        except Exception as error:  # an hour of results should not be lost for one network
            failed[name] = repr(error)
            traceback.print_exc()
            continue
        show(rows[-1])
        if options.out:
            settings = {key: value for key, value in vars(options).items() if key not in ("store", "root", "out")}
            write_json(options.out, {
                "what": "AutoAttack by its authors and by advtrain.autoattack, same networks and images",
                "settings": settings, "summary": summary(rows), "models": rows, "failed": failed,
                "oracle": f"pyautoattack {version_of('pyautoattack')}",
                "hardware": {"processor": processor(), "logical_cpus": os.cpu_count(), "threads": options.threads},
                "provenance": {**provenance(options.seed, options.device), "command": command(options)},
            })  # fmt: skip
    if len(rows) > 1:
        print("\ntotal:", ", ".join(f"{key} {value}" for key, value in summary(rows).items()))
    if failed:
        raise SystemExit(f"failed: {failed}")


def command(options: argparse.Namespace) -> str:
    """What was typed, without the folders of this computer."""
    text = command_line()
    for name in ("store", "root", "out"):
        if getattr(options, name):
            text = text.replace(str(getattr(options, name)), name.upper())
    return text


def version_of(package: str) -> str:
    from importlib import metadata

    return metadata.version(package)


if __name__ == "__main__":
    main()
