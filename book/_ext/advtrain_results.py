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
        if self.name == "recorded":  # {ref}`text <recorded-digits>` leads here
            container["names"].append(f"recorded-{self.arguments[0]}")
            self.state.document.note_explicit_target(container)
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
        rows = []
        for row in found["models"]:
            theirs, ours = row["theirs"], row["ours"]
            cells = [
                row["model"], f"{ {'linf': 'ℓ∞', 'l2': 'ℓ2'}[row['norm']]} {at.threat.format_eps(row['eps'])}",
                f"{row['images']:,}", f"{theirs['robust_accuracy']:.1%}", f"{ours['robust_accuracy']:.1%}",
                str(row["only_theirs_breaks"]), str(row["only_ours_breaks"]), f"{theirs['cpu_seconds']:,.0f} s",
                f"{ours['cpu_seconds']:,.0f} s", f"{row['ratio_cpu_seconds']:.2f}",
            ]  # fmt: skip
            rows.append(cells)
        total = found["summary"]
        text = (
            f"AA: robust accuracy; images that only theirs and only ours breaks; seconds of the processor, "
            f"{found['settings']['threads']} thread. All networks "
            f"together: {total['theirs_cpu_seconds']:,.0f} s against {total['ours_cpu_seconds']:,.0f} s, ratio "
            f"{total['ratio_cpu_seconds']:.2f}; of {total['images']:,} images {total['only_theirs_breaks']} are broken "
            f"by theirs only, and {total['only_ours_breaks']} by ours only."
        )
        extra = f"{found['oracle']}; {found['hardware']['processor']}"
        return [table(head.split(" | "), rows), text, origin(source, found["provenance"], extra)]


def origin(source, made, extra):
    """Where the figures of a benchmark come from, as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return (
        f"**Where this comes from.** `{made['command']}` at commit `{made['commit'][:12]}`, {made['date'][:10]}; "
        f"{extra}; Python {made['python']}, {versions}. All of it is in "
        f"{{download}}`{source.name} <results/{source.name}>`."
    )


def table(head, rows, left=1):
    """A Markdown table, its first columns to the left and the others, which are figures, to the right."""
    lines = [head, [*["---"] * left, *["---:"] * (len(head) - left)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


class Throughput(Recorded):
    """A results file of `benchmarks/throughput.py`: images per second of each defense, beside its bare passes."""

    def parts(self, source):
        found = json.loads(source.read_text(encoding="utf-8"))
        head = ["defense", "forward-equivalents", "images per second", "of its bare passes", "of the device's ceiling"]
        rows = []
        for name, row in found["defenses"].items():
            cells = [f"{row['forwards']:.1f}", f"{row['images_per_second']:,.0f}"]
            rows.append([name, *cells, f"{row['share_of_bare_passes']:.0%}", f"{row['share_of_ceiling']:.0%}"])
        options, made, usual = found["options"], found["provenance"], found["fast_bat_in_a_usual_loop"]
        text = (
            f"{options['model']} of width {options['width']}, batches of {options['batch_size']}, images of "
            f"{found['data']}, {'bfloat16' if found['bf16'] else 'float32'}. The ceiling is that of a large matrix "
            f"product: {found['ceiling_flops'] / 1e12:.3g} TFLOP/s. FAST-BAT in a usual loop makes "
            f"{usual['images_per_second']:,.0f} images per second: `fit` is {usual['ours_is_faster_by']:.2f} times as "
            "fast."
        )
        threads = "" if made["device"] != "cpu" else f" with {made['threads']} threads"
        return [table(head, rows), text, origin(source, made, f"device {made['device']}{threads}")]


class Roofline(Recorded):
    """A results file of `benchmarks/roofline.py`: what each defense's update asks of a GPU, and how fast it can be."""

    def parts(self, source):
        found = json.loads(source.read_text(encoding="utf-8"))
        size, gpu = found["options"]["batch_size"], found["gpu"]
        head = ["defense", "operations", "TFLOP", "GB", "ms"]
        rows = []
        for name, row in found["defenses"].items():
            cells = [f"{row['operations']:,}", f"{row['flops'] / 1e12:.2f}", f"{row['bytes'] / 1e9:.1f}"]
            rows.append([name, *cells, f"{1e3 * row['seconds']:.1f}"])
        text = (
            f"All that a defense does with one batch of {size} images: operations, their arithmetic, the bytes "
            "that they read and write, and the time that they take at least. PreActResNet-18 in bfloat16 on an "
            f"{gpu['name']}, whose data sheet says {gpu['flops'] / 1e12:.0f} TFLOP/s and "
            f"{gpu['bytes_per_second'] / 1e12:.1f} TB/s."
        )
        return [table(head, rows), text, origin(source, found["provenance"], "counted on a processor")]


