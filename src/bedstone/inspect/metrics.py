"""Figures of labels: one a row, or any number a row.

The figures come from scikit-learn; the same figures of the bootstrap's resamples come
from counts, since a thousand library calls would take minutes. Tests hold the two together.

Shapes: C classes, R resamples, U distinct rows, F figures.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.inspect.bootstrap import bootstrap, grouped
from bedstone.inspect.figures import Figures, check_lengths, library, named, with_ends
from bedstone.inspect.labels import (
    label_codes,
    label_indicators,
    label_names,
    label_sets,
)

PER_CLASS = ("precision", "recall", "f1")
AVERAGES = tuple(f"{name}_{kind}" for kind in ("micro", "macro") for name in PER_CLASS)


def classification(
    predicted: Sequence[Any],
    actual: Sequence[Any],
    labels: Sequence[str] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Figures:
    """Accuracy, precision, recall and F1 (micro, macro, per class), Matthews, confusion matrix.

    A macro figure is the mean over classes that occur in `predicted` or `actual`. What would be
    0/0 (the precision of a class never predicted) is 0.

    Args:
        predicted: a label a row, by its name or its number in `labels`.
        actual: the same, as it is.
        labels: names of all classes; None takes those that occur, sorted.
        resamples: of the bootstrap; 0 leaves intervals out.

    Raises:
        BedstoneError: scikit-learn is absent, lengths differ, no rows, or an unseen label.
    """
    rows = check_lengths(predicted, actual)
    names = label_names(labels, [*predicted, *actual])
    score = library("sklearn.metrics")
    guess, truth = label_codes(predicted, names, "predicted"), label_codes(actual, names, "actual")
    every = np.arange(len(names))
    present = np.union1d(guess, truth)
    per_class = score.precision_recall_fscore_support(
        truth, guess, labels=every, average=None, zero_division=0
    )
    averages = {
        kind: score.precision_recall_fscore_support(
            truth, guess, labels=present, average=kind, zero_division=0
        )[:3]
        for kind in ("micro", "macro")
    }
    confusion = score.confusion_matrix(truth, guess, labels=every)
    values = [
        score.accuracy_score(truth, guess),
        score.matthews_corrcoef(truth, guess),
        *averages["micro"],
        *averages["macro"],
        *np.stack(per_class[:3]).ravel(),
    ]
    found = ("accuracy", "matthews", *AVERAGES, *_per_class(names))
    intervals = {}
    if resamples:
        cells = np.argwhere(confusion)  # (U, 2): actual, predicted
        agree = cells[:, :1] == cells[:, 1:]
        counts = np.concatenate(
            [
                (cells[:, 1:] == every) & agree,
                cells[:, 1:] == every,
                cells[:, :1] == every,
            ],
            axis=1,
        ).astype(np.float32)
        repeats = confusion[tuple(cells.T)]
        ends = bootstrap(
            lambda drawn: _single_rates(drawn @ counts), repeats, resamples=resamples, seed=seed
        )
        intervals = with_ends(found, ends)
    return Figures(
        "classification",
        "accuracy",
        named(found, values),
        intervals,
        rows,
        tuple(names),
        dict(zip(names, per_class[3].tolist(), strict=True)),
        confusion.tolist(),
    )


def multi_label(
    predicted: Sequence[Iterable[Any]],
    actual: Sequence[Iterable[Any]],
    labels: Sequence[str] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Figures:
    """Precision, recall and F1 (micro, macro, per class) and the share of rows wholly right.

    A macro figure is the mean over all of `labels`, as scikit-learn has it for sets.

    Args:
        predicted: a set of labels a row, by name or number in `labels`; it may be empty.
        actual: the same, as it is.

    Raises:
        BedstoneError: as `classification`, or a row that is one string.
    """
    rows = check_lengths(predicted, actual)
    sets = [label_sets(predicted, "predicted"), label_sets(actual, "actual")]
    names = label_names(labels, [label for side in sets for row in side for label in row])
    if not names:
        raise BedstoneError("labels: no row has any, so there is nothing to score; name them.")
    score = library("sklearn.metrics")
    guess, truth = (
        label_indicators(side, names, name)
        for side, name in zip(sets, ("predicted", "actual"), strict=True)
    )
    per_class = score.precision_recall_fscore_support(truth, guess, average=None, zero_division=0)
    averages = {
        kind: score.precision_recall_fscore_support(truth, guess, average=kind, zero_division=0)
        for kind in ("micro", "macro")
    }
    values = [
        score.accuracy_score(truth, guess),
        *averages["micro"][:3],
        *averages["macro"][:3],
        *np.stack(per_class[:3]).ravel(),
    ]
    found = ("subset_accuracy", *AVERAGES, *_per_class(names))
    intervals = {}
    if resamples:
        exact = (guess == truth).all(1, keepdims=True)
        counts, repeats = grouped(np.concatenate([exact, guess & truth, guess, truth], axis=1))
        ends = bootstrap(
            lambda drawn: _multi_rates(drawn @ counts.astype(np.float32), drawn.sum(1)),
            repeats,
            resamples=resamples,
            seed=seed,
        )
        intervals = with_ends(found, ends)
    support = dict(zip(names, per_class[3].tolist(), strict=True))
    return Figures(
        "multi-label", "f1_micro", named(found, values), intervals, rows, tuple(names), support
    )


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """`above` / `below`, 0 where both are 0."""
    return above / np.maximum(below, 1)


def f_rates(right: np.ndarray, guessed: np.ndarray, true: np.ndarray) -> list[np.ndarray]:
    """Precision, recall and F1 from counts of any one shape."""
    return [ratio(right, guessed), ratio(right, true), ratio(2 * right, guessed + true)]


def _single_rates(sums: np.ndarray) -> np.ndarray:
    """Right, guessed and true a class, (R, 3C), to all figures of `classification`, (R, F)."""
    right, guessed, true = np.split(sums.astype(float), 3, axis=1)  # (R, C)
    total, hits = true.sum(1), right.sum(1)
    # Matthews for several classes: Gorodkin (2004), equation 8.
    together = hits * total - (guessed * true).sum(1)
    spread = (total**2 - (guessed**2).sum(1)) * (total**2 - (true**2).sum(1))
    matthews = np.where(spread > 0, together / np.sqrt(np.maximum(spread, 1)), 0.0)
    rates = f_rates(right, guessed, true)
    present = (guessed + true > 0).sum(1)
    macro = [rate.sum(1) / present for rate in rates]
    accuracy = hits / total
    wide = np.stack([accuracy, matthews, *[accuracy] * 3, *macro], axis=1)
    return np.concatenate([wide, *rates], axis=1)


def _multi_rates(sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows wholly right, then right, guessed and true a class, to all of `multi_label`."""
    right, guessed, true = np.split(sums[:, 1:].astype(float), 3, axis=1)  # (R, C)
    rates = f_rates(right, guessed, true)
    micro = f_rates(right.sum(1), guessed.sum(1), true.sum(1))
    macro = [rate.mean(1) for rate in rates]
    wide = np.stack([sums[:, 0] / rows, *micro, *macro], axis=1)
    return np.concatenate([wide, *rates], axis=1)


def _per_class(names: Sequence[str]) -> list[str]:
    return [f"{figure}/{name}" for figure in PER_CLASS for name in names]
