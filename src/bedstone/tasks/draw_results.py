"""What was drawn, as people take it: pictures, sounds, frames, volumes.

Shapes: C channels, H and W, F frames, D slices, L samples of a sound.
"""

from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from bedstone.checkpoints.drawing_form import SignalForm
from bedstone.data.sounds import Spectrogram
from bedstone.errors import BedstoneError
from bedstone.mapping import from_mapping


def pixels(signal: Tensor) -> np.ndarray:
    """(1 or 3, *S), about -1 to 1, to (*S) or (*S, 3) uint8."""
    values = ((signal.detach().float().nan_to_num() + 1) * 127.5).round().clamp(0, 255)
    found: np.ndarray = values.movedim(0, -1).byte().cpu().numpy()
    return found[..., 0] if found.shape[-1] == 1 else found


def picture(signal: Tensor) -> Image.Image:
    """(1 or 3, H, W) as a picture, grey where it has one channel."""
    return Image.fromarray(np.ascontiguousarray(pixels(signal)))


def sound_form(form: SignalForm, frames: int = 0) -> Spectrogram:
    """How a model's signals become sounds.

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


def as_result(signal: Tensor, form: SignalForm) -> dict[str, Any]:
    """A signal (C, *S) as a task gives it: `image`, a picture of Pillow; `audio`, samples (L,) with
    `sampling_rate`; `video`, (F, H, W, 3) uint8; or `volume`, (D, H, W) float32."""
    if form.kind == "image":
        return {"image": picture(signal)}
    if form.kind == "audio":
        how = sound_form(form, signal.shape[1])
        return {"audio": how.sound(signal[None])[0].numpy(), "sampling_rate": how.rate}
    if form.kind == "video":
        return {"video": pixels(signal)}
    return {"volume": signal[0].numpy() if signal.shape[0] == 1 else signal.numpy()}
