"""The recorded results of the book are whole, say where they come from, and show what the page about them claims."""

import json
import re
from pathlib import Path

import pytest

import advtrain as at
from advtrain import experiments

FOLDER = Path(__file__).parents[1] / "book" / "results"
SHIPPED = {name for name in experiments.names() if (FOLDER / f"{name}.json").exists()}


@pytest.fixture(scope="module")
def digits():
    return at.load_results(FOLDER / "digits.json")


def mean(results, method, metric="pgd"):
    runs = results.of(method)
    return 100 * sum(run[metric] for run in runs) / len(runs)


def test_the_experiments_of_the_page_are_recorded():
    page = (FOLDER.parent / "results.md").read_text(encoding="utf-8")
    assert {"digits", "digits-tune", "mnist-sat-short"} == set(re.findall(r"```\{recorded\} (\S+)", page)) <= SHIPPED


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_recorded_experiment_is_the_shipped_one_and_complete(name):
    """An experiment that was changed afterwards is not what the file shows: make it again."""
    results, shipped = at.load_results(FOLDER / f"{name}.json"), experiments.load(name)
    assert results.experiment["digest"] == shipped.digest
    assert not results.missing and not results.failed
    assert {(run.method, run.seed, run.digest) for run in results.runs} == {
        (plan.method, plan.seed, plan.digest) for plan in shipped.plan()
    }


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_a_recorded_file_says_where_it_comes_from(path):
    text = path.read_text(encoding="utf-8")
    assert "+changes" not in text and not re.search(r'"[^"]*(?<![\w.])/(home|root|tmp|work|Users)/', text)
    found = json.loads(text)["provenance"]
    for entry in found if isinstance(found, list) else [found]:
        assert re.fullmatch(r"[0-9a-f]{40}", entry["commit"])
        assert entry["command"] != "interactive" and entry["versions"].keys() >= {"torch", "numpy", "advtrain-book"}
        assert path.stat().st_size < 600_000


def test_fgsm_training_looks_better_than_pgd_training_and_is_worse_at_every_seed(digits):
    for seed in range(5):
        fgsm, pgd = ({run.seed: run for run in digits.of(name)}[seed] for name in ("fgsm", "pgd"))
        assert fgsm["fgsm"] >= pgd["fgsm"] + 0.05 and fgsm["pgd"] <= pgd["pgd"] - 0.05


def test_looking_at_every_image_is_what_makes_the_first_regularizer_work(digits):
    whole = digits.compare("sat-r1, every image (λ=0.5)", "fgsm")
    assert whole.low > 0.15 and mean(digits, "sat-r1, every image (λ=0.5)") > mean(digits, "pgd") - 5
    assert mean(digits, "sat-r1") < mean(digits, "sat-r1, every image (λ=0.5)") - 10


def test_the_second_regularizer_mends_half_and_the_third_hardly_anything(digits):
    half = mean(digits, "sat-r2 (λ=0.5, α=ε/4)") / mean(digits, "pgd")
    assert 0.35 < half < 0.85
    for name in ("sat-r3", "sat-r3 (ε_low=3ε/4)"):
        assert mean(digits, name) < mean(digits, "pgd") / 2
        assert all(run.masked for run in digits.of(name))
    assert all(run.logs["hinge"] < 0.02 for run in digits.of("sat-r3"))


def test_fast_bat_is_like_two_signed_steps_with_and_without_its_implicit_term(digits):
    for other in ("pgd-2", "fast-bat without implicit term"):
        difference = digits.compare("fast-bat", other)
        assert abs(difference.mean) < 0.08
    assert all(0 < run.logs["implicit_share"] < 0.1 for run in digits.of("fast-bat"))


def test_strong_noise_and_synthesis_fail(digits):
    assert mean(digits, "n-fgsm", "clean") < 20 and mean(digits, "gradalign (λ=1)") < 15
    assert mean(digits, "rvs") < 5 and mean(digits, "rvs", "clean") > 85
