"""One image under attack, live: choose image, radius and attack, and see what the model reads.

Reached as `advtrain.widgets.explorer`.
"""

from __future__ import annotations

import inspect
from base64 import b64encode
from dataclasses import dataclass, replace
from html import escape
from typing import Any, cast

import ipywidgets
import torch
from PIL import Image
from torch import Tensor, nn

from .attacks import ATTACKS
from .attacks.choice import choose, written
from .attacks.gradient import check_attack
from .checks import check_model, check_threat
from .data import as_split
from .dataset import Split
from .errors import bad, check_kind
from .markup import table
from .modes import evaluating, place
from .pictures import complaint, png, render, tag
from .report import radius
from .rng import Rng
from .threat import Threat, format_eps

MENU = tuple(name for name in ATTACKS if name != "square")  # its thousands of queries are too many for a slider
EVERY = "every class"
SHOWN = 10  # classes whose probabilities are drawn, the likeliest first
NOTE = "The controls compute anew in a running kernel. Without one, as on a saved page, this is a still."


@dataclass(frozen=True)
class View:
    """What an explorer shows.

    Args:
        place: of the image in the split.
        label: its class.
        threat: with the radius chosen; None at radius 0, where nothing is attacked.
        attack: name of the attack.
        steps: of an iterated attack.
        x, x_adv: the image and what the attack made of it, (1, C, H, W).
        logits: before and after, (2, K).
    """

    place: int
    label: int
    threat: Threat | None
    attack: str
    steps: int
    x: Tensor
    x_adv: Tensor
    logits: Tensor

    @property
    def probabilities(self) -> Tensor:
        """Before and after, (2, K)."""
        return self.logits.softmax(1)


class Explorer(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """What `explorer` returns; shown by naming it last in a cell. `view` holds what is on view.

    Args:
        model, split, threat, classes: see `explorer`; the classes are names.
    """

    def __init__(self, model: nn.Module, split: Split, threat: Threat, classes: list[str]) -> None:
        self.model, self.split, self.threat, self.classes = model, split, threat, classes
        self.radii = radii(threat)
        present = sorted(set(split.y.tolist()))
        wide = {"style": {"description_width": "7em"}, "layout": {"width": "min(100%, 26rem)"}}
        late = {"continuous_update": False}  # an attack for each pixel that the handle moves would be too many
        names = [(EVERY, -1), *((classes[label], label) for label in present)]
        self.of_class = ipywidgets.Dropdown(options=names, description="class", **wide)
        self.number = ipywidgets.BoundedIntText(value=0, min=0, max=len(split) - 1, description="image", **wide, **late)
        texts = [(format_eps(eps), eps) for eps in self.radii]
        self.eps = ipywidgets.SelectionSlider(options=texts, value=threat.eps, description="radius ε", **wide, **late)
        self.attack = ipywidgets.Dropdown(
            options=[(written(name), name) for name in MENU], value="pgd", description="attack", **wide
        )
        self.steps = ipywidgets.IntSlider(value=10, min=1, max=50, description="steps", **wide, **late)
        self.frame = ipywidgets.HTML()
        self.controls = [self.of_class, self.number, self.attack, self.steps, self.eps]
        self.view: View = self._look()
        self.still = self._draw()
        for control in self.controls:
            control.observe(self._answer, "value")
        box = ipywidgets.HBox(self.controls, layout={"flex_flow": "row wrap"})
        super().__init__([box, self.frame, ipywidgets.HTML(f"<p>{NOTE}</p>")])

    def __repr__(self) -> str:
        return f"Explorer of {len(self.split):,} images, {radius(self.threat)}: live where there is a kernel"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        still = {"text/plain": repr(self), "image/png": b64encode(png(self.still)).decode()}
        return {**super()._repr_mimebundle_(**kwargs), **still}

    def _places(self) -> list[int]:
        """Where the images to choose from are in the split."""
        if self.of_class.value < 0:
            return list(range(len(self.split)))
        return [int(place) for place in (self.split.y == self.of_class.value).nonzero().flatten()]

    def _answer(self, change: Any) -> None:
        """A control was moved: show what it means, or the error that it led to."""
        try:
            if change["owner"] is self.of_class:
                self.number.unobserve(self._answer, "value")  # once is enough
                self.number.value, self.number.max = 0, len(self._places()) - 1
                self.number.observe(self._answer, "value")
            self.steps.disabled = "steps" not in inspect.signature(ATTACKS[self.attack.value]).parameters
            self.view = self._look()
            self.still = self._draw()
        except Exception:  # the reader's own model may raise: that has to be seen, and the next move may go well
            self.frame.value = complaint()

    def _look(self) -> View:
        """Attack the image that the controls name."""
        where = self._places()[self.number.value]
        device, dtype = place(self.model)
        part = self.split[where].to(device)
        x, y, eps = part.images(dtype=dtype), part.y, self.eps.value
        threat = replace(self.threat, eps=eps) if eps > 0 else None
        x_adv = x
        if threat is not None:
            check_attack(self.model, x, y, threat)
            x_adv = choose(self.attack.value, self.steps.value)(self.model, x, y, threat, Rng(0, "explorer"))
        with evaluating(self.model):
            logits = torch.cat([self.model(each).to(dtype) for each in (x, x_adv)])
        found = (each.cpu() for each in (x, x_adv, logits))
        return View(where, int(y), threat, self.attack.value, self.steps.value, *found)

    def _draw(self) -> Image.Image:
        """Put what is on view into the frame, and return it as an image."""
        from .plot.canvas import DARK, Picture  # matplotlib is not needed for the other widgets
        from .plot.images import magnification, magnified, read, show

        view, change = self.view, self.view.x_adv - self.view.x
        truth, factor = self.classes[view.label], magnification(change)
        figure = Picture(figsize=(9, 2.9), layout="constrained")
        *images, right = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.3))
        for ax, image in zip(images, (view.x, magnified(change, factor), view.x_adv), strict=True):
            show(ax, image[0])
        attack = "no attack" if view.threat is None else f"{written(view.attack)}, {radius(view.threat)}"
        for ax, title in zip(images, (f"image {view.place}: {truth}", f"change × {factor:g}", attack), strict=True):
            ax.set_title(title, fontsize=10)
        before, after = view.probabilities
        read(images[0], before, view.label, self.classes)
        read(images[2], after, view.label, self.classes)
        top = torch.maximum(before, after).argsort(descending=True, stable=True)[:SHOWN].sort().values.tolist()
        for shift, share, look in ((-0.2, before, {"color": "#BBBBBB"}), (0.2, after, {"color": DARK, "hatch": "///"})):
            places = [row + shift for row in range(len(top))]
            label = "before" if shift < 0 else "after"
            right.barh(places, share[top].tolist(), height=0.4, edgecolor="white", label=label, **look)
        right.set_yticks(range(len(top)), [self.classes[i] for i in top], fontsize=8)
        right.invert_yaxis()
        right.set(xlim=(0, 1), xticks=(0, 0.5, 1), xticklabels=("0%", "50%", "100%"), title="probability")
        right.legend(fontsize=8)
        right.spines[["top", "right"]].set_visible(False)
        picture = cast(Image.Image, render(figure, "figure"))
        lines = [
            (self.classes[i], *(f"{values[i]:.2f}" for values in view.logits), f"{before[i]:.1%}", f"{after[i]:.1%}")
            for i in top
        ]
        head = ["class", "logit before", "after", "probability before", "after"]
        answers = [self.classes[int(share.argmax())] for share in (before, after)]
        words = f"Image {view.place}, {truth}. The model reads {answers[0]} before, {answers[1]} after {attack}."
        details = f"<details><summary>Logits and probabilities</summary>{table(head, lines)}</details>"
        self.frame.value = f"{tag(picture, words)}<p>{escape(words)}</p>{details}"
        return picture


