"""What searches for adversarial examples share: passes through the model, and which images are still to be broken.

An image that is broken needs no further work. So every search drops it from its batch at once, where the authors' code
carries it along to the end. An image may stand in several rows, one for each target class: the first row that breaks it
ends the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..modes import check_recording

Loss = Callable[[Tensor], Tensor]
"""Logits (B, K) to one value per image (B,)."""


@dataclass
class Passes:
    """Passes of a frozen model in evaluation mode, and how many there were.

    Args:
        model: returns logits (B, K); the caller holds it in `attacking(model)`.
        eot: how many passes make one gradient: expectation over transformation (Athalye et al. 2018, arXiv 1802.00420),
            for models that answer at random.
        bf16: search in bfloat16 autocast; `wrong` judges in the model's own precision all the same.
        layout: memory format of the images in a pass; what comes back is contiguous.
        blind: let an output pass that autograd cannot follow back to the image; its gradient is zero.
        read: what turns the model's output into logits, if it returns something else.
        tick: called with the number of images of every pass, twice that for a gradient.
    """

    model: nn.Module
    eot: int = 1
    bf16: bool = False
    layout: torch.memory_format = torch.contiguous_format
    blind: bool = False
    read: Callable[[Tensor], Tensor] | None = None
    tick: Callable[[int], None] | None = None
    queries: int = field(default=0, init=False)
    gradients: int = field(default=0, init=False)

    def forward(self, x: Tensor, low: bool) -> Tensor:
        """Logits (B, K) in the type of x, not counted; in bfloat16 autocast if `low`."""
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=low):
            own = x.contiguous(memory_format=self.layout) if x.requires_grad else x.clone(memory_format=self.layout)
            logits = self.model(own)  # which may write into it where no gradient is taken
        logits = logits.to(x.dtype)
        return logits if self.read is None else self.read(logits)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (B, K) of a query; no graph is kept."""
        self.count("queries", len(x))
        with torch.no_grad():
            return self.forward(x, self.bf16)

    def gradient(self, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """Input gradient of the summed loss (B, C, H, W), logits (B, K), and one loss value per image (B,).

        The gradient is a mean over `eot` passes; logits and values are those of the last, as in the authors' code.

        Raises:
            ModelError: autograd cannot follow the output back to the image, and `blind` is not set.
        """
        total, logits, values = self._gradient(x, loss)
        for _ in range(self.eot - 1):
            part, logits, values = self._gradient(x, loss)
            total = total + part
        return total / self.eot if self.eot > 1 else total, logits, values

    def _gradient(self, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        self.count("gradients", len(x))
        part = None
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            logits = self.forward(leaf, self.bf16)
            values = loss(logits)
            if self.sees(values):
                (part,) = torch.autograd.grad(values.sum(), leaf, allow_unused=self.blind)
        return torch.zeros_like(x) if part is None else part.contiguous(), logits.detach(), values.detach()

    def sees(self, values: Tensor) -> bool:
        """Whether autograd can follow values back; an error if it cannot and the search is not meant to be `blind`."""
        if not (values.requires_grad or self.blind):
            check_recording("an attack")
            raise ModelError(
                "the model's output has no gradient with respect to its images, which this attack needs: something in "
                "it detaches or rounds, or runs under torch.inference_mode(); at.diagnose(model, ...) says more"
            )
        return values.requires_grad

    def wrong(self, x: Tensor, y: Tensor) -> Tensor:
        """Which images the model misclassifies in its own precision, whatever the search uses: (B,) bool."""
        self.count("queries", len(x))
        with torch.no_grad():
            return self.forward(x, False).argmax(1) != y

    def count(self, kind: str, images: int) -> None:
        """Note passes of so many images: `"queries"` or `"gradients"`."""
        setattr(self, kind, getattr(self, kind) + images)
        if self.tick is not None:
            self.tick(images * (1 if kind == "queries" else 2))


@dataclass
class State:
    """Base of a search's dataclass of tensors, each with a row for every row of the batch."""

    def select(self, rows: Tensor) -> None:
        """Keep only these rows: indices, or a mask."""
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Tensor):
                setattr(self, entry.name, value[rows])


class Pursuit:
    """Which rows of a batch are still to be broken, and what broke the others.

    Args:
        passes: through the model.
        x: (R, C, H, W), the images, one per row.
        y: (R,) int64 labels.
        image: (R,) int64: which image a row stands for; every row its own image if not given.
        every: after how many steps the broken rows are taken out. On a GPU each time costs a wait for the device.

    Attributes:
        x_adv: (R, C, H, W): for a broken row the image that broke it; x otherwise.
        broken: (R,) bool: rows with an adversarial example that a pass in the model's precision confirmed.
        rows: (A,) int64: the rows that are still in the batch.
    """

    def __init__(self, passes: Passes, x: Tensor, y: Tensor, image: Tensor | None = None, every: int | None = None):
        self.passes, self.labels = passes, y
        self.x_adv = x.clone()
        self.broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.rows = torch.arange(len(x), device=x.device)
        self.image = self.rows.clone() if image is None else image
        self.every = every or (1 if x.device.type == "cpu" else 10)
        self._held = x.clone()
        self._hit = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self._steps = 0

    def __len__(self) -> int:
        return len(self.rows)

    def offer(self, x_adv: Tensor, wrong: Tensor) -> None:
        """Hold the images that are misclassified, the first for each row. Waits for nothing.

        Args:
            x_adv: (A, C, H, W), inside the threat, one for each row that is left.
            wrong: (A,) bool, whether the search saw it misclassified.
        """
        fresh = wrong & ~self._hit
        self._held = torch.where(fresh.view(-1, 1, 1, 1), x_adv, self._held)
        self._hit = self._hit | wrong

    def thin(self, *states: State, now: bool = False) -> bool:
        """Take the broken images out of the batch, every few steps; False when none is left.

        What the search found is judged again in the model's precision; an image that does not hold goes on.

        Args:
            states: the search's own tensors, from which the same rows are taken.
            now: at once, whatever the number of the step.
        """
        self._steps += 1
        if not now and self._steps % self.every:
            return True
        hit = self._hit.nonzero().squeeze(1)
        if len(hit) == 0:
            return len(self.rows) > 0
        holds = self.passes.wrong(self._held[hit], self.labels[self.rows[hit]])
        self._hit = torch.zeros_like(self._hit)
        sure = hit[holds]
        if len(sure) == 0:
            return True
        self.x_adv[self.rows[sure]] = self._held[sure]
        self.broken[self.rows[sure]] = True
        keep = ~torch.isin(self.image[self.rows], self.image[self.rows[sure]])
        self.rows, self._held, self._hit = self.rows[keep], self._held[keep], self._hit[keep]
        for state in states:
            state.select(keep)
        return len(self.rows) > 0
