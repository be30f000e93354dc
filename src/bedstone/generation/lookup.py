"""Drafts of the next tokens, looked up in the text itself (prompt lookup; Saxena, 2023).

Code that is edited and answers that quote repeat what stands in the prompt. A decoder reads the
tokens that followed there together with the last one, and keeps those that it would have chosen
(speculative decoding; Leviathan et al., 2023): the text is that of plain decoding, in fewer passes.

`Lookup` copies from two texts: a `prediction` of what is to come, followed from its beginning, and
the row's own tokens, where n-grams find the place to copy from. `Pace` decides how many tokens of
a draft are worth reading: by how often such drafts come true, which is also seen where none is
read, and by the time that passes take. The choice of a token depends on neither.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from math import inf
from statistics import median
from typing import NamedTuple

MOST = 7  # tokens of a draft: with the last token a pass has eight rows
NGRAMS = (4, 3, 2)  # tokens that find a place to copy from, the longest first
PLACES = 8  # latest places that are compared
MATCH = 16  # tokens before a place that are compared
NEAR = 16  # tokens of a prediction in which a lost place is looked for
# How likely a draft's next token is at first, by the tokens that match before it: none, 1, 2-3,
# 4-7, 8-15, 16. It weighs as much as so many tokens that were seen, of which earlier ones fade.
CHANCES = (0.3, 0.3, 0.3, 0.5, 0.7, 0.9)
WEIGHT, FADING = 2.0, 0.9
ROW = 0.05  # of a pass's time, for each further row, until it is measured
TIMES = 5  # latest passes of a size, whose median is its time
# What may be lost, in plain passes: at first, and by one pass at most; more after each plain one;
# at most.
START, GROWTH, LIMIT = 1.0, 0.005, 4.0


class Places:
    """A growing text, and the places that follow each of its n-grams."""

    def __init__(self, ids: Sequence[int] = ()) -> None:
        self.ids: list[int] = []
        self._after: dict[tuple[int, ...], list[int]] = {}
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        here = len(self.ids)
        for size in NGRAMS:
            if size <= here:
                self._after.setdefault(tuple(self.ids[here - size :]), []).append(here)
        self.ids.append(token)

    def after(self, ids: Sequence[int]) -> list[int]:
        """The places after the longest n-gram that `ids` end with, in order."""
        for size in NGRAMS:
            if found := self._after.get(tuple(ids[-size:])):
                return found
        return []


class OwnText:
    """A row's prompt and new tokens as a text to copy from.

    A place is kept while its tokens come true; a new one is where the longest match ends, of
    equals the latest.

    Attributes:
        matched: tokens before the place that equal the row's last ones, at most `MATCH`.
    """

    def __init__(self) -> None:
        self.matched = 0
        self._text = Places()
        self._at: int | None = None

    def take(self, token: int) -> None:
        """Reads the row's next token."""
        if self._at is not None and self._text.ids[self._at] == token:
            self._at, self.matched = self._at + 1, min(self.matched + 1, MATCH)
        else:
            self._at, self.matched = None, 0
        self._text.add(token)

    def draft(self, most: int) -> list[int]:
        """What may come, so many tokens; what repeats itself goes on doing so."""
        ids = self._text.ids
        if self.matched < NGRAMS[0]:
            self._find()
        if self._at is None:
            return []
        period = len(ids) - self._at
        return [ids[self._at + step % period] for step in range(most)]

    def _find(self) -> None:
        ids = self._text.ids
        for place in reversed(self._text.after(ids)[-PLACES:]):
            matched, most = 0, min(MATCH, place)
            while matched < most and ids[place - 1 - matched] == ids[-1 - matched]:
                matched += 1
            if matched > self.matched:
                self._at, self.matched = place, matched


