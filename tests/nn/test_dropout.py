"""Dropout by bits: the share, the scale, the gradient, the seed."""

import pytest
import torch
from torch import nn

from bedstone.nn.dropout import Dropout, keep_bits

DTYPES = [torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_share_scale_and_gradient(dtype, share):
    torch.manual_seed(0)
    x = torch.full((101, 333), 3.0, dtype=dtype, requires_grad=True)  # no multiple of four
    out = Dropout(share)(x)
    kept = out != 0
    assert abs(kept.float().mean() - (1 - share)) < 0.01
    for line in (kept.float().mean(0), kept.float().mean(1)):  # all over the tensor
        assert line.std() < 1.5 * (share * (1 - share) / 101) ** 0.5
    scaled = torch.full_like(out[kept], 3.0 / (1 - share))
    torch.testing.assert_close(
        out[kept], scaled, rtol=1e-2 if dtype is torch.bfloat16 else 2e-4, atol=0.0
    )
    out.sum().backward()
    assert x.grad.dtype is dtype and torch.equal(x.grad != 0, kept)


def test_what_is_dropped_are_zeros_even_of_infinities():
    torch.manual_seed(0)
    out = Dropout(0.5)(torch.full((1000,), float("inf")))
    assert ((out == 0) | out.isinf()).all() and (out == 0).any()


def test_bounds():
    x = torch.ones(4096)
    assert torch.equal(Dropout(1.0)(x), torch.zeros(4096))
    assert Dropout(0.0)(x) is x
    assert Dropout(1e-9)(x).mean() > 0.99
    assert Dropout(0.5).eval()(x) is x
    bits, scale = keep_bits(x, 0.25)
    assert set(bits.unique().tolist()) == {-1, 0} and scale == pytest.approx(4 / 3)


def test_the_seed_decides_and_a_resumed_generator_goes_on():
    layer, x = Dropout(0.3), torch.ones(50)
    torch.manual_seed(1)
    layer(x)
    state = torch.get_rng_state()
    following = layer(x)
    torch.set_rng_state(state)
    assert torch.equal(layer(x), following)


def test_views_and_finite_differences():
    x = torch.randn(4, 6, dtype=torch.float64).t().requires_grad_()

    def run(x):
        torch.manual_seed(3)
        return Dropout(0.4)(x)

    assert torch.autograd.gradcheck(run, x)
    assert isinstance(Dropout(0.4), nn.Dropout)
