"""The caller's own images: one form from many, and a refusal for what is no data."""

import json

import numpy as np
import pytest
import torch
from images import some_images
from torch.utils.data import DataLoader, TensorDataset

from advtrain import data_rows, fit
from advtrain.data import MappedSplit, Split, as_dataset, as_split, load_data
from advtrain.defenses import Standard
from advtrain.errors import AdvtrainWarning, ArgumentError, DataError
from advtrain.models import build_model
from advtrain.threat import Threat


def test_arrays_tensors_sets_and_loaders_give_the_same_split():
    x, y = some_images(12)
    expected = as_split((x, y))
    tensors = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    listed = [(image, int(label)) for image, label in zip(torch.from_numpy(x), y, strict=True)]
    for form in ((x.transpose(0, 2, 3, 1), list(y)), tensors, listed, DataLoader(tensors, 5), expected):
        split = as_split(form)
        assert torch.equal(split.x, expected.x) and torch.equal(split.y, expected.y)


def test_floats_stay_as_they_are_until_a_batch_of_them_is_taken():
    x = torch.rand(6, 1, 4, 4)
    y = torch.zeros(6, dtype=torch.int32)
    assert as_split((x, y)).x.dtype == torch.float32 and as_split((x, y)).y.dtype == torch.int64
    assert as_split((x.double(), y)).x.dtype == torch.float64
    halves = as_split((x.half(), y))
    assert halves.x.dtype == torch.float16 and torch.equal(halves.images([2]), x[2:3].half().float())


def test_a_torchvision_style_set_of_pil_images_is_read_once():
    from PIL import Image

    class Photos(torch.utils.data.Dataset):
        classes = ["cat", "dog"]

        def __len__(self):
            return 20

        def __getitem__(self, i):
            return Image.fromarray(some_images(1, i, shape=(8, 9, 3), repeats=False)[0][0]), i % 2

    data = as_dataset(Photos(), test=0.25, name="photos")
    assert data.shape == (3, 8, 9) and data.classes == ("cat", "dog") and data.spec is None and data.name == "photos"
    assert (len(data.train), len(data.val), len(data.test)) == (13, 2, 5)
    assert as_dataset(data) is data


