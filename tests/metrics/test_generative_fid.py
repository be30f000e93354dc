"""FID: exact on Gaussians whose distance is known, equal to the published computation."""

import numpy as np
import pytest
import scipy.linalg
import torch

from bedstone.errors import BedstoneError
from bedstone.metrics.generative import Moments, frechet_distance


def spread(count, width, seed, scale=1.0, shift=0.0):
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=draw)
    return scale * torch.randn(count, width, generator=draw) @ mix + shift


def exact(mean, covariance, count=100):
    """Moments that are just these."""
    return Moments(count, mean.double(), covariance.double() * (count - 1))


def published(a, b):
    """Heusel et al.'s own formula, by SciPy."""
    a, b = a.double().numpy(), b.double().numpy()
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    apart = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return apart + np.trace(first + second - 2 * root)


def test_known_gaussians():
    width = 5
    eye = torch.eye(width)
    at, away = torch.zeros(width), torch.full((width,), 2.0)
    # |2|² a feature, and (3 - 1)² of each of the deviations
    assert frechet_distance(exact(at, eye), exact(away, 9 * eye)) == pytest.approx(5 * 4 + 5 * 4)
    turn = torch.linalg.qr(spread(width, width, 3))[0]
    wide, narrow = torch.arange(1.0, 6).square(), torch.arange(5.0, 0, -1).square()
    one, other = turn @ torch.diag(wide) @ turn.T, turn @ torch.diag(narrow) @ turn.T
    known = (torch.arange(1, 6) - torch.arange(5, 0, -1)).square().sum()
    assert frechet_distance(exact(at, one), exact(at, other)) == pytest.approx(float(known), 1e-5)


def test_as_published():
    a, b = spread(300, 12, 0), spread(257, 12, 1, 1.3, 0.4)
    ours = frechet_distance(Moments.of(a), Moments.of(b))
    assert ours == pytest.approx(published(a, b), rel=1e-8)
    assert frechet_distance(Moments.of(b), Moments.of(a)) == pytest.approx(ours, rel=1e-10)


def test_as_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")
    a, b = spread(400, 20, 2).double(), spread(400, 20, 3, 0.7).double()
    theirs = fid._compute_fid(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
    ours = frechet_distance(Moments.of(a), Moments.of(b))
    assert ours == pytest.approx(float(theirs), rel=1e-6)


def test_fewer_rows_than_features():
    a, b = spread(9, 30, 0), spread(7, 30, 1)
    first, second = Moments.of(a), Moments.of(b)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-4)
    # The nuclear norm of the centred sets' product is the trace of the root of C C'.
    one, other = (x.double() - x.double().mean(0) for x in (a, b))
    one, other = one / 8**0.5, other / 6**0.5
    apart = (first.mean - second.mean).square().sum()
    shared = torch.linalg.matrix_norm(one @ other.T, "nuc")
    known = apart + one.square().sum() + other.square().sum() - 2 * shared
    assert frechet_distance(first, second) == pytest.approx(float(known), rel=1e-6)


def test_parts_are_as_the_whole():
    x = spread(1000, 6, 4, shift=1e4).float()  # far from zero, where plain sums lose digits
    parts = [Moments.of(part) for part in x.split([1, 499, 130, 370])]
    joined = parts[0].joined(parts[1]).joined(parts[2].joined(parts[3]))
    whole = Moments.of(x)
    assert joined.count == 1000
    torch.testing.assert_close(joined.mean, whole.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(joined.covariance, whole.covariance, rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(whole.covariance, x.double().T.cov(), rtol=1e-9, atol=1e-8)


def test_bad_features():
    fine = spread(5, 3, 0)
    with pytest.raises(BedstoneError, match="3 and 4"):
        frechet_distance(Moments.of(fine), Moments.of(spread(5, 4, 0)))
    with pytest.raises(BedstoneError, match="one row"):
        frechet_distance(Moments.of(fine), Moments.of(fine[:1]))
    with pytest.raises(BedstoneError, match=r"\(0, 3\)"):
        Moments.of(fine[:0])
    fine[3, 1] = torch.nan
    with pytest.raises(BedstoneError, match="row 3"):
        Moments.of(fine)
