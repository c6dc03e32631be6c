"""What would a larger data set take: operations, memory, and messages between GPUs, counted and measured.

    python benchmarks/scale.py [--rounds 3] [--out FILE]

**Counted**, for networks of three sizes and several defenses, by doing one step on a few images: forward-equivalents;
operations per image; the memory that a step needs for each image beyond weights and optimizer (the growth of its peak
from one batch size to a larger one, in float32; under bfloat16 activations take half); the bytes of the gradient, which
is what `DistributedDataParallel` sends at every step.

**Measured**, on this machine: `fit` in one process and in two, with one thread each, on batches of the same size, so
that twice as fast is the best there can be; and how fast the two sum a tensor of the gradient's size. From that and the
time of one process's step the two's speed is predicted as below, and can be held against what was measured.

The prediction for N processes: a step takes t(B) / N for its share of the passes, and for the gradient 2 (N - 1) / N
times its bytes over the bandwidth, as a ring of N sums it; nothing is taken off for the part of the messages that hides
behind the backward pass, so it is cautious.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from fast_bat import peak_memory
from torch import nn
from torchvision.models import resnet50

import advtrain as at
from advtrain import processes
from advtrain.files import write_json
from advtrain.provenance import provenance

THREAT = at.Threat("linf", 8 / 255)
IMAGES = 1_281_167  # ImageNet's training images; 100,000 and 50,000 for the others
NETWORKS = {
    "PreActResNet-18, 32x32": ("preactresnet18", (3, 32, 32), 10, 50_000),
    "PreActResNet-18, 64x64": ("preactresnet18", (3, 64, 64), 200, 100_000),
    "ResNet-50, 224x224": (None, (3, 224, 224), 1000, IMAGES),
}
DEFENSES = {
    "standard": at.defenses.Standard(THREAT),
    "fast-at": at.defenses.FastAT(THREAT),
    "fast-bat": at.defenses.FastBAT(THREAT),
    "pgd": at.defenses.PGD(THREAT),
}
PAIR = {"epochs": 2, "batch_size": 64, "validate_every": 0, "progress": False, "device": "cpu"}


def network(name: str | None, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """By its name in the package, or torchvision's ResNet-50."""
    if name is None:
        return resnet50(weights=None, num_classes=classes)
    return at.build_model(name, shape=shape, num_classes=classes, normalize=None)


def counted(name: str | None, shape: tuple[int, int, int], classes: int, images: int) -> dict[str, Any]:
    """Operations, memory and messages of one network, for each defense."""
    model = network(name, shape, classes).train()
    sizes, rng = (2, 6), at.Rng(0)
    x = rng.child("x").uniform(torch.empty(max(sizes), *shape), 0, 1)
    y = rng.child("y").integers(0, classes, (max(sizes),))
    gradient = sum(4 * parameter.numel() for parameter in model.parameters())
    rows = {}
    for label, defense in DEFENSES.items():

        def step(model: nn.Module, batch: at.Batch, defense: at.Defense = defense) -> None:
            defense(model, batch, 0.0).loss.backward()

        small, large = (peak_memory(step, model, at.Batch(x[:n], y[:n])) for n in sizes)
        cost = at.cost(defense, model, at.Batch(x[:2], y[:2]))
        rows[label] = {
            "forwards": cost.forwards,
            "bytes_per_image": (large - small) / (sizes[1] - sizes[0]),
            "flops_per_epoch": cost.flops / 2 * images,
        }
    return {"images": images, "gradient_bytes": gradient, "forward_flops": cost.unit / 2, "defenses": rows}


def train_once() -> float:
    """Seconds of a step of FAST-AT on 32x32 noise, in an epoch after one that warms up."""
    rng = at.Rng(0)
    x, y = rng.integers(0, 256, (320, 3, 32, 32)).to(torch.uint8), rng.integers(0, 10, (320,))
    data = at.as_dataset((x, y), val=0, test=(x[:10], y[:10]), num_classes=10)
    model = at.build_model("preactresnet18", data, width=16)
    run = at.fit(model, at.defenses.FastAT(THREAT), data, **PAIR)
    return run.history[-1]["seconds"] / (len(x) / PAIR["batch_size"])


def worker() -> None:
    """One of the processes whose speed is measured: it writes what it has found to standard output."""
    torch.set_num_threads(1)
    with at.joined("cpu") as rank:
        model = at.build_model("preactresnet18", shape=(3, 32, 32), num_classes=10, normalize=None, width=16)
        gradient = torch.zeros(sum(parameter.numel() for parameter in model.parameters()))
        seconds, sums = train_once(), 0.0
        if processes.several():
            dist.all_reduce(gradient)
            started = time.perf_counter()
            for _ in range(20):
                dist.all_reduce(gradient)
            sums = (time.perf_counter() - started) / 20
    if rank == 0:
        print(json.dumps({"step": seconds, "sum": sums, "gradient_bytes": 4 * gradient.numel()}))


def measured(count: int) -> dict[str, float]:
    """What `worker` finds in so many processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    done = subprocess.run(
        [*launcher, __file__, "--worker"], capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="where to write the figures as JSON, with their provenance")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker()
        return
    networks = {name: counted(*spec) for name, spec in NETWORKS.items()}
    for name, found in networks.items():
        print(
            f"{name}: forward {found['forward_flops'] / 1e9:.2f} GFLOP, gradient {found['gradient_bytes'] / 1e6:.0f} MB"
        )
        for label, row in found["defenses"].items():
            print(
                f"  {label:<10}{row['forwards']:>6.1f} forwards{row['bytes_per_image'] / 1e6:>9.1f} MB an image"
                f"{row['flops_per_epoch'] / 1e15:>10.2f} PFLOP an epoch"
            )
    rounds = [(measured(1), measured(2)) for _ in range(options.rounds)]
    one, two, sums = (
        statistics.median(pair[k][key] for pair in rounds) for k, key in ((0, "step"), (1, "step"), (1, "sum"))
    )
    pair = {
        "seconds_of_a_step": {"1": one, "2": two},
        "seconds_of_a_sum": sums,
        "gradient_bytes": rounds[0][1]["gradient_bytes"],
        "speedup_measured": one / two,
        "speedup_predicted": one / (one / 2 + sums),
    }
    print(f"two processes: {pair['speedup_measured']:.2f} times as fast, predicted {pair['speedup_predicted']:.2f}")
    if options.out:
        write_json(options.out, {"networks": networks, "two_processes": pair, "provenance": provenance(0, "cpu")})


if __name__ == "__main__":
    main()
