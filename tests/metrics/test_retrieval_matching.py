"""Accuracy of matching pictures with texts."""

import pytest

from bedstone.errors import BedstoneError
from bedstone.metrics.retrieval import matching


def test_both_kinds_are_told_apart():
    found = matching([0.9, 0.5, 0.2, 0.7, 0.1], [True, True, True, False, False])
    assert found.values == pytest.approx(
        {"accuracy": 3 / 5, "majority": 3 / 5, "belong_found": 2 / 3, "others_refused": 1 / 2}
    )
    assert found.score == 0.6 and found.rows == 5


def test_who_always_agrees_is_no_better_than_the_majority():
    truth = [True] * 80 + [False] * 20
    found = matching([1.0] * 100, truth)
    assert found["accuracy"] == found["majority"] == 0.8
    assert found["others_refused"] == 0
    low, high = found.intervals["accuracy"]
    assert 0.68 < low < 0.77 and 0.83 < high < 0.92


def test_one_kind_alone_leaves_the_other_out():
    assert "others_refused" not in matching([0.9, 0.1], [True, True]).values


def test_what_is_no_probability_is_named():
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(BedstoneError, match="probabilities, row 1"):
            matching([0.5, wrong], [True, False])
    with pytest.raises(BedstoneError, match="2 predictions for 1 pairs"):
        matching([0.5, 0.5], [True])
