"""Sphinx extension: one page for each registered defense, written when the book is built.

Whatever is in `advtrain.defenses.DEFENSES` gets a page `book/api/defenses/NAME.md`, which git ignores: its equation,
differences and options from its docstring, paper and code from there and from `book/references.bib`, the chapters that
speak of it, its cost as `advtrain.cost` counts it, its published recipes, and what `book/results` has recorded of it.

    ```{defenses}
    ```

is the table of all of them.
"""

import functools
import json
import re
from inspect import cleandoc
from pathlib import Path

from advtrain_results import Recorded, table

import advtrain as at
from advtrain.files import atomic
from advtrain.report import NORMS
from advtrain.results.paired import mean_interval
from advtrain.results.table import percent, quoted, unit_of
from advtrain.threat import format_eps

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
CONTEXT = ("standard", "pgd")  # rows that stand below those of the defense, for comparison
ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")
CODE = re.compile(r"\bcode[^().]*\((\w[\w.-]*/[\w.-]+)")
SETTING = """\
import advtrain as at

data, threat = at.load_data("digits"), at.Threat("linf", eps=0.3)
model = at.build_model("small-cnn", data)
"""


def title(kind):
    """What a defense is called: its docstring up to the first colon."""
    return cleandoc(kind.__doc__).partition("\n")[0].partition(":")[0]


def sentence(kind):
    """What it does, in one line: its docstring's first line behind the colon."""
    text = cleandoc(kind.__doc__).partition("\n")[0].partition(":")[2].strip()
    return text[:1].upper() + text[1:]


def linked(text):
    """Names of arXiv papers and of GitHub repositories as Markdown links."""
    text = ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"(?<![\w/.(])([A-Za-z][\w-]*/[A-Z_a-z][\w.-]*)(@\w+)?", r"[\1\2](https://github.com/\1)", text)


@functools.cache
def references():
    """{key: (title, address)} of the bibliography."""
    found = {}
    for entry in (BOOK / "references.bib").read_text(encoding="utf-8").split("\n@"):
        key = re.search(r"\{([^,\s]+),", entry)
        named = {name: re.search(rf"\b{name}\s*=\s*\{{(.*?)\}},?\n", entry + "\n", re.S) for name in ("title", "url")}
        if key and all(named.values()):
            found[key[1]] = (re.sub(r"[{}]", "", named["title"][1]), named["url"][1])
    return found


def paper(kind):
    """The paper as Markdown; None for a method without one."""
    text = " ".join(cleandoc(kind.__doc__).split())
    number = ARXIV.search(text)
    for key, (name, address) in references().items():
        if (number and address.endswith(number[1])) or f'"{name}"' in text:
            where = f"arXiv {number[1]}" if number else address.partition("//")[2].partition("/")[0]
            return f"{{cite:t}}`{key}`, [{where}]({address})"
    return linked(number[0]) if number else None


def code(kind):
    """The repositories of the code that it follows, as Markdown."""
    names = dict.fromkeys(CODE.findall(" ".join(cleandoc(kind.__doc__).split())))
    return ", ".join(f"[{name}](https://github.com/{name})" for name in names)


