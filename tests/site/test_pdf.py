"""The book as one PDF: whole, in order, with links, an outline and page numbers. (All pages of it: a slow test.)"""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pdf
import pypdf
import pytest
import sync
from marks import place

FEW = {"book/index", "book/06-fast-bat", "book/references", "book/api/index", "book/api/threat"}
A4 = (595, 842)


def apart(function, *arguments):
    """Call a function that starts a browser where one is running: Playwright wants a thread for each."""
    with ThreadPoolExecutor() as pool:
        return pool.submit(function, *arguments).result()


class Printed:
    """A PDF of some pages of the book."""

    def __init__(self, book_html, out, only):
        apart(pdf.make, book_html, out, only)
        self.reader = pypdf.PdfReader(out)
        self.entries = [entry for entry in pdf.contents(book_html) if only is None or entry[1] in only]
        self.titles = [pdf.Article(book_html, page, depth, set()).title for _, page, depth in self.entries]
        self.texts = [page.extract_text() for page in self.reader.pages]
        self.outline = list(self.flat(self.reader.outline, 0))
        # where each page of the book begins: the outline has them in this order, among headings within pages
        self.starts, entries = [], iter(self.outline)
        for title, (_, _, depth) in zip(self.titles, self.entries, strict=True):
            self.starts += [next((number for *entry, number in entries if entry == [depth, title]), None)]

    def flat(self, entries, depth):
        """(depth, title, number of the page) of the outline."""
        for entry in entries:
            if isinstance(entry, list):
                yield from self.flat(entry, depth + 1)
            else:
                yield depth, entry.title, self.reader.get_destination_page_number(entry) + 1


@pytest.fixture(scope="module", params=[FEW, pytest.param(None, marks=pytest.mark.slow)], ids=["some pages", "whole"])
def printed(request, book_html, chromium_path, tmp_path_factory):
    return Printed(book_html, tmp_path_factory.mktemp("pdf") / "book.pdf", request.param)


def test_every_page_of_the_book_is_there_in_order(printed):
    assert len(printed.starts) >= 5 and None not in printed.starts
    assert printed.starts == sorted(printed.starts) and printed.starts[0] > 2
    for _, page, _ in printed.entries:
        if re.match(r"book/\d\d-", page):
            below = [title for depth, title, _ in printed.outline if depth == 1]
            assert {"Exercises", "Quiz", "Solutions", "Answers to the quiz"} <= set(below), page


def test_contents_say_on_which_page_things_are(printed):
    listing = " ".join("\n".join(printed.texts[1:3]).replace("ﬁ", "fi").split())
    for title, start in zip(printed.titles, printed.starts, strict=True):
        assert f"{title} {start}" in listing
        assert title.split()[-1] in printed.texts[start - 1].replace("ﬁ", "fi")


def test_pages_are_numbered_of_one_size_and_none_is_blank(printed):
    assert len(printed.texts) > (200 if len(printed.entries) > 20 else 20)
    for number, (page, text) in enumerate(zip(printed.reader.pages, printed.texts, strict=True), 1):
        assert tuple(round(float(side)) for side in page.mediabox[2:]) == A4
        assert number == 1 or str(number) in text.split(), number
        assert len(text.split()) > 15 or page.images, f"page {number} is blank: {text!r}"


def test_every_link_leads_somewhere(printed):
    inside = elsewhere = 0
    places = printed.reader.named_destinations
    for page in printed.reader.pages:
        for note in page.get("/Annots", []):
            note = note.get_object()
            if note["/Subtype"] != "/Link":
                continue
            address = note.get("/A", {}).get("/URI")
            inside, elsewhere = inside + (address is None), elsewhere + (address is not None)
            if address is None:
                goal = note.get("/Dest") or note["/A"]["/D"]
                assert not isinstance(goal, str) or goal in places, goal
            else:
                assert address.startswith("https://"), address
    assert inside > 50 and elsewhere > 5


def test_formulas_are_typeset(printed):
    text = " ".join(printed.texts)
    chapters = [page for _, page, _ in printed.entries if re.match(r"book/\d\d-", page)]
    for page in chapters:
        notebook = nbformat.read(sync.ROOT / f"{page}.ipynb", as_version=4)
        for number in re.findall(r"\\tag\{(.*?)\}", "".join(cell.source for cell in notebook.cells)):
            assert f"({number})" in text, number
    assert chapters and r"\frac" not in text.replace(r'"\frac', "") and "min" in text


def test_it_says_what_it_is(printed):
    meta = printed.reader.metadata
    assert meta.title == printed.titles[0] and meta.author and sync.project()["version"] in meta.subject
    assert sync.documentation() in printed.texts[0] and printed.reader.page_mode == "/UseOutlines"


@pytest.mark.parametrize("body, said", [
    ("<p style='width: 900px; height: 9px'></p>", "wide"),
    ("<img src='https://example.org/a.png' alt=''>", "https://example.org/a.png"),
    ("<span class='math'>\\(x\\)</span>", "1 formulas, of which 0"),
])  # fmt: skip
def test_what_would_be_cut_off_missing_or_fetched_is_refused(body, said, chromium_path, tmp_path):
    (tmp_path / "book.html").write_text(
        f"<style>{pdf.STYLE}</style><article class='bd-article'><h1>A</h1>{body}</article>"
    )
    with pytest.raises(SystemExit, match=said):
        apart(pdf.print_page, tmp_path / "book.html", tmp_path / "book.pdf")


def test_the_pages_link_it_once_it_lies_beside_them_and_not_before(book_html, tmp_path, monkeypatch, capsys):
    for name in ("book/index.html", "genindex.html"):
        (tmp_path / "html" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(book_html / name, tmp_path / "html" / name)
        assert place("pdf") in (book_html / name).read_text(encoding="utf-8")
    monkeypatch.setattr(pdf, "make", lambda folder, out: out.write_bytes(b"%PDF"))
    monkeypatch.setattr("sys.argv", ["pdf.py", "--html", f"{tmp_path / 'html'}", "--out", f"{tmp_path / 'book.pdf'}"])
    pdf.main()
    assert (tmp_path / "html" / pdf.NAME).read_bytes() == b"%PDF"
    assert f'<a href="../{pdf.NAME}">' in (tmp_path / "html" / "book" / "index.html").read_text(encoding="utf-8")
    assert f'<a href="{pdf.NAME}">' in (tmp_path / "html" / "genindex.html").read_text(encoding="utf-8")


def test_an_unbuilt_book_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="make book"):
        pdf.make(tmp_path, tmp_path / "book.pdf")
