"""The denoising loss of diffusion models.

Denoising as Ho et al., 2020, equation 14, for any process of `diffusion.process` and any target of
`diffusion.targets`. What a time counts for is said by the error of the clean signal that the output
means, as in Hang et al., 2023, section 3.4:

    uniform    the error of the output itself
    snr        SNR: the error of the noise, whatever is predicted
    min_snr    min(SNR, 5) (Hang et al., 2023, equation 5)
    truncated  max(SNR, 1) (Salimans and Ho, 2022, section 4)

Times are drawn one from each of B equal parts of their distribution, which leaves less to chance
than B draws (Kingma et al., 2021, appendix I.1): uniform, logit_normal (Esser et al., 2024,
equation 19) or log_normal in sigma / alpha (Karras et al., 2022, table 1).

Shapes: B rows, C channels, S sizes of a signal.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bedstone import ranks
from bedstone.diffusion.process import Discrete, Process, add_noise, interpolate
from bedstone.diffusion.targets import EpsilonPrediction, Target
from bedstone.errors import BedstoneError
from bedstone.settings import Settings, one_of

# Of the SNR (B,) at which a row is noised: the weight of the error of its clean signal.
Weight = Callable[[Tensor], Tensor]

WEIGHTS: dict[str, Weight | None] = {
    "uniform": None,
    "snr": lambda snr: snr,
    "min_snr": lambda snr: snr.clamp(max=5.0),
    "truncated": lambda snr: snr.clamp(min=1.0),
}


class SignalRows(Protocol):
    """What is read of a batch: `signals` (B, C, *S), and what the network is told of them."""

    @property
    def signals(self) -> Tensor: ...
    def conditions(self, network: Any) -> dict[str, Tensor]: ...


def spread(rows: int, device: torch.device | str = "cpu") -> Tensor:
    """(rows,): one number of each of `rows` equal parts of 0 to 1, by torch's seed."""
    parts = torch.arange(rows, device=device)
    found = (parts + torch.rand(rows, device=device)) / rows
    return found.clamp(1e-6, 1 - 1e-6)


def uniform_times(process: Process, parts: Tensor) -> Tensor:
    """Each t alike."""
    return parts


def logit_normal_times(process: Process, parts: Tensor) -> Tensor:
    """More of the middle, where a straight path is hardest to tell: the logit of t is normal."""
    return torch.special.ndtri(parts).sigmoid()


def log_normal_times(process: Process, parts: Tensor) -> Tensor:
    """log(sigma / alpha) is normal, of mean -1.2 and deviation 1.2."""
    return process.time_at(-2 * (1.2 * torch.special.ndtri(parts) - 1.2))


TIMES: dict[str, Callable[[Process, Tensor], Tensor]] = {
    "uniform": uniform_times,
    "logit_normal": logit_normal_times,
    "log_normal": log_normal_times,
}


@dataclass(frozen=True)
class Denoising(Settings):
    """The objective: (network, batch) to the sum of the rows' losses and how many rows.

    A row's loss is the mean over its values. Noise and times come from torch's global seed. Of a
    network that gives 2 C channels the first C are trained: the others, variances of a published
    form, are not read by any sampler of ours.

    Attributes:
        process: how signals are noised.
        target: what the network says.
        weight: a name of `WEIGHTS`.
        times: a name of `TIMES`.
    """

    process: Process
    target: Target
    weight: str = one_of(*WEIGHTS, default="uniform")
    times: str = one_of(*TIMES, default="uniform")

    def __post_init__(self) -> None:
        super().__post_init__()
        ends = getattr(self.process, "zero_terminal_snr", False)
        if ends and isinstance(self.target, EpsilonPrediction):
            raise BedstoneError(
                "target: epsilon says nothing of the signal at a step without any "
                "(zero_terminal_snr). Take v_prediction or sample."
            )

    def __call__(self, network: nn.Module, batch: SignalRows) -> tuple[Tensor, float]:
        x0 = batch.signals
        t = self.draw_times(len(x0), x0.device)
        noise = ranks.drawn(
            lambda rows: torch.randn_like(
                x0[:1].expand(rows, *x0.shape[1:]), memory_format=torch.contiguous_format
            ),
            len(x0),
        )
        losses = self.losses(network, batch, t, noise)
        return (losses * self.weights(t)).sum(), len(x0)

    def losses(self, network: nn.Module, batch: SignalRows, t: Tensor, eps: Tensor) -> Tensor:
        """(B,): the mean square error of each row at t (B,) with noise `eps`, not weighted.

        Raises:
            BedstoneError: the network gives other sizes or channels than the signals have.
        """
        x0, process = batch.signals, self.process
        x = interpolate(process.scale_in(t), x0) * add_noise(process, x0, eps, t)
        out = network(x, process.timestep(t), **batch.conditions(network))
        channels = x0.shape[1]
        if out.shape[2:] != x0.shape[2:] or out.shape[1] not in (channels, 2 * channels):
            raise BedstoneError(
                f"signals of {tuple(x0.shape[1:])} became predictions of {tuple(out.shape[1:])}; "
                "expected the same, or twice the channels. The model's channels and size must be "
                "those of the data."
            )
        error = out[:, :channels].float() - self.target.of(process, x0, eps, t)
        return error.square().flatten(1).mean(1)

    def draw_times(self, rows: int, device: torch.device | str = "cpu") -> Tensor:
        """(rows,): the times to learn, within what a network is asked; of steps, whole ones."""
        parts = ranks.drawn(lambda many: spread(many, device), rows)
        t = TIMES[self.times](self.process, parts)
        if isinstance(self.process, Discrete):
            return self.process.time(self.process.timestep(t).ceil())
        return t.clamp(self.process.first, 1.0)

    def weights(self, t: Tensor) -> Tensor:
        """(B,): what the error of the output counts for at t (B,)."""
        weight = WEIGHTS[self.weight]
        if weight is None:
            return torch.ones_like(t)
        # The clean signal is linear in the output: this is what an error of 1 does to it.
        factor = self.target.clean(self.process, torch.zeros_like(t), torch.ones_like(t), t)
        return weight(self.process.log_snr(t).exp()) * factor.square()


@dataclass(frozen=True)
class DenoisingThrough:
    """`Denoising` of a network that reads its conditions through another, which doesn't learn.

    Attributes:
        denoising: the objective.
        joined: the network to both, such as a prior to a `ConditionedPrior`.
    """

    denoising: Denoising
    joined: Callable[[nn.Module], nn.Module]

    def __call__(self, network: nn.Module, batch: SignalRows) -> tuple[Tensor, float]:
        return self.denoising(self.joined(network), batch)
