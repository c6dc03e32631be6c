"""`advtrain diagnose` says of a run, or of any network, whether its robustness holds."""

import json

import pytest
from click.testing import CliRunner

import advtrain as at
from advtrain.cli import main


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run, barely trained."""
    folder = tmp_path_factory.mktemp("runs") / "x"
    data = at.load_data("digits")
    at.fit(at.build_model("small-cnn", data, width=4), at.defenses.FGSM(at.Threat("linf", 0.1)), data, epochs=2,
           out=folder, progress=False)  # fmt: skip
    return folder


def test_a_run_is_diagnosed_as_from_python(run, tmp_path):
    result = invoke("diagnose", run, "--images", 60, "--out", tmp_path / "d.json", "--plot", tmp_path / "d.png")
    loaded = at.load_run(run)
    expected = at.diagnose(loaded.model, loaded.data.test, loaded.threat, images=60)
    assert result.exit_code == 0 and str(expected) in result.output and "fgsm on digits, test split" in result.output
    saved = json.loads((tmp_path / "d.json").read_text())
    assert at.Diagnosis.from_dict(saved) == expected and saved["data"]["name"] == "digits"
    assert (tmp_path / "d.png").read_bytes()[1:4] == b"PNG" and len(list(tmp_path.iterdir())) == 2


def test_any_network_is_diagnosed(run):
    network = ("--model", "small-cnn", "--model-option", "width=4", "--weights", run / "model.safetensors")
    output = invoke("diagnose", *network, "--data", "digits", "--eps", "0.1", "--images", "20").output
    assert "small-cnn on digits, test split" in output and "20 images, ℓ∞ ε = 0.1:" in output


def test_a_softmax_is_diagnosed_and_not_judged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "soft.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1))\n"
    )
    network = ("--model", "soft.py:net", "--data", "digits", "--eps", "0.1")
    assert "Remove the last softmax" in invoke("diagnose", *network, "--images", "20").output
    with pytest.raises(at.errors.ModelError, match="remove the softmax"):
        invoke("evaluate", *network)


def test_a_picture_of_no_known_kind_is_an_error_and_leaves_nothing(run, tmp_path):
    result = CliRunner().invoke(main, ["diagnose", str(run), "--images", "20", "--plot", str(tmp_path / "d.xyz")])
    assert isinstance(result.exception, at.AdvtrainError) and "d.xyz" in str(result.exception)
    assert not list(tmp_path.iterdir())
