"""What a newcomer does on the first day, from beginning to end: to defend one's own network on one's own photographs in
a notebook and take it elsewhere, and to judge a checkpoint that was trained without this package."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import advtrain as at
from advtrain.cli import run as command
from advtrain.errors import ArgumentError, FileError, ModelError

pytest.importorskip("PIL")
from PIL import Image  # noqa: E402

CLASSES = ("barn", "meadow", "sea")
MEAN, STD = 0.5, 0.25  # what those who trained elsewhere normalised by, outside their network


def photographs(root, count):
    """Photographs of different sizes, as cameras and telephones name them; one is grey, one transparent in part."""
    rng = np.random.default_rng(0)
    for label, (name, colour) in enumerate(zip(CLASSES, np.eye(3) * 0.45 + 0.25, strict=True)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            width, height = rng.integers(17, 30, 2)
            pixels = colour + rng.normal(0, 0.08, (height, width, 3)) + rng.uniform(-0.1, 0.1)
            picture = Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8))
            if number == 2:
                picture = picture.convert("L" if label else "RGBA")
            if number == 2 and not label:
                picture.putalpha(picture.convert("L"))
            picture.save(root / name / (f"{number}.png" if number % 2 == 0 else f"IMG_{number:04}.JPG"))
    (root / ".DS_Store").write_bytes(b"\0")  # what a Mac leaves in every folder
    return root


MINE = """
from torch import nn

class Mine(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1),
                         nn.Linear(128, num_classes))
"""

NOTEBOOK = """
import torch
import advtrain as at
from mine import Mine

torch.manual_seed(0)  # else each process begins with weights of its own
data = at.load_data("./photographs", size=16)
data
# %%
threat = at.Threat("linf", eps=8 / 255)
network = Mine(num_classes=data.num_classes)
model = at.load_model(network, mean=data.mean, std=data.std, data=data)

seen = []
def show(run):
    seen.append(run.history[-1]["val_pgd"])

run = at.fit(model, at.defenses.FastAT(threat), data, epochs=2, batch_size=16, lr=0.05, out="runs/own", device="cpu",
             callbacks=[show, at.callbacks.TensorBoard("runs/tensorboard/own")])
run
# %%
assert seen == [record["val_pgd"] for record in run.history]
run.plot()
# %%
report = at.evaluate(run.model, data, threat, protocol=at.Protocol(steps=5, restarts=1))
report
# %%
at.autoattack(run.model, data.test.images(), data.test.y, threat, "fast")
# %%
small = at.build_model("small-cnn", data, width=4)
found = at.diagnose(run.model, data, threat, images=6, surrogate=small)
found
# %%
found.plot()
# %%
few = data.test[:4]
at.plot.adversarial_grid(run.model, few.images(), few.y, threat, classes=data.classes)
# %%
at.plot.eps_curve(run.model, data.test, threat, eps=[0, 0.02, 0.04], steps=2)
# %%
at.widgets.explorer(run.model, data, run.threat)
# %%
import json
at.export(run.model, "exported/own", data=data, threat=threat)
torch.save(data.test.images(), "images.pt")
torch.save(run.model(data.test.images()).detach(), "logits.pt")
print(json.dumps([report["clean"], report["pgd"]]))
"""

ANOTHER_PROCESS = """
import sys, torch

images, logits = torch.load("images.pt"), torch.load("logits.pt")
found = torch.export.load("exported/own/model.pt2").module()(images)
assert torch.allclose(found, logits, atol=1e-4) and "advtrain" not in sys.modules

import advtrain as at
from mine import Mine

try:
    at.load_run("runs/own", model=at.load_model(Mine(3)))
except at.errors.ArgumentError as error:
    assert "mean=[0.5] * 3" in str(error)  # says how to go on
