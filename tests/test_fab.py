"""FAB: smallest steps onto hyperplanes, the authors' iterates, closed forms, what every attack owes to its model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import advtrain as at
from advtrain import Rng, Threat
from advtrain.attacks.fab import _boundary, _move, _nearest_boundary, _Walk, fab, run_fab
from advtrain.attacks.hyperplane import project_l2, project_linf
from advtrain.attacks.pursuit import Passes
from advtrain.errors import ArgumentError, DataError, ModelError

LINF, L2 = Threat("linf", 0.1), Threat("l2", 0.5)
PROJECT = {"linf": project_linf, "l2": project_l2}
NAMES = {"linf": "Linf", "l2": "L2"}


def images(seed=0, n=16, shape=(1, 6, 6), dtype=torch.float32):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def smooth(seed=0, classes=6, shape=(1, 6, 6), dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        size = shape[1] * shape[2]
        parts = nn.Conv2d(shape[0], 6, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(6 * size, classes)
    net = nn.Sequential(*parts).to(dtype)
    with torch.no_grad():  # no class ahead of the others: boundaries are near
        net[-1].bias -= net(images(seed + 1, 50, shape, dtype)).mean(0)
    return net


def linear(seed=0, classes=2, size=36, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(size, classes)).to(dtype)


def length(delta, norm):
    return delta.flatten(1).abs().amax(1) if norm == "linf" else delta.flatten(1).norm(dim=1)


# --- onto a hyperplane, inside the box ------------------------------------------------------------------------------


def problem(seed, rows=8, n=12, dtype=torch.float64, reach=1.2, scale=1.0):
    """Points, some pixels of them on the box; normals with some zeros; offsets that most hyperplanes reach."""
    rng = Rng(seed, "hyperplane")
    t, w, far = rng.uniform(torch.empty(rows, n, dtype=dtype), 0, 1), rng.normal(torch.empty(rows, n, dtype=dtype)), 0
    t = torch.where(rng.uniform(t, 0, 1) < 0.3, t.round(), t)
    w = torch.where(rng.uniform(w, 0, 1) < 0.2, torch.zeros_like(w), w * scale)
    sign = torch.where(rng.uniform(t[:, :1], 0, 1) < 0.5, -1.0, 1.0).to(dtype)
    far = torch.where(w * sign > 0, 1 - t, -t)  # as far as the box allows, up or down
    share = rng.uniform(t[:, 0], 0, reach)
    return t, w, (w * t).sum(1) + share * (w * far).sum(1), share


def bisected(t, w, b, norm):
    """The same step found without sorting: halve the interval that holds the multiplier, a hundred times."""
    gap = b - (w * t).sum(1)
    direction = w.sign() * gap.sign()[:, None]
    allowed = torch.where(direction > 0, 1 - t, t)
    pull = torch.ones_like(w) if norm == "linf" else w.abs()

    def step(multiplier):
        return direction * torch.minimum(multiplier[:, None] * pull, allowed)

    low, high = torch.zeros_like(gap), torch.full_like(gap, 1e6)
    for _ in range(100):
        middle = (low + high) / 2
        short = (w * step(middle)).sum(1).abs() < gap.abs()
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return step(high)


@given(st.integers(0, 10**6), st.sampled_from(["linf", "l2"]), st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_a_step_is_the_one_that_bisection_finds(seed, norm, n):
    t, w, b, _ = problem(seed, n=n)
    torch.testing.assert_close(PROJECT[norm](t, w, b), bisected(t, w, b, norm), rtol=1e-9, atol=1e-9)


@given(st.integers(0, 10**6), st.sampled_from(["linf", "l2"]), st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_a_step_ends_in_the_box_on_the_hyperplane_if_it_can_and_no_shorter_one_does(seed, norm, n):
    t, w, b, share = problem(seed, n=n)
    d = PROJECT[norm](t, w, b)
    assert ((t + d >= -1e-15) & (t + d <= 1 + 1e-15)).all() and (d[w == 0] == 0).all()
    # out of reach, the farthest the box allows: share 1 of the way
    rest = b - (w * (t + d)).sum(1)
    torch.testing.assert_close(rest, (1 - 1 / share.clamp(min=1)) * (b - (w * t).sum(1)), rtol=1e-9, atol=1e-9)
    # any other point z of the box on the hyperplane: the best direction is that of d, so compare with feasible ones
    rng = Rng(seed, "others")
    for _ in range(5):
        z = rng.uniform(t, 0, 1)
        sides = (w * z).sum(1) - b, (w * (t + d)).sum(1) - b
        corner = torch.where((w > 0) == (sides[0][:, None] < 0), 1.0, 0.0).to(t)  # on the other side, if one is
        other = (w * corner).sum(1) - b
        part = (sides[0] / (sides[0] - other)).nan_to_num(0.0)[:, None]
        on_plane = z + part * (corner - z)
        feasible = (share <= 1) & ((w * on_plane).sum(1) - b).abs().lt(1e-9) & (part[:, 0] >= 0) & (part[:, 0] <= 1)
        assert (length(on_plane - t, norm) >= length(d, norm) - 1e-9)[feasible].all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("n", [1, 2, 64, 3072])
def test_a_step_is_that_of_the_authors_code(norm, n):
    theirs = pytest.importorskip("pyautoattack.fab_projections")
    t, w, b, _ = problem(n, rows=20, n=n, dtype=torch.float32, reach=0.9)
    expected = {"linf": theirs.projection_linf, "l2": theirs.projection_l2}[norm](t, w, b)
    torch.testing.assert_close(PROJECT[norm](t, w, b), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_the_scale_of_the_normal_does_not_matter(norm, scale):
    """Not even where the squares of the weights leave the range of float32."""
    t, w, b, _ = problem(3, dtype=torch.float64, reach=0.9)
    expected = PROJECT[norm](t, w, b)
    d = PROJECT[norm](t.float(), (w * scale).float(), (b * scale).float())
    torch.testing.assert_close(d.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_normal_of_zero_or_a_hyperplane_at_infinity_gives_finite_steps(norm):
    t = images(n=3, shape=(1, 1, 5)).flatten(1)
    w = torch.tensor([[0.0] * 5, [1.0] * 5, [1e-5, 1e5, 0.0, -1e-5, 1.0]])
    d = PROJECT[norm](t, w, torch.tensor([1.0, torch.inf, torch.inf]))
    assert d.isfinite().all() and (d[0] == 0).all()
    torch.testing.assert_close(t[1] + d[1], torch.ones(5))
    torch.testing.assert_close(t[2, :3] + d[2, :3], torch.tensor([1.0, 1.0, t[2, 2]]))
    assert (PROJECT[norm](t, w, (w * t).sum(1)) == 0).all()  # on the hyperplane already


def test_the_box_may_be_smaller():
    t = torch.tensor([[0.3, 0.5]])
    d = project_linf(t, torch.ones(1, 2), torch.tensor([5.0]), low=0.2, high=0.6)
    torch.testing.assert_close(t + d, torch.full((1, 2), 0.6))


class _NoWaiting(TorchDispatchMode):
    """Refuses the operations for which a GPU's answer would have to be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero"}
        assert not any(isinstance(a, (list, tuple)) and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in a
        ) for a in args)  # fmt: skip
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("threat", [LINF, L2])
def test_a_step_waits_for_no_device(threat):
    x, net = images(), smooth()
    y = net(x).argmax(1)
    walk, passes = _Walk(x, y, (y + 1) % 6, x), Passes(net)
    threat.into_box(x)  # keeps the bounds in mind
    with _NoWaiting():
        for normal, gap, _ in (
            _boundary(passes, x, y, walk.target), _nearest_boundary(passes, x, y, threat.norm)
        ):  # fmt: skip
            moved = _move(walk, normal, gap, threat, 0.1, 1.05)
    assert (moved != x).any()


