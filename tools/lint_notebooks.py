"""Say what is wrong with a stored notebook: python tools/lint_notebooks.py [FILE ...]

nbval compares a notebook's outputs with those of a new run. This looks at what nbval cannot see: code that was never
run, code or outputs that were edited after the run, outputs that would differ elsewhere, damaged widgets, pictures
without a description, exercises without a solution. A chapter, NN-name.ipynb, is also held to what its readers may
rely on: what is at its top, numbered equations and figures, a figure that answers without a kernel, exercises.
"""

import ast
import functools
import io
import json
import re
import sys
import tokenize
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from markdown_it import MarkdownIt
from run_notebook import BOOK, MODEL, STATE, VIEW, digest, shown

TAGS = {"hide-input", "hide-output", "remove-input", "nbval-check-output", "nbval-ignore-output", "nbval-skip",
        "raises-exception"}  # fmt: skip
WIDGETS = 1_000_000  # bytes of widget state that a page may carry
ROOTS = "home|root|tmp|usr|opt|mnt|Users|Volumes|content|kaggle|work|workspace|private|var|data"
LEAKS = {
    "a path": rf"(?<![\w.])/(?:{ROOTS})/[\w.]|\b[A-Za-z]:[\\/]\w|~/[\w.]|site-packages",
    "an address in memory": r"\b0x[0-9a-fA-F]{6,}\b",
}
TAKES = {
    "a download": r"\b(?:urlopen|urlretrieve|from_pretrained|torch\.hub|snapshot_download|wget|curl|pip install)\b"
    r"|\bdata[\"', ]+fetch\b|\bfetch\(|\bpretrained=True|\bimport requests\b",
    "a file of the repository": r"[\"'](?:\.\./|(?:advtrain|benchmarks|book|tests|tools|results)/)",
}
GAINS = re.compile(r'^SETTING = "(?!digits")', re.M)  # what a GPU is for
UNITS = "ns|[µμu]s|ms|s|milliseconds?|secs?|seconds?|mins?|minutes?|h|hours?|days?"
VARIES = {
    "a time": rf"\b\d+(?:\.\d+)?\s?(?:{UNITS})\b|\b[0-2]?\d:[0-5]\d:[0-5]\d\b|\bat [0-2]?\d:[0-5]\d\b|\bit/s\b",
    "a date": r"\b20\d\d-[01]\d-[0-3]\d\b",
    "a device": r"\bcuda(?::\d+)?\b|\bmps\b|\bTesla\b|\bGeForce\b",
}
QUIZ = re.compile(
    r"^\*\*\d+\. (?:(?!\*\*)[\s\S])*\*\*\n\n"  # the question
    r"((?:- .*\n(?:  .*\n)*)+)\n"  # its answers
    r'<details class="quiz" data-answer="(\d+)">\n<summary>',
    re.M,
)
HEAD = ("You need", "Time to learn:", "Hardware:", "Afterwards you can")
SECTIONS = ("Exercises", "Quiz", "Take-away", "Further reading")
TAG = re.compile(r"\\tag\{(\d+)\.(\d+)\}")
MENTION = re.compile(r"(?:equations?|eqs?\.|and|or|to|from) \((\d+\.\d+)\)")
CAPTION = re.compile(r"\*Figure (\d+)\.(\d+)(?: \(interactive\))?\. .{20,}")
PICTURES = {"image/png", "image/jpeg", "image/svg+xml"}


def texts_of(output):
    """The text of an output with its markup, and as a reader sees it."""
    data = {
        kind: text for kind, text in output.get("data", {}).items() if kind not in {"image/png", "image/jpeg", VIEW}
    }
    parts = [output.get("text", ""), output.get("evalue", ""), *output.get("traceback", [])]
    parts += [text if isinstance(text, str) else json.dumps(text) for text in data.values()]
    whole = "\n".join(parts)
    return whole, re.sub(r"<[^>]*>", " ", whole)


def tags(cell):
    return set(cell.metadata.get("tags", []))


def python_of(cell):
    """The code of a cell as plain Python, its %magics and !commands turned into calls."""
    return TransformerManager().transform_cell(cell.source)


def ends_with_semicolon(cell):
    ignored = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(python_of(cell)).readline)
    return [token.string for token in tokens if token.type not in ignored][-1:] == [";"]


def claims(cell):
    return any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(python_of(cell))))


def elsewhere(cell):
    """What a code cell takes from elsewhere than the package: files beside it, and what it downloads unasked."""
    for what, pattern in {**TAKES, "a path": LEAKS["a path"]}.items():
        if found := re.search(pattern, cell.source):
            yield f"its code holds {what}: {found[0]!r}"
    for call in (node for node in ast.walk(ast.parse(python_of(cell))) if isinstance(node, ast.Call)):
        if any(option.arg == "download" and ast.unparse(option.value) != "False" for option in call.keywords):
            if [ast.unparse(argument) for argument in call.args] != ["SETTING"]:  # the reader asks, by another setting
                yield f"downloads what no reader asked for: {ast.unparse(call)!r}"


