"""Experiments: refused before anything trains, made the same by any number of workers, resumed after any end."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

import advtrain as at
from advtrain import cli_reproduce, experiments
from advtrain.cli import main, run
from advtrain.experiments import check_results_file, digest_of, reproduce, trials
from advtrain.experiments.checks import make_defense
from advtrain.experiments.confirm import expected
from advtrain.experiments.trials import columns
from advtrain.experiments.workers import Crash, in_workers
from advtrain.files import locked
from advtrain.report import wilson

TINY = """
title = "Tiny"
seeds = [0, 1]

[data]
name = "digits"

[model]
name = "small-cnn"
width = 4

[threat]
norm = "linf"
eps = "25.5/255"

[fit]
epochs = 2
val_steps = 2

[judge]
protocol = { steps = 2, restarts = 1 }
limit = 50

[[method]]
name = "fast"
defense = "fast-at"

[[method]]
name = "pgd-2"
defense = "pgd"
options = { steps = 2, rel_step = 0.5 }
threat = { eps = 0.2 }

[[compare]]
a = "pgd-2"
b = "fast"
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def made(tiny):
    """The results file, made in this process."""
    out = tiny.with_name("made.json")
    reproduce(tiny, out=out, workers=0)
    return out


def rows(results):
    return {(run.method, run.seed): (run.rows, run.notes, run.best_epoch) for run in results.runs}


def histories(results):
    return [{key: value for key, value in run.history.items() if key != "seconds"} for run in results.runs]


def test_a_run_is_what_the_python_api_gives(made):
    results = at.load_results(made)
    data = at.load_data("digits", seed=1)
    model = at.build_model("small-cnn", data, width=4, seed=1)
    threat = at.Threat("linf", 0.1)
    defense = at.defenses.PGD(at.Threat("linf", 0.2), steps=2, rel_step=0.5)
    here = at.fit(model, defense, data, epochs=2, val_steps=2, seed=1)
    protocol = at.Protocol(steps=2, restarts=1)
    report = at.evaluate(here.model, data.test[:50], threat, protocol=protocol, seed=1)
    there = next(run for run in results.runs if (run.method, run.seed) == ("pgd-2", 1))
    assert [(row.name, row.correct, row.digest) for row in report.rows] == [
        (name, row["correct"], row["verdicts"]) for name, row in there.rows.items()
    ]
    assert there.history["loss"] == [float(f"{record['loss']:.6g}") for record in here.history]
    forwards = at.cost(defense, model, data).forwards  # of batches of 64, as fit takes them
    assert there.forwards == pytest.approx(forwards, rel=1e-5)
    assert there.forwards_total == round(forwards * 2 * len(data.train))
    assert [(run.seed, run.method) for run in results.runs] == [(0, "fast"), (0, "pgd-2"), (1, "fast"), (1, "pgd-2")]
    (call,) = results.provenance
    assert call["threads"] == 1 and call["cpu"] and call["versions"]["torch"] == torch.__version__


def test_two_workers_give_the_same_to_the_last_bit(tiny, made):
    results, one = reproduce(tiny, out=tiny.with_name("two.json"), workers=2), at.load_results(made)
    assert rows(results) == rows(one) and histories(results) == histories(one)
    assert at.load_results(tiny.with_name("two.json")) == results and results.provenance[0]["workers"] == 2


def wait_for(condition, process):
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.02)


@pytest.mark.posix
def test_ctrl_c_and_kill_lose_no_finished_run(tiny, made):
    """Interrupted, then killed with no chance to tidy up: what was finished is kept, and the end is the same."""
    out = tiny.with_name("killed.json")
    command = [sys.executable, "-m", "advtrain", "reproduce", tiny, "--out", out, "--workers", "1"]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    first = subprocess.Popen(command, **piped)
    wait_for(out.exists, first)
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does: to all processes of the group
    _, error = first.communicate(timeout=60)
    assert first.returncode == 130 and "the same command goes on" in error and "Traceback" not in error
    after_first = at.load_results(out).runs
    assert 1 <= len(after_first) < 4

    second = subprocess.Popen(command, **piped)
    wait_for(lambda: len(at.load_results(out).runs) > len(after_first), second)
    second.kill()
    second.communicate(timeout=60)  # returns when the worker has closed its end of the pipes: it ends with its parent
    after_second = at.load_results(out).runs
    assert after_second[: len(after_first)] == after_first

    told = []
    results = reproduce(tiny, out=out, workers=0, tell=told.append)
    assert rows(results) == rows(at.load_results(made)) and not results.missing
    assert results.runs[: len(after_second)] == after_second and told[0].startswith(f"{len(after_second)} run")
    before = out.read_bytes()
    reproduce(tiny, out=out, workers=0)
    assert out.read_bytes() == before  # nothing left to do


