"""Translation metrics: BLEU and chrF, with signs of outputs that don't say their source.

BLEU (Papineni et al., 2002) and chrF (Popović, 2015) are sacrebleu's (Post, 2018): equal to its
command line, with its signature, which says by what settings and version a figure came about. They
are shares from 0 to 1 here; published ones are times 100. The rest counts rows by their signs
(`metrics.suspicion`).

Shapes: N rows, R resamples, S sums that a score is made of.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bedstone.errors import BedstoneError, nearest
from bedstone.metrics.figures import (
    Figures,
    bootstrap,
    check_lengths,
    library,
    named,
    with_ends,
)
from bedstone.metrics.suspicion import Signs, signs, words

ORDER = 4  # BLEU's longest n-gram
TOKENIZERS = ("13a", "intl", "zh", "char", "none")  # of sacrebleu: those that need no download


def translations(
    sources: Sequence[str],
    predicted: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    lowercase: bool = False,
    tokenize: str = "13a",
    coverage: Sequence[float] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Figures:
    """`bleu` (the main figure) and `chrf` of translations, and shares of rows by their signs.

    `copied`, `empty`, `over_long`, `repeated` and `numbers_missing` are shares of rows,
    `untranslated` is the share of the outputs' words that were left as they are, and
    `length_ratio` the outputs' words over those of the nearest references.

    Args:
        sources: a text a row.
        predicted: its translation.
        references: what people wrote: a text, or a list of texts; as many in each row.
        lowercase: whether BLEU and chrF ignore letter case, as in published figures of Multi30k.
        tokenize: sacrebleu's tokenizer for BLEU; `zh` and `char` for scripts without spaces.
        coverage: of each row, the share of the source's tokens that cross-attention read.
        resamples: of the bootstrap, which draws rows; 0 leaves intervals out.

    Raises:
        BedstoneError: sacrebleu is absent, lengths or numbers of references differ, there are no
            rows, something is no text, or the tokenizer is unknown.
    """
    rows, known = check_texts(sources, predicted, references)
    if tokenize not in TOKENIZERS:
        raise BedstoneError(f"tokenize: {tokenize!r} was given{nearest(tokenize, TOKENIZERS)}.")
    metrics = library("sacrebleu.metrics")
    bleu = metrics.BLEU(lowercase=lowercase, tokenize=tokenize)
    chrf = metrics.CHRF(lowercase=lowercase)
    streams = [list(stream) for stream in zip(*known, strict=True)]
    whole = [each.corpus_score(list(predicted), streams).score / 100 for each in (bleu, chrf)]
    counts = bleu_counts(metrics.BLEU, predicted, known, lowercase=lowercase, tokenize=tokenize)
    sums = np.array(chrf._extract_corpus_statistics(list(predicted), streams), dtype=float)
    found = signs(sources, predicted, known, coverage=coverage)
    marks = sign_counts(found, predicted)  # (N, S)

    def figures(drawn: np.ndarray) -> np.ndarray:
        """(R, N) to (R, 3 + S)."""
        parts = np.rint(drawn @ counts).astype(int)
        grams = np.rint(drawn @ sums).astype(int).tolist()
        first = [[bleu_of(metrics.BLEU, own), chrf._compute_f_score(more) / 100]
                 for own, more in zip(parts.tolist(), grams, strict=True)]  # fmt: skip
        ratio = parts[:, :1] / np.maximum(parts[:, 1:2], 1)
        return np.c_[first, ratio, shares(drawn, marks)]

    names = ["bleu", "chrf", "length_ratio", *SIGNS]
    values = named(names, figures(np.ones((1, rows)))[0]) | named(names[:2], whole)
    ends = bootstrap(figures, rows, resamples=resamples, seed=seed) if resamples else None
    return Figures(
        kind="translations",
        main="bleu",
        values=values | coverage_of(found),
        intervals={} if ends is None else with_ends(names, ends),
        rows=rows,
        signatures={"bleu": str(bleu.get_signature()), "chrf": str(chrf.get_signature())},
    )


# Shares of rows by their signs, in the order of `sign_counts`; and the share of words.
SIGNS = ("copied", "empty", "over_long", "repeated", "numbers_missing", "untranslated")


def sign_counts(found: Sequence[Signs], predicted: Sequence[str]) -> np.ndarray:
    """(N, S): whether a row has each sign; its untranslated words; all its words."""
    rows = [
        (
            each.copied,
            each.empty,
            each.over_long,
            each.repeated,
            bool(each.missing_numbers),
            len(each.untranslated),
            len(words(text)),
        )
        for each, text in zip(found, predicted, strict=True)
    ]
    return np.array(rows, dtype=float)


def shares(drawn: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """(R, S - 1) of how often rows were drawn, (R, N), and their marks, the last of them words."""
    sums = drawn @ marks
    total = drawn.sum(1, keepdims=True)
    return np.c_[sums[:, :-2] / total, sums[:, -2:-1] / np.maximum(sums[:, -1:], 1)]


def coverage_of(found: Sequence[Signs]) -> dict[str, float]:
    """The mean share of sources that was read, where it is known."""
    known = [each.coverage for each in found if each.coverage is not None]
    return {"coverage": float(np.mean(known))} if known else {}


def check_texts(
    sources: Sequence[str], predicted: Sequence[str], references: Sequence[str | Sequence[str]]
) -> tuple[int, list[list[str]]]:
    """How many rows there are, and the references of each.

    Raises:
        BedstoneError: lengths differ, there are no rows, a row has no reference or another number
            of them than the first, or something is no text.
    """
    rows = check_lengths(predicted, references, "references")
    check_lengths(predicted, sources, "sources")
    known = [[given] if isinstance(given, str) else list(given or ()) for given in references]
    for row, own in enumerate(known):
        if not own or not all(isinstance(text, str) for text in own):
            raise BedstoneError(
                f"references, row {row}: {references[row]!r} was given; expected a text, or a list "
                "of one or more."
            )
        if len(own) != len(known[0]):
            raise BedstoneError(
                f"references, row {row}: has {len(own)}, row 0 has {len(known[0])}; expected the "
                "same number in each row: figures with more references are higher."
            )
    for name, texts in (("sources", sources), ("predicted", predicted)):
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise BedstoneError(f"{name}, row {row}: {text!r} is no text.")
    return rows, known


def bleu_counts(
    bleu: Callable[..., Any],
    predicted: Sequence[str],
    known: Sequence[Sequence[str]],
    *,
    lowercase: bool,
    tokenize: str = "13a",
) -> np.ndarray:
    """(N, 2 + 2 ORDER): words said and words of the nearest reference; n-grams right, and all.

    BLEU is of a set, made of sums over rows: so rows can be drawn again.
    """
    scorer = bleu(
        lowercase=lowercase, tokenize=tokenize, max_ngram_order=ORDER, effective_order=True
    )
    found = []
    for text, own in zip(predicted, known, strict=True):
        score = scorer.sentence_score(text, own)
        found.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
    return np.array(found, dtype=float)


def bleu_of(bleu: Any, sums: Sequence[int]) -> float:
    """BLEU of sums over rows, as sacrebleu has it for a set."""
    right, total = sums[2 : 2 + ORDER], sums[2 + ORDER :]
    score = bleu.compute_bleu(right, total, sums[0], sums[1], "exp", max_ngram_order=ORDER)
    return float(score.score) / 100
