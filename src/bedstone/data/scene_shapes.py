"""The eight shapes of `scenes`, as signed distances: below 0 inside, above 0 outside.

u goes right and v goes down, in units of the thing's radius; every shape lies within `REACH` of its
centre and covers about as much as the others. Only + - * / and square roots are used, which every
machine rounds alike, so a scene and its pixels are the same everywhere.

Star and heart follow Quilez, "2D distance functions" (iquilezles.org/articles/distfunctions2d).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[Any]

REACH = 1.16  # no point of a shape is farther than this many radii from its centre

# Cosine and sine of 72 and 36 degrees, written out: libraries differ in their last digit.
_COS36, _SIN36 = 0.80902, 0.58779


def _length(u: Field, v: Field) -> Field:
    return np.sqrt(u * u + v * v)


def circle(u: Field, v: Field) -> Field:
    return _length(u, v) - 0.96


def square(u: Field, v: Field) -> Field:
    x, y = np.abs(u) - 0.72, np.abs(v) - 0.72
    outside = _length(np.maximum(x, 0), np.maximum(y, 0))
    return outside + np.minimum(np.maximum(x, y), 0) - 0.08  # corners rounded by 0.08


def triangle(u: Field, v: Field) -> Field:
    slope = 0.89443 * np.abs(u) - 0.44721 * (v + 1.02)  # the two sides, 1 across for 2 down
    return np.maximum(slope, v - 0.76)


def star(u: Field, v: Field) -> Field:
    x, y = np.abs(u), -v  # its top points up
    along = np.maximum(_COS36 * x - _SIN36 * y, 0) * 2  # fold five points onto one
    x, y = x - along * _COS36, y + along * _SIN36
    along = np.maximum(-_COS36 * x - _SIN36 * y, 0) * 2
    x, y = np.abs(x + along * _COS36), y + along * _SIN36
    y = y - 1.12
    # One edge, from the tip to the notch beside it.
    ex, ey = 0.5 * _SIN36, 0.5 * _COS36 - 1.0
    share = np.clip((x * ex + y * ey) / (ex * ex + ey * ey), 0, 1.12)
    away = _length(x - ex * share, y - ey * share)
    return np.copysign(away, y * ex - x * ey) - 0.04


def heart(u: Field, v: Field) -> Field:
    scale = 1.72
    x, y = np.abs(u) / scale, (0.97 - v) / scale
    lobe = _length(x - 0.25, y - 0.75) - 0.35355
    half = np.maximum(x + y, 0) / 2
    point = np.minimum(x * x + (y - 1) * (y - 1), (x - half) ** 2 + (y - half) ** 2)
    return np.where(x + y > 1, lobe, np.copysign(np.sqrt(point), x - y)) * scale


def cross(u: Field, v: Field) -> Field:
    x, y = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(x - 1, y - 0.36), np.maximum(x - 0.36, y - 1))


def ring(u: Field, v: Field) -> Field:
    return np.abs(_length(u, v) - 0.73) - 0.28


def moon(u: Field, v: Field) -> Field:
    """A crescent, open to the right."""
    return np.maximum(_length(u - 0.1, v) - 1.04, 0.9 - _length(u - 0.62, v))


DISTANCES: dict[str, Callable[[Field, Field], Field]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "heart": heart,
    "cross": cross,
    "ring": ring,
    "moon": moon,
}
SHAPES = tuple(DISTANCES)
