"""Robustness-via-Synthesis: two losses derived here a second time, two players that keep to their own moves."""

import copy

import pytest
import torch
from closeness import close
from torch import nn

import advtrain as at
from advtrain.defenses import RvS
from advtrain.features import classifying_layer, logits_and_features
from advtrain.synthesis import Generator, pairwise_cosine, perturb, smooth_labels, synthesize, transfer
from advtrain.transport import sinkhorn

THREAT = at.Threat("linf", 8 / 255)
CPU = torch.device("cpu")


def network(shape=(1, 8, 8), dtype=torch.float64, seed=0, batch_norm=True):
    options = {"shape": shape, "num_classes": 4, "width": 4, "batch_norm": batch_norm, "normalize": None}
    return at.build_model("small-cnn", seed=seed, **options).to(dtype).train()


def batch_of(n=6, shape=(1, 8, 8), dtype=torch.float64, seed=0):
    x = at.Rng(seed, "x").uniform(torch.empty(n, *shape, dtype=dtype), -0.2, 1.2).clamp(0, 1)
    return at.Batch(x, at.Rng(seed, "y").integers(0, 4, (n,)), torch.arange(n), at.Rng(seed, "draws"))


def ready(model, shape=(1, 8, 8), threat=THREAT, **options):
    defense = RvS(threat, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        defense.setup(model, shape, CPU)
    return defense


def by_hand(model, generator, batch, who, clip=8 / 255, eps=8 / 255):
    """The transport and the logits of one move, from the definitions; features by the model's own method."""
    x, rng = batch.x, batch.rng(who)
    z = rng.child("noise").normal(torch.empty(len(x), generator.noise_dim, dtype=x.dtype))
    u = rng.child("init").uniform(x, -eps, eps)
    delta = generator(z).clamp(-clip, clip)
    x_adv = ((x + u).clamp(0, 1) + delta).clamp(x - eps, x + eps).clamp(0, 1)
    clean, changed = model.forward_features(x), model.forward_features(x_adv)
    return x_adv, sinkhorn(clean, changed), model.head(changed)


# -- the generator -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 33, 47), (2, 1, 5)], ids=str)
@pytest.mark.parametrize("n", [1, 3])
def test_the_generator_makes_images_of_any_shape(shape, n):
    generator = Generator(shape, 16)
    delta = generator(generator.noise(n, at.Rng(0)))
    assert delta.shape == (n, *shape) and delta.isfinite().all() and delta.std() > 0


def test_on_cifar_images_it_is_the_authors_network():
    generator = Generator((3, 32, 32))
    shapes = [tuple(parameter.shape) for parameter in generator.parameters()]
    assert shapes == [
        (4096, 640), (4096,), (64, 32, 4, 4), (32,), (32,), (32, 16, 4, 4), (16,), (16,), (3, 16, 4, 4)
    ]  # fmt: skip
    sizes = []
    for layer in generator.body:
        layer.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    generator(generator.noise(2, at.Rng(0)))
    assert sizes == [*[(32, 16, 16)] * 3, *[(16, 32, 32)] * 3, (16, 35, 35), (3, 32, 32)]
    norms = [layer for layer in generator.body if isinstance(layer, nn.BatchNorm2d)]
    assert {(layer.eps, layer.momentum) for layer in norms} == {(1e-3, 0.1)}


def test_initial_weights_have_the_authors_distributions_and_no_global_state_is_touched():
    before = torch.random.get_rng_state()
    generator = Generator((3, 32, 32))
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = dict(generator.named_parameters())
    dense = weights["dense.weight"]
    assert dense.abs().max() <= (3 / 640) ** 0.5 and dense.std().item() == pytest.approx(640**-0.5, rel=0.01)
    assert not weights["dense.bias"].any()
    for name, n in (("body.0.weight", 16 * 64), ("body.3.weight", 16 * 32), ("body.7.weight", 16 * 3)):
        assert weights[name].std().item() == pytest.approx((2 / n) ** 0.5, rel=0.1)
    other, same = Generator((3, 32, 32), rng=1), Generator((3, 32, 32), rng=0)
    assert torch.equal(same.dense.weight, dense) and not torch.equal(other.dense.weight, dense)


def test_saturated_outputs_get_no_gradient():
    generator, batch = Generator((1, 8, 8), 16, scale=1.0).double(), batch_of()
    made = perturb(generator, batch.x, THREAT, at.Rng(0), clip=1e-6)
    assert (made.delta.abs() == 1e-6).all()
    gradients = torch.autograd.grad(made.x_adv.sum(), list(generator.parameters()))
    assert not any(gradient.any() for gradient in gradients)
    gentle = perturb(Generator((1, 8, 8), 16, scale=1e-4).double(), batch.x, THREAT, at.Rng(0))
    assert gentle.delta.abs().max() < THREAT.eps and gentle.x_adv.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("clip", [None, 1e-3, 0.5])
def test_synthesized_images_are_inside_the_threat(dtype, clip):
    for eps in (2 / 255, 0.3):
        threat, x = at.Threat("linf", eps), batch_of(dtype=dtype).x
        made = synthesize(Generator((1, 8, 8), scale=0.1).to(dtype), x, threat, rng=3, clip=clip)
        assert threat.contains(made.x_adv, x).all() and threat.contains(made.start, x).all()
        assert made.delta.abs().max() <= (clip or eps) and made.x_adv.dtype == dtype


# -- the two losses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "delta"), [(10, 0.5), (2, 0.1), (4, 0.0), (3, 0.9)])
def test_smoothed_labels_share_the_rest_among_the_wrong_classes(classes, delta):
    target = smooth_labels(torch.tensor([1, 0]), classes, delta, torch.float64)
    assert close(target.sum(1), torch.ones(2, dtype=torch.float64), 1e-15)
    assert target[0, 1] == pytest.approx(1 - delta) and target[0, 0] == pytest.approx(delta / (classes - 1))


def test_the_classifier_descends_smoothed_cross_entropy_and_the_transport_through_both_features():
    model, batch = network(), batch_of()
    twin, decay = copy.deepcopy(model), 1e-2
    defense = ready(model, kernel_decay=decay, ot_weight=0.7)
    step = defense(model, batch, 0.0)
    x_adv, ot, logits = by_hand(twin, copy.deepcopy(defense.generator).train(), batch, "classifier")
    log_p = logits.log_softmax(1)
    right = log_p[range(6), batch.y]
    ce = -(0.5 * right + 0.5 / 3 * (log_p.sum(1) - right)).mean()
    kernels = sum((w**2).sum() for name, w in twin.named_parameters() if w.ndim > 1)
    loss = ce + 0.7 * ot + decay * kernels / 2
    assert close(step.delta, x_adv - batch.x) and close(step.loss, loss)
    ours = torch.autograd.grad(step.loss, list(model.parameters()))
    theirs = torch.autograd.grad(loss, list(twin.parameters()))
    assert close(ours, theirs)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    assert close(step.logs["ot"], ot) and close(step.logs["ce"], ce)
    assert close(step.logs["cosine"], pairwise_cosine(step.delta))


def test_the_generator_takes_one_sgd_step_up_the_transport():
    model, batch = network(), batch_of()
    defense = ready(model, generator_lr=0.1, generator_momentum=0.5)
    reference = copy.deepcopy(defense.generator)
    velocity = [torch.zeros_like(w) for w in reference.parameters()]
    for number in range(2):
        batch.draws = at.Rng(number)
        _, ot, _ = by_hand(copy.deepcopy(model), reference, batch, "generator")
        defense.adversary_step(model, batch, 0.0)
        gradients = torch.autograd.grad(-ot, list(reference.parameters()))
        velocity = [0.5 * v + g for v, g in zip(velocity, gradients, strict=True)]
        with torch.no_grad():
            for w, v in zip(reference.parameters(), velocity, strict=True):
                w -= 0.1 * v
    assert close(list(defense.generator.parameters()), list(reference.parameters()))


def test_each_player_moves_only_itself():
    model, batch = network(), batch_of()
    defense = ready(model)
    classifier, generator = copy.deepcopy(list(model.parameters())), copy.deepcopy(defense.generator.state_dict())
    defense.adversary_step(model, batch, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), classifier, strict=True))
    assert all(p.grad is None for p in [*model.parameters(), *defense.generator.parameters()])
    moved = copy.deepcopy(defense.generator.state_dict())
    assert all(not torch.equal(moved[key], generator[key]) for key in generator if key.endswith("weight"))
    defense(model, batch, 0.0).loss.backward()
    assert all(torch.equal(value, moved[key]) for key, value in defense.generator.state_dict().items())
    assert all(p.grad is None for p in defense.generator.parameters()) and all(p.grad.any() for p in model.parameters())


