"""Sphinx extension: a recorded experiment as a table, read from its results file when the book is built.

    ```{recorded} digits
    ```

shows `book/results/digits.json`: what it is about, the table, what must not be overlooked, paired differences, and
where the figures come from. So a figure on the page is always the file's.
"""

import json
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
            f"`{entry['command']}` at commit `{commit}`, {entry['start'][:10]}; "
            f"{entry['cores']} cores of {entry['cpu']}, device {entry['device']}; "
            f"Python {entry['python']}, {versions}."
        )
    return lines


class Recorded(SphinxDirective):
    """The results file of that name in `book/results`."""

    required_arguments = 1

    def run(self):
        source = Path(self.env.srcdir) / "book" / "results" / f"{self.arguments[0]}.json"
        self.env.note_dependency(str(source))
        container = nodes.container(classes=["recorded"])
        self.state.nested_parse(StringList("\n\n".join(self.parts(source)).splitlines(), str(source)), 0, container)
        return [container]

    def parts(self, source):
        """The paragraphs and tables, as Markdown."""
        results = at.load_results(source)
        seeds = ", ".join(map(str, results.experiment["seeds"]))
        link = f"{{download}}`{source.name} <results/{source.name}>`"
        parts = [results.experiment["about"].strip(), f"Seeds {seeds}.", results.markdown()]
        parts += ["**Where this comes from.** " + " ".join(about(results)) + f" Every run is in {link}."]
        return parts


class Oracle(Recorded):
    """A results file of `benchmarks/autoattack.py`: two implementations on the same networks and images."""

    def parts(self, source):
        found = json.loads(source.read_text(encoding="utf-8"))
        head = (
            "network | norm, ε | images | theirs | ours | broken by theirs only | by ours only | theirs | ours | ratio"
        )
        lines = [f"| {head} |", "|---" + "|---:" * 9 + "|"]
        for row in found["models"]:
            theirs, ours = row["theirs"], row["ours"]
            cells = [
                row["model"], f"{ {'linf': 'ℓ∞', 'l2': 'ℓ2'}[row['norm']]} {at.threat.format_eps(row['eps'])}",
                f"{row['images']:,}", f"{theirs['robust_accuracy']:.1%}", f"{ours['robust_accuracy']:.1%}",
                str(row["only_theirs_breaks"]), str(row["only_ours_breaks"]), f"{theirs['cpu_seconds']:,.0f} s",
                f"{ours['cpu_seconds']:,.0f} s", f"{row['ratio_cpu_seconds']:.2f}",
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
        total = found["summary"]
        text = (
            f"AA: robust accuracy; images that only theirs and only ours breaks; seconds of the processor, "
            f"{found['settings']['threads']} thread. All networks "
            f"together: {total['theirs_cpu_seconds']:,.0f} s against {total['ours_cpu_seconds']:,.0f} s, ratio "
            f"{total['ratio_cpu_seconds']:.2f}; of {total['images']:,} images {total['only_theirs_breaks']} are broken "
            f"by theirs only, and {total['only_ours_breaks']} by ours only."
        )
        made = found["provenance"]
        versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
        origin = (
            f"**Where this comes from.** `{made['command']}` at commit `{made['commit'][:12]}`, {made['date'][:10]}; "
            f"{found['oracle']}; {found['hardware']['processor']}; Python {made['python']}, {versions}. All of it is "
            f"in {{download}}`{source.name} <results/{source.name}>`."
        )
        return ["\n".join(lines), text, origin]


def setup(app):
    app.add_directive("recorded", Recorded)
    app.add_directive("oracle", Oracle)
    return {"parallel_read_safe": True}
