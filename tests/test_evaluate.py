"""Reports: right counts, right intervals, right words."""

import pytest
import torch
from torch import nn

import advtrain as at
from advtrain.evaluate import PROTOCOLS
from advtrain.report import Row, interpret, wilson

THREAT = at.Threat("linf", 0.1)


@pytest.fixture(scope="module")
def digits():
    return at.load_data("digits")


@pytest.fixture(scope="module")
def model(digits):
    net = at.build_model("small-cnn", digits, width=4)
    return at.fit(net, at.defenses.FastAT(THREAT), digits, epochs=8, validate_every=0).model


@pytest.mark.parametrize("wrong", ["weights.pt", nn.Linear, None])
def test_what_is_no_network_is_named(digits, wrong):
    with pytest.raises(at.errors.ArgumentError, match="is not a Module: the order is evaluate"):
        at.evaluate(wrong, digits.test, THREAT)


def test_counts_are_those_of_a_plain_loop(digits, model):
    report = at.evaluate(model, digits.test, THREAT)
    x, y = digits.test.images(), digits.test.y
    assert report.row("clean").correct == int((model(x).argmax(1) == y).sum())
    x_adv = at.attacks.fgsm(model, x, y, THREAT)
    assert report.row("fgsm").correct == int((model(x_adv).argmax(1) == y).sum())
    assert report["pgd"] <= report["fgsm"] <= report["clean"]


def test_a_linear_model_is_judged_exactly(digits):
    """For a linear two-class model the robust images are those whose margin exceeds ε‖w‖₁: PGD must find all others."""
    x = at.Rng(0).uniform(torch.empty(400, 1, 4, 4), 0.3, 0.7)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    weight, shift = net[1].weight[1] - net[1].weight[0], net[1].bias[1] - net[1].bias[0]
    with torch.no_grad():
        margin = x.flatten(1) @ weight + shift
        margin -= (middle := margin.median())
        net[1].bias[1] -= middle
    y = (margin > 0).long()
    threat = at.Threat("linf", 0.02)
    robust = (margin.abs() > 0.02 * weight.abs().sum()).float().mean().item()
    report = at.evaluate(net, (x, y), threat)
    assert 0.1 < robust < 0.9 and report["clean"] > 0.99
    assert report["pgd"] == pytest.approx(robust, abs=0.003) and report["fgsm"] == pytest.approx(robust, abs=0.003)


def test_the_protocols_differ_where_the_papers_do():
    threat = at.Threat("linf", 16 / 255)
    assert PROTOCOLS["fast-bat"].size(threat) == pytest.approx(4 / 255)
    assert PROTOCOLS["fgsm-rs"].size(threat) == pytest.approx(2 / 255)
    assert PROTOCOLS["fast-bat"].describe(threat) == "50 steps of 4/255, 10 restarts, last iterate"
    assert all((p.steps, p.restarts) == (50, 10) for p in PROTOCOLS.values())


def test_strict_is_never_kinder_than_the_papers_protocol(digits, model):
    strict, paper = (
        at.evaluate(model, digits.test[:200], THREAT, protocol=p)["pgd"] for p in ("strict", "fast-bat")
    )  # fmt: skip
    assert strict <= paper


