"""The evaluation itself: which images meet which attack, batch by batch."""

from __future__ import annotations

from collections.abc import Callable
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
        order: (N,) int64, the positions of the images in the order in which they are judged: an image's place in this
            order names its random draws.
        threat: the ball and the box.
        rng: the stream of the evaluation.
        rows: how many rows a batch may have.
        state: what has been done.
        examples: where adversarial examples go.
        bar: the progress bar, in passes of one image.
    """

    def __init__(
        self, plan: tuple[Stage, ...], passes: Passes, split: Split, order: Tensor, threat: Threat, rng: Rng, rows: int,
        state: State, examples: Examples, bar: Any,
    ):  # fmt: skip
        self.plan, self.passes, self.split, self.threat = plan, passes, split, threat
        self.order, self.places = order, order.argsort()
        self.rng, self.rows, self.state, self.examples, self.bar = rng, rows, state, examples, bar
        self.device, self.dtype = place(passes.model)
        self._before = dict(state.passes)
        passes.tick = bar.update

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels by their numbers, on the model's device; the images may be changed."""
        part = self.split[index].to(self.device)
        return part.images(dtype=self.dtype).contiguous(), part.y  # a new tensor, for it was picked by number

    def each(self, left: Tensor, work: Callable[[Tensor, Tensor], None]) -> None:
        """Do some work on images batch by batch, with half the rows from where the memory runs out.

        Args:
            left: the numbers of the images.
            work: called with the numbers of a batch, and with those that come after it.
        """
        while len(left):
            index, rest = left[: self.rows], left[self.rows :]
            try:
                work(index, rest)
                left = rest
            except RuntimeError as error:
                if not out_of_memory(error) or self.rows == 1:
                    raise
                self._halve()

    def clean(self) -> None:
        """Which images are misclassified before any attack."""

        def look(index: Tensor, rest: Tensor) -> None:
            x, y = self.batch(index)
            self._note(index, 0, self.passes.wrong(x, y), x, x)

        self.each(self._left(0), look)

    def stage(self, number: int) -> None:
        """Let the images that stand meet one attack, those that have not met it yet."""
        stage, rng = self.plan[number], self.rng.child(self.plan[number].name)
        blind = asked = 0

        def fight(index: Tensor, rest: Tensor) -> None:
            nonlocal blind, asked
            self._show(number, len(index) + len(rest))
            x, y = self.batch(index)
            if stage.kind == "apgd" and stage.loss != "ce":
                blind, asked = blind + self._blind(stage, x, y), asked + len(x)
            self.passes.eot = stage.eot
            try:
                place = self.places[index]
                broken, x_adv = attack(stage, self.passes, x, y, self.threat, index=place, rng=rng, rows=self.rows)
            finally:
                self.passes.eot = 1
            self._note(index, number + 1, broken, x, x_adv)

        self.each(self._left(number + 1), fight)
        zero_gradients(blind, asked, self.state.warnings)
        if stage.kind == "square" and number:
            broken_by = self.state.broken_by
            before, after = (int(((broken_by == -1) | (broken_by > k)).sum()) for k in (number, number + 1))
            square_gain(before / len(self.split), after / len(self.split), self.state.warnings)

    def save(self) -> None:
        """Write down what has been done, the examples before the state that counts on them."""
        for name in self.state.passes:
            self.state.passes[name] = self._before[name] + getattr(self.passes, name)
        self.examples.flush()
        self.state.save()

    def _left(self, row: int) -> Tensor:
        """The positions of the images that stand and have not been through this row of the state, in `order`."""
        return self.order[((self.state.broken_by == -1) & ~self.state.met[row])[self.order]]

    def _note(self, index: Tensor, row: int, broken: Tensor, x: Tensor, x_adv: Tensor) -> None:
        """What a batch came to. A member of the threat is all that counts as an adversarial example.

        The example is written first and the verdict last, so that whatever happens between loses work and not truth.
        """
        if row:
            inside = bool(self.threat.contains(x_adv[broken], x[broken]).all())
            assert inside, f"{self.plan[row - 1].name}: outside"  # nosec B101 # of our own attacks, which project
            self.examples[index[broken.cpu()]] = x_adv[broken]
        self.state.broken_by[index[broken.cpu()]] = row
        self.state.met[row, index] = True
        if self.state.due:
            self.save()

    def _blind(self, stage: Stage, x: Tensor, y: Tensor) -> int:
        """The number of images whose gradient says nothing: zero, or not finite."""
        target = self.passes.logits(x).scatter(1, y[:, None], -torch.inf).argmax(1)
        grad, _, _ = self.passes.gradient(x, lambda z: ascent(stage)(z, y, target))
        grad = grad.flatten(1)
        return int(((grad == 0).all(1) | ~grad.isfinite().all(1)).sum())

    def _halve(self) -> None:
        """Half the rows, after the memory ran out."""
        self.rows = max(1, self.rows // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        tell(f"memory ran out: going on with {self.rows} rows at once", self.state.warnings)

    def _show(self, number: int, here: int) -> None:
        """Correct the bar's total: an image that is broken needs no more passes, so the time left shrinks."""
        stands = int((self.state.broken_by == -1).sum())
        later = stands * sum(stage.passes for stage in self.plan[number + 1 :])
        self.bar.total = self.bar.n + here * self.plan[number].passes + later
        self.bar.set_description(f"autoattack {self.plan[number].name}, {stands / len(self.split):.1%} stand")


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that the memory of a GPU, or that of the computer, ran out."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
