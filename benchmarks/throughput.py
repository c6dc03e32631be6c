"""How fast is each defense, beside the bare passes that it needs, and beside a loop as papers publish it?

    python benchmarks/throughput.py [--model preactresnet18] [--width 64] [--batch-size 128] [--images 12800]
                                    [--rounds 3] [--defenses fast-at fast-bat ...] [--root DATA] [--device auto]
                                    [--compile] [--cudnn-benchmark] [--out FILE]

Three things in one run, the ways by turns, of each the median:

- **The device's ceiling**: operations per second in one large matrix product, in the precision that `fit` trains in.
- **Each defense by `fit`**, whole epochs with everything that belongs to them (order, augmentation, optimizer, figures
  for the history) but validation, in images per second; and as a share of what its **bare passes** would allow. Bare
  are a forward and backward pass for the weights, as one standard update makes it, and a forward and backward pass for
  the pixels, as an attack step makes it, on one resident batch and with nothing else. A defense of c
  forward-equivalents (see `at.cost`) with u updates needs u of the former, which are 3 each, and (c - 3u) / 2 of the
  latter. GradAlign and FAST-BAT also differentiate a backward pass, which is a third kind: forward, backward to the
  pixels, and backward through both to the weights, as PyTorch does it by itself (`fit` has some of its own formulas
  there, and may be faster). They need one of them, and so much less of the second kind. The transport of RvS is no
  pass, and is not among the bare ones.
- **FAST-BAT as one would write it after its authors' code**: torchvision's transforms image by image in a `DataLoader`
  with two workers, float32, the gradients in the authors' order of operations, `.item()` at each step.

With `--root`, photographs of CIFAR-10; else noise of the same shape, which takes as long. With `--compile`, `fit`
compiles the passes of those defenses that do not differentiate one. With `--cudnn-benchmark`, cuDNN tries its kernels
for each shape and takes the fastest, in all that is measured; `fit` leaves that to whoever calls it.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from fast_bat import authors_order
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, RandomCrop, RandomHorizontalFlip, ToPILImage, ToTensor

import advtrain as at
from advtrain.cost import _flops
from advtrain.files import write_json
from advtrain.provenance import provenance
from advtrain.recipe import computes_in_bf16, find_device, steady_memory

THREAT = at.Threat("linf", 8 / 255)
LR = 0.1
BARE = ("weights", "pixels", "double")  # methods of `Passes`
DOUBLE = ("gradalign", "fast-bat")  # the defenses that differentiate a backward pass


def wait(device: torch.device) -> None:
    """Let a GPU finish before the clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], device: torch.device, times: int) -> float:
    """Seconds of one of `times` calls, one after the other, without waiting in between."""
    work()
    wait(device)
    started = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return (time.perf_counter() - started) / times


def photographs(images: int, root: str | None) -> at.Dataset:
    """CIFAR-10's first training images, or noise of their shape."""
    if root:
        data = at.load_data("cifar10", root=root, val=0)
        return dataclasses.replace(data, train=data.train[:images], val=None)
    rng = at.Rng(0)
    x, y = rng.integers(0, 256, (images, 3, 32, 32)).to(torch.uint8), rng.integers(0, 10, (images,))
    data = at.as_dataset((x, y), val=0, test=(x[:10], y[:10]), num_classes=10, name="noise")
    return dataclasses.replace(data, augment=True)


def ceiling(device: torch.device, bf16: bool) -> float:
    """Floating-point operations per second of a product of two square matrices."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16 if bf16 else torch.float32) for _ in range(2))
    return 2 * side**3 / min(seconds_of(lambda: a @ b, device, 3) for _ in range(5))


class Passes:
    """A network and a batch on the device as `fit` has them, and the bare passes."""

    def __init__(self, build: Callable[[], nn.Module], data: at.Dataset, batch_size: int, device: torch.device):
        self.bf16, self.device = computes_in_bf16(device), device
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.model = build().to(device, memory_format=layout).train()
        part = data.train[:batch_size].to(device)
        self.x, self.y = part.images().contiguous(memory_format=layout), part.y

    def loss(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return F.cross_entropy(self.model(x), self.y)

    def weights(self) -> None:
        """Forward, and backward to the weights."""
        self.model.zero_grad(set_to_none=True)
        self.loss(self.x).backward()

    def pixels(self) -> None:
        """Forward, and backward to the pixels alone."""
        with at.attacking(self.model, "train"):
            x = self.x.detach().requires_grad_()
            torch.autograd.grad(self.loss(x), x)

    def double(self) -> None:
        """Forward, backward to the pixels, and backward through both to the weights."""
        self.model.zero_grad(set_to_none=True)
        x = self.x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.loss(x), x, create_graph=True)
        (slope * self.x).sum().backward()


def by_fit(
    build: Callable[[], nn.Module], defense: at.Defense, data: at.Dataset, batch_size: int, device: str, compiled: bool
) -> float:
    """Images per second in the second of two epochs."""
    options = dict(epochs=2, batch_size=batch_size, lr=LR, validate_every=0, progress=False, device=device)
    options["compile"] = compiled and not defense.second_order
    if options["compile"]:
        torch._dynamo.reset()  # of one function, PyTorch compiles a few forms only, then none any more
    return len(data.train) / at.fit(build(), defense, data, **options).history[-1]["seconds"]


class Pictures(Dataset):
    """Images as torchvision's data sets hand them out: one PIL image at a time, through transforms."""

    def __init__(self, split: at.Split):
        self.split = split
        self.change = Compose([ToPILImage(), RandomCrop(32, padding=4), RandomHorizontalFlip(), ToTensor()])

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.change(self.split.x[index]), int(self.split.y[index])


