"""Built-in pairs of texts: numbers in digits and in English words, both ways.

Held-out numbers are in no row that is learnt from, in neither direction.
"""

import functools
import random
from typing import Any

MOST = 100_000  # numbers are below
LEARNT, HELD_OUT = 12_000, 250  # numbers, each of which is two rows
ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(number: int) -> str:
    """A number in English words, such as `three thousand and seven`.

    Raises:
        ValueError: it is negative, or `MOST` or more.
    """
    if not 0 <= number < MOST:
        raise ValueError(f"number: {number} was given; expected one from 0 to {MOST - 1:,}.")
    thousands, rest = divmod(number, 1000)
    if not thousands:
        return _below_thousand(rest)
    lead = f"{_below_thousand(thousands)} thousand"
    if not rest:
        return lead
    return (
        f"{lead} and {_below_thousand(rest)}" if rest < 100 else f"{lead} {_below_thousand(rest)}"
    )


def _below_thousand(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    if not hundreds:
        return _below_hundred(rest)
    lead = f"{ONES[hundreds]} hundred"
    return f"{lead} and {_below_hundred(rest)}" if rest else lead


def _below_hundred(number: int) -> str:
    if number < 20:
        return ONES[number]
    tens, ones = divmod(number, 10)
    return TENS[tens - 2] + (f"-{ONES[ones]}" if ones else "")


def in_digits(number: int) -> str:
    """A number as digits apart, `4 8 2 1`: a token each, whatever the tokenizer joins."""
    return " ".join(str(number))


def number_rows() -> list[dict[str, Any]]:
    """Rows to learn from: `source` and `target`, of each number both ways."""
    return _rows(_numbers()[0])


def held_out_rows() -> list[dict[str, Any]]:
    """Rows of the held-out numbers: first all to words, then all to digits."""
    rows = _rows(_numbers()[1])
    return rows[::2] + rows[1::2]


@functools.cache
def _numbers() -> tuple[list[int], list[int]]:
    drawn = random.Random(0).sample(range(MOST), LEARNT + HELD_OUT)
    return drawn[:LEARNT], drawn[LEARNT:]


def _rows(numbers: list[int]) -> list[dict[str, Any]]:
    rows = []
    for number in numbers:
        digits, words = in_digits(number), in_words(number)
        rows += [{"source": digits, "target": words}, {"source": words, "target": digits}]
    return rows