def test_the_two_moves_draw_fresh_noise():
    model, batch, drawn = network(), batch_of(), []
    defense = ready(model)
    defense.generator.register_forward_pre_hook(lambda module, inputs: drawn.append(inputs[0]))
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    defense.adversary_step(model, batch, 0.0)
    defense(model, batch, 0.0)
    assert len(drawn) == 2 and not torch.equal(*drawn) and drawn[0].shape == (6, 640)
    assert torch.equal(seen[0], batch.x) and torch.equal(seen[2], batch.x) and not torch.equal(seen[1], seen[3])


def test_alone_the_generator_ascends_the_transport():
    model, batch = network(batch_norm=False), batch_of(16)
    defense = ready(model, generator_lr=0.1)

    def transport():
        made = synthesize(defense, batch.x, rng=99)
        with torch.no_grad():
            return float(defense.transport(model, batch.x, made.x_adv)[0])

    before = transport()
    for number in range(30):
        batch.draws = at.Rng(number)
        defense.adversary_step(model, batch, 0.0)
    assert transport() > 1.2 * before


def test_a_batch_of_one_works_with_features_of_a_global_pool():
    for shape in ((1, 8, 8), (3, 9, 13)):
        model = at.build_model("preactresnet18", shape=shape, num_classes=4, width=4, normalize=None).train()
        defense, batch = ready(model, shape), batch_of(1, shape, torch.float32)
        model.eval()  # the last stage has one pixel: batch statistics of one number are none
        defense.adversary_step(model, batch, 0.0)
        step = defense(model, batch, 0.0)
        step.loss.backward()
        assert step.loss.isfinite() and "cosine" not in step.logs


