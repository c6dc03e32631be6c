"""AutoAttack and the diagnosis as an addition to results: nothing else moves, and only the same weights are judged."""

import json
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner

import advtrain as at
from advtrain.autoattack.judge import Judge
from advtrain.cli import main, run
from advtrain.diagnose import diagnose
from advtrain.experiments import judging, kept, reproduce, trials
from advtrain.files import digest_of
from advtrain.results import Results, Trial
from advtrain.results.networks import weights_file
from advtrain.results.read import drop_unused_calls, with_judgement
from advtrain.weights import save_weights

note = Judge._note

TINY = """
title = "Tiny"
seeds = [0, 1]
data = { name = "digits" }
model = { name = "small-cnn", width = 4 }
threat = { norm = "linf", eps = 0.15 }
fit = { epochs = 3, validate_every = 0 }
judge = { protocol = { steps = 2, restarts = 1 }, limit = 12 }
method = [{ name = "fast", defense = "fast-at" }, { name = "plain", defense = "standard" }]
compare = [{ a = "fast", b = "plain", metric = "autoattack" }]
"""
WEIGHTS = {"data": "0" * 64, "weights": "1" * 64, "precision": "float32"}
CALL = {"command": "x", "start": "2026-01-01", "end": "2026-01-01", "device": "cpu", "versions": {"torch": "2"}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("judge") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def made(tiny):
    """A results file without judgement."""
    out = tiny.with_name("made.json")
    reproduce(tiny, out=out, workers=0)
    return out


@pytest.fixture(scope="module")
def judged(tiny, made):
    """The same, and one of its runs judged afterwards."""
    out = tiny.with_name("judged.json")
    out.write_bytes(made.read_bytes())
    reproduce(tiny, out=out, workers=0, judge=True, methods=["fast"], seeds=[1])
    return out


def row(correct):
    return {"correct": correct, "total": 200, "details": "", "verdicts": "0" * 64}


def opinion(verdict="no flag", call=0, **more):
    diagnosis = {"verdict": verdict, "causes": []}
    return {"autoattack": {"left": {"apgd-ce": 9}, **more}, "diagnose": diagnosis, "seconds": 1.5, "call": call}


@pytest.fixture
def results(tiny):
    """Four runs: fast is judged at both seeds, plain at none."""
    experiment = at.experiments.load(tiny)
    rows = {name: row(count) for name, count in (("clean", 180), ("fgsm", 120), ("pgd", 100))}
    common = {"rows": rows, "made": WEIGHTS, "seconds": {"train": 1.0, "judge": 1.0}, "forwards": 5.0}
    runs = [Trial(plan.method, plan.seed, plan.config, **common, forwards_total=1) for plan in experiment.plan()]
    found = Results(experiment.content, runs, [CALL, {**CALL, "command": "y"}])
    for i, each in enumerate(found.runs):
        if each.method == "fast":
            found.runs[i] = with_judgement(each, row(80 + 4 * each.seed), opinion(call=1))
    return found


def test_the_table_has_the_columns_where_there_is_something_in_them(results):
    fast, plain = results.table()
    assert fast["autoattack"] == pytest.approx((0.41, 0.02 / 2**0.5, 0.4, 0.42)) and fast["diagnose"] == {"no flag": 2}
    assert plain["autoattack"] is None and plain["diagnose"] == {}
    head, _, first, second, *rest = results.markdown().splitlines()
    assert head.startswith("| method | clean | FGSM | PGD-2-1 | AA | diagnose | forwards |")
    assert "| 41.0 ± 1.4 | no flag | 5.0 |" in first and "| 50.0 ± 0.0 | – | – | 5.0 |" in second
    assert "AA: AutoAttack, standard version" in str(results) and "<td>41.0 ± 1.4</td>" in results._repr_html_()

    results.runs[2] = replace(results.runs[2], rows={**results.runs[0].rows}, more={})
    results.runs[0].judged["diagnose"]["verdict"] = "mask|ed"
    assert r"| 40.0 (1 of 2) | mask\|ed 1 | 5.0 |" in results.markdown()
    results.runs[0] = replace(results.runs[0], more={})
    assert "AA" not in results.markdown() and "autoattack" in results.runs[0].rows


def test_methods_are_compared_by_it_where_both_have_it(results):
    with pytest.raises(at.errors.ArgumentError, match="no seed at which both have finished"):
        results.compare("fast", "plain", "autoattack")
    assert results.comparisons == []  # meant, and not there yet
    results.runs[1] = with_judgement(results.runs[1], row(20), opinion())
    assert results.comparisons[0].values == pytest.approx([(80 - 20) / 200])
    assert "fast minus plain, accuracy under AutoAttack: +30.0 points (1 seed:" in str(results)


def test_a_judged_file_gives_back_what_was_written(results, tmp_path):
    results.save(tmp_path / "r.json")
    again = at.load_results(tmp_path / "r.json")
    assert again == results and again.to_dict() == results.to_dict() and again.runs[0].judged == opinion(call=1)
    unjudged = next(
        line for line in (tmp_path / "r.json").read_text().split("{\n") if '"plain"' in line and "rows" in line
    )
    assert "judged" not in unjudged  # a run that nobody judged is written as ever


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run.update(judged=7), "judged is int"),
        (lambda run: run["judged"].pop("diagnose"), "judged lacks 'diagnose'"),
        (lambda run: run["judged"].update(call=2), "judged has call 2, and there are 2"),
        (lambda run: run["judged"].update(seconds=-1.0), "took negative seconds"),
        (lambda run: run["judged"]["diagnose"].update(verdict="\x1b[2J"), "has words that are none"),
        (lambda run: run["judged"]["diagnose"].update(causes=[3]), "has words that are none"),
        (lambda run: run["judged"]["diagnose"].update(causes="no"), "causes is str, not list"),
        (lambda run: run["rows"].pop("autoattack"), "was judged by AutoAttack and has no row of it"),
        (lambda run: run["rows"]["autoattack"].update(total=7, correct=5), "rows are of different images"),
        (lambda run: run.update(status="failed", message="x"), "failed and was judged all the same"),
    ],
)
def test_a_damaged_judgement_is_refused(results, tmp_path, change, message):
    value = json.loads(json.dumps(results.to_dict()))
    change(value["runs"][0])
    (tmp_path / "r.json").write_text(json.dumps(value))
    with pytest.raises(at.errors.FileError, match=message):
        at.load_results(tmp_path / "r.json")


