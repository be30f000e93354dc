"""The built-in data `moving-scenes`: short synthetic videos of moving objects.

What a text says of a video, its shapes, colours and directions, is always true: things stay in the
picture, move evenly, and never cover one another. Combinations of shape and colour are held out as
in `scenes`.

Shapes: F frames, H = W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from bedstone.data.scenes import datasets as scenes
from bedstone.data.scenes.captions import articles, listed
from bedstone.data.scenes.render import draw
from bedstone.data.scenes.world import (
    REACH,
    SHAPES,
    SIZES,
    Dice,
    Scene,
    Thing,
    make_scene,
    without_textures,
)
from bedstone.data.signals.signals import Signals, SignalsConfig, check_memory
from bedstone.errors import BedstoneError

NAME = "moving-scenes"
COUNT, HELD, SIZE = 10_000, 500, (8, 32, 32)  # drawn where a recipe doesn't say
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
CLASSES = tuple(f"{shape} moving {way}" for shape in SHAPES for way in DIRECTIONS)

MOST_ATTEMPTS = 500  # to find a way for all things

_WAYS = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}
_FORMS = (
    "{moving}",
    "a video of {moving}",
    "{moves}",
    "here {moves}",
    "this video shows {moving}",
)
_FAR = (0.3, 0.45)  # how far a thing moves, as a share of the picture's side


@dataclass(frozen=True)
class Moving:
    """A scene and the paths of its objects.

    Attributes:
        scene: as it begins.
        ways: the direction of each thing, of `DIRECTIONS`.
        far: how far each goes, in picture sides.
    """

    scene: Scene
    ways: tuple[str, ...]
    far: tuple[float, ...]

    def at(self, share: float) -> Scene:
        """The scene when that share of the video has passed, 0 to 1."""
        things = []
        for thing, way, far in zip(self.scene.objects, self.ways, self.far, strict=True):
            x, y = DIRECTIONS[way]
            gone = far * share
            things.append(replace(thing, x=thing.x + x * gone, y=thing.y + y * gone))
        return replace(self.scene, objects=tuple(things))


def make_moving(
    seed: int,
    *,
    split: str = "train",
    objects: tuple[int, int] = (1, 1),
    sizes: Sequence[str] = (),
) -> Moving:
    """The moving scene of a seed, with `objects` (fewest, most) things; splits as of `make_scene`.

    Things are of those `sizes`; of all, where none is named.

    Raises:
        BedstoneError: no such split or size, a number of things outside 1 to 3, or more large ones
            than can keep out of each other's way.
    """
    if not 1 <= objects[0] <= objects[1] <= 3:
        raise BedstoneError(
            f"data.objects: {list(objects)} can't move out of each other's way; expected the "
            "fewest and the most things, both from 1 to 3."
        )
    scene = make_scene(seed, split=split, objects=objects, sizes=sizes)
    scene = replace(scene, sign=None)
    least = next(size for size in SIZES if size in sizes or not sizes)
    dice = Dice(f"moving {split} {seed} {objects[0]} {objects[1]}")
    attempt = 0
    while (found := _paths(dice, scene, attempt, least)) is None:
        attempt += 1
        if attempt == MOST_ATTEMPTS:
            raise BedstoneError(
                f"data.sizes: {len(scene.objects)} things of {list(sizes)} can't move out of each "
                "other's way. Allow fewer things, or small ones."
            )
    return found


def moving_captions(moving: Moving) -> tuple[str, ...]:
    """Captions that name every object's shape, colour and direction."""
    phrases: dict[str, list[str]] = {"moving": [], "moves": []}
    for thing, way in zip(moving.scene.objects, moving.ways, strict=True):
        for word, parts in phrases.items():
            parts.append(f"a {thing.colour} {thing.shape} {word} {_WAYS[way]}")
    filled = {word: listed(parts) for word, parts in phrases.items()}
    return tuple(articles(form.format(**filled)) for form in _FORMS)


