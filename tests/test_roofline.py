"""What `benchmarks/roofline.py` counts of an update."""

import importlib.util
from pathlib import Path

import pytest
import torch

import advtrain as at

spec = importlib.util.spec_from_file_location("roofline", Path(__file__).parents[1] / "benchmarks" / "roofline.py")
roofline = importlib.util.module_from_spec(spec)
spec.loader.exec_module(roofline)


def test_an_operation_is_counted_with_its_arithmetic_and_its_bytes():
    a, b = torch.rand(8, 32), torch.rand(32, 16)
    with roofline.Ledger() as ledger:
        c = a @ b
        d = c.view(-1).t().relu_()
        torch.empty(1000)
    product, relu = ledger.operations
    assert product == ("mm", 2 * 8 * 32 * 16, 4 * (8 * 32 + 32 * 16 + 8 * 16)) and relu == ("relu_", 0, 2 * d.nbytes)
    gpu = roofline.GPU
    assert relu.seconds == relu.bytes / gpu["bytes_per_second"]
    assert roofline.Operation("mm", 1e15, 1).seconds == 1e15 / gpu["flops"]


def test_normalisation_reads_its_input_twice():
    x, ones = torch.rand(2, 3, 4, 4), torch.ones(3)
    with roofline.Ledger() as ledger:
        torch.native_batch_norm(x, ones, ones, None, None, True, 0.1, 1e-5)
    assert ledger.operations[0].bytes == 3 * x.nbytes + 4 * ones.nbytes


@pytest.mark.parametrize("name", ["fast-at", "sat-r1"])
def test_two_small_batches_tell_of_a_larger_one(name):
    small, large, larger = (roofline.recorded(name, images) for images in (4, 8, 12))
    extended = roofline.extended(small, large, 12)
    for ours, theirs in zip(extended, larger, strict=True):
        assert ours.name == theirs.name and tuple(ours[1:]) == pytest.approx(tuple(theirs[1:]))
    model = at.build_model("preactresnet18", shape=(3, 32, 32), num_classes=10, normalize=None)
    batch = at.Batch(torch.rand(12, 3, 32, 32), torch.arange(12) % 10)
    cost = at.cost(roofline.DEFENSES[name], model, batch)
    assert sum(each.flops for each in extended) == pytest.approx(cost.flops)
