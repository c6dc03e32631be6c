"""Loaders: every image once an epoch, the same batches for the same seed, and pixels only ever moved, never changed."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from advtrain.data import Split, as_dataset, load_data
from advtrain.errors import ArgumentError, DataError
from advtrain.loader import PAD, Loader, StreamLoader, crop_and_flip, draw_augmentation, make_loader
from advtrain.rng import Rng


def split_of(n, shape=(3, 8, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)
    return Split(x, torch.randint(0, 10, (n,), generator=generator))


def batches(loader, epoch=0):
    return [parts[0] if parts[0] is None else torch.cat(parts) for parts in zip(*loader.epoch(epoch), strict=True)]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.integers(1, 60), st.booleans(), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_visits_every_image_once_with_its_label_and_position(n, size, shuffle, epoch, seed):
    split = split_of(n)
    loader = Loader(split, size, shuffle=shuffle, seed=seed)
    parts = list(loader.epoch(epoch))
    assert len(parts) == len(loader) and all(len(y) == size for _, y, _ in parts[:-1])
    x, y, index = (torch.cat(part) for part in zip(*parts, strict=True))
    assert sorted(index.tolist()) == list(range(n)) and index.dtype == y.dtype == torch.int64
    assert torch.equal(x, split.images(index)) and torch.equal(y, split.y[index])
    assert shuffle or index.tolist() == list(range(n))
    assert len(parts[-1][1]) > 1 or 1 in (n, size), "no image is left alone in a batch"


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 5), st.booleans())
def test_processes_share_out_every_batch_evenly_and_see_what_one_would_see(n, size, processes, shuffle):
    split, options = split_of(n), {"shuffle": shuffle, "augment": True, "seed": 3}
    if min(n, size) < processes:
        with pytest.raises(ArgumentError, match=f"batch_size={min(n, size)} is not at least {processes}, an image for"):
            Loader(split, size, **options, part=(0, processes))
        return
    loaders = [Loader(split, size, **options, part=(rank, processes)) for rank in range(processes)]
    shares = [list(loader.epoch(2)) for loader in loaders]
    assert {len(share) for share in shares} == {len(loaders[0])}
    seen = []
    for number, step in enumerate(zip(*shares, strict=True)):
        sizes = [len(y) for _, y, _ in step]
        assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
        assert min(sizes) > 1 or number == 0 or size < 2 * processes, "no image is left alone in a process"
        seen += [torch.cat(part) for part in zip(*((x, index) for x, _, index in step), strict=True)]
    x, index = torch.cat(seen[0::2]), torch.cat(seen[1::2])
    assert sorted(index.tolist()) == list(range(n))
    whole = Loader(split, n, **options)  # an image looks the same whatever the batch size
    ((expected, _, order),) = whole.epoch(2)
    assert torch.equal(x, expected[[order.tolist().index(k) for k in index.tolist()]])


def test_a_last_image_alone_joins_the_batch_before_so_that_batch_norm_works():
    loader = Loader(split_of(13, shape=(3, 1, 1)), 4, shuffle=True)
    parts = list(loader.epoch(0))
    assert len(loader) == 3 and [len(y) for _, y, _ in parts] == [4, 4, 5]
    assert sorted(torch.cat([index for _, _, index in parts]).tolist()) == list(range(13))
    norm = torch.nn.BatchNorm2d(3)
    assert all(norm(x).isfinite().all() for x, _, _ in parts)
    assert [len(y) for _, y, _ in Loader(split_of(13), 4, drop_last=True).epoch(0)] == [4, 4, 4]
    assert [len(y) for _, y, _ in Loader(split_of(3), 1).epoch(0)] == [1, 1, 1]


def test_the_same_seed_gives_the_same_batches_whatever_happened_before():
    split = split_of(40)
    first = Loader(split, 16, shuffle=True, augment=True, seed=3)
    for _ in first.epoch(0):
        torch.rand(5)
    second = Loader(split, 16, shuffle=True, augment=True, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(batches(first, 7), batches(second, 7), strict=True))
    assert not torch.equal(batches(first, 7)[2], batches(first, 8)[2]), "each epoch has its own order"
    assert not torch.equal(batches(first, 7)[2], batches(Loader(split, 16, shuffle=True, seed=4), 7)[2])


def test_the_global_random_state_is_neither_read_nor_touched():
    loader = Loader(split_of(20), 8, shuffle=True, augment=True)
    before = torch.random.get_rng_state()
    first = batches(loader)
    torch.manual_seed(99)
    assert torch.equal(first[0], batches(loader)[0])
    torch.random.set_rng_state(before)
    batches(loader)
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_image_looks_the_same_whatever_the_batch_size():
    split = split_of(30)
    small, large = (Loader(split, size, shuffle=True, augment=True, seed=1) for size in (7, 30))
    assert torch.equal(batches(small, 2)[0], batches(large, 2)[0])


def test_two_epochs_can_run_at_the_same_time():
    loader = Loader(split_of(20), 6, shuffle=True, augment=True)
    alone = batches(loader, 1)
    woven = list(zip(loader.epoch(0), loader.epoch(1), strict=True))
    assert torch.equal(torch.cat([second[0] for _, second in woven]), alone[0])


def test_drop_last_leaves_out_only_the_batch_that_is_not_full():
    loader = Loader(split_of(20), 6, drop_last=True)
    assert len(loader) == 3 and [len(y) for _, y, _ in loader.epoch(0)] == [6, 6, 6]


def naive(image, down, right, flip):
    """Crop and flip of one image, as written in the papers."""
    out = F.pad(image, (PAD,) * 4)[:, down : down + image.shape[1], right : right + image.shape[2]]
    return out.flip(2) if flip else out


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.sampled_from([(3, 8, 8), (1, 8, 8), (3, 9, 13), (2, 5, 1)]), st.integers(0, 99))
def test_cropping_moves_pixels_and_changes_none(n, shape, seed):
    split = split_of(n, shape, seed)
    draws = draw_augmentation(n, Rng(seed))
    assert draws[:, :2].min() >= 0 and draws[:, :2].max() <= 2 * PAD and set(draws[:, 2].tolist()) <= {0, 1}
    expected = torch.stack([naive(image, *draw) for image, draw in zip(split.x, draws.tolist(), strict=True)])
    assert torch.equal(crop_and_flip(split.x, draws), expected)
    floats = split.images()
    assert torch.equal(crop_and_flip(floats, draws), expected / 255)
    centred = torch.tensor([[PAD, PAD, 0]]).expand(n, 3)
    assert torch.equal(crop_and_flip(split.x, centred), split.x)


def test_every_offset_and_both_directions_are_about_equally_likely():
    draws = draw_augmentation(18_000, Rng(0))
    for column, values in (0, 2 * PAD + 1), (1, 2 * PAD + 1), (2, 2):
        counts = torch.bincount(draws[:, column], minlength=values).double()
        assert len(counts) == values
        assert (counts / counts.mean() - 1).abs().max() < 0.1


def test_augmentation_is_on_by_default_where_the_data_set_says_so():
    x, y = split_of(40).x, split_of(40).y
    plain, augmented = (as_dataset((x, y), augment=augment) for augment in (False, True))
    assert torch.equal(batches(make_loader(plain, 8, shuffle=False))[0], plain.train.images())
    assert not torch.equal(batches(make_loader(augmented, 8, shuffle=False))[0], augmented.train.images())
    assert torch.equal(batches(make_loader(augmented, 8, shuffle=False, augment=False))[0], augmented.train.images())
    assert isinstance(make_loader((x, y), 8), Loader)


def test_batches_come_in_the_type_and_layout_asked_for():
    split = split_of(6)
    x, _, _ = next(Loader(split, 4, dtype=torch.float64).epoch(0))
    assert x.dtype == torch.float64 and torch.equal(x, split.x[:4].double() / 255)
    x, _, _ = next(Loader(split, 4, augment=True, channels_last=True).epoch(0))
    assert x.is_contiguous(memory_format=torch.channels_last) and x.dtype == torch.float32
    floats = Split(split.images(), split.y)
    assert torch.equal(batches(Loader(floats, 4, augment=True))[0], batches(Loader(split, 4, augment=True))[0])


@pytest.mark.parametrize("size", [0, -1, 2.0, True, None])
def test_a_batch_size_that_is_none_is_refused(size):
    with pytest.raises(ArgumentError, match="batch_size"):
        Loader(split_of(4), size)


def test_drop_last_must_leave_a_batch():
    with pytest.raises(ArgumentError, match="at most 4"):
        Loader(split_of(4), 5, drop_last=True)


class Operations(TorchDispatchMode):
    """Counts the tensor operations that move or compute data."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.counts[function.name()] += 1
        return function(*args, **(kwargs or {}))


