"""Defenses: one scalar whose gradient is the method's, derived here a second time."""

import pytest
import torch
import torch.nn.functional as F
from closeness import close

import advtrain as at
from advtrain.modes import noting_statistics
from advtrain.rng import Recorded

THREATS = [at.Threat("linf", 8 / 255), at.Threat("l2", 0.5)]


def problem(dtype=torch.float64, shape=(1, 8, 8), n=6, seed=0):
    normalize = ([0.3] * shape[0], [0.4] * shape[0])
    options = {"shape": shape, "num_classes": 4, "width": 4, "batch_norm": True, "normalize": normalize}
    model = at.build_model("small-cnn", seed=seed, **options).to(dtype).train()
    x = at.Rng(seed, "x").uniform(torch.empty(n, *shape, dtype=dtype), -0.1, 1.1).clamp(0, 1)
    return model, at.Batch(x, at.Rng(seed, "y").integers(0, 4, (n,)), torch.arange(n), at.Rng(seed, "draws"))


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


def test_standard_training_is_cross_entropy_on_clean_images():
    model, batch = problem()
    step = at.defenses.Standard(THREATS[0], label_smoothing=0.1)(model, batch, 0.0)
    log_p = model(batch.x).log_softmax(1)
    by_hand = -(0.9 * log_p[range(6), batch.y] + 0.1 * log_p.mean(1)).mean()
    assert close(step.loss, by_hand) and not step.delta.any()
    assert close(gradients(model, step.loss), gradients(model, by_hand))


def test_fgsm_training_is_cross_entropy_on_clipped_sign_steps():
    """Derived without the package: sign of the input gradient in training mode, clip to the box, cross-entropy."""
    model, batch = problem()
    reference, _ = problem()
    step = at.defenses.FGSM(THREATS[0])(model, batch, 0.0)
    x = batch.x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(reference(x), batch.y), x)
    x_adv = (batch.x + 8 / 255 * grad.sign()).clamp(0, 1)
    loss = F.cross_entropy(reference(x_adv), batch.y)
    assert close(step.loss, loss) and close(step.delta, x_adv - batch.x)
    assert close(gradients(model, step.loss), gradients(reference, loss))
    assert close(list(model.buffers()), list(reference.buffers()))


def test_fast_at_without_noise_and_with_a_full_step_is_fgsm_at():
    model, batch = problem()
    twin, _ = problem()
    batch.draws = Recorded({"init": torch.zeros_like(batch.x)})
    fast = at.defenses.FastAT(THREATS[0], rel_step=1.0)(model, batch, 0.0)
    fgsm = at.defenses.FGSM(THREATS[0])(twin, batch, 0.0)
    assert torch.equal(fast.loss, fgsm.loss)


def test_free_training_ascends_by_the_gradient_of_the_training_pass_and_hands_the_perturbation_on():
    """Derived without the package: three replays on one batch, then a smaller batch that takes over its rows."""
    model, batch = problem()
    reference, _ = problem()
    defense, eps = at.defenses.Free(THREATS[0], replays=3), 8 / 255
    defense.setup(model, (1, 8, 8), torch.device("cpu"))
    small = at.Batch(batch.x[:4].flip(0), batch.y[:4])
    delta = torch.zeros_like(batch.x)
    for part in (batch, batch, batch, small, batch):
        n = len(part.x)
        step = defense(model, part, 0.0)
        model.zero_grad()
        step.loss.backward()
        defense.after_backward(model)
        x_adv = (part.x + delta[:n]).clamp(0, 1).requires_grad_()
        loss = F.cross_entropy(reference(x_adv), part.y)
        *by_hand, grad = torch.autograd.grad(loss, [*reference.parameters(), x_adv])
        assert close(step.loss, loss) and close(step.delta, x_adv - part.x)
        assert close([parameter.grad for parameter in model.parameters()], by_hand)
        ascended = (x_adv - part.x + eps * grad.sign()).clamp(-eps, eps)
        delta[:n] = (part.x + ascended).clamp(0, 1).detach() - part.x
        assert close(defense.state_dict()["delta"], delta)


