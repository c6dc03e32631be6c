"""Laws: what holds for every attack there is, of every network, ball and image; a new attack is found by itself."""

import copy
import inspect
import json
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from images import same
from laws import (
    CLASSES,
    PRECISIONS,
    SEEDS,
    SHAPES,
    close_calls,
    draws_at_random,
    dtype_of,
    images,
    networks,
    threats,
    under,
    untouched,
)
from torch import nn

import advtrain as at
from advtrain.attacks import ADAPTIVE
from advtrain.data import as_split, order_of
from advtrain.files import read_json, write_json
from advtrain.modes import evaluating
from advtrain.report import Row
from advtrain.rng import global_draws

FEW = {"deadline": None}
SIDES = st.integers(5, 7)


def attacks():
    """Every public attack by a name of its own, and the further ones that are made against a defense."""
    found = {}
    for name in at.attacks.__all__:
        value = getattr(at.attacks, name)
        if not inspect.isfunction(value) or "threat" not in inspect.signature(value).parameters:
            continue
        if "defense" in inspect.signature(value).parameters:
            found |= {f"{name}-{defense}": (value, (defense,)) for defense in ADAPTIVE}
        else:
            found[name] = (value, ())
    known = [value for value, _ in found.values()]
    more = {key: value for table in (at.attacks.ATTACKS, *ADAPTIVE.values()) for key, value in table.items()}
    return found | {key: (value, ()) for key, value in more.items() if value not in known}


ATTACKS = attacks()


def parameters(name):
    return inspect.signature(ATTACKS[name][0]).parameters


def test_all_attacks_are_found():
    assert {
        "fgsm",
        "r_fgsm",
        "i_fgsm",
        "mi_fgsm",
        "pgd",
        "apgd",
        "fab",
        "square",
        "feature_attack",
        "feature-guided",
    } < (ATTACKS.keys())
    assert {"transport_attack", "r_fgsm_pgd", *(f"adaptive-{defense}" for defense in ADAPTIVE)} < ATTACKS.keys()


def strategies(threat, n):
    """Values for options, by their names, whichever attack has them."""
    sizes = st.floats(0.01, 3).map(lambda share: share * threat.eps)
    return {
        "steps": st.integers(1, 6),
        "restarts": st.integers(1, 2),
        "queries": st.integers(1, 20),
        "step_size": st.none() | sizes,
        "alpha": st.none() | st.floats(0.01, 0.99).map(lambda share: share * threat.eps),
        "decay": st.floats(0, 2),
        "rho": st.floats(0.1, 1),
        "p_init": st.floats(0.05, 1),
        "eot": st.integers(1, 2),
        "group": st.integers(1, 4),
        "sinkhorn_iterations": st.integers(1, 4),
        "debiased": st.booleans(),
        "guided": st.booleans(),
        "loss": st.sampled_from(["ce", "cw", "dlr"]),
        "keep": st.sampled_from(["any", "last"]),
        "early_stop": st.sampled_from([None, False]),
        "bn": st.sampled_from(["eval", "batch"]),
        "target": st.none() | SEEDS.map(lambda seed: at.Rng(seed).integers(0, CLASSES, (n,))),
        "rng": SEEDS,
    }


@st.composite
def options(draw, name, threat, n, leave=()):
    """Random options of an attack, as far as their names are known above."""
    known = strategies(threat, n)
    taken = {key: draw(known[key]) for key in parameters(name) if key in known and key not in leave}
    if getattr(ATTACKS[name][0], "keywords", None):
        taken.pop("guided", None)
    if "random_start" in parameters(name) and taken.get("restarts", 1) == 1 and "random_start" not in leave:
        taken["random_start"] = draw(st.booleans())
    return taken


def run(name, net, x, y, threat, **given):
    function, defense = ATTACKS[name]
    return function(net, x, y, threat, *defense, **given)


