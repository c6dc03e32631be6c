"""Defenses: one scalar whose gradient is the method's, derived here a second time."""

import pytest
import torch
import torch.nn.functional as F

import advtrain as at
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
    assert torch.allclose(step.loss, by_hand, atol=1e-12) and not step.delta.any()


def test_fgsm_training_is_cross_entropy_on_clipped_sign_steps():
    """Derived without the package: sign of the input gradient in training mode, clip to the box, cross-entropy."""
    model, batch = problem()
    reference, _ = problem()
    step = at.defenses.FGSM(THREATS[0])(model, batch, 0.0)
    x = batch.x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(reference(x), batch.y), x)
    x_adv = (batch.x + 8 / 255 * grad.sign()).clamp(0, 1)
    loss = F.cross_entropy(reference(x_adv), batch.y)
    assert torch.allclose(step.loss, loss, atol=1e-12) and torch.allclose(step.delta, x_adv - batch.x, atol=1e-12)
    for ours, theirs in zip(gradients(model, step.loss), gradients(reference, loss), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)
    assert all(torch.allclose(a, b) for a, b in zip(model.buffers(), reference.buffers(), strict=True))


def test_fast_at_without_noise_and_with_a_full_step_is_fgsm_at():
    model, batch = problem()
    twin, _ = problem()
    batch.draws = Recorded({"init": torch.zeros_like(batch.x)})
    fast = at.defenses.FastAT(THREATS[0], rel_step=1.0)(model, batch, 0.0)
    fgsm = at.defenses.FGSM(THREATS[0])(twin, batch, 0.0)
    assert torch.equal(fast.loss, fgsm.loss)


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
        (lambda: at.defenses.from_config({"name": "fastat"}), "did you mean 'fast-at'"),
        (lambda: at.defenses.from_config({"name": "pgd", "threat": {"norm": "linf", "eps": 0.1}, "stepz": 3}), "stepz"),
    ],
)
def test_impossible_settings_are_refused_by_name(make, message):
    with pytest.raises(at.errors.ArgumentError, match=message):
        make()


def test_a_new_defense_needs_one_class_and_nothing_else(monkeypatch):
    """What CONTRIBUTING promises: register a class, and the loop, JSON and the command line know it."""
    from dataclasses import dataclass
    from typing import ClassVar

    from advtrain.cli import main
    from advtrain.defense import Defense, Step

    @dataclass
    class Noise(Defense):
        """Train on uniform noise.

        Args:
            scale: width of the noise in units of ε.
        """

        scale: float = 1.0
        name: ClassVar[str] = "noise"

        def __call__(self, model, batch, progress):
            x = self.threat.random_start(batch.x, batch.rng("noise"))
            logits = model(x)
            return Step(self.criterion(logits, batch.y), logits, x - batch.x)

    monkeypatch.setitem(at.defenses.DEFENSES, "noise", Noise)
    digits = at.load_data("digits")
    run = at.fit(at.build_model("small-cnn", digits, width=4), Noise(at.Threat("linf", 0.1)), digits, epochs=5)
    assert run.history[-1]["val_clean"] > 0.5
    assert at.defenses.from_config(run.defense.config) == run.defense
    options = {option.name: option.help for option in main.commands["train"].get_command(None, "noise").params}
    assert options["scale"] == "width of the noise in units of ε."
