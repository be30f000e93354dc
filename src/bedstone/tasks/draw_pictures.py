"""Pictures as signals to draw from: fitted to the size, and what of them is to be drawn anew.

Shapes: C channels, H and W.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from bedstone.data.images import decode
from bedstone.errors import BedstoneError


def picture_signal(picture: Any, shape: tuple[int, ...], where: str = "") -> Tensor:
    """A picture as (1, C, H, W) of -1 to 1: scaled to cover the size, its middle cut out.

    Args:
        picture: a path, bytes, an array (H, W, 3) or Pillow's.
        shape: (C, H, W); of one channel, it becomes grey.

    Raises:
        BedstoneError: it can't be read.
    """
    image = Image.fromarray(decode(picture, where=where))
    channels, high, wide = shape
    image = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (wide, high), _how(image))
    values = torch.from_numpy(np.array(image)).float() / 127.5 - 1
    return values.reshape(high, wide, channels).permute(2, 0, 1)[None]


def mask_signal(mask: Any, picture: Any, shape: tuple[int, ...]) -> Tensor:
    """A mask picture as (1, 1, H, W): 1 where it is white and something is to be drawn.

    Raises:
        BedstoneError: it can't be read, is of another size than the picture, or is black, so that
            nothing is to be drawn.
    """
    pixels, beside = decode(mask), decode(picture)
    if pixels.shape[:2] != beside.shape[:2]:
        (high, wide), (other, across) = pixels.shape[:2], beside.shape[:2]
        raise BedstoneError(
            f"mask: is {wide} x {high} pixels, and the picture {across} x {other}; expected the "
            "same size, white where something is to be drawn anew."
        )
    image = ImageOps.fit(
        Image.fromarray(pixels).convert("L"), (shape[2], shape[1]), Image.Resampling.BOX
    )
    values = torch.from_numpy(np.array(image)).float()[None, None] / 255
    if not values.any():
        raise BedstoneError("mask: is black all over, so nothing is to be drawn; paint it white.")
    return values


def _how(image: Image.Image) -> Image.Resampling:
    return Image.Resampling.LANCZOS if min(image.size) > 1 else Image.Resampling.NEAREST
