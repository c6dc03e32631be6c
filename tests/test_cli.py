"""The command line does what the Python API does, and fails in one line."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

import advtrain as at
from advtrain.cli import main, run
from advtrain.options import documented

QUICK = ["--epochs", "2", "--model-option", "width=4", "--val-steps", "2"]


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def fail(capsys, *arguments):
    """The one line on stderr of a command that must end with status 2."""
    with pytest.raises(SystemExit) as stop:
        run([str(argument) for argument in arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_train_then_evaluate_is_the_python_api(tmp_path):
    result = invoke(
        "train",
        "fast-at",
        "--data",
        "digits",
        "--eps",
        "0.3",
        "--rel-step",
        "1.1",
        "--out",
        tmp_path / "x",
        "--report",
        tmp_path / "verdict.json",
        *QUICK,
    )
    assert result.exit_code == 0 and "PGD leaves" in result.output and f"saved in {tmp_path / 'x'}" in result.output

    data, threat = at.load_data("digits"), at.Threat("linf", 0.3)
    model = at.build_model("small-cnn", data, width=4)
    here = at.fit(model, at.defenses.FastAT(threat, rel_step=1.1), data, epochs=2, val_steps=2)
    there = at.load_run(tmp_path / "x")
    assert all(a.equal(b) for a, b in zip(here.model.parameters(), there.model.parameters(), strict=True))

    report = at.evaluate(here.model, data.test, threat)
    saved = json.loads((tmp_path / "x" / "report.json").read_text())
    assert at.Report.from_dict(saved) == report and saved["provenance"]["command"]
    assert json.loads((tmp_path / "verdict.json").read_text()) == saved and len(saved["history"]) == 2
    again = invoke("evaluate", tmp_path / "x", "--out", tmp_path / "report.json")
    assert str(report) in again.output and str(report) in result.output
    assert at.Report.from_dict(json.loads((tmp_path / "report.json").read_text())) == report


def test_evaluate_takes_another_radius_protocol_and_part(tmp_path):
    invoke("train", "standard", "--eps", "0.3", "--out", tmp_path / "x", "--no-evaluate", *QUICK)
    result = invoke(
        "evaluate",
        tmp_path / "x",
        "--eps",
        "16/255",
        "--protocol",
        "fast-bat",
        "--steps",
        3,
        "--restarts",
        2,
        "--split",
        "val",
        "--limit",
        "30",
    )
    assert "30 images, ℓ∞ ε = 16/255" in result.output and "3 steps of 4/255, 2 restarts, last iterate" in result.output


def test_python_dash_m_and_the_command_are_one():
    done = subprocess.run([sys.executable, "-m", "advtrain", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"advtrain, version {at.__version__}"


def test_list_names_everything_that_is_registered():
    output = invoke("list").output
    rooms = [at.defenses.DEFENSES, at.attacks.ATTACKS, at.schedules.SCHEDULES, {"small-cnn": 0, "cifar100": 0}]
    for name in [name for room in rooms for name in room]:
        line = next(line for line in output.splitlines() if line.startswith(f"  {name} "))
        assert len(line.split()) > 3, f"{name} is not explained"


@pytest.mark.parametrize("name", at.defenses.DEFENSES)
def test_help_explains_every_option(name):
    """The options are the fields of the defense and the arguments of `fit`: each is there, and each has a text."""
    command = main.commands["train"].get_command(None, name)
    options = {option.name: option.help for option in command.params}
    import dataclasses
    import inspect

    fields = {field.name for field in dataclasses.fields(at.defenses.DEFENSES[name])} - {"threat"}
    arguments = {key for key, p in inspect.signature(at.fit).parameters.items() if p.kind is p.KEYWORD_ONLY} - {
        "callbacks", "on_epoch",
    }  # fmt: skip
    assert fields | arguments <= options.keys()
    assert all(options.values()), [name for name, text in options.items() if not text]
    assert "Usage" in invoke("train", name, "--help").output


def test_with_a_preset_the_help_shows_its_constants_and_asks_for_no_radius():
    whole, recipe = (
        " ".join(invoke("train", "sat-r2", *preset, "--help").output.split())
        for preset in ((), ("--preset", "mnist-lenet+-eps0.3"))
    )
    assert "[required]" in whole and "[required]" not in recipe
    assert "write 8 / 255, not 8. [default: 0.3]" in recipe
    for shown in ("default: mnist]", "default: lenet+]", "default: 5.0]", "default: 32]", "default: sat]"):
        assert shown in recipe and shown not in whole


@pytest.mark.parametrize(
    ("defense", "option", "name", "group"),
    [
        ("fast-bat", "--lam", "lam", "defense"),
        ("fast-bat", "--step-size", "step_size", "defense"),
        ("n-fgsm", "--rel-clip", "rel_clip", "defense"),
        ("rvs", "--features", "features", "defense"),
        ("fgsm", "--ema", "ema", "fit"),
        ("fgsm", "--clip-grad", "clip_grad", "fit"),
    ],
)
def test_the_word_none_stands_for_none_where_python_takes_it(monkeypatch, defense, option, name, group):
    seen = {}
    monkeypatch.setattr("advtrain.cli.train", lambda *given: seen.update(given[-1]))
    for word, value in (("none", None), ("None", None), ("0.5", 0.5)):
        invoke("train", defense, "--eps", "0.3", option, word)
        assert seen[group][name] == (str(value) if (name, word) == ("features", "0.5") else value)
    assert f"{option} " in (shown := invoke("train", defense, "--help").output)
    assert "|none" in next(line for line in shown.splitlines() if line.strip().startswith(option))


def test_a_run_of_fast_bat_with_lambda_none_takes_one_over_alpha(tmp_path):
    invoke("train", "fast-bat", "--eps", "0.3", "--lam", "none", "--out", tmp_path / "x", "--no-evaluate", *QUICK)
    assert at.load_run(tmp_path / "x").defense == at.defenses.FastBAT(at.Threat("linf", 0.3), lam=None)


def test_arguments_documented_in_docstrings_exist():
    import inspect

    for function in (at.fit, at.load_data, at.evaluate, at.attacks.pgd, at.as_dataset):
        assert set(documented(function)) <= set(inspect.signature(function).parameters), function


def test_fetched_data_are_listed_with_their_place(tmp_path, monkeypatch):
    monkeypatch.setattr("advtrain.data.fetch", lambda name, root, progress: f"{root}/{name}.npz")
    assert invoke("data", "fetch", "mnist", "--root", "there").output == "mnist: there/mnist.npz\n"


def test_data_list_says_what_is_at_hand_and_how_to_get_the_rest(tmp_path):
    (tmp_path / "own.npz").write_bytes(b"")
    lines = dict(line.split(maxsplit=1) for line in invoke("data", "list", "--root", tmp_path).output.splitlines())
    assert lines["digits"] == "in the package" and lines["own"] == str(tmp_path / "own.npz")
    assert lines["cifar10"] == "not here; advtrain data fetch cifar10 gets it"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "fast-at", "--eps", "8"],
            "error: eps=8 is not in (0, 1]: pixels are in [0, 1], did you mean 8/255?",
        ),
        (["train", "fast-at"], "Missing option '--eps'"),
        (["train", "fast-at", "--eps", "eight"], "write 0.3 or 8/255"),
        (["train", "fastat", "--eps", "0.3"], "did you mean 'fast-at'?"),
        (["train", "pgd", "--eps", "0.3", "--steps", "0"], "steps=0 is not an integer of at least 1"),
        (["train", "fgsm", "--eps", "0.3", "--lr", "-1"], "lr=-1.0 is not above 0"),
        (["train", "fgsm", "--eps", "0.3", "--lr", "none"], "'none' is not a valid float"),
        (["train", "fgsm", "--eps", "0.3", "--ema", "nothing"], "'nothing' is not a valid float"),
        (["train", "fgsm", "--eps", "0.3", "--data", "didgits"], "did you mean 'digits'?"),
        (["train", "fgsm", "--eps", "0.3", "--val", "1.5"], "val=1.5 is not a share"),
        (["train", "fgsm", "--eps", "0.3", "--model-option", "width"], "is not NAME=VALUE"),
        (["train", "fgsm", "--eps", "0.3", "--model-option", "wdith=3"], "width"),
        (["evaluate", "nowhere"], "nowhere holds no run"),
        (["list", "attack"], "'attack' is not one of"),
        (["data", "fetch", "imagenet"], "name='imagenet' is not one of mnist"),
    ],
)
def test_mistakes_end_in_one_line_and_status_two(capsys, arguments, message):
    assert message in fail(capsys, *arguments)


def test_a_missing_data_set_says_how_to_get_it(capsys, tmp_path):
    error = fail(capsys, "train", "fgsm", "--eps", "8/255", "--data", "cifar10", "--root", tmp_path)
    assert "advtrain data fetch cifar10" in error and "ADVTRAIN_DATA" in error


def test_debug_shows_the_traceback(capsys):
    with pytest.raises(SystemExit):
        run(["--debug", "evaluate", "nowhere"])
    assert "Traceback" in capsys.readouterr().err


def test_validation_images_can_be_counted(tmp_path):
    invoke("train", "standard", "--eps", "0.3", "--val", "100", "--out", tmp_path / "x", "--no-evaluate", *QUICK)
    assert len(at.load_run(tmp_path / "x").data.val) == 100


def test_a_run_whose_data_have_gone_says_so(capsys, tmp_path):
    invoke("train", "standard", "--eps", "0.3", "--out", tmp_path / "x", "--no-evaluate", *QUICK)
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    config["data"] = {"name": "cifar10", "val": 0.1, "seed": 0, "root": str(tmp_path)}
    (tmp_path / "x" / "config.json").write_text(json.dumps(config))
    assert "are not on this machine" in fail(capsys, "evaluate", tmp_path / "x")
