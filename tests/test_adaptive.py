"""Adaptive attacks: exact where theory gives the answer, inside the threat, and never behind where they begin."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import advtrain as at
from advtrain.attacks import cw_margin, losses
from advtrain.attacks.adaptive import ADAPTIVE, adaptive, feature_attack, r_fgsm_pgd, transport_attack
from advtrain.attacks.pursuit import Passes
from advtrain.attacks.single import r_fgsm
from advtrain.attacks.stages import run_pgd, run_stages
from advtrain.features import feature_transport, logits_and_features

LINF, L2 = at.Threat("linf", 0.1), at.Threat("l2", 0.5)
ATTACKS = {
    "feature": feature_attack,
    "guided": lambda *given, **options: feature_attack(*given, guided=True, **options),
    "transport": lambda *given, **options: transport_attack(*given, sinkhorn_iterations=5, group=4, **options),
    "r-fgsm-pgd": r_fgsm_pgd,
}


def batch(seed=0, n=6, dtype=torch.float64, classes=3):
    rng = at.Rng(seed, "batch")
    return rng.uniform(torch.empty(n, 1, 4, 4, dtype=dtype), 0, 1), rng.integers(0, classes, (n,))


def linear(seed=0, classes=2, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).to(dtype)


def curved(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten())
    model = nn.Sequential(body, nn.Linear(96, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype).eval()
    with torch.no_grad():
        model[-1].bias -= model(batch(seed, 60, dtype)[0]).mean(0)  # every class is given to some image
    return model.train()


def right(model, x, y):
    with at.attacking(model, "eval"), torch.no_grad():
        return model(x).argmax(1) == y


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_two_classes_and_a_linear_model_have_a_closed_form_optimum(name, norm):
    """An image falls exactly if its margin is below ε‖w‖ in the dual norm; one that stands has lost all of that."""
    model, threat = linear(seed=1), at.Threat(norm, 0.05 if norm == "linf" else 0.2)
    x, _ = batch(seed=1, n=60)
    x = 0.25 + 0.5 * x  # far from the pixel box, which would cut the perturbation
    y = model(x).argmax(1)
    weight = model[1].weight[0] - model[1].weight[1]
    reach = threat.eps * (weight.abs().sum() if norm == "linf" else weight.norm())
    expected = -cw_margin(model(x), y) < reach
    x_adv = ATTACKS[name](model, x, y, threat, steps=80, restarts=2)
    assert torch.equal(~right(model, x_adv, y), expected) and 0.1 < expected.double().mean() < 0.9
    fall = cw_margin(model(x_adv), y) - cw_margin(model(x), y)
    assert torch.allclose(fall[~expected], reach, rtol=1e-3 if norm == "l2" else 1e-9)
    assert threat.contains(x_adv, x).all()


@given(st.integers(0, 1000), st.sampled_from([0.01, 0.05]))
@settings(max_examples=20, deadline=None)
def test_going_on_from_r_fgsm_breaks_what_r_fgsm_breaks(seed, alpha):
    model, (x, y) = curved(seed), batch(seed, n=20)
    start = r_fgsm(model, x, y, LINF, alpha=alpha, rng=at.Rng(7).child("restart", 0))
    x_adv = r_fgsm_pgd(model, x, y, LINF, alphas=(alpha,), restarts=1, steps=3, rng=7)
    fallen = ~right(model, start, y) & right(model, x, y)
    assert not right(model, x_adv, y)[fallen].any()
    assert torch.equal(x_adv[fallen], start[fallen])  # the start is an iterate, and ends the work on the image


@given(st.integers(0, 1000), st.sampled_from(["feature", "guided", "transport"]))
@settings(max_examples=20, deadline=None)
def test_no_attack_is_weaker_than_its_start(seed, name):
    model, (x, y) = curved(seed), batch(seed, n=20)
    start = LINF.random_start(x, at.Rng(3).child("restart", 0))
    x_adv = ATTACKS[name](model, x, y, LINF, restarts=1, steps=2, rng=3)
    assert not right(model, x_adv, y)[~right(model, start, y)].any()
    assert torch.equal(x_adv[~right(model, x, y)], x[~right(model, x, y)])  # wrong without any attack


def test_the_first_steps_move_the_features():
    """Away from the image's own, or towards an image of another class, farther than a random point of the ball."""
    model, (x, _) = curved(5).eval(), batch(5, n=40)
    y = model(x).argmax(1)
    threat = at.Threat("linf", 0.02)  # hardly an image falls: what comes back is where the features went
    random = threat.random_start(x, at.Rng(0).child("restart", 0))
    options = {"margin_steps": 0, "steps": 20, "restarts": 1}

    def distance(images, goal):
        return (logits_and_features(model, images)[1] - logits_and_features(model, goal)[1]).square().sum(1)

    away = feature_attack(model, x, y, threat, **options)
    stands = right(model, away, y)
    assert stands.sum() > 12 and (distance(away, x) > distance(random, x))[stands].all()

    guide = x[:1]
    goal, other = guide.expand_as(x), y != y[0]
    towards = feature_attack(model, x, y, threat, guided=True, guides=guide, **options)
    stands = right(model, towards, y)
    assert (stands & other).sum() > 5 and (distance(towards, goal) < distance(random, goal))[stands & other].all()
    assert not other.all() and torch.equal(towards[~other], away[~other])  # for these the pool has no other class


