"""Print the built book as one PDF: python tools/pdf.py [--html _build/html] [--out FILE]

The articles of the pages are put one after another in the order of the list beside them, after a title page and a table
of contents, and printed by the Chromium that tools/browser.py finds. Links between the pages become links within the
document. Interactive figures appear as stills, solutions and answers at the end of their chapter, and code that is
folded on the pages is left out. The file is put beside the pages too, and their foot then links it.
"""

import argparse
import html
import json
import logging
import re
import shutil
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import browser
import sync
from bs4 import BeautifulSoup
from marks import fill

NAME = "fast-adversarial-training.pdf"
FIRST = "book/index"
OLDEST = 131  # the first Chromium that numbers pages by style sheet
# What a reader uses on a screen only.
LEFT_OUT = """script, .headerlink, .widget-subarea, .tag_hide-input > details, .tag_hide-cell > details, .viewcode-link,
.copybtn, .toctree-wrapper"""
STYLE = """
@page {
  size: A4; margin: 20mm 18mm;
  @bottom-center { content: counter(page); font: 9pt sans-serif; color: #555; }
  @top-center { font: 8.5pt sans-serif; color: #555; }
}
@page front { @bottom-center { content: none; } }
html { font-size: 9pt; scroll-padding: 0; }
html body { background: white; color: black; display: block; line-height: 1.45; margin: 0; min-height: 0; padding: 0; }
.front { break-after: page; page: front; padding-top: 55mm; text-align: center; }
.front .title { font-size: 30pt; font-weight: 600; line-height: 1.2; margin-bottom: 4mm; }
.front .about { margin: 0 auto 30mm; max-width: 110mm; }
.listing { break-after: page; }
.listing p { align-items: baseline; display: flex; gap: 2mm; margin: .9mm 0; }
.listing p::before { content: ""; order: 1; flex: 1; border-bottom: 1px dotted #999; }
.listing p .page { order: 2; min-width: 3ch; text-align: right; }
.listing .part { font-weight: 600; margin-top: 5mm; }
.listing .part::before { border: 0; }
.listing .depth-1 { padding-left: 6mm; }
.listing .depth-2 { padding-left: 12mm; }
a, a:visited { text-decoration: none; }
article.bd-article { break-before: page; padding: 0; }
article.bd-article:not(.depth-0) { break-before: auto; margin-top: 12mm; }
.bd-article :is(h1, h2, h3, h4, h5, h6) { break-after: avoid; line-height: 1.2; margin: 1.6em 0 .6em; }
.bd-article h1 { font-size: 22pt; margin-top: 0; } .bd-article h2 { font-size: 15pt; }
.bd-article h3 { font-size: 12.5pt; } .bd-article :is(h4, h5, h6) { font-size: 11pt; }
.bd-article :is(img, svg) { break-inside: avoid; max-width: 100% !important; max-height: 225mm; height: auto; }
.bd-article p { orphans: 2; widows: 2; }
.bd-article dt { break-after: avoid; }
.bd-article :is(tr, .exercise > p, details.quiz, li > p, mjx-container[display]) { break-inside: avoid; }
.bd-article pre { border-radius: 2px; break-inside: auto; margin: 0; orphans: 4; padding: 2mm; widows: 4; }
.bd-article pre, .bd-article pre * { font-size: 7.6pt !important; line-height: 1.38; }
.bd-article pre { overflow-wrap: anywhere; white-space: pre-wrap; }
.bd-article div.cell { break-inside: auto; margin: .7em 0; }
.bd-article :is(.cell_input, .cell_output) div.highlight { break-inside: auto; }
.bd-article .admonition { box-shadow: none; break-inside: auto; }
.bd-article table { font-size: 8.4pt; }
.bd-article mjx-container { font-size: inherit; overflow: visible !important; }
.bd-article :is(td, th) { overflow-wrap: normal; padding: .25rem .4rem; }
.bd-article :is(h1, h2, h3, h4, p, li, dt, dd, td, code) { overflow-wrap: anywhere; }
.bd-article code { font-size: .88em; white-space: normal; }
.anchor { left: 0; position: absolute; }  /* Chromium forgets places beyond the edge, too */
.where { font-size: .9em; }
.bd-article div, .bd-article pre { overflow: visible !important; }
.bd-article .admonition-title { break-after: avoid; }
dialog, .onlyprint { display: none !important; }
"""
# Everything that is wider than the column is made smaller until it fits; what still does not fit is told.
FIT = """() => {
  const rect = node => node.getBoundingClientRect();
  const column = rect(document.querySelector('article'));
  const extent = node => {
    const boxes = [node, ...node.querySelectorAll('*')].filter(n => !n.closest('mjx-assistive-mml')).map(rect)
      .filter(box => box.width);
    return [Math.min(...boxes.map(box => box.left)), Math.max(...boxes.map(box => box.right))];
  };
  for (const box of document.querySelectorAll('article :is(table, mjx-container)')) {
    const [left, right] = extent(box), room = rect(box.parentElement);
    const over = 2 * Math.max(0, room.left - left) + Math.max(0, right - room.right);
    if (over > .5) box.style.zoom = Math.max(.4, .985 * room.width / (room.width + over));
  }
  const outside = [...document.querySelectorAll('article *')].filter(node => {
    const box = rect(node);
    const within = box.right <= column.right + 2 && box.left >= column.left - 2;
    return box.width && !within && !node.closest('mjx-assistive-mml, svg');
  });
  const found = outside.slice(0, 10).map(node => `${node.closest('article').id}: ${node.tagName}.${node.className} `
    + `${node.textContent.trim().slice(0, 60)}`);
  const {scrollWidth, clientWidth} = document.scrollingElement;  // Chromium would make everything smaller
  return found.concat(scrollWidth > clientWidth ? [`the page is ${scrollWidth} wide, not ${clientWidth}`] : []);
}"""
FORMULAS = """() => ({
  wanted: document.querySelectorAll('span.math, div.math').length,
  typeset: document.querySelectorAll('span.math mjx-container, div.math mjx-container').length,
  errors: [...document.querySelectorAll('mjx-merror, [data-mjx-error]')].map(node => node.textContent),
  images: [...document.images].filter(image => !image.naturalWidth).map(image => image.src),
})"""


