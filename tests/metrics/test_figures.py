"""Intervals: they cover what they should, and come out the same."""

import numpy as np
import pytest

from bedstone.errors import BedstoneError
from bedstone.metrics.figures import bootstrap, grouped


def mean_of(values):
    return lambda drawn: drawn @ values[:, None] / drawn.sum(1, keepdims=True)


def test_the_interval_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(1).normal(3, 2, 400)
    ((low, high),) = bootstrap(mean_of(values), len(values), resamples=4000)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_groups_give_the_interval_of_their_rows():
    values = np.random.default_rng(2).integers(0, 3, 500).astype(float)
    distinct, repeats = grouped(values[:, None])
    assert len(distinct) == 3
    rows = bootstrap(mean_of(values), len(values), resamples=4000)
    groups = bootstrap(mean_of(distinct[:, 0]), repeats, resamples=4000)
    assert groups == pytest.approx(rows, abs=0.02)


def test_every_resample_has_as_many_rows_as_there_are():
    def counted(drawn):
        assert (drawn.sum(1) == 7).all() and (drawn >= 0).all()
        return drawn[:, :1]

    bootstrap(counted, 7)
    bootstrap(counted, np.array([3, 4]))


def test_the_seed_alone_decides(monkeypatch):
    values = np.random.default_rng(3).random(50)
    first = bootstrap(mean_of(values), 50, seed=4)
    monkeypatch.setattr("bedstone.metrics.figures.AT_ONCE", 170)  # three resamples at a time
    assert bootstrap(mean_of(values), 50, seed=4) == pytest.approx(first, rel=1e-12)
    assert (bootstrap(mean_of(values), 50, seed=5) != first).any()


def test_resamples_without_the_figure_are_left_out():
    def figures(drawn):
        some = np.where(drawn[:, 0] > 0, 1.0, np.nan)
        return np.stack([some, np.full(len(drawn), np.nan)], axis=1)

    ends = bootstrap(figures, 3)
    assert ends[0].tolist() == [1, 1] and np.isnan(ends[1]).all()


@pytest.mark.parametrize(
    ("rows", "options", "named"),
    [
        (0, {}, "no rows"),
        (3, {"resamples": 0}, "resamples: 0"),
        (3, {"confidence": 95}, "confidence: 95"),
    ],
)
def test_bad_input_is_named(rows, options, named):
    with pytest.raises(BedstoneError, match=named):
        bootstrap(mean_of(np.ones(3)), rows, **options)
