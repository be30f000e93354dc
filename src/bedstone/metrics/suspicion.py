"""Signs that an output doesn't say what its source says, seen without a reference or beside one.

An output may be empty, a copy of its source, much longer or shorter than is usual, go round in
circles, lack the source's numbers, or hold words that were left as they are. None of these is an
error for sure: they are counted, and the page of outputs is sorted by them.

Rules. *Length*: the logarithm of the output's characters over the source's lies more than three
deviations from the median of the references (of the outputs, where there are none); a deviation is
1.4826 times the median distance, and at least a third of log 1.5. *Repeats*: one to four words
stand three times one after another, or half of all trigrams, of eight or more, came before.
*Numbers*: what remains of digits without separators, so that 1,000 and 1.000 are equal.
*Untranslated*: a word of four letters or more that begins small, stands in the source and in no
reference; without references, beside a word that it stands beside in the source.

Shapes: N rows.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bedstone.errors import BedstoneError

FAR = 3.0  # deviations from the median
LEAST = 1.5  # no length within this factor of the median is strange
LONGEST_LOOP, ROUNDS = 4, 3  # words that are repeated, and how often
TRIGRAMS, REPEATED = 8, 0.5  # least trigrams of a text, and the share that came before
LETTERS = 4  # of a word that may be untranslated, at least
SWAPPED = 3  # words of a side that speak for the other, at least

_WORD = re.compile(r"\w+(?:[-'’.,]\w+)*")
_NUMBER = re.compile(r"\d+(?:[.,'’\s]\d{3})*(?:[.,]\d+)?")


@dataclass(frozen=True)
class Signs:
    """What is seen of one output.

    Attributes:
        empty: it says nothing.
        copied: it is its source, letter case and spaces apart.
        copied_share: share of its words that stand in the source, 0 to 1.
        ratio: its characters over the source's.
        over_long, over_short: far from the usual ratio.
        repeated: it goes round in circles.
        missing_numbers: numbers of the source that it lacks.
        added_numbers: numbers that it has and the source has not.
        untranslated: words that were left as they are.
        coverage: share of the source's tokens that cross-attention read; None where nobody knows.
    """

    empty: bool
    copied: bool
    copied_share: float
    ratio: float
    over_long: bool
    over_short: bool
    repeated: bool
    missing_numbers: tuple[str, ...] = ()
    added_numbers: tuple[str, ...] = ()
    untranslated: tuple[str, ...] = ()
    coverage: float | None = None

    @property
    def reasons(self) -> dict[str, float]:
        """Each sign that is there, and how much it counts, 0 to 1."""
        some = {
            "empty": 1.0 * self.empty,
            "copied": 0.9 * self.copied,
            "repeated": 0.8 * self.repeated,
            "too long": 0.6 * self.over_long,
            "too short": 0.5 * (self.over_short and not self.empty),
            "numbers missing": _weight(len(self.missing_numbers), 0.5),
            "numbers added": _weight(len(self.added_numbers), 0.5),
            "untranslated": 0.0 if self.copied else _weight(len(self.untranslated), 0.4),
            "source unread": 0.0 if self.coverage is None else max(0.0, 0.5 - self.coverage),
        }
        return {name: weight for name, weight in some.items() if weight > 0}

    @property
    def score(self) -> float:
        """How suspicious it is, 0 to 1: 1 less the product of what the signs leave."""
        return 1.0 - float(np.prod([1.0 - weight for weight in self.reasons.values()]))


def _weight(count: int, each: float) -> float:
    """Of several signs of a kind, the second counts half of what the first leaves, and so on."""
    return 1.0 - (1.0 - each) ** (1.0 - 0.5**count) if count else 0.0


def signs(
    sources: Sequence[str],
    outputs: Sequence[str],
    references: Sequence[Sequence[str]] | None = None,
    *,
    translated: bool = True,
    coverage: Sequence[float] | None = None,
) -> list[Signs]:
    """What is seen of each output.

    Args:
        references: of each row one or more.
        translated: whether an output says all of its source in another language; a summary's
            numbers may be missing, its words are the source's, and the source is no usual length.
        coverage: of each row, the share of the source's tokens that cross-attention read.

    Raises:
        BedstoneError: lengths differ, or a coverage isn't a share.
    """
    for name, given in (("outputs", outputs), ("references", references), ("coverage", coverage)):
        if given is not None and len(given) != len(sources):
            raise BedstoneError(
                f"{name}: {len(given):,} were given for {len(sources):,} sources; expected one for "
                "each, in the same order."
            )
    for row, share in enumerate(coverage or ()):
        if not 0 <= share <= 1:
            raise BedstoneError(
                f"coverage, row {row}: {share} was given; expected a share, 0 to 1."
            )
    ratios = np.array([_ratio(*pair) for pair in zip(sources, outputs, strict=True)])
    usual = ratios
    if references is not None:
        pairs = zip(sources, references, strict=True)
        usual = np.array([_ratio(source, one) for source, own in pairs for one in own])
    low, high = _bounds(usual)
    found = []
    for row, (source, output) in enumerate(zip(sources, outputs, strict=True)):
        known = [] if references is None else references[row]
        empty = not output.strip()
        long, short = ratios[row] > high, ratios[row] < low
        there, said = _numbers(source), _numbers(output)
        allowed = there + sum(map(_numbers, known), Counter())
        found.append(
            Signs(
                empty=empty,
                copied=not empty and _plain(source) == _plain(output),
                copied_share=_share(words(output), set(words(source))),
                ratio=float(np.exp(ratios[row])),
                over_long=bool(long) and not empty,
                over_short=bool(short),
                repeated=repeats(words(output)),
                missing_numbers=tuple(there - said) if translated and not empty else (),
                added_numbers=tuple(set(said) - set(allowed)),
                untranslated=_untranslated(source, output, known) if translated else (),
                coverage=None if coverage is None else float(coverage[row]),
            )
        )
    return found


def swapped(sources: Sequence[str], targets: Sequence[str]) -> list[int]:
    """Rows of pairs in two languages whose sides look swapped.

    More than three quarters of the words of each side that other rows have stand more often on
    the other side there; three such words a side at least.
    """
    sides = [[set(words(text)) for text in texts] for texts in (sources, targets)]
    counts = [Counter(word for own in side for word in own) for side in sides]

    def strange(row: int, side: int) -> bool:
        votes = []
        for word in sides[side][row]:
            own, other = counts[side][word] - 1, counts[1 - side][word]
            other -= word in sides[1 - side][row]
            if own != other:
                votes.append(other > own)
        return len(votes) >= SWAPPED and sum(votes) > 0.75 * len(votes)

    return [row for row in range(len(sources)) if strange(row, 0) and strange(row, 1)]


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation; "T-shirt", "don't" and "3.5" are one each."""
    return _WORD.findall(text.lower())


