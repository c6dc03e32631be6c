"""What the tables of wrong calls are made of: a world to call into, and what a refused call must leave as it was."""

import functools
import hashlib
import inspect
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import advtrain as at

NAN, INF = float("nan"), float("inf")
THREAT = at.Threat("linf", eps=0.3)
HALF = at.Threat("linf", eps=0.1, low=0.2, high=0.4)  # whose box the images leave


@dataclass(frozen=True)
class Row:
    """A wrong call.

    Args:
        call: the name of the function in `CALLS`.
        given: the arguments that differ from a call that works.
        kind: the exact class of the error.
        says: the whole message, "…" standing for what may differ.
    """

    call: str
    given: dict[str, Any]
    kind: type[Exception]
    says: str

    def __str__(self):
        """Its name among the tests."""
        return f"{self.call}-{'-'.join(self.given)}"


@dataclass(frozen=True)
class Made:
    """An argument that is made anew for each call, by a function without arguments."""

    make: Callable[[], Any]


def wrong(calls, kind, *rows):
    """Rows of the functions of these names, parted by blanks: the same kind of error, and (given, message) of each."""
    return [Row(call, given, kind, says) for call in calls.split() for given, says in rows]


def each(names, **given):
    """The functions of these names that have all of these parameters."""
    return " ".join(name for name in names if given.keys() <= parameters(name))


def uncovered(calls, rows):
    """What parameters of the functions of these names no row is wrong in."""
    seen = {(row.call, name) for row in rows for name in row.given}
    return {(call, name) for call in calls for name in parameters(call)} - seen


def arguments(row):
    """What the call of a row is given: the arguments of a call that works, and the wrong ones over them."""
    given = {name: value.make() if isinstance(value, Made) else value for name, value in row.given.items()}
    return {**CALLS[row.call][1](), **given}


def parameters(call):
    """The names of the parameters of a function in `CALLS`."""
    found = inspect.signature(CALLS[call][0]).parameters.values()
    return {each.name for each in found if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)}


def matches(says, message):
    return re.fullmatch(".*".join(map(re.escape, says.split("…"))), message) is not None


def refused(row):
    """Make the wrong call of a row, and hold what it raises, and what it leaves, against the row."""
    given = arguments(row)
    before = state_of(given), files("."), randomness()
    try:
        CALLS[row.call][0](**given)
    except Exception as error:
        caught = error
    else:
        pytest.fail("it is accepted")
    message = str(caught)
    assert type(caught) is row.kind, f"{type(caught).__name__}: {message}"
    assert matches(row.says, message), message
    assert "\n" not in message and len(message) <= 400 and not re.search("0x[0-9a-f]{5}", message), message
    after = state_of(given), files("."), randomness()
    for what, earlier, later in zip(("an argument", "the folder", "a random state"), before, after, strict=True):
        assert earlier == later, f"{what} is not as it was"


# -- the world -------------------------------------------------------------------------------------------------------


@functools.cache
def data():
    """Forty-eight digits for training, eight for validation, sixteen for the test."""
    digits = at.load_data("digits")
    few = (digits.train.x[:48], digits.train.y[:48])
    return at.as_dataset(few, test=digits.test[:16], val=digits.val[:8], num_classes=10, name="few digits")


def images():
    return data().test.images()


def labels():
    return data().test.y.clone()


def pair(x=images, y=labels):
    """Images and labels that functions make."""
    return Made(lambda: (x(), y()))


def pixels(value, place=(0, 0, 0, 0)):
    """Images of which one pixel is wrong."""
    x = images()
    x[place] = value
    return x


class Net(nn.Module):
    """A network whose layers do not all train: one in evaluation mode, one that is frozen."""

    def __init__(self, classes=10, channels=1):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.norm, self.drop = nn.BatchNorm2d(channels), nn.Dropout(0.0)
        self.flat, self.head = nn.Flatten(), nn.utils.skip_init(nn.Linear, channels * 64, classes)
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.uniform_(-0.1, 0.1, generator=generator)

    def forward(self, x):
        return self.head(self.flat(self.drop(self.norm(x))))


def net(classes=10, channels=1):
    model = Net(classes, channels)
    model.norm.eval()
    model.norm.weight.requires_grad_(False)
    return model


def after(function):
    """A network whose answer goes through a function."""

    class After(Net):
        def forward(self, x):
            return function(super().forward(x))

    return After()


def loader(n=8, white=1):
    """Images in batches of four."""
    return DataLoader(TensorDataset(images()[:n] * white, labels()[:n]), batch_size=4)


def _attack():
    return {"model": net(), "x": images()[:2], "y": labels()[:2], "threat": THREAT}


def _defense():
    return {"threat": THREAT}


ATTACKS = ("fgsm", "r_fgsm", "i_fgsm", "mi_fgsm", "pgd", "apgd", "fab", "square", "r_fgsm_pgd", "feature_attack",
           "transport_attack", "adaptive")  # fmt: skip
