"""The evaluation itself: which images meet which attack, batch by batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..attacks.pursuit import Passes
from ..data import Split
from ..modes import place
from ..rng import Rng
from ..threat import Threat
from .doubts import square_gain, tell, zero_gradients
from .examples import Examples
from .plan import Stage
from .stage import ascent, attack
from .state import State


class Judge:
    """One evaluation under way.

    Args:
        plan: the attacks.
        passes: through the model.
        split: the images and labels.
        threat: the ball and the box.
        rng: the stream of the evaluation.
        rows: how many rows a batch may have.
        state: what has been done.
        examples: where adversarial examples go.
        bar: the progress bar, in passes of one image.
    """

    def __init__(
        self, plan: tuple[Stage, ...], passes: Passes, split: Split, threat: Threat, rng: Rng, rows: int, state: State,
        examples: Examples, bar: Any,
    ):  # fmt: skip
        self.plan, self.passes, self.split, self.threat = plan, passes, split, threat
        self.rng, self.rows, self.state, self.examples, self.bar = rng, rows, state, examples, bar
        self.device, self.dtype = place(passes.model)
        self._before = dict(state.passes)
        passes.tick = bar.update

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels by their numbers, on the model's device."""
        part = self.split[index].to(self.device)
        return part.images(dtype=self.dtype), part.y

    def clean(self) -> None:
        """Which images are misclassified before any attack."""
        for index in self._left(0).split(self.rows):
            x, y = self.batch(index)
            self._note(index, 0, self.passes.wrong(x, y), x)

    def stage(self, number: int) -> None:
        """Let the images that stand meet one attack, those that have not met it yet."""
        stage = self.plan[number]
        rng = self.rng.child(stage.name)
        before = self._standing()
        left = self._left(number + 1)
        if stage.kind == "apgd" and stage.loss != "ce" and len(left):
            self._doubt_gradients(stage, left[: self.rows])
        self.passes.eot = stage.eot
        while len(left):
            index, left = left[: self.rows], left[self.rows :]
            self._show(number, index, left)
            x, y = self.batch(index)
            try:
                broken, x_adv = attack(stage, self.passes, x, y, self.threat, index=index, rng=rng, rows=self.rows)
            except torch.OutOfMemoryError:
                if self.rows == 1:
                    raise
                self._halve()
                left = torch.cat([index, left])
                continue
            self._note(index, number + 1, broken, x_adv)
        self.passes.eot = 1
        if stage.kind == "square" and number:
            square_gain(before / len(self.split), self._standing() / len(self.split), self.state.warnings)

    def save(self, *, now: bool = False) -> None:
        """Write down what has been done, the examples before the state that counts on them."""
        for name in self.state.passes:
            self.state.passes[name] = self._before[name] + getattr(self.passes, name)
        if self.state.path is not None:
            self.examples.flush()
        self.state.save(now=now)

    def _left(self, row: int) -> Tensor:
        """The numbers of the images that stand and have not been through this row of the state."""
        return ((self.state.broken_by == -1) & ~self.state.met[row]).nonzero().squeeze(1)

    def _standing(self) -> int:
        return int((self.state.broken_by == -1).sum())

    def _note(self, index: Tensor, row: int, broken: Tensor, x_adv: Tensor) -> None:
        """What a batch came to. A member of the threat is all that counts as an adversarial example."""
        broken = broken.cpu()
        if row:
            inside = self.threat.contains(x_adv, self.batch(index)[0])
            assert bool(inside[broken].all()), f"{self.plan[row - 1].name} left the threat"
        self.state.broken_by[index[broken]] = row
        self.state.met[row, index] = True
        if row:
            self.examples[index[broken]] = x_adv[broken.to(x_adv.device)]
        self.save()

    def _doubt_gradients(self, stage: Stage, index: Tensor) -> None:
        """Count the images whose gradient says nothing, where a margin is attacked for the first time."""
        x, y = self.batch(index)
        target = self.passes.logits(x).scatter(1, y[:, None], -torch.inf).argmax(1)
        grad, _, _ = self.passes.gradient(x, lambda z: ascent(stage)(z, y, target))
        grad = grad.flatten(1)
        blind = (grad == 0).all(1) | ~grad.isfinite().all(1)
        zero_gradients(int(blind.sum()), len(x), self.state.warnings)

    def _halve(self) -> None:
        """Half the rows, after the memory ran out."""
        self.rows = max(1, self.rows // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        tell(f"memory ran out: going on with {self.rows} rows at once", self.state.warnings)

    def _show(self, number: int, index: Tensor, left: Tensor) -> None:
        """Correct the bar's total: an image that is broken needs no more passes, so the time left shrinks."""
        stands = self._standing()
        todo = (len(index) + len(left)) * self.plan[number].passes
        todo += stands * sum(stage.passes for stage in self.plan[number + 1 :])
        self.bar.total = self.bar.n + todo
        self.bar.set_description(f"autoattack {self.plan[number].name}, {stands / len(self.split):.1%} stand")
