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
    assert set(re.findall(r"```\{oracle\} (\S+)", page)) == set(ORACLE)


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_recorded_experiment_is_the_shipped_one_and_complete(name):
    """An experiment that was changed afterwards is not what the file shows: make it again."""
    results, shipped = at.load_results(FOLDER / f"{name}.json"), experiments.load(name)
    assert results.digest == shipped.digest
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
        assert path.stat().st_size < 700_000


def at_every_seed(results, a, b, metric="pgd"):
    """Accuracy of a minus that of b at each seed, in points."""
    others = {run.seed: run[metric] for run in results.of(b)}
    return [100 * (run[metric] - others[run.seed]) for run in results.of(a)]


def test_fgsm_training_looks_better_than_pgd_training_and_is_worse_at_every_seed(digits):
    assert min(at_every_seed(digits, "fgsm (60 epochs)", "pgd", "fgsm")) >= 5
    for name in ("fgsm", "fgsm (60 epochs)"):
        assert max(at_every_seed(digits, name, "pgd")) <= -5 and all(run.masked for run in digits.of(name))
        assert mean(digits, name) < 5 and min(at_every_seed(digits, name, "pgd", "fgsm")) > 0
    assert mean(digits, "fgsm (60 epochs)", "fgsm") > mean(digits, "fgsm", "fgsm")


def test_looking_at_every_image_is_what_makes_the_first_regularizer_work(digits):
    whole = "sat-r1, every image (λ=0.5)"
    assert min(at_every_seed(digits, whole, "fgsm")) > 15 and mean(digits, whole) > mean(digits, "pgd") - 5
    assert mean(digits, "sat-r1") < mean(digits, whole) - 20


def test_the_second_regularizer_mends_half_and_the_third_hardly_anything(digits):
    assert 0.4 < mean(digits, "sat-r2 (λ=0.5, α=ε/4)") / mean(digits, "pgd") < 0.7
    for name in ("sat-r3", "sat-r3 (ε_low=3ε/4)"):
        assert mean(digits, name) < mean(digits, "pgd") / 3 and all(run.masked for run in digits.of(name))
    assert all(run.logs["hinge"] < 0.01 < run.logs["ce_high"] / 10 for run in digits.of("sat-r3"))


def test_fast_bat_is_between_fast_at_and_two_signed_steps_and_its_implicit_term_does_not_help(digits):
    assert min(at_every_seed(digits, "fast-bat", "fast-at")) > 0 > max(at_every_seed(digits, "fast-bat", "pgd-2"))
    assert mean(digits, "fast-bat without implicit term") > mean(digits, "fast-bat") - 1
    assert max(at_every_seed(digits, "fast-bat (λ=1)", "fast-bat without implicit term")) < -5
    assert all(0.01 < run.logs["implicit_share"] < 0.1 for run in digits.of("fast-bat"))


def test_nuat_comes_nearest_to_pgd_training_for_its_price(digits):
    cheap = [row["method"] for row in digits.table() if row["forwards"] < 10]
    assert max(cheap, key=lambda method: mean(digits, method)) == "nuat"
    assert mean(digits, "nuat", "clean") < mean(digits, "pgd", "clean") - 3


def test_strong_noise_alignment_and_synthesis_fail(digits):
    assert mean(digits, "n-fgsm", "clean") < 20 and mean(digits, "gradalign (λ=1)") < 10
    assert all(run["pgd"] == 0 for run in digits.of("rvs"))
    assert sorted(run["clean"] > 0.9 for run in digits.of("rvs")) == [False, True, True, True, True]


ORACLE = ("autoattack-oracle", "autoattack-oracle-cifar10")


@pytest.fixture(scope="module")
def oracle():
    return [json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) for name in ORACLE]


def test_autoattack_is_never_weaker_than_its_authors_code(oracle):
    """Within 0.3 points on 1,000 images of at least five networks, masked and honest, of several data sets."""
    rows = [row for file in oracle for row in file["models"]]
    assert not any(file["failed"] for file in oracle) and len(rows) >= 5 and {row["images"] for row in rows} == {1000}
    assert {row["data"] for row in rows} == {"digits", "mnist", "cifar10"}
    assert {"fgsm", "pgd", "trades"} <= {row["defense"] for row in rows}
    assert {row["norm"] for row in rows} == {"linf", "l2"}
    for row in rows:
        assert row["ours"]["robust_accuracy"] <= row["theirs"]["robust_accuracy"] + 0.003, row["model"]
        assert list(row["ours"]["attacks"]) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]


def test_autoattack_is_faster_than_its_authors_code(oracle):
    theirs, ours = (sum(file["summary"][f"{who}_cpu_seconds"] for file in oracle) for who in ("theirs", "ours"))
    assert theirs >= 1.3 * ours and {file["settings"]["version"] for file in oracle} == {"standard"}
