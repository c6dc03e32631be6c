"""Two processes train as one: the gradients of `TrainStep` under `DistributedDataParallel`, for every defense."""

import functools

import pytest
import torch
import torch.distributed as dist
from pairs import found_by_two
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import advtrain as at
from advtrain.parallel import TrainStep, average_buffers, average_gradients, share

THREAT = at.Threat("linf", 8 / 255)
SHARES = (slice(0, 4), slice(4, 6))  # uneven on purpose: the mean of two means would be wrong
LOSSES = {
    # Is the loss a mean over images, each of which contributes what it would on its own (without batch normalisation)?
    "standard": True,
    "fgsm": True,
    "fast-at": True,
    "pgd": True,
    "n-fgsm": True,
    "trades": True,  # the divergence is a mean over images, too
    "fast-bat": True,  # the implicit term is a sum over images, divided by their number
    "free": True,  # the perturbation that is kept belongs to the row, and each process keeps those of its rows
    "sat-r2": True,  # a mean over all images, unlike sat-r1
    "gradalign": True,  # a mean of cosines, as long as no gradient is zero
    "sat-r1": False,  # regularises the last image of each share
    "sat-r3": False,  # a hinge on the batch's mean losses opens for a share as a whole
    "nuat": False,  # the nuclear norm of a share's logits
    "rvs": False,  # transport between the images of a share
}
NAMES = list(at.defenses.DEFENSES)


def test_every_defense_says_whether_its_loss_is_a_mean_over_images():
    assert LOSSES.keys() == set(NAMES), f"LOSSES, at the top of this file, differs in {LOSSES.keys() ^ set(NAMES)}"


class Rows(at.Rng):
    """The draws of the whole batch, of which a process is served its rows."""

    def __init__(self, rng, rows):
        super().__init__(*rng.key)
        self.rng, self.rows = rng, rows

    def child(self, *key):
        return Rows(self.rng.child(*key), self.rows)

    def _whole(self, like):
        return like.new_empty(6, *like.shape[1:])

    def uniform(self, like, low, high):
        return self.rng.uniform(self._whole(like), low, high)[self.rows]

    def normal(self, like):
        return self.rng.normal(self._whole(like))[self.rows]


def network(batch_norm):
    options = {"shape": (1, 8, 8), "num_classes": 4, "width": 4, "normalize": ([0.3], [0.4])}
    return at.build_model("small-cnn", batch_norm=batch_norm, **options).double().train()


def batch_of(step, rows=None):
    """The whole batch, or the rows of one process with the same draws."""
    x = at.Rng(step, "x").uniform(torch.empty(6, 1, 8, 8, dtype=torch.float64), 0.02, 0.98)
    y, index, draws = at.Rng(step, "y").integers(0, 4, (6,)), torch.arange(6), at.Rng(step, "draws")
    if rows is None:
        return at.Batch(x, y, index, draws)
    return at.Batch(x[rows], y[rows], index[rows], Rows(draws, rows))


def ready(name, model):
    defense = at.defenses.DEFENSES[name](THREAT)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        defense.setup(model, (1, 8, 8), torch.device("cpu"))
    return defense


def train(model, defense, step, rows, steps=2):
    """Gradient descent; returns the loss and the gradients of each step. A second player plays from the second on."""
    found = []
    for number in range(steps):
        batch = batch_of(number, rows)
        if number:
            defense.adversary_step(model, batch, 0.5)
        model.zero_grad(set_to_none=True)
        try:
            loss, *_ = step(batch, 0.5)
            loss.backward()
        finally:
            defense.after_backward(model)
        found.append([loss.detach().clone(), *(parameter.grad.clone() for parameter in model.parameters())])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.01 * parameter.grad
    return found


def shared_state(defense):
    """The tensors of what a defense remembers; Free's perturbations differ by process, being those of its images."""
    return {} if defense.name == "free" else defense.state_dict()


