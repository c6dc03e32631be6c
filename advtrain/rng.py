"""Randomness with a name.

A draw is keyed, not taken from a global state: `Rng(seed, step).child("init")` gives the same numbers whatever was
drawn before it, on whatever path the program got there. That one rule makes runs repeatable, lets a resumed run
continue exactly, keeps draws nested (restart 3 is the same with 5 restarts or 50), and allows recorded draws to be
replayed.
"""

from __future__ import annotations

import contextlib
import hashlib
import numbers
import operator
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from .errors import at_least, bad, kind_of

GLOBAL_STATE = threading.RLock()
"""Held by whoever sets the state of torch's global generator, so that threads do not take each other's numbers."""


@contextlib.contextmanager
def global_draws(seed: int | None = None, devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """For what draws from torch's global CPU generator, such as new layers: seeded, and as it was afterwards.

    Other threads that need the generator wait meanwhile.

    Args:
        seed: nothing is seeded if not given; the draws are then of no account.
        devices: CUDA devices whose generators are put back as well.
    """
    with GLOBAL_STATE, torch.random.fork_rng(devices=list(devices)):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        yield


def global_state(device: torch.device) -> list[Tensor]:
    """The states of torch's global generators on the CPU and, if it has one, on `device`."""
    with GLOBAL_STATE:
        on_gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
        return [torch.default_generator.get_state(), *on_gpu]


def set_global_state(state: Sequence[Tensor], device: torch.device) -> None:
    """Take back what `global_state` gave.

    Args:
        state: of the same kind of device.
        device: where the model trains.
    """
    with GLOBAL_STATE:
        torch.default_generator.set_state(state[0])
        for part in state[1:]:
            torch.cuda.set_rng_state(part, device)


class Rng:
    """A stream of random numbers named by its key.

    Two objects of the same key give the same stream on the same kind of device. Successive draws from one object
    differ.

    >>> a, b = Rng(0, "init"), Rng(0).child("init")
    >>> x = torch.zeros(3)
    >>> bool((a.uniform(x, 0, 1) == b.uniform(x, 0, 1)).all())
    True

    Args:
        *key: integers and strings.
    """

    def __init__(self, *key: int | str):
        try:
            self.key = tuple(part if isinstance(part, str) else operator.index(part) for part in key)
        except TypeError:
            bad("key", key, "made of integers and strings", "such as at.Rng(0, 'init')")
        self._generators: dict[torch.device, torch.Generator] = {}

    def __repr__(self) -> str:
        return f"Rng{self.key!r}"

    def child(self, *key: int | str) -> Rng:
        """The stream named `key` below this one; independent of what was drawn here."""
        return Rng(*self.key, *key)

    @property
    def seed(self) -> int:
        """The key as one integer in [0, 2**63)."""
        digest = hashlib.blake2b(repr(self.key).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """The torch generator behind this stream on `device`."""
        device = torch.device(device)
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self._generators[device]

    def uniform(self, like: Tensor, low: float, high: float) -> Tensor:
        """Uniform draws in [low, high) with the shape, dtype and device of `like`."""
        return self._empty(like).uniform_(low, high, generator=self.generator(like.device))

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal draws with the shape, dtype and device of `like`."""
        return self._empty(like).normal_(generator=self.generator(like.device))

    @staticmethod
    def _empty(like: Tensor) -> Tensor:
        """Contiguous whatever the memory format of `like`, so that a draw does not depend on it."""
        return torch.empty(like.shape, dtype=like.dtype, device=like.device)

    def integers(self, low: int, high: int, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        """Integers in [low, high), int64."""
        return torch.randint(low, high, shape, generator=self.generator(device), device=device)

    def permutation(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        """A random order of `range(n)`, int64."""
        return torch.randperm(n, generator=self.generator(device), device=device)


def as_rng(rng: Rng | int | None) -> Rng:
    """What an attack takes as `rng`: a stream, a seed, or None for always the same draws.

    Raises:
        ArgumentError: something else, such as a torch.Generator.
    """
    if rng is None or isinstance(rng, Rng):
        return rng or Rng(0)
    if not isinstance(rng, numbers.Integral) or isinstance(rng, bool):
        bad("rng", kind_of(rng), "an Rng or a seed", "write rng=0, or at.Rng(0, 'name')")
    return Rng(at_least("rng", rng, 0))


class Recorded(Rng):
    """Draws that were written down earlier, served in place of new ones: the reference fixtures are replayed with it.

    `child(name)` selects the draw recorded under `name`; `uniform` and `normal` then return it as it is. Nothing else
    is drawn.

    Args:
        draws: a tensor for each name, or the one draw there is.
    """

    def __init__(self, draws: Mapping[str, Tensor] | Tensor):
        super().__init__("recorded")
        self.draws = draws

    def child(self, *key: int | str) -> Recorded:
        if isinstance(self.draws, Tensor):
            return self
        name = "/".join(map(str, key))
        if name not in self.draws:
            raise KeyError(f"no draw was recorded under {name!r}; recorded: {', '.join(self.draws)}")
        return Recorded(self.draws[name])

    def generator(self, device: torch.device | str = "cpu") -> NoReturn:
        raise TypeError("only uniform and normal draws are recorded")

    def uniform(self, like: Tensor, low: float, high: float) -> Tensor:
        return self.normal(like)

    def normal(self, like: Tensor) -> Tensor:
        assert isinstance(self.draws, Tensor), "name the draw first: rng.child(name)"  # nosec B101 # for mypy
        return self.draws.to(like)
