"""Built-in pairs of numbers and words."""

import pytest

from bedstone.data.numbers import HELD_OUT, LEARNT, held_out_rows, in_words, number_rows
from bedstone.data.open import open_dataset


@pytest.mark.parametrize(
    "number, words",
    [
        (0, "zero"),
        (13, "thirteen"),
        (20, "twenty"),
        (99, "ninety-nine"),
        (100, "one hundred"),
        (101, "one hundred and one"),
        (340, "three hundred and forty"),
        (1000, "one thousand"),
        (3007, "three thousand and seven"),
        (4821, "four thousand eight hundred and twenty-one"),
        (90_100, "ninety thousand one hundred"),
        (99_999, "ninety-nine thousand nine hundred and ninety-nine"),
    ],
)
def test_numbers_in_words(number, words):
    assert in_words(number) == words


@pytest.mark.parametrize("number", [-1, 100_000])
def test_others_are_refused(number):
    with pytest.raises(ValueError, match=r"from 0 to 99,999"):
        in_words(number)


def test_all_numbers_have_words_of_their_own():
    assert len({in_words(number) for number in range(100_000)}) == 100_000


def test_rows_go_both_ways_and_held_out_numbers_in_neither():
    learnt, held = number_rows(), held_out_rows()
    assert len(learnt) == 2 * LEARNT and len(held) == 2 * HELD_OUT
    texts = [{text for row in rows for text in row.values()} for rows in (learnt, held)]
    assert not texts[0] & texts[1]
    assert learnt[0]["source"] == learnt[1]["target"]
    assert held[0]["source"] == held[HELD_OUT]["target"]
    assert all(row["source"].replace(" ", "").isdigit() for row in held[:HELD_OUT])


def test_they_open_by_name():
    rows = open_dataset("numbers")
    assert rows.rows == number_rows() and rows.where(1) == "numbers: row 2"
    assert rows.fingerprint() != open_dataset("numbers-held-out").fingerprint()
