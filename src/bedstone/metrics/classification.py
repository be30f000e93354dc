"""Classification metrics: one label a row, or any number a row.

The figures come from scikit-learn; the same figures of the bootstrap's resamples come
from counts, since a thousand library calls would take minutes. Tests hold the two together.

Shapes: C classes, R resamples, U distinct rows, F figures.
"""

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bedstone.errors import BedstoneError, nearest
from bedstone.metrics.figures import (
    Figures,
    bootstrap,
    check_lengths,
    grouped,
    library,
    named,
    with_ends,
)


def label_names(labels: Sequence[str] | None, seen: Iterable[Any]) -> list[str]:
    """All classes: `labels`, or those `seen`, sorted.

    Raises:
        BedstoneError: a label is there twice, or no label is named and one seen is no string.
    """
    if labels is None:
        found = list(seen)
        for label in found:
            if not isinstance(label, str):
                raise BedstoneError(
                    f"labels: {label!r} is no name of a class; where classes are numbers, give "
                    "their names as `labels`."
                )
        return sorted(set(found))
    names = list(labels)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BedstoneError(f"labels: {twice!r} is there twice; each must be another.")
    return names


def label_codes(values: Sequence[Any], names: Sequence[str], side: str) -> np.ndarray:
    """(N,) int64: each label's number.

    Args:
        side: predicted or actual, for messages.

    Raises:
        BedstoneError: a label that is not one of `names`.
    """
    known = {name: number for number, name in enumerate(names)}
    return np.array(
        [_code(value, known, side, row) for row, value in enumerate(values)], dtype=np.int64
    )


def label_sets(values: Sequence[Any], side: str) -> list[list[Any]]:
    """A list of labels a row.

    Raises:
        BedstoneError: a row that is a string or no collection.
    """
    rows = []
    for row, value in enumerate(values):
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise BedstoneError(
                f"{side}, row {row}: {value!r} is one value, where a list of labels was expected."
            )
        rows.append(list(value))
    return rows


def label_indicators(rows: Sequence[Sequence[Any]], names: Sequence[str], side: str) -> np.ndarray:
    """(N, C) bool: which labels each row has.

    Raises:
        BedstoneError: a label that is not one of `names`.
    """
    known = {name: number for number, name in enumerate(names)}
    found = np.zeros((len(rows), len(names)), dtype=bool)
    for row, labels in enumerate(rows):
        found[row, [_code(label, known, side, row) for label in labels]] = True
    return found


def finite_numbers(values: Sequence[Any], side: str) -> np.ndarray:
    """(N, C) float64; a number a row gives one column.

    Raises:
        BedstoneError: what is no number, nan or infinite; rows of unlike lengths.
    """
    rows = [np.atleast_1d(np.asarray(value, dtype=object)).tolist() for value in values]
    for number, row in enumerate(rows):
        if len(row) != len(rows[0]) or not row:
            raise BedstoneError(
                f"{side}, row {number}: has {len(row)} numbers, where row 0 has {len(rows[0])}; "
                "expected one or more, as many in each."
            )
        for value in row:
            if not isinstance(value, numbers.Real) or isinstance(value, bool):
                raise BedstoneError(f"{side}, row {number}: {value!r} is no number.")
            if not math.isfinite(value):
                raise BedstoneError(
                    f"{side}, row {number}: is {value}; expected a finite number. Drop the row, "
                    "or look at what made it so."
                )
    return np.array(rows, dtype=float)


def _code(value: Any, known: dict[str, int], side: str, row: int) -> int:
    """A label's number, of its name or of its number."""
    if isinstance(value, str) and value in known:
        return known[value]
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        number = int(value)
        if 0 <= number < len(known):
            return number
        raise BedstoneError(
            f"{side}, row {row}: {value} is no number of a label; there are {len(known)}, "
            f"from 0 to {len(known) - 1}."
        )
    hint = nearest(value, known) if isinstance(value, str) else f"; expected {_some(known)}"
    raise BedstoneError(f"{side}, row {row}: {value!r} is no known label{hint}.")


def _some(known: dict[str, int]) -> str:
    names = list(known)
    return "one of " + ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")


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
        score.matthews_corrcoef(truth, guess) if len(present) > 1 else 0.0,
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
        baselines={"majority": float(per_class[3].max()) / rows, "chance": 1 / len(names)},
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
    true = sum(support.values())
    baselines = {"all labels": 2 * true / max(true + rows * len(names), 1)}
    return Figures(
        "multi-label",
        "f1_micro",
        named(found, values),
        intervals,
        rows,
        tuple(names),
        support,
        baselines=baselines,
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
