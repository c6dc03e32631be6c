"""Optimal transport: exact where there is a closed form, equal to POT where there is none."""

import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import advtrain as at
from advtrain.transport import cost_matrix, sinkhorn, sinkhorn_plan

with warnings.catch_warnings():  # POT's docstrings hold backslashes, which Python mentions when it first compiles them
    warnings.simplefilter("ignore", SyntaxWarning)
    warnings.simplefilter("ignore", DeprecationWarning)  # the same before Python 3.12
    import ot

SIZES = st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 5), st.integers(0, 2**31))


def features(n, width, seed, *name, dtype=torch.float64):
    return at.Rng(seed, *name).normal(torch.empty(n, width, dtype=dtype))


def uniform(n):
    return torch.full((n,), 1 / n, dtype=torch.float64).numpy()


def by_potentials(x, y, eps, iterations):
    """The algorithm as papers write it, with u and v, in place of `log_softmax`."""
    n, m = len(x), len(y)
    cost = (x.unsqueeze(1) - y.unsqueeze(0)).pow(2).sum(-1)
    u, v = torch.zeros(n, dtype=x.dtype), torch.zeros(m, dtype=x.dtype)
    for _ in range(iterations):
        u = u + eps * (-math.log(n) - torch.logsumexp((u[:, None] + v - cost) / eps, 1))
        v = v + eps * (-math.log(m) - torch.logsumexp((u[:, None] + v - cost) / eps, 0))
    plan = torch.exp((u[:, None] + v - cost) / eps)
    return (plan * cost).sum(), plan


def test_the_cost_is_the_squared_distance_summed_over_features():
    x, y = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 1.0]])
    assert cost_matrix(x, y).tolist() == [[1.0], [18.0]]


def test_a_small_distance_between_long_vectors_is_not_lost():
    x = 1000 + features(4, 64, 0, dtype=torch.float32)
    y = x + 2**-10
    assert torch.allclose(cost_matrix(x, y).diagonal(), torch.tensor(64 * 2.0**-20), rtol=0.2)


@settings(deadline=None, max_examples=30)
@given(SIZES)
def test_the_cost_matrix_is_symmetric_and_the_same_for_permuted_points(sizes):
    n, m, width, seed = sizes
    x, y = features(n, width, seed, "x"), features(m, width, seed, "y")
    assert torch.equal(cost_matrix(x, y), cost_matrix(y, x).T) and not cost_matrix(x, x).diagonal().any()
    order = at.Rng(seed, "order").permutation(n)
    assert torch.equal(cost_matrix(x[order], y), cost_matrix(x, y)[order])


@settings(deadline=None, max_examples=30)
@given(SIZES)
def test_columns_of_the_plan_are_exact_and_permuted_points_cost_the_same(sizes):
    n, m, width, seed = sizes
    x, y = features(n, width, seed, "x"), features(m, width, seed, "y")
    value, plan, cost = sinkhorn_plan(x, y, eps=0.5, iterations=20)
    assert plan.shape == cost.shape == (n, m) and value.shape == () and (plan >= 0).all()
    assert torch.allclose(plan.sum(0), torch.full((m,), 1 / m, dtype=x.dtype), rtol=1e-12)
    order = at.Rng(seed, "order").permutation(n), at.Rng(seed, "other").permutation(m)
    assert torch.allclose(sinkhorn(x[order[0]], y[order[1]], eps=0.5, iterations=20), value, rtol=1e-9)


@pytest.mark.parametrize(("n", "m"), [(5, 5), (3, 6), (6, 3), (1, 4), (4, 1)])
@pytest.mark.parametrize("eps", [1.0, 0.01])
def test_alternating_log_softmax_is_the_algorithm_with_two_potentials(n, m, eps):
    x, y = features(n, 4, 1, "x").requires_grad_(), features(m, 4, 1, "y").requires_grad_()
    ours, (theirs, plan) = sinkhorn_plan(x, y, eps=eps, iterations=13), by_potentials(x, y, eps, 13)
    assert torch.allclose(ours.value, theirs, rtol=1e-10) and torch.allclose(ours.plan, plan, atol=1e-12)
    pairs = zip(torch.autograd.grad(ours.value, (x, y)), torch.autograd.grad(theirs, (x, y)), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-7, atol=1e-9) for a, b in pairs)


@pytest.mark.parametrize(("n", "m"), [(6, 6), (4, 7)])
def test_many_iterations_give_the_plan_of_pot(n, m):
    x, y = features(n, 3, 2, "x"), features(m, 3, 2, "y")
    value, plan, cost = sinkhorn_plan(x, y, eps=0.5, iterations=3000)
    reference = ot.sinkhorn(
        uniform(n), uniform(m), cost.numpy(), 0.5, method="sinkhorn_log", numItermax=20_000, stopThr=1e-14
    )
    assert torch.allclose(plan, torch.from_numpy(reference), atol=1e-10)
    assert torch.allclose(value, (torch.from_numpy(reference) * cost).sum(), rtol=1e-9)


def test_without_much_entropy_the_value_is_the_exact_cost_of_transport():
    x, y = features(7, 3, 3, "x"), features(7, 3, 3, "y")
    exact = ot.emd2(uniform(7), uniform(7), cost_matrix(x, y).numpy())
    best = min(cost_matrix(x, y)[range(7), list(order)].mean() for order in itertools.permutations(range(7)))
    assert float(best) == pytest.approx(exact, rel=1e-9)
    gaps = [float(sinkhorn(x, y, eps=eps, iterations=5000)) - exact for eps in (3.0, 1.0, 0.1)]
    assert gaps[0] > gaps[1] > gaps[2] > -1e-6 and gaps[2] < 0.02 * exact


