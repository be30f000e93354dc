"""Signals of any number of dimensions as tokens, and back: a patch of samples is a token.

One dimension is audio, two are a picture, three a video or a volume. A patch's samples stand as a
convolution's weights do: channels first, then the dimensions in their order (ViT, Dosovitskiy et
al., 2021, section 3.1).

Shapes: B batch, C channels, S the sizes of a signal, G patches along each dimension, T tokens (the
product of G, the last dimension fastest), P samples of a patch in all channels, D width.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def grid_of(sizes: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """Whole patches along each dimension."""
    return tuple(size // one for size, one in zip(sizes, patch, strict=True))


def patchify(signal: Tensor, patch: Sequence[int]) -> Tensor:
    """(B, C, *S) to (B, T, P). What is left of a dimension after whole patches is dropped."""
    grid = grid_of(signal.shape[2:], patch)
    for dim, (count, one) in enumerate(zip(grid, patch, strict=True), 2):
        signal = signal.narrow(dim, 0, count * one)
    parted = [size for pair in zip(grid, patch, strict=True) for size in pair]
    signal = signal.reshape(*signal.shape[:2], *parted)  # (B, C, G1, p1, G2, p2, ...)
    counts = range(2, signal.dim(), 2)
    within = range(3, signal.dim(), 2)
    return signal.permute(0, *counts, 1, *within).flatten(1 + len(grid)).flatten(1, -2)


def unpatchify(
    tokens: Tensor, patch: Sequence[int], grid: Sequence[int], *, channels_last: bool = False
) -> Tensor:
    """(B, T, P) to (B, C, *S), S = G times the patch.

    Args:
        channels_last: whether a patch's samples stand with their channels last, not first.
    """
    count = len(grid)
    channels = tokens.shape[-1] // math.prod(patch)
    within = (*patch, channels) if channels_last else (channels, *patch)
    parted = tokens.reshape(len(tokens), *grid, *within)
    first = 1 + count if channels_last else 2 + count
    order = [1 + 2 * count if channels_last else 1 + count]
    for dim in range(count):
        order += [1 + dim, first + dim]
    sizes = [each * one for each, one in zip(grid, patch, strict=True)]
    return parted.permute(0, *order).reshape(len(tokens), channels, *sizes)


class PatchEmbed(nn.Module):
    """Each patch through one linear map, (B, C, *S) to (B, T, D).

    The same as a convolution whose stride is its size, and its weights stand as that one's do; as
    a product it is faster on a CPU, and patches that nobody reads are left out before it.

    Args:
        patch: its size along each dimension.
        channels: C.
        width: D.
        bias: whether one is added.
    """

    def __init__(
        self, patch: Sequence[int], channels: int, width: int, *, bias: bool = True
    ) -> None:
        super().__init__()
        self.patch = tuple(patch)
        self.weight = nn.Parameter(torch.empty(width, channels, *self.patch))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)

    def forward(self, signal: Tensor, kept: Tensor | None = None) -> Tensor:
        """`kept`: (B, K) numbers of the patches that are read; all where None. (B, T or K, D)."""
        tokens = chosen(patchify(signal, self.patch), kept)
        return F.linear(tokens, self.weight.flatten(1), self.bias)


class OverlapEmbed(PatchEmbed):
    """Patches that read `overlap` samples beyond each of their edges, zeros beyond the signal's.

    A convolution whose stride is smaller than its width, as a product all the same.
    """

    def __init__(self, patch: Sequence[int], channels: int, width: int, overlap: int) -> None:
        super().__init__([one + 2 * overlap for one in patch], channels, width)
        self.stride, self.overlap = tuple(patch), overlap

    def forward(self, signal: Tensor, kept: Tensor | None = None) -> Tensor:
        count = len(self.stride)
        parted = F.pad(signal, [self.overlap] * (2 * count))
        for dim, (wide, step) in enumerate(zip(self.patch, self.stride, strict=True), 2):
            parted = parted.unfold(dim, wide, step)  # (B, C, G1, ..., k1, ...)
        counts = range(2, 2 + count)
        tokens = parted.permute(0, *counts, 1, *range(2 + count, 2 + 2 * count))
        tokens = tokens.flatten(1 + count).flatten(1, count).to(self.weight.dtype)
        return F.linear(chosen(tokens, kept), self.weight.flatten(1), self.bias)


def chosen(tokens: Tensor, kept: Tensor | None) -> Tensor:
    """Of (B or 1, T, D) the tokens (B, K, D) at `kept`, (B, K); all where None."""
    if kept is None:
        return tokens
    whole = tokens.expand(len(kept), -1, -1)
    return whole.gather(1, kept[:, :, None].expand(-1, -1, whole.shape[-1]))
