"""`at.diagnose` tells masked gradients from honest ones, names the cause, and leaves everything as it was."""

import copy
import json
import math
import random

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import nn
from zoo import HONEST, L2, MASKED, THREAT, Case, after, before, digits, fit, quantise, rob, std, trained

import advtrain as at
from advtrain.diagnose import causes, evidence, statistics, surrogate, verdict
from advtrain.diagnose.battery import SHARES, TITLES, Battery, full_step
from advtrain.diagnose.causes import CAUSES
from advtrain.diagnose.conduct import Conduct
from advtrain.diagnose.diagnosis import Finding
from advtrain.diagnose.gradients import Gradients

pytestmark = pytest.mark.filterwarnings("ignore::advtrain.errors.OverfittingWarning")


QUICK = {
    "FGSM-AT", "logits x 1000, standard", "saturated units x 100", "4 levels", "thermometer", "zero backward",
    "flipped backward", "k-WTA", "sawtooth of pixels, PGD-AT", "random resize and pad", "softmax",
    "BN in training mode", "missing normalisation", "constant", "NaN gradient", "purifier",
    "PGD-AT", "PGD-AT judged at 0.4", "PGD-AT judged under l2", "standard", "standard at 0.1", "standard with BN",
    "log_softmax of PGD-AT", "logits x 0.01", "sigmoid units", "linear",
}  # fmt: skip


def some(cases):
    """The cases as parameters, those that are not QUICK only where slow tests are asked for."""
    slow = pytest.mark.slow
    return [pytest.param(case, id=name, marks=() if name in QUICK else slow) for name, case in cases.items()]


def whole(cases):
    return [pytest.param(case, id=name, marks=pytest.mark.slow) for name, case in cases.items()]


@pytest.fixture(scope="session")
def stranger():
    """A surrogate that serves all the quick tests: training two for each model is most of a diagnosis."""
    data = digits()
    network = at.build_model("small-cnn", data, width=8, seed=5)
    return fit(network, at.defenses.PGD(THREAT, steps=2, rel_step=0.5), data, epochs=8)


# -- the zoo -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", some(MASKED))
def test_a_masked_model_is_flagged_with_its_cause_first(case, stranger):
    surrogate = None if case.alone else stranger
    found = at.diagnose(case.build(), case.data(), case.threat, images=128, surrogate=surrogate)
    assert found.flagged and found.causes[0].startswith(case.cause), found
    assert found.verdict.startswith(f"Flagged: {found.causes[0]}. ") and "What to do next:" in found.verdict


@pytest.mark.parametrize("case", some(HONEST))
def test_an_honest_model_is_not_accused(case, stranger):
    found = at.diagnose(case.build(), case.data(), case.threat, images=128, surrogate=stranger)
    assert not found.flagged, found
    assert "does not mean robust" in found.verdict and "AutoAttack" in found.verdict


@pytest.mark.parametrize("case", whole(MASKED))
def test_every_masked_model_is_flagged_by_all_that_diagnose_does(case):
    found = at.diagnose(case.build(), case.data(), case.threat, seed=1)
    assert found.flagged and found.causes[0].startswith(case.cause), found


@pytest.mark.parametrize("case", whole(HONEST))
def test_no_honest_model_is_accused_by_all_that_diagnose_does(case):
    found = at.diagnose(case.build(), case.data(), case.threat, seed=1)
    assert not found.flagged, found


@pytest.mark.slow
@pytest.mark.parametrize("eps", [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4])
@pytest.mark.parametrize("defense", ["standard", "pgd", "trades"])
def test_no_radius_makes_an_honest_model_look_masked(defense, eps):
    for threat in (at.Threat("linf", eps), at.Threat("l2", 5 * eps)):
        assert not at.diagnose(trained(defense), digits(), threat).flagged


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_catastrophic_overfitting_is_told_from_robustness_at_every_seed(seed):
    masked, honest = trained("fgsm", epochs=30, seed=seed), trained("pgd", epochs=20, seed=seed)
    assert at.diagnose(masked, digits(), THREAT, seed=seed).causes == (causes.SINGLE_STEP.name,)
    assert not at.diagnose(honest, digits(), THREAT, seed=seed).flagged


