"""What looks on while a network trains sees every epoch, may end the training, and changes nothing else."""

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

import advtrain as at
from advtrain.callbacks import TAGS, EarlyStopping, Stop, TensorBoard
from advtrain.cli import main
from advtrain.errors import AdvtrainError, ArgumentError, FileError
from advtrain.loop import Loop

THREAT = at.Threat("linf", 0.1)


@pytest.fixture(scope="module")
def digits():
    whole = at.load_data("digits")
    return at.as_dataset((whole.train.x[:192], whole.train.y[:192]), test=0, val=0.25)


def small(data, **options):
    return at.build_model("small-cnn", data, width=4, **options)


def train(data, *callbacks, model=None, defense=None, **options):
    options = dict(epochs=3, val_steps=1, progress=False, device="cpu") | options
    return at.fit(model or small(data), defense or at.defenses.FGSM(THREAT), data, callbacks=list(callbacks), **options)


def same(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def test_each_callback_is_called_with_the_run_after_each_epoch(digits):
    seen, records = [], []
    run = train(digits, lambda run: seen.append((run, len(run.history), run.status)), on_epoch=records.append)
    assert [each[1:] for each in seen] == [(1, "running"), (2, "running"), (3, "running")]
    assert all(each[0] is run for each in seen) and records == run.history


def test_looking_on_changes_nothing(digits):
    """Neither what is drawn from the global stream, from which dropout draws, nor the modes of the layers."""

    def model():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))

    def meddle(run):
        run.model.eval()
        torch.rand(1000)

    assert same(train(digits, model=model()).model, train(digits, meddle, model=model()).model)


def test_a_callback_ends_the_training_and_the_run_is_finished(digits, tmp_path):
    seen = []

    def enough(run):
        if len(run.history) == 2:
            raise Stop("the loss is low enough")

    run = train(digits, enough, seen.append, epochs=5, out=tmp_path / "run")
    assert run.status == "finished" and len(run.history) == len(seen) == 2  # those behind it see the epoch too
    assert run.notes[-1] == "stopped after 2 of 5 epochs: the loss is low enough" and not run.model.training
    again = at.load_run(tmp_path / "run", data=digits)
    assert again.status == "finished" and again.notes == run.notes and same(again.model, run.model)
    assert len(train(digits, on_epoch=lambda record: enough(run)).history) == 1


def test_the_best_weights_are_those_of_the_best_epoch_also_of_a_training_that_ended_early(digits):
    kept = []

    def worsen(run):  # the weights that the next epoch starts from, and is validated with at a rate of almost nothing
        kept.append({key: value.clone() for key, value in run.model.state_dict().items()})
        if len(kept) == 2:
            with torch.no_grad():
                [parameter.mul_(-1) for parameter in run.model.parameters()]

    run = train(digits, worsen, EarlyStopping(2), epochs=9, lr=1e-6, schedule="constant", select="best")
    assert run.best_epoch in (1, 2) and len(run.history) == run.best_epoch + 2
    assert all(torch.equal(kept[run.best_epoch - 1][key], value) for key, value in run.model.state_dict().items())


@pytest.mark.parametrize(
    ("by", "figures", "ends"),
    [
        ("val_pgd", [0.1, 0.3, 0.3, 0.2, 0.9], 4),  # an equal one is no better
        ("val_pgd", [0.1, None, None, None, 0.2], 0),  # epochs without validation do not count
        ("loss", [3.0, 2.0, 2.1, 2.2, 1.0], 4),
        ("loss", [5.0, 4.0, 3.0, 2.0, 1.0], 0),
    ],
)
def test_early_stopping_waits_for_so_many_validated_epochs(digits, by, figures, ends):
    run, stop = at.Run(small(digits), at.defenses.FGSM(THREAT), digits, {"validate_every": 1}), EarlyStopping(2, by)
    for epoch, figure in enumerate(figures, 1):
        run.history.append({"epoch": epoch, "loss": 1.0} | ({} if figure is None else {by: figure}))
        if epoch == ends:
            with pytest.raises(Stop, match=f"{by} has not been better than {figures[1]:g} since epoch 2"):
                stop(run)
            return
        stop(run)


def test_early_stopping_by_a_figure_that_is_not_there_is_refused(digits):
    with pytest.raises(ArgumentError, match="by='val_pgd' is not a figure of this training, one of epoch, loss"):
        train(digits, EarlyStopping(1), validate_every=0)
    with pytest.raises(ArgumentError, match="patience=0"):
        EarlyStopping(0)