# --- the attack -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targeted, alpha_max", [(False, 0.1), (True, 0.1), (True, 0.02)])
def test_the_points_are_those_of_the_authors_code(norm, targeted, alpha_max):
    """Every point at which either asks the model, over 15 steps: nothing is broken inside so small a radius."""
    theirs = pytest.importorskip("pyautoattack.fab_pt")
    net, x = smooth(1), images(1, n=12)
    y = net(x).argmax(1)

    def points(work):
        seen = []
        hook = net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
        work()
        hook.remove()
        return seen

    oracle = theirs.FABAttack_PT(
        net, norm=NAMES[norm], n_iter=15, eps=1e-4, targeted=targeted, device="cpu", alpha_max=alpha_max
    )
    oracle.target_class = 3
    target = net(x).argsort(1)[:, -3] if targeted else None
    expected = points(lambda: oracle.attack_single_run(x, y, is_targeted=targeted))[2 if targeted else 1 :]
    options = {"target": target, "steps": 15, "alpha_max": alpha_max}
    ours = points(lambda: run_fab(Passes(net), x, y, Threat(norm, 1e-4), **options))
    assert len(ours) == len(expected) == 30
    moved = [length(b - a, norm).max() for a, b in zip(ours[:-1], ours[1:], strict=True)]
    assert max(moved) > 0.02  # far more than the tolerance
    for point, same in zip(ours, expected, strict=True):
        torch.testing.assert_close(point, same, rtol=0, atol=2e-5)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targeted", [False, True])
