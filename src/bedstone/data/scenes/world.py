"""Scenes: their objects, how one is made at random, and which objects hide others.

A scene lies in the unit square: x goes right, y goes down. Some things (a shape of a colour, a
size and a texture) stand back to front before a background, and sometimes there is a sign.
"""

import functools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bedstone.errors import BedstoneError, nearest

Field = NDArray[Any]

REACH = 1.16  # no point of a shape is farther than this many radii from its centre

# Cosine and sine of 72 and 36 degrees, written out: libraries differ in their last digit.
_COS36, _SIN36 = 0.80902, 0.58779


def _length(u: Field, v: Field) -> Field:
    return np.sqrt(u * u + v * v)


def circle(u: Field, v: Field) -> Field:
    return _length(u, v) - 0.96


def square(u: Field, v: Field) -> Field:
    x, y = np.abs(u) - 0.72, np.abs(v) - 0.72
    outside = _length(np.maximum(x, 0), np.maximum(y, 0))
    return outside + np.minimum(np.maximum(x, y), 0) - 0.08  # corners rounded by 0.08


def triangle(u: Field, v: Field) -> Field:
    slope = 0.89443 * np.abs(u) - 0.44721 * (v + 1.02)  # the two sides, 1 across for 2 down
    return np.maximum(slope, v - 0.76)


def star(u: Field, v: Field) -> Field:
    x, y = np.abs(u), -v  # its top points up
    along = np.maximum(_COS36 * x - _SIN36 * y, 0) * 2  # fold five points onto one
    x, y = x - along * _COS36, y + along * _SIN36
    along = np.maximum(-_COS36 * x - _SIN36 * y, 0) * 2
    x, y = np.abs(x + along * _COS36), y + along * _SIN36
    y = y - 1.12
    # One edge, from the tip to the notch beside it.
    ex, ey = 0.5 * _SIN36, 0.5 * _COS36 - 1.0
    share = np.clip((x * ex + y * ey) / (ex * ex + ey * ey), 0, 1.12)
    away = _length(x - ex * share, y - ey * share)
    return np.copysign(away, y * ex - x * ey) - 0.04


def heart(u: Field, v: Field) -> Field:
    scale = 1.72
    x, y = np.abs(u) / scale, (0.97 - v) / scale
    lobe = _length(x - 0.25, y - 0.75) - 0.35355
    half = np.maximum(x + y, 0) / 2
    point = np.minimum(x * x + (y - 1) * (y - 1), (x - half) ** 2 + (y - half) ** 2)
    return np.where(x + y > 1, lobe, np.copysign(np.sqrt(point), x - y)) * scale


def cross(u: Field, v: Field) -> Field:
    x, y = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(x - 1, y - 0.36), np.maximum(x - 0.36, y - 1))


def ring(u: Field, v: Field) -> Field:
    return np.abs(_length(u, v) - 0.73) - 0.28


def moon(u: Field, v: Field) -> Field:
    """A crescent, open to the right."""
    return np.maximum(_length(u - 0.1, v) - 1.04, 0.9 - _length(u - 0.62, v))


DISTANCES: dict[str, Callable[[Field, Field], Field]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "heart": heart,
    "cross": cross,
    "ring": ring,
    "moon": moon,
}
SHAPES = tuple(DISTANCES)

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
# Combinations held out of training: two colours of each shape, one or two shapes of each colour.
# Four are for validation, so that nothing is chosen by the test split.
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
    """Whether a combination of shape and colour is held out of training."""
    return (shape, colour) in _VALIDATION or (shape, colour) in _TEST


def allowed_pairs(split: str) -> tuple[tuple[str, str], ...]:
    """The (shape, colour) that images of a split may show, and its texts may name."""
    return _ALLOWED[split]


class Dice:
    """A random generator seeded by a name: the same draws in every version of Python."""

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
    """An object of a scene; `z` is 0 for the farthest, `tilt` in degrees clockwise."""

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
    """A background with objects, back to front, and perhaps a sign."""

    background: str
    objects: tuple[Thing, ...]
    sign: Sign | None = None
    tint: int = 0
    variant: int = 0
    split: str = "all"
    seed: int = 0


# What the values of a written thing may be.
_PARTS: dict[str, Sequence[str]] = {
    "shape": SHAPES,
    "colour": _NAMES,
    "size": tuple(SIZES),
    "texture": TEXTURES,
}


