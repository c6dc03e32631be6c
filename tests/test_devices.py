"""What a device lacks is not asked of it: Apple's GPUs have no float64. And none is kept waiting."""

import contextlib
import dataclasses

import pretended
import pytest
import torch

import advtrain as at
from advtrain.loop import Loop
from advtrain.survey import statistics

HERE = pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])

# PyTorch itself takes that path for a norm where tensors are of a subclass.
pytestmark = pytest.mark.filterwarnings("ignore:at..frobenius_norm is deprecated")


@pytest.fixture(scope="module")
def digits():
    """A few of the digits, so that a pass over them takes a moment."""
    data = at.load_data("digits")
    few = {name: at.Split(part.x[:n], part.y[:n]) for name, part, n in (
        ("train", data.train, 32), ("val", data.val, 32), ("test", data.test, 32)
    )}  # fmt: skip
    return dataclasses.replace(data, **few)


@pytest.fixture
def mps():
    with pretended.pretended():
        yield "mps"


@pytest.fixture(params=["mps", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    with pretended.pretended() if request.param == "mps" else contextlib.nullcontext():
        yield request.param


@pytest.fixture
def model(digits, device):
    return at.build_model("small-cnn", digits).to(device)


@pytest.fixture
def batch(digits, device):
    return digits.test.images()[:2].to(device), digits.test.y[:2].to(device)


def test_the_pretended_device_has_no_float64_and_stands_apart(mps):
    """Else the other tests here would show nothing."""
    x = torch.ones(3, device=mps, requires_grad=True)
    for wide in (x.double, lambda: torch.zeros(3, device=mps, dtype=torch.float64), lambda: x.to(torch.float64)):
        with pytest.raises(TypeError, match="doesn't support float64"):
            wide()
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    (3 * x).cpu().double().sum().backward()
    assert x.grad.device.type == "mps" and x.grad.tolist() == [3, 3, 3]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", sorted(at.attacks.ATTACKS))
def test_attacks_run_and_stay_admissible(name, norm, model, batch, device):
    threat = at.Threat(norm, eps=0.3)
    less = {"square": {"queries": 200}, "fab": {"steps": 10}}.get(name, {})
    x_adv = at.attacks.ATTACKS[name](model, *batch, threat, **less)
    assert x_adv.device.type == device and bool(threat.contains(x_adv, batch[0]).all())


@pytest.mark.parametrize("name", sorted(at.defenses.DEFENSES))
def test_defenses_train(name, digits, device):
    defense = at.defenses.DEFENSES[name](at.Threat("linf", eps=0.3))
    run = at.fit(at.build_model("small-cnn", digits), defense, digits, epochs=1, batch_size=32, device=device, seed=0)
    assert next(run.model.parameters()).device.type == device


def test_models_are_judged_and_measured(model, batch, digits, device):
    threat, few = at.Threat("linf", eps=0.3), (digits.test.images()[:2], digits.test.y[:2])
    at.evaluate(model, few, threat, protocol=at.Protocol(steps=2, restarts=1))
    right = few[0], model(few[0].to(device)).argmax(1).cpu()  # or there is nothing to attack
    at.autoattack(model, *right, threat, version="fast")
    for measure in (at.measure.gradient_alignment, at.measure.linearity, at.measure.logit_gap, at.measure.loss_curve):
        measure(model, *batch, threat)
    at.calibrate(model, digits, device=device, seconds=0.01)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "device",
    [pytest.param("mps", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)],
    indirect=True,
)
def test_all_attacks_of_the_ensemble_meet_images_there(norm, model, digits, device):
    x = digits.test.images()[:2]
    right = model(x.to(device)).argmax(1).cpu()
    assert at.autoattack(model, x, right, at.Threat(norm, eps=1e-4), version="standard").robust_accuracy == 1


@pytest.mark.slow
def test_models_are_diagnosed(model, digits):
    assert at.diagnose(model, digits, at.Threat("linf", eps=0.3)).findings


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_statistics_of_images_that_lie_there(dtype, digits, device):
    x = digits.train.x if dtype == torch.uint8 else digits.train.images()
    assert statistics(x.to(device)) == statistics(x)


@HERE
@pytest.mark.parametrize("name", sorted(at.defenses.DEFENSES))
def test_no_update_of_a_training_waits_for_the_device(name, where, digits, monkeypatch):
    """PyTorch raises where the host would wait for a GPU. It never waits for a processor: there they are counted."""
    if (name, where) == ("nuat", "cuda"):
        pytest.skip("its singular values make a GPU wait, as its page says")
    plain, updates = Loop.update, []
    watch = torch.cuda.set_sync_debug_mode if where == "cuda" else lambda mode: None

    def watched(self, *args):
        updates.append(self.steps)
        watch("error" if self.steps > 1 else "default")  # the first steps make what later ones find there
        try:
            return plain(self, *args)
        finally:
            watch("default")

    monkeypatch.setattr(Loop, "update", watched)
    options = {"lam": 0.2} if name == "sat-r1" else {}
    defense = at.defenses.DEFENSES[name](at.Threat("linf", eps=0.3), **options)
    model = at.build_model("preactresnet18", digits, width=4)
    run = at.fit(model, defense, digits, epochs=4, batch_size=16, device=where, seed=0, ema=0.9, clip_grad=1.0)
    assert len(updates) == 4 * 2 * defense.replays and len(run.history) == 4


@HERE
def test_a_training_keeps_its_weights_on_the_way_to_a_folder_and_back(where, digits, tmp_path):
    defense = at.defenses.FastAT(at.Threat("linf", eps=0.3))
    run = at.fit(
        at.build_model("small-cnn", digits), defense, digits, epochs=1, device=where, seed=0, out=tmp_path / "x"
    )
    x, again = digits.test.images()[:8], at.load_run(tmp_path / "x", data=digits)
    with torch.no_grad():
        assert torch.allclose(run.model(x.to(where)).cpu().float(), again.model.cpu()(x), atol=1e-2)


@pytest.mark.gpu
def test_compiled_passes_train_there_too(digits):
    model, defense = at.build_model("small-cnn", digits, width=4), at.defenses.FastAT(at.Threat("linf", eps=0.3))
    run = at.fit(model, defense, digits, epochs=2, device="cuda", seed=0, compile=True)
    assert run.history[-1]["loss"] < 3 and next(run.model.parameters()).is_cuda
