"""Many pictures on one sheet, with a line of text below each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bedstone.data.images.augment import ImageAugment
from bedstone.data.images.decode import decode
from bedstone.data.images.png import save_png
from bedstone.errors import BedstoneError
from bedstone.files import atomic_file
from bedstone.metrics.generative import NearestNeighbours
from bedstone.report.pages import Captioned, Line

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


# Pictures with what was asked of them and answered, on one sheet; right answers are ticked.

_ANSWER_CELL = 224  # pixels of a picture
_WIDE = 420  # of the words beside it
_ANSWER_GAP = 20
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
    wide, high = _ANSWER_CELL + _ANSWER_GAP + _WIDE, max(_ANSWER_CELL, most * _LINE)
    rows = math.ceil(len(pictures) / columns)
    size = columns * (wide + _ANSWER_GAP) + _ANSWER_GAP, rows * (high + _ANSWER_GAP) + _ANSWER_GAP
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, each in enumerate(pictures):
        left = _ANSWER_GAP + number % columns * (wide + _ANSWER_GAP)
        top = _ANSWER_GAP + number // columns * (high + _ANSWER_GAP)
        sheet.paste(fitted(decode(each.picture, where=each.name), _ANSWER_CELL), (left, top))
        for place, line in enumerate(each.lines):
            _answer(draw, line, left + _ANSWER_CELL + _ANSWER_GAP, top + place * _LINE)
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
    return Path(path)


def _answer(draw: ImageDraw.ImageDraw, line: Line, left: int, top: int) -> None:
    """The question, cut to the room there is, and its answer below it with its mark."""
    small, font = ImageFont.load_default(17), ImageFont.load_default(20)
    draw.text((left, top), cut_to(draw, line.question, small, _WIDE), _DIM, small)
    start, middle = left, top + 34
    if line.right is not None:
        _mark(draw, line.right, left, middle)
        start += 26
    expected = line.right is False and line.expected
    room = left + (_WIDE // 2 if expected else _WIDE) - start
    said = cut_to(draw, line.text or "nothing", font, room)
    draw.text((start, middle), said, _INK, font, anchor="lm")
    if expected:
        start += round(draw.textlength(said, font)) + 14
        expected = cut_to(draw, f"expected {line.expected}", small, left + _WIDE - start)
        draw.text((start, middle), expected, _DIM, small, anchor="lm")


def _mark(draw: ImageDraw.ImageDraw, right: bool, x: int, y: int) -> None:
    if right:
        draw.line([(x + 2, y), (x + 7, y + 6), (x + 17, y - 7)], _RIGHT, 4, joint="curve")
    else:
        draw.line((x + 3, y - 6, x + 15, y + 6), _WRONG, 4)
        draw.line((x + 15, y - 6, x + 3, y + 6), _WRONG, 4)


# Queries and the pictures that were found for each, on one sheet; right ones are ticked.

_FOUND_CELL = 176  # pixels of a picture
_FOUND_GAP = 8
_APART = 36  # between queries
_FRAME = 5
_HEAD = 40  # the line above a query's pictures
_FOUND_INK, _FOUND_DIM = "#222222", "#6b7078"
_FOUND_RIGHT, _FOUND_WRONG = "#1b8a3a", "#c4c8ce"


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


def search_sheet(queries: Sequence[Query], path: str | Path, *, columns: int = 2) -> Path:
    """Writes a PNG: each query's words over its pictures, in a row.

    Raises:
        BedstoneError: there is no query or no picture, or it can't be written.
    """
    most = max((len(query.pictures) for query in queries), default=0)
    if not most:
        raise BedstoneError(f"{path}: nothing was found, so there is no picture to draw.")
    columns = min(columns, len(queries))
    wide, high = most * (_FOUND_CELL + _FOUND_GAP) - _FOUND_GAP, _HEAD + _FOUND_CELL
    rows = math.ceil(len(queries) / columns)
    size = (
        columns * (wide + _APART) - _APART + 2 * _FOUND_GAP,
        rows * (high + _APART // 2) + _FOUND_GAP,
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, query in enumerate(queries):
        left = _FOUND_GAP + number % columns * (wide + _APART)
        top = _FOUND_GAP + number // columns * (high + _APART // 2)
        _heading(draw, query, left, top, wide)
        for place, (picture, right) in enumerate(zip(query.pictures, query.right, strict=True)):
            at = left + place * (_FOUND_CELL + _FOUND_GAP), top + _HEAD
            _tile(sheet, draw, picture, right, at)
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
    return Path(path)


def _heading(draw: ImageDraw.ImageDraw, query: Query, left: int, top: int, wide: int) -> None:
    """The words, cut to the line, and the note at its end."""
    font, small = ImageFont.load_default(24), ImageFont.load_default(19)
    room = wide - (draw.textlength(query.note, small) + 2 * _FOUND_GAP if query.note else 0)
    words = cut_to(draw, query.words, font, room)
    middle = top + _HEAD // 2 - 2
    draw.text((left, middle), words, _FOUND_INK, font, anchor="lm")
    draw.text((left + wide, middle), query.note, _FOUND_DIM, small, anchor="rm")


def _tile(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    picture: np.ndarray,
    right: bool | None,
    at: tuple[int, int],
) -> None:
    """A picture in its frame, with a tick or a cross in the corner."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((_FOUND_CELL, _FOUND_CELL))
    if max(image.size) < _FOUND_CELL:
        scale = _FOUND_CELL / max(image.size)
        sides = [max(1, round(side * scale)) for side in image.size]
        image = image.resize((sides[0], sides[1]), Image.Resampling.NEAREST)
    sheet.paste(
        image, (at[0] + (_FOUND_CELL - image.width) // 2, at[1] + (_FOUND_CELL - image.height) // 2)
    )
    if right is None:
        return
    colour = _FOUND_RIGHT if right else _FOUND_WRONG
    ends = at[0] + _FOUND_CELL - 1, at[1] + _FOUND_CELL - 1
    draw.rectangle((*at, *ends), outline=colour, width=_FRAME)
    x, y = ends[0] - 30, ends[1] - 30  # the badge
    draw.rectangle((x, y, *ends), fill=colour)
    if right:
        lines = [(x + 7, y + 16), (x + 13, y + 22), (x + 24, y + 9)]
        draw.line(lines, "white", 4, joint="curve")
    else:
        draw.line((x + 9, y + 9, x + 22, y + 22), "#444a52", 4)
        draw.line((x + 22, y + 9, x + 9, y + 22), "#444a52", 4)


# Sheets of made pictures: samples, how they came out of noise, and what they resemble.
#
# Each is a PNG that keeps its recipe in its notes (`data.images.png`). Signals are about [-1, 1].
#
# Shapes: B samples, C channels (1 or 3), H and W, K frames, k neighbours.

Recipe = Mapping[str, Any]


def as_pixels(signals: Tensor) -> np.ndarray:
    """(B, 1 or 3, H, W), about [-1, 1], to (B, H, W, 3) uint8.

    Raises:
        BedstoneError: they have another shape.
    """
    if signals.ndim != 4 or signals.shape[1] not in (1, 3):
        raise BedstoneError(
            f"sheet: signals of shape {tuple(signals.shape)} are no pictures; expected (pictures, "
            "1 or 3 channels, height, width)."
        )
    values = torch.nan_to_num(signals.detach().float().cpu(), nan=0.0)  # a lost picture is grey
    values = ((values + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return values.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()


def samples_sheet(
    samples: Tensor,
    path: str | Path,
    *,
    titles: Sequence[str] = (),
    recipe: Recipe | None = None,
    columns: int = 0,
    cell: int = 96,
) -> Path:
    """Writes samples (B, C, H, W) in rows, with what each was asked by; raises as `contact_sheet`
    does."""
    return contact_sheet(
        list(as_pixels(samples)), path, titles=titles, columns=columns, cell=cell, recipe=recipe
    )


def strip_sheet(
    frames: Sequence[Tensor],
    path: str | Path,
    *,
    titles: Sequence[str] = (),
    recipe: Recipe | None = None,
    cell: int = 96,
) -> Path:
    """Writes the same samples at several moments side by side, a row each: from noise to picture,
    or a film's frames.

    Args:
        frames: K of (B, C, H, W), the first on the left.
        titles: of the K frames, written below each row's; none leaves the room out.

    Raises:
        BedstoneError: there is no frame, they differ in shape, or as `contact_sheet` does.
    """
    if not frames or any(frame.shape != frames[0].shape for frame in frames):
        shapes = sorted({tuple(frame.shape) for frame in frames})
        raise BedstoneError(f"{path}: frames of shapes {shapes}; expected some, all of one shape.")
    if titles and len(titles) != len(frames):
        raise BedstoneError(f"{path}: {len(frames)} frames and {len(titles)} titles.")
    pixels = np.stack([as_pixels(frame) for frame in frames], 1)  # (B, K, H, W, 3)
    cells = list(pixels.reshape(-1, *pixels.shape[2:]))
    below = list(titles) * len(pixels)
    return contact_sheet(cells, path, titles=below, columns=len(frames), cell=cell, recipe=recipe)


def chosen_frames(count: int, most: int = 10) -> list[int]:
    """At most `most` of `count` frames, the first and the last among them, evenly."""
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


def neighbours_sheet(
    samples: Tensor,
    training: Tensor,
    found: NearestNeighbours,
    path: str | Path,
    *,
    recipe: Recipe | None = None,
    cell: int = 96,
) -> Path:
    """Writes each sample beside its nearest training pictures, with their distances.

    Args:
        samples: (B, C, H, W).
        training: (M, C, H, W), all that `found` speaks of.
        found: of `neighbours.nearest`, in pixels or in features.

    Raises:
        BedstoneError: `found` is of other pictures, or as `contact_sheet` does.
    """
    if len(found.places) != len(samples) or int(found.places.max()) >= len(training):
        raise BedstoneError(
            f"{path}: neighbours of {len(found.places)} samples for {len(samples)} samples and "
            f"{len(training)} training pictures; give those that were compared."
        )
    cells: list[np.ndarray] = []
    titles: list[str] = []
    for number, sample in enumerate(as_pixels(samples)):
        cells += [sample, *as_pixels(training[found.places[number]])]
        titles += ["sample", *(f"{away:.3f}" for away in found.distances[number].tolist())]
    columns = 1 + found.places.shape[1]
    return contact_sheet(cells, path, titles=titles, columns=columns, cell=cell, recipe=recipe)


# Signals of any kind as pictures to look at.
#
# Shapes: B signals, C channels, F frames of a sound or a video, D slices of a volume, H and W.

MOST = 8  # frames or slices of a signal
ROW = 4  # of these, in one row


def to_images(signals: Tensor, kind: str) -> Tensor:
    """(B, C, *S) to pictures (B, 1 or 3, H, W), of about -1 to 1.

    A sound is its spectrogram, low tones at the bottom; a video is its frames, in two rows where
    there are more than four; a volume its slices.

    Args:
        kind: image, audio, video or volume.
    """
    if kind == "audio":
        return signals.flip(1)[:, None]  # (B, 1, bins, frames)
    if kind == "image":
        return signals
    count = signals.shape[2]
    chosen = torch.linspace(0, count - 1, min(count, MOST)).round().long()
    frames = list(signals[:, :, chosen].unbind(2))
    columns = len(frames) if len(frames) <= ROW else math.ceil(len(frames) / 2)
    frames += [torch.ones_like(frames[0])] * (-len(frames) % columns)
    rows = [torch.cat(frames[at : at + columns], -1) for at in range(0, len(frames), columns)]
    return torch.cat(rows, -2)