@functools.cache
def chapters():
    """{path: (title, cells of text, everything)} of the notebooks."""
    found = {}
    for path in sorted(BOOK.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        said = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        heading = said[0].partition("\n")[0].lstrip("# ")
        found[path.name] = (heading, said, "\n".join("".join(cell["source"]) for cell in cells))
    return found


def chapter_links(kind, root="../../"):
    """The chapters in which the class is named, as Markdown; first those that introduce it, with its `Cite as:`."""
    name = re.compile(rf"\b{kind.__name__}\b")
    first, others = [], []
    for path, (heading, said, everything) in chapters().items():
        cited = [part for text in said for part in text.split("\n\n") if part.startswith("**Cite as:**")]
        if any(name.search(part) for part in cited):
            first.append(f"[{heading}]({root}{path})")
        elif f"defenses.{kind.__name__}" in everything and name.search(everything):
            others.append(f"[{heading}]({root}{path})")
    parts = [f"introduced in {', '.join(first)}"] * bool(first) + [f"used in {', '.join(others)}"] * bool(others)
    return "; ".join(parts)


@functools.cache
def cost(kind):
    """What a mini-batch costs with the method's defaults, counted on the network of the digits."""
    threat = at.Threat("linf" if "linf" in kind.norms else kind.norms[0], eps=0.3)
    data = at.load_data("digits")
    return at.cost(kind(threat), at.build_model("small-cnn", data), data)


@functools.cache
def experiments():
    """{name of the file: its results} of what was judged on test images; constants are chosen on others."""
    found = {}
    for path in sorted((BOOK / "results").glob("*.json"), key=lambda path: (path.stem != "digits", path.stem)):
        if "experiment" in json.loads(path.read_text(encoding="utf-8")):
            results = at.load_results(path)
            if results.experiment["judge"]["split"] == "test":
                found[path.stem] = results
    return found


def interval(runs, metric):
    """95% interval of an accuracy in percent: over seeds if there are several, else over test images."""
    rows = [run.row(metric) for run in runs if metric in run.rows]
    ends = rows[0].interval if len(rows) == 1 else mean_interval([row.accuracy for row in rows])
    return "–" if ends is None else f"{100 * max(ends[0], 0.0):.1f} to {100 * min(ends[1], 1.0):.1f}"


def own(results, name):
    """The labels of an experiment's methods that are this defense."""
    return [method["name"] for method in results.experiment["methods"] if method["defense"].get("name") == name]


def recorded(stem, name):
    """The rows of a defense in an experiment, with what they mean, as paragraphs of Markdown."""
    results = experiments()[stem]
    e, labels = results.experiment, own(results, name)
    protocol = e["judge"]["protocol"]
    times = unit_of(results) is not None
    unit = "cost, × standard" if times else "cost, passes"
    pgd = f"PGD-{protocol['steps']}-{protocol['restarts']}"
    rows = {row["method"]: row for row in results.table()}
    head = ["method", "clean", "FGSM", pgd, f"{pgd}, 95% interval", "AutoAttack", "gradient masked", unit, "seeds"]
    lines, judging = [], any(rows[label]["autoattack"] for label in labels)
    for label in [*labels, *(other for other in CONTEXT if other in rows and other not in labels)]:
        row, judged = rows[label], sum(rows[label]["diagnose"].values())
        some = f" ({judged} of {row['seeds']} seeds)" * (0 < judged < row["seeds"])
        spent = "–" if row["cost"] is None else f"{row['cost']:,.1f}"
        masked = f"at {row['masked']} of {row['seeds']}" if row["seeds"] else "–"
        mark = "" if label in labels else "for comparison: "
        lines.append([f"{mark}{quoted(label)}", *(percent(row[key]) for key in ("clean", "fgsm", "pgd")),
                      interval(results.of(label), "pgd"), f"{percent(row['autoattack'])}{some}", masked, spent,
                      str(row["seeds"]) + f" ({row['failed']} failed)" * bool(row["failed"])])  # fmt: skip
    if not judging:  # a column of dashes would push others out of sight
        head, *lines = (cells[:5] + cells[6:] for cells in [head, *lines])
    whole = f"{{ref}}`the whole table <recorded-{stem}>`" if shown(stem) else "the whole table"
    several = any(rows[label]["seeds"] > 1 for label in labels)
    caption = (
        f"{e['data'].get('name')}, {e['model'].get('name')}, {NORMS[e['threat']['norm']]} ε = "
        f"{format_eps(e['threat']['eps'])}; accuracies on test images in %"
        + (", mean ± standard deviation over seeds; interval of the mean, over seeds" if several else "")
        + ("" if several else "; interval over images, of this one network")
        + "; cost of all training, "
        + ("as a multiple of standard training. " if times else "in passes forward per image. ")
        + ("" if judging else "AutoAttack has not judged these runs. ")
        + f"See {whole}; the file is {{download}}`{stem}.json <../../results/{stem}.json>`."
    )
    said = [f"- {quoted(str(d))}" for d in results.comparisons if d.a in labels or d.b in labels]
    return [f"### {e['title']}", table(head, lines), caption, *(["\n".join(said)] if said else [])]


def shown(stem):
    """Whether the page of results has this experiment."""
    return f"{{recorded}} {stem}\n" in (BOOK / "results.md").read_text(encoding="utf-8")


def recipes(name):
    """The published recipes of a defense as paragraphs of Markdown."""
    presets = [preset for preset in at.PRESETS.values() if preset.defense == name]
    if not presets:
        return ["The package has no published recipe for it."]
    head = ["preset", "data", "model", "ε", "epochs", "options"]
    rows, notes, sources = [], {}, {}
    for preset in presets:
        options = ", ".join(f"`{key}={value:.4g}`" if isinstance(value, float) else f"`{key}={value}`"
                            for key, value in preset.options.items())  # fmt: skip
        rows.append([f"`{preset.label}`", preset.data, preset.model, format_eps(preset.eps), str(preset.fit["epochs"]),
                     options or "defaults"])  # fmt: skip
        sources.setdefault(linked(preset.source), []).append(f"`{preset.label}`")
        notes.setdefault(preset.note, []).append(f"`{preset.label}`")
    use = (
        f"`advtrain train {name} --preset {presets[0].label}` trains by the first; in Python it is "
        f'`at.preset("{presets[0].name}")`, see {{py:func}}`~advtrain.preset`. The command line shows them all: '
        "`advtrain list presets`."
    )
    origins = [f"- {', '.join(labels)}: {source}" for source, labels in sources.items()]
    origin = f"Source: {next(iter(sources))}" if len(sources) == 1 else "\n".join(["Sources:", "", *origins])
    differing = [f"- {', '.join(labels)}: {note}." for note, labels in notes.items() if note]
    told = ["What is not as it was there:", "\n".join(differing)] if differing else []
    return [table(head, rows, left=len(head)), origin, use, *told]


def page(name, kind):
    """The page of a defense, in Markdown."""
    found, followed = cost(kind), code(kind)
    facts = {
        "Paper": paper(kind) or "none",
        "Code": f"follows {followed}" if followed else "follows nobody's",
        "Chapters": chapter_links(kind) or "none yet",
        "In Python": f"`at.defenses.{kind.__name__}(threat)`",
        "In a terminal": f"`advtrain train {name} --data digits --eps 0.3 --out runs/{name}`",
        "Norms": ", ".join(NORMS[norm] for norm in kind.norms),
        "Trains on images": "inside the threat" if kind.inside else "outside the threat, up to `reach` away",
    }
    updates = "one update of the weights" if found.updates == 1 else f"{found.updates} updates of the weights"
    parts = [
        "% Written by book/_ext/advtrain_defenses.py when the book is built.",
        f"# {title(kind)}",
        sentence(kind),
        "\n".join(f"- **{key}:** {value}" for key, value in facts.items()),
        "## The method",
        f"```{{eval-rst}}\n.. autoclass:: advtrain.defenses.{kind.__name__}\n   :members:\n```",
        "## What it costs",
        f"A mini-batch costs **{found.forwards:.1f} forward-equivalents**, {updates} included, with the defaults above "
        f"on the network of the digits, {found.forwards / cost(at.defenses.Standard).forwards:.1f} times what standard "
        "training costs. So says "
        "{py:func}`~advtrain.cost`, which counts it for any model:",
        f"```python\n{SETTING}at.cost(at.defenses.{kind.__name__}(threat), model, data).forwards\n```",
        "## Published recipes",
        *recipes(name),
        "## Recorded results",
    ]
    files = [stem for stem, results in experiments().items() if own(results, name)]
    for stem in files:
        parts += recorded(stem, name)
    if not files:
        parts.append("Nothing is recorded yet. [The page of results](../../results.md) has those of other defenses.")
    return "\n\n".join(part for part in parts if part) + "\n"


def write_pages(app, config):
    """Before the table of contents is read. Pages that stay as they are keep their time, so nothing is built anew."""
    folder = Path(app.srcdir) / "book" / "api" / "defenses"
    folder.mkdir(exist_ok=True)
    wanted = {folder / f"{name}.md": page(name, kind) for name, kind in at.defenses.DEFENSES.items()}
    for path in set(folder.glob("*.md")) - wanted.keys():
        path.unlink()
    for path, text in wanted.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            with atomic(path) as partial:
                partial.write_text(text, encoding="utf-8")


class Overview(Recorded):
    """The table of all defenses."""

    required_arguments = 0

    def run(self):
        self.arguments = ["digits"]
        return super().run()

    def parts(self, source):
        results = at.load_results(source)
        rows, figures = [], {row["method"]: row for row in results.table()}
        pgd = "PGD-{steps}-{restarts}".format(**results.experiment["judge"]["protocol"])
        for name, kind in at.defenses.DEFENSES.items():
            row = figures.get(name) or next((figures[label] for label in own(results, name)), {})
            rows.append([f"[{title(kind)}](defenses/{name}.md)", f"`{name}`", f"{cost(kind).forwards:.1f}",
                         percent(row.get("clean")), percent(row.get("pgd"))])  # fmt: skip
        note = (
            "Cost: forward-equivalents of a mini-batch. Clean and under PGD: recorded accuracies on the "
            "[digits](../results.md), in %, mean ± standard deviation over seeds, of the row that is called like the "
            "defense, or else of its first; each page has them all, with their constants."
        )
        return [table(["defense", "name", "cost", "clean", pgd], rows, left=2), note]


def lead(app, what, name, value, options, lines):
    """In a defense's docstring, papers and repositories are links, and its relation to other code has a heading."""
    if what != "class" or value not in at.defenses.DEFENSES.values():
        return
    text = re.sub(r"arXiv\s+(\d{4}\.\d{4,5})", r"`arXiv \1 <https://arxiv.org/abs/\1>`__", "\n".join(lines))
    text = re.sub(r"(\bcode[^().]*\()(\w[\w.-]*/[\w.-]+)", r"\1`\2 <https://github.com/\2>`__", text)
    text = re.sub(r"(?m)^(?=Follows )", ".. rubric:: Beside the authors' code\n\n", text, count=1)
    lines[:] = text.split("\n")


def operators(app, config):
    r"""Names that docstrings write as \CE and \clip, so that they are legible in `help()` as well."""
    names = {"CE": "CE", "KL": "KL", "OT": "OT", "clip": "clip", "sign": "sign", "mean": "mean"}
    macros = {name: rf"\operatorname{{{text}}}" for name, text in names.items()}
    tex = config.mathjax3_config.setdefault("tex", {})
    tex["macros"] = {**macros, "argmin": r"\operatorname*{argmin}", **tex.get("macros", {})}


def setup(app):
    app.add_directive("defenses", Overview)
    app.connect("config-inited", write_pages)
    app.connect("config-inited", operators)
    app.connect("autodoc-process-docstring", lead, priority=450)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
