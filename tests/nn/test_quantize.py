"""Quantised weights: how far off they are, what they compute, and adapters over them."""

import copy
import platform

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bedstone.checkpoints.model import Model, load
from bedstone.errors import BedstoneError
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.nn import quantize as module
from bedstone.nn.fast.inference import for_inference
from bedstone.nn.lora import (
    LoraConfig,
    adapter_parameters,
    add_adapter,
    fold,
    merge,
    remove_adapter,
    use_adapter,
)
from bedstone.nn.quantize import Codes, QuantizedLinear, encode, quantize
from networks import randomise

IDS = torch.arange(24).view(2, 12)
KINDS = [(8, 64), (4, 32), (4, 64)]


def linear(outs: int, ins: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(outs + ins)
    return nn.Linear(ins, outs, bias=bias)


def small(layout: str = "llama") -> nn.Module:
    shape = {"vocab_size": 61, "width": 64, "layers": 2, "heads": 4, "hidden": 128, "context": 32}
    network = build(GPTConfig(layout=layout, **shape))
    randomise(network)
    return network.eval()


def outputs(network):
    with torch.no_grad():
        return network(IDS)


@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_no_weight_is_off_by_more_than_half_a_step(bits, group):
    plain = linear(150, 128)  # more rows than are made whole at once
    layer = QuantizedLinear(plain, bits, group)
    weight = plain.weight.detach()
    error = (layer.whole(torch.float32) - weight).abs()
    if bits == 8:
        step = weight.abs().amax(1, keepdim=True) / 127
    else:
        grouped = weight.unflatten(1, (-1, group))
        step = (grouped.amax(-1) - grouped.amin(-1)) / 15
        step = step.repeat_interleave(group, 1)
    # Half a step, and what rounding the step of four bits to fp16 may add at the far end.
    assert (error <= step * (0.5 + (1e-4 if bits == 8 else 15 * 2**-11))).all()
    assert (error <= 0.501 * step).float().mean() > 0.99
    assert error.mean() < 0.26 * step.mean()
    held = sum(buffer.nbytes for buffer in layer.buffers())
    assert held <= weight.numel() * (bits / 8 + (4 / 128 if bits == 8 else 4 / group))


@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_extremes_are_kept(bits, group):
    plain = linear(4, 64)
    with torch.no_grad():
        plain.weight[0] = 0.0
        plain.weight[1] = 3.0
        plain.weight[2, :] = 1e-30
        plain.weight[3, 5] = 100.0
    layer = QuantizedLinear(plain, bits, group)
    assert (layer.scales > 0).all()  # rows without a step too: 0 / 0 has no code
    found = layer.whole(torch.float32)
    assert found.isfinite().all()
    assert (found[0] == 0).all()
    torch.testing.assert_close(found[1], torch.full((64,), 3.0), atol=0.02, rtol=0.01)
    assert found[2].abs().max() < 1e-6
    assert abs(found[3, 5] - 100) < 0.6


@pytest.mark.parametrize("group", [32, 64])
def test_the_greatest_of_a_group_far_from_zero_is_reached(group):
    """The lowest value is kept in fp16; what that costs is not added to the greatest."""
    generator = torch.Generator().manual_seed(0)
    plain = linear(16, 128)
    with torch.no_grad():
        plain.weight.copy_(10.03 + 0.05 * torch.rand(16, 128, generator=generator))
    grouped = plain.weight.detach().unflatten(1, (-1, group))
    lowest = grouped.amin(-1).half().float()
    step = (grouped.amax(-1) - lowest) / 15  # from the lowest as it is kept
    layer = QuantizedLinear(plain, 4, group)
    torch.testing.assert_close(layer.scales.float(), step, rtol=2**-11, atol=0)
    above = (grouped >= lowest[..., None]).float()
    found = layer.whole(torch.float32).unflatten(1, (-1, group))
    off = ((found - grouped).abs() * above).amax(-1)
    assert (off <= step * (0.5 + 15 * 2**-11) + 1e-6).all()


def test_eight_bits_are_symmetric():
    """The greatest size of a row is 127 steps, whatever its sign."""
    generator = torch.Generator().manual_seed(0)
    plain = linear(200, 64)
    with torch.no_grad():
        plain.weight.copy_(torch.randn(200, 64, generator=generator))
    codes = QuantizedLinear(plain, 8).codes
    mirrored = linear(200, 64)
    with torch.no_grad():
        mirrored.weight.copy_(-plain.weight)
    assert torch.equal(QuantizedLinear(mirrored, 8).codes, -codes)
    assert codes.amin() == -127 and codes.amax() == 127


@pytest.mark.parametrize("works", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 8, 9, 40])
@pytest.mark.parametrize("shape", [(48, 128), (24, 64), (7, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_products_are_those_of_the_whole_weight(
    bits, group, dtype, shape, rows, works, monkeypatch
):
    if not works:
        monkeypatch.setattr(module, "_kernel_works", lambda bits: False)
    layer = QuantizedLinear(linear(*shape), bits, group)
    x = torch.randn(rows, 1, shape[1])
    with torch.no_grad():
        found = layer(x.to(dtype))
    expected = F.linear(x.to(dtype).float(), layer.whole(torch.float32), layer.bias)
    assert found.dtype is dtype
    tolerance = 1e-5 if dtype is torch.float32 else 0.03
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=tolerance)


def test_the_kernel_is_used_only_for_shapes_it_holds_for(monkeypatch):
    """The eight-bit one reads past its tensors for others."""
    used = []
    monkeypatch.setattr(module, "_kernel_works", lambda bits: True)
    monkeypatch.setattr(
        QuantizedLinear,
        "_few_rows",
        lambda self, x: used.append(x.shape) or x.new_zeros(len(x), self.out_features),
    )
    x = torch.zeros(2, 96).bfloat16()
    for outs, ins in ((24, 64), (32, 96), (16, 64)):
        QuantizedLinear(linear(outs, ins), 8)(x[:, :ins].repeat(1, 1))
    assert used == [(2, 64)]
    QuantizedLinear(linear(16, 64), 8)(torch.zeros(9, 64).bfloat16())
    QuantizedLinear(linear(16, 64), 8)(torch.zeros(2, 64))
    assert used == [(2, 64)]


@pytest.mark.parametrize("bits", [8, 4])
def test_a_kernel_that_is_missing_or_wrong_is_not_used(bits, monkeypatch):
    def missing(*arguments):
        raise RuntimeError("no such operator")

    for wrong in (missing, lambda x, *rest: x.new_zeros(len(x), 32)):
        module._kernel_works.cache_clear()
        monkeypatch.setattr(torch, "_weight_int8pack_mm", wrong)
        monkeypatch.setattr(torch, "_weight_int4pack_mm_for_cpu", wrong)
        assert not module._kernel_works(bits)
    module._kernel_works.cache_clear()


@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_the_gradient_reaches_the_input_alone(bits, group):
    layer = QuantizedLinear(linear(20, 64), bits, group)
    x = torch.randn(5, 64, requires_grad=True)
    g = torch.randn(5, 20)
    layer(x).backward(g)
    torch.testing.assert_close(x.grad, g @ layer.whole(torch.float32))
    assert not any(p.requires_grad for p in layer.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert low.dtype is torch.bfloat16


@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_a_network_is_quantised_in_its_blocks(bits, group):
    network = small()
    exact = outputs(network)
    twin = copy.deepcopy(network)
    names = quantize(network, bits=bits, group=group)
    assert len(names) == 14
    assert type(network.head) is nn.Linear
    found = outputs(network)
    scale = exact.std()
    assert 0 < (found - exact).std() < (0.03 if bits == 8 else 0.5) * scale
    quantize(twin, bits=bits, group=group, targets=("up",))
    assert (outputs(twin) - exact).std() < (found - exact).std()


@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_a_copy_for_inference_computes_the_same(bits, group):
    network = small()
    quantize(network, bits=bits, group=group)
    expected = outputs(network)
    torch.testing.assert_close(
        outputs(for_inference(network, torch.float32)), expected, atol=1e-4, rtol=1e-4
    )
    ready = for_inference(network, torch.bfloat16)
    torch.testing.assert_close(outputs(ready).float(), expected, atol=0.3, rtol=0.1)
    with torch.no_grad():  # one row at a time: the small kernels
        torch.testing.assert_close(
            ready(IDS[:1, :1]).float(), network(IDS[:1, :1]), atol=0.3, rtol=0.1
        )
    for made, dtype in ((ready, torch.bfloat16), (network, None)):
        chosen = {one.dtype for one in made.modules() if isinstance(one, QuantizedLinear)}
        assert chosen == {dtype}


@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_what_is_saved_is_whole_and_opens_anywhere(bits, group, tmp_path):
    network = small()
    names = list(network.state_dict())
    quantize(network, bits=bits, group=group)
    assert sorted(network.state_dict()) == sorted(names)
    Model(network).save(tmp_path / "a")
    again = load(tmp_path / "a").network
    torch.testing.assert_close(outputs(again), outputs(network), atol=1e-5, rtol=1e-5)
    other = small()
    randomise(other, seed=9)
    quantize(other, bits=bits, group=group)
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(outputs(other), outputs(network), atol=0.05, rtol=0.05)
    state = network.state_dict()
    key = "stack.0.attn.sublayer.q.weight"
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict({**state, key: state[key][:3]})
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({name: value for name, value in state.items() if name != key})


@pytest.mark.parametrize(("bits", "group"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_over_quantised_weights(bits, group, dtype):
    network = small()
    quantize(network, bits=bits, group=group)
    base = outputs(network)
    kinds = [type(one) for one in network.modules()]
    add_adapter(network, LoraConfig(rank=4), seed=0)
    assert torch.equal(outputs(network), base)
    with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        network(IDS).float().square().mean().backward()
    trained = adapter_parameters(network)
    assert {k for k, p in network.named_parameters() if p.grad is not None} == set(trained)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    beside = outputs(network)
    torch.testing.assert_close(
        outputs(for_inference(network, torch.float32)), beside, atol=1e-4, rtol=1e-4
    )
    with pytest.raises(BedstoneError, match="is quantised"):
        merge(network)
    use_adapter(network, None)
    assert torch.equal(outputs(network), base)
    twin = copy.deepcopy(network)
    remove_adapter(twin, "default")
    assert [type(one) for one in twin.modules()] == kinds
    fold(network, "default")
    torch.testing.assert_close(outputs(network), beside, atol=1e-4, rtol=1e-4)
    assert not any(isinstance(one, QuantizedLinear) for one in network.modules())
    assert all(p.requires_grad for p in network.stack.parameters())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="torch has these kernels there alone")
@pytest.mark.parametrize("bits", [8, 4])
def test_the_kernels_are_right_here(bits):
    assert module._kernel_works(bits)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("offset", [0, 8, 1])
def test_codes_may_lie_anywhere_in_memory(bits, offset):
    """As those of a file do: torch's kernel of eight bits crashes by reading in steps of 16 bytes.

    Five rows make it read so; one row doesn't.
    """
    layer = QuantizedLinear(nn.Linear(64, 160), bits, 32)
    layer.dtype = torch.float32
    room = torch.empty(layer.codes.nbytes + 64, dtype=layer.codes.dtype)
    start = -room.data_ptr() % 64 + offset
    placed = room[start : start + layer.codes.numel()].view_as(layer.codes)
    placed.copy_(layer.codes)
    assert placed.data_ptr() % 64 == offset
    layer.codes = placed
    x = torch.randn(5, 64)
    expected = F.linear(x, layer.whole(torch.float32), layer.bias)
    for _ in range(2):
        torch.testing.assert_close(layer(x), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 5}, "bits=5"),
        ({"bits": 4, "group": 48}, "group=48"),
        ({"bits": 4, "group": 128}, "128 doesn't divide 64, the inputs of stack.0"),
        ({"targets": ("ups",)}, "perhaps 'up'"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_changed(options, message):
    network = small()
    with pytest.raises(BedstoneError, match=message):
        quantize(network, **options)
    assert not any(isinstance(one, QuantizedLinear) for one in network.modules())


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_that_are_not_finite_are_named_and_nothing_is_changed(bits):
    network = small()
    with torch.no_grad():
        network.stack[1]["mlp"].sublayer.down.weight[2, 3] = float("nan")
    with pytest.raises(BedstoneError, match=r"stack\.1\.mlp\.sublayer\.down\.weight: .*NaN"):
        quantize(network, bits=bits)
    assert not any(isinstance(one, QuantizedLinear) for one in network.modules())


def test_adapters_come_after():
    network = small()
    add_adapter(network)
    with pytest.raises(BedstoneError, match="Quantise the base first"):
        quantize(network)


@pytest.mark.parametrize("scales", [torch.bfloat16, torch.float16])
def test_a_weight_is_rounded_to_bf16_once(scales):
    torch.manual_seed(0)
    made = QuantizedLinear(nn.Linear(128, 200), 4)
    made.scales, made.lowest = made.scales.to(scales) * 1.003, made.lowest.to(scales) * 1.003
    assert torch.equal(made.whole(torch.bfloat16), made.whole(torch.float32).bfloat16())


@pytest.mark.parametrize("rows", [1, 4, 8])
@pytest.mark.parametrize("offset", [4, 8, 12])
def test_codes_that_begin_anywhere_in_a_file(offset, rows):
    """torch's kernel ended the process where codes weren't aligned, as those of mapped files."""
    linear = nn.Linear(64, 32)
    codes = encode(linear.weight, 8, 64)
    held = torch.zeros(codes.packed.numel() + 64, dtype=torch.int8)
    start = (-held.data_ptr()) % 16 + offset
    moved = held[start : start + codes.packed.numel()].view(codes.packed.shape)
    moved.copy_(codes.packed)
    layer = QuantizedLinear(linear, 8, codes=Codes(moved, codes.scales, None))
    x = torch.randn(rows, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        found, expected = layer(x), QuantizedLinear(linear, 8, codes=codes)(x)
    assert torch.equal(found, expected)
