"""The training loop: repeatable, honest about trouble, and the same maths as a loop written by hand."""

import functools
import json
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import advtrain as at
from advtrain.keeper import Average
from advtrain.loop import Loop
from advtrain.monitor import Monitor
from advtrain.train import fit

THREAT = at.Threat("linf", 0.3)


@pytest.fixture(scope="module")
def digits():
    return at.load_data("digits")


def small(data, **options):
    return at.build_model("small-cnn", data, width=4, **options)


def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", at.defenses.DEFENSES)
def test_the_same_seed_gives_the_same_weights_bit_for_bit(digits, name):
    runs = []
    for noise in (1, 2):
        torch.manual_seed(noise)  # the global state must not matter
        defense = at.defenses.DEFENSES[name](THREAT)
        runs.append(weights(fit(small(digits), defense, digits, epochs=2, seed=3, val_steps=2).model))
    assert same(*runs)
    other = fit(small(digits), at.defenses.DEFENSES[name](THREAT), digits, epochs=2, seed=4, val_steps=2)
    assert not same(runs[0], weights(other.model))


def test_training_leaves_the_global_random_state_alone(digits):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    fit(small(digits), at.defenses.FastAT(THREAT), digits, epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_one_epoch_equals_a_loop_written_by_hand(digits):
    """The same batches, the same draws, the maths of the paper spelt out: the same weights."""
    from advtrain.loader import make_loader

    run = fit(
        small(digits),
        at.defenses.FastAT(THREAT),
        digits,
        epochs=1,
        batch_size=128,
        lr=0.05,
        schedule="constant",
        validate_every=0,
        seed=1,
    )
    model = small(digits).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for number, (x, y, _) in enumerate(make_loader(digits, 128, seed=1, device=torch.device("cpu")).epoch(0)):
        noise = at.Rng(1, "step", number).child("init").uniform(x, -0.3, 0.3)
        start = THREAT.project(x + noise, x).requires_grad_()
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(start), y, reduction="sum"), start)
        x_adv = THREAT.project(start.detach() + 1.25 * 0.3 * grad.sign(), x)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x_adv), y).backward()
        optimizer.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(model.parameters(), run.model.parameters(), strict=True))


def test_training_learns(digits):
    run = fit(small(digits), at.defenses.Standard(THREAT), digits, epochs=10)
    assert run.history[-1]["val_clean"] > 0.9 and run.history[-1]["loss"] < run.history[0]["loss"] / 2
    assert run.status == "finished" and run.best_epoch == 10 and not run.model.training


def test_the_best_checkpoint_is_the_epoch_of_highest_validation_pgd(digits):
    run = fit(small(digits), at.defenses.FastAT(THREAT), digits, epochs=5, lr=0.3, select="best")
    best = max(run.history, key=lambda record: (record["val_pgd"], record["val_clean"]))
    assert run.best_epoch == best["epoch"]
    steps = at.attacks.pgd  # the weights given back are those that were validated
    from advtrain.evaluate import count_correct

    correct = count_correct(
        run.model,
        digits.val,
        lambda x, y, rng: steps(run.model, x, y, THREAT, steps=10, step_size=0.075, rng=rng, check=False),
    )
    assert correct / len(digits.val) == best["val_pgd"]


def test_weight_averaging_gives_back_the_average(digits):
    """One epoch of known length: the average, computed by hand from the weights after each step."""
    seen = []

    class Spy(at.defenses.Standard):
        def __call__(self, model, batch, progress):
            seen.append([p.detach().clone() for p in model.parameters()])
            return super().__call__(model, batch, progress)

    model = small(digits)
    raw = {}
    run = fit(
        model,
        Spy(THREAT),
        digits,
        epochs=1,
        ema=0.9,
        validate_every=0,
        on_epoch=lambda r: raw.update(last=[p.detach().clone() for p in model.parameters()]),
    )
    after = [*seen[1:], raw["last"]]
    average = after[0]
    for step in after[1:]:
        average = [0.9 * a + 0.1 * b for a, b in zip(average, step, strict=True)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(average, run.model.parameters(), strict=True))


