"""Reads a caption of a scene back and counts which of its statements are true.

The grammar is that of `scene_words`, and somewhat wider: things ("two small red circles"), signs,
places, relations, numbers and backgrounds, joined by words that state nothing. What can't be read
counts as one false statement, so that noise is never scored as truth.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from bedstone.data.scene_facts import GROUNDS, NUMBERS, PLACES, Item, holds, matching, place
from bedstone.data.scene_shapes import SHAPES
from bedstone.data.scene_world import COLOURS, SIZES, TEXTURES, Scene

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
        """What stands in a part of it, with single spaces; "" if that part isn't there."""
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
    """What a piece may speak of, and whether as many are there as it says.

    `said` counts what was listed before, so that "a red circle and a red circle" needs two.
    """
    if piece.kind == "sign":
        text = piece.word("text")
        there = [scene.sign] if scene.sign and text in ("", scene.sign.text.lower()) else []
        return [*there], bool(there) != (piece.word("sign_count") == "no")
    count, shape = piece.word("count"), piece.word("shape")
    asked = (shape if shape != "object" else "", piece.word("colour"), piece.word("size"))
    things = matching(scene, *asked, piece.word("texture"))
    if count in NUMBERS:
        return [*things], len(things) == NUMBERS.index(count)
    if count == "the":
        return [*things], bool(things)
    said[f"{asked} {piece.word('texture')}"] += 1
    return [*things], len(things) >= said[f"{asked} {piece.word('texture')}"]


def _related(relation: str, subjects: list[Item], others: list[Item]) -> bool:
    return any(
        holds(relation, one, other) for one in subjects for other in others if one is not other
    )
