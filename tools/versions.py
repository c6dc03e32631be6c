"""What the published versions of the book say of each other; tools/publish.py calls this once they all lie in place.

The pages of an older release and of the version in development say so, and lead to the same page of the latest
release. versions.html lists all versions: the foot of every page links to it.
"""

import html

from marks import fill

NOTICE = '<div class="version-notice" role="note"><p>This is {what}. {instead}</p></div>'
LIST = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Versions of this book</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 1.1rem/1.5 system-ui, sans-serif; margin: 3rem auto; max-width: 40rem; padding: 0 1rem; }}
</style>
</head>
<body><main>
<h1>Versions of this book</h1>
<ul>
{items}
</ul>
</main></body>
</html>
"""


def announce(site, listed):
    """Write the notices on all pages of a site, and its list of versions.

    Args:
        site: the folder with the folders of all versions.
        listed: what versions.json says: dicts with `version`, `path` and `latest`, newest first.
    """
    latest = next(entry for entry in listed if entry["latest"])
    released = latest["version"][0].isdigit()
    for entry in listed:
        what = f"version {entry['version']}" if entry["version"][0].isdigit() else "the version in development"

        def say(up, page, entry=entry, what=what):
            if entry is latest:
                return "" if released else NOTICE.format(what=what, instead="There is no release yet.")
            target = page if (site / latest["path"] / page).is_file() else "index.html"
            link = f'<a href="{up}../{latest["path"]}{target}">{latest["version"]}</a>'
            return NOTICE.format(what=what, instead=f"The latest release is {link}.")

        fill(site / entry["path"], "notice", say)
    items = [
        f'<li><a href="{entry["path"]}index.html">{html.escape(entry["version"])}</a>'
        + (", the latest release</li>" if entry is latest and released else "</li>")
        for entry in listed
    ]
    (site / "versions.html").write_text(LIST.format(items="\n".join(items)), encoding="utf-8", newline="\n")
