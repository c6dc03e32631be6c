"""Replay reference fixtures: one training step made with the authors' own code, against ours, tensor by tensor.

    python tests/replay_reference.py tests/reference/*.npz [--dtype float32] [--tol 1e-9]

For every tensor that a file records, prints max|ours - theirs| / max|theirs|. Exit status 0 if all are within the
tolerance, 1 if one is not, 2 if a file's method has no implementation here yet or the file cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import advtrain as at
from advtrain.attacks import losses
from advtrain.rng import Recorded

INPUTS = ("x", "y", "meta", "hp.", "rng.", "param.", "buffer.", "in.", "logits", "mean", "std", "x_pixel")
ACTIVATIONS = {"relu": nn.ReLU, "softplus": nn.Softplus, "tanh": nn.Tanh}


class Fixture:
    """A fixture file: `z["grad.fc.bias"]` is a tensor, `z.meta` the description."""

    def __init__(self, path: str | Path, dtype: torch.dtype = torch.float64):
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            self.arrays = {key: file[key] for key in file.files if key != "meta"}
            self.meta = json.loads(str(file["meta"]))
        self.path, self.dtype = Path(path), dtype

    def __getitem__(self, key: str) -> Tensor:
        value = torch.from_numpy(np.asarray(self.arrays[key]))
        return value.to(self.dtype) if value.is_floating_point() else value

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def hp(self, name: str) -> float:
        return self.arrays[f"hp.{name}"].item()

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {key[len(prefix) :]: self[key] for key in self.arrays if key.startswith(prefix)}

    def model(self) -> nn.Module:
        """The tiny network of the file, with its weights and buffers, in training mode."""
        net = TinyConv(self["x"].shape[1], self.meta["activation"], bn=self.meta["arch"] == "tiny_conv_bn").to(
            self.dtype
        )
        net.load_state_dict({**self.under("param."), **self.under("buffer.")})
        return net.train()


class TinyConv(nn.Sequential):
    """tiny_conv and tiny_conv_bn of the fixtures: 8×8 images, two convolutions, one linear layer."""

    def __init__(self, channels: int, activation: str, bn: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3, padding=1, bias=not bn)
        if bn:
            self.bn1 = nn.BatchNorm2d(8)
        self.act1 = ACTIVATIONS[activation]()
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=not bn)
        if bn:
            self.bn2 = nn.BatchNorm2d(8)
        self.act2 = ACTIVATIONS[activation]()
        self.flat = nn.Flatten()
        self.fc = nn.Linear(128, 10)


def replay_step(z: Fixture, defense: at.Defense, draws: dict[str, Tensor]) -> dict[str, Tensor]:
    """Run one step of `defense`; what every method's file records."""
    model = z.model()
    batch = at.Batch(z["x"], z["y"], torch.arange(len(z["y"])), Recorded(draws))
    defense.setup(model, tuple(z["x"].shape[1:]), torch.device("cpu"))
    step = defense(model, batch, 0.0)
    step.loss.backward()
    ours = {"loss.train": step.loss, "logits.adv": step.logits, "mid.delta_star": step.delta}
    ours |= {f"grad.{name}": parameter.grad for name, parameter in model.named_parameters()}
    ours |= {f"buffer_after.{name}": buffer for name, buffer in model.named_buffers()}
    return ours


def fast_at(z: Fixture) -> dict[str, Tensor]:
    threat = at.Threat("linf", z.hp("eps"))
    rel_step, steps = z.hp("attack_lr") / z.hp("eps"), z.hp("attack_step")
    draws = {"init": z["rng.delta_uniform"]}
    if z.meta["method"] == "Fast-AT (RS-FGSM)" and steps == 1:
        defense = at.defenses.FastAT(threat, rel_step=rel_step)
    else:
        defense = at.defenses.PGD(threat, steps=steps, rel_step=rel_step)
    start = threat.random_start(z["x"], Recorded(draws).child("init"))
    return replay_step(z, defense, draws) | {"mid.delta_init": start - z["x"]}


def dlr(z: Fixture) -> dict[str, Tensor]:
    ours = {}
    logits = z["logits"].requires_grad_()

    def record(name: str, suffix: str, value: Tensor) -> None:
        ours[f"out.{name}{suffix}"] = value
        ours[f"out.{name}_grad{suffix}"] = torch.autograd.grad(value.sum(), logits)[0]

    record("dlr", "", losses.dlr(logits, z["y"]))
    for key in z.arrays:
        if key.startswith("in.y_target_"):
            record("dlrt", key.removeprefix("in.y_target"), losses.dlr_targeted(logits, z["y"], z[key]))
    return ours


