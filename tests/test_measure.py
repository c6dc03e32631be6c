"""What `at.measure` says of models with known properties, in closed form, and of a network that masks its gradient."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import advtrain as at
from advtrain import measure

LINF, L2 = at.Threat("linf", 0.1), at.Threat("l2", 0.5)


class Margin(nn.Module):
    """Two classes; the logit of class 1 leads by f(x), that of class 0 is zero."""

    def __init__(self, f):
        super().__init__()
        self.f = f
        self.dropout = nn.Dropout(0.5)  # a measurement in training mode would be random

    def forward(self, x):
        lead = self.dropout(self.f(x))
        return torch.stack([torch.zeros_like(lead), lead], dim=1)


def linear(scale=1.0, shape=(2, 4, 4)):
    weights = at.Rng(0, "w").normal(torch.empty(shape, dtype=torch.float64)) * scale
    return Margin(lambda x: (x * weights).flatten(1).sum(1)), weights


def images(n=20, shape=(2, 4, 4)):
    """Away from the edges of the pixel box, so that no attack is clipped."""
    x = at.Rng(0, "x").uniform(torch.empty(n, *shape, dtype=torch.float64), 0.4, 0.6)
    return x, at.Rng(0, "y").integers(0, 2, (n,))


def softplus(value):
    return math.log1p(math.exp(value))


# -- closed forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda threat: threat.norm)
def test_a_linear_model_is_aligned_and_answers_alike_to_one_step_and_to_ten(threat):
    model, _ = linear()
    x, y = images()
    aligned = measure.gradient_alignment(model, x, y, threat)
    assert aligned.value == pytest.approx(1, abs=1e-12) and aligned.images == 20 and aligned.error < 1e-12
    assert measure.logit_gap(model, x, y, threat).value < 1e-9
    assert measure.logit_gap(model, x, y, threat, second="r-fgsm").value > 0.01


def test_the_gap_is_the_mean_squared_distance_of_the_logits():
    model, weights = linear()
    x, y = images()
    found = measure.logit_gap(model, x, y, LINF, second="r-fgsm", rng=at.Rng(3))
    beside = at.attacks.r_fgsm(model, x, y, LINF, rng=at.Rng(3).child("measure", 0))
    single = x + 0.1 * weights.sign() * (1 - 2 * y).view(-1, 1, 1, 1)
    gaps = ((single - beside) * weights).flatten(1).sum(1) ** 2  # the logit of class 0 is always zero
    assert found.value == pytest.approx(gaps.mean().item(), rel=1e-9)
    assert found.error == pytest.approx(gaps.std().item() / math.sqrt(20), rel=1e-9)


def test_the_curve_of_a_linear_model_is_its_loss_at_the_corner_of_each_ball():
    """The worst lead is lead - y' ε ‖w‖₁, the loss its softplus."""
    model, weights = linear(0.2)
    x, y = images()
    curve = measure.loss_curve(model, x, y, LINF, points=5)
    sign = (2 * y - 1).double()
    for eps, loss in zip((0, 0.025, 0.05, 0.075, 0.1), curve.loss, strict=True):
        lead = sign * (x * weights).flatten(1).sum(1) - eps * weights.abs().sum()
        assert loss == pytest.approx(torch.nn.functional.softplus(-lead).mean().item(), rel=1e-9)
    assert curve.eps == pytest.approx((0, 0.025, 0.05, 0.075, 0.1)) and curve.eps[-1] == LINF.eps
    assert curve.monotone and not curve.dips and curve.drop == 0
    assert "never falls" in repr(curve)


def test_a_loss_that_peaks_inside_the_ball_is_told_where_it_falls():
    """One pixel t from its place: a lead of 3 cos(20π t) - t is lost half way to ε, and won again at the end."""
    model = Margin(lambda x: (3 * torch.cos(20 * math.pi * (x - 0.5)) - (x - 0.5)).flatten(1).sum(1))
    x, y = torch.full((3, 1, 1, 1), 0.5, dtype=torch.float64), torch.ones(3, dtype=torch.int64)
    curve = measure.loss_curve(model, x, y, LINF, points=5)
    assert curve.dips == pytest.approx((0.075, 0.1)) and not curve.monotone
    peak, end = softplus(3 + 0.05), softplus(-3 + 0.1)
    assert max(curve.loss) == pytest.approx(peak) and curve.drop == pytest.approx(1 - end / peak)
    assert "below its peak" in repr(curve)


