"""Several versions of the book beside one another: each says what it is, and all links work."""

import json
import shutil

import links
import publish
import pytest
import sync
from marks import place


def built(folder, version, pages):
    """A small book: pages with the places that real ones have."""
    for page in pages:
        path = folder / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<html><body>{place('notice')}<p>Version {version}{place('pdf')}</p></body></html>")
    return folder


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


def said(site, page):
    text = (site / page).read_text(encoding="utf-8")
    return text.partition("<!-- notice -->")[2].partition("<!-- /notice -->")[0]


def test_pages_of_other_versions_than_the_latest_say_so_and_lead_there(site, tmp_path):
    old = built(tmp_path / "old", "0.1.0", ["index.html", "book/index.html", "book/gone.html"])
    new = built(tmp_path / "new", "0.2.0.dev0", ["index.html", "book/index.html"])

    publish.publish(new, site, "0.1.0.dev0")
    assert "no release yet" in said(site, "book/index.html") and "in development" in said(site, "dev/book/index.html")
    publish.publish(old, site, "0.1.0")
    assert said(site, "book/index.html") == said(site, "0.1.0/book/index.html") == ""
    assert 'href="../../0.1.0/book/index.html"' in said(site, "dev/book/index.html")
    publish.publish(new, site, "0.2.0")
    assert "version 0.1.0" in said(site, "0.1.0/book/index.html")
    assert 'href="../../0.2.0/book/index.html"' in said(site, "0.1.0/book/index.html")
    assert 'href="../../0.2.0/index.html"' in said(site, "0.1.0/book/gone.html")
    assert said(site, "0.2.0/index.html") == said(site, "index.html") == "" and "0.2.0" in said(site, "dev/index.html")
    assert not (site / "book" / "gone.html").exists()

    listed = [entry["version"] for entry in json.loads((site / "versions.json").read_text(encoding="utf-8"))]
    assert listed == ["0.2.0", "0.1.0", "dev"]
    pages = links.read(site)
    assert pages["versions.html"].links == {f"{version}/index.html" for version in listed}
    assert not links.broken(site, pages)


def test_pages_say_which_version_they_describe_and_where_others_are(pages, book_html):
    version = sync.project()["version"]
    for page in pages:
        text = (book_html / page).read_text(encoding="utf-8")
        assert f"Version {version} · " in text and f'"{sync.documentation()}versions.html"' in text, page
        assert place("notice") in text, page


def test_publishing_a_built_book_leaves_its_links_whole(site, book_html, tmp_path):
    ignored = shutil.ignore_patterns("_modules", "_static", "_images", "_sources", "0*", "1*")  # for the sake of time
    shutil.copytree(book_html, tmp_path / "built", ignore=ignored)
    before = links.broken(tmp_path / "built")
    publish.publish(tmp_path / "built", site, "0.1.0")
    after = links.broken(site / "0.1.0")
    assert len(links.read(site / "0.1.0")) > 20 and after == before
