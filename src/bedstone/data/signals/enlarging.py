"""Smaller images beside which a network draws larger ones (cascades: Ho et al., 2021).

In training the smaller image is made of the larger one, and noised, so that faults of another
model's image aren't taken for details; how much is given by one more channel.

Shapes: B images, C channels, h x w pixels of the smaller ones, H x W of the larger.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bedstone.settings import Settings, number, whole

USUAL_NOISE = 0.05  # of a smaller image where nothing is said


@dataclass(frozen=True)
class Enlarging(Settings):
    """How smaller images are made of larger ones, and read beside them.

    Attributes:
        factor: how many times as wide and high the larger ones are.
        noise: deviation of the noise in the smaller ones, at most.
    """

    section: ClassVar[str] = "enlarging."

    factor: int = whole(2, default=2)
    noise: float = number(0.0, 1.0, default=0.3)

    def __call__(self, images: Tensor, random: np.random.Generator | None) -> Tensor:
        """What is read beside images (B, C, H, W): (B, C + 1, H, W).

        Args:
            random: draws each row's noise, from 0 to the most; None has the usual one, and the
                same in each call.
        """
        found = smaller(images, self.factor)
        count, usual = len(images), min(USUAL_NOISE, self.noise)
        chance = np.random.default_rng(0) if random is None else random
        levels = np.full(count, usual) if random is None else chance.random(count) * self.noise
        noise = chance.standard_normal(found.shape, dtype=np.float32)
        return read_beside(
            found, images.shape[2:], torch.from_numpy(levels).float(), torch.from_numpy(noise)
        )


def smaller(images: Tensor, factor: int) -> Tensor:
    """Images (B, C, H, W) with each `factor` x `factor` pixels as one, their mean."""
    return F.avg_pool2d(images, factor)


def larger(images: Tensor, size: Sequence[int]) -> Tensor:
    """Images (B, C, h, w) of a size (H, W), by bicubic interpolation, -1 to 1."""
    found = F.interpolate(images, size=tuple(size), mode="bicubic", align_corners=False)
    return found.clamp(-1, 1)


def read_beside(small: Tensor, size: Sequence[int], levels: Tensor, noise: Tensor) -> Tensor:
    """Smaller images (B, C, h, w) as a network reads them beside larger ones: (B, C + 1, H, W).

    Args:
        size: (H, W) of the larger ones.
        levels: (B,), deviations of the noise; the last channel says them.
        noise: (B, C, h, w), of deviation 1.
    """
    noised = small + levels[:, None, None, None].to(small) * noise.to(small)
    wide = F.interpolate(noised, size=tuple(size), mode="bilinear", align_corners=False)
    channel = levels[:, None, None, None].to(small).expand(-1, 1, *size)
    return torch.cat((wide, channel), 1)