DEFENSES = {kind.__name__: kind for kind in at.defenses.DEFENSES.values()}

CALLS = {
    "Threat": (at.Threat, lambda: {"norm": "linf", "eps": 0.3}),
    "load_data": (at.load_data, lambda: {"name": "digits"}),
    "as_dataset": (at.as_dataset, lambda: {"data": (images(), labels()), "test": 4, "val": 2}),
    "Split": (at.Split, lambda: {"x": images(), "y": labels()}),
    "build_model": (at.build_model, lambda: {"name": "small-cnn", "data": data(), "width": 4}),
    "wideresnet": (at.build_model, lambda: {"name": "wideresnet", "shape": (3, 8, 8), "num_classes": 10, "depth": 10,
                                            "width": 1, "normalize": None}),
    "load_model": (at.load_model, lambda: {"model": net(), "data": data()}),
    "attacking": (lambda **given: at.attacking(**given).__enter__(), lambda: {"model": net()}),
    **{name: (getattr(at.attacks, name), _attack) for name in ATTACKS},
    "adaptive": (at.attacks.adaptive, lambda: {**_attack(), "defense": "rvs"}),
    "Defense": (at.Defense, _defense),
    **{name: (kind, _defense) for name, kind in DEFENSES.items()},
    "from_config": (at.defenses.from_config, lambda: {"config": at.defenses.FGSM(THREAT).config}),
    "fit": (at.fit, lambda: {"model": net(), "defense": at.defenses.FastAT(THREAT), "data": data(), "epochs": 1}),
    "EarlyStopping": (at.callbacks.EarlyStopping, dict),
    "TensorBoard": (at.callbacks.TensorBoard, lambda: {"folder": "events"}),
    "evaluate": (at.evaluate, lambda: {"model": net(), "data": data(), "threat": THREAT}),
    "autoattack": (at.autoattack, lambda: {**_attack(), "version": "fast"}),
    "diagnose": (at.diagnose, lambda: {"model": net(), "data": data(), "threat": THREAT, "images": 2,
                                       "surrogate": net()}),
    "Protocol": (at.Protocol, dict),
    "budget": (at.budget, lambda: {"defenses": at.defenses.FGSM(THREAT), "model": net(), "data": data(),
                                   "speed": at.Speed(1e-3, 1e-3)}),
    "cost": (at.cost, lambda: {"defense": at.defenses.FGSM(THREAT), "model": net(), "data": data()}),
    "preset": (at.preset, lambda: {"name": next(iter(at.PRESETS))}),
    "Rng": (lambda key: at.Rng(key), lambda: {"key": 0}),
    "load_run": (at.load_run, lambda: {"path": "run"}),
    "load_results": (lambda path: at.load_results(path), lambda: {"path": "digits"}),
    "reproduce": (at.reproduce, lambda: {"experiment": "small.toml", "out": "small.json", "workers": 0}),
    "check_results_file": (at.check_results_file, lambda: {"path": "small.json", "workers": 0}),
    "export": (at.export, lambda: {"model": net(), "path": "exported", "data": data()}),
}  # fmt: skip
"""Functions by name, each with the arguments of a call that works."""


# -- what must stay --------------------------------------------------------------------------------------------------


def files(folder):
    """Every file and folder below, with its bytes and its time."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else None
        for path in sorted(Path(folder).rglob("*"))
    }


def _tensor(value):
    if value is None or nn.parameter.is_lazy(value):
        return str(type(value))
    return str(value.dtype), tuple(value.shape), value.is_meta or digest(value)


def digest(value):
    return hashlib.sha256(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def state_of(thing):
    """What may not change in an argument: numbers, modes, flags and gradients, as plain values."""
    if isinstance(thing, nn.Module):
        return (
            {name: _tensor(value) for name, value in thing.state_dict().items() if isinstance(value, torch.Tensor)},
            {name: module.training for name, module in thing.named_modules()},
            {name: (value.requires_grad, _tensor(value.grad)) for name, value in thing.named_parameters()},
        )
    if isinstance(thing, torch.Tensor):
        return _tensor(thing), thing.requires_grad, _tensor(thing.grad)
    if isinstance(thing, np.ndarray):
        return str(thing.dtype), thing.shape, thing.tobytes() if thing.dtype != object else repr(thing)
    if isinstance(thing, (tuple, list)):
        return [state_of(part) for part in thing]
    if isinstance(thing, dict):
        return {key: state_of(part) for key, part in thing.items()}
    if isinstance(thing, (at.Dataset, at.Split)):
        return {key: state_of(part) for key, part in vars(thing).items()}
    return None


def randomness():
    """The global random states."""
    numpy_state = np.random.get_state()
    return digest(torch.random.get_rng_state()), random.getstate(), numpy_state[1].tobytes(), numpy_state[2:]
