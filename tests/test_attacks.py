"""Attacks: exact where theory gives the answer, inside the threat always, and without side effects."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import advtrain as at
from advtrain.attacks import cross_entropy, cw_margin, dlr, fgsm, i_fgsm, mi_fgsm, pgd, r_fgsm

LINF, L2 = at.Threat("linf", 0.1), at.Threat("l2", 0.5)


def batch(seed: int = 0, n: int = 6, dtype=torch.float64, shape=(1, 4, 4), classes: int = 3):
    rng = at.Rng(seed, "batch")
    return rng.uniform(torch.empty(n, *shape, dtype=dtype), 0, 1), rng.integers(0, classes, (n,))


def linear(seed: int = 0, classes: int = 3, dtype=torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).to(dtype)


def curved(seed: int = 0, dtype=torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(96, 3)
    ).to(dtype)


def loss_of(model, x, y):
    with at.attacking(model, "eval"), torch.no_grad():
        return cross_entropy(model(x), y)


@pytest.mark.parametrize("attack", [fgsm, i_fgsm, mi_fgsm, pgd])
def test_two_classes_and_a_linear_model_have_a_closed_form_optimum(attack):
    """The margin of a linear two-class model falls by ε‖w‖₁, and no admissible image does worse."""
    model, threat = linear(classes=2), at.Threat("linf", 0.05)
    x, y = batch(classes=2)
    x = 0.25 + 0.5 * x  # far from the pixel box, which would cut the perturbation
    weight = model[1].weight[0] - model[1].weight[1]
    x_adv = attack(model, x, y, threat, **({"keep": "last"} if attack is pgd else {}))
    fall = cw_margin(model(x_adv), y) - cw_margin(model(x), y)
    assert torch.allclose(fall, 0.05 * weight.abs().sum(), rtol=1e-9)


def test_under_l2_the_optimum_is_the_unit_gradient():
    model, x, y = linear(classes=2), *batch(classes=2)
    x = 0.4 + 0.2 * x
    weight = (model[1].weight[0] - model[1].weight[1]).norm()
    x_adv = fgsm(model, x, y, at.Threat("l2", 0.2))
    assert torch.allclose(cw_margin(model(x_adv), y) - cw_margin(model(x), y), 0.2 * weight, rtol=1e-5)


@given(st.integers(0, 1000), st.integers(1, 4), st.sampled_from(["ce", "cw", "dlr"]))
@settings(max_examples=40, deadline=None)
def test_more_restarts_never_lower_the_kept_loss(seed, restarts, loss):
    model, (x, y) = curved(seed), batch(seed)
    few, many = (
        pgd(model, x, y, LINF, steps=3, restarts=r, keep="last", loss=loss) for r in (restarts, restarts + 2)
    )  # fmt: skip
    function = at.attacks.LOSSES[loss]
    with at.attacking(model, "eval"):
        if restarts > 1:  # with one restart and keep="last" there is nothing to compare, and no final evaluation
            assert (function(model(many), y) >= function(model(few), y) - 1e-12).all()


@given(st.integers(0, 1000), st.sampled_from([1, 5]))
@settings(max_examples=20, deadline=None)
def test_early_stopping_changes_no_verdict(seed, grain):
    """Not on a GPU either, whose batches have a multiple of so many images."""
    model, (x, y) = curved(seed), batch(seed, n=16)
    verdicts = []
    for early_stop in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys.modules[pgd.__module__], "grain", lambda device: grain)
            x_adv = pgd(model, x, y, LINF, steps=6, step_size=0.03, restarts=2, early_stop=early_stop)
        with at.attacking(model, "eval"):
            verdicts.append(model(x_adv).argmax(1) == y)
    assert torch.equal(*verdicts)


def test_on_a_gpu_batches_shrink_to_few_sizes(monkeypatch):
    model, (x, y) = curved(1), batch(1, n=50)
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    monkeypatch.setattr(sys.modules[pgd.__module__], "grain", lambda device: 16)
    pgd(model, x, y, at.Threat("linf", 0.5), steps=10, restarts=3, check=False)
    assert seen[0] == 50 and set(seen) <= {50, 48, 32, 16} and len(set(seen)) > 1


def test_early_stopping_works_on_survivors_only():
    """The batch shrinks as images fall: count the images that pass through the network."""
    model, (x, y) = curved(1), batch(1, n=64)
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    pgd(model, x, y, at.Threat("linf", 0.5), steps=10, check=False)
    assert seen[0] == 64 and seen[-1] < 64 and seen == sorted(seen, reverse=True)


def test_the_last_iterate_protocol_keeps_the_restart_of_largest_loss():
    model, (x, y) = curved(2), batch(2)
    runs = [
        pgd(model, x, y, LINF, steps=3, step_size=0.02, keep="last", rng=_Shifted(r)) for r in range(3)
    ]  # fmt: skip
    best = torch.stack([loss_of(model, x_adv, y) for x_adv in runs]).amax(0)
    together = pgd(model, x, y, LINF, steps=3, step_size=0.02, restarts=3, keep="last")
    assert torch.allclose(loss_of(model, together, y), best)


class _Shifted(at.Rng):
    """Serves restart r of the default stream as restart 0."""

    def __init__(self, restart: int):
        super().__init__(0)
        self.restart = restart

    def child(self, *key):
        return at.Rng(0).child("restart", self.restart)


def test_i_fgsm_without_momentum_is_pgd_without_a_random_start():
    model, (x, y) = curved(4), batch(4)
    same = pgd(model, x, y, LINF, steps=5, step_size=0.02, random_start=False, keep="last")
    assert torch.equal(i_fgsm(model, x, y, LINF, steps=5), same)
    assert torch.equal(i_fgsm(model, x, y, LINF, steps=1), fgsm(model, x, y, LINF))


def test_momentum_accumulates_l1_normalised_gradients():
    """Two steps of MI-FGSM by hand, from the paper's algorithm 1."""
    model, (x, y) = curved(5), batch(5)

    def gradient(x):
        with at.attacking(model, "eval"):
            x = x.clone().requires_grad_()
            return torch.autograd.grad(cross_entropy(model(x), y).sum(), x)[0]

    x_adv, g = x.clone(), torch.zeros_like(x)
    for _ in range(2):
        grad = gradient(x_adv)
        g = 0.9 * g + grad / grad.abs().sum((1, 2, 3), keepdim=True)
        x_adv = torch.clamp(torch.clamp(x_adv + 0.05 * g.sign(), x - 0.1, x + 0.1), 0, 1)
    assert torch.allclose(mi_fgsm(model, x, y, LINF, steps=2, decay=0.9), x_adv, atol=1e-12)