def test_frozen_layers_stay_frozen(digits):
    """Fine-tuning: a BatchNorm in evaluation mode and parameters without gradients are left as they are."""
    model = small(digits, batch_norm=True).train()
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    norm.eval()
    next(model.parameters()).requires_grad_(False)
    first, mean = next(model.parameters()).clone(), norm.running_mean.clone()
    fit(model, at.defenses.FastAT(THREAT), digits, epochs=1, validate_every=0)
    assert torch.equal(first, next(model.parameters())) and torch.equal(mean, norm.running_mean)


@pytest.mark.parametrize("schedule", list(at.schedules.SCHEDULES))
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_schedule_trains(digits, schedule, optimizer):
    lr = 0.05 if optimizer == "sgd" else 0.005
    run = fit(
        small(digits),
        at.defenses.Standard(THREAT),
        digits,
        epochs=4,
        lr=lr,
        schedule=schedule,
        optimizer=optimizer,
        validate_every=0,
    )
    assert run.history[-1]["loss"] < 2.2


@pytest.mark.parametrize("name", list(at.schedules.SCHEDULES))
def test_schedules_stay_between_zero_and_the_peak(name):
    rates = [at.schedules.SCHEDULES[name](step, 40, 4) for step in range(40)]
    assert all(0 <= rate.factor <= 1 + 1e-12 for rate in rates) and max(rate.factor for rate in rates) > 0.85


def test_user_data_train_as_tensors_datasets_and_loaders(digits):
    from torch.utils.data import DataLoader, TensorDataset

    x, y = digits.train.images(), digits.train.y
    pairs = TensorDataset(x, y)
    for data in ((x, y), (digits.train.x, y), pairs, DataLoader(pairs, batch_size=64)):
        run = fit(small(digits), at.defenses.FastAT(at.Threat("linf", 0.1)), data, epochs=4)
        assert run.history[-1]["loss"] < 2.0
        assert run.data.test is None and run.data.num_classes == 10


def test_bf16_trains_and_images_stay_float32(digits):
    class Spy(at.defenses.FastAT):
        def __call__(self, model, batch, progress):
            step = super().__call__(model, batch, progress)
            assert step.delta.dtype == torch.float32 and step.logits.dtype == torch.bfloat16
            assert self.threat.contains(batch.x + step.delta, batch.x).float().mean() > 0.5
            return step

    run = fit(small(digits), Spy(THREAT), digits, epochs=2, bf16=True)
    assert math.isfinite(run.history[-1]["loss"])