def labels(data, net, x):
    """Mostly what the network says, for an image that is wrong already ends the work on it."""
    said, other = answers(net, x), at.Rng(data.draw(SEEDS)).integers(0, CLASSES, (len(x),))
    return torch.where(at.Rng(data.draw(SEEDS)).uniform(torch.empty(len(x)), 0, 1) < 0.8, said, other)


def answers(net, x):
    """Of a copy: nothing is to be put right, or wrong, before it is looked at."""
    with torch.no_grad():
        return copy.deepcopy(net).eval()(x).argmax(1)


# -- inside, and nothing touched ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
@given(data=st.data(), precision=PRECISIONS, shape=SHAPES, n=st.integers(1, 5), threat=threats())
@settings(max_examples=10, **FEW)
def test_an_attack_stays_inside_to_the_last_bit_and_touches_nothing(name, data, precision, shape, n, threat):
    dtype = dtype_of(precision)
    net, x = data.draw(networks(shape, dtype)), data.draw(images(n, shape, threat, dtype))
    y, given = labels(data, net, x), data.draw(options(name, threat, n))
    own = given.get("bn") == "batch" and draws_at_random(net)
    with untouched(net, x, y, *filter(torch.is_tensor, given.values()), draws=not own), under(precision):
        x_adv = run(name, net, x, y, threat, **given)
    assert x_adv.dtype == dtype and x_adv.shape == x.shape and not x_adv.requires_grad and x_adv.isfinite().all()
    assert threat.contains(x_adv, x).all()
    assert x_adv.data_ptr() != x.data_ptr(), "what is done to the result would be done to the images"


JUDGES = {
    name: value
    for name, value in vars(at.measure).items()
    if inspect.isfunction(value) and value.__module__ == at.measure.__name__ and name[0] != "_"
}
JUDGES["evaluate"] = lambda net, x, y, threat: at.evaluate(net, (x, y), threat, protocol=PROTOCOL, progress=False)
JUDGES["autoattack"] = lambda net, x, y, threat: at.autoattack(net, x, y, threat, "fast", progress=False)
JUDGES["diagnose"] = lambda net, x, y, threat: at.diagnose(net, (x, y), threat, images=4, progress=False)
PROTOCOL = at.Protocol(steps=2, restarts=2)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "diagnose" else []) for name in JUDGES]
)
@given(data=st.data(), precision=PRECISIONS, shape=SHAPES, threat=threats())
@settings(max_examples=6, **FEW)
def test_who_judges_a_network_touches_nothing(name, data, precision, shape, threat):
    net, x = data.draw(networks(shape, dtype_of(precision))), data.draw(images(5, shape, threat, dtype_of(precision)))
    y = labels(data, net, x)
    with untouched(net, x, y), under(precision), warnings.catch_warnings():
        warnings.simplefilter("ignore", at.errors.AdvtrainWarning)  # AutoAttack's, of networks that are flat somewhere
        JUDGES[name](net, x, y, threat)


# -- more work, fewer survivors ----------------------------------------------------------------------------------------

MORE = {
    "restarts": [name for name in ATTACKS if "restarts" in parameters(name)],
    "steps": ["pgd", "fab", "r_fgsm_pgd"],  # of a fixed size, or none, and every iterate counts
    "queries": [name for name in ATTACKS if "queries" in parameters(name)],
}
TIED = ("transport", "adaptive-rvs")
"""Their images are transported together: without those that fell the others have another loss."""


