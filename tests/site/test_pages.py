"""Every page of the book, as a reader's browser shows it.

Each page is opened twice: on a desktop, light, from a server; and on a phone, dark, from an unzipped folder. (Of the
listings of the source, which are all made alike, the phone opens one in ten.) What was noticed on the way is judged by
the tests below, each for all pages.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import axe_playwright_python
import pytest
from conftest import launched, new_window, open_page

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
ROOT = Path(__file__).resolve().parents[2]
PHONE = 360

# What axe calls minor or moderate passes, apart from these.
RULES = ["heading-order", "page-has-heading-one", "empty-heading", "image-redundant-alt"]
# A page has thousands of coloured words of code in a dozen pairs of colours. One word for each pair is judged.
ACCESSIBILITY = """async rules => {
  const known = new Set(), repeated = [];
  for (const block of document.querySelectorAll('.highlight')) {
    const behind = [block, block.querySelector('pre')].map(node => getComputedStyle(node).backgroundColor);
    for (const word of block.querySelectorAll('span:not(:has(*))')) {
      const style = getComputedStyle(word), colours = behind + style.backgroundColor + style.color;
      if (known.has(colours)) repeated.push(word);
      known.add(colours);
    }
  }
  repeated.forEach(word => word.replaceWith(word.textContent));
  const found = (await axe.run(document, {resultTypes: ['violations'], preload: false})).violations;
  return found
    .filter(rule => ['serious', 'critical'].includes(rule.impact) || rules.includes(rule.id))
    .flatMap(rule => rule.nodes.map(node => `${rule.id} (${rule.impact}): ${node.target} ${node.failureSummary}`));
}"""
FORMULAS = """() => {
  const raw = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const aside = 'code, pre, script, style, noscript, mjx-container';
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent, inside = walker.currentNode.parentElement;
    if (/\\\\[(\\[]|\\$[^$\\n]*\\\\[a-z]+/.test(text) && !inside.closest(aside)) raw.push(text);
  }
  return {
    wanted: document.querySelectorAll('span.math, div.math').length,
    typeset: document.querySelectorAll('span.math mjx-container, div.math mjx-container').length,
    errors: [...document.querySelectorAll('mjx-merror, [data-mjx-error]')].map(node => node.textContent).concat(raw),
  };
}"""
UNFOLD = """async () => {
  const still = '<style>* {animation: none !important; transition: none !important}</style>';
  document.head.insertAdjacentHTML('beforeend', still);
  document.querySelectorAll('article details').forEach(fold => fold.open = true);
  document.querySelectorAll('.toggle-hidden').forEach(fold => fold.classList.remove('toggle-hidden'));
  await new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve)));
}"""
TOO_WIDE = """() => {
  const width = document.documentElement.clientWidth;
  if (document.scrollingElement.scrollWidth <= width) return [];
  const right = node => node.getBoundingClientRect().right;
  const wide = [...document.querySelectorAll('body *')].filter(node => right(node) > width + 1);
  return wide.slice(0, 5).map(node => `${node.tagName}.${node.className} reaches ${right(node)}`);
}"""
IMAGES = """() => [...document.images].map(image => [image.getAttribute('src').slice(0, 80), image.getAttribute('alt'),
                                                     image.complete && image.naturalWidth > 0])"""


def inspect(seen):
    """Unfold an open page, note what there is to judge, and close it."""
    page = seen.page
    page.evaluate(UNFOLD)
    seen.formulas, seen.wide, seen.images = page.evaluate(FORMULAS), page.evaluate(TOO_WIDE), page.evaluate(IMAGES)
    seen.mode = page.evaluate("document.documentElement.dataset.theme")
    page.evaluate(AXE)
    seen.axe = page.evaluate(ACCESSIBILITY, RULES)
    page.close()
    return seen


@pytest.fixture(scope="module")
def visits(pages, chromium_path, served, unzipped):
    """{(page, how): what was seen}, by two readers at the same time."""

    def tour(how, width, mode, addresses):
        with launched(chromium_path) as browser:
            window = new_window(browser, width, mode)
            return {(page, how): inspect(open_page(window, address)) for page, address in addresses.items()}

    on_server = {page: served + quote(page) for page in pages}
    # 404.html stands in for any page, so its addresses are those of the published site
    listings = [page for page in pages if page.startswith("_modules/")]
    left_out = {"404.html", *listings} - set(listings[::10])
    in_folder = {page: (unzipped / page).as_uri() for page in pages if page not in left_out}
    with ThreadPoolExecutor() as pool:
        desktop = pool.submit(tour, "desktop", 1280, "light", on_server)
        phone = pool.submit(tour, "phone", PHONE, "dark", in_folder)
        return {**desktop.result(), **phone.result()}


def nothing(visits, of):
    """Assert that `of(visit)` lists nothing for any page; name the pages where it does."""
    found = [f"{page} ({how}): {item}" for (page, how), visit in visits.items() for item in of(visit)]
    assert not found, f"{len(found)} findings\n" + "\n".join(found[:400])


def test_all_kinds_of_pages_were_looked_at(visits, pages):
    assert {page for page, how in visits} == set(pages)
    chapters = [f"book/{path.stem}.html" for path in (ROOT / "book").glob("*.ipynb")]
    texts = [f"book/{name}.html" for name in ("index", "references", "glossary", "notation", "api/index")]
    assert {*chapters, *texts, "genindex.html", "search.html", "404.html"} <= set(pages)
    assert {visit.mode for (_, how), visit in visits.items() if how == "desktop"} == {"light"}
    assert {visit.mode for (_, how), visit in visits.items() if how == "phone"} == {"dark"}


def test_no_error_or_warning_on_the_console(visits):
    """But for one: the widget manager's checker of JSON finds fault with the widget manager's own schema."""

    def serious(line):
        return not line.startswith(("log:", "info:", "debug:")) and "allowUnionTypes" not in line

    nothing(visits, lambda visit: filter(serious, visit.console))


def test_every_request_succeeds(visits):
    nothing(visits, lambda visit: visit.failed)


def test_nothing_is_requested_from_other_sites(visits):
    nothing(visits, lambda visit: visit.foreign())
    assert all(visit.requests for visit in visits.values())


def test_every_formula_is_typeset(visits):
    def untypeset(visit):
        formulas = visit.formulas
        return formulas["errors"] + ([f"{formulas}"] if formulas["typeset"] != formulas["wanted"] else [])

    nothing(visits, untypeset)
    assert sum(visit.formulas["typeset"] for visit in visits.values()) > 100


def test_every_image_is_there_and_says_what_it_shows(visits):
    def poor(visit):
        for source, alt, loaded in visit.images:
            if not loaded:
                yield f"{source} did not load"
            if not alt or len(alt) < 10 or "_build" in alt or alt.endswith(".png"):
                yield f"{source}: {alt!r} describes nothing"

    nothing(visits, poor)
    assert sum(len(visit.images) for visit in visits.values()) > 10


def test_no_serious_accessibility_finding(visits):
    nothing(visits, lambda visit: visit.axe)


def test_pages_fit_a_phone(visits):
    nothing({key: visit for key, visit in visits.items() if key[1] == "phone"}, lambda visit: visit.wide)


@pytest.mark.parametrize("address", ["no/such/page.html", "book/api/no-such-page.html"])
def test_a_wrong_address_leads_to_a_page_that_helps(visit, served, address):
    found = visit(served + address)
    assert found.page.title().startswith("There is no such page")
    assert {item.rpartition(": ")[2] for item in found.failed} == {"404"} and len(found.failed) == 1  # the page itself
    for link in ["book/index.html", "search.html"]:
        address = found.page.locator(f'article a[href$="{link}"]').first.get_attribute("href")
        assert served.endswith(address.removesuffix(link))
    found.page.locator('article a[href$="book/index.html"]').first.click()
    found.page.wait_for_load_state()
    assert found.page.url == served + "book/index.html"


def test_the_root_leads_to_the_first_page(chromium, served):
    page = chromium.new_page()
    page.goto(served)
    page.wait_for_url("**/book/index.html")
    page.close()


def test_the_reader_can_switch_to_dark_and_back(visit, served):
    page = visit(served + "book/index.html").page
    modes = []
    for _ in range(3):
        page.locator("button.theme-switch-button:visible").first.click()
        modes.append(page.evaluate("document.documentElement.dataset.theme"))
    assert {"light", "dark"} <= set(modes)