def repeats(found: Sequence[str]) -> bool:
    """Whether words go round in circles."""
    for size in range(1, LONGEST_LOOP + 1):
        equal = 0  # words in a row that are those `size` before
        for at in range(size, len(found)):
            equal = equal + 1 if found[at] == found[at - size] else 0
            if equal >= size * (ROUNDS - 1):
                return True
    trigrams = list(zip(found, found[1:], found[2:], strict=False))
    again = len(trigrams) - len(set(trigrams))
    return len(trigrams) >= TRIGRAMS and again >= REPEATED * len(trigrams)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _ratio(source: str, output: str) -> float:
    """The logarithm of characters over characters, white space apart."""
    long, wide = (sum(not each.isspace() for each in text) for text in (output, source))
    return float(np.log((long + 1) / (wide + 1)))


def _bounds(ratios: np.ndarray) -> tuple[float, float]:
    if not len(ratios):
        return -np.inf, np.inf
    middle = float(np.median(ratios))
    deviation = 1.4826 * float(np.median(np.abs(ratios - middle)))
    far = FAR * max(deviation, np.log(LEAST) / FAR)
    return middle - far, middle + far


def _numbers(text: str) -> Counter[str]:
    """Numbers without their separators, and how often each stands there."""
    return Counter(re.sub(r"\D", "", each) for each in _NUMBER.findall(text))


def _share(found: Sequence[str], known: set[str]) -> float:
    return sum(word in known for word in found) / len(found) if found else 0.0


def _untranslated(source: str, output: str, references: Sequence[str]) -> tuple[str, ...]:
    small = {
        word
        for word in _WORD.findall(source)
        if len(word) >= LETTERS and word[0].islower() and word.isalpha()
    }
    right = {word for text in references for word in words(text)}
    found, known = words(output), words(source)
    pairs = set(pairwise(known))
    there = []
    for at, word in enumerate(found):
        if word not in small or word in right:
            continue
        beside = [pair for pair in pairwise(found[max(at - 1, 0) : at + 2]) if word in pair]
        if references or pairs & set(beside):  # a word alone may be one of both languages
            there.append(word)
    return tuple(dict.fromkeys(there))
