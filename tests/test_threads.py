"""Calls side by side give what calls one after the other give, and leave nothing changed."""

import copy
import os
import threading
import time
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import advtrain as at

THREAT = at.Threat("linf", eps=0.3)


@pytest.fixture(scope="module")
def digits():
    return at.load_data("digits")


def weights(run):
    return torch.cat([value.flatten() for value in run.model.state_dict().values()])


@pytest.mark.parametrize("name", ["fgsm", "rvs", "sat-r2"])
def test_networks_built_and_trained_side_by_side_are_those_of_one_after_the_other(digits, name):
    def train(seed):
        model = at.build_model("small-cnn", digits, seed=seed)
        return at.fit(model, at.defenses.DEFENSES[name](THREAT), digits, epochs=1, seed=seed, progress=False)

    together = at.side_by_side(train, range(4))
    for seed, run in enumerate(together):
        assert torch.equal(weights(run), weights(train(seed)))


@dataclass
class Draws(at.Defense):
    """A defense that begins with a global draw, as that of a generator's weights, and takes its time."""

    name: ClassVar[str] = "draws"

    def setup(self, model, shape, device):
        time.sleep(0.1)
        self.drawn = torch.rand(()).item()

    def __call__(self, model, batch, progress):
        logits = model(batch.x)
        return at.Step(self.criterion(logits, batch.y), logits, torch.zeros_like(batch.x))


def test_what_a_defense_draws_as_it_sets_itself_up_is_its_own(digits):
    def drawn(seed):
        defense = Draws(THREAT)
        model = at.build_model("small-cnn", digits)
        at.fit(model, defense, digits, epochs=1, seed=seed, validate_every=0, progress=False)
        return defense.drawn

    assert at.side_by_side(drawn, range(4)) == [drawn(seed) for seed in range(4)]


def test_judgements_side_by_side_are_those_of_one_after_the_other(digits):
    networks = [at.build_model("small-cnn", digits, seed=seed) for seed in range(3)]

    def judge(model):
        return at.autoattack(model, digits.test.x[:8], digits.test.y[:8], THREAT, "fast", progress=False).robust

    for left, model in zip(at.side_by_side(judge, copy.deepcopy(networks)), networks, strict=True):
        assert torch.equal(left, judge(model))


def test_models_are_drawn_from_their_seed_whatever_other_threads_draw(digits):
    """The global generator is one; without a lock another thread seeds it between two layers."""
    alone = [at.build_model("small-cnn", digits, seed=seed).state_dict() for seed in range(40)]
    together = at.side_by_side(lambda seed: at.build_model("small-cnn", digits, seed=seed), range(40), threads=8)
    for model, expected in zip(together, alone, strict=True):
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_two_calls_run_at_the_same_time_with_one_thread_each():
    meet = threading.Barrier(2, timeout=60)  # broken, were they one after the other

    def call(_):
        meet.wait()
        return torch.get_num_threads()

    assert at.side_by_side(call, range(2)) == [1, 1]


def test_the_callers_threads_and_random_state_are_untouched(digits):
    before, state = torch.get_num_threads(), torch.get_rng_state()

    def train(seed):
        model = at.build_model("small-cnn", digits, seed=seed)
        at.fit(model, at.defenses.FGSM(THREAT), digits, epochs=1, progress=False)

    at.side_by_side(train, range(3))
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_results_come_in_the_order_of_the_arguments_and_the_shortest_decides():
    assert at.side_by_side(lambda a, b: (a, b), range(9), "abc") == [(0, "a"), (1, "b"), (2, "c")]
    assert at.side_by_side(print, []) == []


def test_the_first_error_is_raised_and_what_has_not_begun_is_left_out():
    called = []

    def call(number):
        called.append(number)
        raise ValueError(f"number {number}")

    with pytest.raises(ValueError, match="number 0"):
        at.side_by_side(call, range(1000), threads=1)
    assert len(called) < 1000


def test_fewer_than_one_thread_and_an_unknown_device_are_refused():
    with pytest.raises(at.errors.ArgumentError, match="threads=0"):
        at.side_by_side(print, [1], threads=0)
    with pytest.raises(at.errors.ArgumentError, match="device='gpu'"):
        at.side_by_side(print, [1], device="gpu")
