"""An exported model runs where this package is not, gives the same logits, and says what it is."""

import ast
import contextlib
import hashlib
import json
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

import advtrain as at
from advtrain import cli
from advtrain.errors import ArgumentError, FileError, ModelError

THREAT = at.Threat("l2", 0.5)


@pytest.fixture(scope="module")
def run():
    data = at.load_data("digits")
    model = at.build_model("small-cnn", data, width=4, batch_norm=True)
    options = dict(epochs=1, val_steps=1, progress=False, device="cpu")
    return at.fit(model, at.defenses.PGD(THREAT, steps=1), data, **options)


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    return run.export(tmp_path_factory.mktemp("out") / "model")


ELSEWHERE = """
import importlib.abc
import sys

class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "advtrain":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Nothing())
try:
    import advtrain
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("advtrain can be imported: this proves nothing")

import torch

model = torch.export.load("model.pt2").module()
images = torch.load("images.pt", weights_only=True)
torch.save([model(images[:1]), model(images)], "logits.pt")
assert not any(name.partition(".")[0] == "advtrain" for name in sys.modules)
"""


def test_the_program_runs_without_this_package_for_any_number_of_images(run, folder, tmp_path):
    images = run.data.test.images(slice(7))
    (tmp_path / "model.pt2").write_bytes((folder / "model.pt2").read_bytes())
    torch.save(images, tmp_path / "images.pt")
    subprocess.run([sys.executable, "-I", "-c", ELSEWHERE], cwd=tmp_path, check=True)
    with torch.no_grad():
        wanted = [run.model(images[:1]), run.model(images)]
    for found, own in zip(torch.load(tmp_path / "logits.pt", weights_only=True), wanted, strict=True):
        assert torch.allclose(found, own, atol=1e-5)


def test_the_weights_are_those_of_the_model(run, folder):
    state, own = load_file(folder / "model.safetensors"), run.model.state_dict()
    assert state.keys() == own.keys() and all(state[key].equal(own[key]) for key in own)
    about = json.loads((folder / "model.json").read_text())
    again = at.build_model(**about["model"])
    again.load_state_dict(state)
    x = run.data.test.images(slice(5))
    with torch.no_grad():
        assert again.eval()(x).equal(run.model(x))


@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")  # of torch.export.load in 2.12
def test_the_folder_says_what_the_model_is(run, folder):
    about = json.loads((folder / "model.json").read_text())
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "model.json", "model.pt2", "model.safetensors",
    ]  # fmt: skip
    assert about["input"] == {"shape": ["B", 1, 8, 8], "dtype": "float32", "range": [0, 1]}
    assert about["output"] == {"logits": 10, "classes": [str(digit) for digit in range(10)]}
    assert about["normalisation"]["mean"] == pytest.approx(run.data.mean)
    assert about["threat"]["norm"] == "l2" and about["defense"]["name"] == "pgd" and about["data"] == "digits"
    for name, digest in about["sha256"].items():
        assert digest == hashlib.sha256((folder / name).read_bytes()).hexdigest(), name
    text = (folder / "README.md").read_text(encoding="utf-8")
    for words in ("ℓ2 perturbations of at most ε = 0.5", "(B, 1, 8, 8) float32", "10 logits", "`pgd` on digits"):
        assert words in text
    code = textwrap.dedent(text.partition("```python\n")[2].partition("```")[0])
    assert len(code.strip().splitlines()) == 4  # with an empty one
    names = {"images": run.data.test.images(slice(3))}
    exec(code.replace("model.pt2", str(folder / "model.pt2")), names)
    with torch.no_grad():
        assert torch.allclose(names["logits"], run.model(names["images"]), atol=1e-5)


def test_the_model_is_left_as_it_was(run, folder, tmp_path):
    run.model.train()
    before = [tensor.clone() for tensor in run.model.state_dict().values()]
    run.export(tmp_path / "x")
    assert run.model.training and all(map(torch.equal, before, run.model.state_dict().values()))
    run.model.eval()
    written, earlier = ((path / "model.safetensors").read_bytes() for path in (tmp_path / "x", folder))
    assert written == earlier  # in evaluation mode, whatever the model's own


def test_an_earlier_export_is_replaced_only_if_that_is_wanted(run, tmp_path):
    run.export(tmp_path)
    with pytest.raises(FileError, match="already holds a model.json of an earlier run.*overwrite"):
        run.export(tmp_path)
    other = at.build_model("small-cnn", run.data, width=4, seed=5)
    at.export(other, tmp_path, overwrite=True)
    state = other.state_dict()
    assert all(value.equal(state[key]) for key, value in load_file(tmp_path / "model.safetensors").items())
    assert json.loads((tmp_path / "model.json").read_text())["threat"] is None


