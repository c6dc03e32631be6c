"""Results files: whole or refused; tables and comparisons are what one computes by hand."""

import json
import random
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import advtrain as at
from advtrain.files import digest_of
from advtrain.results import Results, Trial, t_quantile
from advtrain.results.configs import config_of
from advtrain.results.paired import deviation, paired
from advtrain.results.read import in_order
from advtrain.results.trial import six_digits

LIMIT = 700_000
"""Bytes of a results file with a hundred runs."""

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


FIGURES = st.floats(allow_nan=False, allow_infinity=False, width=32).map(six_digits) | st.none()


@st.composite
def trials(draw, plan):
    """A run as it may come out of a plan: finished with any figures and words, or failed."""
    if draw(st.booleans()):
        return Trial(plan.method, plan.seed, plan.config, "failed", draw(st.text(min_size=1)))
    total, epochs = draw(st.integers(1, 10**6)), draw(st.integers(0, 3))
    return Trial(
        plan.method, plan.seed, plan.config, notes=draw(st.lists(st.text(), max_size=3)),
        logs={"implicit_share": draw(FIGURES)}, seconds={"train": draw(st.floats(0, 1e6)), "judge": 1.0},
        forwards=draw(st.floats(0, 1e6)), forwards_total=draw(st.integers(0, 10**12)),
        rows={
            name: {
                "correct": draw(st.integers(0, total)), "total": total, "details": draw(st.text()),
                "verdicts": digest_of(draw(st.text())),
            } for name in ("clean", "fgsm", "pgd")
        },
        history={"epoch": list(range(epochs)), "loss": draw(st.lists(FIGURES, min_size=epochs, max_size=epochs))},
    )  # fmt: skip


@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_whatever_the_runs_came_to_their_file_gives_it_back(data):
    experiment = at.experiments.load("digits")
    chosen = st.lists(st.sampled_from(experiment.plan()), unique_by=lambda plan: (plan.method, plan.seed), max_size=4)
    runs = [data.draw(trials(plan)) for plan in data.draw(chosen)]
    call = {"command": "x", "start": "2026-01-01", "end": "2026-01-01", "device": "cpu", "versions": {"torch": "2"}}
    written = Results(experiment.content, in_order(experiment.content, runs), [call])
    with tempfile.TemporaryDirectory() as folder:
        written.save(Path(folder, "r.json"))
        assert at.load_results(Path(folder, "r.json")) == written


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
        (["experiment", "judge", "protocol"], 7, "experiment: judge: protocol is int"),
        (["runs", 0], 7, r"runs\[0\] is int"),
        (["runs", 0, "seed"], "0", r"runs\[0\]: seed is str, not int"),
        (["runs", 0, "seed"], 0.5, r"runs\[0\]: seed is float, not int"),
        (["runs", 0, "seed"], True, r"runs\[0\]: seed is bool, not int"),
        (["runs", 0, "seed"], 7, "is not a run of the experiment"),
        (["runs", 0, "method"], "slow", "is not a run of the experiment"),
        (["experiment", "threat", "norm"], "l7", "experiment: threat: norm='l7' is not one of linf, l2"),
        (["experiment", "threat", "eps"], 8, "experiment: threat: eps=8 is not in"),
        (["experiment", "judge", "protocol", "steps"], 0, "experiment: protocol: steps=0 is not"),
        (["experiment", "judge", "limit"], "all", "experiment: judge has limit 'all'"),
        (["experiment", "methods", 1, "name"], "fast", "have a label twice"),
        (["experiment", "title"], "\x1b[2J", "control characters"),
        (["runs", 0, "config", "fit", "lr"], 0.2, "has a config that its digest was not made of"),
        (["runs", 0, "status"], "done", "has status 'done'"),
        (["runs", 0, "call"], 1, "has call 1, and provenance has 1 entries"),
        (["runs", 0, "notes"], [1], "notes are not strings"),
        (["runs", 0, "history", "loss"], [1.0], "history is not columns of one length"),
        (["runs", 0, "history", "loss"], [1.0, "x"], "history has a wrong figure"),
        (["runs", 0, "rows", "pgd"], ..., "rows lacks 'pgd'"),
        (["runs", 0, "rows", "pgd", "correct"], 201, "pgd has counts that cannot be"),
        (["runs", 0, "rows", "pgd", "verdicts"], "", "verdicts that are no SHA-256"),
        (["runs", 0, "seconds", "train"], float("inf"), "holds what is not JSON"),
        (["runs", 0, "message"], "\ud800", "holds what is not JSON"),
        (["runs", 0, "seconds", "train"], 10**400, "train is too large"),
        (["runs", 0, "rows", "pgd", "total"], 10**400, "total is too large"),
        (["runs", 0, "seconds", "train"], -1.0, "seconds: train is negative"),
        (["runs", 0, "forwards"], -1.0, "forwards is negative"),
        (["runs", 0, "rows", "pgd", "total"], 400, "rows are of different images"),
        (["runs", 0, "made"], {"data": "0" * 64, "weights": "x"}, "has no SHA-256 of the weights"),
        (["runs", 0, "config"], {}, "has a config that its digest was not made of"),
        (["runs", 0, "forwards"], None, "lacks what it cost"),
        (["runs", -1, "message"], "", "failed without a message"),
    ],
)
def test_a_damaged_file_is_refused_and_the_place_named(results, tmp_path, keys, new, message):
    (tmp_path / "r.json").write_text(json.dumps(spoil(results.to_dict(), keys, new)))
    with pytest.raises(at.errors.FileError, match=message):
        at.load_results(tmp_path / "r.json")


