"""`advtrain evaluate` judges a run, or any network with the data and the threat it is given."""

import hashlib
import inspect
import json
import subprocess
import sys

import click
import numpy
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

import advtrain as at
from advtrain import cli_judge
from advtrain.cli import main, run
from advtrain.cli_judge import NETWORK, _names, with_subject

FACTORY = """
from torch import nn

def net(width=4, bias=True):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 10, bias=bias))
"""
QUICK = ("--steps", "2", "--restarts", "1", "--limit", "40")
DIGITS = ("--data", "digits", "--eps", "0.2", *QUICK)


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def fail(capsys, *arguments):
    """The one line on stderr of a command that must end with status 2."""
    with pytest.raises(SystemExit) as stop:
        run([str(argument) for argument in arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return " ".join(error.split())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a factory and its weights; it is not on Python's path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    (tmp_path / "nets.py").write_text(FACTORY)
    scope = {}
    exec(FACTORY, scope)
    torch.manual_seed(0)
    torch.save({"ema": scope["net"]().state_dict(), "model": scope["net"]().state_dict()}, tmp_path / "w.pt")
    yield tmp_path
    sys.modules.pop("nets", None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("runs") / "x"
    arguments = ("--epochs", "1", "--model-option", "width=4", "--no-evaluate", "--val", "0")
    assert invoke("train", "fast-at", "--eps", "0.3", "--out", folder, *arguments).exit_code == 0
    return folder


def test_any_network_is_judged_as_from_python(folder):
    network = ("--model", "nets:net", "--weights", folder / "w.pt", "--weights-key", "ema", "--model-option", "width=4")
    result = invoke("evaluate", *network, "--mean", "0.3", "--std", "0.4", *DIGITS, "--seed", 3, "--out", "report.json")
    data, threat = at.load_data("digits"), at.Threat("linf", 0.2)
    model = at.load_model("nets:net", "w.pt", weights_key="ema", mean=0.3, std=0.4, data=data)
    report = at.evaluate(model, data.test[:40], threat, protocol=at.Protocol(steps=2, restarts=1), seed=3)
    assert result.exit_code == 0 and str(report) in result.output and "nets:net on digits, test split" in result.output

    text = (folder / "report.json").read_text()
    saved = json.loads(text)
    assert at.Report.from_dict(saved) == report and saved["threat"]["eps"] == 0.2
    digest = hashlib.sha256((folder / "w.pt").read_bytes()).hexdigest()
    assert saved["model"] == {
        "model": "nets:net",
        "options": {"width": 4},
        "weights": {"file": "w.pt", "sha256": digest, "key": "ema"},
        "mean": [0.3],
        "std": [0.4],
        "pick": None,
    }
    assert saved["data"]["name"] == "digits" and saved["data"]["images"] == 40 and len(saved["data"]["sha256"]) == 64
    assert saved["provenance"]["seed"] == 3 and saved["provenance"].keys() >= {"commit", "command", "versions", "date"}
    assert saved["protocol"]["steps"] == 2
    assert str(folder) not in text  # nothing in it points into this machine


def test_the_command_in_a_report_has_no_folder_of_this_machine(folder):
    """As it is typed in a shell: a file of Python, absolute paths with and without an equals sign."""
    words = [f"--model={folder / 'nets.py'}:net", "--weights", str(folder / "w.pt"), "--weights-key=model", *DIGITS]
    command = [sys.executable, "-m", "advtrain", "evaluate", *words, "--out", str(folder / "report.json")]
    subprocess.run(command, check=True, capture_output=True, env=None, cwd=folder)
    text = (folder / "report.json").read_text()
    saved = json.loads(text)
    wanted = "python -m advtrain evaluate --model=nets.py:net --weights w.pt --weights-key=model --data digits"
    assert saved["provenance"]["command"].startswith(wanted) and saved["model"]["model"] == "nets.py:net"
    assert saved["model"]["code"] == hashlib.sha256(FACTORY.encode()).hexdigest() and str(folder) not in text


def test_a_built_in_network_with_the_weights_of_a_run_is_the_run(finished, tmp_path):
    weights = ("--model", "small-cnn", "--weights", finished / "model.safetensors", "--model-option", "width=4")
    invoke("evaluate", finished, *QUICK, "--out", tmp_path / "there.json")
    invoke("evaluate", *weights, "--data", "digits", "--eps", "0.3", *QUICK, "--out", tmp_path / "here.json")
    here, there = (json.loads((tmp_path / name).read_text()) for name in ("here.json", "there.json"))
    assert all(here[key] == there[key] for key in ("rows", "threat", "protocol", "data", "notes"))


def test_the_report_of_a_run_says_which_images_it_was_judged_by(finished, tmp_path):
    invoke("evaluate", finished, *QUICK, "--split", "train", "--out", tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert (saved["data"]["split"], saved["data"]["images"]) == ("train", 40)
    assert saved["run"]["defense"]["name"] == "fast-at" and len(saved["history"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name the folder of a run, RUN, or any network with --model"),
        (("runs/x", "--model", "nets:net"), "RUN and --model exclude each other"),
        (("--model", "nets:net"), "--model needs --data and --eps too"),
        (("--model", "nets:net", "--data", "digits"), "--model needs --eps too"),
        (("--weights", "w.pt"), "name the folder of a run, RUN, or any network with --model"),
        (("--model", "nets:nett", *DIGITS), "there is no 'nett' in nets: did you mean 'net'?"),
        (("--model", "nets.py:nett", *DIGITS), "there is no 'nett' in nets.py: did you mean 'net'?"),
        (("--model", "nets.py", *DIGITS), "it defines net: write 'nets.py:net'"),
        (("--model", "nets:net", "--size", "8", *DIGITS), "size=8 is not an option for digits"),
        (("--model", "nets:net", "--model-option", "width", *DIGITS), "'width' is not NAME=VALUE"),
        (("--model", "nets:net", "--model-option", "wdith=3", *DIGITS), "unexpected keyword argument 'wdith'"),
        (("--model", "nets:net", "--weights", "w.pt", *DIGITS), "weights_key=None is not one of ema, model"),
        (("--model", "nets:net", "--weights-key", "ema", *DIGITS), "is not used without weights"),
        (("--model", "nets:net", "--mean", "0,5", "--std", "1", *DIGITS), "mean=(0.0, 5.0) is not in [0, 1]"),
        (("--model", "nets:net", "--mean", "half", *DIGITS), "'half' is not a number, or several with commas"),
        (("--model", "nets:net", "--mean", "0.5", *DIGITS), "std=None is not given, and mean is"),
        (("--model", "nets:net", "--pick", "logits", *DIGITS), "pick='logits' is not in the Tensor"),
        (("--model", "torch.nn:Flatten", *DIGITS), "returns 64 logits and digits has 10 classes"),
        (("--model", "nets:net", *DIGITS, "--out", "w.pt/report.json"), "cannot write to w.pt"),
        (("--model", "nets:net", "--data", "no.npz", "--eps", "0.1"), "no.npz"),
    ],
)
def test_mistakes_end_in_one_line_and_status_two(folder, capsys, arguments, message):
    assert message in fail(capsys, "evaluate", *arguments)


@pytest.mark.parametrize("name", sorted(_names(NETWORK) - {"model"}))
def test_what_does_nothing_beside_a_run_is_refused_by_name(finished, capsys, name):
    value = {"norm": "linf", "mean": "0.5", "std": "0.5", "size": "8"}.get(name, "x")
    option = "--" + name.replace("_", "-")
    assert f"{option} does nothing with RUN: leave it out" in fail(capsys, "evaluate", finished, option, value)


def test_whatever_load_model_takes_can_be_said_on_the_command_line():
    command = main.commands["evaluate"]
    options = {option.name for option in command.params}
    renamed = {"options": "model_option"}
    for name in inspect.signature(at.load_model).parameters:
        assert renamed.get(name, name) in options, name
    assert all(option.help for option in command.params if isinstance(option, click.Option) and option.name in
               _names(NETWORK))  # fmt: skip


def test_a_malicious_file_of_weights_executes_nothing(folder, capsys):
    class Evil:
        def __reduce__(self):
            return exec, ("open('harm', 'w').close()",)

    torch.save(Evil(), "evil.pt")
    assert "to load that would run code" in fail(
        capsys, "evaluate", "--model", "nets:net", "--weights", "evil.pt", *DIGITS
    )
    assert not (folder / "harm").exists()


def test_guessing_is_put_down_to_what_usually_causes_it(folder):
    words = "does the model expect normalised pixels"
    guess = ("--model", "nets:net", "--weights", "w.pt", "--weights-key", "ema", *DIGITS)
    assert words in invoke("evaluate", *guess).output
    data = at.load_data("digits")
    model = at.build_model("small-cnn", data, width=4)
    at.fit(model, at.defenses.Standard(at.Threat("linf", 0.1)), data, epochs=2, validate_every=0)
    from advtrain.weights import save_weights

    save_weights(model, "own.safetensors")
    own = ("--model", "small-cnn", "--model-option", "width=4", "--weights", "own.safetensors", *DIGITS)
    assert words not in invoke("evaluate", *own).output


def test_the_threat_and_the_data_are_those_of_the_command_line(folder):
    torch.manual_seed(0)
    torch.save(nn.Linear(3072, 4).state_dict(), "linear.pt")
    data = {"x_train": torch.rand(40, 3, 32, 32).numpy(), "y_train": (torch.arange(40) % 4).numpy()}
    numpy.savez("own.npz", **data)
    (folder / "flat.py").write_text(
        "from torch import nn\ndef f():\n    class F(nn.Linear):\n        def forward(self, x):\n"
        "            return super().forward(x.flatten(1))\n    return F(3072, 4)\n"
    )
    arguments = ("--model", "flat.py:f", "--weights", "linear.pt", "--data", "own.npz", "--norm", "l2", "--eps", "0.5")
    output = invoke("evaluate", *arguments, "--split", "train", *QUICK).output
    assert "f on own, train split" in output and "29 images, ℓ2 ε = 0.5" in output


def test_photographs_of_different_sizes_are_made_alike(folder, capsys):
    for number in range(10):
        (folder / "photos" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        some = numpy.random.default_rng(number).integers(0, 256, (9 + number, 12), dtype=numpy.uint8)
        Image.fromarray(some).save(folder / "photos" / "ab"[number % 2] / f"{number}.png")
    words = ("--model", "nets.py:net", "--data", "./photos", "--eps", "0.1", *QUICK)
    assert "size=64, say, makes them alike" in fail(capsys, "evaluate", *words)
    (folder / "nets.py").write_text(FACTORY.replace("10, bias", "2, bias"))
    result = invoke("evaluate", *words, "--size", "8", "--out", "report.json")
    assert result.exit_code == 0 and "net on photos, test split" in result.output
    saved = json.loads((folder / "report.json").read_text())
    assert (saved["data"]["name"], saved["data"]["size"], saved["data"]["images"]) == ("photos", 8, 2)


def test_other_commands_can_be_given_a_subject(folder, finished):
    @click.command()
    @with_subject
    @click.option("--depth", type=int, default=3)
    def probe(subject, depth):
        click.echo(f"{subject.title}; {subject.threat}; {len(subject.split)} images, depth {depth}")

    def output(*arguments):
        return CliRunner().invoke(probe, [str(argument) for argument in arguments], catch_exceptions=False).output

    assert output(finished, "--limit", 5) == (
        "fast-at on digits, test split; Threat(norm='linf', eps=0.3); 5 images, depth 3\n"
    )
    assert output("--model", "nets:net", "--data", "digits", "--eps", "0.2", "--depth", 1) == (
        "nets:net on digits, test split; Threat(norm='linf', eps=0.2); 360 images, depth 1\n"
    )


def test_autoattack_can_be_asked_for_kept_and_resumed(finished, tmp_path, capsys):
    files = ("--state", tmp_path / "aa.state", "--examples", tmp_path / "adv.npy")
    asked = ("evaluate", finished, "--limit", "12", "--steps", "1", "--restarts", "1", "--eps", "0.5", "--autoattack")
    first = invoke(*asked, "fast", *files, "--out", tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["rows"][-1]["name"] == "autoattack-fast" and saved["autoattack"]["version"] == "fast"
    assert "not the standard" in first.output and (tmp_path / "adv.npy").is_file()
    assert invoke(*asked, "fast", *files).exit_code == 0
    assert "another evaluation: version" in fail(capsys, *asked, "standard", *files)
    assert "add --autoattack" in invoke("evaluate", finished, *files).output


AA = ("--limit", "12", "--steps", "1", "--restarts", "1", "--eps", "0.5", "--autoattack", "fast")


@pytest.fixture
def calls(monkeypatch):
    """What the command asks of AutoAttack and of `evaluate`, in that order."""
    found = []
    for name in ("judge_split", "evaluate"):
        function = getattr(cli_judge, name)

        def noted(*arguments, name=name, function=function, **options):
            found.append((name, options))
            return function(*arguments, **options)

        monkeypatch.setattr(cli_judge, name, noted)
    return found


@pytest.mark.parametrize(("given", "asked"), [((), None), (("--batch-size", "5"), 5), (("--batch-size", "512"), 512)])
def test_autoattack_finds_its_batch_size_unless_one_is_given(finished, calls, given, asked):
    assert invoke("evaluate", finished, *AA, *given).exit_code == 0
    (_, judged), (_, rest) = calls
    assert judged["batch_size"] == asked and rest["batch_size"] == (asked or 512) and judged["bf16"] is False


def test_autoattack_can_search_in_bfloat16_and_the_report_says_so(finished, calls, tmp_path):
    assert invoke("evaluate", finished, *AA, "--bf16", "--out", tmp_path / "report.json").exit_code == 0
    assert calls[0][1]["bf16"] is True
    assert json.loads((tmp_path / "report.json").read_text())["autoattack"]["bf16"] is True
    assert "add --autoattack" in invoke("evaluate", finished, "--bf16").output


def test_files_of_autoattack_are_refused_before_any_other_work(finished, tmp_path, capsys, calls):
    (tmp_path / "other.state").write_text("no state")
    (tmp_path / "file").write_text("no folder")
    for option, path, named in (
        ("--state", "other.state", "other.state is damaged or no state of AutoAttack"),
        ("--examples", "file/adv.npy", "file: it is no folder"),
    ):
        assert named in fail(capsys, "evaluate", finished, *AA, option, tmp_path / path)
    assert [name for name, _ in calls] == ["judge_split", "judge_split"]


def test_what_evaluate_refuses_is_refused_before_autoattack(folder, capsys, calls):
    (folder / "soft.py").write_text(
        "from torch import nn\ndef f():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1))\n"
    )
    network = ("--model", "soft.py:f", "--data", "digits")
    assert "remove the softmax" in fail(capsys, "evaluate", *network, *AA)
    assert calls == []


def test_no_file_is_written_over_another(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for files, named in (
        (("--state", "a", "--out", tmp_path / "a"), "--state and --out"),
        (("--state", "a.npy", "--examples", "./a.npy"), "--state and --examples"),
        (("--state", "a.npy.partial", "--examples", "a.npy"), "--state and --examples"),
        (("--examples", "a.npy", "--out", "a.npy"), "--examples and --out"),
    ):
        assert f"{named} name the same file" in fail(capsys, "evaluate", finished, *AA, *files)
    assert [*tmp_path.iterdir()] == []


def test_an_earlier_report_is_replaced_only_where_that_is_said(finished, tmp_path, capsys):
    asked = ("evaluate", finished, "--limit", "8", "--steps", "1", "--restarts", "1", "--out", tmp_path / "report.json")
    assert invoke(*asked).exit_code == 0
    before = (tmp_path / "report.json").read_bytes()
    assert "report.json is there already" in fail(capsys, *asked, "--eps", "0.1")
    assert (tmp_path / "report.json").read_bytes() == before
    assert invoke(*asked, "--eps", "0.1", "--overwrite").exit_code == 0
    assert (tmp_path / "report.json").read_bytes() != before


@pytest.mark.filterwarnings("always:the gradient is exactly zero")
def test_the_warnings_of_autoattack_are_in_the_report_of_the_command(folder):
    (folder / "steep.py").write_text(
        "import torch\nfrom torch import nn\nclass F(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.net = nn.Linear(64, 10)\n    def forward(self, x):\n"
        "        return 1e4 * self.net(x.flatten(1)).clamp(-1e-3, 1e-3)\n"
    )
    network = ("--model", "steep.py:F", "--data", "digits")
    output = invoke("evaluate", *network, *AA, "--limit", "60", "--out", "report.json").output
    saved = json.loads((folder / "report.json").read_text())
    assert saved["warnings"] == saved["autoattack"]["warnings"] and "exactly zero" in saved["warnings"][0]
    assert output.index("AutoAttack, fast") < output.index("F on digits, test split")
    assert output.count("Warning: the gradient is exactly zero") == 2


def test_the_help_says_what_a_resumed_command_repeats():
    text = " ".join(invoke("evaluate", "--help").output.split())
    assert "but repeats FGSM, PGD" in text and "512 unless given; AutoAttack finds its own" in text