def test_far_apart_pairs_cost_their_mean_squared_distance():
    """What the loss of Robustness-via-Synthesis amounts to where images are well separated."""
    x = 10 * torch.eye(6, dtype=torch.float64)
    y = x + 0.1 * features(6, 6, 0)
    assert torch.allclose(sinkhorn(x, y), (x - y).square().sum(1).mean(), rtol=1e-12)


def test_debiased_is_zero_for_equal_sets_and_takes_off_what_entropy_adds():
    x, y = features(6, 3, 4, "x"), features(4, 3, 4, "y")
    options = {"eps": 2.0, "iterations": 300}
    assert sinkhorn(x, x, **options) > 0.1 and sinkhorn(x, x, **options, debiased=True) == 0
    parts = [sinkhorn(a, b, **options) for a, b in ((x, y), (x, x), (y, y))]
    assert torch.equal(sinkhorn(x, y, **options, debiased=True), parts[0] - (parts[1] + parts[2]) / 2)


def test_one_point_goes_to_one_point():
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 5.0]])
    for debiased in (False, True):
        assert float(sinkhorn(x, y, debiased=debiased)) == 9.0
    assert float(sinkhorn(x, torch.cat([x, y]))) == 4.5


@pytest.mark.parametrize("debiased", [False, True])
def test_gradients_are_right_and_pass_through_all_iterations(debiased):
    x, y = features(3, 2, 5, "x").requires_grad_(), features(4, 2, 5, "y").requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: sinkhorn(a, b, eps=0.7, iterations=5, debiased=debiased), (x, y))
    assert torch.autograd.gradgradcheck(lambda a: sinkhorn(a, y.detach(), eps=0.7, iterations=2), x)
    plan = sinkhorn_plan(x, y, eps=0.7, iterations=5).plan.detach()
    held = torch.autograd.grad((plan * cost_matrix(x, y)).sum(), x)[0]
    assert not torch.allclose(held, torch.autograd.grad(sinkhorn(x, y, eps=0.7, iterations=5), x)[0], rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_points_have_a_finite_gradient(dtype):
    x = torch.ones(4, 640, dtype=dtype, requires_grad=True)
    for value in (sinkhorn(x, x.detach()), sinkhorn(x, x.detach(), debiased=True)):
        assert value == 0 and torch.equal(torch.autograd.grad(value, x)[0], torch.zeros_like(x))


@pytest.mark.parametrize(("dtype", "result"), [("float64", "float64"), ("float32", "float32"), ("bfloat16", "float32")])
def test_it_computes_in_float32_at_least_also_under_autocast(dtype, result):
    x, y = (features(5, 8, 6, name).to(getattr(torch, dtype)) for name in "xy")
    with torch.autocast("cpu", torch.bfloat16):
        value, plan, cost = sinkhorn_plan(x, y)
    assert value.dtype == plan.dtype == cost.dtype == getattr(torch, result)
    assert torch.equal(value, sinkhorn(x.to(value.dtype), y.to(value.dtype)))


def test_large_distances_neither_overflow_nor_vanish():
    x, y = 1e4 * features(5, 8, 7, "x", dtype=torch.float32), 1e4 * features(5, 8, 7, "y", dtype=torch.float32)
    value, plan, _ = sinkhorn_plan(x.requires_grad_(), y)
    assert value.isfinite() and torch.autograd.grad(value, x)[0].isfinite().all()
    assert torch.allclose(plan.sum(0), torch.full((5,), 0.2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: sinkhorn(x, x, eps=0), "eps=0 is not a number above 0"),
        (lambda x: sinkhorn(x, x, eps=-0.1), "eps=-0.1"),
        (lambda x: sinkhorn(x, x, eps=float("nan")), "eps=nan"),
        (lambda x: sinkhorn(x, x, eps="0.1"), "eps='0.1'"),
        (lambda x: sinkhorn(x, x, iterations=0), "iterations=0 is not an integer of at least 1"),
        (lambda x: sinkhorn(x, x, iterations=2.0), "iterations=2.0"),
        (lambda x: sinkhorn(x, x[:, :2]), r"y.shape=\(4, 2\) is not \(m, 3\)"),
        (lambda x: sinkhorn(x[0], x), r"x.shape=\(3,\) is not \(n, F\)"),
        (lambda x: sinkhorn(x, x[None]), r"y.shape=\(1, 4, 3\).*y.flatten\(1\)"),
        (lambda x: sinkhorn(x[:0], x), r"x.shape=\(0, 3\)"),
        (lambda x: cost_matrix(x.long(), x), r"x=torch.int64 is not a floating-point tensor of features: x.float\(\)"),
        (lambda x: cost_matrix(x, x.numpy()), "y='ndarray'"),
        (lambda x: cost_matrix(x, x.to("meta")), "y.device=.*meta.* is not cpu"),
    ],
)
def test_what_cannot_be_transported_is_refused_by_name(call, message):
    with pytest.raises(at.errors.ArgumentError, match=message):
        call(torch.zeros(4, 3))
