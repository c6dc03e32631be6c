"""The only training loop: it trains every defense, because a defense is a loss."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import attacks
from .checkpoint_files import Checkpoints, moved
from .course import Course
from .dataset import Split
from .defense import Batch, Step
from .errors import ModelError, OverfittingWarning, TrainingError
from .evaluate import count_correct
from .finite import Guard, answers_at_once, step_if
from .keeper import Keeper
from .loader import Loader
from .monitor import Monitor
from .parallel import TrainStep, average_buffers, synchronised
from .processes import count, first_alone, gather, rank, several
from .recipe import compiled, load_optimizer, make_optimizer
from .resume import told_of
from .rng import Rng, global_state, set_global_state
from .runs import Run
from .schedules import Rate, Schedule, rate_at
from .tally import Tally, check_step

FUSED = (
    "{} differentiates a backward pass, which PyTorch cannot do for fused attention: build the network with plain "
    "attention, such as attn_implementation='eager' of transformers, or train inside "
    "torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)"
)


class Loop:
    """The state of one training: model, optimizer, weights to keep; `epoch` runs one pass over the data."""

    def __init__(
        self, run: Run, loader: Any, schedule: Schedule, pause: Callable[[], None], *, shape: tuple[int, int, int],
        val: Split | None, bf16: bool, device: torch.device, checkpoints: Checkpoints | None = None, every: int = 0,
    ):  # fmt: skip
        self.run, self.loader, self.schedule, self.pause, self.val = run, loader, schedule, pause, val
        self.bf16, self.device = bf16, device
        self.model, self.defense, self.options = run.model, run.defense, run.options
        self.monitor = Monitor()
        self.rng = Rng(self.options["seed"], "rank", rank()) if several() else Rng(self.options["seed"])
        self.optimizer = make_optimizer(self.model, self.options, device)
        self.keeper = Keeper(
            self.model, select=self.options["select"], by=self.defense.select, ema=self.options["ema"],
            remember=self.options["on_overfit"] == "rewind",
        )  # fmt: skip
        self.steps = 0
        self.checkpoints, self.every = checkpoints, every
        self.saved: tuple[int, int] | None = None  # steps and epochs at the last checkpoint
        self.course = Course(loader, device)
        self.tally = Tally(device)
        self.overfitted = False  # since the last epoch
        self.between = True  # no step is under way
        self.defense.setup(self.model, shape, device)
        self.network = compiled(self.model, self.defense, self.options["compile"])  # what the defense is given
        self.guard = Guard(self.model, device)
        self.own = TrainStep(self.network, self.defense)
        self.together = synchronised(self.own, device)

    @functools.cached_property
    def told(self) -> dict[str, Any]:
        """What this training is told; a checkpoint says it, so that no other training takes it up."""
        return told_of(self.run, self.device)

    @property
    def per_epoch(self) -> int:
        """Steps of one epoch."""
        return len(self.loader) * self.defense.replays

    def epoch(self, number: int, bar: Any) -> dict[str, Any]:
        """One pass over the training data, or what is left of it; validation; and the record of both."""
        started = time.perf_counter()
        total = self.per_epoch * self.options["epochs"]
        done = self.steps - (number - 1) * self.per_epoch  # by the process whose checkpoint was taken up
        if not done:
            self.tally = Tally(self.device)
        batch, replay = divmod(done, self.defense.replays)
        for x, y, index in self.course.batches(number, batch, replay):
            for _ in range(replay, self.defense.replays):
                rate = rate_at(self.schedule, self.steps, total, self.per_epoch)
                self.between = False
                step = self.update(Batch(x, y, index, self.rng.child("step", self.steps)), self.steps / total, rate)
                self.steps += 1
                self.tally.add(step, y)
                self.between = True
                self.look()
                self.pause()
                if self.every and not self.steps % self.every and self.steps < number * self.per_epoch:
                    self.tally.seconds += time.perf_counter() - started
                    started = time.perf_counter()
                    self.checkpoint()
            replay = 0
            bar.update()
        self.look(now=True)
        record: dict[str, Any] = {"epoch": number, **self.tally.record()}
        for network in dict.fromkeys((self.model, self.keeper.current)):  # in one order everywhere
            average_buffers(network)
        record["lr"] = self.options["lr"] * rate_at(self.schedule, self.steps - 1, total, self.per_epoch).factor
        every = self.options["validate_every"]
        due = bool(every) and (number % every == 0 or number == self.options["epochs"])
        if due and self.val is not None:
            record |= self.validate(self.val)
        record["seconds"] = round(self.tally.seconds + time.perf_counter() - started, 3)
        self.between = False
        self.run.history.append(record)
        warn = self.watch(record, constant=self.tally.one_answer())
        self.keeper.after_epoch(record)
        if self.overfitted and self.options["on_overfit"] == "rewind":
            self.keeper.rewind()
            self.run.notes.append(
                f"rewound to epoch {self.keeper.epoch}, that of the highest accuracy under PGD so far"
            )
        self.run.best_epoch = self.keeper.epoch
        self.between = True
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
        with self.guard.judging(self.steps) as told:
            with self.autocast():
                self.defense.adversary_step(self.network, batch, progress)
            player = self.defense.finite()
            self.optimizer.zero_grad(set_to_none=True)
            try:
                with self.autocast():
                    step = check_step(self.defense, self.together(batch, progress), batch)
                step.loss.backward()
            except RuntimeError as error:
                if "scaled_dot_product" in str(error) and self.defense.second_order:
                    raise ModelError(FUSED.format(self.defense.name)) from error
                raise
            finally:
                self.defense.after_backward(self.network)
            told += [step.loss, *([] if player is None else [player])]
        if self.options["clip_grad"]:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options["clip_grad"])
        step_if(self.guard.good, self.optimizer)
        if not answers_at_once(self.guard.good) or self.guard.good:
            self.keeper.after_step()
        return step if self.own.weight is None else step._replace(loss=step.loss / self.own.weight)

    def autocast(self) -> torch.autocast:
        """bfloat16 where the run wants it. Without the cache: a weight that a defense displaces must be seen anew."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False)

    def look(self, *, now: bool = False) -> None:
        """Stop where an update was refused, or a weight is no number any more; the error says where, and what is left.

        Raises:
            TrainingError: naming the step, its batch and the last good checkpoint.
        """
        found = self.guard.look(now=now)
        if found is None:
            return
        step = self.steps - 1 if found.step is None else found.step
        epoch, place = divmod(step, self.per_epoch)
        batch = place // self.defense.replays
        where = f"{'by' if found.step is None else 'in'} step {step + 1:,} (batch {batch + 1} of epoch {epoch + 1}"
        images = None
        if isinstance(self.loader, Loader) and found.step is not None and not several():
            images = next(self.loader.epoch(epoch, batch))[2]
        if images is not None:
            where += f", training images {', '.join(map(str, images[:4].tolist()))}{', …' * (len(images) > 4)}"
        advice = [f"lower lr={self.options['lr']:g}"]
        advice += [] if self.options["clip_grad"] else ["set clip_grad=1"]
        advice += ["compute in float32 (bf16=False)"] if self.bf16 else []
        text = f"{found.what} {where}): {', or '.join(advice)}"
        text += "" if found.step is None else ". The update was not made, nor any after it"
        last = self.checkpoints.named()[:1] if self.checkpoints else []
        raise TrainingError(text + "".join(f"; the last good checkpoint is {path}" for path in last))

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
        self.overfitted = any(category is OverfittingWarning for category, _ in found)
        self.run.notes += [message for _, message in found]

        def warn() -> None:
            for category, message in found if rank() == 0 else ():
                warnings.warn(message, category, stacklevel=4)

        return warn

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the training depends on; every process must call it, and the first writes it."""
        own = {
            "defense": self.defense.state_dict(),
            "tally": self.tally.state_dict(),
            "course": self.course.state_dict(),
            "global": global_state(self.device),
            "buffers": [dict(network.named_buffers()) for network in (self.model, self.keeper.current)],
        }
        return {
            "told": self.told,
            "provenance": self.run.provenance,
            "history": self.run.history,
            "notes": self.run.notes,
            "steps": self.steps,
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "keeper": self.keeper.state_dict(),
            "monitor": (self.monitor.best_pgd, sorted(self.monitor.said)),
            "own": gather(moved(own, torch.device("cpu"))),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.steps = state["steps"]
        self.run.history, self.run.notes = state["history"], state["notes"]
        text = f"taken up again after step {self.steps:,} of {self.per_epoch * self.options['epochs']:,}"
        self.run.notes.append(text)
        now, self.run.provenance = self.run.provenance, state["provenance"]
        self.run.provenance.setdefault("resumed", []).append({"step": self.steps, **now})
        self.model.load_state_dict(state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.keeper.load_state_dict(state["keeper"])
        self.run.best_epoch, self.saved = self.keeper.epoch, (self.steps, len(self.run.history))
        self.monitor = Monitor(state["monitor"][0], set(state["monitor"][1]))
        own = state["own"][rank()]
        self.defense.load_state_dict(moved(own["defense"], self.device))
        self.tally.load_state_dict(moved(own["tally"], self.device))
        self.course.load_state_dict(own["course"])
        for network, buffers in zip((self.model, self.keeper.current), own["buffers"], strict=True):
            for name, buffer in network.named_buffers():  # of several processes, each has its own until the epoch ends
                buffer.copy_(buffers[name])
        set_global_state(own["global"], self.device)

    def checkpoint(self) -> None:
        """Write one, unless something is wrong by now, or nothing has happened since the last."""
        self.look(now=True)
        now = self.steps, len(self.run.history)
        if self.checkpoints is None or now == self.saved:
            return
        state, checkpoints = self.state_dict(), self.checkpoints
        first_alone(lambda: checkpoints.write(self.steps, state))
        self.saved = now
