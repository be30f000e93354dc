"""pass@k: against its definition and the published closed form, with intervals."""

import itertools
import math

import numpy as np
import pytest

from bedstone.errors import BedstoneError
from bedstone.metrics.code import pass_at_k, passed


@pytest.mark.parametrize(("count", "right"), [(1, 0), (1, 1), (5, 2), (6, 0), (6, 6), (7, 3)])
def test_it_is_the_share_of_all_draws_that_hold_a_right_program(count, right):
    programs = [True] * right + [False] * (count - right)
    for k in range(1, count + 1):
        draws = list(itertools.combinations(programs, k))
        share = sum(map(any, draws)) / len(draws)
        assert pass_at_k(count, right, k) == pytest.approx(share, abs=1e-12)


def test_it_is_equation_1_also_where_binomials_overflow_floats():
    for count, right, k in ((200, 17, 100), (2000, 3, 500), (5000, 40, 100)):
        exact = 1 - math.comb(count - right, k) / math.comb(count, k)
        assert pass_at_k(count, right, k) == pytest.approx(exact, rel=1e-9)
    assert pass_at_k(200, 0, 100) == 0.0
    assert pass_at_k(200, 101, 100) == 1.0


def test_it_is_unbiased():
    random = np.random.default_rng(0)
    rate, count, k = 0.1, 20, 5
    found = [pass_at_k(count, int(each), k) for each in random.binomial(count, rate, 20000)]
    assert np.mean(found) == pytest.approx(1 - (1 - rate) ** k, abs=0.005)


def test_figures_are_means_over_problems_with_intervals():
    problems = [[True] * 10, [False] * 10, [True] + [False] * 9, [True] * 5 + [False] * 5]
    figures = passed(problems, (1, 10), verdicts={"ok": 16, "failed": 24})
    assert figures.main == "pass@1"
    assert figures["pass@1"] == pytest.approx((1 + 0 + 0.1 + 0.5) / 4)
    assert figures["pass@10"] == 0.75
    low, high = figures.intervals["pass@1"]
    assert 0 <= low < figures.score < high <= 1
    assert figures.record()["support"] == {"failed": 24, "ok": 16}
    assert passed(problems, (1,), resamples=0).intervals == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [((5, 2, 6), "pass@6 was wanted of 5"), ((5, 6, 1), "right: 6 of 5"), ((5, 2, 0), "k")],
)
def test_what_can_t_be_is_refused(given, message):
    with pytest.raises(BedstoneError, match=message):
        pass_at_k(*given)


def test_no_problems_are_refused():
    with pytest.raises(BedstoneError, match="no problems"):
        passed([])
