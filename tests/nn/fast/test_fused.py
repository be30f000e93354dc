"""The fused forms beside the plain ones: values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bedstone.nn.attention import attend
from bedstone.nn.fast import fused
from bedstone.nn.layers import RMSNorm
from bedstone.nn.masks import Causal, Full, Padding
from bedstone.nn.positions import Rotary, rotate


def both(plain, fused_form, inputs: list[Tensor]) -> None:
    """Asserts equal values and equal gradients for a random gradient of the output."""
    one, two = plain(*inputs), fused_form(*inputs)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    gradient = torch.randn_like(one)
    first = torch.autograd.grad(one, inputs, gradient)
    second = torch.autograd.grad(two, inputs, gradient)
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def plain_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def test_rms_norm_equals_torchs() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 4, 16).transpose(1, 2).requires_grad_()  # not contiguous, as heads are
    weight = torch.randn(16, requires_grad=True)
    both(
        lambda x, w: F.rms_norm(x, (16,), w, 1e-6),
        lambda x, w: fused.rms_norm(x, w, 1e-6),
        [x, weight],
    )


def test_rms_norm_is_right_by_finite_differences() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: fused.rms_norm(x, w, 1e-3), (x, weight))


def test_rms_norm_of_zeros_is_zero_and_has_a_finite_gradient() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    out = fused.rms_norm(x, torch.ones(8), 1e-6)
    out.sum().backward()
    assert out.abs().max() == 0 and x.grad is not None and x.grad.isfinite().all()


def test_rms_norm_of_bf16_computes_in_fp32() -> None:
    """A bf16 sum of 4,096 squares would be off by percents."""
    torch.manual_seed(0)
    norm = RMSNorm(4096)
    x = torch.randn(2, 4096)
    out = norm(x.bfloat16())
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.float(), norm(x), rtol=0.02, atol=0.02)


def test_a_frozen_norm_still_passes_gradients_on() -> None:
    norm = RMSNorm(8)
    norm.weight.requires_grad_(False)
    x = torch.randn(2, 8, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad is not None and norm.weight.grad is None


@pytest.mark.parametrize("rows", [1, 3])
def test_turn_equals_the_plain_rotation(rows: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 2, 8).transpose(1, 2).requires_grad_()
    cos, sin = Rotary.plain(8)(torch.randint(0, 50, (rows, 5)))
    both(lambda x: plain_rotate(x, cos, sin), lambda x: fused.turn(x, cos, sin), [x])
    torch.testing.assert_close(rotate(x, (cos, sin)), plain_rotate(x, cos, sin))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_equals_torchs(groups: int, causal: bool) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 7, 4, 8).transpose(1, 2).requires_grad_()
    keys = 7 if causal else 9
    k, v = (torch.randn(2, groups, keys, 8, requires_grad=True) for _ in range(2))
    both(
        lambda q, k, v: F.scaled_dot_product_attention(
            q, k, v, is_causal=causal, enable_gqa=True, scale=0.3
        ),
        lambda q, k, v: fused.attention(q, k, v, 0.3, causal),
        [q, k, v],
    )


@pytest.mark.parametrize("causal", [True, False])
def test_attention_equals_torchs_where_keys_are_padding(causal: bool) -> None:
    torch.manual_seed(0)
    q = torch.randn(3, 4, 6, 8, requires_grad=True)
    k, v = (torch.randn(3, 2, 6, 8, requires_grad=True) for _ in range(2))
    keep = torch.arange(6) < torch.tensor([[6], [2], [4]])
    seen = keep[:, None, None].expand(3, 1, 6, 6)
    seen = seen.tril() if causal else seen
    both(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True, scale=0.3),
        lambda q, k, v: fused.attention(q, k, v, 0.3, causal, keep),
        [q, k, v],
    )


@pytest.mark.parametrize("mask", [Causal(), Full(), Padding(torch.ones(2, 6, dtype=torch.bool))])
def test_bf16_that_learns_takes_the_fused_form(mask, monkeypatch) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 6, 8).bfloat16().requires_grad_() for _ in range(3))
    calls = []
    real = fused._Attention.apply
    monkeypatch.setattr(fused._Attention, "apply", lambda *a: calls.append(1) or real(*a))
    trained = attend(q, k, v, mask)
    assert calls == [1]
    with torch.no_grad():
        inferred = attend(q, k, v, mask)
        exact = F.scaled_dot_product_attention(
            *(x.float() for x in (q, k, v)), is_causal=isinstance(mask, Causal)
        )
    assert calls == [1]  # nothing was kept
    for found in (trained, inferred):
        torch.testing.assert_close(found.float(), exact, rtol=0.05, atol=0.03)


@pytest.mark.parametrize("cached", [1, 150, 2**20])
@pytest.mark.parametrize(("queries", "groups"), [(1, 4), (7, 4), (7, 2)])
def test_attention_that_keeps_nothing_is_the_same_in_parts(cached, queries, groups, monkeypatch):
    monkeypatch.setattr(fused, "CACHED", cached)
    torch.manual_seed(0)
    q = torch.randn(2, queries, 4, 8).transpose(1, 2)
    k, v = (torch.randn(2, 9, groups, 8).transpose(1, 2) for _ in range(2))
    expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, scale=0.3)
    torch.testing.assert_close(fused.attention(q, k, v, 0.3, False), expected)


def test_a_gradient_for_values_alone_is_kept() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 6, 8).bfloat16() for _ in range(3))
    v.requires_grad_()
    attend(q, k, v, Full()).float().sum().backward()
    assert v.grad is not None and v.grad.abs().sum() > 0
