"""Residual convolution blocks, without blur from strides.

A stride that skips samples aliases; here every stride is an average over what it steps over
(Zhang, 2019), as in CLIP's ResNets (Radford et al., 2021, section 2.4). Batch norms fold into
their convolutions for inference.

Shapes: B batch, C channels, H and W.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.nn.attention import SelfAttention
from bedstone.nn.blocks import Context, zeroed
from bedstone.nn.layers import Activation
from bedstone.nn.masks import Full


class ConvNorm(nn.Module):
    """Convolution without a bias, batch norm, and ReLU where `active`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, active: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False
        )
        self.norm = nn.BatchNorm2d(outputs)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.relu(x, inplace=True) if self.active else x

    @torch.no_grad()
    def folded(self, dtype: torch.dtype) -> "Folded":
        """The same for inference, as one convolution with a bias, in `dtype`."""
        norm, conv = self.norm, self.conv
        assert norm.running_var is not None and norm.running_mean is not None
        rate = norm.weight.float() * (norm.running_var.float() + norm.eps).rsqrt()  # (C,)
        weight = conv.weight.float() * rate[:, None, None, None]
        bias = norm.bias.float() - norm.running_mean.float() * rate
        return Folded(weight.to(dtype), bias.to(dtype), conv, self.active)


class Folded(nn.Module):
    """A convolution with its norm folded in."""

    def __init__(self, weight: Tensor, bias: Tensor, conv: nn.Conv2d, active: bool) -> None:
        super().__init__()
        laid = weight.contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(laid, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.stride: Any = conv.stride
        self.padding: Any = conv.padding
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x.to(self.weight.dtype), self.weight, self.bias, self.stride, self.padding)
        return F.relu_(x) if self.active else x


class Shrink(nn.Module):
    """The average of each square of `stride` by `stride`; nothing where that is 1."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x if self.stride == 1 else F.avg_pool2d(x, self.stride)


class Shortcut(nn.Module):
    """What a block adds to where it changes size or channels: shrunk, then mapped."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.shrink = Shrink(stride)
        self.map = ConvNorm(inputs, outputs, 1, active=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(self.shrink(x))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The identity where nothing changes."""
    plain = inputs == outputs and stride == 1
    return nn.Identity() if plain else Shortcut(inputs, outputs, stride)


class Bottleneck(nn.Module):
    """relu(x + map(shrink(conv(map(x))))): narrow inside by four (He et al., 2016, figure 5)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = ConvNorm(inputs, width, 1)
        self.conv2 = ConvNorm(width, width, 3)
        self.shrink = Shrink(stride)
        self.conv3 = ConvNorm(width, outputs, 1, active=False)
        self.skip = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv3(self.shrink(self.conv2(self.conv1(x))))
        return F.relu(inner + self.skip(x))


class Basic(nn.Module):
    """relu(x + conv(shrink(conv(x)))): two convolutions of 3 by 3, for small pictures."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, width, 3)
        self.shrink = Shrink(stride)
        self.conv2 = ConvNorm(width, width, 3, active=False)
        self.skip = shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv2(self.shrink(self.conv1(x)))
        return F.relu(inner + self.skip(x))


# Residual blocks over maps with group norms, as autoencoders and U-Nets have them.
#
# Maps stay laid out channel by channel: on a CPU a step in the other order (channels last) takes
# 1.2 times as long here, and torch 2.13 ends the process in the backward pass of a group norm whose
# input is laid so and needs no gradient.
#
# Shapes: B batch, C channels, H and W of a map.

EPS = 1e-6


class GroupNorm(nn.GroupNorm):
    """Mean and variance of groups of channels normalised (Wu and He, 2018), in fp32 inside."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous())


class UNetBlock(nn.Module):
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


class UNetAttention(nn.Module):
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
        self.first = UNetBlock(channels, channels, groups, activation)
        self.attention = UNetAttention(channels, groups) if attends else nn.Identity()
        self.last = UNetBlock(channels, channels, groups, activation)

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


# Convolutions at a signal's full size, around a network over patches.
#
# A transformer learns an edge anew for each place that it can have in a patch; to a convolution all
# places are one. These see the signal before it is parted, and once more, beside what the
# transformer says of each sample, after (UViT, Hoogeboom et al., 2023, section 3.3).
#
# Shapes: B batch, C channels, S the sizes of a signal of 1 to 3 dimensions, W width.


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


class FullResolutionBlock(nn.Module):
    """x + two convolutions of it, which are nothing at first; (B, W, *S) to the same."""

    def __init__(self, dimensions: int, width: int) -> None:
        super().__init__()
        kind = CONVOLUTIONS[dimensions - 1]
        self.first = kind(width, width, 3, padding=1)
        self.second = zeroed(kind(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class FullResolutionIn(nn.Module):
    """Signals (B, C, *S) to what patches are made of, (B, W, *S)."""

    def __init__(self, dimensions: int, channels: int, width: int) -> None:
        super().__init__()
        self.embed = CONVOLUTIONS[dimensions - 1](channels, width, 3, padding=1)
        self.block = FullResolutionBlock(dimensions, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.embed.weight.dtype, memory_format=_format(x))
        return self.block(self.embed(x))


class FullResolutionOut(nn.Module):
    """What is said of each sample (B, W, *S), with what went in, to (B, C, *S)."""

    def __init__(self, dimensions: int, width: int, channels: int) -> None:
        super().__init__()
        self.block = FullResolutionBlock(dimensions, width)
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
