"""Pictures as signals: of rows in a source, or the drawn `scenes` with their captions.

Shapes: N pictures, C channels, H x W pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from bedstone.data import scenes
from bedstone.data.image_processor import ImageProcessor
from bedstone.data.pictures import Pictures
from bedstone.data.scene_words import TEMPLATES, tell
from bedstone.data.scene_world import Dice, without_textures
from bedstone.data.signal_rows import SignalReader, labels_of, open_rows
from bedstone.data.signals import Signals, check_memory
from bedstone.errors import BedstoneError
from bedstone.recipes_diffusion import SignalsConfig

SCENES, SIZE = 50_000, (32, 32)  # drawn where a recipe doesn't say
HELD = 1000  # scenes of a split with held-out combinations
VARIED = 4  # whole captions of a scene

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


def picture_signals(
    name: str,
    data: SignalsConfig,
    condition: str,
    *,
    names: Sequence[str] = (),
    seed: int = 0,
    told: Callable[[float], None] | None = None,
) -> Signals:
    """The pictures of a source: covering `data.size`, what lies outside cut away.

    Args:
        names: of the classes, where they are known.
        told: is handed the share done.

    Raises:
        BedstoneError: they can't be read, or take more memory than they may.
    """
    rows = open_rows(SignalReader, name, data, condition, seed)
    size = data.size or SIZE
    check_memory((len(rows), data.channels, *size), 1, data.memory_mb, name)
    whole = float("inf")  # the grey of them may fit where the colours, for a moment, don't
    sides = size[0], size[1]
    fit = partial(covering, size=sides)
    pictures = Pictures(rows, fit, sides, memory_mb=whole, told=told)
    assert pictures.pixels is not None
    kept = rows.pick(pictures.readable.tolist())
    return Signals(
        _channels_first(pictures.pixels[pictures.readable], data.channels),
        kind="image",
        name=name,
        places=[pair.place for pair in kept],
        faults=rows.faults,
        **labels_of(kept, condition, names),
    )


def covering(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8, no larger than needed to cover (h, w), and of that the middle."""
    sides = picture.shape[:2]
    scale = max(wanted / side for wanted, side in zip(size, sides, strict=True))
    shorter = math.ceil(min(sides) * scale - 1e-6)  # what a product lost is no pixel
    return ImageProcessor(resize=shorter, crop=size).fit(picture)


def scene_signals(
    data: SignalsConfig,
    condition: str = "text",
    *,
    split: str = "train",
    count: int = 0,
    seed: int = 0,
    told: Callable[[float], None] | None = None,
) -> Signals:
    """Drawn scenes: with captions, or with the class of their first thing, or neither.

    Those of `train` never show or name a held-out combination of shape and colour; each of
    `validation` and `test` has one.

    Args:
        count: how many; 0 is as many as `data` says.
        told: is handed the share done.

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
        scene = scenes.make_scene(
            seed * scenes.APART + number, split=split, objects=objects, sizes=data.sizes
        )
        drawn.append(_plain(scene, data))
        if condition == "text":
            texts.append(scene_captions(drawn[-1], data.captions))
        if told is not None and number % 256 == 0:
            told(number / count)
    labels: dict[str, Any] = {"captions": texts} if condition == "text" else {}
    if condition == "class":
        classes = [scenes.SHAPES.index(scene.objects[0].shape) for scene in drawn]
        labels = {"classes": classes, "names": scenes.SHAPES}
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


def scene_captions(scene: scenes.Scene, kinds: str = "whole") -> tuple[str, ...]:
    """Some of the sentences that name all things of a scene with their colours, the plainest
    first; with `all`, every other kind of caption too."""
    dice = Dice(f"{scene.split} {scene.seed} in words")
    whole = TEMPLATES["whole"]
    forms = (whole[0], *dice.shuffled(whole[1:]))
    found = islice(filter(None, (tell(scene, form, dice) for form in forms)), VARIED)
    return tuple(dict.fromkeys((*found, *(scenes.captions(scene) if kinds == "all" else ()))))


def held_out_prompts(
    count: int, split: str = "test", objects: tuple[int, int] = (1, 2)
) -> list[Prompt]:
    """Prompts that each name a combination of shape and colour that training never saw.

    Raises:
        BedstoneError: no such split, or a number of things outside 1 to 5.
    """
    prompts = []
    for number in range(count):
        scene = scenes.make_scene(number, split=split, objects=objects)
        things = tuple(thing.pair for thing in scene.objects)
        prompts.append(Prompt(scene_captions(replace(scene, sign=None))[0], things))
    return prompts


def _plain(scene: scenes.Scene, data: SignalsConfig) -> scenes.Scene:
    """Without what isn't to be learnt."""
    if not data.signs:
        scene = replace(scene, sign=None)
    return scene if data.textures else without_textures(scene)


def _drawn(drawn: Sequence[scenes.Scene], side: int, row: int) -> np.ndarray:
    return scenes.draw(drawn[row], side).transpose(2, 0, 1)


def _channels_first(pixels: np.ndarray, channels: int) -> np.ndarray:
    """(N, H, W, 3) uint8 to (N, C, H, W), grey by what eyes see of each colour."""
    if channels == 3:
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    grey = np.empty((len(pixels), 1, *pixels.shape[1:3]), np.uint8)
    for row, picture in enumerate(pixels):  # one at a time: the sums are wide
        grey[row, 0] = (picture @ _GREY + 500) // 1000
    return grey
