"""Adapters in peft's files, both ways: the same outputs, merged or not, and the same gradients."""

import json
import shutil

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from bedstone.checkpoints.adapters import adapt, load_adapter, load_with_adapter, save_adapter
from bedstone.checkpoints.model import Model, load
from bedstone.errors import BedstoneError
from bedstone.models.bert import network as bert
from bedstone.models.bert.network import BertConfig
from bedstone.models.gpt import network as gpt
from bedstone.models.gpt.network import GPTConfig
from bedstone.models.heads import HeadConfig
from bedstone.models.published import layout
from bedstone.nn.lora import (
    LoraConfig,
    adapter_parameters,
    add_adapter,
    fold,
    merge,
    remove_adapter,
    use_adapter,
)
from bedstone.nn.quantize import quantize
from networks import randomise

GPTS = list(gpt.LAYOUTS)
LABELS = ("no", "maybe", "yes")
HEADS = {
    "sequence": HeadConfig("sequence", LABELS),
    "tokens": HeadConfig("tokens", LABELS),
    "spans": HeadConfig("spans"),
}
IDS = torch.arange(24).view(2, 12) % 59 + 2


def small(name: str, head: str = "language") -> nn.Module:
    shape = {"vocab_size": 61, "width": 32, "layers": 2, "heads": 4, "hidden": 48, "context": 32}
    chosen = HEADS.get(head) or HeadConfig(head)
    if name in GPTS:
        kv_heads = 4 if name == "gpt2" else 2
        network = gpt.build(GPTConfig(layout=name, kv_heads=kv_heads, head=chosen, **shape), seed=0)
    else:
        network = bert.build(BertConfig(layout=name, head=chosen, **shape), seed=0)
    randomise(network)
    return network.eval()


