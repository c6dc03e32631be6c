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


def test_the_published_constants_are_those_of_the_sources():
    """Spot checks against shared facts: the SAT table, FAST-BAT's protocol, GradAlign's list of weights."""
    assert at.preset("sat-r2/mnist-lenet+-eps0.3").make() == at.defenses.SATR2(
        at.Threat("linf", 0.3), lam=5.0, rel_alpha=0.01 / 0.3
    )
    assert at.preset("sat-r3/cifar10-wideresnet-eps8").make() == at.defenses.SATR3(
        at.Threat("linf", 8 / 255), lam=1.0, tau=0.6, rel_eps_low=0.25, rel_alpha=0.25
    )
    assert at.preset("sat-r3/mnist-lenet+-eps0.3").fit["lr"] == 0.05
    bat = at.preset("fast-bat/cifar10-preactresnet18-eps16")
    assert (bat.make().alpha, bat.make().lam, bat.fit["epochs"], bat.fit["lr"]) == (2000 / 255, 10.0, 20, 0.2)
    assert at.preset("fast-bat/cifar10-preactresnet18-eps8").make().alpha == 5000 / 255
    assert at.preset("gradalign/cifar10-preactresnet18-eps16").make().lam == 2.0
    assert at.preset("rvs/cifar10-wideresnet-eps8").options == {"kernel_decay": 2e-4}


def test_a_change_is_taken_and_a_wrong_name_lists_the_defense_s_own():
    recipe = at.preset("fast-bat/cifar10-preactresnet18-eps8")
    assert recipe.make(implicit=False).implicit is False
    with pytest.raises(at.errors.ArgumentError, match="sat-r1/mnist-lenet.*did you mean"):
        at.preset("sat-r1/mnist-lenet-eps0.3")
    with pytest.raises(at.errors.ArgumentError, match=r"preset='fastbat' is not one of fast-at/"):
        at.preset("fastbat")


def test_the_command_line_takes_a_recipe_and_lets_options_win(monkeypatch):
    seen = {}
    monkeypatch.setattr("advtrain.cli.train", lambda *given: seen.update(zip("dnmojrp", given, strict=True)))
    arguments = ["train", "sat-r1", "--preset", "mnist-lenet+-eps0.3", "--lam", "0.7", "--epochs", "2"]
    main.main(arguments, standalone_mode=False)
    assert (seen["n"], seen["m"], seen["o"]) == ("mnist", "lenet+", {"normalize": None})
    assert seen["p"]["threat"]["eps"] == 0.3 and seen["p"]["defense"]["steps"] == 10
    assert (seen["p"]["defense"]["lam"], seen["p"]["fit"]["epochs"]) == (0.7, 2)
    assert (seen["p"]["fit"]["batch_size"], seen["p"]["fit"]["schedule"]) == (32, "sat")
    with pytest.raises(click.UsageError, match="mnist-lenet"):
        main.main([*arguments[:3], "imagenet"], standalone_mode=False)


def test_the_list_shows_every_recipe(capsys):
    main.main(["list", "presets"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert all(re.search(rf"^  {re.escape(name)} ", shown, re.M) for name in IDS)
