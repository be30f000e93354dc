"""Attention, masks and the cache, against a plain softmax written out."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bedstone.nn.attention import CrossAttention, SelfAttention, attend, cross_attention
from bedstone.nn.blocks import Context
from bedstone.nn.cache import Cache, lazy_zeros
from bedstone.nn.fast import kernels, passes
from bedstone.nn.masks import Both, Causal, Documents, Full, Padding, Prefix, with_window
from bedstone.nn.positions import Rotary


def plain(q, k, v, allowed, scale=None, bias=0.0):
    """softmax(q k^T) v, with `allowed` (B, T, K) bool."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.transpose(-1, -2) * (scale or 1 / math.sqrt(q.shape[-1])) + bias
    return scores.masked_fill(~allowed[:, None], -math.inf).softmax(-1) @ v


def inputs(batch=2, heads=4, groups=2, length=12, keys=None, width=8):
    generator = torch.Generator().manual_seed(0)
    make = lambda h, n: torch.randn(batch, h, n, width, generator=generator)  # noqa: E731
    return make(heads, length), make(groups, keys or length), make(groups, keys or length)


NUMBERS = torch.tensor([[0] * 5 + [1] * 7, [0] * 1 + [1] * 2 + [2] * 9])
KEEP = torch.tensor([[True] * 12, [True] * 7 + [False] * 5])
I = torch.arange(12)  # noqa: E741
CAUSAL = (I[:, None] >= I)[None].expand(2, 12, 12)
SAME = NUMBERS[:, :, None] == NUMBERS[:, None]
CASES = {
    "full": (Full(), torch.ones(2, 12, 12, dtype=torch.bool)),
    "causal": (Causal(), CAUSAL),
    "window": (Causal(4), CAUSAL & (I[:, None] - I < 4)),
    "wide window": (Causal(50), CAUSAL),
    "prefix": (Prefix(torch.tensor([3, 6])), CAUSAL | (torch.tensor([3, 6])[:, None, None] > I)),
    "padding": (Padding(KEEP), KEEP[:, None].expand(2, 12, 12)),
    "documents": (Documents(NUMBERS), SAME & CAUSAL),
    "documents, full": (Documents(NUMBERS, causal=False), SAME),
    "documents, window": (Documents(NUMBERS, window=3), SAME & CAUSAL & (I[:, None] - I < 3)),
    "both": (Both(Causal(), Padding(KEEP)), CAUSAL & KEEP[:, None]),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("threshold", [0, 10**9])  # documents one by one, and dense
def test_attend_is_plain_attention(name, threshold, monkeypatch):
    monkeypatch.setattr("bedstone.nn.attention.SEGMENT_TOKENS", threshold)
    mask, allowed = CASES[name]
    q, k, v = (x.requires_grad_() for x in inputs())
    out = attend(q, k, v, mask)
    expected = plain(q, k, v, allowed)
    assert torch.allclose(out, expected, atol=1e-5)
    gradients = torch.autograd.grad(out.square().sum(), (q, k, v))
    wanted = torch.autograd.grad(expected.square().sum(), (q, k, v))
    for got, want in zip(gradients, wanted, strict=True):
        assert torch.allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_attend_with_bias(name):
    mask, allowed = CASES[name]
    q, k, v = inputs()
    bias = torch.randn(1, 4, 12, 12)
    out = attend(q, k, v, mask, bias=bias, scale=0.3)
    assert torch.allclose(out, plain(q, k, v, allowed, 0.3, bias), atol=1e-5)


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=8),
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(1, 9)),
)
@settings(max_examples=40, deadline=None)
def test_documents_of_any_lengths(lengths, rows, window):
    total = sum(lengths)
    numbers = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    numbers = torch.stack([numbers.roll(0)] * rows)
    mask = with_window(Documents(numbers), window)
    assert mask.segments[0][0] == 0
    assert mask.segments[-1][1] == rows * total
    assert len(mask.segments) == rows * len(lengths)
    q, k, v = inputs(batch=rows, length=total)
    slots = torch.arange(total)
    dense = mask.dense(slots[None].expand(rows, -1), slots)
    assert torch.allclose(attend(q, k, v, mask), plain(q, k, v, dense), atol=1e-5)


def test_window_of_one_sees_only_itself():
    q, k, v = inputs(groups=4)
    assert torch.allclose(attend(q, k, v, Causal(1)), v, atol=1e-6)


@pytest.mark.parametrize("window", range(1, 9))
@pytest.mark.parametrize("causal", [True, False])
def test_a_window_about_as_long_as_the_longest_document(window, causal):
    lengths = [4, 6, 2]
    numbers = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    q, k, v = (x.requires_grad_() for x in inputs(batch=1))
    out = attend(q, k, v, Documents(numbers, causal=causal, window=window))
    allowed = (SAME_THREE & CAUSAL[:1]) & (I[:, None] - I < window)
    assert torch.allclose(out, plain(q, k, v, allowed), atol=1e-5)


