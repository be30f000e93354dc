"""Captions of scenes: true ones from templates, the check of any caption, and hard negatives.

A template is a sentence with slots; one that has a slot without a true and clear value is left
out. An object is named by properties that no other object of the scene shares, a relation holds
by a margin.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, permutations

from bedstone.data.scenes.relations import (
    OPPOSITE,
    PLACES,
    Item,
    clearly,
    holds,
    matching,
    place,
    relations,
)
from bedstone.data.scenes.world import (
    COLOURS,
    SHAPES,
    SIGNS,
    SIZES,
    TEXTURES,
    Dice,
    Scene,
    Thing,
    allowed_pairs,
)

GROUNDS = {  # background -> as said
    "plain": "on a plain background",
    "gradient": "on a shaded background",
    "stripes": "on a striped background",
    "dots": "on a dotted background",
    "checks": "on a checked background",
    "meadow": "on a meadow",
    "paper": "on lined paper",
    "night": "at night",
}
NUMBERS = ("no", "one", "two", "three", "four", "five")

# Of most kinds a scene has one caption: of these it has two, which alone name shapes without their
# colours.
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
        "there {is_n} {n_same}",
        "{n_shape} and {m_shape}",
        "a picture with {objects} {ground}",
        "{objects}, {n_of_them}",
        "we see {n_same} but {none}",
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
    """The shortest phrase that names this object alone; None if there is none."""
    shape, colour = thing.shape, thing.colour
    same = [one for one in scene.objects if one.colour == colour and one.shape == shape]
    if len(same) == 1:
        return f"{thing.colour} {thing.shape}"
    if [other.size for other in same].count(thing.size) == 1:
        return f"{thing.size} {thing.colour} {thing.shape}"
    return None


def all_captions(scene: Scene) -> tuple[str, ...]:
    """True captions of a scene, one of each kind that applies to it, two of shapes.

    The first names all objects (not the sign) and is the one for retrieval.
    """
    return tuple(dict.fromkeys(_captions(scene)))


def caption(scene: Scene) -> str:
    """The first of a scene's captions; the others are not made."""
    return next(_captions(scene))


def _captions(scene: Scene) -> Iterator[str]:
    dice = Dice(f"words {scene}")
    for kind in ("whole", *dice.shuffled(tuple(TEMPLATES)[1:])):
        texts = filter(None, (tell(scene, form, dice) for form in dice.shuffled(TEMPLATES[kind])))
        yield from islice(texts, 2 if kind == TWICE else 1)


def prompts(shape: str, colour: str) -> tuple[str, ...]:
    """Captions that name a shape of a colour: prompts of zero-shot classification."""
    scene = Scene("plain", (Thing(shape, colour, "medium", 0.5, 0.5),))
    texts = [tell(scene, template, Dice("")) for template in TEMPLATES["whole"]]
    return tuple(text for text in texts if text and "background" not in text and ":" not in text)


