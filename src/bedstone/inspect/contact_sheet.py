"""Many pictures on one sheet, with a line of text below each."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from bedstone.data.image_augment import ImageAugment
from bedstone.data.png_notes import save_png
from bedstone.errors import BedstoneError

_GAP = 6
_MOST = 16384  # pixels of a side


def contact_sheet(
    pictures: Sequence[np.ndarray],
    path: str | Path,
    *,
    titles: Sequence[str] = (),
    columns: int = 0,
    cell: int = 128,
    recipe: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a PNG of pictures in rows, each fitted into a square and never cut.

    Args:
        pictures: (H, W, 3) uint8 of any sizes.
        path: the PNG to write.
        titles: a text for each, cut to two lines; none leaves the room out.
        columns: pictures a row; 0 makes the sheet about square.
        cell: pixels of the square.
        recipe: how the pictures were made, kept in the file's notes.

    Raises:
        BedstoneError: there is no picture, too many, other titles than pictures, or it can't be
            written.
    """
    if not len(pictures):
        raise BedstoneError(f"{path}: there is no picture to draw on the sheet.")
    if titles and len(titles) != len(pictures):
        raise BedstoneError(f"{path}: {len(pictures)} pictures and {len(titles)} titles.")
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    rows = math.ceil(len(pictures) / columns)
    font = ImageFont.load_default(max(10, min(cell // 10, 16)))
    line = math.ceil(1.3 * font.size) if isinstance(font, ImageFont.FreeTypeFont) else 14
    step, high = cell + _GAP, cell + _GAP + (2 * line if titles else 0)
    size = columns * step + _GAP, rows * high + _GAP
    if max(size) > _MOST:
        raise BedstoneError(
            f"{path}: {len(pictures)} pictures of {cell} pixels in {columns} columns make a sheet "
            f"of {size[0]:,} x {size[1]:,} pixels; {_MOST:,} a side are drawn. Draw fewer pictures "
            "or smaller ones."
        )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, picture in enumerate(pictures):
        left = _GAP + number % columns * step
        top = _GAP + number // columns * high
        image = fitted(picture, cell)
        sheet.paste(image, (left + (cell - image.width) // 2, top + (cell - image.height) // 2))
        if titles:
            for row, text in enumerate(_lines(draw, titles[number], font, cell)):
                draw.text((left, top + cell + row * line), text, "black", font)
    return save_png(sheet, path, recipe)


def augmentation_sheet(
    augment: ImageAugment,
    pictures: Sequence[np.ndarray],
    path: str | Path,
    *,
    copies: int = 5,
    cell: int = 128,
    seed: int = 0,
) -> Path:
    """Writes a PNG with a row for each picture: itself, then `copies` augmented ones.

    Raises:
        BedstoneError: as `contact_sheet` does; `copies` is less than 1.
    """
    if copies < 1:
        raise BedstoneError(f"{path}: {copies} copies of a picture; expected 1 or more.")
    generator = torch.Generator().manual_seed(seed)
    cells: list[np.ndarray] = []
    for picture in pictures:
        batch = torch.from_numpy(np.ascontiguousarray(picture)).expand(copies, -1, -1, -1)
        cells += [picture, *augment(batch, generator).numpy()]
    return contact_sheet(cells, path, columns=copies + 1, cell=cell)


def cut_to(
    draw: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: float,
) -> str:
    """A text cut to so many pixels, with dots where it is."""
    while len(text) > 1 and draw.textlength(text, font) > width:
        text = text.rstrip("…")[:-1] + "…"
    return text


def fitted(picture: np.ndarray, cell: int) -> Image.Image:
    """As large as the square takes; small pictures in whole steps, so that pixels stay square."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    scale = cell / max(image.size)
    if scale >= 2:
        scale, how = int(scale), Image.Resampling.NEAREST
    else:
        how = Image.Resampling.LANCZOS
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image if scale == 1 else image.resize((width, height), how)


def _lines(
    draw: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
) -> list[str]:
    """Two lines at most of a text, the last with dots where it is cut."""
    words, lines = text.split(), [""]
    for number, word in enumerate(words):
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font) <= width:
            lines[-1] = longer
        elif len(lines) == 1 and lines[0]:
            lines.append(word)
        else:
            lines[-1] = " ".join([lines[-1], *words[number:]]).strip()
            break
    return [cut_to(draw, line, font, width) for line in lines]
