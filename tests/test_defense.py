"""The protocol's own parts: numbers from NumPy, unused parameters, states of another training, a layer used twice."""

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import advtrain as at
from advtrain.defense import carry
from advtrain.features import logits_and_features
from advtrain.modes import noting_statistics

THREAT = at.Threat("linf", 8 / 255)


class Shared(nn.Module):
    """One normalisation used twice in a pass, a layer that is never used, and features of its own."""

    def __init__(self, momentum=0.1):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1, momentum=momentum)
        self.head, self.aux = nn.Linear(64, 4), nn.Linear(2, 2)

    def forward(self, x, return_features=False):
        x = self.bn(self.conv(self.bn(x))).tanh().flatten(1)
        return (self.head(x), 3 * x) if return_features else self.head(x)


def batch_of(n=6):
    x = at.Rng(0).uniform(torch.empty(n, 1, 8, 8, dtype=torch.float64), 0, 1)
    return at.Batch(x, torch.arange(n) % 4)


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
def test_a_normalisation_used_twice_in_a_pass_moves_again_as_in_a_second_pass(momentum):
    torch.manual_seed(0)
    once, twice = Shared(momentum).double(), Shared(momentum).double()
    twice.load_state_dict(once.state_dict())
    x, other = batch_of().x, batch_of().x.flip(0) / 2
    for net in (once, twice):
        net(other)
    with noting_statistics(once) as update:
        once(x)
    once(other), update.again()
    twice(x), twice(other), twice(x)
    for ours, theirs in zip(once.buffers(), twice.buffers(), strict=True):
        assert torch.allclose(ours.double(), theirs.double(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["fast-bat", "trades", "nuat", "gradalign"])
def test_normalisation_that_never_moves_is_no_obstacle(name):
    net = Shared(momentum=0.0).double()
    code = {"code": "fast-bat"} if name == "gradalign" else {}
    assert torch.isfinite(at.defenses.DEFENSES[name](THREAT, **code)(net, batch_of(), 0.5).loss)


@pytest.mark.parametrize("implicit", [True, False])
def test_a_parameter_that_the_loss_does_not_use_gets_no_gradient(implicit):
    """A gradient of zero would let weight decay shrink it, with the implicit term and not without."""
    net = Shared().double()
    at.defenses.FastBAT(THREAT, implicit=implicit)(net, batch_of(), 0.0).loss.backward()
    assert net.aux.weight.grad is None and net.head.weight.grad.any()


def test_a_carried_gradient_is_handed_on_and_scaled():
    w = torch.ones(2, requires_grad=True)
    (3 * carry(torch.tensor(5.0), [w], [torch.tensor([1.0, 2.0])])).backward()
    assert w.grad.tolist() == [3.0, 6.0]


def test_numbers_of_numpy_become_python_s():
    made = at.defenses.FastBAT(THREAT, lam=numpy.float32(3), steps=numpy.int64(2))
    assert made == at.defenses.FastBAT(THREAT, lam=3.0, steps=2) and type(made.lam) is float and type(made.steps) is int
    with pytest.raises(at.errors.ArgumentError, match="label_smoothing=False is not in"):
        at.defenses.FGSM(THREAT, label_smoothing=False)


def test_the_state_of_another_training_is_refused_by_name():
    with pytest.raises(at.errors.ArgumentError, match=r"state\['batches'\]=None is not an integer"):
        at.defenses.NuAT(THREAT).load_state_dict({})
    free = at.defenses.Free(THREAT)
    free.load_state_dict({"delta": torch.zeros(6, 3, 9, 9)})
    with pytest.raises(at.errors.ArgumentError, match=r"delta=\(3, 9, 9\) is not the shape of the images, \(1, 8, 8\)"):
        free(Shared().double(), batch_of(), 0.0)


def test_a_compiled_model_has_the_features_that_it_has_uncompiled():
    net, x = Shared().double().eval(), batch_of().x
    compiled = torch.compile(net, backend="eager")
    for features in (None, "head"):
        plain, wrapped = (logits_and_features(model, x, features)[1] for model in (net, compiled))
        assert torch.allclose(plain, wrapped)
    assert torch.allclose(logits_and_features(compiled, x)[1], 3 * logits_and_features(compiled, x, "head")[1])


def test_attention_that_drops_out_is_refused_too():
    net = nn.Sequential(nn.MultiheadAttention(4, 1, dropout=0.5), Shared()).train()
    with pytest.raises(at.errors.ModelError, match=r"model.0.dropout=0.5 is not 0, which sat-r1 needs"):
        at.defenses.SATR1(THREAT)(net, batch_of(), 0.0)


def test_a_figure_that_some_steps_leave_out_is_averaged_over_the_others():
    from dataclasses import dataclass
    from typing import ClassVar

    @dataclass
    class Sometimes(at.Defense):
        """Logs the mean pixel of every batch but the smallest."""

        name: ClassVar[str] = "sometimes"

        def __call__(self, model, batch, progress):
            logits = model(batch.x)
            logs = {"one": torch.ones(())} if len(batch.x) > 1 else {}
            return at.Step(self.criterion(logits, batch.y), logits, torch.zeros_like(batch.x), logs)

    x, y = batch_of(9).x.float(), batch_of(9).y
    parts = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=2)
    run = at.fit(Shared(), Sometimes(THREAT), parts, epochs=1, lr=1e-6, progress=False)
    assert run.history[0]["one"] == 1.0


