"""The judge of an adversarial loss: is each patch of a picture real? (Isola et al., 2017.)

Group norms stand in the place of batch norms, so that a verdict depends on its own picture alone.

Shapes: B pictures, C channels, H x W pixels, h x w patches.
"""

import torch
from torch import Tensor, nn

from bedstone.nn.maps import GroupNorm

GROUPS = 4


class PatchGAN(nn.Module):
    """(B, C, H, W) to verdicts (B, 1, h, w), high where a patch looks real.

    Args:
        channels: of the pictures.
        width: channels of the first map; a multiple of 4. Each further one has twice as many.
        layers: how often the map is halved; 3 is as published, for pictures of 256 pixels.
    """

    def __init__(self, channels: int, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for number in range(1, layers + 1):
            outputs = width * 2
            stride = 2 if number < layers else 1
            parts += [
                nn.Conv2d(width, outputs, 4, stride, 1, bias=False),
                GroupNorm(GROUPS, outputs),
                nn.LeakyReLU(0.2),
            ]
            width = outputs
        self.parts = nn.Sequential(*parts, nn.Conv2d(width, 1, 4, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.parts(pixels)


def least_side(layers: int) -> int:
    """Pixels of a side that one patch takes at least."""
    return 3 * 2**layers


def build(channels: int, width: int, layers: int, *, seed: int) -> PatchGAN:
    """One with fresh weights; what else is drawn by torch's generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PatchGAN(channels, width, layers)
