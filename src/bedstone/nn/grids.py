"""Where a patch stands in a grid of one to three dimensions: sinusoids that are added, rotation.

Shapes: n dimensions, T patches (the last dimension fastest), D width, W head width.
"""

import torch
from torch import Tensor, nn

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
