"""Precision and backend are picked by measuring the network at hand."""

import pytest
import torch
from torch import nn

from bedstone import measured
from bedstone.generation.autoregress import ready
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.nn.fast import kernels, pick
from bedstone.nn.fast.decoder import Decoder
from bedstone.nn.fast.inference import for_inference, inference_dtype
from bedstone.nn.gptq import quantize_for_inference
from bedstone.nn.quantize import QuantizedLinear
from bedstone.runtime import Precision, pick_precision

CPU = torch.device("cpu")
AUTO, INT8 = pick_precision("auto", CPU), pick_precision("int8", CPU)
needs_engine = pytest.mark.skipif(kernels.library() is None, reason="there is no engine here")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Nothing is known; networks of a few thousand weights are measured."""
    monkeypatch.setenv("BEDSTONE_CACHE", str(tmp_path))
    monkeypatch.setattr(measured, "_known", {})
    monkeypatch.setattr(pick, "SMALL", 1000)
    monkeypatch.setattr(pick, "PART", 70_000)


def gpt(**changes):
    shape = {"layout": "llama", "vocab_size": 3000, "width": 64, "layers": 4, "heads": 4}
    return build(GPTConfig(context=64, **shape | changes), seed=0).eval()


@pytest.fixture
def says(monkeypatch):
    """Makes one of the ways the fastest."""

    def of(best):
        def found(question, ways, **_):
            for call in ways.values():
                call()
            seconds = dict.fromkeys(ways, 2.0) | {best: 1.0}
            return measured.Measured(best, seconds)

        monkeypatch.setattr(pick, "fastest", found)

    return of


@needs_engine
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_a_decoder_is_measured_in_each_way_and_once(bits):
    network, how = gpt(), Precision(CPU, torch.float32, bits, auto=True)
    before = {name: weight.clone() for name, weight in network.named_parameters()}
    first, second = pick.pick(network, how), pick.pick(gpt(), how)
    ways = {"engine fp32", "engine bf16", "torch fp32", "torch bf16"}
    assert set(first.seconds) == (
        ways if bits is None else {f"engine int{bits}", f"torch int{bits}"}
    )
    assert not first.kept and second.kept and second.seconds == first.seconds
    assert "2 of 4 blocks" in first.what and not first.precision.auto
    assert len(network.stack) == 4 and network.embed.num_embeddings == 3000
    assert all(torch.equal(weight, before[name]) for name, weight in network.named_parameters())
    assert not pick.pick(gpt(width=128), how).kept  # another shape


@needs_engine
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_what_was_fastest_is_used(says, layout, tied):
    network = gpt(layout=layout, tied=tied or layout == "gpt2")
    says("torch fp32")
    made = ready(network, Precision(CPU, torch.bfloat16, auto=True))
    assert not isinstance(made, Decoder) and inference_dtype(made) is torch.float32
    assert ready(made, AUTO) is made
    says("engine fp32")
    made = ready(network, Precision(CPU, torch.bfloat16, auto=True))
    assert isinstance(made, Decoder) and made.cache_kind == 0


@needs_engine
def test_codes_are_measured_as_they_are():
    network = gpt()
    quantize_for_inference(network, 8)
    found = pick.pick(network, AUTO)
    assert set(found.seconds) == {"engine fp32", "engine bf16", "torch fp32", "torch bf16"}
    assert type(network.head) is QuantizedLinear and len(network.head.held) == 3000
    assert not pick.pick(gpt(), AUTO).kept  # plain weights are another matter


def test_a_precision_that_is_given_is_taken(says):
    says("nothing")
    found = pick.pick(gpt(), pick_precision("fp32", CPU))
    assert found.precision == Precision(CPU, torch.float32) and not found.seconds
    assert "given" in found.what


def test_without_the_engine_torch_alone_is_measured(monkeypatch):
    monkeypatch.setenv("BEDSTONE_ENGINE", "off")
    found = pick.pick(gpt(), AUTO)
    assert set(found.seconds) == {"torch fp32", "torch bf16"} and found.backend == "torch"
    assert pick.pick(gpt(), INT8).backend == "torch"


@needs_engine
def test_what_the_engine_cannot_do_torch_does(monkeypatch):
    network = gpt()
    network.stack[3]["mlp"].sublayer.activation = torch.sin
    found = pick.pick(network, AUTO)  # of its first blocks, all is possible
    monkeypatch.setattr(pick, "PART", 1 << 30)
    whole = pick.pick(network, AUTO)
    assert "4 of 4 blocks" in whole.what and not whole.kept
    assert not isinstance(ready(network, found.precision), Decoder)


def test_other_networks_are_picked_by_their_largest_layer(says, monkeypatch):
    network = nn.Sequential(nn.Linear(512, 384), nn.ReLU(), nn.Linear(384, 64))
    shapes = []

    def products(ins, outs):
        shapes.append((ins, outs))
        return measured.Measured("fp32", {"fp32": 1.0, "bf16": 2.0})

    monkeypatch.setattr(pick, "products", products)
    how = Precision(CPU, torch.bfloat16, auto=True)
    assert pick.settled(network, how) == Precision(CPU, torch.float32)
    assert inference_dtype(pick.prepared(network, how)) is torch.float32
    assert shapes == [(512, 384)] * 2
    small = nn.Sequential(nn.Linear(8, 8))
    assert pick.settled(small, how) == Precision(CPU, torch.bfloat16) and len(shapes) == 2


def test_a_network_that_is_ready_is_not_measured_again():
    made = for_inference(gpt(), torch.float32, 8)
    how = Precision(CPU, torch.bfloat16, 8, auto=True)
    assert pick.pick(made, how).precision == Precision(CPU, torch.float32, 8)
    assert ready(made, how) is made