def shaken(network: nn.Module, name: str = "default", seed: int = 5) -> None:
    """Every weight of an adapter random, so that it does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in adapter_parameters(network, name).items():
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.add_(noise) if ".adapters." not in key else parameter.copy_(noise)


def their_base(network, folder):
    """The published network with the same weights."""
    Model(network).save(folder)
    return getattr(transformers, layout(network.config.layout).architecture(network.config))


def theirs_with(network, folder, adapter):
    kind = their_base(network, folder / "base")
    return peft.PeftModel.from_pretrained(kind.from_pretrained(folder / "base"), adapter).eval()


def logits(model, ids=IDS):
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    if hasattr(out, "start_logits"):
        return torch.stack((out.start_logits, out.end_logits), -1)
    return out.logits


def close(one, other):
    assert (one - other).abs().max() < 1e-4


CASES = [(name, "language") for name in GPTS]
CASES += [(name, "sequence") for name in ("gpt2", "llama")]
CASES += [(n, h) for n in bert.LAYOUTS for h in ("language", "sequence", "tokens", "spans")]


@pytest.mark.parametrize(("name", "head"), CASES)
def test_peft_opens_what_we_save_and_the_file_comes_back(name, head, tmp_path):
    network, twin = small(name, head), small(name, head)
    config = LoraConfig(rank=4, alpha=6.0, rslora=name == "bert", ranks={"up": 6, "q": 4})
    adapt(network, config, seed=1)
    shaken(network)
    save_adapter(Model(network), tmp_path / "ours")
    theirs = theirs_with(twin, tmp_path, tmp_path / "ours")
    with torch.no_grad():
        one = IDS[:1] if name in GPTS and head == "sequence" else IDS
        assert (network(one) - twin(one)).abs().max() > 1e-2
        close(network(one), logits(theirs, one))
        theirs.merge_adapter()
        merge(network)
        close(network(one), logits(theirs, one))
        theirs.unmerge_adapter()
    load_adapter(Model(twin), tmp_path / "ours", name="again")
    with torch.no_grad():
        close(network(one), twin(one))
    save_adapter(Model(twin), tmp_path / "twice")
    theirs.save_pretrained(tmp_path / "theirs")
    again, third = small(name, head), tmp_path / "thrice"
    load_adapter(Model(again), tmp_path / "theirs")
    save_adapter(Model(again), third)
    first = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    for folder in ("twice", "theirs", "thrice"):
        other = load_file(tmp_path / folder / "adapter_model.safetensors")
        assert first.keys() == other.keys()
        assert all(torch.equal(first[key], other[key]) for key in first)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes()


def from_peft(network, folder, **options):
    """An adapter of random weights as peft makes and writes it, in `folder/theirs`."""
    kind = their_base(network, folder / "base")
    torch.manual_seed(3)
    model = peft.get_peft_model(
        kind.from_pretrained(folder / "base"), peft.LoraConfig(init_lora_weights=False, **options)
    )
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "modules_to_save" in key:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder / "theirs")
    return model.eval()


@pytest.mark.parametrize(
    ("name", "head", "options"),
    [
        ("gpt2", "language", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
        ("gpt2", "language", {"target_modules": "all-linear", "r": 3, "lora_alpha": 5}),
        ("llama", "language", {"target_modules": r".*layers\.(0|1)\.self_attn\.(q|v)_proj"}),
        ("llama", "language", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
        ("qwen3", "language", {"target_modules": "all-linear", "use_rslora": True}),
        (
            "mistral",
            "language",
            {
                "target_modules": ["q_proj", "up_proj"],
                "rank_pattern": {"up_proj": 5, "layers.1.self_attn.q_proj": 2},
                "alpha_pattern": {"model.layers.0.*": 3, "q_proj": 7},
            },
        ),
        ("llama", "language", {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]}),
        ("bert", "sequence", {"target_modules": "all-linear", "task_type": "SEQ_CLS"}),
        ("bert", "tokens", {"target_modules": ["query"], "task_type": "TOKEN_CLS"}),
        ("roberta", "sequence", {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}),
        ("distilbert", "sequence", {"target_modules": ["q_lin"], "task_type": "SEQ_CLS"}),
        ("distilbert", "spans", {"target_modules": ["lin1"], "task_type": "QUESTION_ANS"}),
    ],
)
def test_we_open_what_peft_saves(name, head, options, tmp_path):
    network = small(name, head)
    if "lm_head" in options.get("modules_to_save", ()):
        network = gpt.build(GPTConfig(**{**vars(network.config), "tied": False}), seed=0).eval()
    theirs = from_peft(network, tmp_path, **options)
    with torch.no_grad():
        before = network(IDS)
        load_adapter(Model(network), tmp_path / "theirs")
        assert (network(IDS) - before).abs().max() > 1e-3
        close(network(IDS), logits(theirs))
        fold(network)
        close(network(IDS), logits(theirs))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_gradients_are_those_of_peft(name, tmp_path):
    network = small(name, "language")
    targets = {"gpt2": ["c_attn", "c_proj"], "llama": ["q_proj", "down_proj"], "bert": ["query"]}
    theirs = from_peft(network, tmp_path, target_modules=targets[name])
    load_adapter(Model(network), tmp_path / "theirs")
    weights = torch.randn(2, 12, 61)
    (logits(theirs) * weights).sum().backward()
    (network(IDS) * weights).sum().backward()
    with torch.no_grad():
        for parameter in adapter_parameters(network).values():
            parameter.copy_(parameter.grad)
        for key, parameter in theirs.named_parameters():
            assert (parameter.grad is not None) == ("lora_" in key)
            if parameter.grad is not None:
                parameter.copy_(parameter.grad)
    save_adapter(Model(network), tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "gradients")
    ours = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    expected = load_file(tmp_path / "gradients" / "adapter_model.safetensors")
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        assert (ours[key] - value).abs().max() < 1e-3 * value.abs().max() + 1e-4, key


def test_several_adapters_as_peft_switches_them(tmp_path):
    network, twin = small("gpt2"), small("gpt2")
    for seed, name in enumerate(("one", "two")):
        adapt(network, LoraConfig(rank=3 + seed), name, seed=seed)
        shaken(network, name, seed)
    for name in ("one", "two"):  # saved whichever is in use
        save_adapter(Model(network), tmp_path / name, name)
    theirs = theirs_with(twin, tmp_path, tmp_path / "one")
    theirs.load_adapter(tmp_path / "two", "two")
    for name, other in (("one", "default"), ("two", "two"), ("one", "default")):
        use_adapter(network, name)
        theirs.set_adapter(other)
        with torch.no_grad():
            close(network(IDS), logits(theirs))


def test_each_adapter_is_saved_with_its_own_head(tmp_path):
    network = small("bert", "sequence")
    expected = {}
    for seed, name in enumerate(("one", "two")):
        adapt(network, LoraConfig(rank=2), name, seed=seed)
        shaken(network, name, seed)
        expected[name] = network(IDS)
    for name in expected:
        save_adapter(Model(network), tmp_path / name, name)
        again = small("bert", "sequence")
        load_adapter(again, tmp_path / name)
        assert torch.equal(again(IDS), expected[name])
    assert torch.equal(network(IDS), expected["two"])  # in use as before


def test_one_published_matrix_has_one_adapter(tmp_path):
    network = small("gpt2")
    adapt(network, LoraConfig(rank=5), seed=0)
    attention = network.stack[0]["attn"].sublayer
    first = attention.q.adapters["default"].a
    assert all(part.adapters["default"].a is first for part in (attention.k, attention.v))
    save_adapter(Model(network), tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"]) == (5, {})
    assert config["target_modules"] == ["c_attn", "c_fc", "c_proj"]
    assert config["fan_in_fan_out"] is True


@pytest.mark.parametrize("targets", [("q", "k", "v"), ("q", "v"), ("k",)])
@pytest.mark.parametrize("rslora", [False, True])
def test_queries_keys_and_values_apart_are_one_matrix_on_disk(targets, rslora, tmp_path):
    """Adapters that don't share their A are written as a wider one with B in blocks."""
    network, twin = small("gpt2"), small("gpt2")
    alphas = {"v": 3.0} if "q" in targets else {}
    config = LoraConfig(rank=2, alpha=5.0, targets=targets, alphas=alphas, rslora=rslora)
    add_adapter(network, config, seed=0)
    shaken(network)
    save_adapter(Model(network), tmp_path / "ours")
    theirs = theirs_with(twin, tmp_path, tmp_path / "ours")
    load_adapter(twin, tmp_path / "ours")
    with torch.no_grad():
        close(network(IDS), logits(theirs))
        close(network(IDS), twin(IDS))


