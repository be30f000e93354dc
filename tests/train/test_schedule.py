"""Budgets as people write them, and rates over them."""

import math

import pytest

from bedstone.errors import BedstoneError
from bedstone.train.schedule import Budget, Schedule, parse_budget


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("5m", 300, "seconds"),
        ("300s", 300, "seconds"),
        ("300 seconds", 300, "seconds"),
        ("2h", 7200, "seconds"),
        ("1.5 hours", 5400, "seconds"),
        ("1 day", 86400, "seconds"),
        ("10 min", 600, "seconds"),
        ("1000 steps", 1000, "steps"),
        ("1 step", 1, "steps"),
        ("2k steps", 2000, "steps"),
        ("1000", 1000, "steps"),
        (1000, 1000, "steps"),
        ("1_000", 1000, "steps"),
        ("20M tokens", 20e6, "tokens"),
        ("1.5B tokens", 1.5e9, "tokens"),
        ("1e6 tokens", 1e6, "tokens"),
    ],
)
def test_budgets_read_as_written(text: str | int, amount: float, unit: str) -> None:
    assert parse_budget(text) == Budget(amount, unit)


@pytest.mark.parametrize(
    "text", ["", "soon", "5 parsecs", "-3 steps", "0", "0s", "0.2 steps", "m", "5 m tokens steps"]
)
def test_nonsense_is_refused_and_what_is_accepted_named(text: str) -> None:
    with pytest.raises(BedstoneError, match=r"budget.*`5m`.*`1000 steps`.*`20M tokens`"):
        parse_budget(text)


def test_minutes_and_millions_are_told_apart() -> None:
    assert parse_budget("20m").unit == "seconds"
    assert parse_budget("20m tokens") == Budget(20e6, "tokens")


def test_a_budget_reads_only_its_own_unit() -> None:
    spent = {"step": 10, "tokens": 500, "seconds": 3.0}
    assert Budget(100, "steps").share(**spent) == 0.1
    assert Budget(1000, "tokens").share(**spent) == 0.5
    assert Budget(4, "seconds").share(**spent) == 0.75
    assert Budget(2, "seconds").share(**spent) == 1.0


def test_a_budget_says_itself_so_that_it_reads_back() -> None:
    for text in ("300s", "1000 steps", "20M tokens"):
        assert parse_budget(str(parse_budget(text))) == parse_budget(text)


def test_warm_up_stays_and_decays() -> None:
    schedule = Schedule(warmup=0.1, decay=0.4, shape="linear", floor=0.2)
    assert schedule(0.0) == pytest.approx(0.1)  # not zero: the first step counts
    assert schedule(0.05) == pytest.approx(0.55)
    assert schedule(0.1) == schedule(0.5) == 1.0
    assert schedule(0.8) == pytest.approx(0.6)
    assert schedule(1.0) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("shape", "middle"),
    [("linear", 0.5), ("cosine", 0.5), ("sqrt", 1 - math.sqrt(0.5))],
)
def test_shapes_fall_from_the_peak_to_the_floor(shape: str, middle: float) -> None:
    schedule = Schedule(decay=1.0, shape=shape)
    values = [schedule(step / 50) for step in range(51)]
    assert values[0] == 1.0 and values[-1] == pytest.approx(0.0, abs=1e-12)
    assert values[25] == pytest.approx(middle)
    assert values == sorted(values, reverse=True)


def test_cosine_is_told_from_linear() -> None:
    assert Schedule(decay=1.0, shape="cosine")(0.25) > Schedule(decay=1.0)(0.25)


def test_without_warm_up_and_decay_it_is_constant() -> None:
    assert {Schedule()(step / 10) for step in range(11)} == {1.0}


@pytest.mark.parametrize(
    "wrong", [{"shape": "cosin"}, {"warmup": -0.1}, {"decay": 40}, {"floor": 2.0}]
)
def test_schedules_that_make_no_sense_are_refused(wrong: dict) -> None:
    with pytest.raises(BedstoneError, match=f"schedule.{next(iter(wrong))}"):
        Schedule(**wrong)
