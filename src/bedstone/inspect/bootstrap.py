"""How sure a figure is: the percentile bootstrap over rows (Efron and Tibshirani, 1993, ch. 13).

A resample draws as many rows as there are, with replacement. Only how often each row was drawn is
kept, so that a figure made of sums over rows is one matrix product for all resamples, and rows
that are alike need be counted once.

Shapes: R resamples, U distinct rows, F figures.
"""

from collections.abc import Callable, Iterator

import numpy as np

from bedstone.checks import check_whole
from bedstone.errors import BedstoneError

AT_ONCE = 4_000_000  # draws held in memory at one time


def bootstrap(
    figures: Callable[[np.ndarray], np.ndarray],
    rows: int | np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> np.ndarray:
    """(F, 2): the lower and upper end of each figure's interval.

    Args:
        figures: maps how often each row was drawn, (R, U), to (R, F). A figure that is nan in a
            resample (a constant column, say) leaves that resample out.
        rows: how many rows there are; or, of rows that are grouped, how many are in each group.
        resamples: how many to draw.
        seed: the same seed gives the same interval.
        confidence: the share of resamples between the two ends.

    Raises:
        BedstoneError: no rows, no resamples, or a confidence outside 0 to 1.
    """
    if not np.sum(rows):
        raise BedstoneError("bootstrap: there are no rows to draw from.")
    check_whole("resamples", resamples, 1)
    if not 0 < confidence < 1:
        raise BedstoneError(f"confidence: {confidence} was given; expected a share such as 0.95.")
    drawn = _draws(rows, resamples, np.random.default_rng(seed))
    values = np.concatenate([figures(weights) for weights in drawn])  # (R, F)
    empty = np.isnan(values).all(0)
    values[:, empty] = 0.0
    tail = 50 * (1 - confidence)
    ends = np.nanpercentile(values, [tail, 100 - tail], axis=0).T
    ends[empty] = np.nan
    return ends


def grouped(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of `counts` and how many there are of each."""
    return np.unique(counts, axis=0, return_counts=True)


def _draws(
    rows: int | np.ndarray, resamples: int, random: np.random.Generator
) -> Iterator[np.ndarray]:
    """How often each row was drawn, a few resamples at a time."""
    groups = rows if isinstance(rows, int) else len(rows)
    step = max(1, AT_ONCE // groups)
    for start in range(0, resamples, step):
        now = min(step, resamples - start)
        if isinstance(rows, int):
            places = random.integers(0, rows, (now, rows)) + rows * np.arange(now)[:, None]
            yield np.bincount(places.ravel(), minlength=now * rows).reshape(now, rows)
        else:
            yield random.multinomial(rows.sum(), rows / rows.sum(), size=now)