def rewritten(results, tmp_path, change):
    """The results' file after a change by somebody who makes the digests anew."""
    value = json.loads(json.dumps(results.to_dict()))
    change(value)
    value["digest"] = digest_of(value["experiment"])
    for run in value["runs"]:
        run["digest"] = digest_of(run["config"])
    (tmp_path / "r.json").write_text(json.dumps(value))
    return tmp_path / "r.json"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda runs: [run.update(method="pgd-2" if run["method"] == "fast" else "fast") for run in runs], "defense"),
        (lambda runs: [run.update(seed=(run["seed"] + 1) % 3) for run in runs], "seed"),
        (lambda runs: runs[0]["config"]["judge"]["protocol"].update(steps=1), "judge"),
        (lambda runs: runs[0]["config"]["judge"]["threat"].update(eps=0.1), "judge"),
        (lambda runs: runs[0]["config"].update(more=1), "more"),
    ],
)
def test_a_run_that_is_not_of_its_label_seed_and_judge_is_refused(results, tmp_path, change, parts):
    path = rewritten(results, tmp_path, lambda value: change(value["runs"]))
    with pytest.raises(at.errors.FileError, match=f"not the experiment's for this method and seed: {parts}"):
        at.load_results(path)


def test_a_run_cannot_be_in_a_file_twice(results, tmp_path):
    path = rewritten(results, tmp_path, lambda value: value["runs"].append(value["runs"][0]))
    with pytest.raises(at.errors.FileError, match="repeats an earlier run's method and seed"):
        at.load_results(path)


def test_what_an_earlier_version_did_not_know_has_todays_default(results, tmp_path):
    """Options that were added since: of the training, a defense, the network, the judge and the threat."""

    def earlier(value):
        content = value["experiment"]
        for method in content["methods"]:
            del method["fit"]["compile"], method["defense"]["bn"], method["defense"]["threat"]["low"]
        del content["model"]["activation"], content["data"]["val"], content["threat"]["high"]
        del content["judge"]["protocol"]["step_size"], content["judge"]["batch_size"]
        for run in value["runs"]:
            run["config"] = config_of(content, run["method"], run["seed"])
            run.pop("made"), run["seconds"].pop("cpu", None)

    path = rewritten(results, tmp_path, earlier)
    again = at.load_results(path)
    assert "compile" not in json.loads(path.read_text())["runs"][0]["config"]["fit"]
    assert again == results and [run.digest for run in again.runs] == [run.digest for run in results.runs]


