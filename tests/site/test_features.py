"""What a reader does with the site: search, copy, download, play with a figure, answer a quiz, print."""

import json
import re
import shutil
from urllib.parse import quote, urljoin

import nbformat
import pytest
import run_notebook
from conftest import build_book
from sync import ROOT, documentation, reference, repository

import advtrain as at

NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
FIRST = "book/01-adversarial-examples.html"


def figures(path):
    """The number of interactive figures in a notebook."""
    return len(run_notebook.shown(nbformat.read(path, as_version=4)))


INTERACTIVE = [path for path in NOTEBOOKS if figures(path)]


def page_of(path):
    return f"book/{path.stem}.html"


# ---- Finding --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["served", "unzipped"])
def results(request, visit):
    """A function from a query to the search results, on a server and from a local folder."""
    place = request.getfixturevalue(request.param)
    root = place if isinstance(place, str) else place.as_uri() + "/"

    def results(query):
        seen = visit(f"{root}search.html?q={quote(query)}")
        seen.page.wait_for_function("/finished|match/.test(document.querySelector('.search-summary')?.textContent)")
        found = seen.page.locator("ul.search li a").evaluate_all("links => links.map(link => link.href)")
        assert not [line for line in seen.console if line.startswith(("error", "warning", "uncaught"))]
        return [link.removeprefix(root).partition("?")[0] for link in found]

    return results


@pytest.mark.parametrize("name", sorted(at.defenses.DEFENSES))
def test_search_finds_every_defense(name, results):
    kind = at.defenses.DEFENSES[name].__name__
    assert any(link.startswith("book/api/defenses.html") for link in results(kind))
    assert "book/api/defenses.html" in [link.partition("#")[0] for link in results(name)]


def test_search_finds_chapters_and_terms(results):
    assert page_of(NOTEBOOKS[0]) in [link.partition("#")[0] for link in results("threat model")]
    assert "book/glossary.html" in [link.partition("#")[0] for link in results("catastrophic overfitting")]
    assert results("xylophone") == []


# ---- Taking away ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_can_be_opened_in_colab_and_binder_and_downloaded(path, visit, served):
    page = visit(served + page_of(path)).page
    slug = repository().removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{slug}/blob/{reference()}/book/{path.name}"
    binder = f"https://mybinder.org/v2/gh/{slug}/{reference()}?urlpath=lab/tree/book/{path.name}"
    for address in (colab, binder):
        assert page.locator(f'a[href="{address}"]').count() == 1
    link = page.locator(".dropdown-download-buttons a[href$='.ipynb']").get_attribute("href")
    downloaded = page.request.get(urljoin(page.url, link)).text()
    assert json.loads(downloaded) == json.loads(path.read_text(encoding="utf-8"))


def test_pages_that_are_no_notebooks_have_no_launch_button(visit, served):
    page = visit(served + "book/index.html").page
    for site in ("colab.research.google.com/github", "mybinder.org/v2"):
        assert page.locator(f'a[href*="{site}"]').count() == 0


def test_copying_skips_prompts_and_output(visit, served):
    """A docstring's example is copied as Python that runs."""
    page = visit(served + "book/api/errors.html", permissions=["clipboard-read", "clipboard-write"]).page
    block = page.locator("div.highlight", has_text=">>>").first
    assert "Traceback" in block.inner_text()
    block.hover()
    block.locator("button.copybtn").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() and ">>>" not in copied and "Traceback" not in copied
    compile(copied, "<clipboard>", "exec")


def test_pages_say_what_they_are_when_shared(pages, book_html):
    """OpenGraph: title, description, address, and a picture that exists."""
    for page in pages:
        if not page.startswith("book/"):
            continue
        text = (book_html / page).read_text(encoding="utf-8")
        tags = dict(re.findall(r'<meta property="(og:[\w:]+)" content="([^"]*)"', text))
        assert tags["og:title"] and tags["og:url"] == documentation() + page, page
        assert len(tags.get("og:description", "")) > 40, page
        assert (book_html / tags["og:image"].removeprefix(documentation())).is_file(), page


def test_scripts_are_loaded_only_where_they_are_used(pages, book_html):
    for page in pages:
        text = (book_html / page).read_text(encoding="utf-8")
        assert ("html-manager/embed.js" in text) == (run_notebook.VIEW in text), page
        assert ("tex-chtml-full.js" in text) == ('class="math' in text or r"\\(" in text), page


# ---- Interactive figures --------------------------------------------------------------------------------------------


