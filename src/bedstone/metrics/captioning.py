"""Captioning metrics: BLEU, ROUGE-L and CIDEr-D; true facts of drawn scenes.

BLEU (Papineni et al., 2002) by sacrebleu: four words, tokenised as 13a, in lower case. ROUGE-L
(Lin, 2004) by rouge-score: F1 of the longest common subsequence, with the best of a picture's
references. CIDEr-D (`metrics.captioning`). BLEU and ROUGE-L are shares from 0 to 1 (published
ones are often times 100), CIDEr-D runs from 0 to 10 (published tables often give it times 100 too).

Such figures count words that agree: they don't know whether a caption is true. Of scenes, where
truth is known, `true_facts` tells that.
"""

import math
import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np

from bedstone.data.scenes.captions import check_caption
from bedstone.data.scenes.world import Scene
from bedstone.errors import BedstoneError
from bedstone.metrics.figures import (
    Figures,
    bootstrap,
    check_lengths,
    grouped,
    library,
    named,
    with_ends,
)
from bedstone.metrics.suspicion import words
from bedstone.metrics.translation import bleu_counts, bleu_of

LONGEST = 4  # words of an n-gram
SIGMA = 6.0  # words: how fast another length costs, as the paper has it

Counts = list[Counter[tuple[str, ...]]]  # by length: how often each n-gram occurs


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """(N,) the CIDEr-D of each caption, 0 to 10; the mean of them is the figure of the set.

    What is rare is counted over these very references, so a figure holds for one set only, and a
    set of one picture has nothing to tell: all is 0.

    Args:
        captions: one a picture.
        references: one or more a picture, in the same order.
    """
    known = [[_ngrams(text) for text in texts] for texts in references]
    images = Counter(ngram for texts in known for ngram in {g for t in texts for c in t for g in c})
    top = math.log(len(captions)) if captions else 0.0
    rare = {ngram: top - math.log(count) for ngram, count in images.items()}
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


def captions(
    predicted: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Figures:
    """`cider` (the main figure), `bleu` and `rouge_l` of captions beside their references.

    Args:
        predicted: a caption a picture.
        references: what people wrote of each: a text, or a list of texts; as many as there are.
        resamples: of the bootstrap, which draws pictures; 0 leaves intervals out. How rare words
            are stays as it is in the whole set.

    Raises:
        BedstoneError: sacrebleu or rouge-score is absent, lengths differ, there are no rows, a
            row has no reference, or something is no text.
    """
    rows = check_lengths(predicted, references, "pictures")
    known = [_texts(given, row) for row, given in enumerate(references)]
    for row, caption in enumerate(predicted):
        if not isinstance(caption, str):
            raise BedstoneError(f"predicted, row {row}: {caption!r} is no text.")
    bleu = library("sacrebleu.metrics").BLEU
    counts = bleu_counts(bleu, predicted, known, lowercase=True)
    means = np.stack([cider(predicted, known), _rouge(predicted, known)], 1)  # (N, 2)

    def figures(drawn: np.ndarray) -> np.ndarray:
        """(R, N) to (R, 3)."""
        mean = drawn @ means / drawn.sum(1, keepdims=True)
        score = [bleu_of(bleu, sums) for sums in np.rint(drawn @ counts).astype(int).tolist()]
        return np.c_[mean[:, :1], score, mean[:, 1:]]

    names = ["cider", "bleu", "rouge_l"]
    ends = bootstrap(figures, rows, resamples=resamples, seed=seed) if resamples else None
    return Figures(
        kind="captions",
        main="cider",
        values=named(names, figures(np.ones((1, rows)))[0]),
        intervals={} if ends is None else with_ends(names, ends),
        rows=rows,
    )


def true_facts(
    predicted: Sequence[str], scenes: Sequence[Scene], *, resamples: int = 1000, seed: int = 0
) -> Figures:
    """What captions say of drawn scenes, judged by the scenes themselves.

    `all_true`, the main figure: the share of captions that state something, and nothing false.
    `facts_true`: the share of all stated facts that are true. `facts`: how many a caption states.

    Raises:
        BedstoneError: lengths differ, or there are no rows.
    """
    rows = check_lengths(predicted, scenes, "scenes")
    found = [check_caption(scene, text) for scene, text in zip(scenes, predicted, strict=True)]
    counts = np.array([(stated > 0 and true == stated, true, stated) for stated, true in found])
    distinct, repeats = grouped(counts.astype(float))

    def figures(drawn: np.ndarray) -> np.ndarray:
        right, true, stated = (drawn @ distinct).T
        total = drawn.sum(1)
        return np.stack([right / total, true / np.maximum(stated, 1), stated / total], 1)

    names = ["all_true", "facts_true", "facts"]
    ends = bootstrap(figures, repeats, resamples=resamples, seed=seed) if resamples else None
    return Figures(
        kind="true facts",
        main="all_true",
        values=named(names, figures(repeats[None].astype(float))[0]),
        intervals={} if ends is None else with_ends(names, ends),
        rows=rows,
    )


def _texts(given: str | Sequence[str], row: int) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise BedstoneError(
            f"references, row {row}: {given!r} was given; expected a text, or a list of one or "
            "more: a picture that nobody described can't be scored."
        )
    return texts


class _Words:
    """rouge-score's own tokenizer knows no letters but a to z; this one knows all."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def _rouge(predicted: Sequence[str], known: list[list[str]]) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scorer = library("rouge_score.rouge_scorer").RougeScorer(["rougeL"], tokenizer=_Words())
    found = [
        scorer.score_multi(texts, caption)["rougeL"].fmeasure
        for caption, texts in zip(predicted, known, strict=True)
    ]
    return np.array(found)
