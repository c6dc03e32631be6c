"""Published recipes are found by name, can be made, and are what the command line trains with."""

import re

import click
import pytest
import torch

import advtrain as at
from advtrain.cli import main

IDS = list(at.PRESETS)


@pytest.mark.parametrize("name", IDS)
def test_every_recipe_makes_its_defense_and_fits_fit_and_build_model(name):
    recipe = at.preset(name)
    defense = recipe.make()
    assert defense.name == recipe.defense == name.partition("/")[0] and defense.threat.eps == recipe.eps
    accepted = {parameter.name for parameter in main.commands["train"].get_command(None, recipe.defense).params}
    assert recipe.fit.keys() | recipe.options.keys() <= accepted
    assert recipe.source and recipe.fit["schedule"] in at.schedules.SCHEDULES
    shape = (1, 28, 28) if recipe.data == "mnist" else (3, 32, 32)
    with torch.device("meta"):
        normalize = {"normalize": None} | recipe.model_options
        at.build_model(recipe.model, shape=shape, num_classes=10, **normalize)


# The recipes a second time, from the papers and the authors' code: what the defense is made with, besides the threat,
# and what `fit` is told, besides SGD with momentum 0.9: epochs, peak rate, batch size, weight decay, schedule, which
# weights are kept, decay of their average.
WONG = (0.2, 128, 5e-4, "fast-bat", "last", None)
ZHANG = (20, 0.2, 128, 5e-4, "fast-bat", "best", None)
SAT_WIDE, SAT_MNIST = (100, 0.1, 64, 5e-4, "sat", "best", None), (32, 5e-4, "sat", "best", None)
FAST_BAT = {"lam": 10.0, "implicit": True, "steps": 2, "bn": "train"}
NUAT = {"lam": 4.0, "rel_noise": 0.5, "ramp": True, "bn": "eval"}
RVS = {
    "smoothing": 0.5, "ot_weight": 1.0, "sinkhorn_eps": 0.01, "sinkhorn_iterations": 100, "debiased": False,
    "noise_dim": 640, "generator_lr": 0.01, "generator_momentum": 0.9, "clip": None, "kernel_decay": 2e-4,
    "bn": "train",
}  # fmt: skip
PGD_2 = {"steps": 2, "rel_step": 0.5, "bn": "train"}
TRADES = {"beta": 6.0, "steps": 10, "rel_step": 0.007 / 0.031, "start": 0.001, "bn": "eval"}
PUBLISHED = {
    "fast-at/cifar10-preactresnet18-eps8": ({"rel_step": 1.25, "bn": "train"}, (15, *WONG)),
    "fgsm/cifar10-preactresnet18-eps8": ({"rel_step": 1.0, "bn": "train"}, (15, *WONG)),
    "free/cifar10-preactresnet18-eps8": ({"replays": 8, "rel_step": 1.0}, (11, 0.04, *WONG[1:])),
    "fast-at/cifar10-preactresnet18-eps8-zhang2022": ({"rel_step": 1.25, "bn": "train"}, ZHANG),
    "fast-at/cifar10-preactresnet18-eps16": ({"rel_step": 1.25, "bn": "train"}, ZHANG),
    "fast-bat/cifar10-preactresnet18-eps8": ({"alpha": 5000 / 255, **FAST_BAT}, ZHANG),
    "fast-bat/cifar10-preactresnet18-eps16": ({"alpha": 2000 / 255, **FAST_BAT}, ZHANG),
    **{
        f"fast-bat/{where}-eps8": ({"alpha": 5000 / 255, **FAST_BAT}, ZHANG)
        for where in (
            "cifar100-preactresnet18", "svhn-preactresnet18", "tiny-imagenet-preactresnet18", "cifar10-preactresnet34",
            "cifar10-preactresnet50", "cifar10-wideresnet",
        )
    },
    "pgd/cifar10-preactresnet18-eps8": (PGD_2, ZHANG),
    "pgd/cifar10-preactresnet18-eps16": (PGD_2, ZHANG),
    **{
        f"gradalign/cifar10-preactresnet18-eps{eps}-zhang2022": (
            {"lam": lam, "rel_step": 1.25, "random_start": False, "code": "fast-bat", "bn": "train"}, ZHANG,
        )
        for eps, lam in ((8, 0.2), (16, 2.0))
    },
    **{
        f"gradalign/cifar10-preactresnet18-eps{eps}": (
            {"lam": lam, "rel_step": 1.25, "random_start": False, "code": "gradalign", "bn": "train"},
            (30, 0.3, 128, 5e-4, "gradalign", "last", None),
        )
        for eps, lam in zip(range(2, 17, 2), (0.036, 0.063, 0.112, 0.200, 0.356, 0.632, 1.124, 2.000), strict=True)
    },
    **{
        f"n-fgsm/{data}-preactresnet18-eps{eps}": (
            {"rel_noise": 2.0, "rel_step": 1.0, "rel_clip": None, "bn": "train"},
            (30, 0.2, 128, 5e-4, "n-fgsm", "last", None),
        )
        for data in ("cifar10", "cifar100")
        for eps in (2, 4, 6, 8, 10, 12, 14, 16)
    },
    "nuat/cifar10-preactresnet18-eps8": (NUAT, (100, 0.1, 64, 5e-4, "nuat", "last", 0.9998)),
    "trades/cifar10-wideresnet-eps0.031": (TRADES, (76, 0.1, 128, 2e-4, "trades", "last", None)),
    "sat-r1/cifar10-wideresnet-eps8": ({"lam": 0.2, "steps": 3, "samples": 1, "bn": "eval"}, SAT_WIDE),
    "sat-r2/cifar10-wideresnet-eps8": ({"lam": 25.0, "rel_alpha": 2 / 8, "bn": "eval"}, SAT_WIDE),
    "sat-r3/cifar10-wideresnet-eps8": (
        {"lam": 1.0, "tau": 0.6, "rel_eps_low": 2 / 8, "rel_alpha": 2 / 8, "bn": "eval"}, SAT_WIDE,
    ),
    "sat-r1/mnist-lenet+-eps0.3": ({"lam": 0.2, "steps": 10, "samples": 1, "bn": "eval"}, (20, 0.01, *SAT_MNIST)),
    "sat-r2/mnist-lenet+-eps0.3": ({"lam": 5.0, "rel_alpha": 0.01 / 0.3, "bn": "eval"}, (20, 0.01, *SAT_MNIST)),
    "sat-r3/mnist-lenet+-eps0.3": (
        {"lam": 1.0, "tau": 0.4, "rel_eps_low": 0.1 / 0.3, "rel_alpha": 0.01 / 0.3, "bn": "eval"},
        (20, 0.05, *SAT_MNIST),
    ),
    "rvs/cifar10-wideresnet-eps8": (RVS, (286, 0.1, 64, 0.0, "rvs", "last", None)),
}  # fmt: skip
MODELS = {
    "nuat": {"normalize": None},
    "trades": {"depth": 34, "width": 10, "normalize": None},
    "sat-r1": {"normalize": None},
    "sat-r2": {"normalize": None},
    "sat-r3": {"normalize": None},
    "rvs": {"depth": 34, "width": 10, "activation": "leaky_relu", "normalize": "image"},
}


