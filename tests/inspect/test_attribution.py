"""Attribution and its tests, on functions whose answers are known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from bedstone.errors import BedstoneError
from bedstone.inspect.attribution import (
    METHODS,
    Case,
    gradient_times_input,
    integrated_gradients,
    occlusion,
    shapley,
)
from bedstone.inspect.faithfulness import (
    Faithfulness,
    randomised,
    rank_correlation,
)
from bedstone.metrics.figures import sign_flip


def case(score, values, parts=None, baseline=None):
    values = torch.as_tensor(values, dtype=torch.float32)
    parts = torch.arange(len(values)) if parts is None else torch.as_tensor(parts)
    count = int(parts.max()) + 1
    baseline = torch.zeros_like(values) if baseline is None else baseline
    return Case(values, baseline, parts, [f"part {at}" for at in range(count)], score)


WEIGHTS = torch.tensor([3.0, -2.0, 0.5, 0.0, 1.0, -0.25])


def linear(x):
    return x @ WEIGHTS


@pytest.mark.parametrize("method", METHODS)
def test_of_a_linear_function_all_methods_give_the_same(method):
    found = METHODS[method](case(linear, torch.ones(6)))
    np.testing.assert_allclose(found.scores, WEIGHTS.numpy(), atol=1e-5)


def test_parts_are_summed_and_what_is_of_none_stays():
    found = case(linear, torch.ones(6), parts=[0, 0, 1, -1, 1, 1])
    assert found.mixed(torch.tensor([[1.0, 0.0]])).tolist() == [[1, 1, 0, 1, 0, 0]]
    np.testing.assert_allclose(integrated_gradients(found).scores, [1.0, 1.25], atol=1e-5)
    np.testing.assert_allclose(occlusion(found).scores, [1.0, 1.25], atol=1e-5)


def test_scores_of_a_product_are_shared_by_the_path():
    # x0 x1 along the diagonal: each has half; a lone gradient counts it twice
    found = case(lambda x: x[:, 0] * x[:, 1], [2.0, 3.0])
    np.testing.assert_allclose(integrated_gradients(found).scores, [3.0, 3.0], atol=1e-4)
    np.testing.assert_allclose(gradient_times_input(found).scores, [6.0, 6.0], atol=1e-4)
    np.testing.assert_allclose(shapley(found).scores, [3.0, 3.0], atol=1e-4)


@pytest.mark.parametrize("place", [0.013, 0.37, 0.999])
def test_a_steep_step_is_found_wherever_it_is(place):
    found = integrated_gradients(case(lambda x: torch.sigmoid(400 * (x[:, 0] - place)), [1.0]))
    sums = found.completeness
    assert sums.met and sums.error <= 0.01
    assert 15 < sums.gradients < 200  # fifty even steps would miss it
    assert abs(found.scores[0] - sums.change) <= 0.01 * abs(sums.change)


def test_what_does_not_add_up_is_flagged():
    def rough(x):  # its slope is zero wherever it has one
        return (x[:, 0] * 8).floor() + 0 * x.sum(1)

    sums = integrated_gradients(case(rough, [1.0]), most=60).completeness
    assert not sums.met
    assert sums.gradients <= 60
    nothing = integrated_gradients(case(lambda x: 0 * x.sum(1), [1.0, 2.0])).completeness
    assert nothing.change == 0.0


def test_shapley_values_are_those_of_the_definition():
    def game(x):
        return x[:, 0] + 2 * x[:, 1] * x[:, 2] + torch.relu(x.sum(1) - 2)

    own = case(game, torch.ones(3))
    exact = np.zeros(3)
    for mask in range(8):
        there = [bool(mask >> at & 1) for at in range(3)]
        for at in range(3):
            if not there[at]:
                with_it = [float(one) for one in there]
                with_it[at] = 1.0
                size = sum(there)
                share = math.factorial(size) * math.factorial(2 - size) / 6
                values = own.at(np.array([with_it, there]))
                exact[at] += share * (values[0] - values[1])
    found = shapley(own, pairs=400)
    assert np.abs(found.scores - exact).max() < 4 * found.deviations.max() + 1e-6
    assert found.scores.sum() == pytest.approx(float(own.at(np.ones((1, 3)))[0]), abs=1e-5)


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(BedstoneError, match="isn't finite"):
        integrated_gradients(case(lambda x: x.sum(1) * math.nan, [1.0]))


def test_the_right_order_beats_chance_and_a_wrong_one_fails():
    weights = torch.linspace(-1, 3, 12)
    own = case(lambda x: x @ weights, torch.ones(12))
    test = Faithfulness(own)
    right = test.curves(weights.numpy())
    assert right.holds and right.failures == []
    assert right.fall > 0 and right.rise > 0
    assert right.deletion[0] == pytest.approx(float(weights.sum()), abs=1e-5)
    assert right.deletion[-1] == pytest.approx(0.0, abs=1e-5)
    assert right.insertion[0] == pytest.approx(0.0, abs=1e-5)
    # the two parts of twelve that count most: 3 and 2.6364
    assert right.comprehensiveness == pytest.approx(3 + 2.636364, abs=1e-4)
    wrong = test.curves(-weights.numpy())
    assert not wrong.holds and len(wrong.failures) == 2


def test_an_order_by_chance_does_not_hold_often():
    weights = torch.linspace(-1, 3, 12)
    own = case(lambda x: x @ weights, torch.ones(12))
    random = np.random.default_rng(0)
    held = [Faithfulness(own, seed=at).curves(random.normal(size=12)).holds for at in range(40)]
    assert np.mean(held) < 0.5  # an order is as often better than the mean one as worse
    assert sum(held) < 25


def test_rank_correlation_is_spearman_s():
    one, other = np.array([1.0, 5, 5, 2, -3]), np.array([0.1, 3, 2, 2, 2])
    # ranks 2, 4.5, 4.5, 3, 1 and 1, 5, 3, 3, 3
    assert rank_correlation(one, other) == pytest.approx(5 / math.sqrt(9.5 * 8))
    assert rank_correlation(one, 7 * one + 1) == pytest.approx(1.0)
    assert rank_correlation(one, -one) == pytest.approx(-1.0)
    assert rank_correlation(one, np.ones(5)) == 0.0


def test_signs_that_are_chance_give_no_small_p():
    assert sign_flip(np.full(12, 0.3)) < 0.001
    assert sign_flip(np.array([0.3, -0.3] * 6)) > 0.3
    assert sign_flip(np.full(12, -0.3)) > 0.99


def test_shuffled_weights_keep_their_sizes_and_lose_their_places():
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1))
    other = randomised(network, seed=3)
    for before, after in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(before.flatten().sort().values, after.flatten().sort().values)
    assert not torch.equal(network[0].weight, other[0].weight)
    assert torch.equal(other[0].weight, randomised(network, seed=3)[0].weight)
    head = randomised(network, seed=3, names=("2.",))
    assert torch.equal(network[0].weight, head[0].weight)
    assert not torch.equal(network[2].weight, head[2].weight)