def test_an_adapter_trains_over_quantised_weights_and_saves(tmp_path):
    network = small("llama")
    quantize(network, bits=8)
    adapt(network, LoraConfig(rank=2), seed=0)
    shaken(network)
    save_adapter(Model(network), tmp_path / "ours")
    again = small("llama")
    quantize(again, bits=8)
    load_adapter(again, tmp_path / "ours")
    assert torch.equal(again(IDS), network(IDS))


def saved(tmp_path, name="llama", head="language", **options):
    """A base on disk and an adapter over it, and the network with it."""
    Model(small(name, "pooled" if name == "bert" else head)).save(tmp_path / "base")
    model = load(tmp_path / "base")
    if head != model.config.head.kind:
        model.network.set_head(HEADS[head], seed=0)
    adapt(model.network, LoraConfig(rank=2, **options), seed=0)
    shaken(model.network)
    model.record["data"] = {"source": "notes"}
    save_adapter(model, tmp_path / "adapter")
    return model


@pytest.mark.parametrize(("name", "head"), [("llama", "language"), ("bert", "tokens")])
def test_the_base_is_found_and_gets_its_head(name, head, tmp_path):
    model = saved(tmp_path / "here", name, head)
    model.network.eval()
    again = load_with_adapter(tmp_path / "here" / "adapter", load)
    assert again.config == model.config
    assert again.record["data"] == {"source": "notes"}
    assert torch.equal(again.network(IDS), model.network(IDS))
    (tmp_path / "here").rename(tmp_path / "there")  # moved together, found beside
    moved = load_with_adapter(tmp_path / "there" / "adapter", load)
    assert torch.equal(moved.network(IDS), model.network(IDS))
    save_adapter(moved, tmp_path / "third")
    assert load_with_adapter(tmp_path / "third", load).path == tmp_path / "there" / "base"
    shutil.rmtree(tmp_path / "there" / "base")
    with pytest.raises(BedstoneError, match="its base can't be opened"):
        load_with_adapter(tmp_path / "there" / "adapter", load)


def test_a_head_of_peft_gets_numbered_labels(tmp_path):
    network = small("roberta", "sequence")
    options = {"target_modules": ["query"], "task_type": "SEQ_CLS"}
    theirs = from_peft(network, tmp_path, **options)
    Model(small("roberta")).save(tmp_path / "base")  # another head on the same body
    again = load_with_adapter(tmp_path / "theirs", load)
    assert again.config.head == HeadConfig("sequence", ("LABEL_0", "LABEL_1", "LABEL_2"))
    with torch.no_grad():
        close(again.network.eval()(IDS), logits(theirs))


