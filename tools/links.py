"""Check links: python tools/links.py [--html _build/html] [--external]

Without `--external` only what lies here is looked at: each link of the built pages to a page, a place on it, an image
or a file of the repository, and each relative link of the Markdown files. With it, links to other sites are followed
too. Their answers are kept in _build/links.json, so that no site is asked for the same address twice in thirty days, or
in one day if it did not answer as it should.
"""

import argparse
import datetime
import re
import sys
import time
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import sync

from advtrain.files import read_json, write_json

# Addresses that are not followed, and why.
ACCEPTED = {
    r"https://colab\.research\.google\.com/github/": "shows a file of this repository, which is tested",
    r"https://mybinder\.org/v2/": "would build an environment to show such a file",
}
# What sites answer to programs where a reader in a browser would see the page: no verdict.
UNDECIDED = {401, 403, 418, 429, 999}
KEPT, KEPT_IF_BAD = datetime.timedelta(days=30), datetime.timedelta(days=1)
SITE = "file:///"


class Page(HTMLParser):
    """The links of a page, and the names of its places."""

    def __init__(self, text):
        super().__init__()
        self.links, self.places = set(), {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id" or (name == "name" and tag == "a"):
                self.places.add(value)
            elif name in ("href", "src", "action") and value is not None:
                self.links.add(value)


def read(folder):
    """{address: Page} of all pages below a folder."""
    found = {}
    for path in sorted(Path(folder).rglob("*.html")):
        address = path.relative_to(folder).as_posix()
        if not address.startswith("_static/"):
            found[address] = Page(path.read_text(encoding="utf-8"))
    return found


def target(page, link):
    """Where a link on a page of the site leads: an address within the site, or one elsewhere."""
    url = urljoin(f"{SITE}{page}", link)
    return SITE + url.removeprefix(sync.documentation()) if url.startswith(sync.documentation()) else url


def broken(folder, pages=None):
    """What is wrong with the links of built pages to one another, to their images, and to files of the repository."""
    folder, pages = Path(folder), pages or read(folder)
    root = urlsplit(sync.documentation()).path.lstrip("/")  # 404.html stands in for any page: its links begin there
    in_repository = re.compile(re.escape(sync.repository()) + r"/(?:blob|edit|tree|raw)/[^/]+/([^?#]+)")
    problems = []
    for page, content in pages.items():
        for link in sorted(content.links):
            url, place = urldefrag(target(page, link))
            if url.startswith(SITE):
                name = unquote(urlsplit(url).path).lstrip("/")
                name = name.removeprefix(root) if page == "404.html" else name
                if name in ("", "versions.html", "versions.json"):  # the site's own, where it is published
                    continue
                if not (folder / name).is_file():
                    problems.append(f"{page}: {link} leads to no file")
                elif name in pages and unquote(place) not in pages[name].places and place not in pages[name].places:
                    problems.append(f"{page}: {link} leads to no place of that page")
            elif file := in_repository.match(url):
                if not (sync.ROOT / unquote(file[1])).exists():
                    problems.append(f"{page}: {link} leads to no file of the repository")
            elif not url.startswith(("https://", "http://", "data:")):
                problems.append(f"{page}: {link} is no link to a page")
    return problems


def without_blocks(text):
    """Markdown without its blocks of code, which may look like links or headings."""
    return re.sub(r"^ *(```|~~~).*?^ *\1", "", text, flags=re.M | re.S)


def places(path):
    """The names that GitHub gives to the places of a Markdown file's headings."""
    headings = re.findall(r"^#+ +(.*)$", without_blocks(path.read_text(encoding="utf-8")), flags=re.M)
    return [re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings]


def written(path):
    """The links of a Markdown file."""
    text = re.sub(r"`[^`\n]*`", "", without_blocks(path.read_text(encoding="utf-8")))
    found = re.findall(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|<(https?://[^>\s]+)>", text)
    return [inline or bare for inline, bare in found] + re.findall(r"^\[[^\]]+\]: +(\S+)", text, flags=re.M)


def broken_markdown(paths):
    """What is wrong with the relative links of Markdown files."""
    problems = []
    for path in paths:
        for link in written(path):
            if urlsplit(link).scheme:
                continue
            name, place = urldefrag(link)
            file = (path.parent / unquote(name)).resolve() if name else path
            if not file.exists():
                problems.append(f"{path.name}: {link} leads to no file")
            elif place and file.suffix == ".md" and place not in places(file):
                problems.append(f"{path.name}: {link} leads to no heading of that file")
    return problems


def elsewhere(pages, paths=()):
    """{address: where it stands} of the links to other sites."""
    found = {}
    for page, content in pages.items():
        for link in content.links:
            found.setdefault(urldefrag(target(page, link))[0], page)
    for path in paths:
        for link in written(path):
            found.setdefault(urldefrag(link)[0], path.name)
    own = (sync.repository(), sync.documentation())
    return {url: where for url, where in sorted(found.items())
            if url.startswith(("https://", "http://")) and not url.startswith(own)}  # fmt: skip


def ask(url, method="HEAD", timeout=20, attempts=3, attempt_pause=2.0):
    """The status with which a site answers, 0 for none, and a word on it. What fails is asked for once more, as GET."""
    agent = {"User-Agent": f"Mozilla/5.0 (compatible; link check of {sync.repository()})", "Accept": "*/*"}
    said = (0, "no answer")
    for attempt in range(attempts):
        if attempt:
            time.sleep(attempt_pause * attempt)
        try:
            request = urllib.request.Request(url, headers=agent, method=method)
            with urllib.request.urlopen(request, timeout=timeout) as answer:  # nosec B310 # http and https alone
                moved = "" if urldefrag(answer.url)[0] == url else f"moved to {answer.url}"
                return answer.status, moved
        except urllib.error.HTTPError as error:
            error.close()  # it is an answer as well
            said = (error.code, error.reason)
            if error.code == 429 and attempt + 1 < attempts:
                wait = error.headers.get("Retry-After", "")
                time.sleep(min(float(wait) if wait.isdigit() else attempt_pause, 60))
            elif error.code < 500 and method == "GET":
                return said
            method = "GET"  # some sites answer only this
        except (OSError, ValueError) as error:  # no such host, a certificate, a timeout; an address that is none
            said, method = (0, str(getattr(error, "reason", error)) or type(error).__name__), "GET"
    return said


def good(entry):
    return 200 <= entry["status"] < 400 or entry["status"] in UNDECIDED


def follow(urls, cache, today=None, pause=1.0, **how):
    """{address: what is known of it}, from the cache or from the site. The cache is written after every answer.

    Args:
        urls: the addresses.
        cache: the path of a JSON file, made if it is not there.
        today: the date.
        pause: seconds between two questions.
        how: for `ask`.
    """
    today = today or datetime.date.today()
    known = read_json(cache) if cache.is_file() else {}
    found = {}
    for url in urls:
        entry = known.get(url)
        age = today - datetime.date.fromisoformat(entry["date"]) if entry else None
        if entry is None or age >= (KEPT if good(entry) else KEPT_IF_BAD):
            status, word = ask(url, **how)
            known[url] = entry = {"date": today.isoformat(), "status": status, "said": word}
            write_json(cache, known)
            time.sleep(pause)
        found[url] = entry
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--html", type=Path, default=sync.ROOT / "_build" / "html", help="the folder of the built pages"
    )
    parser.add_argument("--external", action="store_true", help="follow links to other sites")
    parser.add_argument("--cache", type=Path, default=sync.ROOT / "_build" / "links.json")
    given = parser.parse_args()
    if not (given.html / "index.html").is_file():
        sys.exit(f"{given.html} holds no index.html: build the book first, `make book`.")
    pages, markdown = read(given.html), [path for path in sync.files() if path.suffix == ".md"]
    problems = broken(given.html, pages) + broken_markdown(markdown)
    if given.external:
        places = elsewhere(pages, markdown)
        urls = [url for url in places if not any(re.match(pattern, url) for pattern in ACCEPTED)]
        for url, entry in follow(urls, given.cache).items():
            if not good(entry):
                problems.append(f"{places[url]}: {url} answers {entry['status']} {entry['said']}")
            elif entry["status"] in UNDECIDED:
                print(f"not decided: {url} answers programs {entry['status']}")
        print(f"{len(urls)} addresses of other sites, {len(places) - len(urls)} of them accepted unseen")
    print(f"{sum(len(page.links) for page in pages.values())} links on {len(pages)} pages")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