def test_on_a_linear_model_it_succeeds_from_the_distance_of_the_boundary_on(classes, norm, targeted):
    """The distance is known. Overshooting and going back, steps end up to 1.5 % beyond it, never before."""
    net, x = linear(classes, classes), 0.4 + 0.2 * images(classes, n=5, dtype=torch.float64)
    with torch.no_grad():
        net[1].bias.copy_(-net(torch.full_like(x[:1], 0.5))[0] + net[1].bias)  # grey is on all boundaries
        z = net(x)
    y, w = z.argmax(1), net[1].weight.detach()
    others = w[None] - w[y][:, None]
    size = others.abs().sum(2) if norm == "linf" else others.norm(dim=2)
    distance, target = ((z.gather(1, y[:, None]) - z) / size).scatter(1, y[:, None], torch.inf).min(1)
    target = target if targeted else None
    passes = Passes(net)
    for i in range(5):
        one = slice(i, i + 1)
        goal = None if target is None else target[one]
        for factor, found in ((0.999, False), (1.015, True)):
            threat = Threat(norm, float(distance[i]) * factor)
            hunt = run_fab(passes, x[one], y[one], threat, target=goal, steps=30)
            assert bool(hunt.broken) is found
            assert bool(threat.contains(hunt.x_adv, x[one])) and bool(net(hunt.x_adv).argmax(1) != y[one]) is found


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_point_that_rounding_puts_outside_is_drawn_in(norm):
    """The first step goes 1.05 times as far as the boundary of a linear model; the radius ends a hair before that."""
    net, x = linear(), 0.4 + 0.2 * images(n=1, dtype=torch.float64)
    y, w = net(x).argmax(1), net[1].weight[0] - net[1].weight[1]
    distance = (net(x)[0, 0] - net(x)[0, 1]).abs() / (w.abs().sum() if norm == "linf" else w.norm())
    threat = Threat(norm, distance.item() * 1.05 * (1 - 5e-6))
    hunt = run_fab(Passes(net), x, y, threat, steps=1)
    assert hunt.broken.all() and threat.contains(hunt.x_adv, x).all()
    assert not run_fab(Passes(net), x, y, Threat(norm, threat.eps * 0.999), steps=1).broken.any()


