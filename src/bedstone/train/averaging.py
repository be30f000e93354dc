"""An exponential moving average of weights (EMA), which is evaluated and saved in their place.

At step n the average moves by 1 - decay(n) towards the weights. Two decays: one that stays after a
warm-up, as in the code of Ho et al., 2020, and a power of the step, whose memory is a share of all
that was learnt (Karras et al., 2024, "Analyzing and improving the training dynamics of diffusion
models", equation 3).
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bedstone import ranks
from bedstone.errors import BedstoneError

Decay = Callable[[int], float]  # of the step, from 1


def steady(decay: float) -> Decay:
    """`decay`, but less in the beginning: (1 + n) / (10 + n), so that what the network was before
    it learnt anything is soon forgotten."""
    if not 0 <= decay < 1:
        raise BedstoneError(f"average: {decay} was given; it is a share, from 0 to below 1.")
    return lambda step: min(decay, (1 + step) / (10 + step))


def power(spread: float) -> Decay:
    """(1 - 1 / n)^(g + 1), with a g that makes `spread` the average's deviation in time, as a
    share of the run so far: 0.05 to 0.15 are usual."""
    if not 0 < spread < 0.28:
        raise BedstoneError(f"average: {spread} was given; expected a spread, above 0, below 0.28.")
    exponent = _exponent(spread)
    return lambda step: (1 - 1 / step) ** (exponent + 1)


class Unaveraged:
    """No average: the weights are what they are."""

    def update(self) -> None:
        """After each step of the optimizer."""

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the network has the averaged weights."""
        yield

    def settle(self) -> None:
        """Gives the network the averaged weights, for good."""

    def state_dict(self) -> dict[str, Any]:
        """All that the next update depends on, and the network's own weights: a checkpoint's
        artefact has the averaged ones."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back there; the network gets its own weights."""


class Average(Unaveraged):
    """The moving average of what learns in a network; fp32, on its device.

    Args:
        network: its weights that learn, as they are now, are what the average begins with.
        decay: of the step.
    """

    def __init__(self, network: nn.Module, decay: Decay) -> None:
        self.decay, self.step = decay, 0
        learning = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self.named = {name: ranks.local(weight).detach() for name, weight in learning.items()}
        self.named |= {n: b for n, b in network.named_buffers() if b.is_floating_point()}
        self.means = {name: weight.float().clone() for name, weight in self.named.items()}

    @torch.no_grad()
    def update(self) -> None:
        self.step += 1
        weights = [weight.float() for weight in self.named.values()]
        torch._foreach_lerp_(list(self.means.values()), weights, 1 - self.decay(self.step))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        own = self._copies(self.named)
        self._put(self.means)
        try:
            yield
        finally:
            self._put(own)

    def settle(self) -> None:
        self._put(self.means)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "means": self.means, "weights": self._copies(self.named)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back there; the network gets its own weights. Nothing, where nothing was kept.

        Raises:
            BedstoneError: the state is of another network.
        """
        if not state:
            return
        for name in self.named.keys() ^ state["means"].keys():
            raise BedstoneError(
                f"average: {name!r} is in the checkpoint or in the network, not in both. Resume "
                "with the recipe of that run."
            )
        self.step = state["step"]
        for name, mean in self.means.items():
            mean.copy_(state["means"][name])
        self._put(state["weights"])

    def _copies(self, named: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: weight.clone() for name, weight in named.items()}

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        # In place: the optimizer, and what was compiled, hold the same tensors.
        for name, weight in self.named.items():
            weight.copy_(values[name])


def _exponent(spread: float) -> float:
    """The g of that deviation, found by halving: it falls with g."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        deviation = ((middle + 1) / ((middle + 2) ** 2 * (middle + 3))) ** 0.5
        low, high = (middle, high) if deviation > spread else (low, middle)
    return (low + high) / 2
