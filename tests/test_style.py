"""What `make check` looks at: the form of the code, and its types, also as a caller sees them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.version import Version

ROOT = Path(__file__).parent.parent
LOCKED = re.findall(r"^torch==([\d.]+)", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.M)


def said_by(*command):
    """The output of a tool, run in the repository, and whether it was content."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    return done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_the_code_has_one_style(command):
    good, said = said_by("ruff", *command, "--no-cache")
    assert good, said


@pytest.mark.skipif(
    Version(torch.__version__) < min(map(Version, LOCKED)),
    reason="types are those of the locked versions: in older ones PyTorch, Matplotlib, Click and others lack some",
)
def test_types_hold_in_the_package_and_for_its_callers():
    """Under mypy --strict, which also says so where it finds nothing wrong with a line of `misuse` in typed_use.py."""
    good, said = said_by("mypy", "--no-error-summary")
    assert good, said


def test_few_lines_are_excused_from_their_types():
    """Each names the error that it excuses."""
    lines = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in (ROOT / "advtrain").rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "# type: ignore" in line
    ]
    assert len(lines) < 15 and all(re.search(r"# type: ignore\[[a-z,-]+\]", line) for line in lines), "\n".join(lines)


def test_what_the_types_promise_runs(tmp_path):
    import typed_use

    assert 0 <= typed_use.use(tmp_path / "run")["pgd"] <= 1