def test_torchvisions_sets_of_pil_images_are_read(tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")
    fake = datasets.FakeData(size=20, image_size=(3, 8, 9), num_classes=4)
    data = as_dataset(fake, num_classes=4)
    assert data.shape == (3, 8, 9) and len(data.train) + len(data.val) + len(data.test) == 20

    for name, value in (("cat", 40), ("dog", 200)):
        (tmp_path / name).mkdir()
        for number in range(6):
            fake[number][0].point(lambda pixel, value=value: value).save(tmp_path / name / f"{number}.png")
    folder = datasets.ImageFolder(tmp_path)
    split = as_split(folder)
    assert as_dataset(folder, test=2, val=2).classes == ("cat", "dog")
    assert split.x[:6].unique().tolist() == [40] and split.x[6:].unique().tolist() == [200]
    assert split.y.tolist() == [0] * 6 + [1] * 6


class Halved(torch.utils.data.Dataset):
    """What is widely copied: tensors, and a transform of each image."""

    def __init__(self, tensors, transform):
        self.tensors, self.transform = tensors, transform

    def __len__(self):
        return len(self.tensors[0])

    def __getitem__(self, index):
        return self.transform(self.tensors[0][index]), 1 - self.tensors[1][index]


class HalvedToo(TensorDataset):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image / 2, 1 - label


def test_a_data_set_with_tensors_of_its_own_is_read_row_by_row():
    x, y = torch.rand(12, 1, 4, 4), torch.arange(12) % 2
    for data in (Halved((x, y), lambda image: image / 2), HalvedToo(x, y)):
        split = as_split(data)
        assert split.x.equal(x / 2) and split.y.equal(1 - y)
        with pytest.raises(DataError, match="cannot be counted without reading it all: say how many there are"):
            as_dataset(DataLoader(data, 4))
    assert as_split(TensorDataset(x, y)).x.data_ptr() == x.data_ptr()
    assert as_dataset(DataLoader(TensorDataset(x, y), 4)).num_classes == 2


class Rows(list):
    """Like a data set of Hugging Face: rows are dicts, and `features` knows the names of the classes."""

    class Label:
        names = ["cat", "dog"]

    features = {"label": Label, "id": None}


@pytest.mark.parametrize("image", ["image", "img"])
def test_rows_with_an_image_and_a_label_are_read(image):
    from PIL import Image

    x, y = some_images(12, shape=(8, 9, 3))
    pairs = zip(x, y % 2, strict=True)
    rows = Rows({image: Image.fromarray(pixels), "label": int(kind), "id": 3} for pixels, kind in pairs)
    split = as_split(rows)
    assert split.x.equal(torch.from_numpy(x).permute(0, 3, 1, 2)) and split.y.tolist() == (y % 2).tolist()
    data = as_dataset(rows)
    assert data.classes == ("cat", "dog") and data.shape == (3, 8, 9)


@pytest.mark.parametrize("keys", [("pixels", "digit"), ("image", "img", "label"), ("img", "fine_label")])
def test_rows_whose_columns_could_be_anything_are_refused(keys):
    with pytest.raises(DataError, match=rf"data\[0\] has the columns {', '.join(keys)}, .* rename them"):
        as_split([dict.fromkeys(keys, 0)])


def test_of_several_parts_one_must_be_named():
    with pytest.raises(
        DataError, match=r"data=an object of type dict is not a Dataset, .*: one of its parts is: data\['train'\]"
    ):
        as_dataset({"train": Rows(), "test": Rows()})


def test_a_set_that_does_not_fit_is_sent_to_a_loader(monkeypatch):
    x, y = some_images(20)
    listed = [(image, int(label)) for image, label in zip(torch.from_numpy(x), y, strict=True)]
    monkeypatch.setattr(data_rows, "LIMIT", 1000)
    with pytest.raises(DataError, match="pass a DataLoader"):
        as_dataset(listed)


def test_a_data_loader_is_kept_and_looked_at_without_touching_global_randomness():
    x, y = some_images(20)
    loader = DataLoader(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), 8, shuffle=True)
    before = torch.random.get_rng_state()
    data = as_dataset(loader, test=(x, y))
    assert torch.equal(before, torch.random.get_rng_state())
    assert data.train is loader and data.val is None and len(data.test) == 20 and data.num_classes == int(y.max()) + 1
    assert data.shape == (3, 8, 8) and len(data.probe()) == 8 and "a DataLoader" in repr(data)
    with pytest.raises(DataError, match="no test split"):
        as_split(as_dataset(loader))
    blind = DataLoader([(image, int(label)) for image, label in zip(torch.from_numpy(x), y, strict=True)], 4)
    with pytest.raises(DataError, match=r"as_dataset\(loader, num_classes=...\)"):
        as_dataset(blind)
    assert as_dataset(blind, num_classes=4).num_classes == 4


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        ("digits", r"data='digits' is not a data set: load it first: at.load_data\('digits'\)"),
        (3, "data=3 is not a Dataset, Split, pair"),
        ((np.zeros((4, 3, 3, 3), np.uint8), np.zeros(4, int)), "beyond doubt"),
        ({"x": 1}, "data=an object of type dict is not"),
        ((np.zeros((4, 3, 8, 8), np.int64), np.zeros(4, int)), r"x.astype\(np.uint8\) if they are 0..255"),
        ((torch.full((4, 1, 8, 8), 9.0), torch.zeros(4).long()), "divide by 255: x / 255"),
        ((torch.rand(4, 1, 8, 8), torch.tensor([0, -1, 1, 0])), "data y='-1 to 1' is not at least 0: labels"),
        ((torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 20_000_000])), r"max\(y\)=20000000 is not below 100,000"),
        ((torch.zeros(4, 8, 8, 3), torch.zeros(4).long()), r"permute\(0, 3, 1, 2\)"),
        ((torch.rand(4, 1, 8, 8), torch.zeros(3).long()), "one label for each image"),
        ((torch.rand(4, 1, 8, 8), [0, 1, "a", 2]), "class numbers"),
        ((torch.ones(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4).long()), "cut to integers"),
        ([(torch.rand(1, 8, 8), 0), (torch.rand(1, 8, 9), 0), (torch.rand(1, 8, 9), 0)], "images differ"),
        ([("a", 0), ("b", 1), ("c", 1)], "not an image"),
        ([0, 1, 2], "not a pair"),
        ([], "empty"),
    ],
)
def test_what_is_no_data_is_refused(obj, message):
    with pytest.raises(DataError, match=message):
        as_dataset(obj)


def test_sets_that_do_not_fit_each_other_are_refused():
    with pytest.raises(DataError, match="test images"):
        as_dataset(some_images(20), test=some_images(5, shape=(3, 9, 9)))
    with pytest.raises(DataError, match="inside 0..2"):
        as_dataset(some_images(20), num_classes=3)
    with pytest.raises(DataError, match="classes"):
        as_dataset(some_images(20), num_classes=4, classes=["a"])
    with pytest.raises(DataError, match=r"val images=\(3, 9, 9\) is not of shape \(3, 8, 8\)"):
        as_dataset(some_images(20), val=some_images(5, shape=(3, 9, 9)))


