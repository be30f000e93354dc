"""Which examples stand in a prompt."""

from collections import Counter

import numpy as np
import pytest

from bedstone.data.text.demonstrations import Demonstrations
from bedstone.errors import BedstoneError

TEXTS = [f"text {number}" for number in range(12)]
CLASSES = ["a"] * 6 + ["b"] * 4 + ["c"] * 2


def embed(texts: list[str]) -> np.ndarray:
    """Texts by their numbers, as angles."""
    angles = np.array([int(text.split()[1]) for text in texts]) / 10
    return np.stack([np.cos(angles), np.sin(angles)], 1)


@pytest.fixture
def examples():
    return Demonstrations(TEXTS, TEXTS, CLASSES, "rows.jsonl", embed)


def test_random_draws(examples):
    four = examples.choose(4, seed=1)
    assert examples.choose(4, seed=1) == four
    assert examples.choose(8, seed=1)[:4] == four  # more are the same and others
    assert examples.choose(4, seed=2) != four
    assert len(set(examples.choose(12))) == 12
    assert examples.choose(0) == []


def test_orders_are_of_the_same_examples(examples):
    drawn = [examples.choose(6, seed=3, order=order) for order in range(4)]
    assert len({tuple(each) for each in drawn}) == 4
    assert len({frozenset(each) for each in drawn}) == 1
    assert examples.choose(6, seed=3, order=2) == drawn[2]


@pytest.mark.parametrize("shots", [2, 3, 4, 5, 6])
def test_balanced(examples, shots):
    firsts = Counter()
    for seed in range(20):
        chosen = examples.choose(shots, "balanced", seed=seed)
        counts = Counter(CLASSES[each] for each in chosen)
        assert len(set(chosen)) == shots
        assert max(counts.values()) - min(counts.get(each, 0) for each in "abc") <= 1
        firsts[CLASSES[chosen[0]]] += 1
    assert len(firsts) == 3  # no class is always the first


def test_similar_ones_stand_with_the_nearest_last(examples):
    found = examples.choose(3, "similar", given="text 5")
    assert found[0] in (3, 7) and sorted(found[1:]) == [4, 6]
    assert examples.choose(2, "similar", given="text 0") == [2, 1]  # never the question itself
    assert examples.choose(1, "similar", given="text 15") == [11]


@pytest.mark.parametrize(
    ("shots", "select", "words"),
    [
        (13, "random", "13 were wanted, and rows.jsonl has 12 rows"),
        (9, "balanced", "need 3 of each class, and rows.jsonl has 2 of 'c'"),
        (2, "nearest", "'nearest' is unknown"),
        (12, "similar", "has 11 rows beside the one in question"),
    ],
)
def test_what_cannot_be_chosen(examples, shots, select, words):
    with pytest.raises(BedstoneError, match=words):
        examples.choose(shots, select, given="text 5")


def test_one_class_alone_cannot_be_balanced():
    same = Demonstrations(TEXTS, TEXTS, ["a"] * 12)
    with pytest.raises(BedstoneError, match="two classes or more; of examples, all are 'a'"):
        same.choose(4, "balanced")
    with pytest.raises(BedstoneError, match="they have no labels"):
        Demonstrations(TEXTS, TEXTS).choose(4, "balanced")
    with pytest.raises(BedstoneError, match="name a model of them by embed"):
        same.choose(4, "similar", given="text 5")
