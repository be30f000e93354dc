"""Denoisers: the clean signal and the noise that a network predicts in x, with guidance.

`denoiser` makes one of a network, its process and what it was trained to predict; the others
change what is asked or answered: limits of the clean signal, and drawing only a part of it.

Shapes: B rows, C channels; *S the sizes of a signal.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bedstone.diffusion.process import Process, interpolate
from bedstone.diffusion.samplers import Denoiser
from bedstone.diffusion.targets import Target
from bedstone.errors import BedstoneError
from bedstone.settings import check_whole

# (x (B, C, *S), timestep (B,)) -> (B, C or more, *S).
Network = Callable[[Tensor, Tensor], Tensor]
Limit = Callable[[Tensor], Tensor]


def denoiser(
    network: Network,
    process: Process,
    target: Target,
    *,
    limit: Limit | None = None,
    timestep: Callable[[Tensor], Tensor] | None = None,
    noise_stays: bool = False,
) -> Denoiser:
    """A network as a denoiser: (x, t) -> (clean signal, noise).

    Args:
        network: its conditions already given; of channels beyond those of x (a learnt variance),
            nothing is used.
        limit: of the clean signal, such as `clip`; the noise follows from what it leaves.
        told: the timestep that the network gets for a time, if not the process's own.
        noise_stays: the noise is the network's, whatever a limit leaves of the clean signal.
    """
    says = timestep or process.timestep

    def ask(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        out = network(x * interpolate(process.scale_in(t), x), says(t))
        out = out[:, : x.shape[1]].to(x.dtype)
        x0 = target.clean(process, x, out, t)
        if limit is None:
            return x0, target.noise(process, x, out, t)
        x0 = limit(x0)
        left = target.noise(process, x, out, t) if noise_stays else _noise_left(process, x, x0, t)
        return x0, left

    return ask


def with_inpainting(ask: Denoiser, process: Process, known: Tensor, mask: Tensor) -> Denoiser:
    """A denoiser that knows a part of the signal.

    The clean signal is put back where it is known before each step, so that the known part of x
    has that step's noise, whatever the sampler (Song et al., 2021b, appendix I.2, by prediction
    instead of by x), and is exactly the known one at the end.

    Args:
        ask: the denoiser.
        known: clean signals (B or 1, C, *S).
        mask: 1 where something is to be drawn, 0 where the signal is known; between them both are
            mixed. (B or 1, C or 1, *S).

    Raises:
        BedstoneError: a mask of another size, or with numbers outside 0 to 1.
    """
    sizes = tuple(known.shape[2:])
    if mask.dim() != known.dim() or tuple(mask.shape[2:]) != sizes:
        raise BedstoneError(
            f"mask: its shape is {tuple(mask.shape)} and the signal's {tuple(known.shape)}; "
            f"expected a mask (1 or {known.shape[0]} rows, 1 or {known.shape[1]} channels) of the "
            f"same size {sizes}. Resize it to the signal."
        )
    if mask.shape[1] not in (1, known.shape[1]):
        raise BedstoneError(
            f"mask: has {mask.shape[1]} channels; expected 1, or {known.shape[1]} as the signal."
        )
    if not (float(mask.min()) >= 0 and float(mask.max()) <= 1):  # nan is neither
        raise BedstoneError(
            f"mask: its numbers go from {float(mask.min()):g} to {float(mask.max()):g}; expected "
            "1 where to draw and 0 where to keep, or something between."
        )

    def ask_for_the_rest(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if known.shape[1:] != x.shape[1:] or known.shape[0] not in (1, x.shape[0]):
            raise BedstoneError(
                f"known: its shape is {tuple(known.shape)}; expected that of what is drawn, "
                f"{tuple(x.shape)}."
            )
        if mask.shape[0] not in (1, x.shape[0]):
            raise BedstoneError(
                f"mask: has {mask.shape[0]} rows; expected 1, or {x.shape[0]} as are drawn."
            )
        x0 = torch.lerp(known.to(x).expand_as(x), ask(x, t)[0], mask.to(x).expand_as(x))
        return x0, _noise_left(process, x, x0, t)

    return ask_for_the_rest


def clip(most: float = 1.0) -> Limit:
    """A limit: numbers beyond -most to most are cut."""
    return lambda x0: x0.clamp(-most, most)


def dynamic_threshold(share: float = 0.995, most: float = 1.0) -> Limit:
    """A limit for strong guidance (Saharia et al., 2022, section 2.3).

    Each row is cut at the size that `share` of its numbers stay below, at least 1 and at most
    `most`, and divided by it, which keeps detail where `clip` would leave flat white.
    """
    if not 0 < share <= 1 or most < 1:
        raise BedstoneError(
            f"share, most: {share} and {most} were given; expected a share above 0 and at most 1, "
            "and a size of at least 1."
        )

    def cut(x0: Tensor) -> Tensor:
        flat = x0.flatten(1).abs()
        place = share * (flat.shape[1] - 1)  # torch.quantile stops at 16 million numbers
        low = int(place)
        around = flat.sort(dim=1).values[:, low : low + 2]
        size = torch.lerp(around[:, 0], around[:, -1], place - low).clamp(1, most)
        size = interpolate(size, x0)
        return torch.maximum(torch.minimum(x0, size), -size) / size

    return cut


def _noise_left(process: Process, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """The noise that makes x of x0."""
    return (x - interpolate(process.alpha(t), x) * x0) / interpolate(process.sigma(t), x)


# Classifier-free guidance: away from what a network draws without the condition.
#
# Ho and Salimans, 2022, equation 6, with the scale as it is published everywhere: 1 is the
# condition alone. It makes a network of a network, so that every sampler and every target takes it.
#
# Shapes: B rows, C channels; *S the sizes of a signal.

Condition = Mapping[str, Tensor]  # keywords of the network, (B, ...) each


def guided(
    network: Callable[..., Tensor],
    process: Process,
    condition: Condition,
    null: Condition,
    scale: float | Tensor,
    *,
    interval: tuple[float, float] = (0.0, 1.0),
    rescale: float = 0.0,
    most_rows: int = 0,
) -> Network:
    """The network with its condition and guidance given: (x, timestep) -> output.

    Both halves go through the network in one batch. With a scale of 1, and outside of `interval`,
    only the half with the condition is asked.

    Args:
        network: (x, told, **condition) -> (B, C or more, *S).
        process: the network's, to know the interval by what the network is told.
        condition: what to draw, (B, ...) each.
        null: what not to draw: no condition, or an unwanted one; (B, ...) or (1, ...) each, of the
            same names.
        scale: how far, 0 being `null` alone: a number, or (B,).
        interval: times between which is guided (Kynkäänniemi et al., 2024, section 3, in t);
            nothing is gained at the noisiest and little at the cleanest.
        rescale: share of the output that gets the contrast of the half with the condition
            (Lin et al., 2023, equations 15 and 16), against strong guidance's glare.
        most_rows: in one batch of the network, both halves counted; 0 for all at once.

    Raises:
        BedstoneError: names of condition and null that differ, an interval or share that is none.
    """
    if set(condition) != set(null):
        raise BedstoneError(
            f"null: it has {sorted(null)}, and the condition {sorted(condition)}; expected the "
            "same names."
        )
    if not 0 <= interval[0] < interval[1] <= 1:
        raise BedstoneError(
            f"interval: {interval} was given; expected two times from 0 (clean) to 1 (noise), the "
            "smaller first."
        )
    if not 0 <= rescale <= 1:
        raise BedstoneError(f"rescale: {rescale} was given; it is a share, from 0 to 1.")
    check_whole("most_rows", most_rows, 0)
    alone = not isinstance(scale, Tensor) and scale == 1
    both: dict[str, Tensor] = {}  # joined once: it is the same at every step
    if not alone:
        both = {name: _both(name, condition[name], null[name]) for name in condition}
    always = interval == (0.0, 1.0)
    first, last = process.timestep(torch.tensor(interval, dtype=torch.float64)).tolist()
    slack = 1e-6 * max(1.0, abs(last))  # timesteps are of float32

    def outside(timestep: Tensor) -> bool:
        now = float(timestep.flatten()[0])  # samplers tell all rows the same
        return not first - slack <= now <= last + slack

    def ask(x: Tensor, timestep: Tensor) -> Tensor:
        if alone or (not always and outside(timestep)):
            return _in_parts(network, x, timestep, condition, most_rows)[:, : x.shape[1]]
        twice = _in_parts(
            network, torch.cat([x, x]), torch.cat([timestep, timestep]), both, most_rows
        )
        given, without = twice[:, : x.shape[1]].chunk(2)
        by = interpolate(torch.as_tensor(scale, dtype=given.dtype, device=given.device), given)
        out = without + by * (given - without)
        return _rescaled(out, given, rescale) if rescale else out

    return ask


def conditioned(
    network: Callable[..., Tensor], condition: Condition, *, most_rows: int = 0
) -> Network:
    """The network with its condition given, and no guidance: (x, timestep) -> output."""
    check_whole("most_rows", most_rows, 0)
    return lambda x, timestep: _in_parts(network, x, timestep, condition, most_rows)


def _both(name: str, given: Tensor, without: Tensor) -> Tensor:
    """The rows of the condition, and as many of none."""
    if without.shape[1:] != given.shape[1:] or without.shape[0] not in (1, given.shape[0]):
        raise BedstoneError(
            f"null: the shape of {name!r} is {tuple(without.shape)}; expected that of the "
            f"condition, {tuple(given.shape)}, or one row of it. Texts of different length must "
            "be padded to the same."
        )
    return torch.cat([given, without.to(given).expand_as(given)])


def _rescaled(out: Tensor, given: Tensor, share: float) -> Tensor:
    """`share` of the output with the standard deviation of `given`, row by row."""
    ratio = given.flatten(1).std(1) / out.flatten(1).std(1).clamp_min(1e-12)
    return out * interpolate(1 + share * (ratio - 1), out)


def _in_parts(
    network: Callable[..., Tensor], x: Tensor, timestep: Tensor, condition: Condition, most: int
) -> Tensor:
    """The network's output for all rows, at most `most` of them at a time."""
    if not most or x.shape[0] <= most:
        return network(x, timestep, **condition)
    parts = [
        network(
            x[start : start + most],
            timestep[start : start + most],
            **{name: value[start : start + most] for name, value in condition.items()},
        )
        for start in range(0, x.shape[0], most)
    ]
    return torch.cat(parts)