def test_files_of_one_experiment_lend_each_other_their_judgements(results, tmp_path):
    """With the call that made them; and a call of which only a judgement is left is kept."""
    results.save(tmp_path / "judged.json")
    bare = [
        replace(each, rows={k: v for k, v in each.rows.items() if k != "autoattack"}, more={}) for each in results.runs
    ]
    Results(results.experiment, bare, [{**CALL, "command": "z"}, CALL]).save(tmp_path / "bare.json")
    both = at.load_results(tmp_path / "bare.json", tmp_path / "judged.json")
    assert both.table() == results.table()
    assert {both.provenance[each.judged["call"]]["command"] for each in both.of("fast")} == {"y"}
    assert {both.provenance[each.call]["command"] for each in both.runs} == {"z"}
    drop_unused_calls(both)
    assert [call["command"] for call in both.provenance] == ["z", "y"] and both.runs[0].judged["call"] == 1
    other = [replace(each, made={**WEIGHTS, "weights": "2" * 64}) for each in bare]
    Results(results.experiment, other, [CALL]).save(tmp_path / "other.json")
    with pytest.raises(at.errors.FileError, match="has other weights for fast, seed 0"):
        at.load_results(tmp_path / "other.json", tmp_path / "judged.json")


def test_judging_adds_and_changes_nothing_else(made, judged):
    before, after = json.loads(made.read_text()), json.loads(judged.read_text())
    assert before["experiment"] == after["experiment"] and before["digest"] == after["digest"]
    assert after["provenance"][0] == before["provenance"][0] and len(after["provenance"]) == 2
    assert after["provenance"][1]["command"] == "advtrain reproduce tiny --method fast --seed 1 --judge"
    run = after["runs"][2]
    opinion, row = run.pop("judged"), run["rows"].pop("autoattack")
    assert after["runs"] == before["runs"] and (run["method"], run["seed"]) == ("fast", 1)
    assert opinion["call"] == 1 and opinion["autoattack"]["left"]["square"] == row["correct"]


def test_what_is_added_is_what_the_python_api_gives(judged):
    found = next(run for run in at.load_results(judged).runs if (run.method, run.seed) == ("fast", 1))
    data = at.load_data("digits", seed=1)
    threat, part = at.Threat("linf", 0.15), data.test[:12]
    model = at.build_model("small-cnn", data, width=4, seed=1)
    model = at.fit(model, at.defenses.FastAT(threat), data, epochs=3, validate_every=0, seed=1).model
    report = at.autoattack(model, part.x, part.y, threat, batch_size=512, seed=1)
    row = report.row("autoattack")
    assert found.rows["autoattack"] == {
        "correct": row.correct, "total": 12, "details": row.details, "verdicts": row.digest,
    }  # fmt: skip
    assert found.judged["autoattack"]["left"] == {name: report.row(name).correct for name in report.attacks}
    causes = list(diagnose(model, replace(data, test=part), threat, seed=1).causes)
    assert found.judged["diagnose"] == {"verdict": (causes or ["no flag"])[0], "causes": causes}