run = at.load_run("runs/own", model=at.load_model(Mine(3), mean=[0.5] * 3, std=[0.5] * 3))
assert run.data.classes == ("barn", "meadow", "sea") and run.threat == at.Threat("linf", eps=8 / 255)
report = at.evaluate(run.model, run.data, run.threat, protocol=at.Protocol(steps=5, restarts=1))
print([report["clean"], report["pgd"]])
"""


def test_ones_own_network_is_defended_on_ones_own_photographs_in_ones_own_notebook(tmp_path):
    """Every cell shows what it ought to, nothing is written to stderr, and another process finds the same."""
    for name in ("matplotlib", "ipywidgets", "tensorboard"):
        pytest.importorskip(name)
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    photographs(tmp_path / "photographs", 14)
    (tmp_path / "mine.py").write_text(MINE)
    cells = [nbformat.v4.new_code_cell(cell) for cell in NOTEBOOK.split("# %%\n")]
    note = nbformat.v4.new_notebook(cells=cells)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(note, timeout=300, kernel_name="python3", resources=resources).execute()

    outputs = [output for cell in note.cells for output in cell.outputs]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    shown = [cell.outputs[-1].get("data", {}) for cell in note.cells]
    data, run, history, report, verdict, found, *figures, explorer, _ = shown
    assert "3 classes, images of 3x16x16" in data["text/plain"] and "text/html" in data
    assert "finished after 2 epochs" in run["text/plain"] and "text/html" in run
    assert "8/255" in report["text/plain"] and "AutoAttack" in verdict["text/plain"]
    assert re.search("gradient masking|[Ff]lagged", found["text/plain"])
    assert len(figures) == 3 and all("image/png" in figure for figure in (history, *figures))
    assert "application/vnd.jupyter.widget-view+json" in explorer
    assert list((tmp_path / "runs" / "tensorboard" / "own").iterdir())

    done = subprocess.run([sys.executable, "-c", ANOTHER_PROCESS], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(note.cells[-1].outputs[-1].text)


NETWORK = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10, softmax=False):
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, num_classes)
        self.softmax = nn.Softmax(1) if softmax else nn.Identity()

    def forward(self, x):
        return self.softmax(self.head(self.features(x)))
"""


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """A folder as somebody hands it over: their code and what they saved. Yields their clean accuracy."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.py").write_text(NETWORK)
    module = type(sys)("theirs")
    exec(NETWORK, module.__dict__)
    monkeypatch.setitem(sys.modules, "theirs", module)
    module.Net.__module__ = "theirs"
    torch.manual_seed(0)
    net, data = module.Net(), at.load_data("digits")
    x, y = (data.train.images() - MEAN) / STD, data.train.y
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for batch in [batch for _ in range(6) for batch in torch.randperm(len(x)).split(64)]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
        optimizer.step()
    state = net.state_dict()
    torch.save(state, "bare.pt")
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 6}, "wrapped.pth")
    save_file(state, "weights.safetensors")
    torch.save(net, "whole.pt")
    torch.save(module.Net(5).state_dict(), "five.pt")
    with torch.no_grad():
        yield (net((data.test.images() - MEAN) / STD).argmax(1) == data.test.y).float().mean().item()
    sys.modules.pop("advtrain_model_theirs", None)


QUICK = ("--data", "digits", "--eps", "0.1", "--limit", "60", "--steps", "8", "--restarts", "1", "--device", "cpu")


def said(capsys, *arguments, status=0):
    """What a command wrote, on one line."""
    with pytest.raises(SystemExit) as stop:
        command([*arguments])
    output, error = capsys.readouterr()
    assert (stop.value.code or 0) == status and "Traceback" not in error, error
    return " ".join((error if status else output).split())


def test_a_checkpoint_from_elsewhere_is_judged_as_the_book_says(checkpoints, capsys):
    """Their clean accuracy comes back from every kind of file; attacks judge; what misleads is named or refused."""
    data, threat = at.load_data("digits"), at.Threat("linf", eps=0.1)
    models = [at.load_model("theirs.py:Net", file, mean=MEAN, std=STD, data=data)
              for file in ("bare.pt", "wrapped.pth", "weights.safetensors")]  # fmt: skip
    quick = at.Protocol(steps=5, restarts=1)
    reports = [at.evaluate(model, data, threat, protocol=quick) for model in models]
    assert reports[0] == reports[1] == reports[2]
    assert reports[0]["clean"] == pytest.approx(checkpoints) and checkpoints > 0.9
    few = data.test[:40]
    last_word = at.autoattack(models[0], few.images(), few.y, threat, "fast")
    assert last_word.robust_accuracy <= at.evaluate(models[0], few, threat, protocol=quick)["pgd"] < 0.8

    # ε is in units of a pixel: no image that is found moved further, although the network sees a change of ε / 0.25
    x_adv = at.attacks.pgd(models[0], few.images(), few.y, threat, steps=5)
    assert threat.contains(x_adv, few.images()).all() and (x_adv - few.images()).abs().max() > 0.09

    # without their normalisation nothing fails, and a diagnosis says what is wrong
    blind = at.load_model("theirs.py:Net", "bare.pt", data=data)
    honest = at.load_results("digits").run("pgd").model
    causes = [at.diagnose(model, data, threat, images=64, surrogate=honest).causes for model in (blind, models[0])]
    assert causes == [("input range",), ()]

    # a softmax is refused where logits are needed, judged by AutoAttack with a warning, and named by a diagnosis
    soft = at.load_model("theirs.py:Net", "bare.pt", options={"softmax": True}, mean=MEAN, std=STD)
    with pytest.raises(ModelError, match="probabilities.*remove the softmax"):
        at.evaluate(soft, data, threat)
    with pytest.warns(at.errors.AdvtrainWarning, match="probabilities"):
        assert at.autoattack(soft, few.images(), few.y, threat, "fast").robust_accuracy == last_word.robust_accuracy
    assert "probabilities instead of logits" in at.diagnose(soft, few, threat, images=16, surrogate=honest).causes

    for file, kind, words in [
        ("whole.pt", FileError, "to load that would run code"),
        ("five.pt", ArgumentError, r"a model of 5 classes\? then options={'num_classes': 5}"),
        ("theirs.py", FileError, "neither a safetensors file nor one that torch.save wrote"),
        ("missing.pt", FileError, "does not exist"),
    ]:
        with pytest.raises(kind, match=words):
            at.load_model("theirs.py:Net", file, data=data)

    # and the commands of the book
    network = ("--model", "theirs.py:Net", "--mean", str(MEAN), "--std", str(STD))
    words = said(capsys, "evaluate", *network, "--weights", "wrapped.pth", *QUICK, "--out", "verdict.json")
    assert "60 images, ℓ∞ ε = 0.1" in words and "clean" in words
    assert json.loads(Path("verdict.json").read_text(encoding="utf-8"))["model"]["weights"]["file"] == "wrapped.pth"
    words = said(capsys, "evaluate", *network, "--weights", "whole.pt", *QUICK, status=2)
    assert "to load that would run code" in words
    words = said(capsys, "evaluate", *network, "--weights", "five.pt", *QUICK, status=2)
    assert "a model of 5 classes? then options={'num_classes': 5} (--model-option)" in words