SAME_THREE = torch.block_diag(*(torch.ones(n, n) for n in (4, 6, 2))).bool()[None]


@pytest.mark.parametrize("window", [1, 10, 11, 12, 13])
def test_a_window_about_as_long_as_the_sequence(window):
    q, k, v = inputs()
    allowed = CAUSAL & (I[:, None] - I < window)
    assert torch.allclose(attend(q, k, v, Causal(window)), plain(q, k, v, allowed), atol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 3, 8, 9])
@pytest.mark.parametrize("scale", [None, 0.1])
def test_one_query_is_plain_attention(window, scale):
    q, k, v = inputs(length=1, keys=9)
    seen = torch.ones(2, 1, 9, dtype=torch.bool)
    if window is not None:
        seen[:, :, : 9 - window] = False
    out = attend(q, k, v, Causal(window), slots=torch.tensor([[8]]), scale=scale)
    assert torch.allclose(out, plain(q, k, v, seen, scale), atol=1e-5)


def test_the_narrower_of_two_windows_holds():
    for wide, narrow in ((None, 3), (5, 3), (3, 3)):
        assert Causal(wide).narrow(narrow) == Causal(3) == Causal(narrow).narrow(wide)
        numbers = torch.zeros(1, 7, dtype=torch.int32)
        assert Documents(numbers, window=wide).narrow(narrow).window == 3
        assert Documents(numbers, window=narrow).narrow(wide).window == 3
    slots = torch.arange(7)
    both = Both(Causal(), Padding(torch.ones(1, 7, dtype=torch.bool))).narrow(2)
    assert torch.equal(both.dense(slots[None], slots), Causal(2).dense(slots[None], slots))


@pytest.mark.parametrize("cross", [False, True])
def test_attention_weights_are_dropped_in_training_alone(cross):
    torch.manual_seed(0)
    make = CrossAttention if cross else SelfAttention
    layer, exact = make(16, 4, dropout=0.5), make(16, 4)
    exact.load_state_dict(layer.state_dict())
    x, context = torch.randn(2, 9, 16), Context(memory=torch.randn(2, 5, 16))
    assert not torch.allclose(layer(x, context), exact(x, context), atol=1e-3)
    assert torch.equal(layer.eval()(x, context), exact.eval()(x, context))


def test_queries_and_keys_are_both_turned():
    """Scores depend on how far apart tokens are, wherever the sequence stands."""
    layer, rotary = SelfAttention(16, 4).eval(), Rotary.plain(4, 10.0)
    x = torch.randn(1, 6, 16)
    at = torch.arange(6)[None]
    here, there, spread = (
        layer(x, Context(rotation=rotary(positions))) for positions in (at, at + 5, 2 * at)
    )
    assert torch.allclose(here, there, atol=1e-5)
    assert not torch.allclose(here, spread, atol=1e-3)


def run_steps(layer, x, sizes, cache):
    out = []
    for part in x.split(sizes, 1):
        out.append(layer(part, Context(cache=cache.layers[0])))
        cache.advance(part.shape[1])
    return torch.cat(out, 1)


def test_cached_steps_equal_the_full_pass():
    layer = SelfAttention(16, 4, kv_heads=2).eval()
    x = torch.randn(3, 10, 16)
    cache = Cache(1, 3, 2, 10, 4, dtype=torch.float32, device=torch.device("cpu"))
    full = layer(x, Context())
    assert torch.allclose(run_steps(layer, x, [4, 1, 3, 2], cache), full, atol=1e-6)


def test_ragged_rows_equal_each_alone():
    layer = SelfAttention(16, 4).eval()
    lengths = torch.tensor([6, 2, 4])
    prompt, tail = torch.randn(3, 6, 16), torch.randn(3, 3, 16)
    cache = Cache(1, 3, 4, 9, 4, dtype=torch.float32, device=torch.device("cpu"))
    run_steps(layer, prompt, [6], cache)
    cache.set_lengths(lengths)
    got = run_steps(layer, tail, [1, 1, 1], cache)
    for row, length in enumerate(lengths):
        alone = torch.cat((prompt[row, :length], tail[row]))[None]
        want = layer(alone, Context())[0, length:]
        assert torch.allclose(got[row], want, atol=1e-6)


