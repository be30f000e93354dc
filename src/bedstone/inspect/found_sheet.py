"""Queries and the pictures that were found for each, on one sheet; right ones are ticked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bedstone.errors import BedstoneError
from bedstone.files import atomic_file
from bedstone.inspect.contact_sheet import cut_to

_CELL = 176  # pixels of a picture
_GAP = 8
_APART = 36  # between queries
_FRAME = 5
_HEAD = 40  # the line above a query's pictures
_INK, _DIM = "#222222", "#6b7078"
_RIGHT, _WRONG = "#1b8a3a", "#c4c8ce"


@dataclass(frozen=True)
class Query:
    """What was looked for, and what was found.

    Attributes:
        words: the query.
        pictures: (H, W, 3) uint8 each, best first.
        right: of each, whether it is what was asked for; None where nobody knows.
        note: a few words beside the query.
    """

    words: str
    pictures: Sequence[np.ndarray]
    right: Sequence[bool | None]
    note: str = ""


def found_sheet(queries: Sequence[Query], path: str | Path, *, columns: int = 2) -> Path:
    """Writes a PNG: each query's words over its pictures, in a row.

    Raises:
        BedstoneError: there is no query or no picture, or it can't be written.
    """
    most = max((len(query.pictures) for query in queries), default=0)
    if not most:
        raise BedstoneError(f"{path}: nothing was found, so there is no picture to draw.")
    columns = min(columns, len(queries))
    wide, high = most * (_CELL + _GAP) - _GAP, _HEAD + _CELL
    rows = math.ceil(len(queries) / columns)
    size = columns * (wide + _APART) - _APART + 2 * _GAP, rows * (high + _APART // 2) + _GAP
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, query in enumerate(queries):
        left = _GAP + number % columns * (wide + _APART)
        top = _GAP + number // columns * (high + _APART // 2)
        _heading(draw, query, left, top, wide)
        for place, (picture, right) in enumerate(zip(query.pictures, query.right, strict=True)):
            at = left + place * (_CELL + _GAP), top + _HEAD
            _tile(sheet, draw, picture, right, at)
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
    return Path(path)


def _heading(draw: ImageDraw.ImageDraw, query: Query, left: int, top: int, wide: int) -> None:
    """The words, cut to the line, and the note at its end."""
    font, small = ImageFont.load_default(24), ImageFont.load_default(19)
    room = wide - (draw.textlength(query.note, small) + 2 * _GAP if query.note else 0)
    words = cut_to(draw, query.words, font, room)
    middle = top + _HEAD // 2 - 2
    draw.text((left, middle), words, _INK, font, anchor="lm")
    draw.text((left + wide, middle), query.note, _DIM, small, anchor="rm")


def _tile(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    picture: np.ndarray,
    right: bool | None,
    at: tuple[int, int],
) -> None:
    """A picture in its frame, with a tick or a cross in the corner."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((_CELL, _CELL))
    if max(image.size) < _CELL:
        scale = _CELL / max(image.size)
        sides = [max(1, round(side * scale)) for side in image.size]
        image = image.resize((sides[0], sides[1]), Image.Resampling.NEAREST)
    sheet.paste(image, (at[0] + (_CELL - image.width) // 2, at[1] + (_CELL - image.height) // 2))
    if right is None:
        return
    colour = _RIGHT if right else _WRONG
    ends = at[0] + _CELL - 1, at[1] + _CELL - 1
    draw.rectangle((*at, *ends), outline=colour, width=_FRAME)
    x, y = ends[0] - 30, ends[1] - 30  # the badge
    draw.rectangle((x, y, *ends), fill=colour)
    if right:
        lines = [(x + 7, y + 16), (x + 13, y + 22), (x + 24, y + 9)]
        draw.line(lines, "white", 4, joint="curve")
    else:
        draw.line((x + 9, y + 9, x + 22, y + 22), "#444a52", 4)
        draw.line((x + 22, y + 9, x + 9, y + 22), "#444a52", 4)