def test_curvature_is_not_masking(stranger):
    """An undefended network at a radius where one step leaves many more images than ten."""
    found = at.diagnose(std(), digits(), at.Threat("linf", 0.15), surrogate=stranger)
    numbers = found["single-step"].numbers
    assert not found.flagged and numbers["one"] > 0.2 and numbers["many"] < numbers["one"] / 2
    assert numbers["noise"] < 0.05 and numbers["surrogate"] < 0.15  # its own gradient is the best there is


def test_a_model_that_is_exactly_robust_is_not_accused(stranger):
    """Two classes, a linear lead: what survives is known in closed form, and the attacks find it."""
    x = at.Rng(0).uniform(torch.empty(200, 1, 8, 8), 0.3, 0.7)
    weight = at.Rng(1).normal(torch.empty(64))
    lead = (x.flatten(1) - 0.5) @ weight
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.stack([-weight, weight]) / 2)
        network[1].bias.copy_(torch.stack([weight.sum(), -weight.sum()]) / 4)
    found = at.diagnose(network, (x, (lead > 0).long()), at.Threat("linf", 0.01))
    robust = float((lead.abs() > 0.01 * weight.abs().sum()).double().mean())
    assert not found.flagged and 0.2 < robust < 0.9
    assert found.accuracy("apgd-ce") == pytest.approx(robust, abs=0.01) and found.accuracy("clean") == 1
    assert found.accuracy("square") >= found.accuracy("apgd-ce") == found.accuracy("fgsm")


# -- what is measured --------------------------------------------------------------------------------------------------


def test_the_single_step_under_l2_uses_all_of_the_radius():
    """A step of length ε loses what the pixel box cuts off; the maximiser of the linearised loss does not."""
    model, (x, y) = rob(), (digits().test.images()[:40], digits().test.y[:40])
    plain, full = at.attacks.fgsm(model, x, y, L2), full_step(model, x, y, L2, "ce")
    lengths = [(x_adv - x).flatten(1).norm(dim=1) for x_adv in (plain, full)]
    assert bool(L2.contains(full, x).all()) and lengths[1].min() > 0.99 * L2.eps > lengths[0].max()
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(at.attacks.cross_entropy(model(leaf), y).sum(), leaf)
    gains = [(gradient * (x_adv - x)).flatten(1).sum(1) for x_adv in (plain, full)]
    assert bool((gains[1] >= gains[0]).all())
    assert torch.equal(full_step(model, x, y, THREAT, "ce"), at.attacks.fgsm(model, x, y, THREAT))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(1, 60), st.sampled_from([0.01, 0.05]))
def test_bounds_are_those_of_clopper_and_pearson(successes, more, doubt):
    trials = successes + more
    exact = binomtest(successes, trials).proportion_ci(1 - 2 * doubt, "exact")
    assert statistics.at_least_share(successes, trials, doubt) == pytest.approx(exact.low, abs=1e-9)
    assert statistics.at_most_share(successes, trials, doubt) == pytest.approx(exact.high, abs=1e-9)
    expected = binomtest(successes, trials, 0.5, alternative="greater").pvalue if successes else 1
    assert statistics.one_sided(successes, more) == pytest.approx(expected, abs=1e-12)


# -- the verdict -------------------------------------------------------------------------------------------------------

CLEAN_CONDUCT = Conduct((), 0.0, 0.0, 0.0, 10, 10, 256, False, (), "", (0.97, 0.97), (0.1, 0.1), 1.0)
CLEAN_GRADIENTS = Gradients("", 0, 0.0, 0.0, 0.0, 2.5, 10.0, 0.0, 7e-5, 1.0, 1.0, 1.0, 1.0, 0.7, 1.0, 0.3, 250)


