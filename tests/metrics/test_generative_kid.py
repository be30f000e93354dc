"""KID: without bias where sets are alike, equal to the published computation."""

import pytest
import torch

from bedstone.errors import BedstoneError
from bedstone.metrics.generative import discrepancy, kid


def normal(count, width=8, seed=0, shift=0.0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=draw, dtype=torch.float64) + shift


def test_as_written_out():
    a, b = normal(5, 3, 1), normal(4, 3, 2)

    def kernel(x, y):
        return float((x @ y / 3 + 1) ** 3)

    within = sum(kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j) / 20
    within += sum(kernel(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j) / 12
    between = sum(kernel(x, y) for x in a for y in b) / 20
    assert float(discrepancy(a, b)) == pytest.approx(within - 2 * between, rel=1e-10)


def test_as_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid")
    a, b = normal(60, seed=1), normal(60, seed=2, shift=0.3)
    assert float(discrepancy(a, b)) == pytest.approx(float(kid.poly_mmd(a, b)), rel=1e-6)


def test_alike_is_zero_on_average():
    # Small sets, where a biased estimate would be far above: k(x, x) alone adds about 0.3.
    values = torch.stack(
        [discrepancy(normal(20, seed=n), normal(20, seed=-n)) for n in range(1, 400)]
    )
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean()) < 4 * error and error < 0.03
    assert (values < 0).any()


def test_subsets():
    a, b, far = normal(500, seed=1), normal(400, seed=2), normal(400, seed=3, shift=1.0)
    alike, apart = (kid(a, x, subsets=20, size=100) for x in (b, far))
    assert alike.size == 100 and alike.subsets == 20 and alike.spread > 0
    assert abs(alike.mean) < 4 * alike.spread < apart.mean
    assert kid(a, far, subsets=20, size=100) == apart
    assert kid(a, far, subsets=20, size=100, seed=1) != apart
    assert apart.mean == pytest.approx(float(discrepancy(a, far)), rel=0.2)
    whole = kid(b, far, subsets=2)  # no more than there are: each subset is all
    assert whole.size == 400 and whole.spread < 1e-9
    assert whole.mean == pytest.approx(float(discrepancy(b, far)), rel=1e-9)


def test_bad_sets():
    for a, b, told in ((normal(1), normal(5), "real"), (normal(5), normal(5, 9), "8 and 9")):
        with pytest.raises(BedstoneError, match=told):
            kid(a, b)
    with pytest.raises(BedstoneError, match="subsets"):
        kid(normal(5), normal(5), subsets=0)
