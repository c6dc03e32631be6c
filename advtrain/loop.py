"""The only training loop: it trains every defense, because a defense is a loss."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import attacks
from .dataset import Split
from .defense import Batch, Step
from .errors import ModelError, TrainingError, bad
from .evaluate import count_correct
from .keeper import Keeper
from .monitor import Monitor
from .parallel import TrainStep, average_buffers, pooled, synchronised
from .processes import count, gather, rank, several
from .recipe import compiled, make_optimizer
from .rng import Rng
from .runs import Run
from .schedules import Rate, Schedule

FUSED = (
    "{} differentiates a backward pass, which PyTorch cannot do for fused attention: build the network with plain "
    "attention, such as attn_implementation='eager' of transformers, or train inside "
    "torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)"
)


class Loop:
    """The state of one training: model, optimizer, weights to keep; `epoch` runs one pass over the data."""

    def __init__(
        self, run: Run, loader: Any, schedule: Schedule, pause: Callable[[], None], *, shape: tuple[int, int, int],
        val: Split | None, bf16: bool, device: torch.device,
    ):  # fmt: skip
        self.run, self.loader, self.schedule, self.pause, self.val = run, loader, schedule, pause, val
        self.bf16, self.device = bf16, device
        self.model, self.defense, self.options = run.model, run.defense, run.options
        self.monitor = Monitor()
        self.rng = Rng(self.options["seed"], "rank", rank()) if several() else Rng(self.options["seed"])
        self.optimizer = make_optimizer(self.model, self.options, device)
        self.keeper = Keeper(self.model, select=self.options["select"], by=self.defense.select, ema=self.options["ema"])
        self.steps = 0
        self.defense.setup(self.model, shape, device)
        self.network = compiled(self.model, self.defense, self.options["compile"])  # what the defense is given
        self.own = TrainStep(self.network, self.defense)
        self.together = synchronised(self.own, device)

    def epoch(self, number: int, bar: Any) -> dict[str, Any]:
        """One pass over the training data, validation, and the record of both."""
        started = time.perf_counter()
        replays = self.defense.replays
        per_epoch = len(self.loader) * replays
        total = per_epoch * self.options["epochs"]
        loss_sum = torch.zeros((), device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        seen, rate = 0, self.schedule(self.steps, total, per_epoch)
        first: Tensor | None = None  # the first answer
        logs: dict[str, Tensor] = {}
        logged: dict[str, int] = {}
        constant = torch.ones((), dtype=torch.bool, device=self.device)
        for x, y, index in self.loader.epoch(number - 1):
            for _ in range(replays):
                rate = self.schedule(self.steps, total, per_epoch)
                step = self.update(Batch(x, y, index, self.rng.child("step", self.steps)), self.steps / total, rate)
                self.steps += 1
                with torch.no_grad():
                    answers = step.logits.detach().argmax(1)
                    first = answers[0] if first is None else first
                    constant &= (answers == first).all()
                    correct += (answers == y).sum()
                    loss_sum += step.loss.detach() * len(y)
                    for key, value in step.logs.items():
                        figure = torch.as_tensor(value).detach() * len(y)
                        logs[key] = logs[key] + figure if key in logs else figure
                        logged[key] = logged.get(key, 0) + len(y)  # a step may leave a figure out
                seen += len(y)
                self.pause()
            bar.update()
        own = {"epoch", "loss", "accuracy", "lr", "seconds", "val_clean", "val_fgsm", "val_pgd"}
        if taken := logs.keys() & own:
            bad("logs", sorted(taken), "names of the defense's own", "the history uses these itself")
        sums = {"loss": (float(loss_sum), seen), "accuracy": (int(correct), seen)}
        means = pooled(sums | {key: (float(value), logged[key]) for key, value in logs.items()})
        record: dict[str, Any] = {"epoch": number, "loss": means.pop("loss"), "accuracy": means.pop("accuracy")}
        record |= {key: value if math.isfinite(value) else None for key, value in means.items()}
        self.check_finite(record)
        for network in dict.fromkeys((self.model, self.keeper.current)):  # in one order everywhere
            average_buffers(network)
        record["lr"] = self.options["lr"] * rate.factor
        every = self.options["validate_every"]
        due = bool(every) and (number % every == 0 or number == self.options["epochs"])
        if due and self.val is not None:
            record |= self.validate(self.val)
        record["seconds"] = round(time.perf_counter() - started, 3)
        self.run.history.append(record)
        # The one class that each process has ever seen answered.
        only = gather(int(first) if first is not None and constant else None)
        warn = self.watch(record, constant=None not in only and len(set(only)) == 1)
        self.keeper.after_epoch(record)
        self.run.best_epoch = self.keeper.epoch
        if self.run.path is not None and (due or not every or self.val is None):
            with self.keeper.restored():
                self.run.save()
        warn()
        bar.set_postfix({key: f"{record[key]:.3f}" for key in ("loss", "accuracy", "val_pgd") if key in record})
        return record

    def update(self, batch: Batch, progress: float, rate: Rate) -> Step:
        """One optimizer step on one batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.options["lr"] * rate.factor
            if rate.momentum is not None and "momentum" in group:
                group["momentum"] = rate.momentum
        with self.autocast():
            self.defense.adversary_step(self.network, batch, progress)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            with self.autocast():
                step: Step = self.together(batch, progress)
            step.loss.backward()
        except RuntimeError as error:
            if "scaled_dot_product" in str(error) and self.defense.second_order:
                raise ModelError(FUSED.format(self.defense.name)) from error
            raise
        finally:
            self.defense.after_backward(self.network)
        if self.options["clip_grad"]:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options["clip_grad"])
        self.optimizer.step()
        self.keeper.after_step()
        return step if self.own.weight is None else step._replace(loss=step.loss / self.own.weight)

    def autocast(self) -> torch.autocast:
        """bfloat16 where the run wants it. Without the cache: a weight that a defense displaces must be seen anew."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False)

    def check_finite(self, record: dict[str, Any]) -> None:
        """Stop where the loss or the weights are no longer numbers; a run folder then has the epoch before."""
        sound = torch.stack([p.detach().isfinite().all() for p in self.model.parameters()]).all()
        found = [] if math.isfinite(record["loss"]) else [f"the loss is {record['loss']}"]
        found += [] if bool(sound) else ["a weight is NaN or infinite"]
        if found:
            advice = f"lower lr={self.options['lr']:g}, or set clip_grad=1"
            raise TrainingError(f"{found[0]} in epoch {record['epoch']}: {advice}")

    def validate(self, split: Split) -> dict[str, float]:
        """Clean, FGSM and PGD accuracy on the validation split, in [0, 1]; each process looks at its share of it."""
        threat, model = self.defense.threat, self.keeper.current
        part = split[rank() :: count()]
        steps = self.options["val_steps"]
        plan: dict[str, Callable[[Tensor, Tensor, Rng], Tensor] | None] = {
            "val_clean": None,
            "val_fgsm": lambda x, y, rng: attacks.fgsm(model, x, y, threat, check=False),
            "val_pgd": lambda x, y, rng: attacks.pgd(
                model, x, y, threat, steps=steps, step_size=threat.eps / 4, rng=rng, check=False
            ),
        }
        with self.autocast():
            found = {
                name: count_correct(model, part, attack, tick=lambda n: self.pause()) for name, attack in plan.items()
            }
        shares = gather(found)
        return {name: sum(each[name] for each in shares) / len(split) for name in plan}

    def watch(self, record: dict[str, Any], constant: bool) -> Callable[[], None]:
        """Note in the run what the monitor sees; returns what says it aloud, to be called when the epoch is safe."""
        final = record["epoch"] == self.options["epochs"]
        attacked = self.defense.select == "pgd"  # a method that trains on clean images has no attack to overfit to
        figures = {"fgsm": record.get("val_fgsm"), "pgd": record.get("val_pgd")} if attacked else {}
        found = self.monitor.check(record["epoch"], constant=constant, final=final, **figures)
        self.run.notes += [message for _, message in found]

        def warn() -> None:
            for category, message in found if rank() == 0 else ():
                warnings.warn(message, category, stacklevel=4)

        return warn