def test_the_debiased_loss_is_the_debiased_transport():
    model, batch = network(batch_norm=False), batch_of()
    plain, debiased = (ready(model, debiased=d, sinkhorn_eps=1.0)(model, batch, 0.0) for d in (False, True))
    features = [model.forward_features(x) for x in (batch.x, batch.x + plain.delta)]
    assert close(debiased.logs["ot"], sinkhorn(*features, eps=1.0, debiased=True))
    assert debiased.logs["ot"] < plain.logs["ot"]


# -- where the features come from --------------------------------------------------------------------------------------


class Plain(nn.Module):
    """No `head`, and its last linear layer is not where the module list ends."""

    def __init__(self, twice=False):
        super().__init__()
        self.hidden, self.logits, self.twice = nn.Linear(64, 8), nn.Linear(8, 4), twice

    def forward(self, x):
        h = torch.tanh(self.hidden(x.flatten(1)))
        return self.logits(h) + (self.logits(2 * h) if self.twice else 0)


class Returning(Plain):
    def forward(self, x, return_features=False):
        h = torch.tanh(self.hidden(x.flatten(1)))
        return (self.logits(h), 3 * h) if return_features else self.logits(h)


def test_features_are_the_input_of_the_head_of_a_named_layer_or_what_the_model_returns():
    x = batch_of(dtype=torch.float32).x
    model, plain, returning = network(dtype=torch.float32).eval(), Plain(), Returning()
    assert torch.equal(logits_and_features(model, x)[1], model.forward_features(x))
    h = torch.tanh(plain.hidden(x.flatten(1)))
    assert torch.equal(logits_and_features(plain, x)[1], h) and torch.equal(logits_and_features(plain, x)[0], plain(x))
    assert torch.equal(logits_and_features(plain, x, "hidden")[1], x.flatten(1))
    assert torch.equal(logits_and_features(returning, x)[1], 3 * torch.tanh(returning.hidden(x.flatten(1))))
    assert classifying_layer(model) is model.head and classifying_layer(plain) is plain.logits
    assert not plain.logits._forward_pre_hooks


def test_features_that_cannot_be_found_are_refused_with_what_there_is():
    x = batch_of(dtype=torch.float32).x
    with pytest.raises(at.errors.ArgumentError, match="features='fc' is not the name of a layer.*hidden, logits"):
        RvS(THREAT, features="fc").setup(Plain(), (1, 8, 8), CPU)
    with pytest.raises(at.errors.ModelError, match="neither a layer `head` nor an nn.Linear.*`features`"):
        RvS(THREAT).setup(nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten()), (1, 8, 8), CPU)
    with pytest.raises(at.errors.ModelError, match="called once"):
        logits_and_features(Plain(twice=True), x)
    with pytest.raises(at.errors.ModelError, match="called once"):
        logits_and_features(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Flatten(0), nn.Unflatten(0, (6, 4))), x, "3"
        )


