"""Give every reader of files damaged ones, again and again: python tools/fuzz.py [--seconds 600] [TARGET ...]

A good file is made for each target: a run folder, a results file, an experiment, weights, a data set and so on. Each
round damages a copy: bytes are flipped, cut, moved and doubled; values in JSON, TOML and archives are replaced by odd
ones, with the checksums made right again, so that what comes behind them is reached too. The reader may take it or
refuse it with an `AdvtrainError`. Anything else is a finding: another exception, more than ten seconds, or more than
four GiB. It is printed with the command that repeats it, and its input is kept in `--out`. What a crash of the whole
process was working on is left in the folder `current` there.
"""

import argparse
import contextlib
import copy
import faulthandler
import hashlib
import io
import json
import random
import re
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load as parse_tensors
from safetensors.torch import save_file

import advtrain as at
from advtrain import archives, checkpoint_files
from advtrain.autoattack.state import State
from advtrain.checkpoint_files import Checkpoints, digest
from advtrain.data_known import SOURCES
from advtrain.errors import AdvtrainError
from advtrain.files import digest_of, write_json

PATIENCE = 10  # seconds for one file
MEMORY = 4 * 2**30  # bytes above what the process has at the start
DEEP = 100_000
ODD = [
    None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e308, -1e308, 5e-324, 10**6, 10**9, 2**31, 2**63, 2**64, 10**400, "",
    "x", "../../x", "/etc/passwd", "none", "1/0", "8/255", "nan", "\0", "\ud800", "é\u202e", "x" * 10_000, [], {}, [[]],
    [None], [0], {"": 0}, {"name": "x"}, [1] * 1000, float("nan"), float("inf"),
]  # fmt: skip
"""Values that somebody forgot to think of."""

ODD_TOML = [
    "0", "-1", "1e999", "nan", "inf", '""', '"x"', "[]", "{}", "true", "9" * 30, "9" * 400, '"none"', '"1/0"',
    "1979-05-27", "[[1]]", '"""a\nb"""', "[" * 500 + "]" * 500, '"\\u0000"', "0x10", "1.5", "[0, 1]", '"8/255"',
    "100000000",
]  # fmt: skip