@pytest.mark.parametrize(
    ("name", "what"), [(name, what) for what, names in MORE.items() for name in names if not name.startswith(TIED)]
)
@given(data=st.data(), shape=SHAPES, few=st.integers(1, 3), more=st.integers(1, 3), seed=SEEDS)
@settings(max_examples=10, **FEW)
def test_more_steps_restarts_or_queries_never_raise_robust_accuracy(name, what, data, shape, few, more, seed):
    """With a fixed step size, nested draws, and any misclassified iterate counting; and an image that fell stays so."""
    net, leave = data.draw(networks(shape, torch.float64)), {"bn", "keep", "step_size", "random_start", "target", what}
    x, y, threat = data.draw(close_calls(net, 24, shape))
    given = {**data.draw(options(name, threat, 24, leave)), "rng": seed}
    if "step_size" in parameters(name):
        given["step_size"] = data.draw(st.floats(0.05, 1.0)) * threat.eps
    stands = [answers(net, run(name, net, x, y, threat, **given, **{what: k})) == y for k in (few, few + more)]
    assert not (stands[1] & ~stands[0]).any()


@given(data=st.data(), shape=SHAPES, seed=SEEDS, size=st.floats(0.05, 1), batch=st.integers(1, 24))
@settings(max_examples=12, **FEW)
def test_an_evaluation_with_more_steps_or_restarts_counts_no_image_as_robust_that_fell(data, shape, seed, size, batch):
    net = data.draw(networks(shape, torch.float64))
    x, y, threat = data.draw(close_calls(net, 24, shape))
    steps, restarts = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))

    def verdicts(steps, restarts):
        protocol = at.Protocol(steps=steps, restarts=restarts, step_size=size * threat.eps)
        report = at.evaluate(net, (x, y), threat, protocol=protocol, batch_size=batch, seed=seed, progress=False)
        return report.row("pgd").verdicts

    base = verdicts(steps, restarts)
    assert not (verdicts(steps + data.draw(st.integers(1, 3)), restarts) & ~base).any()
    assert not (verdicts(steps, restarts + 1) & ~base).any()


# -- an image is attacked the same in any batch ------------------------------------------------------------------------

DETERMINISTIC = {name: {} for name in ATTACKS if "rng" not in parameters(name)}
DETERMINISTIC |= {"pgd": {"random_start": False, "restarts": 1}, "fab": {"restarts": 1}}


def rounding(threat):
    """How much an image may move with its batch.

    Sums in a convolution or a matrix product may be rounded otherwise in a batch of another size, by about 1e-16 here,
    which the steps enlarge. Under l2 such a rounding also decides whether a step that ends on the sphere is drawn a
    millionth of the radius inside. Another image in the batch would make far more of a difference.
    """
    return 1e-9 + (1e-4 * threat.eps if threat.norm == "l2" else 0)


@pytest.mark.parametrize("name", DETERMINISTIC)
@given(data=st.data(), shape=SHAPES, n=st.integers(1, 8), threat=threats())
@settings(max_examples=12, **FEW)
def test_an_attack_without_draws_depends_on_no_other_image_of_the_batch(name, data, shape, n, threat):
    net, order = data.draw(networks(shape, torch.float64)), torch.tensor(data.draw(st.permutations(range(n))))
    if data.draw(st.booleans()):
        x, y, threat = data.draw(close_calls(net, n, shape))
    else:
        x = data.draw(images(n, shape, threat, torch.float64))
        y = labels(data, net, x)
    given = data.draw(options(name, threat, n, {"bn", "random_start", "restarts", "target"})) | DETERMINISTIC[name]
    target = {"target": (y + 1) % CLASSES} if "target" in parameters(name) and data.draw(st.booleans()) else {}
    cut = data.draw(st.integers(1, n))

    def attacked(rows):
        return run(name, net, x[rows], y[rows], threat, **given, **{key: value[rows] for key, value in target.items()})

    whole = attacked(torch.arange(n))
    torch.testing.assert_close(attacked(order), whole[order], rtol=0, atol=rounding(threat))
    parts = torch.cat([attacked(rows) for rows in torch.arange(n).split(cut)])
    torch.testing.assert_close(parts, whole, rtol=0, atol=rounding(threat))


# -- the order of the images plays no part -----------------------------------------------------------------------------


