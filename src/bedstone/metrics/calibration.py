"""Calibration and detection metrics of scores from 0 to 1.

Expected calibration error: Naeini, Cooper and Hauskrecht (2015), with the bins of Guo et al.
(2017, https://arxiv.org/abs/1706.04599), on the probability that the category holds, not on the
confidence of a choice: thresholds are set on that probability.

Point figures come from scikit-learn and torchmetrics; those of the bootstrap's resamples from sums
over rows. Tests hold the two together. Shapes: n rows, C categories, B bins, R resamples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bedstone.errors import BedstoneError
from bedstone.metrics.classification import f_rates
from bedstone.metrics.figures import Figures, bootstrap, library, with_ends

BINS = 15
SURE = 1.64  # standard errors: 95 % on one side
FIGURES = ("precision", "recall", "f1", "ece", "brier")


@dataclass(frozen=True)
class Sweep:
    """What each threshold would give, by rising threshold, T of them: each distinct score is one.

    Attributes:
        thresholds, precision, recall, f1: (T,).
        taken: (T,) rows with at least that score.
        held: rows in which the category holds.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    taken: np.ndarray
    held: int


@dataclass(frozen=True)
class Reliability:
    """What was said and what was so, in bins of equal width; empty bins are left out.

    Attributes:
        said: the mean score of a bin.
        found: the share of its rows in which the category held.
        rows: how many rows are in it.
        edges: (B + 1,) of all bins.
        counts: (B,) rows of all bins.
    """

    said: np.ndarray
    found: np.ndarray
    rows: np.ndarray
    edges: np.ndarray
    counts: np.ndarray


def calibration_error(
    scores: Sequence[float] | np.ndarray, truth: Sequence[bool] | np.ndarray, bins: int = BINS
) -> float:
    """The expected calibration error, by torchmetrics.

    Raises:
        BedstoneError: torchmetrics is absent, lengths differ, or a score isn't from 0 to 1.
    """
    probability, actual = _checked(scores, truth)
    measure = library("torchmetrics.functional.classification").binary_calibration_error
    below = np.minimum(probability, np.nextafter(1.0, 0.0))  # 1 has a bin of its own there
    return float(measure(torch.from_numpy(below), torch.from_numpy(actual).long(), bins))


def reliability(
    scores: Sequence[float] | np.ndarray, truth: Sequence[bool] | np.ndarray, bins: int = BINS
) -> Reliability:
    """Said and found by bins. Raises BedstoneError as `calibration_error`."""
    probability, actual = _checked(scores, truth)
    place = _bins(probability, bins)
    counts = np.bincount(place, minlength=bins)
    some = counts > 0
    said = np.bincount(place, probability, bins)[some] / counts[some]
    found = np.bincount(place, actual.astype(float), bins)[some] / counts[some]
    return Reliability(said, found, counts[some], _edges(bins), counts)


def sweep(scores: Sequence[float] | np.ndarray, truth: Sequence[bool] | np.ndarray) -> Sweep:
    """Precision and recall by threshold, by scikit-learn; a row is taken from its threshold on.

    Raises:
        BedstoneError: as `calibration_error`, or the category never holds.
    """
    probability, actual = _checked(scores, truth)
    if not actual.any():
        raise BedstoneError(
            "precision and recall: the category holds in no row; give rows in which it does."
        )
    curve = library("sklearn.metrics").precision_recall_curve
    precision, recall, thresholds = curve(actual, probability)
    precision, recall = precision[:-1], recall[:-1]  # the last is of no threshold at all
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    taken = len(probability) - np.searchsorted(np.sort(probability), thresholds)
    return Sweep(thresholds, precision, recall, f1, taken, int(actual.sum()))


def best_threshold(
    found: Sweep,
    *,
    precision: float | None = None,
    recall: float | None = None,
    sure: float = SURE,
) -> tuple[float, bool]:
    """The threshold that gives a wished figure, and whether any does.

    Of those with at least the wished precision, the one with most recall; of those with at least
    the wished recall, the one with most precision; with no wish, or one that none fulfils, the one
    with the best F1. It stands about half-way to the next lower score, with as few digits from
    four on as move no row.

    Args:
        sure: how many standard errors a wished figure has to stand above the wish (Wilson's score
            interval, 1927): among many thresholds, some of few rows look good by chance. 0 takes
            figures as they are.

    Raises:
        BedstoneError: both are wished, or one is not between 0 and 1.
    """
    if precision is not None and recall is not None:
        raise BedstoneError("wished: both a precision and a recall were given; wish for one.")
    for name, wished in (("precision", precision), ("recall", recall)):
        if wished is not None and not 0 < wished < 1:
            raise BedstoneError(f"wished {name}: {wished} was given; expected a share such as 0.9.")
    worth, allowed = found.f1, np.ones(len(found.f1), dtype=bool)
    if precision is not None:
        worth = found.recall
        allowed = _lower(found.precision, found.taken, sure) >= precision
    elif recall is not None:
        worth, allowed = found.precision, _lower(found.recall, found.held, sure) >= recall
    reached = bool(allowed.any())
    worth = np.where(allowed, worth, -1.0) if reached else found.f1
    # of equals the highest: it takes fewest rows
    place = len(worth) - 1 - int(np.argmax(worth[::-1]))
    here = found.thresholds[place]
    below = found.thresholds[place - 1] if place else here
    return _between(float(below), float(here)), reached


