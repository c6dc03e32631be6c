r"""Interactive figures that answer without a kernel, because their frames are drawn beforehand::

    at.widgets.slider(draw, [0, 0.1, 0.2, 0.3], label=r"\(\varepsilon\)", alt="The digit 3, perturbed with ε = {}")

The page stores the frames, and links between controls and frames that the browser follows. Where there is a kernel,
the frame on view is also drawn anew, so that it shows the reader's own model. `explorer` is for one's own notebook: it
attacks an image anew at every move, and needs the kernel.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from html import escape
from html.entities import html5
from itertools import product, repeat
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import at_least, bad

try:
    import ipywidgets

    from .explorer import Explorer, explorer
    from .pictures import DRAWABLE, complaint, png, render, sheet, tag
except ImportError as error:
    raise ImportError(f"advtrain.widgets needs {error.name}: pip install ipywidgets matplotlib") from error

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["slider", "grid", "compare", "Interactive", "explorer", "Explorer"]

# Commands of TeX that have another name in HTML, or none.
SPOKEN = {
    "infty": "∞", "lVert": "‖", "rVert": "‖", "Vert": "‖", "to": "→", "cdot": "·", "quad": " ", "dots": "…",
    "ldots": "…",
}  # fmt: skip
LIMIT = 600_000  # bytes of all frames of one figure, as stored in the page


class Axis(NamedTuple):
    """What one slider runs over, and the index to begin with."""

    label: str
    values: list[Any]
    texts: list[str]
    start: int


def slider(
    draw: Callable[[Any], Any], values: Iterable[Any], *, label: str, alt: str | Callable[[Any], str], start: int = 0,
    play: bool = False, format: str = "{:g}", still: Any = None, live: bool = True, limit: int = LIMIT,
) -> Interactive:  # fmt: skip
    r"""A figure with a slider: one frame for each of `values`.

    >>> figure = slider(lambda eps: f"<p>{eps}</p>", [0, 0.1, 0.2], label="radius", alt="the radius {}")
    >>> figure, len(figure.frames)
    (Interactive figure: radius from 0 to 0.2 in 3 frames, 3)

    Args:
        draw: `draw(value)` returns a matplotlib Figure (closed once rendered), an image of floats in [0, 1] with shape
            (H, W), (1, H, W), (3, H, W) or (H, W, 3), PNG bytes, or an HTML string. It is called now with each value
            and, where there is a kernel and unless `live=False`, with the current one whenever the slider moves.
        values: numbers, written in `format`, or texts.
        label: name of the slider; TeX goes between `\(` and `\)`.
        alt: what a frame shows, for those who cannot see it: `{}` is the written value; or a function of the value.
        start: index of the first frame on view.
        play: whether to add a play button. Nothing plays by itself.
        still: a figure, image or PNG that says the same at one glance, for print; by default the start frame.
        limit: bytes that all frames together may take in the page.

    Raises:
        ArgumentError: values that are none or written alike; no `label` or `alt`; what cannot be drawn; more bytes than
            `limit`.
    """
    return _figure(draw, [_axis("values", values, label, start, format)], alt, still, live, limit, play)


def grid(
    draw: Callable[[Any, Any], Any], first: Iterable[Any], second: Iterable[Any], *, labels: Sequence[str],
    alt: str | Callable[[Any, Any], str], start: Sequence[int] = (0, 0), formats: Sequence[str] = ("{:g}", "{:g}"),
    still: Any = None, live: bool = True, limit: int = LIMIT,
) -> Interactive:  # fmt: skip
    """A figure with two sliders: one frame for each pair of a value of `first` and a value of `second`.

    >>> len(grid(lambda a, b: f"<p>{a + b}</p>", [0, 1], [0, 1, 2], labels=("a", "b"), alt="{0} + {1}").frames)
    6

    Args:
        draw: `draw(a, b)` returns what that of `slider` does.
        first: what the first slider runs over.
        second: what the second one runs over.
        labels, start, formats: pairs, one for each slider.
        alt: a text with `{0}` and `{1}`, or a function of both values.
        still, live, limit: as for `slider`; so are the errors.
    """
    pairs = _pair("labels", labels), _pair("start", start), _pair("formats", formats)
    axes = [_axis(*each) for each in zip(("first", "second"), (first, second), *pairs, strict=True)]
    return _figure(draw, axes, alt, still, live, limit)


def compare(
    before: Any, after: Any, *, labels: Sequence[str] = ("before", "after"), alt: Sequence[str], still: Any = None,
    limit: int = LIMIT,
) -> Interactive:  # fmt: skip
    """Two frames in one place, and a button for each.

    >>> compare("<p>3</p>", "<p>5</p>", labels=("clean", "attacked"), alt=("a three", "a five"))
    Interactive figure: clean or attacked

    Args:
        before, after: what `draw` of `slider` may return.
        labels: what the two buttons say.
        alt: what the two frames show, for those who cannot see them.
        still, limit: as for `slider`; so are the errors.
    """
    names = [_label("labels", text) for text in _pair("labels", labels)]
    axis = _axis("labels", names, " or ".join(map(_plain, names)), 0, "")
    pictures = [render(before, "before"), render(after, "after")]
    frames, _ = _frames(pictures, [_alt(lambda text: text, (), [text]) for text in _pair("alt", alt)], limit)
    about = {"tooltip": axis.label, "style": {"button_width": "auto"}}  # the tooltip is the name of the group
    buttons = ipywidgets.ToggleButtons(options=axis.texts, index=0, **about)
    still = pictures[0] if still is None else render(still, "still")
    return Interactive([buttons], _stage(frames, [axis], [buttons]), frames, axis.label, still)


class Interactive(ipywidgets.VBox):  # type: ignore[misc]
    """What `slider`, `grid` and `compare` return: controls above frames, shown by naming it last in a cell.

    Args:
        controls: the widgets to move.
        stage: the widget that shows one frame at a time.
        frames: the widgets of all frames; `size` is their bytes.
        words: what the figure runs over, for `repr`.
        still: what stands for it where there are no widgets.
    """

    def __init__(self, controls: list[Any], stage: Any, frames: list[Any], words: str, still: Any) -> None:
        super().__init__([ipywidgets.HBox(controls, layout={"flex_flow": "row wrap"}), stage])
        self.controls, self.frames, self.words, self.still = controls, frames, words, still
        self.size = sum(len(frame.value.encode()) for frame in frames)

    def __repr__(self) -> str:
        return f"Interactive figure: {self.words}"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = super()._repr_mimebundle_(**kwargs)
        bundle |= {"text/plain": repr(self)}  # the original cuts a long one
        if isinstance(self.still, str):
            return bundle | {"text/html": self.still}
        return bundle | {"image/png": b64encode(png(self.still)).decode()}


def _figure(
    draw: Callable[..., Any], axes: list[Axis], alt: str | Callable[..., str], still: Any, live: bool, limit: int,
    play: bool = False,
) -> Interactive:  # fmt: skip
    """The figure of one or two sliders; its frames are in the order of `itertools.product`."""
    if not callable(draw):
        bad("draw", draw, f"a function that returns {DRAWABLE}")
    texts = list(product(*(axis.texts for axis in axes)))
    values = list(product(*(axis.values for axis in axes)))
    alts = list(map(_alt, repeat(alt), texts, values))
    pictures = [render(draw(*value), f"draw({', '.join(text)})") for text, value in zip(texts, values, strict=True)]
    frames, size = _frames(pictures, alts, limit)
    sliders = [_slider(axis) for axis in axes]
    player = [_player(sliders[0])] if play else []
    first = pictures[texts.index(tuple(axis.texts[axis.start] for axis in axes))]

    def redraw(_: Any) -> None:
        i = texts.index(tuple(control.label for control in sliders))
        try:
            frames[i].value = _html(render(draw(*values[i]), "draw"), _alt(alt, texts[i], values[i]), size)
        except Exception:  # the reader's own code may raise: that has to be seen, and the next move may go well
            frames[i].value = complaint()

    for control in sliders if live else ():
        control.observe(redraw, "index")
    ranges = ", ".join(f"{_plain(axis.label)} from {axis.texts[0]} to {axis.texts[-1]}" for axis in axes)
    words, stage = f"{ranges} in {len(frames)} frames", _stage(frames, axes, sliders)
    return Interactive(player + sliders, stage, frames, words, first if still is None else render(still, "still"))


def _slider(axis: Axis) -> Any:
    style, layout = {"description_width": "initial"}, {"width": "min(100%, 30rem)"}  # fills a phone, but no wide page
    about = {"description": axis.label, "tooltip": _plain(axis.label)}
    return ipywidgets.SelectionSlider(options=axis.texts, index=axis.start, style=style, layout=layout, **about)


def _player(control: Any) -> Any:
    button = ipywidgets.Play(value=control.index, max=len(control.options) - 1, interval=500)  # milliseconds
    ipywidgets.jslink((button, "value"), (control, "index"))
    return button


def _stage(frames: list[Any], axes: list[Axis], controls: list[Any]) -> Any:
    """Stacked frames, of which the last control selects one; with two controls the first selects a stack of them."""
    layout = ipywidgets.Layout()
    for axis, control in zip(reversed(axes), reversed(controls), strict=True):
        rows = [frames[i : i + len(axis.texts)] for i in range(0, len(frames), len(axis.texts))]
        frames = [ipywidgets.Stack(row, selected_index=axis.start, layout=layout) for row in rows]
        for stack in frames:
            ipywidgets.jslink((stack, "selected_index"), (control, "index"))  # embedding may drop an index of 0
    return frames[0]


def _axis(name: str, values: Any, label: Any, start: Any, format: Any) -> Axis:
    values = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(values, str) or not isinstance(values, Iterable) or not (values := list(values)):
        bad(name, values, "a list of at least one value")
    try:
        texts = [value if isinstance(value, str) else format.format(value) for value in values]
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        bad("format", format, f"a format for {name}", str(error))
    if twice := [text for text in texts if texts.count(text) > 1]:
        bad(name, values, "free of repetitions", f"{twice[0]!r} comes twice; does the format need more digits?")
    if (start := at_least("start", start, 0, "it is an index")) >= len(values):
        bad("start", start, f"an index below {len(values)}", f"so many are {name}")
    return Axis(_label("label", label), values, texts, start)


def _label(name: str, label: Any) -> str:
    if not isinstance(label, str) or not _plain(label):
        bad(name, label, "a text", "it names the control, also for those who cannot see it")
    return str(label)


def _pair(name: str, value: Any) -> Sequence[Any]:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        bad(name, value, "a pair")
    return value


def _alt(alt: str | Callable[..., str], texts: Sequence[str], values: Sequence[Any]) -> str:
    """The alternative text of the frame for `values`, which are written `texts`."""
    words = alt(*values) if callable(alt) else alt
    if not isinstance(words, str) or not words.strip():
        bad("alt", words, "a text", "say what the frame shows, for those who cannot see it")
    try:
        return " ".join((words if callable(alt) else words.format(*texts)).split())
    except (ValueError, LookupError, AttributeError) as error:
        bad("alt", alt, "a text where {} stands for the written value, and {{ for a brace", str(error))


def _plain(label: str) -> str:
    r"""`label` without TeX: `\(\|\delta\|_\infty \le \mathrm{eps}\)` becomes ‖δ‖∞ ≤ eps."""
    return " ".join(re.sub(r"\\\((.*?)\\\)|\$([^$]+)\$", lambda m: _spoken(m[1] or m[2] or ""), label).split())


def _spoken(tex: str) -> str:
    """What is between the signs of TeX, in plain characters as far as they go."""
    tex = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", tex)
    tex = re.sub(r"\\(?:math[a-z]+|text[a-z]*|operatorname|left|right|[bB]igg?[lr]?)(?![A-Za-z])", "", tex)
    tex = re.sub(r"\\(?:var)?([A-Za-z]+)", lambda m: SPOKEN.get(m[1]) or html5.get(f"{m[1]};", m[1]), tex)
    tex = re.sub(r"\\[,;:! ]|~", " ", tex.replace(r"\|", "‖"))
    return re.sub(r"[{}_\\]", "", tex)


def _frames(pictures: Sequence[Image.Image | str], alts: list[str], limit: int) -> tuple[list[Any], tuple[int, int]]:
    """Widgets for the frames, and their size on the page. They share what they can, which keeps the page small."""
    sizes = [picture.size for picture in pictures if not isinstance(picture, str)] or [(0, 0)]
    size = max(width for width, _ in sizes), max(height for _, height in sizes)
    pages = [_html(picture, alt, size) for picture, alt in zip(pictures, alts, strict=True)]
    if (total := sum(len(page.encode()) for page in pages)) > at_least("limit", limit, 1):
        need = f"enough ({limit / 1000:g} kB) for {len(pages)} frames of {total / 1000:.0f} kB in all"
        bad("limit", limit, need, "give fewer values, a smaller figure or a lower dpi")
    layout, style = ipywidgets.Layout(), ipywidgets.HTML().style
    return [ipywidgets.HTML(page, layout=layout, style=style) for page in pages], size


def _html(picture: Image.Image | str, alt: str, size: tuple[int, int]) -> str:
    """A frame, on a white sheet of at least `size`: what is below must not jump from frame to frame."""
    if isinstance(picture, str):
        style = "background:#fff;color:#111;overflow-x:auto"
        return f'<div role="figure" aria-label="{escape(alt)}" style="{style}">{picture}</div>'
    return tag(sheet(picture, size), alt)