def read_scene(value: Any) -> Scene:
    """A scene as `dataclasses.asdict` gives it, or JSON of that.

    Of an object, `texture`, `z` (else its place in the list) and `tilt` may be left out; of the
    scene all but `objects`.

    Raises:
        BedstoneError: it is another value; the key is named.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, Mapping) or not value.get("objects"):
        raise BedstoneError(
            "expected a scene: {background, objects: [{shape, colour, size, x, y}], sign: {text, "
            "x, y}}"
        )
    given = {"background": "plain", "sign": None, **value}
    known = {each.name for each in fields(Scene)}
    if unknown := given.keys() - known:
        name = min(map(str, unknown))
        raise BedstoneError(f"its key {name!r} is unknown{nearest(name, known)}")
    if given["background"] not in BACKGROUNDS:
        raise BedstoneError(
            f"background is {given['background']!r}{nearest(str(given['background']), BACKGROUNDS)}"
        )
    objects = given["objects"]
    if not isinstance(objects, list | tuple):
        raise BedstoneError("objects is no list of things")
    things = [_read_part(Thing, each, f"objects[{n}]", {"z": n}) for n, each in enumerate(objects)]
    sign = given["sign"]
    read = None if sign is None else _read_part(Sign, sign, "sign", {})
    return replace(Scene(given["background"], tuple(things)), sign=read)


def _read_part(kind: Any, value: Any, where: str, usual: Mapping[str, Any]) -> Any:
    """A thing or a sign, each of its values checked."""
    known = {each.name: each for each in fields(kind)}
    if not isinstance(value, Mapping):
        raise BedstoneError(f"{where} is no mapping; expected {', '.join(known)}")
    if unknown := value.keys() - known.keys():
        name = min(map(str, unknown))
        raise BedstoneError(f"{where} has the unknown key {name!r}{nearest(name, known)}")
    values = {**usual, **value}
    for name, each in known.items():
        if name not in values and each.default is MISSING:
            raise BedstoneError(f"{where} has no {name}")
        found = values.get(name, each.default)
        if name in _PARTS and found not in _PARTS[name]:
            raise BedstoneError(f"{where}.{name} is {found!r}{nearest(str(found), _PARTS[name])}")
        number = isinstance(found, int | float) and not isinstance(found, bool)
        if name in ("x", "y") and not (number and 0 <= found <= 1):
            raise BedstoneError(f"{where}.{name} is {found!r}; expected a number from 0 to 1")
        if name in ("z", "tilt") and type(found) is not int:
            raise BedstoneError(f"{where}.{name} is {found!r}; expected a whole number")
        if name == "text" and not isinstance(found, str):
            raise BedstoneError(f"{where}.text is {found!r}; expected a text")
    return kind(**values)


def without_textures(scene: Scene) -> Scene:
    """The scene with all its objects plain."""
    return replace(scene, objects=tuple(replace(each, texture="plain") for each in scene.objects))


def near(one: Thing, other: Thing) -> bool:
    """Whether two objects could touch: a quick test before a slow one."""
    x, y, far = one.x - other.x, one.y - other.y, (one.radius + other.radius) * REACH + 0.01
    return x * x + y * y < far * far


def turned(thing: Thing, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Image coordinates to an object's own: from its centre, in radii, tilt undone."""
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
    """The share of an object that another before it hides; 0 if that is not before it."""
    if front.z <= behind.z or not near(behind, front):
        return 0.0
    whole = mask(behind)
    return float((whole & mask(front)).sum() / whole.sum())


def visible_share(thing: Thing, things: Sequence[Thing]) -> float:
    """The share of an object that nothing before it hides."""
    before = [other for other in things if other.z > thing.z and near(thing, other)]
    if not before:
        return 1.0
    whole = mask(thing)
    seen = whole.copy()
    for other in before:
        seen &= ~mask(other)
    return float(seen.sum() / whole.sum())


# A scene made at random by a seed.
#
# Objects may overlap, but a share `VISIBLE` of each is visible, two of one colour don't touch, and
# two others either don't meet or one clearly hides a part of the other; nothing hides a sign. So
# every statement about a scene is clearly true or false.
#
# A scene depends on its split, seed, number and sizes of objects alone: not on the resolution, the
# machine or Python's version.

MOST_ATTEMPTS = 500  # to find room for all things

# Unit vectors of sixteen directions, written out: libraries differ in their last digit.
_QUARTER = ((1.0, 0.0), (0.92388, 0.38268), (0.70711, 0.70711), (0.38268, 0.92388))
_DIRECTIONS = tuple(turned for x, y in _QUARTER for turned in ((x, y), (-y, x), (-x, -y), (y, -x)))


