"""Captions of scenes, every statement of which is true.

A template is a sentence with slots. What a slot can't say truly and plainly of a scene, its
template doesn't say at all: a thing is named by what no other thing in the picture shares, a
relation by a margin.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice, permutations

from bedstone.data.scene_facts import (
    GROUNDS,
    NUMBERS,
    PLACES,
    clearly,
    matching,
    place,
    relations,
)
from bedstone.data.scene_shapes import SHAPES
from bedstone.data.scene_world import (
    Dice,
    Scene,
    Thing,
)

# Of most kinds a scene has one caption: of these it has two, since what learns from captions sees
# a shape apart from its colours by them alone.
TWICE = "shapes"

# {all}: every thing; {a}, {b}, {c}: things named so that no other is meant; {full}: with its size.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "whole": (
        "{all}",
        "a picture of {all}",
        "a drawing with {all}",
        "this picture shows {all}",
        "here we see {all}",
        "there {is_all} {all}",
        "{all} {ground}",
        "{objects}: {all}",
        "a picture {ground} with {all}",
    ),
    "relation": (
        "{a} {rel} {b}",
        "{a} is {rel} {b}",
        "{the_a} is {rel} {the_b}",
        "a picture of {a} {rel} {b}",
        "{ground}, {a} is {rel} {b}",
        "{a} is {rel} {b} and {rel2} {c}",
        "{the_a} is {larger} {the_b}",
        "{a} {rel} {sign}",
    ),
    "place": (
        "{a} {place_a}",
        "{the_a} is {place_a}",
        "{place_a} there is {a}",
        "{a} {place_a} and {b} {place_b}",
        "a picture of {a} {place_a}, {ground}",
    ),
    "detail": (
        "{full_a}",
        "{full_a} and {full_b}",
        "a picture of {full_a} {ground}",
        "this picture shows {full_a}",
    ),
    "count": (
        "there {is_n} {n_alike}",
        "{n_shape} and {m_shape}",
        "a picture with {objects} {ground}",
        "{objects}, {n_of_them}",
        "we see {n_alike} but {none}",
        "{a} and {none}",
    ),
    "shapes": (
        "{shapes}",
        "a picture of {shapes}",
        "here we see {shapes}",
        "{shapes} {ground}",
        "this picture shows {shapes}",
        "a picture {ground} with {shapes}",
    ),
    "sign": (
        "{the_sign}",
        "{sign} and {all}",
        "{all} and {sign}",
        "{sign} {place_sign}",
        "a picture with {sign}",
    ),
}


_ARTICLE = re.compile(r"\ban? (?=(\w))")


def articles(text: str) -> str:
    """`a` before consonants, `an` before vowels."""
    return _ARTICLE.sub(lambda m: "an " if m[1] in "aeio" else "a ", text)


def noun(count: int, shape: str) -> str:
    if count == 1:
        return shape
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def listed(parts: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def name(scene: Scene, thing: Thing) -> str | None:
    """The plainest phrase that means this thing and no other; None if there is none."""
    shape, colour = thing.shape, thing.colour
    alike = [one for one in scene.objects if one.colour == colour and one.shape == shape]
    if len(alike) == 1:
        return f"{thing.colour} {thing.shape}"
    if [other.size for other in alike].count(thing.size) == 1:
        return f"{thing.size} {thing.colour} {thing.shape}"
    return None


def captions(scene: Scene) -> tuple[str, ...]:
    """True captions of a scene, one of each kind that has something to say of it, two of shapes.

    The first names all things (not the sign) and is the one to tell pictures apart by.
    """
    return tuple(dict.fromkeys(_captions(scene)))


def caption(scene: Scene) -> str:
    """The first of a scene's captions, without the work for the others."""
    return next(_captions(scene))


def _captions(scene: Scene) -> Iterator[str]:
    dice = Dice(f"words {scene}")
    for kind in ("whole", *dice.shuffled(tuple(TEMPLATES)[1:])):
        told = filter(None, (tell(scene, form, dice) for form in dice.shuffled(TEMPLATES[kind])))
        yield from islice(told, 2 if kind == TWICE else 1)


def prompts(shape: str, colour: str) -> tuple[str, ...]:
    """The sentences that name a shape of a colour, for telling pictures apart by words alone."""
    scene = Scene("plain", (Thing(shape, colour, "medium", 0.5, 0.5),))
    told = [tell(scene, template, Dice("")) for template in TEMPLATES["whole"]]
    return tuple(text for text in told if text and "background" not in text and ":" not in text)


def tell(scene: Scene, template: str, dice: Dice) -> str | None:
    """A template filled with what is true of the scene; None if it can't be."""
    slots = _slots(template)
    things = dice.shuffled([thing for thing in scene.objects if name(scene, thing)])
    values: dict[str, str | None] = {"ground": GROUNDS[scene.background]}
    if "rel2" in slots:
        values |= _chain(scene, things, dice)
    elif "larger" in slots:
        values |= _larger(scene, things)
    elif {"rel", "b"} <= slots or {"rel", "the_b"} <= slots:
        values |= _relation(scene, things, dice)
    else:
        for letter, thing in zip("ab", things, strict=False):
            if slots & {letter, f"the_{letter}", f"place_{letter}", f"full_{letter}"}:
                values |= _named(scene, letter, thing)
    if slots & {"all", "is_all", "objects", "shapes"}:
        values |= _whole(scene, dice)
    if slots & {"n_alike", "n_shape", "n_of_them", "none"}:
        values |= _counts(scene, dice)
    if scene.sign and slots & {"sign", "the_sign", "place_sign"}:
        values |= _sign(scene, things, dice, "rel" in slots)
    if any(not values.get(slot) for slot in slots):
        return None
    return articles(template.format(**values))


