"""Regression metrics: correlation and error.

The figures come from scipy and scikit-learn; those of the bootstrap's resamples are made from how
often each row was drawn, without sorting a thousand times. Tests hold the two together.

Shapes: N rows, C numbers a row, R resamples.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.metrics.classification import finite_numbers
from bedstone.metrics.figures import Figures, bootstrap, check_lengths, library, named, with_ends

REGRESSION = ("pearson", "spearman", "rmse", "mae")


def regression(
    predicted: Sequence[Any],
    actual: Sequence[Any],
    labels: Sequence[str] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Figures:
    """Pearson's and Spearman's correlation, root mean square error, mean absolute error.

    A column that is constant has no correlation with anything: 0 here, where scipy says nan.
    Of several numbers a row, each figure is the mean over them, and each has its own too.

    Args:
        predicted: a number a row, or (N, C) of them.
        actual: the same, as it is.
        labels: names of the C numbers; None numbers them.

    Raises:
        BedstoneError: scipy is absent, lengths differ, no rows, or what is no finite number.
    """
    rows = check_lengths(predicted, actual)
    guess, truth = finite_numbers(predicted, "predicted"), finite_numbers(actual, "actual")
    width = truth.shape[1]
    if guess.shape != truth.shape:
        raise BedstoneError(f"predicted: {guess.shape[1]} numbers a row, where there are {width}.")
    names = list(labels) if labels is not None else [str(number) for number in range(width)]
    if len(names) != width:
        raise BedstoneError(f"labels: {len(names)} were given for {width} numbers a row.")
    columns = list(zip(guess.T, truth.T, strict=True))
    values = _with_mean(np.array([[_column(*column) for column in columns]]))[0]
    found = list(REGRESSION)
    if width > 1:
        found += [f"{figure}/{name}" for name in names for figure in REGRESSION]
    intervals = {}
    if resamples:
        rates = [_column_rates(*column) for column in columns]
        ends = bootstrap(
            lambda drawn: _with_mean(np.stack([rate(drawn) for rate in rates], axis=1)),
            rows,
            resamples=resamples,
            seed=seed,
        )
        intervals = with_ends(found, ends)
    shown = tuple(names) if width > 1 else ()
    return Figures(
        "regression",
        "spearman",
        named(found, values),
        intervals,
        rows,
        shown,
        baselines={"constant": 0.0},
    )


def _ranker(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """From how often each row was drawn to each row's rank, both (R, N); ties share their mean."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-math.inf) > 0)
    level = np.empty(len(values), int)  # which of the distinct values a row has
    level[order] = np.repeat(np.arange(len(starts)), np.diff([*starts, len(values)]))

    def ranks(drawn: np.ndarray) -> np.ndarray:
        equal = np.add.reduceat(drawn[:, order], starts, axis=1)
        return (np.cumsum(equal, axis=1) - (equal - 1) / 2)[:, level]

    return ranks


def _column(guess: np.ndarray, truth: np.ndarray) -> list[float]:
    """The figures of REGRESSION, of two columns of numbers."""
    stats, score = library("scipy.stats"), library("sklearn.metrics")
    varied = min(np.ptp(guess), np.ptp(truth)) > 0
    return [
        stats.pearsonr(guess, truth).statistic if varied else 0.0,
        stats.spearmanr(guess, truth).statistic if varied else 0.0,
        score.root_mean_squared_error(truth, guess),
        score.mean_absolute_error(truth, guess),
    ]


def _column_rates(guess: np.ndarray, truth: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """From how often each row was drawn, (R, N), to the same figures, (R, 4)."""
    rank, true_rank = _ranker(guess), _ranker(truth)
    miss = np.stack([(guess - truth) ** 2, np.abs(guess - truth)], axis=1)  # (N, 2)

    def rates(drawn: np.ndarray) -> np.ndarray:
        squared, absolute = (drawn @ miss / len(guess)).T
        linear = _correlation(_standard(guess), _standard(truth), drawn)
        ordered = _correlation(rank(drawn), true_rank(drawn), drawn)
        return np.stack([linear, ordered, np.sqrt(squared), absolute], axis=1)

    return rates


def _with_mean(figures: np.ndarray) -> np.ndarray:
    """Each column's figures, (R, C, 4), as the mean of columns and then, of several, each."""
    mean = figures.mean(1)
    if figures.shape[1] == 1:
        return mean
    return np.concatenate([mean, figures.reshape(len(figures), -1)], axis=1)


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() or 1)


def _correlation(x: np.ndarray, y: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Pearson's, of rows drawn so often, (R, N) to (R,); nan where a column is constant."""
    count = drawn.sum(1, keepdims=True)
    x = x - (drawn * x).sum(1, keepdims=True) / count
    y = y - (drawn * y).sum(1, keepdims=True) / count
    spread = (drawn * x * x).sum(1) * (drawn * y * y).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        real = spread > 1e-18 * count[:, 0] ** 2  # else it is rounding alone
        return np.where(real, (drawn * x * y).sum(1) / np.sqrt(spread), np.nan)
