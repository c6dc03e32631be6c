"""AutoAttack: exact where theory gives the answer, honest about doubts, and able to go on after a kill."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy
import pytest
import torch
from torch import nn

import advtrain as at
from advtrain import Threat, autoattack
from advtrain.autoattack import VERSIONS, AutoAttackReport
from advtrain.autoattack import stage as stage_room
from advtrain.autoattack.plan import stages
from advtrain.errors import AdvtrainWarning, ArgumentError, DataError, FileError, ModelError

LINF = Threat("linf", 0.1)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Fewer steps and queries: the tests are of the evaluation, not of how hard its attacks try."""
    short = {
        name: tuple(dataclasses.replace(stage, steps=200 if stage.kind == "square" else 20) for stage in plan)
        for name, plan in VERSIONS.items()
    }
    for name, plan in short.items():
        monkeypatch.setitem(VERSIONS, name, plan)


def images(n=24, seed=0, shape=(1, 6, 6), dtype=torch.float64):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def net(seed=0, classes=5, dtype=torch.float64, size=36):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Softplus(), nn.Flatten()
        return nn.Sequential(*parts, nn.Linear(6 * size, classes)).to(dtype)


def problem(n=24, seed=0, **options):
    """A network and images on whose predictions it is right; every tenth label is wrong."""
    model = net(seed, **options)
    x = images(n, seed, dtype=model[0].weight.dtype)
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    y[::10] = (y[::10] + 1) % 5
    return model, x, y


# --- what it finds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_model_the_verdict_is_the_closed_form_for_every_image(classes, norm):
    """Under ℓ∞ the margin to class k falls by at most what the room in the box allows; under ℓ2, away from the box, by
    ε times the length of the difference of weights. Images within a hair of the radius are left out."""
    with torch.random.fork_rng():
        torch.manual_seed(classes)
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, classes)).double()
    model[1].bias.data = -model[1].weight.detach().sum(1) / 2  # grey images are on the boundary of all classes
    x = images(80) if norm == "linf" else 0.35 + 0.3 * images(80)
    y = model(x).argmax(1)
    threat = Threat(norm, 0.04 if norm == "linf" else 0.05)
    w = model[1].weight.detach()
    worst = torch.full((80,), -torch.inf, dtype=torch.float64)
    for k in range(classes):
        v = (w[k] - w[y]).view_as(x)
        far = threat.project(x + 2 * threat.eps * v.sign(), x) if norm == "linf" else None
        rise = (v * (far - x)).flatten(1).sum(1) if norm == "linf" else threat.eps * v.flatten(1).norm(dim=1)
        z = model(x).detach()
        worst = torch.where(y == k, worst, torch.maximum(worst, z[:, k] - z.gather(1, y[:, None])[:, 0] + rise))
    sure = worst.abs() > 1e-3
    report = autoattack(model, x, y, threat)
    assert torch.equal(report.robust[sure], (worst < 0)[sure])
    assert 0.1 < report.robust_accuracy < 0.9 and sure.sum() > 60


def test_the_report_counts_what_is_left_after_each_attack():
    model, x, y = problem(60)
    report = autoattack(model, x, y, Threat("linf", 0.03))
    assert [row.name for row in report.rows] == ["clean", "apgd-ce", "apgd-t", "fab-t", "square", "autoattack"]
    counts = [row.correct for row in report.rows]
    assert counts == sorted(counts, reverse=True) and counts[0] == 54 and counts[-1] == int(report.robust.sum())
    assert report.clean_accuracy == 0.9 and report.robust_accuracy == report["autoattack"] == counts[-1] / 60
    assert 0 < counts[-1] < 54
    broken_by = report.broken_by
    assert (broken_by == 0).sum() == 6 and set(broken_by.tolist()) <= {-1, 0, 1, 2, 3, 4}
    for number, row in enumerate(report.rows[1:5], start=1):
        assert row.correct == int(((broken_by == -1) | (broken_by > number)).sum())
    again = AutoAttackReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert str(again) == str(report) and "withstand AutoAttack (standard)" in str(report)