def test_a_batch_costs_the_operations_of_a_loop_written_by_hand():
    """Operations, not seconds: a clock on a busy machine proves nothing."""
    split = split_of(64)
    batches = Loader(split, 16, shuffle=True).epoch(0)
    next(batches)  # the order of the epoch is drawn here
    with Operations() as ours:
        assert sum(1 for _ in batches) == 3
    with Operations() as by_hand:
        for index in torch.arange(16, 64).split(16):
            split.x[index].float().div_(255), split.y[index]
    by_hand.counts.pop("aten::arange.start", None)
    assert ours.counts == by_hand.counts


def stream_of(split, **options):
    return DataLoader(TensorDataset(split.x, split.y), **{"batch_size": 4, **options})


def test_a_stream_gives_the_loaders_batches_and_no_positions():
    split = split_of(10)
    loader = StreamLoader(stream_of(split))
    x, y, index = batches(loader)
    assert len(loader) == 3 and index is None, "what a DataLoader has drawn, and from where, only it knows"
    assert torch.equal(x, split.images()) and torch.equal(y, split.y)
    x, _, _ = batches(StreamLoader(stream_of(Split(split.images(torch.arange(10), torch.float64), split.y))))
    assert x.dtype == torch.float32


def test_a_dataset_with_a_data_loader_makes_a_stream():
    data = as_dataset(stream_of(split_of(10)), num_classes=10)
    loader = make_loader(data, 999)
    assert isinstance(loader, StreamLoader) and len(batches(loader)[1]) == 10


