"""Packed documents in grids: each as if alone, gradients too, and cheap dropout that is exact."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bedstone.nn import attention
from bedstone.nn.attention import attend
from bedstone.nn.fast import ragged
from bedstone.nn.fast.ragged import Layout, ragged_attention
from bedstone.nn.masks import Documents, with_window


def segments(lengths: list[int]) -> list[tuple[int, int]]:
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return [(end - length, end) for length, end in zip(lengths, ends, strict=True)]


def numbers(lengths: list[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]


def tensors(count: int, heads: int, groups: int, width: int, dtype=torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    shapes = [(count, heads, width), (count, groups, width), (count, groups, width)]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [x.to(dtype).requires_grad_() for x in made]


def alone(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], causal: bool) -> Tensor:
    """Each document by itself, written out."""
    out = []
    for start, end in segments(lengths):
        one_q, one_k, one_v = (x[start:end].transpose(0, 1) for x in (q, k, v))  # (H, n, W)
        repeats = q.shape[1] // k.shape[1]
        one_k, one_v = (x.repeat_interleave(repeats, 0) for x in (one_k, one_v))
        scores = one_q @ one_k.mT / math.sqrt(q.shape[-1])
        if causal:
            scores = scores + torch.full(scores.shape[1:], -math.inf).triu(1)
        out.append((scores.softmax(-1) @ one_v).transpose(0, 1))
    return torch.cat(out)


@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=12),
    st.sampled_from([(4, 4), (4, 2), (3, 1)]),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_packed_equals_each_document_alone(lengths, heads, causal):
    inputs = tensors(sum(lengths), *heads, 8)
    layout = Layout(segments(lengths), torch.device("cpu"))
    found = ragged_attention(*inputs, layout, causal=causal)
    wanted = alone(*inputs, lengths, causal)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    gradient = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    for got, want in zip(
        torch.autograd.grad(found, inputs, gradient),
        torch.autograd.grad(wanted, inputs, gradient),
        strict=True,
    ):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_right_by_finite_differences(causal, dropout):
    lengths = [3, 1, 18]
    layout = Layout(segments(lengths), torch.device("cpu"))
    inputs = tensors(sum(lengths), 2, 1, 2, torch.float64)

    def run(q, k, v):
        torch.manual_seed(5)  # the same weights are dropped each time
        return ragged_attention(q, k, v, layout, causal=causal, scale=0.7, dropout=dropout)

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("lengths", [[24] * 5, [20, 21, 22, 64], [64, 64]])
def test_bf16_is_as_close_as_bf16_can_be(lengths):
    layout = Layout(segments(lengths), torch.device("cpu"))
    inputs = tensors(sum(lengths), 4, 4, 16, torch.bfloat16)
    found = ragged_attention(*inputs, layout, causal=False)
    assert found.dtype is torch.bfloat16
    wide = [x.detach().float().requires_grad_() for x in inputs]
    wanted = alone(*wide, lengths, False)
    torch.testing.assert_close(found.float(), wanted, atol=0.02, rtol=0.02)
    got = torch.autograd.grad(found.float().square().sum(), inputs)
    want = torch.autograd.grad(wanted.square().sum(), wide)
    for one, other in zip(got, want, strict=True):
        assert one.dtype is torch.bfloat16
        assert (one.float() - other).norm() < 0.02 * other.norm()


def test_autocast_computes_in_its_dtype():
    lengths = [9, 30]
    layout = Layout(segments(lengths), torch.device("cpu"))
    inputs = tensors(sum(lengths), 2, 2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = ragged_attention(*inputs, layout, causal=False)
    assert found.dtype is torch.bfloat16
    found.float().sum().backward()
    assert all(x.grad is not None and x.grad.dtype is torch.float32 for x in inputs)


def test_a_document_that_is_not_finite_stays_alone():
    lengths = [20, 20, 7]
    layout = Layout(segments(lengths), torch.device("cpu"))
    q, k, v = (x.detach().clone() for x in tensors(sum(lengths), 2, 2, 8))
    v[40:] = math.nan
    found = ragged_attention(q, k, v, layout, causal=False)
    assert found[:40].isfinite().all() and found[40:].isnan().all()


def test_grids_waste_little_and_are_few():
    generator = torch.Generator().manual_seed(1)
    lengths = (3 + 0.6 * torch.randn(200, generator=generator)).exp().clamp(5, 128).int().tolist()
    layout = Layout(segments(lengths), torch.device("cpu"))
    cells = sum(grid.length * len(grid.documents) for grid in layout.grids)
    assert cells < 1.35 * sum(lengths) and len(layout.grids) <= 10
    assert sorted(i for grid in layout.grids for i in grid.documents) == list(range(200))
    assert len(Layout(segments([32] * 50), torch.device("cpu")).grids) == 1
    large = Layout(segments([300, 290, 310, 400]), torch.device("cpu")).grids  # cache comes first
    assert [len(grid.documents) for grid in large] == [1, 1, 1, 1]


@pytest.mark.parametrize("causal", [False, True])
def test_attend_takes_the_grids_and_finds_the_layout_once(causal, monkeypatch):
    lengths = [5, 17, 40, 2]
    inputs = tensors(sum(lengths), 4, 2, 8)
    mask = Documents(numbers(lengths), causal=causal)
    made = []
    real = ragged.Layout.__init__
    monkeypatch.setattr(ragged.Layout, "__init__", lambda *a: made.append(1) or real(*a))
    q, k, v = (x[None].transpose(1, 2) for x in inputs)
    for window in (None, None, 64 if causal else None):
        found = attend(q, k, v, with_window(mask, window))
        wanted = alone(*inputs, lengths, causal)
        torch.testing.assert_close(found[0].transpose(0, 1), wanted, atol=1e-5, rtol=1e-5)
    assert made == [1]


@pytest.mark.parametrize("learns", [True, False])
def test_long_documents_without_a_gradient_are_attended_one_by_one(learns, monkeypatch):
    lengths = [140, 150]
    taken = []
    real = ragged_attention
    monkeypatch.setattr(
        attention, "ragged_attention", lambda *a, **k: taken.append(1) or real(*a, **k)
    )
    inputs = tensors(sum(lengths), 2, 2, 8)
    q, k, v = (x[None].transpose(1, 2) for x in inputs)
    with torch.set_grad_enabled(learns):
        found = attend(q, k, v, Documents(numbers(lengths), causal=False))
    assert bool(taken) == learns
    wanted = alone(*inputs, lengths, False)
    torch.testing.assert_close(found[0].transpose(0, 1), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("longest", [0, 1024])
@pytest.mark.parametrize("threshold", [0, 10**9])
@pytest.mark.parametrize("causal", [False, True])
def test_every_way_agrees_with_a_window(longest, threshold, causal, monkeypatch):
    monkeypatch.setattr(attention, "LONGEST", longest)
    monkeypatch.setattr(attention, "SEGMENT_TOKENS", threshold)
    lengths = [5, 17, 40]
    q, k, v = (x[None].transpose(1, 2) for x in tensors(sum(lengths), 2, 2, 8))
    for window in (3, 40, 100):
        mask = with_window(Documents(numbers(lengths), causal=causal), window)
        slots = torch.arange(sum(lengths))
        dense = mask.dense(slots[None], slots)[:, None]
        wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=dense)
        torch.testing.assert_close(attend(q, k, v, mask), wanted, atol=1e-5, rtol=1e-5)


def test_dropped_weights_keep_the_mean_and_follow_the_seed():
    lengths = [16] * 40
    layout = Layout(segments(lengths), torch.device("cpu"))
    q, k, _ = (x.detach() for x in tensors(sum(lengths), 4, 4, 8))
    ones = torch.ones_like(q)

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return ragged_attention(q, k, ones, layout, causal=False, dropout=0.25)

    first = run(0)
    assert torch.equal(first, run(0)) and not torch.equal(first, run(1))
    assert abs(first.mean() - 1.0) < 0.02 and first.std() > 0.05


def crossed(lengths: list[int], reaches: list[int]) -> Layout:
    return Layout(segments(lengths), torch.device("cpu"), segments(reaches))


PAIRS = [([3, 1, 18], [5, 30, 2]), ([24] * 5, [9] * 5), ([40, 7, 7, 1], [1, 64, 3, 3])]


@pytest.mark.parametrize(("lengths", "reaches"), PAIRS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_documents_read_their_own_source(lengths, reaches, groups):
    layout = crossed(lengths, reaches)
    q = tensors(sum(lengths), 4, 4, 8)[0]
    _, k, v = tensors(sum(reaches), 4, groups, 8)
    found = ragged_attention(q, k, v, layout, causal=False)
    parts = zip(q.split(lengths), k.split(reaches), v.split(reaches), strict=True)
    wanted = torch.cat(
        [
            F.scaled_dot_product_attention(
                *(x.transpose(0, 1)[None] for x in part), enable_gqa=True
            )[0].transpose(0, 1)
            for part in parts
        ]
    )
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    gradient = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    got = torch.autograd.grad(found, (q, k, v), gradient)
    for one, other in zip(got, torch.autograd.grad(wanted, (q, k, v), gradient), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dropout", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_gradients_of_relative_places_are_right(causal, dropout, monkeypatch):
    monkeypatch.setattr(ragged, "_OVERHEAD", 0)
    lengths = [3, 1, 18]
    layout = Layout(segments(lengths), torch.device("cpu"))
    assert len(layout.grids) == 2
    inputs = tensors(sum(lengths), 2, 1, 2, torch.float64)
    relative = torch.randn(2, layout.widest, layout.widest, dtype=torch.float64)
    relative.requires_grad_()

    def run(q, k, v, relative):
        torch.manual_seed(5)
        return ragged_attention(
            q, k, v, layout, causal=causal, scale=1.0, dropout=dropout, relative=relative
        )

    assert torch.autograd.gradcheck(run, (*inputs, relative))


def test_grids_of_pairs_waste_little_and_are_few():
    draw = random.Random(1)
    reaches = [min(80, max(4, round(draw.lognormvariate(2.6, 0.5)))) for _ in range(200)]
    lengths = [max(1, round(size * draw.uniform(0.7, 1.3))) for size in reaches]
    layout = crossed(lengths, reaches)
    assert sorted(i for grid in layout.grids for i in grid.documents) == list(range(200))
    assert len(layout.grids) <= 10
    cells = sum(grid.length * grid.reach * len(grid.documents) for grid in layout.grids)
    least = sum(max(16, a) * max(16, b) for a, b in zip(lengths, reaches, strict=True))
    assert cells < 2 * least
