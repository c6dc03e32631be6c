"""Wrong commands: one line on stderr, exit status 2, nothing else; `--debug` shows where it came from.

The tables hold the command and the whole line that its user reads, "…" standing for what may differ. `wrong_files.py`
makes the files.
"""

import re
import subprocess
import sys
import warnings

import click
import pytest
from wrong_calls import THREAT, files, matches, randomness
from wrong_files import build

import advtrain as at
from advtrain.cli import main, run

# fmt: off
REST = [
    ("trian", "command='trian' is not one of data, …: did you mean 'train'?"),
    ("--verison", "No such option…--verison…--version…"),
    ("-x", "No such option…-x…"),
    ("list attack",
     "Invalid value for '[defenses|attacks|models|data|schedules|presets]': 'attack' is not one of defenses, …: did"
     " you mean 'attacks'?"),
    ("list defenses models", "Got unexpected extra argument (models)"),
]
TRAIN = [
    ("train fastat --eps 0.3", "command='fastat' is not one of standard, …: did you mean 'fast-at'?"),
    ("train fgsm", "Missing option '--eps'"),
    ("train fgsm --eps", "Option '--eps' requires an argument"),
    ("train fgsm --eps eight",
     "Invalid value for '--eps': eps='eight' is not a number or a fraction: write 0.3 or 8/255"),
    ("train fgsm --eps 8", "eps=8 is not in (0, 1]: pixels are in [0, 1], did you mean 8/255?"),
    ("train pgd --norm l2 --eps 128",
     "eps=128 is not at most 8, the diagonal of the pixel box of images of 1x8x8: pixels are in [0, 1], did you mean "
     "128/255?"),
    ("train fgsm --eps 8/0", "Invalid value for '--eps': eps='8/0' is not a number or a fraction: write 0.3 or 8/255"),
    ("train fgsm --eps 0.3 extra", "Got unexpected extra argument (extra)"),
    ("train fgsm --eps 0.3 --epoch 3", "No such option…--epoch…--epochs…"),
    ("train fgsm --eps 0.3 --norm l1", "Invalid value for '--norm': 'l1' is not one of linf, l2: did you mean 'l2'?"),
    ("train fgsm --eps 0.3 --epochs three", "Invalid value for '--epochs': 'three' is not a valid integer"),
    ("train fgsm --eps 0.3 --epochs 0", "epochs=0 is not an integer of at least 1"),
    ("train fgsm --eps 0.3 --batch-size 1.5", "Invalid value for '--batch-size': '1.5' is not a valid integer"),
    ("train fgsm --eps 0.3 --lr -1", "lr=-1.0 is not above 0 and finite"),
    ("train fgsm --eps 0.3 --schedule linear",
     "Invalid value for '--schedule': 'linear' is not one of constant, …: did you mean 'cosine'?"),
    ("train fgsm --eps 0.3 --select first", "Invalid value for '--select': 'first' is not one of last, best"),
    ("train fgsm --eps 0.3 --ema nothing", "Invalid value for '--ema': 'nothing' is not a valid float"),
    ("train fgsm --eps 0.3 --rel-step 0", "rel_step=0.0 is not above 0: it is α/ε; 1 is the full FGSM step"),
    ("train fgsm --eps 0.3 --bn eval,train",
     "Invalid value for '--bn': 'eval,train' is not one of eval, train, batch: did you mean 'train'?"),
    ("train fgsm --eps 0.3 --seed -1", "seed=-1 is not an integer of at least 0"),
    ("train fgsm --eps 0.3 --device gpu", "device='gpu' is not available here: …"),
    ("train fgsm --eps 0.3 --val 2.5",
     "val=2.5 is not a share in [0, 1) or a count: 0.1 keeps a tenth, 1000 keeps a thousand images"),
    ("train fgsm --eps 0.3 --val many", "Invalid value for '--val': 'many' is not a number"),
    ("train fgsm --eps 0.3 --data didgits", "name='didgits' is not one of digits, …: did you mean 'digits'?"),
    ("train fgsm --eps 0.3 --data cifar10",
     "cifar10 is not in data: run `advtrain data fetch cifar10`, or load_data('cifar10', download=True), or name "
     "the folder that holds it with ADVTRAIN_DATA or root"),
    ("train fgsm --eps 0.3 --data mnist --root a-file",
     "root='a-file' is a file: name the folder that holds the data sets"),
    ("train fgsm --eps 0.3 --size 16",
     "size=16 is not an option for digits: only the images of a folder are scaled; here leave it out"),
    ("train fgsm --eps 0.3 --model smallcnn",
     "Invalid value for '--model': 'smallcnn' is not one of small-cnn, …: did you mean 'small-cnn'?"),
    ("train fgsm --eps 0.3 --model-option wdith=3",
     "option='wdith' is not one of width, batch_norm, activation: did you mean 'width'?"),
    ("train fgsm --eps 0.3 --model-option width",
     "Invalid value for --model-option: 'width' is not NAME=VALUE, such as width=16"),
    ("train fgsm --eps 0.3 --model-option seed=3",
     "Invalid value for --model-option: seed is not an option of the model itself"),
    ("train fgsm --eps 0.3 --model-option width=wide", "width='wide' is not an integer of at least 1"),
    ("train fgsm --preset cifar10",
     "Invalid value for '--preset': 'cifar10' is not one of cifar10-preactresnet18-eps8"),
    ("train fgsm --eps 0.3 --out run",
     "run already holds a config.json of an earlier run or export; choose another folder, or pass overwrite=True "
     "(--overwrite)"),
    ("train fgsm --eps 0.3 --out a-file", "cannot write to a-file: it is no folder; choose another one"),
    ("train fgsm --eps 0.3 --out exported-before --overwrite",
     "exported-before holds an export, whose weights these would replace, as its model.json says: choose another "
     "folder"),
    ("train fgsm --eps 0.3 --report a-file/x.json", "cannot write to a-file: it is no folder; choose another one"),
    ("train fgsm --eps 0.3 --report run/config.json",
     "--report run/config.json is a file that the run in run consists of: choose another name"),
    ("train fgsm --eps 0.3 --out new --overwrite --report ./new/history.json",
     "--report new/history.json is a file that the run in new consists of: choose another name"),
    ("train fgsm --eps 0.3 --report a-file",
     "--report a-file is there already: choose another name, or pass --overwrite to replace it"),
    ("train fgsm --eps 0.3 --no-evaluate --report x.json", "--report needs the evaluation: leave out --no-evaluate"),
    ("train fgsm --eps 0.3 --tensorboard a-file", "cannot write to a-file: it is no folder; choose another one"),
    ("train gradalign --eps 0.3 --norm l2", "threat.norm='l2' is not linf: GradAlign is not defined for it"),
    ("train gradalign --eps 0.3 --compile --out new",
     "compile=True is not possible with gradalign: its second-order term needs an uncompiled backward pass"),
    ("train pgd --eps 0.3 --steps ten", "Invalid value for '--steps': 'ten' is not a valid integer"),
]
EVALUATE = [
    ("evaluate", "name the folder of a run, RUN, or any network with --model"),
    ("evaluate nowhere", "nowhere holds no run: there is no config.json in it"),
    ("evaluate a-file", "a-file holds no run: there is no config.json in it"),
    ("evaluate run run", "Got unexpected extra argument (run)"),
    ("evaluate run-cut-weights", "run-cut-weights/model.safetensors is damaged or not a safetensors file: …"),
    ("evaluate run-config", "run-config/config.json cannot be read as JSON: …; it is damaged, or another kind of file"),
    ("evaluate run --model small-cnn", "RUN and --model exclude each other: a run has its own model"),
    ("evaluate run --data digits", "--data does nothing with RUN: leave it out"),
    ("evaluate run --root .", "--root does nothing with RUN: leave it out"),
    ("evaluate run --size 8", "--size does nothing with RUN: leave it out"),
    ("evaluate run --norm l2", "--norm does nothing with RUN: leave it out"),
    ("evaluate run --weights three.pt", "--weights does nothing with RUN: leave it out"),
    ("evaluate run --pick logits", "--pick does nothing with RUN: leave it out"),
    ("evaluate own --eps 8", "eps=8 is not in (0, 1]: pixels are in [0, 1], did you mean 8/255?"),
    ("evaluate own --protocol Strict",
     "Invalid value for '--protocol': 'Strict' is not one of strict, …: did you mean 'strict'?"),
    ("evaluate own --steps 0", "steps=0 is not an integer of at least 1"),
    ("evaluate own --restarts 0 --out new/report.json", "restarts=0 is not an integer of at least 1"),
    ("evaluate own --step-size 0", "step_size=0.0 is not above 0 and finite: in pixels: 2/255, say"),
    ("evaluate own --step-size 2",
     "step_size=2 is not at most 1, the width of the pixel box: pixels are in [0, 1], did you mean 2/255?"),
    ("evaluate own --autoattack full",
     "Invalid value for '--autoattack': 'full' is not one of standard, plus, rand, fast"),
    ("evaluate own --state x", "--state, --examples and --bf16 belong to AutoAttack: add --autoattack standard"),
    ("evaluate own --bf16", "--state, --examples and --bf16 belong to AutoAttack: add --autoattack standard"),
    ("evaluate own --autoattack fast --examples x.npz --state aa",
     "examples='x.npz' is not a path that ends in .npy: write x.npy"),
    ("evaluate own --autoattack fast --state same --out same",
     "--state and --out name the same file, same: give each its own"),
    ("evaluate own --limit 0", "Invalid value for '--limit': 0 is not in the range x>=1"),
    ("evaluate own --batch-size 0", "Invalid value for '--batch-size': 0 is not in the range x>=1"),
    ("evaluate own --split training",
     "Invalid value for '--split': 'training' is not one of test, val, train: did you mean 'train'?"),
    ("evaluate own --device gpu", "device='gpu' is not available here: …"),
    ("evaluate own --seed -1", "seed=-1 is not an integer of at least 0"),
    ("evaluate own --out run", "Invalid value for '--out': File 'run' is a directory"),
    ("evaluate own --out a-file",
     "--out a-file is there already: choose another name, or pass --overwrite to replace it"),
    ("evaluate own --out own/model.safetensors --overwrite",
     "--out own/model.safetensors is a file that the run in own consists of: choose another name"),
    ("evaluate own --out a-file/x.json", "cannot write to a-file: it is no folder; choose another one"),
    ("evaluate run", "data=None is not available: this run's data are not on this machine; see advtrain data --help"),
    ("evaluate --model small-cnn", "--model needs --data and --eps too, such as --data cifar10 --eps 8/255"),
    ("evaluate --model small-cnn --data digits", "--model needs --eps too, such as --data cifar10 --eps 8/255"),
    ("evaluate --model nowhere:Net --data digits --eps 0.3",
     "model: nowhere cannot be imported: ModuleNotFoundError: No module named 'nowhere': is it installed, or in the"
     " current folder? A file is named 'file.py:factory'"),
    ("evaluate --model nets.py --data digits --eps 0.3",
     "model='nets.py' is not 'package.module:factory' or 'file.py:factory': it defines net, pair: write "
     "'nets.py:net'"),
    ("evaluate --model nets.py:pair --data digits --eps 0.3",
     "model='nets.py:pair' makes a tuple, not an nn.Module: return the network alone"),
    ("evaluate --model nets.py:net --model-option width=x --data digits --eps 0.3",
     "model='nets.py:net' fails with options={'width': 'x'}: TypeError: …"),
    ("evaluate --model small-cnn --data digits --eps 0.3 --weights nowhere.pt",
     "weights='nowhere.pt' does not exist: is it elsewhere, or spelled otherwise?"),
    ("evaluate --model small-cnn --data digits --eps 0.3 --weights text.pt",
     "weights='text.pt' is neither a safetensors file nor one that torch.save wrote"),
    ("evaluate --model small-cnn --data digits --eps 0.3 --weights three.pt",
     "weights='three.pt' does not fit the model: 2 of 12 tensors have another shape, such as head.weight, (3, 64) "
     "in the file and (10, 128) in the model: give the options (width, depth, num_classes) that the weights were "
     "trained with (--model-option)"),
    ("evaluate --model small-cnn --data digits --eps 0.3 --weights-key ema",
     "weights_key='ema' is not used without weights: leave it out, or give the file"),
    ("evaluate --model small-cnn --data digits --eps 0.3 --mean a,b --std 1",
     "Invalid value for '--mean': 'a,b' is not a number, or several with commas between them: 0.49,0.48,0.45"),
    ("evaluate --model small-cnn --data digits --eps 0.3 --mean 0.5",
     "std=None is not given, and mean is: give both; std=1 changes nothing"),
    ("evaluate --model small-cnn --data digits --eps 0.3 --mean 127 --std 64",
     "mean=127.0 is not in [0, 1]: pixels are in [0, 1] here: divide by 255"),
    ("evaluate --model small-cnn --data digits --eps 0.3 --pick logits",
     "model='small-cnn' cannot be judged on digits, images of 1x8x8: pick='logits' is not in the Tensor that the "
     "model returns: it is one of shape (2, 10): leave out pick"),
    ("evaluate --model small-cnn --data digits --eps 0.3 --size 16",
     "size=16 is not an option for digits: only the images of a folder are scaled; here leave it out"),
    ("evaluate --model small-cnn --data digits --eps 0.3 --norm l1",
     "Invalid value for '--norm': 'l1' is not one of linf, l2: did you mean 'l2'?"),
    ("evaluate --model small-cnn --data nan.npz --eps 0.3",
     "nan train x has NaN or infinite pixels in 16 image(s), the first at x[0]; pixels are in [0, 1]: leave these "
     "out, or find the division by zero"),
    ("evaluate --model small-cnn --data mnist --eps 0.3 --root a-file",
     "root='a-file' is a file: name the folder that holds the data sets"),
]
DIAGNOSE = [
    ("diagnose", "name the folder of a run, RUN, or any network with --model"),
    ("diagnose nowhere", "nowhere holds no run: there is no config.json in it"),
    ("diagnose own --images 0", "Invalid value for '--images': 0 is not in the range x>=1"),
    ("diagnose own --batch-size x", "Invalid value for '--batch-size': 'x' is not a valid integer range"),
    ("diagnose own --plot x.txt", "plot='x.txt' is not a .png, .svg or .pdf file: write x.png"),
    ("diagnose own --plot a-file/x.png", "cannot write to a-file: it is no folder; choose another one"),
    ("diagnose own --plot new/x.png --out a-file/x.json",
     "cannot write to a-file: it is no folder; choose another one"),
    ("diagnose own --out a-file",
     "--out a-file is there already: choose another name, or pass --overwrite to replace it"),
    ("diagnose own --out own/config.json --overwrite",
     "--out own/config.json is a file that the run in own consists of: choose another name"),
    ("diagnose own --plot x.png --out x.png", "--plot and --out name the same file, x.png: give each its own"),
    ("diagnose own --out run", "Invalid value for '--out': File 'run' is a directory"),
    ("diagnose own --protocol strict", "No such option…--protocol…"),
    ("diagnose own --seed -1", "seed=-1 is not an integer of at least 0"),
    ("diagnose own --split val --limit x", "Invalid value for '--limit': 'x' is not a valid integer range"),
    ("diagnose own --eps 8", "eps=8 is not in (0, 1]: pixels are in [0, 1], did you mean 8/255?"),
    ("diagnose own --device gpu", "device='gpu' is not available here: …"),
]
EXPORT = [
    ("export", "Missing argument 'RUN'"),
    ("export own", "Missing option '--out'"),
    ("export nowhere --out x", "nowhere holds no run: there is no config.json in it"),
    ("export own --out run",
     "run holds a run, whose weights these would replace, as its config.json says: choose another folder"),
    ("export own --out a-file", "cannot write to a-file: it is no folder; choose another one"),
    ("export own --out exported-before",
     "exported-before already holds a model.json of an earlier run or export; choose another folder, or pass "
     "overwrite=True (--overwrite)"),
]
REPRODUCE = [
    ("reproduce", "name an experiment, or say --list, or --check FILE"),
    ("reproduce digts", "experiment='digts' is not one of chapters, …: did you mean 'digits'?"),
    ("reproduce nowhere.toml", "nowhere.toml does not exist; advtrain reproduce --list shows those of the package"),
    ("reproduce typo.toml", "typo.toml: [fit]: key='epohcs' is not one of epochs, …: did you mean 'epochs'?"),
    ("reproduce small.toml --method fats --out x.json", "method='fats' is not one of fast: did you mean 'fast'?"),
    ("reproduce small.toml --seed 99 --out x.json", "seed=99 is not one of 0"),
    ("reproduce small.toml --workers -1 --out x.json", "Invalid value for '--workers': -1 is not in the range x>=0"),
    ("reproduce small.toml --time-limit 0 --out x.json", "time_limit=0.0 is not above 0 and finite: it is in minutes"),
    ("reproduce small.toml --time-limit long --out x.json",
     "Invalid value for '--time-limit': 'long' is not a valid float"),
    ("reproduce small.toml --device gpu --out x.json", "device='gpu' is not available here: …"),
    ("reproduce small.toml --keep a-file --out x.json", "cannot write to a-file: it is no folder; choose another one"),
    ("reproduce small.toml --out a-file/x.json", "cannot write to a-file: it is no folder; choose another one"),
    ("reproduce small.toml --out broken.json",
     "broken.json cannot be read as JSON: …; it is damaged, or another kind of file"),
    ("reproduce small.toml --out run", "cannot write run: it is a folder; choose another name"),
    ("reproduce small.toml --root a-file --out x.json",
     "root='a-file' is a file: name the folder that holds the data sets"),
    ("reproduce --check nowhere.json", "nowhere.json does not exist"),
    ("reproduce --check broken.json", "broken.json cannot be read as JSON: …; it is damaged, or another kind of file"),
    ("reproduce --check small.json --judge", "--judge does nothing with --check: leave it out"),
    ("reproduce --check small.json --method fats", "method='fats' is not one of fast: did you mean 'fast'?"),
    ("reproduce --list --fresh", "--fresh does nothing with --list: leave it out"),
    ("reproduce --list nowhere", "experiment='nowhere' is not one of chapters, …"),
]
DATA = [
    ("data fech mnist", "command='fech' is not one of fetch, list: did you mean 'fetch'?"),
    ("data fetch", "Missing argument 'NAMES'"),
    ("data fetch imagenet", "name='imagenet' is not one of mnist, …: did you mean 'tiny-imagenet'?"),
    ("data fetch mnist --root a-file", "root='a-file' is a file: name the folder that holds the data sets"),
    ("data list --root a-file", "root='a-file' is a file: name the folder that holds the data sets"),
    ("data list extra", "Got unexpected extra argument (extra)"),
]
ROWS = [*REST, *TRAIN, *EVALUATE, *DIAGNOSE, *EXPORT, *REPRODUCE, *DATA]
# fmt: on

