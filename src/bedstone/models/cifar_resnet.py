"""ResNet-20, -56 and their like for pictures of 32 pixels: `cifar10-resnet*.safetensors`.

He et al. (2016), section 4.2: three stages of 16, 32 and 64 channels; a shortcut that changes size
takes every second pixel and adds channels of zeros (option A). Names are those of akamaster's
implementation, whose weights are published.

Shapes: B pictures, H and W of one, L labels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64)  # channels of the stages; the last is the features'


class CifarBlock(nn.Module):
    """relu(x + two convolutions), without a bias, each with its norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if inner.shape != x.shape:
            more = (inner.shape[1] - x.shape[1]) // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more, more))
        return (inner + x).relu()


class CifarResNet(nn.Module):
    """Normalised pictures (B, 3, H, W) to logits (B, L).

    Args:
        blocks: of each of the three stages: 3 make a ResNet-20, 9 a ResNet-56.
    """

    def __init__(self, blocks: int = 3, labels: int = 10) -> None:
        super().__init__()
        first = WIDTHS[0]
        self.conv1 = nn.Conv2d(3, first, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(first, WIDTHS[0], blocks, 1)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], blocks, 2)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], blocks, 2)
        self.linear = nn.Linear(WIDTHS[2], labels)

    def features(self, pixels: Tensor) -> Tensor:
        """(B, 64): the mean of the last map."""
        x = self.bn1(self.conv1(pixels)).relu()
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.linear(self.features(pixels))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [CifarBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(CifarBlock(inputs, outputs, stride), *rest)