def contents(folder):
    """[(part or None, page, depth)] of the built book in reading order, as the list beside its first page has it."""
    nav = BeautifulSoup((folder / f"{FIRST}.html").read_text(encoding="utf-8"), "html.parser").select_one(
        ".bd-docs-nav"
    )
    found, part = [], None
    for tag in nav.select("p.caption, a"):
        if tag.name == "p":
            part = tag.get_text(strip=True)
        else:
            page = unquote(urlsplit(urljoin(f"file:///{FIRST}.html", tag["href"])).path).lstrip("/")
            found.append((part, page.removesuffix(".html"), len(tag.find_parents("ul")) - 1))
            part = None
    return found


def name_of(page, target=""):
    """The name within the document of a place on a page."""
    return re.sub(r"[^\w.-]", "-", f"{page}--{target}" if target else page)


class Article:
    """The text of one page, made ready to stand among others."""

    def __init__(self, folder, page, depth, pages):
        self.page, self.depth = page, depth
        soup = BeautifulSoup((folder / f"{page}.html").read_text(encoding="utf-8"), "html.parser")
        self.scripts = [tag for tag in soup.select("head script:not([src])") if "MathJax =" in tag.get_text()]
        self.sheets = [tag["href"] for tag in soup.select('link[rel="stylesheet"]')]
        self.body = soup.select_one("article")
        for tag in self.body.select(LEFT_OUT):
            tag.decompose()
        self.title = self.body.h1.get_text()
        self.to_the_end(soup)
        self.refer(folder, pages)
        for heading in self.body(re.compile("^h[1-5]$")) if depth else ():
            heading.name = f"h{min(6, int(heading.name[1]) + depth)}"
        self.body["id"], self.body["class"] = name_of(page), ["bd-article", f"depth-{depth}"]

    def refer(self, folder, pages):
        """Make its anchors unlike those of other pages, and its links lead there."""
        for tag in self.body.select("[id]"):
            tag["id"] = name_of(self.page, tag["id"])
            if tag.name == "span" and not tag.contents:  # Chromium forgets places that have nothing in them
                tag.string, tag["class"] = "\N{WORD JOINER}", ["anchor"]
        for tag in self.body.select("[src]"):
            if urlsplit(tag["src"]).scheme:  # data:image/png;base64,... lies nowhere
                continue
            tag["src"] = (folder / f"{self.page}.html").parent.joinpath(unquote(tag["src"])).resolve().as_uri()
        for tag in self.body.select("a[href]"):
            url = urljoin(f"file:///{self.page}.html", tag["href"])
            if url.startswith("file:///"):
                path, target = unquote(urlsplit(url).path).lstrip("/"), unquote(urlsplit(url).fragment)
                page = path.removesuffix(".html")
                inside = page in pages and path.endswith(".html")
                tag["href"] = (
                    f"#{name_of(page, target)}" if inside else sync.documentation() + url.removeprefix("file:///")
                )

    def to_the_end(self, soup):
        """Solutions and answers follow the chapter, so that they are not read before the question."""
        section, last = self.body.section, None
        for title, kind in (("Solutions", "div.solution"), ("Answers to the quiz", "details.quiz")):
            for count, block in enumerate(self.body.select(kind), 1):
                if count == 1:
                    last = soup.new_tag("section")
                    section.append(last)
                    last.append(heading := soup.new_tag("h2"))
                    heading.string = title
                block["id"] = block.get("id") or f"answer-{count}"
                where = soup.new_tag("p", attrs={"class": "where"})
                where.append(link := soup.new_tag("a", href=f"#{block['id']}"))
                link.string = f"{'Solution' if kind == 'div.solution' else 'Answer'} on page "
                link.append(soup.new_tag("span", attrs={"class": "page", "data-to": name_of(self.page, block["id"])}))
                block.insert_before(where)
                if block.name == "details":
                    block.name = "div"
                    block.summary.name = "strong"
                    block.strong.string = f"Question {count}."
                last.append(block.extract())


