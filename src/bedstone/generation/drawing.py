"""A whole drawing: from a condition to signals, by any sampler, with guidance, a start, a mask.

Each row has a generator of its own, so what is drawn of a seed doesn't depend on what is drawn
beside it.

Shapes: B rows, C channels; *S the sizes of a signal.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bedstone.data.conditions import Condition, joined
from bedstone.errors import BedstoneError, nearest
from bedstone.generation.denoise_multistep import METHODS
from bedstone.generation.denoise_steps import Callback, noise_like
from bedstone.generation.denoise_times import shortened, times
from bedstone.generation.denoiser import Limit, denoiser, inpainted
from bedstone.generation.guidance import conditioned, guided
from bedstone.nn.noise_targets import Target
from bedstone.nn.noising import Process, noised
from bedstone.recipes_diffusion import SamplingConfig


class Reads(Protocol):
    """What draws: `models.conditioned.Conditioned`."""

    @property
    def denoiser(self) -> Any: ...
    def read(self, *args: Any, **condition: Any) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Asked:
    """What is asked for beside a condition.

    Attributes:
        start: clean signals (B or 1, C, *S) to begin from; noise where None.
        strength: share of the steps that is taken from `start` on; 1 keeps nearly nothing of it.
        mask: 1 where `start` is to be drawn anew, 0 where it stays, (B or 1, 1 or C, *S).
        noise: (B, C, *S), to begin with, instead of what the generators give.
        limit: of the clean signal that is predicted, such as `denoiser.clip()`.
        most_rows: in one pass of the network, guidance counted; 0 is all at once.
        callback: sees each step and the clean signal predicted in it.
    """

    start: Tensor | None = None
    strength: float = 1.0
    mask: Tensor | None = None
    noise: Tensor | None = None
    limit: Limit | None = None
    most_rows: int = 0
    callback: Callback | None = None


NOTHING_MORE = Asked()


@torch.no_grad()
def draw(
    network: Reads,
    process: Process,
    target: Target,
    shape: tuple[int, ...],
    sampling: SamplingConfig,
    generators: Sequence[torch.Generator],
    *,
    condition: Condition | None = None,
    null: Condition | None = None,
    asked: Asked = NOTHING_MORE,
    autocast: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> Tensor:
    """Clean signals, (B, C, *S), one for each generator.

    Args:
        shape: (C, *S) of what the network draws.
        sampling: method, steps, spacing, guidance.
        condition: what to draw, of B rows; None where the network is told nothing.
        null: one row that says nothing, or what not to draw; guidance goes away from it.
        autocast: the precision in which the network computes.

    Raises:
        BedstoneError: an unknown method or spacing; a start or mask of another shape; a process
            that a method can't do.
    """
    method = METHODS.get(sampling.method)
    if method is None:
        raise BedstoneError(
            f"method: {sampling.method!r} is unknown{nearest(sampling.method, METHODS)}."
        )
    device = next(iter(network.denoiser.parameters())).device
    with autocast():
        told, none = _told(network, condition, null, sampling, device)

    def ask(x: Tensor, t: Tensor, **given: Tensor) -> Tensor:
        with autocast():
            return network.denoiser(x, t, **given).to(x.dtype)

    if none is None:
        solved = conditioned(ask, told, most_rows=asked.most_rows)
    else:
        interval = (sampling.interval[0], sampling.interval[1])
        options: dict[str, Any] = {"interval": interval, "rescale": sampling.rescale}
        scale = sampling.guidance
        solved = guided(ask, process, told, none, scale, **options, most_rows=asked.most_rows)
    says = denoiser(solved, process, target, limit=asked.limit)
    whole = times(process, sampling.steps, sampling.spacing)
    x = torch.empty(len(generators), *shape, device=device)
    x = noise_like(x, list(generators)) if asked.noise is None else asked.noise.to(x)
    if asked.start is not None:
        _check_start(asked.start, x)
        if asked.mask is not None:
            says = inpainted(says, process, asked.start.to(x), asked.mask.to(x))
        whole = shortened(whole, asked.strength)
        x = noised(process, asked.start.to(x).expand_as(x), x, float(whole[0]))
    else:
        x = x * process.prior
    return method(says, x, whole, process, generator=list(generators), callback=asked.callback)


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """A generator for each seed; they live on the CPU, so that a seed means the same everywhere."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _told(
    network: Reads,
    condition: Condition | None,
    null: Condition | None,
    sampling: SamplingConfig,
    device: torch.device,
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None]:
    """The condition as the network takes it, and that of nothing where there is guidance."""
    if condition is None:
        return {}, None
    if null is None or sampling.guidance == 1.0:
        return network.read(**condition.to(device).arguments()), None
    both = network.read(**joined((condition, null)).to(device).arguments())
    rows = len(condition)
    told = {name: value[:rows] for name, value in both.items()}
    none = {name: value[rows:] for name, value in both.items()}
    return told, none


def _check_start(start: Tensor, x: Tensor) -> None:
    if start.shape[1:] != x.shape[1:] or len(start) not in (1, len(x)):
        raise BedstoneError(
            f"start: a signal of {tuple(start.shape[1:])} was given; the network draws "
            f"{tuple(x.shape[1:])} (channels first). Resize it."
        )
