"""A second opinion on our attacks by another library's, `pip install adversarial-robustness-toolbox`, if it is there.

It is a large package that nothing else here needs, so the tests skip where it is absent.
"""

import warnings

import pytest
import torch

import advtrain as at
from advtrain.attacks import apgd, square

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    evasion = pytest.importorskip("art.attacks.evasion", reason="adversarial-robustness-toolbox is not installed")
    from art.estimators.classification import PyTorchClassifier

pytestmark = pytest.mark.filterwarnings("ignore")
THREAT = at.Threat("linf", 0.3)


@pytest.fixture(scope="module", params=["fgsm", "pgd"])
def trained(request):
    """A network of the digits, masked or honest, with 60 images that it classifies correctly."""
    data = at.load_data("digits")
    defense = {"fgsm": at.defenses.FGSM, "pgd": at.defenses.PGD}[request.param](THREAT)
    model = at.fit(at.build_model("small-cnn", data), defense, data, epochs=15, progress=False).model
    x, y = data.test.images(), data.test.y
    right = (model(x).argmax(1) == y).nonzero().squeeze(1)[:60]
    return model, x[right], y[right]


def stands(model, x_adv, y):
    with torch.no_grad():
        return (model(torch.as_tensor(x_adv)).argmax(1) == y).float().mean().item()


def classifier(model, x):
    return PyTorchClassifier(
        model, torch.nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]), nb_classes=10, clip_values=(0.0, 1.0),
        device_type="cpu",
    )  # fmt: skip


@pytest.mark.parametrize("loss, name", [("ce", "cross_entropy"), ("dlr", "difference_logits_ratio")])
def test_auto_pgd_breaks_as_many_images(trained, loss, name):
    model, x, y = trained
    theirs = evasion.AutoProjectedGradientDescent(
        classifier(model, x), norm="inf", eps=THREAT.eps, eps_step=2 * THREAT.eps, max_iter=100, nb_random_init=1,
        batch_size=60, loss_type=name, verbose=False,
    ).generate(x.numpy(), y.numpy())  # fmt: skip
    assert stands(model, apgd(model, x, y, THREAT, loss=loss), y) <= stands(model, theirs, y) + 0.05


def test_square_breaks_as_many_images(trained):
    model, x, y = trained
    theirs = evasion.SquareAttack(
        classifier(model, x), norm="inf", eps=THREAT.eps, max_iter=1000, p_init=0.8, nb_restarts=1, batch_size=60,
        verbose=False,
    ).generate(x.numpy(), y.numpy())  # fmt: skip
    assert stands(model, square(model, x, y, THREAT, queries=1000), y) <= stands(model, theirs, y) + 0.05