def battery(n=256, clean=0.97, one=0.6, many=0.3, others=0.05, strangers=0.5, **left):
    """Attacks that leave such shares of n images, and steps that do better than the model's own on such shares."""

    def mask(share):
        return torch.arange(n) < round(share * n)

    usual = {"fgsm": one, "fgsm-margin": one, "fgsm-half": one + 0.1, "r-fgsm": one, "unbounded": 0.0}
    usual |= {name: many for name in ("pgd-10", "pgd-first", "pgd", "apgd-ce", "apgd-margin")}
    left = usual | {"transfer-fgsm": 0.8, "transfer": 0.7, "square": 0.6, "noise": 0.9, "clean": clean} | left
    own = torch.zeros(n)
    margin = {"fgsm": own, "fgsm-margin": own, "r-fgsm": own - mask(others).float()}
    margin["transfer-fgsm"] = own - mask(strangers).float()
    curve = {share: [n * (1 - share / 2), n * (1 + share)] * 2 for share in (0.0, *SHARES)}
    return Battery({name: mask(left[name]) for name in TITLES}, margin, curve)


def judged(fought, conduct=CLEAN_CONDUCT, gradients=CLEAN_GRADIENTS):
    return [cause.name for cause in verdict.judge(conduct, gradients, fought)[1]]


def test_one_step_that_flatters_is_masking_only_where_others_step_better():
    assert judged(battery(one=0.6, many=0.01, others=0.4)) == [causes.SINGLE_STEP.name]
    assert judged(battery(one=0.6, many=0.01, others=0.02)) == []  # curved
    assert judged(battery(one=0.6, many=0.01, others=0.4, strangers=0.1)) == []
    assert judged(battery(one=0.6, many=0.25, others=0.4)) == []  # partly robust
    assert judged(battery(one=0.2, many=0.0, others=0.4)) == []  # nothing to mask
    rising = battery(one=0.6, many=0.01, others=0.02, **{"fgsm-half": 0.3})
    assert judged(rising) == [causes.SINGLE_STEP.name]  # more accurate at ε than at ε/2: the answer was learnt by heart


def test_evidence_without_a_known_cause_is_still_evidence():
    for weaker in ({"square": 0.2}, {"transfer": 0.2}, {"noise": 0.2}, {"unbounded": 0.2}):
        assert judged(battery(**weaker)) == [causes.UNKNOWN.name], weaker
    shattered = CLEAN_GRADIENTS.__class__(**{**vars(CLEAN_GRADIENTS), "small": 0.0})
    findings, found = verdict.judge(CLEAN_CONDUCT, shattered, battery(square=0.2))
    assert [cause.name for cause in found] == [causes.SHATTERED.name]
    assert {f.cause for f in findings if f.verdict == "flag"} == {causes.SHATTERED.name}


def test_a_few_images_accuse_nobody():
    """What is overwhelming on 256 images is chance on ten."""
    assert judged(battery(n=10, square=0.2)) == [] and judged(battery(n=256, square=0.2)) != []
    assert judged(battery(n=10, one=0.6, many=0.1, others=0.4)) == []
    assert judged(battery(square=0.3 - 7 / 256)) == []  # as many as an honest model has shown


def test_symptoms_alone_accuse_nobody():
    for symptom in ({"alignment": 0.0}, {"nearby": 0.3}, {"linearity": 50.0}, {"zero_loss": 1.0}, {"norm": 1e-9}):
        gradients = Gradients(**{**vars(CLEAN_GRADIENTS), **symptom})
        findings, found = verdict.judge(CLEAN_CONDUCT, gradients, battery())
        assert not found and all(finding.verdict != "flag" for finding in findings)


def test_causes_come_in_a_fixed_order_and_explain_each_other():
    conduct = Conduct(**{**vars(CLEAN_CONDUCT), "moody": ("norm",), "probabilities": True})
    nothing = Gradients(**{**vars(CLEAN_GRADIENTS), "zero": 1.0, "tiny": math.nan, "stir": math.nan, "jump": math.nan})
    found = judged(battery(square=0.1, many=0.9, one=0.9), conduct, nothing)
    assert found[0] == causes.TRAINING_MODE.name and causes.PROBABILITIES.name in found
    assert found == [cause.name for cause in CAUSES if cause.name in found] and causes.UNKNOWN.name not in found
    inner = Conduct(**{**vars(CLEAN_CONDUCT), "inner": ("convolution_backward",)})
    assert judged(battery(), inner) == []  # an optimisation inside is no proof,
    assert judged(battery(square=0.1), inner) == [causes.DYNAMIC.name]  # and the explanation where there is one


