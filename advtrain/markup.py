"""Tables and small sketches as HTML, for notebooks: without colours and ids of their own, so that they fit any page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 260, 84  # of one panel of a sketch, in pixels


def table(
    head: Sequence[str] | None, rows: Iterable[Sequence[str]], *, caption: str = "", below: Iterable[str] = (),
    named: bool = True,
) -> str:  # fmt: skip
    """An HTML table; whatever it is given is escaped.

    >>> table(None, [["clean", "<95%"]])
    '<table class="table"><tbody><tr><th scope="row">clean</th><td>&lt;95%</td></tr></tbody></table>'

    Args:
        head: the names of the columns; None of a table whose rows say what they are.
        rows: the cells of each row.
        caption: what the table shows.
        below: paragraphs to follow it.
        named: whether the first cell of a row is the name of that row.
    """
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head or ())
    lines = []
    for cells in rows:
        first, *rest = map(escape, cells)
        first = f'<th scope="row">{first}</th>' if named else f"<td>{first}</td>"
        lines.append(f"<tr>{first}{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>")
    return (
        '<table class="table">'
        + (f"<caption>{escape(caption)}</caption>" if caption else "")
        + (f"<thead><tr>{top}</tr></thead>" if top else "")
        + f"<tbody>{''.join(lines)}</tbody></table>"
        + "".join(f"<p>{escape(text)}</p>" for text in below)
    )


def sketch(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], words: str) -> str:
    """Curves side by side as one inline SVG, in the colour of the text around it: told apart by dashes.

    Args:
        panels: by title, its curves by name, each a list of points (x, y). Points that are not finite are left out.
        words: what is to be seen, for those who cannot see it.
    """
    dashes = ("", "5 3", "1 3", "8 3 1 3")
    parts = []
    for number, (title, curves) in enumerate(panels.items()):
        left = number * (WIDTH + 20)
        finite = {name: [point for point in curve if all(map(math.isfinite, point))] for name, curve in curves.items()}
        points = [point for curve in finite.values() for point in curve]
        if not points:
            continue
        (x0, x1), (y0, y1) = ((min(values), max(values)) for values in zip(*points, strict=True))
        parts.append(f'<text x="{left}" y="11">{escape(title)}: {y0:.3g} to {y1:.3g}</text>')
        for i, (name, curve) in enumerate(finite.items()):
            across = [left + 1 + (WIDTH - 2) * (x - x0) / (x1 - x0 or 1) for x, _ in curve]
            up = [HEIGHT - 4 - 62 * (y - y0) / (y1 - y0 or 1) for _, y in curve]
            places = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, up, strict=True))
            style = f'fill="none" stroke="currentColor" stroke-width="1.5" stroke-dasharray="{dashes[i % 4]}"'
            parts.append(f'<polyline points="{places}" {style}/>')
            if len(curves) > 1:
                x = left + i * WIDTH / len(curves)
                parts.append(f'<line x1="{x:g}" x2="{x + 18:g}" y1="{HEIGHT + 10}" y2="{HEIGHT + 10}" {style}/>')
                parts.append(f'<text x="{x + 22:g}" y="{HEIGHT + 14}">{escape(name)}</text>')
    size = f'viewBox="0 0 {len(panels) * (WIDTH + 20)} {HEIGHT + 20}" style="max-width:100%;font:11px sans-serif"'
    size += f' width="{len(panels) * (WIDTH + 20)}"'
    return f'<svg role="img" aria-label="{escape(words)}" fill="currentColor" {size}>{"".join(parts)}</svg>'