def test_wilson_intervals_are_the_published_ones():
    """Values from Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for counts, ends in published.items():
        assert wilson(*counts) == pytest.approx(ends, abs=5e-5)
    with pytest.raises(at.errors.ArgumentError):
        wilson(3, 2)


def rows(fgsm, pgd, total=1000):
    return {"fgsm": Row("fgsm", fgsm, total), "pgd": Row("pgd", pgd, total)}


def test_the_words_follow_the_figures():
    figures = "where FGSM leaves 60.0% correct, PGD leaves 12.0%"
    assert interpret(rows(600, 120))[0].startswith(f"Gradient masking: {figures}")
    assert interpret(rows(440, 320))[0].startswith("No sign of gradient masking")
    assert "far from linear" in interpret(rows(600, 300))[0]
    assert interpret(rows(80, 0))[0].startswith("Not robust")  # an undefended model masks nothing
    assert interpret(rows(300, 320))[0].startswith("Odd")
    guessing = rows(20, 0) | {"clean": Row("clean", 100, 1000)}
    assert interpret(guessing)[0].startswith("Nothing to judge: 10.0%")  # what was never right no attack has broken
    assert "AutoAttack" in interpret(rows(440, 320))[-1]
    assert not interpret(rows(4, 1, total=10))[0].startswith("Gradient masking")  # too few images to say so


@pytest.mark.parametrize(
    ("classes", "clean", "pgd", "words"),
    [
        (100, 120, 10, "Not robust"),  # twelve times what guessing reaches
        (100, 12, 0, "Nothing to judge: 1.2%"),
        (None, 120, 10, "Nothing to judge: 12.0%"),
        (10, 120, 10, "Nothing to judge: 12.0%"),
        (2, 500, 500, "Nothing to judge: 50.0% of the clean images are right, and no attack changes any of it. Does"),
        (2, 700, 700, "No sign of gradient masking"),
        (10, 100, 100, "Nothing to judge: 10.0%"),
        (10, 500, 500, "No sign of gradient masking"),
    ],
)
def test_what_guessing_reaches_depends_on_the_number_of_classes(classes, clean, pgd, words):
    found = rows(pgd, pgd) | {"clean": Row("clean", clean, 1000)}
    assert interpret(found, classes=classes)[0].startswith(words)


def test_a_network_of_two_classes_that_gives_one_answer_is_not_judged(digits):
    import json

    class Constant(nn.Module):
        def forward(self, x):
            return torch.stack([0 * x.flatten(1).sum(1), 0 * x.flatten(1).sum(1) + 2], 1)

    x, y = digits.test[:40].images(), torch.arange(40) % 2
    report = at.evaluate(Constant(), (x, y), THREAT, protocol=at.Protocol(steps=1, restarts=1))
    assert report.classes == 2 and report.notes[0].startswith("Nothing to judge: 50.0%")
    again = at.Report.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again.classes == 2 and again.notes == report.notes
    old = {key: value for key, value in report.to_dict().items() if key not in ("classes", "images")}
    assert at.Report.from_dict(old).classes is None


def test_a_report_survives_json_and_renders(digits, model):
    import json

    report = at.evaluate(model, digits.test[:40], THREAT)
    again = at.Report.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again == report and str(again) == str(report)
    assert "clean" in str(report) and "<table" in report._repr_html_()
    with pytest.raises(at.errors.ArgumentError, match="name='autoattack' is not one of clean, fgsm, pgd"):
        report["autoattack"]


def test_the_model_comes_back_as_it_was(digits, model):
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    at.evaluate(model, digits.test[:20], THREAT)
    assert model.training and all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    model.eval()


def test_a_gradient_that_is_not_a_number_is_not_called_robust(digits):
    """A norm of zero on black images has a NaN gradient: every gradient attack stands still there."""

    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(64, 10)

        def forward(self, x):
            x = x.flatten(1)
            return self.net(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-5))

    with pytest.raises(at.errors.ModelError, match="gradient is NaN or infinite for 8 of 8 images"):
        at.evaluate(Blind(), (torch.zeros(8, 1, 8, 8), torch.arange(8)), THREAT)


def test_bad_input_is_named(digits, model):
    with pytest.raises(at.errors.ArgumentError, match="protocol='pgd-50' is not one of strict"):
        at.evaluate(model, digits.test, THREAT, protocol="pgd-50")
    with pytest.raises(at.errors.ArgumentError, match="threat=0.3 is not a Threat"):
        at.evaluate(model, digits.test, 0.3)
    with pytest.raises(at.errors.ArgumentError, match="batch_size=0"):
        at.evaluate(model, digits.test, THREAT, batch_size=0)
    with pytest.raises(at.errors.DataError):
        at.evaluate(model, (digits.test.images() * 255, digits.test.y), THREAT)
    with pytest.raises(at.errors.DataError):
        at.evaluate(model, digits.test[:0], THREAT)


class Saturated(nn.Module):
    """Logits so far apart that on most images the softmax is exactly 0 and 1, and its gradient gone."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 1e4 * self.inner(x).clamp(-1e-3, 1e-3)


def test_the_warnings_of_autoattack_reach_the_report_and_nothing_is_called_robust_then(digits, model):
    import json

    protocol = at.Protocol(steps=2, restarts=1)
    with pytest.warns(at.errors.AdvtrainWarning, match="exactly zero"):
        report = at.evaluate(Saturated(model), digits.test[:24], THREAT, protocol=protocol, autoattack="fast")
    assert len(report.warnings) == 1 and report.notes[0] == f"Warning: {report.warnings[0]}"
    assert "exactly zero" in str(report) and "exactly zero" in report._repr_html_()
    again = at.Report.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again == report and again.notes == report.notes

    found = {**rows(440, 320), "autoattack": Row("autoattack", 310, 1000)}
    assert interpret(found)[1].startswith("Robust under AutoAttack: 31.0%")
    assert interpret(found)[0].startswith("No sign of gradient masking:")
    told = at.Report(THREAT, list(found.values()), warnings=["gradients vanish"]).notes
    assert told[0] == "Warning: gradients vanish" and told[1].startswith("No sign of gradient masking in FGSM and PGD:")
    assert told[2] == "AutoAttack leaves 31.0%: heed its warnings before you call that robust."


def test_a_report_of_an_older_file_has_no_warnings():
    old = {"threat": {"norm": "linf", "eps": 0.1}, "rows": [Row("clean", 3, 4).to_dict()], "notes": []}
    assert at.Report.from_dict(old).warnings == [] and at.Report.from_dict(old)["clean"] == 0.75


def test_a_model_that_writes_to_its_input_does_not_write_to_the_data():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(64, 10)

        def forward(self, x):
            return self.net((x if x.requires_grad else x.sub_(0.5)).flatten(1))

    x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
    before = x.clone()
    at.evaluate(Writes(), (x, y), THREAT, protocol=at.Protocol(steps=1, restarts=1), batch_size=4)
    assert x.equal(before)
