"""The eight backgrounds of `scenes`: pale and quiet, so that every colour stands out before them.

Patterns are made of straight waves and soft steps, no sines: every machine rounds them alike.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[Any]

_TINTS = (  # a light colour and its neighbour, for each tint
    ((246, 240, 228), (233, 223, 204)),  # sand
    ((228, 240, 236), (208, 226, 220)),  # mint
    ((226, 234, 246), (205, 217, 235)),  # mist
    ((240, 232, 244), (224, 212, 232)),  # lilac
    ((243, 243, 241), (222, 222, 220)),  # chalk
)
_CACHED = 256  # pictures of at most this side are kept: 12 kB each at 64


def soft(distance: Field, width: float) -> Field:
    """1 where `distance` is below 0, 0 above, and a slope `width` wide between."""
    return np.clip(0.5 - distance / width, 0, 1)


def _wave(x: Field) -> Field:
    """A zigzag of period 1 from -1 to 1."""
    return np.abs(x - np.floor(x) - 0.5) * 4 - 1


def _mix(low: tuple[int, int, int], high: tuple[int, int, int], share: Field) -> Field:
    one, other = np.array(low, np.float32), np.array(high, np.float32)
    return one + (other - one) * share[..., None]  # (H, W, 3)


def _plain(x: Field, y: Field, edge: float, tint: int, variant: int) -> Field:
    light, shade = _TINTS[tint]
    return _mix(light, shade, ((x - 0.5) ** 2 + (y - 0.5) ** 2) * 0.7)


def _gradient(x: Field, y: Field, edge: float, tint: int, variant: int) -> Field:
    share = (y + 0 * x, x + 0 * y, (x + y) / 2, (1 - x + y) / 2)[variant]
    low, high = _TINTS[tint][0], _TINTS[(tint + 2) % len(_TINTS)][1]
    return _mix((250, 249, 246), low, share * 0) * (1 - share[..., None]) + (
        _mix(high, high, share) * 0.94 * share[..., None]
    )


def _stripes(x: Field, y: Field, edge: float, tint: int, variant: int) -> Field:
    along = (x + 0 * y, y + 0 * x, (x + y) * 0.7071, (x - y) * 0.7071)[variant]
    return _mix(*_TINTS[tint], soft(_wave(along * 5.5 + 0.2) / 22, edge))


def _dots(x: Field, y: Field, edge: float, tint: int, variant: int) -> Field:
    count = (5, 6, 7, 8)[variant]
    column = x * count
    u, v = column - np.floor(column) - 0.5, y * count + np.floor(column) * 0.5
    v = v - np.floor(v) - 0.5
    return _mix(*_TINTS[tint], soft((np.sqrt(u * u + v * v) - 0.24) / count, edge))


def _checks(x: Field, y: Field, edge: float, tint: int, variant: int) -> Field:
    count = (3, 3.5, 4, 4.5)[variant]
    u, v = _wave(x * count + 0.25) / (4 * count), _wave(y * count + 0.25) / (4 * count)
    across, down = soft(u, edge), soft(v, edge)
    return _mix(*_TINTS[tint], across + down - 2 * across * down)


def _meadow(x: Field, y: Field, edge: float, tint: int, variant: int) -> Field:
    sky = _mix((196, 220, 244), (232, 242, 250), y * 1.4 + 0 * x)
    high = (0.62, 0.66, 0.70, 0.64)[variant]
    for cloud, wide in (((0.2, 0.16), 0.11), ((0.62, 0.1), 0.13), ((0.86, 0.26), 0.09)):
        left, top = cloud[0] + 0.07 * (variant - 1), cloud[1] + 0.02 * tint
        for shift, share in ((-0.8, 0.6), (0.0, 1.0), (0.8, 0.7)):
            u, v = (x - left - shift * wide) / wide, (y - top) / (wide * 0.55)
            away = np.sqrt(u * u + v * v) - share
            sky += (np.float32(252) - sky) * soft(away, 0.5)[..., None] * 0.75
    swell = (x - 0.3 - 0.12 * variant) ** 2
    far = soft(high - 0.07 + swell * 0.16 - y, edge)
    near = soft(high + 0.1 - swell * 0.2 - y, edge)
    ground = sky + (_mix((206, 222, 176), (196, 214, 166), y + 0 * x) - sky) * far[..., None]
    return ground + (_mix((190, 212, 150), (176, 200, 138), y + 0 * x) - ground) * near[..., None]


def _paper(x: Field, y: Field, edge: float, tint: int, variant: int) -> Field:
    page = _mix((252, 251, 244), (244, 242, 232), (x + y) / 2)
    lines = (8, 9, 10, 11)[variant]
    ruled = soft((0.94 - _wave(y * lines)) / (4 * lines), edge)[..., None] * 0.75
    page = page + (np.array((166, 194, 226), np.float32) - page) * ruled
    margin = soft(np.abs(x - 0.11) - 0.004, edge)[..., None] * 0.6
    return page + (np.array((232, 150, 150), np.float32) - page) * margin


def _night(x: Field, y: Field, edge: float, tint: int, variant: int) -> Field:
    sky = _mix((16, 20, 44), (44, 48, 88), y + 0 * x)
    for number in range(26):  # stars, scattered by the golden ratio
        turn = number * 0.618034 + variant * 0.37 + tint * 0.11
        left, top = turn - int(turn), (number + 0.5) / 26
        size = 0.0035 + 0.0015 * (number % 4)
        away = np.sqrt((x - left) ** 2 + (y - top) ** 2) - size
        sky += (np.float32(236) - sky) * soft(away, max(edge, 0.006))[..., None] * 0.8
    return sky


_PAINTERS: dict[str, Callable[[Field, Field, float, int, int], Field]] = {
    "plain": _plain,
    "gradient": _gradient,
    "stripes": _stripes,
    "dots": _dots,
    "checks": _checks,
    "meadow": _meadow,
    "paper": _paper,
    "night": _night,
}


def paint(name: str, tint: int, variant: int, size: int) -> Field:
    """A background (size, size, 3), 0 to 255, that the caller may draw on."""
    return (_kept if size <= _CACHED else _painted)(name, tint, variant, size).astype(np.float32)


def _painted(name: str, tint: int, variant: int, size: int) -> NDArray[np.uint8]:
    middle = (np.arange(size, dtype=np.float32) + 0.5) / size
    painted = _PAINTERS[name](middle[None, :], middle[:, None], 1 / size, tint, variant)
    return (painted + 0.5).astype(np.uint8)


_kept = functools.lru_cache(maxsize=256)(_painted)
