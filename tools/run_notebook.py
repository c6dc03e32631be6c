"""Execute notebooks from top to bottom and store them with their outputs: python tools/run_notebook.py [FILE ...]

What differs from run to run without meaning anything (time stamps, the Python version) is left out, so that a stored
notebook changes only when its content does. A cell that fails leaves the file as it was.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

BOOK = Path(__file__).resolve().parent.parent / "book"


def run(path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    partial = path.with_suffix(".partial")
    nbformat.write(notebook, partial)
    os.replace(partial, path)


if __name__ == "__main__":
    for path in [Path(name) for name in sys.argv[1:]] or sorted(BOOK.glob("*.ipynb")):
        print(f"running {path.name} ...", flush=True)
        run(path)
