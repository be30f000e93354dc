"""Adapters in peft's files: peft opens ours, we open peft's, with the same outputs and gradients."""

import json
import shutil

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from bedstone.checkpoints.adapters import adapt, load_adapter, load_with_adapter, save_adapter
from bedstone.checkpoints.artefact import Model, load
from bedstone.checkpoints.convert import layout
from bedstone.errors import BedstoneError
from bedstone.models import bert, gpt
from bedstone.models.bert import BertConfig
from bedstone.models.gpt_config import GPTConfig
from bedstone.models.heads import HeadConfig
from bedstone.nn.lora import LoraConfig, adapter_parameters, add_adapter, fold, merge, use_adapter
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