def _between(below: float, here: float) -> float:
    """A number with few digits that takes `here` and not `below`."""
    shorter = (float(f"{(here + below) / 2:.{digits}g}") for digits in range(4, 17))
    return next((each for each in shorter if below < each < here), here)


def _lower(share: np.ndarray, rows: np.ndarray | int, sure: float) -> np.ndarray:
    """The lower end of Wilson's interval of a share of so many rows."""
    room = sure**2 / rows
    spread = sure * np.sqrt(share * (1 - share) / rows + room / (4 * rows))
    lower: np.ndarray = (share + room / 2 - spread) / (1 + room)
    return lower


def detection(
    scores: np.ndarray,
    truth: np.ndarray,
    thresholds: Sequence[float],
    labels: Sequence[str],
    *,
    bins: int = BINS,
    resamples: int = 1000,
    seed: int = 0,
) -> Figures:
    """Precision, recall, F1, calibration error and Brier score of each category, and their means.

    A category is taken to hold where its score is at least its threshold. What would be 0/0 is 0.
    A calibration error is never below 0, so chance raises it: the interval of a small one lies
    rather above it.

    Args:
        scores: (n, C) from 0 to 1.
        truth: (n, C) whether the category holds.
        thresholds: of each category.
        labels: names of the categories.
        resamples: of the bootstrap; 0 leaves intervals out.

    Raises:
        BedstoneError: a library is absent, or shapes or scores don't fit.
    """
    scores, truth = np.asarray(scores, dtype=float), np.asarray(truth, dtype=bool)
    shape = (len(scores), len(labels))
    if scores.shape != shape or truth.shape != shape or len(thresholds) != len(labels):
        raise BedstoneError(
            f"detection: scores {scores.shape}, truth {truth.shape} and {len(thresholds)} "
            f"thresholds don't fit {len(labels)} labels."
        )
    metrics = library("sklearn.metrics")
    guess = scores >= np.asarray(thresholds)
    columns = []
    for column in range(len(labels)):
        own = scores[:, column], truth[:, column]
        rates = metrics.precision_recall_fscore_support(
            own[1], guess[:, column], average="binary", zero_division=0
        )
        error = calibration_error(*own, bins)
        columns.append([*rates[:3], error, metrics.brier_score_loss(own[1], own[0])])
    values = np.array(columns).T  # (5, C)
    names = [f"{name}_macro" for name in FIGURES]
    names += [f"{name}/{label}" for name in FIGURES for label in labels]
    flat = np.concatenate([values.mean(1), values.ravel()])
    ends = {}
    if resamples:
        found = bootstrap(
            _rates(scores, truth, guess, bins), len(scores), resamples=resamples, seed=seed
        )
        ends = with_ends(names, found)
    support = dict(zip(labels, truth.sum(0).tolist(), strict=True))
    named = dict(zip(names, flat.tolist(), strict=True))
    return Figures("detection", "f1_macro", named, ends, len(scores), tuple(labels), support)


def _rates(
    scores: np.ndarray, truth: np.ndarray, guess: np.ndarray, bins: int
) -> Callable[[np.ndarray], np.ndarray]:
    """How often each row was drawn, (R, n), to the figures of `detection`, (R, 5 + 5C)."""
    squares = (scores - truth) ** 2
    gaps = []  # a category: (n, B), what a row adds to its bin's score less what was so
    for column in range(scores.shape[1]):
        one = np.eye(bins)[_bins(scores[:, column], bins)]
        gaps.append(one * (scores[:, column] - truth[:, column])[:, None])

    def figures(drawn: np.ndarray) -> np.ndarray:
        drawn = drawn.astype(float)
        total = drawn.sum(1, keepdims=True)
        counts = [drawn @ each.astype(float) for each in (guess & truth, guess, truth)]
        error = np.stack([np.abs(drawn @ gap).sum(1) for gap in gaps], axis=1) / total
        each = np.stack([*f_rates(*counts), error, drawn @ squares / total], axis=1)  # (R, 5, C)
        return np.concatenate([each.mean(2), each.reshape(len(drawn), -1)], axis=1)

    return figures


def _bins(scores: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each score; 1 is in the last."""
    return np.minimum(np.digitize(scores, _edges(bins)) - 1, bins - 1)


def _edges(bins: int) -> np.ndarray:
    """(B + 1,), to the last digit those of torchmetrics."""
    edges: np.ndarray = torch.linspace(0, 1, bins + 1, dtype=torch.float64).numpy()
    return edges


def _checked(
    scores: Sequence[float] | np.ndarray, truth: Sequence[bool] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    probability, actual = np.asarray(scores, dtype=float), np.asarray(truth, dtype=bool)
    if probability.shape != actual.shape or probability.ndim != 1 or not len(probability):
        raise BedstoneError(
            f"scores: {probability.shape} of them for {actual.shape} rows; expected one a row."
        )
    bad = ~((probability >= 0) & (probability <= 1))
    if bad.any():
        place = int(np.flatnonzero(bad)[0])
        raise BedstoneError(
            f"scores[{place}]: is {probability[place]}; expected a probability from 0 to 1."
        )
    return probability, actual
