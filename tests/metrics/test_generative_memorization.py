"""Has it copied? Copies are found, and what is only alike is not called one."""

import pytest
import torch

from bedstone.errors import BedstoneError
from bedstone.metrics.generative import memorization, nearest


def pictures(count, seed, size=6):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_nearest_are_the_nearest():
    made, training = pictures(7, 0), pictures(50, 1)
    found = nearest(made, training, 3)
    away = torch.cdist(made.flatten(1).double(), training.flatten(1).double())
    order = away.sort(1)
    assert (found.places == order.indices[:, :3]).all()
    # root mean square: as large as one value's difference
    torch.testing.assert_close(found.distances, order.values[:, :3] / (3 * 36) ** 0.5)


def test_what_is_almost_the_same_is_told_apart():
    training = pictures(40, 1).flatten(1) * 1e-4 + 100  # products of such round to nothing
    made = training[[4, 9]] + 1e-5
    found = nearest(made, training, 2)
    assert found.places[:, 0].tolist() == [4, 9]
    assert found.distances[0, 0] == pytest.approx(1e-5, rel=0.5)
    exact = nearest(training[:5], training)
    assert (exact.distances == 0).all() and exact.places[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_copying():
    training, held = pictures(200, 1), pictures(100, 2)
    real = nearest(held, training)
    fresh = memorization(nearest(pictures(100, 3), training), real)
    assert fresh.nearer == pytest.approx(0.5, abs=0.1) and fresh.suspects < 0.05
    assert fresh.made == pytest.approx(fresh.held, rel=0.05)
    copied = memorization(nearest(training[:50] + 0.01, training), real)
    assert copied.nearer == 1 and copied.suspects == 1 and copied.made == pytest.approx(0.01, 1e-3)
    mixed = torch.cat([training[:10], pictures(90, 4)])
    assert 0.1 <= memorization(nearest(mixed, training), real).suspects < 0.15
    assert memorization(real, real).nearer == pytest.approx(0.5)


def test_bad_rows():
    with pytest.raises(BedstoneError, match="training"):
        nearest(pictures(2, 0), pictures(2, 0), 3)
    with pytest.raises(BedstoneError, match="108 and 147"):
        nearest(pictures(2, 0), pictures(2, 0, size=7))
    with pytest.raises(BedstoneError, match="count"):
        nearest(pictures(2, 0), pictures(2, 0), 0)
