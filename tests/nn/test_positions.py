"""Places in grids of one to three dimensions."""

import pytest
import torch

from bedstone.nn.patches import patchify, unpatchify
from bedstone.nn.positions import (
    GridRotary,
    GridSinusoids,
    Rotary,
    SinusoidalPositions,
    places,
    rotate,
)

GRIDS = [(7,), (4, 5), (2, 3, 4)]


@pytest.mark.parametrize("grid", GRIDS)
def test_places_are_in_the_order_of_patches(grid):
    """A signal that holds its own coordinates, cut into patches of one sample."""
    axes = torch.meshgrid(*(torch.arange(count).float() for count in grid), indexing="ij")
    tokens = patchify(torch.stack(axes)[None], (1,) * len(grid))[0]
    assert torch.equal(places(grid, (1.0,) * len(grid), "cpu"), tokens)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("width", [24, 26, 31])
def test_every_place_has_its_own_vector(grid, width):
    vectors = GridSinusoids(grid, width)(grid)[0]
    assert vectors.shape == (torch.Size(grid).numel(), width)
    apart = torch.cdist(vectors, vectors) + 9 * torch.eye(len(vectors))
    assert apart.min() > 0.1


def test_one_dimension_is_as_ever():
    line = GridSinusoids((9,), 12)((9,))
    usual = SinusoidalPositions(12, interleaved=False)(torch.arange(9)[None])
    torch.testing.assert_close(line, usual)
    ours = GridRotary((9,), 8, 10_000.0)((9,))
    theirs = Rotary.plain(8)(torch.arange(9)[None])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_another_grid_is_spread_over_the_usual_places():
    positions = GridSinusoids((4, 4), 16)
    wide = positions((4, 8)).view(4, 8, 16)
    torch.testing.assert_close(wide[:, ::2], positions((4, 4)).view(4, 4, 16))
    half = GridSinusoids((4, 4), 16, interpolation=2.0)
    torch.testing.assert_close(half((4, 4)).view(4, 4, 16)[::2, ::2], wide[:2, :4:2])


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("head_width", [12, 10])
def test_turned_queries_and_keys_see_how_far_apart_they_are(grid, head_width):
    """Equal queries and keys everywhere: a score is the same wherever the distance is."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(head_width, generator=generator).expand(1, 1, 1, -1) for _ in range(2))
    rotation = GridRotary(grid, head_width, 100.0)(grid)
    count = torch.Size(grid).numel()
    q, k = (rotate(x.expand(1, 1, count, -1), rotation)[0, 0] for x in (q, k))
    scores, at = q @ k.T, places(grid, (1.0,) * len(grid), "cpu")
    known: dict[tuple, torch.Tensor] = {}
    for i in range(count):
        for j in range(count):
            apart = tuple((at[i] - at[j]).tolist())
            torch.testing.assert_close(known.setdefault(apart, scores[i, j]), scores[i, j])
    values = torch.stack(list(known.values()))
    assert len(values.round(decimals=4).unique()) == len(values)  # and no two distances look alike


@pytest.mark.parametrize("grid", GRIDS)
def test_patches_with_their_channels_last(grid):
    patch = (2, 3, 1)[: len(grid)]
    sizes = [count * one for count, one in zip(grid, patch, strict=True)]
    signal = torch.randn(2, 5, *sizes)
    tokens = patchify(signal, patch)
    last = tokens.unflatten(-1, (5, -1)).mT.flatten(-2)
    assert torch.equal(unpatchify(tokens, patch, grid), signal)
    assert torch.equal(unpatchify(last, patch, grid, channels_last=True), signal)