def test_rows_of_a_cache_can_be_kept_and_repeated():
    layer = SelfAttention(16, 4).eval()
    x, more = torch.randn(3, 5, 16), torch.randn(2, 2, 16)
    cache = Cache(1, 3, 4, 8, 4, dtype=torch.float32, device=torch.device("cpu"))
    run_steps(layer, x, [5], cache)
    cache.keep(torch.tensor([2, 2]))
    got = run_steps(layer, more, [2], cache)
    want = layer(torch.cat((x[[2, 2]], more), 1), Context())[:, 5:]
    assert torch.allclose(got, want, atol=1e-6)


def test_cross_attention_projects_its_memory_once(monkeypatch):
    layer = CrossAttention(16, 4, memory_width=10)
    memory, x = torch.randn(2, 7, 10), torch.randn(2, 3, 16)
    keep = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    context = Context(memory=memory, memory_mask=Padding(keep))
    full = layer(x, context)
    alone = layer(x[1:], Context(memory=memory[1:, :4]))
    assert torch.allclose(full[1:], alone, atol=1e-6)

    calls = []
    forward = layer.k.forward
    monkeypatch.setattr(layer.k, "forward", lambda y: calls.append(1) or forward(y))
    cache = Cache(1, 2, 4, 4, 4, dtype=torch.float32, device=torch.device("cpu"))
    for _ in range(3):
        cached = layer(x, Context(memory=memory, memory_mask=Padding(keep), cache=cache.layers[0]))
    assert torch.equal(cached, full)
    assert len(calls) == 1


def test_cross_attention_without_memory_says_so():
    with pytest.raises(ValueError, match=r"context\.memory"):
        CrossAttention(16, 4)(torch.randn(1, 2, 16), Context())


def test_rows_that_share_a_memory_read_it_as_if_each_had_its_own() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(16, 4, memory_width=10, bias=True)
    memory, x = torch.randn(3, 5, 10), torch.randn(6, 7, 16)
    own = layer(x, Context(memory=memory.repeat_interleave(2, 0)))
    torch.testing.assert_close(layer(x, Context(memory=memory)), own)


def test_rows_that_leave_keep_the_memory_they_shared() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(16, 4)
    memory, x = torch.randn(2, 5, 16), torch.randn(4, 1, 16)
    cache = Cache(1, 4, 4, 3, 4, dtype=torch.float32, device=torch.device("cpu"))
    context = Context(memory=memory, cache=cache).for_layer(0)
    whole = layer(x, context)
    cache.branch(torch.tensor([1, 0, 2, 3]))  # within what shares a memory: it stays as it is
    torch.testing.assert_close(layer(x, context), whole)
    staying = torch.tensor([1, 2, 3])
    cache.keep(staying)
    torch.testing.assert_close(layer(x[staying], context), whole[staying])
    cache.keep(torch.tensor([2, 0]))
    torch.testing.assert_close(layer(x[[3, 1]], context), whole[[3, 1]])


def test_beams_that_leave_together_go_on_sharing_a_memory() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(16, 4)
    memory, x = torch.randn(3, 5, 16), torch.randn(6, 1, 16)
    cache = Cache(1, 3, 4, 3, 4, dtype=torch.float32, device=torch.device("cpu"))
    context = Context(memory=memory, cache=cache).for_layer(0)
    layer(x[::2], context)
    fork = cache.fork(torch.tensor([0, 0, 1, 1, 2, 2]))
    assert len(cache.layers[0].keys) == 3
    whole = layer(x, Context(cache=fork).for_layer(0))
    fork.keep(torch.tensor([5, 4, 1, 1]))  # beams of the third and the first prompt
    assert len(fork.layers[0].memory[0]) == 2
    found = layer(x[[5, 4, 1, 1]], Context(cache=fork).for_layer(0))
    torch.testing.assert_close(found, whole[[5, 4, 1, 1]])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("engine", [True, False])