@pytest.mark.posix
@pytest.mark.parametrize("finished", [False, True])
def test_ctrl_c_tells_of_finished_runs_where_there_are_some(finished, tiny, made, tmp_path, monkeypatch):
    def pressed(*args, out, **options):
        if finished:
            shutil.copy(made, out)
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_reproduce, "reproduce", pressed)
    result = CliRunner().invoke(main, ["reproduce", str(tiny), "--out", str(tmp_path / "r.json")])
    told = f"finished runs are in {tmp_path / 'r.json'}, and the same command goes on from there"
    assert result.exit_code == 130
    assert f"interrupted; {told if finished else 'no run has finished yet'}\n" in result.output


def test_a_killed_worker_costs_its_own_task_alone():
    me = "__import__('os').getpid()"
    tasks = [("1 + 1",), (f"__import__('os').kill({me}, 9)",), ("2 + 2",)]
    found = dict(in_workers(eval, tasks, 1))
    assert found == {0: 2, 1: Crash("the process of this run was killed by SIGKILL"), 2: 4}


@pytest.mark.posix
def test_a_task_may_have_several_results_and_those_before_its_end_count():
    me = "__import__('os').getpid()"
    tasks = [("iter('ab')",), (f"(n or __import__('os').kill({me}, 9) for n in (1, 2, 0))",), ("iter('')",), ("3",)]
    found = list(in_workers(eval, tasks, 1))
    killed = Crash("the process of this run was killed by SIGKILL")
    assert found == [(0, "a"), (0, "b"), (1, 1), (1, 2), (1, killed), (3, 3)]


def test_time_limits_end_workers():
    started = time.monotonic()
    assert list(in_workers(eval, [("__import__('time').sleep(600)",)], 1, deadline=started + 0.1)) == []
    assert time.monotonic() - started < 60


def test_a_crash_is_recorded_and_tried_again(tiny, made, tmp_path, monkeypatch):
    def crash(function, tasks, count, *, deadline):
        yield 0, Crash("the process of this run was killed by SIGKILL")

    out = tmp_path / "r.json"
    monkeypatch.setattr(sys.modules["advtrain.experiments.reproduce"], "in_workers", crash)
    results = reproduce(tiny, out=out, workers=1, methods=["fast"], seeds=[1])
    assert [(run.method, run.seed, run.status) for run in results.runs] == [("fast", 1, "failed")]
    assert "Failed: fast, seed 1: the process of this run was killed" in str(at.load_results(out))
    again = reproduce(tiny, out=out, workers=0, methods=["fast"], seeds=[1])
    assert again.runs[0].finished and rows(again).items() <= rows(at.load_results(made)).items()


