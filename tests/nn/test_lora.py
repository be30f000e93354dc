"""LoRA: a built network edited from outside, and the products beneath it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bedstone.checkpoints.adapters import adapt
from bedstone.errors import BedstoneError
from bedstone.models.bert.network import BertConfig
from bedstone.models.bert.network import build as build_bert
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.models.heads import HeadConfig
from bedstone.models.published import layout as published
from bedstone.models.published import to_published
from bedstone.nn.fast import frozen as packed
from bedstone.nn.fast.frozen import CastOnce, adapted
from bedstone.nn.fast.inference import JoinedAttention, for_inference
from bedstone.nn.lora import (
    LoraConfig,
    LoRALinear,
    active_adapter,
    adapted_layers,
    adapter_parameters,
    adapters,
    add_adapter,
    fold,
    make_adapted,
    merge,
    remove_adapter,
    unmerge,
    use_adapter,
)
from bedstone.nn.quantize import TARGETS, quantize
from networks import randomise

IDS = torch.arange(24).view(2, 12)


def small(layout: str = "llama", **changes) -> nn.Module:
    shape = {"vocab_size": 61, "width": 32, "layers": 2, "heads": 4, "hidden": 48, "context": 32}
    network = build(GPTConfig(layout=layout, **{**shape, **changes}))
    randomise(network)
    return network.eval()


def shake(network, name=None, seed=3):
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter_parameters(network, name).values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


def outputs(network):
    with torch.no_grad():
        return network(IDS)


class Plain:
    """The frozen weight without any of the tricks."""

    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias

    def product(self, x):
        return F.linear(x, self.weight, self.bias)

    def back(self, gradient):
        return gradient @ self.weight


@pytest.mark.parametrize("dropped", [False, True])
def test_gradients_are_those_of_finite_differences(dropped):
    torch.manual_seed(0)
    x, other = (torch.randn(2, 3, 5, dtype=torch.double, requires_grad=True) for _ in "xo")
    a = torch.randn(2, 5, dtype=torch.double, requires_grad=True)
    b = torch.randn(4, 2, dtype=torch.double, requires_grad=True)
    base = Plain(torch.randn(4, 5, dtype=torch.double), torch.randn(4, dtype=torch.double))

    def product(x, a, b, other):
        return adapted(x, base, a, b, 0.7, other if dropped else None)

    assert torch.autograd.gradcheck(product, (x, a, b, other))
    assert torch.autograd.gradcheck(lambda x: adapted(x, base), (x,))


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 24, 40), (70, 40, 24), (33, 7, 5)])
def test_a_weight_cast_once_gives_plain_products(shape, dtype, packs, monkeypatch):
    if not packs:
        monkeypatch.setattr(packed, "_packs", lambda dtype: False)
    rows, outs, ins = shape
    torch.manual_seed(0)
    weight, bias = torch.randn(outs, ins), torch.randn(outs)
    x, g = torch.randn(rows, ins).to(dtype), torch.randn(rows, outs).to(dtype)
    copies = CastOnce()
    tolerance = 1e-4 if dtype is torch.float32 else 0.1
    for _ in range(2):
        y, back = copies.forward(x, weight, bias), copies.backward(g, weight)
        assert y.dtype == back.dtype == dtype
        expected = F.linear(x.float(), weight, bias)
        torch.testing.assert_close(y.float(), expected, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(back.float(), g.float() @ weight, atol=tolerance, rtol=tolerance)


def test_copies_follow_a_weight_that_changes():
    weight, x = nn.Parameter(torch.ones(4, 4), False), torch.ones(1, 4)
    copies = CastOnce()
    copies.forward(x, weight, None)
    made = copies._made["forward"]
    copies.forward(x, weight, None)
    assert copies._made["forward"] is made  # once
    with torch.no_grad():
        weight.mul_(2)
    assert torch.equal(copies.forward(x, weight, None), torch.full((1, 4), 8.0))
    other = nn.Parameter(torch.zeros(4, 4), False)
    assert not copies.forward(x, other, None).any()


def test_a_fresh_adapter_changes_nothing_and_keeps_names():
    network = small()
    before, names = outputs(network), list(network.state_dict())
    add_adapter(network, LoraConfig(rank=4), seed=1)
    assert torch.equal(outputs(network), before)
    new = [name for name in network.state_dict() if name not in names]
    assert [name for name in network.state_dict() if name in names] == names
    assert all(".adapters.default." in name for name in new)
    assert len(new) == 2 * 7 * 2  # two layers of seven matrices, A and B each
    for name, value in adapter_parameters(network).items():
        assert value.dtype is torch.float32
        inputs = value.shape[1]
        assert (value == 0).all() if name.endswith(".b") else value.abs().max() <= inputs**-0.5
        assert name.endswith(".b") or value.std() > 0.5 * inputs**-0.5


def test_the_seed_decides():
    one, two, three = small(), small(), small()
    for network, seed in ((one, 1), (two, 1), (three, 2)):
        add_adapter(network, seed=seed)
    states = [adapter_parameters(network).values() for network in (one, two, three)]
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(states[0], states[2], strict=True))


@pytest.mark.parametrize("layout", ["gpt2", "llama"])
def test_gradients_reach_adapters_alone_and_are_autograds(layout, monkeypatch):
    """The hand-written backward pass beside autograd's own, of the very same network."""
    network = small(layout).double()
    adapt(network, LoraConfig(rank=3, ranks={"up": 5}), seed=1)
    with torch.no_grad():
        for parameter in adapter_parameters(network).values():
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    twin = copy.deepcopy(network)
    weights = torch.randn(2, 12, 61)
    (network(IDS) * weights).sum().backward()
    monkeypatch.setattr("bedstone.nn.layers.usable", lambda x: True)  # norms as they were
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # the plain form
    (twin(IDS) * weights).sum().backward()
    theirs = dict(twin.named_parameters())
    trained = adapter_parameters(network)
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name
        if name in trained:
            assert parameter.grad.abs().sum() > 0
            torch.testing.assert_close(parameter.grad, theirs[name].grad)  # in fp64