class Scale(Recorded):
    """A results file of `benchmarks/scale.py`: operations, memory and messages of larger data sets."""

    def parts(self, source):
        found = json.loads(source.read_text(encoding="utf-8"))
        head = ["network", "defense", "forwards", "PFLOP an epoch", "MB an image", "MB a message"]
        rows = []
        for name, net in found["networks"].items():
            title = name
            for label, row in net["defenses"].items():
                cells = [f"{row['forwards']:.1f}", f"{row['flops_per_epoch'] / 1e15:,.2f}"]
                cells += [f"{row['bytes_per_image'] / 1e6:,.0f}", f"{net['gradient_bytes'] / 1e6:,.0f}"]
                rows.append([title, label, *cells])
                title = ""
        large = list(found["networks"].values())[-1]
        fast_bat, standard = (large["defenses"][label] for label in ("fast-bat", "standard"))
        epoch = fast_bat["flops_per_epoch"] / 200e12
        step, message = 64 * epoch / large["images"], 2 * 7 / 8 * large["gradient_bytes"] / 12.5e9
        pair = found["two_processes"]
        more = fast_bat["bytes_per_image"] / standard["bytes_per_image"]
        gigabytes = 128 * fast_bat["bytes_per_image"] / 1e9
        seconds, sums = pair["seconds_of_a_step"]["1"], pair["seconds_of_a_sum"]
        texts = [
            "**Memory.** FAST-BAT differentiates through an attack step, and keeps what that takes: "
            f"{more:.1f} times the memory of standard training with the largest of these networks, {gigabytes:.0f} GB "
            "for a batch of 128 images in float32. The others of the table need what standard training needs: their "
            "attack's passes are done with before the next begins.",
            "**Time.** A GPU that sustains $F$ operations per second takes so many operations over $F$ for an epoch. "
            f"For FAST-BAT with the largest network, at $F = 200$ TFLOP/s, that is {epoch / 60:.0f} minutes; thirty "
            f"epochs take {30 * epoch / 3600:.1f} hours of one GPU. This is a calculation, and not a measurement: "
            "nothing in this project was trained on ImageNet.",
            "**Messages.** Summing $M$ bytes among $N$ processes, a ring sends $2 M (N - 1) / N$ bytes from each to "
            "the next. For the largest network and eight processes, with 100 Gbit/s between them, that takes "
            f"{1000 * message:.0f} ms, beside {1000 * step:.0f} ms for a step of FAST-BAT on 64 images at 200 TFLOP/s. "
            "A part of it hides behind the backward pass. Adversarial training is kind to networks: its steps send as "
            "much as those of standard training, and take several times as long.",
            "**Measured.** Two processes on two cores, FAST-AT with a PreActResNet-18 of width 16: "
            f"{pair['speedup_measured']:.2f} times as fast as one. Half the passes, and {1000 * sums:.0f} ms for "
            f"summing the gradient of {pair['gradient_bytes'] / 1e6:.1f} MB, beside {1000 * seconds:,.0f} ms for a "
            f"step of one process, would give {pair['speedup_predicted']:.2f}.",
        ]
        return [table(head, rows), *texts, origin(source, found["provenance"], "device cpu")]


def setup(app):
    app.add_directive("recorded", Recorded)
    app.add_directive("oracle", Oracle)
    app.add_directive("throughput", Throughput)
    app.add_directive("roofline", Roofline)
    app.add_directive("scale", Scale)
    return {"parallel_read_safe": True}