def test_a_run_that_raises_is_recorded_and_the_others_are_made(tmp_path):
    text = TINY.replace("seeds = [0, 1]", "seeds = [0]") + '[[method]]\nname = "wild"\ndefense = "fgsm"\n'
    (tmp_path / "wild.toml").write_text(text + "fit = { lr = 1e30 }\n")
    arguments = ["reproduce", str(tmp_path / "wild.toml"), "--out", str(tmp_path / "r.json"), "--workers", "0"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1 and "wild, seed 0: failed: TrainingError: " in result.output
    results = at.load_results(tmp_path / "r.json")
    assert [run.status for run in results.runs] == ["finished", "finished", "failed"] and not results.missing
    assert results.table()[2]["failed"] == 1 and results.table()[2]["clean"] is None


def test_a_changed_experiment_makes_what_has_changed(tiny, made, tmp_path):
    out = tmp_path / "r.json"
    out.write_bytes(made.read_bytes())
    changed = tmp_path / "tiny.toml"
    changed.write_text(TINY.replace("steps = 2, rel_step = 0.5", "steps = 1, rel_step = 1"))
    told = []
    results = reproduce(changed, out=out, workers=0, seeds=[0], tell=told.append)
    assert "2 runs in" in told[0] and "before" in told[0] and "[1/1] pgd-2, seed 0" in told[-1]
    assert results.runs[0] == at.load_results(made).runs[0] and results.missing == 1
    assert (tmp_path / "r.before.json").read_bytes() == made.read_bytes()
    with pytest.raises(at.errors.FileError, match="holds the results of 'tiny', not of 'digits'"):
        reproduce("digits", out=out)


def test_fresh_loses_nothing_and_is_gone_on_with_without_it(tiny, made, tmp_path):
    """Each time the file as it was gets a name of its own; what --fresh put aside is not taken up again."""
    out = tmp_path / "r.json"
    out.write_bytes(made.read_bytes())
    first = json.loads(made.read_text())
    common = ["reproduce", str(tiny), "--out", str(out), "--workers", "0"]
    result = CliRunner().invoke(main, [*common, "--fresh", "--method", "fast", "--time-limit", "1e-9"])
    assert "2 runs in" in result.output and "made anew" in result.output
    assert "2 runs are still to be made; the same command without --fresh goes on" in result.output
    assert len(at.load_results(out).runs) == 2
    reproduce(tiny, out=out, workers=0, methods=["fast"], seeds=[0])
    trimmed = out.read_bytes()
    told = []
    reproduce(tiny, out=out, workers=0, methods=["fast"], seeds=[0], fresh=True, tell=told.append)
    assert "1 run in" in told[0] and "is made anew" in told[0] and "2 runs are in" in told[1]
    assert (tmp_path / "r.before.json").read_bytes() == made.read_bytes()
    assert (tmp_path / "r.before-2.json").read_bytes() == trimmed
    again = reproduce(tiny, out=out, workers=0)
    assert not again.missing and rows(again) == rows(at.load_results(made)) and first == json.loads(made.read_text())


def test_options_of_later_versions_do_not_make_runs_unwanted(tiny, made, tmp_path):
    """A file from before `compile`: with the default it is the same run."""
    value = json.loads(made.read_text())
    del value["sum"]  # which those versions did not write
    for part in [*value["experiment"]["methods"], *(made_run["config"] for made_run in value["runs"])]:
        del part["fit"]["compile"]
    value["digest"] = digest_of(value["experiment"])
    for made_run in value["runs"]:
        made_run["digest"] = digest_of(made_run["config"])
    (tmp_path / "r.json").write_text(json.dumps(value))
    told = []
    results = reproduce(tiny, out=tmp_path / "r.json", workers=0, tell=told.append)
    assert results == at.load_results(made) and told == [f"4 runs are in {tmp_path / 'r.json'} already"]


def test_two_calls_with_one_file_lose_no_run(tiny, made, tmp_path):
    """The other one writes its runs while this one is at work."""
    out = tmp_path / "r.json"
    others = []

    def meanwhile(text):
        if not others and text.startswith("[1/"):
            others.append(reproduce(tiny, out=tmp_path / "other.json", workers=0, methods=["pgd-2"]))
            other = at.load_results(tmp_path / "other.json")
            other.save(out)  # as if it had begun before this call

    results = reproduce(tiny, out=out, workers=0, methods=["fast"], tell=meanwhile)
    assert others and rows(at.load_results(out)) == rows(results) == rows(at.load_results(made))
    assert [call["command"].rpartition("--method ")[2] for call in results.provenance] == ["fast", "pgd-2"]
    assert {run.method: results.provenance[run.call]["command"][-5:] for run in results.runs} == {
        "fast": " fast", "pgd-2": "pgd-2",
    }  # fmt: skip
    assert not list(tmp_path.glob(".*"))


def test_two_processes_with_one_file_lose_no_run(tiny, made, tmp_path):
    out = tmp_path / "r.json"
    command = [sys.executable, "-m", "advtrain", "reproduce", tiny, "--out", out, "--workers", "0", "--method"]
    both = [subprocess.Popen([*command, name], stdout=subprocess.PIPE) for name in ("fast", "pgd-2")]
    assert [process.communicate(timeout=120) and process.returncode for process in both] == [0, 0]
    assert rows(at.load_results(out)) == rows(at.load_results(made))


def test_a_spoiled_file_does_not_cost_the_run_just_made(tiny, tmp_path):
    out = tmp_path / "r.json"
    results = reproduce(
        tiny, out=out, workers=0, methods=["fast"], tell=lambda text: "[1/" in text and out.write_text("{")
    )
    assert at.load_results(out) == results and len(results.runs) == 2
    assert (tmp_path / "r.before.json").read_text() == "{"


def test_a_lock_is_waited_for_and_an_old_one_is_not(tmp_path):
    order = []

    def other():
        with locked(tmp_path / "x"):
            order.append("other")

    with locked(tmp_path / "x"):
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "other"] and not list(tmp_path.iterdir())
    (tmp_path / ".x.lock").touch()
    os.utime(tmp_path / ".x.lock", (0, 0))
    with locked(tmp_path / "x"):
        pass
    assert not list(tmp_path.iterdir())


