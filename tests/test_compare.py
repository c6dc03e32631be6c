"""Comparisons: paired as they should be, with textbook p-values, and no claim that so few seeds cannot bear."""

import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import advtrain as at
from advtrain.report import Report, Row
from advtrain.results import Results, Trial, holm, mcnemar, sign_flip, t_p_value
from advtrain.results.paired import paired

LINF = at.Threat("linf", 0.3)
SCORES = {  # correct of 200 under PGD, at seeds 0, 1, ...
    "pgd": (80, 84, 79, 83, 81, 86),
    "fast": (60, 70, 52, 66, 55, 61),
    "twin": (80, 84, 79, 83, 81, 86),
}


def report(correct, total=200, threat=LINF, details="", verdicts=None):
    rows = [Row("clean", 190, total, ""), Row("pgd", correct, total, details, verdicts)]
    return Report(threat, rows)


def trial(method, seed, correct, **rows):
    found = {"correct": correct, "total": 200, "details": "", "verdicts": "0" * 64}
    config = {"judge": {"threat": {"norm": "linf", "eps": 0.3}}, "seed": seed}
    return Trial(method, seed, config, rows={"clean": found, "fgsm": found, "pgd": found, **rows})


def trials(n=6, **methods):
    return {
        name: [trial(name, i, c) for i, c in enumerate((methods or SCORES)[name][:n])] for name in methods or SCORES
    }


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 9, 30, 101])
def test_p_values_of_t_are_those_of_scipy(df):
    stats = pytest.importorskip("scipy.stats")
    for t in (0.0, 0.1, 1.0, -2.5, 5.0, 12.0, 300.0):
        assert t_p_value(t, df) == pytest.approx(2 * stats.t.sf(abs(t), df), rel=1e-7, abs=1e-14)


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=9))
@settings(deadline=None, max_examples=60)
def test_the_tests_over_seeds_are_those_of_scipy(counts):
    stats = pytest.importorskip("scipy.stats")
    values = [count / 360 for count in counts]
    test = at.PairedTests([_test(values)])[0]
    if len(set(counts)) > 1:
        assert test.p["t"] == pytest.approx(stats.ttest_rel(values, [0.0] * len(values)).pvalue, rel=1e-7, abs=1e-12)
    found = stats.permutation_test(
        (counts, [0] * len(counts)), lambda a, b, axis: (a - b).sum(axis), permutation_type="samples",
        n_resamples=math.inf, vectorized=True,
    )  # fmt: skip
    assert test.p["sign-flip"] == pytest.approx(found.pvalue)
    assert test.least == 2.0 ** (1 - sum(count != 0 for count in counts)) if any(counts) else test.least == 1


def _test(values):
    return at.PairedTest(paired("a", "b", "pgd", dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0)))


def test_the_sign_flip_test_counts_patterns_of_signs():
    values = (0.1, -0.3, 0.2, 0.25)
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in itertools.product((1, -1), repeat=4)
    ]
    assert sign_flip(values) == sum(total >= abs(sum(values)) - 1e-12 for total in sums) / 16
    assert sign_flip([0.1] * 5) == 2 / 32 and sign_flip([0.0, 0.0]) == 1
    with pytest.raises(at.errors.ArgumentError, match="the t test is for many"):
        sign_flip([0.1] * 21)


@given(st.integers(0, 60), st.integers(0, 60))
@settings(deadline=None, max_examples=60)
def test_mcnemar_is_the_binomial_test_on_unlike_pairs(a, b):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(a, a + b, 0.5).pvalue if a + b else 1
    assert mcnemar(a, b) == pytest.approx(expected, rel=1e-9) and mcnemar(a, b) == mcnemar(b, a)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(deadline=None)
def test_holm_rejects_step_by_step(values):
    """By its definition: the k-th smallest is rejected if it and all smaller ones are at most α / (m - k + 1)."""
    found = holm(values)
    for alpha in (0.01, 0.05, 0.3):
        rejected = set()
        for place, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
            if values[i] * (len(values) - place) > alpha:
                break
            rejected.add(i)
        assert rejected == {i for i, p in enumerate(found) if p <= alpha}


@pytest.mark.parametrize(
    ("pair", "hint"),
    [
        (("fast", "pgd"), r"the other way round, \['pgd', 'fast'\]"),
        (("pgd", "pgd"), "of two methods"),
        (("pgd", "fats"), "did you mean 'fast'"),
        ("pgd", "two labels"),
    ],
)
def test_a_pair_that_was_not_tested_is_named(pair, hint):
    with pytest.raises(at.errors.ArgumentError, match=hint):
        at.compare(trials(5))[pair]


