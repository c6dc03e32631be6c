"""The second player of a two-player method: a network of its own, trained against the model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from .defense import Defense
from .errors import bad
from .finite import Copies, all_finite, begin_at_rest
from .parallel import average_buffers, average_gradients

Network = TypeVar("Network", bound=nn.Module)


class Player(Generic[Network]):
    """A network that ascends what the model descends, by SGD with momentum.

    Args:
        network: whose parameters it owns; trained in place.
        lr: learning rate, constant.
        momentum: in [0, 1).
    """

    def __init__(self, network: Network, *, lr: float, momentum: float):
        self.network = network
        self.optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=momentum)
        self.good: Tensor | None = None
        self._rest()

    def ascend(self, value: Tensor, n: int) -> None:
        """One step uphill. Nothing but the network's own parameters is given a gradient.

        Several processes take the mean of their gradients, and of the network's running statistics, so that all of
        them keep the same player. A step whose gradient is not finite is not made, and `good` then is False.

        Args:
            value: a scalar that depends on the network; its graph is freed.
            n: how many images it was computed of.
        """
        parameters = list(self.network.parameters())
        gradients = average_gradients(torch.autograd.grad(-value, parameters), n)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.good = all_finite(gradients)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        average_buffers(self.network)
        self._copies.put_back_unless(self.good)
        self._copies.take()

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, buffers and momentum, as copies by name."""
        state = {f"network.{name}": value.detach().clone() for name, value in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            if (velocity := self.optimizer.state.get(parameter, {}).get("momentum_buffer")) is not None:
                state[f"momentum.{name}"] = velocity.clone()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            ArgumentError: it comes from another network.
        """
        parts = {
            part: {key[len(part) + 1 :]: value for key, value in state.items() if key.startswith(f"{part}.")}
            for part in ("network", "momentum")
        }
        try:
            self.network.load_state_dict(parts["network"])
        except RuntimeError as error:
            bad("state", sorted(state)[:3], f"the state of this {type(self.network).__name__}", str(error))
        self._rest()
        for name, parameter in self.network.named_parameters():
            if name in parts["momentum"]:
                velocity = torch.empty_like(parameter, requires_grad=False).copy_(parts["momentum"][name])
                self.optimizer.state[parameter]["momentum_buffer"] = velocity
        self._copies = Copies(self._tensors())

    def _rest(self) -> None:
        """No momentum yet."""
        self.optimizer.state.clear()
        begin_at_rest(self.optimizer)
        self._copies = Copies(self._tensors())  # of what the last good step left

    def _tensors(self) -> Iterator[Tensor]:
        yield from itertools.chain(self.network.parameters(), self.network.buffers())
        for state in self.optimizer.state.values():
            yield from state.values()


class TwoPlayers(Defense, Generic[Network]):
    """Base of the defenses in which a second network plays against the model: what they remember is that player.

    `setup` makes the player, and `adversary_step` moves it. The options are those of every `Defense`.

    Attributes:
        player: the second network and its optimizer; None before `setup`.
    """

    player: Player[Network] | None = None  # no field: this class is no dataclass

    def ready(self) -> Player[Network]:
        """The player.

        Raises:
            ArgumentError: `setup` has not been called.
        """
        if self.player is None:
            bad("player", None, "there", f"call {self.name}.setup(model, shape, device) first, as fit does")
        return self.player

    def finite(self) -> Tensor | None:
        return None if self.player is None else self.player.good

    def state_dict(self) -> dict[str, Any]:
        return {} if self.player is None else self.player.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.ready().load_state_dict(state)


__all__ = ["Player", "TwoPlayers"]