def test_r_fgsm_spends_its_budget_in_two_parts():
    model, (x, y) = curved(6), batch(6)
    x = 0.3 + 0.4 * x
    x_adv = r_fgsm(model, x, y, LINF, alpha=0.04)
    size = (x_adv - x).abs()
    near = torch.isclose(size, torch.tensor(0.1, dtype=x.dtype)) | torch.isclose(
        size, torch.tensor(0.02, dtype=x.dtype)
    )
    assert near.all() and not torch.isclose(size, torch.tensor(0.1, dtype=x.dtype)).all()  # 0.06 ± 0.04


@pytest.mark.parametrize("loss", ["ce", "cw"])
def test_targeted_attacks_reach_the_target_exactly_where_it_is_within_reach(loss):
    """A linear two-class model again: the other class is reached where ε‖w‖₁ exceeds the margin, and nowhere else."""
    model, threat = linear(seed=1, classes=2), at.Threat("linf", 0.1)
    x, _ = batch(seed=1, n=200)
    x = 0.25 + 0.5 * x
    y = model(x).argmax(1)
    reach = 0.1 * (model[1].weight[0] - model[1].weight[1]).abs().sum()
    expected = -cw_margin(model(x), y) < reach
    x_adv = pgd(model, x, y, threat, target=1 - y, loss=loss, steps=20)
    assert torch.equal(model(x_adv).argmax(1) == 1 - y, expected) and 0.1 < expected.double().mean() < 0.9


def test_the_margin_loss_is_positive_exactly_where_the_answer_is_wrong():
    logits = at.Rng(0).normal(torch.empty(200, 5, dtype=torch.float64))
    y = at.Rng(1).integers(0, 5, (200,))
    assert torch.equal(cw_margin(logits, y) > 0, logits.argmax(1) != y)


