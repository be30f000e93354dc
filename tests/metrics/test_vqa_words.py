"""Answers in the form that is compared."""

import pytest

from bedstone.metrics.vqa import answer_kind, normalise_answer


@pytest.mark.parametrize(
    ("said", "compared"),
    [
        ("Yes.", "yes"),
        (" The red  car ", "red car"),
        ("two", "2"),
        ("none", "0"),
        ("1,000", "1000"),
        ("3.5 m.", "3.5 m"),
        ("don't", "dont"),
        ("red, green", "red green"),
        ("left/right", "left right"),
        ("top-left", "top left"),
        ("10:30", "10:30"),
        ("$5", "$5"),
        ("Bücher", "bücher"),
        ("A", "a"),  # nothing but an article
        ("?", "?"),
        ("", ""),
    ],
)
def test_plain(said, compared):
    assert normalise_answer(said) == compared
    assert normalise_answer(compared) == compared


def test_the_kind_of_a_question_is_told_by_its_answers():
    assert answer_kind(["Yes"]) == "yes/no"
    assert answer_kind(["three"]) == "number"
    assert answer_kind(["a chair"]) == "other"
    assert answer_kind(["2", "two", "a pair"]) == "number"
    assert answer_kind([]) == "other"
