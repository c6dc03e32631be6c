"""Importing the package is light, its files are short, and nothing imports upward."""

import subprocess
import sys

import advtrain


def test_import_needs_neither_jupyter_nor_matplotlib():
    heavy = ("IPython", "ipywidgets", "matplotlib", "torchvision", "pandas")
    code = f"import sys, advtrain; print([name for name in {heavy} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_everything_public_is_documented():
    for name in advtrain.__all__:
        thing = getattr(advtrain, name)
        assert getattr(thing, "__doc__", None) or not callable(thing), name


def test_files_stay_short_enough_to_read():
    """No file over about 250 lines; a defense under 120."""
    from pathlib import Path

    for path in Path(advtrain.__file__).parent.rglob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= (120 if path.parent.name == "defenses" else 280), f"{path.name}: {lines} lines"


FLOORS = [
    ["errors", "files", "rng", "processes", "provenance", "interrupt", "progress", "schedules", "pictures", "markup"],
    ["finite", "checkpoint_files"],
    ["threat", "modes", "second_order", "transport", "archives", "downloads"],
    [
        "checks",
        "models",
        "data_view",
        "survey",
        "dataset",
        "mapped",
        "data_rows",
        "data_user",
        "data_order",
        "data_folders",
        "data_known",
    ],
    ["data_sources", "data", "loader", "course"],
    ["attacks", "measure", "bilevel", "features", "synthesis"],
    ["defense", "parallel", "player", "tally"],
    ["defenses"],
    [
        "report",
        "autoattack",
        "diagnose",
        "monitor",
        "keeper",
        "recipe",
        "threads",
        "evaluate",
        "presets",
        "run_checks",
        "run_view",
        "resume",
        "weights",
        "runs",
        "plot",
        "explorer",
        "widgets",
        "checkpoints",
        "factories",
        "foreign",
        "loop",
        "callbacks",
        "export",
        "train",
        "cost",
        "budget",
    ],
    ["results"],
    ["experiments"],
    [
        "cli_errors",
        "options",
        "cli_data",
        "cli_judge",
        "cli_diagnose",
        "cli_reproduce",
        "cli_export",
        "cli",
        "__main__",
        "__init__",
    ],
]


def test_nothing_imports_upward():
    """The floors of the house: a module imports from its own floor and from those below."""
    import ast
    from pathlib import Path

    root = Path(advtrain.__file__).parent
    height = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == len(parts):
                for room in [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]:
                    assert height[room] <= height[parts[0]], f"{'/'.join(parts)} imports {room}"
