"""What does an update ask of a GPU, and how long must it take at least?

    python benchmarks/roofline.py [--batch-size 256] [--defenses fast-at fast-bat ...] [--out FILE]

`fit`'s own updates with a PreActResNet-18 in bfloat16, recorded operation by operation on 4 images and on 8, and
extended from these to a batch. Of each operation: its arithmetic, by PyTorch's own formulas, and the bytes of what it
takes and gives. It can be faster neither than its arithmetic at the GPU's peak nor than its bytes at the bandwidth of
its memory. The larger of the two times, summed over the operations, is the **roofline**. The number of operations tells
what the host has to launch meanwhile.

Counted on a processor: no GPU takes part, and nothing is timed. A processor's operations are those of a GPU but for a
few conversions between precisions. Normalisation reads its input once more, for the statistics. Caches are left out: a
tensor that stays in one costs less than its bytes say.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import advtrain as at
from advtrain import second_order
from advtrain.cost import _loop, _train_on
from advtrain.files import write_json
from advtrain.provenance import provenance

THREAT = at.Threat("linf", 8 / 255)
DEFENSES = {name: defense(THREAT) for name, defense in at.defenses.DEFENSES.items()}
DEFENSES["fast-bat without implicit term"] = at.defenses.FastBAT(THREAT, implicit=False)
GPU = {"name": "H200", "flops": 989e12, "bytes_per_second": 4.8e12}  # of its data sheet: dense bfloat16, and memory
TWICE = {"native_batch_norm": 1, "native_batch_norm_backward": 2}  # how many of the largest inputs are read once more
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view", "is_same_size"}  # they touch no numbers
SMALL, LARGE = 4, 8


class Operation(NamedTuple):
    """One operation: its name, its floating-point operations, and the bytes that it reads and writes."""

    name: str
    flops: float
    bytes: float

    @property
    def seconds(self) -> float:
        """The least that it can take."""
        return max(self.flops / GPU["flops"], self.bytes / GPU["bytes_per_second"])


class Ledger(TorchDispatchMode):
    """The operations inside, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result, name = function(*args, **kwargs), function.overloadpacket.__name__
        if function.is_view or name in FREE or name.startswith("_record_function"):
            return result
        taken, given = ([t for t in tree_leaves(part) if isinstance(t, Tensor)] for part in ((args, kwargs), result))
        again = sorted(taken, key=Tensor.numel, reverse=True)[: TWICE.get(name, 0)]
        formula = flop_registry.get(function.overloadpacket)
        flops = formula(*args, **kwargs, out_val=result) if formula else 0
        self.operations.append(Operation(name, flops, sum(t.nbytes for t in taken + given + again)))
        return result


def recorded(name: str, images: int) -> list[Operation]:
    """All that a defense does with one batch. The batch before it, which makes what is then there, is left out."""
    model = at.build_model("preactresnet18", shape=(3, 32, 32), num_classes=10, normalize=None)
    model, rng = model.to(memory_format=torch.channels_last).train(), at.Rng(0)
    x = rng.child("x").uniform(torch.empty(images, 3, 32, 32), 0, 1).contiguous(memory_format=torch.channels_last)
    batch = at.Batch(x, rng.child("y").integers(0, 10, (images,)))
    loop = _loop(model, DEFENSES[name], batch)
    loop.bf16 = True
    with patch.object(second_order, "AS_FAST", ()):  # convolutions as on a GPU
        _train_on(batch, loop)
        with Ledger() as ledger:
            _train_on(batch, loop)
    return ledger.operations


def extended(small: list[Operation], large: list[Operation], batch_size: int) -> list[Operation]:
    """The same operations on a batch: what they ask for beyond a constant grows with the number of images."""
    further = (batch_size - SMALL) / (LARGE - SMALL)
    pairs = zip(small, large, strict=True)
    assert all(a.name == b.name for a, b in zip(small, large, strict=True)), "they do not depend on the batch's size"
    return [Operation(a.name, *(p + further * (q - p) for p, q in zip(a[1:], b[1:], strict=True))) for a, b in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--defenses", nargs="*", default=list(DEFENSES))
    parser.add_argument("--out", help="where to write the figures as JSON, with their provenance")
    options = parser.parse_args()
    print(f"{'':<31}{'operations':>11}{'TFLOP':>8}{'GB':>8}{'ms':>8}   most of it")
    rows = {}
    for name in options.defenses:
        operations = extended(recorded(name, SMALL), recorded(name, LARGE), options.batch_size)
        whole, kinds = sum(each.seconds for each in operations), dict.fromkeys((each.name for each in operations), 0.0)
        for each in operations:
            kinds[each.name] += each.seconds / whole
        most = dict(sorted(kinds.items(), key=lambda item: -item[1])[:3])
        rows[name] = row = {
            "operations": len(operations), "flops": sum(each.flops for each in operations),
            "bytes": sum(each.bytes for each in operations), "seconds": whole, "most": most,
        }  # fmt: skip
        text = ", ".join(f"{kind} {share:.0%}" for kind, share in most.items())
        print(f"{name:<31}{row['operations']:>11,}{row['flops'] / 1e12:>8.2f}{row['bytes'] / 1e9:>8.1f}"
              f"{1e3 * whole:>8.2f}   {text}")  # fmt: skip
    if options.out:
        result = {"what": "what an update asks of a GPU, and its roofline", "options": vars(options), "gpu": GPU}
        write_json(options.out, {**result, "defenses": rows, "provenance": provenance(0, "cpu")})


if __name__ == "__main__":
    main()