def test_where_a_quarter_of_the_ball_has_the_opposite_gradient_the_alignment_is_a_half():
    """The lead |x - 1 - ε/2| at x = 1: three quarters of the draws stay on this side of the kink. None is clipped."""
    model = Margin(lambda x: (x - 1.05).abs().flatten(1).sum(1))
    x, y = torch.full((4000, 1, 1, 1), 1.0, dtype=torch.float64), torch.zeros(4000, dtype=torch.int64)
    found = measure.gradient_alignment(model, x, y, LINF, batch_size=1000)
    assert found.value == pytest.approx(0.5, abs=4 * found.error) and found.error == pytest.approx(0.0137, rel=0.05)
    assert found.value != measure.gradient_alignment(model, x, y, LINF, batch_size=1000, rng=1).value


def test_images_without_a_direction_are_left_out_and_tiny_gradients_have_one():
    x, y = torch.full((6, 1, 2, 2), 0.5), torch.ones(6, dtype=torch.int64)
    x[:2] = 0.2  # dark images have a lead of a thousand: their loss is exactly zero, and so is its gradient
    half_saturated = Margin(lambda x: x.flatten(1).sum(1) + 1e3 * (x < 0.35).flatten(1).any(1))
    found = measure.gradient_alignment(half_saturated, x, y, LINF)
    assert found.images == 4 and found.value == pytest.approx(1)
    beside = Margin(lambda x: x.flatten(1).sum(1) + 1e3 * (x > 0.5).flatten(1).any(1))  # sure at half of the draws
    some = measure.gradient_alignment(beside, torch.full((400, 1, 1, 1), 0.5), torch.ones(400).long(), LINF)
    assert 150 < some.images < 250 and some.value == pytest.approx(1)
    nothing = measure.gradient_alignment(Margin(lambda x: x.flatten(1).sum(1) + 1e3), x, y, LINF)
    assert nothing.images == 0 and math.isnan(nothing.value)
    tiny = measure.gradient_alignment(Margin(lambda x: x.flatten(1).sum(1) * 1e-25), x, y, LINF)
    assert tiny.images == 6 and tiny.value == pytest.approx(1)


def test_the_linear_prediction_is_wrong_by_what_the_curvature_says():
    model, weights = linear(0.3)
    x, y = images(n=1)
    lead = (1 - 2 * y.item()) * (x * weights).sum().item()
    promise = 0.1 * weights.abs().sum().item() / (1 + math.exp(-lead))
    rise = softplus(lead + 0.1 * weights.abs().sum().item()) - softplus(lead)
    assert measure.linearity(model, x, y, LINF).value == pytest.approx((rise - promise) / promise, rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(batch_size=st.integers(1, 25), scale=st.floats(0.1, 5))
def test_the_size_of_a_batch_changes_nothing(batch_size, scale):
    model, _ = linear(scale)
    x, y = images()
    for of in (measure.logit_gap, measure.linearity, measure.gradient_alignment):
        assert of(model, x, y, LINF, batch_size=batch_size).value == pytest.approx(
            of(model, x, y, LINF).value, abs=1e-9
        )
    curves = [measure.loss_curve(model, x, y, LINF, batch_size=size, points=3).loss for size in (batch_size, 512)]
    assert curves[0] == pytest.approx(curves[1])


# -- conduct -----------------------------------------------------------------------------------------------------------

MEASUREMENTS = [measure.logit_gap, measure.loss_curve, measure.gradient_alignment, measure.linearity]


@pytest.mark.parametrize("of", MEASUREMENTS, ids=lambda of: of.__name__)
def test_a_model_is_left_as_it_was(of):
    options = {"shape": (1, 8, 8), "num_classes": 4, "width": 4, "batch_norm": True, "normalize": None}
    model = at.build_model("small-cnn", **options).train()
    model.body[1].eval()
    model.head.bias.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    modes, kept = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    x, y = torch.full((4, 1, 8, 8), 0.5), torch.arange(4)
    first, state = of(model, x, y, LINF), torch.random.get_rng_state()
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())
    assert all(bool((parameter.grad == 1).all()) for parameter in model.parameters())
    assert [key for key, p in model.named_parameters() if not p.requires_grad] == ["head.bias"]
    assert of(model, x, y, LINF) == first and torch.equal(torch.random.get_rng_state(), state)
    assert bool((x == 0.5).all()) and not x.requires_grad


