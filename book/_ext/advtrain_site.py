"""Sphinx extension of this book.

- The repository's address and reference, the site's address and the version come from pyproject.toml. Pages may write
  ``{{ repository }}``, a link with that word, and ``{{ version }}``.
- What Sphinx writes and screen readers stumble over is put right.
- The foot of a page says which version it describes, and has places for what tools/pdf.py and tools/publish.py add.
- An interactive figure is accompanied by its static image, for readers without JavaScript and for print.
"""

import re
import shutil
import sys
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.transforms.post_transforms import SphinxPostTransform

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))

from marks import place  # noqa: E402
from run_notebook import VIEW  # noqa: E402
from sync import documentation, project, reference, repository  # noqa: E402

SIGNATURE = re.compile(r"<dl>\s*<dd><em class=\"sig-param\">.*?</dl>", re.S)
BACK = re.compile(r'<a class="viewcode-back" href="([^"#]*)#([^"]+)">.*?</a>', re.S)
STILL = ("image/png", "text/html")
NOT_FOUND = """<h1>There is no such page</h1>
<p>It may have moved. Try the <a href="{root}search.html">search</a>, or begin at the
<a href="{root}book/index.html">first page</a>.</p>"""


def configure(app, config):
    site = documentation()
    root = urlsplit(site).path
    config.html_theme_options["repository_url"] = repository()
    config.html_theme_options["repository_branch"] = reference()  # also what Colab opens
    config.release = config.version = project()["version"]
    versions = f'<a href="{site}versions.html">other versions</a>'
    config.html_theme_options["extra_footer"] = f"<p>Version {config.version} · {versions}{place('pdf')}</p>"
    config.html_context["place_of_notice"] = place("notice")
    link = f"[repository]({repository()})"
    files = {
        name: f"[{path}]({repository()}/blob/{reference()}/{path}{place})"
        for name, path, place in [("readme", "README.md", "#where-it-runs"), ("citation", "CITATION.cff", "")]
    }
    own = {"repository": link, "version": config.version, "documentation": f"<{site}>", **files}
    config.myst_substitutions = own | config.myst_substitutions
    config.html_baseurl = config.ogp_site_url = site
    config.notfound_urls_prefix = root
    config.notfound_context = {"title": "There is no such page", "body": NOT_FOUND.format(root=root)}


def lead_back(objects, link):
    """Where a listing leads back to what explains an object: viewcode takes the module that imports it for its own."""
    if link[2] in objects:
        return link[0]
    end = "." + link[2].partition(".")[2]
    found = [entry.node_id for name, entry in objects.items() if name.endswith(end) and not entry.aliased]
    return link[0].replace(f"#{link[2]}", f"#{found[0]}") if len(found) == 1 else ""


def mend(app, pagename, templatename, context, doctree):
    """Put right what Sphinx writes and screen readers stumble over."""
    body = context.get("body", "")
    # the bibliography's entries lie in a list, and their role is one that no longer exists
    body = body.replace('role="doc-biblioentry"', 'role="listitem"')
    # a signature of several lines is a list of definitions without terms
    body = SIGNATURE.sub(lambda found: found[0].replace("<dl>", '<span class="sig-lines">').replace("</dl>", "</span>")
                         .replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>"), body)  # fmt: skip
    # without "smart" dashes, which would spoil --options, a parameter's description begins with two hyphens
    body = re.sub(r"(</(?:strong|em|a|span)>\)?) -- ", r"\1 – ", body)
    # docutils takes a repository at a commit, owner/name@abc, for an address of mail
    body = re.sub(r'<a class="reference external" href="mailto:[^>]*>(.*?)</a>', r"\1", body, flags=re.S)
    if pagename.startswith("_modules/"):
        body = BACK.sub(partial(lead_back, app.env.domains["py"].objects), body)
    if pagename == "_modules/index":  # lists directly within lists: make it one
        body = re.sub(r"<ul>.*</ul>", "<ul>" + "".join(re.findall(r"<li>.*?</li>", body)) + "</ul>", body, flags=re.S)
    context["body"] = body


def formulas_in_widgets(app, pagename):
    """Whether a label of an interactive figure of this page holds TeX."""
    scripts = NbMetadataCollector.get_js_files(app.env, pagename) if pagename in app.env.found_docs else {}
    return any(r"\\(" in options.get("body", "") for _, options in scripts.values())


def load_for_widgets(app, pagename, templatename, context, doctree):
    """Before Sphinx decides whether a page needs MathJax."""
    if formulas_in_widgets(app, pagename):
        app.env.get_domain("math").data["has_equations"][pagename] = True


def load_what_is_used(app, pagename, templatename, context, doctree):
    """A page that only leads to others with formulas needs no MathJax; Sphinx thinks it does."""
    if not app.env.get_domain("math").data["has_equations"].get(pagename):
        scripts = context["script_files"]
        scripts[:] = [script for script in scripts if "vendor/mathjax" not in str(getattr(script, "filename", script))]


def forget_listings(app):
    """Otherwise the listings of unchanged modules stay as an earlier build made them, with its version and scripts."""
    if app.builder.format == "html":
        shutil.rmtree(Path(app.outdir, "_modules"), ignore_errors=True)


def drop_preloads(app, exception):
    """Some versions of the theme fetch fonts ahead, which browsers refuse to pages that are opened from a folder."""
    if exception is None and app.builder.format == "html":
        for path in Path(app.outdir).rglob("*.html"):
            text = path.read_text(encoding="utf-8")
            if (shorter := re.sub(r'<link rel="preload" as="font"[^>]*>\s*', "", text)) != text:
                path.write_text(shorter, encoding="utf-8")


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
            if VIEW in forms and still is not None:
                box = nodes.container("", *(child.deepcopy() for child in still.children), classes=["widget-still"])
                bundle.parent.insert(bundle.parent.index(bundle) + 1, box)


def setup(app):
    app.add_post_transform(StillBesideWidget)
    app.connect("config-inited", configure, priority=100)
    app.connect("builder-inited", forget_listings)
    app.connect("build-finished", drop_preloads)
    app.connect("html-page-context", load_for_widgets, priority=400)
    app.connect("html-page-context", mend)
    app.connect("html-page-context", load_what_is_used, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
