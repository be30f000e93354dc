"""Figures of preferences by hand, and their baselines."""

import numpy as np
import pytest

from bedstone.errors import BedstoneError
from bedstone.metrics.preferences import judgements, preferences

REWARDS = np.array([[2.0, 1.0], [0.0, 1.0], [1.0, 1.0], [3.0, -1.0]])
LENGTHS = np.array([[5.0, 7.0], [4.0, 6.0], [5.0, 5.0], [9.0, 3.0]])


def test_pairs_by_hand() -> None:
    found = preferences(REWARDS, LENGTHS, {"kl": np.array([0.1, 0.2, 0.3, 0.4])})
    assert found["accuracy"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert found["margin"] == pytest.approx((1 - 1 + 0 + 4) / 4)
    assert found["reward_chosen"] == 1.5 and found["reward_rejected"] == 0.5
    assert found["tokens_chosen"] == 5.75 and found["kl"] == pytest.approx(0.25)
    assert found.baselines == {"shorter": (1 + 1 + 0.5 + 0) / 4}
    expected = np.corrcoef(REWARDS.ravel(), LENGTHS.ravel())[0, 1]
    assert found["length_correlation"] == pytest.approx(expected)
    low, high = found.intervals["accuracy"]
    assert low <= found["accuracy"] <= high and "margin" in found.intervals
    assert found.rows == 4 and found.main == "accuracy"


def test_the_longer_answer_may_be_the_baseline() -> None:
    found = preferences(REWARDS, LENGTHS[:, ::-1], resamples=0)
    assert found.baselines == {"longer": 0.625} and found.intervals == {}
    assert preferences(REWARDS, np.ones((4, 2)), resamples=0)["length_correlation"] == 0.0


def test_the_interval_holds_what_is_so() -> None:
    draw = np.random.default_rng(0)
    inside = 0
    for _ in range(40):
        rewards = np.stack([draw.random(200) < 0.6, np.full(200, 0.5)], axis=1).astype(float)
        low, high = preferences(rewards, np.ones((200, 2))).intervals["accuracy"]
        inside += low <= 0.6 <= high
    assert inside >= 34


def test_judgements_by_hand() -> None:
    labels = np.array([True, False, True, False])
    rewards = np.array([1.0, 0.5, 0.0, -2.0])
    found = judgements(rewards, labels, np.array([1.0, 2.0, 3.0, 4.0]))
    assert found["accuracy"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert found["reward_desirable"] == 0.5 and found["reward_undesirable"] == -0.75
    assert found["margin"] == 1.25 and found.baselines == {"majority": 0.5}
    alone = judgements(rewards[:1], labels[:1], np.ones(1), resamples=0)
    assert alone["reward_undesirable"] == 0.0 and alone.baselines == {"majority": 1.0}


def test_nothing_to_measure() -> None:
    with pytest.raises(BedstoneError, match="no pairs"):
        preferences(np.zeros((0, 2)), np.zeros((0, 2)))
    with pytest.raises(BedstoneError, match="for 2 answers"):
        judgements(np.zeros(1), np.array([True, False]), np.zeros(2))
