"""Randomness has a name: a draw depends on its key, and on nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import advtrain as at
from advtrain.errors import ArgumentError
from advtrain.rng import Recorded, as_rng

KEYS = st.lists(st.one_of(st.integers(0, 10**9), st.text(max_size=5)), min_size=1, max_size=4)


@given(KEYS, KEYS)
def test_streams_are_equal_exactly_if_their_keys_are(a, b):
    x = torch.empty(8)
    same = torch.equal(at.Rng(*a).uniform(x, 0, 1), at.Rng(*b).uniform(x, 0, 1))
    assert same == (a == b)


def test_a_draw_does_not_depend_on_earlier_draws_or_on_the_memory_format():
    x = torch.empty(2, 3, 4, 4)
    rng = at.Rng(0)
    rng.normal(x)
    assert torch.equal(rng.child("a").normal(x), at.Rng(0, "a").normal(x))
    assert torch.equal(at.Rng(1).uniform(x, 0, 1), at.Rng(1).uniform(x.to(memory_format=torch.channels_last), 0, 1))


def test_successive_draws_of_one_stream_differ():
    rng, x = at.Rng(0), torch.empty(4)
    assert not torch.equal(rng.normal(x), rng.normal(x))


def test_numpy_integers_are_integers_and_floats_are_not():
    assert at.Rng(np.int64(3)).key == (3,)
    with pytest.raises(ArgumentError, match="integers and strings"):
        at.Rng(1.5)
    assert as_rng(3).key == (3,) == as_rng(np.int64(3)).key and as_rng(None).key == (0,)


def test_recorded_draws_are_served_by_name():
    draws = Recorded({"init": torch.ones(2)})
    assert draws.child("init").uniform(torch.zeros(2), -1, 1).tolist() == [1.0, 1.0]
    with pytest.raises(KeyError, match="recorded: init"):
        draws.child("noise")


def test_only_what_was_recorded_is_served():
    draws = Recorded(torch.ones(2))
    assert isinstance(draws, at.Rng) and as_rng(draws) is draws
    for draw in (lambda: draws.integers(0, 2, (2,)), lambda: draws.permutation(3)):
        with pytest.raises(TypeError, match="only uniform and normal draws are recorded"):
            draw()
