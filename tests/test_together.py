"""`fit` in two processes: one training, shared out. How a single step is shared is the subject of test_parallel."""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from pairs import found_by_two
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import advtrain as at
from advtrain import cli, processes
from advtrain.provenance import command_line

THREAT = at.Threat("linf", 0.1)
NAMES = list(at.defenses.DEFENSES)
EXACT = ("standard", "fgsm")  # they draw nothing, and their loss is a mean over images
BEGINNING = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | {"OMP_NUM_THREADS": "1"}


def data():
    """101 images to train on: batches of 32, and a last one of 5, of which the processes take 3 and 2."""
    digits = at.load_data("digits")
    parts = {"train": digits.train[:101], "val": digits.val[:31], "test": digits.test[:40]}
    return dataclasses.replace(digits, **parts)


class Drawn(nn.Module):
    """Notes a number from torch's global generator at every pass in training mode, as dropout would draw it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        if self.training:
            self.seen.append(float(torch.rand(())))
        return x


def network(batch_norm=False):
    return at.build_model("small-cnn", data(), width=4, batch_norm=batch_norm, seed=0).double()


def train(name, batch_norm=False, **options):
    options = dict(epochs=2, batch_size=32, val_steps=2, lr=0.05, progress=False, device="cpu") | options
    model, told = network(batch_norm), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", at.errors.OverfittingWarning)
        run = at.fit(model, at.defenses.DEFENSES[name](THREAT), data(), on_epoch=told.append, **options)
    history = [{key: value for key, value in record.items() if key != "seconds"} for record in run.history]
    return {
        "weights": run.model.state_dict(),
        "history": json.dumps(history),
        "path": str(run.path),
        "notes": run.notes,
        "told": len(told),
        "provenance": run.provenance.get("processes"),
    }


def refusal(function):
    try:
        function()
    except at.errors.AdvtrainError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def stream(rows, sampler=None):
    x, y = at.load_data("digits").train.images()[:rows], at.load_data("digits").train.y[:rows]
    pairs = TensorDataset(x, y)
    return DataLoader(pairs, batch_size=16, sampler=DistributedSampler(pairs) if sampler else None)


def fit_stream(loader):
    model = at.build_model("small-cnn", data(), width=4, seed=0)
    options = dict(epochs=2, progress=False, device="cpu", validate_every=0)
    return at.fit(model, at.defenses.FGSM(THREAT), loader, **options).model.state_dict()


def stop(run):
    raise at.callbacks.Stop("enough")


def dying_after(steps):
    """An update that ends the process, but for what Python tidies up."""
    made = [0]

    def step_if(good, optimizer):
        made[0] += 1
        if made[0] > steps:
            raise KeyboardInterrupt
        optimizer.step()

    return step_if


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {name: train(name) for name in NAMES}
    found["average"] = train("fgsm", batch_norm=True, ema=0.8, select="best", out=f"{folder}/run")
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr("advtrain.loop.step_if", dying_after(11))
        train("free", out=f"{folder}/killed", checkpoint_every=3)
    found["resumed"] = train("free", out=f"{folder}/killed", resume=True)
    found["trades"] = train("trades", batch_norm=True, ema=0.8)
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr("advtrain.loop.step_if", dying_after(3))
        train("trades", batch_norm=True, ema=0.8, out=f"{folder}/shot", checkpoint_every=2)
    found["trades again"] = train("trades", batch_norm=True, ema=0.8, out=f"{folder}/shot", resume=True)
    found["stopped"] = train("fgsm", callbacks=[stop])
    found["again"] = refusal(lambda: train("fgsm", out=f"{folder}/run"))
    found["out"] = refusal(lambda: train("fgsm", out=f"{folder}/one" if rank == 0 else None))
    found["device"] = refusal(lambda: train("fgsm", device="cuda"))
    found["data"] = refusal(lambda: processes.first_before_others(lambda: at.load_data(f"{folder}/none.npz")))
    if rank == 0:  # counting and timing is a matter of one process
        model = at.build_model("small-cnn", data(), width=4)
        found["cost"] = at.cost(at.defenses.RvS(THREAT), model, data()).forward
        found["pace"] = at.calibrate(model, data(), device="cpu", seconds=0.05).update
    found["lr"] = refusal(lambda: train("fgsm", lr=(0.1, 0.2)[rank]))
    found["batch"] = refusal(lambda: train("fgsm", batch_size=1))
    found["lengths"] = refusal(lambda: fit_stream(stream((64, 128)[rank])))
    found["stream"] = fit_stream(stream(101, sampler=True))
    noted = nn.Sequential(Drawn(), network())
    at.fit(noted, at.defenses.Standard(THREAT), data(), epochs=1, progress=False, device="cpu", validate_every=0)
    found["drawn"] = noted[0].seen
    torch.save(found, f"{folder}/{rank}.pt")
    if rank:
        os._exit(0)  # without a word, as a process ends that has run out of memory
    found["lost"] = refusal(lambda: train("fgsm", out=f"{folder}/lost"))
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def both(folder):
    """What the two processes found. One pair of processes for all tests: starting it is what takes the time."""
    return found_by_two(worker, folder, 240)


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_end_with_the_same_weights_and_the_same_history(name, both):
    first, second = (found[name] for found in both)
    assert same(first["weights"], second["weights"]) and not same(first["weights"], network().state_dict())
    assert first["history"] == second["history"] and first["notes"] == second["notes"]
    assert first["provenance"] == second["provenance"] == 2
    assert (first["told"], second["told"]) == (2, 0)


@pytest.mark.parametrize("name", EXACT)
def test_two_processes_train_what_one_trains(name, both):
    alone, together = train(name), both[0][name]
    for key, value in alone["weights"].items():
        assert torch.allclose(together["weights"][key], value, rtol=1e-9, atol=1e-9), key
    for ours, theirs in zip(json.loads(together["history"]), json.loads(alone["history"]), strict=True):
        for key in ("loss", "accuracy", "lr", "val_clean", "val_fgsm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-6)  # the loss is summed in float32
    assert alone["provenance"] is None and alone["told"] == 2


def test_averaged_weights_and_running_statistics_are_the_same_everywhere_and_the_first_alone_writes(both, folder):
    first, second = (found["average"] for found in both)
    assert same(first["weights"], second["weights"])
    assert any("running_mean" in key for key in first["weights"])
    assert (first["path"], second["path"]) == (str(folder / "run"), "None")
    loaded = at.load_run(folder / "run", model=network(batch_norm=True), data=data())
    assert same(loaded.model.state_dict(), first["weights"]) and loaded.status == "finished"
    assert loaded.provenance["processes"] == 2


def test_two_processes_that_were_killed_go_on_to_the_same_weights(both):
    """Each with what its own defense remembers: the perturbation of its own share."""
    for found in both:
        assert same(found["resumed"]["weights"], found["free"]["weights"])
        assert found["resumed"]["history"] == found["free"]["history"]
        assert same(found["trades again"]["weights"], found["trades"]["weights"])
        assert found["resumed"]["notes"][-1] == "taken up again after step 9 of 64"


def test_a_callback_of_the_first_process_ends_the_training_of_all(both):
    first, second = (found["stopped"] for found in both)
    assert same(first["weights"], second["weights"]) and len(json.loads(second["history"])) == 1
    assert first["notes"] == second["notes"] and first["notes"][-1] == "stopped after 1 of 2 epochs: enough"


def test_what_is_refused_is_refused_everywhere_and_nobody_waits(both):
    for found in both:
        assert found["again"].startswith("FileError") and "already holds" in found["again"]
        assert "out=" in found["out"] and found["out"].endswith("they were given True, False")
        assert "device='cuda' is not auto or cpu: the processes were joined by gloo" in found["device"]
        assert found["data"].startswith("FileError") and "none.npz does not exist" in found["data"]
        assert found["lr"].endswith("is not the same in all processes: they were given 0.1, 0.2")
        assert "batch_size=1 is not at least 2" in found["batch"]
        assert "batches=" in found["lengths"] and "they were given 4, 8" in found["lengths"]


def test_one_process_counts_and_times_without_the_others(both):
    assert both[0]["cost"] == 4 and both[0]["pace"] > 0


def test_a_dataloader_with_a_distributed_sampler_trains_one_network(both):
    assert same(both[0]["stream"], both[1]["stream"])


def test_dropout_draws_for_each_process_anew(both):
    first, second = (found["drawn"] for found in both)
    assert len(first) == len(second) == 2  # batches
    assert not set(first) & set(second)


def test_a_process_that_loses_another_says_so_and_the_folder_is_whole(both, folder):
    assert both[0]["lost"].startswith("ProcessLostError: process 0 of 2 has lost another one")
    assert not list(folder.glob("lost/*.partial")) and not list(folder.glob("lost/.*.partial"))


def test_a_program_on_its_own_is_the_first_of_one():
    assert (processes.rank(), processes.count(), processes.several()) == (0, 1, False)
    with at.joined() as rank:
        assert rank == 0 and not processes.several()
    assert processes.gather(3) == [3] and processes.first_alone(lambda: 4) == 4
    assert processes.first_before_others(lambda: 5) == 5
    processes.agree(lr=0.1)


def torchrun(*words, expected=0):
    """Two processes under torchrun; returns what they wrote."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, *words], capture_output=True, text=True, timeout=240, env=BEGINNING)
    assert (done.returncode == 0) == (expected == 0), done.stdout + done.stderr
    return done.stdout, done.stderr