def test_the_transport_that_is_ascended_is_that_of_the_defense():
    """On one group, the shares of the images add up to the loss of the generator, and the first step follows it."""
    model, (x, y) = curved(6).eval(), batch(6, n=5)
    y, threat = model(x).argmax(1), at.Threat("linf", 0.01)
    start = threat.random_start(x, at.Rng(0).child("restart", 0))
    for debiased in (False, True):
        options = {"eps": 0.05, "iterations": 7, "debiased": debiased}
        leaf = start.clone().requires_grad_()
        before = feature_transport(model, x, leaf, **options)[0]
        (grad,) = torch.autograd.grad(before, leaf)
        step = threat.project(threat.ascend(start, grad, 0.0025), x)
        x_adv = transport_attack(
            model, x, y, threat, steps=1, margin_steps=0, restarts=1, group=5, sinkhorn_eps=0.05,
            sinkhorn_iterations=7, debiased=debiased,
        )  # fmt: skip
        assert right(model, x_adv, y).all()
        moved = (x_adv - start).abs().flatten(1).amax(1) > 0  # each image keeps the iterate at which it paid most
        assert moved.any() and torch.equal(x_adv[moved], step[moved])
        assert feature_transport(model, x, step, **options)[0] > before


def test_groups_are_attacked_apart():
    model, (x, y) = curved(7).eval(), batch(7, n=8)
    y = model(x).argmax(1)
    threat, rng = at.Threat("linf", 0.01), _Same()
    options = {"group": 4, "margin_steps": 0, "steps": 3, "restarts": 1, "rng": rng}
    whole = transport_attack(model, x, y, threat, **options)
    assert torch.equal(whole[4:], transport_attack(model, x[4:], y[4:], threat, **options))


class _Same(at.Rng):
    """Every image starts from the same draw."""

    def child(self, *key):
        return self

    def uniform(self, like, low, high):
        return at.Rng(0).uniform(like[:1], low, high).expand_as(like)


def test_stages_go_on_where_the_one_before_was_best():
    """Two stages of one loss are its steps in one, as long as each step gains; a stage of no steps changes nothing."""
    model, (x, y) = linear(), batch(classes=2)
    y, threat = model(x).argmax(1), at.Threat("linf", 0.01)
    loss = losses.objective("cw", targeted=False)
    with at.attacking(model):
        passes = Passes(model)
        apart = run_stages(passes, x, y, threat, [(loss, 2), (loss, 3), (loss, 0)], x, step_size=0.001)
        once = run_pgd(passes, x, y, threat, loss, x, steps=5, step_size=0.001)
    assert torch.equal(apart, once.x_adv)