@pytest.mark.parametrize("name", IDS)
def test_the_constants_are_the_published_ones(name):
    constants, training = PUBLISHED[name]
    recipe = at.preset(name)
    defense = recipe.make()
    radius = name.split("-eps")[1].partition("-")[0]
    assert defense.threat == at.Threat("linf", float(radius) / (1 if "." in radius else 255))
    for key, value in constants.items():
        assert getattr(defense, key) == (pytest.approx(value, rel=1e-12) if type(value) is float else value), key
    assert constants.keys() >= recipe.options.keys()
    defaults = {"select": "last", "ema": None, "momentum": 0.9, "optimizer": "sgd"}
    fit = {**defaults, **recipe.fit}
    keys = ("epochs", "lr", "batch_size", "weight_decay", "schedule", "select", "ema")
    assert tuple(fit[key] for key in keys) == training and (fit["optimizer"], fit["momentum"]) == ("sgd", 0.9)
    assert fit.keys() - {*keys, "optimizer", "momentum"} == ({"val_steps"} if training == ZHANG else set())
    assert fit.get("val_steps", 50) == 50  # of FAST-BAT's protocol: PGD-50
    model = at.models.MODELS[recipe.model].options | recipe.model_options
    assert model.items() >= MODELS.get(recipe.defense, {}).items()