def test_torchrun_trains_judges_and_writes_once(tmp_path):
    words = "train fgsm --data digits --eps 0.3 --epochs 2 --no-progress --device cpu".split()
    out, err = torchrun("-m", "advtrain", *words, "--out", str(tmp_path / "x"))
    assert out.count("360 images") == 1 and out.count("saved in") == 1 and "warning" not in err.lower()
    run = at.load_run(tmp_path / "x")
    assert run.status == "finished" and len(run.history) == 2
    assert run.provenance["processes"] == 2
    assert run.provenance["command"].startswith("torchrun --nproc-per-node 2 -m advtrain train fgsm --data digits")
    assert sorted(path.name for path in (tmp_path / "x").iterdir() if path.name != ".lock") == [
        "config.json", "history.json", "model.safetensors", "provenance.json", "report.json",
    ]  # fmt: skip


@pytest.mark.parametrize("rank", [0, 1])
def test_options_that_all_processes_refuse_are_refused_aloud_by_the_first(rank, monkeypatch, capsys):
    monkeypatch.setenv("RANK", str(rank))
    with pytest.raises(SystemExit) as end:
        cli.run(["train", "fgsm", "--eps", "8"])
    assert end.value.code == 2
    assert ("error: eps=8" in capsys.readouterr().err) == (rank == 0)


