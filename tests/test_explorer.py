"""The explorer computes anew at every move, shows what went wrong, and leaves the model as it was."""

import base64
import re
from io import BytesIO

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import advtrain as at
from advtrain.errors import ArgumentError, DataError, ModelError

ipywidgets = pytest.importorskip("ipywidgets")
pytest.importorskip("matplotlib")
from PIL import Image  # noqa: E402

from advtrain import widgets  # noqa: E402

THREAT = at.Threat("linf", 0.2)


@pytest.fixture(scope="module")
def data():
    return at.load_data("digits")


class Net(nn.Module):
    """Linear; raises or answers otherwise when told to."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(64, 10, generator=generator))
        self.dropout, self.broken = nn.Dropout(0.5), False

    def forward(self, x):
        if self.broken:
            raise RuntimeError("out of <paper>")
        return self.dropout(x.flatten(1) @ self.weight)


@pytest.fixture
def shown(data):
    return widgets.explorer(Net(), data, THREAT)


def test_it_begins_with_the_first_image_under_pgd_at_the_threats_radius(shown, data):
    view = shown.view
    assert (view.place, view.attack, view.steps, view.threat) == (0, "pgd", 10, THREAT)
    assert torch.equal(view.x, data.test.images()[:1]) and view.label == data.test.y[0]
    assert THREAT.contains(view.x_adv, view.x).all() and not torch.equal(view.x, view.x_adv)


def test_every_control_computes_anew(shown, data):
    model = shown.model
    shown.attack.value = "fgsm"
    assert shown.steps.disabled  # FGSM has none
    shown.eps.value = shown.radii[5]
    with torch.no_grad():
        right = model.eval()(data.test.images()).argmax(1) == data.test.y
    shown.number.value = number = int(right[1:].int().argmax()) + 1  # what is wrong already is not attacked
    x, y = data.test[number].images(), data.test[number].y
    x_adv = at.attacks.fgsm(model, x, y, at.Threat("linf", shown.radii[5]))
    assert torch.equal(shown.view.x_adv, x_adv)
    with torch.no_grad():
        logits = model(torch.cat([x, x_adv]))
    assert torch.allclose(shown.view.logits, logits) and torch.allclose(shown.view.probabilities, logits.softmax(1))
    answer = int(logits[1].argmax())
    assert (
        f"after FGSM, ℓ∞ ε = {shown.radii[5]:g}" in shown.frame.value
        and f"{logits[1, answer]:.2f}" in shown.frame.value
    )
    shown.attack.value = "pgd"
    assert not shown.steps.disabled
    shown.steps.value = 1
    moved = at.attacks.pgd(model, x, y, shown.view.threat, steps=1, rng=at.Rng(0, "explorer"))
    assert shown.view.steps == 1 and torch.equal(shown.view.x_adv, moved) and not torch.equal(moved, x_adv)


def test_it_shows_the_model_as_it_is_now(shown):
    before = shown.view.logits
    with torch.no_grad():
        shown.model.weight.neg_()
    shown.number.value = 1
    shown.number.value = 0
    assert torch.allclose(shown.view.logits[0], -before[0])


def test_a_class_narrows_the_choice(shown, data):
    shown.number.value = 50
    assert shown.of_class.label == "every class"
    shown.of_class.value = 4
    places = (data.test.y == 4).nonzero().flatten().tolist()
    assert (shown.number.value, shown.number.max, shown.view.place) == (0, len(places) - 1, places[0])
    shown.number.value = 2
    assert shown.view.place == places[2] and shown.view.label == 4
    shown.of_class.value = -1
    assert shown.number.max == len(data.test) - 1 and shown.view.place == 0


def test_radius_zero_is_no_attack(shown):
    shown.eps.value = 0.0
    assert shown.view.threat is None and torch.equal(shown.view.x, shown.view.x_adv)
    assert "after no attack" in shown.frame.value and torch.equal(*shown.view.logits)


def test_an_error_is_shown_and_the_next_move_may_go_well(shown):
    shown.model.broken = True
    shown.number.value = 3
    assert 'role="alert"' in shown.frame.value and "out of &lt;paper&gt;" in shown.frame.value
    shown.model.broken = False
    shown.number.value = 4
    assert "alert" not in shown.frame.value and shown.view.place == 4


def test_what_is_shown_is_what_was_computed(shown):
    data = re.search(r"base64,([^\"]+)", shown.frame.value)[1]
    image = Image.open(BytesIO(base64.b64decode(data)))
    assert image.size == shown.still.size and np.asarray(image.convert("L")).std() > 10
    rows = re.findall(r'<th scope="row">(\d)</th><td>([^<]+)</td><td>([^<]+)</td>', shown.frame.value)
    assert len(rows) == 10
    for number, before, after in rows:
        assert (before, after) == tuple(f"{logits[int(number)]:.2f}" for logits in shown.view.logits)
    assert f'alt="Image 0, {shown.view.label}. The model reads' in shown.frame.value


def test_a_saved_notebook_has_a_still_and_a_word_about_it(shown):
    bundle = shown._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"])[:4] == b"\x89PNG"
    assert bundle["text/plain"] == repr(shown) == "Explorer of 360 images, ℓ∞ ε = 0.2: live where there is a kernel"
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "this is a still" in shown.children[-1].value


def test_radii_read_as_in_papers(data):
    found = widgets.explorer(Net(), data, at.Threat("linf", 8 / 255))
    labels = [label for label, _ in found.eps.options]
    assert labels[:3] == ["0", "1/255", "2/255"] and labels[-1] == "16/255" and found.eps.label == "8/255"
    assert max(eps for _, eps in widgets.explorer(Net(), data, at.Threat("linf", 0.8)).eps.options) <= 1


def test_without_a_threat_the_radius_is_the_usual_one(data):
    assert widgets.explorer(Net(), data).threat == at.Threat("linf", 0.3)
    colours = at.Split(torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1]))
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    assert widgets.explorer(model, colours).threat == at.Threat("linf", 8 / 255)


def test_whatever_holds_images_will_do(data):
    part = data.test[:5]
    own = TensorDataset(part.images(), part.y)
    own.classes = list("abcdefghij")
    for given in (part, (part.images(), part.y), own):
        found = widgets.explorer(Net(), given, THREAT)
        assert torch.allclose(found.view.x, part.images()[:1], atol=1e-6) and found.number.max == 4
    assert ("abcdefghij"[part.y[0]], int(part.y[0])) in found.of_class.options


def test_the_model_is_left_as_it_was(data):
    model = Net()
    model.weight.grad = torch.ones_like(model.weight)
    found, random = widgets.explorer(model, data, THREAT), torch.get_rng_state()
    found.number.value = 2
    assert model.training and model.dropout.training and model.weight.requires_grad
    assert (model.weight.grad == 1).all() and torch.equal(torch.get_rng_state(), random)


def test_refuses(data):
    with pytest.raises(ArgumentError, match="model=an object of type Dataset is not a Module: the order is explorer"):
        widgets.explorer(data, Net())
    with pytest.raises(ArgumentError, match="threat=0.3 is not a Threat"):
        widgets.explorer(Net(), data, 0.3)
    with pytest.raises(DataError, match="data='digits' is not a data set"):
        widgets.explorer(Net(), "digits")
    with pytest.raises(ArgumentError, match="channels of data=2 is not 1 or 3"):
        widgets.explorer(Net(), at.Split(torch.rand(2, 2, 4, 4), torch.tensor([0, 1])))
    with pytest.raises(ModelError, match="the model fails"):
        widgets.explorer(nn.Linear(3, 2), data)