def test_a_constant_model_is_that_and_nothing_else():
    conduct = Conduct(**{**vars(CLEAN_CONDUCT), "distinct": 1})
    assert judged(battery(clean=0.1, one=0.1, many=0.1, unbounded=0.1), conduct) == [causes.CONSTANT.name]


# -- the object --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(stranger):
    return at.diagnose(before(rob(), quantise(4)), digits(), THREAT, images=60, surrogate=stranger)


def test_a_diagnosis_is_read_by_name(found):
    assert found["restarts"].name == "restarts" and found["restarts"] is found.checks["restarts"]
    assert {f.name for f in found} == set(found.checks) and len(found.checks) == 21
    assert all(isinstance(f, Finding) and f.figure and f.source and f.advice for f in found)
    assert found.flagged and found.causes == ("non-differentiable operation (quantisation)",)
    assert [f.name for f in found if f.verdict == "flag"][0] == "plateaus"
    with pytest.raises(at.errors.ArgumentError, match="name='restart' is not one of .* did you mean 'restarts'"):
        found["restart"]
    with pytest.raises(at.errors.ArgumentError, match="attack='autoattack'"):
        found.accuracy("autoattack")
    with pytest.raises(AttributeError):
        found.causes = ()


def test_a_diagnosis_prints_a_table_and_a_paragraph(found):
    text = str(found)
    assert text.startswith("60 images, ℓ∞ ε = 0.3: flagged: non-differentiable operation (quantisation)\n")
    assert sum(line.startswith(("ok ", "note ", "FLAG ")) for line in text.splitlines()) == 21
    assert "Flagged: non-differentiable operation (quantisation)." in text
    assert "points to: " in str(found["plateaus"]) and "source: Athalye" in str(found["plateaus"])
    assert found._repr_html_().count("<tr>") == 22 and "&lt;" not in found._repr_html_()


def test_a_diagnosis_survives_json(found):
    again = at.Diagnosis.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert again == found and hash(again) == hash(found) and str(again) == str(found)
    assert math.isnan(found["alignment"].numbers["alignment"]) and math.isnan(again["alignment"].numbers["alignment"])
    assert again != at.Diagnosis.from_dict({**found.to_dict(), "seed": 7}) and found != "found"


def test_a_diagnosis_is_drawn_with_labels(found):
    pytest.importorskip("matplotlib")
    figure = found.plot()
    left, middle, right = figure.axes
    assert left.get_xlabel() == middle.get_xlabel() == "radius ε (ℓ∞)" and left.get_ylabel() == "accuracy"
    assert [label.get_text() for label in right.get_yticklabels()] == [row.name for row in found.attacks][::-1]
    assert len(left.lines) == len(middle.lines) == 2 and "quantisation" in figure.get_suptitle()
    figure.draw_without_rendering()


# -- conduct -----------------------------------------------------------------------------------------------------------


def test_everything_is_left_as_it_was(stranger):
    model = at.build_model("small-cnn", digits(), width=4, batch_norm=True)
    model.body[1].eval()
    model.head.bias.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)

    class Greedy(nn.Module):
        """Writes into its images, draws from everywhere and normalises by the batch whatever the mode."""

        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            x += 0.01 * torch.rand(1) * random.random() * numpy.random.rand()
            model.body[4].train()
            return model(x)

    greedy = Greedy()
    modes = [module.training for module in greedy.modules()]
    before_, states = copy.deepcopy(model.state_dict()), (torch.get_rng_state(), random.getstate())
    numpy_state = numpy.random.get_state()[1].copy()
    x, y = digits().test.images()[:24], digits().test.y[:24]
    pixels = x.clone()
    with torch.no_grad():
        first = at.diagnose(greedy, (x, y), THREAT, surrogate=stranger)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert (numpy.random.get_state()[1] == numpy_state).all()
    assert at.diagnose(greedy, (x, y), THREAT, surrogate=stranger) == first
    assert [module.training for module in greedy.modules()] == modes and torch.equal(x, pixels)
    assert all(torch.equal(value, before_[key]) for key, value in model.state_dict().items())
    assert all(bool((parameter.grad == 1).all()) for parameter in model.parameters())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["head.bias"]
    assert first.causes[:2] == (causes.TRAINING_MODE.name, causes.RANDOMNESS.name)


