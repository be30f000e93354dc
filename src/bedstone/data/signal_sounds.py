"""Sounds of rows in a source as signals: spectrograms with a channel for each frequency.

Shapes: N sounds, C bins of frequency, S frames.
"""

from collections.abc import Callable, Sequence

import numpy as np

from bedstone.data.signal_rows import SoundReader, labels_of, open_rows
from bedstone.data.signals import Signals, check_memory
from bedstone.data.sounds import Spectrogram, decode_sound, resampled
from bedstone.errors import BedstoneError
from bedstone.mapping import from_mapping
from bedstone.recipes_diffusion import SignalsConfig


def spectrogram_of(data: SignalsConfig) -> Spectrogram:
    """How a recipe makes signals of sounds.

    Raises:
        BedstoneError: what it says of that can't be.
    """
    if "frames" in data.sound:
        raise BedstoneError("data.sound.frames: is what data.size says; leave it out.")
    frames = {"frames": data.size[0]} if data.size else {}
    return from_mapping(Spectrogram, {**data.sound, **frames}, "recipe", "data.sound.")


def sound_signals(
    name: str,
    data: SignalsConfig,
    condition: str,
    *,
    names: Sequence[str] = (),
    seed: int = 0,
    told: Callable[[float], None] | None = None,
) -> Signals:
    """The sounds of a source.

    Args:
        names: of the classes, where they are known.
        told: is handed the share done.

    Raises:
        BedstoneError: they can't be read, too many are broken, or take more memory than they may.
    """
    form = spectrogram_of(data)
    rows = open_rows(SoundReader, name, data, condition, seed)
    shape = (len(rows), form.bins, form.frames)
    check_memory(shape, 4, data.memory_mb, name)
    values = np.empty(shape, np.float32)
    good: list[int] = []
    for number, pair in enumerate(rows):
        try:
            assert not callable(pair.picture) and not isinstance(pair.picture, np.ndarray)
            samples, rate = decode_sound(pair.picture, pair.place)
            signal = form.of(resampled(samples, rate, form.rate), pair.place)
        except BedstoneError as error:
            rows.faults.add(error)
            continue
        values[len(good)] = signal.numpy()
        good.append(number)
        if told is not None and number % 64 == 0:
            told(number / len(rows))
    rows.faults.check()
    kept = rows.pick(good)
    return Signals(
        values[: len(good)],
        kind="audio",
        name=name,
        places=[pair.place for pair in kept],
        faults=rows.faults,
        **labels_of(kept, condition, names),
    )