@given(st.floats(0.1, 100), st.floats(-50, 50))
@settings(deadline=None)
def test_dlr_ignores_shift_and_scale_of_the_logits(scale, shift):
    logits = at.Rng(0).normal(torch.empty(20, 5, dtype=torch.float64))
    y = at.Rng(1).integers(0, 5, (20,))
    assert torch.allclose(dlr(scale * logits + shift, y), dlr(logits, y), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.rand(2, 1, 4, 4) * 255}, at.errors.DataError, "255"),
        ({"x": torch.full((2, 1, 4, 4), torch.nan)}, at.errors.DataError, "NaN|nan|finite"),
        ({"x": (torch.rand(2, 1, 4, 4) * 255).byte()}, at.errors.DataError, "x / 255"),
        ({"x": torch.rand(2, 1, 4, 4).bfloat16()}, at.errors.DataError, "float32 or float64"),
        ({"x": torch.rand(0, 1, 4, 4)}, at.errors.DataError, "at least one image"),
        ({"y": torch.tensor([0, 7])}, at.errors.DataError, "7"),
        ({"y": torch.tensor([0, -1])}, at.errors.DataError, "-1"),
        ({"y": torch.tensor([0.0, 1.0])}, at.errors.DataError, "integer"),
        ({"y": torch.tensor([0, 1, 2])}, at.errors.DataError, "3"),
        ({"steps": 0}, at.errors.ArgumentError, "steps=0"),
        ({"step_size": -0.1}, at.errors.ArgumentError, "step_size=-0.1"),
        ({"restarts": 0}, at.errors.ArgumentError, "restarts=0"),
        ({"restarts": 2, "random_start": False}, at.errors.ArgumentError, "random_start=True"),
        ({"keep": "best"}, at.errors.ArgumentError, "keep='best'"),
        ({"loss": "mse"}, at.errors.ArgumentError, "loss='mse' is not one of ce, cw, dlr"),
        ({"step_size": "1"}, at.errors.ArgumentError, "step_size='1'"),
        (
            {"rng": torch.Generator()},
            at.errors.ArgumentError,
            "rng=an object of type Generator is not an Rng or a seed",
        ),
        ({"loss": nn.functional.cross_entropy}, at.errors.ArgumentError, "one value per image"),
        ({"early_stop": True, "keep": "last"}, at.errors.ArgumentError, "early_stop"),
        ({"target": torch.tensor([0, 9])}, at.errors.DataError, "target"),
    ],
)
def test_bad_input_is_refused_before_the_first_gradient(change, error, message):
    arguments = {"x": torch.rand(2, 1, 4, 4), "y": torch.tensor([0, 1])} | change
    model = linear(dtype=torch.float32)
    with pytest.raises(error, match=message):
        pgd(model, arguments.pop("x"), arguments.pop("y"), LINF, **arguments)


def test_a_softmaxed_model_is_refused():
    model = nn.Sequential(linear(dtype=torch.float32), nn.Softmax(1))
    with pytest.raises(at.errors.ModelError, match="softmax"):
        fgsm(model, *batch(dtype=torch.float32), LINF)


def test_attacks_work_inside_no_grad():
    model, (x, y) = curved(8), batch(8)
    expected = pgd(model, x, y, LINF)
    with torch.no_grad():
        assert torch.equal(pgd(model, x, y, LINF), expected)


@pytest.mark.parametrize("name", ["fgsm", "r_fgsm", "pgd", "apgd", "fab", "feature_attack", "r_fgsm_pgd"])
def test_inference_mode_is_named_and_not_the_model(name):
    data = at.load_data("digits")
    x, model = data.test[:2].images(), at.build_model("small-cnn", data, width=2).eval()
    y = model(x).argmax(1)  # so that there is something to break
    with torch.inference_mode(), pytest.raises(at.errors.ModelError, match=r"^torch.inference_mode\(\) is on"):
        getattr(at.attacks, name)(model, x, y, LINF)
    assert getattr(at.attacks, name)(model, x, y, LINF).shape == x.shape


def test_under_autocast_images_stay_float32_and_inside():
    model, (x, y) = curved(9, torch.float32), batch(9, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        x_adv = pgd(model, x, y, at.Threat("linf", 8 / 255))
    assert x_adv.dtype == torch.float32 and at.Threat("linf", 8 / 255).contains(x_adv, x).all()