def test_ctrl_c_leaves_a_usable_run(digits, tmp_path):
    def stop(record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    run = fit(small(digits), at.defenses.FastAT(THREAT), digits, epochs=9, out=tmp_path / "run", on_epoch=stop)
    assert run.status == "interrupted" and len(run.history) == 2
    again = at.load_run(tmp_path / "run")
    assert again.status == "interrupted" and same(weights(again.model), weights(run.model))
    assert at.evaluate(again.model, again.data.test[:50], again.threat).row("clean").total == 50


def test_ctrl_c_in_the_middle_of_a_step_lets_the_step_finish(digits):
    """A real signal, sent while a step is under way: the step is completed, and the handler is put back."""
    import signal

    class Impatient(at.defenses.Standard):
        calls = 0

        def __call__(self, model, batch, progress):
            Impatient.calls += 1
            if Impatient.calls == 30:
                signal.raise_signal(signal.SIGINT)
            return super().__call__(model, batch, progress)

    before = signal.getsignal(signal.SIGINT)
    run = fit(small(digits), Impatient(THREAT), digits, epochs=5)
    assert run.status == "interrupted" and Impatient.calls == 30 and "after 30 steps" in run.notes[-1]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_float64_model_trains_and_is_judged_in_float64(digits):
    run = fit(small(digits).double(), at.defenses.FastAT(THREAT), digits, epochs=1, val_steps=2)
    assert next(run.model.parameters()).dtype == torch.float64
    assert at.evaluate(run.model, digits.test[:20], THREAT).row("clean").total == 20


def test_ones_own_schedule_is_followed(digits):
    def late(step, total, per_epoch):
        return at.schedules.Rate(0.0 if step < total - 1 else 1.0)

    model = small(digits)
    before = weights(model)
    run = fit(model, at.defenses.Standard(THREAT), digits, epochs=1, schedule=late, validate_every=0)
    assert run.options["schedule"].startswith("late (own, ")
    assert run.history[0]["lr"] == 0.1 and not same(before, weights(model))


def test_a_schedule_that_goes_astray_is_stopped_at_that_step(digits):
    def astray(step, total, per_epoch):
        return at.schedules.Rate(1.0 - step)

    with pytest.raises(at.errors.ArgumentError, match=r"schedule\(2, \d+, \d+\).factor=-1.0 is not at least 0"):
        fit(small(digits), at.defenses.Standard(THREAT), digits, epochs=1, schedule=astray, validate_every=0)


def test_a_schedule_without_a_name_and_with_numbers_of_numpy_is_written_with_its_run(digits, tmp_path):
    def low(step, total, per_epoch, factor):
        return at.schedules.Rate(np.float32(factor), np.float32(0.5))

    schedule = functools.partial(low, factor=0.5)
    fit(small(digits), at.defenses.Standard(THREAT), digits, epochs=1, schedule=schedule, out=tmp_path / "run")
    run = at.load_run(tmp_path / "run")
    assert run.options["schedule"].startswith("partial (own") and run.history[0]["lr"] == 0.05


@pytest.mark.parametrize("defense", [at.defenses.FastAT, at.defenses.GradAlign])
def test_a_training_switches_gradients_on_by_itself(digits, defense):
    here, there = small(digits), small(digits)
    fit(here, defense(THREAT), digits, epochs=1, batch_size=512, validate_every=0)
    with torch.no_grad():
        fit(there, defense(THREAT), digits, epochs=1, batch_size=512, validate_every=0)
        assert not torch.is_grad_enabled()
    assert same(weights(here), weights(there))


def test_inference_mode_is_named_before_training_and_judging(digits):
    model = small(digits)
    calls = {
        "fit": lambda: fit(model, at.defenses.FastAT(THREAT), digits, epochs=1),
        "an attack": lambda: at.evaluate(model, digits, THREAT),
        "diagnose": lambda: at.diagnose(model, digits, THREAT),
    }
    for name, call in calls.items():
        message = rf"torch.inference_mode\(\) is on, .* {name} needs those: call it outside"
        with torch.inference_mode(), pytest.raises(at.errors.ModelError, match=message):
            call()


def test_a_failing_defense_may_still_tidy_up(digits):
    class Failing(at.defenses.Standard):
        tidied = 0

        def __call__(self, model, batch, progress):
            raise ZeroDivisionError

        def after_backward(self, model):
            Failing.tidied += 1

    with pytest.raises(ZeroDivisionError):
        fit(small(digits), Failing(THREAT), digits, epochs=1)
    assert Failing.tidied == 1


def test_ctrl_c_during_the_last_validation_is_not_lost(digits, monkeypatch):
    """Pressed when all steps are done: the run says so, and its caller does not go on as if nothing had happened."""
    import signal

    from advtrain import loop

    def pressed(*args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        return 0

    monkeypatch.setattr(loop, "count_correct", pressed)
    assert fit(small(digits), at.defenses.Standard(THREAT), digits, epochs=1).status == "interrupted"


def test_ctrl_c_that_kills_a_loaders_workers_is_still_ctrl_c(digits):
    """The workers of a DataLoader die of the same Ctrl-C, and it raises RuntimeError in their name."""
    import signal

    class Dying(at.defenses.Standard):
        def __call__(self, model, batch, progress):
            if progress > 0.1:
                signal.raise_signal(signal.SIGINT)
                raise RuntimeError("DataLoader worker (pid 1) is killed by signal")
            return super().__call__(model, batch, progress)

    run = fit(small(digits), Dying(THREAT), digits, epochs=3)
    assert run.status == "interrupted" and "after" in run.notes[-1]


@pytest.mark.parametrize("bf16", [False, True])
def test_a_defense_may_displace_weights_between_forwards(digits, bf16):
    """As weight perturbation and two-player methods do: each forward must see the weights as they are then."""
    seen = []

    class Displacing(at.defenses.Standard):
        def adversary_step(self, model, batch, progress):
            with torch.no_grad():
                seen.append(model(batch.x).float())

        def __call__(self, model, batch, progress):
            with torch.no_grad():
                model.head.weight.mul_(1.5)
            step = super().__call__(model, batch, progress)
            seen.append(step.logits.detach().float())
            return step

        def after_backward(self, model):
            with torch.no_grad():
                model.head.weight.div_(1.5)

    fit(small(digits), Displacing(THREAT), digits, epochs=1, bf16=bf16, validate_every=0)
    assert all((before - after).abs().max() > 0.05 for before, after in zip(seen[::2], seen[1::2], strict=True))


def test_the_average_of_weights_is_that_of_pytorch_bit_for_bit(digits):
    """Which nothing waits for; the counts of batch normalisation, whole numbers, are rounded as there."""
    model = small(digits, batch_norm=True)
    ours = Average(model, 0.9)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for step in range(20):
        for parameter in model.parameters():
            parameter.data += at.Rng(step).normal(parameter)
        model.train()(digits.train[:8].images())
        ours.update_parameters(model)
        theirs.update_parameters(model)
    found, known = ours.state_dict(), theirs.state_dict()
    assert list(found) == list(known) and all(torch.equal(found[key], known[key]) for key in known)


def test_averaged_weights_come_with_averaged_running_statistics(digits):
    model = small(digits, batch_norm=True)
    raw = {}
    run = fit(
        model, at.defenses.Standard(THREAT), digits, epochs=2, ema=0.9, validate_every=0,
        on_epoch=lambda record: raw.update({key: value.clone() for key, value in model.state_dict().items()}),
    )  # fmt: skip
    name = next(key for key in raw if key.endswith("running_mean"))
    assert not torch.equal(raw[name], run.model.state_dict()[name])


def test_images_outside_the_threats_own_box_are_refused(digits):
    narrow = at.Threat("linf", 0.1, low=0.2, high=0.8)
    with pytest.raises(at.errors.DataError, match="inside the threat's pixel box"):
        fit(small(digits), at.defenses.FastAT(narrow), digits)
    with pytest.raises(at.errors.DataError, match="inside the threat's pixel box"):
        at.evaluate(small(digits), digits.test, narrow)


def test_weights_that_blow_up_in_the_last_update_stop_the_run(digits):
    with pytest.raises(at.errors.TrainingError, match=r"a weight is NaN or infinite by step 1 \(batch 1 of epoch 1\)"):
        options = {"batch_size": 2000, "lr": 1e39, "schedule": "constant", "validate_every": 0}
        fit(small(digits), at.defenses.Standard(THREAT), digits, epochs=1, **options)


def test_a_defenses_own_logs_are_averaged_into_the_history(digits):
    class Logging(at.defenses.Standard):
        logs = {"share": 0.5, "odd": float("nan")}

        def __call__(self, model, batch, progress):
            return super().__call__(model, batch, progress)._replace(logs=self.logs)

    record = fit(small(digits), Logging(THREAT), digits, epochs=1).history[0]
    assert record["share"] == 0.5 and record["odd"] is None
    Logging.logs = {"loss": 1.0}
    with pytest.raises(at.errors.ArgumentError, match="the history uses these itself"):
        fit(small(digits), Logging(THREAT), digits, epochs=1)


def test_a_nan_loss_stops_training_and_names_the_step(digits):
    with pytest.raises(
        at.errors.TrainingError,
        match=r"the loss is (nan|inf) in step 2 \(batch 2 of epoch 1, training images .*\): lower lr=1e",
    ):
        fit(
            small(digits),
            at.defenses.Standard(THREAT),
            digits,
            epochs=2,
            lr=1e30,
            schedule="constant",
            validate_every=0,
        )


def test_a_constant_predictor_is_noticed(digits):
    model = small(digits)
    nn.init.zeros_(model.head.weight)
    with torch.no_grad():
        model.head.bias[3] = 100.0
    with pytest.warns(at.errors.AdvtrainWarning, match="gives every image the same label"):
        run = fit(model, at.defenses.Standard(THREAT), digits, epochs=2, lr=1e-9)
    assert "same label" in run.notes[0]


@pytest.mark.parametrize("select, warns", [("clean", 0), ("pgd", 1)])
def test_only_adversarial_training_is_told_that_it_overfits_to_its_attack(select, warns, digits, monkeypatch):
    """Standard training loses what little resistance it had by chance as it learns; there is nothing to warn of."""
    figures = iter([(0.6, 0.4), (0.6, 0.05)])
    names = ("val_fgsm", "val_pgd")
    monkeypatch.setattr(Loop, "validate", lambda self, split: dict(zip(names, next(figures), strict=True)))
    monkeypatch.setattr(at.defenses.Standard, "select", select)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(small(digits), at.defenses.Standard(THREAT), digits, epochs=2, batch_size=512)
    assert len([found for found in caught if found.category is at.errors.OverfittingWarning]) == warns


def test_the_monitor_speaks_when_pgd_collapses_under_a_standing_fgsm_and_only_then():
    monitor = Monitor()
    assert monitor.check(1, constant=False, fgsm=0.5, pgd=0.40) == []
    assert monitor.check(2, constant=False, fgsm=0.6, pgd=0.35) == []
    ((category, message),) = monitor.check(3, constant=False, fgsm=0.7, pgd=0.1)
    assert category is at.errors.OverfittingWarning and message.startswith("epoch 3: catastrophic overfitting")
    assert monitor.check(4, constant=False, fgsm=0.7, pgd=0.0) == []  # once is enough
    assert Monitor(best_pgd=0.4).check(2, constant=False, fgsm=0.11, pgd=0.1) == []  # both fell: not masking
    assert Monitor().check(5, constant=False, fgsm=0.6, pgd=0.1) == []  # early in training everybody looks like that
    assert "ends with masked gradients" in Monitor().check(5, constant=False, fgsm=0.6, pgd=0.1, final=True)[0][1]
    assert Monitor().check(5, constant=False, fgsm=0.6, pgd=0.4, final=True) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs=0 is not an integer of at least 1"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"lr": -1.0}, "lr=-1.0 is not above 0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"schedule": "cyclical"}, "schedule='cyclical' is not one of .*did you mean 'cyclic'"),
        ({"optimizer": "SGD"}, "optimizer='SGD'"),
        ({"momentum": 1.0}, r"momentum=1.0 is not in \[0, 1\)"),
        ({"weight_decay": -1e-4}, "weight_decay=-0.0001"),
        ({"ema": 1.0}, r"ema=1.0 is not in \(0, 1\)"),
        ({"clip_grad": 0.0}, "clip_grad=0.0"),
        ({"select": "first"}, "select='first'"),
        ({"select": "best", "validate_every": 0}, "select='best' is not possible without validation"),
        ({"validate_every": -1}, "validate_every=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"lr": "0.1"}, "lr='0.1' is not above 0 and finite"),
        ({"lr": None}, "lr=None"),
        ({"weight_decay": None}, "weight_decay=None"),
        ({"device": None}, "device=None is not available here"),
        ({"on_epoch": 3}, "on_epoch=3 is not a function"),
        ({"device": "tpu9"}, "device='tpu9' is not available here"),
    ],
)
def test_bad_options_are_refused_before_the_first_step(digits, change, message):
    model = small(digits)
    before = weights(model)
    with pytest.raises(at.errors.ArgumentError, match=message):
        fit(model, at.defenses.FastAT(THREAT), digits, **change)
    assert same(before, weights(model))