class Prediction:
    """A text that is expected to come, with differences.

    Attributes:
        matched: tokens that came as expected since the last difference, at most `MATCH`.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.matched = MATCH  # its beginning is as good as a long match
        self._text = Places(ids)
        self._at = 0
        self._sure = 0  # the place up to which two tokens running came as expected
        self._new: list[int] = []  # the row's

    def take(self, token: int) -> None:
        """Reads the row's next new token.

        After a difference the place is the nearest that the last tokens lead to; or the one behind
        the same token a little further on; or the next, as if one token stood for another.
        """
        ids = self._text.ids
        self._new.append(token)
        if self._at < len(ids) and ids[self._at] == token:
            self._at, self.matched = self._at + 1, min(self.matched + 1, MATCH)
            if self.matched > 1:
                self._sure = self._at
            return
        self.matched = 0
        places = self._text.after(self._new)
        here = bisect_left(places, self._sure)
        near = min(places[max(here - 1, 0) : here + 1], key=self._distance, default=None)
        if near is None or self._distance(near) > NEAR:
            soon = ids[self._sure : self._sure + NEAR]
            if token in soon:
                near = self._sure + soon.index(token) + 1
        self._at = min(self._at + 1, len(ids)) if near is None else near

    def _distance(self, place: int) -> int:
        return abs(place - self._sure)

    def draft(self, most: int) -> list[int]:
        """What may come, at most so many tokens."""
        return self._text.ids[self._at : self._at + most]


class Pace:
    """How many tokens of a draft are worth reading.

    Args:
        measured: whether times of passes count. Without, a further row costs `ROW`, so that what is
            read doesn't depend on a clock.
    """

    def __init__(self, measured: bool = True) -> None:
        self._measured = measured
        self._seen: dict[tuple[str, int], tuple[float, float]] = {}  # tokens that came true, of all
        self._times: dict[int, deque[float]] = {}  # of passes, by `_size`
        self._prices = {0: 1.0}  # of passes, in plain ones, by `_size`
        self._purse = START

    def chance(self, source: str, matched: int) -> float:
        """That the next token of a draft comes true."""
        hits, seen = self._of(source, matched)
        return hits / seen

    def saw(self, source: str, matched: int, hits: int, misses: int) -> None:
        """Counts tokens of a draft that came true, and one that didn't."""
        before, seen = self._of(source, matched)
        fading = FADING ** (hits + misses)
        found = (before * fading + hits, seen * fading + hits + misses)
        self._seen[source, matched.bit_length()] = found

    def _of(self, source: str, matched: int) -> tuple[float, float]:
        grade = matched.bit_length()
        return self._seen.get((source, grade), (CHANCES[grade] * WEIGHT, WEIGHT))

    def took(self, rows: int, seconds: float) -> None:
        """Notes the time of a pass."""
        size = _size(rows)
        price = self._price(size)
        if self._measured:
            if size in self._prices:
                self._times.setdefault(size, deque(maxlen=TIMES)).append(seconds)
                self._prices[size] = median(self._times[size]) / median(self._times[0])
            else:  # the first of a size makes ready what later ones find: its time says little
                self._prices[size] = price
            price = seconds / median(self._times[0])
        self.earn(max(1 - price, -START) if size else GROWTH)

    def earn(self, passes: float) -> None:
        """Notes plain passes that drafts saved."""
        self._purse = min(self._purse + passes, LIMIT)

    def worth(self, chance: float, length: int) -> int:
        """How many tokens of a draft of that length to read with the last one; 0: none."""
        if self._purse <= 0 or (self._measured and not self._times):
            return 0
        best, most = 0, 1.0
        for size in range(1, _size(length + 1) + 1):
            drafts = min(2**size - 1, length)
            gain = _expected(chance, drafts) / self._price(size)
            if gain > most:
                best, most = drafts, gain
        return best

    def _price(self, size: int) -> float:
        """Of a pass, in plain ones; of sizes that weren't measured between those that were."""
        if size in self._prices:
            return self._prices[size]
        least = max(price for other, price in self._prices.items() if other < size)
        most = min((price for other, price in self._prices.items() if other > size), default=inf)
        return min(max(_usual(size), least), most)


def _expected(chance: float, drafts: int) -> float:
    """Tokens of a pass, on average: of the draft those before the first miss, and one more."""
    return (1 - chance ** (drafts + 1)) / (1 - chance) if chance < 1 else drafts + 1


def _usual(size: int) -> float:
    """What a pass takes where nothing was measured, in plain ones."""
    return 1 + ROW * (2**size - 1)


def _size(rows: int) -> int:
    """The power of two that so many rows are counted to."""
    return (rows - 1).bit_length()


class Draft(NamedTuple):
    """Tokens that may come, and by how many tokens before them their source matches the row."""

    source: str
    matched: int
    ids: list[int]


class Lookup:
    """Drafts for one row, from a prediction and from the row's own text.

    Args:
        prompt: how many of the row's tokens are its prompt.
        prediction: ids of the text that is expected to come; may be empty.
        most: tokens of a draft.
        measured: as for `Pace`.
    """

    def __init__(
        self,
        prompt: int,
        prediction: Sequence[int] = (),
        *,
        most: int = MOST,
        measured: bool = True,
    ) -> None:
        self.pace = Pace(measured)
        self._prompt, self._most = prompt, most
        self._own = OwnText()
        self._prediction = Prediction(prediction) if prediction else None
        self._known = 0  # of the row's tokens
        self._draft = Draft("", 0, [])
        self._read = 0  # tokens of the draft that were read with the row's last one

    def draft(self, ids: Sequence[int], room: int) -> list[int]:
        """Tokens to read together with the last of a row's ids, at most `room`; often none."""
        self._take(ids)
        best, chance = Draft("", 0, []), 0.0
        for name, source in (("prediction", self._prediction), ("own text", self._own)):
            if source is not None and (found := source.draft(self._most)):
                own_chance = self.pace.chance(name, source.matched)
                if own_chance > chance:
                    best, chance = Draft(name, source.matched, found), own_chance
        self._draft = best
        self._read = self.pace.worth(chance, min(len(best.ids), room)) if best.ids else 0
        return best.ids[: self._read]

    @property
    def source(self) -> str:
        """Where the last draft came from: `prediction` or `own text`; "" where there was none."""
        return self._draft.source

    def _take(self, ids: Sequence[int]) -> None:
        """Reads the row's new tokens, which show what became of the last draft."""
        last, new = self._draft, ids[self._known :]
        compared = min(len(new), len(last.ids))
        hits = 0
        while hits < compared and new[hits] == last.ids[hits]:
            hits += 1
        if compared:
            self.pace.saw(last.source, last.matched, hits, int(hits < compared))
            self.pace.earn(min(hits, self._read))
        for place, token in enumerate(new, self._known):
            self._own.take(token)
            if self._prediction is not None and place >= self._prompt:
                self._prediction.take(token)
        self._known = len(ids)
