"""The world of `scenes`: what a scene is, and what hides what in it.

A scene lies in the unit square: x goes right, y goes down. Some things (a shape of a colour, a
size and a texture) stand back to front before a background, and sometimes there is a sign.
"""

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bedstone.data.scene_shapes import DISTANCES, REACH, SHAPES

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 44, 48),
    "orange": (248, 142, 26),
    "yellow": (250, 222, 48),
    "green": (46, 158, 68),
    "cyan": (58, 204, 214),
    "blue": (38, 98, 220),
    "purple": (150, 58, 186),
    "pink": (250, 150, 196),
    "brown": (122, 76, 44),
    "grey": (126, 130, 136),
}
SIZES = {
    "small": 0.095,
    "medium": 0.138,
    "large": 0.195,
}  # radius, as a share of the picture's side
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS = ("plain", "gradient", "stripes", "dots", "checks", "meadow", "paper", "night")
VARIANTS = 4  # of each background's pattern
TINTS = 5  # pale colours that a background may have
WORDS = ("GO", "ICE", "HOT", "BUS", "ZOO", "STOP", "OPEN", "EXIT", "CAFE", "TAXI", "SALE", "PARK")
SIGNS = (*WORDS, *(str(number) for number in range(1, 21)))
SPLITS = ("train", "validation", "test", "all")

VISIBLE = 0.7  # share of a thing that nothing hides
COVERED = 0.08  # what is hidden by another is hidden by this share at least

PAIRS = tuple((shape, colour) for shape in SHAPES for colour in COLOURS)
_NAMES = tuple(COLOURS)
# Whole combinations that training never sees: two colours of each shape, one or two shapes of each
# colour. Four are for validation, so that nothing is chosen by what the test asks.
_VALIDATION = {(SHAPES[n], _NAMES[n]) for n in (1, 3, 5, 7)}
_TEST = {(SHAPES[n], _NAMES[n]) for n in (0, 2, 4, 6)}
_TEST |= {(shape, _NAMES[(n + 5) % 10]) for n, shape in enumerate(SHAPES)}
HELD_OUT = {"validation": frozenset(_VALIDATION), "test": frozenset(_TEST)}
_TRAIN = tuple(pair for pair in PAIRS if pair not in _VALIDATION | _TEST)
_ALLOWED = {name: (*_TRAIN, *sorted(held)) for name, held in HELD_OUT.items()}
_ALLOWED |= {"train": _TRAIN, "all": PAIRS}

_GRID = 64  # cells a side, on which hidden shares are counted
Item = TypeVar("Item")


def held_out(shape: str, colour: str) -> bool:
    """Whether training never sees this combination."""
    return (shape, colour) in _VALIDATION or (shape, colour) in _TEST


def allowed_pairs(split: str) -> tuple[tuple[str, str], ...]:
    """The (shape, colour) that pictures of a split may show, and its texts may name."""
    return _ALLOWED[split]


class Dice:
    """Chance by name: the same name throws the same, whatever the version of Python."""

    def __init__(self, name: str):
        self._roll = random.Random(name).random  # the one draw that Python promises to keep

    def below(self, count: int) -> int:
        return int(self._roll() * count)

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def chance(self, share: float) -> bool:
        return self._roll() < share

    def between(self, low: float, high: float) -> float:
        """In steps of 1/4096 of the unit, so that it prints and adds exactly."""
        return round((low + (high - low) * self._roll()) * 4096) / 4096

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        left, roll = list(items), self._roll
        return [left.pop(int(roll() * count)) for count in range(len(left), 0, -1)]


@dataclass(frozen=True)
class Thing:
    """A shape in the picture; `z` is 0 for the farthest, `tilt` in degrees clockwise."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    z: int = 0
    texture: str = "plain"
    tilt: int = 0

    @property
    def radius(self) -> float:
        return SIZES[self.size]

    @property
    def pair(self) -> tuple[str, str]:
        return self.shape, self.colour


@dataclass(frozen=True)
class Sign:
    """A board with a word or a number; nothing hides it."""

    text: str
    x: float
    y: float

    @property
    def width(self) -> float:
        return 0.105 * len(self.text) + 0.07

    @property
    def height(self) -> float:
        return 0.23


@dataclass(frozen=True)
class Scene:
    """What a picture shows; `objects` stand back to front."""

    background: str
    objects: tuple[Thing, ...]
    sign: Sign | None = None
    tint: int = 0
    variant: int = 0
    split: str = "all"
    seed: int = 0


def without_textures(scene: Scene) -> Scene:
    """The scene with all its things plain."""
    return replace(scene, objects=tuple(replace(each, texture="plain") for each in scene.objects))


def near(one: Thing, other: Thing) -> bool:
    """Whether two things could touch: a quick look before a slow one."""
    x, y, far = one.x - other.x, one.y - other.y, (one.radius + other.radius) * REACH + 0.01
    return x * x + y * y < far * far


def turned(thing: Thing, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Picture coordinates -> the thing's own: from its centre, in radii, tilt undone."""
    cos, sin = _TILTS[thing.tilt]
    x, y = (x - np.float32(thing.x)) / thing.radius, (y - np.float32(thing.y)) / thing.radius
    return x * cos + y * sin, y * cos - x * sin


def _tilts() -> dict[int, tuple[float, float]]:
    """Cosine and sine of whole degrees, by their series: rounded alike everywhere."""
    found = {}
    for degrees in range(-45, 46):
        angle = degrees * 0.017453292519943295
        square = angle * angle
        cos = 1 - square / 2 * (1 - square / 12 * (1 - square / 30))
        sin = angle * (1 - square / 6 * (1 - square / 20 * (1 - square / 42)))
        found[degrees] = (round(cos, 5), round(sin, 5))
    return found


_TILTS = _tilts()


@functools.lru_cache(maxsize=256)
def mask(thing: Thing) -> NDArray[np.bool_]:
    """The cells of a 64 by 64 grid that the whole thing covers, hidden or not."""
    middle = (np.arange(_GRID, dtype=np.float32) + 0.5) / _GRID
    inside = DISTANCES[thing.shape](*turned(thing, middle[None, :], middle[:, None])) < 0
    inside.setflags(write=False)
    return inside


def hidden_share(behind: Thing, front: Thing) -> float:
    """The share of a thing that another before it hides; 0 if that is not before it."""
    if front.z <= behind.z or not near(behind, front):
        return 0.0
    whole = mask(behind)
    return float((whole & mask(front)).sum() / whole.sum())


def visible_share(thing: Thing, things: Sequence[Thing]) -> float:
    """The share of a thing that nothing before it hides."""
    before = [other for other in things if other.z > thing.z and near(thing, other)]
    if not before:
        return 1.0
    whole = mask(thing)
    seen = whole.copy()
    for other in before:
        seen &= ~mask(other)
    return float(seen.sum() / whole.sum())
