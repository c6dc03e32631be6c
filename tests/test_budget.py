"""Costs: counts that follow from the layers' shapes, predictions that follow from the counts, a model left in peace."""

import json
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import advtrain as at
from advtrain.defense import Step

THREAT = at.Threat("linf", 8 / 255)
SPEED = at.Speed(update=0.5, forward=0.25, forwards=3.0)


def images(n=8, shape=(1, 8, 8), classes=4):
    rng = at.Rng(0, "images")
    return at.Batch(rng.uniform(torch.empty(n, *shape), 0, 1), rng.integers(0, classes, (n,)))


def pairs(n=40):
    return images(n).x, images(n).y


def linear(shape=(1, 8, 8), classes=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))


def deep(batch_norm=True, dropout=0.0):
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4) if batch_norm else nn.Identity(), nn.Dropout(dropout), nn.Flatten()]
    torch.manual_seed(0)
    return nn.Sequential(*layers, nn.Linear(144, 4))


@dataclass
class Replays(at.Defense):
    """A defense that uses the whole protocol: replays, a second player, a random number, something put back."""

    name: ClassVar[str] = "replays"
    replays: ClassVar[int] = 3
    called: ClassVar[list] = []

    def setup(self, model, shape, device):
        self.player, self.seen = nn.Linear(shape[-1], 1).to(device), 0

    def adversary_step(self, model, batch, progress):
        torch.autograd.grad(model(batch.x).sum() + self.player(batch.x).sum(), list(self.player.parameters()))
        self.called.append("adversary")

    def __call__(self, model, batch, progress):
        logits = model(self.threat.random_start(batch.x, batch.rng("init")))
        return Step(self.criterion(logits, batch.y), logits, torch.zeros_like(batch.x))

    def after_backward(self, model):
        self.called.append("after")


def test_a_linear_model_costs_what_its_matrix_products_do():
    """Forward x W, weight gradient xᵀg, input gradient g Wᵀ: 2 B d K operations each."""
    product = 2 * 8 * 64 * 4
    standard = at.cost(at.defenses.Standard(THREAT), linear(), images())
    assert (standard.unit, standard.flops) == (product, 2 * product)  # nobody asks for the gradient of the images
    for steps in (1, 2, 7):
        pgd = at.cost(at.defenses.PGD(THREAT, steps=steps), linear(), images())
        assert pgd.flops == (2 + 2 * steps) * product and pgd.forwards == 2 + 2 * steps
        assert (pgd.forward, pgd.backward, pgd.updates) == (steps + 1, steps + 1, 1)


def test_the_small_cnn_costs_what_its_layers_do():
    """By hand: 2 · positions · out · in channels · 9 for a convolution, 2 · in · out for a linear layer."""
    model = at.build_model("small-cnn", shape=(1, 8, 8), num_classes=10, normalize=None, width=16)
    layers = [2 * 64 * 16 * 1 * 9, 2 * 16 * 32 * 16 * 9, 2 * 16 * 32 * 32 * 9, 2 * 512 * 128, 2 * 128 * 10]
    first, whole = 8 * layers[0], 8 * sum(layers)
    costs = {name: at.cost(defense(THREAT), model, images()) for name, defense in at.defenses.DEFENSES.items()}
    assert {cost.unit for cost in costs.values()} == {whole}
    assert costs["standard"].flops == 3 * whole - first
    assert costs["fgsm"].flops == costs["fast-at"].flops == 5 * whole - first
    assert costs["pgd"].flops == 23 * whole - first


def test_the_share_per_image_does_not_depend_on_how_many_there_are():
    model = at.build_model("small-cnn", shape=(1, 8, 8), num_classes=4, normalize=None)
    few, many = (at.cost(at.defenses.FastAT(THREAT), model, images(32), batch_size=n) for n in (4, 32))
    assert few.forwards == many.forwards and 8 * few.flops == many.flops


def test_replays_and_a_second_player_count():
    """Three updates of forward and weight gradient; and three forwards of which the player needs no gradient."""
    Replays.called.clear()
    defense = Replays(THREAT)
    count = at.cost(defense, linear(), images())
    player = 3 * 2 * (2 * 64 * 1 * 8)  # its forward pass and the gradient of its weights
    assert count.flops == 3 * (2 + 1) * count.unit + player and count.updates == 3
    assert (count.forward, count.backward) == (6, 3)
    assert Replays.called == ["adversary", "after"] * 3 and not hasattr(defense, "player")


