"""Sounds: files, spectrograms and back."""

import io
import json
import struct
import wave

import numpy as np
import pytest
import torch

from bedstone.data.signals.audio import (
    Spectrogram,
    decode_sound,
    encode_sound,
    resampled,
    write_sound,
)
from bedstone.data.signals.signals import SignalsConfig
from bedstone.errors import BedstoneError
from bedstone.recipes.diffusion import DiffusionRecipe
from diffusion_runs import signals_of

RATE = 8000


def tone(frequency=1000.0, seconds=0.3, rate=RATE):
    return np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate).astype(np.float32)


def wav(samples, width=2, channels=1, rate=RATE):
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setnchannels(channels), file.setsampwidth(width), file.setframerate(rate)
        scaled = np.round(samples.astype(np.float64) * (2 ** (8 * width - 1) - 1)).astype(np.int64)
        if width == 1:
            scaled = scaled + 128
        raw = b"".join(int(v).to_bytes(width, "little", signed=width > 1) for v in scaled)
        file.writeframes(raw)
    return held.getvalue()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_files_of_every_width_are_read(width):
    samples, rate = decode_sound(wav(tone(), width))
    assert rate == RATE and samples.dtype == np.float32
    assert np.abs(samples - tone()).max() < 2.1 / 2 ** (8 * width - 1) + 1e-6


def test_channels_become_their_mean_and_what_is_written_is_read():
    both = np.stack([tone(), np.zeros_like(tone())], axis=1).flatten()
    samples, _ = decode_sound(wav(both, channels=2))
    assert np.abs(samples - tone() / 2).max() < 1e-4
    again, rate = decode_sound(encode_sound(tone() * 1.5, 11025))
    assert rate == 11025 and np.abs(again - np.clip(tone() * 1.5, -1, 1)).max() < 1e-4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "row 3: is no sound that can be read"),
        (b"ID3\x04 an mp3, it seems", "does not start with RIFF"),
        (wav(tone())[:500], "row 3: holds 228 of the 2,400 samples"),
        (wav(tone(seconds=0)), "row 3: holds 0 of the 0 samples"),
        (wav(tone())[:20] + struct.pack("<H", 3) + wav(tone())[22:], "unknown format: 3"),
        (wav(tone(), rate=20), "16 bits at 20 a second"),
    ],
)
def test_broken_files_are_reported(data, message):
    with pytest.raises(BedstoneError, match=message):
        decode_sound(data, "row 3")


def test_another_rate_keeps_the_frequencies_it_can_hold():
    assert np.abs(resampled(tone(rate=16000), 16000, RATE) - tone()).max() < 0.02
    assert (
        np.abs(resampled(tone(6000, rate=16000), 16000, RATE)).max() < 0.02
    )  # above half the rate
    assert np.abs(resampled(tone(), RATE, 16000) - tone(rate=16000)).max() < 0.02


