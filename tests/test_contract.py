"""What the training loop relies on, of every registered defense: a new one is tested here once `MOVES` lists it."""

import contextlib
import copy
import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import PRECISIONS, SEEDS, SHAPES, draws_at_random, dtype_of, images, networks, threats, untouched
from test_budget import REFUSE_DROPOUT
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

import advtrain as at

NAMES = list(at.defenses.DEFENSES)
LINF, L2 = at.Threat("linf", 8 / 255), at.Threat("l2", 0.5)
CPU = torch.device("cpu")
CASES = [
    pytest.param(name, threat, id=f"{name}-{threat.norm}")
    for name in NAMES
    for threat in (LINF, L2)
    if threat.norm in at.defenses.DEFENSES[name].norms
]
DRAWS_NOTHING = {"standard", "fgsm", "sat-r1", "free"}

# How often the running statistics of batch normalisation move in one step: with the authors' setting, and where attacks
# leave them alone, which are the passes that are trained on. (Where the authors' setting is bn="eval", they are equal.)
MOVES = {
    "standard": (1, 1),
    "fgsm": (2, 1),
    "fast-at": (2, 1),
    "pgd": (11, 1),
    "n-fgsm": (2, 1),
    "fast-bat": (4, 1),
    "trades": (3, 3),
    "sat-r1": (1, 1),
    "sat-r2": (1, 1),
    "sat-r3": (1, 1),
    "gradalign": (3, 1),
    "free": (1, 1),
    "nuat": (3, 3),
    "rvs": (4, 2),  # clean and synthesized images pass separately, in both players' moves
}


def network(shape=(1, 8, 8), dtype=torch.float32, batch_norm=True, device=CPU):
    """Normalisation inside, and a smooth activation, so that second-order methods have something to differentiate."""
    normalize = ([0.3] * shape[0], [0.4] * shape[0])
    options = {"shape": shape, "num_classes": 4, "width": 4, "batch_norm": batch_norm, "normalize": normalize}
    return at.build_model("small-cnn", **options).to(device, dtype).train()


def batch_of(n=4, shape=(1, 8, 8), dtype=torch.float32, seed=0, device=CPU):
    """Images with many pixels at the very edge of the box, where projections go wrong."""
    x = at.Rng(seed, "x").uniform(torch.empty(n, *shape, dtype=dtype), -0.2, 1.2).clamp(0, 1)
    y = at.Rng(seed, "y").integers(0, 4, (n,))
    return at.Batch(x.to(device), y.to(device), torch.arange(n, device=device), at.Rng(seed, "draws"))


def ready(name, model, threat=LINF, shape=(1, 8, 8), device=CPU, **options):
    """A defense of that name, set up as `fit` does it: `setup` may draw from the global state, which has a seed."""
    defense = at.defenses.DEFENSES[name](threat, **options)
    prepare(defense, model, shape, device)
    return defense


def prepare(defense, model, shape=(1, 8, 8), device=CPU):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        defense.setup(model, shape, device)


def loss_of(defense, model, batch, progress=0.5):
    """One step as the loop takes it, up to the loss."""
    defense.adversary_step(model, batch, progress)
    return defense(model, batch, progress)


def trained_on(model, defense, batch):
    """The step, and among the images that the model saw those that it was trained on, to the last bit.

    `x + delta` alone would not do: the sum is rounded once more, which can leave the ball by one unit.
    """
    seen = []
    hook = model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    with contextlib.ExitStack() as stack:
        stack.callback(hook.remove)
        step = loss_of(defense, model, batch)
    n, wanted = len(batch.x), batch.x + step.delta
    parts = [part for images in seen for part in images.split(n) if len(part) == n]
    nearest = min(parts, key=lambda part: (part - wanted).abs().max())
    assert torch.allclose(nearest, wanted, atol=1e-6), "step.delta is not what the model was trained on"
    return step, nearest