def test_every_recipe_is_written_a_second_time():
    assert PUBLISHED.keys() == at.PRESETS.keys()


def test_two_sources_of_one_recipe_are_told_apart():
    recipes = [recipe for recipe in at.PRESETS.values() if recipe.tag]
    assert len(recipes) == 3 and all(recipe.name.endswith("-zhang2022") for recipe in recipes)
    for recipe in recipes:
        other = at.preset(recipe.name.removesuffix("-zhang2022"))
        assert (other.defense, other.data, other.model, other.eps) == (
            recipe.defense, recipe.data, recipe.model, recipe.eps,
        )  # fmt: skip
        assert other.source != recipe.source


def test_what_is_not_as_it_was_there_is_noted():
    said = {
        "fast-at/cifar10-preactresnet18-eps8": ("50,000", "val=0", "float16"),
        "fgsm/cifar10-preactresnet18-eps8": ("start at zero", "50,000"),
        "fast-bat/cifar10-preactresnet18-eps8": ("10 starts", "one start"),
        "fast-bat/cifar100-preactresnet18-eps8": ("15 degrees", "one start"),
        "fast-bat/cifar10-wideresnet-eps8": ("a block more", "depth 34"),
        "gradalign/cifar10-preactresnet18-eps8": ("50,000", "val=0"),
        "n-fgsm/cifar100-preactresnet18-eps8": ("50,000", "val=0"),
        "nuat/cifar10-preactresnet18-eps8": ("ResNet-18", "49,000/1,000", "I-FGSM of 7 steps"),
        "sat-r1/cifar10-wideresnet-eps8": ("biases", "Xavier", "stride", "0.9", "40,000/10,000", "I-FGSM of 3 steps"),
        "sat-r1/mnist-lenet+-eps0.3": ("50,000/10,000", "I-FGSM of 3 steps"),
        "rvs/cifar10-wideresnet-eps8": ("1e-3", "zeros", "first activation"),
    }
    for name, words in said.items():
        assert all(word in at.preset(name).note for word in words), name
    assert all("float16" not in recipe.note for recipe in at.PRESETS.values() if recipe.defense == "n-fgsm")


def test_the_rate_of_trades_falls_at_epochs_75_90_and_100_counted_from_1():
    per_epoch = 3
    factors = [at.schedules.trades(step, 110 * per_epoch, per_epoch) for step in range(110 * per_epoch)]
    expected = [1.0] * 74 + [0.1] * 15 + [0.01] * 10 + [0.001] * 11
    assert [rate.factor for rate in factors[::per_epoch]] == pytest.approx(expected)
    assert [rate.factor for rate in factors[per_epoch - 1 :: per_epoch]] == pytest.approx(expected)
    assert all(rate.momentum is None for rate in factors) and at.schedules.SCHEDULES["trades"] is at.schedules.trades
    recipe = at.preset("trades/cifar10-wideresnet-eps0.031").fit
    total = recipe["epochs"] * per_epoch
    rates = [at.schedules.SCHEDULES[recipe["schedule"]](step, total, per_epoch).factor for step in range(total)]
    assert rates == pytest.approx([1.0] * 74 * per_epoch + [0.1] * 2 * per_epoch)  # the last two epochs of 76


