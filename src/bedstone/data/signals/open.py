"""Opening of signals: images and sounds of rows, arrays of videos and volumes, built-in ones.

Shapes: N signals, C channels, S sides; H x W pixels of images.
"""

import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bedstone.data.dataset import Dataset
from bedstone.data.fields import Need, any_of
from bedstone.data.images.pixels import ImageCache
from bedstone.data.images.processor import ImageProcessor
from bedstone.data.open import open_dataset
from bedstone.data.scenes import datasets as scenes
from bedstone.data.scenes import moving as moving_scenes
from bedstone.data.scenes import solids
from bedstone.data.scenes.captions import TEMPLATES, all_captions, tell
from bedstone.data.scenes.render import draw
from bedstone.data.scenes.world import SHAPES, Dice, Scene, make_scene
from bedstone.data.signals.audio import Spectrogram, decode_sound, resampled
from bedstone.data.signals.signals import KINDS, TASKS, Signals, SignalsConfig, check_memory
from bedstone.errors import BedstoneError, nearest
from bedstone.settings import from_mapping

# Fields that rows need for each condition, beside the image or the sound.
NEEDS: dict[str, tuple[Need, ...]] = {
    "none": (),
    "class": ("class",),
    "text": (any_of("class", "captions"),),
}


def open_rows(field: str, name: str, data: SignalsConfig, condition: str, seed: int) -> Dataset:
    """The rows of a source, at most `data.most_rows` of them.

    Args:
        field: image or audio.
        condition: none, class or text.

    Raises:
        BedstoneError: there is no such data, or too much of it is broken.
    """
    rows = open_dataset(
        name,
        (*NEEDS[condition], field),
        columns=data.columns,
        split=data.split,
        most_broken=data.most_broken,
        templates=data.templates,
        classes=data.classes,
        strict=True,
        spare=("captions", "class"),
    )
    return rows.take(data.most_rows, seed)


def labels_of(rows: Dataset, condition: str, names: Sequence[str] = ()) -> dict[str, Any]:
    """The classes or captions of rows, as `Signals` takes them.

    Args:
        names: of the classes, where they are known; else those of the rows, numbers by their size.

    Raises:
        BedstoneError: a row is of another class than those known, or all are of one.
    """
    if condition == "text":
        return {"captions": [row.captions for row in rows]}
    if condition != "class":
        return {}
    if not names:
        whole = all(name.removeprefix("-").isdecimal() for name in rows.classes)
        names = sorted(rows.classes, key=int) if whole else rows.classes
    numbers = {name: number for number, name in enumerate(names)}
    for row in rows:
        if row.label not in numbers:
            raise BedstoneError(
                f"{row.place}: is of class {row.label!r}, which is none of the {len(names)} "
                f"learnt{nearest(str(row.label), names)}."
            )
    return {"classes": [numbers[str(row.label)] for row in rows], "names": names}


SCENES, SIZE = 50_000, (32, 32)  # drawn where a recipe doesn't say
HELD = 1000  # scenes of a split with held-out combinations
VARIED = 4  # captions of a scene that name all objects

_GREY = np.array((299, 587, 114), np.int64)  # of a thousand, ITU-R BT.601


@dataclass(frozen=True)
class Prompt:
    """Words to draw a scene from, and what must then be in it.

    Attributes:
        text: names every thing with its colour.
        things: (shape, colour) of each.
    """

    text: str
    things: tuple[tuple[str, str], ...]


