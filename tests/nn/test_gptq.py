"""Four bits that fit: groups of least error, errors spread over inputs, and whole networks."""

import copy

import pytest
import torch
from torch import nn

from bedstone.errors import BedstoneError
from bedstone.models.bert.network import BertConfig
from bedstone.models.bert.network import build as build_bert
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.models.heads import HeadConfig
from bedstone.nn.gptq import RANGES, codes_for_inference, fit, gptq, quantize_for_inference
from bedstone.nn.lora import LoraConfig, adapter_parameters, add_adapter, remove_adapter
from bedstone.nn.quantize import Codes, Quantized, encode
from networks import randomise

SHAPE = {"vocab_size": 160, "width": 64, "layers": 2, "heads": 4, "hidden": 128, "context": 32}


def small(layout: str = "llama", **changes) -> nn.Module:
    network = build(GPTConfig(layout=layout, **{**SHAPE, **changes}))
    randomise(network)
    return network.eval()


def outliers(network: nn.Module) -> nn.Module:
    """With a few inputs of every layer that are far larger than the others, as in trained ones."""
    with torch.no_grad():
        for block in network.stack:
            for part in block.values():
                part.norm.weight[::16] *= 20.0
    return network


def weight(outs: int = 24, ins: int = 128, seed: int = 0) -> torch.Tensor:
    return torch.randn(outs, ins, generator=torch.Generator().manual_seed(seed))


def inputs(rows: int = 400, ins: int = 128) -> torch.Tensor:
    """Rows whose numbers go together, some of them large."""
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(rows, 24, generator=generator) @ torch.randn(24, ins, generator=generator)
    mixed[:, ::10] *= 8.0
    return mixed + 0.1 * torch.randn(rows, ins, generator=generator)


def rounded(w: torch.Tensor, scales: torch.Tensor, lowest: torch.Tensor, group: int):
    grouped = w.unflatten(1, (-1, group))
    scales, lowest = scales.float()[..., None], lowest.float()[..., None]
    return (((grouped - lowest) / scales).round().clamp(0, 15) * scales + lowest).flatten(1)


@pytest.mark.parametrize("group", [32, 64])
def test_groups_have_less_error_than_those_of_their_own_range(group):
    w = weight()
    scales, lowest = fit(w, group)
    assert scales.dtype is lowest.dtype is torch.float16
    assert (scales > 0).all()
    own = (encode(w, 4, group).whole(torch.float32) - w).square().unflatten(1, (-1, group)).sum(-1)
    found = (rounded(w, scales, lowest, group) - w).square().unflatten(1, (-1, group)).sum(-1)
    assert (found <= own * 1.001).all()
    assert found.sum() < 0.93 * own.sum()
    more = fit(w, group, ranges=(*RANGES, 0.6, 0.8))
    again = (rounded(w, *more, group) - w).square().sum()
    assert again <= found.sum() * 1.001


def test_large_inputs_weigh_more():
    w, x = weight(), inputs()
    importance = x.square().mean(0)

    def error(*found):
        return ((rounded(w, *found, 32) - w).square() * importance).sum()

    assert error(*fit(w, 32, importance)) < 0.8 * error(*fit(w, 32))
    assert torch.equal(fit(w, 32, torch.full((128,), 7.0))[0], fit(w, 32)[0])


def test_groups_without_a_range_or_importance():
    w = weight()
    w[0], w[1] = 0.0, 3.0
    w[2, :64] = 1e-30
    for importance in (None, torch.zeros(128)):
        scales, lowest = fit(w, 32, importance)
        assert (scales > 0).all() and lowest.isfinite().all()
        found = rounded(w, scales, lowest, 32)
        assert found.isfinite().all()
        assert (found[0] == 0).all()
        torch.testing.assert_close(found[1], w[1], atol=0.02, rtol=0)


def test_gptq_has_the_least_error_of_outputs():
    w, x = weight(), inputs()
    exact = x @ w.t()
    moments = x.t() @ x

    def error(whole):
        return float((x @ whole.t() - exact).square().mean() / exact.square().mean())

    plain = error(encode(w, 4, 32).whole(torch.float32))
    weighed = error(rounded(w, *fit(w, 32, moments.diagonal()), 32))
    codes = gptq(w, moments, 32)
    assert (codes.bits, codes.group, codes.shape) == (4, 32, (24, 128))
    assert error(codes.whole(torch.float32)) < 0.5 * weighed < 0.5 * plain


def test_gptq_of_inputs_that_are_never_read_and_of_few_rows():
    w, x = weight(), inputs(rows=3)
    x[:, 40:80] = 0.0
    codes = gptq(w, x.t() @ x, 32)
    found = codes.whole(torch.float32)
    assert found.isfinite().all()
    # another text may read them: they are not given up for the others of their groups
    assert (found - w)[:, 40:80].abs().max() < 0.9
    assert (found - w)[:, 40:80].abs().mean() < 0.15
    none = gptq(w, torch.zeros(128, 128), 32)
    assert (none.whole(torch.float32) - w).abs().max() < 0.4


