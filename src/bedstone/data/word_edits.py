"""Edits of words: one replaced, added, deleted, or two swapped.

The four operations of EDA (Wei and Zou, 2019). An edit says of each word of the result where it
stands and whence it comes, so that punctuation stays with the place and tags go with the word.
"""

import random
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

Candidates = Callable[[int], Sequence[str]]  # what may stand for the word at a place


@dataclass(frozen=True)
class Slot:
    """A word of the result.

    Attributes:
        word: as it is to be written.
        source: the word of the original that its tag comes from.
        place: the word of the original whose spacing and punctuation it takes; None for none.
    """

    word: str
    source: int
    place: int | None


@dataclass(frozen=True)
class Words:
    """What may be edited.

    Attributes:
        words: of a text, without their punctuation.
        free: of each, whether it may be replaced or moved.
        loose: whether it may be deleted.
        gaps: before each, whether a word may be added there.
    """

    words: Sequence[str]
    free: Sequence[bool]
    loose: Sequence[bool]
    gaps: Sequence[bool]


def replace(text: Words, share: float, options: Candidates, rng: random.Random) -> list[Slot]:
    """Puts one of its `options` in the place of about `share` of the words, at least one."""
    slots = _same(text)
    places = [place for place, free in enumerate(text.free) if free]
    rng.shuffle(places)
    left = _amount(text, share)
    for place in places:
        if not left:
            break
        word = text.words[place]
        found = _fitting(word, place, options)
        if found:
            slots[place] = Slot(in_case_of(word, rng.choice(found)), place, place)
            left -= 1
    return slots


def insert(text: Words, share: float, options: Candidates, rng: random.Random) -> list[Slot]:
    """Adds, at random gaps, `options` of about `share` of the words, at least one."""
    gaps = [place for place, gap in enumerate(text.gaps) if gap and place]
    places = [place for place, free in enumerate(text.free) if free]
    rng.shuffle(places)
    added: dict[int, list[Slot]] = {}
    left = _amount(text, share) if gaps else 0
    for place in places:
        if not left:
            break
        found = _fitting(text.words[place], place, options)
        if found:
            added.setdefault(rng.choice(gaps), []).append(Slot(rng.choice(found), place, None))
            left -= 1
    return [part for slot in _same(text) for part in (*added.get(slot.source, ()), slot)]


def delete(text: Words, share: float, rng: random.Random) -> list[Slot]:
    """Drops each word with a chance of `share`, at least one and never all of them."""
    places = [place for place, loose in enumerate(text.loose) if loose]
    if len(text.words) < 2 or not places:
        return _same(text)
    dropped = [place for place in places if rng.random() < share] or [rng.choice(places)]
    rng.shuffle(dropped)
    gone = set(dropped[: len(text.words) - 1])
    slots = [slot for slot in _same(text) if slot.source not in gone]
    return _recased(text, slots)


def swap(text: Words, share: float, rng: random.Random) -> list[Slot]:
    """Exchanges two words, as often as about `share` of the words are many, at least once."""
    slots = _same(text)
    places = [place for place, free in enumerate(text.free) if free]
    if len(places) > 1:
        for _ in range(_amount(text, share)):
            one, other = rng.sample(places, 2)
            a, b = slots[one], slots[other]
            slots[one] = Slot(b.word, b.source, one)
            slots[other] = Slot(a.word, a.source, other)
    return _recased(text, slots)


def in_case_of(model: str, word: str) -> str:
    """`word` with a capital where `model` begins with one."""
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


def common(words: Sequence[str]) -> list[bool]:
    """Of each word, whether it is one that synonyms can stand for.

    A capital inside a text marks a name; digits and signs have no synonyms.
    """
    found = []
    for place, word in enumerate(words):
        tail = word[1:] if place == 0 and len(word) > 1 else word
        found.append(word.replace("-", "").isalpha() and tail == tail.lower())
    return found


@dataclass(frozen=True)
class Piece:
    """A word of a text with what stands around it: space before, punctuation at both ends."""

    space: str
    lead: str
    word: str
    trail: str


def cut(text: str) -> tuple[list[Piece], str]:
    """The pieces of a text, and the space after the last; joined they are the text again."""
    pieces, start = [], 0
    for chunk in text.split():
        at = text.index(chunk, start)
        first, last = 0, len(chunk)
        while first < last and _is_mark(chunk[first]):
            first += 1
        while last > first and _is_mark(chunk[last - 1]):
            last -= 1
        pieces.append(Piece(text[start:at], chunk[:first], chunk[first:last], chunk[last:]))
        start = at + len(chunk)
    return pieces, text[start:]


def joined(pieces: Sequence[Piece], end: str, slots: Sequence[Slot]) -> str:
    """The text of an edit."""
    parts = []
    for slot in slots:
        if slot.place is None:
            parts.append(f" {slot.word}")
            continue
        piece = pieces[slot.place]
        # The space before a deleted first word stays, the one after it goes.
        space = piece.space if parts else pieces[0].space
        parts.append(f"{space}{piece.lead}{slot.word}{piece.trail}")
    return "".join(parts) + end


def text_words(pieces: Sequence[Piece], kept: frozenset[str]) -> Words:
    """What may be edited of a text: words that have letters and are not to be kept.

    A word with punctuation at it is not deleted, so that no punctuation is lost or left alone.
    """
    words = [piece.word for piece in pieces]
    free = [
        any(map(str.isalnum, piece.word))
        and piece.word.lower() not in kept
        and not (piece.lead[-1:] in ("'", "’") and len(piece.word) < 3)  # 's, 'll
        for piece in pieces
    ]
    loose = [
        may and not piece.lead and not piece.trail for may, piece in zip(free, pieces, strict=True)
    ]
    return Words(words, free, loose, [True] * len(words))


def tagged_words(words: Sequence[str], outside: Sequence[bool], kept: frozenset[str]) -> Words:
    """What may be edited of tagged words: those outside of entities.

    The word before an entity is never deleted: with all words between them gone, two entities might
    become one. None is added inside of one.
    """
    free = [
        out and any(map(str.isalnum, word)) and word.lower() not in kept
        for word, out in zip(words, outside, strict=True)
    ]
    loose = [may and after for may, after in zip(free, [*outside[1:], True], strict=True)]
    gaps = [before or after for before, after in pairwise([True, *outside])]
    return Words(words, free, loose, gaps)


def _same(text: Words) -> list[Slot]:
    return [Slot(word, place, place) for place, word in enumerate(text.words)]


def _amount(text: Words, share: float) -> int:
    return max(1, round(share * len(text.words)))


def _fitting(word: str, place: int, options: Candidates) -> list[str]:
    return [
        other
        for other in options(place)
        if other.lower() != word.lower() and any(map(str.isalnum, other))
    ]


def _recased(text: Words, slots: list[Slot]) -> list[Slot]:
    """The capital stays at the head of the text: the word that comes there gets it, where it may
    be touched, and the one that left gives it up."""
    first = text.words[0] if text.words else ""
    if not first.istitle() or slots[0].source == 0 or not text.free[slots[0].source]:
        return slots
    head = slots[0]
    moved = [Slot(in_case_of(first, head.word), head.source, head.place), *slots[1:]]
    if first.startswith("I") and not first[1:2].isalpha():  # I, I'm
        return moved
    return [
        Slot(slot.word[:1].lower() + slot.word[1:], 0, slot.place) if slot.source == 0 else slot
        for slot in moved
    ]


def _is_mark(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "PS"