def image_signals(
    name: str,
    data: SignalsConfig,
    condition: str,
    *,
    names: Sequence[str] = (),
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Signals:
    """The images of a source, scaled to cover `data.size` and cropped to it.

    Args:
        names: of the classes, where they are known.
        progress: is called with the share done.

    Raises:
        BedstoneError: they can't be read, or take more memory than they may.
    """
    rows = open_rows("image", name, data, condition, seed)
    size = data.size or SIZE
    check_memory((len(rows), data.channels, *size), 1, data.memory_mb, name)
    whole = float("inf")  # the grey of them may fit where the colours, for a moment, don't
    sides = size[0], size[1]
    fit = partial(covering, size=sides)
    images = ImageCache(rows, fit, sides, memory_mb=whole, progress=progress)
    assert images.pixels is not None
    kept = rows.pick(images.readable.tolist())
    return Signals(
        _channels_first(images.pixels[images.readable], data.channels),
        kind="image",
        name=name,
        places=[row.place for row in kept],
        faults=rows.faults,
        **labels_of(kept, condition, names),
    )


def covering(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image scaled to the least size that covers (h, w), and cropped to its middle."""
    sides = image.shape[:2]
    scale = max(wanted / side for wanted, side in zip(size, sides, strict=True))
    shorter = math.ceil(min(sides) * scale - 1e-6)  # what a product lost is no pixel
    return ImageProcessor(resize=shorter, crop=size).fit(image)


def scene_signals(
    data: SignalsConfig,
    condition: str = "text",
    *,
    split: str = "train",
    count: int = 0,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Signals:
    """Drawn scenes: with captions, or with the class of their first object, or neither.

    Those of `train` never show or name a held-out combination of shape and colour; each of
    `validation` and `test` has one.

    Args:
        count: how many; 0 is as many as `data` says.
        progress: is called with the share done.

    Raises:
        BedstoneError: they can't be drawn so, or take more memory than they may.
    """
    size = data.size or SIZE
    if size[0] != size[1]:
        raise BedstoneError(f"data.size: {list(size)} was given; scenes are square.")
    if data.channels != 3:
        raise BedstoneError(f"data.channels: {data.channels} was given; scenes have 3.")
    count = count or data.most_rows or (SCENES if split == "train" else HELD)
    check_memory((count, 3, *size), 1, data.memory_mb, scenes.NAME)
    objects = (1, 1) if condition == "class" else data.things
    drawn, texts = [], []
    for number in range(count):
        scene = make_scene(
            seed * scenes.APART + number, split=split, objects=objects, sizes=data.sizes
        )
        drawn.append(scenes.simplified(scene, textures=data.textures, signs=data.signs))
        if condition == "text":
            texts.append(scene_captions(drawn[-1], data.captions))
        if progress is not None and number % 256 == 0:
            progress(number / count)
    labels: dict[str, Any] = {"captions": texts} if condition == "text" else {}
    if condition == "class":
        classes = [SHAPES.index(scene.objects[0].shape) for scene in drawn]
        labels = {"classes": classes, "names": SHAPES}
    marks = (["signs"] if data.signs else []) + ([] if data.textures else ["plain"])
    kept = "".join(f", {mark}" for mark in (*marks, *data.sizes))
    return Signals(
        partial(_drawn, drawn, size[0]),
        kind="image",
        name=scenes.NAME,
        places=[f"{split} scene {scene.seed} of {objects}{kept}" for scene in drawn],
        shape=(count, 3, *size),
        **labels,
    )


def scene_captions(scene: Scene, kinds: str = "whole") -> tuple[str, ...]:
    """Some of the captions that name all objects of a scene with their colours, the plainest
    first; with `all`, every other kind of caption too."""
    dice = Dice(f"{scene.split} {scene.seed} in words")
    whole = TEMPLATES["whole"]
    forms = (whole[0], *dice.shuffled(whole[1:]))
    found = islice(filter(None, (tell(scene, form, dice) for form in forms)), VARIED)
    return tuple(dict.fromkeys((*found, *(all_captions(scene) if kinds == "all" else ()))))


def held_out_prompts(
    count: int, split: str = "test", objects: tuple[int, int] = (1, 2)
) -> list[Prompt]:
    """Prompts that each name a combination of shape and colour that training never saw.

    Raises:
        BedstoneError: no such split, or a number of things outside 1 to 5.
    """
    prompts = []
    for number in range(count):
        scene = make_scene(number, split=split, objects=objects)
        things = tuple(thing.pair for thing in scene.objects)
        prompts.append(Prompt(scene_captions(replace(scene, sign=None))[0], things))
    return prompts


def _drawn(drawn: Sequence[Scene], side: int, row: int) -> np.ndarray:
    return draw(drawn[row], side).transpose(2, 0, 1)


def _channels_first(pixels: np.ndarray, channels: int) -> np.ndarray:
    """(N, H, W, 3) uint8 to (N, C, H, W); grey is the luma of each pixel."""
    if channels == 3:
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    grey = np.empty((len(pixels), 1, *pixels.shape[1:3]), np.uint8)
    for row, image in enumerate(pixels):  # one at a time: the sums are wide
        grey[row, 0] = (image @ _GREY + 500) // 1000
    return grey


# Videos and volumes of a user: arrays of NumPy in a `.npz` file, as `numpy.savez` writes it.
#
# `signals` (N, C, *S) are uint8, of which 0 to 255 are -1 to 1, or float32 of about -1 to 1;
# `classes` (N,) are numbers or names; `captions` (N,) are texts. Without the axis of channels there
# is one.
#
# Shapes: N signals, C channels, S sides.

CONDITION_ARRAYS = {"none": "", "class": "classes", "text": "captions"}


def array_signals(
    name: str,
    data: SignalsConfig,
    condition: str,
    *,
    kind: str,
    names: Sequence[str] = (),
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Signals:
    """The signals of a file, at most `data.most_rows`, drawn by the seed.

    Args:
        kind: video or volume.
        names: of the classes, where they are known.

    Raises:
        BedstoneError: there is no such file, or it holds something else.
    """
    parts = ("signals", *filter(None, [CONDITION_ARRAYS[condition]]))
    arrays = _read(name, parts, data.memory_mb)
    values, sides = arrays["signals"], KINDS[kind]
    if values.ndim == sides + 1:
        values = values[:, None]
    if values.ndim != sides + 2:
        raise BedstoneError(
            f"data {name!r}: signals of shape {values.shape}; a {kind} has {sides} sides, so "
            "expected (rows, channels, *sides)."
        )
    if values.shape[1] not in (1, 3):
        raise BedstoneError(
            f"data {name!r}: signals of {values.shape[1]} channels; expected 1 or 3, grey or "
            "colours, which can be shown. They stand before the sides: (rows, channels, *sides)."
        )
    if data.size and tuple(data.size) != values.shape[2:]:
        raise BedstoneError(
            f"data.size: {list(data.size)} was given; {name} has signals of "
            f"{list(values.shape[2:])}. Leave it out, or resize them."
        )
    check_memory(values.shape, values.itemsize, data.memory_mb, name)
    labels: dict[str, Any] = {}
    part = CONDITION_ARRAYS[condition]
    if part and arrays[part].ndim != 1:
        raise BedstoneError(
            f"data {name!r}: {part} of shape {arrays[part].shape}; expected one for each of "
            f"{len(values)} signals."
        )
    if condition == "text":
        labels["captions"] = [[str(text)] for text in arrays["captions"]]
    if condition == "class":
        labelled = [str(each) for each in arrays["classes"]]
        whole = all(each.isdecimal() for each in labelled)
        known = list(names) or sorted(set(labelled), key=int if whole else None)
        numbers = {each: number for number, each in enumerate(known)}
        for row, each in enumerate(labelled):
            if each not in numbers:
                raise BedstoneError(
                    f"{name} {row}: is of class {each!r}, which is none of the {len(known)} "
                    f"learnt{nearest(each, known)}."
                )
        labels = {"classes": [numbers[each] for each in labelled], "names": known}
    return Signals(values, kind=kind, name=name, **labels).take(data.most_rows, seed)


def _read(name: str, parts: Sequence[str], memory_mb: float) -> dict[str, np.ndarray]:
    """Arrays of a `.npz` file; their headers are compared with the file before any is made."""
    if not Path(name).is_file() or Path(name).suffix != ".npz":
        raise BedstoneError(
            f"data.source: {name!r} is no .npz file. Save signals (N, C, *S) and what they are "
            f"made from: numpy.savez(file, {', '.join(f'{part}=...' for part in parts)})."
        )
    try:
        with zipfile.ZipFile(name) as archive:
            held = [each.removesuffix(".npy") for each in archive.namelist()]
            for part in parts:
                if part not in held:
                    raise BedstoneError(
                        f"data {name!r}: has no array {part!r}; it has {', '.join(held[:20])}."
                    )
            return {part: _array(archive, part, name, memory_mb) for part in parts}
    # zipfile and numpy raise these for what is encrypted, packed by another method, or untrue.
    except (
        *(OSError, ValueError, EOFError, RuntimeError, MemoryError, SyntaxError, TypeError),
        *(KeyError, zipfile.BadZipFile, zlib.error, struct.error),
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BedstoneError(f"data {name!r}: can't be read ({reason}). Save it again.") from error


def _array(archive: zipfile.ZipFile, part: str, name: str, memory_mb: float) -> np.ndarray:
    member = archive.getinfo(f"{part}.npy")
    with archive.open(member) as file:
        first = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else _header_2
        shape, _, kind = read(file)
    size = math.prod(shape) * kind.itemsize
    if min(shape, default=0) < 0 or size > member.file_size:
        raise BedstoneError(
            f"data {name!r}: the array {part!r} declares the shape {shape} of {kind}, {size:,} "
            f"bytes, and the file holds {member.file_size:,} of it. Save it again."
        )
    check_memory(shape, kind.itemsize, memory_mb, name)
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


_header_2 = np.lib.format.read_array_header_2_0


def spectrogram_of(data: SignalsConfig) -> Spectrogram:
    """The spectrogram that a recipe makes of sounds.

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
    progress: Callable[[float], None] | None = None,
) -> Signals:
    """The sounds of a source as spectrograms, with a channel for each frequency.

    Args:
        names: of the classes, where they are known.
        progress: is called with the share done.

    Raises:
        BedstoneError: they can't be read, too many are broken, or take more memory than they may.
    """
    form = spectrogram_of(data)
    rows = open_rows("audio", name, data, condition, seed)
    shape = (len(rows), form.bins, form.frames)
    check_memory(shape, 4, data.memory_mb, name)
    values = np.empty(shape, np.float32)
    good: list[int] = []
    for number, row in enumerate(rows):
        try:
            samples, rate = decode_sound(row.audio, row.place)
            signal = form.of(resampled(samples, rate, form.rate), row.place)
        except BedstoneError as error:
            rows.faults.add(error)
            continue
        values[len(good)] = signal.numpy()
        good.append(number)
        if progress is not None and number % 64 == 0:
            progress(number / len(rows))
    rows.faults.check()
    kept = rows.pick(good)
    return Signals(
        values[: len(good)],
        kind="audio",
        name=name,
        places=[row.place for row in kept],
        faults=rows.faults,
        **labels_of(kept, condition, names),
    )


# Signals by the name of their source.

Progress = Callable[[float], None]
# Built-in signals by name: their kind, and what draws them.
BUILT_IN: dict[str, tuple[str, Callable[..., Signals]]] = {
    scenes.NAME: ("image", scene_signals),
    moving_scenes.NAME: ("video", moving_scenes.moving_signals),
    solids.NAME: ("volume", solids.solid_signals),
}
# What reads the rows of a source, by the kind of signal.
READERS: dict[str, Callable[..., Signals]] = {
    "image": image_signals,
    "audio": sound_signals,
    "video": partial(array_signals, kind="video"),
    "volume": partial(array_signals, kind="volume"),
}


def open_signals(
    data: SignalsConfig,
    task: str,
    *,
    seed: int = 0,
    held: int = 0,
    progress: Progress | None = None,
) -> tuple[Signals, Signals]:
    """Signals to train on and signals held out, as a recipe says.

    Args:
        task: one of `TASKS`, which gives the condition and the kind of signal.
        held: how many are held out of built-in ones.
        progress: is called with the share done.

    Raises:
        BedstoneError: there is no such data, it is of another kind than the task's, or it can't
            be read.
    """
    condition, kind = TASKS[task]
    options: dict[str, Any] = {"seed": seed, "progress": progress}
    if data.source in BUILT_IN:
        drawn, draw = BUILT_IN[data.source]
        if drawn != kind:
            raise BedstoneError(
                f"data.source: {data.source!r} is {drawn}, and {task} makes {kind}. Choose "
                "another of both."
            )
        learnt = draw(data, condition, **options)
        return learnt, draw(data, condition, split="validation", count=held)
    read = READERS[kind]
    learnt = read(data.source, data, condition, **options)
    if not data.validation:
        return learnt.hold_out(data.validation_share or 0.05)
    options["names"] = learnt.names
    return learnt, read(data.validation, data, condition, **options)


def signals_to_measure(
    data: SignalsConfig,
    task: str,
    source: str,
    count: int,
    names: Sequence[str] = (),
    *,
    seed: int = 0,
) -> Signals:
    """Signals of a source that a model wasn't trained on, read as its recipe reads its own.

    Args:
        task: of the recipe.
        count: how many; of built-in ones, of their test split.
        names: of the classes that were learnt, by whose places they are numbered; else those of
            the source, which may have fewer.

    Raises:
        BedstoneError: as `open_signals`.
    """
    condition, kind = TASKS[task]
    if source in BUILT_IN:
        return BUILT_IN[source][1](data, condition, split="test", count=count)
    return READERS[kind](source, data, condition, names=names, seed=seed).take(count)
