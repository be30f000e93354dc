"""PSNR and SSIM against their papers, and at their ends."""

import numpy as np
import pytest
import torch

from bedstone.metrics.generative import psnr, ssim


def pair(side: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(2)
    one = torch.rand(3, 3, side, side + 5, generator=chance) * 2 - 1
    other = (one + 0.3 * torch.randn(one.shape, generator=chance)).clamp(-1, 1)
    return one, other


def by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of one channel from 0 to 1, window by window, as the paper writes it."""
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(line, line) / np.outer(line, line).sum()
    found = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            one, other = (each[top : top + 11, left : left + 11] for each in (x, y))
            m, n = (weights * one).sum(), (weights * other).sum()
            v, w = (weights * (one - m) ** 2).sum(), (weights * (other - n) ** 2).sum()
            both = (weights * (one - m) * (other - n)).sum()
            light = (2 * m * n + 0.01**2) / (m**2 + n**2 + 0.01**2)
            found.append(light * (2 * both + 0.03**2) / (v + w + 0.03**2))
    return float(np.mean(found))


def test_as_the_papers_write_them() -> None:
    one, other = pair(13)
    x, y = ((each.double().numpy() + 1) / 2 for each in (one, other))
    for i in range(3):
        wanted = np.mean([by_hand(x[i, c], y[i, c]) for c in range(3)])
        assert ssim(one, other)[i].item() == pytest.approx(wanted, abs=1e-5)
        wanted = -10 * np.log10(((x[i] - y[i]) ** 2).mean())
        assert psnr(one, other)[i].item() == pytest.approx(wanted, abs=1e-4)


def test_equal_and_small_pictures() -> None:
    one, other = pair(7)
    assert torch.allclose(ssim(one, one), torch.ones(3))
    assert (psnr(one, one) > 100).all()
    assert (ssim(one, other) < 0.99).all() and ssim(one, other).shape == (3,)


def test_what_leaves_the_range_is_cut() -> None:
    white = torch.ones(1, 3, 16, 16)
    assert psnr(white, 3 * white) > 100 and ssim(white, 3 * white) > 0.999
