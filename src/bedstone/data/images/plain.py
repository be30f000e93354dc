"""Batches of images without texts, which autoencoders are trained on.

Shapes: B images, H x W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from bedstone.data.images.pixels import Augment, ImageCache, augmented
from bedstone.data.stream import Batch, Stream


@dataclass(frozen=True)
class PixelBatch(Batch):
    """A batch of images.

    Attributes:
        pixels: (B, 3, H, W) fp32, from -1 to 1.
        number: which batch of the stream this is, from 0.
        places: where each image is from.
    """

    pixels: Tensor
    number: int
    places: list[str]

    by_row = ("pixels", "places")

    @property
    def items(self) -> int:
        return len(self.pixels)

    @property
    def target_count(self) -> int:
        return self.items


@dataclass(frozen=True)
class PixelCollate:
    """Makes a `PixelBatch` of some images.

    Attributes:
        normalise: (B, H, W, 3) uint8 to (B, 3, H, W) fp32.
        augment: how images are changed.
    """

    images: ImageCache
    normalise: Callable[[Tensor], Tensor]
    augment: Augment | None = None

    def __call__(self, rows: np.ndarray, random: np.random.Generator, number: int) -> PixelBatch:
        found, pixels = self.images.read(self.images.readable[rows])
        places = [self.images.rows[int(i)].place for i in found]
        return PixelBatch(self.normalise(augmented(self.augment, pixels, random)), number, places)


def pixel_stream(
    images: ImageCache,
    batch_size: int,
    normalise: Callable[[Tensor], Tensor],
    *,
    augment: Augment | None = None,
    seed: int = 0,
    workers: int = 1,
) -> Stream[PixelBatch]:
    """The endless stream of `PixelBatch`; see `PixelCollate`."""
    collate = PixelCollate(images, normalise, augment)
    return Stream(len(images.readable), collate, batch_size, seed=seed, workers=workers)