def tell(scene: Scene, template: str, dice: Dice) -> str | None:
    """A template filled with true values of the scene; None if a slot has none."""
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
    if slots & {"n_same", "n_shape", "n_of_them", "none"}:
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
    listing, one = _counted([f"{thing.colour} {thing.shape}" for thing in things], dice)
    return {
        "all": listing,
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
    """Two objects that overlap, often, since few do; or any two."""
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
            values: Values = {"rel": dice.pick(first), "rel2": dice.pick(second)}
            for letter, thing in zip("abc", (one, other, third), strict=True):
                values |= _named(scene, letter, thing)
            return values
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
    counts = [(count, f"{NUMBERS[count]} {noun(count, shape)}") for count, shape in by_shape]
    absent = [shape for shape in SHAPES if shape not in shapes]
    several = max(counts) if dice.chance(0.7) else counts[0]
    share = len(matching(scene, colour=colours[0]))
    if dice.chance(0.4):
        several = (share, f"{NUMBERS[share]} {colours[0]} {noun(share, 'object')}")
    return {
        "n_same": several[1],
        "is_n": "is" if several[0] == 1 else "are",
        "n_shape": counts[0][1],
        "m_shape": counts[1][1] if len(counts) > 1 else None,
        "n_of_them": f"{NUMBERS[share]} of them {colours[0]}" if len(colours) > 1 else None,
        "none": f"no {noun(2, dice.pick(absent))}",
    }


def _sign(scene: Scene, things: list[Thing], dice: Dice, related: bool) -> Values:
    sign = scene.sign
    assert sign is not None
    text, where = sign.text.lower(), place(sign)
    kind = "number" if text.isdigit() else "word"
    values: Values = {
        "sign": dice.pick((f"a sign that says {text}", f"a sign with the {kind} {text}")),
        "the_sign": f"the sign says {text}",
        "place_sign": PLACES[where] if where else None,
    }
    for thing in things if related else []:
        if known := relations(thing, sign):
            return {**values, **_named(scene, "a", thing), "rel": dice.pick(known)}
    return values


# The check of a caption: how many of its statements are true.
#
# The grammar is that of the templates, and somewhat wider: things ("two small red circles"), signs,
# places, relations, numbers and backgrounds, joined by words that state nothing. What can't be read
# counts as one false statement.

_PLACE_OF = {said: name for name, said in PLACES.items()}
_GROUND_OF = {said: name for name, said in GROUNDS.items()}


def _any(words: object) -> str:
    return "|".join(sorted(words, key=len, reverse=True))  # type: ignore[call-overload]


_COUNT = _any(NUMBERS)
_PIECES = {
    "filler": r"(?:a|the|this|one) (?:picture|drawing|image)",
    "ground": _any(GROUNDS.values()),
    "ahead": rf"(?P<ahead_place>{_any(PLACES.values())}) there (?:is|are)",
    "place": _any(PLACES.values()),
    "relation": r"(?:to the )?(?P<word>left of|right of|above|below|in front of|behind"
    r"|larger than|smaller than)",
    "share": rf"(?P<share_count>{_COUNT}) of them(?: is| are)?"
    rf" (?P<share_colour>{_any(COLOURS)})",
    "sign": r"(?P<sign_count>an?|the|no) sign"
    r"(?:(?:(?: that)? says| with the (?:word|number))(?: (?P<text>\w+)))?",
    "thing": rf"(?P<count>an?|the|{_COUNT})(?: (?P<size>{_any(SIZES)}))?"
    rf"(?: (?P<texture>{_any(TEXTURES[1:])}))?(?: (?P<colour>{_any(COLOURS)}))?"
    rf" (?P<shape>{_any(SHAPES)}|object)(?:es|s)?",
    "glue": r"and|with|of|but|there|is|are|shows?|we|see|here|it|that",
}
_GRAMMAR = re.compile(
    "|".join(rf"\b(?P<{kind}>{said})\b" for kind, said in _PIECES.items()).replace(" ", r"\ +")
)


@dataclass
class Piece:
    """A part of a caption that states something, or that can't be read (`unknown`)."""

    kind: str
    match: re.Match[str] | None = None

    def word(self, name: str) -> str:
        """The text of a named group, with single spaces; "" if it isn't there."""
        found = self.match.group(name) if self.match else None
        return " ".join(found.split()) if found else ""


def read_caption(text: str) -> list[Piece]:
    """The pieces of a caption in order, without those that state nothing.

    Their matches point into `text` itself.
    """
    plain = re.sub(r"[^a-z0-9]", " ", text.lower())
    pieces, done = [], 0
    for match in _GRAMMAR.finditer(plain):
        if plain[done : match.start()].strip():
            pieces.append(Piece("unknown"))
        done = match.end()
        kind = next(kind for kind in _PIECES if match.group(kind))
        if kind not in ("filler", "glue"):
            pieces.append(Piece(kind, match))
    if plain[done:].strip():
        pieces.append(Piece("unknown"))
    return pieces


def check_caption(scene: Scene, text: str) -> tuple[int, int]:
    """How many facts a caption states about a scene, and how many of them are true.

    What is said about a thing that isn't there is not counted a second time: in "a red heart above
    a star", where no heart is red, the heart alone is wrong. A caption that states nothing gives
    (0, 0): it is not false, but nor is it a description.
    """
    verdicts = list(_verdicts(scene, read_caption(text)))
    return len(verdicts), sum(verdicts)


def _verdicts(scene: Scene, pieces: list[Piece]) -> Iterator[bool]:
    said: Counter[str] = Counter()
    last: list[Item] = []  # what the latest thing named may be
    subject: list[Item] = []  # of the latest relation, which "and above ..." goes on about
    pending = ""  # a relation that waits for its second thing
    ahead = ""  # a place that waits for what is there
    for piece in pieces:
        if piece.kind in ("thing", "sign"):
            last, right = _found(scene, piece, Counter() if pending else said)
            yield right
            if pending and subject and last:
                yield _related(pending, subject, last)
            if not pending:
                subject = last
            if ahead and last:
                yield any(place(item, 0) == ahead for item in last)
            pending = ahead = ""
        elif piece.kind == "relation":
            pending = piece.word("word")
        elif piece.kind == "ahead":
            ahead = _PLACE_OF[piece.word("ahead_place")]
        elif piece.kind == "place":
            if last:
                where = _PLACE_OF[piece.word("place")]
                yield any(place(item, 0) == where for item in last)
        elif piece.kind == "ground":
            yield _GROUND_OF[piece.word("ground")] == scene.background
        elif piece.kind == "share":
            there = matching(scene, colour=piece.word("share_colour"))
            yield len(there) == NUMBERS.index(piece.word("share_count"))
        else:
            yield False
    if pending or ahead:
        yield False  # "a circle above" says nothing that could be true


def _found(scene: Scene, piece: Piece, said: Counter[str]) -> tuple[list[Item], bool]:
    """The objects that a piece may name, and whether the scene has as many as it states.

    `said` counts what was listed before, so that "a red circle and a red circle" needs two.
    """
    if piece.kind == "sign":
        text = piece.word("text")
        there = [scene.sign] if scene.sign and text in ("", scene.sign.text.lower()) else []
        return [*there], bool(there) != (piece.word("sign_count") == "no")
    count, shape = piece.word("count"), piece.word("shape")
    wanted = (shape if shape != "object" else "", piece.word("colour"), piece.word("size"))
    things = matching(scene, *wanted, piece.word("texture"))
    if count in NUMBERS:
        return [*things], len(things) == NUMBERS.index(count)
    if count == "the":
        return [*things], bool(things)
    said[f"{wanted} {piece.word('texture')}"] += 1
    return [*things], len(things) >= said[f"{wanted} {piece.word('texture')}"]


def _related(relation: str, subjects: list[Item], others: list[Item]) -> bool:
    return any(
        holds(relation, one, other) for one in subjects for other in others if one is not other
    )


# Captions of scenes with exactly one false statement: hard negatives for contrastive learning.

_PARTS = {
    "relation": "word",
    "place": "place",
    "ahead": "ahead_place",
    "ground": "ground",
    "share": "share_count",
    "sign": "text",
}


def negatives(scene: Scene) -> tuple[str, ...]:
    """Captions with exactly one false statement, each made of a true one by changing one word.

    They name no combination that the scene's split doesn't know: else training would learn that
    what is held out is always wrong.
    """
    dice = Dice(f"wrong {scene}")
    found = []
    for caption in all_captions(scene):
        pieces = [piece for piece in read_caption(caption) if piece.kind != "unknown"]
        for piece in dice.shuffled(pieces):
            wrong = _changed(scene, caption, piece, dice)
            if wrong and _is_fair(scene, wrong):
                found.append(wrong)
                break
    return tuple(dict.fromkeys(found))


def _is_fair(scene: Scene, caption: str) -> bool:
    """Whether a caption has one false statement, which the caption alone doesn't reveal."""
    stated, true = check_caption(scene, caption)
    if stated - true != 1 or "one object:" in caption:
        return False
    things = [piece for piece in read_caption(caption) if piece.kind == "thing"]
    named = [(piece.word("size"), piece.word("colour"), piece.word("shape")) for piece in things]
    denied = {piece.word("shape") for piece in things if piece.word("count") == "no"}
    said = {piece.word("shape") for piece in things if piece.word("count") != "no"}
    return len(set(named)) == len(named) and not denied & said


def _changed(scene: Scene, caption: str, piece: Piece, dice: Dice) -> str | None:
    """The caption with one word of one piece changed; None if that piece has none to change."""
    part = _PARTS.get(piece.kind) or dice.pick(
        [part for part in ("count", "size", "texture", "colour", "shape", "colour", "shape")
         if piece.word(part) not in ("", "a", "an", "the", "object")] or [""]
    )  # fmt: skip
    if not part or not piece.word(part):
        return None
    before = piece.word(part)
    others = [word for word in _choices(scene, part, before, dice) if word != before]
    if not others:
        return None
    after = dice.pick(others)
    if piece.kind == "thing" and part in ("colour", "shape"):
        pair = {"shape": piece.word("shape"), "colour": piece.word("colour"), part: after}
        known = pair["shape"] == "object" or not pair["colour"]
        if not known and (pair["shape"], pair["colour"]) not in allowed_pairs(scene.split):
            return None
    assert piece.match is not None
    start, end = piece.match.span(part)
    rest = caption[end:]
    if part in ("shape", "count"):
        rest = _agreeing(caption, piece, part, after)
        start = piece.match.span("shape")[0] if part == "shape" else start
    return articles(caption[:start] + after + rest)


def _agreeing(caption: str, piece: Piece, part: str, after: str) -> str:
    """The rest of a caption after a changed shape or number, with the noun in agreement."""
    assert piece.match is not None
    count = after if part == "count" else piece.word("count")
    shape = after if part == "shape" else piece.word("shape")
    one = count in ("a", "an", "the", "one")
    ending = noun(1 if one else 2, shape)[len(shape) :]
    tail = ending + caption[piece.match.end() :]
    if part == "shape":
        return tail
    return caption[piece.match.end("count") : piece.match.end("shape")] + tail


def _choices(scene: Scene, part: str, before: str, dice: Dice) -> tuple[str, ...] | list[str]:
    if part == "word":
        return [OPPOSITE[before]]
    if part == "text":
        return [text.lower() for text in SIGNS if text.isdigit() == before.isdigit()]
    if part in ("count", "share_count"):
        near = NUMBERS.index(before)
        return [NUMBERS[n] for n in (near - 1, near + 1) if 1 <= n < len(NUMBERS)]
    if part in ("place", "ahead_place"):
        return tuple(PLACES.values())
    if part in ("colour", "shape") and dice.chance(0.5):  # of another thing in the picture
        return [getattr(thing, part) for thing in scene.objects]
    return {
        "ground": tuple(GROUNDS.values()),
        "size": tuple(SIZES),
        "texture": TEXTURES[1:],
        "colour": tuple(COLOURS),
        "shape": SHAPES,
    }[part]