def rewrite(folder, drop=None, tensors=None, **config):
    """Changes an adapter's folder as another writer might have left it."""
    (folder / "bedstone.json").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    file = folder / "adapter_model.safetensors"
    held = {**load_file(file), **(tensors or {})}
    kept = {key: value for key, value in held.items() if not (drop and drop in key)}
    save_file(kept, file, metadata={"format": "pt"})


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3' is not supported"),
        ({"use_dora": True}, "use_dora = True"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"something_new": {"a": 1}}, "something_new.*is unknown"),
        ({"r": 0}, "r = 0; expected a whole number"),
        ({"r": 3}, "rank 3 ask for"),
        ({"lora_alpha": "much"}, "lora_alpha = 'much'; expected a finite number"),
        ({"lora_dropout": 2.0}, "adapter_config.json: lora_dropout = 2.0"),
        ({"lora_alpha": float("nan")}, "adapter_config.json: lora_alpha = nan"),
        ({"lora_alpha": -1}, "adapter_config.json: lora_alpha = -1"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "alpha_pattern.q_proj = inf"),
        ({"r": 10**30}, "ask for"),
        ({"modules_to_save": 5}, "modules_to_save = 5; expected a list of texts"),
        ({"task_type": ["x"]}, "task_type = .*; expected text"),
        ({"tensors": {f"{Q}.lora_A.weight": torch.full((2, 32), torch.nan)}}, "aren't finite"),
        ({"tensors": {f"{Q}.lora_B.weight": torch.ones(32, 2).byte()}}, "holds uint8"),
        ({"rank_pattern": {"q_proj": 5}}, "rank 5 ask for"),
        ({"rank_pattern": {"q_proj": "5"}}, "'5' for 'q_proj'"),
        ({"rank_pattern": [3]}, "is no mapping"),
        ({"alpha_pattern": {"(a+)+": 1}}, "repeats what is repeated"),
        ({"alpha_pattern": {"(": 1}}, "can't be used"),
        ({"target_modules": 3}, "expected a list of names"),
        ({"drop": "layers.1.mlp.up_proj"}, "have no tensors, 'model.layers.1.mlp.up_proj' first"),
        ({"drop": "layers.1", "target_modules": "all-linear"}, "have no tensors"),
        ({"drop": "layers.1", "target_modules": r".*_proj"}, "have no tensors"),
        ({"drop": "q_proj.lora_B"}, "lora_B.weight' is missing"),
        ({"drop": "q_proj.lora_A"}, "no linear layer|is missing"),
        ({"drop": "lora"}, "holds no lora_A"),
        ({"tensors": {"base_model.model.a.lora_A.weight": torch.ones(2, 32)}}, "missing|no linear"),
        ({"tensors": {"base_model.model.lora_magnitude": torch.ones(2)}}, "is of no module"),
        (
            {"tensors": {"base_model.model.model.norm.weight": torch.ones(2)}},
            r"norm.weight has shape \(2,\), its base \(32,\)",
        ),
    ],
)
def test_what_is_no_sound_adapter_is_refused_and_nothing_changed(change, message, tmp_path):
    saved(tmp_path)
    rewrite(tmp_path / "adapter", **change)
    network = small("llama")
    names = list(network.state_dict())
    with pytest.raises(BedstoneError, match=message):
        load_adapter(network, tmp_path / "adapter")
    assert list(network.state_dict()) == names
    assert all(p.requires_grad for p in network.parameters())


def test_another_base_is_named(tmp_path):
    saved(tmp_path)
    wide = gpt.build(GPTConfig(layout="llama", vocab_size=61, width=64, layers=2, heads=4))
    for network, message in ((wide, "Take the base that"), (small("gpt2"), "no linear layer")):
        with pytest.raises(BedstoneError, match=message):
            load_adapter(network, tmp_path / "adapter")


