"""Summarization metrics: ROUGE, with signs of outputs that don't say their source.

ROUGE (Lin, 2004) is rouge-score's, with its stemmer unless that is turned off: F1 of words
(`rouge1`), of pairs (`rouge2`), of the longest common subsequence of whole texts (`rougeL`) and of
their lines, which are sentences (`rougeLsum`). The last two are equal for texts of one line alone.
Of several references, the best counts. They are shares from 0 to 1; published ones are times 100.

Shapes: N rows, R resamples, S signs.
"""

import re
import warnings
from collections.abc import Sequence
from importlib import metadata

import numpy as np

from bedstone.metrics.figures import Figures, bootstrap, library, named, with_ends
from bedstone.metrics.suspicion import signs
from bedstone.metrics.translation import check_texts, coverage_of

TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
SIGNS = ("copied", "empty", "over_long", "repeated", "numbers_added")
LATIN = 0.8  # of a reference's letters are a to z: rouge-score reads no others


def summaries(
    sources: Sequence[str],
    predicted: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    stemmer: bool = True,
    coverage: Sequence[float] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Figures:
    """`rouge1` (the main figure), `rouge2`, `rougeL`, `rougeLsum`, and shares of rows by signs.

    `copied`, `empty`, `over_long`, `repeated` and `numbers_added` (numbers that neither the source
    nor a reference has) are shares of rows; `copied_share` is that of an output's words that stand
    in its source.

    Args:
        sources: a text a row.
        predicted: its summary.
        references: what people wrote: a text, or a list of texts; as many in each row.
        stemmer: whether words are compared by their stems, as in most published figures.
        coverage: of each row, the share of the source's tokens that cross-attention read.
        resamples: of the bootstrap, which draws rows; 0 leaves intervals out.

    Raises:
        BedstoneError: rouge-score is absent, lengths or numbers of references differ, there are no
            rows, or something is no text.
    """
    rows, known = check_texts(sources, predicted, references)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scorers = library("rouge_score.rouge_scorer")
        scorer = scorers.RougeScorer(list(TYPES), use_stemmer=stemmer)
        scored = [scorer.score_multi(own, text) for text, own in zip(predicted, known, strict=True)]
    scores = [[each[name].fmeasure for name in TYPES] for each in scored]
    found = signs(sources, predicted, known, translated=False, coverage=coverage)
    marks = [
        (each.copied, each.empty, each.over_long, each.repeated, bool(each.added_numbers))
        for each in found
    ]
    copied = [[each.copied_share] for each in found]
    values = np.c_[scores, np.array(marks, dtype=float), copied]  # (N, 4 + S + 1)

    def figures(drawn: np.ndarray) -> np.ndarray:
        """(R, N) to (R, 4 + S + 1): means over the rows drawn."""
        means: np.ndarray = drawn @ values / drawn.sum(1, keepdims=True)
        return means

    names = [*TYPES, *SIGNS, "copied_share"]
    ends = bootstrap(figures, rows, resamples=resamples, seed=seed) if resamples else None
    signature = (
        f"nrefs:{len(known[0])}|stemmer:{'yes' if stemmer else 'no'}|lsum:lines|"
        f"version:{metadata.version('rouge-score')}"
    )
    return Figures(
        kind="summaries",
        main="rouge1",
        values=named(names, figures(np.ones((1, rows)))[0]) | coverage_of(found),
        intervals={} if ends is None else with_ends(names, ends),
        rows=rows,
        signatures={"rouge": signature},
        doubts=_doubts(known),
    )


def _doubts(known: Sequence[Sequence[str]]) -> tuple[str, ...]:
    letters = [each for own in known for text in own for each in text if each.isalpha()]
    latin = sum(bool(re.match("[a-zA-Z]", each)) for each in letters)
    if not letters or latin >= LATIN * len(letters):
        return ()
    return (
        f"Only {latin / len(letters):.0%} of the references' letters are a to z, and rouge-score "
        "reads no others: its figures mean little here.",
    )
