"""PNG files with the recipe of a generated image in their metadata."""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bedstone.errors import BedstoneError
from bedstone.files import atomic_file

KEY = "bedstone"  # of the note, an iTXt chunk: JSON in UTF-8
MOST = 1 << 20  # bytes of a note that is read


def save_png(
    image: Image.Image,
    path: str | Path,
    recipe: Mapping[str, Any] | None = None,
    *,
    frames: Sequence[Image.Image] = (),
    milliseconds: int = 100,
) -> Path:
    """Writes a PNG, whole or not at all, with `recipe` in its notes if one is given.

    Args:
        frames: that follow the image in an animation, which never ends.
        milliseconds: that each of these is shown.

    Raises:
        BedstoneError: the recipe is not JSON, or the file can't be written.
    """
    notes = PngInfo()
    if recipe is not None:
        try:
            text = json.dumps(dict(recipe), ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise BedstoneError(f"{path}: its recipe can't be kept as JSON ({error}).") from error
        notes.add_itxt(KEY, text)
    moving: dict[str, Any] = {}
    if frames:
        moving = {"save_all": True, "append_images": list(frames), "duration": milliseconds}
        moving |= {"loop": 0}
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=notes, **moving)
    return Path(path)


def read_recipe(path: str | Path) -> dict[str, Any] | None:
    """The recipe in a PNG; None where it has none.

    Raises:
        BedstoneError: it is no PNG, or its note is broken.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BedstoneError(f"{path}: can't be read ({error.strerror}).") from error
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise BedstoneError(f"{path}: is no PNG; a recipe is kept in PNG files alone.")
    place = 8
    while place + 12 <= len(data):  # chunks by hand: nothing of the image is decoded
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        body = data[place + 8 : place + 8 + size]
        if kind == b"iTXt" and body.startswith(f"{KEY}\0".encode()):
            return _text_of(path, body[len(KEY) + 1 :])
        place += 12 + size
    return None


def _text_of(path: Path, body: bytes) -> dict[str, Any]:
    """The recipe in an iTXt chunk, after its key: flag, method, language, translated key, text."""
    try:
        text = body[2:].split(b"\0", 2)[2]
        if body[0]:
            text = zlib.decompressobj().decompress(text, MOST)
        recipe = json.loads(text[:MOST].decode())
    except (IndexError, ValueError, zlib.error, RecursionError) as error:
        raise BedstoneError(f"{path}: its recipe is broken ({error}).") from error
    if not isinstance(recipe, dict):
        raise BedstoneError(f"{path}: its recipe is no table of names and values.")
    return recipe
