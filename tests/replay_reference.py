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
import replay_rvs
import torch
from torch import Tensor, nn

import advtrain as at
from advtrain.attacks import losses
from advtrain.defenses import gradalign as gradalign_module
from advtrain.rng import Recorded

INPUTS = (
    "x", "y", "meta", "hp.", "rng.", "param.", "buffer.", "in.", "logits", "mean", "std", "x_pixel", "feat_x", "feat_y",
    "onehot", "f32.",
)  # fmt: skip
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
    passes = []  # the images and logits of every forward pass
    model.register_forward_hook(lambda module, images, logits: passes.append((images[0].detach(), logits.detach())))
    step = defense(model, batch, 0.0)
    step.loss.backward()
    ours = {"loss.train": step.loss, "loss.total": step.loss, "logits.adv": step.logits, "mid.delta": step.delta}
    ours |= {"mid.delta_star": step.delta, "logits.train": passes[-1][1], "images": [images for images, _ in passes]}
    ours |= {f"grad.{name}": parameter.grad for name, parameter in model.named_parameters()}
    ours |= {f"buffer_after.{name}": buffer for name, buffer in model.named_buffers()}
    return ours


def after_sgd(z: Fixture, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights after the first SGD step with the file's rate and weight decay; momentum begins at the gradient."""
    lr, decay = z.hp("base_lr"), z.hp("weight_decay")
    return {
        f"param_after.{name}": value - lr * (ours[f"grad.{name}"] + decay * value)
        for name, value in z.under("param.").items()
    }


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


def n_fgsm(z: Fixture) -> dict[str, Tensor]:
    """The file works on normalised images; here the normalisation is the network's first layer."""
    clip = z.hp("clip")
    defense = at.defenses.NFGSM(
        at.Threat("linf", z.hp("eps_255") / 255), rel_noise=z.hp("unif"), rel_step=z.hp("alpha_255") / z.hp("eps_255"),
        rel_clip=clip if clip > 0 else None,
    )  # fmt: skip
    ours = replay_step(Pixels(z), defense, {"noise": z["rng.eta_uniform"] * z["std"][None]})
    start, adv = ours["images"]  # as the network sees them behind its first layer: normalised, like the file
    model, start = z.model(), start.requires_grad_()
    ce = mean_ce(model(start), z)
    (grad,) = torch.autograd.grad(ce, start)
    ours |= {"mid.eta": start - z["x"], "mid.grad_eta": grad, "loss.ce_first": ce}
    return ours | {"mid.delta": adv - z["x"]}


class Pixels(Fixture):
    """A file on normalised images, seen as pixels: the normalisation goes into the network."""

    def __init__(self, z: Fixture):
        self.__dict__.update(z.__dict__)
        self.arrays = z.arrays | {"x": z.arrays["x_pixel"]}

    def model(self) -> nn.Module:
        net = super().model()
        net.register_forward_pre_hook(lambda module, images: ((images[0] - self["mean"]) / self["std"],))
        return net


def sat_r1(z: Fixture) -> dict[str, Tensor]:
    defense = at.defenses.SATR1(at.Threat("linf", z.hp("eps")), lam=z.hp("lambda"), steps=z.hp("ifgsm_steps"))
    ours = replay_step(z, defense, {})
    n, images = len(z["y"]), ours["images"][-1]
    logits = ours["logits.train"]
    ours |= {"mid.adv_fgsm": images[:n], "mid.adv_ifgsm_last": images[n:]}
    ours |= {"loss.ce": mean_ce(logits[:n], z), "loss.reg": (logits[n - 1] - logits[n]).square().sum()}
    return ours | after_sgd(z, ours)


def sat_r2(z: Fixture) -> dict[str, Tensor]:
    rel_alpha = z.hp("alpha") / z.hp("eps")
    defense = at.defenses.SATR2(at.Threat("linf", z.hp("eps")), lam=z.hp("lambda"), rel_alpha=rel_alpha)
    ours = replay_step(z, defense, {"noise": z["rng.normal"]})
    single, noisy = ours["images"][-1].chunk(2)
    first, second = ours["logits.train"].chunk(2)
    ours |= {"mid.adv_fgsm": single, "mid.adv_noisy": noisy}
    ours |= {"loss.ce": mean_ce(first, z), "loss.reg": (first - second).square().sum(1).mean()}
    return ours | after_sgd(z, ours)


def sat_r3(z: Fixture) -> dict[str, Tensor]:
    eps = z.hp("eps")
    defense = at.defenses.SATR3(
        at.Threat("linf", eps), lam=z.hp("lambda"), tau=z.hp("tau"), rel_eps_low=z.hp("eps_low") / eps,
        rel_alpha=z.hp("alpha") / eps,
    )  # fmt: skip
    ours = replay_step(z, defense, {"noise": z["rng.normal"]})
    weak, strong = ours["images"][-1].chunk(2)
    low, high = (mean_ce(logits, z) for logits in ours["logits.train"].chunk(2))
    ours |= {"mid.adv_low": weak, "mid.adv_high": strong, "loss.ce_low": low, "loss.ce_high": high}
    ours["loss.hinge_active"] = low > defense.tau * high
    return ours | after_sgd(z, ours)


def mean_ce(logits: Tensor, z: Fixture) -> Tensor:
    return nn.functional.cross_entropy(logits, z["y"])


def trades(z: Fixture) -> dict[str, Tensor]:
    eps = z.hp("eps")
    defense = at.defenses.TRADES(
        at.Threat("linf", eps), beta=z.hp("beta"), steps=int(z.hp("steps")), rel_step=z.hp("step_size") / eps
    )
    ours = replay_step(z, defense, {"init": z["rng.normal"]})
    images = ours["images"]  # clean and each iterate for the attack, then clean and adversarial for the loss
    with torch.no_grad():
        model = z.model()
        ours["logits.clean"] = model(images[-2])
    ours |= {"mid.x_adv": images[-1], "mid.x_adv_step1": images[2]}
    ours["loss.natural"] = mean_ce(ours["logits.clean"], z)
    kl = nn.functional.kl_div(ours["logits.adv"].log_softmax(1), ours["logits.clean"].softmax(1), reduction="batchmean")
    return ours | {"loss.kl": kl}


def gradalign(z: Fixture) -> dict[str, Tensor]:
    port = z.meta["method"] == "Fast-AT + GradAlign (as shipped with Fast-BAT)"
    eps, start = z.hp("eps"), "rng.delta_init" in z
    defense = at.defenses.GradAlign(
        at.Threat("linf", eps), lam=z.hp("ga_coef" if port else "grad_align_lambda"), rel_step=z.hp("fgsm_alpha"),
        random_start=start, code="fast-bat" if port else "gradalign",
    )  # fmt: skip
    draws = {"eta": z["rng.eta"]} | ({"init": z["rng.delta_init"]} if start else {})
    seen = []
    inner = gradalign_module.mean_cosine
    gradalign_module.mean_cosine = lambda a, b: seen.append((a, b)) or inner(a, b)
    try:
        ours = replay_step(z, defense, draws)
    finally:
        gradalign_module.mean_cosine = inner
    clean, beside = (gradient.detach() / len(z["y"]) for gradient in seen[0])
    ours |= {"mid.grad_clean": clean, "mid.grad_first": clean, "mid.grad_rand": beside}
    ours["mid.cos"] = nn.functional.cosine_similarity(clean.flatten(1), beside.flatten(1), eps=1e-300)
    ours["loss.ce"] = mean_ce(ours["logits.adv"], z)
    return ours | {"loss.reg": defense.lam * (1 - ours["mid.cos"].mean())}


def fast_bat(z: Fixture) -> dict[str, Tensor]:
    lam = z.hp("lmbda")
    defense = at.defenses.FastBAT(at.Threat("linf", z.hp("eps")), step_size=z.hp("attack_lr"), lam=lam or None)
    draws = {"init": z["rng.z_uniform"]}
    ours = replay_step(z, defense, draws)
    model = z.model()
    found = defense.solve(model, at.Batch(z["x"], z["y"], draws=Recorded(draws)))
    n, names = len(z["y"]), [name for name, _ in model.named_parameters()]
    ours |= {"mid.z_init": found.points[0], "mid.delta": found.points[1], "mid.delta_star": found.points[2]}
    ours |= {"mid.grad_atk_zinit": found.slopes[0], "mid.grad_atk_delta": found.slopes[1]}
    ours |= {"mid.H": found.mask, "mid.outer_grad": found.outer, "loss.outer_sum": n * found.loss}
    ours["mid.b_dot"] = (found.slopes[1] * found.mask * found.outer / found.lam).sum()
    ours |= {f"mid.ce_grad.{name}": part for name, part in zip(names, found.direct, strict=True)}
    ours |= {f"mid.cross.{name}": part for name, part in zip(names, found.implicit, strict=True)}
    with torch.no_grad():
        first, second = (n * mean_ce(model(z["x"] + point), z) for point in found.points[:2])
    return ours | {"loss.attack_first": -first, "loss.attack_second": -second}


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
    "N-FGSM": n_fgsm,
    "FGSM + GradAlign": gradalign,
    "Fast-AT + GradAlign (as shipped with Fast-BAT)": gradalign,
    "TRADES": trades,
    "SAT-R1": sat_r1,
    "SAT-R2": sat_r2,
    "SAT-R3": sat_r3,
    "FAST-BAT": fast_bat,
    "RvS label smoothing": replay_rvs.label_smoothing,
    "RvS Sinkhorn loss": replay_rvs.sinkhorn_loss,
    "RvS one training step": replay_rvs.step,
    "RvS generator gradients": replay_rvs.generator_gradients,
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
