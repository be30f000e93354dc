"""Letters and digits as strokes, so that signs are crisp at any size and need no font.

A glyph lies on a grid 4 wide and 6 high, (0, 0) at its top left. `|` lifts the pen between strokes;
a corner is two digits, x then y.
"""

import functools
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def distance(text: str, x: NDArray[Any], y: NDArray[Any], gap: float = 2.0) -> NDArray[Any]:
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