def test_images_of_one_class_teach_nothing():
    x, _ = some_images(20)
    x, same = torch.from_numpy(x), torch.full((20,), 3)
    for data in ((x, same), DataLoader(TensorDataset(x, same), 8)):
        with pytest.raises(DataError, match="all 20 training images are of class 3: .* say num_classes=4"):
            as_dataset(data)
        assert as_dataset(data, num_classes=4).num_classes == 4
    assert set(as_split((x, same)).y.tolist()) == {3}, "to judge by they are good enough"


def test_training_on_one_class_is_worth_a_warning():
    x, y = torch.rand(20, 1, 8, 8), torch.zeros(20).long()
    data = as_dataset((x, y), num_classes=2)
    with pytest.warns(AdvtrainWarning, match="all 14 training images are of class 0: there is nothing to learn"):
        fit(build_model("small-cnn", data), Standard(Threat("linf", 0.1)), data, epochs=1)


@pytest.mark.parametrize("part", ["val", "test"])
def test_classes_to_judge_by_are_those_of_training(part):
    x, y = some_images(20, classes=3)
    other = some_images(9)[0], np.full(9, 3)
    loader = DataLoader(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), 8)
    for data in ((x, y), loader):
        with pytest.raises(DataError, match=rf"{part} y=\[3\] is not among the classes .* num_classes=4"):
            as_dataset(data, **{part: other})
        assert as_dataset(data, **{part: other}, num_classes=4).num_classes == 4


def test_numbers_of_numpy_are_numbers():
    x, y = some_images(20)
    plain = as_dataset((x, y), val=3, test=0.25, num_classes=int(y.max()) + 1)
    same = as_dataset((x, y), val=np.int64(3), test=np.float32(0.25), num_classes=y.max() + 1)
    assert same.num_classes == plain.num_classes and type(same.num_classes) is int
    for name in ("train", "val", "test"):
        assert getattr(same, name).x.equal(getattr(plain, name).x)
    assert json.dumps(load_data("digits", val=np.int64(100)).spec) == json.dumps(load_data("digits", val=100).spec)
    with pytest.raises(ArgumentError, match=r"val=True is not a share in \[0, 1\) or a count"):
        as_dataset((x, y), val=True)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kind", [int, np.int64, np.array, torch.tensor])
def test_a_split_of_one_number_is_one_image(kind, mapped):
    x, y = torch.rand(6, 1, 4, 4), torch.arange(6)
    split = (MappedSplit if mapped else Split)(x, y)
    assert split[kind(3)].x.equal(x[3:4]) and split[kind(-2)].y.tolist() == [4]
    assert split.images(kind(3)).equal(x[3])
    with pytest.raises(IndexError, match="out of range"):
        split[kind(6)]


def test_a_data_set_that_is_there_is_augmented_and_nothing_else_of_it_changes():
    data = as_dataset(some_images(20))
    other = as_dataset(data, augment=True)
    assert other.augment and not data.augment and other.train is data.train and other.spec is None
    assert as_dataset(other) is other and not as_dataset(other, augment=False).augment
    digits = as_dataset(load_data("digits"), augment=True)
    assert load_data(**digits.spec).augment  # a run remembers it


def test_crops_and_flips_are_there_or_not_and_never_ignored():
    for make in (as_dataset, load_data):
        with pytest.raises(ArgumentError, match="augment='flips' is not True, False or None"):
            make("digits", augment="flips")
    x, y = some_images(20)
    loader = DataLoader(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), 8)
    for data in (loader, as_dataset(loader)):
        with pytest.raises(ArgumentError, match="augment=True is not possible with a DataLoader: it brings its own"):
            as_dataset(data, augment=True)


@pytest.mark.parametrize("count", [1, 100_001, "3", 4.0, True])
def test_a_number_of_classes_is_at_least_two_and_believable(count):
    with pytest.raises(DataError, match=r"num_classes=.* is not an integer in 2\.\.100,000"):
        as_dataset(some_images(20), num_classes=count)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (torch.eye(4)[1], r"data\[1\]: label.shape=\(4,\) is not that of one class number: one-hot\? label.argmax\(\)"),
        ([0, 1, 0], r"data\[1\]: label=\[0, 1, 0\] is not a class number, an integer"),
        ("cat", r"data\[1\]: label='cat' is not a class number, an integer: number the names"),
        (None, r"data\[1\]: label=None is not a class number"),
        (0.5, r"data\[1\]: label=0.5 is not a class number"),
    ],
)
def test_an_item_whose_label_is_no_class_number_is_named(label, message):
    image = torch.rand(1, 8, 8)
    with pytest.raises(DataError, match=message):
        as_dataset([(image, 0), (image, label), (image, 1)])