def test_a_change_is_taken_and_a_wrong_name_lists_the_defense_s_own():
    recipe = at.preset("fast-bat/cifar10-preactresnet18-eps8")
    assert recipe.make(implicit=False).implicit is False
    with pytest.raises(at.errors.ArgumentError, match="sat-r1/mnist-lenet.*did you mean"):
        at.preset("sat-r1/mnist-lenet-eps0.3")
    with pytest.raises(at.errors.ArgumentError, match=r"preset='fastbat' is not one of .* names, such as fast-bat/"):
        at.preset("fastbat")


@pytest.fixture
def seen(monkeypatch):
    """What `advtrain train` was about to do: names of data and model, the model's options, arguments of the rest."""
    seen = {}

    def catch(defense, data, model, model_options, judge, report, tensorboard, part):
        seen.update(part | {"data": data, "model": model, "model_options": model_options})

    monkeypatch.setattr("advtrain.cli.train", catch)
    return seen


def command(*arguments):
    main.main(["train", *arguments], standalone_mode=False)


def test_the_command_line_takes_a_recipe_and_lets_options_win(seen):
    command("sat-r1", "--preset", "mnist-lenet+-eps0.3", "--lam", "0.7", "--epochs", "2")
    assert (seen["data"], seen["model"], seen["model_options"]) == ("mnist", "lenet+", {"normalize": None})
    assert seen["threat"]["eps"] == 0.3 and seen["defense"]["steps"] == 10
    assert (seen["defense"]["lam"], seen["fit"]["epochs"]) == (0.7, 2)
    assert (seen["fit"]["batch_size"], seen["fit"]["schedule"]) == (32, "sat")
    with pytest.raises(click.UsageError, match="mnist-lenet"):
        command("sat-r1", "--preset", "imagenet")


@pytest.mark.parametrize("name", IDS)
def test_the_command_line_trains_with_what_the_recipe_says(name, seen):
    recipe = at.preset(name)
    command(recipe.defense, "--preset", recipe.label)
    assert (seen["data"], seen["model"], seen["model_options"]) == (recipe.data, recipe.model, recipe.model_options)
    defense = at.defenses.DEFENSES[recipe.defense](at.Threat(**seen["threat"]), **seen["defense"])
    assert defense == recipe.make() and seen["fit"].items() >= recipe.fit.items()


def test_model_options_are_added_to_those_of_the_recipe_and_win_by_name(seen):
    preset = ("--preset", "cifar10-wideresnet-eps8")
    command("rvs", *preset, "--model-option", "width=2", "--model-option", "depth=28")
    own = {"depth": 34, "activation": "leaky_relu", "normalize": "image"}
    assert seen["model_options"] == own | {"width": 2, "depth": 28}
    command("rvs", "--model-option", "normalize=none", *preset, "--model", "wideresnet")  # in another order
    assert seen["model_options"] == own | {"normalize": None}


def test_another_model_than_the_recipe_s_takes_none_of_its_options_and_stderr_says_so(seen, capsys):
    command("rvs", "--preset", "cifar10-wideresnet-eps8", "--model", "small-cnn", "--model-option", "width=4")
    assert (seen["model"], seen["model_options"]) == ("small-cnn", {"width": 4})
    said = capsys.readouterr()
    assert said.out == "" and said.err == (
        "note: the preset's options of wideresnet are not used for small-cnn: "
        "depth=34, activation=leaky_relu, normalize=image\n"
    )
    command("fast-at", "--preset", "cifar10-preactresnet18-eps8", "--model", "small-cnn")  # it has no options to lose
    assert seen["model_options"] == {} and capsys.readouterr().err == ""


def test_a_recipe_lasts_for_one_command(seen):
    command("fast-at", "--preset", "cifar10-preactresnet18-eps8")
    with pytest.raises(click.MissingParameter, match="eps"):
        command("fast-at")


def test_the_list_shows_every_recipe(capsys):
    main.main(["list", "presets"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert all(re.search(rf"^  {re.escape(name)} ", shown, re.M) for name in IDS)
