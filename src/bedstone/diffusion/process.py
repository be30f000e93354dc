"""Noise processes of diffusion: x_t = alpha(t) x0 + sigma(t) eps, for t from 0 to 1.

One convention everywhere: t is continuous, 0 is clean (alpha 1, sigma 0) and 1 is noise; a process
says what that means, and what number a network is told as its time. Three processes:

    Discrete  keeps the variance, in steps (Ho et al., 2020), with the linear schedule, that of
              latent diffusion, and the cosine (Nichol and Dhariwal, 2021); optionally without any
              signal at the end (Lin et al., 2023, algorithm 1)
    Flow      the straight path of rectified flow (Liu et al., 2022)
    EDM       noise that only grows (Karras et al., 2022, table 1)

`shift` multiplies sigma / alpha: above 1 there is more noise at each t, as larger images need
(Hoogeboom et al., 2023, equation 4, of an image of 64 times `shift`; Esser et al., 2024,
equation 23).

Shapes: B rows; a time is a number, or (B,). What comes back has the time's shape and dtype.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from bedstone.errors import BedstoneError
from bedstone.settings import Settings, number, one_of, whole

SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def schedule_betas(schedule: str, steps: int, start: float, end: float) -> Tensor:
    """(steps,) float32, rising from `start` to `end`; the cosine reads neither."""
    if schedule == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float32)
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
    return _cosine_betas(steps)


def _cosine_betas(steps: int) -> Tensor:
    """Nichol and Dhariwal, 2021, equation 17."""

    def kept(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [1 - kept((i + 1) / steps) / kept(i / steps) for i in range(steps)]
    return torch.tensor([min(beta, 0.999) for beta in betas], dtype=torch.float32)


def without_end(betas: Tensor) -> Tensor:
    """Lin et al., 2023, algorithm 1: alpha falls to 0, from where it began."""
    alpha = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = alpha[0].clone(), alpha[-1].clone()
    return betas_of(((alpha - last) * (first / (first - last))) ** 2)


def betas_of(alphas_cumprod: Tensor) -> Tensor:
    """(steps,): the betas whose 1 - beta has this running product (steps,)."""
    ratios = alphas_cumprod[1:] / alphas_cumprod[:-1]
    return 1 - torch.cat([alphas_cumprod[:1], ratios])


LEAST_SIGNAL = 2.0**-24  # alpha squared where a schedule says 0, as the published solvers have it


class Process(Protocol):
    """How noise grows with t.

    Attributes:
        prior: standard deviation of what drawing starts from, at t = 1.
        first: the smallest t at which a network is asked; between it and 0 nothing is learnt.
        data_std: of clean signals, as the process takes them to be.
    """

    @property
    def prior(self) -> float: ...
    @property
    def first(self) -> float: ...
    @property
    def data_std(self) -> float: ...

    def alpha(self, t: Tensor | float) -> Tensor:
        """What the clean signal is multiplied by."""

    def sigma(self, t: Tensor | float) -> Tensor:
        """What the noise is multiplied by."""

    def log_snr(self, t: Tensor | float) -> Tensor:
        """log(alpha^2 / sigma^2): infinite at 0, and falling."""

    def time_at(self, log_snr: Tensor | float) -> Tensor:
        """The t that has this log-SNR."""

    def timestep(self, t: Tensor | float) -> Tensor:
        """The timestep of t: the number that conditions the network."""

    def time(self, timestep: Tensor | float) -> Tensor:
        """The t of this timestep."""

    def scale_in(self, t: Tensor | float) -> Tensor:
        """What x_t is multiplied by before it enters the network."""


def interpolate(values: Tensor, like: Tensor) -> Tensor:
    """(B,) or one number, laid along the rows of `like` (B, ...): (B, 1, ...)."""
    return values.reshape(-1, *(1,) * (like.dim() - 1))


def add_noise(process: Process, x0: Tensor, eps: Tensor, t: Tensor | float) -> Tensor:
    """x_t (B, ...), from the clean signals and the noise (B, ...)."""
    return interpolate(process.alpha(t), x0) * x0 + interpolate(process.sigma(t), x0) * eps


@dataclass(frozen=True)
class Discrete(Settings):
    """The variance-preserving process of DDPM, in discrete steps.

    The published step i, from 0 to `steps` - 1, is t = (i + 1) / steps; the network gets i as its
    timestep. Between two steps the log-SNR is linear; before the first one sigma / alpha goes to 0
    with t.

    Attributes:
        steps: how many.
        schedule: linear, scaled_linear or squaredcos_cap_v2 (the cosine).
        beta_start, beta_end: variance that the first and last step add, of the linear ones.
        shift: what sigma / alpha is multiplied by.
        zero_terminal_snr: the last step has no signal left. `alpha` keeps 2^-12 of it there, so
            that the log-SNR is a number; `alphas_cumprod` is 0.
        trained_betas: all of them, instead of a schedule.
    """

    section: ClassVar[str] = "process."

    steps: int = whole(2, 1_000_000, default=1000)
    schedule: str = one_of(*SCHEDULES, default="linear")
    beta_start: float = 0.0001
    beta_end: float = 0.02
    shift: float = number(0, open_least=True, default=1.0)
    zero_terminal_snr: bool = False
    trained_betas: tuple[float, ...] = ()
    prior: ClassVar[float] = 1.0
    data_std: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise BedstoneError(
                f"beta_start, beta_end: {self.beta_start} and {self.beta_end} were given; expected "
                "0 < beta_start <= beta_end < 1."
            )
        if self.trained_betas:
            right = all(0 < beta <= 1 for beta in self.trained_betas)
            if len(self.trained_betas) != self.steps or not right:
                raise BedstoneError(
                    f"trained_betas: expected {self.steps} numbers above 0 and at most 1, one for "
                    f"each step; {len(self.trained_betas)} were given."
                )

    @property
    def first(self) -> float:
        return 1 / self.steps

    @cached_property
    def betas(self) -> Tensor:
        """(steps,): the variance that each step adds, float32."""
        return self._plain_betas if self.shift == 1.0 else betas_of(self.alphas_cumprod)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """(steps,): alpha squared at each step, float32."""
        plain = torch.cumprod(1.0 - self._plain_betas, dim=0)
        if self.shift == 1.0:
            return plain
        return plain / (plain + self.shift**2 * (1 - plain))

    @cached_property
    def _plain_betas(self) -> Tensor:
        """Those before the shift."""
        if self.trained_betas:
            betas = torch.tensor(self.trained_betas, dtype=torch.float32)
        else:
            betas = schedule_betas(self.schedule, self.steps, self.beta_start, self.beta_end)
        return without_end(betas) if self.zero_terminal_snr else betas

    @cached_property
    def _ratio(self) -> Tensor:
        """(steps,): log(sigma / alpha) at each step, rising, float64."""
        kept = self.alphas_cumprod.double()
        if kept[-1] > 0:
            return ((1 - kept) / kept).log() / 2
        kept[-1] = LEAST_SIGNAL
        ratio = ((1 - kept) / kept).log() / 2
        # The few steps before it can have less than that, and must not have more noise than it.
        return torch.minimum(ratio, ratio[-1] - 1e-3 * torch.arange(self.steps - 1, -1, -1))

    def alpha(self, t: Tensor | float) -> Tensor:
        return self.log_snr(t).sigmoid().sqrt()

    def sigma(self, t: Tensor | float) -> Tensor:
        return (-self.log_snr(t)).sigmoid().sqrt()

    def log_snr(self, t: Tensor | float) -> Tensor:
        t = _tensor(t)
        table = self._ratio.to(t)
        at = self._position(t)
        low = at.floor().clamp(0, self.steps - 2).long()
        ratio = torch.lerp(table[low], table[low + 1], (at - low).clamp(0, 1))
        before = table[0] + (t * self.steps).log()  # of t below the first step
        return -2 * torch.where(at < 0, before, ratio)

    def time_at(self, log_snr: Tensor | float) -> Tensor:
        ratio = _tensor(log_snr) / -2
        table = self._ratio.to(ratio)
        high = torch.searchsorted(table, ratio.contiguous()).clamp(1, self.steps - 1)
        low = table[high - 1]
        part = (ratio - low) / (table[high] - low).clamp_min(1e-12)
        inside = (high + part.clamp(max=1)) / self.steps
        return torch.where(ratio < table[0], (ratio - table[0]).exp() / self.steps, inside)

    def timestep(self, t: Tensor | float) -> Tensor:
        return self._position(_tensor(t)).clamp_min(0)

    def time(self, timestep: Tensor | float) -> Tensor:
        return (_tensor(timestep) + 1) / self.steps

    def scale_in(self, t: Tensor | float) -> Tensor:
        return torch.ones_like(_tensor(t))

    def _position(self, t: Tensor) -> Tensor:
        """The step, with what float32 lost of a whole one given back: the end of the cosine
        schedule is so steep that it would be seen."""
        at = t * self.steps - 1
        whole = at.round()
        return torch.where((at - whole).abs() < 2.5e-7 * self.steps, whole, at)


@dataclass(frozen=True)
class Flow(Settings):
    """Flow matching: the straight path from signal to noise; sigma is t after the shift.

    Attributes:
        shift: what sigma / alpha is multiplied by.
        steps: what sigma is multiplied by for the network.
    """

    section: ClassVar[str] = "process."

    shift: float = number(0, open_least=True, default=1.0)
    steps: int = whole(2, 1_000_000, default=1000)
    prior: ClassVar[float] = 1.0
    data_std: ClassVar[float] = 1.0

    @property
    def first(self) -> float:
        return 1 / self.steps

    def alpha(self, t: Tensor | float) -> Tensor:
        t = _tensor(t)
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: Tensor | float) -> Tensor:
        t = _tensor(t)
        return self.shift * t / (1 + (self.shift - 1) * t)

    def log_snr(self, t: Tensor | float) -> Tensor:
        t = _tensor(t)
        return 2 * (torch.log1p(-t) - t.log() - math.log(self.shift))

    def time_at(self, log_snr: Tensor | float) -> Tensor:
        return (-_tensor(log_snr) / 2 - math.log(self.shift)).sigmoid()

    def timestep(self, t: Tensor | float) -> Tensor:
        return self.steps * self.sigma(t)

    def time(self, timestep: Tensor | float) -> Tensor:
        sigma = _tensor(timestep) / self.steps
        return sigma / (self.shift - (self.shift - 1) * sigma)

    def scale_in(self, t: Tensor | float) -> Tensor:
        return torch.ones_like(_tensor(t))


@dataclass(frozen=True)
class EDM(Settings):
    """The variance-exploding process of EDM: alpha is 1, and sigma is sigma_max t^rho.

    The network gets x_t at unit variance and log(sigma) / 4 as its timestep. With the target `edm`
    of `diffusion.targets` it is preconditioned as in the paper.

    Attributes:
        sigma_min, sigma_max: least and most noise at which a network is asked.
        rho: how much of the time is spent at little noise.
        data_std: of clean signals.
    """

    section: ClassVar[str] = "process."

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = number(0, open_least=True, default=7.0)
    data_std: float = number(0, open_least=True, default=0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise BedstoneError(
                f"sigma_min, sigma_max: {self.sigma_min} and {self.sigma_max} were given; expected "
                "0 < sigma_min < sigma_max."
            )

    @property
    def prior(self) -> float:
        return self.sigma_max

    @property
    def first(self) -> float:
        return (self.sigma_min / self.sigma_max) ** (1 / self.rho)

    def alpha(self, t: Tensor | float) -> Tensor:
        return torch.ones_like(_tensor(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        return self.sigma_max * _tensor(t) ** self.rho

    def log_snr(self, t: Tensor | float) -> Tensor:
        return -2 * self.sigma(t).log()

    def time_at(self, log_snr: Tensor | float) -> Tensor:
        return ((-_tensor(log_snr) / 2).exp() / self.sigma_max) ** (1 / self.rho)

    def timestep(self, t: Tensor | float) -> Tensor:
        return self.sigma(t).log() / 4

    def time(self, timestep: Tensor | float) -> Tensor:
        return self.time_at(-8 * _tensor(timestep))

    def scale_in(self, t: Tensor | float) -> Tensor:
        return (self.sigma(t) ** 2 + self.data_std**2).rsqrt()


def _tensor(value: Tensor | float) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float32)