def test_runs_are_paired_by_seed_whatever_their_order():
    groups = trials(5)
    shuffled = {name: group[::-1] for name, group in groups.items()}
    first, second = at.compare(groups), at.compare(shuffled)
    assert str(first) == str(second) and len(first) == 3
    test = first["pgd", "fast"]
    assert test.difference.seeds == (0, 1, 2, 3, 4) and test.discordant is None
    assert test.difference.values == pytest.approx(
        [(a - b) / 200 for a, b in zip(SCORES["pgd"], SCORES["fast"], strict=True)][:5]
    )
    groups["fast"] = groups["fast"][1:]
    some = at.compare(groups, against="pgd")
    assert [(t.difference.a, t.difference.b) for t in some.tests] == [("fast", "pgd"), ("twin", "pgd")]
    assert some[0].difference.seeds == (1, 2, 3, 4) and "compared at the seeds that both have" in str(some)


def test_words_say_what_was_found_and_that_five_seeds_are_too_few():
    text = str(at.compare(trials(5, pgd=SCORES["pgd"], fast=SCORES["fast"])))
    assert text.startswith(
        "pgd minus fast, accuracy under PGD: +10.4 points, 95% interval +6.9 to +13.9 (5 seeds: above at 5"
    )
    assert "paired t test: p = 0.00117; sign-flip test: p = 0.0625" in text and "Holm" not in text
    assert "5 seeds are too few for the sign-flip test: it cannot give less than p = 0.0625; p ≤ 0.05 needs 6" in text
    text = str(at.compare(trials(6, pgd=SCORES["pgd"], fast=SCORES["fast"])))
    assert "too few" not in text and "sign-flip test: p = 0.0312" in text
    text = str(at.compare(trials(6)))
    assert "(Holm, of 3: p = " in text and "0.0312, and 3 times that by Holm; p ≤ 0.05 needs 7 seeds" in text
    lone = at.compare(trials(1))
    assert lone[0].p == {} and "One seed says nothing of the randomness of training" in str(lone)


def test_no_difference_is_no_evidence():
    test = at.compare(trials())["pgd", "twin"]
    assert test.p == {"sign-flip": 1.0} and test.least == 1.0
    constant = at.compare({"a": trials()["pgd"], "b": [trial("b", i, c - 2) for i, c in enumerate(SCORES["pgd"])]})
    assert constant[0].p == {"sign-flip": 2 / 64} and "the same at every seed" in str(constant)


def test_two_reports_are_compared_image_by_image():
    first = torch.tensor([True] * 150 + [False] * 50)
    second = first.clone()
    second[:20], second[150:158] = False, True
    a, b = report(150, verdicts=first), report(138, verdicts=second)
    found = at.compare(a, b)
    assert found[0].discordant == (20, 8, 200) and found[0].p == {"mcnemar": mcnemar(20, 8)}
    assert str(found) == (
        "a minus b, accuracy under PGD: +6.0 points; of 200 images 20 are right with a alone, 8 with b alone; "
        "exact McNemar test: p = 0.0357"
    )
    assert at.compare({"x": a, "y": [b]})["x", "y"].p == found[0].p
    several = at.compare([a, b], [b, a])  # of several networks images do not count as independent
    assert several[0].discordant is None and set(several[0].p) == {"sign-flip", "t"}
    assert at.compare(a, report(138))[0].p == {}  # read from a file: no verdicts


def test_evaluated_networks_can_be_compared():
    data = at.load_data("digits")
    models = [at.build_model("small-cnn", data, width=4, seed=seed) for seed in (0, 1)]
    protocol = at.Protocol(steps=1, restarts=1)
    reports = [at.evaluate(model, data.test[:60], LINF, protocol=protocol) for model in models]
    test = at.compare(*reports, metric="clean")[0]
    first, second = (each.row("clean").verdicts for each in reports)
    assert test.discordant[:2] == (int((first & ~second).sum()), int((~first & second).sum()))


def test_run_folders_are_read_and_paired_by_their_seed(tmp_path):
    data = at.load_data("digits", val=0)
    groups = {"fast": at.defenses.FastAT, "fgsm": at.defenses.FGSM}
    runs = {}
    for label, defense in groups.items():
        for seed in (3, 7):
            model = at.build_model("small-cnn", data, width=2, seed=seed)
            run = at.fit(
                model, defense(LINF), data, epochs=1, seed=seed, validate_every=0, out=tmp_path / f"{label}{seed}"
            )
            protocol = at.Protocol(steps=1, restarts=1)
            verdict = at.evaluate(run.model, data.test[:40], LINF, protocol=protocol)
            (run.path / "report.json").write_text(json.dumps(verdict.to_dict()))
            runs.setdefault(label, []).append(run)
    found = at.compare(runs, metric="clean")
    assert found[0].difference.seeds == (3, 7)
    paths = {label: [str(run.path) for run in group][::-1] for label, group in runs.items()}
    assert str(at.compare(paths, metric="clean")) == str(found)
    (runs["fast"][0].path / "report.json").unlink()
    with pytest.raises(
        at.errors.FileError, match=r"runs\['fast'\]\[0\]: .*fast3 has no report.json: advtrain evaluate"
    ):
        at.compare(runs)
    (runs["fast"][0].path / "report.json").write_text("{}")
    with pytest.raises(at.errors.FileError, match="is damaged"):
        at.compare(runs)
    runs["fast"][0].path = None
    with pytest.raises(at.errors.ArgumentError, match="a run without a folder, and so without a verdict"):
        at.compare(runs)


