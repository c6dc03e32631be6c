"""`diagnose`: hold the model, ask it, attack it, and say what was found."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..attacks.gradient import check_box
from ..checks import check_model, check_threat
from ..data import Dataset, Split, as_split, order_of
from ..dataset import check_seed
from ..errors import ModelError, at_least, check_flag, check_kind
from ..modes import check_recording, place
from ..progress import progress_bar
from ..recipe import check_network
from ..report import Row
from ..rng import Rng
from ..threat import Threat
from .battery import SHARES, TITLES, Battery, fight, ticks
from .conduct import observe
from .diagnosis import Curve, Diagnosis
from .gradients import inspect
from .subject import Subject, examined, moody_layers
from .surrogate import STEPS, train_strangers
from .verdict import judge, words

MOST = 2048  # images that surrogates learn from at most


def diagnose(
    model: nn.Module,
    data: Any,
    threat: Threat,
    *,
    images: int = 256,
    seed: int = 0,
    batch_size: int = 512,
    surrogate: nn.Module | None = None,
    progress: bool | None = None,
) -> Diagnosis:
    """Does this robustness hold? Look for gradient masking in every way known, and name the cause.

    A model whose gradient is masked makes gradient attacks fail and looks robust. Some twenty checks look for it, most
    of them from the list of Athalye, Carlini and Wagner (2018), arXiv 1802.00420, and of Carlini et al. (2019), arXiv
    1902.06705; Pintor et al. (2022), arXiv 2106.09947, put such checks to numbers before. A model is flagged for facts
    about it (it answers at random, returns probabilities, has no gradient, ...) or for evidence: an attack that should
    be weaker breaks images that the stronger ones leave, by more than chance. Symptoms, such as a gradient that turns
    within the ball, are shown and flag nobody, for an honest loss may be curved.

    Takes some seconds on the digits, on one thread.

    >>> import advtrain as at
    >>> data, honest = at.load_data("digits"), at.load_results("digits").run("pgd").model
    >>> model = nn.Sequential(honest, nn.Softmax(1))  # a softmax too many
    >>> diagnose(model, data, at.Threat("linf", eps=0.3), images=16, surrogate=honest).causes
    ('probabilities instead of logits',)

    Args:
        model: returns logits (B, K); judged in evaluation mode on the device it is on, and left as it was. Models that
            `evaluate` refuses for probabilities or for NaN in the gradient are diagnosed.
        data: a `Dataset`, whose test split is judged and whose training split surrogates learn from; a `Split`; or a
            pair (x, y) with x (N, C, H, W) uint8 in 0..255 or float in [0, 1] and y (N,) integers.
        threat: what the attacker may do.
        images: how many images to judge, drawn at random; all of them if there are fewer. More images find smaller
            differences: with 256, an attack has to break about 17 that it should not.
        seed: names the images, random starts, surrogates and noise. The same seed gives the same diagnosis.
        batch_size: images per batch.
        surrogate: a network of your own for the attacks by transfer, on the model's device; by default two small ones
            are trained on the model's answers. Single-step masking shows less clearly against a stranger of another
            kind, such as a network that was itself trained against an attack: leave the default unless time is short.
        progress: show a bar; by default only in a terminal or a notebook.

    Returns:
        A `Diagnosis`. Print it.

    Raises:
        ArgumentError, DataError, ModelError: see `advtrain.errors`.
    """
    check_network(model, "diagnose(model, data, threat)")
    check_recording("diagnose")
    if surrogate is not None:
        check_kind("surrogate", surrogate, nn.Module, "a network that answers the same question, or None")
    images, batch_size = at_least("images", images, 1), at_least("batch_size", batch_size, 1)
    seed = check_seed(seed)
    check_flag("progress", progress, none="a bar where somebody watches")
    check_threat(threat)
    split = as_split(data)
    check_box(split, threat)
    rng, (device, dtype) = Rng(seed, "diagnose"), place(model)
    order = order_of(split)
    chosen = rng.child("images").permutation(len(split))[:images].sort().values
    part = split[order[chosen]].to(device)
    x, y = part.images(dtype=dtype), part.y
    known = isinstance(data, Dataset) and isinstance(data.train, Split)
    more = (data.train[:MOST] if known else split[order[:MOST]]).to(device)
    lessons = more.images(dtype=dtype), more.y
    classes = max(2, int(max(split.y.max(), more.y.max())) + 1)

    if any(map(nn.parameter.is_lazy, model.parameters())):
        check_model(model, x[:2], classes, probabilities=True)  # gives them their shapes
    if surrogate is not None:
        try:
            check_model(surrogate, x[:2], classes, probabilities=True)
        except ModelError as error:
            raise ModelError(f"surrogate: {error}") from error
    moody = moody_layers(model)
    battery, batches = Battery(), -(-len(x) // batch_size)
    steps = 0 if surrogate is not None else 2 * STEPS
    total = steps + ticks(batches, 2 if surrogate is None else 1)
    with examined(model, seed), progress_bar(progress, total=total, unit="step", desc="diagnose") as bar:
        subject = Subject(model, x[:64], classes).eval()
        first = slice(0, batch_size)
        seen = observe(subject, x[first], y[first], lessons, moody, rng.child("conduct"), batch_size)
        right = subject.right(x[first], y[first])
        judged = (x[first][right], y[first][right]) if bool(right.any()) else (x[first], y[first])
        gradients = inspect(subject, *judged, threat, rng.child("gradients"))
        strangers = [surrogate] if surrogate is not None else train_strangers(
            subject, lessons[0], threat, rng.child("surrogates"), batch_size, bar.update
        )  # fmt: skip
        for number, start in enumerate(range(0, len(x), batch_size)):
            rows = slice(start, start + batch_size)
            battery.add(fight(subject, strangers, x[rows], y[rows], threat, rng.child("attacks", number), bar.update))
    findings, causes = judge(seen, gradients, battery)
    return Diagnosis(
        threat, len(x), findings, tuple(cause.name for cause in causes), words(causes, findings, battery),
        _rows(battery), _curve(battery, threat, len(x)), seed,
    )  # fmt: skip


def _rows(battery: Battery) -> tuple[Row, ...]:
    return tuple(
        Row(name, int(battery.right[name].sum()), len(battery.right[name]), title, battery.right[name])
        for name, title in TITLES.items()
    )


def _curve(battery: Battery, threat: Threat, n: int) -> Curve:
    shares = (0.0, *SHARES)
    columns = zip(*([value / n for value in battery.curve[share]] for share in shares), strict=True)
    return Curve(tuple(share * threat.eps for share in shares), *map(tuple, columns))