def compose(folder, only=None):
    """The book as one page of HTML, from the pages in a folder; `only` names those to take."""
    entries = [entry for entry in contents(folder) if only is None or entry[1] in only]
    pages = {page for _, page, _ in entries}
    articles = [Article(folder, page, depth, pages) for _, page, depth in entries]
    lines = []
    for (part, page, depth), article in zip(entries, articles, strict=True):
        if part:
            lines.append(f'<p class="part">{html.escape(part)}</p>')
        title, name = html.escape(article.title), name_of(page)
        lines.append(
            f'<p class="depth-{depth}"><a href="#{name}">{title}</a><span class="page" data-to="{name}"></span></p>'
        )
    project = sync.project()
    sheets = dict.fromkeys(sheet.partition("?")[0] for article in articles for sheet in article.sheets)
    links = [f'<link rel="stylesheet" href="{(folder / "book" / sheet).resolve().as_uri()}">' for sheet in sheets]
    mathjax = (folder / "_static/vendor/mathjax/tex-chtml-full.js").resolve().as_uri()
    title = articles[0].title
    heads, running = "", 0
    for n, article in enumerate(articles):
        if article.depth == 0:
            running = n
            heads += f"@page p{n} {{ @top-center {{ content: {json.dumps(article.title, ensure_ascii=False)}; }} }}\n"
        heads += f"article:nth-of-type({n + 1}) {{ page: p{running}; }}\n"
    return f"""<!DOCTYPE html>
<html lang="en" data-theme="light" data-mode="light">
<head><meta charset="utf-8"><title>{html.escape(title)}</title>
{"".join(links)}<style>{STYLE}{heads}</style>
{next((str(script) for article in articles for script in article.scripts), "")}<script defer src="{mathjax}"></script>
</head>
<body>
<div class="front"><p class="title">{html.escape(title)}</p><p class="about">{html.escape(project["description"])}</p>
<p>{html.escape(", ".join(author["name"] for author in project["authors"]))}</p><p>Version {project["version"]}</p>
<p><a href="{sync.documentation()}">{sync.documentation()}</a></p></div>
<nav class="listing"><p class="part">Contents</p>{"".join(lines)}
<p class="where">Interactive figures are shown at one of their settings. Code that is folded on the pages of the site is
left out; the notebooks have it. Solutions and answers stand at the end of each chapter.</p></nav>
{"".join(str(article.body) for article in articles)}
</body></html>"""


logging.getLogger("pypdf").setLevel(logging.ERROR)  # it counts Chromium's objects otherwise than Chromium does


