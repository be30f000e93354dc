"""Question answering metrics: exact match and F1 of words, as SQuAD defines them.

Rajpurkar et al. (2016); a question without an answer as in SQuAD 2.0 (2018): there the empty
answer is right and every other wrong. Scored by torchmetrics, one row at a time, so that rows can
be drawn again. Figures are shares from 0 to 1; published ones are often times 100.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.metrics.figures import Figures, bootstrap, check_lengths, grouped, library, with_ends


def answers(
    predicted: Sequence[str],
    actual: Sequence[Any],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Figures:
    """Exact match and F1, each with the best of a row's right answers.

    Case, punctuation, the articles a, an, the, and spaces don't count. Where some rows have an
    answer and some have none, both kinds have their own figures too.

    Args:
        predicted: an answer a row; "" says that there is none.
        actual: a row's right answers: a string, a list of them, or SQuAD's `{"text": [...]}`;
            an empty one says that there is none.

    Raises:
        BedstoneError: torchmetrics is absent, lengths differ, no rows, or an answer is no text.
    """
    rows = check_lengths(predicted, actual)
    squad = library("torchmetrics.functional.text").squad
    scores, answered = [], []
    for row, (guess, truth) in enumerate(zip(predicted, actual, strict=True)):
        if not isinstance(guess, str):
            raise BedstoneError(f"predicted, row {row}: {guess!r} is no text.")
        right = _texts(truth, row)
        answered.append(bool(right))
        target = {"id": "0", "answers": {"text": right or [""], "answer_start": []}}
        found = squad([{"id": "0", "prediction_text": guess}], [target])
        scores.append([found["exact_match"].item() / 100, found["f1"].item() / 100])
    kinds = np.array(answered, dtype=bool)
    figures = np.array(scores)  # (N, 2)
    parts, names = [np.ones(rows, dtype=bool)], ["exact_match", "f1"]
    support = {}
    if kinds.any() and not kinds.all():
        parts += [kinds, ~kinds]
        for name, part in (("answerable", kinds), ("unanswerable", ~kinds)):
            names += [f"exact_match/{name}", f"f1/{name}"]
            support[name] = int(part.sum())
    # Sums and counts of each part, so that a mean over any draw of rows can be had from them.
    counts = np.concatenate([np.c_[figures * part[:, None], part] for part in parts], axis=1)
    intervals = {}
    if resamples:
        distinct, repeats = grouped(counts)
        ends = bootstrap(
            lambda drawn: _means(drawn @ distinct), repeats, resamples=resamples, seed=seed
        )
        intervals = with_ends(names, ends)
    values = dict(zip(names, _means(counts.sum(0)[None])[0].tolist(), strict=True))
    baselines = {"no answer": float((~kinds).mean())}
    return Figures("answers", "f1", values, intervals, rows, (), support, baselines=baselines)


def _means(sums: np.ndarray) -> np.ndarray:
    """(R, 3P), two sums and a count a part, to two means a part, (R, 2P)."""
    parts = sums.reshape(len(sums), -1, 3)
    with np.errstate(invalid="ignore"):
        return (parts[..., :2] / parts[..., 2:]).reshape(len(sums), -1)


def _texts(truth: Any, row: int) -> list[str]:
    """The right answers of a row that say anything."""
    found = truth.get("text", ()) if isinstance(truth, Mapping) else truth
    found = [found] if isinstance(found, str) else found
    if found is None or not isinstance(found, Sequence | np.ndarray):
        raise BedstoneError(
            f"actual, row {row}: {truth!r} is no answer; expected text, a list of texts, or "
            '{"text": [...]}; an empty list where there is none.'
        )
    for text in found:
        if not isinstance(text, str):
            raise BedstoneError(f"actual, row {row}: {text!r} is no text.")
    return [text for text in found if text.strip()]
