"""Precision, recall, density and coverage on sets where they can be told by hand."""

import pytest
import torch

from bedstone.errors import BedstoneError
from bedstone.metrics import generative as feature_rows
from bedstone.metrics.generative import prdc, squared_distances


def normal(count, width=4, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def written_out(real, made, k):
    """By one loop after the other, as the papers say it."""
    real, made = real.double(), made.double()

    def reach(rows):
        return [float(torch.cdist(row[None], rows)[0].sort().values[k]) for row in rows]

    away = torch.cdist(real, made)
    real_reach, made_reach = torch.tensor(reach(real)), torch.tensor(reach(made))
    holds = away <= real_reach[:, None]
    return (
        float(holds.any(0).float().mean()),
        float((away <= made_reach).any(1).float().mean()),
        float(holds.sum() / (k * len(made))),
        float(holds.any(1).float().mean()),
    )


def test_on_a_line():
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])  # reach 1, 1, 1, 8 at k = 1
    made = torch.tensor([[0.5], [0.6], [30.0]])  # reach 0.1, 0.1, 29.4
    found = prdc(real, made, nearest=1)
    assert found.precision == pytest.approx(2 / 3)  # 30 is in no ball
    assert found.recall == pytest.approx(3 / 4)  # 30's ball holds 1 (29 <= 29.4), 2 and 10
    assert found.density == pytest.approx(4 / 3)  # 0 and 1 hold both of the first; 2, 10 none
    assert found.coverage == pytest.approx(2 / 4)


def test_what_lies_on_a_balls_edge_is_inside():
    real = torch.tensor([[0.0], [1.0], [2.0]])  # reach 1 each
    made = torch.tensor([[3.0], [5.0]])  # reach 2 each
    found = prdc(real, made, nearest=1)
    assert found.precision == pytest.approx(1 / 2)  # 3 is on the edge of 2's ball
    assert found.recall == pytest.approx(2 / 3)  # 1 is on the edge of 3's ball, 2 within
    assert found.density == pytest.approx(1 / 2)
    assert found.coverage == pytest.approx(1 / 3)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_as_written_out(k, monkeypatch):
    real, made = normal(70, seed=1), normal(50, seed=2) * 0.6 + 0.4
    monkeypatch.setattr(feature_rows, "AT_ONCE", 1)
    found = prdc(real, made, nearest=k)
    shares = (found.precision, found.recall, found.density, found.coverage)
    assert shares == pytest.approx(written_out(real, made, k), abs=1e-6)


def test_what_they_tell():
    real = normal(400)
    same = prdc(real, normal(400, seed=5))
    assert same.precision > 0.8 and same.recall > 0.8 and same.density == pytest.approx(1, abs=0.2)
    narrow = prdc(real, normal(400, seed=5) * 0.2)  # true, not various
    assert narrow.precision > 0.95 and narrow.recall < 0.3
    wide = prdc(real, normal(400, seed=5) * 6)  # various, not true
    assert wide.precision < 0.3 and wide.recall > 0.6
    far = prdc(real, normal(400, seed=5) + 50)
    assert far == type(far)(0, 0, 0, 0, 3)


def test_distances_in_parts():
    one, other = normal(13).double() + 1e3, normal(9, seed=1).double() + 1e3
    whole = torch.empty(13, 9, dtype=torch.float64)
    parts = 0
    for rows, found in squared_distances(one, other, at_once=20):
        assert len(found) <= 2
        whole[rows] = found
        parts += 1
    assert parts == 7
    torch.testing.assert_close(whole, torch.cdist(one, other).square())


def test_bad_sets():
    with pytest.raises(BedstoneError, match="3 was given, of 3 real"):
        prdc(normal(3), normal(9))
    with pytest.raises(BedstoneError, match="4 and 5"):
        prdc(normal(9), normal(9, 5))
    with pytest.raises(BedstoneError, match="nearest"):
        prdc(normal(9), normal(9), nearest=0)
