"""Any network can be loaded, with weights as people save them; nothing in a file is executed."""

import argparse
import hashlib
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import advtrain as at
from advtrain.checkpoints import fit_weights, read_weights
from advtrain.errors import AdvtrainError, AdvtrainWarning, ArgumentError, FileError, ModelError
from advtrain.foreign import Adapted, open_model
from advtrain.weights import save_weights

FACTORY = """
from torch import nn
from parts import activation

class Net(nn.Sequential):
    def __init__(self, width=4, classes=10):
        super().__init__(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), activation(), nn.Flatten(),
                         nn.Linear(36 * width, classes))

def pair():
    return Net(), "preprocessing"

def broken(width=4):
    raise KeyError("no such width")

def needy(num_classes):
    return Net(classes=num_classes)

ready = Net()
"""


def net(width=4, classes=10, channels=1):
    layers = nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(36 * width, classes))


@pytest.fixture
def factory(tmp_path):
    """A file with factories, which imports another one beside it."""
    (tmp_path / "parts.py").write_text("from torch.nn import ReLU as activation\n")
    (tmp_path / "nets.py").write_text(FACTORY)
    yield tmp_path / "nets.py"
    for name in ("parts", "advtrain_model_nets"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def digits():
    return at.load_data("digits")


@pytest.fixture(scope="module")
def trained():
    """A network and its weights."""
    torch.manual_seed(3)
    return net()


def weights_of(model):
    return [tensor.float() for tensor in getattr(model, "network", model).state_dict().values()]


def same(model, other):
    return all(a.equal(b) for a, b in zip(weights_of(model), weights_of(other), strict=True))


def put(prefix, state):
    return {prefix + key: value for key, value in state.items()}


SAVED = {
    "a bare state_dict": lambda s: s,
    "state_dict of Lightning": lambda s: {"state_dict": put("model.", s), "epoch": 3, "loops": {"fit": {"done": 1}}},
    "model and optimizer": lambda s: {"model": s, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    "net and numbers of NumPy": lambda s: {"net": s, "acc": np.float64(93.1), "curve": np.arange(3.0)},
    "the options of a command line": lambda s: {"model_state_dict": s, "args": argparse.Namespace(lr=0.1)},
    "DataParallel": lambda s: put("module.", s),
    "torch.compile": lambda s: put("_orig_mod.", s),
    "both": lambda s: {"ema": put("_orig_mod.module.", s)},
    "two dicts deep": lambda s: {"checkpoint": {"weights": s}, "step": 4},
    "parameters": lambda s: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
    "an averaged model": lambda s: {**put("module.", s), "n_averaged": torch.tensor(4)},
    "a part that was compiled": lambda s: {k.replace("0.", "0._orig_mod.", 1): v for k, v in s.items()},
    "half precision": lambda s: {k: v.bfloat16() if v.is_floating_point() else v for k, v in s.items()},
    "before there was num_batches_tracked": lambda s: {k: v for k, v in s.items() if "tracked" not in k},
}


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("legacy", [False, True])
def test_weights_are_found_in_what_people_save(tmp_path, trained, kind, legacy):
    if legacy and kind in ("net and numbers of NumPy", "the options of a command line"):
        pytest.skip("only the newer files say beforehand what they hold")
    torch.save(SAVED[kind](trained.state_dict()), tmp_path / "w.bin", _use_new_zipfile_serialization=not legacy)
    wanted = trained if kind != "half precision" else net().requires_grad_(False)
    if kind == "half precision":
        fit_weights(wanted, {k: v.bfloat16().to(v.dtype) for k, v in trained.state_dict().items()})
    assert same(at.load_model(net, tmp_path / "w.bin"), wanted)


def test_safetensors_are_known_by_their_content_not_their_name(tmp_path, trained):
    save_file(trained.state_dict(), tmp_path / "w.pt")
    assert same(at.load_model(net, tmp_path / "w.pt"), trained)


PREFIXES = st.lists(st.sampled_from(["module.", "_orig_mod.", "model.", "backbone."]), max_size=3).map("".join)


@settings(max_examples=30, deadline=None)
@given(PREFIXES, PREFIXES)
def test_what_wrappers_put_in_front_of_names_plays_no_part(theirs, ours):
    """Whatever the file's names and the network's names begin with."""
    inner, state = nn.Linear(2, 3), nn.Linear(2, 3).state_dict()
    model = inner
    for name in reversed(ours.split(".")[:-1]):
        model = nn.ModuleDict({name: model})
    fit_weights(model, put(theirs, state))
    assert all(inner.state_dict()[key].equal(state[key]) for key in state)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_networks_take_bare_weights(tmp_path, trained, wrap):
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    assert same(at.load_model(lambda: wrap(net()), tmp_path / "w.pt"), trained)


class Evil:
    """Its pickle writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("beside", [False, True])
def test_a_malicious_pickle_executes_nothing(tmp_path, trained, legacy, beside):
    evil = Evil(tmp_path / "harm")
    saved = {"model": trained.state_dict(), "args": evil} if beside else evil
    torch.save(saved, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    if beside and not legacy:  # the weights are taken, the rest is left alone
        assert same(at.load_model(net, tmp_path / "w.pt"), trained)
    else:
        with pytest.raises(FileError, match="run code|running code"):
            at.load_model(net, tmp_path / "w.pt")
    assert not (tmp_path / "harm").exists()
    assert "exec" not in str(torch.serialization.get_safe_globals())
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert (tmp_path / "harm").exists()  # the file is as harmful as the test says


@pytest.mark.parametrize("whole", [lambda m: m, lambda m: {"model": m, "epoch": 3}])
def test_a_whole_pickled_model_is_refused_with_what_to_do_instead(tmp_path, trained, whole):
    torch.save(whole(trained), tmp_path / "w.pt")
    with pytest.raises(FileError, match=r"Sequential: to load that would run code.*torch.save its state_dict alone"):
        at.load_model(net, tmp_path / "w.pt")


@pytest.mark.filterwarnings("ignore:.torch.jit:Warning")
def test_a_torchscript_archive_is_a_model_and_no_weights(tmp_path, trained, digits):
    torch.jit.save(torch.jit.script(trained), tmp_path / "w.pt")
    with pytest.raises(FileError, match="TorchScript archive, which holds code: write a factory"):
        at.load_model(net, tmp_path / "w.pt")
    assert same(at.load_model(lambda: torch.jit.load(tmp_path / "w.pt"), data=digits), trained)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!doctype html>", "web page: the download has failed"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"hello, world", "neither a safetensors file nor one that torch.save wrote"),
        (b"PK\x03\x04" + bytes(60), "damaged"),
        (b"\x80\x02}q\x00.", "damaged"),
        (b"\x10\0\0\0\0\0\0\0{" + b" " * 60, "damaged safetensors"),
        (b"\x89HDF" + bytes(9), "h5py"),
    ],
)
def test_what_is_no_file_of_weights_is_told(tmp_path, content, message):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(FileError, match=message):
        at.load_model(net, tmp_path / "w.pt")


def test_missing_files_folders_and_addresses_are_told(tmp_path):
    for path, message in ((tmp_path / "no.pt", "does not exist: is it elsewhere"), (tmp_path, "cannot be read"),
                          ("https://example.org/w.pt", "download it first")):  # fmt: skip
        with pytest.raises(FileError, match=message):
            at.load_model(net, path)
    for value in ([1, 2], {}, torch.ones(2), {"lr": 0.1}):
        torch.save(value, tmp_path / "w.pt")
        with pytest.raises(FileError, match="holds no state_dict"):
            at.load_model(net, tmp_path / "w.pt")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_damaged_file_never_ends_in_another_error(tmp_path_factory, data):
    folder, state = tmp_path_factory.mktemp("w"), nn.Linear(3, 2).state_dict()
    kind = data.draw(st.sampled_from(["zip", "legacy", "safetensors"]))
    if kind == "safetensors":
        save_file(state, folder / "w")
    else:
        torch.save({"net": state, "n": np.float64(1)}, folder / "w", _use_new_zipfile_serialization=kind == "zip")
    content = bytearray((folder / "w").read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for place in data.draw(st.lists(st.integers(0, max(0, len(content) - 1)), max_size=4)) if content else ():
        content[place] = data.draw(st.integers(0, 255))
    (folder / "w").write_bytes(content)
    try:
        found, source = read_weights(folder / "w")
    except AdvtrainError:
        return
    assert source["sha256"] == hashlib.sha256(content).hexdigest() and all(map(torch.is_tensor, found.values()))


def test_of_several_state_dicts_one_must_be_chosen(tmp_path, trained):
    torch.save({"model": net().state_dict(), "ema": put("module.", trained.state_dict())}, tmp_path / "w.pt")
    with pytest.raises(ArgumentError, match="weights_key=None is not one of model, ema"):
        at.load_model(net, tmp_path / "w.pt")
    with pytest.raises(ArgumentError, match="weights_key='emma' is not one of model, ema: did you mean 'ema'"):
        at.load_model(net, tmp_path / "w.pt", weights_key="emma")
    assert same(at.load_model(net, tmp_path / "w.pt", weights_key="ema"), trained)
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ArgumentError, match="one state_dict: leave it out"):
        at.load_model(net, tmp_path / "w.pt", weights_key="ema")
    with pytest.raises(ArgumentError, match="weights_key='ema' is not used without weights"):
        at.load_model(net, weights_key="ema")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k[0] != "4"}, r"2 missing from the file \(4.bias, 4.weight\)"),
        (lambda s: {**s, "9.a": s["0.bias"], "9.b": s["0.bias"]}, r"2 not in the model \(9.a, 9.b\).*more than this"),
        (lambda s: {f"{i}.x": v for i, v in enumerate(s.values())}, "no name is common to both"),
        (lambda s: net(width=8).state_dict(), "7 of 9 tensors .* 0.weight, .8, 1, 3, 3. in the file .*options"),
        (lambda s: net(classes=100).state_dict(), r"100 classes\? then options=\{'num_classes': 100\}"),
        (lambda s: {**s, "normalize.mean": s["0.bias"]}, "hold their own normalisation: leave out mean and std"),
        (lambda s: {**s, "0.weight": s["0.weight"].char()}, r"integers \(torch.int8\) for 0.weight"),
    ],
)
def test_weights_of_another_network_are_refused_with_the_difference(tmp_path, trained, change, message):
    torch.save(change(trained.state_dict()), tmp_path / "w.pt")
    with pytest.raises(ArgumentError, match=f"weights='w.pt' .*{message}"):
        at.load_model(net, tmp_path / "w.pt")


def test_factories_are_found_in_files_and_in_packages(factory, tmp_path, monkeypatch):
    before = list(sys.path)
    model = at.load_model(f"{factory}:Net", options={"width": 2, "classes": 3})
    assert model[4].out_features == 3 and model[0].out_channels == 2 and not model.training and sys.path == before
    assert type(at.load_model(f"{factory}:ready")).__name__ == "Net"
    assert at.load_model("torch.nn:Linear", options={"in_features": 2, "out_features": 3}).out_features == 3
    monkeypatch.syspath_prepend(tmp_path)
    assert type(at.load_model("nets:Net")).__name__ == "Net"
    sys.modules.pop("nets")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("{file}:Nett", ArgumentError, r"there is no 'Nett' in nets.py: did you mean 'Net'\?"),
        ("{file}:pair", ModelError, "makes a tuple, not an nn.Module: return the network alone"),
        ("{file}:broken", ModelError, "fails with options={}: KeyError: 'no such width'"),
        ("{file}:needy", ArgumentError, "missing a required argument: 'num_classes'; .*--model-option num_classes=10"),
        ("{file}:nn", ArgumentError, "neither a factory nor a network but of type module"),
        ("{file}:Net.gone", ArgumentError, "there is no 'gone' in Net"),
        ("{file}", ArgumentError, "model='nets.py' is not .* defines Net, pair, broken, needy: write 'nets.py:Net'"),
        ("{folder}/no.py", ArgumentError, "model='no.py' is not .*'file.py:factory': write 'no.py:factory'"),
        ("{folder}/no.py:f", FileError, "no.py does not exist"),
        ("{folder}/wrong.py:f", ArgumentError, "cannot be imported: SyntaxError"),
        ("{folder}/needs.py:f", ArgumentError, "No module named 'not_there_either'$"),
        ("not_there:f", ArgumentError, "No module named 'not_there': is it installed, or in the current folder"),
        ("torch.nn:", ArgumentError, "is not 'package.module:factory' or 'file.py:factory'"),
        ("presctresnet18", ArgumentError, "did you mean 'preactresnet18'"),
    ],
)
def test_a_factory_that_cannot_be_used_says_why(factory, tmp_path, name, kind, message):
    (tmp_path / "wrong.py").write_text("def f(:\n")
    (tmp_path / "needs.py").write_text("import not_there_either\n")
    with pytest.raises(kind, match=message):
        at.load_model(name.format(file=factory, folder=tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": 3}, "neither a factory nor a network but of type int"),
        ({"model": net(), "options": {"width": 3}}, "used by a network that is made already"),
        ({"options": {"wdith": 3}}, "unexpected keyword argument 'wdith'"),
        ({"options": [3]}, "options=an object of type list is not a Mapping"),
        ({"weights": 3}, "weights=3 is not the name of a file"),
        ({"mean": 0.5}, "std=None is not given, and mean is: give both"),
        ({"mean": 123.7, "std": 58.4}, r"mean=123.7 is not in \[0, 1\]: pixels are in \[0, 1\] here: divide by 255"),
        ({"mean": float("nan"), "std": 1}, "mean=nan is not in"),
        ({"mean": 0.5, "std": 0}, "is not positive"),
        ({"mean": (0.5, 0.5), "std": (0.1,) * 3}, "is not as long as mean"),
        ({"mean": "half", "std": 1}, "mean='half' is not a number"),
        ({"data": "digits"}, "data='digits' is not a Dataset: at.load_data"),
        ({"device": "warp"}, "device='warp' is not available here"),
        ({"seed": -1}, "seed=-1 is not an integer of at least 0"),
    ],
)
def test_arguments_outside_what_is_accepted_are_refused_by_name(options, message):
    with pytest.raises(ArgumentError, match=message):
        at.load_model(**{"model": net, **options})


def test_normalisation_becomes_the_first_layer(trained, digits):
    x = digits.test.images(slice(20))
    with torch.no_grad():
        assert at.load_model(trained, mean=0.3, std=(0.4,))(x).equal(trained((x - 0.3) / 0.4))
        assert at.load_model(trained, mean=0, std=1 / 255)(x).allclose(trained(x * 255), atol=1e-3)
    colour = at.load_model(lambda: net(channels=3), mean=(0.5, 0.4, 0.3), std=0.2)
    with pytest.raises(ModelError, match="mean and std have 3 channels and the images are"):
        colour(x)  # plain arithmetic would make three channels of one


def test_a_normalised_model_is_attacked_in_units_of_a_pixel(trained, digits):
    model, threat = at.load_model(trained, mean=0.3, std=0.1), at.Threat("linf", 0.1)
    x, y = digits.test.images(slice(20)), digits.test.y[:20]
    x_adv = at.attacks.pgd(model, x, y, threat, steps=3)
    assert bool(threat.contains(x_adv, x).all()) and float((x_adv - x).abs().max()) > 0.099


@pytest.mark.parametrize("pick", [0, "logits", "logits of a dict"])
def test_logits_are_picked_from_what_a_network_returns(trained, digits, pick):
    class Answer:
        def __init__(self, logits):
            self.logits = logits

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = trained

        def forward(self, x):
            y = self.inner(x)
            return {0: (y, x), "logits": Answer(y), "logits of a dict": {"logits": y, "hidden": x}}[pick]

    x = digits.test.images(slice(4))
    with pytest.raises(ModelError, match=r"not a tensor of logits \(B, K\): wrap it, as at.load_model\(model, pick="):
        at.evaluate(Wrapped(), digits.test[:4], at.Threat("linf", 0.1))
    key = 0 if pick == 0 else "logits"
    with torch.no_grad():
        assert at.load_model(Wrapped, pick=key, data=digits)(x).equal(trained.eval()(x))
    with pytest.raises(ModelError, match="pick=.* is not in the .* that the model returns"):
        at.load_model(Wrapped, pick=7 if pick == 0 else "logit", data=digits)


def test_a_built_in_network_takes_its_size_from_the_data_and_the_weights_of_a_run(tmp_path, digits):
    model = at.build_model("small-cnn", digits, width=4, seed=5)
    save_weights(model, tmp_path / "model.safetensors")
    loaded = at.load_model("small-cnn", tmp_path / "model.safetensors", options={"width": 4}, data=digits)
    assert same(loaded, model) and loaded.spec == model.spec
    other = at.load_model(lambda: at.build_model("small-cnn", digits, width=4), tmp_path / "model.safetensors")
    assert same(other, model)
    with pytest.raises(ArgumentError, match=r"weights='model.safetensors' .*options \(width"):
        at.load_model("small-cnn", tmp_path / "model.safetensors", options={"width": 8}, data=digits)
    with pytest.raises(ArgumentError, match="the weights hold their own normalisation: leave out mean and std"):
        at.load_model("small-cnn", tmp_path / "model.safetensors", options={"width": 4}, data=digits, mean=0, std=1)
    with pytest.raises(ArgumentError, match="give data or shape"):
        at.load_model("small-cnn", tmp_path / "model.safetensors")
    with pytest.raises(ArgumentError, match="options='seed' is not an option of the network"):
        at.load_model("small-cnn", data=digits, options={"seed": 3})
    with pytest.warns(AdvtrainWarning, match="'small-cnn' has no weights: it is untrained"):
        at.load_model("small-cnn", data=digits)


def test_a_built_in_network_without_normalisation_in_its_weights_is_given_one(tmp_path, digits):
    plain = at.build_model("small-cnn", digits, normalize=None, width=4)
    save_weights(plain, tmp_path / "w.safetensors")
    with pytest.raises(ArgumentError, match="the weights know no normalisation: give mean and std"):
        at.load_model("small-cnn", tmp_path / "w.safetensors", options={"width": 4}, data=digits)
    loaded = at.load_model("small-cnn", tmp_path / "w.safetensors", options={"width": 4}, data=digits, mean=0, std=1)
    assert isinstance(loaded, Adapted) and same(loaded, plain)


def test_a_network_for_other_data_is_refused(digits):
    with pytest.raises(ModelError, match="returns 12 logits and digits has 10 classes: .*num_classes=10|: 10}"):
        at.load_model(lambda: net(classes=12), data=digits)
    with pytest.raises(ModelError, match="on digits, images of 1x8x8: .*takes 3 channels and the images have 1"):
        at.load_model(lambda: net(channels=3), data=digits)
    with pytest.raises(ModelError, match="images of 1x8x8: the model fails on a batch"):
        at.load_model(lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), data=digits)


def test_a_softmax_is_loaded_refused_where_it_would_mislead_and_taken_out(trained, digits):
    soft, threat = nn.Sequential(*trained, nn.Softmax(1)), at.Threat("linf", 0.1)
    model, x = at.load_model(soft, data=digits), digits.test.images(slice(4))
    for wrong in (
        lambda: at.evaluate(model, digits.test[:4], threat),
        lambda: at.fit(model, at.defenses.FGSM(threat), digits, epochs=1),
        lambda: at.attacks.fgsm(model, x, digits.test.y[:4], threat),
    ):
        with pytest.raises(ModelError, match="remove the softmax"):
            wrong()
    soft[-1] = nn.Identity()  # as the page on models says
    with torch.no_grad():
        assert at.load_model(soft, data=digits)(x).equal(trained.eval()(x))


def test_initial_weights_are_named_by_the_seed_and_the_global_state_stays():
    state = torch.random.get_rng_state()
    first, again, other = (at.load_model(net, seed=seed) for seed in (1, 1, 2))
    assert same(first, again) and not same(first, other) and torch.random.get_rng_state().equal(state)


def test_half_precision_is_widened_and_said_so(trained, digits):
    half = net().bfloat16()
    with pytest.raises(ModelError, match=r"its weights are torch.bfloat16: model.float\(\) widens them"):
        at.evaluate(half, digits.test[:4], at.Threat("linf", 0.1))
    with pytest.warns(AdvtrainWarning, match="weights of torch.bfloat16: they are widened to float32"):
        model = at.load_model(lambda: half, data=digits)
    assert {p.dtype for p in model.parameters()} == {torch.float32} and same(model, half)


def test_float64_stays(digits):
    model = at.load_model(lambda: net().double(), data=digits, mean=0.5, std=0.5)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_tensors_without_numbers_are_refused_unless_weights_fill_them(tmp_path, trained, digits):
    with pytest.raises(ModelError, match="lazy parameter without a shape: give weights"):
        at.load_model(lazy, data=digits)
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    assert same(at.load_model(lazy, tmp_path / "w.pt", data=digits), trained)
    with pytest.raises(ModelError, match="0.weight is on the meta device, which holds no numbers"):
        at.load_model(lambda: net().to("meta"), tmp_path / "w.pt")
    with pytest.raises(ModelError, match="the model is on the meta device"):
        at.evaluate(net().to("meta"), digits.test[:4], at.Threat("linf", 0.1))


class Buffers(nn.Module):
    """A network without parameters."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.randn(64, 10, dtype=torch.float64))

    def forward(self, x):
        return x.flatten(1) @ self.weight


KINDS = {
    "in training mode": lambda: net().train(),
    "without parameters": Buffers,
    "with frozen parameters": lambda: net().requires_grad_(False),
    "DataParallel": lambda: nn.DataParallel(net()),
    "compiled": lambda: torch.compile(net(), backend="eager"),
    "TorchScript": lambda: torch.jit.script(net()),
    "frozen TorchScript": lambda: torch.jit.freeze(torch.jit.script(net().eval())),
    "traced": lambda: torch.jit.trace(net().eval(), torch.rand(2, 1, 8, 8)),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(net()),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:Warning")
@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_every_kind_are_judged_and_left_as_they_were(digits, kind):
    model, protocol = KINDS[kind](), at.Protocol(steps=2, restarts=1)
    flags = [getattr(module, "training", None) for module in model.modules()]
    before = [tensor.clone() for tensor in model.state_dict().values()]
    report = at.evaluate(model, digits.test[:20], at.Threat("linf", 0.2), protocol=protocol)
    assert report["pgd"] <= report["clean"]
    if kind != "frozen TorchScript":  # it has no flags until it is told to evaluate
        assert [getattr(module, "training", None) for module in model.modules()] == flags
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), before, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    loaded = at.load_model(model, data=digits, mean=0.0, std=1.0)
    assert at.evaluate(loaded, digits.test[:20], at.Threat("linf", 0.2), protocol=protocol) == report


class Blind(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.net, self.how = net(), how

    def forward(self, x):
        if self.how == "in place":
            x -= 0.5
        if self.how == "integers":
            x = (x * 255).to(torch.uint8).float()
        with torch.set_grad_enabled(self.how != "no_grad" and torch.is_grad_enabled()):
            return self.net(x)


@pytest.mark.parametrize("how", ["in place", "integers", "no_grad"])
def test_a_network_without_a_gradient_to_its_images_is_refused(digits, how):
    with pytest.raises(ModelError, match="no gradient with respect to its images.*changed in place"):
        at.evaluate(Blind(how), digits.test[:4], at.Threat("linf", 0.1))


def test_an_exported_program_is_refused():
    program = torch.export.export(net().eval(), (torch.rand(2, 1, 8, 8),))
    with pytest.raises(ModelError, match="evaluation mode: of an exported program the mode is fixed"):
        at.load_model(program.module())


def test_the_origin_of_a_model_names_its_code_and_its_weights_and_no_folder(factory, tmp_path, trained):
    torch.save({"ema": trained.state_dict()}, tmp_path / "w.pt")
    given = ({"width": 4}, None, None, (0.5,), 0.25, None, "cpu", 0)
    model, origin = open_model(f"{factory}:Net", tmp_path / "w.pt", *given)
    assert same(model, trained)
    assert origin == {
        "model": "nets.py:Net",
        "options": {"width": 4},
        "code": hashlib.sha256(factory.read_bytes()).hexdigest(),
        "weights": {
            "file": "w.pt",
            "sha256": hashlib.sha256((tmp_path / "w.pt").read_bytes()).hexdigest(),
            "key": "ema",
        },
        "mean": [0.5],
        "std": [0.25],
        "pick": None,
    }
    _, origin = open_model("torchvision.models:resnet18", None, {"num_classes": 3}, None, *[None] * 4, "cpu", 0)
    assert origin["version"].startswith("torchvision ") and origin["weights"] is None


@pytest.mark.parametrize("pick", [0, "T"])
def test_nothing_is_picked_from_a_single_tensor(trained, digits, pick):
    """A number would take the logits of the first image for those of all."""
    model = at.load_model(trained, pick=pick)
    with pytest.raises(ModelError, match=r"is not in the Tensor that the model returns: .* \(4, 10\): leave out pick"):
        model(digits.test.images(slice(4)))


class Phase(nn.Module):
    def __init__(self, dtype=torch.complex64):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 10, dtype=dtype))

    def forward(self, x):
        return (x.flatten(1).to(self.weight.dtype) @ self.weight).abs()


def test_complex_weights_are_weights_and_not_those_of_a_real_network(tmp_path):
    state = Phase().state_dict()
    torch.save(state, tmp_path / "w.pt")
    assert at.load_model(Phase, tmp_path / "w.pt").weight.equal(state["weight"])
    with pytest.raises(ArgumentError, match=r"holds complex numbers \(torch.complex64\) for weight"):
        at.load_model(lambda: Phase(torch.float32), tmp_path / "w.pt")
    torch.save({"weight": torch.ones(64, 10).long(), "other": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(ArgumentError, match=r"holds integers \(torch.int64\) for weight"):
        at.load_model(Phase, tmp_path / "w.pt")


class Extra(nn.Linear):
    """A layer that keeps more than tensors."""

    kept = None

    def get_extra_state(self):
        return {"recipe": self.kept}

    def set_extra_state(self, state):
        self.kept = state


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("extra", [{"recipe": 1}, argparse.Namespace(lr=1), None, torch.ones(3)])
def test_what_modules_keep_beside_tensors_does_not_hide_their_weights(tmp_path, trained, prefix, extra):
    torch.save(put(prefix, {**trained.state_dict(), "4._extra_state": extra}), tmp_path / "w.pt")
    assert same(at.load_model(net, tmp_path / "w.pt"), trained)
    with_extra = nn.Sequential(*net()[:4], Extra(144, 10))
    if isinstance(extra, torch.Tensor):  # it cannot run code: it is handed to the module
        assert at.load_model(with_extra, tmp_path / "w.pt")[4].kept.equal(extra)
    else:
        with pytest.warns(AdvtrainWarning, match="does not bring 4._extra_state, .*: it stays as it is"):
            loaded = at.load_model(with_extra, tmp_path / "w.pt")
        assert loaded[4].weight.equal(trained[4].weight) and loaded[4].kept is None


SETTING = """
import torch
{outside}
def f():
    {inside}
    return torch.nn.Linear(2, 2)
"""


@pytest.mark.parametrize("where", ["inside", "outside", "fails"])
def test_what_a_factory_sets_for_the_process_is_set_back(tmp_path, where):
    change = "torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False)"
    inside = f"{change}; 1 / 0" if where == "fails" else change if where == "inside" else "pass"
    (tmp_path / "sets.py").write_text(SETTING.format(inside=inside, outside=change if where == "outside" else ""))
    try:
        if where == "fails":
            with pytest.raises(ModelError, match="ZeroDivisionError"):
                at.load_model(f"{tmp_path}/sets.py:f")
        else:
            assert at.load_model(f"{tmp_path}/sets.py:f").weight.dtype == torch.float64
        assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
        with torch.no_grad():
            at.load_model(net)
            assert not torch.is_grad_enabled()  # the caller's own choice stays, too
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        sys.modules.pop("advtrain_model_sets", None)


@pytest.mark.parametrize("kind", [lambda out: out, lambda out: (out, None)], ids=["tensor", "tuple"])
def test_a_network_that_looks_like_a_transformer_may_return_its_logits_alone(kind):
    class Own(nn.Sequential):
        main_input_name = "pixel_values"

        def forward(self, x):
            return kind(super().forward(x))

    own = Own(nn.Flatten(), nn.Linear(64, 10))
    x = torch.rand(2, 1, 8, 8)
    logits = at.load_model(own)(x)
    assert torch.equal(logits, own[1](own[0](x)))
