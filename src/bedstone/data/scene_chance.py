"""A scene drawn at random by a seed.

Things may overlap, but each keeps `VISIBLE` of itself in sight, two of one colour don't touch, and
two others either don't meet or one clearly hides a part of the other; nothing hides a sign. So what
is said about a scene is never a matter of opinion.

A scene depends on its split, seed, number and sizes of things alone: not on the resolution, the
machine or Python's version.
"""

from collections.abc import Sequence

from bedstone.data.scene_shapes import REACH
from bedstone.data.scene_world import (
    BACKGROUNDS,
    COVERED,
    HELD_OUT,
    SIGNS,
    SIZES,
    SPLITS,
    TEXTURES,
    TINTS,
    VARIANTS,
    VISIBLE,
    Dice,
    Scene,
    Sign,
    Thing,
    allowed_pairs,
    hidden_share,
    near,
    visible_share,
)
from bedstone.errors import BedstoneError, nearest

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
    """Things and perhaps a sign in their places; None if one found no room."""
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
