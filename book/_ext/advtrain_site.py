"""Sphinx extension of this book.

- The repository's address, the site's address and the version come from pyproject.toml. Markdown pages may write
  ``{{ repository }}``, a link with that word, and ``{{ version }}``.
- In docstrings, `name` is a link where the book documents an object of that name, and plain code otherwise.
- An interactive figure is accompanied by its static image, for readers without JavaScript and for print.
"""

import sys
from pathlib import Path
from urllib.parse import urlsplit

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.transforms.post_transforms import SphinxPostTransform

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))

from sync import documentation, project, repository  # noqa: E402

WIDGET = "application/vnd.jupyter.widget-view+json"
STILL = ("image/png", "text/html")
NOT_FOUND = """<h1>There is no such page</h1>
<p>It may have moved. Try the <a href="{root}search.html">search</a>, or begin at the
<a href="{root}book/index.html">first page</a>.</p>"""


def configure(app, config):
    site = documentation()
    root = urlsplit(site).path
    config.html_theme_options["repository_url"] = repository()
    config.release = config.version = project()["version"]
    link = f"[repository]({repository()})"
    config.myst_substitutions = {"repository": link, "version": config.version, **config.myst_substitutions}
    config.html_baseurl = config.ogp_site_url = site
    config.notfound_urls_prefix = root
    config.notfound_context = {"title": "There is no such page", "body": NOT_FOUND.format(root=root)}


def code_or_link(name, rawtext, text, lineno, inliner, options=None, content=None):
    """The role of `single backticks` in docstrings."""
    env = inliner.document.settings.env
    code = nodes.literal(rawtext, text, classes=["py", "py-obj"])
    if not text.replace(".", "").isidentifier():
        return [code], []
    target = {"refdomain": "py", "reftype": "obj", "reftarget": text, "refdoc": env.docname, "soft": True}
    return [pending_xref(rawtext, code, **target, **env.ref_context)], []


def give_up_quietly(app, env, node, content):
    """A name in backticks that is documented nowhere is no mistake: show it as code."""
    return content if node.get("soft") else None


def mend_roles(app, pagename, templatename, context, doctree):
    """The bibliography's entries lie in a list: say so to screen readers, which no longer know the role they have."""
    if "body" in context:
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


class StillBesideWidget(SphinxPostTransform):
    """Keep the static form of an interactive figure on the page, before one form is chosen of each output."""

    default_priority = 3  # myst_nb.sphinx_.SelectMimeType has 4
    builders = ("html", "dirhtml")

    def run(self, **kwargs):
        for bundle in list(self.document.findall(nodes.container)):
            if bundle.get("nb_element") != "mime_bundle":
                continue
            forms = {form["mime_type"]: form for form in bundle.children}
            still = next((forms[kind] for kind in STILL if kind in forms), None)
            if WIDGET in forms and still is not None:
                box = nodes.container("", *(child.deepcopy() for child in still.children), classes=["widget-still"])
                bundle.parent.insert(bundle.parent.index(bundle) + 1, box)


def setup(app):
    app.add_role("soft", code_or_link)
    app.add_post_transform(StillBesideWidget)
    app.connect("config-inited", configure, priority=100)
    app.connect("missing-reference", give_up_quietly)
    app.connect("html-page-context", mend_roles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
