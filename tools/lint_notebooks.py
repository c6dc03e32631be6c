"""Say what is wrong with a stored notebook: python tools/lint_notebooks.py [FILE ...]

nbval compares a notebook's outputs with those of a new run. This looks at what nbval cannot see: code that was never
run or was edited after its run, outputs that would differ elsewhere, damaged widgets, pictures without a description.
"""

import ast
import json
import re
import sys
from pathlib import Path

import nbformat
from run_notebook import BOOK, MODEL, STATE, VIEW, digest

TAGS = {"hide-input", "hide-output", "remove-input", "nbval-check-output", "nbval-ignore-output", "nbval-skip",
        "raises-exception"}  # fmt: skip
WIDGETS = 1_000_000  # bytes of widget state that a page may carry
LEAKS = {
    "a path": r"(?<![\w.])/(?:home|root|tmp|usr|opt|mnt|Users|content|work|var)/\w|\b[A-Z]:\\|~/\w|site-packages",
    "an address in memory": r"\b0x[0-9a-f]{6,}\b",
}
VARIES = {
    "a time": r"\b\d+(?:\.\d+)?\s?(?:[nµum]?s|secs?|seconds?|mins?|minutes?|h|hours?)\b|\b\d\d:\d\d\b|\bit/s\b",
    "a device": r"\bcuda(?::\d+)?\b|\bmps\b",
}


def text_of(output):
    """Everything of an output that a reader sees as text."""
    data = {kind: str(text) for kind, text in output.get("data", {}).items() if kind.startswith("text/")}
    if "text/html" in data:
        data["text/html"] = re.sub(r"<[^>]*>", " ", data["text/html"])
    return "\n".join([output.get("text", ""), *data.values()])


def tags(cell):
    return set(cell.metadata.get("tags", []))


def in_cell(cell):
    """What is wrong with a code cell and its outputs."""
    if unknown := tags(cell) - TAGS:
        yield f"unknown tags {sorted(unknown)}"
    if re.search(r";\s*$", cell.source):
        yield "ends with a semicolon, which hides its output from the comparison: use plt.show()"
    compared = not tags(cell) & {"nbval-ignore-output", "nbval-skip"}
    for output in cell.outputs:
        if output.output_type == "error" and "raises-exception" not in tags(cell):
            yield f"ends with {output.ename}"
        if output.output_type == "stream" and output.name == "stderr":
            yield f"writes to stderr: {output.text[:60]!r}"
        for what, pattern in {**LEAKS, **(VARIES if compared else {})}.items():
            if found := re.search(pattern, text_of(output)):
                yield f"its output holds {what}: {found[0]!r}"
        data = output.get("data", {})
        if VIEW in data:
            if not {"image/png", "text/html"} & set(data):
                yield "its widget has no static form: use advtrain.widgets"
        if "image/png" in data and not described(cell):
            yield "its picture has no description: set mystnb.image.alt in the metadata"


def claims(cell):
    """Whether a cell asserts something."""
    python = re.sub(r"(?m)^(\s*)[%!].*", r"\1pass", cell.source)
    return any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(python)))


def described(cell):
    return len(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")) >= 20


def in_widgets(notebook):
    """What is wrong with the stored widgets."""
    stored = notebook.metadata.get("widgets", {})
    views = [
        output.data[VIEW]["model_id"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if VIEW in output.get("data", {})
    ]
    if (stored or views) and not stored.get(STATE, {}).get("state"):
        yield "widgets without their state (saved by Colab?): run it with tools/run_notebook.py"
        return
    state = stored.get(STATE, {}).get("state", {})
    text = json.dumps(state)
    if lost := {*views, *MODEL.findall(text)} - set(state):
        yield f"widgets that are referred to and not stored: {sorted(lost)[:3]}"
    if len(text) > WIDGETS:
        yield f"{len(text):,} bytes of widgets; a page may carry {WIDGETS:,}"


def in_text(notebook):
    """What is wrong with headings, exercises and quiz."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    levels = [len(marks) for marks in re.findall(r"^(#+) ", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)]
    if levels.count(1) != 1 or levels[0] != 1:
        yield "needs one heading of level 1, at the top"
    if any(below > above + 1 for above, below in zip(levels, levels[1:], strict=False)):
        yield f"skips a level of headings: {levels}"
    exercises = re.findall(r"^:label: (ex-\S+)$", text, re.M)
    solutions = re.findall(r"^```\{solution-start\} (\S+)\n:class: dropdown$", text, re.M)
    if not exercises or sorted(exercises) != sorted(solutions):
        yield f"every exercise needs a folded solution: exercises {exercises}, solutions {solutions}"
    quiz = re.findall(r'((?:^- .*\n(?:  .*\n)*)+)\n<details class="quiz" data-answer="(\d+)">\n<summary>', text, re.M)
    if len(quiz) < 3 or len(quiz) != text.count("<details"):
        yield f"needs a quiz of three questions or more in the usual form; {len(quiz)} have it"
    for answers, right in quiz:
        if not 1 <= int(right) <= len(re.findall(r"^- ", answers, re.M)):
            yield f"the quiz calls answer {right} right, which there is not"


def problems(notebook):
    """Everything that is wrong with a stored notebook, each as one line."""
    found = list(in_text(notebook)) + list(in_widgets(notebook))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if notebook.metadata.get("advtrain", {}).get("executed") != digest(notebook):
        found.append("its code was edited after its last run: run it with tools/run_notebook.py")
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("was not run once from top to bottom: cells without a count are never compared")
    if extra := {"colab", "accelerator"} & set(notebook.metadata):
        found.append(f"metadata of Colab: {sorted(extra)}")
    if not code or "google.colab" not in code[0].source or "nbval-skip" not in tags(code[0]):
        found.append("its first code cell has to install the package in Colab, with the tag nbval-skip")
    if not any(map(claims, code)):
        found.append("claims nothing that a cell asserts")
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            found += [f"cell {number}: {problem}" for problem in in_cell(cell)]
    return found


def main():
    bad = False
    for path in [Path(name) for name in sys.argv[1:]] or sorted(BOOK.glob("*.ipynb")):
        for problem in problems(nbformat.read(path, as_version=4)):
            bad = True
            print(f"{path.name}: {problem}")
    sys.exit(bad)


if __name__ == "__main__":
    main()
