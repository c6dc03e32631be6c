"""Data sets: exact, disjoint splits in one order, whatever the order of the source."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from images import rows, same, some_images

from advtrain.data import Split, as_dataset, as_split, load_data
from advtrain.errors import ArgumentError, DataError
from advtrain.survey import statistics


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    data, theirs = load_data("digits", val=0), load_digits()
    x = torch.from_numpy(np.rint(theirs.images * 255 / 16).astype(np.uint8))[:, None]
    assert rows(data.train, data.test) == rows(Split(x, torch.from_numpy(theirs.target).long()))
    back = torch.cat([data.train.x, data.test.x]).double() * 16 / 255
    assert (back - back.round()).abs().max() < 0.04, "17 grey levels, none merged"
    assert len(data.train) == 1437 and len(data.test) == 360 and data.val is None
    assert data.num_classes == 10 and data.shape == (1, 8, 8) and not data.augment


def test_digits_print_on_three_lines_and_rebuild_from_their_spec():
    data = load_data("digits", val=100, seed=5)
    assert repr(data).count("\n") == 2 and "train 1,337, val 100, test 360" in repr(data)
    assert repr(data.val) == "Split(100 images of 1x8x8, uint8)"
    assert same(data, load_data(**data.spec)) and data.spec == {"name": "digits", "val": 100, "seed": 5}


def test_mean_and_std_are_those_of_all_training_pixels():
    data = load_data("digits", val=0.3, seed=1)
    pixels = torch.cat([data.train.images(dtype=torch.float64), data.val.images(dtype=torch.float64)])
    assert abs(data.mean[0] - float(pixels.mean())) < 1e-12
    assert abs(data.std[0] - float(pixels.std(correction=0))) < 1e-12
    assert data.mean == load_data("digits", val=0).mean
    assert statistics(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)) == ((0.0,), (1.0,)), "a constant channel has no scale"


@settings(max_examples=40, deadline=None)
@given(
    shuffle=st.integers(0, 2**31), seed=st.integers(0, 50), n=st.integers(3, 40),
    val=st.one_of(st.floats(0, 0.8), st.integers(0, 2)),
)  # fmt: skip
def test_splits_are_exact_disjoint_and_do_not_depend_on_the_order_of_the_source(shuffle, seed, n, val):
    x, y = some_images(n)
    order = np.random.default_rng(shuffle).permutation(n)
    test = some_images(7, seed=1)
    data = as_dataset((x, y), test=test, val=val, seed=seed, num_classes=4)
    turned = tuple(part[::-1].copy() for part in test)
    again = as_dataset((x[order], y[order]), test=turned, val=val, seed=seed, num_classes=4)
    assert same(data, again)
    count = val if isinstance(val, int) else round(n * val)
    assert len(data.train) == n - count and (count == 0) == (data.val is None)
    parts = [data.train] if data.val is None else [data.train, data.val]
    assert rows(*parts) == rows(as_split((x, y))) and rows(data.test) == rows(as_split(test))


def test_seed_zero_is_the_plain_hash_order_and_other_seeds_choose_other_images():
    x, y = some_images(repeats=False)
    data = as_dataset((x, y), test=some_images(5), val=10)
    in_order = torch.cat([data.train.x, data.val.x]).permute(0, 2, 3, 1).contiguous().numpy()
    hashes = [hashlib.sha256(image).digest() for image in in_order]
    assert hashes == sorted(hashes)
    chosen = {tuple(rows(as_dataset((x, y), test=some_images(5), val=10, seed=s).val)) for s in range(6)}
    assert len(chosen) == 6


def test_a_test_set_taken_from_the_images_does_not_depend_on_the_seed():
    first, second = (as_dataset(some_images(50, repeats=False), seed=seed) for seed in (0, 1))
    assert torch.equal(first.test.x, second.test.x) and len(first.test) == 10 and len(first.val) == 4
    assert not same(first, second)
    assert len(set(rows(first.train, first.val, first.test))) == 50


@pytest.mark.parametrize("val", [1.0, -0.1, -1, 40, True, "0.1", float("nan"), None])
def test_a_share_that_leaves_nothing_is_refused(val):
    with pytest.raises((ArgumentError, DataError), match="val"):
        as_dataset(some_images(40), test=some_images(5), val=val)


@pytest.mark.parametrize("seed", [-3, 1.0, True, "1", None])
def test_a_seed_is_a_whole_number_from_zero_on(seed):
    for make in (lambda: load_data("digits", seed=seed), lambda: as_dataset(some_images(40), seed=seed)):
        with pytest.raises(ArgumentError, match="seed=.* is not an integer of at least 0"):
            make()


def test_a_seed_of_numpy_is_the_same_seed():
    data = load_data("digits", seed=np.int64(3))
    assert same(data, load_data("digits", seed=3)) and type(data.spec["seed"]) is int


def test_pixels_with_a_gradient_are_cut_from_their_history():
    x = torch.rand(6, 1, 4, 4, requires_grad=True)
    split = as_split((x * 0.5, torch.zeros(6, dtype=torch.int32)))
    assert not split.x.requires_grad and split.y.dtype == torch.int64


def test_a_split_is_indexed_by_slices_positions_masks_and_numbers():
    x, y = some_images(10)
    split = as_split((x, y))
    assert len(split[:3]) == 3 and torch.equal(split[torch.tensor([4, 2])].y, split.y[[4, 2]])
    assert len(split[split.y == split.y[0]]) == int((split.y == split.y[0]).sum())
    assert torch.equal(split[-1].x[0], split.x[9]) and len(split[-1]) == 1
    with pytest.raises(IndexError):
        split[10]


def test_images_are_pixels_over_255():
    split = as_split(some_images(4))
    assert split.images().dtype == torch.float32 and torch.equal(split.images(), split.x / 255)
    assert torch.equal(split.images([1, 2], torch.float64), split.x[[1, 2]].double() / 255)
    assert split.images(dtype=torch.bfloat16).dtype == torch.bfloat16
    assert Split(torch.rand(2, 1, 2, 2), split.y[:2]).images().max() <= 1


def test_a_data_set_made_by_hand_says_what_it_lacks():
    digits = load_data("digits")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(digits.train.images(), digits.train.y), 8)
    with pytest.raises(DataError, match="first=None is not the first batch of the DataLoader: as_dataset"):
        dataclasses.replace(digits, train=loader).probe()