def explorer(model: nn.Module, data: Any, threat: Threat | None = None) -> Explorer:
    """One image under attack, live: choose image, radius, attack and steps, and see image, change, result and answers.

    It needs a kernel: whatever is moved, the attack is made anew on the model as it is then. An error that it leads to
    is shown in the figure's place. A page without a kernel, such as a saved notebook or a book, shows a still of the
    state in which it was saved; its controls change nothing there, and a line below says so. For figures that answer
    without a kernel see `slider`.

    Args:
        model: returns logits (B, K); judged in evaluation mode on the device it is on, and left as it was.
        data: the images: a `Dataset` (its test split), a `Split`, a pair (x, y), a torch data set or a `DataLoader`;
            one channel or three. `data.classes` names the classes, if there is such.
        threat: the norm, the pixel box and the radius to begin with; up to twice of it can be chosen. If not given, ℓ∞
            with ε = 0.3 for images of one channel, as is usual for MNIST, and 8/255 for others.

    Raises:
        ArgumentError, DataError, ModelError: see `advtrain.errors`.
        ImportError: matplotlib is not installed.
    """
    check_kind("model", model, nn.Module, "the order is explorer(model, data); of a run, take run.model")
    split = as_split(data)
    channels = split.shape[1]
    if channels not in (1, 3):
        bad("channels of data", channels, "1 or 3", "other images cannot be shown")
    threat = threat or Threat("linf", 0.3 if channels == 1 else 8 / 255)
    check_threat(threat)
    device, dtype = place(model)
    count = check_model(model, split[:2].to(device).images(dtype=dtype), int(split.y.max()) + 1)
    names = [str(name) for name in getattr(data, "classes", None) or ()]
    return Explorer(model, split, threat, names + [str(i) for i in range(len(names), count)])


def radii(threat: Threat) -> list[float]:
    """The radii to choose from: 0 to twice the threat's, by 1/255 where it is a few of these, else in tenths."""
    levels = round(threat.eps * 255)
    steps = levels if 3 < levels <= 16 and abs(threat.eps * 255 - levels) < 1e-9 else 10
    widest = threat.high - threat.low if threat.norm == "linf" else float("inf")
    values = [threat.eps * i / steps if i != steps else threat.eps for i in range(2 * steps + 1)]
    return [value for value in values if value <= widest]
