"""Sphinx extension of the API pages.

- In docstrings, `name` is a link where the book documents one object of that name, and plain code otherwise. On every
  page, so in the chapters, `at.name` is a link to what the package calls so.
- A registry is a public dict such as `ATTACKS`. Its docstring is found in the module that defines it, also where a page
  shows it under a shorter name, and a list of what it holds is put below.
- `advtrain train` lists the options that all defenses share once.
"""

import re
import sys
from collections import namedtuple

import click
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.pycode import ModuleAnalyzer
from sphinx.transforms import SphinxTransform
from sphinx.util.docstrings import prepare_docstring
from sphinx.util.nodes import make_refnode

from advtrain.cli import main

CALLED = re.compile(r"at\.([A-Za-z_][\w.]*)(?:\(\.*…?\))?")


def code_or_link(name, rawtext, text, lineno, inliner, options=None, content=None):
    """The role of `single backticks` in docstrings."""
    env = inliner.document.settings.env
    code = nodes.literal(rawtext, text, classes=["py", "py-obj"])
    if not text.replace(".", "").isidentifier():
        return [code], []
    target = {"refdomain": "", "reftype": "soft", "reftarget": text, "refdoc": env.docname}
    return [pending_xref(rawtext, code, **target, **env.ref_context)], []


def soft_link(app, env, node, content):
    """Where a name in backticks leads: to a member of the class it stands in, or to the only object that is called so.

    A name that is documented nowhere is no mistake: it is shown as code. So is one that only a module or a member of
    another class has, for `data` is an argument.
    """
    if node["reftype"] != "soft":
        return None
    text, objects = node["reftarget"], env.domains["py"].objects
    member = ".".join(filter(None, [node.get("py:module"), node.get("py:class"), text]))
    kinds = {"class", "data", "exception", "function", *(["method", "property"] if "." in text else [])}
    found = [key for key, entry in objects.items()
             if f".{key}".endswith(f".{text}") and entry.objtype in kinds and not entry.aliased]  # fmt: skip
    if member in objects and objects[member].objtype != "module":
        found = [member]
    if len(found) != 1:
        return content
    entry = objects[found[0]]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, found[0])


class PackageNames(SphinxTransform):
    """`at.defenses.FastBAT`, in a sentence, leads to where the class is described."""

    default_priority = 700

    def apply(self, **kwargs):
        for code in list(self.document.findall(nodes.literal)):
            name = CALLED.fullmatch(code.astext())
            if name and not isinstance(code.parent, (nodes.reference, nodes.title, pending_xref)):
                target = {"refdomain": "", "reftype": "soft", "reftarget": f"advtrain.{name[1]}"}
                code.replace_self(pending_xref(code.rawsource, code.deepcopy(), refdoc=self.env.docname, **target))


def docstring_of(value, name):
    """The docstring below the assignment that made the package's `value`, called `name`."""
    for module in [module for key, module in sys.modules.items() if key.partition(".")[0] == "advtrain"]:
        if getattr(module, name, None) is value:
            found = ModuleAnalyzer.for_module(module.__name__).find_attr_docs()
            if ("", name) in found:
                return found["", name]
    return []


def summary(value):
    """One line on an entry of a registry; nothing for what is not of this package."""
    kind = value if callable(value) else type(value)
    if not kind.__module__.startswith("advtrain") or kind.__name__ == "<lambda>":
        return ""
    if not callable(value):
        return getattr(value, "summary", f"``{value!r}``")
    return f":py:obj:`.{kind.__name__}`: " + (kind.__doc__ or "").strip().partition("\n")[0]


def describe(app, what, name, value, options, lines):
    """Runs after napoleon, which takes what stands before a colon in the first line of a property for its type."""
    if what == "property":
        lines[:] = prepare_docstring(value.__doc__ or "")
    if what == "data" and isinstance(value, dict):
        said = {key: summary(entry) for key, entry in value.items()}
        entries = [f"- ``{key!r}``" + (f" – {text}" if text else "") for key, text in said.items()]
        lines[:] = [*docstring_of(value, name.rpartition(".")[2]), "", *entries, ""]


FIELD = type(namedtuple("Any", "field").field)


def skip(app, what, name, value, skipped, options):
    """Leave out the fields of a named tuple, which say no more than that they are its field number 0."""
    return True if isinstance(value, FIELD) else None


def without_repetition(command):
    """The command line for sphinx-click, with the options that all defenses share listed once, under `train`."""
    train = command.commands["train"]
    single = {name: train.get_command(None, name) for name in train.list_commands(None)}

    def said(option):
        return option.name, str(option.default), option.help

    shared = set.intersection(*({said(option) for option in one.params} for one in single.values()))
    first = next(iter(single.values()))
    own = {
        name: click.Command(name, params=[o for o in one.params if said(o) not in shared], help=one.help)
        for name, one in single.items()
    }
    group = click.Group(
        "train", own, params=[o for o in first.params if said(o) in shared], help=train.help, options_metavar="DEFENSE",
        subcommand_metavar="[OPTIONS]",
    )  # fmt: skip
    return click.Group(command.name, {**command.commands, "train": group}, params=command.params, help=command.help)


documented_main = without_repetition(main)


def setup(app):
    app.add_role("soft", code_or_link)
    app.add_transform(PackageNames)
    app.connect("missing-reference", soft_link)
    app.connect("autodoc-process-docstring", describe, priority=600)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
