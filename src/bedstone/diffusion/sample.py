"""Sampling by diffusion: signals of seeds and conditions, with guidance, a start, a mask.

Each row has a random generator of its own, so what is sampled of a seed doesn't depend on what is
sampled beside it.

Shapes: B rows, C channels; *S the sizes of a signal.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from bedstone.data.signals.signals import Condition, joined
from bedstone.diffusion.denoiser import Limit, conditioned, denoiser, guided, with_inpainting
from bedstone.diffusion.process import Process, add_noise
from bedstone.diffusion.samplers import METHODS, Callback, Denoiser, ddim_invert, noise_like
from bedstone.diffusion.schedulers import Published
from bedstone.diffusion.targets import Target
from bedstone.diffusion.times import SPACINGS, check_steps, shortened, times
from bedstone.errors import BedstoneError
from bedstone.settings import Settings, number, one_of, share, whole


@dataclass
class SamplingConfig(Settings):
    """Settings of sampling.

    Attributes:
        method: a sampler, of those in `diffusion.samplers.METHODS`.
        steps: of it.
        spacing: of its times, of those in `diffusion.times.SPACINGS`.
        guidance: how much farther than without a condition to go towards it; 1 goes no farther.
        interval: the times, from 0 (clean) to 1 (noise), in which there is guidance.
        rescale: share by which a guided signal's spread is brought back to that of the condition's.
    """

    section: ClassVar[str] = "sampling."
    method: str = one_of(*METHODS, default="dpm_solver_2m")
    steps: int = whole(1, 1_000_000, default=20)
    spacing: str = one_of(*SPACINGS, default="trailing")
    guidance: float = number(0, default=2.0)
    interval: tuple[float, ...] = (0.0, 1.0)
    rescale: float = share(default=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.interval if len(self.interval) == 2 else (1.0, 0.0)
        if not 0 <= low < high <= 1:
            raise BedstoneError(
                f"sampling.interval: {list(self.interval)} was given; expected two times, from 0 "
                "(clean) to 1 (noise), the earlier first."
            )


@dataclass(frozen=True)
class SampleControls:
    """Controls of sampling beside a condition.

    Attributes:
        start: clean signals (B or 1, C, *S) to begin from; noise where None.
        strength: share of the steps that is taken from `start` on; 1 keeps nearly nothing of it.
        mask: 1 where `start` is to be drawn anew, 0 where it stays, (B or 1, 1 or C, *S).
        noise: (B, C, *S), to begin with, instead of what the generators give.
        limit: of the clean signal that is predicted, such as `denoiser.clip()`.
        most_rows: in one pass of the network, guidance counted; 0 is all at once.
        callback: sees each step and the clean signal predicted in it.
        way: a published folder's own way to sample, instead of the method and spacing.
    """

    start: Tensor | None = None
    strength: float = 1.0
    mask: Tensor | None = None
    noise: Tensor | None = None
    limit: Limit | None = None
    most_rows: int = 0
    callback: Callback | None = None
    way: Published | None = None


@dataclass(frozen=True)
class SamplingStep:
    """A step of sampling, as a progress callback sees it.

    Attributes:
        share: of all the sampling that is done, 0 to 1.
        first: the number of the first row of this batch.
        step, steps: which step it is, from 1, and of how many.
        x: (B, C, *S) after the step, latents where latents are sampled.
        clean: (B, C, *S), the clean signals predicted in it.
    """

    share: float
    first: int
    step: int
    steps: int
    x: Tensor
    clean: Tensor


# A condition, or what a network has read of one: keywords of its denoiser, (B, ...) each.
SampleInputs = Condition | Mapping[str, Tensor] | None
Autocast = Callable[[], contextlib.AbstractContextManager[object]]
Progress = Callable[[SamplingStep], None]
NOTHING_MORE = SampleControls()
BATCH = 64  # rows sampled at a time


@runtime_checkable
class Generator(Protocol):
    """A model that makes signals from seeds and conditions, such as a `DiffusionPipeline`."""

    def sample(
        self,
        seeds: Sequence[int],
        *,
        condition: SampleInputs = None,
        null: SampleInputs = None,
        batch: int = BATCH,
        progress: Progress | None = None,
    ) -> Tensor:
        """Signals (B, C, *S) fp32 on the CPU, about -1 to 1, one for each seed.

        A row depends on its seed and its condition alone.

        Args:
            condition: what to make, of B rows; None where the model takes no condition.
            null: one row that says nothing, or what not to make.
            batch: rows made at a time.
        """


@torch.no_grad()
def sample(
    network: Any,
    process: Process,
    target: Target,
    shape: tuple[int, ...],
    sampling: SamplingConfig,
    generators: Sequence[torch.Generator],
    *,
    condition: SampleInputs = None,
    null: SampleInputs = None,
    controls: SampleControls = NOTHING_MORE,
    autocast: Autocast = contextlib.nullcontext,
) -> Tensor:
    """Clean signals, (B, C, *S), one for each generator.

    Args:
        shape: (C, *S) of what the network draws.
        sampling: method, steps, spacing, guidance.
        condition: what to draw, of B rows; None where the network takes none.
        null: one row that says nothing, or what not to draw; guidance goes away from it.
        autocast: the precision in which the network computes.

    Raises:
        BedstoneError: a start or mask of another shape; a process that a method can't do.
    """
    name = sampling.method if controls.way is None else controls.way.method
    method, options = METHODS[name], {} if controls.way is None else controls.way.options
    if controls.mask is not None and controls.start is None:
        raise BedstoneError("mask: was given without a start, of which it keeps a part.")
    says = _says(network, process, target, sampling, condition, null, controls, autocast)
    whole = _times(process, sampling, controls.way)
    x = torch.empty(len(generators), *shape, device=_device(network))
    if controls.noise is None:
        x = noise_like(x, list(generators))
    elif controls.noise.shape == x.shape:
        x = controls.noise.to(x)
    else:
        raise BedstoneError(
            f"noise: its shape is {tuple(controls.noise.shape)}; expected {tuple(x.shape)}, a row "
            "for each that is drawn."
        )
    if controls.start is not None:
        _check_start(controls.start, x)
        if controls.mask is not None:
            says = with_inpainting(says, process, controls.start.to(x), controls.mask.to(x))
        whole = shortened(whole, controls.strength)
        x = add_noise(process, controls.start.to(x).expand_as(x), x, float(whole[0]))
    else:
        x = x * process.prior
    more: dict[str, Any] = {"generator": list(generators), "callback": controls.callback}
    return method(says, x, whole, process, **more, **options)


def sample_many(
    network: Any,
    process: Process,
    target: Target,
    shape: tuple[int, ...],
    sampling: SamplingConfig,
    seeds: Sequence[int],
    *,
    condition: SampleInputs = None,
    null: SampleInputs = None,
    controls: SampleControls = NOTHING_MORE,
    autocast: Autocast = contextlib.nullcontext,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> Iterator[Tensor]:
    """Clean signals of many seeds, `batch` rows (b, C, *S) at a time, in order.

    Arguments and errors as for `sample`; starts, masks and noise of B rows are those of the seeds.
    """
    count = len(seeds)
    for first in range(0, count, batch):
        part = slice(first, first + batch)
        rows = {name: getattr(controls, name) for name in ("start", "mask", "noise")}
        rows = {k: v[part] for k, v in rows.items() if v is not None and len(v) == count > 1}
        own = replace(controls, **rows)
        if progress is not None:
            own = replace(own, callback=_reported(progress, first, count))
        yield sample(
            network,
            process,
            target,
            shape,
            sampling,
            generators_of(seeds[part]),
            condition=_picked(condition, part),
            null=null,
            controls=own,
            autocast=autocast,
        )


def _picked(condition: SampleInputs, part: slice) -> SampleInputs:
    if condition is None:
        return None
    if isinstance(condition, Condition):
        return condition.pick(part)
    return {name: value[part] for name, value in condition.items()}


def _reported(progress: Progress, first: int, count: int) -> Callback:
    def callback(step: int, steps: int, x: Tensor, clean: Tensor) -> None:
        share = (first + len(x) * step / steps) / count
        progress(SamplingStep(share, first, step, steps, x, clean))

    return callback


@torch.no_grad()
def invert(
    network: Any,
    process: Process,
    target: Target,
    signals: Tensor,
    sampling: SamplingConfig,
    *,
    condition: SampleInputs = None,
    controls: SampleControls = NOTHING_MORE,
    rounds: int = 3,
    autocast: Autocast = contextlib.nullcontext,
) -> Tensor:
    """The noise (B, C, *S) from which `sample` makes `signals`, without guidance: DDIM backwards.

    Args:
        signals: clean, (B, C, *S).
        condition: what they show, of B rows.
        controls: limits, most rows, a callback.
        rounds: predictions a step, as in `ddim_invert`.
    """
    plain = replace(sampling, guidance=1.0)
    says = _says(network, process, target, plain, condition, None, controls, autocast)
    whole = _times(process, sampling, None)
    clean = signals.to(_device(network))
    more: dict[str, Any] = {"rounds": rounds, "callback": controls.callback}
    return ddim_invert(says, clean, whole, process, **more) / process.prior


def _says(
    network: Any,
    process: Process,
    target: Target,
    sampling: SamplingConfig,
    condition: SampleInputs,
    null: SampleInputs,
    controls: SampleControls,
    autocast: Autocast,
) -> Denoiser:
    """What a sampler asks: the network with its condition and guidance."""
    with autocast():
        read, none = _read_conditions(network, condition, null, sampling, _device(network))

    def ask(x: Tensor, t: Tensor, **given: Tensor) -> Tensor:
        with autocast():
            return network.denoiser(x, t, **given).to(x.dtype)

    if none is None:
        solved = conditioned(ask, read, most_rows=controls.most_rows)
    else:
        interval = (sampling.interval[0], sampling.interval[1])
        options: dict[str, Any] = {"interval": interval, "rescale": sampling.rescale}
        scale = sampling.guidance
        solved = guided(ask, process, read, none, scale, **options, most_rows=controls.most_rows)
    way = controls.way
    limit = way.limit if controls.limit is None and way is not None else controls.limit
    if way is None:
        return denoiser(solved, process, target, limit=limit)
    more: dict[str, Any] = {"timestep": way.timestep(process), "noise_stays": way.noise_stays}
    return denoiser(solved, process, target, limit=limit, **more)


def _times(process: Process, sampling: SamplingConfig, way: Published | None) -> Tensor:
    if way is None:
        return times(process, sampling.steps, sampling.spacing)
    check_steps(process, sampling.steps)
    return way.times(process, sampling.steps)


def _device(network: Any) -> torch.device:
    found: torch.device = next(iter(network.denoiser.parameters())).device
    return found


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """A generator for each seed; they live on the CPU, so that a seed means the same everywhere."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def candidate_seeds(seed: int, count: int) -> list[int]:
    """A row's seed, and those of its other candidates."""
    chance = torch.Generator().manual_seed(seed)
    more = torch.randint(2**62, (count - 1,), generator=chance).tolist()
    return [seed, *more]


def _read_conditions(
    network: Any,
    condition: SampleInputs,
    null: SampleInputs,
    sampling: SamplingConfig,
    device: torch.device,
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None]:
    """The condition as the network takes it, and that of nothing where there is guidance."""
    if condition is None:
        return {}, None
    if not isinstance(condition, Condition):  # read already
        assert not isinstance(null, Condition)
        return condition, null if sampling.guidance != 1.0 else None
    if not isinstance(null, Condition) or sampling.guidance == 1.0:
        return network.read_condition(**condition.to(device).arguments()), None
    both = network.read_condition(**joined((condition, null)).to(device).arguments())
    rows = len(condition)
    read = {name: value[:rows] for name, value in both.items()}
    none = {name: value[rows:] for name, value in both.items()}
    return read, none


def _check_start(start: Tensor, x: Tensor) -> None:
    if start.shape[1:] != x.shape[1:]:
        raise BedstoneError(
            f"start: a signal of {tuple(start.shape[1:])} was given; the network draws "
            f"{tuple(x.shape[1:])} (channels first). Resize it."
        )
    if len(start) not in (1, len(x)):
        raise BedstoneError(
            f"start: {len(start)} signals were given to draw {len(x)} from; expected one, or as "
            "many."
        )
