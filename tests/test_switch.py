"""A reader with a GPU changes one line of a chapter, and everything below runs on photographs.

Here there is no GPU: the photographs are noise, the network is narrow, an epoch is all that training lasts, and the
device is the CPU. That nothing else about a chapter hangs on its digits is what is shown.
"""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

BOOK = Path(__file__).resolve().parents[1] / "book"
SWITCH = 'SETTING = "digits"'
CHAPTERS = [
    path
    for path in sorted(BOOK.glob("*.ipynb"))
    if any(SWITCH in cell.source for cell in nbformat.read(path, as_version=4).cells)
]
PATCH = """
import advtrain as at
import torch

_load_data, _build_model, _fit = at.load_data, at.build_model, at.fit


def load_data(name, **options):
    if name != "cifar10":
        return _load_data(name, **options)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (400, 3, 32, 32), generator=generator, dtype=torch.uint8)
    classes = "airplane automobile bird cat deer dog frog horse ship truck".split()
    return at.as_dataset((x, torch.arange(400) % 10), test=60, val=40, classes=classes, name="cifar10")


def build_model(name="preactresnet18", *args, **options):
    if name == "preactresnet18" and args:  # for the data; where a shape is named, its size is the subject
        options["width"] = 4
    return _build_model(name, *args, **options)


def fit(*args, **options):
    return _fit(*args, **{**options, "epochs": min(1, options.get("epochs", 1))})


at.load_data, at.build_model, at.fit = load_data, build_model, fit
"""


def test_chapters_that_train_have_the_switch():
    assert len(CHAPTERS) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_chapter_runs_on_photographs(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = cell.source.replace(SWITCH, 'SETTING = "cifar10"')
            cell.source = re.sub(r"""(["'])cuda\1""", '"cpu"', cell.source)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(PATCH))
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(BOOK)}}).execute()
