"""Places on the built pages that are filled in later: what a page says of files and versions beside it.

The foot of each page has such a place for the PDF, its head one for a notice on the version. Both are empty until there
is something to say, so that no page links to what is not there.
"""

import re
from pathlib import Path


def place(name, content=""):
    """The HTML of a place and what is in it."""
    return f"<!-- {name} -->{content}<!-- /{name} -->"


def fill(folder, name, content):
    """Put something into a place of all pages in a folder, instead of what was there.

    Args:
        content: a function to HTML from two addresses: of the folder from the page, such as `../`, and of the page.
    """
    pattern = re.compile(f"<!-- {name} -->.*?<!-- /{name} -->", re.S)
    for path in sorted(Path(folder).rglob("*.html")):
        text = path.read_text(encoding="utf-8")
        address = path.relative_to(folder).as_posix()
        new = pattern.sub(lambda _, at=address: place(name, content("../" * at.count("/"), at)), text)
        if new != text:
            path.write_text(new, encoding="utf-8")
