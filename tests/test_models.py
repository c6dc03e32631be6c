"""Models: published sizes, normalisation inside, seeded weights, and refusals that say what to do."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advtrain.data import load_data
from advtrain.errors import ArgumentError, ModelError
from advtrain.models import ACTIVATIONS, MODELS, Normalize, Standardize, build_model

SMALL = {
    "small-cnn": {"width": 4},
    "lenet+": {},
    "preactresnet18": {"width": 2},
    "preactresnet34": {"width": 2},
    "preactresnet50": {"width": 2},
    "wideresnet": {"depth": 10, "width": 1},
}


def tiny(name, shape=(3, 32, 32), **options):
    return build_model(name, shape=shape, num_classes=10, **{"normalize": None, **SMALL[name], **options})


def count(name, shape, num_classes=10, **options):
    with torch.device("meta"):  # counted, never allocated
        model = build_model(name, shape=shape, num_classes=num_classes, normalize=None, **options)
    assert all(p.is_meta for p in model.parameters())
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "classes", "options", "published"),
    [
        ("lenet+", (1, 28, 28), 10, {}, 3_274_634),
        ("preactresnet18", (3, 32, 32), 10, {}, 11_172_170),
        ("preactresnet18", (3, 64, 64), 10, {}, 11_172_170),
        ("preactresnet18", (3, 32, 32), 100, {}, 11_172_170 + 90 * 513),
        ("preactresnet34", (3, 32, 32), 10, {}, 21_280_330),
        ("preactresnet50", (3, 32, 32), 10, {}, 23_513_162),
        ("wideresnet", (3, 32, 32), 10, {}, 36_479_194),
        ("wideresnet", (3, 32, 32), 10, {"depth": 34}, 46_160_474),
        ("wideresnet", (3, 32, 32), 10, {"depth": 28, "width": 10, "dropout": 0.3}, 36_479_194),
        ("small-cnn", (1, 8, 8), 10, {}, 81_002),
    ],
)
def test_parameter_counts_are_the_published_ones(name, shape, classes, options, published):
    assert count(name, shape, classes, **options) == published


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 9, 13)])
def test_every_model_takes_every_usual_shape_and_returns_logits(name, shape):
    model = tiny(name, shape)
    x = torch.rand(2, *shape)
    logits, features = model(x), model.eval().forward_features(x)
    assert logits.shape == (2, 10) and features.ndim == 2
    assert torch.equal(model(x), model.head(features))
    assert not torch.allclose(logits.exp().sum(1), torch.ones(2), atol=1e-3), "logits, not log-probabilities"


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_weights_whatever_the_global_state(name):
    torch.manual_seed(1)
    first = tiny(name, seed=3)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second = tiny(name, seed=3)
    assert torch.equal(before, torch.random.get_rng_state()), "building draws nothing from the global state"
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.head.weight, tiny(name, seed=4).head.weight)


@pytest.mark.parametrize("name", MODELS)
def test_spec_is_json_and_rebuilds_the_model(name):
    model = tiny(name, normalize=([0.1, 0.2, 0.3], [0.5, 0.6, 0.7]))
    spec = json.loads(json.dumps(model.spec))
    again = build_model(**spec)
    assert again.spec == model.spec
    again.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.eval()(x), model.eval()(x))
    assert copy.deepcopy(model).spec == spec, "an averaged copy can be saved, too"


def test_spec_writes_every_default_out():
    spec = tiny("wideresnet").spec
    assert spec["dropout"] == 0.0 and spec["activation"] == "relu" and spec["depth"] == 10


def test_every_model_is_listed_with_a_summary_and_its_options():
    for entry in MODELS.values():
        assert entry.summary.endswith(".") and len(entry.summary) <= 110
        assert all(default is not None for default in entry.options.values())
    assert MODELS["wideresnet"].options == {"depth": 28, "width": 10, "dropout": 0.0, "activation": "relu"}


def test_normalisation_is_in_the_model_with_the_numbers_of_the_data():
    data = load_data("digits")
    plain, normal = (build_model("small-cnn", data, normalize=how) for how in (None, "data"))
    x = data.test.images()[:4]
    mean, std = data.mean[0], data.std[0]
    torch.testing.assert_close(normal(x), plain((x - mean) / std))
    assert normal.spec["normalize"] == [[mean], [std]]
    assert "normalize.mean" in normal.state_dict(), "saved with the weights"
    assert plain.spec["normalize"] is None and plain.spec["shape"] == [1, 8, 8]


def test_normalize_is_per_channel_and_prints_its_numbers():
    layer = Normalize((0.5, 0.0, 0.25), (0.5, 1.0, 0.25))
    x = torch.ones(1, 3, 2, 2)
    assert layer(x)[0, :, 0, 0].tolist() == [1.0, 1.0, 3.0]
    assert "0.5000, 1.0000, 0.2500" in repr(layer) and not list(layer.parameters())


def test_standardize_is_tensorflows_per_image_standardization():
    x = torch.rand(3, 3, 5, 7, dtype=torch.float64)
    x[1] = 0.25  # a constant image meets the floor
    x[2] = 0.25 + 1e-4 * x[2]
    # numpy's standard deviation is the biased one
    expected = [(i - i.mean()) / max(i.std(), 1 / math.sqrt(i.size)) for i in x.numpy()]
    np.testing.assert_allclose(Standardize()(x).numpy(), expected, atol=1e-12)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(Standardize()(x).square().sum(), x)
    assert gradient.isfinite().all(), "also for the constant image"
    assert torch.autograd.gradcheck(Standardize(), torch.rand(2, 1, 3, 3, dtype=torch.float64, requires_grad=True))


def test_image_normalisation_ignores_brightness_and_contrast():
    model = tiny("small-cnn", normalize="image")
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(x), model(0.5 * x + 0.1), atol=1e-4, rtol=1e-4)
    assert model.spec["normalize"] == "image"


@pytest.mark.parametrize("name", ["preactresnet18", "preactresnet34", "preactresnet50", "wideresnet"])
def test_residual_blocks_compute_what_the_reference_code_computes(name):
    """The same weights in the reference's order of operations; the nets differ in where the shortcut starts."""
    model = tiny(name).eval()
    body = model.body
    x = torch.rand(2, 3, 32, 32)
    out = body.conv(x)
    for stage in [layer for key, layer in body.named_children() if key.startswith("stage")]:
        for block in stage:
            active = F.relu(block.bn1(out))
            inner = block.conv2(F.relu(block.bn2(block.conv1(active))))
            if name == "preactresnet50":
                inner = block.conv3(F.relu(block.bn3(inner)))
            if name in ("preactresnet18", "preactresnet34"):
                out = inner + block.shortcut(out)
            else:
                out = inner + (out if block.shortcut is None else block.shortcut(active))
    out = F.relu(body.bn(out))
    out = F.avg_pool2d(out, out.shape[-1]).flatten(1)
    torch.testing.assert_close(model.head(out), model(x))


