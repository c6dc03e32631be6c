"""A file that somebody sends, or a server, is data: nothing in it is run, wherever the package reads it."""

import ast
import io
import json
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import advtrain as at
from advtrain.autoattack.examples import Examples
from advtrain.autoattack.state import State
from advtrain.data import SOURCES, as_split, load_data
from advtrain.errors import AdvtrainError, ArgumentError, DataError, FileError

ROOT = Path(__file__).resolve().parents[1]


class Bomb:
    """What writes a file where it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.fixture
def marker(tmp_path):
    """The file that must not be there in the end; a test that goes on after it is written would prove nothing."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "a pickle was executed"


@pytest.fixture
def bomb(marker):
    """A pickle that writes the marker: it does so here, where it is meant to."""
    content = pickle.dumps(Bomb(marker))
    pickle.loads(content).close()
    assert marker.exists(), "the control: this pickle is dangerous"
    marker.unlink()
    return content


OPTIONS = {"shape": (1, 8, 8), "num_classes": 10, "normalize": None, "width": 2}


def state():
    return at.build_model("small-cnn", **OPTIONS).state_dict()


def saved(thing, new=True):
    file = io.BytesIO()
    torch.save(thing, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["alone", "beside", "inside", "key", "bare"])
def test_no_weights_execute_anything(tmp_path, marker, bomb, new, where):
    """Either they are refused, or the weights are taken and the rest is left."""
    evil = Bomb(marker)
    thing = {
        "alone": evil,
        "beside": {"model": state(), "optimizer": evil},
        "inside": {**state(), "head.weight": evil},
        "key": {"model": state(), "hooks": [{"deep": [evil]}]},
        "bare": None,
    }[where]
    path = tmp_path / "weights.pt"
    path.write_bytes(bomb if thing is None else saved(thing, new))
    try:
        at.load_model("small-cnn", weights=path, options=OPTIONS)
    except FileError as error:
        assert str(path) in str(error)
    else:
        assert where in ("beside", "key") and new
    assert not marker.exists()


def test_a_checkpoint_with_code_beside_its_weights_gives_the_weights(tmp_path, marker, bomb):
    path, own = tmp_path / "weights.pt", state()
    path.write_bytes(saved({"model": own, "optimizer": Bomb(marker)}))
    model = at.load_model("small-cnn", weights=path, options=OPTIONS)
    assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items())


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run, judged."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    data = at.load_data("digits")
    model, threat = at.build_model("small-cnn", data, width=2), at.Threat("linf", 0.1)
    part = (data.train.x[:40], data.train.y[:40])
    run = at.fit(model, at.defenses.FGSM(threat), part, epochs=1, validate_every=0, out=folder, progress=False)
    report = at.evaluate(run.model, data.test[:20], threat, protocol=at.Protocol(steps=1, restarts=1))
    (folder / "report.json").write_text(json.dumps(report.to_dict()), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["config.json", "history.json", "provenance.json", "model.safetensors", "report.json"])
@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
def test_no_file_of_a_run_folder_executes_anything(tmp_path, run_folder, marker, bomb, name, kind):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    evil = {"model": Bomb(marker)}
    (folder / name).write_bytes(bomb if kind == "pickle" else saved(evil, kind == "zip"))
    with pytest.raises(FileError, match=re.escape(name) if name != "report.json" else "report.json|damaged"):
        at.load_run(folder) if name != "report.json" else at.compare([folder], [folder])


