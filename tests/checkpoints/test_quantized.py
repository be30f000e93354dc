"""Quantised weights in a file of their own: what opens, what it takes, and damaged files."""

import json
import shutil

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import bedstone
from bedstone.checkpoints.at_hand import models_at_hand
from bedstone.checkpoints.model import Model, load
from bedstone.checkpoints.tensors import load_tensors, save_tensors
from bedstone.errors import BedstoneError
from bedstone.models.families import QUANTIZED
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.models.heads import HeadConfig
from bedstone.nn.fast.inference import for_inference
from bedstone.nn.gptq import quantize_for_inference
from bedstone.nn.lora import LoraConfig, add_adapter
from bedstone.nn.quantize import Quantized, make_whole_in, weights_of
from image_models import clip_model, pictures
from networks import randomise
from small_models import decoder, model

IDS = torch.arange(24).view(2, 12)
SHAPE = {"vocab_size": 160, "width": 64, "layers": 2, "heads": 4, "hidden": 128, "context": 32}


def gpt(bits: int, layout: str = "llama", plain: bool = True, **changes) -> Model:
    network = build(GPTConfig(layout=layout, **{**SHAPE, **changes}))
    randomise(network)
    quantize_for_inference(network.eval(), bits)
    make_whole_in(network, torch.bfloat16)
    return Model(network, plain=plain)


