"""Convolutions at a signal's full size, around a network over patches.

A transformer learns an edge anew for each place that it can have in a patch; to a convolution all
places are one. These see the signal before it is parted, and once more, beside what the
transformer says of each sample, after (UViT, Hoogeboom et al., 2023, section 3.3).

Shapes: B batch, C channels, S the sizes of a signal of 1 to 3 dimensions, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.nn.residual import zeroed


class Conv3d(nn.Conv3d):
    """In fp32 on a CPU: of bf16, torch 2.13 now and then makes gradients that are not finite."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast("cpu", enabled=False):
            return self._conv_forward(x.float(), self.weight.float(), bias).to(x.dtype)


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, Conv3d)
# How a CPU's convolutions read a signal fastest.
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


class FineBlock(nn.Module):
    """x + two convolutions of it, which are nothing at first; (B, W, *S) to the same."""

    def __init__(self, dimensions: int, width: int) -> None:
        super().__init__()
        kind = CONVOLUTIONS[dimensions - 1]
        self.first = kind(width, width, 3, padding=1)
        self.second = zeroed(kind(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class FineIn(nn.Module):
    """Signals (B, C, *S) to what patches are made of, (B, W, *S)."""

    def __init__(self, dimensions: int, channels: int, width: int) -> None:
        super().__init__()
        self.embed = CONVOLUTIONS[dimensions - 1](channels, width, 3, padding=1)
        self.block = FineBlock(dimensions, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.embed.weight.dtype, memory_format=_format(x))
        return self.block(self.embed(x))


class FineOut(nn.Module):
    """What is said of each sample (B, W, *S), with what went in, to (B, C, *S)."""

    def __init__(self, dimensions: int, width: int, channels: int) -> None:
        super().__init__()
        self.block = FineBlock(dimensions, width)
        self.out = CONVOLUTIONS[dimensions - 1](width, channels, 3, padding=1)

    def forward(self, x: Tensor, went_in: Tensor) -> Tensor:
        """
        Args:
            x: (B, W, *S).
            went_in: what `FineIn` gave, (B, W, *S).
        """
        x = x.to(went_in.dtype, memory_format=_format(x)) + went_in
        return self.out(F.silu(self.block(x)))


def _format(x: Tensor) -> torch.memory_format:
    return _FORMATS.get(x.dim(), torch.contiguous_format)
