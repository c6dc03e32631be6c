"""The threat model: membership holds to the last bit, and mistakes are named."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import advtrain as at
from advtrain.threat import format_eps, parse_eps

RADII = st.sampled_from([1 / 255, 8 / 255, 16 / 255, 0.03, 0.1, 0.3, 1.0]) | st.floats(1e-4, 1.0)
DTYPES = st.sampled_from([torch.float32, torch.float64])


def images(seed: int, dtype: torch.dtype, shape=(4, 3, 5, 5)) -> torch.Tensor:
    """Random images in which some pixels are exactly 0 or 1."""
    noise = at.Rng(seed, "images").uniform(torch.empty(shape, dtype=dtype), -0.2, 1.2)
    return noise.clamp(0, 1)


@given(st.integers(0, 10**6), RADII, st.sampled_from(["linf", "l2"]), DTYPES)
@settings(max_examples=150, deadline=None)
def test_projected_images_are_members_judged_in_float64(seed, eps, norm, dtype):
    threat = at.Threat(norm, eps)
    x = images(seed, dtype)
    wild = x + 2 * at.Rng(seed).normal(x)
    for x_adv in (threat.project(wild, x), threat.random_start(x, at.Rng(seed, "start"))):
        assert x_adv.dtype == dtype
        assert threat.contains(x_adv, x).all()


@given(st.integers(0, 10**6), RADII, st.sampled_from(["linf", "l2"]), DTYPES)
@settings(max_examples=100, deadline=None)
def test_members_stay_where_they_are(seed, eps, norm, dtype):
    threat = at.Threat(norm, eps)
    x = images(seed, dtype)
    member = threat.project(x + at.Rng(seed).normal(x), x)
    assert torch.equal(threat.project(member, x), member)
    assert torch.equal(threat.project(x, x), x)


def test_plain_clamping_would_leave_the_ball():
    """The reason for rounding towards x: without it a good part of the pixels are outside by one rounding step."""
    x = images(0, torch.float32, (64, 3, 32, 32))
    eps = 8 / 255
    far = x + 1.0
    clamped = torch.minimum(far, x + eps).clamp(0, 1)
    outside = ((clamped.double() - x.double()).abs() > eps).double().mean()
    assert outside > 0.1
    assert at.Threat("linf", eps).contains(at.Threat("linf", eps).project(far, x), x).all()


def test_projection_reaches_the_boundary():
    x = torch.full((1, 1, 2, 2), 0.5)
    threat = at.Threat("linf", 8 / 255)
    reached = threat.project(x + 1, x) - x
    assert torch.allclose(reached, torch.tensor(8 / 255), rtol=1e-5, atol=0)
    length = (at.Threat("l2", 0.3).project(x + 1, x) - x).norm()
    assert length == pytest.approx(0.3, rel=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_ascent_is_the_steepest_in_its_norm(norm):
    """On a linear loss <g, δ>, a step of length s gains s·‖g‖ in the dual norm: the most that any step can."""
    x = images(1, torch.float64)
    grad = at.Rng(3).normal(x)
    step = at.Threat(norm, 0.5).ascend(x, grad, 0.1) - x
    gain = (step * grad).flatten(1).sum(1)
    dual = grad.flatten(1).abs().sum(1) if norm == "linf" else grad.flatten(1).norm(dim=1)
    assert torch.allclose(gain, 0.1 * dual)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_vanishing_gradient_moves_nothing(norm):
    x = images(1, torch.float32)
    assert torch.equal(at.Threat(norm, 0.5).ascend(x, torch.zeros_like(x), 0.1), x)


def test_random_starts_fill_the_ball_evenly():
    x = torch.full((2000, 1, 2, 2), 0.5, dtype=torch.float64)
    noise = at.Threat("linf", 0.2).random_start(x) - x
    assert abs(float(noise.mean())) < 0.01 and float(noise.abs().max()) > 0.199
    assert float(noise.std()) == pytest.approx(0.2 / math.sqrt(3), rel=0.03)
    lengths = (at.Threat("l2", 0.2).random_start(x) - x).flatten(1).norm(dim=1)
    assert float((lengths < 0.1).double().mean()) == pytest.approx(
        0.5**4, abs=0.02
    )  # volume grows as r^4 in 4 dimensions


def test_contains_rejects_what_is_outside_or_not_a_number():
    x = torch.full((3, 1, 1, 1), 0.5)
    x_adv = torch.tensor([0.6, 0.9, math.nan]).view(3, 1, 1, 1)
    assert at.Threat("linf", 0.2).contains(x_adv, x).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("linf", 8), r"eps=8 is not in \(0, 1\]: pixels are in \[0, 1\], did you mean 8/255\?"),
        (("linf", 0), r"eps=0 is not in \(0, 1\]"),
        (("l2", -1.0), "eps=-1.0 is not above 0"),
        (("linf", math.nan), "eps=nan is not a finite number"),
        (("linf", "8/255"), "eps='8/255' is not a finite number: write it without quotes"),
        (("linf", torch.tensor(0.1)), r"take the number out of it: .item\(\)"),
        (("linf", 8, 0, 255), "a box inside"),
        (("l_inf", 0.1), "norm='l_inf' is not one of linf, l2: did you mean 'linf'"),
        (("linf", 0.1, 1.0, 0.0), r"\(low, high\)=\(1.0, 0.0\) is not a box inside \[0, 1\]"),
    ],
)
def test_impossible_threats_are_refused_by_name(arguments, message):
    with pytest.raises(at.errors.ArgumentError, match=message):
        at.Threat(*arguments)


def test_radii_are_written_as_the_papers_do():
    assert [format_eps(eps) for eps in (8 / 255, 0.5 / 255, 0.3, 1.0, 128 / 255)] == [
        "8/255",
        "0.5/255",
        "0.3",
        "1",
        "128/255",
    ]
    assert parse_eps("8/255") == 8 / 255 and parse_eps("0.3") == 0.3
    with pytest.raises(at.errors.ArgumentError, match="write 0.3 or 8/255"):
        parse_eps("eight")


@pytest.mark.parametrize(("norm", "longest"), [("linf", 0.5), ("l2", 0.5 * 6)])
def test_no_two_images_of_the_box_are_further_apart_than_its_diameter(norm, longest):
    threat = at.Threat(norm, 0.1, low=0.25, high=0.75)
    dark, light = torch.full((1, 1, 4, 9), 0.25), torch.full((1, 1, 4, 9), 0.75)
    assert threat.diameter(dark.shape[1:]) == longest
    assert at.Threat(norm, longest, low=0.25, high=0.75).contains(light, dark)