def moves(model):
    """How often the running statistics of the model's layers have moved."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    counts = {int(layer.num_batches_tracked) for layer in layers}
    assert len(counts) == 1, "some layers saw other passes than others"
    return counts.pop()


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "threat"), CASES)
def test_the_loss_is_a_scalar_that_carries_a_finite_gradient_for_every_parameter(name, threat):
    """And `backward` gives what `autograd.grad` gives: no part of the gradient is left in `.grad` on the way."""
    batch, found = batch_of(), []
    for way in ("grad", "backward"):
        model = network()
        step = loss_of(ready(name, model, threat), model, batch)
        assert step.loss.shape == () and step.loss.isfinite() and step.loss.requires_grad
        assert step.logits.shape == (4, 4) and step.delta.shape == batch.x.shape and not step.delta.requires_grad
        assert all(not value.requires_grad and value.numel() == 1 for value in step.logs.values())
        if way == "grad":
            found.append(torch.autograd.grad(step.loss, list(model.parameters())))
        else:
            step.loss.backward()
            found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(gradient.isfinite().all() for gradient in found[0])
    assert sum(float(gradient.abs().sum()) for gradient in found[0]) > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_same_batch_gives_the_same_step_and_another_seed_another(name):
    """All draws are the batch's: the global random state neither matters nor moves."""
    losses = []
    for seed in (0, 0, 1):
        model, batch = network(dtype=torch.float64), batch_of(dtype=torch.float64)
        batch.draws = at.Rng(seed)
        defense = ready(name, model)
        with torch.random.fork_rng():
            torch.manual_seed(100 + len(losses))
            before = torch.random.get_rng_state()
            losses.append(loss_of(defense, model, batch).loss.item())
            assert torch.equal(torch.random.get_rng_state(), before)
    assert losses[0] == losses[1]
    assert (losses[0] == losses[2]) == (name in DRAWS_NOTHING)


# -- what is left as it was --------------------------------------------------------------------------------------------


OPTIONS = {
    "bn": st.sampled_from(["train", "eval", "batch"]), "steps": st.integers(1, 3), "rel_step": st.floats(0.05, 4),
    "rel_noise": st.floats(0.1, 1), "rel_clip": st.none() | st.floats(0.1, 3), "start": st.floats(1e-4, 0.5),
}  # fmt: skip
"""Values for a defense's options, by their names, whichever defense has them."""


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data(), precision=PRECISIONS, shape=SHAPES, n=st.integers(1, 4))
@settings(max_examples=16, deadline=None)
def test_a_step_stays_within_reach_to_the_last_bit_and_touches_nothing_of_the_caller(name, data, precision, shape, n):
    """Of any network, with frozen layers and parameters and foreign gradients, in any ball and box."""
    kind = at.defenses.DEFENSES[name]
    threat, dtype = data.draw(threats(kind.norms)), dtype_of(precision)
    model = data.draw(networks(shape, dtype, dropout=name not in REFUSE_DROPOUT))
    last = list(model.parameters())[-1].requires_grad_(True)
    x = data.draw(images(n, shape, threat, dtype))
    batch = at.Batch(x, batch_of(n).y, torch.arange(n), at.Rng(data.draw(SEEDS)))
    known = {field.name for field in dataclasses.fields(kind)} & OPTIONS.keys()
    defense = kind(threat, **{key: data.draw(OPTIONS[key]) for key in sorted(known) if data.draw(st.booleans())})
    prepare(defense, model, shape)
    frozen = {key: value.clone() for key, value in model.named_buffers() if not owner(model, key).training}

    with untouched(model, batch.x, batch.y, batch.index, draws=not draws_at_random(model), statistics=False):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
            step, x_adv = trained_on(model, defense, batch)
    assert x_adv.dtype == step.delta.dtype == step.loss.dtype == dtype and step.loss.isfinite()
    if defense.inside:
        assert defense.reach == threat.eps and threat.contains(x_adv, batch.x).all()
    else:  # declared to leave the ball: nothing rounds towards x there
        order, rounding = (float("inf"), 1) if threat.norm == "linf" else (2, x[0].numel() ** 0.5)
        size = torch.linalg.vector_norm((x_adv - batch.x).double().flatten(1), order, dim=1)
        assert kind(threat).reach > threat.eps
        assert size.max() <= defense.reach * (1 + 1e-6) + rounding * torch.finfo(dtype).eps
        assert x_adv.min() >= threat.low and x_adv.max() <= threat.high

    before = {key: value.clone() for key, value in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    for parameter in model.parameters():
        parameter.grad = None
    step.loss.backward()
    defense.after_backward(model)
    assert last.grad is not None and last.grad.isfinite().all()
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)
    assert all(torch.equal(value, before[key]) for key, value in model.named_parameters())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, frozen[key]) for key, value in model.named_buffers() if key in frozen)


