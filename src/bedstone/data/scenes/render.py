"""Rendering of scenes: backgrounds, signs, and antialiased shapes with shadows.

Patterns are made of straight waves and soft steps, no sines: every machine rounds them alike.
"""

import functools
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedstone.data.scenes.world import COLOURS, DISTANCES, REACH, Scene, Sign, Thing, turned
from bedstone.errors import BedstoneError

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
    """1 where `distance` is below 0, 0 above, with a slope of `width` between."""
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


# Letters and digits as strokes, so that signs are crisp at any size and need no font.
#
# A glyph lies on a grid 4 wide and 6 high, (0, 0) at its top left. `|` lifts the pen between
# strokes; a corner is two digits, x then y.

WIDTH, HEIGHT = 4, 6

_STROKES = {
    "A": "06 02 10 30 42 46|04 44",
    "B": "00 30 41 42 33 44 45 36 06 00|03 33",
    "C": "41 30 10 01 05 16 36 45",
    "D": "00 20 42 44 26 06 00",
    "E": "40 00 06 46|03 33",
    "F": "40 00 06|03 33",
    "G": "41 30 10 01 05 16 36 45 43 23",
    "H": "00 06|40 46|03 43",
    "I": "10 30|20 26|16 36",
    "J": "20 40 45 36 16 05",
    "K": "00 06|40 03 46",
    "L": "00 06 46",
    "M": "06 00 23 40 46",
    "N": "06 00 46 40",
    "O": "10 30 41 45 36 16 05 01 10",
    "P": "06 00 30 41 42 33 03",
    "Q": "10 30 41 45 36 16 05 01 10|24 46",
    "R": "06 00 30 41 42 33 03|23 46",
    "S": "41 30 10 01 02 13 33 44 45 36 16 05",
    "T": "00 40|20 26",
    "U": "00 05 16 36 45 40",
    "V": "00 26 40",
    "W": "00 16 23 36 40",
    "X": "00 46|40 06",
    "Y": "00 23 40|23 26",
    "Z": "00 40 06 46",
    "0": "10 30 41 45 36 16 05 01 10",
    "1": "11 20 26|16 36",
    "2": "01 10 30 41 42 06 46",
    "3": "00 40 22 32 43 45 36 16 05",
    "4": "36 30 04 44",
    "5": "40 00 03 32 43 45 36 16 05",
    "6": "40 20 02 05 16 36 45 44 33 03",
    "7": "00 40 16",
    "8": "10 30 41 42 33 13 02 01 10|13 04 05 16 36 45 44 33",
    "9": "43 13 02 01 10 30 41 44 26 06",
}


@functools.lru_cache(maxsize=64)
def segments(text: str, gap: float = 2.0) -> NDArray[Any]:
    """The straight strokes of a text on one line, (n, 4): from x, y to x, y.

    In grid cells, with `gap` cells between glyphs, and (0, 0) at the middle of the line. What has
    no glyph is left out as a space would be.
    """
    found = []
    for place, glyph in enumerate(text.upper()):
        left = place * (WIDTH + gap)
        for stroke in _STROKES.get(glyph, "").split("|"):
            corners = [(left + int(corner[0]), int(corner[1])) for corner in stroke.split()]
            found += [(*one, *other) for one, other in pairwise(corners)]
    width = len(text) * (WIDTH + gap) - gap
    middle = (width / 2, HEIGHT / 2) * 2
    return np.array(found, np.float32).reshape(-1, 4) - np.array(middle, np.float32)


