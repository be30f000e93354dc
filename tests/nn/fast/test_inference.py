"""A network made ready for inference computes the same; packed products are right."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bedstone.models.gpt.network import LAYOUTS, GPTConfig, build
from bedstone.nn.attention import CrossAttention, SelfAttention, attend
from bedstone.nn.blocks import AdaZero, Block, Context, PostNorm, PreNorm, Stack
from bedstone.nn.conditioning import PlainNorm
from bedstone.nn.fast import frozen as packed
from bedstone.nn.fast.frozen import PackedLinear
from bedstone.nn.fast.inference import (
    FusedAdaZero,
    FusedPostNorm,
    JoinedAttention,
    JoinedCross,
    for_inference,
    inference_dtype,
)
from bedstone.nn.layers import MLP, LayerNorm, gelu_tanh
from bedstone.nn.masks import Causal, Documents, Full
from bedstone.nn.positions import GridRotary
from networks import randomise


@pytest.fixture
def plainly(monkeypatch):
    """A processor that has no packed products."""
    monkeypatch.setattr(packed, "_packs", lambda dtype: False)


def small(layout: str, **changes):
    shape = {"vocab_size": 61, "width": 32, "layers": 2, "heads": 4, "hidden": 48, "context": 32}
    network = build(GPTConfig(layout=layout, **{**shape, **changes}))
    randomise(network)
    return network.eval()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_products_are_plain_products(dtype, rows, bias):
    torch.manual_seed(0)
    weight, x = torch.randn(24, 40).to(dtype), torch.randn(rows, 1, 40)
    b = torch.randn(24) if bias else None
    found = PackedLinear(weight, b)(x)
    expected = F.linear(x.to(dtype), weight, None if b is None else b.to(dtype))
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype is torch.float32 else 0.05
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def test_plain_fallback(plainly):
    layer = PackedLinear(torch.eye(3), torch.ones(3))
    assert layer.packed is None
    assert torch.equal(layer(torch.zeros(2, 3)), torch.ones(2, 3))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("packs", [True, False])
def test_fp32_copy_computes_the_same(layout, packs, request):
    if not packs:
        request.getfixturevalue("plainly")
    network = small(layout, kv_heads=2, tied=layout == "qwen3")
    ready = for_inference(network, torch.float32)
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        torch.testing.assert_close(ready(ids), network(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("packs", [True, False])
def test_bf16_copy_is_as_close_as_autocast(layout, packs, request):
    if not packs:
        request.getfixturevalue("plainly")
    network = small(layout)
    ready = for_inference(network, torch.bfloat16)
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        exact, found = network(ids), ready(ids).float()
        with torch.autocast("cpu", torch.bfloat16):
            cast = network(ids).float()
    assert (found - exact).abs().mean() < 1.5 * (cast - exact).abs().mean()


def test_the_original_stays_as_it_is():
    network = small("llama")
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    ready = for_inference(network, torch.bfloat16)
    assert inference_dtype(ready) is torch.bfloat16
    assert inference_dtype(network) is None
    assert isinstance(ready.stack[0]["attn"].sublayer, JoinedAttention)
    for name, weight in network.state_dict().items():
        assert weight.dtype is torch.float32
        assert torch.equal(weight, before[name])
    assert ready.norm.weight.dtype is torch.float32


def test_what_an_adapter_replaced_is_not_joined():
    class Adapter(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x.to(self.weight.dtype)) * 2

    network = small("llama")
    attention = network.stack[0]["attn"].sublayer
    adapter = Adapter(32, 32, bias=False)
    adapter.load_state_dict(attention.q.state_dict())
    attention.q = adapter
    ready = for_inference(network, torch.float32)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(ready(ids), network(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 4, 50])
@pytest.mark.parametrize("ragged", [False, True])
def test_one_query_equals_the_dense_product(window, ragged):
    torch.manual_seed(1)
    q, k, v = torch.randn(2, 6, 1, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    slots = torch.tensor([[8], [5]]) if ragged else torch.tensor([[8]])
    mask = Causal(window)
    dense = mask.dense(slots, torch.arange(9))[:, None]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=dense, enable_gqa=True)
    torch.testing.assert_close(attend(q, k, v, mask, slots=slots), expected)
    full = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    torch.testing.assert_close(attend(q, k, v, Full()), full)


class Encoder(torch.nn.Module):
    """A post-norm encoder of parts, with every dropout on."""

    def __init__(self, activation=F.gelu):
        super().__init__()
        self.embed = torch.nn.Embedding(50, 32)
        self.stack = Stack(
            Block(
                attn=PostNorm(
                    LayerNorm(32), SelfAttention(32, 4, bias=True, out_bias=True, dropout=0.5), 0.5
                ),
                mlp=PostNorm(LayerNorm(32), MLP(32, 96, activation), 0.5),
            )
            for _ in range(3)
        )

    def forward(self, ids, mask):
        return self.stack(self.embed(ids), Context(mask=mask))


@pytest.mark.parametrize("activation", [F.gelu, gelu_tanh, F.relu, torch.tanh])
@pytest.mark.parametrize("packs", [True, False])
def test_an_encoder_made_ready_computes_the_same(activation, packs, request):
    """Nothing drops out, though dropouts are on and the original is in training."""
    if not packs:
        request.getfixturevalue("plainly")
    torch.manual_seed(0)
    network = Encoder(activation).train()
    ids = torch.randint(50, (1, 60))
    numbers = torch.repeat_interleave(torch.arange(4), torch.tensor([5, 20, 3, 32]))[None]
    mask = Documents(numbers, causal=False)
    ready = for_inference(network, torch.float32)
    assert not any(module.training for module in ready.modules())
    assert isinstance(ready.stack[0]["attn"], FusedPostNorm)
    rough = for_inference(network, torch.bfloat16)
    with torch.no_grad():
        found, low = ready(ids, mask), rough(ids, mask)
        exact = network.eval()(ids, mask)
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-5)
    assert low.dtype is torch.float32
    assert F.cosine_similarity(low, exact, dim=-1).min() > 0.9995


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_attention_of_a_copy_projects_keys_and_values_at_once(dtype):
    torch.manual_seed(0)
    cross = CrossAttention(16, 4, kv_heads=2, memory_width=10, bias=True)
    ready = for_inference(nn.ModuleList([cross]), dtype)[0]
    assert isinstance(ready, JoinedCross)
    x, memory = torch.randn(6, 1, 16), torch.randn(3, 5, 10)
    tolerance = 1e-5 if dtype is torch.float32 else 0.03
    with torch.no_grad():
        found = ready(x, Context(memory=memory)).float()
        torch.testing.assert_close(
            found, cross(x, Context(memory=memory)), atol=tolerance, rtol=tolerance
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_places_in_a_grid_are_cast_once_and_others_found(dtype):
    rotary = GridRotary((3, 4), 12, 100.0)
    ready = for_inference(nn.ModuleList([rotary]), dtype)[0]
    for grid in ((3, 4), (2, 5)):
        for found, expected in zip(ready(grid), rotary(grid), strict=True):
            assert found.dtype == dtype
            torch.testing.assert_close(found, expected.to(dtype))


def test_modulated_block_leaves_what_it_is_given():
    torch.manual_seed(0)
    block = AdaZero(8, PlainNorm(8, 1e-6), Block(mlp=PreNorm(LayerNorm(8), MLP(8, 16, gelu_tanh))))
    nn.init.normal_(block.modulation.weight)
    x, context = torch.randn(2, 5, 8), Context(mask=Full(), condition=torch.randn(2, 8))
    kept = x.clone()
    ready = for_inference(nn.ModuleList([block]), torch.float32)[0]
    with torch.no_grad():
        torch.testing.assert_close(ready(x, context), block(x, context), atol=1e-5, rtol=1e-5)
    assert isinstance(ready, FusedAdaZero)
    assert torch.equal(x, kept)  # long skips read it again


def test_a_norm_that_gives_its_input_is_not_written_over():
    block = AdaZero(8, nn.Identity(), MLP(8, 16, gelu_tanh))
    assert type(for_inference(nn.ModuleList([block]), torch.float32)[0]) is AdaZero