@pytest.mark.parametrize(("name", "threat"), CASES)
def test_steps_that_follow_on_others_stay_inside_as_well(name, threat):
    """What a defense remembers of one image, as Free does, may be too far from the next by a rounding."""
    threat, model = dataclasses.replace(threat, eps=0.1), network()
    defense = ready(name, model, threat)
    for number in range(4):
        batch = batch_of(8, seed=number)
        batch.x = (batch.x * 255).round() / 255  # levels of 8 bits: random floats are on a grid, and hardly rounded
        step, x_adv = trained_on(model, defense, batch)
        step.loss.backward()
        defense.after_backward(model)
        assert not defense.inside or threat.contains(x_adv, batch.x).all()


def owner(model, key):
    return model.get_submodule(key.rpartition(".")[0])


@pytest.mark.parametrize("name", NAMES)
def test_running_statistics_move_as_often_as_the_method_says(name):
    default = at.defenses.DEFENSES[name](LINF).bn
    counts = {}
    for bn in ("train", "eval", "batch"):
        model = network()
        loss_of(ready(name, model, bn=bn), model, batch_of())
        counts[bn] = moves(model)
    assert counts["train"] >= counts["eval"] == counts["batch"] >= 1
    found = counts[default], counts["eval"]
    assert found == MOVES.get(name), f'they move as "{name}": {found}; if the authors\' do, say so in MOVES'


def test_every_defense_is_listed_here_with_what_is_particular_to_it():
    assert MOVES.keys() == set(NAMES), f"MOVES, at the top of this file, differs in {MOVES.keys() ^ set(NAMES)}"
    assert set(NAMES) > DRAWS_NOTHING


@pytest.mark.parametrize("name", NAMES)
def test_a_defense_is_a_dataclass_with_a_name_and_a_first_line_of_its_own(name):
    """Without these it would train, and be listed, with the options or the text of its base."""
    kind = at.defenses.DEFENSES[name]
    own = vars(kind)
    assert "__dataclass_fields__" in own, "it lacks @dataclass: its fields are no options"
    assert name and own.get("name") == name, "it lacks `name: ClassVar[str]`"
    fields = {field.name for field in dataclasses.fields(kind)}
    assert "name" not in fields, "`name` is to be a ClassVar[str], or it becomes an option"
    assert not kind.__doc__.startswith(f"{kind.__name__}("), "it lacks a docstring: dataclass wrote this one"


def test_one_line_registers_a_defense_and_no_two_share_a_name():
    public = {name for name, value in vars(at.defenses).items() if isinstance(value, type)} & set(at.defenses.__all__)
    registered = [kind.__name__ for kind in at.defenses.DEFENSES.values()]
    assert public - {"Defense"} == set(registered), "a name that is taken, or a class that is not in __all__"


# -- the images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_norm_that_the_method_is_not_defined_for_is_refused(name):
    for threat in (LINF, L2):
        if threat.norm not in at.defenses.DEFENSES[name].norms:
            with pytest.raises(at.errors.ArgumentError, match=f"threat.norm='{threat.norm}'"):
                at.defenses.DEFENSES[name](threat)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64)], ids=str)
def test_every_size_of_image_and_a_batch_of_one_are_served(name, shape):
    for n, batch_norm in ((2, True), (1, False), (1, True)):
        model = network(shape, batch_norm=batch_norm)
        step = loss_of(ready(name, model, shape=shape), model, batch_of(n, shape))
        assert step.loss.isfinite() and step.logits.shape == (n, 4) and step.delta.shape == (n, *shape)
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(step.loss, list(model.parameters())))


@pytest.mark.parametrize("name", NAMES)
def test_a_last_batch_may_be_smaller_and_the_next_one_full_again(name):
    model = network()
    defense = ready(name, model)
    for number, n in enumerate((4, 4, 1, 3, 4)):
        step = loss_of(defense, model, batch_of(n, seed=number))
        step.loss.backward()
        defense.after_backward(model)
        assert step.loss.isfinite() and len(step.logits) == len(step.delta) == n