def test_every_example_that_counts_is_inside_the_threat_and_misclassified():
    for threat in (Threat("linf", 0.03), Threat("l2", 0.15)):
        model, x, y = problem(40)
        report = autoattack(model, x, y, threat, examples=True)
        model.eval()
        wrong = model(report.x_adv).argmax(1) != y
        assert torch.equal(wrong, ~report.robust) and threat.contains(report.x_adv, x).all()
        stands = report.broken_by <= 0
        assert torch.equal(report.x_adv[stands], x[stands])
        assert (report.x_adv[~stands] != x[~stands]).flatten(1).any(1).all()


def test_verdicts_do_not_depend_on_the_batch():
    model, x, y = problem(40)
    reports = [autoattack(model, x, y, Threat("linf", 0.03), batch_size=size) for size in (1, 7, 400)]
    assert all(torch.equal(reports[0].robust, other.robust) for other in reports[1:])
    with_targets_apart = autoattack(model, x[:20], y[:20], Threat("linf", 0.03), batch_size=20)
    assert torch.equal(with_targets_apart.robust, reports[0].robust[:20])


def test_the_seed_names_all_draws():
    model, x, y = problem(40)
    first, same = (autoattack(model, x, y, Threat("linf", 0.03), seed=3, examples=True) for _ in range(2))
    other = autoattack(model, x, y, Threat("linf", 0.03), seed=4, examples=True)
    assert torch.equal(first.x_adv, same.x_adv) and not torch.equal(first.x_adv, other.x_adv)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_the_images_are_left_as_they_were(training):
    model, x, y = problem()
    model.train(training)
    model[1].eval()
    model[0].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()]
    copies, state = (x.clone(), y.clone()), torch.get_rng_state()
    autoattack(model, x, y, LINF)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(x, copies[0]) and torch.equal(y, copies[1])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("norm, eps", [("linf", 0.03), ("l2", 0.15)])
def test_as_many_images_withstand_it_as_withstand_the_authors_code(norm, eps, monkeypatch):
    """With the published numbers of steps; the whole comparison, on 1,000 images, is in book/results."""
    oracle = pytest.importorskip("pyautoattack")
    monkeypatch.undo()
    model, x, y = problem(80, dtype=torch.float32)
    report = autoattack(model, x, y, Threat(norm, eps))
    names = {"linf": "Linf", "l2": "L2"}
    judge = oracle.AutoAttack(model.eval(), norm=names[norm], eps=eps, seed=0)
    judge.apgd_targeted.n_target_classes = judge.fab.n_target_classes = 4
    _, answers = judge.run_standard_evaluation(x, y)
    theirs = answers == y
    assert 0.1 < theirs.float().mean() < 0.9
    assert int((report.robust & ~theirs).sum()) <= 1 and int((report.robust != theirs).sum()) <= 4


# --- versions and classes -------------------------------------------------------------------------------------------


def test_the_versions_are_those_of_the_authors():
    def plan(version, classes=10):
        return [(s.name, s.targets, s.restarts, s.eot) for s in stages(version, classes)]

    nine = [("apgd-t", 9, 1, 1), ("fab-t", 9, 1, 1)]
    assert plan("standard") == [("apgd-ce", 0, 1, 1), *nine, ("square", 0, 1, 1)]
    assert plan("plus") == [
        ("apgd-ce", 0, 5, 1), ("apgd-dlr", 0, 5, 1), ("fab", 0, 5, 1), ("square", 0, 1, 1), *nine,
    ]  # fmt: skip
    assert plan("rand") == [("apgd-ce", 0, 1, 20), ("apgd-dlr", 0, 1, 20)]
    assert plan("fast") == [("apgd-ce", 0, 1, 1), ("apgd-t", 9, 1, 1)]


def test_the_published_numbers_of_steps_and_queries():
    from advtrain.autoattack import plan

    stages = plan.APGD_CE, plan.APGD_DLR, plan.APGD_T, plan.FAB, plan.FAB_T, plan.SQUARE
    assert {(stage.kind, stage.steps) for stage in stages} == {
        ("apgd", 100), ("fab", 100), ("square", 5000),
    }  # fmt: skip


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 12])
def test_few_classes_have_as_many_targets_as_there_are_others(classes):
    for version in VERSIONS:
        for stage in stages(version, classes):
            assert stage.targets in (0, min(9, classes - 1))
            if stage.loss == "dlr":
                assert classes >= (4 if stage.targets else 3)
            if stage.loss == "margin":
                assert classes < 4 and "not defined" in str(stage)
            if stage.kind == "apgd":
                logits = torch.randn(7, classes)
                y, target = torch.zeros(7, dtype=torch.long), torch.ones(7, dtype=torch.long)
                assert stage_room.ascent(stage)(logits, y, target).isfinite().all()


