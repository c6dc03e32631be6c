"""Every page of the book, as a reader's browser shows it.

Each page is opened from a server: light on a desktop, where all is looked at; then dark and as narrow as a phone, where
colours and layout are looked at once more. Of pages that load the same scripts, one is opened from an unzipped folder
too (and test_features.py opens all chapters there). Of the listings of the source, which are all made alike, as many
are opened as have all colours of words between them. What was noticed on the way is judged by the tests below, each for
all pages.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

import axe_playwright_python
import pytest
from conftest import FORMULAS, OLD_THEME, Tab, launched, new_window, untypeset

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
ROOT = Path(__file__).resolve().parents[2]
PHONE = 360

# What axe calls minor or moderate passes, apart from these.
RULES = ["heading-order", "page-has-heading-one", "empty-heading", "image-redundant-alt"]
# Rules whose outcome depends on colours or layout: these are applied to the dark, narrow page, too.
LOOKS = ["link-in-text-block", "scrollable-region-focusable"]
# The browser's part of these functions: `notable(result)`, what a run of axe found; and `prune()`, after which the
# thousands of coloured words of code and formulas, all made alike, no longer take part in a run of axe.
AXE += """
window.notable = (result, rules) => result.violations
  .filter(rule => ['serious', 'critical'].includes(rule.impact) || rules.includes(rule.id))
  .flatMap(rule => rule.nodes.map(node => `${rule.id} (${rule.impact}): ${node.target} ${node.failureSummary}`));
