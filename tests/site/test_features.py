"""What a reader does with the site: search, copy, download, play with a figure, answer a quiz, print."""

import html
import json
import re
import shutil
from urllib.parse import quote

import nbformat
import pytest
import run_notebook
from conftest import FORMULAS, OLD_THEME, Tab, build_book, new_window, untypeset
from sync import ROOT, documentation, reference, repository

import advtrain as at

NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
FIRST = "book/01-adversarial-examples.html"
newer_theme = pytest.mark.skipif(OLD_THEME, reason="Python 3.10 has only an older theme, with other menus")


def figures(path):
    """The number of interactive figures in a notebook."""
    return len(run_notebook.shown(nbformat.read(path, as_version=4)))


INTERACTIVE = [path for path in NOTEBOOKS if figures(path)]


def page_of(path):
    return f"book/{path.stem}.html"


# ---- Finding --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["served", "unzipped"])
def results(request, visit):
    """A function from a query to the search results, on a server and from a local folder.

    The first query is part of the page's address, as the search field makes it; others are asked on the page it opens.
    """
    place = request.getfixturevalue(request.param)
    root = place if isinstance(place, str) else place.as_uri() + "/"
    opened = []

    def results(query):
        if opened:
            ask = (
                "search => (document.querySelector('#search-results').replaceChildren(), Search.performSearch(search))"
            )
            opened[0].page.evaluate(ask, query)
        else:
            opened.append(visit(f"{root}search.html?q={quote(query)}"))
        page = opened[0].page
        page.wait_for_function("/finished|match/.test(document.querySelector('.search-summary')?.textContent)")
        found = page.locator("ul.search li a").evaluate_all("links => links.map(link => link.href)")
        assert not opened[0].complaints()
        return [link.removeprefix(root).partition("?")[0] for link in found]

    return results


@pytest.mark.parametrize("results", ["unzipped"], indirect=True)  # a server's results have excerpts, which take time
def test_search_finds_every_defense(results):
    for name, defense in at.defenses.DEFENSES.items():
        for query in (name, defense.__name__):
            found = [link.partition("#")[0] for link in results(query)]
            assert f"book/api/defenses/{name}.html" in found, query


@newer_theme
def test_the_search_field_opens_and_closes_by_keyboard_and_leads_to_the_results(visit, served):
    page = visit(served + "book/index.html").page
    field = page.locator("#pst-search-dialog input")
    page.keyboard.press("Control+k")
    assert field.evaluate("node => document.activeElement === node")
    page.keyboard.press("Escape")
    assert not field.is_visible()
    page.locator(".search-button__button:visible").first.focus()
    page.keyboard.press("Enter")
    page.keyboard.type("threat model")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=threat+model")
    page.locator("ul.search li a").first.wait_for()


def test_search_finds_chapters_and_terms(results):
    assert page_of(NOTEBOOKS[0]) in [link.partition("#")[0] for link in results("threat model")]
    assert "book/glossary.html" in [link.partition("#")[0] for link in results("catastrophic overfitting")]
    assert results("xylophone") == []


# ---- Getting about by keyboard --------------------------------------------------------------------------------------

# The stops of the Tab key in the order of the page: of a group of radio buttons only one.
STOPS = """() => {
  const groups = new Set();
  const active = 'a[href], button, input, select, summary, [tabindex], [contenteditable]';
  window.stops = [...document.querySelectorAll(active)]
    .filter(node => node.checkVisibility({visibilityProperty: true}) && node.getClientRects().length && !node.disabled)
    .filter(node => node.tabIndex >= 0 || (node.isContentEditable && !node.hasAttribute('tabindex')))
    .filter(node => node.type !== 'radio' || (!groups.has(node.name) && groups.add(node.name)));
  return stops.length;
}"""


@pytest.mark.parametrize("page, width", [("book/index.html", 1280), (FIRST, 360)])
def test_the_tab_key_passes_through_everything_in_order_and_is_caught_nowhere(page, width, visit, served):
    page = visit(served + page, width).page
    count = page.evaluate(STOPS)
    assert count > 20
    passed = []
    for _ in range(count):
        page.keyboard.press("Tab")
        passed.append(page.evaluate("stops.indexOf(document.activeElement)"))
    assert passed == list(range(count)), page.evaluate("document.activeElement.outerHTML.slice(0, 200)")


def test_the_first_stop_leads_past_the_navigation(visit, served):
    page = visit(served + "book/index.html").page
    page.keyboard.press("Tab")
    link = page.locator(":focus")
    assert link.inner_text() == "Skip to main content"
    page.wait_for_function("document.activeElement.getBoundingClientRect().top >= 0")  # it slides in
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.locator(":focus").evaluate("node => Boolean(node.closest('#main-content'))")