@st.composite
def collections(draw, x):
    """Images as data come: levels of 8 bits or floats, and one of them may be there twice."""
    x, n = x.clone(), len(x)
    if draw(st.booleans()):
        x = (x * 255).round().to(torch.uint8)
        x[0, 0, 0, 0] = 1 if x.is_floating_point() else 255  # all of at most 1 would look like floats cut to integers
    if draw(st.booleans()):
        x[draw(st.integers(0, n - 1))] = x[0]
    return x


def watched(net, work):
    """What the work gives, and every batch that the network was asked about."""
    seen = []
    with net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().numpy().tobytes())):
        return work(), seen


def by_image(x, y, verdicts):
    """Each image with its label and its verdict; two that are alike may change places."""
    return sorted(zip((image.numpy().tobytes() for image in x), y.tolist(), verdicts.tolist(), strict=True))


@given(data=st.data(), precision=PRECISIONS, shape=SHAPES, n=st.integers(1, 24), batch=st.integers(1, 24), seed=SEEDS)
@settings(max_examples=15, **FEW)
def test_an_evaluation_of_shuffled_data_is_the_same(data, precision, shape, n, batch, seed):
    """Every verdict, those after random starts too; and the batch size changes none that has no random start."""
    net = data.draw(networks(shape, dtype_of(precision)))
    x, y, threat = data.draw(close_calls(net, n, shape, dtype_of(precision)))
    x = data.draw(collections(x))
    order = torch.tensor(data.draw(st.permutations(range(n))))
    options = {"protocol": PROTOCOL, "seed": seed, "progress": False}
    with untouched(net, x, y), under(precision):
        report, seen = watched(net, lambda: at.evaluate(net, (x, y), threat, batch_size=batch, **options))
        again, others = watched(
            net, lambda: at.evaluate(net, (x[order], y[order]), threat, batch_size=batch, **options)
        )
        other = at.evaluate(net, (x, y), threat, batch_size=data.draw(st.integers(1, 16)), **options)
    assert again == report and seen == others, "the network was asked of other images"
    for row, shuffled in zip(report.rows, again.rows, strict=True):
        assert by_image(x, y, row.verdicts) == by_image(x[order], y[order], shuffled.verdicts)
    assert precision != "float64" or other.rows[:2] == report.rows[:2]  # up to rounding, which may decide a tie


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_autoattack_on_shuffled_data_is_the_same(norm):
    """One network for each norm: a hundred steps of every attack leave no time for more."""
    with global_draws(1):
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, CLASSES)).double()
    threat, x = at.Threat(norm, 0.1), at.Rng(0).uniform(torch.empty(14, 1, 5, 5, dtype=torch.float64), 0, 1)
    y, order = answers(net, x), at.Rng(1).permutation(14)
    options = {"batch_size": 5, "seed": 3, "examples": True, "progress": False}
    report = at.autoattack(net, x, y, threat, "fast", **options)
    again = at.autoattack(net, x[order], y[order], threat, "fast", **options)
    assert again.rows == report.rows and torch.equal(again.broken_by, report.broken_by[order])
    assert 0 < report.robust_accuracy < 1 and torch.equal(again.x_adv, report.x_adv[order])


def test_a_curve_of_shuffled_data_is_the_same():
    pytest.importorskip("matplotlib")
    run = at.load_results("digits").run("fast-at")
    test, order = run.data.test[:40], at.Rng(0).permutation(40)
    drawn = [at.plot.eps_curve(run.model, part, run.threat, eps=[0.1], steps=2) for part in (test, test[order])]
    first, second = (figure.numbers["rows"]["pgd"][0].verdicts for figure in drawn)
    assert torch.equal(second, first[order]) and 0 < first.sum() < 40


@pytest.mark.slow
def test_a_diagnosis_of_shuffled_data_is_the_same():
    run, other = (at.load_results("digits").run(name) for name in ("fast-at", "pgd"))
    test, order = run.data.test[:40], at.Rng(0).permutation(40)
    options = {"images": 16, "surrogate": other.model, "progress": False}
    found, again = (at.diagnose(run.model, part, run.threat, **options) for part in (test, test[order]))
    assert found.attacks == again.attacks and str(found) == str(again)


