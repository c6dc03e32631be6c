"""Files that are wrong in one way each: runs, images, weights, Python, experiments, results."""

import shutil

import numpy as np
import torch
from PIL import Image
from torch import nn
from wrong_calls import THREAT, data, images, labels, net

import advtrain as at
from advtrain.weights import save_weights

NETS = """
from torch import nn

WIDTH = 3


def net(width):
    return nn.Linear(width, 2)


def pair():
    return nn.Flatten(), 3
"""
EXPERIMENT = """
title = "Small"
seeds = [0]
data = { name = "digits" }
model = { name = "small-cnn", width = 2 }
threat = { norm = "linf", eps = 0.3 }
fit = { epochs = 1, validate_every = 0, batch_size = 512 }
judge = { protocol = { steps = 1, restarts = 1 }, limit = 20 }

[[method]]
name = "fast"
defense = "fast-at"
"""


def changed(text, old, new):
    assert old in text
    return text.replace(old, new)


def spoil_runs(folder):
    """A run, and copies of it each of which has one thing wrong."""
    at.fit(
        at.build_model("small-cnn", data(), width=2), at.defenses.FastAT(THREAT), data(), epochs=1, out=folder / "run"
    )
    text = (folder / "run" / "config.json").read_text()
    for name, file, content in [
        ("run-config", "config.json", "{"),
        ("run-format", "config.json", changed(text, '"format": 1', '"format": 99')),
        ("run-key", "config.json", changed(text, '"options"', '"otpions"')),
        ("run-list", "config.json", "[1, 2]"),
        ("run-defense", "config.json", changed(text, '"FastAT"', '"MyDefense"')),
        ("run-option", "config.json", changed(text, '"rel_step": 1.25', '"rel_step": "big"')),
        ("run-model", "config.json", changed(text, '"small-cnn"', '"small-cnnn"')),
        ("run-history", "history.json", "[1, 2]"),
        ("run-none", "config.json", None),
        ("run-no-weights", "model.safetensors", None),
        ("run-cut-weights", "model.safetensors", b"\x08"),
    ]:
        shutil.copytree(folder / "run", folder / name)
        (folder / name / file).unlink()
        if content is not None:
            (folder / name / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    shutil.copytree(folder / "run", folder / "run-wide")
    wide = at.build_model("small-cnn", data(), width=3)
    save_weights(wide, folder / "run-wide" / "model.safetensors")


def spoil_data(folder):
    """Files and folders of images."""
    x, y = images().numpy(), labels().numpy()
    for name, arrays in {
        "no-labels": {"x_train": x},
        "no-test-labels": {"x_train": x, "y_train": y, "x_test": x},
        "nan": {"x_train": np.where(x == x.max(), np.nan, x), "y_train": y},
        "bright": {"x_train": x * 255, "y_train": y},
        "lengths": {"x_train": x, "y_train": y[:-1]},
        "few-classes": {"x_train": x, "y_train": y, "classes": np.array(["a", "b"])},
        "objects": {"x_train": x, "y_train": y.astype(object)},
        "flat": {"x_train": x.reshape(16, 64), "y_train": y},
    }.items():
        np.savez(folder / f"{name}.npz", **arrays)
    (folder / "text.npz").write_text("text")
    (folder / "cut.npz").write_bytes((folder / "flat.npz").read_bytes()[:300])
    with open(folder / "single.npz", "wb") as file:
        np.save(file, x)
    for path, size in {
        "sizes/cat/1.png": 8, "sizes/dog/1.png": 9, "damaged/cat/1.png": 8, "strange/train/cat/1.png": 8,
        "strange/test/cow/1.png": 8,
    }.items():  # fmt: skip
        (folder / path).parent.mkdir(parents=True)
        Image.new("RGB", (size, size)).save(folder / path)
    (folder / "damaged/cat/2.png").write_bytes((folder / "damaged/cat/1.png").read_bytes()[:40])
    (folder / "texts/cat").mkdir(parents=True)
    (folder / "texts/cat/1.txt").write_text("cat")
    (folder / "nothing").mkdir()


def spoil_weights(folder):
    """Files of weights, and of Python that should make a network."""
    state = net().state_dict()
    torch.save(net(3).state_dict(), folder / "three.pt")
    torch.save({"norm.bias": state["norm.bias"]}, folder / "part.pt")
    torch.save({"net": state, "ema": state}, folder / "several.pt")
    torch.save(nn.Sequential(nn.Linear(2, 2)), folder / "whole.pt")
    torch.save(torch.rand(3), folder / "tensor.pt")
    torch.save({key: value.to(torch.int8) for key, value in state.items()}, folder / "ints.pt")
    torch.save({"other": torch.rand(3)}, folder / "other.pt")
    for name, content in {
        "empty.pt": b"",
        "page.pt": b"<html>not found",
        "text.pt": b"weights",
        "cut.pt": (folder / "three.pt").read_bytes()[:90],
        "lfs.pt": b"version https://git-lfs.github.com/spec/v1",
        "broken.py": b"def net(:",
        "raises.py": b"import nowhere_to_be_found",
        "nets.py": NETS.encode(),
    }.items():
        (folder / name).write_bytes(content)


def spoil_experiments(folder):
    """Experiments, and files of results."""
    (folder / "small.toml").write_text(EXPERIMENT)
    for name, old, new in [
        ("no-seeds", "seeds = [0]\n", ""),
        ("twice", "seeds = [0]", "seeds = [0, 0]"),
        ("typo", "epochs = 1", "epohcs = 1"),
        ("text", "epochs = 1", 'epochs = "1"'),
        ("eps", "eps = 0.3", "eps = 8"),
        ("defense", '"fast-at"', '"fastat"'),
        ("data", '"digits"', '"didgits"'),
        ("model", "width = 2", "depth = 2"),
        ("no-method", "[[method]]", "[method]"),
        ("broken", "[[method]]", "[[method]"),
    ]:
        (folder / f"{name}.toml").write_text(changed(EXPERIMENT, old, new))
    results = at.reproduce(folder / "small.toml", out=folder / "small.json", workers=0)
    assert results.missing == 0
    text = (folder / "small.json").read_text()
    for name, content in {
        "broken": text[:100], "list": "[1]", "other": '{"format": "advtrain results 99"}', "no-format": '{"a": 1}',
        "changed": changed(text, '"seed": 0', '"seed": 1'), "other-experiment": changed(text, "Small", "Smaller"),
    }.items():  # fmt: skip
        (folder / f"{name}.json").write_text(content)


def build(folder):
    """Everything that is wrong, in files."""
    (folder / "a-file").write_text("text")
    for spoil in (spoil_runs, spoil_data, spoil_weights, spoil_experiments):
        spoil(folder)
    at.export(net(), folder / "exported-before", data=data())