HELP = re.compile(r" \((advtrain[ a-z-]*) --help says more\)$")


@pytest.fixture(scope="module")
def folder(world):
    """With a run, `own`, whose data are at hand, beside all that is wrong."""
    build(world)
    digits = at.load_data("digits")
    model = at.build_model("small-cnn", digits, width=2)
    at.fit(model, at.defenses.FastAT(THREAT), digits, epochs=1, validate_every=0, batch_size=512, out=world / "own")
    return world


@pytest.fixture
def refused(folder, monkeypatch, capsys):
    """A function: the lines on stderr of a command that must end with status 2, say nothing else, and leave nothing."""

    def lines(*words):
        before = files("."), randomness()
        with pytest.raises(SystemExit) as end:
            run(list(words))
        out, err = capsys.readouterr()
        assert end.value.code == 2 and out == "", out
        assert (files("."), randomness()) == before
        return err.splitlines()

    monkeypatch.setattr(sys, "path", [*sys.path])  # `evaluate` puts the current folder in front
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    return lines


@pytest.mark.parametrize(("command", "says"), ROWS, ids=[command for command, _ in ROWS])
def test_a_wrong_command_ends_in_one_line_and_status_two(command, says, refused):
    (line,) = refused(*command.split())
    assert line.startswith("error: ") and len(line) <= 420 and "0x" not in line
    message = HELP.sub("", line.removeprefix("error: ")).replace("[[", "[").replace("]]", "]")  # as click 8.1 has it
    assert matches(says, message), message