def test_making_and_judging_at_once_gives_the_same(tiny, judged):
    options = {"out": tiny.with_name("once.json"), "methods": ["fast"], "seeds": [1]}
    (at_once,) = (results := reproduce(tiny, workers=1, judge=True, **options)).runs
    later = at.load_results(judged).runs[2]
    for parts in (lambda run: run.rows, lambda run: run.judged["autoattack"], lambda run: run.judged["diagnose"]):
        assert parts(at_once) == parts(later)
    assert at_once.made == later.made and at_once.judged["call"] == 0 and len(results.provenance) == 1


def test_judged_runs_are_skipped_and_the_others_are_judged(tiny, judged, tmp_path):
    out = tmp_path / "r.json"
    out.write_bytes(judged.read_bytes())
    arguments = ["reproduce", str(tiny), "--out", str(out), "--workers", "0", "--seed", "1"]
    result = CliRunner().invoke(main, [*arguments, "--judge", "--time-limit", "1e-9"])
    assert result.exit_code == 1 and "1 run is in" in result.output and "1 run is not judged; the same" in result.output
    result = CliRunner().invoke(main, [*arguments, "--judge"])
    assert result.exit_code == 0 and "[1/1] plain, seed 1: clean " in result.output and "diagnosed as" in result.output
    assert " (1 of 2)" in result.output and " AA " in result.output
    written = out.read_bytes()
    result = CliRunner().invoke(main, [*arguments, "--judge"])
    assert result.exit_code == 0 and "2 runs are in" in result.output and "already and judged" in result.output
    assert CliRunner().invoke(main, arguments).exit_code == 0 and out.read_bytes() == written
    before, after = at.load_results(judged), at.load_results(out)
    assert after.runs[2] == before.runs[2] and after.runs[:2] == before.runs[:2] and after.runs[3].judged["call"] == 2


def test_other_weights_are_not_judged(tiny, made, tmp_path):
    """The row would be of another network than the rest of the run."""
    out = tmp_path / "r.json"
    value = json.loads(made.read_text())
    value["runs"][0]["made"]["weights"] = "0" * 64
    del value["runs"][1]["made"], value["sum"]
    out.write_text(json.dumps(value))
    written = out.read_bytes()
    arguments = ["reproduce", str(tiny), "--out", str(out), "--workers", "0", "--judge", "--seed", "0"]
    result = CliRunner().invoke(main, arguments)
    assert "fast, seed 0: not judged: training gives other weights here than the file has" in result.output
    assert "plain, seed 0: not judged: the file is too early to name the weights of its runs" in result.output
    assert result.exit_code == 1 and "2 runs are not judged" in result.output and out.read_bytes() == written


