"""Files and folders that are missing, damaged, or something else are refused by name, and leave nothing behind.

As in `test_bad_input.py`: the wrong call, the kind of error, and the whole message. `wrong_files.py` makes the files.
"""

import pytest
from wrong_calls import CALLS, Made, net, refused, uncovered, wrong
from wrong_files import build

from advtrain.errors import ArgumentError, DataError, FileError, ModelError

# fmt: off
RUNS = [
    *wrong(
        "load_run", ArgumentError,
        ({"path": 3}, "path=3 is not the path of a run folder: write it as text, or as a Path"),
        ({"model": Made(net)},
         'model does not fit the weights in run/model.safetensors: Missing key(s) in state_dict: "norm.weight", '
         '"norm.bias", "norm.running_mean", "norm.running_var". Unexpected key(s) in state_dict: "body.0.bias", '
         '"body.0.weight", "body.2.bias", "body.2.weight", "bo…. Wrap your network: at.load_model(net, '
         "mean=[0.5] * 1, std=[0.5] * 1), say, for that of the run was normalised, and its values replace these"),
        ({"model": "small-cnn"},
         "model='small-cnn' is not a Module: a network like that of the run, or None for one of build_model"),
        ({"defense": "fast-at"},
         "defense='fast-at' is not a Defense: at.defenses.FastAT(threat), say, or None for one of this package"),
        ({"data": "digits"}, "data='digits' is not a Dataset: at.load_data(name), or at.as_dataset((x, y)), makes one"),
    ),
    *wrong(
        "load_run", FileError,
        ({"path": "nowhere"}, "nowhere holds no run: there is no config.json in it"),
        ({"path": "a-file"}, "a-file holds no run: there is no config.json in it"),
        ({"path": "run-none"}, "run-none holds no run: there is no config.json in it"),
        ({"path": "run-config"},
         "run-config/config.json cannot be read as JSON: …; it is damaged, or another kind of file"),
        ({"path": "run-format"}, "run-format has format 99, this version reads 1: update advtrain-book"),
        ({"path": "run-key"}, "run-key/config.json is damaged: it lacks 'options'"),
        ({"path": "run-list"},
         "run-list/config.json is damaged: …"),
        ({"path": "run-option"},
         "run-option/config.json is damaged: rel_step='big' is not above 0: it is α/ε; the paper uses 1.25"),
        ({"path": "run-model"},
         "run-model/config.json is damaged: name='small-cnnn' is not one of small-cnn, …: did you mean 'small-cnn'?"),
        ({"path": "run-history"}, "run-history/history.json is damaged: it is not a list of records"),
        ({"path": "run-no-weights"}, "run-no-weights/model.safetensors does not exist"),
        ({"path": "run-cut-weights"},
         "run-cut-weights/model.safetensors is damaged or not a safetensors file: …"),
    ),
    *wrong(
        "load_run", ArgumentError,
        ({"path": "run-defense"}, "defense=None is not given: this run's MyDefense is not part of this package"),
        ({"device": "gpu"},
         "device='gpu' is not available here: …"),
    ),
    *wrong(
        "fit", FileError,
        ({"out": "run"},
         "run already holds a config.json of an earlier run or export; choose another folder, or pass "
         "overwrite=True (--overwrite)"),
        ({"out": "exported-before"},
         "exported-before holds an export, whose weights these would replace, as its model.json says: choose "
         "another folder"),
    ),
    *wrong(
        "export", ArgumentError,
        ({"model": "small-cnn"}, "model='small-cnn' is not a Module: at.build_model(name, data) makes one"),
        ({"path": 3}, "path=3 is not the path of a folder: write it as text, or as a Path"),
        ({"data": "digits"}, "data='digits' is not a Dataset: at.load_data(name), or at.as_dataset((x, y)), makes one"),
        ({"data": None}, "shape=None is not (C, H, W): the model does not tell it: give data, or shape=(3, 32, 32)"),
        ({"data": None, "shape": (8, 8)},
         "shape=(8, 8) is not (C, H, W): the model does not tell it: give data, or shape=(3, 32, 32)"),
        ({"data": None, "shape": "1x8x8"},
         "shape='1x8x8' is not (C, H, W): the model does not tell it: give data, or shape=(3, 32, 32)"),
        ({"threat": 0.3}, 'threat=0.3 is not a Threat: write Threat("linf", eps=8/255)'),
        ({"defense": "fast-at"},
         "defense='fast-at' is not a Defense: make one with its threat: at.defenses.FastAT(threat)"),
        ({"overwrite": "no"},
         "overwrite='no' is not True or False: write it without quotes: of text even 'no' would count as true"),
    ),
    *wrong(
        "export", FileError,
        ({"path": "a-file/below"}, "cannot write to a-file/below: a-file is no folder; choose another one"),
        ({"path": "run"},
         "run holds a run, whose weights these would replace, as its config.json says: choose another folder"),
        ({"path": "exported-before"},
         "exported-before already holds a model.json of an earlier run or export; choose another folder, or pass"
         " overwrite=True (--overwrite)"),
    ),
    *wrong(
        "export", ModelError,
        ({"model": Made(lambda: net().to("meta"))},
         "the model is on the meta device, which holds no numbers: load its weights on another one"),
    ),
]
IMAGES = [
    *wrong(
        "load_data", FileError,
        ({"name": "nowhere.npz"}, "nowhere.npz does not exist: is it elsewhere, or spelled otherwise?"),
        ({"name": "./nowhere"}, "./nowhere does not exist: is it elsewhere, or spelled otherwise?"),
        ({"name": "./mnist"}, "./mnist does not exist: is it elsewhere, or spelled otherwise?"),
        ({"name": "mnist", "root": "a-file"}, "root='a-file' is a file: name the folder that holds the data sets"),
        ({"name": "mnist", "root": "a-file", "download": True},
         "root='a-file' is a file: name the folder that holds the data sets"),
        ({"name": "text.npz"},
         "text.npz cannot be read as .npz: it is another kind of file, or holds objects, of which only numbers "
         "and text are read; np.savez(FILE, x_train=x, y_train=y) makes one"),
        ({"name": "cut.npz"},
         "cut.npz cannot be read as .npz: …; np.savez(FILE, x_train=x, y_train=y) makes one"),
        ({"name": "single.npz"},
         "single.npz cannot be read as .npz: it holds a single array, as .npy files do; np.savez(FILE, "
         "x_train=x, y_train=y) makes one"),
        ({"name": "objects.npz"},
         "objects.npz cannot be read as .npz: it is another kind of file, or holds objects, of which only "
         "numbers and text are read; np.savez(FILE, x_train=x, y_train=y) makes one"),
        ({"name": "no-labels.npz"},
         "no-labels.npz holds x_train and lacks y_train; wanted are x_train, y_train, x_test, y_test and, if you"
         " like, x_val, y_val, classes"),
        ({"name": "no-test-labels.npz"},
         "no-test-labels.npz holds x_train, y_train, x_test and lacks y_test; wanted are x_train, y_train, "
         "x_test, y_test and, if you like, x_val, y_val, classes"),
        ({"name": "./nothing"},
         "nothing holds no images in folders, one for each class: …"),
        ({"name": "./texts"},
         "texts holds no images in folders, one for each class: …"),
        ({"name": "./damaged", "size": 8},
         "damaged/cat/2.png cannot be read as an image: …"),
    ),
    *wrong(
        "load_data", ArgumentError,
        ({"name": "nothing"}, "name='nothing' is not one of digits, …: for the folder of that name, write './nothing'"),
    ),
    *wrong(
        "load_data", DataError,
        ({"name": "nan.npz"},
         "nan train x has NaN or infinite pixels in 16 image(s), the first at x[0]; pixels are in [0, 1]: leave "
         "these out, or find the division by zero"),
        ({"name": "bright.npz"},
         "bright train x='0 to 255' is not inside [0, 1]: divide by 255: x / 255, or pass uint8: x.to(torch.uint8)"),
        ({"name": "flat.npz"},
         "flat train x.shape=(16, 64) is not (N, C, H, W), (N, H, W, C) or (N, H, W) beyond doubt"),
        ({"name": "lengths.npz"}, "len(lengths train y)=15 is not 16, the number of images: one label for each image"),
        ({"name": "few-classes.npz"},
         "few-classes train y='1 to 8' is not inside 0..1, for 2 classes: labels are class numbers, counted from 0"),
        ({"name": "./sizes"}, "sizes/dog/1.png has 9x9 pixels and sizes/cat/1.png 8x8: size=64, say, makes them alike"),
        ({"name": "./strange"}, "strange/test has classes that strange/train lacks: cow"),
    ),
]
WEIGHTS = [
    *wrong(
        "load_model", ArgumentError,
        ({"weights": "three.pt"},
         "weights='three.pt' does not fit the model: 2 of 7 tensors have another shape, such as head.weight, (3,"
         " 64) in the file and (10, 64) in the model: a model of 3 classes? then options={'num_classes': 3} "
         "(--model-option)"),
        ({"weights": "part.pt"},
         "weights='part.pt' does not fit the model: of its 7 tensors 5 missing from the file (head.bias, "
         "head.weight, norm.running_mean, …): another architecture, or other options than the weights were "
         "trained with (--model-option)"),
        ({"weights": "other.pt"},
         "weights='other.pt' does not fit the model: of its 7 tensors 6 missing from the file (head.bias, "
         "head.weight, norm.bias, …) and 1 not in the model (other): another architecture, or one inside a "
         "wrapper: no name is common to both"),
        ({"weights": "several.pt"},
         "weights_key=None is not one of net, ema: several.pt holds several state_dicts; --weights-key chooses "
         "on the command line"),
        ({"weights": "several.pt", "weights_key": "emma"},
         "weights_key='emma' is not one of net, ema: did you mean 'ema'?"),
        ({"weights": "three.pt", "weights_key": "ema"},
         "weights_key='ema' is not in the file: three.pt is one state_dict: leave it out"),
        ({"model": "nets.py"},
         "model='nets.py' is not 'package.module:factory' or 'file.py:factory': it defines net, pair: write "
         "'nets.py:net'"),
        ({"model": "nets.py:Net"}, "model='nets.py:Net': there is no 'Net' in nets.py: did you mean 'net'?"),
        ({"model": "nets.py:WIDTH"},
         "model='nets.py:WIDTH' is neither a factory nor a network but of type int: write "
         "'package.module:factory' or 'file.py:factory'"),
        ({"model": "nets.py:net"},
         "model='nets.py:net' cannot be called with options={}: missing a required argument: 'width'; "
         "options={'num_classes': 10} (--model-option num_classes=10) gives arguments"),
        ({"model": "broken.py:net"},
         "model: broken.py cannot be imported: SyntaxError: …"),
        ({"model": "raises.py:net"},
         "model: raises.py cannot be imported: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
    ),
    *wrong(
        "load_model", FileError,
        ({"weights": "ints.pt"}, "weights='ints.pt' holds no state_dict, a dict of names and tensors: save one"),
        ({"weights": "whole.pt"},
         "weights='whole.pt' holds no state_dict but an object, torch.nn.modules.container.Sequential: to load "
         "that would run code. If you trust where it comes from, load it once with torch.load(FILE, "
         "weights_only=False), and torch.save its state_dict alone"),
        ({"weights": "tensor.pt"}, "weights='tensor.pt' holds no state_dict, a dict of names and tensors: save one"),
        ({"weights": "empty.pt"}, "weights='empty.pt' is empty"),
        ({"weights": "page.pt"},
         "weights='page.pt' is neither a safetensors file nor one that torch.save wrote: it looks like a web "
         "page: the download has failed"),
        ({"weights": "text.pt"}, "weights='text.pt' is neither a safetensors file nor one that torch.save wrote"),
        ({"weights": "cut.pt"},
         "weights='cut.pt' is damaged, or no file of torch.save with weights alone: …"),
        ({"weights": "lfs.pt"},
         "weights='lfs.pt' is neither a safetensors file nor one that torch.save wrote: it is a Git LFS pointer:"
         " `git lfs pull` fetches the file itself"),
        ({"weights": "run"}, "weights='run' cannot be read: Is a directory: is it elsewhere, or spelled otherwise?"),
    ),
    *wrong(
        "load_model", ModelError,
        ({"model": "nets.py:net", "options": {"width": 64}},
         "model='nets.py:net' cannot be judged on few digits, images of 1x8x8: the model fails on a batch of "
         "shape (2, 1, 8, 8), torch.float32 on cpu: RuntimeError: …"),
        ({"model": "nets.py:pair"}, "model='nets.py:pair' makes a tuple, not an nn.Module: return the network alone"),
    ),
]
EXPERIMENTS = [
    *wrong(
        "reproduce", ArgumentError,
        ({"experiment": "digts"}, "experiment='digts' is not one of chapters, …: did you mean 'digits'?"),
        ({"experiment": 3}, "experiment=3 is not a string: the name of an experiment, or the path of a .toml file"),
        ({"experiment": "no-seeds.toml"}, "no-seeds.toml: the key 'seeds' is missing"),
        ({"experiment": "twice.toml"},
         "twice.toml: seeds=[0, 0] is not a list of different integers: such as seeds = [0, 1, 2]"),
        ({"experiment": "typo.toml"}, "typo.toml: [fit]: key='epohcs' is not one of epochs, …: did you mean 'epochs'?"),
        ({"experiment": "text.toml"}, "text.toml: [fit]: epochs='1' is not an integer: write it without quotes"),
        ({"experiment": "eps.toml"},
         "eps.toml: [threat]: eps=8 is not in (0, 1]: pixels are in [0, 1], did you mean 8/255?"),
        ({"experiment": "defense.toml"},
         "defense.toml: [[method]] 1 ('fast'): defense='fastat' is not one of standard, …: did you mean 'fast-at'?"),
        ({"experiment": "data.toml"}, "name='didgits' is not one of digits, …: did you mean 'digits'?"),
        ({"experiment": "model.toml"}, "model.toml: [model]: key='depth' is not one of name, …: did you mean 'width'?"),
        ({"experiment": "no-method.toml"},
         "no-method.toml: method is not a list of tables: begin each with [[method]]"),
        ({"out": 3}, "out=3 is not the path of a results file: write it as text, or as a Path"),
        ({"root": 3}, "root=3 is not the path of a folder: write it as text, or as a Path"),
        ({"keep": 3}, "keep=3 is not the path of a folder: write it as text, or as a Path"),
        ({"workers": -1}, "workers=-1 is not an integer of at least 0"),
        ({"device": "gpu"},
         "device='gpu' is not available here: …"),
        ({"methods": ["fats"]}, "method='fats' is not one of fast: did you mean 'fast'?"),
        ({"methods": "fast"}, "methods='fast' is not a list: also of a single one: methods=['fast']"),
        ({"seeds": [7]}, "seed=7 is not one of 0"),
        ({"seeds": 0}, "seeds=0 is not a list: also of a single one: seeds=[0]"),
        ({"fresh": "no"},
         "fresh='no' is not True or False: write it without quotes: of text even 'no' would count as true"),
        ({"judge": "no"},
         "judge='no' is not True or False: write it without quotes: of text even 'no' would count as true"),
        ({"time_limit": 0}, "time_limit=0 is not above 0 and finite: it is in minutes"),
        ({"tell": "print"}, "tell='print' is not a function of a line of text: such as print"),
    ),
    *wrong(
        "reproduce", FileError,
        ({"experiment": "nowhere.toml"},
         "nowhere.toml does not exist; advtrain reproduce --list shows those of the package"),
        ({"experiment": "broken.toml"},
         "broken.toml cannot be read as TOML: …"),
        ({"out": "a-file/results.json"}, "cannot write to a-file: it is no folder; choose another one"),
        ({"keep": "a-file"}, "cannot write to a-file: it is no folder; choose another one"),
        ({"out": "broken.json"},
         "broken.json cannot be read as JSON: …; it is "
         "damaged, or another kind of file"),
        ({"out": "run"}, "cannot write run: it is a folder; choose another name"),
    ),
    *wrong(
        "check_results_file", FileError,
        ({"path": "nowhere.json"}, "nowhere.json does not exist"),
        ({"path": "broken.json"},
         "broken.json cannot be read as JSON: …; it is "
         "damaged, or another kind of file"),
    ),
    *wrong(
        "check_results_file", ArgumentError,
        ({"root": 3}, "root=3 is not the path of a folder: write it as text, or as a Path"),
        ({"device": "gpu"},
         "device='gpu' is not available here: …"),
        ({"workers": 2}, "workers=2 is not one of 0, 1"),
        ({"methods": ["fats"]}, "method='fats' is not one of fast: did you mean 'fast'?"),
        ({"seeds": [7]}, "seed=7 is not one of 0"),
    ),
    *wrong(
        "load_results", FileError,
        ({"path": "didgits"},
         "nothing is recorded under the name 'didgits'; recorded are …. A file of your own is found by its path,"
         " with the ending"),
        ({"path": "a-file"},
         "a-file cannot be read as JSON: …; it is damaged, or another "
         "kind of file"),
        ({"path": "run"}, "run cannot be read: Is a directory"),
        ({"path": "list.json"}, "list.json is damaged: the file is list, not a set of keys and values"),
        ({"path": "other.json"},
         "other.json has format 'advtrain results 99', this version reads 1: update advtrain-book"),
        ({"path": "no-format.json"},
         "no-format.json has no format, this version reads 1: it is not a file of advtrain reproduce"),
        ({"path": "changed.json"}, "changed.json is damaged: runs[0] (fast, seed 1) is not a run of the experiment"),
        ({"path": "other-experiment.json"},
         "other-experiment.json is damaged: experiment is not what the digest was made of: it was changed afterwards"),
    ),
    *wrong(
        "load_results", ArgumentError,
        ({"path": 3}, "path=3 is not the path of a results file: write it as text, or as a Path"),
    ),
]
ROWS = [*RUNS, *IMAGES, *WEIGHTS, *EXPERIMENTS]
# fmt: on


@pytest.fixture(scope="module")
def files(world):
    build(world)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_it_is_refused_by_name_and_leaves_nothing_behind(row, files):
    refused(row)


def test_without_the_mistake_the_call_works(tmp_path, monkeypatch):
    """So that it is the mistake which is refused."""
    monkeypatch.chdir(tmp_path)
    build(tmp_path)
    for call in sorted({row.call for row in ROWS}):
        function, given = CALLS[call]
        function(**given())


def test_every_parameter_has_a_mistake_in_the_table():
    """A new one comes with a row here."""
    calls = "export", "reproduce", "check_results_file", "load_results", "load_run"
    assert uncovered(calls, ROWS) == set()