def shown(area):
    """The pixels of a figure, without its controls."""
    area.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return area.locator("img:visible").first.screenshot()


def areas(page):
    return page.locator(".widget-subarea").all()


@pytest.mark.parametrize("path", INTERACTIVE, ids=lambda path: path.stem)
def test_every_figure_answers_to_the_keyboard(path, visit, unzipped):
    """From an unzipped folder, without a kernel: each control changes the pixels, and back again."""
    page = visit((unzipped / page_of(path)).as_uri()).page
    assert len(areas(page)) == figures(path)
    for area in areas(page):
        handles, buttons = area.locator(".noUi-handle").all(), area.locator(".widget-toggle-button").all()
        assert handles or buttons
        for handle in handles:
            handle.focus()
            page.keyboard.press("Home")
            before, value = shown(area), handle.get_attribute("aria-valuetext")
            page.keyboard.press("End")
            assert shown(area) != before
            assert handle.get_attribute("aria-valuetext") != value
            page.keyboard.press("Home")
            assert shown(area) == before
            assert handle.get_attribute("aria-label")
        if buttons:
            before = shown(area)
            assert area.locator(".widget-toggle-buttons[role=group]").get_attribute("aria-label")
            assert [button.get_attribute("aria-pressed") for button in buttons] == ["true", "false"]
            buttons[1].focus()
            page.keyboard.press("Enter")
            assert shown(area) != before
            assert [button.get_attribute("aria-pressed") for button in buttons] == ["false", "true"]
            buttons[0].focus()
            page.keyboard.press("Space")
            assert shown(area) == before


def test_the_epsilon_slider_of_the_first_chapter_has_a_picture_for_each_step(visit, unzipped):
    page = visit((unzipped / FIRST).as_uri()).page
    area = next(area for area in areas(page) if area.locator(".noUi-handle").count() == 1)
    handle = area.locator(".noUi-handle")
    assert handle.get_attribute("aria-label") == "ε"
    handle.focus()
    page.keyboard.press("Home")
    pictures, values, descriptions = [shown(area)], [], []
    for _ in range(100):
        values.append(handle.get_attribute("aria-valuetext"))
        descriptions.append(area.locator("img:visible").get_attribute("alt"))
        page.keyboard.press("ArrowRight")
        if handle.get_attribute("aria-valuetext") == values[-1]:
            break
        pictures.append(shown(area))
    assert len(values) >= 10 and len(set(values)) == len(values)
    assert len(set(pictures)) == len(pictures) == len(values) == len(set(descriptions))
    assert float(values[0]) == 0 and [float(value) for value in values] == sorted(map(float, values))


def test_a_figure_plays_when_asked_and_not_before(visit, served):
    page = visit(served + FIRST).page
    area = next(area for area in areas(page) if area.locator(".widget-play").count())
    before = shown(area)
    page.wait_for_timeout(1200)
    assert shown(area) == before
    area.locator(".widget-play button").first.focus()
    page.keyboard.press("Enter")
    value = area.locator(".widget-readout").first.inner_text()
    page.wait_for_function("([area, value]) => area.innerText !== value", arg=[
        area.locator(".widget-readout").first.element_handle(), value])  # fmt: skip
    assert shown(area) != before


@pytest.mark.parametrize("path", INTERACTIVE, ids=lambda path: path.stem)
def test_figures_have_a_static_form_without_javascript_and_on_paper(path, visit, served):
    page = visit(served + page_of(path)).page
    stills = page.locator(".widget-still")
    assert stills.count() == figures(path)
    assert not any(still.is_visible() for still in stills.all())
    page.emulate_media(media="print")
    assert all(still.is_visible() for still in stills.all())
    assert not any(area.is_visible() for area in areas(page))

    plain = visit(served + page_of(path), java_script_enabled=False).page
    pictures = plain.locator(".widget-still img")
    assert pictures.count() == figures(path) and all(picture.is_visible() for picture in pictures.all())
    assert all(len(picture.get_attribute("alt")) > 20 for picture in pictures.all())


