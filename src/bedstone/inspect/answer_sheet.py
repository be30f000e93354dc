"""Pictures with what was asked of them and answered, on one sheet; right answers are ticked."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from bedstone.data.images import decode
from bedstone.errors import BedstoneError
from bedstone.files import atomic_file
from bedstone.inspect.caption_page import Captioned, Line
from bedstone.inspect.contact_sheet import cut_to, fitted

_CELL = 224  # pixels of a picture
_WIDE = 420  # of the words beside it
_GAP = 20
_LINE = 56  # a question and its answer
_INK, _DIM, _RIGHT, _WRONG = "#222222", "#5b616a", "#1b8a3a", "#b3261e"


def answer_sheet(pictures: Sequence[Captioned], path: str | Path, *, columns: int = 2) -> Path:
    """Writes a PNG: each picture with its questions beside it, and below each the answer.

    A right answer has a tick before it, a wrong one a cross and what was expected.

    Raises:
        BedstoneError: there is no picture, one can't be read, or the sheet can't be written.
    """
    if not pictures:
        raise BedstoneError(f"{path}: there is no picture to draw on the sheet.")
    columns = min(columns, len(pictures))
    most = max(len(each.lines) for each in pictures)
    wide, high = _CELL + _GAP + _WIDE, max(_CELL, most * _LINE)
    rows = math.ceil(len(pictures) / columns)
    size = columns * (wide + _GAP) + _GAP, rows * (high + _GAP) + _GAP
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, each in enumerate(pictures):
        left = _GAP + number % columns * (wide + _GAP)
        top = _GAP + number // columns * (high + _GAP)
        sheet.paste(fitted(decode(each.picture, where=each.name), _CELL), (left, top))
        for place, line in enumerate(each.lines):
            _answer(draw, line, left + _CELL + _GAP, top + place * _LINE)
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
    return Path(path)


def _answer(draw: ImageDraw.ImageDraw, line: Line, left: int, top: int) -> None:
    """The question, cut to the room there is, and its answer below it with its mark."""
    small, font = ImageFont.load_default(17), ImageFont.load_default(20)
    draw.text((left, top), cut_to(draw, line.asked, small, _WIDE), _DIM, small)
    start, middle = left, top + 34
    if line.right is not None:
        _mark(draw, line.right, left, middle)
        start += 26
    told = line.right is False and line.expected
    room = left + (_WIDE // 2 if told else _WIDE) - start
    said = cut_to(draw, line.said or "nothing", font, room)
    draw.text((start, middle), said, _INK, font, anchor="lm")
    if told:
        start += round(draw.textlength(said, font)) + 14
        expected = cut_to(draw, f"expected {line.expected}", small, left + _WIDE - start)
        draw.text((start, middle), expected, _DIM, small, anchor="lm")


def _mark(draw: ImageDraw.ImageDraw, right: bool, x: int, y: int) -> None:
    if right:
        draw.line([(x + 2, y), (x + 7, y + 6), (x + 17, y - 7)], _RIGHT, 4, joint="curve")
    else:
        draw.line((x + 3, y - 6, x + 15, y + 6), _WRONG, 4)
        draw.line((x + 15, y - 6, x + 3, y + 6), _WRONG, 4)
