"""Checks: what must not be trained on is refused by name, and looking at a model leaves it as it was."""

import copy

import pytest
import torch
from torch import nn

from advtrain.checks import check_images, check_labels, check_model
from advtrain.errors import DataError, ModelError
from advtrain.models import build_model

NAN, INF = float("nan"), float("inf")


def images(value=0.5, n=4, **options):
    return torch.full((n, 1, 8, 8), value, **options)


def with_pixel(value):
    x = images()
    x[2, 0, 3, 3] = value
    return x


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_plain_images_pass(dtype):
    check_images(images(1.0).to(dtype))
    check_images(torch.zeros(1, 3, 2, 2, dtype=dtype, requires_grad=dtype == torch.float32))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[0.5]], "batch=an object of type list is not a torch.Tensor"),
        (torch.rand(3, 8, 8), r"batch.shape=\(3, 8, 8\) is not \(B, C, H, W\): .*batch\[None\]"),
        (torch.rand(4, 64), "not vectors"),
        (torch.rand(0, 1, 8, 8), "at least one image"),
        (torch.rand(2, 8, 8, 3), r"batch.permute\(0, 3, 1, 2\)"),
        (images().long(), r"batch.to\(torch.uint8\) if they are 0..255"),
        (images(True).bool(), r"batch.float\(\)"),
        (with_pixel(NAN), r"NaN or infinite pixels in 1 image\(s\), the first at batch\[2\]"),
        (with_pixel(INF), "infinite"),
        (with_pixel(-INF), "infinite"),
        (with_pixel(255.0), "batch='0.5 to 255' is not inside .* divide by 255"),
        (with_pixel(1.01), r"batch.clamp\(0, 1\)"),
        (with_pixel(-2.1), "normalisation is the model's first layer"),
    ],
)
def test_images_that_cannot_be_used_are_refused_by_name(x, message):
    with pytest.raises(DataError, match=message):
        check_images(x, name="batch")


def test_labels_of_any_integer_type_pass():
    for dtype in (torch.uint8, torch.int32, torch.int64):
        check_labels(torch.tensor([0, 9, 3], dtype=dtype), 10, length=3)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0, 1], "target=an object of type list is not a torch.Tensor"),
        (torch.zeros(3, 10), r"one-hot\? target.argmax\(1\)"),
        (torch.zeros(3, 1).long(), "flatten"),
        (torch.zeros(3), r"target.dtype=torch.float32 is not an integer type: .*target.long\(\)"),
        (torch.zeros(3).bool(), "integer"),
        (torch.zeros(0).long(), "at least one label"),
        (torch.tensor([0, 1]), r"len\(target\)=2 is not 3"),
        (torch.tensor([0, -1, 2]), r"'-1 to 2' is not inside 0\.\.9"),
        (torch.tensor([1, 10, 2]), "labels start at 0"),
        (torch.tensor([0, 10, 2]), r"inside 0\.\.9, for 10 classes"),
    ],
)
def test_labels_that_cannot_be_used_are_refused_by_name(y, message):
    with pytest.raises(DataError, match=message):
        check_labels(y, 10, name="target", length=3)


def test_hints_are_code_whatever_the_argument_is_called():
    with pytest.raises(DataError, match=r"data x='0.5 to 255' .* divide by 255: x / 255, or pass uint8: x.to"):
        check_images(with_pixel(255.0), name="data x")
    with pytest.raises(DataError, match=r"data y.shape=\(3, 10\) is not \(B,\): one-hot\? y.argmax\(1\)"):
        check_labels(torch.zeros(3, 10), 10, name="data y")


def test_labels_of_an_unknown_number_of_classes_are_at_least_zero():
    check_labels(torch.tensor([0, 2**40]), None)
    with pytest.raises(DataError, match="y='-1 to 3' is not at least 0: labels are class numbers"):
        check_labels(torch.tensor([3, -1]), None)


def net(*layers):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), *layers)


def test_a_model_that_returns_logits_passes_and_its_logits_are_counted():
    assert [check_model(net(), images(), wanted) for wanted in (10, 3, None)] == [10, 10, 10]


class Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (net(nn.Softmax(1)), "remove the softmax"),
        (net(nn.Linear(10, 5)), "returns 5 logits and the data have 10 classes"),
        (Returns((torch.zeros(4, 10),)), "returns an object of type tuple"),
        (Returns(torch.zeros(4, 10, 1)), r"returns shape \(4, 10, 1\)"),
        (Returns(torch.zeros(3, 10)), r"not \(4, K\)"),
        (Returns(torch.zeros(4)), r"shape \(4,\)"),
        (Returns(torch.zeros(4, 10).long()), "argmax"),
        (Returns(torch.full((4, 10), NAN)), "NaN or infinite logits"),
        (nn.Sequential(nn.Flatten(), nn.Linear(63, 10)), r"fails on a batch of shape \(4, 1, 8, 8\).*RuntimeError"),
        (build_model("small-cnn", shape=(3, 32, 32), num_classes=10, normalize=None), r"accepts \(B, 3, 32, 32\)"),
    ],
)
def test_models_that_do_not_fit_are_refused(model, message):
    with pytest.raises(ModelError, match=message):
        check_model(model, torch.rand(4, 1, 8, 8), 10)


def test_half_precision_probabilities_are_recognised_too():
    model = net(nn.Softmax(1)).to(torch.bfloat16)
    with pytest.raises(ModelError, match="softmax"):
        check_model(model, torch.rand(4, 1, 8, 8).to(torch.bfloat16))


def test_log_probabilities_pass_because_every_loss_here_ignores_a_shift():
    logits = torch.randn(5, 10)
    y = torch.arange(5)
    torch.testing.assert_close(
        nn.functional.cross_entropy(logits.log_softmax(1), y), nn.functional.cross_entropy(logits, y)
    )
    assert check_model(net(nn.LogSoftmax(1)), images(), 10) == 10


def test_logits_that_merely_look_like_probabilities_in_one_row_pass():
    logits = torch.eye(2)
    logits[1] = torch.tensor([0.4, 0.5])
    assert check_model(Returns(logits), images(n=2), 2) == 2
    assert check_model(Returns(torch.eye(2)[:1]), images(n=1), 2) == 2, "one image is not enough to tell"


def test_a_look_at_a_model_leaves_no_trace():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    model = nn.Sequential(nn.BatchNorm2d(1), Noisy(), nn.Dropout(), nn.Flatten(), nn.Linear(64, 10))
    model[0].eval()  # a frozen layer of a model in training mode
    state, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    x, random = torch.rand(4, 1, 8, 8), torch.random.get_rng_state()
    check_model(model, x, 10)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert flags == [m.training for m in model.modules()] and torch.equal(random, torch.random.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_flags_come_back_when_the_model_fails():
    model = nn.Sequential(nn.Flatten(), nn.Linear(63, 10)).train()
    with pytest.raises(ModelError):
        check_model(model, images())
    assert all(m.training for m in model.modules())