class Named(nn.Module):
    """A network whose features are not where they are looked for by default."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.flat, self.first, self.classify, self.scale = (
            nn.Flatten(),
            nn.Linear(16, 8),
            nn.Linear(8, 3),
            nn.Linear(3, 3),
        )

    def forward(self, x):
        return self.scale(self.classify(self.first(self.flat(x)).tanh()))


class Returned(Named):
    """One that returns its features itself."""

    def forward(self, x, return_features=False):
        features = self.first(self.flat(x)).tanh()
        logits = self.scale(self.classify(features))
        return (logits, features) if return_features else logits


def test_features_are_found_on_our_models_and_by_name_on_others():
    x, y = batch(dtype=torch.float32)
    ours = at.build_model("small-cnn", shape=(1, 28, 28), num_classes=3, width=4, normalize=None)
    images = torch.rand(4, 1, 28, 28)
    labels = torch.zeros(4, dtype=torch.long)
    for attack in (feature_attack, transport_attack):
        assert LINF.contains(attack(ours, images, labels, LINF, steps=2, restarts=1), images).all()
        named = attack(Named(), x, y, LINF, features="classify", steps=4, restarts=1)
        assert torch.equal(named, attack(Returned(), x, y, LINF, steps=4, restarts=1))
        with pytest.raises(at.errors.ArgumentError, match="features='clasify' is not the name of a layer"):
            attack(Named(), x, y, LINF, features="clasify")
        with pytest.raises(at.errors.ModelError, match="neither a layer `head` nor an nn.Linear"):
            attack(nn.Sequential(nn.AvgPool2d(2), nn.Flatten()), x, y, LINF)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_every_defense_of_the_table_is_attacked_and_passes_on_its_options(name):
    assert name in at.defenses.DEFENSES
    model, (x, y) = curved(3), batch(3, n=10)
    x_adv = adaptive(model, x, y, LINF, name, steps=4, restarts=1)
    assert LINF.contains(x_adv, x).all() and torch.equal(x_adv, adaptive(model, x, y, LINF, name, steps=4, restarts=1))
    assert (right(model, x, y) & ~right(model, x_adv, y)).any()
    defense = at.defenses.DEFENSES[name](LINF)
    assert LINF.contains(adaptive(model, x, y, LINF, defense, steps=2, restarts=1), x).all()
    if name == "rvs":
        with pytest.raises(at.errors.ArgumentError, match="features='nowhere'"):
            adaptive(model, x, y, LINF, at.defenses.RvS(LINF, features="nowhere"), steps=2)


def test_an_adaptive_attack_breaks_what_each_of_its_parts_breaks_first():
    model, (x, y) = curved(4), batch(4, n=30)
    together = right(model, adaptive(model, x, y, LINF, "rvs", steps=6, restarts=1), y)
    alone = feature_attack(model, x, y, LINF, steps=6, restarts=1, rng=at.Rng(0).child("feature"))
    assert not (together & ~right(model, alone, y)).any()


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(x.flatten(1).detach().requires_grad_(False))


@pytest.mark.parametrize(
    ("attack", "options", "error", "message"),
    [
        (feature_attack, {"guides": torch.rand(1, 1, 4, 4)}, at.errors.ArgumentError, "say guided=True"),
        (feature_attack, {"guided": True, "guides": torch.rand(1, 3, 4, 4)}, at.errors.DataError, "guides=.*like x"),
        (feature_attack, {"guided": True, "guides": torch.ones(1, 1, 4, 4) * 7}, at.errors.DataError, "guides='7 to"),
        (feature_attack, {"steps": 0}, at.errors.ArgumentError, "steps=0"),
        (feature_attack, {"margin_steps": 51}, at.errors.ArgumentError, "margin_steps=51 is not at most steps=50"),
        (feature_attack, {"margin_steps": -1}, at.errors.ArgumentError, "margin_steps=-1"),
        (feature_attack, {"loss": "mse"}, at.errors.ArgumentError, "loss='mse'"),
        (transport_attack, {"group": 0}, at.errors.ArgumentError, "group=0"),
        (transport_attack, {"sinkhorn_eps": 0}, at.errors.ArgumentError, "sinkhorn_eps=0"),
        (transport_attack, {"sinkhorn_iterations": 0}, at.errors.ArgumentError, "sinkhorn_iterations=0"),
        (transport_attack, {"restarts": 0}, at.errors.ArgumentError, "restarts=0"),
        (transport_attack, {"step_size": -1}, at.errors.ArgumentError, "step_size=-1"),
        (r_fgsm_pgd, {"alphas": (0.2,)}, at.errors.ArgumentError, r"alphas=\(0.2,\) is not lengths in \(0, eps=0.1\)"),
        (r_fgsm_pgd, {"alphas": ()}, at.errors.ArgumentError, r"alphas=\(\)"),
        (r_fgsm_pgd, {"losses": "ce"}, at.errors.ArgumentError, r'write losses=\("ce", "cw"\)'),
        (r_fgsm_pgd, {"losses": ()}, at.errors.ArgumentError, "losses="),
        (r_fgsm_pgd, {"rng": torch.Generator()}, at.errors.ArgumentError, "rng=an object of type Generator"),
        (adaptive, {"defense": "rsv"}, at.errors.ArgumentError, "defense='rsv' is not one of rvs, .*mean 'rvs'"),
    ],
)
def test_bad_input_is_refused_before_the_first_gradient(attack, options, error, message):
    x, y = batch(dtype=torch.float32)
    with pytest.raises(error, match=message):
        attack(curved(dtype=torch.float32), x, y, LINF, **options)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_model_without_a_gradient_is_not_called_robust(name):
    x, _ = batch(dtype=torch.float32)
    model = Detached()
    with pytest.raises((at.errors.ModelError, RuntimeError), match="gradient|grad"):
        ATTACKS[name](model, x, model(x).argmax(1), LINF, steps=2)