@functools.cache
def _slots(template: str) -> frozenset[str]:
    return frozenset(re.findall(r"\{(\w+)\}", template))


Values = dict[str, str | None]


def _named(scene: Scene, letter: str, thing: Thing) -> Values:
    where = place(thing)
    texture = "" if thing.texture == "plain" else f"{thing.texture} "
    phrase = name(scene, thing)
    return {
        letter: f"a {phrase}",
        f"the_{letter}": f"the {phrase}",
        f"place_{letter}": PLACES[where] if where else None,
        f"full_{letter}": f"a {thing.size} {texture}{thing.colour} {thing.shape}",
    }


def _whole(scene: Scene, dice: Dice) -> Values:
    things = scene.objects
    told, one = _counted([f"{thing.colour} {thing.shape}" for thing in things], dice)
    return {
        "all": told,
        "is_all": "is" if one else "are",
        "shapes": _counted([thing.shape for thing in things], dice)[0],
        "objects": f"{NUMBERS[len(things)]} {noun(len(things), 'object')}",
    }


def _counted(names: list[str], dice: Dice) -> tuple[str, bool]:
    """`a red heart and two green stars`, and whether the first is one alone."""
    groups = dice.shuffled(sorted(Counter(names).items()))
    parts = [
        f"a {word}" if count == 1 else f"{NUMBERS[count]} {noun(count, word)}"
        for word, count in groups
    ]
    return listed(parts), groups[0][1] == 1


def _relation(scene: Scene, things: list[Thing], dice: Dice) -> Values:
    """Two things that touch, often, since few do; or any two."""
    pairs = list(permutations(things, 2))
    if dice.chance(0.5):
        pairs.sort(key=lambda pair: relations(*pair)[-1:] not in (["in front of"], ["behind"]))
    for one, other in pairs:
        if known := relations(one, other):
            touching = known[-1] in ("in front of", "behind") and dice.chance(0.7)
            word = known[-1] if touching else dice.pick(known)
            return {**_named(scene, "a", one), **_named(scene, "b", other), "rel": word}
    return {}


def _chain(scene: Scene, things: list[Thing], dice: Dice) -> Values:
    for one, other, third in permutations(things, 3):
        first, second = relations(one, other), relations(one, third)
        if first and second:
            told: Values = {"rel": dice.pick(first), "rel2": dice.pick(second)}
            for letter, thing in zip("abc", (one, other, third), strict=True):
                told |= _named(scene, letter, thing)
            return told
    return {}


def _larger(scene: Scene, things: list[Thing]) -> Values:
    for one, other in permutations(things, 2):
        for word in ("larger than", "smaller than"):
            if clearly(word, one, other):
                return {**_named(scene, "a", one), **_named(scene, "b", other), "larger": word}
    return {}


def _counts(scene: Scene, dice: Dice) -> Values:
    shapes = dice.shuffled(sorted({thing.shape for thing in scene.objects}))
    colours = dice.shuffled(sorted({thing.colour for thing in scene.objects}))
    by_shape = [(len(matching(scene, shape=shape)), shape) for shape in shapes]
    alike = [(count, f"{NUMBERS[count]} {noun(count, shape)}") for count, shape in by_shape]
    absent = [shape for shape in SHAPES if shape not in shapes]
    several = max(alike) if dice.chance(0.7) else alike[0]
    share = len(matching(scene, colour=colours[0]))
    if dice.chance(0.4):
        several = (share, f"{NUMBERS[share]} {colours[0]} {noun(share, 'object')}")
    return {
        "n_alike": several[1],
        "is_n": "is" if several[0] == 1 else "are",
        "n_shape": alike[0][1],
        "m_shape": alike[1][1] if len(alike) > 1 else None,
        "n_of_them": f"{NUMBERS[share]} of them {colours[0]}" if len(colours) > 1 else None,
        "none": f"no {noun(2, dice.pick(absent))}",
    }


def _sign(scene: Scene, things: list[Thing], dice: Dice, related: bool) -> Values:
    sign = scene.sign
    assert sign is not None
    text, where = sign.text.lower(), place(sign)
    kind = "number" if text.isdigit() else "word"
    told: Values = {
        "sign": dice.pick((f"a sign that says {text}", f"a sign with the {kind} {text}")),
        "the_sign": f"the sign says {text}",
        "place_sign": PLACES[where] if where else None,
    }
    for thing in things if related else []:
        if known := relations(thing, sign):
            return {**told, **_named(scene, "a", thing), "rel": dice.pick(known)}
    return told