def test_rows_that_move_hold_what_whole_copies_would(seed, engine, monkeypatch) -> None:
    """Only slots that differ are written; rows move, leave, grow, are read on and rewound."""
    torch.manual_seed(seed)
    cache = Cache(2, 3, 2, 30, 4, dtype=torch.float32, device=torch.device("cpu"))
    want = [[] for _ in range(3)]  # of each row, the numbers that it holds
    written = 0

    def write(new: int) -> None:
        nonlocal written
        for row in want:
            row += range(written, written + new)
            written += new
        numbers = torch.tensor([row[-new:] for row in want]).float()[:, None, :, None]
        for layer in cache.layers:
            layer.append(numbers.expand(-1, 2, -1, 4), -numbers.expand(-1, 2, -1, 4))
        cache.advance(new)

    def check() -> None:
        for place, row in enumerate(want):
            for layer in cache.layers:
                for held, sign in ((layer.keys, 1), (layer.values, -1)):
                    found = held[place, :, : len(row)]
                    assert torch.equal(found, sign * torch.tensor(row)[:, None].expand_as(found))

    write(4)
    cache.set_lengths(torch.tensor([4, 2, 3]))
    want = [row[:length] for row, length in zip(want, (4, 2, 3), strict=True)]
    rows = torch.arange(3).repeat_interleave(3)
    cache.branch(rows)
    want = [list(want[row]) for row in rows.tolist()]
    moved = []
    copy = torch.Tensor.index_copy_
    monkeypatch.setattr(
        torch.Tensor, "index_copy_", lambda *args: moved.append(len(args[2])) or copy(*args)
    )
    if not engine:
        monkeypatch.setattr(passes, "usable", lambda x: False)
    elif kernels.library() is None:
        pytest.skip(kernels.why_not())
    move = passes.move_blocks
    monkeypatch.setattr(
        passes, "move_blocks", lambda *args: moved.append(len(args[2])) or move(*args)
    )
    for step in range(12):
        write(1)
        check()
        prompts = len(want) // 3
        rows = torch.arange(prompts).repeat_interleave(3) * 3 + torch.randint(3, (3 * prompts,))
        if step == 5:
            cache.keep(rows[3:])
            rows = rows[3:]
        elif step == 8:
            lengths = torch.tensor([len(row) - 2 for row in want])
            cache.rewind(lengths)
            want = [row[:-2] for row in want]
            write(1)
            cache.branch(rows)
        else:
            cache.branch(rows)
        want = [list(want[row]) for row in rows.tolist()]
        check()
    assert moved[4 * 4] < 2 * 9 * 4  # of 9 rows in 2 heads, not all that they hold


def test_beams_change_places_and_a_fork_leaves_the_cache_alone() -> None:
    layer = SelfAttention(16, 4).eval()
    prompt, more = torch.randn(3, 4, 16), torch.randn(3, 2, 16)
    rows = torch.tensor([1, 0, 1])
    lengths = torch.tensor([4, 2, 3])
    cache = Cache(1, 3, 4, 8, 4, dtype=torch.float32, device=torch.device("cpu"))
    run_steps(layer, prompt, [4], cache)
    cache.set_lengths(lengths)
    fork = cache.fork(rows)
    found = [run_steps(layer, more, [1, 1], fork)]
    before = cache.layers[0].keys
    cache.branch(rows)
    assert cache.layers[0].keys is before  # as many rows: no new memory
    found.append(run_steps(layer, more, [1, 1], cache))
    for row, source in enumerate(rows.tolist()):
        alone = torch.cat((prompt[source, : lengths[source]], more[row]))[None]
        want = layer(alone, Context())[0, lengths[source] :]
        for each in found:
            assert torch.allclose(each[row], want, atol=1e-6)


def test_weights_are_those_that_the_network_used():
    """Mixing the memory's values by them gives what the module gives; shared and masked too."""
    torch.manual_seed(0)
    attention = CrossAttention(12, 3, memory_width=10, kv_heads=1, head_width=4)
    memory, x = torch.randn(2, 7, 10), torch.randn(6, 5, 12)  # three rows a memory
    keep = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    for context in (Context(memory=memory), Context(memory=memory, memory_mask=Padding(keep))):
        given = {}
        found = cross_attention(attention, lambda c=context, g=given: g.update(out=attention(x, c)))
        assert found.shape == (1, 6, 3, 5, 7)
        v = attention.v(memory).repeat_interleave(3, 0)[:, None]  # (6, 1, 7, 4)
        mixed = (found[0] @ v).transpose(1, 2).flatten(2)
        torch.testing.assert_close(attention.out(mixed), given["out"], atol=1e-5, rtol=1e-5)
    assert not found[0, 3:, ..., 4:].any()  # what the second memory hides is not seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("shape", [(3, 5), (2, 700, 1000)])
def test_zeros_of_a_cache(dtype, shape):
    found = lazy_zeros(shape, dtype, torch.device("cpu"))
    assert (found.shape, found.dtype) == (torch.Size(shape), dtype)
    assert not found.any()
    assert found.is_contiguous()
    assert found.data_ptr() % 64 == 0
    found[-1, -1] = 1
    assert found.count_nonzero() == found[-1, -1].numel()


# In a process of its own: another test may have let trainings keep what the heap was given.
TAKES = """
import resource, torch
from pathlib import Path
from bedstone.nn.cache import Cache
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
before = resident()
cache = Cache(2, 8, 8, 8192, 32, dtype=torch.float32, device=torch.device("cpu"))  # of 256 MiB
assert resident() - before < 64 << 20
cache.layers[0].keys.fill_(1)
assert resident() - before >= 64 << 20
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_a_cache_takes_memory_as_it_is_used():
    subprocess.run([sys.executable, "-c", TAKES], check=True)