def described(cell):
    return len(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")) >= 20


def in_code(cell):
    """What is wrong with a code cell and its outputs."""
    if unknown := tags(cell) - TAGS:
        yield f"unknown tags {sorted(unknown)}"
    if ends_with_semicolon(cell):
        yield "ends with a semicolon, which hides its output from the comparison: use plt.show()"
    compared = not tags(cell) & {"nbval-ignore-output", "nbval-skip"}
    for output in cell.outputs:
        if output.output_type == "error" and "raises-exception" not in tags(cell):
            yield f"ends with {output.ename}"
        if output.output_type == "stream" and output.name == "stderr":
            yield f"writes to stderr: {output.text[:60]!r}"
        whole, seen = texts_of(output)
        leaks = {what: re.search(pattern, whole) for what, pattern in LEAKS.items()}
        varies = {what: re.search(pattern, seen) for what, pattern in VARIES.items() if compared}
        for what, found in {**leaks, **varies}.items():
            if found:
                yield f"its output holds {what}: {found[0]!r}"
        data = output.get("data", {})
        if VIEW in data and not {"image/png", "text/html"} & set(data):
            yield "its widget has no static form: use advtrain.widgets"
        if PICTURES & set(data) and not described(cell):
            yield "its picture has no description: set mystnb.image.alt in the metadata"
        if any("alt=" not in image for image in re.findall(r"<img[^>]*>", str(data.get("text/html", "")))):
            yield "its HTML holds a picture without a description"


def in_widgets(notebook):
    """What is wrong with the stored widgets."""
    stored, views = notebook.metadata.get("widgets", {}), shown(notebook)
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
    """What is wrong with headings, pictures and quiz."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    levels = [int(token.tag[1]) for token in MarkdownIt().parse(text) if token.type == "heading_open"]
    if levels.count(1) != 1 or levels[0] != 1:
        yield "needs one heading of level 1, at the top"
    if any(below > above + 1 for above, below in zip(levels, levels[1:], strict=False)):
        yield f"skips a level of headings: {levels}"
    if "![](" in text:
        yield "its text holds a picture without a description"
    quiz = QUIZ.findall(text)
    if len(quiz) < 3 or len(quiz) != text.count('<details class="quiz"'):
        yield f"needs a quiz of three questions or more in the form that CONTRIBUTING.md shows; {len(quiz)} have it"
    for answers, right in quiz:
        if re.search(r"^- \d+[.)]\s*$", answers, re.M):
            yield "an answer of the quiz is a bare number with a full stop, which Markdown takes for an empty list"
        if not 1 <= int(right) <= len(re.findall(r"^- ", answers, re.M)):
            yield f"the quiz calls answer {right} right, which there is not"


def in_exercises(notebook):
    """What is wrong with the exercises: each has a label, and a folded solution with code that ran or with text."""
    labels, solved, inside = [], {}, None
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (
            fenced := re.search(r"^```\{(?:exercise|solution)-\w+\}", cell.source, re.M)
        ):
            yield f"{fenced[0]} is an empty box outside the site: write ::: in place of ```"
        first = cell.source.splitlines()[:1]
        if cell.cell_type == "markdown" and first and first[0].startswith(":::{exercise-start}"):
            found = re.search(r"^:label: (ex-\S+)$", cell.source, re.M)
            labels.append(found[1] if found else f"{first[0]} (no label ex-...)")
        elif cell.cell_type == "markdown" and first and first[0].startswith(":::{solution-start}"):
            inside = first[0].split()[-1]
            solved[inside] = False
            if "\n:class: dropdown" not in cell.source:
                yield f"the solution of {inside} is not folded"
        elif cell.cell_type == "markdown" and first and first[0].startswith(":::{solution-end}"):
            inside = None
        elif inside and cell.cell_type == "code":
            solved[inside] = True
    if not labels:
        yield "has no exercise"
    if sorted(labels) != sorted(solved):
        yield f"every exercise needs a solution: exercises {labels}, solutions {list(solved)}"
    if labels and not any(solved.values()):
        yield "no solution holds code"


def figures(notebook):
    """The cells that show a picture or a widget outside of the exercises, each with the next text below it."""
    exercise = False
    for place, cell in enumerate(notebook.cells):
        first = cell.source.partition("\n")[0]
        exercise = first.startswith(":::{exercise-start}") or (exercise and "{solution-end}" not in first)
        data = {kind for output in cell.get("outputs", []) for kind in output.get("data", {})}
        if not exercise and data & {*PICTURES, VIEW}:
            texts = (after.source for after in notebook.cells[place + 1 :] if after.cell_type == "markdown")
            yield cell, next(texts, "")


def in_numbers(number, found, what):
    """Whether the pairs (chapter, place) count the things of one chapter."""
    if found != [(number, place) for place in range(1, len(found) + 1)]:
        yield f"its {what} are to be numbered {number}.1, {number}.2, ... in their order: {found}"


def in_chapter(notebook, number, tags=()):
    """What is wrong with it as chapter `number`; `tags` are the numbers of all equations of the book."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    head = re.findall(r"^\*\*([^*]+)\*\*", notebook.cells[0].source, re.M)
    if head != list(HEAD):
        yield f"its first cell begins paragraphs with {list(HEAD)}, not {head}"
    if missing := [title for title in SECTIONS if f"\n## {title}\n" not in f"\n{text}\n"]:
        yield f"has no section {missing}"
    if (count := text.count(":::{exercise-start}")) < 3:
        yield f"has {count} exercises; three are the least"
    if not shown(notebook):
        yield "has no figure that answers without a kernel: use advtrain.widgets"
    found = [tuple(map(int, tag)) for tag in TAG.findall(text)]
    yield from in_numbers(number, found, "equations")
    if broken := [formula for formula in text.split("$$")[1::2] if r"\tag" in formula and r"\\" in formula]:
        yield f"a numbered formula of several lines goes into a bare align, not between $$: {broken[0].strip()[:40]!r}"
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    if not re.search(rf"#.*\({number}\.\d+\)", code):
        yield "no comment of its code mentions an equation, as in # eq. (4.2)"
    known = {*tags, *(f"{chapter}.{place}" for chapter, place in found)}
    if lost := sorted(set(MENTION.findall(text + code)) - known):
        yield f"mentions equations that there are not: {lost}"
    captions = [(cell, CAPTION.match(after)) for cell, after in figures(notebook)]
    for cell, caption in captions:
        if caption is None:
            yield f"a figure has no caption (*Figure {number}.1. ...*) in the text after it: {cell.source[:40]!r}"
    places = [(int(caption[1]), int(caption[2])) for _, caption in captions if caption]
    yield from in_numbers(number, places, "figures")


def problems(notebook):
    """Everything that is wrong with a stored notebook, each as one line."""
    found = [*in_text(notebook), *in_exercises(notebook), *in_widgets(notebook)]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if notebook.metadata.get("advtrain", {}).get("executed") != digest(notebook):
        found.append("its code or its outputs were edited after its last run: run it with tools/run_notebook.py")
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("was not run once from top to bottom: cells without a count are never compared")
    if "colab" in notebook.metadata:
        found.append("metadata of Colab: ['colab']")
    if "accelerator" in notebook.metadata and not any(GAINS.search(cell.source) for cell in code):
        found.append("asks Colab for a GPU, by which the digits gain nothing")
    if not code or "google.colab" not in code[0].source or "nbval-skip" not in tags(code[0]):
        found.append("its first code cell has to install the package in Colab, with the tag nbval-skip")
    asserted = False
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            try:
                asserted |= claims(cell)
                found += [f"cell {number}: {problem}" for problem in elsewhere(cell) if cell is not code[0]]
                found += [f"cell {number}: {problem}" for problem in in_code(cell)]
            except (SyntaxError, tokenize.TokenError) as error:
                found.append(f"cell {number}: cannot be read as Python: {error}")
    if not asserted:
        found.append("claims nothing that a cell asserts")
    return found


@functools.cache
def sources(folder=BOOK):
    """The sources of all cells of the chapters in that folder, as they are when first asked for."""
    chapters = [nbformat.read(path, as_version=4) for path in sorted(folder.glob("*.ipynb"))]
    return tuple(cell.source for chapter in chapters for cell in chapter.cells)


def equations(folder):
    """The numbers of all equations of the chapters, such as "6.3"."""
    return {".".join(tag) for tag in TAG.findall("\n".join(sources(folder)))}


def check(path):
    """Everything that is wrong with the notebook of that path."""
    notebook = nbformat.read(path, as_version=4)
    chapter = re.match(r"(\d\d)-", path.name)
    held = in_chapter(notebook, int(chapter[1]), equations(path.parent)) if chapter else ()
    return [*problems(notebook), *held]


def main():
    bad = False
    for path in [Path(name) for name in sys.argv[1:]] or sorted(BOOK.glob("*.ipynb")):
        for problem in check(path):
            bad = True
            print(f"{path.name}: {problem}")
    sys.exit(bad)


if __name__ == "__main__":
    main()
