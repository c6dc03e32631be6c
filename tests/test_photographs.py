"""The main job on real photographs: FAST-AT on CIFAR-10 with a narrow PreActResNet-18."""

import math

import pytest
import torch
from click.testing import CliRunner

import advtrain as at
from advtrain.cli import main

THREAT = at.Threat("linf", 8 / 255)


def test_a_few_steps_on_cifar10_lower_the_loss(cifar10_mini):
    data = at.load_data(cifar10_mini)
    assert data.shape == (3, 32, 32) and data.num_classes == 10 and len(data.train) == 1800
    few = at.as_dataset(data.train[:512], test=data.test[:64], val=64, augment=True)
    model = at.build_model("preactresnet18", few, width=16)
    run = at.fit(model, at.defenses.FastAT(THREAT), few, epochs=3, lr=0.1, val_steps=2)
    assert math.isfinite(run.history[-1]["loss"]) and run.history[-1]["loss"] < run.history[0]["loss"]
    report = at.evaluate(run.model, few.test, THREAT, protocol=at.Protocol(steps=3, restarts=1))
    assert report.row("pgd").total == 64 and report["pgd"] <= report["clean"]


@pytest.mark.slow
def test_one_epoch_of_fast_at_on_all_of_cifar10(full_data, tmp_path):
    result = CliRunner().invoke(main, [
        "train", "fast-at", "--data", "cifar10", "--root", str(full_data("cifar10")), "--model", "preactresnet18",
        "--model-option", "width=16", "--eps", "8/255", "--epochs", "1", "--batch-size", "128", "--validate-every", "0",
        "--no-evaluate", "--out", str(tmp_path / "run"),
    ], catch_exceptions=False)  # fmt: skip
    assert result.exit_code == 0
    run = at.load_run(tmp_path / "run")
    assert len(run.data.train) == 45_000 and run.history[-1]["loss"] < math.log(10)
    x, y = run.data.test.images()[:500], run.data.test.y[:500]
    with torch.no_grad():
        assert (run.model(x).argmax(1) == y).float().mean() > 0.2  # chance is 0.1


@pytest.mark.gpu
def test_a_gpu_trains_in_bf16_with_images_inside_the_ball(cifar10_mini):
    data = at.load_data(cifar10_mini)

    class Spy(at.defenses.FastAT):
        def __call__(self, model, batch, progress):
            step = super().__call__(model, batch, progress)
            assert batch.x.is_cuda and batch.x.dtype == torch.float32 and step.logits.dtype == torch.bfloat16
            return step

    run = at.fit(at.build_model("preactresnet18", data, width=16), Spy(THREAT), data, epochs=3, device="cuda")
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    assert at.evaluate(run.model, data.test[:200], THREAT)["pgd"] <= 1
