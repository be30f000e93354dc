"""Named entity metrics: an entity counts as found where its type and both ends are right.

This is conlleval's definition (Tjong Kim Sang and Buchholz, 2000) and seqeval's default. The
counting is nervaluate's `strict` strategy. Tags are read into spans here first, because nervaluate
reads them by rules of its own: it joins neighbours tagged S- and ignores E-.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.metrics.classification import PER_CLASS, f_rates
from bedstone.metrics.figures import Figures, bootstrap, check_lengths, grouped, library, with_ends

Span = tuple[str, int, int]  # type, first token, last token

BEGINS, ENDS = "BSU", "ESLU"  # BIOES, and BILOU, which calls E and S by L and U


def entity_spans(tags: Sequence[str]) -> list[Span]:
    """The entities of one sentence, by conlleval's rules.

    Reads IOB1, IOB2, BIOES, BILOU, and types without a prefix (as I-). An entity begins at B- or
    S-, after O, after E- or S-, and wherever the type changes; so I- after O begins one.
    """
    spans: list[Span] = []
    kind, start, closed = "", 0, True  # of the entity that is open, unless it is closed
    for place, tag in enumerate([*tags, "O"]):
        prefix, name = _parts(tag)
        outside = prefix == "O"
        fresh = not outside and (closed or prefix in BEGINS or name != kind)
        if not closed and (outside or fresh):
            spans.append((kind, start, place - 1))
        if fresh:
            kind, start = name, place
        if not outside and prefix in ENDS:
            spans.append((kind, start, place))
        closed = outside or prefix in ENDS
    return spans


def entities(
    predicted: Sequence[Sequence[str]],
    actual: Sequence[Sequence[str]],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Figures:
    """Precision, recall and F1 of entities, over all and a type; accuracy of tags.

    Rows that the bootstrap draws are sentences.

    Args:
        predicted: a list of tags a sentence.
        actual: the same, as it is.

    Raises:
        BedstoneError: nervaluate is absent, lengths differ, no sentences, or a tag is no string.
    """
    rows = check_lengths(predicted, actual, "sentences")
    strict = library("nervaluate.strategies").StrictEvaluation(1.0)
    entity = library("nervaluate.entities").Entity
    tallies = []  # a sentence: counts by type
    for row, (guess, truth) in enumerate(zip(predicted, actual, strict=True)):
        _check_tags(guess, truth, row)
        sides = []
        for tags in (guess, truth):
            by_type = defaultdict(list)
            for span in entity_spans(tags):
                by_type[span[0]].append(entity(*span))
            sides.append(by_type)
        tally = {}
        for kind in {*sides[0], *sides[1]}:
            result, _ = strict.evaluate(sides[1][kind], sides[0][kind], [kind], row)
            tally[kind] = (result.correct, result.actual, result.possible)
        tallies.append(tally)
    kinds = sorted({kind for tally in tallies for kind in tally})
    counts = np.array(
        [[tally.get(kind, (0, 0, 0)) for kind in kinds] for tally in tallies], dtype=float
    ).reshape(rows, len(kinds), 3)
    tags_right = [
        (sum(map(str.__eq__, guess, truth)), len(truth))
        for guess, truth in zip(predicted, actual, strict=True)
    ]
    flat = np.concatenate([tags_right, counts.transpose(0, 2, 1).reshape(rows, -1)], axis=1)
    found = [
        *PER_CLASS,
        "accuracy",
        *(f"{figure}/{kind}" for figure in PER_CLASS for kind in kinds),
    ]
    intervals = {}
    if resamples:
        distinct, repeats = grouped(flat)
        ends = bootstrap(
            lambda drawn: _rates(drawn @ distinct), repeats, resamples=resamples, seed=seed
        )
        intervals = with_ends(found, ends)
    values = dict(zip(found, _rates(flat.sum(0)[None])[0].tolist(), strict=True))
    support = {kind: int(n) for kind, n in zip(kinds, counts.sum(0)[:, 2], strict=True)}
    return Figures(
        "entities", "f1", values, intervals, rows, tuple(kinds), support, baselines={"none": 0.0}
    )


def _rates(sums: np.ndarray) -> np.ndarray:
    """Right and all tags, then right, guessed and true entities a type, (R, 2 + 3C), to figures."""
    right, guessed, true = np.split(sums[:, 2:], 3, axis=1)  # (R, C)
    accuracy = sums[:, 0] / np.maximum(sums[:, 1], 1)
    overall = f_rates(right.sum(1), guessed.sum(1), true.sum(1))
    wide = np.stack([*overall, accuracy], axis=1)
    return np.concatenate([wide, *f_rates(right, guessed, true)], axis=1)


def _parts(tag: str) -> tuple[str, str]:
    """B, I, E, S, U, L or O, and the type; one without a prefix stands inside."""
    prefix, dash, name = tag.partition("-")
    if len(prefix) == 1 and prefix in "BIESULO" and (dash or prefix != "O"):
        return prefix, name or "_"
    return ("O", "") if tag == "O" else ("I", tag)


def _check_tags(guess: Sequence[str], truth: Sequence[str], row: int) -> None:
    for side, tags in (("predicted", guess), ("actual", truth)):
        if isinstance(tags, str):
            raise BedstoneError(f"{side}, sentence {row}: is one string; expected a list of tags.")
        for tag in tags:
            if not isinstance(tag, str) or not tag:
                raise BedstoneError(
                    f"{side}, sentence {row}: {tag!r} is no tag; expected names such as B-PER."
                )
    if len(guess) != len(truth):
        raise BedstoneError(
            f"predicted, sentence {row}: {len(guess)} tags for {len(truth)} tokens; expected one "
            "for each."
        )
