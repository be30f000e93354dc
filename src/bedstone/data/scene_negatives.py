"""Captions of scenes with exactly one false statement: hard negatives for contrastive learning."""

from bedstone.data.scene_facts import GROUNDS, NUMBERS, OPPOSITE, PLACES
from bedstone.data.scene_shapes import SHAPES
from bedstone.data.scene_truth import Piece, check_caption, read_caption
from bedstone.data.scene_words import articles, captions, noun
from bedstone.data.scene_world import COLOURS, SIGNS, SIZES, TEXTURES, Dice, Scene, allowed_pairs

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
    for caption in captions(scene):
        pieces = [piece for piece in read_caption(caption) if piece.kind != "unknown"]
        for piece in dice.shuffled(pieces):
            wrong = _changed(scene, caption, piece, dice)
            if wrong and _is_fair(scene, wrong):
                found.append(wrong)
                break
    return tuple(dict.fromkeys(found))


def _is_fair(scene: Scene, caption: str) -> bool:
    """One false statement, and none that the rest of the caption gives away without a picture."""
    stated, true = check_caption(scene, caption)
    if stated - true != 1 or "one object:" in caption:
        return False
    things = [piece for piece in read_caption(caption) if piece.kind == "thing"]
    told = [(piece.word("size"), piece.word("colour"), piece.word("shape")) for piece in things]
    denied = {piece.word("shape") for piece in things if piece.word("count") == "no"}
    said = {piece.word("shape") for piece in things if piece.word("count") != "no"}
    return len(set(told)) == len(told) and not denied & said


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
    """What follows a changed shape or number, with the noun in the number that fits."""
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