REFUSE_DROPOUT = ("sat-r1", "sat-r2", "rvs")  # they compare what the model says of two images


@pytest.mark.filterwarnings("ignore:an attack of three steps took no longer")
@pytest.mark.parametrize("name", at.defenses.DEFENSES)
def test_the_model_and_the_global_randomness_stay_as_they_were(name):
    model, batch = deep(dropout=0.0 if name in REFUSE_DROPOUT else 0.5), images()
    model[1].eval()  # frozen by its owner
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x, state = batch.x.clone(), torch.get_rng_state()
    defense = at.defenses.DEFENSES[name](THREAT)
    found = at.cost(defense, model, batch)
    assert found.forwards >= 2 and found == at.cost(defense, model, batch)
    at.calibrate(model, batch, device="cpu", seconds=1e-9)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.requires_grad and bool((p.grad == 7).all()) for p in model.parameters())
    assert model.training and not model[1].training and not model._forward_hooks
    assert torch.equal(batch.x, x) and torch.equal(torch.get_rng_state(), state)
    assert vars(defense) == vars(at.defenses.DEFENSES[name](THREAT))


def test_calibration_is_two_medians():
    """With forward passes for a clock: 1 a standard update, 4 PGD with three steps; so 3 for 6 forward-equivalents."""
    model, passes = linear(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    speed = at.calibrate(model, images(), device="cpu", clock=lambda: float(len(passes)))
    assert speed == at.Speed(update=1.0, forward=0.5, forwards=2.0, device="cpu")


def test_calibration_goes_on_until_its_time_is_over_and_three_rounds_at_least():
    for seconds, rounds in ((1e-9, 3), (28.0, 3), (50.0, 6)):
        model, ticks, passes = linear(), [0.0], []
        model.register_forward_hook(lambda *_, passes=passes: passes.append(1))

        def clock(ticks=ticks, passes=passes):
            ticks[0] += 1
            return ticks[0] + len(passes)

        at.calibrate(model, images(), device="cpu", seconds=seconds, clock=clock)
        # beside the rounds: the checks and units of two costs, 2 · 2, and their updates, 1 + 4; a round has 1 + 4 too
        assert len(passes) == 4 + 5 + 5 * (1 + rounds)


def noisy(passes, free):
    """A clock that counts the model's passes, but in the first `free` rounds one only of the four of an attack.

    Nine passes are made before the rounds, see above, and five in each: the standard update's and the attack's.
    """

    def missed(i):
        return i >= 9 and (i - 9) // 5 <= free and (i - 9) % 5 >= 2

    return lambda: float(sum(not missed(i) for i in range(len(passes))))


@pytest.mark.parametrize("free", [4, 11])
def test_calibration_measures_until_noise_is_outvoted(free):
    model, passes = linear(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    speed = at.calibrate(model, images(), device="cpu", seconds=1e-9, clock=noisy(passes, free))
    assert speed == at.Speed(update=1.0, forward=0.25, forwards=2.0, device="cpu")  # half the rounds are right
    assert len(passes) == 9 + 5 * (1 + 2 * free)


def test_calibration_that_fails_says_so():
    model, passes = linear(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    with pytest.warns(at.errors.AdvtrainWarning, match="no longer than none in 33 rounds, which cannot be"):
        speed = at.calibrate(model, images(), device="cpu", seconds=1e-9, clock=noisy(passes, 1000))
    assert speed == at.Speed(update=1.0, forward=0.5, forwards=2.0, device="cpu")


class Restless(torch.utils.data.Dataset):
    """Images that are augmented by whatever random numbers come."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return torch.rand(1, 8, 8), i % 4


def shuffled():
    batch = images(12)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(batch.x, batch.y), batch_size=5, shuffle=True)


MEASURE = {
    "cost": lambda model, data: at.cost(at.defenses.FGSM(THREAT), model, data),
    "budget": lambda model, data: at.budget(at.defenses.FGSM(THREAT), model, data, speed=SPEED),
    "calibrate": lambda model, data: at.calibrate(model, data, device="cpu", seconds=1e-9),
}


@pytest.mark.filterwarnings("ignore:an attack of three steps took no longer")
@pytest.mark.parametrize("data", [shuffled, Restless], ids=["shuffled", "restless"])
@pytest.mark.parametrize("measure", MEASURE)
def test_reading_the_data_leaves_global_randomness_alone(measure, data):
    model, images = deep(), data()
    state = torch.get_rng_state()
    MEASURE[measure](model, images)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.filterwarnings("ignore:an attack of three steps took no longer")
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("measure", MEASURE)
def test_callers_may_have_switched_gradients_off(measure, off):
    with off():
        MEASURE[measure](deep(), pairs())
        assert not torch.is_grad_enabled()


def test_only_a_copy_of_the_model_runs():
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x.flatten(1))

    model = Counting(64, 4)
    for measure in ("cost", "budget"):
        MEASURE[measure](model, pairs())
    assert model.calls == 0


def test_numbers_of_numpy_are_numbers(tmp_path):
    data, seed = at.load_data("digits"), np.int64(0)
    run = at.fit(
        at.build_model("small-cnn", data), at.defenses.Standard(THREAT), data, epochs=np.int64(1), seed=seed,
        batch_size=np.int32(512), lr=np.float32(0.1), momentum=np.float32(0.5), validate_every=np.int8(0),
        device="cpu", out=tmp_path / "run",
    )  # fmt: skip
    assert json.loads(json.dumps(run.options)) == run.options and run.options["epochs"] == 1
    assert at.load_run(tmp_path / "run").provenance["seed"] == 0
    assert type(at.budget(at.defenses.FGSM(THREAT), linear(), pairs(), epochs=np.int64(3), speed=SPEED).epochs) is int
    with pytest.raises(at.errors.ArgumentError, match="epochs=True is not an integer"):
        at.budget(at.defenses.FGSM(THREAT), linear(), pairs(), epochs=True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.01, "10.0 ms"), (0.09999, "0.1 s"), (59.94, "59.9 s"), (59.97, "1.0 min"), (3599.9, "1.0 h"), (9000, "2.5 h")],
)
def test_durations_are_written_in_the_unit_that_suits(seconds, text):
    cost = at.Cost("x", 1, 1, 300, 100)
    table = at.Budget({"x": cost}, cost, 1, 1, at.Speed(update=seconds, forward=1.0))
    assert str(table).splitlines()[1].endswith(f" {text}")


def test_minutes_follow_from_counts_and_speed():
    data = at.load_data("digits")
    defenses = {"standard": at.defenses.Standard(THREAT), "PGD-2": at.defenses.PGD(THREAT, steps=2)}
    table = at.budget(defenses, at.build_model("small-cnn", data), data, epochs=20, batch_size=32, speed=SPEED)
    batches = len(data.train) / 32
    assert table.minutes("PGD-2") * 60 == table.seconds("PGD-2")
    for name, defense in defenses.items():
        forwards = at.cost(defense, at.build_model("small-cnn", data), data).forwards
        assert table[name].forwards == forwards
        assert table.seconds(name) == pytest.approx(20 * batches * (0.5 + 0.25 * (forwards - 3.0)), rel=1e-12)
    assert (
        table.relative("standard") == 1 and table.relative("PGD-2") == table["PGD-2"].forwards / table.standard.forwards
    )
    assert [row["name"] for row in table.rows] == list(defenses) and table.rows[1]["forward"] == 3


def test_replays_are_charged_an_update_each():
    free = at.Cost("free", forward=8, backward=8, flops=2400, unit=100, updates=8)
    assert SPEED.seconds(free) == 8 * 0.5


def test_the_table_reads_well_and_its_html_is_accessible():
    table = at.budget(at.defenses.PGD(THREAT), linear(), pairs(), epochs=3, speed=SPEED)
    assert str(table).splitlines()[1].split() == ["pgd", "11", "11", "22.0", "11.0", "15.8", "s"]
    assert "3 epochs on cpu, without validation" in str(table) and repr(table) == str(table)
    html = table._repr_html_()
    assert html.count('scope="col"') == 6 and '<th scope="row">pgd</th>' in html and "<caption>" in html
    sneaky = at.budget({"<b>": at.defenses.FGSM(THREAT)}, linear(), pairs(), speed=SPEED)
    assert "<b>" not in sneaky._repr_html_()


def test_a_data_loader_is_counted_by_its_batches():
    batch = images(12)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(batch.x, batch.y), batch_size=5)
    table = at.budget(at.defenses.Standard(THREAT), linear(), loader, epochs=1, speed=SPEED)
    assert table.batches == 3


@pytest.mark.parametrize("name", at.defenses.DEFENSES)
def test_every_defense_has_a_budget(name):
    table = at.budget(at.defenses.DEFENSES[name](THREAT), deep(), pairs(), speed=SPEED)
    assert table[name].forwards >= table.standard.forwards * (1 - 1e-9) and table.minutes(name) > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: at.cost("fgsm", linear(), images()), "defense='fgsm' is not a Defense: make one with its threat"),
        (lambda: at.cost(at.defenses.FGSM(THREAT), "m", images()), "model='m' is not a Module"),
        (lambda: at.cost(at.defenses.FGSM(THREAT), linear(), images(), batch_size=0), "batch_size=0"),
        (lambda: at.cost(at.defenses.FGSM(THREAT), linear(classes=2), images()), "2 logits and the data have 4"),
        (
            lambda: at.cost(at.defenses.FGSM(THREAT), nn.Sequential(nn.Flatten(), nn.LayerNorm(64)), images()),
            "no matrix product or convolution",
        ),
        (lambda: at.calibrate(linear(), images(), seconds=0), "seconds=0 is not above 0"),
        (lambda: at.calibrate(linear(), images(), device="abacus"), "device='abacus'"),
        (lambda: at.Speed(update=0, forward=1), "update=0 is not a positive number"),
        (lambda: at.budget([], linear(), pairs()), r"defenses=\[\] is not at least one Defense"),
        (lambda: at.budget(["fgsm"], linear(), pairs()), "is not a Defense: make one with its threat"),
        (lambda: at.budget("pgd", linear(), pairs()), r"defenses='pgd' is not a Defense.* at.defenses.PGD\(threat\)"),
        (lambda: at.budget(["fgsm", "pgd"], linear(), pairs()), r"defenses\[0\]='fgsm' is not a Defense"),
        (lambda: at.budget(at.defenses.PGD, linear(), pairs()), "defenses=the class PGD is not a Defense"),
        (lambda: at.budget(None, linear(), pairs()), "defenses=None is not a Defense"),
        (
            lambda: at.budget(linear(), at.defenses.PGD(THREAT), pairs()),
            r"the order is budget\(defenses, model",
        ),
        (lambda: at.budget(at.defenses.PGD(THREAT), None, pairs()), "model=None is not a Module: the order is"),
        (
            lambda: at.budget(at.defenses.PGD(THREAT), "resnet", pairs()),
            "model='resnet' is not a Module: at.build_model",
        ),
        (
            lambda: at.budget({2: at.defenses.PGD(THREAT)}, linear(), pairs()),
            r"defenses=\[2\] is not a dict with",
        ),
        (lambda: at.budget({"a": "pgd"}, linear(), pairs()), r"defenses\['a'\]='pgd' is not a Defense"),
        (lambda: at.cost(linear(), at.defenses.PGD(THREAT), images()), r"the order is cost\(defense, model, data\)"),
        (lambda: at.budget(at.defenses.FGSM(THREAT), linear(), pairs(), epochs=0), "epochs=0"),
        (lambda: at.budget(at.defenses.FGSM(THREAT), linear(), pairs(), speed=3), "speed=3 is not a Speed"),
        (
            lambda: at.budget([at.defenses.PGD(THREAT), at.defenses.PGD(THREAT, steps=2)], linear(), pairs()),
            "of different names: give each its own",
        ),
    ],
)
def test_what_cannot_be_counted_is_refused_by_name(call, message):
    with pytest.raises(at.errors.AdvtrainError, match=message):
        call()


def test_an_unknown_name_is_refused():
    table = at.budget(at.defenses.PGD(THREAT), linear(), pairs(), speed=SPEED)
    with pytest.raises(at.errors.ArgumentError, match="name='pdg' is not one of pgd: did you mean 'pgd'"):
        table.minutes("pdg")


@pytest.mark.slow
def test_the_predicted_ratio_is_the_measured_one():
    """PGD-AT against FGSM-AT, in processor time, which other programs disturb little."""
    data = at.load_data("digits")
    defenses = at.defenses.PGD(THREAT), at.defenses.FGSM(THREAT)
    model = at.build_model("small-cnn", data)
    speed = at.calibrate(model, data, device="cpu", clock=time.process_time)
    table = at.budget(defenses, model, data, speed=speed)
    spent = []
    for defense in defenses:
        started = time.process_time()
        at.fit(at.build_model("small-cnn", data), defense, data, epochs=10, validate_every=0, device="cpu")
        spent.append(time.process_time() - started)
    ratio = table.minutes("pgd") / table.minutes("fgsm") / (spent[0] / spent[1])
    assert 1 / 1.5 < ratio < 1.5
