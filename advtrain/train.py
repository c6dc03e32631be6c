"""`fit`: train any defense. What it does with each batch is in `loop`, what it checks beforehand in `recipe`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .callbacks import Callback, check_callbacks, tell
from .checkpoint_files import Checkpoints
from .checks import check_model
from .data import as_dataset
from .defense import Defense
from .errors import at_least, bad, check_flag, check_path
from .interrupt import blaming_ctrl_c, interruptible
from .loader import make_loader
from .loop import Loop
from .modes import check_recording, place, unchanged_on_error
from .processes import agree, count, first_alone, naming_the_lost, rank, several, shared_device
from .progress import aside, progress_bar
from .provenance import provenance
from .recipe import (
    RECORDED,
    check_data,
    check_defense,
    check_network,
    check_options,
    check_recorded,
    check_single,
    computes_in_bf16,
    find_device,
    own_global_randomness,
    steady_memory,
    warn_of,
)
from .resume import begun, blaming_checkpoint, check_resume, images_of, layers_in, opened, told_of
from .rng import GLOBAL_STATE
from .runs import Run, load_run
from .schedules import Schedule, get_schedule, title_of


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
    compile: bool = False,
    select: str = "last",
    validate_every: int = 1,
    val_steps: int = 10,
    seed: int = 0,
    device: str = "auto",
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    on_overfit: str = "warn",
    checkpoint_every: int | None = None,
    resume: bool = False,
    on_epoch: Callable[[dict[str, Any]], Any] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train `model` with `defense` on `data`.

    In each of several processes of `torch.distributed` (see `joined`) the same call trains one network together: every
    batch and the validation are shared out, gradients are averaged over images and running statistics over processes.
    The first process alone writes to `out`, warns, shows the bar and calls back; all return the same weights.

    >>> import advtrain as at
    >>> data, threat = at.load_data("digits"), at.Threat("linf", eps=0.3)
    >>> run = at.fit(at.build_model("small-cnn", data), at.defenses.FastAT(threat), data, epochs=1)
    >>> run.status, [record["epoch"] for record in run.history]
    ('finished', [1])

    Args:
        model: a network that returns logits (B, K); trained in place.
        defense: the training loss, such as `advtrain.defenses.FastAT(threat)`.
        data: a `Dataset` from `load_data`; or your own training images: a pair (x, y) of tensors, a torch data set, or
            a torch `DataLoader`. A tenth of your own is set aside for validation (none of a `DataLoader`); `as_dataset`
            gives control over that.
        epochs: passes over the data.
        batch_size: images per batch, of all processes together (a `DataLoader` keeps its own; give each of several
            processes one with a `DistributedSampler`).
        lr: peak learning rate.
        schedule: how the rate moves between updates: cyclic, one-cycle, cosine, multistep, constant, or a paper's own
            fast-bat, n-fgsm, gradalign, nuat, trades, sat, rvs; or a function of (step, total, per_epoch) that returns
            an `advtrain.schedules.Rate`; a run that is resumed knows it by its rates.
        optimizer: sgd (with momentum), adam or adamw.
        momentum: momentum of sgd; the schedule may cycle it.
        weight_decay: weight decay on all parameters, as in the papers.
        clip_grad: largest gradient norm; longer gradients are scaled down.
        ema: weight averaging: decay in (0, 1) of an exponential moving average, which is then validated and kept.
        bf16: run the model under bfloat16 autocast; by default on GPUs that compute in it. Images stay float32.
        compile: let `torch.compile` make the network's passes, for a defense without a second-order term: PyTorch
            cannot differentiate a compiled backward pass. It takes a minute or more at the beginning, so it pays in
            long runs only. Weights, validation and what is saved are those of the network itself.
        select: which weights to keep: last, or best: the epoch of highest validation accuracy under PGD (clean accuracy
            for standard training).
        validate_every: epochs between validations (clean, FGSM and PGD accuracy on the validation split); 0 for none.
        val_steps: PGD steps of the validation, of size ε/4 from one start: a quick look that flatters masked models;
            `evaluate` judges.
        seed: names all randomness of the run; on one CPU the same seed gives the same weights bit for bit.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.
        out: folder for the run; written after every validated epoch, without validation after each.
        overwrite: replace a run that is in `out` already.
        progress: show a bar, or in a log file a line every ten seconds; by default only in a terminal or a notebook.
        on_overfit: what follows catastrophic overfitting, besides the warning: warn (train on), stop (end after this
            epoch), or rewind (end, and give back the weights of the epoch of highest accuracy under PGD before it).
        checkpoint_every: steps between two checkpoints in `out`, besides the one after each epoch; 0 for none at all.
        resume: take up the training in `out` at its last checkpoint, after a crash or Ctrl-C; what was told to `fit`
            must be the same. If there is nothing in `out` yet it begins, and if it has finished already it is read.
        on_epoch: called with each epoch's record.
        callbacks: functions of the run so far, called after each epoch, such as `advtrain.callbacks.TensorBoard`; one
            of them, or `on_epoch`, may end training by `raise advtrain.callbacks.Stop("reason")`. Their errors end it
            too: the run folder then holds the last epoch that was written, and a training that is resumed makes the
            epoch again, so that no callback misses one.

    Returns:
        A `Run`. Ctrl-C ends training after the current step, or batch of a validation, and returns a usable run of
        status "interrupted"; pressed twice it acts at once, and so it does in several processes, which it ends.
        On a CPU a resumed training ends with the same weights, bit for bit, as one that was never stopped, wherever it
        was killed. (Your own `DataLoader` must draw from PyTorch's generators alone, without persistent workers.)

    Raises:
        ArgumentError, DataError, ModelError, FileError: before the first step, for input that must not be trained on, a
            folder that another training writes to, or one to resume that is of another training or damaged.
        TrainingError: the loss, a gradient or a weight is no longer finite. An update by such a loss or gradient is not
            made; the error comes at most 20 steps later and names the step, its batch and the last good checkpoint.
        ProcessLostError: another process that trains with this one has ended.

    Warns:
        OverfittingWarning: catastrophic overfitting, in the epoch in which validation shows it; or masked gradients at
            the end. The message is also kept in `run.notes`.
        AdvtrainWarning: the newest checkpoint is damaged, and the one before is taken up; or all training images are
            of one class.
    """
    options = {key: value for key, value in locals().items() if key in RECORDED}
    check_options(options)
    epochs, batch_size, seed = (options[name] for name in ("epochs", "batch_size", "seed"))
    check_network(model, "fit(model, defense, data)")
    check_recording("fit")
    check_defense("defense", defense, "fit(model, defense, data)")
    if on_epoch is not None and not callable(on_epoch):
        bad("on_epoch", on_epoch, "a function of the epoch's record")
    if isinstance(on_epoch, type):
        bad("on_epoch", on_epoch, "made yet", f"it is a class: callbacks=[{on_epoch.__name__}(…)]")
    check_callbacks(callbacks)
    check_flag("bf16", bf16, none="the choice of the device")
    check_flag("progress", progress, none="a bar where somebody watches")
    if isinstance(data, (str, Path)):
        bad("data", data, "a data set", f"load it first: at.load_data({str(data)!r})")
    where = find_device(shared_device(device))
    data = as_dataset(data, test=0, seed=seed)  # whoever passes bare images keeps the test images elsewhere
    for name, value, usual in (("select", select, "last"), ("on_overfit", on_overfit, "warn")):
        if value != usual and (not validate_every or data.val is None):
            hint = f"keep val > 0 and validate_every > 0, or {name}={usual!r}"
            bad(name, value, "possible without validation", hint)
    every = None if checkpoint_every is None else at_least("checkpoint_every", checkpoint_every, 0, "0 writes none")
    check_resume(resume, every, out, overwrite)
    folder = None if out is None else check_path("out", out, "folder")
    if folder is not None:
        check_recorded(defense)
    _, dtype = place(model)
    sample = data.probe().to(where).images(dtype=dtype)
    check_model(model.to(where), sample, data.num_classes)
    check_data(data, defense)
    warn_of(data)
    if several():
        agree(out=out is not None)
    bf16 = computes_in_bf16(where) if bf16 is None else bf16

    on_gpu = where.type == "cuda"
    steady_memory()
    loader = make_loader(
        data, batch_size, seed=seed, device=where, dtype=dtype, channels_last=on_gpu, part=(rank(), count())
    )
    check_single(model, loader, sample)
    per_epoch = len(loader) * defense.replays
    rates = title_of(schedule, epochs * per_epoch, per_epoch)
    run = Run(model, defense, data, {**options, "schedule": rates, "bf16": bf16})
    first = rank() == 0
    run.provenance = {**provenance(seed, where), **images_of(data.train), **layers_in(model)}
    if several():
        agree(defense=defense.config, batches=len(loader), checkpoint_every=every, resume=resume, **run.options)
    if on_gpu:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,unused-ignore]  # for tensor cores
    with contextlib.ExitStack() as closing:  # last of all, so that an error there loses nothing
        closing.enter_context(torch.enable_grad())  # also where the caller needs none
        checkpoints = None
        given = folder or Path()
        if folder is not None:
            first_alone(lambda: closing.enter_context(opened(given, overwrite=overwrite, resume=resume)))
            there = given.absolute()  # also where a callback changes the current folder
            checkpoints, run.path = Checkpoints(there / "checkpoints"), there if first else None
        began = first_alone(lambda: begun(given, told_of(run, where))) if resume else None
        if began and "finished" in began:
            return load_run(given, model=model, defense=defense, data=data, device=str(where))
        for callback in callbacks if first else ():
            closing.callback(getattr(callback, "close", lambda: None))
        with contextlib.ExitStack() as stack:
            # The defense sets itself up in the loop, and may draw or refuse the model; threads train beside this one.
            with GLOBAL_STATE, unchanged_on_error(model):
                if not model.training:  # it comes from an earlier use; in training mode, frozen layers stay so
                    model.train()
                stack.enter_context(own_global_randomness(seed, where))
                pause = stack.enter_context(interruptible(not several()))
                loop = Loop(
                    run, loader, get_schedule(schedule), pause, shape=data.shape, val=data.val, bf16=bf16, device=where,
                    checkpoints=None if every == 0 else checkpoints, every=every or 0,
                )  # fmt: skip
                if several():  # set up alike; from here on, dropout draws for other images in each process
                    stack.enter_context(own_global_randomness(seed, where, "rank", rank()))
                if began:
                    with blaming_checkpoint(given):
                        loop.load_state_dict(began)
                else:
                    loop.checkpoint()  # so that there is something to go on from, whenever it is killed
            functions: list[Callable[[], Any]] = [functools.partial(callback, run) for callback in callbacks]
            if on_epoch is not None:
                functions.append(lambda: on_epoch(run.history[-1]))
            with progress_bar(
                progress if first else False, total=epochs * len(loader), unit="step", desc=defense.name
            ) as bar:
                if began:
                    bar.update(loop.steps // defense.replays)
                try:
                    with blaming_ctrl_c(pause), naming_the_lost():
                        for epoch in range(len(run.history) + 1, epochs + 1):
                            loop.epoch(epoch, bar)
                            ends = loop.overfitted and on_overfit != "warn"
                            if ends:  # whoever takes up an earlier checkpoint comes to this end again
                                loop.checkpoints = None
                            with aside(bar):
                                reason = tell(run, functions, where)
                            reason = "catastrophic overfitting" if ends else reason
                            if reason is not None and epoch < epochs:
                                with contextlib.suppress(KeyboardInterrupt):  # it ends here in any case
                                    pause()
                                run.notes.append(f"stopped after {epoch} of {epochs} epochs: {reason}")
                                break
                            loop.checkpoint()
                            pause()
                    run.status = "finished"
                except KeyboardInterrupt:
                    if several():  # no step of all of them together can be made without this one
                        raise
                    if loop.between:  # else Ctrl-C was pressed twice, and a step is half made
                        loop.checkpoint()
                    run.status = "interrupted"
                    which = f"of epoch {loop.keeper.epoch}" if loop.keeper.holds_best else f"after {loop.steps} steps"
                    whole = len(run.history)
                    run.notes.append(f"interrupted after {whole} whole epochs; the weights are those {which}")
            loop.keeper.restore()
        model.eval()
        if run.path is not None:
            run.save()
            run.path = given if given.absolute() == run.path else run.path  # as the caller wrote it
            if checkpoints is not None and run.status == "finished":
                checkpoints.clear()
    return run