def test_what_a_later_version_wrote_besides_is_kept(results, tmp_path):
    def later(value):
        value["experiment"]["license"] = "none"
        value["experiment"]["threat"]["shape"] = "ball"
        for run in value["runs"]:
            run["config"] = config_of(value["experiment"], run["method"], run["seed"])
            run["energy"] = {"joules": 7}
        row = value["runs"][0]["rows"]
        row["pgd"]["loss"], value["runs"][0]["seconds"]["wait"], value["runs"][0]["made"] = 0.5, 1.0, {"code": "x"}
        row["auto"] = dict(row["pgd"], correct=3)
        value["runs"][1]["rows"]["auto"] = dict(row["pgd"], correct=5)

    path = rewritten(results, tmp_path, later)
    again = at.load_results(path)
    assert json.loads(json.dumps(again.to_dict())) == json.loads(path.read_text())
    assert again.compare("fast", "pgd-2", "auto").values == (3 / 200 - 5 / 200,)
    assert "accuracy under auto: -1.0 points" in str(again.compare("fast", "pgd-2", "auto"))
    with pytest.raises(at.errors.ArgumentError, match="metric='aut' is not one of clean, fgsm, pgd, auto"):
        again.compare("fast", "pgd-2", "aut")


def test_files_of_one_experiment_are_read_as_one(results, tmp_path):
    weights = {"data": "0" * 64, "weights": "1" * 64, "precision": "float32"}
    calls = [{**results.provenance[0], "command": command} for command in "ab"]
    for run in results.runs:
        run.made = dict(weights) if run.finished else {}
    for name, call in zip(("fast", "pgd-2"), calls, strict=True):
        Results(results.experiment, [r for r in results.runs if r.method == name], [call]).save(tmp_path / name)
    both = at.load_results(tmp_path / "pgd-2", tmp_path / "fast", tmp_path / "fast")
    assert [(run.seed, run.method) for run in both.runs] == [
        (r.seed, r.method) for r in in_order(results.experiment, results.runs)
    ]
    assert both.provenance == calls[::-1] and {run.call for run in both.of("fast")} == {1}
    assert both.table() == results.table() and str(both) == str(results)

    results.runs[0].made["weights"] = "2" * 64
    results.save(tmp_path / "other")
    with pytest.raises(at.errors.FileError, match="other has other weights for fast, seed 0, than another file"):
        at.load_results(tmp_path / "fast", tmp_path / "other")
    Results({**results.experiment, "title": "Tiny, too"}).save(tmp_path / "other")
    with pytest.raises(at.errors.FileError, match="is of another experiment"):
        at.load_results(tmp_path / "fast", tmp_path / "other")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": ' + "1" * 5000 + "}", b"\xff"])
