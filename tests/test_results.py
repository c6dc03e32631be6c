"""Results files: whole or refused; tables and comparisons are what one computes by hand."""

import json
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import advtrain as at
from advtrain.results import Results, Trial, t_quantile
from advtrain.results.paired import deviation, paired
from advtrain.results.results import six_digits

COUNTS = {  # of 200 images: clean, FGSM, PGD
    ("fast", 0): (180, 150, 120),
    ("fast", 1): (184, 160, 20),  # masked
    ("fast", 2): (170, 140, 110),
    ("pgd-2", 0): (176, 150, 130),
    ("pgd-2", 1): (178, 152, 126),
}


def trial(plan, **changes):
    counts = COUNTS[plan.method, plan.seed]
    rows = {
        name: {"correct": count, "total": 200, "details": "", "verdicts": "0" * 64}
        for name, count in zip(("clean", "fgsm", "pgd"), counts, strict=True)
    }
    found = {"rows": rows, "history": {"epoch": [1, 2], "loss": [2.5, None]}, "logs": {"implicit_share": 0.25}}
    found |= {"seconds": {"train": 3.0 + plan.seed, "judge": 1.0}, "forwards": 5.0, "forwards_total": 1000}
    return Trial(plan.method, plan.seed, plan.config, **{**found, **changes})


@pytest.fixture
def results(tiny):
    plans = at.experiments.load(tiny).plan()
    runs = [trial(plan) for plan in plans if (plan.method, plan.seed) in COUNTS]
    failed = [Trial(p.method, p.seed, p.config, "failed", "TrainingError: NaN") for p in plans if p.seed == 2][1:]
    call = {"command": "x", "start": "2026-01-01", "end": "2026-01-01", "device": "cpu", "versions": {"torch": "2"}}
    return Results(at.experiments.load(tiny).content, runs + failed, [call])


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(
        """
        title = "Tiny"
        seeds = [0, 1, 2]
        data = { name = "digits" }
        model = { name = "small-cnn", width = 4 }
        threat = { norm = "linf", eps = 0.3 }
        method = [{ name = "fast", defense = "fast-at" }, { name = "pgd-2", defense = "pgd", options = { steps = 2 } }]
        compare = [{ a = "fast", b = "pgd-2", why = "Is one step enough?" }]
        """
    )
    return path


def test_a_file_gives_back_what_was_written(results, tmp_path):
    results.save(tmp_path / "r.json")
    again = at.load_results(tmp_path / "r.json")
    assert again == results and str(again) == str(results)
    text = (tmp_path / "r.json").read_text()
    assert max(map(len, text.splitlines())) < 2000 and text.count("\n") > 60  # a line for each key, not for each number


def test_the_table_is_what_one_computes_by_hand(results):
    fast, pgd = results.table()
    clean = [180 / 200, 184 / 200, 170 / 200]
    assert fast["clean"] == pytest.approx((statistics.mean(clean), statistics.stdev(clean), 0.85, 0.92))
    assert pgd["pgd"] == pytest.approx((0.64, statistics.stdev([0.65, 0.63]), 0.63, 0.65))
    assert (fast["seeds"], fast["failed"], pgd["seeds"], pgd["failed"]) == (3, 0, 2, 1)
    assert (fast["seconds"], fast["forwards"], fast["logs"], fast["masked"]) == (4, 5, {"implicit_share": 0.25}, 1)
    line = next(line for line in str(results).splitlines() if line.startswith("fast "))
    assert line.split("  ")[-1].strip() == "0" and "89.0 ± 3.6" in line and "41.7 ± 27.5 †" in line and "0.25" in line
    assert "† Gradient masking: PGD takes most of what FGSM leaves correct, in runs of fast (1 of 3)." in str(results)
    assert "Failed: pgd-2, seed 2: TrainingError: NaN" in str(results)
    assert "PGD-50-10" in results.markdown() and results.markdown().startswith("| method | clean | FGSM |")
    assert "<table" in results._repr_html_() and "89.0 ± 3.6" in results._repr_html_()


def test_a_comparison_is_paired_by_seed(results):
    found = results.compare("fast", "pgd-2")
    differences = [0.60 - 0.65, 0.10 - 0.63]
    assert found.seeds == (0, 1) and found.values == pytest.approx(differences) and found.signs == (0, 2, 0)
    half = 12.706205 * statistics.stdev(differences) / 2**0.5
    assert found.interval == pytest.approx((found.mean - half, found.mean + half), rel=1e-6)
    assert "Is one step enough? fast minus pgd-2, accuracy under PGD: -29.0 points, 95% interval" in str(results)
    one = paired("a", "b", "clean", {0: 0.75, 1: 0.5}, {1: 0.5, 2: 0.5})
    assert one.interval is None and one.signs == (0, 0, 1) and "1 seed" in str(one)
    with pytest.raises(at.errors.ArgumentError, match="method='fats' is not one of fast, pgd-2"):
        results.compare("fats", "pgd-2")
    with pytest.raises(at.errors.ArgumentError, match="no seed at which both have finished"):
        paired("a", "b", "clean", {0: 0.75}, {1: 0.5})


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 9, 30, 101, 1000])
def test_t_quantiles_are_those_of_scipy(df):
    scipy_stats = pytest.importorskip("scipy.stats")
    for p in (0.025, 0.5, 0.6, 0.9, 0.975, 0.995):
        assert t_quantile(p, df) == pytest.approx(scipy_stats.t.ppf(p, df), rel=1e-9, abs=1e-9)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20))