def test_a_results_file_is_compared_as_it_is():
    content = {"methods": [{"name": name} for name in (*SCORES, "empty")], "seeds": list(range(6))}
    groups = trials()
    results = Results(content, [run for group in groups.values() for run in group])
    assert str(at.compare(results)) == str(at.compare(groups))
    for run in results.runs[:3]:
        run.rows["autoattack"] = dict(run.rows["pgd"], correct=run.rows["pgd"]["correct"] - 2)
    results.of("fast")[0].rows["autoattack"] = dict(results.runs[0].rows["pgd"], correct=3)
    found = at.compare(results, metric="autoattack")
    assert [(t.difference.a, t.difference.b) for t in found.tests] == [("pgd", "fast")]
    assert found[0].difference.seeds == (0,) and "14 runs have no row 'autoattack' and are left out." in str(found)


def test_it_serialises_and_is_shown_in_a_notebook():
    found = at.compare(trials(5))
    found.notes.append("<b>")
    again = at.PairedTests.from_dict(json.loads(json.dumps(found.to_dict())))
    assert str(again) == str(found) and again.to_dict() == found.to_dict()
    html = found._repr_html_()
    assert html.count("<tr>") == 4 and "paired t test, Holm" in html and "&lt;b&gt;" in html and "<b>" not in html
    with pytest.raises(at.errors.ArgumentError, match="test='welch' is not one of t, sign-flip, mcnemar"):
        found.adjusted("welch")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (({"a": [report(1)]},), {}, "at least two methods"),
        (([report(1), report(2)],), {}, r"write compare\(runs_of_a, runs_of_b\)"),
        ((7,), {}, "runs=7 is not a Mapping"),
        ((report(1), 7), {}, r"runs\['b'\]\[0\]=7 is not a Report, a Run"),
        (({"a": [], "b": [report(1)]},), {}, r"runs\['a'\]=\[\] is not at least one run"),
        ((report(1), report(2)), {"metric": "pdg"}, "metric='pdg' is not one of clean, pgd: did you mean 'pgd'"),
        ((report(1), Report(LINF, [Row("clean", 1, 200)])), {}, r"runs\['b'\]\[0\] has no row 'pgd'"),
        ((report(1), report(1, total=100)), {}, "different numbers of images: .* on 200, .* on 100"),
        (
            (report(1), report(1, threat=at.Threat("linf", 0.1))),
            {},
            "judged under different threats: .*eps=0.3.*eps=0.1",
        ),
        ((report(1), [trial("b", 1, 5)]), {}, "no seed at which both have finished"),
        (({"a": [trial("a", 1, 5), trial("a", 1, 6)], "b": [trial("b", 1, 5)]},), {}, "are both of seed 1"),
        (({"a": [trial("a", 1, 5), report(6)], "b": [trial("b", 1, 5)]},), {}, "mixes reports, which name no seed"),
        ((report(1), [Trial("b", 1, {}, "failed", "NaN")]), {}, r"runs\['b'\]\[0\] failed: NaN"),
        ((report(1), report(2)), {"alpha": 5}, r"alpha=5 is not in \(0, 1\)"),
        ((report(1), report(2)), {"against": "c"}, "against='c' is not one of a, b"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments, options, message):
    with pytest.raises(at.errors.ArgumentError, match=message):
        at.compare(*arguments, **options)


def test_what_is_not_judged_alike_is_told():
    found = at.compare(report(80, details="50 steps, 10 restarts"), report(70, details="20 steps, 1 restart"))
    assert "They are not judged alike: 50 steps, 10 restarts; 20 steps, 1 restart." in str(found)
    assert at.compare(report(80, threat=at.Threat("linf", 0.1)), report(70), metric="clean")[0].difference.mean == 0


def test_reports_on_other_images_are_not_paired(tmp_path):
    data, model = at.load_data("digits"), at.build_model("small-cnn", at.load_data("digits"), width=2)
    protocol = at.Protocol(steps=1, restarts=1)
    val = data.val[:20]
    pairs = {
        "one": val,
        "same": (val.images(), val.y),  # the same images as floats
        "other": data.train[:20],
        "turned": val[list(range(19, -1, -1))],
        "labelled": (val.x, val.y.roll(1)),
    }
    reports = {name: at.evaluate(model, pair, LINF, protocol=protocol) for name, pair in pairs.items()}
    assert at.compare(reports["one"], reports["same"])["a", "b"].difference.mean == 0
    for name in ("other", "turned", "labelled"):
        for again in (reports[name], Report.from_dict(json.loads(json.dumps(reports[name].to_dict())))):
            with pytest.raises(at.errors.ArgumentError, match=r"runs\['a'\]\[0\] and runs\['b'\]\[0\] are judged"):
                at.compare(reports["one"], again)
    old = reports["other"].to_dict()
    del old["images"]
    assert len(at.compare(reports["one"], Report.from_dict(old))) == 1, "an older report does not tell"
    with pytest.raises(at.errors.ArgumentError, match="images=3 is not a str"):
        Report.from_dict({**old, "images": 3})