class Allocated(TorchDispatchMode):
    """Bytes of all tensors that operations made, on paper or of others' memory left out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {
            t.untyped_storage().data_ptr() for t in tensors_in((args, kwargs)) if not t.is_meta
        }
        for made in tensors_in(out):
            if not made.is_meta and made.untyped_storage().data_ptr() not in given:
                self.bytes += made.nbytes
        return out


def tensors_in(values) -> list[torch.Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, torch.Tensor)]


def codes_of(network: nn.Module) -> dict[str, tuple]:
    return {
        name: (layer.codes, layer.scales, layer.lowest)
        for name, layer in network.named_modules()
        if isinstance(layer, Quantized)
    }


def same_codes(one: nn.Module, other: nn.Module) -> bool:
    first, second = codes_of(one), codes_of(other)
    return first.keys() == second.keys() and all(
        all((a is None and b is None) or torch.equal(a, b) for a, b in zip(*both, strict=True))
        for both in zip(first.values(), second.values(), strict=True)
    )


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("layout", "changes"),
    [
        ("llama", {"kv_heads": 2}),
        ("llama", {"tied": False, "hidden": 40}),  # rows of 8 bits beside groups of 4
        ("gpt2", {}),  # its published matrices are transposed, and q, k and v are one
        ("qwen3", {}),
    ],
)
def test_codes_open_as_they_were_saved(layout, changes, bits, plain, tmp_path):
    saved = gpt(bits, layout, plain, **changes)
    saved.save(tmp_path / "a")
    assert (tmp_path / "a" / "model.safetensors").exists() == plain
    opened = load(tmp_path / "a")
    assert same_codes(saved.network, opened.network)
    assert opened.plain == plain
    tied = saved.config.tied
    assert (opened.network.head.codes is opened.network.embed.codes) == tied
    assert {layer.kept for layer in opened.network.modules() if isinstance(layer, Quantized)} == {
        torch.bfloat16 if plain else torch.float32
    }
    with torch.no_grad():
        outputs = [each.network.to(torch.float32)(IDS) for each in (saved, opened)]
    torch.testing.assert_close(*outputs)
    opened.save(tmp_path / "b")
    for name in (QUANTIZED, *(["model.safetensors"] if plain else [])):
        assert (tmp_path / "a" / name).exists() and (tmp_path / "b" / name).exists()
    assert same_codes(load(tmp_path / "b").network, saved.network)
    record = json.loads((tmp_path / "a" / "bedstone.json").read_text())
    assert QUANTIZED in record["files"]


@pytest.mark.parametrize("bits", [8, 4])
def test_a_dtype_makes_the_codes_whole_without_rounding_them_again(bits, tmp_path):
    saved = gpt(bits)
    saved.save(tmp_path / "a")
    whole = load(tmp_path / "a", dtype=torch.float32).network
    assert not codes_of(whole)
    for name, layer in saved.network.named_modules():
        if isinstance(layer, Quantized):
            assert torch.equal(whole.get_submodule(name).weight, layer.whole(torch.float32))
    whole.tie()
    assert whole.head.weight is whole.embed.weight


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("layout", ["llama", "gpt2", "qwen3"])
def test_the_plain_form_opens_in_transformers(layout, bits, tmp_path):
    transformers = pytest.importorskip("transformers")
    saved = gpt(bits, layout)
    saved.save(tmp_path / "a")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    assert theirs.dtype is torch.bfloat16
    with torch.no_grad():
        found = theirs.float()(IDS).logits
        expected = saved.network.to(torch.bfloat16).to(torch.float32)(IDS)
    assert (found - expected).std() < 0.02 * expected.std()


def test_an_encoder_and_a_clip_go_round(tmp_path):
    for name, made in (("bert", model(HeadConfig("language"))), ("clip", clip_model())):
        quantize_for_inference(made.network, 4)
        made.save(tmp_path / name)
        opened = bedstone.load(tmp_path / name)
        assert same_codes(made.network, opened.network)
        assert codes_of(opened.network)
    images = bedstone.pipeline("image-feature-extraction", tmp_path / "clip")(pictures(2))
    assert len(images) == 2


def test_nothing_is_made_whole_on_opening(tmp_path):
    """What is allocated beside the mapped file is little: no second copy, and none in fp32."""
    saved = gpt(4, layers=4, width=256, heads=8, hidden=768, vocab_size=4096)
    _, held = weights_of(saved.network)
    saved.save(tmp_path / "a")
    with Allocated() as opening:
        opened = load(tmp_path / "a")
    assert weights_of(opened.network)[1] == held
    assert opening.bytes < 0.05 * held
    with Allocated() as making:
        ready = for_inference(opened.network, torch.float32)
    assert making.bytes < 0.1 * held  # it shares the codes
    assert same_codes(ready, opened.network)
    with torch.no_grad():
        assert ready(IDS).isfinite().all()


@pytest.mark.parametrize("bits", [8, 4])
def test_adapters_stand_over_codes(bits, tmp_path):
    gpt(bits).save(tmp_path / "a")
    network = load(tmp_path / "a").network.to(torch.float32)
    with torch.no_grad():
        before = network(IDS)
    add_adapter(network, LoraConfig(rank=2), seed=0)
    network(IDS).square().mean().backward()
    with torch.no_grad():
        torch.testing.assert_close(network(IDS), before)
    learnt = [name for name, each in network.named_parameters() if each.grad is not None]
    assert learnt and all(".adapters." in name for name in learnt)


def test_the_whole_model_generates_from_codes(tmp_path):
    made = decoder(HeadConfig("language"), "llama")
    quantize_for_inference(made.network, 8)
    made.save(tmp_path / "a")
    opened = bedstone.load(tmp_path / "a")
    for precision in ("fp32", "bf16", "int8", "int4"):
        text = opened.generate("the unfriendly", precision=precision, max_new_tokens=3)
        assert isinstance(text, str)


def damaged(folder, change) -> None:
    tensors = load_tensors(folder, name=QUANTIZED)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_tensors(folder, tensors, name=QUANTIZED)
    (folder / "bedstone.json").unlink()


KEY = "model.layers.0.mlp.up_proj.weight"
FAULTS = [
    (8, lambda t: t.pop(f"{KEY}.scales"), "has codes and no scales"),
    (4, lambda t: t.pop(f"{KEY}.lowest"), "its codes are torch.uint8"),
    (4, lambda t: t.update({f"{KEY}.scales": t[f"{KEY}.scales"][:, :1]}), "differ in shape"),
    (4, lambda t: t.update({f"{KEY}.scales": torch.ones(128, 3)}), "don't fit 128 rows"),
    (4, lambda t: t.update({f"{KEY}.lowest": torch.ones(128, 2).int()}), "don't fit 128 rows"),
    (8, lambda t: t.update({f"{KEY}.scales": torch.ones(127, 1)}), "don't fit 128 rows"),
    (8, lambda t: t[f"{KEY}.scales"].fill_(float("nan")), "aren't finite"),
    (8, lambda t: t.update({f"{KEY}.codes": t[f"{KEY}.codes"][:, :7].contiguous()}), "has shape"),
    (8, lambda t: [t.pop(f"{KEY}.{part}") for part in ("codes", "scales")], "are missing"),
    (
        8,
        lambda t: (
            t.update(
                {
                    "model.norm.weight.codes": torch.ones(64, 1, dtype=torch.int8),
                    "model.norm.weight.scales": torch.ones(64, 1),
                }
            )
            or t.pop("model.norm.weight")
        ),
        "has shape",
    ),
]


@pytest.mark.parametrize(("bits", "change", "message"), FAULTS)
def test_damaged_files_are_refused_by_file_and_tensor(bits, change, message, tmp_path):
    gpt(bits).save(tmp_path / "a")
    damaged(tmp_path / "a", change)
    with pytest.raises(BedstoneError, match=message) as error:
        load(tmp_path / "a")
    assert str(tmp_path) in str(error.value)


def test_a_changed_file_is_known_by_its_hash(tmp_path):
    gpt(8).save(tmp_path / "a")
    path = tmp_path / "a" / QUANTIZED
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(BedstoneError, match=QUANTIZED):
        load(tmp_path / "a")


def test_a_model_without_a_plain_form_is_listed(tmp_path):
    counts = []
    for plain in (True, False):
        folder = tmp_path / "runs" / "a"
        gpt(4, plain=plain).save(folder)
        (found,) = [each for each in models_at_hand(tmp_path / "runs") if each.path == folder]
        assert not found.fault
        counts.append(found.parameters)
        shutil.rmtree(folder)
    assert counts[0] == counts[1]