def test_programs_from_standard_input_are_told_to_do_without_workers(tiny, tmp_path):
    program = f"import advtrain as at\nat.reproduce({str(tiny)!r}, out={str(tmp_path / 'r.json')!r}, workers=1)"
    found = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True)
    assert found.returncode == 1 and "from a program read from standard input: say workers=0" in found.stderr


def test_an_exit_in_a_run_is_a_failed_run(monkeypatch):
    monkeypatch.setattr(trials, "_make", lambda *arguments: sys.exit("no"))
    assert [value["message"] for value in trials.make_trial({}, None, "cpu")] == ["SystemExit: no"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("limit = 50", "limit = 1000", r"limit=1000 is not at most 360: the test split of digits has no more"),
        ('name = "digits"', 'name = "digits"\nval = 5000', r"val=5000 is not below 1437"),
        (
            'defense = "fast-at"',
            'defense = "fast-bat"\nfit = { compile = true }',
            r"fast: compile=True is not possible with fast-bat",
        ),
        ("width = 4", "width = 4\nnormalize = [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]", "one of each for 1 channels"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_written(tmp_path, old, new, message):
    (tmp_path / "tiny.toml").write_text(TINY.replace(old, new, 1))
    with pytest.raises(at.AdvtrainError, match=message):
        reproduce(tmp_path / "tiny.toml", out=tmp_path / "runs" / "r.json", workers=0)
    assert not (tmp_path / "runs").exists()


def test_the_command_line_says_when_time_is_up(tiny, tmp_path):
    arguments = ["reproduce", str(tiny), "--out", str(tmp_path / "r.json"), "--workers", "0", "--time-limit", "1e-9"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1 and "time is up: 4 runs are still to be made" in result.output


def tampered(made, tmp_path, change):
    value = json.loads(made.read_text())
    del value["sum"]  # it would give the change away
    change(value)
    (tmp_path / "t.json").write_text(json.dumps(value))
    return tmp_path / "t.json"


def entry(value, seed=1):
    return next(run for run in value["runs"] if (run["method"], run["seed"]) == ("fast", seed))


def test_check_confirms_a_true_file_and_no_other(made, tmp_path):
    def count(by):
        return lambda value: entry(value)["rows"]["clean"].update(correct=entry(value)["rows"]["clean"]["correct"] + by)

    def rounding(value):
        entry(value)["rows"]["pgd"]["verdicts"] = entry(value)["made"]["weights"] = "0" * 64

    def commit(value):
        rounding(value)
        value["provenance"][0]["commit"] = "f" * 40

    def elsewhere(value):
        rounding(value)
        value["provenance"][0]["instructions"] = "VSX"

    def far(value):
        elsewhere(value)
        for seed in (0, 1):
            entry(value, seed)["rows"]["pgd"]["correct"] = 50

    def data(value):
        elsewhere(value)
        entry(value)["made"]["data"] = "0" * 64

    true, here = "confirmed: the same weights bit for bit, and every image meets the same verdict", "in the same place"
    expected = [
        (lambda value: None, True, f"1 of 4 runs made again: fast, seed 1: {true} ({here})"),
        (lambda value: value["provenance"][0].update(instructions="VSX"), True, f"{true} (other instructions)"),
        (lambda value: value["provenance"][0].update(python="2.7"), True, f"{true} (another python)"),
        (lambda value: entry(value)["history"]["loss"].reverse(), False, "its other figures are not: other history"),
        (lambda value: entry(value)["history"]["seconds"].reverse(), True, true),
        (lambda value: entry(value).update(best_epoch=1), False, "other best epoch"),
        (lambda value: entry(value).update(notes=["splendid"]), False, "other notes"),
        (lambda value: entry(value).update(forwards=1.0), False, "other forwards"),
        (lambda value: entry(value)["made"].clear(), True, "confirmed: every image meets the same verdict (in"),
        (count(-1), False, "the verdicts and weights are those of the file, but its other figures are not: clean"),
        (rounding, False, "NOT confirmed, with the same versions on the same kind of machine (in the same place)"),
        (commit, False, "NOT confirmed, with the same versions on the same kind of machine (another commit)"),
        (elsewhere, True, "confirmed within the 99% prediction interval from the file's 2 seeds of the method"),
        (far, False, "NOT confirmed (other instructions): outside the 99% prediction interval"),
        (data, False, "NOT confirmed (other instructions): it was made of other data"),
    ]
    for change, agrees, words in expected:
        check = check_results_file(tampered(made, tmp_path, change), workers=0, methods=["fast"], seeds=[1])
        assert (check.trial.method, check.trial.seed) == ("fast", 1)
        assert check.agrees == agrees and words in str(check), str(check)


def test_an_accuracy_elsewhere_is_expected_where_another_seed_would_be(made):
    results = at.load_results(made)
    (first, second), t = results.of("fast"), 63.656741162871583  # Student's t for 0.995 and one degree of freedom
    mean, spread = (first["clean"] + second["clean"]) / 2, abs(first["clean"] - second["clean"]) / 2**0.5
    row = first.row("clean")
    low, high = wilson(row.correct, row.total, 2.5758293035489004)
    half = t * spread * 1.5**0.5 + (high - low) / 2
    found = expected(results, first, "clean")
    assert found[:2] == pytest.approx((max(0, mean - half), min(1, mean + half))) and "2 seeds" in found[2]
    results.runs.remove(second)
    found = expected(results, first, "clean")
    ends = (max(0, first["clean"] - (high - low)), min(1, first["clean"] + (high - low)))
    assert found[:2] == pytest.approx(ends) and "single seed" in found[2]


def test_check_takes_the_cheapest_run_that_trains_against_an_attack(tmp_path):
    text = TINY.replace("seeds = [0, 1]", "seeds = [0]") + '[[method]]\nname = "plain"\ndefense = "standard"\n'
    (tmp_path / "x.toml").write_text(text)
    results = reproduce(tmp_path / "x.toml", out=tmp_path / "r.json", workers=0)
    costs = {run.method: run.forwards_total for run in results.runs}
    assert costs["plain"] < costs["fast"] < costs["pgd-2"]
    assert check_results_file(tmp_path / "r.json", workers=0).trial.method == "fast"
    assert check_results_file(tmp_path / "r.json", workers=0, methods=["plain"]).trial.method == "plain"
    with pytest.raises(at.errors.ArgumentError, match="method='plane' is not one of fast, pgd-2, plain"):
        check_results_file(tmp_path / "r.json", methods=["plane"])


def test_check_on_the_command_line_says_so_by_its_status(made, tmp_path):
    arguments = ["reproduce", "--workers", "0", "--check"]
    assert CliRunner().invoke(main, [*arguments, str(made)]).exit_code == 0
    wrong = tampered(made, tmp_path, lambda value: entry(value)["rows"]["pgd"].update(verdicts="0" * 64))
    result = CliRunner().invoke(main, [*arguments, str(wrong), "--method", "fast", "--seed", "1"])
    assert result.exit_code == 1 and "NOT confirmed" in result.output
    assert CliRunner().invoke(main, [*arguments, str(wrong), "--method", "fast", "--seed", "0"]).exit_code == 0


def test_list_shows_what_comes_with_the_package_and_its_cost(data_folder):
    output = CliRunner().invoke(main, ["reproduce", "--list"], catch_exceptions=False).output
    for name in experiments.names():
        shipped = experiments.load(name)
        assert f"{name}: {shipped.title}" in output and f"{len(shipped.plan())} runs" in output
    assert "forward-equivalents" in output and "advtrain data fetch mnist" in output


def test_list_shows_ones_own_file(tiny):
    result = CliRunner().invoke(main, ["reproduce", str(tiny), "--list"], catch_exceptions=False)
    assert "tiny: Tiny\n  2 methods, 4 runs, about" in result.output and "digits" not in result.output


@pytest.mark.parametrize("name", experiments.names())
def test_shipped_experiments_say_why(name):
    shipped = experiments.load(name)
    assert shipped.about and all(comparison.why for comparison in shipped.compare)
    chooses = shipped.judge["split"] == "val"  # constants, and claims nothing
    assert shipped.compare or chooses or name == "chapters"  # which compare with its networks themselves
    assert len({plan.key for plan in shipped.plan()}) == len(shipped.methods) * len(shipped.seeds)
    assert json.loads(json.dumps(shipped.content)) == shipped.content


@pytest.mark.parametrize("name", at.defenses.DEFENSES)
def test_any_registered_defense_takes_its_fields_as_options(name):
    """Defaults written in a file give the defense with defaults, through JSON too."""
    threat = at.Threat("linf", 0.1)
    default = at.defenses.DEFENSES[name](threat)
    options = {f.name: getattr(default, f.name) for f in dataclasses.fields(default) if f.init and f.name != "threat"}
    written = {key: "none" if value is None else value for key, value in options.items()}
    assert make_defense(name, threat, written) == default
    assert at.defenses.from_config(json.loads(json.dumps(default.config))) == default


def test_seeds_are_paired():
    """At one seed all methods have the same data, network and judge."""
    plans = experiments.load("digits").plan(seeds=(3,))
    assert {plan.config["seed"] for plan in plans} == {3} and len(plans) > 5
    assert all(plan.config[key] == plans[0].config[key] for plan in plans for key in ("data", "model", "judge"))


def test_a_base_is_taken_over_key_by_key(tiny, tmp_path):
    (tmp_path / "base.toml").write_text(TINY)
    (tmp_path / "short.toml").write_text('base = "base.toml"\ntitle = "Short"\nseeds = [5]\n[fit]\nepochs = 1\n')
    base, short = experiments.load(tmp_path / "base.toml"), experiments.load(tmp_path / "short.toml")
    assert (short.name, short.title, short.seeds) == ("short", "Short", (5,))
    assert [method.fit["epochs"] for method in short.methods] == [1, 1]
    assert [method.fit["val_steps"] for method in short.methods] == [2, 2]
    assert (short.judge, short.threat, short.compare) == (base.judge, base.threat, base.compare)
    (tmp_path / "third.toml").write_text('base = "short.toml"\ntitle = "Third"\n[model]\nwidth = 8\n')
    third = experiments.load(tmp_path / "third.toml")
    assert (third.title, third.seeds, third.model["width"], base.model["width"]) == ("Third", (5,), 8, 4)
    assert third.methods == short.methods


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_base_that_leads_back_to_itself_is_refused(length, tmp_path):
    for i in range(length):
        (tmp_path / f"{i}.toml").write_text(f'base = "{(i + 1) % length}.toml"\n')
    with pytest.raises(
        at.errors.ArgumentError, match=r"base='0.toml' is not a file that leads to an end: it leads back"
    ):
        experiments.load(tmp_path / "0.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[fit]", "[fits]", r"tiny.toml: key='fits' is not one of .*did you mean 'fit'\?"),
        ('title = "Tiny"', "", "the key 'title' is missing"),
        ("seeds = [0, 1]", "seeds = []", "seeds=\\[\\] is not a list of different integers"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "is not a list of different integers"),
        ("seeds = [0, 1]", "seeds = [0, 0.5]", "seeds=0.5 is not an integer of at least 0"),
        ('name = "digits"', 'name = "digits"\nvall = 3', r"\[data\]: key='vall' is not one of name, val: did you mean"),
        ('name = "digits"', 'name = "digits"\nval = 1.0', r"\[data\]: val=1.0 is not a share"),
        ('"small-cnn"', '"small-cn"', r"\[model\]: name='small-cn' is not one of .*did you mean 'small-cnn'\?"),
        ("width = 4", "widht = 4", r"\[model\]: key='widht' is not one of .*did you mean 'width'\?"),
        ("width = 4", 'width = "4"', r"\[model\]: width='4' is not an integer: write it without quotes"),
        ("width = 4", "width = 0", r"\[model\]: width=0 is not an integer of at least 1"),
        ('"25.5/255"', "8", r"\[threat\]: eps=8 is not in \(0, 1\]: pixels are in \[0, 1\], did you mean 8/255\?"),
        ('"25.5/255"', '"a/b"', r"\[threat\]: eps: .*write 0.3 or 8/255"),
        ("epochs = 2", "epoch = 2", r"\[fit\]: key='epoch' is not one of .*did you mean 'epochs'\?"),
        ("epochs = 2", "epochs = 2.5", r"\[fit\]: epochs=2.5 is not an integer"),
        ("epochs = 2", "seed = 2", r"\[fit\]: key='seed' is not one of"),
        ("epochs = 2", "lr = -1", r"\[fit\]: lr=-1.0 is not above 0"),
        ("epochs = 2", "lr = nan", r"\[fit\]: lr=nan is not a finite number"),
        ("epochs = 2", 'schedule = "sta"', r"\[fit\]: schedule='sta' is not one of .*did you mean 'sat'\?"),
        ("width = 4", "normalize = [1, 2]", r"\[model\]: normalize=\[1, 2\] is not \"data\", \"image\""),
        ("width = 4", "normalize = []", r"\[model\]: normalize=\[\] is not"),
        ("width = 4", "normalize = [[0.5], [0.0]]", r"\[model\]: normalize=\[\[0.5\], \[0.0\]\] is not"),
        ('title = "Tiny"', "title = 7", "title=7 is not a string: write it in quotes"),
        ('title = "Tiny"', 'title = "Tiny"\nbase = 5', "base=5 is not a string"),
        (
            'title = "Tiny"',
            'title = "Tiny"\nbase = "digist"',
            "base='digist' is not one of chapters, .*did you mean 'digits'",
        ),
        ('title = "Tiny"', r'title = "Ti\u001b[2Jny"', "is not one line without control characters"),
        ('name = "pgd-2"', r'name = "pgd\n2"', "name='pgd.n2' is not one line without control characters"),
        (
            'b = "fast"',
            'b = "fast"\n[[method]]\nname = "again"\ndefense = "fast-at"\noptions = { rel_step = 1.25 }',
            "name='again' is not another method than 'fast': with all defaults written out",
        ),
        ("limit = 50", 'split = "train"', r"\[judge\]: split='train' is not one of test, val"),
        ("restarts = 1", "restart = 1", r"\[judge\]: protocol: key='restart' is not one of .*'restarts'\?"),
        ("limit = 50", "limit = 0", r"\[judge\]: limit=0 is not an integer of at least 1"),
        ('"fast-at"', '"fats-at"', r"\[\[method\]\] 1 \('fast'\): defense='fats-at' is not one of .*'fast-at'\?"),
        (
            "rel_step = 0.5",
            "relstep = 0.5",
            r"\[\[method\]\] 2 \('pgd-2'\): options of pgd: key='relstep' .*'rel_step'",
        ),
        ("rel_step = 0.5", "rel_step = true", r"options of pgd: rel_step=True is not a number"),
        ("steps = 2, rel", "steps = 0, rel", r"options of pgd: steps=0 is not an integer of at least 1"),
        ("threat = { eps = 0.2 }", "threat = { epss = 0.2 }", r"\('pgd-2'\): threat: key='epss' is not one of"),
        ("threat = { eps = 0.2 }", "fit = { epoch = 1 }", r"\('pgd-2'\): fit: key='epoch' .*did you mean 'epochs'\?"),
        ('name = "pgd-2"', 'name = "fast"', r"\[\[method\]\] 2 \('fast'\): name='fast' is not unique"),
        ('b = "fast"', 'b = "fats"', r"\[\[compare\]\] 1: b='fats' is not one of fast, pgd-2: did you mean 'fast'\?"),
        ('b = "fast"', 'b = "pgd-2"', r"\[\[compare\]\] 1: b='pgd-2' is not another method than a"),
        ('b = "fast"', 'b = "fast"\nmetric = "auto"', r"metric='auto' is not one of clean, fgsm, pgd"),
        ("[[compare]]", "[[compare", "cannot be read as TOML"),
    ],
)
def test_mistakes_are_named_before_anything_trains(tmp_path, old, new, message):
    assert old in TINY
    (tmp_path / "tiny.toml").write_text(TINY.replace(old, new, 1))
    with pytest.raises(at.AdvtrainError, match=message):
        experiments.load(tmp_path / "tiny.toml")


def test_selecting_what_cannot_be_selected_is_refused(tmp_path):
    text = TINY.replace('name = "digits"', 'name = "digits"\nval = 0')
    for extra, message in (("[fit]\nselect = 'best'", "select='best'"), ("[judge]\nsplit = 'val'", "split='val'")):
        table = extra.partition("\n")[0]
        (tmp_path / "x.toml").write_text(text.replace(table, extra))
        with pytest.raises(at.errors.ArgumentError, match=f"{message} is not possible with val = 0"):
            experiments.load(tmp_path / "x.toml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["digist"],
            "error: experiment='digist' is not one of chapters, cifar10-beyond, cifar10-beyond-tune, cifar10-eps16, ",
        ),
        (["nowhere.toml"], "nowhere.toml does not exist"),
        (["digits", "--method", "pdg"], "method='pdg' is not one of"),
        (["digits", "--seed", "9"], "seed=9 is not one of 0, 1, 2, 3, 4"),
        (["mnist-sat"], "advtrain data fetch mnist"),
        (["--check", "nowhere.json"], "nowhere.json does not exist"),
        ([], "name an experiment, or say --list"),
        (["digits", "--time-limit", "0"], "time_limit=0.0 is not above 0"),
        (["digits", "--time-limit", "-1"], "time_limit=-1.0 is not above 0 and finite"),
        (["digits", "--time-limit", "inf"], "time_limit=inf is not above 0 and finite"),
        (["digits", "--check", "x.json"], "EXPERIMENT does nothing with --check: leave it out"),
        (["--check", "x.json", "--fresh"], "--fresh does nothing with --check: leave it out"),
        (["--list", "--seed", "0"], "--seed does nothing with --list"),
    ],
)
def test_mistakes_end_in_one_line_and_status_two(capsys, data_folder, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(["reproduce", *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and "Traceback" not in error
    assert not (tmp_path / "runs").exists()


def test_long_histories_are_thinned_evenly():
    history = [{"epoch": n, "loss": 1 / 3, **({"val_pgd": 0.5} if n == 250 else {})} for n in range(1, 251)]
    found = columns(SimpleNamespace(history=history))
    assert found["epoch"] == [*range(3, 250, 3), 250] and found["loss"][0] == 0.333333
    assert found["val_pgd"] == [None] * (len(found["epoch"]) - 1) + [0.5]
    assert columns(SimpleNamespace(history=history[:100]))["epoch"] == list(range(1, 101))
