"""Statistics of audits against other formulas; they find what is there, and only that."""

import itertools

import numpy as np
import pytest
from scipy import stats

from bedstone.errors import BedstoneError
from bedstone.metrics import bias


def test_holm_is_the_step_down_correction():
    # Holm (1979): 4 * .01, then 3 * .02 = .06, 2 * .03 = .06 (at least the one before), .04 -> .06
    assert bias.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert bias.holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("k", "n", "chance"), [(7, 10, 0.5), (0, 9, 0.2), (30, 41, 0.8), (5, 5, 1.0)]
)
def test_binomial_test_is_scipys(k, n, chance):
    assert bias.binomial_p(k, n, chance) == pytest.approx(stats.binomtest(k, n, chance).pvalue)


def test_skew_is_the_hypergeometric_test():
    found = bias.skew("q", among=9, top=12, members=30, every=100)
    table = [[9, 3], [21, 67]]  # scipy's two-sided test of the same four counts
    assert found.p == pytest.approx(stats.fisher_exact(table).pvalue)
    assert (found.value, found.aim) == (0.75, 0.3)


def test_preferences_count_ties_as_half_and_correct_for_kinds():
    prefers = np.array([1.0] * 40 + [0.0] * 10 + [0.5] * 2 + [1.0, 0.0] * 30)
    found = bias.preferences(prefers, ["a"] * 52 + ["b"] * 60)
    assert [each.name for each in found] == ["all", "a", "b"]
    assert found[1].value == pytest.approx(41 / 52)
    assert found[1].p == pytest.approx(stats.binomtest(40, 50).pvalue)
    assert found[1].corrected == pytest.approx(3 * found[1].p)
    assert found[1].differs
    assert not found[2].differs
    with pytest.raises(BedstoneError, match="0 preferences"):
        bias.preferences(np.zeros(0), [])


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_weat_is_the_papers_formula_with_its_exact_test():
    random = np.random.default_rng(3)
    x, y, a, b = (unit(random.normal(size=(n, 6))) for n in (4, 4, 3, 5))
    x = unit(x + 0.8 * a.mean(0))
    found = bias.association("w", (x, y), (a, b))

    def near(w):  # equation 3 of Caliskan et al. (2017)
        return np.mean([w @ each for each in a]) - np.mean([w @ each for each in b])

    both = [near(w) for w in (*x, *y)]
    effect = (np.mean(both[:4]) - np.mean(both[4:])) / np.std(both, ddof=1)
    assert found.value == pytest.approx(effect)
    own = abs(np.sum(both[:4]) - np.sum(both[4:]))
    sums = [
        abs(np.sum([both[i] for i in chosen]) * 2 - np.sum(both))
        for chosen in itertools.combinations(range(8), 4)
    ]
    assert found.p == pytest.approx(np.mean(np.array(sums) >= own - 1e-9))
    with pytest.raises(BedstoneError, match="equally near"):
        bias.association("w", (x[:2] * 0, y[:2] * 0), (a, b))


def planted(random, count, gap):
    """Truth, guess and group: the second group's true positives are missed more often by `gap`."""
    groups = random.integers(0, 2, count)
    truth = random.random(count) < 0.5
    right = np.where(truth & (groups == 1), 0.85 - gap, 0.85)
    return truth, np.where(random.random(count) < right, truth, ~truth), groups


def test_group_rates_by_hand():
    truth = np.array([1, 1, 0, 0, 1, 0], bool)
    guess = np.array([1, 0, 1, 0, 1, 0], bool)
    groups = np.array([0, 0, 0, 0, 1, 1])
    found = bias.group_rates(truth, guess, groups, ["a", "b"])
    assert found["a"] == {
        "rows": 4,
        "accuracy": 0.5,
        "selection rate": 0.5,
        "true positive rate": 0.5,
        "false positive rate": 0.5,
    }
    differences = bias.group_differences(truth, guess, groups, ["a", "b"], resamples=50)
    assert {each.name: each.value for each in differences} == {
        "accuracy": 0.5,
        "selection rate": 0.0,
        "true positive rate": 0.5,
        "false positive rate": 0.5,
        "equalized odds": 0.5,
    }
    with pytest.raises(BedstoneError, match="1 group"):
        bias.group_differences(truth, guess, groups * 0, ["a", "b"])


def test_one_label_for_all_rows_is_said_and_what_could_be_seen():
    truth, guess, groups = planted(np.random.default_rng(0), 300, 0.0)
    same = bias.group_differences(truth, guess & False, groups, ["a", "b"], resamples=100)
    assert all("every row is given the same label" in each.note for each in same)
    found = bias.group_differences(truth, guess, groups, ["a", "b"], resamples=200)
    assert all(0.03 < each.detects < 0.3 for each in found)


def test_a_planted_difference_is_found_and_none_is_invented():
    found = false = 0
    for seed in range(25):
        for gap in (0.25, 0.0):
            rows = planted(np.random.default_rng(seed), 600, gap)
            differences = bias.group_differences(*rows, ["a", "b"], seed=seed, resamples=200)
            odds = {each.name: each for each in differences}
            if gap:
                found += odds["true positive rate"].differs
            else:
                false += any(each.differs for each in differences)
    assert found >= 23
    assert false <= 3  # five measures together, at 5 %


def test_intervals_of_shares_cover_what_was_planted():
    random = np.random.default_rng(0)
    inside = false = 0
    for _ in range(200):
        seen = int((random.random(120) < 0.8).sum())
        found = bias.chosen_rates({"red": seen, "blue": 120 - seen}, {"red": 0.8, "blue": 0.2})
        inside += found[0].low <= 0.8 <= found[0].high
        false += any(each.differs for each in bias.corrected(found))
    assert inside >= 183
    assert false <= 14


def test_paired_differences_by_exchange():
    random = np.random.default_rng(1)
    clear = bias.paired("a", random.normal(0.4, 1, 120))
    none = bias.paired("b", random.normal(0.0, 1, 120))
    assert clear.p < 0.01
    assert clear.low < clear.value < clear.high
    assert none.p > 0.05
    assert clear.detects == pytest.approx(2.8 / np.sqrt(120), rel=0.2)


def test_rates_need_something_to_count():
    with pytest.raises(BedstoneError, match="nothing was counted"):
        bias.chosen_rates({}, {"a": 1.0})
    with pytest.raises(BedstoneError, match="no expected share"):
        bias.chosen_rates({"b": 3}, {"a": 1.0})