def test_a_run_of_a_stranger_fetches_nothing(tmp_path, run_folder, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["data"] = {"name": "cifar10", "root": str(tmp_path / "data"), "download": True}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setattr(at.data_sources, "fetch", lambda *_, **__: pytest.fail("it was fetched"))
    assert at.load_run(folder).data is None


def test_no_results_file_and_no_experiment_executes_anything(tmp_path, marker, bomb):
    for name, read in (("results.json", at.load_results), ("mine.toml", at.experiments.load)):
        for content in (bomb, saved({"runs": Bomb(marker)}), b"!!python/object/apply:os.system ['true']"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(FileError, match=name):
                read(tmp_path / name)


def npz(path, **arrays):
    x, y = np.zeros((8, 1, 4, 4), np.uint8), np.arange(8) % 2
    np.savez(path, **{"x_train": x, "y_train": y, "x_test": x, "y_test": y, **arrays})
    return path


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test", "classes"])
def test_no_array_executes_anything(tmp_path, marker, bomb, key):
    evil = np.array([Bomb(marker)] * 2, dtype=object)
    with pytest.raises(FileError, match=r"evil\.npz cannot be read"):
        load_data(npz(tmp_path / "evil.npz", **{key: evil}))
    with zipfile.ZipFile(npz(tmp_path / "evil.npz")) as packed:
        members = {name: packed.read(name) for name in packed.namelist()}
    with zipfile.ZipFile(tmp_path / "evil.npz", "w") as packed:
        for name, content in {**members, f"{key}.npy": bomb}.items():
            packed.writestr(name, content)
    with pytest.raises(FileError, match=rf"evil\.npz cannot be read as \.npz: {key} is no array"):
        load_data(tmp_path / "evil.npz")


@pytest.mark.parametrize("content", ["pickle", "array", "zip"])
def test_a_pickle_that_is_called_npz_or_npy_is_no_data(tmp_path, marker, bomb, content):
    path = tmp_path / "evil.npz"
    if content == "pickle":
        path.write_bytes(bomb)
    elif content == "zip":
        path.write_bytes(saved(Bomb(marker)))
    else:
        np.save(tmp_path / "evil.npy", np.array(Bomb(marker), dtype=object))
        (tmp_path / "evil.npy").rename(path)
    with pytest.raises(FileError, match=r"evil\.npz"):
        load_data(path)


def test_what_autoattack_kept_executes_nothing(tmp_path, marker, bomb):
    split = as_split((torch.rand(4, 1, 4, 4), torch.arange(4) % 2))
    for content in (bomb, saved(Bomb(marker))):
        (tmp_path / "state").write_bytes(content)
        with pytest.raises(FileError, match="state is damaged"):
            State(4, 2, {}, tmp_path / "state")
    begun = State(4, 2, {}, None)
    begun.met[0] = True
    np.save(tmp_path / "examples.npy", np.array([Bomb(marker)], dtype=object))
    (tmp_path / "examples.npy").rename(tmp_path / "examples.npy.partial")
    with pytest.raises(FileError, match=r"examples\.npy\.partial"):
        Examples(tmp_path / "examples.npy", split, at.Threat("linf", 0.1), torch.float32, begun)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_pickles_of_cifar_are_read_by_no_one_unless_they_are_the_authors(data_folder, marker, bomb, name):
    """Wherever in the folder the pickle lies, and although every file beside it might be right."""
    from torchvision import datasets

    kind = getattr(datasets, SOURCES[name].torchvision)
    files = [file for file, _ in kind.train_list + kind.test_list] + [kind.meta["filename"]]
    folder = data_folder / SOURCES[name].folder
    folder.mkdir()
    for file in files:
        (folder / file).write_bytes(bomb)
    with pytest.raises(FileError, match=f"{folder.name} is incomplete or damaged"):
        load_data(name)


def test_the_names_of_cifars_classes_are_checked_as_well(data_folder, marker, bomb, monkeypatch):
    """All batches hold their checksums, and the last pickle, that of the names, does not."""
    import hashlib

    from torchvision.datasets import CIFAR10

    folder = data_folder / "cifar-10-batches-py"
    folder.mkdir()
    batch = pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [0]})
    digest = hashlib.md5(batch, usedforsecurity=False).hexdigest()
    for key in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, key, [[file, digest] for file, _ in getattr(CIFAR10, key)])
        for file, _ in getattr(CIFAR10, key):
            (folder / file).write_bytes(batch)
    (folder / "batches.meta").write_bytes(bomb)
    with pytest.raises(FileError, match="metadata file not found or corrupted"):
        load_data("cifar10")


