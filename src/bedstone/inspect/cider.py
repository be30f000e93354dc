"""CIDEr-D: how like a caption is to what people said of the picture, rare words counting more.

Vedantam, Zitnick and Parikh (2015), "CIDEr: Consensus-based Image Description Evaluation". An
n-gram weighs its count times how rare it is among the pictures (equation 1); a caption is compared
with each reference by the cosine of these weights (equation 2), n-grams of one to four words count
alike (equation 3). CIDEr-D (section 6) clips a caption's weights to the reference's, so that
repeating a word gains nothing, lowers by a Gaussian what is longer or shorter than the reference,
and multiplies by ten (equation 4). No kept library has it.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

LONGEST = 4  # words of an n-gram
SIGMA = 6.0  # words: how fast another length costs, as the paper has it

_WORD = re.compile(r"\w+(?:[-'’.,]\w+)*")
Counts = list[Counter[tuple[str, ...]]]  # by length: how often each n-gram occurs


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation; "T-shirt", "don't" and "3.5" are one each."""
    return _WORD.findall(text.lower())


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """(N,) the CIDEr-D of each caption, 0 to 10; the mean of them is the figure of the set.

    What is rare is counted over these very references, so a figure holds for one set only, and a
    set of one picture has nothing to tell: all is 0.

    Args:
        captions: one a picture.
        references: one or more a picture, in the same order.
    """
    known = [[_ngrams(text) for text in texts] for texts in references]
    pictures = Counter(
        ngram for texts in known for ngram in {g for t in texts for c in t for g in c}
    )
    top = math.log(len(captions)) if captions else 0.0
    rare = {ngram: top - math.log(count) for ngram, count in pictures.items()}
    scores = np.zeros(len(captions))
    for row, caption in enumerate(captions):
        said = _ngrams(caption)
        likeness = [_likeness(said, reference, rare, top) for reference in known[row]]
        scores[row] = 10.0 * sum(likeness) / max(len(likeness), 1)
    return scores


def _ngrams(text: str) -> Counts:
    """Counts of one word, of two, ..."""
    found = words(text)
    return [
        Counter(tuple(found[at : at + n]) for at in range(len(found) - n + 1))
        for n in range(1, LONGEST + 1)
    ]


def _likeness(
    said: Counts, reference: Counts, rare: dict[tuple[str, ...], float], unseen: float
) -> float:
    """The mean over lengths of the clipped cosine, less for another length: 0 to 1."""
    apart = said[0].total() - reference[0].total()
    cosines = 0.0
    for mine, theirs in zip(said, reference, strict=True):
        # an n-gram of no reference is as rare as can be: it only lengthens the caption's vector
        one = {ngram: count * rare.get(ngram, unseen) for ngram, count in mine.items()}
        other = {ngram: count * rare[ngram] for ngram, count in theirs.items()}
        long = math.hypot(*one.values()) * math.hypot(*other.values())
        if long:
            cosines += (
                sum(min(w, other.get(g, 0.0)) * other.get(g, 0.0) for g, w in one.items()) / long
            )
    return cosines / LONGEST * math.exp(-(apart**2) / (2 * SIGMA**2))
