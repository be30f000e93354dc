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