def test_what_torchvision_kept_of_mnist_in_earlier_years_executes_nothing(data_folder, marker, bomb):
    """It was a file of torch.save, which torchvision still reads."""
    for name in ("MNIST/raw", "MNIST/processed"):
        (data_folder / name).mkdir(parents=True)
    for content in (bomb, saved((Bomb(marker), Bomb(marker))), saved((Bomb(marker), Bomb(marker)), new=False)):
        for name in ("training.pt", "test.pt"):
            (data_folder / "MNIST" / "processed" / name).write_bytes(content)
        with pytest.raises(FileError, match="incomplete or damaged"):
            load_data("mnist")


def test_a_matlab_file_of_svhn_executes_nothing(data_folder, marker, bomb):
    pytest.importorskip("scipy.io")
    for part in ("train", "test"):
        (data_folder / f"{part}_32x32.mat").write_bytes(bomb)
    with pytest.raises(FileError, match="incomplete or damaged"):
        load_data("svhn")


def test_a_folder_of_images_executes_nothing(tmp_path, marker, bomb, monkeypatch):
    """Pillow has Ghostscript run what is PostScript, whatever the file is called."""
    from PIL import EpsImagePlugin, Image

    called = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: called.append(1) or Image.new("RGB", (4, 4)).im)
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n(x) print\n%%EOF\n"
    (tmp_path / "script.eps").write_bytes(script)
    with Image.open(tmp_path / "script.eps") as file:
        file.load()
    assert called, "the control: Pillow does run it"
    called.clear()
    for name, content in (("script", script), ("pickle", bomb), ("saved", saved(Bomb(marker)))):
        for place in ("a", "b"):
            (tmp_path / name / place).mkdir(parents=True)
            (tmp_path / name / place / "0.png").write_bytes(content)
        with pytest.raises(FileError, match=r"0\.png cannot be read as an image"):
            load_data(tmp_path / name)
    assert not called


def test_rows_of_somebody_elses_data_set_are_data(marker, bomb):
    """Bytes, as they lie in a table of Hugging Face, are no image and no label, and nobody unpickles them."""

    class Rows:
        def __init__(self, **row):
            self.row = row

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return {"image": torch.zeros(1, 4, 4, dtype=torch.uint8), "label": index % 2, **self.row}

    for row in ({"image": bomb}, {"label": bomb}, {"image": Bomb(marker)}, {"label": Bomb(marker)},
                {"image": np.array([Bomb(marker)], dtype=object)}, {"image": {"bytes": bomb}}):  # fmt: skip
        with pytest.raises(DataError):
            at.as_dataset(Rows(**row))


def test_what_an_export_wrote_is_not_opened_by_this_package(tmp_path, marker, bomb):
    """A `.pt2` may hold code; as weights it is refused, whatever is in it."""
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as packed:
        packed.writestr("archive/data.pkl", bomb)
        packed.writestr("archive/version", "3\n")
    with pytest.raises(FileError, match=r"model\.pt2"):
        at.load_model("small-cnn", weights=tmp_path / "model.pt2", options=OPTIONS)


# Bombs of another kind: small files that would take all memory, or all time.


def header(shape, kind="|u1"):
    head = io.BytesIO()
    np.lib.format.write_array_header_2_0(head, {"descr": kind, "fortran_order": False, "shape": shape})
    return head.getvalue()


@pytest.mark.parametrize("shape", [(2**62,), (10**12, 3, 32, 32), (2**40, 0, 4, 4), (10**12, 10**6, 0)])
@pytest.mark.parametrize("key", ["x_train", "y_train", "classes"])
def test_enormous_shapes_are_refused_at_once(tmp_path, shape, key):
    path = npz(tmp_path / "huge.npz")
    for kind in ("|u1", "<i4", "<U0", "|V0", "<U1"):
        with zipfile.ZipFile(path) as packed:
            members = {name: packed.read(name) for name in packed.namelist()}
        with zipfile.ZipFile(path, "w") as packed:
            for name, content in {**members, f"{key}.npy": header(shape, kind)}.items():
                packed.writestr(name, content)
        with pytest.raises((FileError, DataError), match="huge"):
            load_data(path)