@pytest.mark.parametrize("norm, eps", [("linf", 0.12), ("l2", 0.6)])
def test_on_a_trained_network_the_verdict_is_that_of_the_authors_code(norm, eps):
    theirs = pytest.importorskip("pyautoattack.fab_pt")
    data, threat = at.load_data("digits"), Threat(norm, eps)
    net = at.build_model("small-cnn", data, width=4)
    net = at.fit(net, at.defenses.FastAT(threat), data, epochs=4, validate_every=0).model.eval()
    x, y = data.test.images()[:60], data.test.y[:60]
    right = net(x).argmax(1) == y
    x, y = x[right], y[right]
    with torch.random.fork_rng():
        oracle = theirs.FABAttack_PT(
            net, norm=NAMES[norm], n_iter=20, eps=eps, targeted=True, n_target_classes=3, device="cpu"
        )
        expected = net(oracle.perturb(x, y)).argmax(1) != y
    image = torch.arange(len(x)).repeat_interleave(3)
    target = net(x).argsort(1, descending=True)[:, 1:4].flatten()
    with at.attacking(net):
        hunt = run_fab(Passes(net), x[image], y[image], threat, target=target, image=image, steps=20)
    broken = hunt.broken.view(-1, 3).any(1)
    assert 5 < expected.sum() < len(x) - 5
    assert (broken != expected).sum() <= 1  # one for rounding


@pytest.mark.parametrize("threat", [Threat("linf", 0.03), Threat("l2", 0.15)])
def test_what_it_returns_is_misclassified_or_the_image_itself(threat):
    net, x = smooth(3, dtype=torch.float64), images(3, n=40, dtype=torch.float64)
    y = net(x).argmax(1)
    y[:3] = (y[:3] + 1) % 6  # wrong from the beginning: the image is its own adversarial example
    x_adv = fab(net, x, y, threat, steps=20)
    broken, same = net(x_adv).argmax(1) != y, (x_adv == x).flatten(1).all(1)
    assert 5 < broken.sum() < 40 and torch.equal(broken[3:], ~same[3:])
    assert broken[:3].all() and same[:3].all()


def test_restarts_go_on_where_the_first_run_failed():
    net, x = smooth(5), images(5, n=40)
    y, threat = net(x).argmax(1), Threat("linf", 0.02)
    stands = [net(fab(net, x, y, threat, steps=3, restarts=r, rng=1)).argmax(1) == y for r in (1, 4)]
    assert (stands[1] <= stands[0]).all() and 0 < stands[1].sum() < 40


@pytest.mark.parametrize("threat", [Threat("linf", 1e-3), Threat("l2", 1e-3)])
def test_the_first_run_begins_at_the_image_and_the_others_at_half_the_radius(threat):
    net, x, seen = smooth(dtype=torch.float64), 0.3 + 0.4 * images(dtype=torch.float64), []
    y = net(x).argmax(1)
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    for restarts, seed in ((3, 7), (2, 7), (2, 8)):
        fab(net, x, y, threat, steps=1, restarts=restarts, rng=seed, check=False)
    starts = seen[::2]
    assert len(seen) == 14 and torch.equal(starts[0], x)
    torch.testing.assert_close(length(starts[1] - x, threat.norm), torch.full((16,), 5e-4).double(), rtol=1e-5, atol=0)
    assert torch.equal(starts[1], starts[4])  # the same however many follow
    assert not torch.equal(starts[1], starts[2]) and not torch.equal(starts[1], starts[6])


def test_rows_of_one_image_end_when_the_first_succeeds():
    net, x = smooth(2), images(2, n=20)
    y = net(x).argmax(1)
    threat, image = Threat("linf", 0.04), torch.arange(20).repeat_interleave(3)
    target = net(x).argsort(1, descending=True)[:, 1:4].flatten()
    passes, alone = Passes(net), Passes(net)
    hunt = run_fab(passes, x[image], y[image], threat, target=target, image=image, steps=20)
    run_fab(alone, x[image], y[image], threat, target=target, steps=20)
    assert passes.gradients < alone.gradients
    ends = hunt.broken.view(20, 3).any(1)
    assert 0 < ends.sum() and not set(hunt.image[hunt.rows].tolist()) & set(ends.nonzero().flatten().tolist())


