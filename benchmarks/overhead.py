"""What does `fit` cost over a loop written by hand with the same maths?

    python benchmarks/overhead.py [--rounds 7] [--width 32] [--out FILE]

Both train FAST-AT on digits, from the same weights, on the same batches, without validation. They take turns in one
process; the ratio of the medians is printed, and the weights after one epoch are compared to show that the maths is the
same.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

import advtrain as at
from advtrain.files import write_json
from advtrain.loader import make_loader
from advtrain.provenance import provenance

EPOCHS, BATCH, LR, SEED = 10, 128, 0.1, 0


def by_fit(model, data, threat, epochs: int) -> None:
    """The same through the package."""
    defense = at.defenses.FastAT(threat)
    at.fit(model, defense, data, epochs=epochs, batch_size=BATCH, lr=LR, seed=SEED, validate_every=0, progress=False)


def by_hand(model, data, threat, epochs: int) -> None:
    """FAST-AT as one would write it in a notebook, with the package's batches, draws and projection."""
    step_size = 1.25 * threat.eps
    loader = make_loader(data, BATCH, seed=SEED, device=torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    total, step, loss_sum, correct = epochs * len(loader), 0, 0.0, 0
    model.train()
    for epoch in range(epochs):
        for x, y, _ in loader.epoch(epoch):
            t = (step + 1) / (total + 1)
            optimizer.param_groups[0]["lr"] = LR * min(t / 0.5, (1 - t) / 0.5)
            noise = at.Rng(SEED, "step", step).child("init").uniform(x, -threat.eps, threat.eps)
            project = threat.projector(x)  # exact in the ball, as in the package: the maths is to be the same
            start = project(x + noise).requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(model(start), y, reduction="sum"), start)
            logits = model(project(start.detach() + step_size * grad.sign()))
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(y)
            correct += (logits.argmax(1) == y).sum().item()
            step += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--out", help="where to write the result as JSON")
    options = parser.parse_args()
    data, threat = at.load_data("digits"), at.Threat("linf", 0.3)
    ways = {"fit": by_fit, "by hand": by_hand}

    def once(name: str, epochs: int):
        model = at.build_model("small-cnn", data, width=options.width)
        started = time.perf_counter()
        ways[name](model, data, threat, epochs)
        return time.perf_counter() - started, list(model.parameters())

    # One epoch each, to warm up, and to show that both do the same: later, rounding sends them apart.
    (_, ours), (_, theirs) = once("fit", 1), once("by hand", 1)
    apart = max(float((a - b).detach().abs().max()) for a, b in zip(ours, theirs, strict=True))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.rounds):
        for name in ways if turn % 2 else reversed(ways):
            seconds[name].append(once(name, EPOCHS)[0])
    result = {
        "what": "median time of fit divided by that of a hand-written FAST-AT loop, same batches, draws and maths",
        "ratio": round(statistics.median(seconds["fit"]) / statistics.median(seconds["by hand"]), 4),
        "rounds": options.rounds,
        "width": options.width,
        "largest_difference_of_the_weights_after_one_epoch": apart,
        "provenance": provenance(SEED, "cpu"),
    }
    print(
        f"fit / by hand: {result['ratio']:.3f} (median of {options.rounds} rounds each), weights apart by {apart:.1e}"
    )
    if options.out:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
