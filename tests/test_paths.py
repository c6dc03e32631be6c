"""Paths: `~` is the home folder everywhere, a folder stays where it was named, and what cannot be one is refused."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from click.testing import CliRunner

import advtrain as at
from advtrain import cli, experiments

THREAT = at.Threat("linf", 0.3)
DIGITS = at.load_data("digits")
FEW = at.as_dataset((DIGITS.train.x[:32], DIGITS.train.y[:32]), val=0, test=0, num_classes=10)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home folder, beside the current one."""
    for name in ("home", "work", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def net():
    return at.build_model("small-cnn", DIGITS, width=4)


def trained(out, **options):
    return at.fit(net(), at.defenses.Standard(THREAT), FEW, epochs=options.pop("epochs", 1), out=out, **options)


def nothing_here():
    assert [*os.scandir()] == [], "a folder that is called ~"


def test_a_tilde_is_the_home_folder(home):
    run = trained("~/runs/x")
    assert run.path == home / "runs" / "x" and (run.path / "config.json").is_file()
    assert at.load_run("~/runs/x", data=FEW).path == run.path
    assert trained("~/runs/x", resume=True).path == run.path
    with pytest.raises(at.errors.FileError, match="already holds a config.json"):
        trained("~/runs/x")
    assert run.save("~/runs/y") == home / "runs" / "y" and at.export(net(), "~/out") == home / "out"
    x, y = DIGITS.test.images()[:4], DIGITS.test.y[:4]
    files = {"state": "~/aa.state", "examples": "~/adv.npy"}
    assert at.autoattack(net(), x, y, at.Threat("linf", 0.01), "fast", **files).path == str(home / "adv.npy")
    at.load_results("digits").save("~/r.json")
    assert (home / "aa.state").is_file() and len(at.load_results("~/r.json").runs) > 0
    nothing_here()


def test_what_lies_in_the_home_folder_is_read_from_there(home):
    numpy.savez(home / "own.npz", x_train=FEW.train.x.numpy(), y_train=FEW.train.y.numpy())
    (home / "net.py").write_text(
        "from torch import nn\ndef f():\n    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))\n"
    )
    torch.save({"1.weight": torch.ones(10, 64), "1.bias": torch.zeros(10)}, home / "w.pt")
    shutil.copy(Path(experiments.__file__).with_name("digits.toml"), home / "mine.toml")
    data = at.load_data("~/own.npz")
    assert data.name == "own" and at.load_data(Path("~/own.npz")).name == "own"
    assert at.load_model("~/net.py:f", data=data, weights="~/w.pt")(data.probe().x[:2] / 255).shape == (2, 10)
    assert experiments.load("~/mine.toml").name == "mine"
    with pytest.raises(at.errors.FileError, match="holds no run: there is no config.json in it"):
        at.load_run("~")
    nothing_here()


def test_a_tilde_on_the_command_line_is_the_home_folder_where_the_shell_leaves_it(home):
    def said(*words):
        found = CliRunner().invoke(cli.main, [str(word) for word in words])
        assert found.exit_code == 0, (found.output, found.exception)

    quick = ("--epochs", "1", "--validate-every", "0")
    said("train", "standard", "--eps", "0.3", "--out=~/x", "--no-evaluate", "--model-option", "width=4", *quick)
    judged = ("--limit", "4", "--steps", "1", "--restarts", "1")
    said("evaluate", "~/x", "--out=~/report.json", *judged)
    again = CliRunner().invoke(cli.main, ["evaluate", "~/x", "--out=~/report.json", *judged])
    assert "is there already" in str(again.exception)
    said("diagnose", "~/x", "--images", "8", "--out=~/diagnosis.json")
    said("export", "~/x", "--out=~/exported")
    assert {"x", "report.json", "diagnosis.json", "exported"} <= {entry.name for entry in os.scandir(home)}
    nothing_here()


def test_a_run_stays_in_its_folder_when_a_callback_goes_elsewhere(home, monkeypatch):
    def away(run):
        os.chdir(home.parent / "other")

    run = trained("runs/x", epochs=2, callbacks=[away])
    there = home.parent / "work" / "runs" / "x"
    assert run.path == there, "from elsewhere, its whole path names it"
    assert json.loads((there / "config.json").read_text())["status"] == "finished"
    assert not (there / "checkpoints").exists() and [*os.scandir()] == []


def test_a_path_is_shown_as_it_was_written_and_recorded_nowhere(home):
    run = trained("runs/x", callbacks=[lambda run: run.save()])
    assert str(run.path) == os.path.join("runs", "x") and run.save("runs/x") == run.path
    for name in ("config.json", "provenance.json", "history.json"):
        assert str(home.parent) not in (run.path / name).read_text()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("a" * 300, "cannot write to a{300}: File name too long; choose a folder you may write to"),
        ("a" * 300 + "/x", "cannot write to a{300}/x: File name too long; choose a folder you may write to"),
        ("runs\0x", r"out='runs\\x00x' is not the path of a folder: no file can have a NUL character in its name"),
        ("runs\udcffx", r"out='runs\\udcffx' is not the path of a folder: its name is not Unicode: rename"),
    ],
    ids=["long", "in long", "nul", "no unicode"],
)
@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}], ids=str)
@pytest.mark.posix
def test_what_no_folder_can_be_called_is_refused_before_training(out, message, options, home):
    model = net()
    before = model.head.weight.clone()
    with pytest.raises(at.errors.AdvtrainError, match=message):
        at.fit(model, at.defenses.Standard(THREAT), FEW, epochs=1, out=out, **options)
    assert torch.equal(model.head.weight, before)
    with pytest.raises(at.errors.AdvtrainError, match=re.sub("^out=", "path=", message)):
        at.Run(net(), at.defenses.Standard(THREAT), FEW, {}).save(out)
    nothing_here()