@given(st.integers(0, 200), st.integers(1, 1437), st.sampled_from(["train", "val", "test"]), st.booleans())
@settings(max_examples=10, **FEW)
def test_the_images_of_a_data_set_are_judged_in_their_own_order(seed, n, part, floats):
    """So results that were recorded before images were put in order are made again with the same draws."""
    split = getattr(at.load_data("digits", seed=seed), part)[:n]
    if floats:
        split = at.data.Split(split.images(), split.y, split.salt)
    assert order_of(as_split(split)).tolist() == list(range(len(split)))
    shuffled = split[at.Rng(seed).permutation(len(split))]
    assert torch.equal(shuffled[order_of(shuffled)].x, split.x)


# -- what is written and read again ------------------------------------------------------------------------------------


@st.composite
def built(draw):
    """A network of the package by any of its options, with random weights and statistics, in either precision."""
    name = draw(st.sampled_from(sorted(at.models.MODELS)))
    channels, side = draw(st.sampled_from([1, 3])), draw(st.sampled_from([8, 16]))
    options = {"small-cnn": {"width": 3, "batch_norm": draw(st.booleans())}, "wideresnet": {"depth": 10, "width": 1},
        "lenet+": {}}.get(name, {"width": 2})  # fmt: skip
    options["activation"] = draw(st.sampled_from(sorted(at.models.ACTIVATIONS)))
    numbers = [0.1 * (i + 1) for i in range(channels)], [0.2 + 0.1 * i for i in range(channels)]
    options["normalize"] = draw(st.sampled_from([None, "image", numbers]))
    net = at.build_model(name, shape=(channels, side, side), num_classes=draw(st.integers(2, 7)), **options)
    net = net.to(draw(st.sampled_from([torch.float32, torch.float64])))
    with global_draws(draw(SEEDS)), torch.no_grad():
        for value in net.parameters():
            value.add_(torch.randn_like(value), alpha=0.05)
        for key, value in net.named_buffers():
            if "running" in key:
                value.uniform_(0.5, 2.0)
    return net


def outputs(net):
    like = next(net.parameters())
    x = at.Rng(0).uniform(torch.empty(3, *net.spec["shape"], dtype=like.dtype), 0, 1)
    with evaluating(net):
        return net(x)


@given(
    net=built(), threat=threats(), defense=st.sampled_from(sorted(at.defenses.DEFENSES)), numbers=st.lists(st.floats())
)
@settings(max_examples=10, **FEW)
def test_a_run_that_is_saved_and_loaded_answers_the_same_to_the_last_bit(net, threat, defense, numbers):
    kind = at.defenses.DEFENSES[defense]
    defense = kind(replace(threat, norm=kind.norms[0], eps=min(threat.eps, threat.high - threat.low)))
    finite = [value for value in numbers if abs(value) < 1e300]
    history = [{"epoch": epoch, "loss": value} for epoch, value in enumerate(finite, 1)]
    run = at.Run(net, defense, None, {"seed": 0}, history, ["a note"], 1, "finished")
    with tempfile.TemporaryDirectory() as folder:
        with untouched(net):
            run.save(f"{folder}/run")
        again = at.load_run(f"{folder}/run")
    assert torch.equal(outputs(again.model), outputs(net)) and again.model.spec == net.spec
    assert all(
        torch.equal(a, b) for a, b in zip(again.model.state_dict().values(), net.state_dict().values(), strict=True)
    )
    assert again.defense == run.defense and again.history == history and again.notes == run.notes