def test_an_archive_that_grows_a_thousandfold_is_refused_unread(tmp_path, monkeypatch):
    """Zeros pack well: what a few kilobytes would unfold to is known before."""
    monkeypatch.setattr(at.data_sources, "LIMIT", 10**6)
    x = np.zeros((2000, 3, 32, 32), np.uint8)
    np.savez_compressed(tmp_path / "bomb.npz", x_train=x, y_train=np.arange(2000) % 2)
    with pytest.raises(FileError, match=r"bomb\.npz cannot be read as \.npz: it unfolds .* to"):
        load_data(tmp_path / "bomb.npz")
    np.savez(tmp_path / "plain.npz", x_train=x, y_train=np.arange(2000) % 2)
    with pytest.raises(DataError, match="maximum of 0"):  # that is another matter: it is as large as it says
        load_data(tmp_path / "plain.npz")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "9" * 100_000, "[" * 500 + "]" * 500, "1e999"])
def test_endless_nesting_and_endless_numbers_are_refused(tmp_path, run_folder, content):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    for name in ("config.json", "history.json", "provenance.json"):
        (folder / name).write_text(content, encoding="utf-8")
        with pytest.raises(FileError, match=re.escape(name)):
            at.load_run(folder)
        shutil.copy(run_folder / name, folder / name)
    (tmp_path / "results.json").write_text(content, encoding="utf-8")
    with pytest.raises(FileError, match="results"):
        at.load_results(tmp_path / "results.json")
    (tmp_path / "mine.toml").write_text(f"title = {content}", encoding="utf-8")
    with pytest.raises((FileError, ArgumentError), match=r"mine\.toml"):
        at.experiments.load(tmp_path / "mine.toml")


@pytest.mark.parametrize("number", ["9" * 400, "-" + "9" * 400, "1e999", "inf", "nan", '"9/0"'])
def test_no_number_of_an_experiment_is_beyond_all_floats(tmp_path, number):
    text = Path(at.experiments.__file__).with_name("digits.toml").read_text(encoding="utf-8")
    assert text.count("\neps = 0.3\n") == 1
    (tmp_path / "mine.toml").write_text(text.replace("\neps = 0.3\n", f"\neps = {number}\n"), encoding="utf-8")
    with pytest.raises(ArgumentError, match=r"mine\.toml: .*eps"):
        at.experiments.load(tmp_path / "mine.toml")


@pytest.mark.parametrize("option", ["width", "num_classes"])
def test_a_configuration_of_an_enormous_network_is_refused_before_it_is_built(tmp_path, run_folder, option):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for size in (10**6, 10**9, 2**62):
        config["model"][option] = size
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with pytest.raises(FileError, match=r"config\.json.*damaged"):
            at.load_run(folder)


def test_weights_that_declare_more_than_they_hold_are_refused(tmp_path):
    head = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + b"\0" * 64)
    with pytest.raises(FileError, match=r"w\.safetensors"):
        at.load_model("small-cnn", weights=tmp_path / "w.safetensors", options=OPTIONS)
    (tmp_path / "w.safetensors").write_bytes((2**63 - 1).to_bytes(8, "little") + b"{}")
    with pytest.raises(FileError, match=r"w\.safetensors"):
        at.load_model("small-cnn", weights=tmp_path / "w.safetensors", options=OPTIONS)


# The source itself: what could execute, or fetch, stands nowhere but where it is known.

ALLOWED = {
    ("advtrain/checkpoints.py", "torch.load"): "weights_only=True",
    ("tools/links.py", "urlopen"): "asks whether the links of the book lead anywhere; keeps nothing",
}
"""Calls that look dangerous, and why they are not."""


