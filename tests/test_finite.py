"""NaN and infinity: the update is not made, nothing is spoilt, and the training ends and says where."""

import re
import sys

import pytest
import torch
from torch import nn

import advtrain as at
from advtrain import finite
from advtrain.checkpoint_files import Checkpoints, read
from advtrain.defense import carry, trained
from advtrain.loop import Loop

DIGITS = at.load_data("digits")
DATA = at.as_dataset((DIGITS.train.x[:80], DIGITS.train.y[:80]), val=16, num_classes=10)
THREAT = at.Threat("linf", 0.3)
DEVICE = "cpu"
NAN, INF = float("nan"), float("inf")


class Bad(at.defenses.FastAT):
    """Standard in all but one step, which `spoil` changes."""

    at_step = 6

    def setup(self, model, shape, device):
        self.made = 0

    def __call__(self, model, batch, progress):
        self.made += 1
        step = super().__call__(model, batch, progress)
        return self.spoil(model, step) if self.made == self.at_step else step


class NanLoss(Bad):
    def spoil(self, model, step):
        return step._replace(loss=step.loss * NAN)


class InfiniteLoss(Bad):
    def spoil(self, model, step):
        return step._replace(loss=step.loss + INF)


class NanGradient(Bad):
    """The loss is a number, its gradient is not."""

    def spoil(self, model, step):
        parameters = trained(model)
        gradients = [torch.zeros_like(p) for p in parameters]
        gradients[2][(0,) * (gradients[2].ndim - 1)][1] = NAN
        return step._replace(loss=carry(step.loss, parameters, gradients))


class NanStatistics(Bad):
    """Batch normalisation has seen NaN, and so the loss."""

    def spoil(self, model, step):
        return step._replace(loss=model(torch.full_like(step.delta, NAN)).sum())


class NanWeight(Bad):
    def spoil(self, model, step):
        with torch.no_grad():
            model.head.bias[0] = INF
        return step


def network():
    return at.build_model("small-cnn", DATA, width=2)


def fitted(defense, model=None, **options):
    told = {"epochs": 8, "batch_size": 16, "lr": 0.01, "val_steps": 1, "ema": 0.9, "device": DEVICE, **options}
    return at.fit(model or network(), defense, DATA, **told)


