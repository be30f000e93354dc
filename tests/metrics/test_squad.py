"""Exact match and F1 as SQuAD defines them."""

import pytest

from bedstone.errors import BedstoneError
from bedstone.metrics.squad import answers


def test_case_articles_and_punctuation_do_not_count():
    found = answers(["The  cat!", "dog"], [["cat"], ["a cat"]])
    assert found["exact_match"] == 0.5 and found["f1"] == 0.5


def test_the_best_of_several_answers_counts():
    found = answers(["in the old town"], [["Berlin", "old town", "the town of Ulm"]])
    assert found["exact_match"] == 0
    assert found["f1"] == pytest.approx(4 / 5)  # words: in, old, town beside old, town


def test_no_answer_is_right_only_where_there_is_none():
    found = answers(["", "", "x", "x"], [[], ["x"], [], ["x"]])
    assert found["exact_match"] == found["f1"] == 0.5
    assert found["exact_match/answerable"] == found["f1/unanswerable"] == 0.5
    assert found.support == {"answerable": 2, "unanswerable": 2}
    assert "f1/answerable" not in answers(["x"], ["x"]).values


def test_the_forms_an_answer_comes_in():
    forms = ["x", ["x"], ("y", "x"), {"text": ["x"], "answer_start": [3]}]
    assert answers(["x"] * 4, forms).score == 1
    empty = ["", [], [""], {"text": [], "answer_start": []}]
    assert answers([""] * 4, empty).score == 1


def test_intervals():
    found = answers(["x"] * 80 + ["y"] * 20, ["x"] * 100)
    low, high = found.intervals["f1"]
    assert 0.68 < low < 0.76 and 0.84 < high < 0.92
    assert found == answers(["x"] * 80 + ["y"] * 20, ["x"] * 100)


@pytest.mark.parametrize(
    ("predicted", "actual", "named"),
    [
        ([], [], "no rows"),
        (["x"], ["x", "y"], "1 predictions for 2 rows"),
        ([None], ["x"], "predicted, row 0: None is no text"),
        (["x"], [3], "actual, row 0: 3 is no answer"),
        (["x"], [[3]], "actual, row 0: 3 is no text"),
    ],
)
def test_bad_input_is_named(predicted, actual, named):
    with pytest.raises(BedstoneError, match=named):
        answers(predicted, actual)