def test_labels_of_items_may_be_any_single_integer():
    labels = [1, np.int32(2), torch.tensor(3), torch.tensor([4], dtype=torch.uint8), np.array(5)]
    assert as_split([(torch.rand(1, 8, 8), label) for label in labels]).y.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (lambda x, y: (x.to_sparse(), y), "data x.layout"),
        (lambda x, y: (x, y.to_sparse()), "data y.layout"),
        (
            lambda x, y: [(image.to_sparse(), int(label)) for image, label in zip(x, y, strict=True)],
            r"data\[0\]: image",
        ),
    ],
)
def test_sparse_tensors_are_named(data, named):
    with pytest.raises(DataError, match=rf"^{named}.*'torch.sparse_coo' is not torch.strided: .*to_dense\(\)"):
        as_dataset(data(torch.rand(4, 1, 8, 8), torch.arange(4)))


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="here it is float64")
def test_floats_that_tensors_do_not_know_are_named():
    x, y = some_images(4)
    with pytest.raises(DataError, match=r"data x.dtype='\w+' is not float64 or narrower: x.astype\(np.float32\)"):
        as_split(((x / 255).astype(np.longdouble), y))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"image": torch.rand(1, 8, 8), "label": 1},
            r"is a dict, not a pair \(x, y\): .* batch\['image'\], batch",
        ),
        ((torch.rand(1, 8, 8), 1, 2), r"is a list, not a pair \(x, y\), but holds 3"),
    ],
)
def test_batches_that_are_no_pair_are_named(row, message):
    loader = DataLoader([row] * 4, 2)
    with pytest.raises(DataError, match=f"^data: batch 0 {message}"):
        as_split(loader)
    with pytest.raises(DataError, match=f"^the DataLoader's first batch {message}"):
        as_dataset(loader, num_classes=2)


def test_batches_of_one_hot_labels_are_named():
    loader = DataLoader(TensorDataset(torch.rand(4, 1, 8, 8), torch.eye(4)), 2)
    with pytest.raises(DataError, match=r"batch 0: y.shape=\(2, 4\) is not \(B,\): one-hot\? y.argmax\(1\)"):
        as_split(loader)


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "CMYK"])
def test_palettes_and_transparency_are_not_read_as_pixels(mode):
    from PIL import Image

    photo = Image.fromarray(some_images(1, shape=(8, 9, 3), repeats=False)[0][0])
    with pytest.raises(DataError, match=rf"data\[0\] holds a PIL image of mode '{mode}'.*image.convert\('RGB'\)"):
        as_split([(photo.convert("L").convert(mode) if mode == "LA" else photo.convert(mode), i) for i in range(3)])
    split = as_split([(photo.convert("P").convert("RGB"), i) for i in range(3)])
    assert split.x.shape == (3, 3, 8, 9)


def test_a_split_checks_its_own_shapes_and_types():
    with pytest.raises(DataError, match=r"\(N, C, H, W\)"):
        Split(torch.zeros(2, 3, 4), torch.zeros(2).long())
    with pytest.raises(DataError, match="int64"):
        Split(torch.zeros(2, 3, 4, 4), torch.zeros(2))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_file_that_is_mapped_for_reading_is_not_copied_and_nobody_is_warned(tmp_path, layout):
    x, y = some_images(12)
    np.save(tmp_path / "x.npy", x if layout == "NCHW" else x.transpose(0, 2, 3, 1))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # it would be told once in a process, perhaps by an earlier test
    try:
        split = as_split((mapped, y))
    finally:
        torch.set_warn_always(always)
    assert split.x.data_ptr() == mapped.ctypes.data and split.x.equal(torch.from_numpy(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_have_memory_of_their_own(dtype):
    """A file that is mapped for reading ends the process that writes to it, and a model may write to its input."""
    split = Split(torch.rand(6, 1, 4, 4, dtype=dtype), torch.zeros(6).long())
    for part in (split, split[2:], split[:3].to("cpu")):
        part.images(dtype=dtype).fill_(2)
        part.images(slice(2), dtype).fill_(2)
    assert float(split.x.max()) < 1


def test_arrays_that_run_backwards_are_read():
    x, y = some_images(12)
    assert as_split((x[:, :, ::-1], y)).x.equal(torch.from_numpy(x).flip(2))