def worker(rank, folder):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    found = {}
    for name in NAMES:
        for batch_norm in (False, True):
            model = network(batch_norm)
            defense = ready(name, model)
            step = DistributedDataParallel(TrainStep(model, defense), broadcast_buffers=False)
            found[name, batch_norm] = {
                "steps": train(model, defense, step, SHARES[rank]),
                "parameters": [parameter.detach() for parameter in model.parameters()],
                "state": shared_state(defense),
            }
        own = dict(model.named_buffers())
        found[name, "buffers"] = {key: value.clone() for key, value in own.items()}
        average_buffers(model)
        found[name, "averaged"] = {key: value.clone() for key, value in model.named_buffers()}
    n = (4, 2)[rank]
    gradients = average_gradients([torch.full((2,), float(rank)), torch.full((), 10.0 * rank)], n)
    found["average"] = gradients, share(n, torch.zeros(()))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What the two processes found. One pair of processes for all tests: starting it is what takes the time."""
    folder = tmp_path_factory.mktemp("parallel")
    return found_by_two(worker, folder, 120)


def close(ours, theirs):
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", [name for name in NAMES if LOSSES.get(name)])
def test_two_processes_give_the_gradients_of_one_with_the_whole_batch(name, both):
    model = network(batch_norm=False)
    defense = ready(name, model)
    alone = train(model, defense, TrainStep(model, defense), None)
    for number, expected in enumerate(alone):
        first, second = (found[name, False]["steps"][number] for found in both)
        assert close(first[1:], expected[1:]) and close(second[1:], expected[1:])
        assert torch.allclose((first[0] + second[0]) / 2, expected[0])


@functools.cache
def own_gradients(name, batch_norm):
    """The first step's gradients of each share, computed one after the other in this process."""
    found = []
    for rows in SHARES:
        model = network(batch_norm)
        defense = ready(name, model)
        found.append(train(model, defense, TrainStep(model, defense), rows, steps=1)[0])
    return found


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch-norm"])
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_give_the_mean_over_images_of_their_own_gradients(name, batch_norm, both):
    first, second = own_gradients(name, batch_norm)
    expected = [(4 * a + 2 * b) / 6 for a, b in zip(first, second, strict=True)]
    for found in both:
        assert close(found[name, batch_norm]["steps"][0][1:], expected[1:])


@pytest.mark.parametrize("name", NAMES)
def test_the_processes_keep_step(name, both):
    """Equal weights and equal second players, to the last bit, however different their images."""
    for batch_norm in (False, True):
        first, second = (found[name, batch_norm] for found in both)
        assert all(torch.equal(a, b) for a, b in zip(first["parameters"], second["parameters"], strict=True))
        assert_equal(first["state"], second["state"])


def assert_equal(ours, theirs):
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_equal(ours[key], theirs[key])
    elif isinstance(ours, (list, tuple)):
        for a, b in zip(ours, theirs, strict=True):
            assert_equal(a, b)
    else:
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


@pytest.mark.parametrize("name", NAMES)
def test_running_statistics_are_averaged_and_nothing_else_moves(name, both):
    first, second = both
    moved = 0
    for key in first[name, "buffers"]:
        a, b = (found[name, "buffers"][key] for found in both)
        if "running" in key:
            assert not torch.equal(a, b)
            a = b = (a + b) / 2
            moved += 1
        assert torch.allclose(first[name, "averaged"][key], a, rtol=1e-12)
        assert torch.equal(first[name, "averaged"][key], second[name, "averaged"][key])
    assert moved == 6


def test_means_over_processes_count_images(both):
    for rank, found in enumerate(both):
        gradients, weight = found["average"]
        assert gradients[0].shape == (2,) and gradients[1].shape == ()
        assert torch.allclose(gradients[0], torch.tensor(1 / 3)) and torch.allclose(gradients[1], torch.tensor(10 / 3))
        assert torch.allclose(weight, torch.tensor((4 / 3, 2 / 3)[rank]))


def test_one_process_needs_no_process_group():
    model = network(batch_norm=True)
    defense = ready("fgsm", model)
    gradients, before = [torch.ones(3)], {key: value.clone() for key, value in model.named_buffers()}
    assert average_gradients(gradients, 4)[0] is gradients[0] and share(4, gradients[0]) == 1
    average_buffers(model)
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
    whole = TrainStep(model, defense)(batch_of(0), 0.5)
    assert isinstance(whole, at.Step) and whole.loss == defense(network(batch_norm=True), batch_of(0), 0.5).loss


def test_nothing_of_a_defense_is_a_parameter_of_the_step():
    model = network(batch_norm=False)
    step = TrainStep(model, ready(NAMES[-1], model))
    assert [id(parameter) for parameter in step.parameters()] == [id(parameter) for parameter in model.parameters()]
    assert isinstance(step, nn.Module) and not [key for key in step.state_dict() if not key.startswith("model.")]
