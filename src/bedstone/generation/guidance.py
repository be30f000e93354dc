"""Classifier-free guidance: away from what a network draws without the condition.

Ho and Salimans, 2022, equation 6, with the scale as it is published everywhere: 1 is the condition
alone. It makes a network of a network, so that every sampler and every target takes it.

Shapes: B rows, C channels; *S the sizes of a signal.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bedstone.checks import check_whole
from bedstone.errors import BedstoneError
from bedstone.generation.denoiser import Network
from bedstone.nn.noising import Process, along

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
    """The network with its condition and guidance given: (x, told) -> output.

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
    first, last = process.told(torch.tensor(interval, dtype=torch.float64)).tolist()
    slack = 1e-6 * max(1.0, abs(last))  # told numbers are of float32

    def outside(told: Tensor) -> bool:
        now = float(told.flatten()[0])  # samplers tell all rows the same
        return not first - slack <= now <= last + slack

    def ask(x: Tensor, told: Tensor) -> Tensor:
        if alone or (not always and outside(told)):
            return _in_parts(network, x, told, condition, most_rows)[:, : x.shape[1]]
        twice = _in_parts(network, torch.cat([x, x]), torch.cat([told, told]), both, most_rows)
        given, without = twice[:, : x.shape[1]].chunk(2)
        by = along(torch.as_tensor(scale, dtype=given.dtype, device=given.device), given)
        out = without + by * (given - without)
        return _rescaled(out, given, rescale) if rescale else out

    return ask


def conditioned(
    network: Callable[..., Tensor], condition: Condition, *, most_rows: int = 0
) -> Network:
    """The network with its condition given, and no guidance: (x, told) -> output."""
    check_whole("most_rows", most_rows, 0)
    return lambda x, told: _in_parts(network, x, told, condition, most_rows)


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
    return out * along(1 + share * (ratio - 1), out)


def _in_parts(
    network: Callable[..., Tensor], x: Tensor, told: Tensor, condition: Condition, most: int
) -> Tensor:
    """The network's output for all rows, at most `most` of them at a time."""
    if not most or x.shape[0] <= most:
        return network(x, told, **condition)
    parts = [
        network(
            x[start : start + most],
            told[start : start + most],
            **{name: value[start : start + most] for name, value in condition.items()},
        )
        for start in range(0, x.shape[0], most)
    ]
    return torch.cat(parts)