def test_a_judge_that_fails_costs_no_run(tiny, made, tmp_path, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(judging, "_judge", broken)
    out, told = tmp_path / "r.json", []
    results = reproduce(tiny, out=out, workers=0, judge=True, seeds=[0], tell=told.append)
    assert told[0].startswith("[1/2] fast, seed 0: clean ") and told[2].startswith("[2/2] plain, seed 0: clean ")
    why = "not judged: RuntimeError: out of luck"
    assert told[1::2] == [f"[1/2] fast, seed 0: {why}", f"[2/2] plain, seed 0: {why}"]
    assert [(run.status, run.judged) for run in results.runs] == [("finished", {})] * 2
    again = reproduce(tiny, out=out, workers=0, judge=True, seeds=[0], tell=told.append)
    assert again == results and "not judged: RuntimeError: out of luck" in told[-1]
    assert [run.rows for run in again.runs] == [run.rows for run in at.load_results(made).runs][:2]


def test_a_crash_while_judging_costs_no_run(tiny, made, tmp_path, monkeypatch):
    from advtrain.experiments.workers import Crash

    def crash(function, tasks, count, *, deadline):
        yield 0, Crash("the process of this run was killed by SIGKILL")

    monkeypatch.setattr(sys.modules["advtrain.experiments.reproduce"], "in_workers", crash)
    out, told = tmp_path / "r.json", []
    out.write_bytes(made.read_bytes())
    results = reproduce(tiny, out=out, workers=1, judge=True, tell=told.append)
    assert told == ["[1/4] fast, seed 0: not judged: the process of this run was killed by SIGKILL"]
    assert results == at.load_results(made)


def test_a_kept_network_is_judged_without_training_it_again(tiny, judged, tmp_path, monkeypatch):
    """So runs of a GPU are judged later, where training gives other weights each time."""
    out, keep = tmp_path / "r.json", tmp_path / "kept"
    options = {"out": out, "workers": 0, "methods": ["fast"], "seeds": [1], "keep": keep}
    (run,) = reproduce(tiny, **options).runs
    (file,) = keep.iterdir()
    assert file.name == f"{run.made['weights'][:16]}.safetensors" == weights_file(run) and not run.judged
    monkeypatch.setattr(trials, "train", None)
    (found,) = reproduce(tiny, judge=True, **options).runs
    later = at.load_results(judged).runs[2]
    assert found.rows == later.rows and found.judged["autoattack"] == later.judged["autoattack"]
    assert list(keep.iterdir()) == [file]


def test_a_judgement_that_is_cut_short_goes_on(tiny, judged, tmp_path, monkeypatch):
    class Cut(BaseException):
        pass

    stage = Judge.stage
    told, options = [], {"out": tmp_path / "r.json", "workers": 0, "methods": ["fast"], "seeds": [1], "judge": True}
    options |= {"keep": tmp_path / "kept", "tell": told.append}

    def short(self, number):
        if number == 2:
            raise Cut
        stage(self, number)

    monkeypatch.setattr(Judge, "stage", short)
    with pytest.raises(Cut):
        reproduce(tiny, **options)
    (run,) = at.load_results(options["out"]).runs
    assert run.finished and not run.judged and len(told) == 1  # the run is in the file before it is judged
    assert sorted(path.suffix for path in options["keep"].iterdir()) == [".autoattack", ".safetensors"]
    done = []

    def noted(self, index, number, *rest):
        done.append(number)
        note(self, index, number, *rest)

    monkeypatch.setattr(Judge, "_note", noted)
    monkeypatch.setattr(Judge, "stage", stage)
    monkeypatch.setattr(trials, "train", None)
    (run,) = reproduce(tiny, **options).runs
    later = at.load_results(judged).runs[2]
    assert set(done) <= {3, 4} and run.rows == later.rows and run.judged["autoattack"] == later.judged["autoattack"]
    assert [path.suffix for path in options["keep"].iterdir()] == [".safetensors"]


@pytest.mark.parametrize(("judge", "words"), [(True, "not judged"), (False, "its network is not kept")])
def test_a_network_that_cannot_be_kept_costs_no_run(judge, words, tiny, tmp_path, monkeypatch):
    def full(model, path):
        raise at.errors.FileError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(kept, "save_weights", full)
    told, options = [], {"methods": ["plain"], "seeds": [0], "keep": tmp_path / "kept", "judge": judge}
    (run,) = reproduce(tiny, out=tmp_path / "r.json", workers=0, tell=told.append, **options).runs
    assert run.finished and told[1].startswith(f"[1/1] plain, seed 0: {words}: FileError: cannot write ")


def test_a_kept_network_that_is_damaged_is_named(tiny, tmp_path):
    told, keep = [], tmp_path / "kept"
    options = {"out": tmp_path / "r.json", "workers": 0, "methods": ["plain"], "seeds": [0], "keep": keep}
    (run,) = reproduce(tiny, **options).runs
    (file,) = keep.iterdir()
    save_weights(at.build_model("small-cnn", at.load_data("digits"), width=4, seed=9), file)
    reproduce(tiny, judge=True, tell=told.append, **options)
    assert f"not judged: FileError: {file} is damaged: it holds other weights than its name says" in told[-1]
    assert at.load_results(options["out"]).runs == [run]


def test_a_judged_file_is_checked_as_ever(judged):
    check = at.check_results_file(judged, workers=0, methods=["fast"], seeds=[1])
    assert check.agrees and "what AutoAttack found of it was not made again" in str(check)


def test_the_list_says_what_its_cost_leaves_out(tiny):
    assert "without --judge" in CliRunner().invoke(main, ["reproduce", str(tiny), "--list"]).output


@pytest.mark.parametrize("arguments", [["--check", "x.json", "--judge"], ["--list", "--judge"]])
def test_judging_is_refused_where_it_would_do_nothing(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        run(["reproduce", *arguments])
    assert stop.value.code == 2 and "--judge does nothing with" in capsys.readouterr().err


def test_shipped_experiments_did_not_change():
    """Judging is no part of an experiment: its digest is that of the files recorded without it."""
    content = at.experiments.load("digits").content
    assert "judged" not in json.dumps(content) and set(content["judge"]) == {"split", "protocol", "limit", "batch_size"}
    assert digest_of(content) == at.experiments.load("digits").digest
