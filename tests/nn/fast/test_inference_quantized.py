"""Copies for inference whose weights are quantised: which layers, how near, and what is shared."""

import copy

import pytest
import torch
from torch import nn

from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import ready
from bedstone.models.bert.network import BertConfig
from bedstone.models.bert.network import build as build_bert
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.models.heads import HeadConfig
from bedstone.nn.fast.inference import for_inference, inference_bits, inference_dtype
from bedstone.nn.lora import LoraConfig, adapter_parameters, add_adapter
from bedstone.nn.quantize import Quantized, QuantizedEmbedding, QuantizedLinear, quantize
from bedstone.runtime import pick_precision
from networks import randomise


@pytest.fixture(autouse=True)
def by_torch(monkeypatch):
    """Torch's form; the engine's is in test_engine.py."""
    monkeypatch.setenv("BEDSTONE_ENGINE", "off")


IDS = torch.arange(24).view(2, 12)
CPU = torch.device("cpu")


def small(layout: str = "llama", **changes) -> nn.Module:
    shape = {"vocab_size": 160, "width": 64, "layers": 2, "heads": 4, "hidden": 96, "context": 32}
    network = build(GPTConfig(layout=layout, **{**shape, **changes}))
    randomise(network)
    return network.eval()


def encoder(kind: str) -> nn.Module:
    shape = {"vocab_size": 160, "width": 64, "layers": 2, "heads": 4, "hidden": 96, "context": 32}
    labels = ("a", "b", "c") if kind == "sequence" else ()
    network = build_bert(BertConfig(layout="bert", head=HeadConfig(kind, labels), **shape))
    randomise(network)
    return network.eval()


def outputs(network, ids=IDS):
    with torch.no_grad():
        return network(ids).float()


def quantized(network) -> dict[str, int]:
    modules = network.named_modules()
    return {name: module.bits for name, module in modules if isinstance(module, Quantized)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("layout", "tied"), [("llama", True), ("llama", False), ("gpt2", True), ("qwen3", True)]
)
def test_the_whole_of_a_gpt_is_quantised(layout, tied, bits, dtype):
    network = small(layout, tied=tied)
    exact = outputs(network)
    made = for_inference(network, dtype, bits)
    found = quantized(made)
    linears = [n for n, m in network.stack.named_modules() if isinstance(m, nn.Linear)]
    assert {name for name in found if name.startswith("stack.")} == {f"stack.{n}" for n in linears}
    assert {found[f"stack.{name}"] for name in linears} == {bits}
    assert isinstance(made.head, QuantizedLinear)
    assert isinstance(made.embed, QuantizedEmbedding)
    assert (made.head.codes is made.embed.codes) == tied
    assert (outputs(made) - exact).std() < (0.03 if bits == 8 else 0.5) * exact.std()
    assert made.new_cache(1, 4).layers[0].keys.dtype is dtype
    assert (inference_dtype(made), inference_bits(made)) == (dtype, bits)
    for layer in made.modules():
        assert not isinstance(layer, Quantized) or layer.dtype is dtype
    assert not any(p.requires_grad for p in made.parameters())


def test_the_original_stays_as_it_is():
    network = small("gpt2")
    before = copy.deepcopy(network.state_dict())
    for_inference(network, torch.bfloat16, 8)
    assert not quantized(network)
    assert all(p.requires_grad for p in network.parameters())  # biases of quantised layers too
    for name, weight in network.state_dict().items():
        assert weight.dtype is torch.float32 and torch.equal(weight, before[name])


def test_the_head_of_words_and_the_table_of_an_encoder():
    found = quantized(for_inference(encoder("language"), torch.float32, 4))
    assert {found[name] for name in ("embed", "head.dense", "head.out")} == {8}
    labels = quantized(for_inference(encoder("sequence"), torch.float32, 4))
    assert "head.out" not in labels  # three numbers are not worth their rounding
    assert labels["embed"] == 8


def test_weights_are_quantised_before_they_are_cast():
    network = small()
    made = for_inference(network, torch.bfloat16, 8)
    alone = QuantizedLinear(network.stack[0]["mlp"].sublayer.up, 8)
    assert torch.equal(made.stack[0]["mlp"].sublayer.up.codes, alone.codes)
    assert torch.equal(made.stack[0]["mlp"].sublayer.up.scales, alone.scales)


def test_groups_that_divide_no_inputs_are_smaller_or_rows():
    network = small(hidden=40, width=96, heads=3)
    made = for_inference(network, torch.float32, 4)
    mlp = made.stack[0]["mlp"].sublayer
    assert (mlp.up.bits, mlp.up.group) == (4, 32)  # 96 inputs
    assert mlp.down.bits == 8  # 40 inputs
    assert outputs(made).isfinite().all()


