"""The published ways to stretch rotary embeddings past the length they were trained on.

Each is a small value that gives inverse frequencies (W / 2,) for a head of width W and a
factor on cos and sin. `scaled_frequencies` reads the `rope_parameters` (or the older
`rope_scaling`) of a published configuration.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bedstone.errors import BedstoneError, nearest


class Frequencies(Protocol):
    """Inverse frequencies for the positions at hand."""

    def at(self, positions: Tensor) -> tuple[Tensor, float]:
        """(W / 2,) in radians a position, on the device of `positions`, and a factor."""


class Fixed:
    """The same frequencies at every length."""

    def __init__(self, inverse: Tensor, factor: float = 1.0) -> None:
        self.inverse = inverse
        self.factor = factor

    def at(self, positions: Tensor) -> tuple[Tensor, float]:
        if self.inverse.device != positions.device:
            self.inverse = self.inverse.to(positions.device)
        return self.inverse, self.factor


@dataclass
class DynamicNTK:
    """The base grows with the sequence past `trained` tokens (bloc97 and emozilla, 2023)."""

    width: int
    base: float
    factor: float
    trained: int

    def at(self, positions: Tensor) -> tuple[Tensor, float]:
        length = max(int(positions.max()) + 1, self.trained)
        stretch = self.factor * length / self.trained - (self.factor - 1)
        base = self.base * stretch ** (self.width / (self.width - 2))
        return inverse_frequencies(self.width, base).to(positions.device), 1.0


@dataclass
class LongRope:
    """One set of divisors up to `trained` tokens, another past them (Ding et al., 2024)."""

    short: Tensor
    long: Tensor
    factor: float
    trained: int

    def at(self, positions: Tensor) -> tuple[Tensor, float]:
        long = int(positions.max()) + 1 > self.trained
        return (self.long if long else self.short).to(positions.device), self.factor


def inverse_frequencies(width: int, base: float) -> Tensor:
    """base^(-2i / W) for i in 0 .. W/2 - 1 (Su et al., 2021, equation 15)."""
    # On the processor, also where a network is laid out on the meta device first.
    return 1.0 / (base ** (torch.arange(0, width, 2, device="cpu").float() / width))


def plain_frequencies(width: int, base: float) -> Frequencies:
    """No scaling."""
    return Fixed(inverse_frequencies(width, base))


def linear(width: int, base: float, p: Mapping[str, Any], context: int) -> Frequencies:
    """Positions divided by `factor` (Chen et al., 2023)."""
    return Fixed(inverse_frequencies(width, base) / p["factor"])


def dynamic(width: int, base: float, p: Mapping[str, Any], context: int) -> Frequencies:
    """See `DynamicNTK`."""
    return DynamicNTK(width, base, p["factor"], context)


def llama3(width: int, base: float, p: Mapping[str, Any], context: int) -> Frequencies:
    """Long waves are slowed by `factor`, short ones kept, those between blended (Llama 3.1)."""
    inverse = inverse_frequencies(width, base)
    trained, low, high = (
        p["original_max_position_embeddings"],
        p["low_freq_factor"],
        p["high_freq_factor"],
    )
    wave = 2 * math.pi / inverse
    smooth = ((trained / wave - low) / (high - low)).clamp(0, 1)
    blended = (1 - smooth) * inverse / p["factor"] + smooth * inverse
    return Fixed(torch.where(wave > trained / low, inverse / p["factor"], blended))


def yarn(width: int, base: float, p: Mapping[str, Any], context: int) -> Frequencies:
    """Interpolates by how often a dimension turns within the trained length (Peng et al., 2023)."""
    trained = p.get("original_max_position_embeddings") or context
    factor = p.get("factor") or context / trained

    def temperature(scale: float, weight: float = 1.0) -> float:
        return 0.1 * weight * math.log(scale) + 1.0 if scale > 1 else 1.0

    attention = p.get("attention_factor")
    if attention is None:
        if p.get("mscale") and p.get("mscale_all_dim"):
            attention = temperature(factor, p["mscale"]) / temperature(factor, p["mscale_all_dim"])
        else:
            attention = temperature(factor)

    def dimension(turns: float) -> float:
        return width * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(p.get("beta_fast") or 32), dimension(p.get("beta_slow") or 1)
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = (torch.arange(width // 2, device="cpu").float() - low) / max(high - low, 0.001)
    keep = 1 - ramp.clamp(0, 1)
    inverse = inverse_frequencies(width, base)
    return Fixed(inverse / factor * (1 - keep) + inverse * keep, attention)


def longrope(width: int, base: float, p: Mapping[str, Any], context: int) -> Frequencies:
    """See `LongRope`; the factor on cos and sin is equation 6 of Phi-3's description."""
    trained = p.get("original_max_position_embeddings") or context
    factor = p.get("factor") or context / trained
    attention = p.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    inverse = inverse_frequencies(width, base)
    short, long = (
        inverse / torch.tensor(p[f"{name}_factor"], device="cpu") for name in ("short", "long")
    )
    return LongRope(short, long, attention, trained)


SCALINGS = {
    "linear": linear,
    "dynamic": dynamic,
    "llama3": llama3,
    "yarn": yarn,
    "longrope": longrope,
}


def scaled_frequencies(
    width: int, base: float, parameters: Mapping[str, Any] | None, context: int
) -> Frequencies:
    """The frequencies that a published configuration asks for.

    Args:
        width: width of a head.
        base: `rope_theta`.
        parameters: `rope_parameters`, with `rope_type` and its numbers; None is no scaling.
        context: `max_position_embeddings`.

    Raises:
        BedstoneError: the type is unknown, or one of its numbers is missing.
    """
    parameters = parameters or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return plain_frequencies(width, base)
    if kind not in SCALINGS:
        raise BedstoneError(
            f"config: rope_type {kind!r} is unknown{nearest(kind, ['default', *SCALINGS])}."
        )
    try:
        return SCALINGS[kind](width, base, parameters, context)
    except KeyError as missing:
        raise BedstoneError(
            f"config: rope_type {kind!r} needs {missing} beside it in rope_parameters."
        ) from missing