PICKLES = ("pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "cloudpickle")


def calls(path):
    """Every call in a file: its node, and the name of what is called, with the last two parts."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            yield node, ".".join(name.split(".")[-2:]), {key.arg: ast.unparse(key.value) for key in node.keywords}


def dangerous(path):
    """What in a file could execute something, or fetch something unchecked."""
    for node, name, given in calls(path):
        module, _, last = name.rpartition(".")
        wrong = (
            (last in ("load", "loads", "Unpickler") and module in PICKLES)
            or (name in ("torch.load", "export.load", "jit.load") and given.get("weights_only") != "True")
            or (last == "load" and module in ("np", "numpy") and given.get("allow_pickle") != "False")
            or (module in ("np", "numpy") and last in ("fromfile", "loadtxt", "genfromtxt"))
            or (module == "yaml" and last in ("load", "load_all", "unsafe_load", "full_load"))
            or name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp")
            or (module == "os" and last.startswith(("exec", "spawn")))
            or given.get("shell", "False") != "False"
            or (name == "hashlib.md5" and given.get("usedforsecurity") != "False")
            or (name in ("hashlib.sha1", "hashlib.new"))
            or last in ("urlopen", "urlretrieve", "build_opener", "load_state_dict_from_url", "download_url",
                        "download_and_extract_archive", "hf_hub_download", "snapshot_download")
            or (module in ("requests", "httpx") or name == "hub.load")
            or last in ("extractall", "unpack_archive", "extract_archive")
            or (last == "extract" and module in ("packed", "archive", "zip", "tar", "file"))
            or (name == "Image.open" and "formats" not in given)  # one of Pillow's formats is a program
            or (name == "ssl._create_unverified_context" or "CERT_NONE" in given.values())
            or (any(k.arg == "download" and ast.unparse(k.value) == "True" for k in node.keywords))
        )  # fmt: skip
        if wrong:
            yield last if last in ("urlopen",) else name, node.lineno


def sources():
    return [path for place in ("advtrain", "tools") for path in (ROOT / place).rglob("*.py")] + [ROOT / "setup.py"]


def test_nothing_in_the_source_executes_or_fetches_what_it_reads():
    found = {(path.relative_to(ROOT).as_posix(), what): line for path in sources() for what, line in dangerous(path)}
    strange = [f"{path}, line {line}: {what}" for (path, what), line in found.items() if (path, what) not in ALLOWED]
    assert not strange, "\n".join(strange)


@pytest.mark.parametrize(
    "line",
    [
        "pickle.loads(x)", "pickle.load(f)", "torch.load(x)", "torch.load(x, weights_only=False)", "np.load(x)",
        "numpy.load(x, allow_pickle=True)", "yaml.load(x)", "eval(x)", "exec(x)", "os.system(x)", "marshal.loads(x)",
        "subprocess.run(x, shell=True)", "tempfile.mktemp()", "hashlib.md5(x)", "urllib.request.urlopen(x)",
        "urllib.request.urlretrieve(x, y)", "tar.extractall(x)", "torch.hub.load(x, y)", "torch.export.load(x)",
        "shutil.unpack_archive(x)", "Image.open(x)", "datasets.CIFAR10(root, download=True)",
    ],
)  # fmt: skip
def test_the_search_finds_each_of_them(tmp_path, line):
    (tmp_path / "bad.py").write_text(f"def use(x, y, f, root, tar):\n    return {line}\n", encoding="utf-8")
    assert list(dangerous(tmp_path / "bad.py"))


def test_what_is_allowed_is_there():
    """A reason that nothing needs any more goes."""
    here = {
        (path.relative_to(ROOT).as_posix(), name.rpartition(".")[2]) for path in sources() for _, name, _ in calls(path)
    }
    assert all((path, what.rpartition(".")[2]) in here for path, what in ALLOWED)


def test_every_error_here_is_one_of_the_family():
    assert all(issubclass(kind, AdvtrainError) for kind in (FileError, DataError, ArgumentError))


def test_only_tensors_are_written_as_weights(tmp_path, run_folder):
    """No file that the package writes is one that it would have to unpickle."""
    assert sorted(path.suffix for path in run_folder.glob("[!.]*")) == [".json"] * 4 + [".safetensors"]
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    for path in run_folder.iterdir():
        assert not path.read_bytes().startswith((b"PK", b"\x80", b"\x93NUMPY"))
