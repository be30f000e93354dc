"""Prediction types: what a network predicts, and the clean signal and noise that follow.

    epsilon          the noise (Ho et al., 2020, equation 14)
    sample           the clean signal
    v_prediction     alpha eps - sigma x0 (Salimans and Ho, 2022, appendix D)
    flow_prediction  eps - x0, the velocity of the straight path (Liu et al., 2022)
    edm              the preconditioned clean signal (Karras et al., 2022, table 1)

All hold for every process of `diffusion.process`. Shapes: signals and outputs (B, ...), t as there.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from bedstone.diffusion.process import Process, interpolate
from bedstone.errors import BedstoneError, nearest

# Where alpha or sigma is 0, the output says nothing of what is divided by it.
LEAST = 1e-8


class Target(Protocol):
    """A prediction type; `name` is the published `prediction_type`."""

    @property
    def name(self) -> str: ...

    def of(self, process: Process, x0: Tensor, eps: Tensor, t: Tensor | float) -> Tensor:
        """What a right network gives at t."""

    def clean(self, process: Process, x: Tensor, out: Tensor, t: Tensor | float) -> Tensor:
        """The clean signal that the output means."""

    def noise(self, process: Process, x: Tensor, out: Tensor, t: Tensor | float) -> Tensor:
        """The noise that the output means."""


@dataclass(frozen=True)
class EpsilonPrediction:
    """The noise."""

    name: str = "epsilon"

    def of(self, process: Process, x0: Tensor, eps: Tensor, t: Tensor | float) -> Tensor:
        return eps

    def clean(self, process: Process, x: Tensor, out: Tensor, t: Tensor | float) -> Tensor:
        alpha, sigma = _factors(process, x, t)
        return (x - sigma * out) / alpha.clamp_min(LEAST)

    def noise(self, process: Process, x: Tensor, out: Tensor, t: Tensor | float) -> Tensor:
        return out


@dataclass(frozen=True)
class SamplePrediction:
    """The clean signal."""

    name: str = "sample"

    def of(self, process: Process, x0: Tensor, eps: Tensor, t: Tensor | float) -> Tensor:
        return x0

    def clean(self, process: Process, x: Tensor, out: Tensor, t: Tensor | float) -> Tensor:
        return out

    def noise(self, process: Process, x: Tensor, out: Tensor, t: Tensor | float) -> Tensor:
        alpha, sigma = _factors(process, x, t)
        return (x - alpha * out) / sigma.clamp_min(LEAST)


@dataclass(frozen=True)
class VPrediction:
    """The direction in which the signal turns into noise where the variance is kept."""

    name: str = "v_prediction"

    def of(self, process: Process, x0: Tensor, eps: Tensor, t: Tensor | float) -> Tensor:
        alpha, sigma = _factors(process, x0, t)
        return alpha * eps - sigma * x0

    def clean(self, process: Process, x: Tensor, out: Tensor, t: Tensor | float) -> Tensor:
        alpha, sigma = _factors(process, x, t)
        return (alpha * x - sigma * out) / (alpha**2 + sigma**2)

    def noise(self, process: Process, x: Tensor, out: Tensor, t: Tensor | float) -> Tensor:
        alpha, sigma = _factors(process, x, t)
        return (sigma * x + alpha * out) / (alpha**2 + sigma**2)


@dataclass(frozen=True)
class FlowPrediction:
    """The way from the signal to the noise."""

    name: str = "flow_prediction"

    def of(self, process: Process, x0: Tensor, eps: Tensor, t: Tensor | float) -> Tensor:
        return eps - x0

    def clean(self, process: Process, x: Tensor, out: Tensor, t: Tensor | float) -> Tensor:
        alpha, sigma = _factors(process, x, t)
        return (x - sigma * out) / (alpha + sigma)

    def noise(self, process: Process, x: Tensor, out: Tensor, t: Tensor | float) -> Tensor:
        alpha, sigma = _factors(process, x, t)
        return (x + alpha * out) / (alpha + sigma)


@dataclass(frozen=True)
class EDMPrediction:
    """What is missing to the clean signal when the best part of x_t itself is taken, at unit
    variance: c_skip and c_out of the paper, times alpha and over alpha."""

    name: str = "edm"

    def of(self, process: Process, x0: Tensor, eps: Tensor, t: Tensor | float) -> Tensor:
        alpha, sigma = _factors(process, x0, t)
        std = process.data_std
        total = (sigma**2 + (alpha * std) ** 2).sqrt()
        # (x0 - skip x_t) / scale, multiplied out: nothing is lost where sigma is small.
        return (sigma * x0 - alpha * std**2 * eps) / (std * total)

    def clean(self, process: Process, x: Tensor, out: Tensor, t: Tensor | float) -> Tensor:
        alpha, sigma = _factors(process, x, t)
        std = process.data_std
        total = sigma**2 + (alpha * std) ** 2
        return alpha * std**2 / total * x + sigma * std / total.sqrt() * out

    def noise(self, process: Process, x: Tensor, out: Tensor, t: Tensor | float) -> Tensor:
        alpha, sigma = _factors(process, x, t)
        std = process.data_std
        total = sigma**2 + (alpha * std) ** 2
        return sigma / total * x - alpha * std / total.sqrt() * out


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        EpsilonPrediction(),
        SamplePrediction(),
        VPrediction(),
        FlowPrediction(),
        EDMPrediction(),
    )
}


def target(name: str) -> Target:
    """The target of a published name.

    Raises:
        BedstoneError: there is none of that name.
    """
    if name not in TARGETS:
        raise BedstoneError(f"target: {name!r} is unknown{nearest(name, TARGETS)}.")
    return TARGETS[name]


def _factors(process: Process, like: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
    """alpha and sigma, along the rows of `like`."""
    return interpolate(process.alpha(t), like), interpolate(process.sigma(t), like)
