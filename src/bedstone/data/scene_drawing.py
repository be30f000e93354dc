"""A scene's picture, at any resolution: antialiased shapes with an outline and a soft shadow.

A pixel is covered by how far its middle is from a shape's edge, up to half a pixel either way; so
nothing is drawn larger and shrunk, and 64 by 64 takes less than a millisecond on one core.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedstone.data import scene_glyphs
from bedstone.data.scene_backgrounds import paint
from bedstone.data.scene_shapes import DISTANCES, REACH
from bedstone.data.scene_world import COLOURS, Scene, Sign, Thing, turned
from bedstone.errors import BedstoneError

Field = NDArray[Any]

_OUTLINE = 0.013  # widths and shifts as shares of the picture's side
_SHADOW = 0.018
_BLUR = 0.02
_LIGHT = {"yellow", "cyan", "pink", "orange", "grey"}  # white stripes would hardly show on these
_INK = np.array((38, 40, 48), np.float32)
_BOARD = np.array((253, 252, 248), np.float32)


def draw(scene: Scene, size: int = 64) -> NDArray[np.uint8]:
    """The picture of a scene, (size, size, 3), RGB.

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
    """The part of a picture that something may touch, and the middles of its pixels."""

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
    """Where a thing's stripes or dots are, (h, w)."""
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
    strokes = scene_glyphs.distance(sign.text, x / cell, y / (cell * 1.25))
    window.lay(_INK, window.cover(strokes * np.float32(cell) - 0.0125))
