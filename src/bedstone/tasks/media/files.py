"""Generated signals as files: PNG (animated for videos), WAV, NPY; a PNG records its settings.

Shapes: C channels; *S the sizes of a signal.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from bedstone.checkpoints.pipeline import SignalSpec
from bedstone.data.images.decode import decode
from bedstone.data.images.png import save_png
from bedstone.data.signals.audio import Spectrogram, write_sound
from bedstone.errors import BedstoneError
from bedstone.files import atomic_file
from bedstone.settings import from_mapping


def pixels(signal: Tensor) -> np.ndarray:
    """(1 or 3, *S), about -1 to 1, to (*S) or (*S, 3) uint8."""
    values = ((signal.detach().float().nan_to_num() + 1) * 127.5).round().clamp(0, 255)
    found: np.ndarray = values.movedim(0, -1).byte().cpu().numpy()
    return found[..., 0] if found.shape[-1] == 1 else found


def to_image(signal: Tensor) -> Image.Image:
    """(1 or 3, H, W) as an image, grey where it has one channel."""
    return Image.fromarray(np.ascontiguousarray(pixels(signal)))


def sound_form(form: SignalSpec, frames: int = 0) -> Spectrogram:
    """The spectrogram settings by which a model's signals become sounds.

    Raises:
        BedstoneError: it doesn't say, or says it of others than it draws.
    """
    said = {**form.sound, "frames": frames or form.shape[1]}
    made = from_mapping(Spectrogram, said, "drawing.json", "signal.sound.")
    if made.bins != form.shape[0]:
        raise BedstoneError(
            f"signal.sound.window: {made.window} makes sounds of {made.bins} frequencies; the "
            f"model draws {form.shape[0]}. Say in drawing.json how its sounds were read."
        )
    return made


def as_result(signal: Tensor, form: SignalSpec) -> dict[str, Any]:
    """A signal (C, *S) as a task gives it: `image`, an image of Pillow; `audio`, samples (L,) with
    `sampling_rate`; `video`, (F, H, W, 3) uint8; or `volume`, (D, H, W) float32."""
    if form.kind == "image":
        return {"image": to_image(signal)}
    if form.kind == "audio":
        how = sound_form(form, signal.shape[1])
        return {"audio": how.sound(signal[None])[0].numpy(), "sampling_rate": how.rate}
    if form.kind == "video":
        return {"video": pixels(signal)}
    return {"volume": signal[0].numpy() if signal.shape[0] == 1 else signal.numpy()}


SUFFIXES = {"image": ".png", "audio": ".wav", "video": ".png", "volume": ".npy"}
FRAME = 125  # milliseconds
MOST = 8192  # pixels of an enlarged side


def write_generated(
    signal: Tensor,
    form: SignalSpec,
    path: str | Path,
    recipe: Mapping[str, Any] | None = None,
    *,
    enlarge: int = 1,
) -> Path:
    """Writes one signal (C, *S) into a file of its kind.

    Args:
        recipe: how it was made, kept in a PNG's notes.
        enlarge: how many times as wide and high images and videos are, in whole pixels.

    Raises:
        BedstoneError: the file ends otherwise than its kind does, or can't be written.
    """
    path = Path(path)
    wanted = SUFFIXES[form.kind]
    if path.suffix.lower() != wanted:
        raise BedstoneError(f"{path}: what is drawn is {form.kind}; expected a name in {wanted}.")
    if form.kind == "image":
        return save_png(_enlarged(to_image(signal), enlarge), path, recipe)
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


# Images as signals to draw from: fitted to the size, and what of them is to be drawn anew.
#
# Shapes: C channels, H and W.


def image_signal(image: Any, shape: tuple[int, ...], where: str = "") -> Tensor:
    """An image as (1, C, H, W) of -1 to 1: scaled to cover the size, its middle cut out.

    Args:
        image: a path, bytes, an array (H, W, 3) or Pillow's.
        shape: (C, H, W); of one channel, it becomes grey.

    Raises:
        BedstoneError: it can't be read.
    """
    image = Image.fromarray(decode(image, where=where))
    channels, high, wide = shape
    image = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (wide, high), _how(image))
    values = torch.from_numpy(np.array(image)).float() / 127.5 - 1
    return values.reshape(high, wide, channels).permute(2, 0, 1)[None]


def mask_signal(mask: Any, image: Any, shape: tuple[int, ...]) -> Tensor:
    """A mask image as (1, 1, H, W): 1 where it is white and something is to be drawn.

    Raises:
        BedstoneError: it can't be read, is of another size than the image, or is black, so that
            nothing is to be drawn.
    """
    pixels, beside = decode(mask), decode(image)
    if pixels.shape[:2] != beside.shape[:2]:
        (high, wide), (other, across) = pixels.shape[:2], beside.shape[:2]
        raise BedstoneError(
            f"mask: is {wide} x {high} pixels, and the picture {across} x {other}; expected the "
            "same size, white where something is to be drawn anew."
        )
    image = ImageOps.fit(
        Image.fromarray(pixels).convert("L"), (shape[2], shape[1]), Image.Resampling.BOX
    )
    values = torch.from_numpy(np.array(image)).float()[None, None] / 255
    if not values.any():
        raise BedstoneError("mask: is black all over, so nothing is to be drawn; paint it white.")
    return values


def _how(image: Image.Image) -> Image.Resampling:
    return Image.Resampling.LANCZOS if min(image.size) > 1 else Image.Resampling.NEAREST
