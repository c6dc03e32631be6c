"""FAST-BAT's step against an independent one in its authors' order of operations, and other ways to the same term.

    python benchmarks/fast_bat.py [--width 64] [--batch-size 32] [--rounds 5] [--device cpu] [--out FILE]

For each way: floating-point operations in units of one forward pass, peak memory of the step's tensors, and time as a
ratio to the authors' order, all measured in one run, the ways by turns. Their implicit terms are compared in float64.

The ways. `authors`: perturb, differentiate the attack's gradient, pass x + δ* once for the gradient with respect to δ*
and once more for the weights. `authors, lean`: the same, except that the first attack gradient, which nobody
differentiates, keeps no graph: the same numbers with less memory, and so a fairer opponent. `ours`: `FastBAT`, one pass
for both. `forward over reverse`: ⟨∇_δ ℓ(θ, δ), v⟩ is the derivative of ℓ along v, taken by forward-mode
differentiation, then differentiated with respect to θ. `central differences`: (∇_θ ℓ(δ + hv) - ∇_θ ℓ(δ - hv)) / 2h.
`without`: FAST-BAT without the implicit term.

What came of it: forward over reverse costs twice as much, since PyTorch's forward derivative of a convolution also
pushes the weights' zero tangent through, and it errs where batch normalisation takes part, whose statistics its second
derivative takes for constants. Central differences are as fast and lean, and useless on a network of ReLUs: within a
step h that float32 can resolve, thousands of them switch. So double backward stays.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import advtrain as at
from advtrain.bilevel import interior
from advtrain.cost import _flops
from advtrain.defense import carry, gradients, trained
from advtrain.files import write_json
from advtrain.provenance import provenance


def authors_order(defense: at.defenses.FastBAT, model: nn.Module, batch: at.Batch, lean: bool = False) -> Tensor:
    """A step in the order of the authors' code, written anew; gradients end up in `.grad`, as there.

    Their clean pass for the training accuracy is part of it. With `lean` the graph of the first attack gradient, which
    theirs keeps until the second one is there, is freed at once.
    """
    x, y, eps, alpha = batch.x, batch.y, defense.threat.eps, defense.alpha

    def attack_loss(delta: Tensor) -> Tensor:
        return -F.cross_entropy(model(x + delta), y, reduction="sum")

    def clip(delta: Tensor) -> Tensor:
        return (x + delta.clamp(-eps, eps)).clamp(0, 1) - x

    model.eval()
    with torch.no_grad():
        model(x).argmax(1)
    model.train()
    z = clip(batch.rng("init").uniform(x, -eps, eps)).requires_grad_()
    (slope,) = torch.autograd.grad(attack_loss(z), z, create_graph=not lean)
    delta = clip((z - alpha * slope).detach()).requires_grad_()
    (slope,) = torch.autograd.grad(attack_loss(delta), delta, create_graph=True)
    star = clip((delta - alpha * slope).detach())
    moving = star.clone().requires_grad_()
    with at.attacking(model, "train"):
        (outer,) = torch.autograd.grad(-attack_loss(moving), moving)
    lam = defense.lam or 1 / alpha
    product = (slope * (interior(star, x, defense.threat) * outer)).sum() / lam
    cross = torch.autograd.grad(product, trained(model))
    loss = F.cross_entropy(model(x + star), y)
    loss.backward()
    for parameter, term in zip(trained(model), cross, strict=True):
        parameter.grad.sub_(term / len(x))
    return loss.detach()


class Variant(at.defenses.FastBAT):
    """FAST-BAT with the implicit term computed by `term(model, x, y, direction)`, ∇_θ of the derivative of Σ CE."""

    term: Callable[[nn.Module, Tensor, Tensor, Tensor], list[Tensor]]

    def __call__(self, model: nn.Module, batch: at.Batch, progress: float) -> at.Step:
        x, y, parameters = batch.x, batch.y, trained(model)
        images, _ = self.ascend(model, batch, differentiable=False)
        loss, logits = self.upper(model, images[-1].requires_grad_(), y)
        *direct, outer = gradients(loss, [*parameters, images[-1]])
        star = (images[-1] - x).detach()
        direction = interior(star, x, self.threat) * outer / (self.lam or 1 / self.alpha)
        implicit = type(self).term(model, images[-2].detach(), y, direction)
        total = torch._foreach_add(direct, implicit)
        return at.Step(carry(loss, parameters, total), logits.detach(), star)


def forward_over_reverse(model: nn.Module, x: Tensor, y: Tensor, direction: Tensor) -> list[Tensor]:
    with at.attacking(model, "batch", freeze=False), forward_ad.dual_level():
        logits = model(forward_ad.make_dual(x, direction))
        shifted = logits - forward_ad.unpack_dual(logits).primal.detach().amax(1, keepdim=True)
        # Cross-entropy by hand: the forward derivatives of PyTorch's own write in place what the backward pass needs.
        value = (shifted.exp().sum(1).log() - shifted.gather(1, y[:, None]).squeeze(1)).sum()
        return gradients(forward_ad.unpack_dual(value).tangent, trained(model))


def central_differences(model: nn.Module, x: Tensor, y: Tensor, direction: Tensor) -> list[Tensor]:
    h = 1e-2 / direction.abs().max().clamp(min=1e-20)
    sides = []
    with at.attacking(model, "batch", freeze=False):
        for sign in (1, -1):
            value = F.cross_entropy(model(x + sign * h * direction), y, reduction="sum")
            sides.append(gradients(value, trained(model)))
    return [(a - b) / (2 * h) for a, b in zip(*sides, strict=True)]


class Memory(TorchDispatchMode):
    """The largest number of bytes in tensors that were alive at one time, of those made inside."""

    def __enter__(self):
        self.alive, self.peak = {}, 0
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: item for key, item in self.alive.items() if not item[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def ways(threat: at.Threat) -> dict[str, Callable[[nn.Module, at.Batch], Tensor]]:
    """Each way as a function that leaves gradients in `.grad` and returns the loss."""

    def by(defense: at.Defense) -> Callable[[nn.Module, at.Batch], Tensor]:
        def step(model: nn.Module, batch: at.Batch) -> Tensor:
            loss = defense(model, batch, 0.0).loss
            loss.backward()
            return loss.detach()

        return step

    def variant(function: Callable) -> at.Defense:
        return type(function.__name__, (Variant,), {"term": staticmethod(function)})(threat)

    exact = at.defenses.FastBAT(threat)
    return {
        "authors": lambda model, batch: authors_order(exact, model, batch),
        "authors, lean": lambda model, batch: authors_order(exact, model, batch, lean=True),
        "ours": by(exact),
        "forward over reverse": by(variant(forward_over_reverse)),
        "central differences": by(variant(central_differences)),
        "without": by(at.defenses.FastBAT(threat, implicit=False)),
    }


def clear(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = None


def peak_memory(step: Callable[[nn.Module, at.Batch], Tensor], model: nn.Module, batch: at.Batch) -> int:
    """Bytes of tensors alive at one time in a step beyond what was there before."""
    clear(model)
    with Memory() as memory:
        step(model, batch)
    return memory.peak


def flops(step: Callable[[nn.Module, at.Batch], Tensor], model: nn.Module, batch: at.Batch) -> int:
    """Floating-point operations of a step."""
    clear(model)
    return _flops(lambda: step(model, batch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="preactresnet18")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", help="where to write the figures as JSON, with their provenance")
    options = parser.parse_args()
    threat, device = at.Threat("linf", 8 / 255), torch.device(options.device)
    model = at.build_model(options.model, shape=(3, 32, 32), num_classes=10, normalize=None, width=options.width)
    model = model.to(device, memory_format=torch.channels_last).train()
    rng, n = at.Rng(0), options.batch_size
    x = rng.child("x").uniform(torch.empty(n, 3, 32, 32, device=device), 0, 1)
    x = x.contiguous(memory_format=torch.channels_last)
    batch = at.Batch(x, rng.child("y").integers(0, 10, (n,), device))
    with torch.no_grad():
        unit = _flops(lambda: model(x))

    times: dict[str, list[float]] = {}
    for _ in range(options.rounds + 1):
        for name, step in ways(threat).items():
            clear(model)
            if device.type == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            step(model, batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.setdefault(name, []).append(time.perf_counter() - started)

    print(f"{options.model} of width {options.width}, {n} images on {device}, torch {torch.__version__}")
    print(f"{'':<22}{'forwards':>10}{'memory MB':>11}{'time':>8}{'':>4}{'fastest':>8}")
    rows = {}
    for name, step in ways(threat).items():
        record = times[name][1:]  # the first round warms up
        rows[name] = {
            "forwards": flops(step, model, batch) / unit,
            "memory_mb": peak_memory(step, model, batch) / 1e6,
            "time": statistics.median(record) / statistics.median(times["authors"][1:]),
            "fastest": min(record) / min(times["authors"][1:]),
            "seconds": statistics.median(record),
        }
        row = rows[name]
        print(
            f"{name:<22}{row['forwards']:>10.2f}{row['memory_mb']:>11.0f}{row['time']:>8.2f}{'':>4}{row['fastest']:>8.2f}"
        )
    errors = accuracy(threat)
    for name, error in errors.items():
        print(f"implicit term by {name!r}, float64, against the authors' order: off by {error:.1e}")
    if options.out:
        result = {"options": vars(options), "ways": rows, "implicit_term_off_by": errors}
        write_json(options.out, {**result, "provenance": provenance(0, device)})


def accuracy(threat: at.Threat) -> dict[str, float]:
    """Relative error of the implicit term, each way against the authors' order, on a narrow net in float64."""
    model = at.build_model("preactresnet18", shape=(3, 32, 32), num_classes=10, normalize=None, width=8).double()
    rng = at.Rng(0)
    x = rng.child("x").uniform(torch.empty(8, 3, 32, 32, dtype=torch.float64), 0, 1)
    batch = at.Batch(x, rng.child("y").integers(0, 10, (8,)))
    found = {}
    for name, step in ways(threat).items():
        clear(model)
        step(model, batch)
        found[name] = torch.cat([parameter.grad.flatten() for parameter in trained(model)])
    implicit = found["authors"] - found["without"]
    return {
        name: float((gradient - found["authors"]).norm() / implicit.norm())
        for name, gradient in found.items()
        if name not in ("authors", "without")
    }


if __name__ == "__main__":
    main()
