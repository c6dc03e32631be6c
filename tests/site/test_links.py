"""Links lead somewhere: within the site, from the project's own Markdown files, and, when asked, to other sites."""

import datetime
import http.server
import threading

import links
import pytest
import sync

TODAY = datetime.date(2030, 1, 1)


def test_every_link_of_every_page_leads_to_a_file_and_a_place_in_it(book_html):
    pages = links.read(book_html)
    assert sum(len(page.links) for page in pages.values()) > 5000
    problems = links.broken(book_html, pages)
    assert not problems, "\n".join(problems)


def test_every_relative_link_of_a_markdown_file_leads_somewhere():
    paths = [path for path in sync.files() if path.suffix == ".md"]
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= {path.name for path in paths}
    assert not links.broken_markdown(paths)


def test_dead_links_are_found(tmp_path):
    (tmp_path / "there.html").write_text('<a id="here"></a>')
    source, site = sync.repository(), sync.documentation()
    fine = ["there.html", "there.html#here", "#own", f"{site}there.html#here", f"{source}/blob/main/README.md"]
    dead = ["gone.html", "there.html#gone", "#gone", f"{site}gone.html", f"{source}/blob/main/GONE.md", "mailto:a@b.c"]
    anchors = "".join(f'<a href="{link}">x</a>' for link in [*fine, *dead])
    (tmp_path / "a.html").write_text(f'<p id="own">{anchors}<img src="gone.png"></p>')
    found = links.broken(tmp_path)
    assert len(found) == len(dead) + 1
    assert all(any(f" {link} " in problem for problem in found) for link in [*dead, "gone.png"])


def test_dead_links_of_markdown_are_found(tmp_path):
    (tmp_path / "b.md").write_text("# A heading: `code` and more\n")
    good = "[r]: b.md\n[x](b.md) [x](b.md#a-heading-code-and-more) [x](https://example.org)\n`[x](code.md)`\n"
    (tmp_path / "a.md").write_text(
        f"# One\n{good}[x](#one) [x](gone.md) [x](b.md#gone)\n[r]: lost.md\n```\n[x](block.md)\n```\n"
    )
    found = links.broken_markdown([tmp_path / "a.md"])
    assert [problem.split()[1] for problem in found] == ["gone.md", "b.md#gone", "lost.md"]


class Answers(http.server.BaseHTTPRequestHandler):
    """A site of many moods."""

    def do_GET(self):
        self.server.asked.append((self.command, self.path))
        head, path = self.command == "HEAD", self.path
        status = {"/gone": 404, "/closed": 403, "/no-head": 405 if head else 200, "/moved": 301}.get(path, 200)
        if path == "/busy":
            status = 429 if len([1 for _, asked in self.server.asked if asked == path]) == 1 else 200
        if path == "/slow":
            self.server.released.wait(5)
        self.send_response(status)
        if path == "/moved":
            self.send_header("Location", "/fine")
        if path == "/busy":
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


@pytest.fixture
def other_site():
    """A server: `.url`, and `.asked`, the requests that it saw."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.asked, server.released = [], threading.Event()
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.released.set()
        server.shutdown()


def follow(other_site, cache, *paths, today=TODAY, timeout=2):
    urls = [other_site.url + path for path in paths]
    found = links.follow(urls, cache, today=today, pause=0, attempt_pause=0, timeout=timeout)
    return {url.removeprefix(other_site.url): entry for url, entry in found.items()}


def test_sites_are_judged_by_what_they_answer(other_site, tmp_path):
    paths = ["/fine", "/gone", "/closed", "/no-head", "/moved", "/busy"]
    found = follow(other_site, tmp_path / "links.json", *paths)
    assert {path: entry["status"] for path, entry in found.items()} == {
        "/fine": 200, "/gone": 404, "/closed": 403, "/no-head": 200, "/moved": 200, "/busy": 200,
    }  # fmt: skip
    assert [path for path in paths if not links.good(found[path])] == ["/gone"]
    assert found["/moved"]["said"] == f"moved to {other_site.url}/fine"
    asked = {path: [method for method, page in other_site.asked if page == path] for path in paths}
    assert asked["/fine"][:1] == ["HEAD"] and asked["/no-head"] == ["HEAD", "GET"] == asked["/gone"]


def test_no_answer_is_a_finding(other_site, tmp_path):
    found = follow(other_site, tmp_path / "links.json", "/slow", timeout=0.1)
    assert found["/slow"]["status"] == 0 and not links.good(found["/slow"]) and found["/slow"]["said"]
    assert len(other_site.asked) == 3


def test_a_site_is_not_asked_again_before_its_time(other_site, tmp_path):
    cache = tmp_path / "new" / "links.json"
    first = follow(other_site, cache, "/fine", "/gone")
    count = len(other_site.asked)
    assert follow(other_site, cache, "/fine", "/gone") == first and len(other_site.asked) == count
    follow(other_site, cache, "/fine", "/gone", today=TODAY + datetime.timedelta(days=29))
    assert {path for _, path in other_site.asked[count:]} == {"/gone"}
    count = len(other_site.asked)
    follow(other_site, cache, "/fine", today=TODAY + datetime.timedelta(days=30))
    assert other_site.asked[count:] == [("HEAD", "/fine")]


def test_links_to_other_sites_are_collected_without_the_projects_own(tmp_path):
    (tmp_path / "a.html").write_text(f'<a href="https://example.org/x#y"></a><a href="{sync.repository()}/issues"></a>')
    (tmp_path / "b.md").write_text("<https://example.org/z> [x](https://example.org/x) [x](there.md)")
    found = links.elsewhere(links.read(tmp_path), [tmp_path / "b.md"])
    assert found == {"https://example.org/x": "a.html", "https://example.org/z": "b.md"}