def test_wide_resnet_starts_as_its_reference_does():
    model = build_model("wideresnet", shape=(3, 32, 32), num_classes=10, normalize=None, depth=10, width=4)
    conv = model.body.stage3[0].conv2
    assert abs(float(conv.weight.detach().std()) / math.sqrt(2 / (9 * conv.out_channels)) - 1) < 0.02
    assert not model.head.bias.any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_activation_is_an_option_of_every_model(activation):
    for name in MODELS:
        model = tiny(name, (1, 8, 8), activation=activation)
        kinds = {type(m) for m in model.modules()}
        assert type(ACTIVATIONS[activation]()) in kinds
        assert activation == "relu" or nn.ReLU not in kinds
        assert model(torch.rand(2, 1, 8, 8)).isfinite().all()


def test_a_smooth_small_cnn_has_second_derivatives_in_its_input():
    model = tiny("small-cnn", (1, 8, 8), activation="softplus").double()
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda v: model(v).square().sum(), x, fast_mode=True)


def test_no_layer_is_stochastic_unless_dropout_is_asked_for():
    x = torch.rand(2, 1, 8, 8)
    for name in MODELS:
        model = tiny(name, (1, 8, 8)).train()
        assert torch.equal(model(x), model(x))
    dropped = tiny("wideresnet", (1, 8, 8), dropout=0.5).train()
    assert not torch.equal(dropped(x), dropped(x))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("came", [(2, 1, 32, 32), (2, 3, 28, 28), (3, 32, 32), (2, 3, 32, 33)])
def test_a_batch_of_another_shape_is_refused_with_both_shapes(name, came):
    with pytest.raises(ModelError) as caught:
        tiny(name)(torch.rand(came))
    assert str(came) in str(caught.value) and "(B, 3, 32, 32)" in str(caught.value)


def test_uint8_pixels_are_refused():
    with pytest.raises(ModelError, match=r"uint8.*255"):
        tiny("small-cnn")(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet", {}, "small-cnn"),
        ("wideresnet", {"depth": 27}, "depth=27 is not 6n \\+ 4"),
        ("wideresnet", {"depth": 4}, "depth"),
        ("wideresnet", {"dropout": 1.0}, r"dropout=1.0 is not in \[0, 1\)"),
        ("wideresnet", {"width": 0}, "width=0 is not an integer of at least 1"),
        ("preactresnet18", {"width": 0}, "width"),
        ("small-cnn", {"width": 2.5}, "width=2.5"),
        ("small-cnn", {"activation": "rely"}, "did you mean 'relu'"),
        ("lenet+", {"width": 3}, "option='width'.*activation"),
        ("small-cnn", {"shape": (1, 4, 4)}, "at least 8"),
        ("small-cnn", {"shape": (1, 8)}, "three positive integers"),
        ("small-cnn", {"shape": None}, "give data or shape"),
        ("small-cnn", {"num_classes": 1}, "num_classes=1 is not an integer of at least 2"),
        ("small-cnn", {"normalize": "data"}, "give data"),
        ("small-cnn", {"normalize": "channels"}, "'image'"),
        ("small-cnn", {"normalize": ([0.5], [0.5])}, "3 channels"),
        ("small-cnn", {"normalize": ([0.5] * 3, [0.0] * 3)}, "std"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_can(name, options, message):
    with pytest.raises(ArgumentError, match=message):
        build_model(name, **{"shape": (3, 32, 32), "num_classes": 10, "normalize": None, **options})


def test_the_small_cnn_starts_kaiming_normal_and_with_gradients_in_its_input():
    model = build_model("small-cnn", shape=(1, 8, 8), num_classes=10, normalize=None, width=64)
    conv = model.body[2]
    assert abs(float(conv.weight.detach().std()) / math.sqrt(2 / (9 * conv.in_channels)) - 1) < 0.02
    assert not conv.bias.any()
    x = torch.rand(4, 1, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), torch.arange(4)), x)
    assert (gradient.abs().amax((1, 2, 3)) > 0).all(), "zero-start heads give the first attack no direction"