def glyph_distance(text: str, x: NDArray[Any], y: NDArray[Any], gap: float = 2.0) -> NDArray[Any]:
    """How far points, in grid cells from the middle of the line, are from the nearest stroke.

    x and y: any shapes that broadcast to (H, W), which is the shape of the result.
    """
    nearest = np.full(np.broadcast_shapes(x.shape, y.shape), 1e6, np.float32)
    for x0, y0, x1, y1 in segments(text, gap):
        dx, dy = x1 - x0, y1 - y0
        along = ((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy)
        along = np.minimum(np.maximum(along, 0), 1)
        u, v = x - x0 - dx * along, y - y0 - dy * along
        np.minimum(nearest, u * u + v * v, out=nearest)
    return np.sqrt(nearest)


# A scene's picture, at any resolution: antialiased shapes with an outline and a soft shadow.
#
# The distance of a pixel's centre from a shape's edge, up to half a pixel either way, gives its
# coverage: nothing is supersampled, and 64 by 64 takes less than a millisecond on one core.


_OUTLINE = 0.013  # widths and shifts as shares of the picture's side
_SHADOW = 0.018
_BLUR = 0.02
_LIGHT = {"yellow", "cyan", "pink", "orange", "grey"}  # white stripes would hardly show on these
_INK = np.array((38, 40, 48), np.float32)
_BOARD = np.array((253, 252, 248), np.float32)


def draw(scene: Scene, size: int = 64) -> NDArray[np.uint8]:
    """The image of a scene, (size, size, 3), RGB.

    Raises:
        BedstoneError: `size` is not from 16 to 4096.
    """
    if not 16 <= size <= 4096:
        raise BedstoneError(
            f"scenes: a size of {size} pixels can't be drawn. Give a side from 16 to 4096."
        )
    canvas = paint(scene.background, scene.tint, scene.variant, size)
    dark = scene.background == "night"
    if scene.sign:
        _draw_sign(canvas, scene.sign)
    for thing in sorted(scene.objects, key=lambda thing: thing.z):
        _draw_thing(canvas, thing, dark)
    return (canvas + 0.5).astype(np.uint8)


class _Window:
    """A window of the image that an object may touch, and the centres of its pixels."""

    def __init__(self, canvas: Field, x: float, y: float, wide: float, high: float):
        size = canvas.shape[0]
        self.size, self.shift = size, max(1, round(_SHADOW * size))
        margin = self.shift + round(_BLUR * size) + 2
        left, right = int((x - wide) * size) - margin, int((x + wide) * size) + margin
        top, bottom = int((y - high) * size) - margin, int((y + high) * size) + margin
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, size), min(bottom, size)
        self.pixels = canvas[top:bottom, left:right]  # (h, w, 3), a view
        self.x = ((np.arange(left, right, dtype=np.float32) + 0.5) / size)[None, :]
        self.y = ((np.arange(top, bottom, dtype=np.float32) + 0.5) / size)[:, None]

    def cover(self, distance: Field) -> Field:
        """Which share of each pixel lies where `distance`, in picture sides, is below 0."""
        return np.minimum(np.maximum(0.5 - distance * self.size, 0), 1)

    def lay(self, colour: Field, share: Field) -> None:
        """Paints a colour, (3) or (h, w, 3), over a share (h, w) of each pixel."""
        self.pixels += (colour - self.pixels) * share[..., None]

    def shade(self, distance: Field) -> None:
        """A soft shadow of what `distance` says, to the lower right."""
        blur = max(_BLUR, 1.5 / self.size)
        share = np.minimum(np.maximum(0.5 - distance / blur, 0), 1) * np.float32(0.24)
        down = self.shift
        self.pixels[down:, down:] *= 1 - share[:-down, :-down, None]


def _draw_thing(canvas: Field, thing: Thing, dark: bool) -> None:
    reach = thing.radius * REACH
    window = _Window(canvas, thing.x, thing.y, reach, reach)
    u, v = turned(thing, window.x, window.y)
    distance = DISTANCES[thing.shape](u, v) * np.float32(thing.radius)
    window.shade(distance)
    colour = np.array(COLOURS[thing.colour], np.float32)
    edge = colour * 0.45 + 140 if dark else colour * 0.42
    window.lay(np.minimum(edge, 255), window.cover(distance))
    line = max(_OUTLINE, 0.8 / window.size)
    lit = 1.04 - 0.1 * (window.y - thing.y) / thing.radius  # light falls from above
    inside = np.minimum(colour * lit[..., None], 255)
    if thing.texture != "plain":
        other = colour * 0.3 if thing.colour in _LIGHT else colour * 0.1 + 228
        inside = inside + (other - inside) * _pattern(thing, u, v, window)[..., None]
    window.lay(inside, window.cover(distance + line))


def _pattern(thing: Thing, u: Field, v: Field, window: _Window) -> Field:
    """The mask of an object's stripes or dots, (h, w)."""
    if thing.texture == "striped":
        along = (u + v) * np.float32(0.7071 / 0.56)
        away = np.abs(along - np.floor(along) - 0.5) - 0.16
        return window.cover(away * np.float32(0.56 * thing.radius))
    column = u / np.float32(0.52)
    row = v / np.float32(0.52) + np.floor(column) * 0.5
    across, down = column - np.floor(column) - 0.5, row - np.floor(row) - 0.5
    away = np.sqrt(across * across + down * down) - 0.27
    return window.cover(away * np.float32(0.52 * thing.radius))


def _draw_sign(canvas: Field, sign: Sign) -> None:
    """A rounded white board with a dark frame and its text."""
    wide, high, corner = sign.width / 2, sign.height / 2, 0.03
    window = _Window(canvas, sign.x, sign.y, wide, high)
    x, y = window.x - np.float32(sign.x), window.y - np.float32(sign.y)
    u, v = np.abs(x) - (wide - corner), np.abs(y) - (high - corner)
    beside, below = np.maximum(u, 0), np.maximum(v, 0)
    distance = np.sqrt(beside * beside + below * below) + np.minimum(np.maximum(u, v), 0) - corner
    window.shade(distance)
    window.lay(_INK, window.cover(distance))
    window.lay(_BOARD, window.cover(distance + 0.016))
    cell = 0.105 / 6  # glyph and gap are 6 cells wide
    strokes = glyph_distance(sign.text, x / cell, y / (cell * 1.25))
    window.lay(_INK, window.cover(strokes * np.float32(cell) - 0.0125))