def test_bf16_training_is_as_close_as_autocast_itself(monkeypatch):
    network = small("gpt2")
    adapt(network, LoraConfig(rank=4), seed=1)
    shake(network)
    weights = torch.randn(2, 12, 61)

    def gradients(precise, plain):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: plain)
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            out = network(IDS)
        (out.float() * weights).sum().backward()
        return torch.cat([p.grad.flatten() for p in adapter_parameters(network).values()])

    exact, ours, theirs = gradients(True, True), gradients(False, False), gradients(False, True)
    assert (ours - exact).norm() < 1.3 * (theirs - exact).norm() + 1e-6
    assert (ours - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("whole", [False, True])
def test_dropout_is_in_training_alone(whole):
    """Where the layer's own weight learns too, all is computed in operations of autograd's."""
    network = small()
    add_adapter(network, LoraConfig(rank=4, dropout=0.5))
    shake(network)
    network.stack[0]["attn"].sublayer.q.weight.requires_grad_(whole)
    assert torch.equal(outputs(network), outputs(network))
    network.train()
    assert not torch.equal(outputs(network), outputs(network))
    layer = network.stack[0]["attn"].sublayer.q
    x = torch.randn(1, 32).expand(20_000, 32)
    mean = layer(x).mean(0)
    network.eval()
    torch.testing.assert_close(mean, layer(x)[0], atol=0.02, rtol=0.02)  # the same on average


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_is_equal_and_unmerging_exact(dtype):
    network = small().to(dtype)
    bits = {name: value.clone() for name, value in network.state_dict().items()}
    add_adapter(network, LoraConfig(rank=4), seed=1)
    shake(network)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        beside = outputs(network).float()
        merge(network)
        tolerance = 1e-4 if dtype is torch.float32 else 0.15
        torch.testing.assert_close(outputs(network).float(), beside, atol=tolerance, rtol=tolerance)
        assert not torch.equal(network.stack[0]["attn"].sublayer.q.weight, bits[name_of_q])
        unmerge(network)
        assert torch.equal(outputs(network).float(), beside)
    for name, value in bits.items():
        assert torch.equal(network.state_dict()[name], value), name


def test_merging_adds_in_fp32_and_rounds_once():
    """In bf16 a delta that is rounded before it is added ends up elsewhere."""
    network = small().to(torch.bfloat16)
    add_adapter(network, LoraConfig(rank=4), seed=1)
    shake(network)
    layer = network.stack[0]["attn"].sublayer.q
    weight, adapter = layer.weight.detach().clone(), layer.adapter()
    delta = (adapter.b.double() @ adapter.a.double()) * adapter.scale
    exact = (weight.double() + delta).to(torch.bfloat16)
    twice = weight + delta.to(torch.bfloat16)
    assert (twice != exact).float().mean() > 0.05
    merge(network)
    assert (layer.weight != exact).float().mean() < 0.01


name_of_q = "stack.0.attn.sublayer.q.weight"


def test_several_adapters_on_one_base():
    network = small("gpt2")
    base = outputs(network)
    for seed, name in enumerate(("one", "two")):
        adapt(network, LoraConfig(rank=seed + 2, targets=("q", "up")), name, seed=seed)
        shake(network, seed=seed)
    assert list(adapters(network)) == ["one", "two"]
    assert active_adapter(network) == "two"
    two = outputs(network)
    assert all(".two." in k for k, p in network.named_parameters() if p.requires_grad)
    use_adapter(network, "one")
    one = outputs(network)
    assert all(".one." in k for k, p in network.named_parameters() if p.requires_grad)
    use_adapter(network, None)
    assert torch.equal(outputs(network), base)
    assert not any(p.requires_grad for p in network.parameters())
    assert (one - two).abs().max() > 1e-2
    merge(network, "one")
    use_adapter(network, "two")  # unmerges
    assert torch.equal(outputs(network), two)
    remove_adapter(network, "two")
    assert torch.equal(outputs(network), base)
    use_adapter(network, "one")
    assert torch.equal(outputs(network), one)


def test_the_last_one_removed_leaves_no_trace():
    network = small()
    network.embed.requires_grad_(False)
    before = {name: p.requires_grad for name, p in network.named_parameters()}
    kinds = [type(module) for module in network.modules()]
    base = outputs(network)
    add_adapter(network)
    shake(network)
    remove_adapter(network, "default")
    assert [type(module) for module in network.modules()] == kinds
    assert {name: p.requires_grad for name, p in network.named_parameters()} == before
    assert torch.equal(outputs(network), base)
    assert adapters(network) == {}


def test_folding_makes_a_plain_network_that_saves():
    network = small("gpt2")
    names = list(network.state_dict())
    adapt(network)
    shake(network)
    beside = outputs(network)
    with pytest.raises(BedstoneError, match=r"adapters \(default\).*save_adapter"):
        to_published(published(network.config.layout), network)
    fold(network)
    torch.testing.assert_close(outputs(network), beside, atol=1e-4, rtol=1e-4)
    assert list(network.state_dict()) == names
    assert to_published(published(network.config.layout), network)
    assert all(p.requires_grad for p in network.parameters())


def classifier(**changes):
    head = HeadConfig("sequence", ("a", "b", "c"))
    shape = {"vocab_size": 61, "width": 32, "layers": 1, "heads": 4, "hidden": 48, "context": 32}
    network = build_bert(BertConfig(head=head, **shape, **changes), seed=0)
    randomise(network)
    return network.eval()


def test_a_task_head_trains_and_goes_with_its_adapter():
    network = classifier()
    base = outputs(network)
    adapt(network, LoraConfig(rank=2), "one", seed=1)
    trained = {k for k, p in network.named_parameters() if p.requires_grad}
    assert {k for k in trained if k.startswith("head.")} == {
        f"head.{part}.{leaf}" for part in ("dense", "out") for leaf in ("weight", "bias")
    }
    assert set(adapter_parameters(network)) == trained
    shake(network, seed=1)
    one = outputs(network)
    adapt(network, LoraConfig(rank=2), "two", seed=2)
    torch.testing.assert_close(outputs(network), base)  # the base's head again
    shake(network, seed=2)
    two = outputs(network)
    for name, expected in (("one", one), (None, base), ("two", two), ("one", one)):
        use_adapter(network, name)
        assert torch.equal(outputs(network), expected)


@pytest.mark.parametrize("layout", ["gpt2", "llama"])
@pytest.mark.parametrize("how", ["beside", "merged", "base"])
def test_a_copy_for_inference_keeps_the_adapter(layout, how):
    network = small(layout)
    adapt(network, LoraConfig(rank=4), seed=1)
    shake(network)
    if how == "merged":
        merge(network)
    if how == "base":
        use_adapter(network, None)
    expected = outputs(network)
    bits = {name: value.clone() for name, value in network.state_dict().items()}
    ready = for_inference(network, torch.float32)
    torch.testing.assert_close(outputs(ready), expected, atol=1e-4, rtol=1e-4)
    assert isinstance(ready.stack[0]["attn"].sublayer, JoinedAttention)  # as fast as without
    torch.testing.assert_close(
        outputs(for_inference(network, torch.bfloat16)).float(), expected, atol=0.2, rtol=0.1
    )
    assert torch.equal(outputs(network), expected)
    assert all(torch.equal(value, bits[name]) for name, value in network.state_dict().items())
    with pytest.raises(BedstoneError, match="no adapters to change"):
        use_adapter(ready, None)


def test_targets_that_are_none_keep_their_weights_fast_and_frozen():
    network = small()
    base = outputs(network)
    add_adapter(network, LoraConfig(targets=("v", "stack.1.mlp.sublayer.up")), seed=0)
    having = adapted_layers(network, "default")
    assert list(having) == [
        "stack.0.attn.sublayer.v",
        "stack.1.attn.sublayer.v",
        "stack.1.mlp.sublayer.up",
    ]
    assert isinstance(network.stack[0]["attn"].sublayer.q, LoRALinear)
    assert torch.equal(outputs(network), base)


def test_a_weight_that_is_trained_all_the_same_gets_its_gradient():
    network = small()
    add_adapter(network)
    layer = network.stack[0]["attn"].sublayer.q
    layer.weight.requires_grad_(True)
    network(IDS).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


def test_scales():
    assert LoraConfig(rank=16, alpha=32).scale_of("x.q") == 2.0
    assert LoraConfig(rank=16, alpha=32, rslora=True).scale_of("x.q") == 8.0
    config = LoraConfig(rank=16, alpha=32, ranks={"q": 8, "x.q": 4}, alphas={"k": 16})
    assert [config.scale_of(path) for path in ("y.q", "x.q", "x.k")] == [4.0, 8.0, 1.0]
    assert config.targets == TARGETS


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rank": 0}, "lora.rank: 0"),
        ({"rank": True}, "lora.rank: True"),
        ({"ranks": {"q": -1}}, "lora.q: -1"),
        ({"dropout": 1.0}, "lora.dropout: 1.0"),
        ({"targets": ()}, "lora.targets: is empty"),
        ({"targets": ("qq",)}, "perhaps 'q'"),
        ({"targets": ("gate",)}, "no block has any of gate"),
        ({"train": ("heads",)}, "no module 'heads'"),
        ({"train": ("stack",)}, "is trained whole"),
        ({"shared": ("q", "k"), "ranks": {"q": 2}}, "give them one rank"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_changed(config, message):
    network = small("gpt2")
    names = list(network.state_dict())
    with pytest.raises(BedstoneError, match=message):
        add_adapter(network, LoraConfig(**config))
    assert list(network.state_dict()) == names
    assert all(type(m) is not LoRALinear for m in network.modules())


def test_names_of_adapters():
    network = small()
    for call in (use_adapter, merge, fold, remove_adapter, adapter_parameters):
        with pytest.raises(BedstoneError, match="add one first"):
            call(network, "default")
    add_adapter(network, name="one")
    for name in ("", "a.b"):
        with pytest.raises(BedstoneError, match="without dots"):
            add_adapter(network, name=name)
    with pytest.raises(BedstoneError, match="already"):
        add_adapter(network, name="one")
    with pytest.raises(BedstoneError, match="perhaps 'one'"):
        use_adapter(network, "ones")
    use_adapter(network, None)
    with pytest.raises(BedstoneError, match="no adapter is in use"):
        merge(network)
    merge(network, "one")
    with pytest.raises(BedstoneError, match="unmerge"):
        add_adapter(network, name="two")
    with pytest.raises(BedstoneError, match="can't have adapters"):
        make_adapted(nn.Bilinear(2, 2, 2))


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_a_compiler_traces_the_same(bits):
    network = small(hidden=64)
    if bits:
        quantize(network, bits=bits, group=32)
    add_adapter(network, LoraConfig(rank=4), seed=0)
    shake(network)
    layer = network.stack[0]["mlp"].sublayer.up
    x = torch.randn(3, 32)
    traced = torch.compile(layer, backend="eager")
    torch.testing.assert_close(traced(x), layer(x))
    traced(x).sum().backward()
    found = layer.adapters["default"].a.grad.clone()
    network.zero_grad()
    layer(x).sum().backward()
    torch.testing.assert_close(found, layer.adapters["default"].a.grad)


def test_adapters_that_train_different_modules_leave_the_base_as_it_is():
    network = build_bert(
        BertConfig(vocab_size=60, width=32, layers=2, heads=4, head=HeadConfig("sequence", ("a",)))
    )
    before = copy.deepcopy(network.state_dict())
    add_adapter(network, LoraConfig(rank=2, train=("head.dense",)), "a")
    shake(network, "a", seed=1)
    first = {key: value.clone() for key, value in network.state_dict().items()}
    add_adapter(network, LoraConfig(rank=2, train=("head.out",)), "b")
    shake(network, "b", seed=2)
    use_adapter(network, "a")
    now = network.state_dict()
    assert all(torch.equal(value, now[key]) for key, value in first.items())
    for name in (None, "b", None):
        use_adapter(network, name)
    now = network.state_dict()
    assert all(torch.equal(value, now[key]) for key, value in before.items())
    use_adapter(network, "b")
    remove_adapter(network, "b")
    remove_adapter(network, "a")
    now = network.state_dict()
    assert now.keys() == before.keys()
    assert all(torch.equal(value, now[key]) for key, value in before.items())