# -- what is measured --------------------------------------------------------------------------------------------------


def test_the_mean_cosine_is_that_of_all_pairs():
    delta = at.Rng(0).normal(torch.empty(5, 2, 3, 3, dtype=torch.float64))
    pairs = [torch.cosine_similarity(a.flatten(), b.flatten(), 0) for i, a in enumerate(delta) for b in delta[:i]]
    assert close(pairwise_cosine(delta), sum(pairs) / 10)
    assert torch.allclose(
        pairwise_cosine(1e-30 * delta.float()), pairwise_cosine(delta).float(), atol=1e-6
    )  # a mean near 0
    assert pairwise_cosine(torch.zeros(3, 4)) == 0 and pairwise_cosine(torch.ones(3, 4)) == pytest.approx(1)


def test_training_on_digits_learns_and_its_images_can_be_compared_with_those_of_an_attack():
    digits = at.load_data("digits")
    threat = at.Threat("linf", 0.1)
    model, other = (at.build_model("small-cnn", digits, width=8, seed=seed) for seed in (0, 1))
    run = at.fit(model, RvS(threat), digits, epochs=4, seed=0)
    at.fit(other, at.defenses.Standard(threat), digits, epochs=4, seed=1)
    assert run.history[-1]["val_clean"] > 0.7 and run.history[-1]["loss"] < run.history[0]["loss"]
    assert {"ce", "ot", "cosine"} <= run.history[-1].keys()
    x, y = digits.test.images()[:64], digits.test.y[:64]
    made, attacked = synthesize(run.defense, x, rng=0), at.attacks.fgsm(other, x, y, threat)
    assert threat.contains(made.x_adv, x).all()
    for x_adv in (made.x_adv, attacked):
        assert -1 / 63 <= float(pairwise_cosine(x_adv - x)) <= 1
    clean, fooled = (
        transfer(x, y, {"other": other}),
        transfer(attacked, y, {"self": model, "other": other}, batch_size=9),
    )
    with torch.no_grad():
        assert fooled["other"] == float((other(attacked).argmax(1) == y).float().mean()) < clean["other"]


def test_synthesizing_leaves_the_generator_as_it_was_and_repeats_itself():
    model, batch = network(), batch_of()
    defense = ready(model)
    before = copy.deepcopy(defense.generator.state_dict())
    first, again, other = (synthesize(defense, batch.x, rng=seed) for seed in (0, 0, 1))
    assert torch.equal(first.x_adv, again.x_adv) and not torch.equal(first.x_adv, other.x_adv)
    assert all(torch.equal(value, before[key]) for key, value in defense.generator.state_dict().items())
    assert defense.generator.training and not first.x_adv.requires_grad
    defense.adversary_step(model, batch, 0.0)
    defense.generator.eval()
    noisy = synthesize(defense, batch.x, rng=0)
    assert torch.equal(
        noisy.delta, defense.generator(defense.generator.noise(6, at.Rng(0, "noise"))).clamp(-8 / 255, 8 / 255)
    )


# -- what survives, and what is refused --------------------------------------------------------------------------------


