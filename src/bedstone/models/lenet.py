"""LeNet-5 for digits, as a judge of drawn ones: the network of `mnist-lenet.safetensors`.

LeCun et al. (1998), with ReLU and maxima in the place of tanh and averages; its names are those of
the published weights (`convnet.c1`, ..., `fc.f7`).

Shapes: B pictures, L labels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 32  # of the pictures it reads
WIDTH = 84  # of its features


class LeNet(nn.Module):
    """Grey pictures (B, 1, 32, 32) from 0 (paper) to 1 (ink) to logits (B, L)."""

    def __init__(self, labels: int = 10) -> None:
        super().__init__()
        maps = {"c1": (1, 6), "c3": (6, 16), "c5": (16, 120)}
        self.convnet = nn.ModuleDict({name: nn.Conv2d(*sides, 5) for name, sides in maps.items()})
        self.fc = nn.ModuleDict({"f6": nn.Linear(120, WIDTH), "f7": nn.Linear(WIDTH, labels)})

    def features(self, pixels: Tensor) -> Tensor:
        """(B, 84): the states before the labels."""
        x = F.max_pool2d(self.convnet["c1"](pixels).relu(), 2)  # (B, 6, 14, 14)
        x = F.max_pool2d(self.convnet["c3"](x).relu(), 2)  # (B, 16, 5, 5)
        return self.fc["f6"](self.convnet["c5"](x).relu().flatten(1)).relu()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.fc["f7"](self.features(pixels))
