r"""Sphinx extension: numbered equations, and links to them from the text and from the code.

An equation of chapter 6 that is referred to says `\tag{6.3}`, which every notebook front end prints as (6.3). On the
pages each mention of (6.3), in a sentence or in a comment of the code beside it, becomes a link to that equation.
"""

import re

from docutils import nodes
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform

TAG = re.compile(r"\\tag\{(\d+\.\d+)\}")
MENTION = re.compile(r"(?<![\w.])\((\d{1,2}\.\d{1,2})\)")
COMMENT = re.compile(r'(?<=<span class="c1">)[^<]*(?=</span>)')
ELSEWHERE = (nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.reference, nodes.raw, nodes.title)


def anchor(number):
    return f"eq-{number.replace('.', '-')}"


def address(app, page, number):
    """The address of a numbered equation as seen from a page; None if there is no such equation."""
    home = where(app.env).get(number)
    if home is None:
        return None
    return (app.builder.get_relative_uri(page, home) if home != page else "") + f"#{anchor(number)}"


def where(env):
    """The pages of the numbered equations, by number."""
    if not hasattr(env, "advtrain_equations"):
        env.advtrain_equations = {}
    return env.advtrain_equations


class Anchors(SphinxTransform):
    """Each numbered equation can be linked to."""

    default_priority = 700

    def apply(self, **kwargs):
        for block in self.document.findall(nodes.math_block):
            numbers = TAG.findall(block.astext())
            if numbers:
                block["number"] = None  # Sphinx would number an environment of several lines once more
            for number in numbers:
                block["ids"].append(anchor(number))
                where(self.env)[number] = self.env.docname


class Mentions(SphinxPostTransform):
    """A mention of a numbered equation in a sentence becomes a link."""

    default_priority = 20
    formats = ("html",)

    def run(self, **kwargs):
        for text in list(self.document.findall(nodes.Text)):
            if any(isinstance(above, ELSEWHERE) for above in _above(text)):
                continue
            pieces, end = [], 0
            for found in MENTION.finditer(str(text)):
                uri = address(self.app, self.env.docname, found[1])
                if uri is not None:
                    link = nodes.reference("", found[0], internal=True, refuri=uri)
                    pieces += [nodes.Text(str(text)[end : found.start()]), link]
                    end = found.end()
            if pieces:
                text.parent.replace(text, [*pieces, nodes.Text(str(text)[end:])])


def _above(node):
    while (node := node.parent) is not None:
        yield node


def link_comments(app, pagename, templatename, context, doctree):
    """The same for comments in code."""

    def link(found):
        uri = address(app, pagename, found[1])
        return found[0] if uri is None else f'<a href="{uri}">{found[0]}</a>'

    if "body" in context:
        context["body"] = COMMENT.sub(lambda comment: MENTION.sub(link, comment[0]), context["body"])


def purge(app, env, docname):
    for number in [number for number, page in where(env).items() if page == docname]:
        del where(env)[number]


def merge(app, env, docnames, other):
    where(env).update({number: page for number, page in where(other).items() if page in docnames})


def setup(app):
    app.add_transform(Anchors)
    app.add_post_transform(Mentions)
    app.connect("env-purge-doc", purge)
    app.connect("env-merge-info", merge)
    app.connect("html-page-context", link_comments)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "version": "1"}