def test_nuat_is_clean_cross_entropy_and_the_nuclear_norm_of_the_batch_s_change_of_logits():
    """Derived without the package, singular values by eigenvalues: two batches, since the attack alternates."""
    model, batch = problem()
    reference, _ = problem()
    defense, eps, lam = at.defenses.NuAT(THREATS[0]), 8 / 255, 4.0 * 0.25
    for number in range(2):
        step = defense(model, batch, 0.25)
        ours = gradients(model, step.loss)
        x, y = batch.x, batch.y
        clean = reference(x)
        corner = eps / 2 * batch.rng("noise").uniform(x, -1.0, 1.0).sign()
        start = (x + corner).clamp(0, 1).requires_grad_()
        reference.eval()
        logits = reference(start)
        harm = F.cross_entropy(logits, y) + number * lam * eigen_nuclear(clean.detach() - logits) / len(x)
        (grad,) = torch.autograd.grad(harm, start)
        reference.train()
        x_adv = x + ((start + eps * grad.sign()).clamp(0, 1) - x).clamp(-eps, eps).detach()
        logits = reference(x_adv)
        clean = reference(x)  # a second time, as in the authors' code: the running statistics move thrice
        loss = F.cross_entropy(clean, y) + lam * eigen_nuclear(clean - logits) / len(x)
        assert close(step.delta, x_adv - x) and close(step.loss, loss)
        assert close(ours, gradients(reference, loss))
        assert close(list(model.buffers()), list(reference.buffers()))


def eigen_nuclear(matrix):
    """Sum of singular values, as the square roots of the eigenvalues of AᵀA."""
    return torch.linalg.eigvalsh(matrix.T @ matrix).clamp(min=1e-30).sqrt().sum()


def test_nuat_s_weight_grows_from_nothing():
    model, batch = problem()
    start, end = (at.defenses.NuAT(THREATS[0])(model, batch, progress).loss for progress in (0.0, 0.999))
    model, _ = problem()
    at_once = at.defenses.NuAT(THREATS[0], ramp=False)(model, batch, 0.0)
    assert close(start, at_once.logs["natural"]) and end > start
    assert close(at_once.loss, at_once.logs["natural"] + 4 * at_once.logs["nuclear_norm"])


def test_sat_r1_regularises_as_many_of_the_last_images_as_it_is_told():
    """The mean of squared distances over the last n images; FGSM and I-FGSM by this package's own attacks."""
    for n in (1, 3, 99):
        model, batch = problem()
        reference, _ = problem()
        step = at.defenses.SATR1(THREATS[0], lam=0.5, steps=4, samples=n)(model, batch, 0.0)
        k = min(n, len(batch.x))
        x, y = batch.x, batch.y
        images = [at.attacks.fgsm(reference, x, y, THREATS[0])]
        images += [
            at.attacks.i_fgsm(reference, x[i : i + 1], y[i : i + 1], THREATS[0], steps=4) for i in range(6 - k, 6)
        ]
        logits = reference(torch.cat(images))
        gap = sum((logits[i] - logits[i + k]).square().sum() for i in range(6 - k, 6)) / k
        loss = F.cross_entropy(logits[:6], y) + 0.5 * gap
        assert close(step.loss, loss) and close(gradients(model, step.loss), gradients(reference, loss))


def test_n_fgsm_reaches_beyond_the_ball_unless_it_is_clipped_back():
    model, batch = problem()
    eps = 8 / 255
    batch.x = batch.x * 0.4 + 0.3  # away from the pixel box
    reached = at.defenses.NFGSM(THREATS[0])(model, batch, 0.0).delta.abs().max()
    assert 2.5 * eps < reached <= 3 * eps + 1e-12 and at.defenses.NFGSM(THREATS[0]).reach == pytest.approx(3 * eps)
    back = at.defenses.NFGSM(THREATS[0], rel_clip=1.0)
    assert back(model, batch, 0.0).delta.abs().max() <= eps + 1e-12 and back.reach == pytest.approx(eps)


def test_gradalign_with_no_gradient_anywhere_adds_nothing():
    from advtrain.defenses.gradalign import mean_cosine

    zero, one = torch.zeros(2, 3), torch.ones(2, 3)
    assert mean_cosine(zero, one) == 1.0
    mixed = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], requires_grad=True)
    cosine = mean_cosine(one, mixed)
    assert close(cosine, torch.tensor(3.0).rsqrt(), 1e-6)  # float32
    assert torch.autograd.grad(cosine, mixed)[0].isfinite().all()


@pytest.mark.parametrize("name", ["sat-r1", "sat-r2"])
def test_methods_that_compare_logits_refuse_dropout(name):
    model, batch = problem()
    noisy = torch.nn.Sequential(torch.nn.Dropout(0.3), model).train()
    defense = at.defenses.DEFENSES[name](THREATS[0])
    with pytest.raises(at.errors.ModelError, match=rf"model.0.p=0.3 is not 0, which {name} needs: .*dropout=0"):
        defense(noisy, batch, 0.0)
    noisy[0].eval()
    assert torch.isfinite(defense(noisy, batch, 0.0).loss)