def straightforward(build: Callable[[], nn.Module], data: at.Dataset, batch_size: int, device: torch.device) -> float:
    """Images per second of FAST-BAT in an epoch of the usual loop, its workers started beforehand."""
    model, defense = build().to(device).train(), at.defenses.FastBAT(THREAT)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(Pictures(data.train), batch_size, shuffle=True, num_workers=2, pin_memory=device.type == "cuda")
    seen, loss_sum = 0, 0.0
    for step, (x, y) in enumerate(loader):
        if step == 1:  # the first batch warms up
            wait(device)
            started, seen = time.perf_counter(), 0
        optimizer.zero_grad()
        loss = authors_order(defense, model, at.Batch(x.to(device), y.to(device), None, at.Rng(0, step)))
        optimizer.step()
        loss_sum += loss.item() * len(y)
        seen += len(y)
    wait(device)
    return seen / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="preactresnet18")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=12_800, help="in an epoch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--defenses", nargs="*", default=list(at.defenses.DEFENSES))
    parser.add_argument("--root", help="the data folder; noise if not given")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="compile the passes where that is possible")
    parser.add_argument("--cudnn-benchmark", action="store_true", help="let cuDNN take the fastest of its kernels")
    parser.add_argument("--out", help="where to write the figures as JSON, with their provenance")
    options = parser.parse_args()
    device, data = find_device(options.device), photographs(options.images, options.root)
    steady_memory()
    torch.backends.cudnn.benchmark = options.cudnn_benchmark

    def build() -> nn.Module:
        return at.build_model(options.model, data, width=options.width)

    passes, n = Passes(build, data, options.batch_size, device), options.batch_size
    counted = {
        name: at.cost(at.defenses.DEFENSES[name](THREAT), build(), data, batch_size=n) for name in options.defenses
    }
    per_image = next(iter(counted.values())).unit / n
    double = _flops(passes.double) / n / per_image
    times: dict[str, list[float]] = {name: [] for name in (*BARE, "straightforward", *options.defenses)}
    for number in range(options.rounds):
        for name in BARE:
            times[name].append(n / seconds_of(getattr(passes, name), device, 10))
        for name in options.defenses if number % 2 else reversed(options.defenses):
            times[name].append(by_fit(build, at.defenses.DEFENSES[name](THREAT), data, n, str(device), options.compile))
        if "fast-bat" in options.defenses:
            times["straightforward"].append(straightforward(build, data, n, device))
    speed = {name: statistics.median(record) for name, record in times.items() if record}
    top = ceiling(device, passes.bf16)

    print(f"{options.model} of width {options.width}, batches of {n} on {device}, torch {torch.__version__}")
    print(f"{'':<16}{'images/s':>10}{'of bare passes':>16}{'of the ceiling':>16}")
    rows = {}
    for name, cost in counted.items():
        twice = name in DOUBLE
        rest = cost.forwards - 3 * cost.updates - twice * double
        assert rest > -0.1, f"{name} needs fewer passes than it is said to"
        bare = 1 / (cost.updates / speed["weights"] + twice / speed["double"] + max(0.0, rest) / 2 / speed["pixels"])
        rows[name] = {
            "forwards": cost.forwards,
            "updates": cost.updates,
            "images_per_second": speed[name],
            "share_of_bare_passes": speed[name] / bare,
            "share_of_ceiling": speed[name] * cost.forwards * per_image / top,
        }
        row = rows[name]
        print(f"{name:<16}{speed[name]:>10.0f}{row['share_of_bare_passes']:>16.1%}{row['share_of_ceiling']:>16.1%}")
    result = {
        "what": "training throughput of each defense by fit, beside its bare passes and beside a usual loop",
        "options": {key: value for key, value in vars(options).items() if key not in ("root", "out")},
        "data": data.name,
        "bf16": passes.bf16,
        "ceiling_flops": top,
        "flops_per_forward_of_an_image": per_image,
        "bare_images_per_second": {name: speed[name] for name in BARE},
        "defenses": rows,
        "provenance": provenance(0, device),
    }
    if "straightforward" in speed:
        ratio = speed["fast-bat"] / speed["straightforward"]
        result["fast_bat_in_a_usual_loop"] = {"images_per_second": speed["straightforward"], "ours_is_faster_by": ratio}
        print(f"FAST-BAT in a usual loop {speed['straightforward']:.0f} images/s: fit is {ratio:.2f} times as fast")
    if options.out:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
