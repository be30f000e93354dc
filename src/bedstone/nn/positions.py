"""Where a token stands: learned and sinusoidal embeddings, rotary, relative bias.

Shapes: B batch, T tokens, D width, W head width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError, nearest
from bedstone.nn.fast.fused import turn, usable
from bedstone.reading import shown
from bedstone.settings import is_number


class Frequencies(Protocol):
    """Inverse frequencies for the positions at hand.

    Attributes:
        varies: whether they depend on the length of the sequence that a token is of.
    """

    @property
    def varies(self) -> bool: ...

    def at(self, positions: Tensor, lengths: Tensor) -> tuple[Tensor, float]:
        """(W / 2,), or (B or 1, T or 1, W / 2), in radians a position, and a factor.

        Args:
            positions: (B or 1, T).
            lengths: tokens of each token's own sequence so far, (B or 1, T or 1).
        """


class Fixed:
    """The same frequencies at every length."""

    varies = False

    def __init__(self, inverse: Tensor, factor: float = 1.0) -> None:
        self.inverse = inverse
        self.factor = factor

    def at(self, positions: Tensor, lengths: Tensor) -> tuple[Tensor, float]:
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
    varies: ClassVar[bool] = True

    def at(self, positions: Tensor, lengths: Tensor) -> tuple[Tensor, float]:
        known, which = lengths.clamp(min=self.trained).unique(return_inverse=True)
        rows = torch.stack([self._inverse(length) for length in known.tolist()])
        return rows.to(positions.device)[which], 1.0

    def _inverse(self, length: int) -> Tensor:
        """(W / 2,) of a sequence of that length."""
        stretch = self.factor * length / self.trained - (self.factor - 1)
        base = self.base * stretch ** (self.width / (self.width - 2))
        return inverse_frequencies(self.width, base)


@dataclass
class LongRope:
    """One set of divisors up to `trained` tokens, another past them (Ding et al., 2024)."""

    short: Tensor
    long: Tensor
    factor: float
    trained: int
    varies: ClassVar[bool] = True

    def at(self, positions: Tensor, lengths: Tensor) -> tuple[Tensor, float]:
        short, long = (each.to(positions.device) for each in (self.short, self.long))
        return torch.where((lengths > self.trained)[..., None], long, short), self.factor


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


# Numbers of `rope_parameters` that divide, or whose logarithm is taken.
_POSITIVE = {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}
_POSITIVE |= {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"}
_POSITIVE |= {"short_factor", "long_factor"}


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
        BedstoneError: the type is unknown, or one of its numbers is missing or not above 0.
    """
    parameters = parameters or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return plain_frequencies(width, base)
    if not isinstance(kind, str) or kind not in SCALINGS:
        known = nearest(str(kind), ["default", *SCALINGS])
        raise BedstoneError(f"rope_type: {kind!r} is unknown{known}.")
    for name in _POSITIVE & parameters.keys():
        value = parameters[name]
        given = value if isinstance(value, list | tuple) else [value]
        if value is not None and not all(is_number(each) and each > 0 for each in given):
            raise BedstoneError(f"{name}: {shown(value)} was given; expected a number above 0.")
    try:
        return SCALINGS[kind](width, base, parameters, context)
    except KeyError as missing:
        raise BedstoneError(
            f"config: rope_type {kind!r} needs {missing} beside it in rope_parameters."
        ) from missing
    except (ArithmeticError, RuntimeError, ValueError) as error:
        raise BedstoneError(
            f"rope_type {kind!r}: its numbers give no frequencies for a head of {width} and "
            f"{context} positions ({error}). Take those that the model was published with."
        ) from error