def test_a_loaded_player_plays_on_identically():
    model, batch = network(), batch_of()
    defense, other = ready(model), RvS(THREAT)
    defense.adversary_step(model, batch, 0.0)
    state = defense.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    other.setup(model, (1, 8, 8), CPU)
    other.load_state_dict(state)
    for one in (defense, other):
        twin = copy.deepcopy(model)
        one.adversary_step(twin, batch, 0.0)
    pairs = zip(defense.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(state["network.dense.weight"], defense.state_dict()["network.dense.weight"])


def test_a_state_that_does_not_fit_is_refused():
    model = network()
    state = ready(model).state_dict()
    with pytest.raises(at.errors.ArgumentError, match="player=None is not there: call rvs.setup"):
        RvS(THREAT).load_state_dict(state)
    with pytest.raises(at.errors.ArgumentError, match="state of this Generator"):
        ready(model, noise_dim=8).load_state_dict(state)
    with pytest.raises(at.errors.ArgumentError, match="call rvs.setup"):
        RvS(THREAT)(model, batch_of(), 0.0)
    assert RvS(THREAT).state_dict() == {} and RvS(THREAT).generator is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 0.1}, "label_smoothing=0.1 is not 0: rvs smooths in its own way: set `smoothing`"),
        ({"smoothing": 1.0}, r"smoothing=1.0 is not in \[0, 1\)"),
        ({"smoothing": False}, "smoothing=False"),
        ({"ot_weight": -1}, "ot_weight=-1 is not at least 0"),
        ({"sinkhorn_eps": 0}, "sinkhorn_eps=0 is not above 0"),
        ({"sinkhorn_iterations": 0}, "sinkhorn_iterations=0 is not an integer of at least 1"),
        ({"noise_dim": 1.5}, "noise_dim=1.5"),
        ({"debiased": 1}, "debiased=1 is not True or False"),
        ({"generator_lr": float("inf")}, "generator_lr=inf"),
        ({"generator_momentum": 1}, "generator_momentum=1"),
        ({"clip": 8}, r"clip=8 is not in \(0, 1\]"),
        ({"kernel_decay": "2e-4"}, "kernel_decay='2e-4'"),
        ({"features": 3}, "features=3 is not the name of a layer"),
    ],
)
def test_impossible_settings_are_refused_by_name(options, message):
    with pytest.raises(at.errors.ArgumentError, match=message):
        RvS(THREAT, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: synthesize(RvS(THREAT), x), "source='a defense without a generator'"),
        (lambda x: synthesize("rvs", x, THREAT), "source='rvs' is not a Generator"),
        (lambda x: synthesize(Generator((1, 8, 8)), x), "threat=None is not a Threat"),
        (lambda x: synthesize(Generator((1, 8, 8)), x, at.Threat("l2", 1.0)), "threat.norm='l2' is not linf"),
        (lambda x: synthesize(Generator((1, 8, 8)), (255 * x).byte(), THREAT), "x.dtype=torch.uint8"),
        (lambda x: synthesize(Generator((3, 8, 8)), x, THREAT), r"makes images of shape \(3, 8, 8\)"),
        (lambda x: Generator((8, 8)), r"shape=\(8, 8\) is not \(C, H, W\)"),
        (lambda x: Generator((1, 8, 8), 0), "noise_dim=0"),
        (lambda x: Generator((1, 8, 8), scale=0), "scale=0 is not above 0"),
        (lambda x: Generator((1, 8, 8), 4)(x[:, 0, 0]), r"z.shape=\(6, 8\) is not \(B, 4\)"),
        (lambda x: pairwise_cosine(x[:1]), r"delta.shape=\(1, 1, 8, 8\)"),
        (lambda x: pairwise_cosine(x.long()), "delta=torch.int64"),
        (lambda x: transfer(x, torch.zeros(6).long(), network()), "models=an object of type SmallCNN is not a Mapping"),
        (lambda x: transfer(x, torch.zeros(5).long(), {"a": network()}), r"len\(y\)=5"),
        (lambda x: smooth_labels(torch.tensor([0]), 1, 0.5), "num_classes=1"),
    ],
)
def test_what_cannot_be_synthesized_or_measured_is_refused(call, message):
    with pytest.raises(at.AdvtrainError, match=message):
        call(batch_of().x)


def test_on_the_digits_what_is_synthesized_misleads_nobody_and_so_teaches_no_robustness():
    """Why RvS fails there, measured: the generator sees neither image nor label, and what it makes harms nobody.

    A standard network keeps most of its accuracy on the synthesized images, which are alike for all images, and
    loses it on PGD's. A network trained on the former withstands what it has seen, and no gradient.
    """
    digits, threat = at.load_data("digits"), at.Threat("linf", 0.3)
    rvs = at.defenses.RvS(threat)
    standard, trained = (
        at.fit(at.build_model("small-cnn", digits), defense, digits, epochs=12, validate_every=0, progress=False).model
        for defense in (at.defenses.Standard(threat), rvs)
    )
    x, y = digits.test.images(), digits.test.y
    synthesized = synthesize(rvs, x, threat).x_adv
    iterated = at.attacks.pgd(standard, x, y, threat, steps=20)
    assert transfer(synthesized, y, {"standard": standard})["standard"] > 0.6
    assert transfer(iterated, y, {"standard": standard})["standard"] < 0.1
    assert pairwise_cosine(synthesized - x) > pairwise_cosine(iterated - x) + 0.1
    report = at.evaluate(trained, digits.test, threat, protocol=at.Protocol(steps=20, restarts=1), progress=False)
    assert report["pgd"] < 0.2 < 0.5 < transfer(synthesized, y, {"rvs": trained})["rvs"]
