"""Residual blocks over maps with group norms, as autoencoders and U-Nets have them.

Maps stay laid out channel by channel: on a CPU a step in the other order (channels last) takes
1.2 times as long here, and torch 2.13 ends the process in the backward pass of a group norm whose
input is laid so and needs no gradient.

Shapes: B batch, C channels, H and W of a map.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.nn.attention import SelfAttention
from bedstone.nn.context import Context
from bedstone.nn.layers import Activation
from bedstone.nn.masks import Full

EPS = 1e-6


class GroupNorm(nn.GroupNorm):
    """Mean and variance of groups of channels normalised (Wu and He, 2018), in fp32 inside."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous())


class MapBlock(nn.Module):
    """skip(x) + conv(act(norm(conv(act(norm(x)))))), (B, C, H, W) to (B, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int, groups: int, activation: Activation) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = GroupNorm(groups, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(self.activation(self.norm1(x)))
        inner = self.conv2(self.activation(self.norm2(inner)))
        return self.skip(x) + inner


class MapAttention(nn.Module):
    """x + attention of every place to all places, with one head."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels)
        self.attn = SelfAttention(channels, 1, bias=True, out_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        states = self.norm(x).flatten(2).transpose(1, 2)  # (B, H W, C)
        states = self.attn(states, Context(mask=Full()))
        return x + states.transpose(1, 2).reshape(x.shape)


class Middle(nn.Module):
    """Block, attention where it is asked for, block."""

    def __init__(
        self, channels: int, groups: int, activation: Activation, *, attends: bool
    ) -> None:
        super().__init__()
        self.first = MapBlock(channels, channels, groups, activation)
        self.attention = MapAttention(channels, groups) if attends else nn.Identity()
        self.last = MapBlock(channels, channels, groups, activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.attention(self.first(x)))


class Halve(nn.Module):
    """A convolution with stride 2, padded right and below alone: (B, C, H / 2, W / 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Double(nn.Module):
    """Each place four times, then a convolution: (B, C, 2 H, 2 W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