@given(net=built().filter(lambda net: net.spec["name"] in ("small-cnn", "lenet+")))
@settings(max_examples=3, **FEW)
def test_an_exported_network_answers_the_same(net):
    """By its weights to the last bit; by its program, which adds up in another order, to the last few."""
    with tempfile.TemporaryDirectory() as folder:
        with untouched(net):
            at.export(net, f"{folder}/out")
        about = json.loads(Path(folder, "out", "model.json").read_text(encoding="utf-8"))
        again = at.build_model(**about["model"]).to(getattr(torch, about["input"]["dtype"]))
        again = at.load_model(again, weights=f"{folder}/out/model.safetensors")
        program = torch.export.load(f"{folder}/out/model.pt2").module()
    like = outputs(net)
    x = at.Rng(0).uniform(torch.empty(3, *net.spec["shape"], dtype=like.dtype), 0, 1)
    with evaluating(again):
        assert torch.equal(again(x), like)
    with torch.no_grad():
        torch.testing.assert_close(program(x), like, rtol=0, atol=1e-12 if like.dtype == torch.float64 else 1e-5)


@given(data=st.data(), threat=threats(), total=st.integers(1, 10**6), warned=st.lists(st.text()))
@settings(max_examples=10, **FEW)
def test_a_report_that_is_written_and_read_says_the_same(data, threat, total, warned):
    names = data.draw(st.lists(st.sampled_from(["clean", "fgsm", "pgd", "autoattack"]), unique=True, min_size=1))
    rows = [Row(name, data.draw(st.integers(0, total)), total, data.draw(st.text())) for name in names]
    report = at.Report(threat, rows, warnings=warned)
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder, "report.json"), report.to_dict())
        again = at.Report.from_dict(read_json(Path(folder, "report.json")))
    assert again == report and str(again) == str(report) and again.threat == threat


@given(
    seed=SEEDS, n=st.integers(5, 30), shape=st.tuples(st.sampled_from([1, 3]), SIDES, SIDES), last=st.booleans(),
    dtype=st.sampled_from([np.uint8, np.float32, np.float64]), own=st.booleans(),
)  # fmt: skip
@settings(max_examples=12, **FEW)
def test_images_come_back_from_a_file_as_they_are(seed, n, shape, last, dtype, own):
    """Every pixel and label of an .npz, whatever its layout; and once more from what is written of the result."""
    draw = np.random.default_rng(seed)
    x = (
        draw.integers(0, 256, (n, *shape)).astype(np.uint8)
        if dtype == np.uint8
        else draw.random((n, *shape)).astype(dtype)
    )
    y = draw.integers(0, CLASSES, n)
    arrays = {
        "x_train": x[: n // 2 + 1],
        "y_train": y[: n // 2 + 1],
        "x_test": x[n // 2 + 1 :],
        "y_test": y[n // 2 + 1 :],
    }
    if not own:
        arrays = {"x_train": x, "y_train": y}
    arrays["classes"] = np.array([f"class {number}" for number in range(CLASSES)])  # some may have no image
    if last:
        arrays = {key: value.transpose(0, 2, 3, 1) if key[0] == "x" else value for key, value in arrays.items()}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/own.npz", **arrays)
        data = at.load_data(f"{folder}/own.npz", val=2, seed=seed)
        parts = {"train": as_split((torch.cat([data.train.x, data.val.x]), torch.cat([data.train.y, data.val.y])))}
        parts["test"] = data.test
        for kind, part in parts.items():
            arrays[f"x_{kind}"], arrays[f"y_{kind}"] = part.x.numpy(), part.y.numpy()
        np.savez(f"{folder}/again.npz", **arrays)
        again = at.load_data(f"{folder}/again.npz", val=2, seed=seed)
    assert same(data, again)
    kept = torch.cat([part.x for part in (data.train, data.val, data.test)])
    labels = torch.cat([part.y for part in (data.train, data.val, data.test)])
    given = x if dtype != np.float64 or kept.dtype == torch.float64 else x.astype(np.float32)
    assert by_image(kept, labels, labels) == by_image(torch.from_numpy(given), torch.from_numpy(y), torch.from_numpy(y))
