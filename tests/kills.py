"""Trainings in processes of their own, which die by SIGKILL: where it is told, or when somebody sends it."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import torch

import advtrain as at
from advtrain import checkpoint_files, loop, provenance, runs, train

DIGITS = at.load_data("digits")
DATA = at.as_dataset((DIGITS.train.x[:44], DIGITS.train.y[:44]), val=0.2, test=0, num_classes=10)
THREAT = at.Threat("linf", 0.3)
EPOCHS, BATCH, EVERY = 3, 8, 2

PLACES = {
    "an update": (loop, "step_if"),
    "the average": (loop.Keeper, "after_step"),
    "a validation": (loop, "count_correct"),
    "the weights of the run": ("advtrain.runs", "save_weights"),
    "a file of the run": ("advtrain.runs", "write_json"),
    "the content of a checkpoint": (checkpoint_files, "save_file"),
    "what goes to the disk": (os, "fsync"),
    "a file that takes its place": (os, "replace"),
    "an old checkpoint that goes": (Path, "unlink"),
}
"""Where a training may die: owner and name of a function that is called there."""


class Kept(at.defenses.Standard):
    """Needs what it remembers: the loss is scaled by the labels that it has seen."""

    name = "kept"

    def setup(self, model, shape, device):
        self.memory = torch.zeros(10, device=device)

    def __call__(self, model, batch, progress):
        self.memory = 0.9 * self.memory + torch.bincount(batch.y, minlength=10)
        step = super().__call__(model, batch, progress)
        return step._replace(loss=step.loss * (1 + self.memory.std()))

    def state_dict(self):
        return {"memory": self.memory, "nested": {"a.b": [1, (2.5, None)], "a": {"b": self.memory * 2}}}

    def load_state_dict(self, state):
        assert torch.equal(state["nested"]["a"]["b"], 2 * state["memory"])
        self.memory = state["memory"]


def defense_of(name):
    return (Kept if name == "kept" else at.defenses.DEFENSES[name])(THREAT)


def network():
    """With batch normalisation, and with dropout, which draws from the global state."""
    model = at.build_model("small-cnn", DATA, width=2)
    model.head = torch.nn.Sequential(torch.nn.Dropout(0.2), model.head)
    return model


def network_for(defense):
    refuses_dropout = ("rvs", "sat-r1", "sat-r2", "sat-r3")
    return at.build_model("small-cnn", DATA, width=2) if defense in refuses_dropout else network()


def fitted(folder, defense="fast-at", options=(), **more):
    """One training of `EPOCHS` epochs; the same for the same arguments."""
    model = network_for(defense)
    told = {
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "lr": 0.02,
        "val_steps": 2,
        "seed": 3,
        "device": "cpu",
        **dict(options),
        **more,
    }
    return train.fit(model, defense_of(defense), DATA, out=folder, **told)


def steps_of(defense):
    return EPOCHS * -(-len(DATA.train) // BATCH) * defense_of(defense).replays


def work(folder, diary, defense, options, place=None, after=0):
    """A training that notes each step, and dies in a call of a place, before it or after it; or not, with no place."""
    torch.set_num_threads(1)
    diary = open(diary, "w", buffering=1)
    step_if = loop.step_if

    def noted(*args):
        step_if(*args)
        diary.write("step\n")

    loop.step_if = noted
    load = loop.Loop.load_state_dict

    def loaded(self, state):
        diary.write(f"taken up at {state['steps']}\n")
        load(self, state)

    loop.Loop.load_state_dict = loaded
    if place is not None:
        arm(place, after)
    fitted(folder, defense, options, resume=True, checkpoint_every=EVERY)


def told(diary):
    """From a diary: at which step the training was taken up, None if it began; and how many steps it made."""
    lines = diary.read_text().splitlines() if diary.exists() else []
    began = [int(line.split()[-1]) for line in lines if line.startswith("taken")]
    return (began[0] if began else None), lines.count("step")


def arm(place, after):
    owner, name = PLACES[place]
    owner = __import__(owner, fromlist=["_"]) if isinstance(owner, str) else owner
    function, calls = getattr(owner, name), [0]

    def deadly(*args, **options):
        calls[0] += 1
        if calls[0] == after // 2 + 1 and after % 2 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        found = function(*args, **options)
        if calls[0] == after // 2 + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(owner, name, deadly)


class Server:
    """A process that has imported PyTorch, and forks one for each training: an import each would take most of the time.

    It has made no backward pass itself: a fork would not have the threads that come with the first.
    """

    def __enter__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        assert self.process.wait(60) == 0
        self.process.stdout.close()

    def run(self, *arguments, delay=None):
        """Arguments of `work`. The exit status: 0 for a training that came to its end, -9 for one that was killed."""
        job = {"arguments": [str(each) if isinstance(each, Path) else each for each in arguments], "delay": delay}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def serve():
    torch.set_num_threads(1)
    runs.spec_of(network())  # imports what no fork should have to
    provenance.git_commit()
    context = multiprocessing.get_context("fork")
    for line in sys.stdin:
        job = json.loads(line)
        process = context.Process(target=quietly, args=job["arguments"])
        process.start()
        if job["delay"] is not None:
            process.join(job["delay"])
            process.kill()
        process.join()
        print(json.dumps(process.exitcode), flush=True)


def quietly(*arguments):
    warnings.simplefilter("ignore", at.errors.AdvtrainWarning)
    os.dup2(2, 1)  # the answers are on stdout
    work(*arguments)


SCHEDULES = sorted(at.schedules.SCHEDULES)
OPTIMIZERS = ["sgd", "adam", "adamw"]


def random_options(chance: random.Random):
    """Options of `fit` by chance."""
    return {
        "optimizer": chance.choice(OPTIMIZERS),
        "schedule": chance.choice(SCHEDULES),
        "ema": chance.choice([None, 0.9]),
        "select": chance.choice(["last", "best"]),
        "clip_grad": chance.choice([None, 1.0]),
        "validate_every": chance.choice([1, 2]),
        "momentum": chance.choice([0.0, 0.9]),
        "bf16": chance.choice([False, False, True]),
        "on_overfit": chance.choice(["warn", "stop", "rewind"]),
    }


if __name__ == "__main__":
    serve()
