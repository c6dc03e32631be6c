"""Square Attack: as strong as its authors', inside the threat, and the same for an image in any batch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import advtrain as at
from advtrain.attacks.losses import cw_margin
from advtrain.attacks.pursuit import Passes
from advtrain.attacks.square import _Linf, run_square, square
from advtrain.attacks.squares import draw_squares, side_of_square

THREATS = [at.Threat("linf", 0.1), at.Threat("l2", 0.5)]


def batch(seed: int = 0, n: int = 8, shape=(1, 8, 8), classes: int = 3, dtype=torch.float64):
    rng = at.Rng(seed, "batch")
    return rng.uniform(torch.empty(n, *shape, dtype=dtype), 0, 1), rng.integers(0, classes, (n,))


def net(seed: int = 0, shape=(1, 8, 8), classes: int = 3, dtype=torch.float64) -> nn.Module:
    channels, height, width = shape
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.3), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(4 * height * width, classes)).to(dtype)


def linear(seed: int = 0, pixels: int = 16, classes: int = 2) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes)).double()
    model[1].bias.data = -0.5 * model[1].weight.data.sum(1)  # grey is on the border
    return model


def margin(model: nn.Module, x, y):
    """z_y - max of the others, positive where the answer is right."""
    with at.attacking(model), torch.no_grad():
        return -cw_margin(model(x), y)


def answers(model: nn.Module, x):
    with at.attacking(model), torch.no_grad():
        return model(x).argmax(1)


class Counting(nn.Module):
    """Counts the images of every pass."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, x):
        self.seen.append(len(x))
        return self.model(x)


def run(model, x, y, threat, *, index=None, queries=100, seed=0, passes=None):
    index = torch.arange(len(x)) if index is None else index
    with at.attacking(model):
        return run_square(passes or Passes(model), x, y, threat, index=index, rng=at.Rng(seed), queries=queries)


@torch.no_grad()
def test_under_linf_it_ends_at_the_optimum_of_a_linear_model():
    """When its squares are single pixels it tries each of them up and down: the margin falls by ε‖w‖₁, the most."""
    model, (x, _) = linear(), batch(shape=(1, 4, 4), n=40)
    x = 0.25 + 0.5 * x
    y = answers(model, x)
    length = (model[1].weight[0] - model[1].weight[1]).abs().sum()
    threat = at.Threat("linf", float(margin(model, x, y).median() / length))
    x_adv = square(model, x, y, threat, queries=1000)
    fall = threat.eps * length
    stands = margin(model, x, y) > fall
    assert threat.eps < 0.25 and torch.equal(answers(model, x_adv) == y, stands)
    assert torch.allclose((margin(model, x, y) - margin(model, x_adv, y))[stands], fall, rtol=1e-6)


@torch.no_grad()
def test_under_l2_it_breaks_a_linear_model_within_a_factor_of_the_distance_and_never_beyond_it():
    model, (x, _) = linear(pixels=64), batch(n=60)
    x = 0.25 + 0.5 * x
    y = answers(model, x)
    distance = margin(model, x, y) / (model[1].weight[0] - model[1].weight[1]).norm()
    threat = at.Threat("l2", float(distance.median()))
    broken = answers(model, square(model, x, y, threat, queries=600)) != y
    assert broken[1.5 * distance < threat.eps].all() and not broken[distance > threat.eps].any()