def test_a_tone_is_one_bright_line_and_silence_is_dark():
    form = Spectrogram(frames=64)
    signal = form.of(0.3 * tone(1000))
    assert signal.shape == (128, 64) and signal.dtype == torch.float32
    middle = signal[:, 32]
    assert middle.argmax() == 1000 * 256 // RATE and middle.max() == pytest.approx(1, abs=0.01)
    assert (signal[:, :8] == -1).all() and (signal[:, -8:] == -1).all()  # set in the middle
    half = form.of(np.concatenate([tone(1000), 0.1 * tone(3000)]))
    bright = half[3000 * 256 // RATE].max()
    assert bright == pytest.approx(1 - 2 * 20 / 60, abs=0.02)  # 20 of 60 decibels below


def test_of_a_long_sound_the_loudest_stretch_is_taken():
    form = Spectrogram(frames=32)
    quiet = 0.01 * tone(500, 0.5)
    signal = form.of(np.concatenate([quiet, tone(1500, 0.25), quiet]))
    assert (signal.argmax(0)[1:-1] == 1500 * 256 // RATE).all()


def test_silence_is_reported():
    for samples in (np.zeros(100), np.zeros(0), np.full(9, np.nan)):
        with pytest.raises(BedstoneError, match="row 1: is silent"):
            Spectrogram().of(samples.astype(np.float32), "row 1")


def chirp():
    at = np.arange(4000) / RATE
    return (np.sin(2 * np.pi * (300 * at + 1500 * at**2)) * np.hanning(4000)).astype(np.float32)


def loss(form, signal):
    heard = form.of(form.sound(signal[None])[0].numpy())
    scale = 10 ** ((signal - 1) / 2 * 3)
    return ((10 ** ((heard - 1) / 2 * 3) - scale).norm() / scale.norm()).item()


def test_what_was_heard_is_heard_again_and_momentum_helps():
    form = Spectrogram(frames=64)
    signal = form.of(chirp())
    assert loss(form, signal) < 0.1
    assert loss(form, signal) < loss(Spectrogram(frames=64, momentum=0.0), signal)
    one, other = form.sound(torch.stack([signal, signal.flip(0)]))
    assert one.shape == (form.samples,) and one.abs().max() == pytest.approx(0.9)
    assert not torch.equal(one, other)
    assert torch.equal(form.sound(signal[None]), form.sound(signal[None]))
    assert form.sound(torch.full((1, 128, 64), -1.0)).abs().max() == 0  # silence stays silent


@pytest.mark.parametrize(
    "wrong", [{"hop": 200}, {"window": 255}, {"floor": 0.0}, {"momentum": 2.0}]
)
def test_what_cant_be_heard_again_is_refused(wrong):
    with pytest.raises(BedstoneError, match=r"data\.sound"):
        Spectrogram(**wrong)


def test_rows_of_sounds(tmp_path):
    rows = []
    for number in range(20):
        name = f"{number}.wav"
        write_sound(tmp_path / name, tone(500 * (1 + number % 2) + number), RATE)
        rows.append({"file_name": name, "note": ["low", "high"][number % 2]})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def opened(task="class-to-audio", **data):
        options = {"source": str(tmp_path), "columns": {"label": "note"}, "size": (48,)} | data
        return signals_of(DiffusionRecipe(task=task, data=SignalsConfig(**options)))

    learnt, held = opened(validation_share=0.3)
    assert learnt.kind == "audio" and learnt.shape == (128, 48) and learnt.names == ("high", "low")
    bins = learnt.read(range(len(learnt)))[:, :, 24].argmax(1)
    assert ((bins < 24).long() == torch.from_numpy(learnt.classes)).all()  # 0 is high, 1 low
    captioned, _ = opened("text-to-audio", templates=["a {label} tone"], validation=str(tmp_path))
    assert captioned.captions[:2] == [("a low tone",), ("a high tone",)]
    smaller, _ = opened(sound={"window": 128, "hop": 32}, validation_share=0.3)
    assert smaller.shape == (64, 48)
    with pytest.raises(BedstoneError, match=r"unknown key 'data.sound.windows'; perhaps"):
        opened(sound={"windows": 128})
    (tmp_path / "3.wav").write_bytes(b"RIFF")
    (tmp_path / "5.wav").write_bytes(b"RIFF")
    with pytest.raises(BedstoneError, match=r"2 of 20 rows are broken.*line 4: is no sound"):
        opened()
    learnt, held = opened(most_broken=0.2, validation_share=0.3)
    assert len(learnt) + len(held) == 18


@pytest.mark.shared
def test_spoken_digits(shared_data):
    source = str(shared_data / "spoken-digits" / "test.parquet")
    data = SignalsConfig(source=source, columns={"label": "digit"}, size=(96,), most_rows=40)
    learnt, held = signals_of(DiffusionRecipe(task="class-to-audio", data=data))
    assert len(learnt) + len(held) == 40 and learnt.shape == (128, 96)
    assert learnt.names == tuple("0123456789")


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0, 3])
@pytest.mark.parametrize("chunk", ["fmt", "data", "riff"])
def test_sizes_in_a_header_that_are_untrue(size, chunk):
    sizes = {"fmt": 16, "data": 8, "riff": 44} | {chunk: size}
    form = struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16)
    data = b"RIFF" + struct.pack("<I", sizes["riff"]) + b"WAVEfmt "
    data += struct.pack("<I", sizes["fmt"]) + form + b"data"
    data += struct.pack("<I", sizes["data"]) + b"\1\2" * 4
    try:
        samples, _ = decode_sound(data, "here")
        assert len(samples) <= 4
    except BedstoneError as error:
        assert str(error).startswith("here: ")