def test_a_network_from_elsewhere_is_exported_with_its_normalisation(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    model = at.load_model(network, mean=(0.4, 0.5, 0.6), std=0.25)
    with pytest.raises(ArgumentError, match=r"shape=None is not \(C, H, W\): the model does not tell it: give data"):
        at.export(model, tmp_path)
    at.export(model, tmp_path, shape=(3, 16, 16), threat=at.Threat("linf", 8 / 255))
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(torch.export.load(tmp_path / "model.pt2").module()(x), model(x), atol=1e-5)
    assert json.loads((tmp_path / "model.json").read_text())["normalisation"]["mean"] == pytest.approx([0.4, 0.5, 0.6])
    assert "ε = 8/255" in (tmp_path / "README.md").read_text(encoding="utf-8")


class Choosy(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(64, 10), how

    def forward(self, x):
        if self.how == "by value" and x.sum() > 0:
            x = x + 1
        if self.how == "at random":
            x = x + torch.rand_like(x)
        return self.layer(x.flatten(1))


@pytest.mark.parametrize(
    ("how", "message"),
    [("by value", "torch.export cannot follow Choosy: "), ("at random", "gives other logits than it")],
)
def test_a_network_that_cannot_be_exported_is_refused_and_nothing_is_written(tmp_path, how, message):
    with pytest.raises(ModelError, match=message):
        at.export(Choosy(how), tmp_path / "x", shape=(1, 8, 8))
    assert not (tmp_path / "x").exists()


def test_the_command_exports_a_run(run, tmp_path):
    run.save(tmp_path / "run")
    arguments = ["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and "README.md says how to run it" in done.output
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == run.model.state_dict().keys()
    with pytest.raises(FileError, match="already holds"):
        CliRunner().invoke(cli.main, arguments, catch_exceptions=False)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


def test_a_program_can_run_code_when_it_is_loaded_as_its_description_says(folder, tmp_path):
    """A weight of the archive is declared a pickle. If PyTorch ever refuses that, the warning can be taken back."""
    torch.save(Evil(tmp_path / "harm"), tmp_path / "pickle")
    with zipfile.ZipFile(folder / "model.pt2") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = next((name for name in files if name.endswith("weights_config.json")), None)
    if config is None:  # PyTorch 2.6 keeps all weights in one pickle
        pickled = "serialized_state_dict.pt"
    else:
        table = json.loads(files[config])
        weight = next(iter(table["config"].values()))
        weight["use_pickle"] = True
        files[config] = json.dumps(table).encode()
        pickled = next(name for name in files if name.endswith(f"/{weight['path_name']}"))
    assert pickled in files
    files[pickled] = (tmp_path / "pickle").read_bytes()
    with zipfile.ZipFile(tmp_path / "evil.pt2", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    with contextlib.suppress(Exception):  # whatever comes of a weight that is None
        torch.export.load(tmp_path / "evil.pt2")
    assert (tmp_path / "harm").exists()


def test_this_package_never_loads_a_program(folder):
    with pytest.raises(FileError, match="holds no state_dict|code|damaged"):
        at.load_model(lambda: nn.Linear(64, 10), folder / "model.pt2")
    for path in Path(at.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert not [name for name in called if name.endswith(("export.load", "load_pt2"))], path.name


def test_an_export_and_a_run_do_not_share_a_folder(tmp_path):
    """Else one would have the other's weights. Nor does an export take the place of a README of something else."""
    data = at.load_data("digits")
    run = at.fit(at.build_model("small-cnn", data, width=2), at.defenses.Standard(at.Threat("linf", 0.1)),
                 data, epochs=1, validate_every=0, out=tmp_path / "run")  # fmt: skip
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(FileError, match="holds a run"):
        run.export(tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "README.md").write_text("mine")
    with pytest.raises(FileError, match="already holds a README.md"):
        run.export(tmp_path / "own")
    assert (tmp_path / "own" / "README.md").read_text() == "mine"
    run.export(tmp_path / "export")
    with pytest.raises(FileError, match="holds an export"):
        run.save(tmp_path / "export")
    with pytest.raises(FileError, match="holds an export"):
        at.fit(run.model, run.defense, data, epochs=1, out=tmp_path / "export")