@pytest.mark.parametrize("threat", [at.Threat("linf", 0.3), at.Threat("l2", 2.0)], ids=str)
def test_it_needs_no_gradient(threat):
    """A model that rounds its pixels under `torch.no_grad`: attacks by gradients are blind to it."""

    class Rounding(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear(pixels=64)

        @torch.no_grad()
        def forward(self, x):
            return self.inner((10 * x).round() / 10)

    model, (x, _) = Rounding(), batch(n=20)
    y = answers(model, x)
    x_adv = square(model, x, y, threat, queries=200)
    assert (answers(model, x_adv) != y).double().mean() > 0.9 and threat.contains(x_adv, x).all()


@pytest.fixture(scope="module")
def digits():
    """A net trained for a moment, and 120 images that it classifies correctly."""
    data = at.load_data("digits", val=0)
    model = at.build_model("small-cnn", data, width=8)
    fast = at.defenses.FastAT(at.Threat("linf", 0.2))
    at.fit(model, fast, data, epochs=4, validate_every=0, progress=False, device="cpu")
    x, y = data.test.images(), data.test.y
    right = (answers(model, x) == y).nonzero().squeeze(1)[:120]
    return model, x[right], y[right]


@pytest.mark.parametrize(("threat", "name"), [(at.Threat("linf", 0.15), "Linf"), (at.Threat("l2", 0.9), "L2")], ids=str)
def test_it_breaks_as_many_images_as_the_authors_code(digits, threat, name):
    """Over three seeds, at 300 queries: no fewer, but for chance."""
    oracle = pytest.importorskip("pyautoattack.square")
    model, x, y = digits
    ours, theirs = [], []
    for seed in range(3):
        ours.append(int(run(model, x, y, threat, queries=300, seed=seed).broken.sum()))
        attack = oracle.SquareAttack(
            model, norm=name, n_queries=300, eps=threat.eps, seed=seed, resc_schedule=False, device="cpu"
        )
        with torch.random.fork_rng():
            theirs.append(int((answers(model, attack.perturb(x.clone(), y.clone())) != y).sum()))
    assert 12 < sum(theirs) / 3 < 108  # neither all nor none
    assert sum(ours) > sum(theirs) - 2 * math.sqrt(sum(theirs)), (ours, theirs)


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_more_queries_never_raise_the_margin_nor_lose_an_image(threat):
    model, (x, _) = net(1), batch(1, n=30)
    y = answers(model, x)
    few, many = (run(model, x, y, threat, queries=queries) for queries in (150, 300))
    assert few.broken.any() and not few.broken.all() and not (few.broken & ~many.broken).any()
    assert torch.equal(few.x_adv[few.broken], many.x_adv[few.broken])  # the first queries are the same
    stands = ~many.broken
    assert (margin(model, many.x_adv, y) <= margin(model, few.x_adv, y) + 1e-9)[stands].all()
    assert (margin(model, few.x_adv, y) <= margin(model, x, y))[stands].all()


@given(
    st.integers(0, 10**6), st.sampled_from(["linf", "l2"]), st.floats(0.001, 0.9), st.sampled_from([1, 2, 3]),
    st.tuples(st.integers(1, 11), st.integers(1, 11)), st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_candidates_of_any_shape_are_inside_to_the_last_bit(seed, norm, eps, channels, sides, dtype):
    """Also where the first squares do not fit into the image, and where it is one pixel wide."""
    shape, threat = (channels, *sides), at.Threat(norm, eps)
    model, (x, _) = net(seed, shape, dtype=dtype), batch(seed, 4, shape, dtype=dtype)
    y = answers(model, x)
    x_adv = square(model, x, y, threat, queries=15, rng=seed, check=False)
    assert threat.contains(x_adv, x).all() and x_adv.shape == x.shape and x_adv.dtype == dtype


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_every_candidate_is_inside_and_uses_the_whole_radius(threat):
    """Nothing outside is ever asked for. Far from the pixel box every candidate is on the sphere."""

    class Looking(nn.Module):
        def forward(self, images):
            seen.append(images.clone())
            return torch.stack([10 + images[:, 0, ::2].mean((1, 2)), images[:, 0, 1::2].mean((1, 2))], dim=1)

    for grey in (0.5, 0.02):
        seen, x = [], torch.full((1, 3, 8, 8), grey, dtype=torch.float64)
        run(Looking(), x, torch.tensor([0]), threat, queries=300)
        candidates = torch.cat(seen)
        assert threat.contains(candidates, x).all() and len(candidates) > 100
        if grey == 0.5:
            change = (candidates - x).flatten(1)
            size = change.norm(dim=1) if threat.norm == "l2" else change.abs().amin(1)
            assert torch.allclose(size, torch.full_like(size, threat.eps), rtol=1e-5)


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_an_image_fares_the_same_in_any_batch_and_in_any_order(threat):
    model, (x, _) = net(2), batch(2, n=12)
    y, index = answers(model, x), torch.arange(100, 112)
    whole = run(model, x, y, threat, index=index)
    assert whole.broken.any() and not whole.broken.all()
    order = at.Rng(0).permutation(12)
    for parts in (order[:, None], order.split(5), [order]):
        for part in parts:
            found = run(model, x[part], y[part], threat, index=index[part])
            assert torch.equal(found.broken, whole.broken[part])
            assert torch.allclose(found.x_adv, whole.x_adv[part], atol=1e-9)


def test_another_seed_is_another_search():
    model, (x, _) = net(2), batch(2)
    y = answers(model, x)
    first, again, other = (square(model, x, y, THREATS[0], queries=20, rng=seed) for seed in (0, at.Rng(0), 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_image_that_is_misclassified_costs_one_query_and_stays():
    model, (x, _) = net(4), batch(4, n=6)
    y = answers(model, x)
    wrong = torch.tensor([1, 4])
    y[wrong] = (y[wrong] + 1) % 3
    counting = Counting(model)
    x_adv = square(counting, x, y, at.Threat("linf", 1e-6), queries=10, check=False)
    assert torch.equal(x_adv[wrong], x[wrong]) and counting.seen[0] == 6 and max(counting.seen[1:]) == 4
    counting.seen.clear()
    assert torch.equal(square(counting, x[wrong], y[wrong], THREATS[0], check=False), x[wrong]) and counting.seen == [2]


def test_broken_images_leave_the_batch():
    model, (x, _) = net(5), batch(5, n=30)
    y = answers(model, x)
    counting = Counting(model)
    found = run(counting, x, y, THREATS[1], queries=60)
    # Under ℓ2 every row asks every time: what is left at the end passes through the model last.
    assert found.broken.any() and counting.seen[0] == 30 and int((~found.broken).sum()) == len(found) < 30
    assert counting.seen[-1] <= 30 - int(found.broken.sum()) + 1


def test_an_answer_that_is_known_is_not_asked_for_again_and_nothing_changes(monkeypatch):
    model, (x, _) = net(6), batch(6, n=12)
    y, threat = answers(model, x), at.Threat("linf", 0.06)
    thrifty = Passes(model)
    found = run(model, x, y, threat, queries=1200, passes=thrifty)
    begin = _Linf.begin.__func__

    def wasteful_start(cls, *arguments):
        state = begin(cls, *arguments)
        state.thrifty = False  # as on a GPU
        return state

    monkeypatch.setattr(_Linf, "begin", classmethod(wasteful_start))
    wasteful = Passes(model)
    same = run(model, x, y, threat, queries=1200, passes=wasteful)
    assert not found.broken.all() and torch.equal(found.broken, same.broken)
    assert torch.allclose(found.x_adv, same.x_adv, atol=1e-12)
    assert thrifty.queries < 0.6 * wasteful.queries


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_a_hit_that_full_precision_does_not_confirm_goes_on(threat):
    class Doubting(Passes):
        def wrong(self, x, y):
            return torch.zeros_like(y, dtype=torch.bool)

    model, (x, _) = net(5), batch(5, n=10)
    y = answers(model, x)
    assert run(model, x, y, threat).broken.any()
    found = run(model, x, y, threat, passes=Doubting(model))
    assert not found.broken.any() and len(found) == 10 and threat.contains(found.x_adv, x).all()
    assert (margin(model, found.x_adv, y) < 0).any()


def test_squares_shrink_by_the_schedule_of_the_paper():
    """On CIFAR-10 with p = 0.8: from 29 pixels down to 3 within 5,000 queries, and to 1 within 10,000."""
    sides = [side_of_square(query, 32, 32, "linf") for query in range(10_000)]
    steps = (0, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)
    assert [sides[step] for step in steps] == [29, 20, 14, 10, 7, 5, 4, 3, 2, 1]
    assert all(sides[step] <= sides[step - 1] for step in range(1, len(sides)))
    assert sides[10] == 29 and sides[50] == 20 and sides[8000] == 2
    assert [side_of_square(query, 32, 32, "l2") for query in (0, 20, 60, 9000)] == [29, 21, 15, 3]
    assert side_of_square(0, 3, 100, "linf") == 3 and side_of_square(5000, 28, 28, "l2") == 3


def test_squares_reach_every_place_of_the_image():
    places = {
        (draw.window[2].start, draw.window[3].start)
        for draw in draw_squares(at.Rng(0), torch.empty(1, 1, 6, 4), "linf", 2000, 0.05)
        if draw.query > 10
    }
    assert places == {(row, column) for row in range(6) for column in range(4)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"queries": 0}, at.errors.ArgumentError, "queries=0"),
        ({"p_init": 0.0}, at.errors.ArgumentError, "p_init=0.0"),
        ({"p_init": 1.5}, at.errors.ArgumentError, "p_init=1.5"),
        ({"rng": torch.Generator()}, at.errors.ArgumentError, "rng"),
        ({"threat": 0.1}, at.errors.ArgumentError, "Threat"),
        ({"x": 255 * torch.rand(8, 1, 8, 8)}, at.errors.DataError, "255"),
        ({"y": torch.full((8,), 7)}, at.errors.DataError, "7"),
    ],
)
def test_what_would_be_meaningless_is_refused(change, error, message):
    x, y = batch()
    arguments = {"x": x, "y": y, "threat": THREATS[0], **change}
    with pytest.raises(error, match=message):
        square(net(), **arguments)
