"""Square Attack: random search with squares, by the answers of the model alone (Andriushchenko et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import at_least, bad, is_real
from ..modes import attacking
from ..rng import Rng, as_rng
from ..threat import Threat
from .gradient import check_attack
from .losses import cw_margin
from .pursuit import Passes, Pursuit, State
from .squares import Draw, draw_squares, pattern_of_square


def square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    queries: int = 5000,
    p_init: float = 0.8,
    rng: Rng | int | None = None,
    check: bool = True,
) -> Tensor:
    """Square Attack: change a random square, and keep the change if the margin falls.

    Andriushchenko, Croce, Flammarion and Hein (2020), arXiv 1912.00049, with the margin z_y - max_{i≠y} z_i as loss.
    It needs no gradient, so it is not misled by masked ones. Under ℓ∞ (Algorithm 2) it begins with vertical stripes,
    and a candidate moves a square to x + ε or x - ε in each channel. Under ℓ2 (Algorithm 3) it begins with tiles, and a
    candidate moves the change from one square to another. Squares shrink by the paper's schedule for 10,000 queries,
    also when fewer are made, as AutoAttack does with its 5,000.

    Where it differs from the authors' code: a square may lie in the last row and column of places, as in the paper,
    where the code stops short of them. An image that is misclassified leaves the batch. A candidate whose answer
    follows from earlier ones is not asked again on a CPU (on a GPU finding out would take longer): when it is the best
    image itself, or has been refused since the best image last changed. The signs of a square are the same for all
    images under ℓ2, too. Tiles reach over the whole image, whatever its sides.

    Args:
        model: returns logits (B, K); only its answers are used.
        x: (B, C, H, W) float32 or float64 in the threat's pixel box.
        y: (B,) int64, the true labels.
        threat: the ball and the box that the attack may use.
        queries: candidates for each image, after the one it begins with.
        p_init: share of the pixels that the first squares cover, in (0, 1].
        rng: names the squares and the starts: an `Rng` or a seed. Those of an image depend on its place in x alone.
        check: False skips the checks of the inputs, for callers that have made them.

    Returns:
        x_adv, like x, inside the threat; misclassified where the attack succeeded, the candidate of smallest margin
        elsewhere; x itself where it was misclassified already, which costs one query.

    Raises:
        ArgumentError: options out of range.
        DataError, ModelError: inputs that would make the result meaningless.
    """
    queries = at_least("queries", queries, 1)
    if not (is_real(p_init) and 0 < p_init <= 1):
        bad("p_init", p_init, "in (0, 1]", "a share of the pixels; 0.8 in AutoAttack")
    if check:
        check_attack(model, x, y, threat)
    x, y, passes = x.detach(), y.long(), Passes(model)
    x_adv = x.clone()
    with attacking(model):
        left = (~passes.wrong(x, y)).nonzero().squeeze(1)
        if len(left):
            found = run_square(
                passes, x[left], y[left], threat, index=left, rng=as_rng(rng), queries=queries, p_init=p_init
            )
            x_adv[left] = found.x_adv
    return x_adv


def run_square(
    passes: Passes, x: Tensor, y: Tensor, threat: Threat, *, index: Tensor, rng: Rng, queries: int = 5000,
    p_init: float = 0.8,
) -> Pursuit:  # fmt: skip
    """One run of the Square Attack, as rows that leave the batch when they are broken.

    Args:
        passes: through the model.
        x, y: (R, C, H, W) and (R,): images, at least one, and labels.
        threat: the ball and the box.
        index: (R,) int64: the number of each image in the whole data set. Its start is drawn from `rng`'s child
            "start" of that number; the squares are the same for all images: what becomes of an image does not depend
            on its batch.
        rng: the stream.
        queries: candidates for each image, after the start.
        p_init: share of the pixels that the first squares cover.

    Returns:
        A `Pursuit`; where a row is not broken its `x_adv` is the candidate of smallest margin.
    """
    pursuit = Pursuit(passes, x, y)
    streams = [rng.child("start", number) for number in index.tolist()]
    state = (_Linf if threat.norm == "linf" else _L2).begin(passes, x, y, threat, streams)

    def thin(hit: Tensor) -> bool:
        pursuit.offer(threat.project(state.best, state.x), hit)
        state.bar = torch.maximum(state.bar, state.value)  # what is not confirmed is not offered again
        return pursuit.thin(state, now=True)

    for draw in draw_squares(rng, x, threat.norm, queries, p_init):
        if draw.query % pursuit.every == 0:
            hit = state.value > state.bar
            if bool(hit.any()) and not thin(hit):
                return pursuit
        state.ask(passes, draw)
    if thin(state.value > state.bar):
        pursuit.x_adv[pursuit.rows] = threat.project(state.best, state.x)
    return pursuit


@dataclass
class _Search(State):
    """The tensors of one run, a row for each row of the batch. `value` is minus the margin: the search raises it."""

    threat: Threat
    thrifty: bool  # the host may look at results, to save work: on a GPU it would have to wait for them
    x: Tensor
    y: Tensor
    best: Tensor
    value: Tensor
    bar: Tensor  # a larger value is one of a misclassified image that has not been offered yet

    @classmethod
    def begin(cls, passes: Passes, x: Tensor, y: Tensor, threat: Threat, streams: list[Rng]) -> _Search:
        best, *own = cls.start(x, threat, streams)
        value = cw_margin(passes.logits(best), y)
        bar = torch.full_like(value, -torch.finfo(value.dtype).tiny)  # a tie counts as misclassified, too
        return cls(threat, x.device.type == "cpu", x, y, best, value, bar, *own)

    @staticmethod
    def start(x: Tensor, threat: Threat, streams: list[Rng]) -> tuple[Tensor, ...]:
        """The first candidates, and the further tensors that the search keeps."""
        raise NotImplementedError

    def ask(self, passes: Passes, draw: Draw) -> None:
        """Query the model with one more square."""
        raise NotImplementedError

    def judge(self, passes: Passes, rows: Tensor | None, candidates: Tensor) -> Tensor | None:
        """Query the candidates of these rows (None: of all), keep what is better; the rows that may have changed."""
        y, value = (self.y, self.value) if rows is None else (self.y[rows], self.value[rows])
        new = cw_margin(passes.logits(candidates), y)
        better = new > value
        if not self.thrifty:
            self.best = torch.where(better.view(-1, 1, 1, 1), candidates, self.best)
            self.value = torch.where(better, new, value)
            return None
        took = better.nonzero().squeeze(1)
        rows = took if rows is None else rows[took]
        if len(took):
            self.best.index_copy_(0, rows, candidates.index_select(0, took))
            self.value.index_copy_(0, rows, new[took])
        return rows


@dataclass
class _Linf(_Search):
    lower: Tensor
    upper: Tensor
    since: Tensor  # the query at which the best image last changed

    @staticmethod
    def start(x: Tensor, threat: Threat, streams: list[Rng]) -> tuple[Tensor, ...]:
        """Vertical stripes, and the bounds: every pixel of every candidate lies on one of them."""
        project = threat.projector(x)
        lower, upper = project(torch.full_like(x, -1.0)), project(torch.full_like(x, 2.0))
        shape = (x.shape[1], 1, x.shape[3])
        up = torch.stack([stream.integers(0, 2, shape) for stream in streams]).bool()
        since = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return torch.where(up.to(x.device), upper, lower), lower, upper, since

    def ask(self, passes: Passes, draw: Draw) -> None:
        """One query for each row that does not know its answer."""
        rows = None
        if self.thrifty and draw.before >= 0:
            unknown = self.since > draw.before
            if not unknown.any():
                return
        patch = torch.where(draw.up, self.upper[draw.window], self.lower[draw.window])
        if self.thrifty:
            differs = (patch != self.best[draw.window]).flatten(1).any(1)
            rows = (differs & unknown if draw.before >= 0 else differs).nonzero().squeeze(1)
            if len(rows) == 0:
                return
            patch = patch.index_select(0, rows)
        candidates = self.best.clone() if rows is None else self.best.index_select(0, rows)
        candidates[draw.window] = patch
        rows = self.judge(passes, rows, candidates)
        if rows is not None:
            self.since[rows] = draw.query


@dataclass
class _L2(_Search):
    slack: Tensor  # (R, 1, 1, 1): what each channel of the best change may add to its squared length
    patterns: dict[int, Tensor] = field(default_factory=dict)

    @staticmethod
    def start(x: Tensor, threat: Threat, streams: list[Rng]) -> tuple[Tensor, ...]:
        """Tiles, each with the pattern of a square, that cover the image but for what remains of its sides."""
        channels, height, width = x.shape[1:]
        side = max(min(height, width) // 5, 1)
        tiles = (height // side, width // side)
        bits = torch.stack([stream.integers(0, 2, (channels + 1, *tiles)) for stream in streams])
        bits = bits.bool()[..., None, None].to(x.device)  # (R, C + 1, rows, columns, 1, 1)
        pattern = pattern_of_square(side, x)
        change = torch.where(bits[:, -1:], pattern.T, pattern) * torch.where(bits[:, :-1], 1, -1)
        change = change.transpose(3, 4).reshape(len(x), channels, tiles[0] * side, tiles[1] * side)
        over, down = width % side, height % side
        change = F.pad(change, (over // 2, over - over // 2, down // 2, down - down // 2))
        best = threat.into_box(x + change * (_radius(threat) / _energy(change, (1, 2, 3)).sqrt()))
        return best, _slack(best - x, threat)

    def ask(self, passes: Passes, draw: Draw) -> None:
        """One query for each row.

        Two squares give up their change, and one gets it back as a new pattern mixed with its old one, longer by what
        the pixel box had cut off. So the change has length ε again, until the box cuts it.
        """
        here, there, candidates = self.x[draw.window], self.x[draw.other], self.best.clone()
        side = here.shape[-1]
        if side not in self.patterns:
            self.patterns[side] = pattern_of_square(side, here)
        pattern = self.patterns[side].T if draw.turned else self.patterns[side]
        old = self.best[draw.window] - here
        freed = _energy(old, (2, 3))
        patch = torch.where(draw.up, pattern, -pattern) + old / (freed.sqrt() + 1e-12)
        candidates[draw.window] = here
        freed = freed + _energy(candidates[draw.other] - there, (2, 3))  # what the squares share counts once
        candidates[draw.other] = there
        patch = patch * ((freed + self.slack) / _energy(patch, (2, 3)).clamp(min=1e-24)).sqrt()
        candidates[draw.window] = self.threat.into_box(here + patch)
        rows = self.judge(passes, None, candidates)
        if rows is None:
            self.slack = _slack(self.best - self.x, self.threat)
        elif len(rows):
            self.slack[rows] = _slack(self.best[rows] - self.x[rows], self.threat)


def _energy(change: Tensor, dims: tuple[int, ...]) -> Tensor:
    return change.square().sum(dims, keepdim=True)


def _slack(change: Tensor, threat: Threat) -> Tensor:
    return (_radius(threat) ** 2 - _energy(change, (1, 2, 3))).clamp(min=0) / change.shape[1]


def _radius(threat: Threat) -> float:
    """A hair inside the sphere, so that rounding leaves nothing for the last projection to do."""
    return threat.eps * (1 - 1e-6)
