"""What is stored in the notebooks is what their code gives, and is fit to be compared and shown."""

import copy
import re
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

import advtrain as at

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))

import lint_notebooks  # noqa: E402
import run_notebook  # noqa: E402

NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))

START = ":::{exercise-start} One\n:label: ex-one\n:::"
SOLUTION = ":::{solution-start} ex-one\n:class: dropdown\n:::"
TEXT = """# Title

~~~
# no heading
~~~

## Quiz
""" + "".join(
    f"""
**{number}. Is it so?**

- yes
- no, since this
  answer goes on

<details class="quiz" data-answer="2">
<summary>Answer</summary>

No.

</details>
"""
    for number in (1, 2, 3)
)
INSTALL = """import sys

if "google.colab" in sys.modules:
    %pip install -q "advtrain-book @ git+https://example.org/book@main\""""
FIGURE = """import ipywidgets as widgets
from IPython.display import display

unused = widgets.Text("shown nowhere")


class Figure(widgets.VBox):
    def _repr_mimebundle_(self, **kwargs):
        return {**super()._repr_mimebundle_(**kwargs), "text/html": "<b>still</b>", "text/plain": "a figure"}


choice = widgets.SelectionSlider(options=["a", "b"], description="IPY_MODEL_text")
stack = widgets.Stack([widgets.HTML("A"), widgets.HTML("B")])
link = widgets.jslink((choice, "index"), (stack, "selected_index"))
Figure([choice, stack])"""


