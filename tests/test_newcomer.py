"""What CONTRIBUTING.md promises to who adds a defense: its own example, added to a copy as it says, and no more."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Tests that run for every defense, without the slowest, and those that compare the registered defenses with a table.
FILES = "contract parallel cli recorded".split()
WANTED = "(pairing or every_defense or no_defense or registered or registers) and not (processes or averaged or asks)"


def example():
    """The file, the line that registers it, and the two rows of tables, as CONTRIBUTING.md shows them."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## Adding a defense")[2].partition("\n## ")[0]
    blocks = re.findall(r"^ *```python\n(.*?)^ *```$", section, re.M | re.S)
    file, line, rows = map(textwrap.dedent, blocks)
    assert line.count("\n") == 1 and rows.count("\n") == 2
    return file, line, rows.splitlines()


def insert(path, before, line):
    """Add one line to a file, before one that is there once."""
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{path.name}: {before!r}"
    path.write_text(text.replace(before, f"{line}\n{before}"), encoding="utf-8")


@pytest.fixture
def copy(tmp_path):
    """The package, its tests and recorded results, with the example added."""
    for name in ("advtrain", "tests", "book/results"):
        ignored = shutil.ignore_patterns("__pycache__", "site", "reference")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    file, line, (moves, losses) = example()
    (tmp_path / "advtrain" / "defenses" / "pairing.py").write_text(file, encoding="utf-8")
    insert(tmp_path / "advtrain" / "defenses" / "__init__.py", "# isort: on\n", line.rstrip())
    insert(tmp_path / "tests" / "test_contract.py", '    "rvs": (4, 2),', f"    {moves}")
    insert(tmp_path / "tests" / "test_parallel.py", '    "rvs": False,', f"    {losses}")
    return tmp_path


def start(copy, *arguments):
    """A Python that imports the package from the copy."""
    search = os.pathsep.join(filter(None, [str(copy), os.environ.get("PYTHONPATH")]))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    environment |= {"PYTHONPATH": search, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
    return subprocess.Popen([sys.executable, *arguments], cwd=copy, env=environment, **pipes)


def test_a_new_defense_takes_one_file_one_line_and_two_rows(copy):
    files = [f"tests/test_{name}.py" for name in FILES]
    tests = start(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", WANTED)
    options = "--data digits --eps 0.3 --epochs 1 --lam 0.2 --out run"
    training = start(copy, "-m", "advtrain", "train", "pairing", *options.split())
    told, found = training.communicate()[0], tests.communicate()[0]
    assert training.returncode == 0 and "Pairing(" in told and "lam=0.2" in told and "clean" in told, told
    assert (copy / "run" / "report.json").is_file()
    assert tests.returncode == 0 and int(re.search(r"(\d+) passed", found)[1]) > 24, found[-5000:]
