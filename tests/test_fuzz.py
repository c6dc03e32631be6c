"""Readers take a file or refuse it with an error of the package: whatever is in it, and however it was damaged."""

import sys
from pathlib import Path

import pytest

from advtrain.errors import AdvtrainError, FileError

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))

import fuzz  # noqa: E402


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Where other tests share the processor, ten seconds are not long."""
    monkeypatch.setattr(fuzz, "PATIENCE", 60)


def told(findings):
    return "\n".join(f"{what} ({seed})\n{trace}" for what, (seed, trace) in findings.items())


def test_damaged_files_are_taken_or_refused():
    findings, count = fuzz.run(seconds=4, seed=0)
    assert count >= 2 * len(fuzz.TARGETS)
    assert not findings, told(findings)


@pytest.mark.slow
def test_damaged_files_are_taken_or_refused_for_longer():
    findings, _ = fuzz.run(seconds=60, seed=1)
    assert not findings, told(findings)


class Careless(fuzz.Target):
    """A reader that forgets two things: a character that is none, and a number that is zero."""

    def make(self, folder):
        (folder / "number.txt").write_bytes(b"17")

    def read(self, folder):
        content = (folder / "number.txt").read_bytes()
        if not content.isascii():
            raise FileError("refused")
        return 1 / int(content)


def test_a_careless_reader_is_found_out_and_the_file_is_kept(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(fuzz.TARGETS, "careless", Careless())
    findings, _ = fuzz.run(seconds=20, names=["careless"], out=tmp_path, rounds=200)
    said = capsys.readouterr().out
    assert any(what.startswith("careless: ValueError in test_fuzz.py") for what in findings)
    for what, (seed, trace) in findings.items():
        assert what in said and trace.startswith("Traceback")
        again, count = fuzz.run(seconds=20, names=["careless"], first=int(seed.rpartition(":")[2]), rounds=1)
        assert count == 1 and list(again) == [what], "the seed repeats it"
    kept = [path for path in tmp_path.iterdir() if path.name != "current"]
    assert len(kept) == len(findings) and all((path / "number.txt").is_file() for path in kept)


def test_a_reader_that_never_ends_is_found_out(monkeypatch):
    if not hasattr(fuzz.signal, "SIGALRM"):
        pytest.skip("Windows has no alarm")
    monkeypatch.setattr(fuzz, "PATIENCE", 1)

    class Endless(Careless):
        def read(self, folder):
            while (folder / "number.txt").read_bytes() != b"17":
                pass

    monkeypatch.setitem(fuzz.TARGETS, "endless", Endless())
    findings, _ = fuzz.run(seconds=20, names=["endless"], rounds=1)
    assert [what.partition(" in ")[0] for what in findings] == ["endless: TooLong"]


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_every_kind_of_file_is_damaged_and_some_are_refused(name, tmp_path, monkeypatch):
    """Else the damage would be none, or the reader would look at nothing."""
    target, good, refused, spoiled = fuzz.TARGETS[name], tmp_path / "good", [], set()
    own = target.read

    def read(folder):
        try:
            own(folder)
        except AdvtrainError as error:
            refused.append(error)

    good.mkdir()
    target.make(good)
    monkeypatch.setattr(target, "read", read)
    for number in range(12):
        assert fuzz.once(target, good, tmp_path / "copy", f"12:{number}") is None
        spoiled.add(tuple(path.read_bytes() for path in sorted((tmp_path / "copy").rglob("*")) if path.is_file()))
    assert len(spoiled) > 8 and len(refused) >= 2