def test_models_and_data_that_do_not_fit_are_refused(digits, tmp_path):
    with pytest.raises(at.errors.ModelError):
        fit(
            at.build_model("lenet+", shape=(1, 28, 28), num_classes=10, normalize=None),
            at.defenses.FastAT(THREAT),
            digits,
        )
    with pytest.raises(at.errors.ArgumentError, match=r"load it first: at.load_data\('digits'\)"):
        fit(small(digits), at.defenses.FastAT(THREAT), "digits")
    with pytest.raises(at.errors.ArgumentError, match="is not a Defense"):
        fit(small(digits), THREAT, digits)
    with pytest.raises(at.errors.ModelError, match="softmax"):
        fit(nn.Sequential(small(digits), nn.Softmax(1)), at.defenses.FastAT(THREAT), digits)
    with pytest.raises(at.errors.ModelError):
        fit(at.build_model("small-cnn", digits, num_classes=3), at.defenses.FastAT(THREAT), digits)
    with pytest.raises(at.errors.DataError, match="255"):
        fit(small(digits), at.defenses.FastAT(THREAT), (digits.train.images() * 255, digits.train.y))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(at.errors.FileError, match="cannot write"):
        fit(small(digits), at.defenses.FastAT(THREAT), digits, out=tmp_path / "file" / "run")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_an_earlier_run_is_not_overwritten_by_accident(digits, tmp_path):
    fit(small(digits), at.defenses.Standard(THREAT), digits, epochs=1, out=tmp_path / "run")
    with pytest.raises(at.errors.FileError, match="already holds a config.json of an earlier run"):
        fit(small(digits), at.defenses.Standard(THREAT), digits, epochs=1, out=tmp_path / "run")
    fit(small(digits), at.defenses.Standard(THREAT), digits, epochs=1, out=tmp_path / "run", overwrite=True, seed=5)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["options"]["seed"] == 5