@pytest.mark.parametrize(("name", "threat"), CASES)
def test_under_bfloat16_the_loss_and_the_images_are_float32(name, threat):
    model, batch = network(), batch_of()
    defense = ready(name, model, threat)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        step, x_adv = trained_on(model, defense, batch)
    assert step.loss.dtype == x_adv.dtype == step.delta.dtype == torch.float32
    assert not defense.inside or threat.contains(x_adv, batch.x).all()
    step.loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


# -- what survives -----------------------------------------------------------------------------------------------------


def train(defense, model, numbers):
    """A few steps of plain gradient descent; returns the last loss and gradients."""
    for number in numbers:
        model.zero_grad(set_to_none=True)
        step = loss_of(defense, model, batch_of(seed=number), progress=0.1 * number)
        step.loss.backward()
        defense.after_backward(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.01 * parameter.grad
    return [step.loss.detach(), *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_after_a_resume_training_goes_on_as_if_nothing_had_happened(name, steps, tmp_path):
    model = network()
    defense = ready(name, model)
    if steps:
        train(defense, model, range(steps))
    twin, path = copy.deepcopy(model), tmp_path / "state.pt"
    torch.save(defense.state_dict(), path)
    went_on = train(defense, model, (7, 8))
    resumed = at.defenses.from_config(json.loads(json.dumps(defense.config)))
    resumed.setup(twin, (1, 8, 8), CPU)  # with another global seed: the state overrules it
    resumed.load_state_dict(torch.load(path, weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(went_on, train(resumed, twin, (7, 8)), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_setup_begins_anew(name):
    """One defense object may train one model after the other."""
    model = network()
    start, defense = copy.deepcopy(model), ready(name, model)
    first = train(defense, model, (0, 1, 2))
    again = copy.deepcopy(start)
    prepare(defense, again)
    assert all(torch.equal(a, b) for a, b in zip(first, train(defense, again, (0, 1, 2)), strict=True))


@pytest.mark.parametrize(("name", "threat"), CASES)
def test_a_defense_goes_through_json_and_shows_all_that_it_is(name, threat):
    model = network()
    used = ready(name, model, threat, bn="batch")
    train(used, model, (0, 1))  # what it has remembered is no part of its configuration
    assert at.defenses.from_config(json.loads(json.dumps(used.config))) == used
    shown = repr(used)
    assert shown.startswith(f"{type(used).__name__}(") and len(shown) < 400
    assert all(f"{field.name}={getattr(used, field.name)!r}" in shown for field in dataclasses.fields(used))
    assert at.defenses.DEFENSES[name](threat) != used


class NoQuestions(TorchDispatchMode):
    """Refuses what would make a GPU stop and wait for its host: reading a number, shapes that depend on values."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "unique", "_unique2")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        assert name not in self.WAITING and not by_mask, f"{name} makes the host wait"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "threat"), CASES)
def test_a_step_asks_the_device_for_no_number(name, threat):
    model, batch = network(), batch_of()
    defense = ready(name, model, threat)
    train(defense, model, (0, 1))  # steps that follow on others are as free of questions as the first
    with NoQuestions():
        loss_of(defense, model, batch).loss.backward()
        defense.after_backward(model)
        with pytest.raises(AssertionError, match="makes the host wait"):
            batch.x.sum().item()


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "threat"), CASES)
def test_a_gpu_serves_as_well(name, threat, tmp_path):
    device = torch.device("cuda")
    for shape, bf16 in (((1, 8, 8), False), ((3, 32, 32), True)):
        model, batch = network(shape, device=device), batch_of(8, shape, device=device)
        defense = ready(name, model, threat, shape, device)
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16, cache_enabled=False):
            step, x_adv = trained_on(model, defense, batch)
        step.loss.backward()
        defense.after_backward(model)
        assert step.loss.dtype == x_adv.dtype == torch.float32 and x_adv.device.type == "cuda"
        assert step.loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())
        assert not defense.inside or threat.contains(x_adv, batch.x).all()
        torch.save(defense.state_dict(), tmp_path / "state.pt")
        other = ready(name, model, threat, shape, device)
        other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))  # map_location is the caller's
        losses = [loss_of(one, copy.deepcopy(model), batch).loss for one in (defense, other)]
        assert torch.allclose(*losses, rtol=1e-3)
