"""Auto-PGD: the authors' iterates, closed forms, and what every attack owes to its model."""

import logging

import pytest
import torch
from torch import nn

from advtrain import Rng, Threat
from advtrain.attacks import apgd, cross_entropy, cw_margin, fab
from advtrain.attacks.apgd import run_apgd, sphere_start
from advtrain.attacks.losses import objective
from advtrain.attacks.pursuit import Passes
from advtrain.errors import ArgumentError, DataError, ModelError

LINF, L2 = Threat("linf", 0.1), Threat("l2", 0.5)


def images(seed=0, n=16, shape=(1, 6, 6), dtype=torch.float32):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def smooth(seed=0, classes=10, shape=(1, 6, 6), dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        size = shape[1] * shape[2]
        parts = nn.Conv2d(shape[0], 6, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(6 * size, classes)
        return nn.Sequential(*parts).to(dtype)


def linear(seed=0, classes=2, size=36, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(size, classes)).to(dtype)


@pytest.mark.parametrize("norm, eps", [("linf", 0.02), ("l2", 0.05)])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_the_points_of_largest_loss_are_those_of_the_authors_code(norm, eps, loss):
    """The oracle starts from our random start. A hundred steps, all checkpoints, in float32."""
    theirs = pytest.importorskip("pyautoattack.autopgd_base")
    x, net, threat = images(n=40), smooth(), Threat(norm, eps)
    y = net(x).argmax(1)
    start = sphere_start(x, threat, Rng(0), torch.arange(40))
    names = {"linf": "Linf", "l2": "L2"}
    oracle = theirs.APGDAttack(
        net, n_iter=100, norm=names[norm], eps=eps, loss=loss, device="cpu", logger=logging.getLogger("oracle")
    )
    oracle.init_hyperparam(x)
    _, stands, largest, _ = oracle.attack_single_run(x, y, x_init=start)
    ascent = objective(loss, targeted=False)
    hunt = run_apgd(Passes(net), x, y, threat, ascent, start)
    assert torch.equal(hunt.broken, ~stands) and stands.sum() > 20
    ours = ascent(net(hunt.x_adv), y, None)
    torch.testing.assert_close(ours[stands], largest[stands], rtol=1e-3, atol=2e-4 if norm == "l2" else 2e-6)


@pytest.mark.parametrize("loss", ["ce", "cw"])
def test_on_a_linear_model_it_reaches_the_closed_form_optimum(loss):
    """Two classes under ℓ∞: every pixel to the end of its room against the difference of the weights."""
    net, x = linear(), images(dtype=torch.float64)
    y = net(x).argmax(1)
    ours = apgd(net, x, y, LINF, loss=loss)
    w = net[1].weight[1] - net[1].weight[0]
    direction = (w * (1 - 2 * y[:, None])).view_as(x).sign()
    optimum = LINF.project(x + 2 * LINF.eps * direction, x)
    margin, best = cw_margin(net(ours), y), cw_margin(net(optimum), y)
    broken = best > 0
    assert ((margin > 0) == broken).all()
    torch.testing.assert_close(margin[~broken], best[~broken], rtol=1e-9, atol=1e-9)


def test_under_l2_a_linear_model_away_from_the_box_gives_the_unit_gradient():
    net, x = linear(), 0.4 + 0.2 * images(dtype=torch.float64)
    y = net(x).argmax(1)
    threat = Threat("l2", 0.05)
    w = (net[1].weight[1] - net[1].weight[0]).detach()
    best = cw_margin(net(x), y) + threat.eps * w.norm()
    margin = cw_margin(net(apgd(net, x, y, threat, loss="cw")), y)
    assert ((margin > 0) == (best > 0)).all()
    torch.testing.assert_close(margin[best <= 0], best[best <= 0], rtol=1e-4, atol=1e-6)


def test_broken_images_are_misclassified_and_the_others_have_a_larger_loss():
    net, x = smooth(3, dtype=torch.float64), images(3, n=30, dtype=torch.float64)
    y = net(x).argmax(1)
    x_adv = apgd(net, x, y, Threat("linf", 0.03))
    broken = net(x_adv).argmax(1) != y
    assert 0 < broken.sum() < 30
    assert (cross_entropy(net(x_adv), y) > cross_entropy(net(x), y)).all()


def test_starts_belong_to_the_image_and_not_to_the_batch():
    x = images(n=12, dtype=torch.float64)
    start = sphere_start(x, LINF, Rng(7), torch.arange(12))
    part = sphere_start(x[5:9], LINF, Rng(7), torch.arange(5, 9))
    assert torch.equal(start[5:9], part)
    assert not torch.equal(start, sphere_start(x, LINF, Rng(8), torch.arange(12)))


@pytest.mark.parametrize("threat", [LINF, L2])
def test_starts_are_on_the_sphere_where_the_box_allows(threat):
    x = torch.full((8, 1, 6, 6), 0.5, dtype=torch.float64)
    delta = (sphere_start(x, threat, Rng(0), torch.arange(8)) - x).flatten(1)
    size = delta.abs().amax(1) if threat.norm == "linf" else delta.norm(dim=1)
    torch.testing.assert_close(size, torch.full_like(size, threat.eps), rtol=2e-6, atol=0)


def test_rows_of_one_image_end_when_the_first_succeeds():
    net, x = smooth(2), images(2, n=20)
    y = net(x).argmax(1)
    threat = Threat("linf", 0.04)
    image = torch.arange(20).repeat_interleave(3)
    target = net(x).argsort(1, descending=True)[:, 1:4].flatten()
    ascent, start = objective("dlr", targeted=True), sphere_start(x, threat, Rng(0), torch.arange(20))[image]
    passes, alone = Passes(net), Passes(net)
    hunt = run_apgd(passes, x[image], y[image], threat, ascent, start, target=target, image=image)
    run_apgd(alone, x[image], y[image], threat, ascent, start, target=target)
    assert passes.gradients < alone.gradients
    ends = hunt.broken.view(20, 3)
    assert 0 < ends.any(1).sum() and not set(hunt.image[hunt.rows].tolist()) & set(ends.any(1).nonzero().flatten())


def test_a_gradient_averaged_over_passes_breaks_a_model_that_answers_at_random():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.calls = smooth(4), 0

        def forward(self, x):
            self.calls += 1
            noise = 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(self.calls))
            return self.net(x + noise)

    x = images(4, n=30)
    y = smooth(4)(x).argmax(1)
    threat, broken = Threat("linf", 0.03), []
    for eot in (1, 20):
        net = Noisy()
        x_adv = apgd(net, x, y, threat, steps=20, eot=eot)
        broken.append(int((smooth(4)(x_adv).argmax(1) != y).sum()))
        assert net.calls >= 20 * eot
    assert broken[1] >= broken[0] and broken[1] > 0


def test_a_zero_gradient_leaves_the_image_at_its_start():
    class Flat(nn.Module):
        def forward(self, x):
            return 5 * torch.eye(3)[torch.zeros(len(x)).long()] + 0 * x.flatten(1).sum(1, keepdim=True)

    x = images(n=4)
    x_adv = apgd(Flat(), x, torch.zeros(4, dtype=torch.long), LINF, steps=3)
    assert torch.equal(x_adv, sphere_start(x, LINF, Rng(0).child("restart", 0), torch.arange(4)))


@pytest.mark.parametrize("attack", [apgd, fab])
def test_a_graph_that_is_cut_is_an_error_and_no_robustness(attack):
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = smooth()

        def forward(self, x):
            return self.net(x.detach())

    x = images()
    with pytest.raises(ModelError, match="no gradient with respect to its images"):
        attack(Cut(), x, torch.arange(16) % 10, LINF)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"steps": 0}, ArgumentError, "steps=0"),
        ({"restarts": 0}, ArgumentError, "restarts=0"),
        ({"eot": 0}, ArgumentError, "eot=0"),
        ({"rho": 0.0}, ArgumentError, r"rho=0.0 is not in \(0, 1\]"),
        ({"rho": 1.5}, ArgumentError, "rho=1.5"),
        ({"loss": "hinge"}, ArgumentError, "loss='hinge'"),
        ({"x": images() * 255}, DataError, "divide by 255"),
        ({"y": torch.full((16,), 10)}, DataError, "y=10 to 10|inside 0..9"),
        ({"target": torch.full((16,), 11)}, DataError, "target"),
        ({"model": nn.Sequential(smooth(), nn.Softmax(1))}, ModelError, "probabilities"),
    ],
)
def test_bad_input_is_refused_before_the_first_gradient(change, error, message):
    given = {"model": smooth(), "x": images(), "y": torch.arange(16) % 10, "threat": LINF, **change}
    options = {key: value for key, value in given.items() if key not in ("model", "x", "y", "threat")}
    with pytest.raises(error, match=message):
        apgd(given["model"], given["x"], given["y"], given["threat"], **options)