@settings(deadline=None)
def test_deviation_is_that_of_the_textbook(values):
    assert deviation(values) == pytest.approx(statistics.stdev(values), abs=1e-9)


def test_figures_keep_six_digits():
    assert six_digits(0.123456789) == 0.123457 and six_digits(float("nan")) is None and six_digits(3) == 3


def spoil(value, keys, new):
    """A copy with one entry changed, or removed."""
    value = json.loads(json.dumps(value))
    inner = value
    for key in keys[:-1]:
        inner = inner[key]
    if new is ...:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = new
    return value


@pytest.mark.parametrize(
    ("keys", "new", "message"),
    [
        (["format"], 2, "has format 2, this version reads 1: update advtrain-book"),
        (["format"], ..., "it is not a file of advtrain reproduce"),
        (["runs"], ..., "the file lacks 'runs'"),
        (["runs"], {}, "runs is dict, not list"),
        (["more"], 1, "has 'more', which is not part of the format"),
        (["provenance", 0, "versions"], "2", "versions is str, not dict"),
        (["experiment", "seeds"], [0, 1, 2, 3], "experiment is not what the digest was made of"),
        (["experiment", "title"], ..., "experiment lacks 'title'"),
        (["experiment", "compare", 0, "a"], "slow", "names no method"),
        (["experiment", "judge", "protocol"], 7, "experiment: protocol is int"),
        (["runs", 0], 7, r"runs\[0\] is int"),
        (["runs", 0, "seed"], "0", r"runs\[0\]: seed is str, not int"),
        (["runs", 0, "seed"], True, r"runs\[0\]: seed is bool, not int"),
        (["runs", 0, "seed"], 7, "is not a run of the experiment"),
        (["runs", 0, "method"], "slow", "is not a run of the experiment"),
        (["runs", 1, "method"], "fast", "repeats an earlier run's method and seed"),
        (["runs", 0, "config", "fit", "lr"], 0.2, "has a config that its digest was not made of"),
        (["runs", 0, "status"], "done", "has status 'done'"),
        (["runs", 0, "call"], 1, "has call 1, and provenance has 1 entries"),
        (["runs", 0, "notes"], [1], "notes are not texts"),
        (["runs", 0, "history", "loss"], [1.0], "history is not columns of one length"),
        (["runs", 0, "history", "loss"], [1.0, "x"], "history has a wrong figure"),
        (["runs", 0, "rows", "pgd"], ..., "rows lacks 'pgd'"),
        (["runs", 0, "rows", "pgd", "correct"], 201, "pgd has counts that cannot be"),
        (["runs", 0, "rows", "pgd", "verdicts"], "", "verdicts that are no SHA-256"),
        (["runs", 0, "seconds", "train"], float("inf"), "train is float"),
        (["runs", 0, "forwards"], None, "lacks what it cost"),
        (["runs", -1, "message"], "", "failed without a message"),
    ],
)
def test_a_damaged_file_is_refused_and_the_place_named(results, tmp_path, keys, new, message):
    (tmp_path / "r.json").write_text(json.dumps(spoil(results.to_dict(), keys, new)))
    with pytest.raises(at.errors.FileError, match=message):
        at.load_results(tmp_path / "r.json")


def test_a_truncated_file_is_refused(results, tmp_path):
    results.save(tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    for part in ("", text[: len(text) // 2], "[]"):
        (tmp_path / "r.json").write_text(part)
        with pytest.raises(at.errors.FileError):
            at.load_results(tmp_path / "r.json")
    with pytest.raises(at.errors.FileError, match="does not exist"):
        at.load_results(tmp_path / "nowhere.json")


def test_seventy_five_runs_of_thirty_epochs_stay_small(results, tmp_path):
    """A file that belongs into a repository: below 600 kB."""
    names = ("loss", "accuracy", "implicit_share", "lr", "val_clean", "val_fgsm", "val_pgd", "seconds")
    history = {"epoch": list(range(1, 31)), **{name: [0.123456] * 30 for name in names}}
    run = results.to_dict()["runs"][0] | {"history": history}
    assert 75 * len(json.dumps(run, indent=0)) < 600_000
