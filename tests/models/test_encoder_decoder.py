"""Encoder-decoders: the shared network test, the cache, packed rows, neighbours of a batch."""

import math
from dataclasses import replace

import pytest
import torch

from bedstone.errors import BedstoneError
from bedstone.models.encoder_decoder.config import EncoderDecoderConfig
from bedstone.models.encoder_decoder.network import EncoderDecoder, build
from bedstone.models.interfaces import CausalLM, EncoderDecoderModel, ImageTextModel, TextEncoder
from bedstone.models.published import layout
from bedstone.nn import attention
from bedstone.nn.fast import kernels
from bedstone.nn.fast.inference import for_inference
from bedstone.nn.masks import Causal
from encoder_decoders import CASES, packed, sources, targets
from networks import check_network, randomise


def config(case: str) -> EncoderDecoderConfig:
    values = CASES[case]
    return layout(values["model_type"]).read(values, set())


def network(case: str, seed: int = 0) -> EncoderDecoder:
    made = EncoderDecoder(config(case)).eval()
    randomise(made, seed)
    return made


@pytest.fixture(params=CASES, ids=str)
def case(request) -> str:
    return request.param


def test_network(case):
    shape = config(case)
    # every position, bucket and token takes part
    ids = torch.arange(shape.vocab_size * 2)[: 2 * 40].view(2, 40) % shape.vocab_size
    if case.startswith("bart"):
        pytest.skip("the first rows of its positions are read by nobody; see below")
    after = (torch.arange(2 * 40) % shape.target_vocab_size).view(2, 40)
    check_network(
        EncoderDecoder(shape), lambda made: made(ids, after), (2, 40, shape.target_vocab_size)
    )


@pytest.mark.parametrize("case", ["bart", "bart-untied"])
def test_network_with_an_offset(case):
    made = EncoderDecoder(config(case))
    ids = torch.arange(2 * 40).view(2, 40) % 97
    positions = torch.arange(-2, 38)[None]

    def forward(made):
        memory = made.encoder.states(ids, causal=False, positions=positions)
        return made.head(made.states(ids, memory=memory, positions=positions))

    check_network(made, forward, (2, 40, 97))


def test_with_a_cache_as_without(case):
    made, (ids, keep), after = network(case), sources(), targets()
    with torch.no_grad():
        whole = made(ids, after, keep)
        memory = made.memory(ids, keep)
        cache = made.new_cache(4, 9)
        parts = [made.states(after[:, :4], memory=memory, memory_keep=keep, cache=cache)]
        parts += [made.states(after[:, i : i + 1], cache=cache) for i in range(4, 9)]
        assert (made.head(torch.cat(parts, 1)) - whole).abs().max() < 1e-4
        writer = made.writer(memory, keep)
        cache = writer.new_cache(4, 9)
        parts = [writer.states(after[:, i : i + 3], cache=cache) for i in range(0, 9, 3)]
        assert (writer.head(torch.cat(parts, 1)) - whole).abs().max() < 1e-4


