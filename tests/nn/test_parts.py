"""Positions, rotary scalings, norms, residual wrappers and stacks."""

import math

import pytest
import torch
from torch import nn

from bedstone.errors import BedstoneError
from bedstone.nn.attention import CrossAttention, SelfAttention
from bedstone.nn.blocks import AdaZero, Block, Context, Gated, PostNorm, PreNorm, Stack
from bedstone.nn.layers import ACTIVATIONS, MLP, GatedMLP, LayerNorm, RMSNorm
from bedstone.nn.masks import Full
from bedstone.nn.positions import (
    SCALINGS,
    RelativeBias,
    Rotary,
    SinusoidalPositions,
    rotate,
    scaled_frequencies,
)

SCALING_CASES = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 3.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 16.0},
    "longrope": {
        "short_factor": [1.0 + i / 8 for i in range(8)],
        "long_factor": [2.0 + i for i in range(8)],
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


def small_llama(parameters):
    """Llama's configuration in transformers with heads of 16 and a scaling of its positions."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        head_dim=16,
        max_position_embeddings=64,
        rope_parameters={"rope_theta": 5000.0, **parameters},
    )


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("length", [20, 100])
def test_rotary_scalings_are_the_published_ones(kind, length):
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    parameters = {"rope_type": kind, **SCALING_CASES[kind]}
    config = small_llama(parameters)
    positions = torch.arange(length)[None]
    theirs = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    ours = Rotary(scaled_frequencies(16, 5000.0, parameters, 64))(positions)
    for got, want in zip(ours, theirs, strict=True):
        assert torch.allclose(got[:, 0], want, atol=1e-5)


YARN = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    "more",
    [
        {"mscale": 0.7, "mscale_all_dim": 1.3},
        {"mscale": 1.0, "mscale_all_dim": 1.0},
        {"attention_factor": 1.7},
        {"truncate": False, "beta_fast": 4.0, "beta_slow": 1.5},
        {"beta_fast": 4.0, "beta_slow": 1.5},
    ],
    ids=str,
)
def test_more_of_yarns_numbers_are_the_published_ones(more):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {**YARN, **more}
    config = small_llama(parameters)
    inverse, attention = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    at = torch.arange(3)[None]
    found, factor = scaled_frequencies(16, 5000.0, parameters, 64).at(at, at)
    assert factor == pytest.approx(attention)
    torch.testing.assert_close(found, inverse)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_change_just_past_the_trained_length(kind):
    parameters = {"rope_type": kind, **SCALING_CASES[kind]}
    trained = parameters.get("original_max_position_embeddings", 64)
    rotary = Rotary(scaled_frequencies(16, 5000.0, parameters, 64))
    short, edge, past = (rotary(torch.arange(n)[None])[0] for n in (5, trained, trained + 1))
    assert torch.equal(edge[:, :, :5], short)
    assert not torch.allclose(past[:, :, :5], short, atol=1e-6)


def test_rotation_keeps_lengths_and_depends_on_distance_alone():
    rotary = Rotary.plain(16)
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(i, j):
        turned = [rotate(x, rotary(torch.tensor([[at]]))) for x, at in ((q, i), (k, j))]
        assert torch.allclose(turned[0].norm(), q.norm(), atol=1e-5)
        return (turned[0] * turned[1]).sum()

    assert torch.allclose(score(7, 3), score(104, 100), atol=1e-4)
    assert not torch.allclose(score(7, 3), score(7, 4), atol=1e-4)


def test_sinusoidal_positions_are_the_papers():
    got = SinusoidalPositions(8)(torch.arange(5)[None])[0]
    for at in range(5):
        for i in range(4):
            angle = at / 10_000 ** (2 * i / 8)
            assert got[at, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert got[at, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
    halves = SinusoidalPositions(8, interleaved=False)(torch.arange(5)[None])[0]
    assert torch.equal(torch.cat((got[:, 0::2], got[:, 1::2]), 1), halves)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_bias_is_t5s(bidirectional):
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    config = T5Config(d_model=16, d_kv=4, num_heads=4, is_decoder=not bidirectional)
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    ours = RelativeBias(4, bidirectional=bidirectional)
    with torch.no_grad():
        ours.weight.copy_(theirs.relative_attention_bias.weight.normal_())
    slots = torch.arange(300)
    assert torch.allclose(ours(slots, slots), theirs.compute_bias(300, 300), atol=1e-6)


def test_norms_by_their_formulas():
    x = torch.randn(2, 3, 8) * 5 + 1
    rms = RMSNorm(8, 1e-5)
    with torch.no_grad():
        rms.weight.normal_()
    want = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * rms.weight
    assert torch.allclose(rms(x), want, atol=1e-5)
    assert rms(x.bfloat16()).dtype is torch.bfloat16
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    assert torch.allclose(LayerNorm(8)(x), (x - mean) / (variance + 1e-5).sqrt(), atol=1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_the_published_ones(name):
    from transformers.activations import ACT2FN

    x = torch.linspace(-6, 6, 101)
    torch.testing.assert_close(ACTIVATIONS[name](x), ACT2FN[name](x), rtol=1e-5, atol=1e-6)


def test_feed_forward_layers_by_their_formulas():
    x = torch.randn(2, 3, 8)
    plain, gated = MLP(8, 12, torch.tanh), GatedMLP(8, 12)
    up = x @ plain.up.weight.T + plain.up.bias
    want = torch.tanh(up) @ plain.down.weight.T + plain.down.bias
    torch.testing.assert_close(plain(x), want)
    gate, up = x @ gated.gate.weight.T, x @ gated.up.weight.T
    want = (gate * torch.sigmoid(gate) * up) @ gated.down.weight.T
    torch.testing.assert_close(gated(x), want)


def block_of(kind: str) -> Block:
    attn, mlp = SelfAttention(16, 2), MLP(16, 32)
    if kind == "PostNorm":
        return Block(attn=PostNorm(LayerNorm(16), attn), mlp=PostNorm(LayerNorm(16), mlp))
    if kind == "AdaZero":
        plain = nn.LayerNorm(16, elementwise_affine=False)
        return Block(attn=AdaZero(16, plain, attn), mlp=AdaZero(16, plain, mlp))
    blocks = {"attn": PreNorm(RMSNorm(16), attn), "mlp": PreNorm(RMSNorm(16), GatedMLP(16, 24))}
    if kind == "Gated":
        cross = Gated(RMSNorm(16), CrossAttention(16, 2, memory_width=10))
        return Block(attn=blocks["attn"], cross=cross, mlp=blocks["mlp"])
    return Block(**blocks)


def context() -> Context:
    return Context(mask=Full(), memory=torch.randn(2, 4, 10), condition=torch.randn(2, 16))


@pytest.mark.parametrize("kind", ["PreNorm", "PostNorm", "Gated", "AdaZero"])
def test_gradients_reach_every_parameter_of_a_block(kind):
    stack = Stack([block_of(kind), block_of(kind)])
    for parameter in stack.parameters():
        nn.init.normal_(parameter, std=0.3)
    out = stack(torch.randn(2, 5, 16), context())
    assert out.shape == (2, 5, 16)
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in stack.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0, name


def test_gated_and_adazero_start_as_the_identity():
    x = torch.randn(2, 5, 16)
    gated = block_of("Gated")["cross"]
    assert torch.equal(gated(x, context()), x)
    assert torch.equal(block_of("AdaZero")(x, context()), x)


def test_a_gpt_block_loads_into_a_fused_one_with_only_cross_new():
    missing, unexpected = block_of("Gated").load_state_dict(
        block_of("PreNorm").state_dict(), strict=False
    )
    assert not unexpected
    assert all(name.startswith("cross.") for name in missing)


def test_adazero_without_condition_says_so():
    with pytest.raises(ValueError, match=r"context\.condition"):
        block_of("AdaZero")(torch.randn(2, 5, 16), Context())


def test_unknown_scaling_names_the_nearest():
    with pytest.raises(BedstoneError, match="perhaps 'yarn'"):
        scaled_frequencies(16, 1e4, {"rope_type": "yarm"}, 64)