@newer_theme
@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_side_bars_and_menus_open_and_close_by_keyboard(key, visit, served):
    page = visit(served + FIRST, 360).page
    for button, opened in [
        (".primary-toggle", "#pst-primary-sidebar-modal"),
        (".secondary-toggle", "#pst-secondary-sidebar-modal"),
        (".dropdown-download-buttons button", ".dropdown-download-buttons .dropdown-menu"),
    ]:
        button, opened = page.locator(f"{button}:visible").first, page.locator(opened)
        button.focus()
        assert not opened.is_visible()
        page.keyboard.press(key)
        opened.wait_for()
        page.keyboard.press("Tab")
        assert opened.evaluate("node => node.contains(document.activeElement)")
        page.keyboard.press("Escape")
        opened.wait_for(state="hidden")
        page.wait_for_function("node => document.activeElement === node", arg=button.element_handle())


# ---- Taking away ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_can_be_opened_in_colab_and_binder_and_downloaded(path, book_html):
    page = book_html / page_of(path)
    links = re.findall(r'href="([^"]*)"', page.read_text(encoding="utf-8"))
    slug = repository().removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{slug}/blob/{reference()}/book/{path.name}"
    binder = f"https://mybinder.org/v2/gh/{slug}/{reference()}?urlpath=lab/tree/book/{path.name}"
    for address in (colab, binder):
        assert links.count(html.escape(address)) == 1
    (link,) = [link for link in links if link.endswith(".ipynb") and "//" not in link]
    downloaded = (page.parent / link).read_text(encoding="utf-8")
    assert json.loads(downloaded) == json.loads(path.read_text(encoding="utf-8"))


def test_pages_that_are_no_notebooks_have_no_launch_button(book_html):
    text = (book_html / "book" / "index.html").read_text(encoding="utf-8")
    for site in ("colab.research.google.com/github", "mybinder.org/v2"):
        assert site not in text


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


@pytest.fixture(scope="module")
def own_tab(chromium):
    return Tab(new_window(chromium, 1280, "light"))


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def chapter(request, own_tab, unzipped):
    """A chapter, opened from an unzipped folder once for the tests that follow, and the path of its notebook."""
    return own_tab.open((unzipped / page_of(request.param)).as_uri()), request.param


def test_a_chapter_opens_from_a_folder(chapter):
    seen, _ = chapter
    assert seen.requests and not seen.complaints() + seen.failed + seen.foreign()
    assert not untypeset(seen.page.evaluate(FORMULAS))


def test_every_figure_answers_to_the_keyboard(chapter):
    """Without a kernel: each control changes the pixels, and back again."""
    page, path = chapter[0].page, chapter[1]
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


def test_figures_have_a_static_form_on_paper(chapter):
    page, path = chapter[0].page, chapter[1]
    stills = page.locator(".widget-still")
    assert stills.count() == figures(path)
    assert not any(still.is_visible() for still in stills.all())
    page.emulate_media(media="print")
    assert all(still.is_visible() for still in stills.all())
    assert not any(area.is_visible() for area in areas(page))
    page.emulate_media(media="screen")


def test_figures_have_a_static_form_without_javascript(visit, served, book_html):
    for path in INTERACTIVE:
        stills = (book_html / page_of(path)).read_text(encoding="utf-8").split('<div class="widget-still ')[1:]
        alts = [re.search(r'<img alt="([^"]*)"', still.partition("</div>")[0]) for still in stills]
        assert len(alts) == figures(path) and all(alt and len(alt[1]) > 20 for alt in alts), path
    pictures = visit(served + FIRST, java_script_enabled=False).page.locator(".widget-still img")
    assert pictures.count() == figures(NOTEBOOKS[0])
    assert all(picture.is_visible() for picture in pictures.all())


# ---- Exercises and quiz ---------------------------------------------------------------------------------------------


def test_solutions_are_folded_and_unfold(chapter):
    page = chapter[0].page
    solutions = page.locator("div.solution.dropdown").all()
    assert solutions
    for solution in solutions:
        button = solution.locator("button.toggle-button").first
        assert button.count() and "toggle-hidden" in solution.get_attribute("class")
        button.focus()
        page.keyboard.press("Enter")
        assert "toggle-hidden" not in solution.get_attribute("class")


def test_the_quiz_judges_each_answer(chapter):
    page = chapter[0].page
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
    for name in ["book/_ext", "book/_static", "book/_templates", "tools"]:
        shutil.copytree(ROOT / name, book / name)
    shutil.copy(ROOT / "book" / "references.bib", book / "book")
    (book / "book" / "api").mkdir()  # where pages on the defenses are written, of which this book has none
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
