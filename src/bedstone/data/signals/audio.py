"""Sounds: WAV files to samples, samples to log magnitude spectrograms, and back.

A spectrogram is a signal with a channel for each frequency and one side, time. Its phases are lost,
and estimated by the fast Griffin-Lim algorithm (Griffin & Lim 1984, "Signal estimation from
modified short-time Fourier transform"; Perraudin, Balazs & Sondergaard 2013, "A fast Griffin-Lim
algorithm"), which alternates between consistent spectra and the given magnitudes.

Shapes: L samples, C bins of frequency, S frames, B sounds.
"""

import io
import math
import struct
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bedstone.errors import BedstoneError
from bedstone.files import atomic_file
from bedstone.settings import Settings, number, whole

MOST_BYTES = 64 * 1024**2  # of a file
WIDTHS = (1, 2, 3, 4)  # bytes of a sample
_READS = "WAV files of whole numbers (PCM) are read; save it as one or leave it out."


def decode_sound(source: bytes | Path, where: str = "a sound") -> tuple[np.ndarray, int]:
    """The samples of a WAV file, (L,) float32 of -1 to 1, several channels as their mean; its rate.

    Raises:
        BedstoneError: it is no WAV file that is read, or empty, or cut short.
    """
    try:
        if isinstance(source, Path):
            if source.stat().st_size > MOST_BYTES:
                raise BedstoneError(f"{where}: has over {MOST_BYTES:,} bytes. Cut it into several.")
            source = source.read_bytes()
        with wave.open(io.BytesIO(source)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            declared = file.getnframes()
            data = file.readframes(declared)
    except (
        *(wave.Error, EOFError, OSError, ValueError, ArithmeticError),
        *(RuntimeError, MemoryError, struct.error),  # of sizes in the header that are untrue
    ) as error:
        reason = " ".join(str(error).split()) or "it ends too soon"
        raise BedstoneError(
            f"{where}: is no sound that can be read ({reason[:120]}). {_READS}"
        ) from error
    if width not in WIDTHS or not 1000 <= rate <= 384_000:
        raise BedstoneError(f"{where}: has {8 * width} bits at {rate:,} a second. {_READS}")
    count = len(data) // (width * channels)
    if not count or count < declared:
        raise BedstoneError(
            f"{where}: holds {count:,} of the {declared:,} samples it declares. Fetch or save it "
            "again, or leave it out."
        )
    return _samples(data[: count * width * channels], width).reshape(count, channels).mean(1), rate


def encode_sound(samples: np.ndarray | Tensor, rate: int) -> bytes:
    """A WAV file, 16 bits, of samples (L,) of -1 to 1; what is louder is cut."""
    values = np.clip(np.asarray(samples, np.float64), -1, 1)
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((values * 32767).round().astype("<i2").tobytes())
    return held.getvalue()


def write_sound(path: str | Path, samples: np.ndarray | Tensor, rate: int) -> None:
    """`encode_sound` into a file, whole or not at all."""
    data = encode_sound(samples, rate)
    with atomic_file(path, needed=len(data)) as file:
        file.write_bytes(data)


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Samples (L,) at another rate: the same frequencies, less those that it can't hold."""
    if rate == wanted:
        return samples
    count = max(round(len(samples) * wanted / rate), 1)
    spectrum = np.fft.rfft(samples)[: count // 2 + 1]
    return (np.fft.irfft(spectrum, count) * (count / len(samples))).astype(np.float32)


@dataclass(frozen=True)
class Spectrogram(Settings):
    """The transform of sounds to signals (C, S), and back.

    Attributes:
        rate: samples a second.
        window: samples of a frame; it has half as many bins of frequency.
        hop: samples from a frame to the next.
        frames: of a signal. Of a longer sound the loudest stretch is taken, a shorter one is set
            in the middle of silence.
        floor: decibels, below the loudest, of what counts as silence and becomes -1; a full tone
            becomes 1.
        rounds: of the estimation of phases.
        momentum: of each round (0 is plain Griffin-Lim).
    """

    rate: int = whole(1000, default=8000)
    window: int = whole(16, default=256)
    hop: int = whole(1, default=64)
    frames: int = whole(4, default=96)
    floor: float = number(-200, -20, default=-60.0)
    rounds: int = whole(1, default=60)
    momentum: float = number(0, 2, open_most=True, default=0.99)

    section: ClassVar[str] = "data.sound."

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window % 2 or 2 * self.hop > self.window:
            raise BedstoneError(
                f"data.sound: window {self.window} and hop {self.hop}; expected an even window, "
                "and a hop of half of it at most, or phases can't be found again."
            )

    @property
    def bins(self) -> int:
        """Channels of a signal: frequencies from 0 to just below half the rate."""
        return self.window // 2

    @property
    def samples(self) -> int:
        """Samples of the sound of one signal."""
        return (self.frames - 1) * self.hop

    def of(self, samples: np.ndarray, where: str = "a sound") -> Tensor:
        """Samples (L,) at `rate` to a signal (C, S) float32 of -1 to 1, its loudest sample 1.

        Raises:
            BedstoneError: it is silent.
        """
        loudest = float(np.abs(samples).max(initial=0))
        if not 1e-5 < loudest < math.inf:
            raise BedstoneError(f"{where}: is silent. Leave it out.")
        fitted = torch.from_numpy(self._fitted(samples / loudest).astype(np.float32))
        return self._levels(self._spectra(fitted[None]).abs())[0, :-1]

    def sound(self, signals: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Signals (B, C, S) to samples (B, L) float32, the loudest of each 0.9.

        Args:
            generator: of the phases that it begins with; by default always the same.
        """
        generator = generator or torch.Generator().manual_seed(0)
        level = signals.detach().float().cpu().clamp(-1, 1)
        wanted = 10 ** ((1 - level) / 2 * self.floor / 20) * (level > -1)
        wanted = torch.nn.functional.pad(wanted, (0, 0, 0, 1)) * self._full  # the last frequency
        turns = torch.rand(wanted.shape, generator=generator) * 2 * math.pi
        found = torch.polar(wanted, turns)
        before = torch.zeros_like(found)
        for _ in range(self.rounds):
            heard = self._spectra(self._samples(found))
            pushed = heard + self.momentum * (heard - before)
            before = heard
            found = wanted * pushed / pushed.abs().clamp_min(1e-12)
        samples = self._samples(found)
        return samples * (0.9 / samples.abs().amax(1, keepdim=True).clamp_min(1e-9))

    @property
    def _hann(self) -> Tensor:
        return torch.hann_window(self.window)

    @property
    def _full(self) -> float:
        """The magnitude of a full-scale tone."""
        return self.window / 4

    def _spectra(self, samples: Tensor) -> Tensor:
        """(B, L) to (B, C + 1, S), complex."""
        return torch.stft(
            samples,
            self.window,
            self.hop,
            window=self._hann,
            pad_mode="constant",
            return_complex=True,
        )

    def _samples(self, spectra: Tensor) -> Tensor:
        """(B, C + 1, S), complex, to (B, L)."""
        return torch.istft(spectra, self.window, self.hop, window=self._hann, length=self.samples)

    def _levels(self, magnitudes: Tensor) -> Tensor:
        """Magnitudes as decibels below a full tone, -1 to 1."""
        least = 10 ** (self.floor / 20)
        decibels = 20 * (magnitudes / self._full).clamp(least, 1).log10()
        return 1 - 2 * decibels / self.floor

    def _fitted(self, samples: np.ndarray) -> np.ndarray:
        """Samples cut or padded to the length of one signal."""
        spare = self.samples - len(samples)
        if spare >= 0:
            return np.pad(samples, (spare // 2, spare - spare // 2))
        power = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
        start = int(np.argmax(power[self.samples :] - power[: -self.samples]))
        return samples[start : start + self.samples]


def _samples(data: bytes, width: int) -> np.ndarray:
    """Whole numbers of 1 to 4 bytes as float32 of -1 to 1; those of one byte have no sign."""
    if width == 1:
        return np.frombuffer(data, np.uint8).astype(np.float32) / 128 - 1
    if width == 3:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return wide.view("<i4")[:, 0].astype(np.float32) / 2**31
    values = np.frombuffer(data, f"<i{width}")
    return values.astype(np.float32) / np.float32(2.0 ** (8 * width - 1))
