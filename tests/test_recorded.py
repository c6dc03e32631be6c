"""The recorded results of the book are whole, say where they come from, and show what the page about them claims."""

import json
import math
import re
import runpy
import shutil
from pathlib import Path

import pytest
import torch

import advtrain as at
from advtrain import experiments
from advtrain.errors import ArgumentError, FileError
from advtrain.results.networks import weights_file

FOLDER = Path(__file__).parents[1] / "book" / "results"
SHIPPED = {name for name in experiments.names() if (FOLDER / f"{name}.json").exists()}


DIVERGING = {  # which is what these runs have shown
    "mnist-implicit": {"fast-bat (λ=1/α)", "fast-bat (λ=0.01)"},
    "cifar10-small-implicit": {"fast-bat (λ=0.001)"},
}


@pytest.fixture(scope="module")
def digits():
    return at.load_results(FOLDER / "digits.json")


def mean(results, method, metric="pgd"):
    runs = results.of(method)
    return 100 * sum(run[metric] for run in runs) / len(runs)


def test_the_experiments_of_the_page_are_recorded():
    page = (FOLDER.parent / "results.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"```\{recorded\} (\S+)", page))
    assert (
        shown
        == {"digits", "digits-tune", "mnist-sat-short", "mnist-implicit", "chapters", "cifar10-small"}
        | {f"cifar10-small-{name}" for name in ("eps16", "implicit", "beyond")}
        <= SHIPPED
    )
    assert set(re.findall(r"```\{oracle\} (\S+)", page)) == set(ORACLE)


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_recorded_experiment_is_the_shipped_one_and_complete(name):
    """An experiment that was changed afterwards is not what the file shows: make it again."""
    results, shipped = at.load_results(FOLDER / f"{name}.json"), experiments.load(name)
    assert results.digest == shipped.digest
    assert not results.missing and {run.method for run in results.failed} <= DIVERGING.get(name, set())
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
    for name in ("n-fgsm (k=1, α=ε/2)", "gradalign (λ=1)"):  # what chapter 10 says of them
        assert all(run.masked for run in digits.of(name))
    assert sum(run.masked for run in digits.of("nuat")) == 1


def test_free_at_was_given_the_better_number_of_replays():
    tuned = at.load_results(FOLDER / "digits-tune.json")
    assert mean(tuned, "free: m=4") > mean(tuned, "free: m=8")


def test_what_the_page_says_of_the_implicit_term_on_mnist():
    results = at.load_results(FOLDER / "mnist-implicit.json")

    def pgd(method):
        return [run["pgd"] for run in results.of(method) if run.finished]

    published, without, signed = pgd("fast-bat"), pgd("fast-bat without implicit term"), pgd("pgd-2")
    assert all(a < b for a, b in zip(published, without, strict=True)) and len(without) == 3
    shares = [run.logs["implicit_share"] for run in results.of("fast-bat")]
    assert 0.004 < sum(shares) / 3 < 0.007
    costs = [results.of(method)[0].forwards for method in ("fast-bat without implicit term", "fast-bat")]
    assert costs[0] / costs[1] == pytest.approx(5 / 8, abs=0.01)
    assert not pgd("fast-bat (λ=1/α)")
    best, none = sorted((run for run in results.of("fast-bat (λ=0.01)") if run.finished), key=lambda run: -run["pgd"])
    other = next(run for run in results.of("fast-bat without implicit term") if run.seed == best.seed)
    assert none["clean"] < 0.12 and 0.19 < other["clean"] - best["clean"] < 0.2
    assert 0.065 < best["pgd"] - other["pgd"] < 0.075
    unsigned = [pgd(method) for method in ("fast-bat", "fast-bat (λ=100)", "fast-bat (λ=1)")] + [without]
    lowest, *higher = sorted(signed)
    assert lowest < 0.01 < 0.1 < min(map(min, unsigned)) and max(map(max, unsigned)) + 0.2 < min(higher)
    assert all(max(row) - min(row) > 0.36 for row in unsigned)
    assert max(max(seed) - min(seed) for seed in zip(*unsigned, strict=True)) < 0.14


def test_what_the_page_says_of_cifar_at_twice_the_radius():
    results = at.load_results(FOLDER / "cifar10-small-eps16.json")
    runs = {run.method: run for run in results.runs}
    assert (
        len(runs) == 8 and max(run["pgd"] for run in runs.values()) - min(run["pgd"] for run in runs.values()) < 0.025
    )
    unsigned = {"fast-bat", "fast-bat without implicit term"}
    assert min(runs[name]["clean"] for name in unsigned) > max(runs[name]["clean"] for name in runs.keys() - unsigned)
    assert all(run["fgsm"] - run["pgd"] < 0.025 for run in runs.values())


def test_what_the_page_says_of_the_implicit_term_on_cifar():
    results = at.load_results(FOLDER / "cifar10-small-implicit.json")
    runs = {run.method: run for run in results.runs}
    without, *small = "fast-bat without implicit term", "pgd-2", "fast-bat", "fast-bat (λ=1)", "fast-bat (λ=0.1)"
    for column in ("clean", "fgsm", "pgd"):
        assert all(abs(runs[name][column] - runs[without][column]) < 0.01 for name in small)
        assert runs["fast-bat (λ=1/α)"][column] < runs[without][column] - 0.05
    shares = [runs[name].logs["implicit_share"] for name in (*small[1:], "fast-bat (λ=1/α)")]
    assert shares[2] < 1 / 40 and shares[3] == pytest.approx(1 / 17, abs=0.002)
    assert runs["fast-bat (λ=0.01)"]["pgd"] == 0 and not runs["fast-bat (λ=0.001)"].finished


def test_what_the_page_says_of_what_helps_a_single_step():
    results, before = (at.load_results(FOLDER / f"cifar10-small{name}.json") for name in ("-beyond", ""))
    runs = {run.method: run for run in results.runs}
    clean, pgd = ({name: 100 * run[row] for name, run in runs.items()} for row in ("clean", "pgd"))
    assert min(clean.values()) > max(100 * run["clean"] for run in before.runs if run.method != "standard")
    assert all(abs(pgd[name] - pgd["n-fgsm"]) < 1 for name in pgd if name.startswith("n-fgsm"))
    first, *others = sorted(pgd, key=pgd.get, reverse=True)
    apart = [(a, b) for a in pgd for b in pgd if pgd[a] - pgd[b] >= 2.95]
    assert first.startswith("fast-bat") and apart == [(first, "n-fgsm, averaged"), (first, "nuat, averaged")]
    most, *less = sorted(clean, key=clean.get, reverse=True)
    assert most.startswith("nuat") and 4 < clean[most] - clean[less[0]] < 5
    costs = {name: run.forwards for name, run in runs.items()}
    assert 2 < costs[first] / costs["n-fgsm"] < 2.5


def test_no_defense_pays_for_much_but_its_passes():
    """What the page on speed says of the recorded throughput."""
    found = json.loads((FOLDER / "throughput.json").read_text(encoding="utf-8"))
    shares = {name: row["share_of_bare_passes"] for name, row in found["defenses"].items()}
    assert {"standard", "pgd", "fast-bat"} <= shares.keys() <= at.defenses.DEFENSES.keys()  # a newer one may lack
    assert 0.9 < min(shares.values()) < 1 < max(shares.values()) < 1.2
    assert found["fast_bat_in_a_usual_loop"]["ours_is_faster_by"] > 1.2


def test_what_the_page_says_of_the_roofline():
    found = json.loads((FOLDER / "roofline.json").read_text(encoding="utf-8"))
    rows, batches = found["defenses"], math.ceil(45_000 / found["options"]["batch_size"])
    fast_bat, fast_at = rows["fast-bat"], rows["fast-at"]
    assert round(100 * fast_bat["flops"] / found["gpu"]["flops"] / fast_bat["seconds"]) == 37
    assert batches == 176 and round(20 * batches * fast_bat["seconds"]) == 30
    assert round(15 * batches * fast_at["seconds"], 1) == 9.5
    assert rows["fast-bat without implicit term"]["seconds"] / fast_bat["seconds"] == pytest.approx(3 / 5, abs=0.01)
    assert 1000 < fast_bat["operations"] < 2000


def test_what_the_page_says_of_scale():
    found = json.loads((FOLDER / "scale.json").read_text(encoding="utf-8"))
    large = list(found["networks"].values())[-1]["defenses"]
    assert large["fast-bat"]["bytes_per_image"] > 2.5 * large["standard"]["bytes_per_image"]
    for row in ("fast-at", "pgd"):
        assert large[row]["bytes_per_image"] == pytest.approx(large["standard"]["bytes_per_image"], rel=0.02)
    pair = found["two_processes"]
    assert 1.5 < pair["speedup_measured"] <= pair["speedup_predicted"] + 0.1 < 2.1


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


OF_DIGITS = (
    "standard", "fgsm", "fast-at", "nuat", "sat-r1", "sat-r2 (λ=0.5, α=ε/4)", "sat-r3", "pgd-2", "pgd",
)  # fmt: skip
OF_CHAPTERS = ("sat-r1, every image, three steps (λ=0.5)", "pgd-3")


def test_the_networks_that_travel_are_those_that_the_documentation_names(digits):
    files = {path.name for path in (FOLDER / "weights").iterdir()}
    chapters = at.load_results(FOLDER / "chapters.json")
    assert tuple(chapters.methods) == OF_CHAPTERS
    runs = [*(digits.of(method)[0] for method in OF_DIGITS), *chapters.runs]
    assert files == {weights_file(run) for run in runs} and len(files) == len(runs) == 11
    assert set(re.findall(r'`"([^"]+)"`', " ".join(at.Results.run.__doc__.split()))) == set(OF_DIGITS)


@pytest.mark.parametrize(
    ("name", "method"), [*(("digits", m) for m in OF_DIGITS), *(("chapters", m) for m in OF_CHAPTERS)]
)
def test_a_network_that_travels_is_the_one_that_was_judged(name, method):
    """Up to an image or two, which rounding on another processor may decide."""
    results = at.load_results(FOLDER / f"{name}.json")
    trial, run = results.of(method)[0], results.run(method)
    assert not run.model.training and run.status == "finished" and len(run.history) == 30
    assert run.defense.config == trial.config["defense"] and run.options["seed"] == run.provenance["seed"] == 0
    report = at.evaluate(
        run.model, run.data.test, run.threat, protocol=at.Protocol(steps=1, restarts=1), progress=False
    )
    for row in ("clean", "fgsm"):
        assert abs(report.row(row).correct - trial.rows[row]["correct"]) <= 2


def test_the_verdict_on_a_network_that_travels_can_be_reached_again(digits):
    trial, run = digits.of("fgsm")[0], digits.run("fgsm", seed=0)
    report = at.evaluate(run.model, run.data.test, run.threat, progress=False)
    assert abs(report.row("pgd").correct - trial.rows["pgd"]["correct"]) <= 2 and trial.masked


def test_a_recorded_run_can_be_kept_as_a_folder(digits, tmp_path):
    run = digits.run("standard")
    run.save(tmp_path / "run")
    again = at.load_run(tmp_path / "run")
    assert again.history == run.history and again.defense == run.defense
    x = run.data.test[:4].images()
    assert torch.equal(again.model(x), run.model(x))


def test_a_network_that_does_not_travel_or_is_not_recorded_is_refused(digits):
    with pytest.raises(FileError, match="'pgd' at seed 3 do not come with the package: train the network"):
        digits.run("pgd", seed=3)
    with pytest.raises(ArgumentError, match="seed=9"):
        digits.run("pgd", seed=9)
    with pytest.raises(ArgumentError, match="method='pdg'.*pgd"):
        digits.run("pdg")


def test_other_weights_in_place_of_the_recorded_ones_are_noticed(digits, tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    wanted, other = (weights_file(digits.of(method)[0]) for method in ("fgsm", "standard"))
    shutil.copyfile(FOLDER / "weights" / other, tmp_path / "weights" / wanted)
    monkeypatch.setattr("advtrain.results.networks.FOLDERS", (tmp_path, FOLDER))
    with pytest.raises(FileError, match="damaged: these are not the weights of 'fgsm' at seed 0"):
        digits.run("fgsm")
    (tmp_path / "weights" / wanted).write_bytes(b"half")
    with pytest.raises(FileError, match="damaged"):
        digits.run("fgsm")


def test_weights_are_kept_where_training_gives_the_recorded_ones(tmp_path):
    """Or nowhere: on another processor it may give others, and then none may be kept under their name."""
    script = runpy.run_path(str(FOLDER.parents[1] / "tools" / "keep_weights.py"))
    script["main"].__globals__["FOLDER"] = tmp_path / "weights"
    try:
        script["main"]("digits", ["standard"])
    except SystemExit as error:
        assert "other weights here" in str(error) and not (tmp_path / "weights").exists()
    else:
        (file,) = (tmp_path / "weights").iterdir()
        assert file.read_bytes() == (FOLDER / "weights" / file.name).read_bytes()


def test_the_small_experiment_on_cifar10_shows_what_its_page_says():
    results = at.load_results(FOLDER / "cifar10-small.json")
    (bare,) = results.of("standard")
    defended = [run for run in results.runs if run.method != "standard"]
    assert 0.4 < bare["clean"] < 0.6 and bare["pgd"] < 0.05
    for run in defended:
        assert run["pgd"] > 0.6 * run["clean"]  # most of what it reads
        assert abs(run["fgsm"] - run["pgd"]) < 0.02 and not run.masked
    spread = [run["pgd"] for run in defended]
    assert max(spread) - min(spread) < 0.05  # within what 500 images cannot tell apart
