"""Sphinx extension: a recorded experiment as a table, read from its results file when the book is built.

    ```{recorded} digits
    ```

shows `book/results/digits.json`: what it is about, the table, what must not be overlooked, paired differences, and where
the figures come from. So a figure on the page is always the file's.
"""

from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

import advtrain as at


def about(results):
    """Where the figures come from, as Markdown."""
    lines = []
    for entry in results.provenance:
        versions = ", ".join(f"{name} {version}" for name, version in entry["versions"].items())
        commit = (entry["commit"] or "unknown")[:12] + ("+changes" if "+" in (entry["commit"] or "") else "")
        lines.append(
            f"`{entry['command']}` at commit `{commit}`, {entry['start'][:10]}; {entry['cores']} cores of {entry['cpu']}, "
            f"device {entry['device']}; Python {entry['python']}, {versions}."
        )
    return lines


class Recorded(SphinxDirective):
    """The results file of that name in `book/results`."""

    required_arguments = 1

    def run(self):
        source = Path(self.env.srcdir) / "book" / "results" / f"{self.arguments[0]}.json"
        self.env.note_dependency(str(source))
        results = at.load_results(source)
        seeds = ", ".join(map(str, results.experiment["seeds"]))
        link = f"{{download}}`{source.name} <results/{source.name}>`"
        parts = [results.experiment["about"].strip(), f"Seeds {seeds}.", results.markdown()]
        parts += ["**Where this comes from.** " + " ".join(about(results)) + f" Every run is in {link}."]
        container = nodes.container(classes=["recorded"])
        self.state.nested_parse(StringList("\n\n".join(parts).splitlines(), str(source)), 0, container)
        return [container]


def setup(app):
    app.add_directive("recorded", Recorded)
    return {"parallel_read_safe": True}