# ---- Exercises and quiz ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_solutions_are_folded_and_unfold(path, visit, served):
    page = visit(served + page_of(path)).page
    solutions = page.locator("div.solution.dropdown").all()
    assert solutions
    for solution in solutions:
        button = solution.locator("button.toggle-button").first
        assert button.count() and "toggle-hidden" in solution.get_attribute("class")
        button.focus()
        page.keyboard.press("Enter")
        assert "toggle-hidden" not in solution.get_attribute("class")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_quiz_judges_each_answer(path, visit, served):
    page = visit(served + page_of(path)).page
    questions = page.locator(".quiz-question").all()
    assert len(questions) >= 3
    for question in questions:
        explanation = question.locator("xpath=following-sibling::details[1]")
        right = int(explanation.get_attribute("data-answer")) - 1
        answers = question.locator("input[type=radio]").all()
        assert question.locator("legend").inner_text() and len(answers) >= 2
        check, verdict = question.locator("button"), question.locator("[role=status]")
        check.click()
        assert "Choose" in verdict.inner_text()
        for position, answer in [*(item for item in enumerate(answers) if item[0] != right), (right, answers[right])]:
            answer.focus()
            page.keyboard.press("Space")
            assert verdict.inner_text() == "" and explanation.get_attribute("open") is None
            check.focus()
            page.keyboard.press("Enter")
            assert ("Right" in verdict.inner_text()) == (position == right) and verdict.inner_text()
            assert (explanation.get_attribute("open") is not None) == (position == right)
        answers[right].focus()
        page.keyboard.press("ArrowDown")
        assert verdict.inner_text() == "" and explanation.get_attribute("open") is not None


def test_the_quiz_can_be_read_without_javascript(visit, served):
    page = visit(served + FIRST, java_script_enabled=False).page
    assert page.locator(".quiz-question").count() == 0
    details = page.locator("details.quiz").first
    details.locator("summary").click()
    assert details.locator("p").first.is_visible()


# ---- A page that is not of this book --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd_address(tmp_path_factory):
    """A page without formulas, with figures in unusual places and quizzes in unusual shapes."""
    book = tmp_path_factory.mktemp("odd")
    for name in ["_config.yml", "pyproject.toml"]:
        shutil.copy(ROOT / name, book)
    for name in ["book/_ext", "book/_static", "tools"]:
        shutil.copytree(ROOT / name, book / name)
    shutil.copy(ROOT / "book" / "references.bib", book / "book")
    (book / "_toc.yml").write_text("format: jb-book\nroot: book/index\nchapters:\n- file: book/odd\n")
    (book / "book" / "index.md").write_text("# A book\n")
    path = book / "book" / "odd.ipynb"
    cells = [nbformat.v4.new_markdown_cell(ODD), nbformat.v4.new_code_cell(FIGURES)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    run_notebook.run(path)
    build_book(book, book)
    return (book / "_build" / "html" / "book" / "odd.html").as_uri()


@pytest.fixture
def odd_page(odd_address, visit):
    return visit(odd_address)


ODD = """# A page

## Quiz

- a list below a heading

<details class="quiz" data-answer="1">
<summary>Answer</summary>

First.

</details>

- a list below an answer

<details class="quiz" data-answer="1">
<summary>Answer</summary>

Second.

</details>
"""
FIGURES = r"""import advtrain as at

images = [[[value] * 8] * 8 for value in (0.0, 0.5, 1.0)]
alt = "A grey square, {}"
display(at.widgets.slider(lambda i: torch.tensor(images[i]), [0, 1, 2], label=r"\(\alpha\)", alt=alt, play=True))
display(at.widgets.compare(torch.tensor(images[0]), torch.tensor(images[2]), alt=["black square", "white square"]))
"""
FIGURES = "import torch\n" + FIGURES


def test_a_player_works_on_a_page_without_formulas(odd_page):
    assert not [line for line in odd_page.console if line.startswith(("error", "uncaught"))]
    page, (area, _) = odd_page.page, areas(odd_page.page)
    before = shown(area)
    area.locator(".noUi-handle").focus()
    page.keyboard.press("End")
    assert shown(area) != before
    page.keyboard.press("Home")
    area.locator(".widget-play button").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(1500)
    assert shown(area) != before
    assert not [line for line in odd_page.console if line.startswith(("error", "uncaught"))]


def test_a_label_with_tex_is_typeset_on_a_page_without_formulas(odd_page):
    area = areas(odd_page.page)[0]
    area.locator("mjx-container").first.wait_for()
    assert area.locator(".noUi-handle").get_attribute("aria-label") == "α"


def test_two_figures_of_one_cell_both_have_their_static_form(odd_page):
    assert len(areas(odd_page.page)) == odd_page.page.locator(".widget-still.replaced").count() == 2


def test_a_quiz_of_another_shape_stays_as_it_was_written(odd_page):
    page = odd_page.page
    assert page.locator(".quiz-question").count() == 0
    assert page.locator("h2", has_text="Quiz").is_visible()
    assert page.locator("details.quiz").count() == 2 and page.locator("article ul li").count() >= 2
