"""The monitor: a reward that rises while what is wanted falls, and what is only chance."""

import numpy as np
import pytest

from bedstone.train.monitor import Monitor, sureness

ROWS = 200


def right(share: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(ROWS) < share).astype(float)


def run(truths: list[float], rewards: list[float], seed: int = 0, paired: bool = True) -> list[int]:
    """Numbers of the evaluations that are found to mislead."""
    monitor, found = Monitor(), []
    for number, (truth, reward) in enumerate(zip(truths, rewards, strict=True)):
        noise = np.random.default_rng((seed, number)).normal(0, 0.3, ROWS)
        own = reward + noise
        if not paired:
            monitor.learnt = own.tolist()
        if monitor.add(right(truth, 100 * seed + number), own if paired else None):
            found.append(number)
    return found


@pytest.mark.parametrize("paired", [True, False])
def test_a_reward_that_misleads_is_found_two_evaluations_after_it_turned(paired: bool) -> None:
    truths = [0.4, 0.55, 0.7, 0.5, 0.3, 0.1]
    rewards = [0.4, 0.6, 0.8, 1.0, 1.2, 1.4]
    assert run(truths, rewards, paired=paired)[0] == 4


def test_a_run_that_learns_or_wavers_is_not_stopped() -> None:
    truths, rewards = [0.3, 0.4, 0.5, 0.6, 0.65, *[0.7] * 5], [0.1 * n for n in range(10)]
    for seed in range(50):
        assert not run(truths, rewards, seed, paired=False), seed
    wavers = [run([0.7] * 10, rewards, seed) for seed in range(50)]
    assert sum(map(bool, wavers)) <= 2  # of 400 comparisons whose truths are chance alone


@pytest.mark.parametrize("paired", [True, False])
def test_a_truth_that_falls_at_once_and_stays_low_is_found(paired: bool) -> None:
    assert run([0.2, 0.0, 0.0, 0.0], [0.4, 4.0, 4.1, 4.0], paired=paired)[0] == 2


def test_a_slow_fall_is_found() -> None:
    truths = [0.8 - 0.03 * n for n in range(14)]
    assert run(truths, [0.1 * n for n in range(14)])


def test_both_must_change() -> None:
    assert not run([0.7, 0.5, 0.3, 0.1], [0.5, 0.5, 0.5, 0.5])
    assert not run([0.7, 0.5, 0.3, 0.1], [0.8, 0.6, 0.4, 0.2])
    assert not run([0.1, 0.3, 0.5, 0.7], [0.2, 0.4, 0.6, 0.8])


def test_without_rewards_of_training_nothing_is_said() -> None:
    monitor = Monitor()
    assert not monitor.add(right(0.9, 0))  # before the first rollout
    monitor.learnt = [0.5] * 20
    assert not monitor.add(right(0.5, 1))


def test_states_go_on() -> None:
    monitor, other = Monitor(), Monitor()
    for number, share in enumerate((0.9, 0.6)):
        monitor.add(right(share, number), np.full(ROWS, float(number)))
    monitor.before = {"reward": 0.5}
    other.load_state_dict(monitor.state_dict())
    assert other == monitor
    other.load_state_dict({"truths": [[1.0]], "paired": True, "count": 2})  # of an older version
    assert other == monitor
    last = right(0.2, 5), np.full(ROWS, 2.0)
    assert monitor.add(*last) and other.add(*last) and other.hacked_at == 3


def test_sureness() -> None:
    one, two = [0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]
    assert sureness(one, two, True) == pytest.approx(0.5 / (np.std([1, 0, 1, 0], ddof=1) / 2))
    assert sureness(one, two, False) == pytest.approx(0.5 / np.sqrt(np.var(one, ddof=1) / 4))
    assert sureness(one, one, True) == 0.0 and sureness([1.0] * 3, [2.0] * 3, True) == np.inf
    assert sureness([1.0], [5.0], False) == 0.0
