"""AutoAttack: the ensemble of attacks by which the field judges robustness, without parameters to tune."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..attacks.gradient import check_box
from ..attacks.pursuit import Passes
from ..checks import are_probabilities, check_labels, check_model, check_threat
from ..data import Split, as_split, digest_of, order_of
from ..errors import at_least, check_flag, check_path
from ..files import check_writable
from ..modes import attacking, place
from ..progress import progress_bar
from ..recipe import check_network, own_global_randomness, steady_memory
from ..rng import Rng
from ..threat import Threat
from .doubts import examine, say
from .examples import Examples, check_examples
from .judge import Judge
from .memory import rows_that_fit
from .plan import VERSIONS, Stage, stages
from .probe import can_be_frozen, faster_layout
from .state import State, fingerprint
from .verdict import AutoAttackReport, rows_of

PROBED = 256
"""How many images are asked several times, to see whether the model answers at random."""


def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    version: str = "standard",
    *,
    batch_size: int | None = None,
    seed: int = 0,
    state: str | os.PathLike[str] | None = None,
    examples: bool | str | os.PathLike[str] | None = None,
    bf16: bool = False,
    progress: bool | None = None,
) -> AutoAttackReport:
    """Robust accuracy under AutoAttack: APGD-CE, targeted APGD-DLR, targeted FAB and Square, one after the other.

    Croce and Hein (2020), arXiv 2003.01690; FAB is 1907.02044, Square 1912.00049. The attacks and their constants are
    the published ones, and an image counts as robust if it withstands all of them. An image that is broken meets no
    further attack, and leaves the batch at once. That, and several targets in one batch where few images are left, is
    what makes this faster than the authors' code; the verdicts are not meant to differ by more than the randomness of
    the attacks. Every example that counts is inside the threat to the last bit, and was seen to be misclassified by a
    pass in float32 (or float64, as the model is). An autocast around the call is ignored. Recent GPUs round what their
    convolutions take to TF32, ten bits, unless `torch.backends.cudnn.allow_tf32` is False: a setting of the process.

    Random starts belong to the image, not to the batch or to its place in x: the verdicts depend neither on the batch
    size nor on the order of the images, and a resumed evaluation ends like an uninterrupted one, up to the rounding of
    the passes themselves.

    >>> import advtrain as at
    >>> data, model = at.load_data("digits"), at.load_results("digits").run("fgsm").model
    >>> report = autoattack(model, data.test.images()[:8], data.test.y[:8], at.Threat("linf", eps=0.3), "fast")
    >>> report.robust_accuracy < 0.5, report.robust.shape
    (True, torch.Size([8]))

    Args:
        model: returns logits; judged in evaluation mode on the device it is on, and left as it was. A model that
            returns probabilities is judged by their logarithms, with a warning.
        x: (N, C, H, W), uint8 in 0..255 or float in [0, 1]; may be larger than the device's memory.
        y: (N,) integers, the true labels.
        threat: ℓ∞ or ℓ2.
        version: `"standard"`; `"plus"`, which adds untargeted APGD-DLR and FAB and five restarts; `"rand"`, with
            gradients averaged over 20 passes, for models that answer at random; or `"fast"`: APGD-CE and targeted
            APGD-DLR alone, which is ours and not to be reported as AutoAttack.
        batch_size: rows (images, or pairs of an image and a target) per batch; found from the free memory by default
            (on a CPU from the size of its cache), and halved when memory runs out.
        seed: names all random draws, also those that the model itself makes from PyTorch's global stream.
        state: a file that keeps what has been done; a call with the same arguments goes on from it.
        examples: True keeps the adversarial examples in memory, a path ending in `.npy` in a file that is mapped into
            memory. Only a file can be resumed; one that is there and is not of this evaluation is refused.
        bf16: search in bfloat16, which is faster on a GPU, and verify in float32; finds that do not hold go back
            into the search. Not part of the standard: it may find less.
        progress: show a bar with the time that is left; by default only in a terminal or a notebook.

    Returns:
        An `AutoAttackReport`: `robust_accuracy`, `robust` for each image, which attack broke it, warnings.

    Raises:
        ArgumentError, DataError, ModelError: see `advtrain.errors`.
        FileError: the state or the examples cannot be written, belong to another evaluation, or would replace a file.

    Warns:
        AdvtrainWarning: probabilities for logits, answers at random, a model that adapts while it answers, gradients
            that vanish, Square breaking what the gradient attacks left; see `report.warnings`.
    """
    check_threat(threat)
    check_network(model, "autoattack(model, x, y, threat)")
    return judge_split(
        model, as_split((x, y), name="autoattack"), threat, version, batch_size=batch_size, seed=seed, state=state,
        examples=examples, bf16=bf16, progress=progress,
    )  # fmt: skip


def judge_split(
    model: nn.Module, split: Split, threat: Threat, version: str = "standard", *, batch_size: int | None = None,
    seed: int = 0, state: str | os.PathLike[str] | None = None, examples: bool | str | os.PathLike[str] | None = None,
    bf16: bool = False, progress: bool | None = None,
) -> AutoAttackReport:  # fmt: skip
    """`autoattack` on images that `as_split` has checked: of a split whose pixels stay in a file only a batch is read.

    Args:
        split: the images and their labels.
        model, threat, version, batch_size, seed, state, examples, bf16, progress: see `autoattack`.
    """
    check_threat(threat)
    check_network(model, "autoattack(model, x, y, threat)")
    seed = at_least("seed", seed, 0)
    check_flag("bf16", bf16)
    check_flag("progress", progress, none="a bar where somebody watches")
    if state is not None:
        state = check_path("state", state)
        check_writable(state.parent, holding=state.name, overwrite=True)
    check_examples(examples, state)
    batch_size = None if batch_size is None else at_least("batch_size", batch_size, 1)
    (device, dtype), order = place(model), order_of(split)
    with own_global_randomness(seed, device), torch.inference_mode(False), torch.enable_grad():
        sample = split[order[:8]].to(device).images(dtype=dtype).detach().clone(memory_format=torch.contiguous_format)
        if len(sample) == 1:
            sample = torch.cat([sample, sample.flip(-1)])  # probabilities are told from logits by two of them
        classes = check_model(model, sample.clone(), int(split.y.max()) + 1, probabilities=True)
        check_labels(split.y, classes)
        check_box(split, threat)
        plan, freeze = stages(version, classes), can_be_frozen(model, sample)
        options = {"threat": repr(threat), "version": version, "seed": seed, "bf16": bf16, "dtype": str(dtype)}
        options["examples"] = "none" if examples in (None, False) else "memory" if examples is True else "file"
        new = [] if state is None or Path(state).exists() else [Path(state)]
        done = State(len(split), len(plan), fingerprint(model, split, options) if state is not None else {}, state)
        with removed_if_refused(new):
            kept = Examples(examples, split, threat, dtype, done)
        for text in done.warnings:
            say(text)
        steady_memory()
        with attacking(model, freeze=freeze), faster_layout(model, sample) as layout:
            probabilities = are_probabilities(model(sample.clone()).detach())
            read = log_probabilities if probabilities else None
            passes = Passes(model, bf16=bf16, layout=layout, blind=True, read=read)
            rows = batch_size or rows_that_fit(model, sample)
            with progress_bar(progress, total=0, unit="pass", unit_scale=True, desc="autoattack") as bar:
                judge = Judge(plan, passes, split, order, threat, Rng(seed, "autoattack"), rows, done, kept, bar)
                try:
                    judge.clean()
                    doubts = partial(examine, version=version, probabilities=probabilities, into=done.warnings)
                    judge.each(order[:PROBED][:rows], lambda index, _: doubts(passes, judge.batch(index)[0]))
                    for number in range(len(plan)):
                        judge.stage(number)
                    bar.total = bar.n
                    bar.refresh()
                finally:
                    judge.save()
    return AutoAttackReport(
        threat, rows_of([(stage.name, str(stage)) for stage in plan], done.broken_by, version), version,
        tuple(stage.name for stage in plan), done.broken_by, kept.finish(),
        None if kept.path is None else str(kept.path), warnings=list(done.warnings), passes=dict(done.passes),
        images=digest_of(split),
    )  # fmt: skip


@contextlib.contextmanager
def removed_if_refused(files: list[Path]) -> Iterator[None]:
    """Remove these files, which the call has just made, if the block fails: nothing is left of a refused call."""
    try:
        yield
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise


def log_probabilities(values: Tensor) -> Tensor:
    """Logits of a model that returns probabilities: their logarithms, which differ by a constant for each image."""
    return values.clamp(min=torch.finfo(values.dtype).tiny).log()


__all__ = ["VERSIONS", "AutoAttackReport", "Stage", "autoattack"]