def damage(content, rng):
    """The bytes with a few of them wrong."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        size, kind = len(content), rng.randrange(8)
        place = rng.randrange(size + 1)
        if kind == 0 and place < size:
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del content[place:]
        elif kind == 2 and place < size:
            content[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 3:
            content[place:place] = bytes(rng.choices(range(256), k=rng.randrange(1, 20)))
        elif kind == 4:
            del content[place : place + rng.randrange(1, 50)]
        elif kind == 5:
            other = rng.randrange(size + 1)
            content[place:place] = content[other : other + rng.randrange(1, 200)]
        elif kind == 6:
            content[place : place + 8] = rng.choice(
                (b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7, b"\0" * 7 + b"\x80")
            )
        else:
            content[place : place + rng.randrange(1, 64)] = b""
    return bytes(content)


def places(value, path=()):
    """The paths of all values in nested dicts and lists."""
    found = [path] if path else []
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        found += places(item, (*path, key))
    return found


def distort(value, rng):
    """JSON-able values of which a few are odd, missing, doubled, or elsewhere."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not (paths := places(value)):
            return rng.choice(ODD)
        if len(depths := sorted({len(path) for path in paths})) > 1:  # most values lie deep: take any depth alike
            depth = rng.choice(depths)
            paths = [path for path in paths if len(path) == depth]
        path = rng.choice(paths)
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        kind = rng.randrange(8)
        if kind == 0:
            del parent[path[-1]]
        elif kind == 1 and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[path[-1]]))
        elif kind == 1:
            parent[rng.choice(("", "x", "format", "class", "name", "__class__", "download", "self"))] = rng.choice(ODD)
        elif kind == 2:
            other = value
            for key in rng.choice(places(value)):
                other = other[key]
            parent[path[-1]] = copy.deepcopy(other)
        elif kind == 3 and isinstance(parent[path[-1]], (int, float)):
            number = parent[path[-1]]
            parent[path[-1]] = rng.choice((-number, number + 1, number * 1000, number // 3, str(number), [number]))
        else:
            parent[path[-1]] = copy.deepcopy(rng.choice(ODD))
    return value


def as_json(value, rng):
    """The values as bytes; now and then nested without end."""
    text = json.dumps(value, ensure_ascii=bool(rng.randrange(2)))
    if rng.randrange(40) == 0:
        begin, end = rng.choice((("[", "]"), ('{"a":', "}")))
        text = rng.choice(
            (begin * DEEP, begin * DEEP + "0" + end * DEEP, "9" * DEEP, text + text, "[" + "1," * DEEP + "1]")
        )
    return text.encode("utf-8", "surrogatepass")


class Target:
    """A kind of file and what reads it; the files that a good input has are `damaged` in turn."""

    def make(self, folder):
        """Write a good input into the folder."""
        raise NotImplementedError

    def damaged(self, folder):
        """The files to damage."""
        return sorted(path for path in folder.rglob("*") if path.is_file())

    def spoil(self, path, rng):
        """The damaged content of a file."""
        content = path.read_bytes()
        if path.suffix == ".json" and rng.randrange(4):
            return as_json(distort(json.loads(content), rng), rng)
        return damage(content, rng)

    def read(self, folder):
        """What may raise an `AdvtrainError` and nothing else."""
        raise NotImplementedError


class RunFolder(Target):
    def make(self, folder):
        data = at.load_data("digits")
        model = at.build_model("small-cnn", data, width=2)
        defense = at.defenses.TRADES(at.Threat("linf", 0.1), steps=1)
        run = at.fit(model, defense, (data.train.x[:40], data.train.y[:40]), epochs=1, validate_every=0, progress=False)
        run.data = data
        run.save(folder / "run")
        images = (data.test.x[:20].float() / 255, data.test.y[:20])
        report = at.evaluate(run.model, images, run.threat, protocol=at.Protocol(steps=1, restarts=1))
        write_json(folder / "run" / "report.json", report.to_dict())

    def damaged(self, folder):
        return [
            folder / "run" / name for name in ("config.json", "history.json", "provenance.json", "model.safetensors")
        ]

    def spoil(self, path, rng):
        return distort_safetensors(path, rng) if path.suffix == ".safetensors" else super().spoil(path, rng)

    def read(self, folder):
        with warnings.catch_warnings():  # of other images than it was trained on, as some damage has it
            warnings.simplefilter("ignore", at.errors.AdvtrainWarning)
            run = at.load_run(folder / "run")
        return str(run), repr(run), run._repr_html_()


class Reports(RunFolder):
    def damaged(self, folder):
        return [folder / "run" / "report.json", folder / "run" / "report.json", folder / "run" / "config.json"]

    def read(self, folder):
        tests = at.compare({"a": [folder / "run"], "b": [folder / "run"]}, metric="pgd")
        return str(tests), tests._repr_html_(), tests.to_dict()


class ResultsFile(Target):
    def make(self, folder):
        whole = json.loads(at.recorded("digits").read_text(encoding="utf-8"))
        whole.pop("sum", None)  # which would hide what stands behind it
        kept = {method["name"] for method in whole["experiment"]["methods"][:4]}
        experiment = whole["experiment"]
        experiment["methods"] = [method for method in experiment["methods"] if method["name"] in kept]
        experiment["compare"] = [pair for pair in experiment["compare"] if {pair["a"], pair["b"]} <= kept]
        runs = [run for run in whole["runs"] if run["method"] in kept]
        whole |= {"digest": digest_of(experiment), "runs": runs}
        write_json(folder / "results.json", whole)

    def spoil(self, path, rng):
        if rng.randrange(3) == 0:
            return super().spoil(path, rng)
        value = distort(json.loads(path.read_bytes()), rng)
        try:  # made right again, so that what stands behind the digests is looked at
            value["digest"] = digest_of(value["experiment"])
            for run in value["runs"]:
                run["digest"] = digest_of(run["config"])
        except Exception:  # nosec B110 # there is none, or it is no dict any more: the reader shall say so
            pass
        return as_json(value, rng)

    def read(self, folder):
        results = at.load_results(folder / "results.json")
        shown = str(results), results._repr_html_(), results.markdown(), results.table(), results.comparisons
        return shown, [run.records for run in results.runs], results.to_dict()


class ExperimentFile(Target):
    def make(self, folder):
        shutil.copy(Path(at.experiments.__file__).with_name("digits.toml"), folder / "digits.toml")

    def spoil(self, path, rng):
        lines = path.read_text(encoding="utf-8").splitlines()
        if rng.randrange(4) == 0:
            return damage(path.read_bytes(), rng)
        for _ in range(rng.choice((1, 1, 2, 3))):
            place, kind = rng.randrange(len(lines)), rng.randrange(5)
            if kind == 0:
                del lines[place]
            elif kind == 1:
                lines.insert(place, rng.choice(lines))
            else:
                lines[place] = re.sub(r"= .*", lambda _: f"= {rng.choice(ODD_TOML)}", lines[place])
        return "\n".join(lines).encode()

    def read(self, folder):
        experiment = at.experiments.load(folder / "digits.toml")
        return experiment.content, experiment.digest, experiment.plan()


class Weights(Target):
    """As `torch.save` writes them: the content of the archive is damaged, and its checksums are made right again."""

    def make(self, folder):
        model = at.build_model("small-cnn", shape=(1, 8, 8), num_classes=10, normalize=None, width=2)
        state, more = model.state_dict(), {"epoch": 3, "optimizer": {"lr": 0.1, "groups": [1, 2]}}
        torch.save(state, folder / "plain.pt")
        torch.save({"model": state, **more}, folder / "checkpoint.pt")
        torch.save(state, folder / "legacy.pt", _use_new_zipfile_serialization=False)
        save_file({key: value.contiguous() for key, value in state.items()}, folder / "weights.safetensors")

    def spoil(self, path, rng):
        if path.suffix == ".safetensors":
            return distort_safetensors(path, rng)
        content = path.read_bytes()
        return repack(content, rng) if content.startswith(b"PK") and rng.randrange(4) else damage(content, rng)

    def read(self, folder):
        options = {"shape": (1, 8, 8), "num_classes": 10, "normalize": None, "width": 2}
        for path in folder.iterdir():
            if path.name in self.spoiled:
                at.load_model("small-cnn", weights=path, options=options)

    spoiled: set = set()


class Arrays(Target):
    TYPES = ("f2", "f4", "f8", "i1", "i8", "u8", "c8", "?", "O", "U3", "S2", ">f4", ">i2", "M8[s]", "U0", "V3")

    def oddity(self, array, rng):
        """Another array: of another type or shape, or with other values."""
        kind = rng.randrange(12)
        if kind == 0:
            return rng.choice((array[:0], array[..., :0], array[None], array.reshape(-1), array[::2], array.T))
        if kind == 1:
            return np.array(array.flat[0])
        if kind == 2:
            return np.zeros((rng.choice((2, 1000)), *array.shape[1:]), rng.choice(("U0", "V0")))
        if kind == 3:
            return np.full(array.shape, rng.choice((np.nan, np.inf, -1, 2**63, -(2**62), 10**9, 0.5)))
        return array.astype(rng.choice(self.TYPES))

    def make(self, folder):
        rng = np.random.default_rng(0)
        arrays = {
            f"x_{part}": rng.integers(0, 256, (count, 3, 8, 8), np.uint8)
            for part, count in (("train", 30), ("test", 9))
        }
        arrays |= {f"y_{part}": np.arange(count) % 4 for part, count in (("train", 30), ("test", 9))}
        np.savez(folder / "set.npz", **arrays, classes=np.array(list("abcd")))

    def spoil(self, path, rng):
        content = path.read_bytes()
        if rng.randrange(3) == 0:
            return damage(content, rng)
        if (kind := rng.randrange(5)) < 2:
            return repack(content, rng)
        if kind == 2:
            return enlarge(content, rng)
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        name = rng.choice(sorted(arrays))
        with np.errstate(all="ignore"), contextlib.suppress(ValueError):  # text that is no number stays
            arrays[name] = self.oddity(arrays[name], rng)
        file = io.BytesIO()
        np.savez(file, **arrays)
        return file.getvalue()

    def read(self, folder):
        return repr(at.load_data(folder / "set.npz"))


class Pictures(Target):
    def make(self, folder):
        rng = np.random.default_rng(0)
        for number in range(8):
            place = folder / "set" / "ab"[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            kind = ("png", "jpg", "bmp", "ppm", "tif", "webp", "png", "jpg")[number]
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(place / f"{number}.{kind}")

    def read(self, folder):
        return repr(at.load_data(folder / "set", size=8))


class Original(Target):
    """The idx files of Fashion-MNIST, of which nothing but their form is known when they are already there."""

    def make(self, folder):
        raw = folder / SOURCES["fashion-mnist"].folder
        raw.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for part in ("train", "t10k"):
            for kind, shape in (("images-idx3", (20, 28, 28)), ("labels-idx1", (20,))):
                head = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
                values = rng.integers(0, 256 if len(shape) == 3 else 10, shape, dtype=np.uint8)
                (raw / f"{part}-{kind}-ubyte").write_bytes(head + values.tobytes())

    def read(self, folder):
        return repr(at.load_data("fashion-mnist", root=folder))


class Evaluation(Target):
    """What AutoAttack keeps of an evaluation that was broken off."""

    key = {"model": "a", "images": "b"}

    def make(self, folder):
        State(20, 3, self.key, folder / "state.safetensors").save()

    def spoil(self, path, rng):
        return distort_safetensors(path, rng)

    def read(self, folder):
        state = State(20, 3, self.key, folder / "state.safetensors")
        return state.complete, state.passes, state.warnings


class Resumable(Target):
    """The checkpoints of a training that has not finished."""

    def make(self, folder):
        def end(record):
            raise KeyError("the end")

        data = at.load_data("digits")
        few = at.as_dataset((data.train.x[:32], data.train.y[:32]), val=8, test=0, num_classes=10)
        model, defense = at.build_model("small-cnn", few, width=2), at.defenses.Free(at.Threat("linf", 0.3), replays=2)
        with contextlib.suppress(KeyError):
            at.fit(model, defense, few, epochs=2, batch_size=8, ema=0.9, val_steps=1, out=folder / "run",
                   checkpoint_every=1, on_epoch=end)  # fmt: skip

    def damaged(self, folder):
        return sorted((folder / "run" / "checkpoints").iterdir())

    def spoil(self, path, rng):
        return distort_safetensors(path, rng)

    def read(self, folder):
        found = Checkpoints(folder / "run" / "checkpoints").latest()
        return [checkpoint_files.read(path) for path in self.damaged(folder)], found


class Mapped(Arrays):
    """Arrays in files of their own, of which the images are mapped into memory."""

    def make(self, folder):
        data = at.load_data("digits")
        for name, value in (("x_train", data.train.x), ("y_train", data.train.y)):
            np.save(folder / f"{name}.npy", value[:30].numpy())
        np.save(folder / "classes.npy", np.array([f"class {i}" for i in range(10)]))

    def spoil(self, path, rng):
        return damage(path.read_bytes(), rng)

    def read(self, folder):
        return at.load_data(folder, val=5).train.images()


class Packed(Target):
    """Archives, as data sets come in."""

    def make(self, folder):
        for name, mode in (("a.tar.gz", "w:gz"), ("b.tar.xz", "w:xz")):
            with tarfile.open(folder / name, mode) as packed:
                for i in range(3):
                    member = tarfile.TarInfo(f"set/{i}.txt")
                    member.size = 200
                    packed.addfile(member, io.BytesIO(bytes(range(200))))
        with zipfile.ZipFile(folder / "c.zip", "w", zipfile.ZIP_LZMA) as packed:
            packed.writestr("set/1.txt", "text" * 50)

    def read(self, folder):
        for path in self.damaged(folder):
            with tempfile.TemporaryDirectory() as place:
                archives.unpack(path, Path(place) / "unpacked", most=10_000)


TARGETS = {
    "checkpoint": Resumable(), "mapped": Mapped(), "archive": Packed(),
    "run": RunFolder(), "report": Reports(), "results": ResultsFile(), "experiment": ExperimentFile(),
    "weights": Weights(), "npz": Arrays(), "images": Pictures(), "idx": Original(), "state": Evaluation(),
}  # fmt: skip


def distort_safetensors(path, rng):
    """A safetensors file with an odd header, whose length is right, or with a few bytes wrong."""
    content = path.read_bytes()
    if rng.randrange(3) == 0:
        return damage(content, rng)
    size = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + size])
    if "__metadata__" in head and rng.randrange(2):
        texts = head["__metadata__"]
        name = rng.choice(sorted(texts.keys() - {"sha256"}))
        if texts[name][:1] in "{[":  # JSON again
            texts[name] = as_json(distort(json.loads(texts[name]), rng), rng).decode("utf-8", "replace")
        else:
            texts[name] = rng.choice(("", "-1", "x", "9" * 20, "9" * DEEP, "1.5", "None", texts[name] * 2))
        if "sha256" in texts and rng.randrange(4):  # so that what comes after the checksum is reached
            told = {key: value for key, value in texts.items() if key != "sha256"}
            text = told["state"] if "state" in told else repr(sorted(told.items()))
            texts["sha256"] = digest(text, parse_tensors(content))
    else:
        head = distort(head, rng)
    text = as_json(head, rng)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def repack(content, rng):
    """A zip archive with one member damaged, its checksum made right again."""
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        members = [(entry, packed.read(entry)) for entry in packed.infolist()]
    chosen, file = rng.randrange(len(members)), io.BytesIO()
    if pickles := [i for i, (entry, _) in enumerate(members) if entry.filename.endswith(".pkl")]:
        chosen = rng.choice((chosen, *pickles))
    with zipfile.ZipFile(file, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as packed:
        for i, (entry, inside) in enumerate(members):
            if i != chosen or rng.randrange(10):
                packed.writestr(entry.filename, damage(inside, rng) if i == chosen else inside)
    return file.getvalue()


def enlarge(content, rng):
    """A zip archive of arrays in which one claims to be enormous."""
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        members = {entry.filename: packed.read(entry) for entry in packed.infolist()}
    head, file = io.BytesIO(), io.BytesIO()
    shape = tuple(rng.choice((0, 1, 3, 10**6, 10**12, 2**62, 2**64)) for _ in range(rng.randrange(1, 5)))
    kind = rng.choice(("|u1", "<i8", "<f4", "<U0", "<U1", "|V0", "|O", "<U2147483647", "|S1000000000"))
    np.lib.format.write_array_header_2_0(head, {"descr": kind, "fortran_order": False, "shape": shape})
    members[rng.choice(sorted(members))] = head.getvalue() + bytes(rng.choice((0, 1, 5000)))
    with zipfile.ZipFile(file, "w") as packed:
        for name, inside in members.items():
            packed.writestr(name, inside)
    return file.getvalue()


class TooLong(BaseException):
    """The reader took too long."""


def _alarm(*_):
    raise TooLong


def once(target, good, folder, seed):
    """Damage a copy of a good input and read it: None, or what was raised.

    Args:
        target: what to read.
        good: the folder with the good input.
        folder: the copy, which is made anew.
        seed: names the damage.
    """
    rng = random.Random(seed)  # nosec B311 # it draws no secrets
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    path = rng.choice(target.damaged(folder))
    path.write_bytes(target.spoil(path, rng))
    target.spoiled = {path.name}
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, _alarm)
        signal.alarm(PATIENCE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(folder)
    except AdvtrainError:
        return None
    except (Exception, TooLong) as error:
        return error
    finally:
        if hasattr(signal, "SIGALRM"):
            signal.alarm(0)
    return None


def run(seconds, seed=0, names=(), out=None, first=0, rounds=None):
    """Damage and read until the time is over; {what: (seed, traceback)} of everything that was found.

    Args:
        seconds: how long.
        seed: of the whole; each round has its own, `SEED:TARGET:NUMBER`.
        names: of the targets; all if there is none.
        out: where inputs of findings are kept.
        first: the number of the first round.
        rounds: of each target, at most.

    Returns:
        The findings, and the number of rounds.
    """
    findings, count, number = {}, 0, first
    with tempfile.TemporaryDirectory() as scratch:
        good, keep = Path(scratch) / "good", Path(out or Path(scratch) / "out")
        keep.mkdir(parents=True, exist_ok=True)
        targets = {name: TARGETS[name] for name in names or TARGETS}
        for name, target in targets.items():
            (good / name).mkdir(parents=True)
            target.make(good / name)
            target.read(good / name)  # which is good indeed
        end = time.monotonic() + seconds
        while time.monotonic() < end and (rounds is None or number < first + rounds):
            for name, target in targets.items():
                own = f"{seed}:{name}:{number}"
                error, count = once(target, good / name, keep / "current", own), count + 1
                if error is None:
                    continue
                frame = traceback.extract_tb(error.__traceback__)[-1]
                what = f"{name}: {type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}"
                if what not in findings:
                    findings[what] = own, "".join(traceback.format_exception(error))
                    place = keep / hashlib.sha256(what.encode()).hexdigest()[:8]
                    shutil.rmtree(place, ignore_errors=True)
                    shutil.copytree(keep / "current", place)
                    again = f"python tools/fuzz.py {name} --seed {seed} --first {number} --rounds 1"
                    print(f"{what}: {str(error)[:200]!r}\n  again: {again}   (input: {place})", flush=True)
            number += 1
    return findings, count


def limit_memory():
    """A file that makes its reader take gigabytes shall be found, and the machine not be brought to its knees."""
    here = Path("/proc/self/statm")
    if here.exists():  # on Linux, where there is also `resource`
        import resource

        limit = int(here.read_text(encoding="ascii").split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all if none is named")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first round")
    parser.add_argument("--rounds", type=int, help="of each target, at most")
    parser.add_argument("--out", default="_build/fuzz", help="where inputs of findings are kept")
    options = parser.parse_args()
    faulthandler.enable()
    torch.set_num_threads(1)
    limit_memory()
    findings, count = run(options.seconds, options.seed, options.targets, options.out, options.first, options.rounds)
    for what, (seed, told) in findings.items():
        print(f"\n{what} (seed {seed})\n{told}")
    print(f"{count:,} files were read: {len(findings)} findings")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
