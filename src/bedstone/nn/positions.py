"""Where a token stands: learned and sinusoidal embeddings, rotary, relative bias.

Shapes: B batch, T tokens, D width, W head width.
"""

import math

import torch
from torch import Tensor, nn

from bedstone.nn.fused import turn, usable
from bedstone.nn.rope_scaling import Frequencies, plain_frequencies


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

    `frequencies` is a published scaling of them (see `rope_scaling`). Maps positions,
    (B or 1, T), to the (cos, sin) that `rotate` takes, each (B or 1, 1, T, W).
    """

    def __init__(self, frequencies: Frequencies) -> None:
        super().__init__()
        self.frequencies = frequencies

    @classmethod
    def plain(cls, width: int, base: float = 10_000.0) -> "Rotary":
        return cls(plain_frequencies(width, base))

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        inverse, factor = self.frequencies.at(positions)
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
    `max_distance`. Maps slots of queries (Q,) and keys (K,) to a bias (1, heads, Q, K).
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
        bucket = self._bucket(keys[None, :] - queries[:, None])  # (Q, K)
        return self.weight[bucket].permute(2, 0, 1)[None]

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