class Stream(IterableDataset):
    """Yields `items` and says that it yields `said`."""

    def __init__(self, items, said):
        self.items, self.said = items, said

    def __len__(self):
        return self.said

    def __iter__(self):
        return iter(self.items)


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
@pytest.mark.parametrize(("said", "whole", "message"), [(12, 2, "only 2 batches .* is 3"), (4, 1, "number 2 .* is 1")])
def test_a_stream_of_another_length_than_it_says_is_refused(said, whole, message):
    stream = Stream([(torch.rand(1, 4, 4), 0)] * 8, said)
    came = []
    with pytest.raises(DataError, match=f"the DataLoader gave .*{message}, and schedules count steps"):
        for batch in StreamLoader(DataLoader(stream, batch_size=4)).epoch(0):
            came.append(batch)
    assert len(came) == whole


def test_a_stream_cuts_pixels_from_their_history():
    x = torch.rand(4, 1, 4, 4, requires_grad=True)
    x, _, _ = batches(StreamLoader(DataLoader(TensorDataset(x * 0.5, torch.zeros(4).long()), batch_size=2)))
    assert not x.requires_grad


def test_a_distributed_sampler_is_told_the_epoch():
    split = split_of(12)
    sampler = DistributedSampler(TensorDataset(split.x, split.y), num_replicas=2, rank=0, shuffle=True)
    loader = StreamLoader(stream_of(split, sampler=sampler))
    assert not torch.equal(batches(loader, 0)[0], batches(loader, 1)[0])
    assert torch.equal(batches(loader, 1)[0], batches(loader, 1)[0])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda x, y: (x.index_fill(0, torch.tensor([5]), float("nan")), y), r"batch 1 of epoch 2: x has NaN.*x\[1\]"),
        (lambda x, y: (x * 255, y), "batch 0 of epoch 2: x='.*' is not inside .* divide by 255: x / 255"),
        (lambda x, y: (x, y + 5), r"batch 0 of epoch 2: y='\d+ to 1\d' is not inside 0\.\.9"),
        (lambda x, y: (x, y.double()), "integer type"),
    ],
)
def test_every_batch_of_a_stream_is_checked(damage, message):
    split = split_of(8)
    x, y = damage(split.images(), split.y.clone().fill_(8))
    loader = StreamLoader(DataLoader(TensorDataset(x, y), batch_size=4), num_classes=10)
    with pytest.raises(DataError, match=message):
        list(loader.epoch(2))


def test_batches_that_are_no_pairs_or_change_their_shape_are_refused():
    growing = Stream([(torch.rand(1, 4, 4), 0), (torch.rand(1, 5, 5), 1)], said=2)
    with pytest.raises(DataError, match=r"\(1, 5, 5\) is not \(1, 4, 4\)"):
        list(StreamLoader(DataLoader(growing, batch_size=1)).epoch(0))
    with pytest.raises(DataError, match="no length"):
        len(StreamLoader(DataLoader(Stream([], said=None), batch_size=1)))
    with pytest.raises(DataError, match="not a pair"):
        list(StreamLoader(DataLoader(TensorDataset(torch.rand(4, 1, 4, 4)))).epoch(0))


def test_digits_make_batches_in_the_unit_interval():
    data = load_data("digits")
    x, y, _ = next(make_loader(data, 64).epoch(0))
    assert x.shape == (64, 1, 8, 8) and 0 <= x.min() and x.max() == 1 and y.max() < data.num_classes


@pytest.mark.gpu
def test_batches_are_the_same_on_a_gpu_and_no_batch_waits_for_it():
    split = split_of(64)
    options = {"shuffle": True, "augment": True, "seed": 5}
    cpu, gpu = Loader(split, 16, **options), Loader(split, 16, device="cuda", **options)
    for a, b in zip(cpu.epoch(1), gpu.epoch(1), strict=True):
        assert all(torch.equal(p, q.cpu()) for p, q in zip(a, b, strict=True))
    iterator = gpu.epoch(2)
    next(iterator)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(iterator)) == 3
    finally:
        torch.cuda.set_sync_debug_mode("default")