@pytest.mark.parametrize("momentum", [0.1, None, 1.0, 0.0])
def test_statistics_moved_again_are_those_of_a_second_pass(momentum):
    layers = [torch.nn.BatchNorm2d(3, momentum=momentum).double() for _ in range(2)]
    x, other = torch.rand(2, 4, 3, 5, 5, dtype=torch.float64)
    layers[0](x), layers[0](other), layers[0](x)
    with noting_statistics(layers[1]) as update:
        layers[1](x)
    layers[1](other)
    update.again()
    for ours, theirs in zip(layers[1].buffers(), layers[0].buffers(), strict=True):
        assert close(ours, theirs, 1e-12)
    layers[1].eval()
    with noting_statistics(layers[1]) as update:
        layers[1](x)
    before = [buffer.clone() for buffer in layers[1].buffers()]
    update.again()
    assert all(torch.equal(a, b) for a, b in zip(before, layers[1].buffers(), strict=True))


@pytest.mark.parametrize("bn", ["train", "eval", "batch"])
def test_running_statistics_move_as_the_bn_mode_says(bn):
    model, batch = problem()
    at.defenses.PGD(THREATS[0], steps=3, bn=bn)(model, batch, 0.0)
    counts = {int(value) for name, value in model.named_buffers() if name.endswith("num_batches_tracked")}
    assert counts == {4 if bn == "train" else 1}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: at.defenses.FastAT(8 / 255), r'threat=0.03.* is not a Threat: write Threat\("linf", eps=8/255\)'),
        (lambda: at.defenses.FastAT(THREATS[0], rel_step=0), "rel_step=0 is not above 0"),
        (lambda: at.defenses.FGSM(THREATS[0], rel_step=float("nan")), "rel_step=nan"),
        (lambda: at.defenses.PGD(THREATS[0], steps=2.0), "steps=2.0 is not an integer"),
        (lambda: at.defenses.PGD(THREATS[0], rel_step=-1), "rel_step=-1"),
        (lambda: at.defenses.Standard(THREATS[0], label_smoothing=1.0), r"label_smoothing=1.0 is not in \[0, 1\)"),
        (lambda: at.defenses.FGSM(THREATS[0], bn="training"), "bn='training' is not one of eval, train, batch"),
        (lambda: at.defenses.SATR1(THREATS[0], lam=0), "lam=0 is not above 0: it is λ"),
        (lambda: at.defenses.SATR1(THREATS[0], samples=0), "samples=0 is not an integer of at least 1"),
        (lambda: at.defenses.SATR1(THREATS[1]), "threat.norm='l2' is not linf"),
        (lambda: at.defenses.SATR2(THREATS[0], lam=-1), "lam=-1 is not above 0"),
        (lambda: at.defenses.SATR2(THREATS[0], rel_alpha=2), r"rel_alpha=2 is not in \(0, 1\]: it is α/ε"),
        (lambda: at.defenses.SATR3(THREATS[0], tau=0), r"tau=0 is not in \(0, 1\]: it is τ"),
        (lambda: at.defenses.SATR3(THREATS[0], tau=1.5), r"tau=1.5 is not in \(0, 1\]"),
        (lambda: at.defenses.SATR3(THREATS[0], rel_eps_low=1.0), r"rel_eps_low=1.0 is not in \(0, 1\): it is ε_low/ε"),
        (lambda: at.defenses.NFGSM(THREATS[0], rel_noise=0), "rel_noise=0 is not above 0"),
        (lambda: at.defenses.NFGSM(THREATS[0], rel_clip=0), "rel_clip=0 is not above 0 or None"),
        (lambda: at.defenses.Free(THREATS[0], replays=0), "replays=0 is not an integer of at least 1"),
        (lambda: at.defenses.GradAlign(THREATS[0], lam=0), "lam=0 is not above 0"),
        (lambda: at.defenses.GradAlign(THREATS[0], code="port"), "code='port' is not one of gradalign, fast-bat"),
        (lambda: at.defenses.TRADES(THREATS[0], beta=0), "beta=0 is not above 0"),
        (lambda: at.defenses.TRADES(THREATS[0], start=0), "start=0 is not above 0.*the gradient is zero"),
        (lambda: at.defenses.NuAT(THREATS[0], rel_noise=1.5), r"rel_noise=1.5 is not in \(0, 1\]"),
        (lambda: at.defenses.from_config({"name": "fastat"}), "did you mean 'fast-at'"),
        (lambda: at.defenses.from_config({"name": "pgd", "threat": {"norm": "linf", "eps": 0.1}, "stepz": 3}), "stepz"),
    ],
)
def test_impossible_settings_are_refused_by_name(make, message):
    with pytest.raises(at.errors.ArgumentError, match=message):
        make()
