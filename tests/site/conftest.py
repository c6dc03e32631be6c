"""The book, built strictly from the working tree, and a browser to look at it.

The book is built once for all tests, or taken from where $ADVTRAIN_BOOK says that its html lies.
"""

import contextlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))

import browser as browsers  # noqa: E402
import sync  # noqa: E402

OLD_THEME = Version(version("pydata-sphinx-theme")) < Version("0.16")  # there is no newer one for Python 3.10
PREFIX = urlsplit(sync.documentation()).path  # the folder under which the published site lies


def build_book(sources, folder):
    """Render the book whose sources lie in one folder into another. A warning is an error."""
    program = shutil.which("jupyter-book", path=str(Path(sys.executable).parent))
    command = [program, *"build . --all -W -n --keep-going --path-output".split(), str(folder)]
    result = subprocess.run(command, cwd=sources, capture_output=True, text=True, encoding="utf-8")
    if result.returncode:
        pytest.fail("the book cannot be built:\n" + result.stdout[-3000:] + result.stderr[-6000:], pytrace=False)
    return folder / "_build" / "html"


@pytest.fixture(scope="session")
def book_html(tmp_path_factory):
    """The folder with the rendered pages."""
    if os.environ.get("ADVTRAIN_BOOK"):
        return Path(os.environ["ADVTRAIN_BOOK"])
    return build_book(ROOT, tmp_path_factory.mktemp("book"))


@pytest.fixture(scope="session")
def pages(book_html):
    """The pages of the site: addresses relative to its root. The root itself only redirects."""
    found = sorted(path.relative_to(book_html).as_posix() for path in book_html.rglob("*.html"))
    return [page for page in found if page != "index.html" and not page.startswith("_static/")]


@pytest.fixture(scope="session")
def unzipped(book_html, tmp_path_factory):
    """The site as somebody finds it who got it as a zip: elsewhere, below a folder with spaces in its name."""
    folder = tmp_path_factory.mktemp("zip")
    archive = folder / "book.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for path in book_html.rglob("*"):
            target.write(path, path.relative_to(book_html))
    with zipfile.ZipFile(archive) as source:
        source.extractall(folder / "a book, unzipped")
    return folder / "a book, unzipped"


class Site(http.server.SimpleHTTPRequestHandler):
    """Serves the site as its host does: below PREFIX, and 404.html for what is not there."""

    def translate_path(self, path):
        name = unquote(urlsplit(path).path)
        inside = name.removeprefix(PREFIX) if name.startswith(PREFIX) else "no/such/file"
        return super().translate_path("/" + inside)

    def send_error(self, code, message=None, explain=None):
        page = Path(self.directory, "404.html")
        if code == 404 and page.is_file():
            content = page.read_bytes()
            self.send_response(404)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        else:
            super().send_error(code, message, explain)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def served(book_html):
    """The address of the site on a local server."""
    handler = partial(Site, directory=str(book_html))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}{PREFIX}"
        server.shutdown()


@contextlib.contextmanager
def launched(path):
    """A headless browser with a profile of its own."""
    from playwright.sync_api import sync_playwright

    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=quiet)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def chromium_path():
    """Where the browser is. Where tests must not be left out, its absence is a failure."""
    path = browsers.find()
    if path is None:
        message = f"no Chromium to test the pages with; install one: {browsers.INSTALL}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    return path


@pytest.fixture(scope="session")
def chromium(chromium_path):
    with launched(chromium_path) as browser:
        yield browser


@dataclass
class Visit:
    """A page as opened in the browser, and what was noticed meanwhile."""

    page: object
    address: str
    console: list = field(default_factory=list)
    requests: list = field(default_factory=list)
    failed: list = field(default_factory=list)

    def complaints(self):
        """Errors and warnings on the console, but for one: the widget manager's checker of JSON finds fault with the
        widget manager's own schema."""
        harmless = ("log:", "info:", "debug:")
        return [line for line in self.console if not line.startswith(harmless) and "allowUnionTypes" not in line]

    def foreign(self):
        """Requests to anywhere but the place of the page itself."""
        own = urlsplit(self.address)[:2]
        return [url for url in self.requests if urlsplit(url)[:2] not in (own, ("data", ""), ("blob", ""))]


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
SETTLED = """async () => {
  if (window.MathJax?.startup) await MathJax.startup.promise;
  await document.fonts.ready;
  const views = document.querySelectorAll('script[type="application/vnd.jupyter.widget-view+json"]').length;
  const until = Date.now() + 20000;
  while (document.querySelectorAll('.widget-subarea .jupyter-widgets').length < views && Date.now() < until)
    await new Promise(resolve => setTimeout(resolve, 50));
  await new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve)));
}"""


def untypeset(formulas):
    """What is wrong with the formulas of a page, from what FORMULAS says of them."""
    count = (
        [] if formulas["typeset"] == formulas["wanted"] else [f"{formulas['typeset']} of {formulas['wanted']} typeset"]
    )
    return formulas["errors"] + count


def new_window(browser, width, mode, **options):
    """A window of a reader with a screen of this width, who prefers light or dark pages."""
    window = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=mode, **options)
    chosen = f"localStorage.setItem('mode', '{mode}'); localStorage.setItem('theme', '{mode}')"
    window.add_init_script(f"if (location.protocol !== 'about:') {{ {chosen} }}")  # the empty page stores nothing
    return window


class Tab:
    """One page of a window, in which addresses are opened one after another: a new page would take longer each time."""

    def __init__(self, window, scripts=True):
        self.page, self.scripts, self.asked = window.new_page(), scripts, set()
        self.seen = Visit(self.page, "about:blank")
        note = {
            "console": lambda message: self.seen.console.append(f"{message.type}: {message.text}"),
            "pageerror": lambda error: self.seen.console.append(f"uncaught: {error}"),
            "request": self.note_request,
            "requestfailed": self.note_failure,
            "response": lambda r: self.seen.failed.append(f"{r.url}: {r.status}") if r.status >= 400 else None,
        }
        for event, noted in note.items():
            self.page.on(event, noted)

    def note_request(self, request):
        self.asked.add(request)
        self.seen.requests.append(request.url)

    def note_failure(self, request):
        """What an earlier page had asked for is no failure of this one."""
        if request in self.asked:
            self.seen.failed.append(f"{request.url}: {request.failure}")

    def open(self, address):
        """Open an address, and wait until its formulas and figures are there.

        What the page before still asks for (its icon, say) is cut off by the empty page between them.
        """
        self.page.goto("about:blank")
        self.seen, self.asked = Visit(self.page, address), set()
        self.page.goto(address, wait_until="load")
        if self.scripts:
            self.page.evaluate(SETTLED)
        return self.seen


@pytest.fixture(scope="session")
def visit(chromium):
    """A function that opens an address, in one tab for each kind of reader: `visit(address, 1280, "light")`.

    The next visit of such a reader takes the place of the last.
    """
    tabs = {}

    def visit(address, width=1280, mode="light", **options):
        kind = (width, mode, str(options))
        if kind not in tabs:
            window = new_window(chromium, width, mode, **options)
            tabs[kind] = Tab(window, scripts=options.get("java_script_enabled", True))
        tabs[kind].page.emulate_media(media="screen")
        return tabs[kind].open(address)

    return visit