def schedules(z: Fixture) -> dict[str, Tensor]:
    def sequence(name: str, steps: int, peak: float, per_epoch: int = 1) -> list[at.schedules.Rate]:
        rates = [at.schedules.SCHEDULES[name](step, steps, per_epoch) for step in range(steps)]
        return [at.schedules.Rate(rate.factor * peak, rate.momentum) for rate in rates]

    def tensor(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=z.dtype)

    ours = {}
    for key in z.arrays:
        if key.startswith("sat.") and key.endswith(".lr_used_in_epoch"):
            epochs, base = len(z[key]), z[key.replace("lr_used_in_epoch", "base_lr")].item()
            ours[key] = tensor([rate.factor for rate in sequence("sat", epochs * 3, base, 3)][::3])
        elif key in ("fastbat.cyclic.lr", "nfgsm.cyclic.lr"):
            name = {"fastbat": "fast-bat", "nfgsm": "n-fgsm"}[key.split(".")[0]]
            rates = sequence(name, len(z[key]), 0.2)
            ours[key] = tensor([rate.factor for rate in rates])
            ours[key.replace(".lr", ".momentum")] = tensor([rate.momentum for rate in rates])
        elif key == "gradalign.cyclic.lr":
            ours[key] = tensor([rate.factor for rate in sequence("gradalign", len(z[key]), 0.3)])
        elif key == "rvs.lr_classifier":
            ours[key] = tensor([0.1 * at.schedules.rvs(int(step), 201_000, 1).factor for step in z["rvs.step"]])
        elif key == "rvs.lr_generator":
            ours[key] = tensor([0.01 * at.schedules.constant(int(step), 201_000, 1).factor for step in z["rvs.step"]])
    return ours


# How each method's files are replayed. A new defense adds its line here.
METHODS: dict[str, Callable[[Fixture], dict[str, Tensor]]] = {
    "Fast-AT (RS-FGSM)": fast_at,
    "PGD adversarial training": fast_at,
    "DLR and targeted DLR loss": dlr,
    "learning-rate schedules": schedules,
}
DESCRIPTIVE = {"batches_per_epoch", "base_lr", "t_epochs", "step"}  # last part of keys that describe a schedule's input


def recorded(z: Fixture) -> list[str]:
    """The keys of what the authors' code computed."""
    inputs = tuple(name for name in INPUTS if name.endswith("."))
    return [
        key
        for key in z.arrays
        if key not in INPUTS and not key.startswith(inputs) and key.split(".")[-1] not in DESCRIPTIVE
    ]


def difference(ours: Tensor, theirs: Tensor) -> float:
    """max|ours - theirs| / max|theirs|; infinite for another shape or a NaN."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    if ours.shape != theirs.shape or not torch.isfinite(ours).all():
        return float("inf")
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-300)) if (ours != theirs).any() else 0.0


def replay(path: str | Path, dtype: torch.dtype = torch.float64) -> dict[str, float]:
    """The relative difference of every recorded tensor of a file; a tensor that we do not compute counts as infinite.

    Raises:
        NotImplementedError: the file's method has no entry in `METHODS`.
    """
    z = Fixture(path, dtype)
    if z.meta["method"] not in METHODS:
        raise NotImplementedError(f"no implementation of {z.meta['method']!r} yet; there are: {', '.join(METHODS)}")
    ours = METHODS[z.meta["method"]](z)
    return {key: difference(ours[key], z[key]) if key in ours else float("inf") for key in recorded(z)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64")
    parser.add_argument("--tol", type=float, default=None, help="default: 1e-9, in float32 2e-5")
    options = parser.parse_args(arguments)
    tolerance = options.tol or {"float64": 1e-9, "float32": 2e-5}[options.dtype]
    status = 0
    for path in options.files:
        try:
            result = replay(path, getattr(torch, options.dtype))
        except (NotImplementedError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            print(f"{path}: {error}", file=sys.stderr)
            status = max(status, 2)
            continue
        for key, value in result.items():
            print(f"{path}\t{key}\t{value:.1e}")
        worst = max(result, key=result.get)
        within = result[worst] <= tolerance
        print(
            f"{path}: {'ok' if within else 'DIFFERS'}, largest {result[worst]:.1e} at {worst}, tolerance {tolerance:g}"
        )
        status = max(status, 0 if within else 1)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
