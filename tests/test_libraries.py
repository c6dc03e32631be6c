"""Networks of torchvision, timm and transformers are defended, judged, kept and exported like our own."""

import copy
import warnings

import pytest
import torch
from torch import nn

import advtrain as at
from advtrain.errors import ArgumentError, ModelError

THREAT = at.Threat("linf", 8 / 255)
QUICK = at.Protocol(steps=1, restarts=1)


@pytest.fixture(scope="module")
def photographs():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(48, 3, 16, 16, generator=generator)
    return at.as_dataset((x, torch.arange(48) % 4), val=0.25, test=8, num_classes=4)


def resnet():
    from torchvision.models import resnet18

    return resnet18(num_classes=4)


def convolutions():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        import timm
    return timm.create_model("resnet10t", num_classes=4)


def attention():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm
    small = dict(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2)
    return timm.create_model("vit_tiny_patch16_224", num_classes=4, **small)


def hugging_face():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import ViTConfig, ViTForImageClassification
    small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    return ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, num_labels=4, **small))


def wrapped(make, data):
    torch.manual_seed(0)
    return at.load_model(make(), mean=(0.49, 0.48, 0.45), std=0.25, data=data)


LARGE = [pytest.param(make, marks=pytest.mark.slow) for make in (resnet, convolutions)]


@pytest.mark.parametrize("make", [resnet, convolutions])
def test_a_convolutional_network_of_another_library_is_judged(photographs, make):
    report = at.evaluate(wrapped(make, photographs), photographs, THREAT, protocol=QUICK)
    assert report.row("pgd").total == 8 and report["pgd"] <= report["clean"]


@pytest.mark.parametrize("make", [*LARGE, attention, hugging_face])
def test_a_network_of_another_library_is_defended_judged_and_kept(photographs, tmp_path, make):
    model = wrapped(make, photographs)
    before = copy.deepcopy(model.state_dict())
    defense = at.defenses.FastAT(THREAT)
    options = dict(epochs=1, batch_size=16, val_steps=1, progress=False, device="cpu", out=tmp_path / "run")
    run = at.fit(model, defense, photographs, **options)
    state = model.state_dict()
    assert sum(not before[key].equal(state[key]) for key in state) > len(state) / 2 and not model.training
    assert state["normalize.mean"].equal(before["normalize.mean"])

    report = at.evaluate(model, photographs, THREAT, protocol=QUICK)
    assert report.row("pgd").total == 8 and report["pgd"] <= report["clean"]
    split = photographs.test[:4]
    found = at.autoattack(model, split.x, split.y, at.Threat("linf", 0.5), "fast")
    assert found.robust_accuracy <= found["clean"] and found.passes
    stranger = at.build_model("small-cnn", photographs, width=4)
    assert at.diagnose(model, photographs, THREAT, images=4, surrogate=stranger).verdict

    with pytest.raises(ArgumentError, match="not as build_model makes it: pass one like it"):
        at.load_run(tmp_path / "run", data=photographs)
    again = at.load_run(tmp_path / "run", model=wrapped(make, photographs), data=photographs)
    x = photographs.test.images()
    with torch.no_grad():
        assert again.model(x).equal(model(x)) and again.history == run.history


def test_a_bare_classifier_of_hugging_face_is_refused_with_what_to_do(photographs):
    said = r"returns an object of type ImageClassifierOutput, .*: wrap it, as at.load_model\(model, pick='logits'\)"
    with pytest.raises(ModelError, match=said):
        at.fit(hugging_face(), at.defenses.FGSM(THREAT), photographs)


def test_a_wrapped_classifier_of_hugging_face_sees_what_its_image_processor_would_hand_it(photographs):
    pictures = pytest.importorskip("PIL.Image")
    network = hugging_face().eval()
    from transformers import ViTImageProcessor

    numbers = dict(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4])
    processor = ViTImageProcessor(size={"height": 16, "width": 16}, **numbers)
    x = (photographs.test.images() * 255).round().to(torch.uint8)
    images = [pictures.fromarray(image.permute(1, 2, 0).numpy()) for image in x]
    model = at.load_model(network, mean=processor.image_mean, std=processor.image_std, data=photographs)
    with torch.no_grad():
        wanted = network(**processor(images=images, return_tensors="pt")).logits
        assert torch.allclose(model(x / 255), wanted, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("make", [resnet, convolutions, attention, hugging_face])
def test_a_network_of_another_library_is_exported(photographs, tmp_path, make):
    model = wrapped(make, photographs)
    at.export(model, tmp_path, data=photographs)
    x = photographs.test.images()
    program = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        assert all(torch.allclose(program(x[:n]), model(x[:n]), atol=1e-4) for n in (1, 5))


class Attention(nn.Module):
    """Attention over the rows of an image, by PyTorch's fused function."""

    def __init__(self):
        super().__init__()
        self.project, self.last = nn.Linear(8, 24), nn.Linear(64, 10)

    def forward(self, x):
        parts = self.project(x).chunk(3, dim=-1)
        return self.last(nn.functional.scaled_dot_product_attention(*parts).flatten(1))


@pytest.mark.parametrize("name", ["gradalign", "fast-bat"])
def test_attention_that_cannot_be_differentiated_twice_is_named_and_the_remedy_is_one(name):
    data, defense = at.load_data("digits"), at.defenses.DEFENSES[name](at.Threat("linf", 0.1))
    options = dict(epochs=1, validate_every=0, progress=False, device="cpu")
    with pytest.raises(ModelError, match=f"{name} differentiates a backward pass, .* train inside torch.nn.attention"):
        at.fit(Attention(), defense, data, **options)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert at.fit(Attention(), defense, data, **options).status == "finished"