def returning(change):
    """A defense that returns what `change` makes of a good step."""

    class Mine(at.defenses.Standard):
        def __call__(self, model, batch, progress):
            return change(super().__call__(model, batch, progress))

    return Mine(THREAT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda step: step.loss, "what __call__ returns=an object of type Tensor is not a Step: .* return at.Step"),
        (tuple, "what __call__ returns=an object of type tuple is not a Step"),
        (lambda step: None, "what __call__ returns=None is not a Step"),
        (lambda step: step._replace(loss=step.loss.item()), r"step.loss=\S+ is not a torch.Tensor: leave out .item"),
        (lambda step: step._replace(loss=step.loss.expand(4)), r"step.loss.shape=\(4,\) is not \(\): .* loss.mean\(\)"),
        (lambda step: step._replace(loss=step.loss.detach()), "step.loss='detached' is not a function of the model's"),
        (lambda step: step._replace(logits=step.logits.argmax(1)), r"step.logits.shape=\(4,\) is not \(4, K\)"),
        (lambda step: step._replace(logits=step.logits[:3]), r"step.logits.shape=\(3, \d+\) is not \(4, K\)"),
        (lambda step: step._replace(logits=None), r"step.logits.shape=None is not \(4, K\)"),
        (lambda step: step._replace(delta=0.0), r"step.delta.shape=0.0 is not \(4, .* such as x_adv - x"),
        (lambda step: step._replace(logs=[("gap", 1)]), "step.logs=an object of type list is not a dict"),
        (
            lambda step: step._replace(logs={"gap": torch.ones(4)}),
            r"step.logs\['gap'\].shape=\(4,\) is not \(\): one",
        ),
        (lambda step: step._replace(logs={"gap": "wide"}), r"step.logs\['gap'\]='wide' is not one number"),
        (lambda step: step._replace(logs={"loss": 1.0}), r"step.logs=\['loss'\] is not names of the defense's own"),
    ],
)
def test_what_a_defense_must_not_return_is_named_at_the_first_step(change, message):
    batch, model = batch_of(8), Shared()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(at.errors.ArgumentError, match=f"^Mine: {message}"):
        at.fit(model, returning(change), (batch.x.float(), batch.y), epochs=1, batch_size=4, progress=False)
    assert all(old.equal(new) for old, new in zip(before, model.parameters(), strict=True))


def test_a_defense_may_log_numbers_of_any_kind():
    batch, logs = batch_of(8), {"a": 1, "b": numpy.float32(2), "c": torch.tensor([3.0]), "d": torch.tensor(4)}
    changed = returning(lambda step: step._replace(logs=logs))
    run = at.fit(Shared(), changed, (batch.x.float(), batch.y), epochs=1, batch_size=4, lr=1e-6, progress=False)
    assert [run.history[0][name] for name in logs] == [1, 2, 3, 4]


class Flat(nn.Module):
    """Normalises over the batch alone, and drops out."""

    def __init__(self):
        super().__init__()
        self.linear, self.bn = nn.Linear(64, 8), nn.BatchNorm1d(8)
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.dropout(self.bn(self.linear(x.flatten(1)))))


def served(n, size, **options):
    """`n` images through a loader of batches of `size`."""
    batch = batch_of(n)
    return DataLoader(TensorDataset(batch.x.float(), batch.y), size, **options)


@pytest.mark.parametrize(
    ("data", "size", "hint"),
    [
        (lambda: served(9, 4), 64, "give the DataLoader drop_last=True, or another batch_size"),
        (lambda: served(8, 1), 64, "give the DataLoader drop_last=True, or another batch_size"),
        (lambda: served(8, 8).dataset.tensors, 1, "take a larger batch_size"),
    ],
)
def test_a_batch_of_one_image_is_refused_before_training_where_it_has_no_variance(data, size, hint, tmp_path):
    model, before = Flat().eval(), torch.random.get_rng_state()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(at.errors.ModelError, match=f"some batch holds a single image, .* variance: {hint}"):
        at.fit(model, at.defenses.Standard(THREAT), data(), epochs=1, batch_size=size, out=tmp_path / "new")
    assert all(kept[name].equal(value) for name, value in model.state_dict().items()) and not model.training
    assert torch.random.get_rng_state().equal(before) and not (tmp_path / "new").exists()


@pytest.mark.parametrize("data", [lambda: served(9, 4, drop_last=True), lambda: served(10, 4)])
def test_larger_batches_are_normalised(data):
    run = at.fit(Flat(), at.defenses.Standard(THREAT), data(), epochs=1, progress=False)
    assert run.status == "finished"


def test_a_batch_of_one_image_is_trained_on_where_its_pixels_have_a_variance():
    run = at.fit(Shared(), at.defenses.Standard(THREAT), served(9, 4), epochs=1, lr=1e-6, progress=False)
    assert run.status == "finished" and int(run.model.bn.num_batches_tracked) == 2 * 3