window.prune = () => {
  document.querySelectorAll('.highlight span:not(:has(span, a))').forEach(word => word.replaceWith(word.textContent));
  [...document.querySelectorAll('mjx-math')].slice(1).forEach(formula => formula.remove());
};
"""
# Text of the same colours and size passes or fails alike, so one piece of it is judged, the first in all pages.
COLOURS = """async known => {
  const found = new Map(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), grounds = new Map();
  const ground = node => {  // what shines through behind a node
    if (!node || !grounds.has(node)) {
      const style = node && getComputedStyle(node), clear = style?.backgroundColor === 'rgba(0, 0, 0, 0)';
      const own = !node || (clear && style.backgroundImage === 'none' && style.opacity === '1') ? ''
        : `${style.backgroundColor} ${style.backgroundImage.slice(0, 40)} ${style.opacity} / `;
      grounds.set(node, node ? own + ground(node.parentElement) : '');
    }
    return grounds.get(node);
  };
  let last;
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (node === last || !walker.currentNode.textContent.trim()) continue;
    last = node;
    const {color, fontSize, fontWeight} = getComputedStyle(node);
    const key = [color, fontSize, fontWeight, ground(node)].join();
    if (known.includes(key) || found.has(key) || node.closest('script, style, noscript, mjx-assistive-mml')) continue;
    if (node.checkVisibility({opacityProperty: true, visibilityProperty: true})) found.set(key, node);
  }
  if (!found.size) return {keys: [], problems: []};
  const options = {resultTypes: ['violations'], preload: false, runOnly: ['color-contrast']};
  const result = await axe.run({include: [...found.values()]}, options);
  return {keys: [...found.keys()], problems: notable(result, [])};
}"""
ACCESSIBILITY = """async ([rules, only]) => {
  const all = {rules: {'color-contrast': {enabled: false}}}, options = only.length ? {runOnly: only} : all;
  return notable(await axe.run(document, {resultTypes: ['violations'], preload: false, ...options}), rules);
}"""
UNFOLD = """async () => {
  const still = '<style>* {animation: none !important; transition: none !important}</style>';
  document.head.insertAdjacentHTML('beforeend', still);
  document.querySelectorAll('article details').forEach(fold => fold.open = true);
  document.querySelectorAll('.toggle-hidden').forEach(fold => fold.classList.remove('toggle-hidden'));
  await new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve)));
}"""
SWITCH = """async mode => {
  document.documentElement.dataset.mode = document.documentElement.dataset.theme = mode;
  await new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve)));
}"""
TOO_WIDE = """() => {
  const width = document.documentElement.clientWidth;
  if (document.scrollingElement.scrollWidth <= width) return [];
  const right = node => node.getBoundingClientRect().right;
  const wide = [...document.querySelectorAll('body *')].filter(node => right(node) > width + 1);
  return wide.slice(0, 5).map(node => `${node.tagName}.${node.className} reaches ${right(node)}`);
}"""
# A formula that is too wide has to scroll: what leaves its box on the left cannot be reached.
CUT = """() => [...document.querySelectorAll('div.math mjx-container')].filter(formula => {
  const left = node => node.getBoundingClientRect().left;
  return Math.min(left(formula), left(formula.firstElementChild)) < left(formula.closest('div.math')) - 1;
}).map(formula => `the formula ${formula.closest('div.math').textContent.slice(0, 40)}`)"""
IMAGES = """() => [...document.images].map(image => [image.getAttribute('src').slice(0, 80), image.getAttribute('alt'),
                                                     image.complete && image.naturalWidth > 0])"""
SIZES = """() => performance.getEntriesByType('navigation').concat(performance.getEntriesByType('resource'))
  .map(entry => [entry.name, entry.decodedBodySize])"""
# What can be worked with can be reached with the keyboard, and shows when it is. Radio buttons of a group are one stop.
KEYBOARD = """known => {
  const active = 'a[href], button, input, select, textarea, summary, [tabindex], [contenteditable], video, iframe';
  const seen = node => node.checkVisibility({visibilityProperty: true}) && node.getClientRects().length;
  const parts = node => [node, node.parentElement, node.nextElementSibling, ...node.children].filter(Boolean);
  const look = node => parts(node).map(part => {
    const {outlineStyle, outlineWidth, boxShadow, borderColor, backgroundColor, color, textDecoration, opacity}
      = getComputedStyle(part);
    const outline = outlineStyle === 'none' ? 'none' : outlineStyle + outlineWidth;
    return [outline, boxShadow, borderColor, backgroundColor, color, textDecoration, opacity].join();
  }).join();
  const say = node => `${node.tagName.toLowerCase()}#${node.id}.${[...node.classList].join('.')} `
    + `"${(node.getAttribute('aria-label') || node.textContent).trim().slice(0, 40)}"`;
  const problems = [], kinds = [];
  let stops = 0;
  for (const node of document.querySelectorAll(active)) {
    if (!seen(node) || node.disabled || node.closest('[inert]')) continue;
    const stop = node.tabIndex >= 0 || (node.isContentEditable && !node.hasAttribute('tabindex'));
    if (node.tabIndex > 0) problems.push(`out of order: ${say(node)}`);
    if (!stop) {
      if (!node.matches('[tabindex]:not(a, button, input, select, summary)')) problems.push(`left out: ${say(node)}`);
      continue;
    }
    stops += 1;
    const kind = [node.tagName, node.type, node.className, node.parentElement.className].join();
    if (known.includes(kind) || kinds.includes(kind)) continue;
    kinds.push(kind);
    const before = look(node);
    node.focus({preventScroll: true});
    if (document.activeElement !== node) problems.push(`cannot be reached: ${say(node)}`);
    else if (!node.matches(':focus-visible') || look(node) === before) problems.push(`does not show: ${say(node)}`);
    node.blur();
  }
  for (const node of document.querySelectorAll('article *, nav *, .bd-sidebar')) {
    const style = getComputedStyle(node), scrolls = /auto|scroll/.test(style.overflowX + style.overflowY);
    const hidden = node.scrollWidth > node.clientWidth + 1 || node.scrollHeight > node.clientHeight + 1;
    if (scrolls && hidden && seen(node) && node.tabIndex < 0 && !node.querySelector(active))
      problems.push(`scrolls, but not by keyboard: ${say(node)}`);
  }
  return {problems, kinds, stops};
}"""


def look_at(seen, known):
    """Unfold an open page and note what there is to judge.

    Args:
        known: sets of what was judged on earlier pages, colours and kinds of things to focus; more is added.
    """
    page = seen.page
    seen.sizes = page.evaluate(SIZES)
    seen.views = page.locator('script[type="application/vnd.jupyter.widget-view+json"]').count()
    page.evaluate(UNFOLD)
    seen.formulas, seen.images = page.evaluate(FORMULAS), page.evaluate(IMAGES)
    seen.keyboard = page.evaluate(KEYBOARD, list(known["kinds"]))
    known["kinds"].update(seen.keyboard["kinds"])
    page.evaluate(AXE)
    seen.axe, seen.modes, seen.cut = [], [], []
    for mode, width in (("light", 1280), ("dark", PHONE)):
        page.set_viewport_size({"width": width, "height": 900})
        seen.cut += [f"{width} px: {formula}" for formula in page.evaluate(CUT)]
        page.evaluate(SWITCH, mode)
        colours = page.evaluate(COLOURS, list(known[mode]))
        known[mode].update(colours["keys"])
        seen.axe += [f"{mode}: {problem}" for problem in colours["problems"]]
        seen.modes.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    seen.wide = page.evaluate(TOO_WIDE)
    page.evaluate("prune()")
    seen.axe += page.evaluate(ACCESSIBILITY, [RULES, LOOKS])
    page.set_viewport_size({"width": 1280, "height": 900})
    seen.axe += page.evaluate(ACCESSIBILITY, [RULES, []])
    return seen


def scripts(text):
    """The scripts and style sheets that a page asks for, and how deep it lies: pages that agree in this open alike."""
    return tuple(sorted(set(re.findall(r'<(?:script|link rel="stylesheet")[^>]*(?:src|href)="([^"?]*)', text))))


def one_of_each(pages, texts, of):
    """Of these pages as few as have everything that `of(text)` lists, for any of them."""
    chosen, had = [], set()
    for page in sorted(sorted(pages), key=lambda page: -len(of(texts[page]))):
        if new := set(of(texts[page])) - had:
            chosen.append(page)
            had |= new
    return chosen


@pytest.fixture(scope="module")
def texts(pages, book_html):
    return {page: (book_html / page).read_text(encoding="utf-8") for page in pages}


@pytest.fixture(scope="module")
def visits(pages, texts, chromium_path, served, unzipped):
    """{(page, how): what was seen}, by two readers at the same time."""
    listings = [page for page in pages if page.startswith("_modules/") and page != "_modules/index.html"]
    coloured = one_of_each(listings, texts, lambda text: re.findall(r'<span class="(\w+)">', text))
    first = "book/index.html"  # nothing of it is in the browser's cache yet: its size is measured
    others = [first, *(page for page in pages if page not in [first, *listings])]
    # 404.html stands in for any page, so its addresses are those of the published site
    in_folder = one_of_each(set(pages) - {"404.html"}, texts, lambda text: [scripts(text)])

    def on_server():
        known = {"light": set(), "dark": set(), "kinds": set()}
        with launched(chromium_path) as browser:
            tab = Tab(new_window(browser, 1280, "light"))
            return {(page, "served"): look_at(tab.open(served + quote(page)), known) for page in [*others, *coloured]}

    def from_folder():
        with launched(chromium_path) as browser:
            tab = Tab(new_window(browser, PHONE, "dark"))
            found = {}
            for page in in_folder:
                found[page, "in a folder"] = seen = tab.open((unzipped / page).as_uri())
                seen.page.evaluate(UNFOLD)
                seen.formulas, seen.images = seen.page.evaluate(FORMULAS), seen.page.evaluate(IMAGES)
                seen.mode = seen.page.evaluate("document.documentElement.dataset.theme")
            return found

    with ThreadPoolExecutor() as pool:
        readers = [pool.submit(on_server), pool.submit(from_folder)]
        return {key: seen for reader in readers for key, seen in reader.result().items()}


def nothing(visits, of):
    """Assert that `of(visit)` lists nothing for any page; name the pages where it does."""
    found = [f"{page} ({how}): {item}" for (page, how), visit in visits.items() for item in of(visit)]
    assert not found, f"{len(found)} findings\n" + "\n".join(found[:400])


def test_all_kinds_of_pages_were_looked_at(visits, pages):
    served = {page for page, how in visits if how == "served"}
    assert {page for page in pages if not page.startswith("_modules/")} < served
    assert len([page for page in served if page.startswith("_modules/")]) >= 3
    chapters = [f"book/{path.stem}.html" for path in (ROOT / "book").glob("*.ipynb")]
    texts = [f"book/{name}.html" for name in ("index", "references", "glossary", "notation", "api/index")]
    assert {*chapters, *texts, "genindex.html", "search.html", "404.html"} <= set(pages)
    modes = {tuple(visit.modes) for (_, how), visit in visits.items() if how == "served"}
    assert modes == {("rgb(255, 255, 255)", "rgb(18, 18, 18)")}
    assert {visit.mode for (_, how), visit in visits.items() if how == "in a folder"} == {"dark"}
    assert len([how for _, how in visits if how == "in a folder"]) >= 5


def test_pages_that_are_opened_for_others_load_the_same(visits, texts):
    """A page that is not opened from a folder, and a listing that is not opened at all, loads what one does that is."""
    opened = {scripts(texts[page]) for page, how in visits if how == "in a folder"}
    assert {scripts(text) for page, text in texts.items() if page != "404.html"} == opened


def test_no_error_or_warning_on_the_console(visits):
    nothing(visits, lambda visit: visit.complaints())


def test_every_request_succeeds(visits):
    nothing(visits, lambda visit: visit.failed)


def test_nothing_is_requested_from_other_sites(visits):
    nothing(visits, lambda visit: visit.foreign())
    assert all(visit.requests for visit in visits.values())


def test_every_formula_is_typeset(visits):
    nothing(visits, lambda visit: untypeset(visit.formulas))
    assert sum(visit.formulas["typeset"] for visit in visits.values()) > 100


def test_no_formula_loses_its_beginning(on_server):
    nothing(on_server, lambda visit: visit.cut)


def test_every_image_is_there_and_says_what_it_shows(visits):
    def poor(visit):
        for source, alt, loaded in visit.images:
            if not loaded:
                yield f"{source} did not load"
            if not alt or len(alt) < 10 or "_build" in alt or alt.endswith(".png"):
                yield f"{source}: {alt!r} describes nothing"

    nothing(visits, poor)
    assert sum(len(visit.images) for visit in visits.values()) > 10


@pytest.fixture(scope="module")
def on_server(visits):
    return {key: visit for key, visit in visits.items() if key[1] == "served"}


def test_no_serious_accessibility_finding(on_server):
    """Colours in both modes, everything else at both widths."""
    theirs = "duplicate-id-active"  # two search fields on one page
    nothing(on_server, lambda visit: [found for found in visit.axe if not (OLD_THEME and found.startswith(theirs))])


def test_everything_is_within_reach_of_the_keyboard_and_shows_its_focus(on_server):
    nothing(on_server, lambda visit: visit.keyboard["problems"])
    assert all(visit.keyboard["stops"] > 10 for visit in on_server.values())
    assert sum(len(visit.keyboard["kinds"]) for visit in on_server.values()) > 20


def test_the_tour_would_notice_what_is_wrong(chromium):
    page = chromium.new_page()
    page.set_content("""<main><style>.bare:focus { outline: none } .narrow { width: 50px; overflow: auto }</style>
      <p style="color: #aaa">faint</p><p>plain</p> <a href="#">fine</a> <button class="bare">bare</button>
      <a href="#" tabindex="-1">left</a> <a href="#" tabindex="5">jumps</a>
      <article><div class="narrow"><p style="width: 90px">hidden</p></div></article></main>""")
    page.evaluate(AXE)
    colours, keyboard = page.evaluate(COLOURS, []), page.evaluate(KEYBOARD, [])
    assert len(colours["keys"]) >= 3 and len(colours["problems"]) == 1 and "color-contrast" in colours["problems"][0]
    assert page.evaluate(COLOURS, colours["keys"]) == {"keys": [], "problems": []}
    found = [(problem.partition(":")[0], problem.rpartition(" ")[2]) for problem in keyboard["problems"]]
    scroller = ("scrolls, but not by keyboard", '"hidden"')
    assert found == [("does not show", '"bare"'), ("left out", '"left"'), ("out of order", '"jumps"'), scroller]
    page.close()


def test_pages_fit_a_phone(on_server):
    nothing(on_server, lambda visit: visit.wide)


def test_widgets_formulas_and_the_search_are_loaded_only_where_they_are_used(on_server):
    for (page, _), visit in on_server.items():
        names = {urlsplit(url).path.rpartition("/")[2] for url in visit.requests}
        assert ("embed.js" in names) == (visit.views > 0), page
        assert ("tex-chtml-full.js" in names) >= (visit.formulas["wanted"] > 0), page
        assert ("tex-chtml-full.js" in names) <= (visit.formulas["wanted"] > 0 or visit.views > 0), page
        assert ("searchindex.js" in names) == (page == "search.html"), page
    assert sum(visit.views > 0 for visit in on_server.values()) > 3


def test_the_first_page_is_light(on_server, served):
    """Apart from what the theme shares among all pages: everything below _static that is not this book's own."""
    own = {path.relative_to(ROOT / "book" / "_static").as_posix() for path in (ROOT / "book" / "_static").rglob("*")}
    static = f"{served}_static/"
    sizes = dict(on_server["book/index.html", "served"].sizes)
    counted = {
        url: size
        for url, size in sizes.items()
        if not url.startswith(static) or url.partition("?")[0].removeprefix(static) in own
    }
    assert {url.partition("?")[0].rpartition("/")[2] for url in counted} >= {"index.html", "book.css", "book.js"}
    assert all(size > 100 for size in counted.values()), counted
    assert sum(counted.values()) < 500_000, counted


@pytest.mark.parametrize("address", ["no/such/page.html", "book/api/no-such-page.html"])
def test_a_wrong_address_leads_to_a_page_that_helps(visit, served, address):
    found = visit(served + address)
    assert found.page.title().startswith("There is no such page")
    assert {item.rpartition(": ")[2] for item in found.failed} == {"404"} and len(found.failed) == 1  # the page itself
    for link in ["book/index.html", "search.html"]:
        address = found.page.locator(f'article a[href$="{link}"]').first.get_attribute("href")
        assert served.endswith(address.removesuffix(link))
    found.page.locator('article a[href$="book/index.html"]').first.click()
    found.page.wait_for_url(served + "book/index.html")  # until it has loaded, which wait_for_load_state says too early


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
