"""What has a text, a picture, or both: a post that is judged, an item of a catalogue."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.tasks.task import shown, text_of

KEYS = {"text", "image"}


@dataclass(frozen=True)
class Post:
    """A text, a picture, or both; `number` is its place among several."""

    text: str | None = None
    image: Any = None
    number: int | None = None


def post_of(value: Any) -> Post:
    """The post that an input is: a string is a text, never a file's name.

    Raises:
        BedstoneError: it is neither text nor picture, is empty, or has other keys.
    """
    text, image = value, None
    if isinstance(value, dict):
        if not value or not value.keys() <= KEYS:
            keys = ", ".join(map(str, value)) or "none"
            raise BedstoneError(f"the keys are {keys}; expected text, image or both.")
        text, image = value.get("text"), value.get("image")
        if text is None and image is None:
            raise BedstoneError("text and image are both None; give at least one.")
        image = Path(image) if isinstance(image, str) else image
    elif is_image(value):
        text, image = None, value
    if image is not None and not is_image(image):
        raise BedstoneError(
            f"image is {shown(image)}; expected a path, bytes, an array (H, W, 3) or Pillow's."
        )
    if text is None and image is not None:
        return Post(None, image)
    return Post(text_of(text), image)


def is_image(value: Any) -> bool:
    """Whether a value is a picture or names one: a `Path`, bytes, an array or Pillow's image."""
    if isinstance(value, Path | bytes | bytearray):
        return True
    if isinstance(value, np.ndarray):
        return value.ndim in (2, 3)
    return hasattr(value, "convert") and hasattr(value, "getbands")