@pytest.mark.skipif(kernels.library() is None, reason=f"no engine here: {kernels.why_not()}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_engine_gives_the_same(case, dtype):
    made, (ids, keep), after = network(case), sources(), targets()
    ready = for_inference(made, dtype)
    with torch.inference_mode():
        expected = made(ids, after, keep)
        writer = ready.writer(ready.memory(ids, keep), keep).over_engine()
        assert writer is not None
        cache = writer.new_cache(4, 9)
        parts = [writer.head(writer.states(after[:, :3], cache=cache))]
        parts += [writer.step(after[:, i], cache)[:, None] for i in range(3, 9)]
    found = torch.cat(parts, 1)
    within = 1e-5 if dtype is torch.float32 else 0.05
    assert (found - expected).norm() < within * expected.norm()


def test_rows_of_other_lengths_in_a_cache(case):
    """Each row's bias and positions are those of its own length."""
    made, (ids, keep), after = network(case), sources(), targets()
    lengths = torch.tensor([3, 1, 4, 2])
    with torch.no_grad():
        whole = made(ids, after, keep)
        writer = made.writer(made.memory(ids, keep), keep)
        cache = writer.new_cache(4, 9)
        writer.states(after[:, :4], cache=cache)
        cache.set_lengths(lengths)
        for step in range(3):
            token = after.gather(1, lengths[:, None] + step)
            found = writer.head(writer.states(token, cache=cache))[:, 0]
            expected = whole[torch.arange(4), lengths + step]
            assert (found - expected).abs().max() < 1e-4


def test_neighbours_change_nothing(case):
    made, (ids, keep), after = network(case), sources(), targets()
    with torch.no_grad():
        together = made(ids, after, keep)
        for row in range(4):
            real = ids[row : row + 1, : int(keep[row].sum())]
            alone = made(real, after[row : row + 1])
            assert (alone - together[row]).abs().max() < 1e-4
        garbage = ids.masked_fill(~keep, 77)
        assert (made(garbage, after, keep) - together).abs().max() < 1e-5


def test_targets_that_share_a_source(case):
    made, (ids, keep), after = network(case), sources(2), targets(6)
    with torch.no_grad():
        shared = made(ids, after, keep)
        apart = made(ids.repeat_interleave(3, 0), after, keep.repeat_interleave(3, 0))
        assert (shared - apart).abs().max() < 1e-4


@pytest.mark.parametrize("way", ["grids", "one by one", "long"])
def test_packed_rows_give_the_same_states_and_gradients(case, way, monkeypatch):
    if way == "long":
        monkeypatch.setattr(attention, "LONGEST", 4)
    made, (ids, keep), after = network(case), sources(5), targets(5)
    lengths = [9, 1, 4, 7, 2]
    before, real = packed(ids, keep.sum(1)), packed(after, lengths)
    learns = way != "one by one"
    with torch.set_grad_enabled(learns):
        found = made.head(made.pair_states(before, real))
        rows = made(ids, after, keep)
    expected = torch.cat([row[:size] for row, size in zip(rows, lengths, strict=True)])
    assert (found - expected).abs().max() < 1e-4
    if not learns:
        return
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    names, parameters = zip(*made.named_parameters(), strict=True)
    got = torch.autograd.grad((found * weights).sum(), parameters)
    want = torch.autograd.grad((expected * weights).sum(), parameters)
    for name, one, other in zip(names, got, want, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-5, name


def test_packed_rows_with_dropout_in_bf16(case):
    made, (ids, keep), after = network(case).train(), sources(5), targets(5)
    before, real = packed(ids, keep.sum(1)), packed(after, [9, 1, 4, 7, 2])
    with torch.autocast("cpu", torch.bfloat16):
        states = made.pair_states(before, real)
    states.float().square().mean().backward()
    assert all(
        weight.grad.isfinite().all() for weight in made.parameters() if weight.grad is not None
    )


def test_a_fresh_network_starts_small_and_learns(case):
    shape = replace(config(case), dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
    made = build(shape, seed=1)
    assert made.config.start_id is not None and not made.config.prefixes
    (ids, keep), after = sources(), targets()
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)

    def loss() -> torch.Tensor:
        logits = made(ids, after[:, :-1], keep)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), after[:, 1:].flatten())

    first = loss().item()
    assert first < 2.0 * math.log(shape.target_vocab_size)
    for _ in range(40):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    assert loss().item() < 0.6 * first
    again = build(shape, seed=1).state_dict()
    assert all(torch.equal(again[name], w) for name, w in build(shape, seed=1).state_dict().items())


def test_what_it_can_do():
    made = network("marian")
    assert isinstance(made, EncoderDecoderModel)
    assert not isinstance(made, ImageTextModel) and not isinstance(made, TextEncoder)
    assert isinstance(made, CausalLM) and not made.causal


def test_what_does_not_fit_is_named():
    made, (ids, _), after = network("marian"), sources(), targets()
    with pytest.raises(BedstoneError, match="memory: was not given"):
        made.states(after)
    with pytest.raises(BedstoneError, match="3 were given for 4 rows"):
        made.states(after, memory=made.memory(ids[:3]))
    with pytest.raises(BedstoneError, match="are 8 wide"):
        made.states(after, memory=torch.zeros(4, 3, 8))
    long = torch.ones(1, 41, dtype=torch.long)
    with pytest.raises(BedstoneError, match="41 tokens; the network's context is 40"):
        made.memory(long)
    with pytest.raises(BedstoneError, match="41 tokens"):
        made.packed_memory(packed(long, [41]))
    t5 = network("t5")  # its positions have no end
    assert t5(long.repeat(1, 3), long.repeat(1, 2)).isfinite().all()


def test_masks_and_positions_of_the_caller(case):
    made, (ids, _), after = network(case), sources(), targets()
    memory = made.memory(ids)
    with torch.no_grad():
        plain = made.states(after, memory=memory)
        given = made.states(
            after, memory=memory, mask=Causal(), positions=torch.arange(9)[None].expand(4, -1)
        )
    assert (plain - given).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layout": "t5", "decoder_heads": 2}, "decoder_heads: 2 was given"),
        ({"layout": "t5", "shared": False}, "model.shared"),
        ({"layout": "mt5", "scaled_output": True}, "model.scaled_output"),
        ({"layout": "marian", "gated": True}, "model.gated"),
        ({"layout": "marian", "norm_eps": 1e-6}, "model.norm_eps"),
        ({"layout": "bart", "shared": False}, "model.shared: False was given; the bart layout"),
        ({"layout": "bart", "heads": 3}, "model.heads: 3 doesn't divide"),
        ({"layout": "marian", "width": 33, "heads": 3}, "odd"),
        ({"layout": "marian", "target_vocab_size": 9}, "one vocabulary"),
        ({"layout": "t5", "buckets": 6}, "multiple of 4"),
        ({"layout": "t5", "gated": True, "activation": "gelu"}, "model.activation: 'gelu'"),
        ({"layout": "t5", "activation": "rely"}, "model.activation: 'rely'"),
        ({"layout": "t5", "pad_id": 8192}, "model.pad_id: 8192"),
        ({"layout": "t6"}, "layout"),
    ],
)
def test_shapes_that_cannot_be(changes, words):
    with pytest.raises(BedstoneError, match=words):
        EncoderDecoderConfig(**changes)
