"""Execute notebooks from top to bottom and store them with their outputs: python tools/run_notebook.py [FILE ...]

What differs from run to run without meaning anything is left out or made the same: time stamps, the Python version, the
random ids of widgets, and widgets that no output shows. So a stored notebook changes only when its content does. With
it is stored a digest of the code and its outputs, by which the tests notice what was edited later. A cell that fails
leaves the file as it was.
"""

import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

BOOK = Path(__file__).resolve().parent.parent / "book"
STATE, VIEW = "application/vnd.jupyter.widget-state+json", "application/vnd.jupyter.widget-view+json"
LINKS = ("LinkModel", "DirectionalLinkModel")
INSTALLED = re.compile(r"(advtrain-book(?:\[[\w,-]+\])?) @ git\+https://[^\s\"']+")  # where from, and which version
MODEL = re.compile(r'"IPY_MODEL_([0-9a-f]{32})"')  # a whole string of JSON


def digest(notebook):
    """Identifies the code of a notebook, its outputs and its widgets; not the release that its first cell installs."""
    notebook = nbformat.reads(nbformat.writes(notebook), as_version=4)  # as it is when read from a file
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code = [[INSTALLED.sub(r"\1", cell.source), cell.outputs] for cell in cells]
    content = json.dumps([code, notebook.metadata.get("widgets")], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def shown(notebook):
    """The ids of the widgets that outputs show, in their order."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    views = (output.data[VIEW] for output in outputs if VIEW in output.get("data", {}))
    return list(dict.fromkeys(view["model_id"] for view in views))


def reachable(state, roots):
    """Those models of a widget state that are needed to show `roots`, in an order that depends on nothing else."""
    found = []

    def visit(model):
        if model in state and model not in found:
            found.append(model)
            for name in MODEL.findall(json.dumps(state[model], sort_keys=True)):
                visit(name)

    for root in roots:
        visit(root)
    for model, content in state.items():  # nothing refers to a link; it refers to both its ends
        if content["model_name"] in LINKS and set(MODEL.findall(json.dumps(content))) <= set(found):
            visit(model)
    return found


def tidy_widgets(notebook):
    """Keep the state of the widgets that are shown, under ids that count from 1."""
    widgets = notebook.metadata.get("widgets", {}).get(STATE)
    if not widgets:
        return
    state = widgets["state"]
    new = {old: f"{number:032x}" for number, old in enumerate(reachable(state, shown(notebook)), 1)}
    for old in new:
        if state[old]["model_name"] == "LayoutModel":  # some forty properties, and null is what an absent one means
            state[old]["state"] = {name: value for name, value in state[old]["state"].items() if value is not None}
    text = json.dumps({new[old]: state[old] for old in new})
    widgets["state"] = json.loads(MODEL.sub(lambda match: f'"IPY_MODEL_{new.get(match[1], match[1])}"', text))
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if view := output.get("data", {}).get(VIEW):
                view["model_id"] = new[view["model_id"]]
    if not new:
        del notebook.metadata["widgets"]


def tidy(notebook):
    """Leave out what changes without meaning anything."""
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    tidy_widgets(notebook)
    notebook.metadata["advtrain"] = {"executed": digest(notebook)}


def run(path):
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    resources = {"metadata": {"path": path.parent}}
    NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources=resources, store_widget_state=True
    ).execute()
    tidy(notebook)
    partial = path.with_suffix(".partial")
    nbformat.write(notebook, partial)
    os.replace(partial, path)


if __name__ == "__main__":
    for path in [Path(name) for name in sys.argv[1:]] or sorted(BOOK.glob("*.ipynb")):
        print(f"running {path.name} ...", end=" ", flush=True)
        started = time.perf_counter()
        run(path)
        print(f"{time.perf_counter() - started:.0f} s")