def text(old, new, cell=0):
    """A change of the cell of that number, or of the first that holds that text."""

    def change(notebook):
        chosen = next(c for c in notebook.cells if cell in c.source) if isinstance(cell, str) else notebook.cells[cell]
        assert old in chosen.source
        chosen.source = chosen.source.replace(old, new)

    return change


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A small notebook as the runner stores it, and as it stores it after one more run."""
    cells = [nbformat.v4.new_markdown_cell(TEXT)]
    cells += [nbformat.v4.new_code_cell(code) for code in (INSTALL, FIGURE, "assert 1 + 1 == 2\nprint('two')")]
    cells += [nbformat.v4.new_markdown_cell(text) for text in (START, ":::{exercise-end}\n:::", SOLUTION)]
    cells += [nbformat.v4.new_code_cell("2 + 2"), nbformat.v4.new_markdown_cell(":::{solution-end}\n:::")]
    cells[1].metadata["tags"] = ["nbval-skip"]
    path = tmp_path_factory.mktemp("notebook") / "example.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    texts = []
    for _ in range(2):
        run_notebook.run(path)
        texts.append(path.read_text(encoding="utf-8"))
    assert [child.name for child in path.parent.iterdir()] == [path.name], "a partial file was left"
    return texts


@pytest.fixture
def notebook(stored):
    return nbformat.reads(stored[0], as_version=4)


def test_a_second_run_stores_the_same_bytes(stored):
    assert stored[0] == stored[1]


def test_the_runner_keeps_the_widgets_that_are_shown_and_their_links(notebook):
    state = notebook.metadata["widgets"][run_notebook.STATE]["state"]
    kinds = sorted(model["model_name"] for model in state.values())
    assert kinds.count("LinkModel") == 1 and kinds.count("HTMLModel") == 2
    assert "TextModel" not in kinds
    assert sorted(state) == [f"{number:032x}" for number in range(1, len(state) + 1)]


def test_the_runner_leaves_a_notebook_alone_whose_cell_fails(tmp_path):
    path = tmp_path / "failing.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        run_notebook.run(path)
    assert path.read_bytes() == before


def test_what_the_runner_stores_is_found_good(notebook):
    assert lint_notebooks.problems(notebook) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_chapter_is_found_good(path):
    assert lint_notebooks.check(path) == []


def test_the_book_has_ten_chapters_and_its_contents_list_them_in_order():
    listed = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))["parts"][0]["chapters"]
    assert [Path(entry["file"]).name for entry in listed] == [path.stem for path in NOTEBOOKS]
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{number:02}" for number in range(1, 11)]


@pytest.mark.parametrize("name", sorted(set(at.defenses.DEFENSES) - {"standard"}))
def test_the_book_says_how_to_cite(name):
    """In a paragraph or in a row of a table: the paper, a link to it, and the class in the package."""
    wanted = rf"`(at\.defenses\.)?{at.defenses.DEFENSES[name].__name__}`"
    parts = [part for text in lint_notebooks.sources() for part in re.split(r"\n\n|\n(?=\|)", text)]
    found = any("{cite:t}" in part and "](https://" in part and re.search(wanted, part) for part in parts)
    assert found, f"no paragraph of a chapter has a {{cite:t}}, a link and {wanted}: see 'Cite as:' in CONTRIBUTING.md"


def test_labels_of_exercises_are_free_of_repetitions_throughout_the_book():
    labels = re.findall(r"^:label: (\S+)$", "\n".join(lint_notebooks.sources()), re.M)
    assert sorted(labels) == sorted(set(labels))


CHAPTER = ROOT / "book" / "02-adversarial-training.ipynb"
SPOILED_CHAPTER = {
    "nothing about hardware": (text("**Hardware:**", "Hardware:"), "first cell"),
    "no further reading": (text("## Further reading", "## More", cell=-1), "Further reading"),
    "two exercises": (text(":::{exercise-start}", ":::{exercise}", cell="{exercise-start} The books"), "2 exercises"),
    "no widget": (lambda nb: [cell.update(outputs=[]) for cell in nb.cells if cell.cell_type == "code"], "kernel"),
    "an equation out of order": (text(r"\tag{2.1}", r"\tag{2.9}", cell=r"\tag{2.1}"), "equations are to be numbered"),
    "a numbered formula that Sphinx would split": (
        text(r"\tag{2.1}", r"\\ \tag{2.1}", cell=r"\tag{2.1}"),
        "bare align",
    ),
    "another chapter's number": (text(r"\tag{2.1}", r"\tag{3.1}", cell=r"\tag{2.1}"), "equations are to be numbered"),
    "a mention of nothing": (text("## Quiz", "## Quiz\n\nSee equation (2.99).", cell="## Quiz"), "['2.99']"),
    "a figure without a caption": (text("*Figure 2.1.", "Figure 2.1.", cell="*Figure 2.1."), "no caption"),
    "a figure with another's number": (text("*Figure 2.1.", "*Figure 2.2.", cell="*Figure 2.1."), "figures are to be"),
}


@pytest.mark.parametrize("case", SPOILED_CHAPTER)
def test_the_lint_finds_in_a_chapter(case):
    spoil, message = SPOILED_CHAPTER[case]
    chapter = nbformat.read(CHAPTER, as_version=4)
    spoil(chapter)
    assert message in "\n".join(lint_notebooks.in_chapter(chapter, 2))


def test_another_release_to_install_is_no_edit(notebook):
    """A release rewrites the first cell of every chapter, and no output depends on it."""
    text("example.org/book@main", "example.org/moved@v1.2.3", cell=1)(notebook)
    assert lint_notebooks.problems(notebook) == []
    text("-q", "-q -U", cell=1)(notebook)
    assert "edited after" in "\n".join(lint_notebooks.problems(notebook))


def output(notebook):
    return notebook.cells[3].outputs[0]


def printed(text):
    return lambda notebook: output(notebook).update(text=text)


def tagged(*tags):
    return lambda notebook: notebook.cells[3].metadata.update(tags=list(tags))


def state(notebook):
    return notebook.metadata["widgets"][run_notebook.STATE]["state"]


def code(source):
    return lambda notebook: notebook.cells[3].update(source=source)


def shows(kind, content):
    return lambda notebook: notebook.cells[2].outputs[0].data.update({kind: content})


def both(*changes):
    return lambda notebook: [change(notebook) for change in changes]


SPOILED = {
    "a cell that was edited later": (lambda nb: nb.cells[3].update(source="assert 2 == 2"), "edited after"),
    "a cell that was not run": (lambda nb: nb.cells[3].update(execution_count=None), "top to bottom"),
    "cells run in another order": (lambda nb: nb.cells[3].update(execution_count=7), "top to bottom"),
    "an output that was edited later": (lambda nb: nb.cells[7].outputs.clear(), "edited after"),
    "a widget that was edited later": (lambda nb: state(nb).pop(max(state(nb))), "edited after"),
    "a path": (printed("saved in /usr/share/model.pt"), "a path"),
    "a hidden path": (printed("saved in /tmp/.cache"), "a path"),
    "a path in an attribute": (shows("text/html", '<a href="/opt/joe/x">x</a>'), "a path"),
    "a path in SVG": (shows("image/svg+xml", "<svg><!-- /opt/joe/x --></svg>"), "a path"),
    "a path from the user's folder": (printed("~/.cache/torch"), "a path"),
    "a Windows path": (printed("saved in C:\\models"), "a path"),
    "a path in an ignored output": (both(printed("/tmp/x"), tagged("nbval-ignore-output")), "a path"),
    "a time": (printed("took 12.5 s"), "a time"),
    "a clock": (printed("at 12:30"), "a time"),
    "a time in words": (printed("12 milliseconds"), "a time"),
    "a date": (printed("on 2026-07-01"), "a date"),
    "a device": (printed("trained on cuda:0"), "a device"),
    "an address in memory": (printed("<Thing at 0x7f3a2c1b>"), "in memory"),
    "a traceback": (
        lambda nb: nb.cells[3].outputs.append(
            nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
        ),
        "ValueError",
    ),
    "an address in capitals": (printed("0xABCDEF01"), "in memory"),
    "stderr": (lambda nb: output(nb).update(name="stderr"), "stderr"),
    "an unknown tag": (tagged("nbval-ignore-outputs"), "unknown tags"),
    "a semicolon": (code("assert 1 + 1 == 2\nprint('two');"), "semicolon"),
    "a semicolon before a comment": (code("assert 1 + 1 == 2\nprint('two'); # quiet"), "semicolon"),
    "no claims": (code("print('two')"), "asserts"),
    "what is no Python": (code("assert 1 +"), "cannot be read"),
    "no cell for Colab": (lambda nb: nb.cells[1].update(source="import sys"), "Colab"),
    "metadata of Colab": (lambda nb: nb.metadata.update(colab={"provenance": []}), "Colab"),
    "a GPU for the digits": (lambda nb: nb.metadata.update(accelerator="GPU"), "GPU"),
    "a download without being asked": (code("assert at.load_data('cifar10', download=True)"), "no reader asked"),
    "a download by other means": (code("assert urlopen('https://example.com')"), "a download: 'urlopen'"),
    "a command that downloads": (code("assert True\n!advtrain data fetch cifar10"), "a download: 'data fetch'"),
    "a second installation": (code("assert True\n%pip install numpy"), "a download: 'pip install'"),
    "a path in code": (code("assert open('/opt/joe/x')"), "a path"),
    "a file beside the book": (code("assert open('results/digits.json')"), "a file of the repository"),
    "a file above": (code("assert open('../README.md')"), "a file of the repository"),
    "widgets without state": (lambda nb: nb.metadata["widgets"][run_notebook.STATE].pop("state"), "state"),
    "no widgets at all": (lambda nb: nb.metadata.pop("widgets"), "state"),
    "a lost widget": (lambda nb: state(nb).pop(f"{3:032x}"), "not stored"),
    "heavy widgets": (lambda nb: state(nb)[f"{3:032x}"]["state"].update(value="x" * 1_000_001), "may carry"),
    "a widget without a static form": (lambda nb: nb.cells[2].outputs[0].data.pop("text/html"), "static form"),
    "a picture without a description": (lambda nb: nb.cells[2].outputs[0].data.update({"image/png": "iVBO"}), "descr"),
    "a photograph without a description": (shows("image/jpeg", "/9j/"), "descr"),
    "HTML with a picture without a description": (shows("text/html", "<img src='x.png'>"), "descr"),
    "text with a picture without a description": (text("## Quiz", "![](x.png)\n\n## Quiz"), "descr"),
    "two titles": (text("## Quiz", "# Quiz"), "level 1"),
    "two titles, one underlined": (text("## Quiz", "Quiz\n===="), "level 1"),
    "a level skipped": (text("## Quiz", "### Quiz"), "skips"),
    "no solution": (text("ex-one", "ex-two", cell=6), "solution"),
    "a solution in backticks": (text(":::{solution-start}", "```{solution-start}", cell=6), "empty box"),
    "no label": (text(":label: ex-one", "", cell=4), "solution"),
    "a solution that is not folded": (text(":class: dropdown", "", cell=6), "folded"),
    "solutions without code": (lambda nb: nb.cells.pop(7), "holds code"),
    "no quiz": (text('<details class="quiz"', "<details"), "quiz"),
    "answers without a question": (text("**1. Is it so?**\n\n", ""), "quiz"),
    "an answer that Markdown takes for a list": (text("- yes\n", "- 26.\n"), "bare number"),
    "a quiz without its right answer": (text('data-answer="2"', 'data-answer="3"'), "answer 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_the_lint_finds(case, notebook):
    spoil, message = SPOILED[case]
    spoiled = copy.deepcopy(notebook)
    spoil(spoiled)
    assert message in "\n".join(lint_notebooks.problems(spoiled))


@pytest.mark.parametrize(
    "text", ["97.5% of 360 images", "PGD-50-10", "8/255", "3 steps", "a/b", "0x10", "5 misses", "80:20"]
)
def test_the_lint_lets_ordinary_figures_pass(text, notebook):
    printed(text)(notebook)
    restore(notebook)
    assert lint_notebooks.problems(notebook) == []


def restore(notebook):
    notebook.metadata["advtrain"]["executed"] = run_notebook.digest(notebook)


def test_the_lint_lets_a_gpu_and_a_download_pass_that_another_setting_asks_for(notebook):
    notebook.cells[3].source += '\nSETTING = "cifar10"'
    notebook.cells[7].source = "def load():\n    return at.load_data(SETTING, download=True)"
    notebook.metadata["accelerator"] = "GPU"
    restore(notebook)
    assert lint_notebooks.problems(notebook) == []


@pytest.mark.parametrize(
    "source", ["%%bash\nfor i in 1; do echo $i; done", "files = !ls", "print?", "x = 1  # note;", ""]
)
def test_the_lint_reads_what_a_notebook_may_hold(source, notebook):
    notebook.cells[7].source = source
    restore(notebook)
    assert lint_notebooks.problems(notebook) == []