def first(n, **options):
    """The weights, statistics and averages of a training after n steps."""
    found = {}

    def note(self, *args, **more):
        if self.steps == n:
            parts = {"model": self.model, "average": self.keeper.current}
            found.update({f"{p}.{k}": v.clone() for p, m in parts.items() for k, v in m.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "look", note)
        fitted(at.defenses.FastAT(THREAT), **options)
    return found


@pytest.fixture(params=["cpu", "as a GPU", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """A GPU is told by `found_inf`, and asked now and then; a CPU can do the same."""
    if request.param != "cpu":
        monkeypatch.setattr(finite, "LOOK", 3)
    if request.param == "as a GPU":
        monkeypatch.setattr(finite, "answers_at_once", lambda value: False)
    monkeypatch.setattr(sys.modules[__name__], "DEVICE", "cuda" if request.param == "cuda" else "cpu")
    return request.param


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize(
    ("kind", "what"),
    [(NanLoss, "the loss is nan"), (InfiniteLoss, "the loss is inf"), (NanGradient, "a gradient is NaN or infinite"),
     (NanStatistics, "the loss is nan")],
)  # fmt: skip
@pytest.mark.parametrize("step", [1, 6])
def test_a_bad_update_is_not_made_and_the_training_ends(kind, what, step, optimizer, device, monkeypatch):
    monkeypatch.setattr(Bad, "at_step", step)
    model = network()
    kept = []
    monkeypatch.setattr(Loop, "__init__", _noting(Loop.__init__, kept))
    with pytest.raises(at.errors.TrainingError) as caught:
        fitted(kind(THREAT), model, optimizer=optimizer)
    batch, epoch = (1, 1) if step == 1 else (3, 2)
    pattern = rf"{what} in step {step} \(batch {batch} of epoch {epoch}, training images \d+, \d+, \d+, \d+, …\): lower"
    assert re.match(pattern, str(caught.value)), caught.value
    (loop,) = kept
    assert step <= loop.steps <= step + (0 if device == "cpu" else 2)
    expected = first(step - 1, optimizer=optimizer) if step > 1 else _fresh()
    far = 1e-4 if optimizer == "sgd" else 0.02  # Adam's first steps are ± lr, by the sign of what may be rounding
    for name, value in model.state_dict().items():
        known = expected[f"model.{name}"].to(value.device)
        close = (
            torch.allclose(value.float(), known.float(), atol=far) if DEVICE == "cuda" else torch.equal(value, known)
        )
        assert close, f"{name} was changed by the bad step"
    assert all(v.isfinite().all() for v in loop.keeper.average.state_dict().values())
    assert all(v.isfinite().all() for state in loop.optimizer.state.values() for v in state.values())


def _fresh():
    return {f"model.{name}": value for name, value in network().state_dict().items()}


def _noting(function, kept):
    def noted(self, *args, **options):
        kept.append(self)
        function(self, *args, **options)

    return noted


def test_the_images_that_the_error_names_are_those_of_the_batch():
    seen = []

    class Noting(NanLoss):
        def __call__(self, model, batch, progress):
            seen.append(batch.index.tolist())
            return super().__call__(model, batch, progress)

    with pytest.raises(at.errors.TrainingError, match="training images") as caught:
        fitted(Noting(THREAT))
    named = re.search(r"training images ([\d, ]+)", str(caught.value))[1]
    assert [int(n) for n in named.strip(", ").split(", ")] == seen[5][:4]


def test_a_weight_that_is_no_number_ends_the_training_within_so_many_steps(device):
    """Nothing can be put back: it was no update that made it so. But no checkpoint has it."""
    with pytest.raises(at.errors.TrainingError, match="the loss is (nan|inf)|a weight is NaN or infinite") as caught:
        fitted(NanWeight(THREAT))
    assert 6 <= int(re.search(r"step (\d+)", str(caught.value))[1]) <= 6 + finite.LOOK


def test_the_error_names_the_last_good_checkpoint_and_none_is_written_after_it(tmp_path, device):
    with pytest.raises(at.errors.TrainingError, match=r"the last good checkpoint is .*step-0+5\.safetensors$"):
        fitted(NanLoss(THREAT), out=tmp_path / "x", checkpoint_every=5)
    newest, *_ = Checkpoints(tmp_path / "x" / "checkpoints").paths()
    state = read(newest)
    assert state["steps"] == 5 and all(value.isfinite().all() for value in state["model"].values())


def test_a_second_player_makes_no_bad_step_either(device):
    """And the training ends, though the model itself might go on."""
    model, defense = at.build_model("small-cnn", DATA, width=2), at.defenses.RvS(THREAT)
    before = []
    transport, calls = type(defense).transport, [0]

    def spoilt(self, model, x, x_adv):
        calls[0] += 1
        ot, logits = transport(self, model, x, x_adv)
        if calls[0] == 5:  # two a step: the generator's own in the third
            before.append({k: v.clone() for k, v in self.player.state_dict().items()})
            return ot * NAN, logits
        return ot, logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(defense), "transport", spoilt)
        with pytest.raises(at.errors.TrainingError, match=r"a gradient of the second player is .* in step 3"):
            fitted(defense, model, ema=None)
    after = defense.player.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    if device == "cpu":  # a GPU's generator goes on for the steps until somebody looks
        assert all(
            torch.equal(after[key], before[0][key]) for key in after if "running" not in key and "num_b" not in key
        )


class Loud(nn.Module):
    """Its activations are beyond the largest number of bfloat16, and of float32, once its scale is large."""

    def __init__(self):
        super().__init__()
        self.net, self.scale = network(), nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return self.net(x) * self.scale.pow(4) / self.scale.pow(4)


def test_an_overflow_under_bf16_is_detected_and_said():
    model = Loud()
    with torch.no_grad():
        model.scale.fill_(1.0)

    class Growing(at.defenses.Standard):
        def __call__(self, model, batch, progress):
            with torch.no_grad():
                model.scale.mul_(1e4)
            return super().__call__(model, batch, progress)

    with pytest.raises(at.errors.TrainingError, match=r"in step 3 .*or compute in float32 \(bf16=False\)"):
        fitted(Growing(THREAT), model, bf16=True, ema=None)


def test_a_training_without_bad_steps_is_not_changed_by_being_watched(device):
    """What a GPU is told, and the CPU's way, are the same training."""
    for optimizer in ("sgd", "adam"):
        run = fitted(at.defenses.FastAT(THREAT), epochs=2, optimizer=optimizer)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("advtrain.loop.step_if", lambda good, optimizer: optimizer.step())
            plain = fitted(at.defenses.FastAT(THREAT), epochs=2, optimizer=optimizer)
        ours, theirs = run.model.state_dict(), plain.model.state_dict()
        assert all(DEVICE == "cuda" or torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_number_among_many_is_found(value):
    tensors = [torch.zeros(3, 4), torch.zeros(5, dtype=torch.float64), torch.full((2,), 3e38)]
    assert finite.all_finite([*tensors, None]) and finite.all_finite([])
    tensors[1][3] = value
    assert not finite.all_finite(tensors)