def make_scene(
    seed: int,
    *,
    split: str = "train",
    objects: tuple[int, int] = (1, 5),
    sizes: Sequence[str] = (),
) -> Scene:
    """The scene of a seed, with `objects` (fewest, most) things in it.

    They are of those `sizes`; of all, where none is named.

    A `train` scene has no held-out combination. A `validation` or `test` scene has at least one of
    its own split, and none of the other's. `all` draws from all 80, for those who judge pictures.

    Raises:
        BedstoneError: no such split or size, a number of things outside 1 to 5, or more large
            ones than there is room for.
    """
    few, many = objects
    if split not in SPLITS:
        raise BedstoneError(f"scenes: split {split!r} is unknown{nearest(split, SPLITS)}.")
    if not 1 <= few <= many <= 5:
        raise BedstoneError(
            f"scenes: objects {tuple(objects)!r} can't be drawn. Give the fewest and the most "
            "things in a picture, both from 1 to 5, such as (1, 5)."
        )
    if unknown := [size for size in sizes if size not in SIZES]:
        name = unknown[0]
        raise BedstoneError(
            f"scenes: size {name!r} of a thing is unknown{nearest(name, SIZES)}. There are "
            f"{', '.join(SIZES)}."
        )
    sizes = [size for size in SIZES if size in sizes or not sizes]  # the largest last
    dice = Dice(f"scene {split} {seed} {few} {many}")
    pairs = _pairs(dice, split, few + dice.below(many - few + 1))
    attempt = 0
    while (found := _layout(dice, pairs, attempt, sizes)) is None:
        attempt += 1
        if attempt == MOST_ATTEMPTS:
            raise BedstoneError(
                f"scenes: {len(pairs)} things of sizes {list(sizes)} found no room. Allow fewer "
                "things, or small ones."
            )
    things, sign = found
    background = dice.pick(BACKGROUNDS)
    return Scene(
        background, things, sign, dice.below(TINTS), dice.below(VARIANTS), split=split, seed=seed
    )


def _pairs(dice: Dice, split: str, count: int) -> list[tuple[str, str]]:
    """Combinations that share shapes and colours often enough for there to be things to count."""
    allowed = allowed_pairs(split)
    first = dice.pick(sorted(HELD_OUT[split]) if split in HELD_OUT else allowed)
    pairs = [first]
    while len(pairs) < count:
        shape, colour = dice.pick(pairs)
        kind = dice.below(10)
        if kind < 2:
            pairs.append((shape, colour))
        elif kind < 4:
            pairs.append(dice.pick([pair for pair in allowed if pair[0] == shape]))
        elif kind < 6:
            pairs.append(dice.pick([pair for pair in allowed if pair[1] == colour]))
        else:
            pairs.append(dice.pick(allowed))
    return dice.shuffled(pairs)


def _layout(
    dice: Dice, pairs: list[tuple[str, str]], attempt: int, sizes: Sequence[str]
) -> tuple[tuple[Thing, ...], Sign | None] | None:
    """Objects and perhaps a sign in their places; None if one found no room."""
    sign = None
    if dice.chance(0.35) and attempt < 20:
        sign = Sign(dice.pick(SIGNS), 0, 0)
        margins = sign.width / 2 + 0.01, sign.height / 2 + 0.01
        sign = Sign(sign.text, _coordinate(dice, margins[0]), _coordinate(dice, margins[1]))
    if attempt >= 10 and len(sizes) > 1:
        sizes = sizes[:-1]  # in a crowd, no large ones
    things: list[Thing] = []
    for number, (shape, colour) in enumerate(pairs):
        size = dice.pick(sizes)
        # A small thing is plain: at 64 by 64 its stripes would be a blur.
        fine = size == "small" or dice.chance(0.6)
        texture = "plain" if fine else dice.pick(TEXTURES[1:])
        tilt = dice.below(25) - 12
        for _ in range(12):
            x, y = _spot(dice, things, SIZES[size])
            thing = Thing(shape, colour, size, x, y, number, texture, tilt)
            if _fits(thing, things, sign):
                things.append(thing)
                break
        else:
            return None
    return tuple(things), sign


def _spot(dice: Dice, things: list[Thing], radius: float) -> tuple[float, float]:
    """Anywhere, or, often, half over a thing that is there."""
    if things and dice.chance(0.35):
        near = dice.pick(things)
        (x, y), far = dice.pick(_DIRECTIONS), 0.8 * (near.radius + radius)
        return round((near.x + x * far) * 4096) / 4096, round((near.y + y * far) * 4096) / 4096
    return _coordinate(dice, radius * REACH), _coordinate(dice, radius * REACH)


def _coordinate(dice: Dice, margin: float) -> float:
    """In one of three thirds, equally often, and clear of their borders where there is room."""
    third = dice.below(3)
    low, high = (max(margin, 0.37), 0.63) if third == 1 else (margin, max(margin, 0.30))
    if low >= high:
        low, high = (0.47, 0.53) if third == 1 else (margin, margin)
    place = dice.between(low, high)
    return 1 - place if third == 2 else place


def _fits(thing: Thing, things: list[Thing], sign: Sign | None) -> bool:
    reach = thing.radius * REACH
    if not (reach <= thing.x <= 1 - reach and reach <= thing.y <= 1 - reach):
        return False
    if sign:
        x = max(abs(thing.x - sign.x) - sign.width / 2, 0)
        y = max(abs(thing.y - sign.y) - sign.height / 2, 0)
        if x * x + y * y < (reach + 0.012) ** 2:
            return False
    if not any(near(thing, other) for other in things):
        return True
    if any(other.colour == thing.colour and near(other, thing) for other in things):
        return False  # two reds would melt together at 64 by 64
    together = [*things, thing]
    if any(0 < hidden_share(other, thing) < COVERED for other in things):
        return False
    return all(visible_share(other, together) >= VISIBLE for other in things)