def test_folders_that_hold_no_adapter(tmp_path):
    model = saved(tmp_path)
    with pytest.raises(BedstoneError, match="holds other files"):
        save_adapter(model, tmp_path / "base")
    with pytest.raises(BedstoneError, match="no adapter other; it has default"):
        save_adapter(model, tmp_path / "new", "other")
    with pytest.raises(BedstoneError, match="it has none"):
        save_adapter(Model(small("llama")), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(BedstoneError, match=r"adapter_config\.json"):
        load_adapter(small("llama"), tmp_path / "base")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(BedstoneError, match="never read"):
        load_adapter(small("llama"), tmp_path / "adapter")
    with pytest.raises(BedstoneError, match="is missing"):
        load_with_adapter(tmp_path / "adapter", load)
    rewrite_config = tmp_path / "adapter" / "adapter_config.json"
    rewrite_config.write_text("[]")
    with pytest.raises(BedstoneError, match="expected a JSON object"):
        load_adapter(small("llama"), tmp_path / "adapter")


def test_no_base_is_named_or_its_head_is_damaged(tmp_path):
    saved(tmp_path)
    record = tmp_path / "adapter" / "bedstone.json"
    record.write_text(json.dumps({"head": {"kind": "tokens"}}))
    with pytest.raises(BedstoneError, match="expected kind, labels and problem"):
        load_with_adapter(tmp_path / "adapter", load)
    record.write_text("[]")
    with pytest.raises(BedstoneError, match="expected a JSON object"):
        load_with_adapter(tmp_path / "adapter", load)
    rewrite(tmp_path / "adapter", base_model_name_or_path=None)
    with pytest.raises(BedstoneError, match="its base is not known"):
        load_with_adapter(tmp_path / "adapter", load)


def test_an_adapter_that_names_an_adapter_as_its_base_is_refused(tmp_path):
    saved(tmp_path)
    shutil.copytree(tmp_path / "adapter", tmp_path / "other")
    rewrite(tmp_path / "other", base_model_name_or_path=str(tmp_path / "other"))
    rewrite(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "other"))
    for name in ("other", "adapter"):
        with pytest.raises(BedstoneError, match="which is an adapter itself"):
            load(tmp_path / name)
    rewrite(tmp_path / "other", base_model_name_or_path="x" * 5000)
    with pytest.raises(BedstoneError, match=r"base_model_name_or_path: .* characters long"):
        load(tmp_path / "other")


# Adapters over tied weights, and those that peft stores weights of the base beside.


def tied(name="gpt2"):
    network = small(name)
    assert network.head.weight is network.embed.weight
    return network


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["c_attn"], "modules_to_save": ["wte"]},
        {"target_modules": ["c_attn", "lm_head"]},
    ],
    ids=["head", "embedding", "adapted head"],
)
def test_what_peft_trains_of_a_tied_network_leaves_the_other_as_it_is(options, tmp_path):
    network = tied()
    with torch.no_grad():
        base = network(IDS)
    theirs = from_peft(network, tmp_path, fan_in_fan_out=True, **options)
    load_adapter(Model(network), tmp_path / "theirs", "a")
    with torch.no_grad():
        close(network(IDS), logits(theirs))
        assert (network(IDS) - base).abs().max() > 1e-3
        use_adapter(network, None)
        assert torch.equal(network(IDS), base)
        use_adapter(network, "a")
        save_adapter(Model(network), tmp_path / "ours")
        again = tied()
        load_adapter(Model(again), tmp_path / "ours")
        assert torch.equal(again(IDS), network(IDS))
        fold(again)
        close(again(IDS), logits(theirs))
    Model(again).save(tmp_path / "folded")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "folded").network(IDS), again(IDS))
    remove_adapter(network, "a")
    assert network.head.weight is network.embed.weight and network.config.tied
    with torch.no_grad():
        assert torch.equal(network(IDS), base)


def test_a_tied_head_can_be_trained_whole():
    network = tied()
    add_adapter(network, LoraConfig(rank=2, train=("head",)))
    network(IDS).sum().backward()
    assert network.head.weight.grad is not None and network.embed.weight.grad is None


def test_weights_of_the_base_beside_an_adapter_are_compared(tmp_path):
    network = gpt.build(GPTConfig(**{**vars(small("llama").config), "tied": False}), seed=0).eval()
    theirs = from_peft(network, tmp_path, target_modules=["q_proj", "lm_head"])
    file = tmp_path / "theirs" / "adapter_model.safetensors"
    key = "base_model.model.lm_head.base_layer.weight"
    stored = load_file(file)
    save_file({**stored, key: network.head.weight.detach().clone()}, file)
    load_adapter(Model(network), tmp_path / "theirs", "a")
    with torch.no_grad():
        close(network(IDS), logits(theirs))
    save_file({**stored, key: network.head.weight.detach() + 1}, file)
    with pytest.raises(BedstoneError, match=r"lm_head\.weight.*of its base"):
        load_adapter(Model(network), tmp_path / "theirs", "b")