class LearnedPositions(nn.Module):
    """A learned vector for each of `count` positions; (B or 1, T) to (B or 1, T, D)."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, positions: Tensor) -> Tensor:
        return nn.functional.embedding(positions, self.weight)


class SinusoidalPositions(nn.Module):
    """sin and cos of geometric frequencies (Vaswani et al., 2017, section 3.5).

    `interleaved` puts sin at even and cos at odd columns, as the paper has it; otherwise all
    sines stand before all cosines. (B or 1, T) to (B or 1, T, D).
    """

    frequencies: Tensor  # (D / 2,)

    def __init__(self, width: int, *, interleaved: bool = True, base: float = 10_000.0) -> None:
        super().__init__()
        self.interleaved = interleaved
        frequencies = base ** (
            -torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width
        )
        self.register_buffer("frequencies", frequencies.float(), persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        angles = positions[..., None].float() * self.frequencies  # (B, T, D / 2)
        pair = (angles.sin(), angles.cos())
        return torch.stack(pair, -1).flatten(-2) if self.interleaved else torch.cat(pair, -1)


class Rotary(nn.Module):
    """Rotary position embedding (Su et al., 2021), in the half-split layout of Llama.

    `frequencies` is a published scaling of them (see `scaled_frequencies`). Maps positions,
    (B or 1, T), to the (cos, sin) that `rotate` takes, each (B or 1, 1, T, W). Scalings that depend
    on the length of a sequence read `lengths`, (B or 1, T or 1), of each token's own; where it is
    None, a row is one sequence, and all of it is real.
    """

    def __init__(self, frequencies: Frequencies) -> None:
        super().__init__()
        self.frequencies = frequencies

    @classmethod
    def plain(cls, width: int, base: float = 10_000.0) -> "Rotary":
        return cls(plain_frequencies(width, base))

    def forward(self, positions: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if lengths is None:
            lengths = positions.amax(-1, keepdim=True) + 1
        inverse, factor = self.frequencies.at(positions, lengths)
        angles = positions[..., None].float() * inverse  # (B, T, W / 2)
        angles = torch.cat((angles, angles), -1)[:, None]  # (B, 1, T, W)
        return angles.cos() * factor, angles.sin() * factor


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turns queries or keys, (B, H, T, W), by the angles of their positions."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    if usable(x):
        return turn(x, cos, sin)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class RelativeBias(nn.Module):
    """T5's bias on attention scores by bucketed distance (Raffel et al., 2020, section 2.1).

    Half of the buckets hold exact distances, the rest grow logarithmically up to
    `max_distance`. Maps slots of queries, (Q,) or (B or 1, Q), and of keys, (K,) or (B or 1, K), to
    a bias (B or 1, heads, Q, K).
    """

    def __init__(
        self, heads: int, *, buckets: int = 32, max_distance: int = 128, bidirectional: bool = True
    ) -> None:
        super().__init__()
        self.buckets = buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.weight = nn.Parameter(torch.zeros(buckets, heads))

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        bucket = self._bucket(keys[..., None, :] - queries[..., :, None])  # (Q, K) or (B, Q, K)
        bias = self.weight[bucket].movedim(-1, -3)
        return bias if bias.dim() == 4 else bias[None]

    def _bucket(self, distance: Tensor) -> Tensor:
        buckets, start = self.buckets, torch.zeros_like(distance)
        if self.bidirectional:
            buckets //= 2
            start = (distance > 0).long() * buckets
            distance = distance.abs()
        else:
            distance = (-distance).clamp(min=0)
        exact = buckets // 2
        spread = math.log(self.max_distance / exact)
        far = torch.log(distance.clamp(min=1).float() / exact) / spread * (buckets - exact)
        far = (exact + far.long()).clamp(max=buckets - 1)
        return start + torch.where(distance < exact, distance, far)


# Where a patch stands in a grid of one to three dimensions: sinusoids that are added, rotation.
#
# Shapes: n dimensions, T patches (the last dimension fastest), D width, W head width.

Grid = tuple[int, ...]


def places(grid: Grid, scales: tuple[float, ...], device: torch.device | str) -> Tensor:
    """Coordinates of the patches, (T, n), divided by `scales`."""
    axes = [
        torch.arange(count, dtype=torch.float32, device=device) / scale
        for count, scale in zip(grid, scales, strict=True)
    ]
    return torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")], -1)


def sincos(at: Tensor, width: int, base: float = 10_000.0) -> Tensor:
    """sin and cos of coordinates (T, n), the last first, each in its part of D; (T, D) in fp32.

    As MAE and DiT have it in two dimensions. What is left of D is zero.
    """
    pairs = width // (2 * at.shape[1])
    steps = torch.arange(pairs, dtype=torch.float64, device=at.device) / pairs
    parts = []
    for axis in reversed(at.double().unbind(1)):
        angles = axis[:, None] * base**-steps  # (T, pairs)
        parts += [angles.sin(), angles.cos()]
    whole = torch.cat(parts, 1).float()
    return torch.nn.functional.pad(whole, (0, width - whole.shape[1]))


class GridSinusoids(nn.Module):
    """What is added to patches, (1, T, D). A grid other than `usual` is spread over its places.

    Args:
        interpolation: the usual grid's places are divided by it.
    """

    known: Tensor  # (1, T, D) of the usual grid

    def __init__(self, usual: Grid, width: int, interpolation: float = 1.0) -> None:
        super().__init__()
        self.usual, self.width, self.interpolation = usual, width, interpolation
        # made where it is even if the weights aren't yet anywhere: no file holds it
        self.register_buffer("known", self.of(usual, "cpu"), persistent=False)

    def of(self, grid: Grid, device: torch.device | str) -> Tensor:
        pairs = zip(grid, self.usual, strict=True)
        scales = tuple(count / usual * self.interpolation for count, usual in pairs)
        return sincos(places(grid, scales, device), self.width)[None]

    def forward(self, grid: Grid) -> Tensor:
        return self.known if grid == self.usual else self.of(grid, self.known.device)


class LearntGrid(nn.Module):
    """A learnt vector for each place of one grid, (1, T, D)."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, grid: Grid) -> Tensor:
        return self.weight[None]


class GridRotary(nn.Module):
    """(cos, sin) that `rotate` takes, each (1, 1, T, W): a share of the pairs each dimension.

    The n-d form of rotary positions (Heo et al., 2024, "axial"); pairs left over aren't turned.
    """

    angles: Tensor  # (T, W) of the usual grid

    def __init__(self, usual: Grid, head_width: int, base: float) -> None:
        super().__init__()
        self.usual, self.head_width, self.base = usual, head_width, base
        self.register_buffer("angles", self.of(usual, "cpu"), persistent=False)

    def of(self, grid: Grid, device: torch.device | str) -> Tensor:
        half = self.head_width // 2
        pairs = half // len(grid)
        steps = torch.arange(pairs, dtype=torch.float32, device=device) / max(pairs, 1)
        at = places(grid, (1.0,) * len(grid), device)
        angles = (at[:, :, None] * self.base**-steps).flatten(1)  # (T, n * pairs)
        angles = torch.nn.functional.pad(angles, (0, half - angles.shape[1]))
        return torch.cat((angles, angles), 1)

    def forward(self, grid: Grid) -> tuple[Tensor, Tensor]:
        angles = self.angles if grid == self.usual else self.of(grid, self.angles.device)
        return angles.cos()[None, None], angles.sin()[None, None]