@pytest.mark.parametrize("version", ["plus", "fast"])
def test_versions_are_labelled(version):
    model, x, y = problem(12)
    report = autoattack(model, x, y, Threat("linf", 0.02), version)
    assert report.standard == (version == "plus")
    name = "autoattack" if version == "plus" else "autoattack-fast"
    assert report.rows[-1].name == name and ("not the standard" in str(report)) == (version == "fast")


class Noisy(nn.Module):
    """Adds noise to its input at every pass, from the global stream."""

    def __init__(self, model, size=0.05):
        super().__init__()
        self.model, self.size = model, size

    def forward(self, x):
        return self.model(x + self.size * torch.randn_like(x))


def test_version_rand_averages_gradients_over_twenty_passes():
    model, x, y = problem(10)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    report = autoattack(Noisy(model), x, y, Threat("linf", 0.02), "rand")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(report.broken_by, autoattack(Noisy(model), x, y, Threat("linf", 0.02), "rand").broken_by)
    assert report.rows[-1].name == "autoattack-rand" and not report.warnings
    assert report.passes["gradients"] >= 20 * 21 * int((report.broken_by != 0).sum()) / 4


# --- warnings -------------------------------------------------------------------------------------------------------


def expect(words, model, x, y, threat=LINF, version="standard", **options):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        report = autoattack(model, x, y, threat, version, **options)
    assert all(entry.category is AdvtrainWarning for entry in seen)
    assert [str(entry.message) for entry in seen] == report.warnings and {entry.filename for entry in seen} == {
        __file__
    }
    assert any(words in text for text in report.warnings)
    assert f"Warning: {report.warnings[0]}" in str(report)
    return report


