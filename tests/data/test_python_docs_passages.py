"""The built-in passages: kinds, lengths, a split by module."""

from collections import Counter

import pytest

from bedstone.data.python_docs import (
    LONGEST,
    OF_ONE,
    PASSAGE_KINDS,
    SHORTEST,
    python_passages,
    split_passages,
)


@pytest.fixture(scope="module")
def rows():
    return python_passages(150)


def test_kinds_are_even_and_passages_fair(rows):
    counts = Counter(row["label"] for row in rows)
    assert counts == dict.fromkeys(PASSAGE_KINDS, 150)
    assert all(SHORTEST <= len(row["text"].split()) <= LONGEST for row in rows)
    assert len({row["text"] for row in rows}) == len(rows)
    assert max(Counter((row["module"], row["label"]) for row in rows).values()) <= OF_ONE


def test_equal_seeds_give_equal_rows(rows):
    assert python_passages(150) == rows
    assert python_passages(150, seed=1) != rows


def test_code_is_code_and_comments_are_not(rows):
    code = [row["text"] for row in rows if row["label"] == "code"]
    comments = [row["text"] for row in rows if row["label"] == "comment"]
    assert sum("=" in text or "(" in text for text in code) > 0.9 * len(code)
    assert not any(text.startswith("#") for text in comments)


def test_a_module_is_on_one_side(rows):
    learn, measure = split_passages(rows)
    assert len(learn) + len(measure) == len(rows)
    assert 0.02 < len(measure) / len(rows) < 0.4
    assert not {row["module"] for row in learn} & {row["module"] for row in measure}