def numbers(file):
    """{name of a place: number of its page} of a PDF."""
    import pypdf

    reader = pypdf.PdfReader(file)
    places = reader.named_destinations
    return {name.lstrip("/"): reader.get_destination_page_number(place) + 1 for name, place in places.items()}


def print_page(source, out):
    """Print a composed page to a PDF, with page numbers where it refers to pages. Returns the text of all headings."""
    from playwright.sync_api import sync_playwright

    path = browser.find()
    if path is None:
        sys.exit(f"No Chromium to print with. Install one: {browser.INSTALL}")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path)
        if int(chromium.version.partition(".")[0]) < OLDEST:
            sys.exit(f"{path} is Chromium {chromium.version}; page numbers need {OLDEST} or newer: update it.")
        page = chromium.new_page(viewport={"width": 657, "height": 900})  # the column's width, at 96 dots per inch
        foreign = []
        page.on(
            "request",
            lambda request: None if request.url.startswith(("file:", "data:")) else foreign.append(request.url),
        )
        page.emulate_media(media="print", color_scheme="light")
        page.goto(source.as_uri(), timeout=120_000)
        page.set_default_timeout(300_000)
        page.evaluate("async () => { await window.MathJax?.startup?.promise; await document.fonts.ready; }")
        found, wide = page.evaluate(FORMULAS), page.evaluate(FIT)
        for problem in (foreign, found["errors"], found["images"], wide):
            if problem:
                sys.exit("The book cannot be printed as it should:\n" + "\n".join(problem))
        if found["wanted"] != found["typeset"]:
            sys.exit(f"{found['wanted']} formulas, of which {found['typeset']} were typeset.")
        placed = {}
        for _ in range(4):
            page.pdf(path=out, prefer_css_page_size=True, print_background=True, outline=True, tagged=True)
            if (now := numbers(out)) == placed:
                break
            placed = now
            page.evaluate(
                """placed => document.querySelectorAll('span.page').forEach(
                span => span.textContent = placed[span.dataset.to] ?? '?')""",
                placed,
            )
        else:
            sys.exit("The page numbers do not settle.")
        headings = page.evaluate(
            "[...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(node => node.textContent)"
        )
        chromium.close()
    return [" ".join(heading.split()) for heading in headings]


def outline(entry):
    """All entries below one of a PDF's outline."""
    below = entry.get("/First")
    while below is not None:
        below = below.get_object()
        yield below
        yield from outline(below)
        below = below.get("/Next")


def describe(file, headings):
    """Say in a PDF who wrote it and what it is about, and that it opens with its outline.

    Where a heading takes two lines, Chromium's outline forgets the space between them.
    """
    import pypdf

    writer = pypdf.PdfWriter(clone_from=file)
    titles = {"".join(heading.split()): heading for heading in headings}
    for entry in outline(writer._root_object["/Outlines"]):
        title = str(entry["/Title"])
        entry[pypdf.generic.NameObject("/Title")] = pypdf.generic.TextStringObject(
            titles.get("".join(title.split()), title)
        )
    project = sync.project()
    writer.add_metadata({
        "/Author": ", ".join(author["name"] for author in project["authors"]),
        "/Subject": f"{project['description']}. Version {project['version']}",
        "/Keywords": ", ".join(project["keywords"]),
    })  # fmt: skip
    writer.page_mode = "/UseOutlines"
    writer.write(file)


def make(folder, out, only=None):
    """Print the book whose pages lie in a folder."""
    if not (folder / f"{FIRST}.html").is_file():
        sys.exit(
            f"{folder} has no page {FIRST}.html: build the book first, `make book`, or name its folder with --html."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        source, file = Path(scratch, "book.html"), Path(scratch, "book.pdf")
        source.write_text(compose(folder, only), encoding="utf-8")
        describe(file, print_page(source, file))
        file.replace(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--html", type=Path, default=sync.ROOT / "_build" / "html", help="the folder of the built pages"
    )
    parser.add_argument("--out", type=Path, default=sync.ROOT / "_build" / "pdf" / NAME)
    given = parser.parse_args()
    make(given.html.resolve(), given.out)
    shutil.copy(given.out, given.html / NAME)
    fill(given.html, "pdf", lambda root, _: f' · <a href="{root}{NAME}">The book as PDF</a>')
    print(given.out)


if __name__ == "__main__":
    main()
