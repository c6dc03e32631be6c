"""What a device lacks is not asked of it: Apple's GPUs have no float64."""

import dataclasses

import pretended
import pytest
import torch

import advtrain as at
from advtrain.survey import statistics

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


@pytest.fixture
def model(digits, mps):
    return at.build_model("small-cnn", digits).to(mps)


@pytest.fixture
def batch(digits, mps):
    return digits.test.images()[:2].to(mps), digits.test.y[:2].to(mps)


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
def test_attacks_run_and_stay_admissible(name, norm, model, batch):
    threat = at.Threat(norm, eps=0.3)
    less = {"square": {"queries": 200}, "fab": {"steps": 10}}.get(name, {})
    x_adv = at.attacks.ATTACKS[name](model, *batch, threat, **less)
    assert x_adv.device.type == "mps" and bool(threat.contains(x_adv, batch[0]).all())


@pytest.mark.parametrize("name", sorted(at.defenses.DEFENSES))
def test_defenses_train(name, digits, mps):
    defense = at.defenses.DEFENSES[name](at.Threat("linf", eps=0.3))
    run = at.fit(at.build_model("small-cnn", digits), defense, digits, epochs=1, batch_size=32, device=mps, seed=0)
    assert next(run.model.parameters()).device.type == "mps"


def test_models_are_judged_and_measured(model, batch, digits):
    threat, few = at.Threat("linf", eps=0.3), (digits.test.images()[:2], digits.test.y[:2])
    at.evaluate(model, few, threat, protocol=at.Protocol(steps=2, restarts=1))
    at.autoattack(model, *few, threat, version="fast")
    for measure in (at.measure.gradient_alignment, at.measure.linearity, at.measure.logit_gap, at.measure.loss_curve):
        measure(model, *batch, threat)
    at.calibrate(model, digits, device="mps", seconds=0.01)


@pytest.mark.slow
def test_models_are_diagnosed(model, digits):
    assert at.diagnose(model, digits, at.Threat("linf", eps=0.3)).findings


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_statistics_of_images_that_lie_there(dtype, digits, mps):
    x = digits.train.x if dtype == torch.uint8 else digits.train.images()
    assert statistics(x.to(mps)) == statistics(x)