@pytest.mark.parametrize("command", ["trian", "train fgsm --eps 0.3 --epoch 3", "evaluate", "data fetch", "export own"])
def test_of_what_click_refuses_the_line_says_how_to_get_help(command, refused, capsys):
    (line,) = refused(*command.split())
    helped = HELP.search(line)[1].split()[1:]
    with pytest.raises(SystemExit) as end:
        run([*helped, "--help"])
    assert end.value.code == 0 and "Usage: advtrain" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train fgsm --eps 8", "evaluate nowhere", "train fgsm --eps x", "trian"])
@pytest.mark.parametrize("at_the_end", [False, True])
def test_debug_shows_where_it_came_from_wherever_it_stands(command, at_the_end, refused):
    words = [*command.split(), "--debug"] if at_the_end else ["--debug", *command.split()]
    *trace, line = refused(*words)
    assert trace[0].startswith("Traceback") and sum("cli.py" in each for each in trace)
    assert [line] == refused(*command.split())


@pytest.mark.parametrize("command", ["evaluate nowhere", "train fgsm --epsilon 0.3"])
def test_another_process_says_the_same(command, folder, refused):
    words = [sys.executable, "-m", "advtrain", *command.split()]
    done = subprocess.run(words, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.splitlines() == refused(*command.split())


def test_ctrl_c_before_anything_is_kept_is_no_traceback(monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("advtrain.cli.data_room.load_data", interrupted)
    with pytest.raises(SystemExit) as end:
        run(["train", "fgsm", "--eps", "0.3"])
    assert end.value.code == 1 and capsys.readouterr().err.strip() == "Aborted!"


def options_of(*path):
    """The options of a command, as they are typed."""
    command, context = main, click.Context(main)
    for name in path:
        command = command.get_command(context, name)
    return {each.opts[0] for each in command.params if isinstance(each, click.Option)}


MADE = {"--preset", "--data", "--model", "--model-option", "--report", "--tensorboard"}
"""What `advtrain train` is asked beside what is made of Python's functions, whose own tables have those."""


@pytest.mark.parametrize(
    "path", ["train fgsm", "evaluate", "diagnose", "export", "reproduce", "list", "data fetch", "data list"]
)
def test_every_option_with_a_value_has_a_mistake_in_the_table(path):
    """What names a subject is shared by `evaluate` and `diagnose`; switches have no value."""
    command, context = main, click.Context(main)
    for name in path.split():
        command = command.get_command(context, name)
    options = {each.opts[0] for each in command.params if isinstance(each, click.Option) and not each.is_flag}
    options &= MADE if path == "train fgsm" else options
    heads = ("evaluate", "diagnose") if path == "diagnose" else (path,)
    words = {word for command, _ in ROWS if command.startswith(heads) for word in command.split()}
    assert options <= words