def test_no_text_is_too_strange_to_be_refused(tmp_path, text):
    (tmp_path / "r.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(at.errors.FileError, match="cannot be read as JSON"):
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


def test_what_a_run_cost_is_told_in_seconds_of_one_kind_of_machine(results):
    """On CPUs what the processor spent; else the clock; no mean over different machines; the whole in standard runs."""
    results.runs = [run for run in results.runs if run.finished]
    assert "seconds" in results.markdown() and "come from more than one" not in str(results)
    fast, pgd = results.table()
    assert (fast["seconds"], fast["cost"]) == (4, 5 * 30)  # on the clock; forward-equivalents of 30 epochs
    for run in results.runs:
        run.seconds["cpu"] = 2.0
        run.forwards_total = 1000 if run.method == "fast" else 2500
    fast, pgd = results.table()
    assert fast["seconds"] == 2 and "CPU s" in results.markdown().splitlines()[0]
    assert "in forward-equivalents per training image" in str(results)

    results.experiment["methods"][0]["defense"] = {"name": "standard"}
    fast, pgd = results.table()
    assert (fast["cost"], pgd["cost"]) == (1, 2.5) and "as a multiple of standard training" in str(results)

    results.provenance.append({**results.provenance[0], "device": "NVIDIA H200", "commit": "f" * 40})
    results.runs[0].call = 1
    fast, pgd = results.table()
    assert fast["seconds"] is None and pgd["seconds"] == 3.5
    assert "| seconds |" in results.markdown().splitlines()[0]
    words = "The finished runs come from more than one commit (ffffffffffff; None), and more than one device"
    assert words in str(results)


def test_the_same_difference_at_every_seed_has_no_interval():
    found = paired("a", "b", "clean", {0: 0.6, 1: 0.7}, {0: 0.5, 1: 0.6})
    assert found.interval is None and "+10.0 points (2 seeds: above at 2, below at 0; the same at every seed)" in str(
        found
    )
    tiny = paired("a", "b", "clean", {0: 0.5, 1: 0.5001}, {0: 0.5002, 1: 0.5})
    assert "-0.0" not in str(tiny) and "+0.0 points" in str(tiny)


def test_messages_and_names_are_shown_as_they_are(results):
    """In one line, without what moves the cursor, and not as HTML or Markdown."""
    results.failed[0].message = "\nOSError: <b>*no*</b> \x1b[2J" + "x" * 500 + "\nand more"
    text, html, markdown = str(results), results._repr_html_(), results.markdown()
    line = next(line for line in text.splitlines() if line.startswith("Failed"))
    assert "OSError: <b>*no*</b>" in line and "\x1b" not in text and len(line) < 250 and "and more" not in text
    assert "&lt;b&gt;*no*" in html and r"\<b\>\*no\*" in markdown


def test_a_hundred_runs_of_thirty_epochs_stay_small(results, tmp_path):
    """A file that belongs into a repository: all methods of the digits at five seeds."""
    names = ("loss", "accuracy", "implicit_share", "lr", "val_clean", "val_fgsm", "val_pgd", "seconds")
    draw = random.Random(0)
    runs = []
    shipped = at.experiments.load("digits")
    for plan in shipped.plan():
        history = {name: [six_digits(draw.random()) for _ in range(30)] for name in names}
        run = replace(results.runs[0], method=plan.method, seed=plan.seed, config=plan.config)
        details = "50 steps of 0.075, 10 restarts, any iterate"
        rows = {
            name: {**row, "details": details, "verdicts": f"{draw.getrandbits(256):064x}"}
            for name, row in run.rows.items()
        }
        made = {"data": "0" * 64, "weights": "1" * 64, "precision": "float32"}
        runs.append(
            replace(run, rows=rows, made=made, notes=["x" * 140], history={"epoch": list(range(1, 31)), **history})
        )
    assert len(runs) >= 100
    Results(shipped.content, runs, results.provenance).save(tmp_path / "r.json")
    size = (tmp_path / "r.json").stat().st_size
    assert size < LIMIT, size


def test_a_bare_name_means_the_file_that_comes_with_the_package(tmp_path, monkeypatch):
    file = Path(__file__).resolve().parents[1] / "book" / "results" / "digits.json"
    assert at.load_results("digits").table() == at.load_results(file).table()
    assert at.recorded("digits").samefile(file)
    monkeypatch.chdir(tmp_path)
    for ask in (at.recorded, at.load_results):
        with pytest.raises(at.errors.FileError, match="no-such.*recorded are .*digits"):
            ask("no-such")
    (tmp_path / "digits").write_text("{}")  # a file of the reader's comes first
    with pytest.raises(at.errors.FileError, match="format"):
        at.load_results("digits")
