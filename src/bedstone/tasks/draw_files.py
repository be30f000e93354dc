"""Files of what was drawn: PNG, of videos animated; WAV; NPY. A PNG says how it was made.

Shapes: C channels; *S the sizes of a signal.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from bedstone.checkpoints.drawing_form import SignalForm
from bedstone.data.png_notes import save_png
from bedstone.data.sounds import write_sound
from bedstone.errors import BedstoneError
from bedstone.files import atomic_file
from bedstone.tasks.draw_results import picture, pixels, sound_form

SUFFIXES = {"image": ".png", "audio": ".wav", "video": ".png", "volume": ".npy"}
FRAME = 125  # milliseconds
MOST = 8192  # pixels of an enlarged side


def write_drawn(
    signal: Tensor,
    form: SignalForm,
    path: str | Path,
    recipe: Mapping[str, Any] | None = None,
    *,
    enlarge: int = 1,
) -> Path:
    """Writes one signal (C, *S) into a file of its kind.

    Args:
        recipe: how it was made, kept in a PNG's notes.
        enlarge: how many times as wide and high pictures and videos are, in whole pixels.

    Raises:
        BedstoneError: the file ends otherwise than its kind does, or can't be written.
    """
    path = Path(path)
    wanted = SUFFIXES[form.kind]
    if path.suffix.lower() != wanted:
        raise BedstoneError(f"{path}: what is drawn is {form.kind}; expected a name in {wanted}.")
    if form.kind == "image":
        return save_png(_enlarged(picture(signal), enlarge), path, recipe)
    if form.kind == "video":
        frames = [_enlarged(Image.fromarray(frame), enlarge) for frame in pixels(signal)]
        return save_png(frames[0], path, recipe, frames=frames[1:], milliseconds=FRAME)
    if form.kind == "audio":
        how = sound_form(form, signal.shape[1])
        write_sound(path, how.sound(signal[None])[0], how.rate)
        return path
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, signal[0].numpy() if signal.shape[0] == 1 else signal.numpy())
    return path


def check_enlarged(by: int, side: int = 1) -> None:
    """Raises BedstoneError where pixels can't be made so many times as large."""
    if by < 1 or side > MOST:
        raise BedstoneError(
            f"enlarge: {by} was given; expected 1 or more, and sides of {MOST:,} pixels at most."
        )


def file_name(number: int, recipe: Mapping[str, Any], kind: str) -> str:
    """`003-a-red-circle.png`: its number, and some of its prompt."""
    words = re.sub(r"[^a-z0-9]+", "-", str(recipe.get("prompt") or "").lower())[:40].strip("-")
    return f"{number:03d}{'-' if words else ''}{words}{SUFFIXES[kind]}"


def _enlarged(image: Image.Image, by: int) -> Image.Image:
    """The same with each pixel `by` pixels wide and high."""
    if by == 1:
        return image
    size = image.width * by, image.height * by
    check_enlarged(by, max(size))
    return image.resize(size, Image.Resampling.NEAREST)