def test_training_says_nothing_on_a_good_run(digits):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(small(digits), at.defenses.PGD(THREAT, steps=3), digits, epochs=2)


def test_compiled_passes_train_the_same_network(monkeypatch, tmp_path):
    """With a backend that traces and does not generate code: the network given back is the plain one."""
    calls = []
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: calls.append(model) or real(model, backend="aot_eager"))
    digits = at.load_data("digits")
    weights = []
    for compile in (False, True):
        model = at.build_model("small-cnn", digits, width=4, batch_norm=True)
        defense = at.defenses.FastAT(at.Threat("linf", 0.1))
        out = tmp_path / str(compile)
        run = at.fit(model, defense, digits, epochs=1, batch_size=256, compile=compile, out=out, progress=False)
        assert (
            run.options["compile"] is compile
            and at.load_run(out).model.state_dict().keys() == model.state_dict().keys()
        )
        weights.append(torch.cat([value.flatten().double() for value in run.model.state_dict().values()]))
    assert len(calls) == 1 and torch.allclose(*weights, atol=1e-4)


@pytest.mark.parametrize("defense", ["fast-bat", "gradalign"])
def test_compiled_passes_and_a_second_order_term_are_refused(defense):
    digits = at.load_data("digits")
    made = at.defenses.DEFENSES[defense](at.Threat("linf", 0.1))
    with pytest.raises(at.errors.ArgumentError, match=f"compile=True is not possible with {defense}"):
        at.fit(at.build_model("small-cnn", digits, width=4), made, digits, epochs=1, compile=True, progress=False)
    with pytest.raises(at.errors.ArgumentError, match="compile='yes' is not True or False"):
        at.fit(at.build_model("small-cnn", digits, width=4), made, digits, epochs=1, compile="yes", progress=False)
