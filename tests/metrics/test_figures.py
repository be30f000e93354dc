"""Intervals: they cover what they should, and come out the same."""

import io

import numpy as np
import pytest
from rich.console import Console

from bedstone.errors import BedstoneError
from bedstone.metrics.classification import classification, multi_label
from bedstone.metrics.figures import Figures, bootstrap, grouped
from bedstone.metrics.ner import entities
from bedstone.metrics.regression import regression
from bedstone.metrics.squad import answers


def mean_of(values):
    return lambda drawn: drawn @ values[:, None] / drawn.sum(1, keepdims=True)


def test_the_interval_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(1).normal(3, 2, 400)
    ((low, high),) = bootstrap(mean_of(values), len(values), resamples=4000)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


@pytest.mark.parametrize(("confidence", "low", "high"), [(0.95, 25, 975), (0.9, 50, 950)])
def test_an_interval_leaves_out_as_many_at_both_ends(confidence, low, high):
    """Of 1,001 resamples in a known order: the ends are exact."""

    def figures(drawn):
        return np.random.default_rng(0).permutation(1001)[: len(drawn), None] ** 2.0

    given = {} if confidence == 0.95 else {"confidence": confidence}
    ends = bootstrap(figures, 3, resamples=1001, **given)
    assert ends[0].tolist() == pytest.approx([low**2, high**2], rel=1e-9)


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
        each = [1] * 7 if drawn.shape[1] == 7 else [3, 4]  # drawn as often as there are
        assert drawn.mean(0) == pytest.approx(each, abs=0.2)
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


def test_a_baseline_stands_beside_the_figure_and_is_warned_of():
    """A classifier below the commonest class, one whose interval reaches it, and one above."""
    labels = ["a", "b", "c", "d"]
    actual = ["a"] * 40 + ["b", "c", "d"] * 20
    useless = classification(["b"] * 100, actual, labels)
    assert useless.baselines == {"majority": 0.4, "chance": 0.25}
    assert useless.warning.startswith("No better than a baseline: accuracy 0.2000 beside 0.4000")
    near = classification(["a"] * 40 + ["b"] * 60, actual, labels)
    assert near.score == 0.6 and not near.warning
    little = classification([*actual[:45], *["a"] * 55], actual, labels)
    assert little.intervals["accuracy"][0] <= 0.4 < little.score
    assert little.warning.startswith("Not surely better than a baseline: accuracy 0.4500")
    same = classification(["a"] * 100, actual, labels)
    assert "No better than a baseline" in same.warning
    record = useless.record()
    assert record["baselines"] == useless.baselines and record["warning"] == useless.warning
    text = shown(useless)
    assert "accuracy of majority" in text and "No better than a baseline" in " ".join(text.split())
    assert "baseline" not in " ".join(shown(near).split())


def test_baselines_of_other_figures():
    assert entities([["O", "O"]], [["B-X", "O"]]).baselines == {"none": 0.0}
    assert "No better" in entities([["O", "O"]], [["B-X", "O"]]).warning
    assert regression([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]).warning
    assert not regression([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], resamples=0).warning
    found = multi_label([["a"], ["a", "b"]], [["a"], ["b"]], ["a", "b"])
    assert found.baselines == {"all labels": pytest.approx(2 / 3)}  # two right of four said
    assert answers(["", "x"], ["", "y"]).baselines == {"no answer": 0.5}


def shown(figures) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(figures)
    return console.file.getvalue()


def test_figures_of_some_classes_alone_leave_cells_empty():
    """As of re-ranking: `right/4/2 things` beside `oracle/4`."""
    values = {"right": 0.5, "right/4": 0.5, "oracle/4": 0.75, "right/4/2 things": 0.25}
    found = Figures(kind="reranking", main="right", values=values, intervals={}, rows=8)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(found)
    text = console.export_text()
    assert "2 things" in text and "0.7500" in text