def draw_moving(moving: Moving, frames: int, side: int) -> np.ndarray:
    """A video, (3, F, H, W) uint8."""
    shares = np.linspace(0, 1, frames) if frames > 1 else [0.5]
    drawn = [draw(moving.at(float(share)), side) for share in shares]
    return np.stack(drawn).transpose(3, 0, 1, 2)


def moving_signals(
    data: SignalsConfig,
    condition: str = "class",
    *,
    split: str = "train",
    count: int = 0,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Signals:
    """Videos of moving objects: of one with its shape and direction as class, or with captions.

    Args:
        count: how many; 0 is as many as `data` says.
        progress: is called with the share done.

    Raises:
        BedstoneError: they can't be drawn so, or take more memory than they may.
    """
    size = data.size or SIZE
    if size[1] != size[2] or data.channels != 3:
        raise BedstoneError(
            f"data.size: {list(size)} with {data.channels} channels was given; moving scenes are "
            "[frames, side, side], square, with 3."
        )
    count = count or data.most_rows or (COUNT if split == "train" else HELD)
    check_memory((count, 3, *size), 1, data.memory_mb, NAME)
    objects = data.things if condition == "text" else (1, 1)
    made = []
    for number in range(count):
        each = make_moving(
            seed * scenes.APART + number, split=split, objects=objects, sizes=data.sizes
        )
        if not data.textures:
            each = replace(each, scene=without_textures(each.scene))
        made.append(each)
        if progress is not None and number % 256 == 0:
            progress(number / count)
    labels: dict[str, Any] = {}
    if condition == "text":
        labels = {"captions": [moving_captions(each) for each in made]}
    elif condition == "class":
        numbers = {name: number for number, name in enumerate(CLASSES)}
        named = [f"{each.scene.objects[0].shape} moving {each.ways[0]}" for each in made]
        labels = {"classes": [numbers[name] for name in named], "names": CLASSES}
    kept = "".join(f", {mark}" for mark in (*([] if data.textures else ["plain"]), *data.sizes))
    return Signals(
        partial(_drawn, made, size[0], size[1]),
        kind="video",
        name=NAME,
        places=[f"{split} moving scene {each.scene.seed} of {objects}{kept}" for each in made],
        shape=(count, 3, *size),
        **labels,
    )


def _drawn(made: list[Moving], frames: int, side: int, row: int) -> np.ndarray:
    return draw_moving(made[row], frames, side)


def _paths(dice: Dice, scene: Scene, attempt: int, least: str) -> Moving | None:
    """Places and directions for the things of a scene; None if one found no way.

    Args:
        attempt: after ten, things are of the `least` size, and plain.
    """
    things: list[Thing] = []
    ways: list[str] = []
    fars: list[float] = []
    for thing in scene.objects:
        if attempt >= 10:
            thing = replace(thing, size=least, texture="plain")
        way = dice.pick(tuple(DIRECTIONS))
        far = dice.between(*_FAR)
        (x, y), margin = DIRECTIONS[way], thing.radius * REACH
        for _ in range(12):
            middle = [
                dice.between(margin + far / 2 * abs(step), 1 - margin - far / 2 * abs(step))
                for step in (x, y)
            ]
            begun = replace(thing, x=middle[0] - x * far / 2, y=middle[1] - y * far / 2)
            made = Moving(replace(scene, objects=(*things, begun)), (*ways, way), (*fars, far))
            if _apart(made):
                things, ways, fars = [*things, begun], [*ways, way], [*fars, far]
                break
        else:
            return None
    return made


def _apart(moving: Moving) -> bool:
    """Whether the last object never comes near another."""
    for step in range(17):
        *others, last = moving.at(step / 16).objects
        for other in others:
            x, y, room = other.x - last.x, other.y - last.y, (other.radius + last.radius) * REACH
            if x * x + y * y < room * room:
                return False
    return True