class Closing:
    """Notes when it is closed; raises whatever it is told to in the second epoch."""

    def __init__(self, error=None):
        self.error, self.closed = error, 0

    def __call__(self, run):
        if self.error and len(run.history) == 2:
            raise self.error

    def close(self):
        self.closed += 1


@pytest.mark.parametrize("error", [None, Stop(), KeyboardInterrupt(), ZeroDivisionError("mine")])
def test_callbacks_are_closed_however_the_training_ends(digits, tmp_path, error):
    first, other = Closing(error), Closing()
    if isinstance(error, ZeroDivisionError):
        with pytest.raises(ZeroDivisionError, match="mine"):  # as it was raised
            train(digits, first, other, out=tmp_path / "run")
        run = at.load_run(tmp_path / "run", data=digits)
        assert run.status == "running" and len(run.history) == run.best_epoch == 2
    else:
        run = train(digits, first, other, out=tmp_path / "run")
        assert run.status == ("interrupted" if isinstance(error, KeyboardInterrupt) else "finished")
    assert first.closed == other.closed == 1


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (print, "callbacks=.* is not a list of functions of the run: also of a single one"),
        ([TensorBoard], r"callbacks='TensorBoard' is not made yet: it is a class: write TensorBoard\(…\)"),
        ([3], "callbacks=3 is not a function of the run"),
    ],
)
def test_what_is_no_callback_is_refused_before_the_first_step(digits, callbacks, message):
    with pytest.raises(ArgumentError, match=message):
        at.fit(small(digits), at.defenses.FGSM(THREAT), digits, callbacks=callbacks)


def events(folder):
    """{tag: [(step, value)]} and the text, as TensorBoard's own reader finds them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    (text,) = (found.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in found.Tags()["tensors"])
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}, text


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_tensorboard_reads_the_history(digits, tmp_path, error):
    defense = at.defenses.TRADES(THREAT) if error is None else at.defenses.GradAlign(THREAT)
    run = train(digits, TensorBoard(tmp_path / "tb"), Closing(error), defense=defense, validate_every=2)
    scalars, text = events(tmp_path / "tb")
    assert len(run.history) == (3 if error is None else 2)
    for key in {key for record in run.history for key in record} - {"epoch"}:
        told = [(r["epoch"], float(np.float32(r[key]))) for r in run.history if r.get(key) is not None]
        assert scalars.pop(TAGS.get(key, f"defense/{key}")) == told, key
    assert not scalars
    told = json.loads(text.removeprefix("```json\n").removesuffix("\n```"))
    assert told["defense"] == run.defense.config and told["options"] == run.options


def test_two_runs_in_one_folder_are_refused(digits, tmp_path):
    board = TensorBoard(tmp_path)
    train(digits, board, epochs=1)
    for again in (lambda: TensorBoard(tmp_path), lambda: train(digits, board, epochs=1)):
        with pytest.raises(FileError, match="already has the events of another run.*choose another folder"):
            again()


def test_a_resumed_training_is_one_line_in_tensorboard(digits, tmp_path, monkeypatch):
    """Also where the last epoch was written, but no checkpoint after it: it is trained again, and shown once."""
    checkpoint, told = Loop.checkpoint, []

    def dying(loop):
        told.append(len(loop.run.history))
        if told[-1] == 2:
            raise KeyboardInterrupt
        checkpoint(loop)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Loop, "checkpoint", dying)
        train(digits, TensorBoard(tmp_path / "tb"), out=tmp_path / "x")
    run = train(digits, TensorBoard(tmp_path / "tb", resume=True), out=tmp_path / "x", resume=True)
    scalars, _ = events(tmp_path / "tb")
    assert [epoch for epoch, _ in scalars["loss/train"]] == [1, 2, 3]
    assert [loss for _, loss in scalars["loss/train"]] == [np.float32(record["loss"]) for record in run.history]


def test_without_tensorboard_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(AdvtrainError, match="TensorBoard needs tensorboard: pip install tensorboard"):
        TensorBoard(tmp_path)


def test_the_command_line_writes_for_tensorboard(tmp_path):
    from click.testing import CliRunner

    options = ["--eps", "0.1", "--epochs", "1", "--model-option", "width=4", "--no-evaluate", "--val-steps", "1"]
    folder = str(tmp_path / "tb")
    done = CliRunner().invoke(main, ["train", "fgsm", *options, "--tensorboard", folder], catch_exceptions=False)
    assert done.exit_code == 0 and set(events(folder)[0]) >= {"loss/train", "accuracy/val_pgd", "lr"}


def test_an_error_in_close_comes_after_everything_is_written(digits, tmp_path):
    class Full:
        def __call__(self, run):
            pass

        def close(self):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        train(digits, Full(), epochs=1, out=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))["status"] == "finished"