@pytest.mark.parametrize("of", MEASUREMENTS, ids=lambda of: of.__name__)
def test_meaningless_inputs_are_refused(of):
    model, _ = linear()
    x, y = images()
    with pytest.raises(at.errors.DataError, match=r"divide by 255"):
        of(model, x * 255, y, LINF)
    with pytest.raises(at.errors.DataError, match=r"len\(y\)=19"):
        of(model, x, y[1:], LINF)
    with pytest.raises(at.errors.ArgumentError, match="batch_size=0"):
        of(model, x, y, LINF, batch_size=0)
    with pytest.raises(at.errors.ArgumentError, match="is not a Threat"):
        of(model, x, y, 0.1)
    with pytest.raises(at.errors.ModelError, match="gradient is NaN"):  # it would look like perfect linearity
        of(Margin(lambda x: (x * 0).flatten(1).sum(1).sqrt()), x, y, LINF)


@pytest.mark.parametrize(
    ("of", "options", "message"),
    [
        (measure.logit_gap, {"first": "fgsn"}, "first='fgsn'.* did you mean 'fgsm'"),
        (measure.logit_gap, {"second": "none"}, "second='none'"),
        (measure.logit_gap, {"steps": 0}, "steps=0"),
        (measure.loss_curve, {"points": 1}, "points=1 is not an integer of at least 2"),
        (measure.loss_curve, {"attack": "rfgsm"}, "did you mean 'r-fgsm'"),
        (measure.gradient_alignment, {"rng": torch.Generator()}, "rng=an object of type Generator"),
    ],
)
def test_impossible_options_are_refused_by_name(of, options, message):
    with pytest.raises(at.errors.ArgumentError, match=message):
        of(linear()[0], *images(), LINF, **options)


def test_a_measurement_reads_as_a_sentence_and_is_a_number():
    found = measure.Measurement("cosine of input gradients", 0.59474, 0.01312, 360)
    assert repr(found) == "cosine of input gradients: 0.5947 ± 0.013 (360 images)" and float(found) == 0.59474


# -- a network that masks its gradient ---------------------------------------------------------------------------------

DIGITS = at.Threat("linf", 0.3)


@pytest.fixture(scope="module")
def networks():
    """The test images, a network trained against PGD, and the same one after it went on with FGSM and masks."""
    data = at.load_data("digits")
    honest = at.build_model("small-cnn", data, width=8)
    at.fit(honest, at.defenses.PGD(DIGITS, steps=5), data, epochs=20, validate_every=0)
    masked = copy.deepcopy(honest)
    at.fit(masked, at.defenses.FGSM(DIGITS), data, epochs=30, validate_every=0)
    x, y = data.test.images(), data.test.y

    def accuracy(model, attack, **options):
        return float((model(attack(model, x, y, DIGITS, **options)).argmax(1) == y).float().mean())

    assert accuracy(masked, at.attacks.fgsm) > accuracy(honest, at.attacks.fgsm)  # it looks better,
    assert accuracy(masked, at.attacks.pgd) < accuracy(honest, at.attacks.pgd) - 0.15  # and is worse
    return x, y, honest, masked


@pytest.mark.parametrize(("second", "factor"), [("i-fgsm", 4), ("r-fgsm", 2)])
def test_masking_drives_the_logits_of_two_attacks_apart(networks, second, factor):
    x, y, honest, masked = networks
    gaps = [measure.logit_gap(model, x, y, DIGITS, second=second).value for model in (honest, masked)]
    assert gaps[1] > factor * gaps[0]


def test_masking_turns_the_gradient_within_the_ball(networks):
    x, y, honest, masked = networks
    before, after = (measure.gradient_alignment(model, x, y, DIGITS) for model in (honest, masked))
    assert after.value < before.value - 3 * (before.error + after.error)


def test_masking_makes_the_linear_prediction_worse(networks):
    x, y, honest, masked = networks
    before, after = (measure.linearity(model, x, y, DIGITS).value for model in (honest, masked))
    assert after > 1.2 * before


def test_masking_hides_the_loss_from_the_single_step_although_its_curve_rises(networks):
    """On the digits no curve falls; how far that of FGSM stays below that of I-FGSM tells the two networks apart."""
    x, y, honest, masked = networks
    missed = []
    for model in (honest, masked):
        single, iterated = (measure.loss_curve(model, x, y, DIGITS, points=4, attack=a) for a in ("fgsm", "i-fgsm"))
        assert single.monotone and iterated.monotone
        missed.append(iterated.loss[-1] / single.loss[-1])
    assert missed[0] < 1.35 and missed[1] > 1.6
