"""Importing the package is light, and the examples in its docstrings are true."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import advtrain

MODULES = [name for _, name, _ in pkgutil.walk_packages(advtrain.__path__, "advtrain.") if name != "advtrain.__main__"]


def test_import_needs_neither_jupyter_nor_matplotlib():
    heavy = ("IPython", "ipywidgets", "matplotlib", "torchvision", "pandas")
    code = f"import sys, advtrain; print([name for name in {heavy} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


def test_everything_public_is_documented():
    for name in advtrain.__all__:
        thing = getattr(advtrain, name)
        assert getattr(thing, "__doc__", None) or not callable(thing), name


def test_files_stay_short_enough_to_read():
    """No file over about 250 lines; a defense under 120."""
    from pathlib import Path

    for path in Path(advtrain.__file__).parent.rglob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= (120 if path.parent.name == "defenses" else 290), f"{path.name}: {lines} lines"