def test_codes_that_are_held_are_shared_and_stay():
    network = small()
    quantize(network, bits=4, group=32)
    made = for_inference(network, torch.float32, 8)
    for name, layer in network.named_modules():
        if isinstance(layer, QuantizedLinear):
            twin = made.get_submodule(name)
            assert twin.bits == 4 and twin.codes is layer.codes and twin.scales is layer.scales
            assert layer.dtype is None
    assert quantized(made)["head"] == 8  # what was whole is quantised
    plain = for_inference(network, torch.float32)
    torch.testing.assert_close(outputs(plain), outputs(network), atol=1e-4, rtol=1e-4)
    assert plain.stack[0]["mlp"].sublayer.up.codes is network.stack[0]["mlp"].sublayer.up.codes


def test_an_adapter_is_merged_first():
    network = small()
    add_adapter(network, LoraConfig(rank=4), seed=0)
    with torch.no_grad():
        for parameter in adapter_parameters(network).values():
            parameter.copy_(torch.randn(parameter.shape) * 0.2)
    merged = network.stack[0]["mlp"].sublayer.up.merged()
    made = for_inference(network, torch.float32, 8).stack[0]["mlp"].sublayer.up
    assert ((made.weight - merged).abs() <= 0.501 * merged.abs().amax(1, keepdim=True) / 127).all()


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_precision_is_taken_by_name(name):
    how = pick_precision(name, CPU)
    assert (how.name, how.bits, how.weights) == (name, int(name[3:]), None)
    network = small()
    made = ready(network, how)
    assert inference_bits(made) == how.bits
    assert ready(made, how) is made
    assert ready(made, pick_precision("fp32", CPU)) is not made


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_nothing_learns_in_few_bits(name):
    message = rf"'{name}' is of inference alone.*quantize={name[3:]}"
    with pytest.raises(BedstoneError, match=message):
        pick_precision(name, CPU, learns=True)


def test_weights_that_no_code_stands_for_are_named():
    for value, message in ((float("nan"), "NaN"), (float("inf"), "NaN or inf"), (1e5, "1e\\+05")):
        network = small()
        with torch.no_grad():
            network.stack[1]["mlp"].sublayer.down.weight[3, 5] = value
        with pytest.raises(BedstoneError, match=rf"stack.1.mlp.sublayer.down.weight.*{message}"):
            for_inference(network, torch.float32, 4)


def test_a_copy_on_paper_takes_no_memory():
    with torch.device("meta"):
        network = build(GPTConfig(layout="llama", vocab_size=64, width=64, layers=1, heads=4))
    made = for_inference(network.eval(), torch.float32, 8)
    assert made.head.codes.is_meta


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    "shape", [{"vocab_size": 61, "width": 36, "hidden": 40}, {"vocab_size": 61, "width": 96}]
)
def test_odd_shapes_give_one_row_what_they_give_many(shape, bits, dtype):
    network = small(**{"heads": 3, "head_width": 12, **shape})
    exact = outputs(network)
    made = for_inference(network, dtype, bits)
    together = outputs(made)
    alone = torch.cat([outputs(made, row[None]) for row in IDS])
    assert (together - exact).std() < 0.5 * exact.std()
    torch.testing.assert_close(alone, together, atol=0.1 * float(exact.std()), rtol=0.1)


@pytest.mark.parametrize("bits", [8, 4])
def test_zero_rows_and_outlier_channels(bits):
    network = small()
    with torch.no_grad():
        for block in network.stack:
            mlp = block["mlp"].sublayer
            mlp.up.weight[7] = 0.0
            mlp.up.weight[:, 5] *= 30.0
            block["mlp"].norm.weight[5] /= 30.0
            mlp.down.weight[3] = 0.0
    exact = outputs(network)
    made = for_inference(network, torch.float32, bits)
    up = made.stack[0]["mlp"].sublayer.up
    assert (up.weight[7] == 0).all() and (up.scales > 0).all()
    found = outputs(made)
    assert found.isfinite().all()
    assert (found - exact).std() < (0.1 if bits == 8 else 0.5) * exact.std()


def test_weights_in_other_floats_are_quantised_as_in_fp32():
    network = small()
    expected = for_inference(network, torch.float32, 8).head.codes
    assert torch.equal(for_inference(network.double(), torch.float32, 8).head.codes, expected)
    low = for_inference(network.half(), torch.float32, 8).head
    assert (low.codes.float() - expected.float()).abs().max() <= 1


def test_another_dtype_is_what_weights_are_made_whole_in_and_changes_no_scale():
    network = small()
    layer = network.head = QuantizedLinear(network.head, 4, 32)
    scales, lowest = layer.scales, layer.lowest
    for dtype in (torch.bfloat16, torch.float64, torch.float32):
        network.to(dtype)
        assert layer.scales is scales or torch.equal(layer.scales, scales)
        assert layer.scales.dtype is torch.float16 and torch.equal(layer.lowest, lowest)
        assert layer.weight.dtype is layer.kept is dtype
