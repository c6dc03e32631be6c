"""Bad input never trains in silence: wrong data, threats and models are refused by name, and leave nothing behind.

The tables hold mistakes that people make: the wrong call, the kind of error, and the whole message that they read. Of
every one it is looked at the model, the images, the folder and the random states, which must be as they were.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from wrong_calls import (
    CALLS,
    INF,
    NAN,
    Made,
    Net,
    after,
    images,
    labels,
    loader,
    net,
    pair,
    pixels,
    refused,
    uncovered,
    wrong,
)  # fmt: skip

import advtrain as at
from advtrain.errors import ArgumentError, DataError, FileError, ModelError, bad


def dicts():
    """A loader of batches that are dicts."""
    return DataLoader([{"image": images()[0], "label": 2}] * 4, 2)


def named():
    """A data set that knows the name of one class."""
    data = TensorDataset(images(), labels())
    data.classes = ["cat"]
    return data


# fmt: off
THREATS = [
    *wrong(
        "Threat", ArgumentError,
        ({"norm": "l1"}, "norm='l1' is not one of linf, l2: did you mean 'l2'?"),
        ({"norm": "Linf"}, "norm='Linf' is not one of linf, l2: did you mean 'linf'?"),
        ({"norm": INF}, "norm=inf is not one of linf, l2: did you mean 'linf'?"),
        ({"norm": None}, "norm=None is not one of linf, l2: write its name in quotes"),
        ({"eps": 8}, "eps=8 is not in (0, 1]: pixels are in [0, 1], did you mean 8/255?"),
        ({"eps": 300}, "eps=300 is not in (0, 1]: pixels are in [0, 1]"),
        ({"eps": "8/255"}, "eps='8/255' is not a finite number: write it without quotes"),
        ({"eps": True}, "eps=True is not a finite number: it is a number, not a switch"),
        ({"eps": NAN}, "eps=nan is not a finite number: look where it was computed: it is no finite number"),
        ({"eps": None}, "eps=None is not a finite number: such as eps=8/255"),
        ({"eps": torch.tensor(0.3)}, "eps=tensor(0.3000) is not a finite number: take the number out of it: .item()"),
        ({"eps": [0.1, 0.2]}, "eps=[0.1, 0.2] is not a finite number: such as eps=8/255"),
        ({"eps": 0}, "eps=0 is not in (0, 1]: pixels are in [0, 1], such as 8/255"),
        ({"eps": Made(object)}, "eps=an object of type object is not a finite number: such as eps=8/255"),
        ({"norm": "l2", "eps": -0.5},
         "eps=-0.5 is not above 0: a radius is positive; 128/255 is usual for ℓ2 on CIFAR-10"),
        ({"norm": "l2", "eps": INF},
         "eps=inf is not a finite number: look where it was computed: it is no finite number"),
        ({"low": 0.6, "high": 0.5},
         "(low, high)=(0.6, 0.5) is not a box inside [0, 1]: pixels are in [0, 1] in this package"),
        ({"high": 255}, "(low, high)=(0.0, 255.0) is not a box inside [0, 1]: pixels are in [0, 1] in this package"),
        ({"low": "0"}, "low='0' is not a finite number: write it without quotes"),
        ({"low": 0.5, "high": 0.6}, "eps=0.3 is not in (0, 0.1]: pixels are in [0.5, 0.6]"),
    ),
]
DATA = [
    *wrong(
        "load_data", ArgumentError,
        ({"name": "cifar-10"}, "name='cifar-10' is not one of digits, …: did you mean 'cifar10'?"),
        ({"name": None},
         "name=None is not the name of a data set, or the path of an .npz file or a folder of images: for images"
         " in memory: as_dataset"),
        ({"name": ""}, "name='' is not one of digits, …"),
        ({"root": 3}, "root=3 is not the path of a folder: write it as text, or as a Path"),
        ({"val": 1.0}, "val=1.0 is not a share in [0, 1) or a count: 0.1 keeps a tenth, 1000 keeps a thousand images"),
        ({"val": -1}, "val=-1 is not a share in [0, 1) or a count: 0.1 keeps a tenth, 1000 keeps a thousand images"),
        ({"val": 5000}, "val=5000 is not below 1437, the number of images: some must remain for training"),
        ({"val": "0.1"},
         "val='0.1' is not a share in [0, 1) or a count: 0.1 keeps a tenth, 1000 keeps a thousand images"),
        ({"val": True},
         "val=True is not a share in [0, 1) or a count: 0.1 keeps a tenth, 1000 keeps a thousand images"),
        ({"size": 32},
         "size=32 is not an option for digits: only the images of a folder are scaled; here leave it out"),
        ({"size": (64, 64)}, "size=(64, 64) is not an integer of at least 1: one number, not several"),
        ({"size": 64.0}, "size=64.0 is not an integer of at least 1: write 64"),
        ({"augment": "yes"}, "augment='yes' is not True, False or None: random crops and flips are there or not"),
        ({"seed": -1}, "seed=-1 is not an integer of at least 0"),
        ({"seed": "0"}, "seed='0' is not an integer of at least 0: write it without quotes"),
        ({"seed": 0.5}, "seed=0.5 is not an integer of at least 0: write 0"),
        ({"download": "no"},
         "download='no' is not True or False: write it without quotes: of text even 'no' would count as true"),
    ),
    *wrong(
        "load_data", FileError,
        ({"name": "cifar10"},
         "cifar10 is not in data: run `advtrain data fetch cifar10`, or load_data('cifar10', download=True), or "
         "name the folder that holds it with ADVTRAIN_DATA or root"),
    ),
    *wrong("Split", ArgumentError, ({"salt": -1}, "salt=-1 is not an integer of at least 0")),
    *wrong(
        "Split", DataError,
        ({"x": Made(lambda: images().numpy())},
         "x=an object of type ndarray is not a torch.Tensor: at.as_dataset((x, y)) also takes arrays"),
        ({"y": Made(lambda: labels()[:3])},
         "x of shape (16, 1, 8, 8) and y of shape (3,) are not (N, C, H, W) and (N,)"),
        ({"y": Made(lambda: labels().float())},
         "x of torch.float32 and y of torch.float32 are not uint8 or floating, and int64"),
    ),
    *wrong(
        "as_dataset", ArgumentError,
        ({"test": 1.0},
         "test=1.0 is not a share in [0, 1) or a count: 0.1 keeps a tenth, 1000 keeps a thousand images"),
        ({"test": 16}, "test=16 is not below 16, the number of images: some must remain for training"),
        ({"val": 14}, "val=14 is not below 12, the number of images: some must remain for training"),
        ({"seed": -1}, "seed=-1 is not an integer of at least 0"),
        ({"augment": "flip"}, "augment='flip' is not True, False or None: random crops and flips are there or not"),
        ({"name": 3}, "name=3 is not text: it is only what to call the data"),
        ({"data": Made(loader), "test": 0.5, "val": 0},
         "test=0.5 is not possible with a DataLoader: it keeps no images for it: pass those to use, or test=0"),
        ({"data": Made(loader), "test": None, "val": 0.2},
         "val=0.2 is not possible with a DataLoader: it keeps no images for it: pass those to use, or val=0"),
        ({"data": Made(loader), "test": None, "val": 0, "augment": True},
         "augment=True is not possible with a DataLoader: it brings its own: crop and flip in its data set"),
    ),
    *wrong(
        "as_dataset", DataError,
        ({"test": "test"}, "test='test' is not a data set: load it first: at.load_data('test')"),
        ({"test": pair(lambda: torch.rand(4, 1, 9, 9), lambda: torch.arange(1, 5))},
         "test images=(1, 9, 9) is not of shape (1, 8, 8), as the training images: resize them all to one shape"),
        ({"test": pair(y=lambda: labels() + 10), "num_classes": 10},
         "test y='11 to 18' is not inside 0..9, for 10 classes: labels are class numbers, counted from 0"),
        ({"test": pair(y=lambda: labels() + 2)},
         "test y=[9, 10] is not among the classes of the training images: are both numbered alike? If it is meant "
         "so, say num_classes=11"),
        ({"data": pair(y=lambda: torch.full((16,), 3))},
         "all 16 training images are of class 3: of one class there is nothing to learn, and one answer is right "
         "for all; if it is meant so, say num_classes=4"),
        ({"val": None},
         "val=None is not a Dataset, Split, pair (x, y), torch Dataset or DataLoader: such as (x, y): images and"
         " their labels"),
        ({"val": pair(lambda: torch.rand(4, 3, 8, 8), lambda: torch.arange(1, 5))},
         "val images=(3, 8, 8) is not of shape (1, 8, 8), as the training images: resize them all to one shape"),
        ({"num_classes": 3},
         "data y='1 to 8' is not inside 0..2, for 3 classes: labels are class numbers, counted from 0"),
        ({"num_classes": 1},
         "num_classes=1 is not an integer in 2..100,000: labels are the class numbers 0 to num_classes - 1"),
        ({"num_classes": "10"}, "num_classes='10' is not an integer in 2..100,000: write it without quotes"),
        ({"classes": ["cat", "dog"]},
         "data y='1 to 8' is not inside 0..1, for 2 classes: labels are class numbers, counted from 0"),
        ({"classes": ["cat"]}, "classes=['cat'] is not the names of at least two classes"),
        ({"data": Made(named)},
         "data.classes=['cat'] is not the names of at least two classes: give classes=['cat', 'dog'], say"),
        ({"data": Made(dicts), "test": None, "val": 0, "num_classes": 10},
         "the DataLoader's first batch is a dict, not a pair (x, y): give the DataLoader a collate_fn that returns "
         "one, such as batch['image'], batch['label']"),
        ({"classes": "abcdefghij"},
         "classes='abcdefghij' is not a list of names: such as ['cat', 'dog'], one for each class"),
        ({"classes": list("aabcdefghi")},
         "classes=['a', 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i'] is not a list of different names: 'a' "
         "stands there twice"),
        ({"classes": ["cat", "dog"], "num_classes": 10},
         "classes=2 is not 10 names: one for each class, or leave out one"),
        ({"data": Made(lambda: loader(0)), "test": None, "val": 0},
         "the classes of the DataLoader cannot be counted (data y.shape=(0,) is not at least one label: look "
         "where the images were selected): say how many there are, as_dataset(loader, num_classes=...)"),
        ({"data": pair(lambda: [images()[0]])},
         "data x=an object of type list is not a torch.Tensor: torch.stack(images) makes one"),
        ({"data": pair(lambda: np.zeros((4, 8, 8, 8)), lambda: np.arange(4))},
         "data x.shape=(4, 8, 8, 8) is not (N, C, H, W), (N, H, W, C) or (N, H, W) beyond doubt: a torch tensor "
         "is always read as (N, C, H, W)"),
        ({"data": pair(lambda: np.zeros((4, 1, 8, 8), dtype=int), lambda: np.arange(4))},
         "data x.dtype='int64' is not uint8 (0..255) or floating ([0, 1]): x.astype(np.uint8) if they are 0..255"),
        ({"data": pair(lambda: images().numpy()[:2], lambda: np.array(["a", "b"]))},
         "data y is not a list of class numbers: …. np.unique(y, "
         "return_inverse=True)[1] numbers names"),
        ({"data": pair(y=lambda: [str(number) for number in range(16)])},
         "data y is not a list of class numbers: …. np.unique(y, return_inverse=True)[1]"
         " numbers names"),
        ({"data": pair(y=lambda: labels() * 1_000_000)},
         "max(y)=8000000 is not below 100,000, as class numbers are: number the classes from 0: torch.unique(y, "
         "return_inverse=True)[1]"),
        ({"data": pair(y=lambda: labels().bool())},
         "data y.dtype=torch.bool is not an integer type: class numbers: y.long()"),
        ({"data": Made(lambda: [(images()[0], 1.5)])},
         "data[0]: label=1.5 is not a class number, an integer: labels are counted from 0"),
        ({"data": Made(lambda: [(images()[0], 1), (images()[1][:, :4], 2), (images()[2], 3)])},
         "data: images differ: (1, 4, 8) torch.float32 at number 1, (1, 8, 8) torch.float32 at number 0; resize "
         "them all to one shape"),
        ({"data": Made(lambda: [{"picture": images()[0], "label": 2}])},
         "data[0] has the columns picture, label, and not just one image and one label: rename them, "
         "data.rename_columns({'pixels': 'image', 'digit': 'label'})"),
        ({"data": {"train": [1, 2], "test": [3]}},
         "data=an object of type dict is not a Dataset, Split, pair (x, y), torch Dataset or DataLoader: one of "
         "its parts is: data['train']"),
        ({"data": []}, "data is empty: it holds no images; a pair (x, y) of tensors does"),
    ),
    *wrong(
        "fit", ArgumentError,
        ({"data": "digits"}, "data='digits' is not a data set: load it first: at.load_data('digits')"),
    ),
    *wrong(
        "as_dataset evaluate diagnose", DataError,
        ({"data": "digits"}, "data='digits' is not a data set: load it first: at.load_data('digits')"),
    ),
    *wrong(
        "as_dataset fit evaluate diagnose", DataError,
        ({"data": None},
         "data=None is not a Dataset, Split, pair (x, y), torch Dataset or DataLoader: such as (x, y): images "
         "and their labels"),
        ({"data": Made(images)}, "data[0] is a Tensor, not a pair (image, label): give the labels too: (data, y)"),
        ({"data": Made(lambda: (images(), labels(), 3))},
         "data[0] is a Tensor, not a pair (image, label): give the labels too: (data, y)"),
        ({"data": pair(labels, images)},
         "data x.shape=(16,) is not (B, C, H, W): images come first, then labels: (x, y)"),
        ({"data": pair(lambda: pixels(NAN))},
         "data x has NaN or infinite pixels in 1 image(s), the first at x[0]; pixels are in [0, 1]: leave these "
         "out, or find the division by zero"),
        ({"data": pair(lambda: pixels(-INF))},
         "data x has NaN or infinite pixels in 1 image(s), the first at x[0]; pixels are in [0, 1]: leave these "
         "out, or find the division by zero"),
        ({"data": pair(lambda: images() * 255)},
         "data x='0 to 255' is not inside [0, 1]: divide by 255: x / 255, or pass uint8: x.to(torch.uint8)"),
        ({"data": pair(lambda: images() * 2 - 1)},
         "data x='-1 to 1' is not inside [0, 1]: normalised images? pass plain pixels: normalisation is the "
         "model's first layer (build_model)"),
        ({"data": pair(lambda: pixels(1.01))},
         "data x='0 to 1.01' is not inside [0, 1]: resampling overshoots: x.clamp(0, 1)"),
        ({"data": pair(lambda: images()[:, 0])},
         "data x.shape=(16, 8, 8) is not (B, C, H, W): for one image x[None]; for grey images x[:, None]"),
        ({"data": pair(lambda: images().flatten(1))}, "data x.shape=(16, 64) is not (B, C, H, W): images, not vectors"),
        ({"data": pair(lambda: images().permute(0, 2, 3, 1))},
         "data x.shape=(16, 8, 8, 1) is not (B, C, H, W): channels come first: x.permute(0, 3, 1, 2)"),
        ({"data": pair(lambda: images()[:0], lambda: labels()[:0])},
         "data x.shape=(0, 1, 8, 8) is not a batch of at least one image: look where the images were selected"),
        ({"data": pair(lambda: (images() * 255).long())},
         "data x.dtype=torch.int64 is not torch.uint8 (0..255) or floating ([0, 1]): x.to(torch.uint8) if they "
         "are 0..255"),
        ({"data": pair(lambda: images() > 0.5)},
         "data x.dtype=torch.bool is not torch.uint8 (0..255) or floating ([0, 1]): x.float()"),
        ({"data": pair(lambda: (images() > 0.5).to(torch.uint8))},
         "data x='uint8 with a maximum of 1' is not 0..255: floats in [0, 1] cut to integers? pass the floats, "
         "or (x * 255).round().to(torch.uint8)"),
        ({"data": pair(lambda: images() * 1j)},
         "data x.dtype=torch.complex64 is not torch.uint8 (0..255) or floating ([0, 1]): x.to(torch.uint8) if "
         "they are 0..255"),
        ({"data": pair(y=lambda: labels()[:-1])},
         "len(data y)=15 is not 16, the number of images: one label for each image"),
        ({"data": pair(y=lambda: labels().float())},
         "data y.dtype=torch.float32 is not an integer type: class numbers: y.long()"),
        ({"data": pair(y=lambda: labels() - 5)},
         "data y='-4 to 3' is not at least 0: labels are class numbers, counted from 0"),
        ({"data": pair(y=lambda: nn.functional.one_hot(labels(), 10))},
         "data y.shape=(16, 10) is not (B,): one-hot? y.argmax(1)"),
        ({"data": pair(y=lambda: labels()[:, None])}, "data y.shape=(16, 1) is not (B,): y.flatten()"),
        ({"data": pair(y=lambda: None)}, "data y=None is not a torch.Tensor: torch.as_tensor(labels) makes one"),
    ),
    *wrong(
        "fit evaluate diagnose", ModelError,
        ({"data": pair(lambda: images().repeat(1, 3, 1, 1))},
         "…the model fails on a batch of shape … 3, 8, 8), torch.float32 on cpu: RuntimeError: …; "
         "its normalisation takes 1 channels and the images have 3"),
        ({"data": pair(y=lambda: labels() + 10)},
         "…the model returns 10 logits and the data have 19 classes: build it with num_classes=19"),
    ),
    *wrong(
        "evaluate diagnose", DataError,
        ({"data": Made(lambda: loader(white=255))},
         "data x='0 to 255' is not inside [0, 1]: divide by 255: x / 255, or pass uint8: x.to(torch.uint8)"),
        ({"data": Made(lambda: at.as_dataset((images(), labels()), test=0))},
         "data='own data' has no test split: pass the images to judge by, such as data.val"),
    ),
]
MODELS = [
    *wrong(
        "build_model", ArgumentError,
        ({"name": "small_cnn"}, "name='small_cnn' is not one of small-cnn, …: did you mean 'small-cnn'?"),
        ({"name": "resnet50"}, "name='resnet50' is not one of small-cnn, …: did you mean 'preactresnet50'?"),
        ({"name": Made(net)}, "name=an object of type Net is not one of small-cnn, …: write its name in quotes"),
        ({"data": None}, "shape=None is not (C, H, W): give data or shape, for instance shape=(3, 32, 32)"),
        ({"data": "digits"}, "data='digits' is not a Dataset: load it first: at.load_data('digits')"),
        ({"data": pair()}, "data=an object of type tuple is not a Dataset: at.as_dataset((x, y)) makes one"),
        ({"shape": (1, 8)},
         "shape=(1, 8) is not (C, H, W), three positive integers: give data or shape, for instance shape=(3, 32, 32)"),
        ({"shape": 8}, "shape=8 is not (C, H, W): give data or shape, for instance shape=(3, 32, 32)"),
        ({"shape": (1, 8.5, 8)},
         "shape=(1, 8.5, 8) is not (C, H, W), three positive integers: give data or shape, for instance "
         "shape=(3, 32, 32)"),
        ({"shape": (1, 2, 2)},
         "shape=(1, 2, 2) is not (C, H, W) with H and W of at least 8: small-cnn halves its images"),
        ({"shape": (8, 8, 1)},
         "normalize='1 means and 1 deviations' is not one of each for 8 channels: the images have as many: is "
         "shape (C, H, W)?"),
        ({"num_classes": 1}, "num_classes=1 is not an integer of at least 2: give data or num_classes"),
        ({"num_classes": "10"}, "num_classes='10' is not an integer of at least 2: write it without quotes"),
        ({"normalize": True},
         "normalize=True is not 'data', 'image', None or (mean, std): mean and std have one number per channel"),
        ({"normalize": ([0.5], [0.0])},
         "std=(0.0,) is not positive and finite: a constant channel has no scale: use 1.0 for it"),
        ({"normalize": ([NAN], [0.5])}, "mean=(nan,) is not finite"),
        ({"normalize": ([0.5] * 3, [0.5] * 3)},
         "normalize='3 means and 3 deviations' is not one of each for 1 channels: the images have as many: is "
         "shape (C, H, W)?"),
        ({"normalize": ([127.5], [64.0])},
         "normalize=[[127.5], [64.0]] is not in units of a pixel in [0, 1]: divide mean and std by 255"),
        ({"seed": -1}, "seed=-1 is not an integer of at least 0"),
        ({"seed": None}, "seed=None is not an integer of at least 0"),
        ({"seed": "one"}, "seed='one' is not an integer of at least 0"),
        ({"wdith": 4}, "option='wdith' is not one of width, batch_norm, activation: did you mean 'width'?"),
        ({"depth": 28}, "option='depth' is not one of width, batch_norm, activation: did you mean 'width'?"),
        ({"width": 0}, "width=0 is not an integer of at least 1"),
        ({"width": "4"}, "width='4' is not an integer of at least 1: write it without quotes"),
        ({"activation": "swish"}, "activation='swish' is not one of relu, …"),
        ({"activation": Made(nn.ReLU)}, "activation=ReLU() is not one of relu, …: did you mean 'relu'?"),
        ({"batch_norm": "no"},
         "batch_norm='no' is not True or False: write it without quotes: of text even 'no' would count as true"),
    ),
    *wrong(
        "wideresnet", ArgumentError,
        ({"depth": 27}, "depth=27 is not 6n + 4 in 10..10,000: the papers use 16, 28, 34, 40 and 70"),
        ({"depth": "28"}, "depth='28' is not 6n + 4 in 10..10,000: write it without quotes"),
        ({"dropout": 1.0}, "dropout=1.0 is not in [0, 1)"),
        ({"dropout": "0.3"}, "dropout='0.3' is not in [0, 1): write it without quotes"),
        ({"shape": (3, 2, 2)},
         "shape=(3, 2, 2) is not (C, H, W) with H and W of at least 4: wideresnet halves its images"),
    ),
    *wrong(
        "load_model", ArgumentError,
        ({"model": "resnet18"},
         "model='resnet18' is not 'package.module:factory' or 'file.py:factory', or one of small-cnn, …: did you"
         " mean 'preactresnet18'?"),
        ({"model": "torchvision.models:resnet19"},
         "model='torchvision.models:resnet19': there is no 'resnet19' in torchvision.models: did you mean "
         "'resnet18'?"),
        ({"model": "torchvison.models:resnet18"},
         "model: torchvison.models cannot be imported: ModuleNotFoundError: No module named 'torchvison': is it "
         "installed, or in the current folder? A file is named 'file.py:factory'"),
        ({"model": None},
         "model=None is neither a factory nor a network but of type NoneType: write 'package.module:factory' or "
         "'file.py:factory'"),
        ({"model": "torch:float32"},
         "model='torch:float32' is neither a factory nor a network but of type dtype: write "
         "'package.module:factory' or 'file.py:factory'"),
        ({"model": nn.Linear},
         "model='torch.nn.modules.linear:Linear' cannot be called with options={}: missing a required argument: "
         "'in_features'; options={'num_classes': 10} (--model-option num_classes=10) gives arguments"),
        ({"options": {"width": 4}},
         "options=['width'] is not used by a network that is made already: name its factory instead"),
        ({"options": "width=4"}, "options='width=4' is not a Mapping: such as options={'num_classes': 10}"),
        ({"options": {3: 4}}, "options=3 is not the name of an argument: such as options={'num_classes': 10}"),
        ({"model": "small-cnn", "options": {"wdith": 4}},
         "option='wdith' is not one of width, batch_norm, activation: did you mean 'width'?"),
        ({"model": "small-cnn", "options": {"seed": 4}},
         "options='seed' is not an option of the network: seed is an argument of load_model itself"),
        ({"data": "digits"}, "data='digits' is not a Dataset: at.load_data(name), or at.as_dataset((x, y)), makes one"),
        ({"weights": 3}, "weights=3 is not the name of a file: model.load_state_dict(weights) takes tensors"),
        ({"weights": Made(lambda: net().state_dict())},
         "weights=an object of type OrderedDict is not the name of a file: model.load_state_dict(weights) takes "
         "tensors"),
        ({"weights_key": "ema"}, "weights_key='ema' is not used without weights: leave it out, or give the file"),
        ({"mean": 0.5}, "std=None is not given, and mean is: give both; std=1 changes nothing"),
        ({"mean": 127, "std": 64}, "mean=127 is not in [0, 1]: pixels are in [0, 1] here: divide by 255"),
        ({"mean": "0.5", "std": 0.5}, "mean='0.5' is not a number, or one for each channel: write it without quotes"),
        ({"std": 0.5}, "mean=None is not given, and std is: give both; mean=0 changes nothing"),
        ({"mean": 0.5, "std": 0},
         "std=(0.0,) is not positive and finite: a constant channel has no scale: use 1.0 for it"),
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5, 0.5)},
         "std=(0.5, 0.5, 0.5) is not as long as mean=(0.5, 0.5): give one number per channel"),
        ({"pick": 1.5}, "pick=1.5 is not a name, or a position: such as 'logits', or 0 of a tuple"),
        ({"device": "gpu"}, "device='gpu' is not available here: …"),
        ({"seed": "x"}, "seed='x' is not an integer of at least 0"),
    ),
    *wrong(
        "load_model", FileError,
        ({"model": "nowhere.py:Net"}, "model: nowhere.py does not exist, or is no file"),
        ({"weights": "nowhere.pt"}, "weights='nowhere.pt' does not exist: is it elsewhere, or spelled otherwise?"),
        ({"weights": "https://example.org/net.pt"},
         "weights='https://example.org/net.pt' does not exist: download it first"),
    ),
    *wrong(
        "load_model", ModelError,
        ({"model": nn.Linear, "options": {"in_features": 64, "out_features": "ten"}},
         "model='torch.nn.modules.linear:Linear' fails with options={'in_features': 64, 'out_features': 'ten'}: "
         "TypeError: …"),
        ({"model": Made(lambda: net(3))},
         "model='wrong_calls:Net' returns 3 logits and few digits has 10 classes: the network is for other data,"
         " or needs options={'num_classes': 10} (--model-option)"),
        ({"model": Made(lambda: net(channels=3))},
         "model='wrong_calls:Net' cannot be judged on few digits, images of 1x8x8: the model fails on a batch of"
         " shape (2, 1, 8, 8), torch.float32 on cpu: RuntimeError: …; "
         "its normalisation takes 3 channels and the images have 1"),
        ({"model": Made(lambda: net().to("meta"))},
         "model='wrong_calls:Net': norm.weight is on the meta device, which holds no numbers: make the network "
         "on the CPU, outside torch.device('meta')"),
        ({"mean": (0.5, 0.5), "std": 0.5},
         "model='wrong_calls:Net' cannot be judged on few digits, images of 1x8x8: mean and std have 2 channels "
         "and the images are (2, 1, 8, 8): give one number for each channel, or a single one"),
        ({"pick": "logits"},
         "model='wrong_calls:Net' cannot be judged on few digits, images of 1x8x8: pick='logits' is not in the "
         "Tensor that the model returns: it is one of shape (2, 10): leave out pick"),
    ),
    *wrong(
        "fit evaluate autoattack diagnose", ArgumentError,
        ({"model": "small-cnn"}, "model='small-cnn' is not a Module: …"),
        ({"model": Net}, "model=the class Net is not a Module: the order is …"),
    ),
    *wrong(
        "fit evaluate autoattack diagnose", ModelError,
        ({"model": Made(lambda: after(lambda z: z.argmax(1)))},
         "the model returns shape … for … images, not … K) logits"),
        ({"model": Made(lambda: after(lambda z: z * NAN))},
         "the model returns NaN or infinite logits: its weights are damaged or its input is not [0, 1]"),
        ({"model": Made(lambda: after(lambda z: (z, z)))},
         "the model returns an object of type tuple, not a tensor of logits (B, K): wrap it, as "
         "at.load_model(model, pick=0) does"),
        ({"model": Made(lambda: after(lambda z: {"logits": z}))},
         "the model returns an object of type dict, not a tensor of logits (B, K): wrap it, as "
         "at.load_model(model, pick='logits') does"),
        ({"model": Made(lambda: after(lambda z: z[0]))}, "the model returns shape (10,) for … images, not … K) logits"),
        ({"model": Made(lambda: net(3))}, "the model returns 3 logits and the data have … classes: build it with …"),
        ({"model": Made(lambda: net(channels=3))},
         "the model fails on a batch of shape … 1, 8, 8), torch.float32 on cpu: RuntimeError: …; "
         "its normalisation takes 3 channels and the images have 1"),
        ({"model": Made(lambda: net().half())},
         "the model fails on a batch of shape … 1, 8, 8), torch.float32 on cpu: RuntimeError: …; "
         "its weights are torch.float16: model.float() widens "
         "them, as ε-balls need"),
        ({"model": Made(lambda: net().to("meta"))},
         "the model is on the meta device, which holds no numbers: load its weights on another one"),
    ),
    *wrong(
        "fit evaluate pgd budget cost", ModelError,
        ({"model": Made(lambda: after(lambda z: z.softmax(1)))},
         "the model returns probabilities (every row is in [0, 1] and sums to 1): remove the softmax, training "
         "and attacks need logits"),
    ),
    *wrong(
        "fit", ArgumentError,
        ({"model": Made(nn.Flatten), "data": Made(lambda: at.as_dataset((images(), labels())))},
         "model='Flatten' is not trainable: no parameter requires a gradient"),
        ({"model": Made(lambda: net().requires_grad_(False))},
         "model='Net' is not trainable: no parameter requires a gradient"),
    ),
    *wrong(
        "evaluate fgsm r_fgsm i_fgsm mi_fgsm pgd r_fgsm_pgd", ModelError,
        ({"model": Made(lambda: after(lambda z: z.detach()))},
         "the model has no gradient with respect to its images, which attacks need: look in its forward for "
         "no_grad, detach, numpy, rounding, or images changed in place"),
    ),
    *wrong(
        "attacking", ArgumentError,
        ({"model": None}, "model=None is not a Module: at.build_model(name, data) makes one"),
        ({"bn": "train()"}, "bn='train()' is not one of eval, train, batch: did you mean 'train'?"),
    ),
]
ROWS = [*THREATS, *DATA, *MODELS]
# fmt: on


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_it_is_refused_by_name_and_leaves_nothing_behind(row, world):
    refused(row)


@pytest.mark.parametrize("call", sorted({row.call for row in ROWS}))
def test_without_the_mistake_the_call_works(call, tmp_path, monkeypatch):
    """So that it is the mistake which is refused."""
    monkeypatch.chdir(tmp_path)
    function, given = CALLS[call]
    function(**given())


def test_every_parameter_has_a_mistake_in_the_table():
    """A new one comes with a row here."""
    calls = "Threat", "load_data", "as_dataset", "Split", "build_model", "load_model"
    assert uncovered(calls, ROWS) == set()
    judges = uncovered(("fit", "evaluate", "diagnose"), ROWS) | uncovered(["autoattack"], ROWS)
    assert not {(call, name) for call, name in judges if name in ("model", "data")}


def test_what_is_not_refused_or_leaves_something_behind_is_seen(world):
    """The harness itself: each kind of fault that it looks for, made on purpose."""

    def call(model, leave=(), message="lr=0 is not above 0"):
        if "weights" in leave:
            model.head.bias.data[0] = 9
        if "mode" in leave:
            model.norm.train()
        if "flag" in leave:
            model.norm.weight.requires_grad_()
        if "gradient" in leave:
            model(images()).sum().backward()
        if "file" in leave:
            (world / "left").write_text("")
        if "random" in leave:
            torch.rand(1)
        if "nothing wrong" not in leave:
            raise ArgumentError(message)

    def row(kind=ArgumentError, says="lr=0 is not above 0", **given):
        return wrong("call", kind, (given, says))[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CALLS, "call", (call, lambda: {"model": net()}))
        refused(row(leave=()))
        refused(row(says="lr=…above 0"))
        for what in ("weights", "mode", "flag", "gradient"):
            with pytest.raises(AssertionError, match="an argument is not as it was"):
                refused(row(leave=(what,)))
        with pytest.raises(AssertionError, match="a random state is not as it was"):
            refused(row(leave=("random",)))
        with pytest.raises(AssertionError, match="the folder is not as it was"):
            refused(row(leave=("file",)))
        with pytest.raises(pytest.fail.Exception, match="it is accepted"):
            refused(row(leave=("nothing wrong",)))
        for wanted in (row(ValueError), row(DataError), row(says="lr"), row(says="lr=1…")):
            with pytest.raises(AssertionError):
                refused(wanted)
        for message in ("of <object object at 0x7f3a2b1c0d10>", 401 * "x"):
            with pytest.raises(AssertionError):
                refused(row(says="…", message=message))
    (world / "left").unlink()


def test_what_an_error_quotes_stays_in_its_line():
    assert str(ModelError("it fails: two\n  lines")) == "it fails: two lines"
    with pytest.raises(ArgumentError, match=r"^lr=an object of type object is not above 0: is it\?$"):
        bad("lr", object(), "above 0", "is it?")
    with pytest.raises(ArgumentError, match=r"^name=\[0, 1, 2, .{80,90}… is not text$"):
        bad("name", list(range(1000)), "text")