def test_the_seed_names_everything_and_surrogates_are_trained_alike(monkeypatch):
    monkeypatch.setattr(surrogate, "STEPS", 20)
    model, data = rob(), digits().test[:64]
    one, same, other = (at.diagnose(model, data, THREAT, images=24, seed=seed) for seed in (3, 3, 4))
    assert one == same and one != other and one.seed == 3 and one.images == 24


def test_the_size_of_a_batch_changes_no_verdict(stranger):
    parts = [
        at.diagnose(rob(), digits().test[:60], THREAT, batch_size=size, surrogate=stranger) for size in (60, 25)
    ]  # fmt: skip
    assert parts[0].causes == parts[1].causes == () and parts[0].images == 60
    assert all(abs(parts[0].accuracy(row.name) - row.accuracy) < 0.1 for row in parts[1].attacks)
    assert parts[0].accuracy("fgsm") == parts[1].accuracy("fgsm")


@pytest.mark.parametrize("count", [1, 3])
def test_hardly_any_images_are_no_reason_to_die_or_to_accuse(count):
    found = at.diagnose(rob(), (digits().test.images()[:count], digits().test.y[:count]), THREAT)
    assert not found.flagged and found.images == count and "too few to judge" in found.verdict


def test_images_may_be_smaller_than_networks_like_them():
    x = at.Rng(0).uniform(torch.empty(40, 2, 4, 4, dtype=torch.float64), 0, 1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).double()
    found = at.diagnose(network, (x, network(x).argmax(1)), at.Threat("l2", 0.05))
    assert not found.flagged and found.accuracy("clean") == 1


def test_meaningless_inputs_are_refused_by_name(stranger):
    x, y = digits().test.images()[:8], digits().test.y[:8]
    with pytest.raises(at.errors.DataError, match="divide by 255"):
        at.diagnose(rob(), (x * 255, y), THREAT)
    with pytest.raises(at.errors.ArgumentError, match="is not a Threat"):
        at.diagnose(rob(), (x, y), 0.3)
    for options, message in (
        ({"images": 0}, "images=0"), ({"batch_size": 0}, "batch_size=0"), ({"seed": -1}, "seed=-1"),
        ({"surrogate": "small-cnn"}, "surrogate"),
    ):  # fmt: skip
        with pytest.raises(at.errors.ArgumentError, match=message):
            at.diagnose(rob(), (x, y), THREAT, **options)
    with pytest.raises(at.errors.ArgumentError, match="model"):
        at.diagnose("small-cnn", (x, y), THREAT)
    with pytest.raises(at.errors.ModelError, match="10 classes|logits"):
        at.diagnose(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), digits(), THREAT)
    with pytest.raises(at.errors.ModelError, match="NaN or infinite logits"):
        at.diagnose(after(rob(), lambda z: z / 0), digits(), THREAT)
    with pytest.raises(at.errors.ModelError, match="fails on a batch"):
        at.diagnose(nn.Linear(3, 10), digits(), THREAT)


def test_the_zoo_says_what_it_holds():
    assert all(isinstance(case, Case) for case in (*MASKED.values(), *HONEST.values()))
    names = [cause.name for cause in CAUSES]
    assert QUICK <= {*MASKED, *HONEST} and not {*MASKED} & {*HONEST}
    assert all(any(name.startswith(case.cause) for name in names) and case.cause for case in MASKED.values())
    assert not any(case.cause for case in HONEST.values()) and evidence.TIERS[0]["size"] < evidence.TIERS[1]["size"]