@pytest.mark.parametrize("said", [False, True])
def test_what_befalls_one_process_is_said_by_it_and_what_the_first_has_said_is_not(said, monkeypatch, capsys):
    @functools.wraps(cli.fit)
    def fail(*arguments, **options):
        error = at.errors.DataError("the 7th batch is damaged")
        error.said = said
        raise error

    monkeypatch.setattr(cli, "rank", lambda: 1)
    monkeypatch.setattr(cli, "several", lambda: True)
    monkeypatch.setattr(cli, "fit", fail)
    with pytest.raises(SystemExit):
        cli.run(["train", "fgsm", "--eps", "0.3"])
    assert ("error: in process 1: the 7th batch" in capsys.readouterr().err) == (not said)


@pytest.mark.parametrize("device", ["cuda:0", "mps", "nonsense"])
def test_processes_are_joined_on_processors_or_gpus_only(device, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(at.errors.ArgumentError, match=f"device='{device}' is not auto, cuda or cpu"), at.joined(device):
        pass


@pytest.mark.parametrize(("program", "said"), [("train.py", "train.py"), ("advtrain/__main__.py", "-m advtrain")])
def test_a_run_of_several_processes_says_how_they_were_started(program, said, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", [program, "--lr", "0.1"])
    assert command_line() == f"torchrun --nnodes 2 --nproc-per-node 4 {said} --lr 0.1"


DYING = """
import os, signal, sys, warnings
import advtrain as at

warnings.simplefilter("ignore")
with at.joined("cpu") as rank:
    class Dying(at.defenses.FGSM):
        def __call__(self, model, batch, progress):
            if rank == 1 and progress > 0.6:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(model, batch, progress)

    data, threat = at.load_data("digits"), at.Threat("linf", eps=0.1)
    at.fit(at.build_model("small-cnn", data), Dying(threat), data, epochs=3, out=sys.argv[1], progress=False)
"""


@pytest.mark.posix
def test_a_killed_process_ends_the_job_and_leaves_the_last_whole_epoch(tmp_path):
    script = Path(tmp_path / "dying.py")
    script.write_text(DYING)
    _, err = torchrun(str(script), str(tmp_path / "x"), expected=1)
    assert f"Signal {int(signal.SIGKILL)}" in err  # torchrun's own account of who was first
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    history = json.loads((tmp_path / "x" / "history.json").read_text())
    assert config["status"] == "running" and len(history) == 1 == config["best_epoch"]
    assert at.load_run(tmp_path / "x", defense=at.defenses.FGSM(at.Threat("linf", 0.1))).history == history