def test_a_step_costs_one_gradient_and_one_query():
    net, x = smooth(), images()
    y = net(x).argmax(1)
    for target, gradients in (((y + 1) % 6, 1), (None, 5)):  # without a target a backward pass for each other class
        passes = Passes(net)
        run_fab(passes, x, y, Threat("linf", 1e-4), target=target, steps=7)
        assert (passes.queries, passes.gradients) == (7 * 16, 7 * 16 * gradients)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("threat", [LINF, L2])
def test_of_a_model_without_a_gradient_every_image_stays_as_it_is(threat, targeted):
    class Flat(nn.Module):
        def forward(self, x):
            return 5 * torch.eye(3)[torch.zeros(len(x)).long()] + 0 * x.flatten(1).sum(1, keepdim=True)

    x, y = images(n=4), torch.zeros(4, dtype=torch.long)
    x_adv = fab(Flat(), x, y, threat, steps=3, restarts=2, target=torch.ones_like(y) if targeted else None)
    assert torch.equal(x_adv, x)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pixels_without_a_gradient_are_left_out(norm, targeted):
    class Cliff(nn.Module):
        def forward(self, x):  # the root of a black pixel has no slope
            return net(x) + 0 * x[:, 0, 0].sqrt().sum(1, keepdim=True)

    net, x = linear(dtype=torch.float32), images(n=1)
    x[:, :, 0] = 0
    y = net(x).argmax(1)
    x_adv = fab(Cliff(), x, y, Threat(norm, 1.0), steps=5, target=1 - y if targeted else None)
    assert net(x_adv).argmax(1) != y and (x_adv[:, :, 0] == 0).all() and x_adv.isfinite().all()


@pytest.mark.parametrize("threat", [LINF, L2])
def test_logits_that_are_not_finite_leave_the_point_finite(threat):
    x, gap = images(n=4), torch.tensor([torch.nan, torch.inf, -torch.inf, 0.1])
    moved = _move(_Walk(x, gap, None, x), images(1, n=4) - 0.5, gap, threat, 0.1, 1.05)
    torch.testing.assert_close(moved[0], x[0])  # no gap is known: it stays
    assert moved.isfinite().all() and ((moved - x)[1:].abs().flatten(1).amax(1) > 1e-3).all()


@pytest.mark.parametrize("targeted", [False, True])
def test_of_a_model_that_answers_at_random_the_gradient_is_a_mean(targeted):
    nets, x, y = [smooth(1, classes=2), smooth(2, classes=2)], images(), torch.zeros(16, dtype=torch.long)

    class Changing(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return nets[self.calls % 2](x)

    def normal(net, eot):
        passes = Passes(net, eot=eot)
        return (_boundary(passes, x, y, y + 1) if targeted else _nearest_boundary(passes, x, y, "l2"))[0]

    torch.testing.assert_close(normal(Changing(), 2), (normal(nets[0], 1) + normal(nets[1], 1)) / 2)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"steps": 0}, ArgumentError, "steps=0"),
        ({"restarts": 0}, ArgumentError, "restarts=0"),
        ({"rng": "seed"}, ArgumentError, "rng="),
        ({"threat": 0.1}, ArgumentError, "threat=0.1"),
        ({"x": images() * 255}, DataError, "divide by 255"),
        ({"y": torch.full((16,), 10)}, DataError, "inside 0..5"),
        ({"target": torch.full((16,), 11)}, DataError, "target"),
        ({"model": nn.Sequential(smooth(), nn.Softmax(1))}, ModelError, "probabilities"),
    ],
)
def test_bad_input_is_refused_before_the_first_gradient(change, error, message):
    given = {"model": smooth(), "x": images(), "y": torch.arange(16) % 6, "threat": LINF, **change}
    options = {key: value for key, value in given.items() if key not in ("model", "x", "y", "threat")}
    with pytest.raises(error, match=message):
        fab(given["model"], given["x"], given["y"], given["threat"], **options)
