"""The only training loop: it trains every defense, because a defense is a loss."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import attacks
from .checks import check_model
from .data import as_dataset
from .defense import Batch, Defense
from .errors import TrainingError, bad
from .evaluate import count_correct
from .files import check_writable
from .interrupt import interruptible
from .keeper import Keeper
from .loader import make_loader
from .modes import place
from .monitor import Monitor
from .progress import progress_bar
from .recipe import RECORDED, check_options, find_device, make_optimizer, own_global_randomness, steady_memory
from .rng import Rng
from .runs import Run, provenance
from .schedules import Schedule, get_schedule


def fit(
    model: nn.Module,
    defense: Defense,
    data: Any,
    *,
    epochs: int = 30,
    batch_size: int = 64,
    lr: float = 0.1,
    schedule: str | Schedule = "cyclic",
    optimizer: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    clip_grad: float | None = None,
    ema: float | None = None,
    bf16: bool | None = None,
    select: str = "last",
    validate_every: int = 1,
    val_steps: int = 10,
    seed: int = 0,
    device: str = "auto",
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Run:
    """Train `model` with `defense` on `data`.

    Args:
        model: a network that returns logits (B, K); trained in place.
        defense: the training loss, such as `advtrain.defenses.FastAT(threat)`.
        data: a `Dataset` from `load_data`; or your own training images: a pair (x, y) of tensors, a torch `Dataset`, or
            a torch `DataLoader`. A tenth of your own is set aside for validation (none of a `DataLoader`); `as_dataset`
            gives control over that.
        epochs: passes over the data.
        batch_size: images per batch (a `DataLoader` keeps its own).
        lr: peak learning rate.
        schedule: how the rate moves between updates: cyclic, one-cycle, cosine, multistep, constant, or a paper's own
            fast-bat, n-fgsm, gradalign, sat, rvs.
        optimizer: sgd (with momentum), adam or adamw.
        momentum: momentum of sgd; the schedule may cycle it.
        weight_decay: weight decay on all parameters, as in the papers.
        clip_grad: largest gradient norm; longer gradients are scaled down.
        ema: weight averaging: decay in (0, 1) of an exponential moving average, which is then validated and kept.
        bf16: run the model under bfloat16 autocast; by default on GPUs that compute in it. Images stay float32.
        select: which weights to keep: last, or best: the epoch of highest validation accuracy under PGD (clean accuracy
            for standard training).
        validate_every: epochs between validations (clean, FGSM and PGD accuracy on the validation split); 0 for none.
        val_steps: PGD steps of the validation, of size ε/4 from one start: a quick look that flatters masked models;
            `evaluate` judges.
        seed: names all randomness of the run; on one CPU the same seed gives the same weights bit for bit.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.
        out: folder for the run; written after every validated epoch.
        overwrite: replace a run that is in `out` already.
        progress: show a bar; by default only in a terminal or a notebook.
        on_epoch: called with each epoch's record.

    Returns:
        A `Run`. Ctrl-C ends training after the current step and returns a usable run of status "interrupted".

    Raises:
        ArgumentError, DataError, ModelError, FileError: before the first step, for input that must not be trained on.
        TrainingError: the loss is no longer finite.

    Warns:
        OverfittingWarning: catastrophic overfitting, in the epoch in which validation shows it; or masked gradients at
            the end. The message is also kept in `run.notes`.
    """
    options = {key: value for key, value in locals().items() if key in RECORDED}
    check_options(options)
    if not isinstance(defense, Defense):
        bad("defense", defense, "a Defense", "make one with its threat: at.defenses.FastAT(threat)")
    if isinstance(data, (str, Path)):
        bad("data", data, "a data set", f"load it first: at.load_data({str(data)!r})")
    device = find_device(device)
    data = as_dataset(data, test=0, seed=seed)  # whoever passes bare images keeps the test images elsewhere
    if select == "best" and (not validate_every or data.val is None):
        bad("select", select, "possible without validation", "keep val > 0 and validate_every > 0, or select='last'")
    _, dtype = place(model)
    check_model(model.to(device), data.probe().to(device).images(dtype=dtype), data.num_classes)
    if out is not None:
        check_writable(out, holding="config.json", overwrite=overwrite)
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported() if bf16 is None else bf16

    run = Run(model, defense, data, {**options, "schedule": getattr(schedule, "__name__", schedule), "bf16": bf16})
    run.provenance, run.path = provenance(seed, device), Path(out) if out is not None else None
    on_gpu = device.type == "cuda"
    steady_memory()
    loader = make_loader(data, batch_size, seed=seed, device=device, dtype=dtype, channels_last=on_gpu)
    if on_gpu:
        model.to(memory_format=torch.channels_last)  # tensor cores want channels last
    if not model.training:
        model.train()  # a model in evaluation mode comes from an earlier use; single frozen layers stay as they are
    with own_global_randomness(seed, device), interruptible() as check_interrupt:
        loop = _Loop(run, loader, get_schedule(schedule), check_interrupt, bf16=bf16, device=device)
        with progress_bar(progress, total=epochs * len(loader), unit="step", desc=defense.name) as bar:
            try:
                for epoch in range(1, epochs + 1):
                    record = loop.epoch(epoch, bar)
                    if on_epoch is not None:
                        on_epoch(record)
                run.status = "finished"
            except KeyboardInterrupt:
                run.status = "interrupted"
                which = f"of epoch {loop.keeper.epoch}" if loop.keeper.best else f"after {loop.steps} steps"
                run.notes.append(f"interrupted in epoch {len(run.history) + 1}; the weights are those {which}")
        loop.keeper.restore()
    model.eval()
    if run.path is not None:
        run.save()
    return run


class _Loop:
    """The state of one training: model, optimizer, weights to keep; `epoch` runs one pass over the data."""

    def __init__(
        self, run: Run, loader: Any, schedule: Schedule, pause: Callable[[], None], *, bf16: bool, device: torch.device
    ):
        self.run, self.loader, self.schedule, self.pause = run, loader, schedule, pause
        self.bf16, self.device = bf16, device
        self.model, self.defense, self.options = run.model, run.defense, run.options
        self.monitor = Monitor()
        self.rng = Rng(self.options["seed"])
        self.optimizer = make_optimizer(self.model, self.options, device)
        self.keeper = Keeper(self.model, select=self.options["select"], by=self.defense.select, ema=self.options["ema"])
        self.steps = 0
        self.defense.setup(self.model, run.data.shape, device)

    def epoch(self, number: int, bar: Any) -> dict[str, Any]:
        """One pass over the training data, validation, and the record of both."""
        started = time.perf_counter()
        replays = self.defense.replays
        per_epoch = len(self.loader) * replays
        total = per_epoch * self.options["epochs"]
        loss_sum = torch.zeros((), device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        seen, first, logs, rate = 0, None, {}, None
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
                        logs[key] = logs.get(key, 0.0) + value.detach() * len(y)
                seen += len(y)
                self.pause()
            bar.update()
        record = {"epoch": number, "loss": float(loss_sum) / seen, "accuracy": int(correct) / seen}
        record |= {key: float(value) / seen for key, value in logs.items()}
        if not math.isfinite(record["loss"]):
            raise TrainingError(
                f"the loss is {record['loss']} in epoch {number}: lower lr={self.options['lr']:g}, or set clip_grad=1"
            )
        record["lr"] = self.options["lr"] * rate.factor
        every = self.options["validate_every"]
        validated = (
            bool(every) and self.run.data.val is not None and (number % every == 0 or number == self.options["epochs"])
        )
        if validated:
            record |= self.validate()
        record["seconds"] = round(time.perf_counter() - started, 3)
        self.run.history.append(record)
        warn = self.watch(record, constant=bool(constant))
        self.keeper.after_epoch(record)
        self.run.best_epoch = self.keeper.epoch
        if self.run.path is not None and (validated or not every):
            with self.keeper.restored():
                self.run.save()
        warn()
        bar.set_postfix({key: f"{record[key]:.3f}" for key in ("loss", "accuracy", "val_pgd") if key in record})
        return record

    def update(self, batch: Batch, progress: float, rate: Any) -> Any:
        """One optimizer step on one batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.options["lr"] * rate.factor
            if rate.momentum is not None and "momentum" in group:
                group["momentum"] = rate.momentum
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                self.defense.adversary_step(self.model, batch, progress)
                self.optimizer.zero_grad(set_to_none=True)
                step = self.defense(self.model, batch, progress)
            step.loss.backward()
        finally:
            self.defense.after_backward(self.model)
        if self.options["clip_grad"]:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options["clip_grad"])
        self.optimizer.step()
        self.keeper.after_step()
        return step

    def validate(self) -> dict[str, float]:
        """Clean, FGSM and PGD accuracy on the validation split, in [0, 1]."""
        threat, steps, split, model = (
            self.defense.threat,
            self.options["val_steps"],
            self.run.data.val,
            self.keeper.current,
        )
        plan = {
            "val_clean": None,
            "val_fgsm": lambda x, y, rng: attacks.fgsm(model, x, y, threat, check=False),
            "val_pgd": lambda x, y, rng: attacks.pgd(
                model, x, y, threat, steps=steps, step_size=threat.eps / 4, rng=rng, check=False
            ),
        }
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return {name: count_correct(model, split, attack) / len(split) for name, attack in plan.items()}

    def watch(self, record: dict[str, Any], constant: bool) -> Callable[[], None]:
        """Note in the run what the monitor sees; returns what says it aloud, to be called when the epoch is safe."""
        final = record["epoch"] == self.options["epochs"] and self.defense.select == "pgd"
        figures = {"fgsm": record.get("val_fgsm"), "pgd": record.get("val_pgd")}
        found = self.monitor.check(record["epoch"], constant=constant, final=final, **figures)
        self.run.notes += [message for _, message in found]

        def warn() -> None:
            for category, message in found:
                warnings.warn(message, category, stacklevel=4)

        return warn