def test_an_honest_model_is_judged_without_a_warning():
    model, x, y = problem(30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert autoattack(model, x, y, LINF).warnings == []


def test_it_warns_of_answers_at_random():
    model, x, y = problem(10)
    expect("at random", Noisy(model), x, y)


def test_it_warns_of_version_rand_for_a_model_that_is_not_random():
    model, x, y = problem(6)
    expect("does not answer at random", model, x, y, version="rand")


def test_a_model_with_softmax_is_judged_by_the_logarithms_with_a_warning():
    model, x, y = problem(40)
    report = expect("probabilities", nn.Sequential(model, nn.Softmax(1)), x, y, Threat("linf", 0.03))
    plain = autoattack(model, x, y, Threat("linf", 0.03))
    assert (report.robust != plain.robust).sum() <= 1


class Rounded(nn.Module):
    """Sees its input in coarse levels: no gradient."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model((x * 10).round() / 10)


def test_it_warns_of_zero_gradients_and_of_square_that_does_better():
    model, x, y = problem(30)
    report = expect("exactly zero", Rounded(model), x, y)
    assert any("Square, which sees no gradient" in text for text in report.warnings)
    assert report["square"] < report["fab-t"]


def test_a_graph_that_is_cut_is_judged_by_square():
    class Cut(Rounded):
        def forward(self, x):
            return super().forward(x.detach())

    model, x, y = problem(30)
    report = expect("exactly zero", Cut(model), x, y)
    assert report["square"] < report["fab-t"]


@pytest.mark.parametrize("how", ["grad", "backward", "buffer", "parameters"])
def test_it_warns_of_a_model_that_adapts_while_it_answers(how):
    class Adapting(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            if how == "buffer":
                self.seen += 1
                return self.model(x)
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                value = self.model(leaf).logsumexp(1).sum()
                if how == "parameters":
                    torch.autograd.grad(value, [*self.model.parameters()])
                elif how == "grad":
                    torch.autograd.grad(value, leaf)
                else:
                    value.backward(inputs=[leaf])
            return self.model(x)

    model, x, y = problem(8)
    expect("while it answers", Adapting(model), x, y, Threat("linf", 0.01))
    assert sys.getprofile() is None


# --- memory, files, resuming ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    ids=["gpu", "cpu"],
)
def test_it_goes_on_with_half_the_rows_when_memory_runs_out(error):
    class Small(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            if len(x) > 10:
                raise error
            return self.model(x)

    model, x, y = problem(40)
    with pytest.warns(AdvtrainWarning, match="memory ran out"):
        report = autoattack(Small(model), x, y, Threat("linf", 0.03), batch_size=30)
    assert torch.equal(report.robust, autoattack(model, x, y, Threat("linf", 0.03)).robust)


def test_rows_fit_the_memory(monkeypatch):
    from advtrain.autoattack import memory

    model, x, _ = problem()
    each = memory.bytes_per_image(model, x)
    assert each > x[0].numel() * 8 * 10 and abs(memory.rows_that_fit(model, x) / (memory.CACHE / each) - 1) < 0.05
    monkeypatch.setattr(memory, "CACHE", 1)
    assert memory.rows_that_fit(model, x) == memory.LEAST
    monkeypatch.setattr(memory, "free_bytes", lambda device: 20 * each / memory.SHARE)
    assert memory.rows_that_fit(model, x) in (19, 20, 21)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1.0)
    assert memory.rows_that_fit(model, x) == 1


def test_examples_in_a_file_are_those_in_memory(tmp_path):
    model, x, y = problem(30)
    path = tmp_path / "deep" / "adv.npy"
    kept = autoattack(model, x, y, LINF, examples=path)
    whole = autoattack(model, x, y, LINF, examples=True)
    assert isinstance(kept.x_adv, numpy.memmap) and kept.path == str(path)
    assert numpy.array_equal(numpy.load(path, allow_pickle=False), whole.x_adv.numpy())
    assert [entry.name for entry in path.parent.iterdir()] == ["adv.npy"]


class Stopped(nn.Module):
    """Raises KeyboardInterrupt at a certain pass."""

    def __init__(self, model, after):
        super().__init__()
        self.model, self.after, self.passes = model, after, 0

    def forward(self, x):
        self.passes += 1
        if self.passes == self.after:
            raise KeyboardInterrupt
        return self.model(x)


@pytest.mark.parametrize("after", [1, 12, 40, 120, 200])
def test_an_interrupted_evaluation_goes_on_and_ends_like_an_uninterrupted_one(tmp_path, after):
    model, x, y = problem(30)
    stopped = Stopped(model, 10**9)
    whole = autoattack(stopped, x, y, Threat("linf", 0.03), batch_size=8, examples=True)
    stopped.passes, stopped.after = 0, after
    files = {"state": tmp_path / "aa.state", "examples": tmp_path / "adv.npy"}
    with pytest.raises(KeyboardInterrupt):
        autoattack(stopped, x, y, Threat("linf", 0.03), batch_size=8, **files)
    stopped.after = 10**9
    report = autoattack(stopped, x, y, Threat("linf", 0.03), batch_size=8, **files)
    assert torch.equal(report.broken_by, whole.broken_by)
    assert numpy.array_equal(numpy.asarray(report.x_adv), whole.x_adv.numpy())


def test_what_is_done_is_not_done_again(tmp_path):
    model, x, y = problem(30)
    counted = Stopped(model, 10**9)
    files = {"state": tmp_path / "aa.state", "examples": tmp_path / "adv.npy"}
    first = autoattack(counted, x, y, LINF, **files)
    spent, counted.passes = counted.passes, 0
    again = autoattack(counted, x, y, LINF, **files)
    assert numpy.array_equal(first.x_adv, again.x_adv)
    (tmp_path / "adv.npy").unlink()
    with pytest.raises(FileError, match="is gone, and the state file counts on it"):
        autoattack(counted, x, y, LINF, **files)
    assert torch.equal(first.broken_by, again.broken_by) and counted.passes < 40 < spent
    assert again.passes["gradients"] == first.passes["gradients"]


KILLED = """
import sys, torch, advtrain as at
sys.path.insert(0, sys.argv[2])
from test_autoattack import problem
model, x, y = problem(60)
print("begun", flush=True)
at.autoattack(model, x, y, at.Threat("linf", 0.02), batch_size=4, state=sys.argv[1])
print("done", flush=True)
"""


@pytest.mark.posix
def test_a_killed_process_leaves_a_state_that_the_next_one_goes_on_from(tmp_path, monkeypatch):
    """SIGKILL at some moment; the state file is whole, and the end is the same."""
    state, here = tmp_path / "aa.state", os.path.dirname(__file__)
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(state), here], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    deadline = time.monotonic() + 60
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    from safetensors.torch import load_file

    kept = load_file(state)
    assert kept["met"].shape == (5, 60) and not list(tmp_path.glob("*.partial"))
    monkeypatch.undo()  # the published numbers of steps, as in the process
    model, x, y = problem(60)
    resumed = autoattack(model, x, y, Threat("linf", 0.02), batch_size=4, state=state)
    assert torch.equal(resumed.robust, autoattack(model, x, y, Threat("linf", 0.02), batch_size=16).robust)


@pytest.mark.parametrize(
    "change, name",
    [
        ({"threat": Threat("linf", 0.2)}, "threat"),
        ({"seed": 1}, "seed"),
        ({"version": "fast"}, "version"),
        ({"x": images(24, 9)}, "images"),
        ({"model": net(7)}, "model"),
        ({"examples": True}, "examples"),
    ],
)
def test_a_state_of_another_evaluation_is_refused_by_name(tmp_path, change, name):
    model, x, y = problem(24)
    given = {"model": model, "x": x, "y": y, "threat": LINF, "state": tmp_path / "aa.state"}
    autoattack(**given)
    with pytest.raises(FileError, match=f"state of another evaluation: {name}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        autoattack(**{**given, **change})


def interrupted(tmp_path, **options):
    """A state file with part of the work in it."""
    model, x, y = problem(40)
    stopped = Stopped(model, 120)
    options = {"batch_size": 8, "state": tmp_path / "aa.state", **options}
    with pytest.raises(KeyboardInterrupt):
        autoattack(stopped, x, y, Threat("linf", 0.03), **options)
    stopped.after = 10**9
    return stopped, x, y, options


def test_examples_in_memory_cannot_be_resumed(tmp_path):
    model, x, y, options = interrupted(tmp_path, examples=True)
    with pytest.raises(FileError, match="name a file"):
        autoattack(model, x, y, Threat("linf", 0.03), **options)


@pytest.mark.parametrize("state", [None, "new", "begun"])
def test_a_file_that_is_there_is_not_replaced_by_examples(state, tmp_path):
    """Such as the images themselves, mapped into memory."""
    model, x, y, options = interrupted(tmp_path, examples=tmp_path / "adv.npy")
    numpy.save(tmp_path / "adv.npy", x.numpy())
    before, left = (tmp_path / "adv.npy").read_bytes(), sorted(tmp_path.iterdir())
    options["state"] = {None: None, "new": tmp_path / "new.state", "begun": options["state"]}[state]
    with pytest.raises(FileError, match="examples='.*adv.npy' is there already, and not of this evaluation: name ano"):
        autoattack(model, x, y, Threat("linf", 0.03), **options)
    assert (tmp_path / "adv.npy").read_bytes() == before and sorted(tmp_path.iterdir()) == left


def test_a_file_of_other_examples_is_not_taken_for_the_right_one(tmp_path):
    model, x, y, options = interrupted(tmp_path, examples=tmp_path / "adv.npy")
    other = numpy.lib.format.open_memmap(tmp_path / "adv.npy.partial", mode="r+")
    other[:] = 0.5
    del other
    with pytest.raises(FileError, match="does not hold the examples"):
        autoattack(model, x, y, Threat("linf", 0.03), **options)


def test_an_example_that_was_written_before_a_kill_and_not_counted_is_taken_back(tmp_path):
    model, x, y, options = interrupted(tmp_path, examples=tmp_path / "adv.npy")
    written = numpy.lib.format.open_memmap(tmp_path / "adv.npy.partial", mode="r+")
    written[0] = 0.25  # misclassified before any attack
    del written
    report = autoattack(model, x, y, Threat("linf", 0.03), **options)
    stands = (report.broken_by <= 0).numpy()
    assert numpy.array_equal(numpy.asarray(report.x_adv)[stands], x.numpy()[stands])


def test_an_error_while_an_example_is_written_loses_work_and_no_truth(tmp_path, monkeypatch):
    from advtrain.autoattack.examples import Examples

    model, x, y = problem(40)
    whole = autoattack(model, x, y, Threat("linf", 0.03), batch_size=8, examples=True)
    write, calls = Examples.__setitem__, []

    def fails(self, index, x_adv):
        calls.append(len(index))
        if len(calls) == 4:
            raise KeyboardInterrupt
        write(self, index, x_adv)

    files = {"state": tmp_path / "aa.state", "examples": tmp_path / "adv.npy"}
    monkeypatch.setattr(Examples, "__setitem__", fails)
    with pytest.raises(KeyboardInterrupt):
        autoattack(model, x, y, Threat("linf", 0.03), batch_size=8, **files)
    report = autoattack(model, x, y, Threat("linf", 0.03), batch_size=8, **files)
    assert torch.equal(report.broken_by, whole.broken_by)
    assert numpy.array_equal(numpy.asarray(report.x_adv), whole.x_adv.numpy())


def test_warnings_are_given_again_when_resumed_and_the_gain_of_square_is_not_forgotten(tmp_path):
    model, x, y = problem(40)
    rounded = Rounded(model)
    stopped = Stopped(rounded, 10**9)
    whole = expect("Square, which sees no gradient", stopped, x, y, batch_size=8)
    spent, stopped.passes = stopped.passes, 0
    stopped.after = spent - 30
    state = {"state": tmp_path / "aa.state", "batch_size": 8}
    with pytest.raises(KeyboardInterrupt), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        autoattack(stopped, x, y, LINF, **state)
    stopped.after = 10**9
    again = expect("Square, which sees no gradient", stopped, x, y, **state)
    assert sorted(again.warnings) == sorted(whole.warnings) and torch.equal(again.broken_by, whole.broken_by)


def test_damaged_and_unwritable_files_are_named(tmp_path):
    model, x, y = problem(12)
    path = tmp_path / "aa.state"
    for content in (b"", b"not safetensors", bytes(200)):
        path.write_bytes(content)
        with pytest.raises(FileError, match=r"aa\.state is damaged"):
            autoattack(model, x, y, LINF, state=path)
    path.unlink()
    autoattack(model, x, y, LINF, state=path)
    whole = path.read_bytes()
    for cut in (8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(FileError, match=r"aa\.state is damaged"):
            autoattack(model, x, y, LINF, state=path)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        autoattack(model, x, y, LINF, state=tmp_path / "file" / "aa.state")
    with pytest.raises(FileError, match="cannot write to .*file: it is no folder"):
        autoattack(model, x, y, LINF, examples=tmp_path / "file" / "adv.npy")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(FileError, match="is a folder"):
        autoattack(model, x, y, LINF, examples=tmp_path / "folder.npy")
    with pytest.raises(ArgumentError, match="another file than the state"):
        autoattack(model, x, y, LINF, examples=tmp_path / "same.npy", state=tmp_path / "same.npy")


# --- precision, progress, input -------------------------------------------------------------------------------------


def test_what_bfloat16_finds_counts_only_if_full_precision_agrees():
    model, x, y = problem(40, dtype=torch.float32)
    report = autoattack(model, x, y, Threat("linf", 0.03), bf16=True, examples=True)
    assert torch.equal(model(report.x_adv).argmax(1) != y, ~report.robust)
    full = autoattack(model, x, y, Threat("linf", 0.03))
    assert abs(report.robust_accuracy - full.robust_accuracy) <= 0.05


def test_a_find_that_does_not_hold_goes_back_into_the_search():
    from advtrain.attacks.pursuit import Passes, Pursuit

    class Fickle(nn.Module):
        def forward(self, x):
            return torch.stack([torch.zeros(len(x)), x.flatten(1).sum(1) - 1], 1)

    x = torch.zeros(3, 1, 1, 1)
    hunt = Pursuit(Passes(Fickle()), x, torch.zeros(3, dtype=torch.long))
    hunt.offer(torch.tensor([0.5, 2.0, 0.5]).view(3, 1, 1, 1), torch.tensor([True, True, False]))
    assert hunt.thin() and hunt.rows.tolist() == [0, 2] and hunt.broken.tolist() == [False, True, False]
    hunt.offer(torch.tensor([3.0, 0.5]).view(2, 1, 1, 1), torch.tensor([True, False]))
    assert hunt.thin() and hunt.rows.tolist() == [2] and hunt.x_adv.flatten().tolist() == [3.0, 2.0, 0.0]


def test_the_bar_ends_where_it_said(monkeypatch):
    room = sys.modules["advtrain.autoattack"]

    class Bar:
        n = total = 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, amount):
            self.n += amount

        def set_description(self, text):
            totals.append(self.total)

        def refresh(self):
            ends.append((self.n, self.total))

    totals, ends = [], []
    monkeypatch.setattr(room, "progress_bar", lambda *_, **__: Bar())
    model, x, y = problem(30)
    autoattack(model, x, y, Threat("linf", 0.03), batch_size=5)
    assert totals[-1] < totals[0] and len(totals) > 8 and ends[-1][0] == ends[-1][1] > 1000


@pytest.mark.parametrize("kind", ["uint8", "numpy", "float32 model"])
def test_images_of_other_kinds(kind):
    model, x, y = problem(12)
    if kind == "uint8":
        report = autoattack(model, (x * 255).round().to(torch.uint8), y, LINF, examples=True)
        assert LINF.contains(report.x_adv, (x * 255).round() / 255).all()
    elif kind == "numpy":
        report = autoattack(model, x.numpy(), y.numpy(), LINF)
    else:
        report = autoattack(model.float(), x, y, LINF, examples=True)
        assert report.x_adv.dtype == torch.float32
    assert len(report.robust) == 12


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": images() * 255}, DataError, "divide by 255"),
        ({"x": images() / 0}, DataError, "NaN or infinite"),
        ({"x": images()[:0]}, DataError, "at least one image"),
        ({"x": images(shape=(3, 6, 6))}, ModelError, "fails on a batch"),
        ({"y": torch.full((24,), 5)}, ModelError, "returns 5 logits and the data have 6 classes"),
        ({"y": torch.zeros(23, dtype=torch.long)}, DataError, "one label for each image"),
        ({"threat": 0.1}, ArgumentError, "Threat"),
        ({"version": "Standard"}, ArgumentError, "did you mean 'standard'"),
        ({"batch_size": 0}, ArgumentError, "batch_size=0"),
        ({"seed": 1.5}, ArgumentError, "seed=1.5"),
        ({"seed": -1}, ArgumentError, "seed=-1"),
        ({"bf16": "no"}, ArgumentError, "bf16='no'"),
        ({"state": True}, ArgumentError, "state=True"),
        ({"examples": 1}, ArgumentError, "examples=1"),
        ({"examples": "adv"}, ArgumentError, r"ends in \.npy"),
        ({"model": lambda x: x}, ArgumentError, "model"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(36, 1)).double(), "y": torch.zeros(24, dtype=torch.long)},
         ModelError, "1 logit"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(change, error, message):
    model, x, y = problem(24)
    with pytest.raises(error, match=message):
        autoattack(**{"model": model, "x": x, "y": y, "threat": LINF, **change})


class Viewing(nn.Module):
    """Reshapes with `view`, as many published networks do: another layout than its own makes it fail."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1).double(), nn.Conv2d(6, 6, 3, padding=1).double()
        self.last = nn.Linear(216, 5).double()

    def forward(self, x):
        return self.last(self.second(self.first(x).relu()).relu().view(-1, 216))


def test_a_network_that_reshapes_with_view_is_judged():
    torch.manual_seed(0)
    model, x = Viewing(), images(20)
    y = model(x).argmax(1)
    report = autoattack(model, x, y, Threat("linf", 0.02))
    strided = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(report.robust, autoattack(model, strided, y, Threat("linf", 0.02)).robust)


@pytest.mark.parametrize("how", [torch.no_grad, torch.inference_mode])
def test_what_the_caller_has_switched_off_does_not_make_a_model_robust(how):
    model, x, y = problem(20)
    plain = autoattack(model, x, y, Threat("linf", 0.05), "fast")
    with how():
        assert torch.equal(plain.robust, autoattack(model, x, y, Threat("linf", 0.05), "fast").robust)
    assert plain.robust_accuracy < plain.clean_accuracy


def test_a_model_that_works_in_place_is_refused_and_the_images_stay():
    class InPlace(nn.Sequential):
        def forward(self, x):
            return super().forward(x.sub_(0.5))

    model, x, y = problem(12)
    before = x.clone()
    with pytest.raises(ModelError, match="change the images in place"):
        autoattack(InPlace(model), x, y, LINF)
    assert torch.equal(x, before)


def test_a_model_that_writes_into_its_images_where_it_may_does_no_harm():
    class Writing(nn.Sequential):
        def forward(self, x):
            return super().forward(x - 0.5 if x.requires_grad else x.sub_(0.5))

    model, x, y = problem(24)
    with torch.no_grad():
        y = model.eval()(x - 0.5).argmax(1)
    before = x.clone()
    report = autoattack(Writing(model), x, y, Threat("linf", 0.03), examples=True)
    assert torch.equal(x, before) and report.warnings == []
    assert torch.equal(model(report.x_adv - 0.5).argmax(1) == y, report.robust)


def test_zero_gradients_are_counted_in_every_batch():
    class Partly(nn.Sequential):
        def forward(self, x):
            flat = (x.flatten(1)[:, :1] > 0.5).to(x.dtype).view(-1, 1, 1, 1)
            return super().forward(x * (1 - flat) + x.detach() * flat)

    model, x, y = problem(40)
    x = x[x.flatten(1)[:, 0].argsort()]
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    blind = int((x.flatten(1)[:, 0] > 0.5).sum())
    for size in (4, 64):
        report = expect("exactly zero", Partly(model), x, y, Threat("linf", 1e-4), batch_size=size)
        assert any(f"for {blind} of 40 images" in text for text in report.warnings)


def test_a_single_image_of_a_model_with_softmax_is_judged_with_the_warning():
    model, x, y = problem(12)
    expect("probabilities", nn.Sequential(model, nn.Softmax(1)), x[1:2], y[1:2], Threat("linf", 0.01))


def test_extra_state_and_nan_buffers_are_no_change():
    class Extra(nn.Sequential):
        def __init__(self, *layers):
            super().__init__(*layers)
            self.register_buffer("unset", torch.tensor(float("nan")), persistent=False)

        def get_extra_state(self):
            return {"version": 1}

        def set_extra_state(self, state):
            pass

    model, x, y = problem(12)
    assert autoattack(Extra(model), x, y, LINF).warnings == []


def test_images_that_are_wrong_before_any_attack_meet_none():
    model, x, y = problem(20)
    y = (y + 1) % 5
    y[:2] = model.eval()(x[:2]).argmax(1)
    counted = []

    class Counted(nn.Sequential):
        def forward(self, batch):
            counted.append(len(batch))
            return super().forward(batch)

    report = autoattack(Counted(model), x, y, Threat("linf", 1e-6), batch_size=64)
    assert report.broken_by[2:].ne(-1).all() and report.robust[:2].all()
    assert max(counted[20:]) <= 8  # two images, four targets


def test_evaluate_takes_it_as_a_row():
    model, x, y = problem(24)
    report = at.evaluate(model, (x, y), Threat("linf", 0.03), autoattack="standard")
    assert report["autoattack"] == autoattack(model, x, y, Threat("linf", 0.03)).robust_accuracy <= report["pgd"]
    assert "Call nothing robust before AutoAttack" not in str(report)


@pytest.mark.gpu
@pytest.mark.parametrize("bf16", [False, True])
def test_on_cuda_the_verdicts_are_those_of_the_cpu(bf16):
    model, x, y = problem(200, dtype=torch.float32)
    here = autoattack(model, x, y, Threat("linf", 0.03))
    there = autoattack(model.cuda(), x, y, Threat("linf", 0.03), bf16=bf16, examples=True)
    assert there.robust.device.type == "cpu" and there.x_adv.device.type == "cpu"
    assert (here.robust != there.robust).float().mean() <= (0.05 if bf16 else 0.02)
