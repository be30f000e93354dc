"""Convolutions at full size."""

import pytest
import torch

from bedstone.nn.convolution import CONVOLUTIONS, FullResolutionIn, FullResolutionOut


@pytest.mark.parametrize("sides", [1, 2, 3])
def test_bf16_is_near_fp32_and_finite(sides):
    torch.manual_seed(0)
    size = (12, 8, 4)[:sides]
    parts = FullResolutionIn(sides, 3, 16), FullResolutionOut(sides, 16, 3)
    for part in parts:
        torch.nn.init.normal_(part.block.second.weight, std=0.1)
    signals = torch.randn(4, 3, *size)
    found = []
    for low in (True, False):
        for part in parts:
            part.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            fine = parts[0](signals)
            out = parts[1](fine, fine)
        out.float().square().mean().backward()
        grads = [weight.grad.clone() for part in parts for weight in part.parameters()]
        assert all(grad.isfinite().all() for grad in grads)
        found.append((out.float(), torch.cat([grad.flatten() for grad in grads])))
    for low, high in zip(*found, strict=True):
        assert (low - high).norm() < 0.02 * high.norm()


def test_convolutions_of_three_sides_stay_in_fp32_on_a_cpu():
    kind = CONVOLUTIONS[2](2, 4, 3, padding=1)
    signals = torch.randn(1, 2, 3, 4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        out = kind(signals)
    torch.testing.assert_close(
        out, torch.nn.functional.conv3d(signals, kind.weight, kind.bias, padding=1)
    )
    low = kind.to(torch.bfloat16)(signals.to(torch.bfloat16))
    assert low.dtype is torch.bfloat16 and (low.float() - out).abs().max() < 0.05