def test_gptq_spreads_errors_in_the_order_of_inputs_given_back():
    """Codes stand where their inputs do, whatever the order they were made in."""
    w = weight()
    diagonal = torch.diag(torch.rand(128, generator=torch.Generator().manual_seed(2)) + 0.5)
    codes = gptq(w, diagonal, 32)  # no input goes with another: nothing is spread
    expected = rounded(w, codes.scales, codes.lowest, 32)
    torch.testing.assert_close(codes.whole(torch.float32), expected)


def ids(rows: int, seed: int) -> torch.Tensor:
    return torch.randint(160, (rows, 24), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_a_network_is_calibrated_block_by_block(layout):
    network = outliers(small(layout))
    test = ids(16, 1)
    with torch.no_grad():
        exact = network(test)

    def off(made):
        with torch.no_grad():
            return float((made(test) - exact).square().mean())

    weighed, made = copy.deepcopy(network), copy.deepcopy(network)
    assert quantize_for_inference(weighed, 4) == []
    feeds = [lambda part=part: made.states(part) for part in ids(64, 2).split(8)]
    done = quantize_for_inference(made, 4, feeds=feeds)
    linears = [n for n, m in network.stack.named_modules() if isinstance(m, nn.Linear)]
    assert sorted(done) == sorted(f"stack.{name}" for name in linears)
    assert {m.bits for m in made.stack.modules() if isinstance(m, Quantized)} == {4}
    assert made.head.bits == 8 and made.head.codes is made.embed.codes
    assert off(made) < 0.8 * off(weighed)


def test_random_words_say_which_inputs_are_large(monkeypatch):
    network = outliers(small())
    test = ids(16, 1)
    with torch.no_grad():
        exact = network(test)
    found = []
    for known in (True, False):
        made = copy.deepcopy(network)
        if not known:
            monkeypatch.setattr("bedstone.nn.gptq._importance", lambda network, names: {})
        quantize_for_inference(made, 4)
        with torch.no_grad():
            found.append(float((made(test) - exact).square().mean()))
    assert found[0] < 0.7 * found[1]


def test_what_drops_out_in_training_draws_no_number_of_the_run():
    network = small(dropout=0.3).train()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    codes_for_inference(network, 4)
    assert torch.equal(torch.rand(4), expected)
    assert network.training
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_an_encoder_is_calibrated_too():
    network = build_bert(BertConfig(layout="bert", head=HeadConfig("language"), **SHAPE))
    randomise(network)
    network.eval()
    feeds = [lambda part=part: network.states(part) for part in ids(16, 2).split(8)]
    done = quantize_for_inference(network, 4, feeds=feeds)
    assert len(done) == 12
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_layers_that_no_input_comes_to_are_fitted_all_the_same():
    network = small()
    assert quantize_for_inference(network, 4, feeds=[lambda: None]) == []
    assert {m.bits for m in network.stack.modules() if isinstance(m, Quantized)} == {4}


def test_inputs_that_are_not_finite_are_an_error():
    network = small()
    with torch.no_grad():
        network.stack[1]["mlp"].norm.weight[3] = float("nan")
    feeds = [lambda: network.states(ids(2, 0))]
    with pytest.raises(BedstoneError, match=r"stack\.1\.mlp\.sublayer\.gate: .* is not finite"):
        quantize_for_inference(network, 4, feeds=feeds)


def test_codes_of_an_odd_shape_are_rows():
    network = small(hidden=40)
    codes = codes_for_inference(network, 4)
    assert isinstance(codes["head"], Codes)
    assert codes["stack.0.mlp.sublayer.down"].bits == 8
    assert codes["stack.0.mlp.sublayer.up"].bits == 4


@pytest.mark.parametrize("tied", [True, False])
def test_a_quantised_head_can_be_adapted_and_not_be_trained_whole(tied):
    network = small(tied=tied)
    quantize_for_inference(network, 8)
    test = ids(2, 0)
    with torch.no_grad():
        before = network(test)
    with pytest.raises(BedstoneError, match=r"lora.train: head is quantised"):
        add_adapter(network, LoraConfig(rank=2, train=("head",)))
    add_adapter(network, LoraConfig(rank=2, targets=("q", "head")), seed=0)
    network(test).square().mean().backward()
    with torch.no_grad():
        torch.testing.assert_close(network(test), before)
        for parameter in adapter_parameters(network).values():
            assert parameter.grad is not None
            parameter.copy_(torch.randn(parameter.shape))
        assert not torch.allclose(network(test), before, atol=0.1)
    remove_adapter(network, "default")
    with torch.no_grad():
        torch.testing.assert_close(network(test), before)
