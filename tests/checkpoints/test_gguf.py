"""GGUF files: read as the library reads them, written so that it reads them, both ways the same."""

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize

import bedstone
from bedstone.checkpoints import gguf_blocks
from bedstone.checkpoints.gguf import save_gguf
from bedstone.checkpoints.gguf_file import read_gguf
from bedstone.checkpoints.model import Model
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.errors import BedstoneError
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.nn.quantize import QuantizedLinear, weights_of

CONFIGS = {
    "llama": {
        "kv_heads": 2,
        "tied": False,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
    },
    "llama3": {
        "kv_heads": 2,
        "rope_base": 500_000.0,
        "context": 256,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral": {"kv_heads": 1, "window": 9},
    "qwen2": {"kv_heads": 4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "qwen3": {"kv_heads": 2, "head_width": 24, "tied": False},
    "gpt2": {},
}
LAYOUTS = {"llama3": "llama"}


@pytest.fixture(scope="module")
def tokenizer():
    text = "the cat sat on the mat; def f(x):\n    return x ** 2\nIt's 1234 mats, " * 30
    return train_bpe([text], 320)


def model_of(name: str, tokenizer: Any, **more: Any) -> Model:
    shape = {"vocab_size": 331, "width": 64, "layers": 2, "heads": 4, "hidden": 96, "context": 64}
    config = GPTConfig(layout=LAYOUTS.get(name, name), **{**shape, **CONFIGS[name], **more})
    network = build(config, seed=3)
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in network.parameters():  # norms and biases too, so that a swap is noticed
            weight.add_(0.1 * torch.randn(weight.shape, generator=random))
    return Model(network.eval(), tokenizer)


def logits(model: Model, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.network(ids)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_is_read_again(name, tokenizer, tmp_path):
    model = model_of(name, tokenizer)
    save_gguf(model, tmp_path / "x.gguf")
    again = bedstone.load(tmp_path / "x.gguf")
    ids = torch.randint(0, 331, (2, 40), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(logits(again, ids), logits(model, ids), rtol=0, atol=1e-5)
    same = dataclasses.replace(again.config, rope_scaling=model.config.rope_scaling)
    assert same == dataclasses.replace(model.config, norm_eps=same.norm_eps)
    assert again.config.norm_eps == pytest.approx(model.config.norm_eps)
    text = "  The cat's 1234 mats\n\n  def f(x): return x<|endoftext|>ünï"
    assert again.tokenizer.encode(text) == tokenizer.encode(text)
    assert again.tokenizer.settings["eos_token"] == "<|endoftext|>"
    assert again.end_ids == model.end_ids
    assert again.tokenizer.vocab_size == tokenizer.vocab_size  # ids without a token stay without


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gpt2"])
def test_transformers_reads_what_is_written(name, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    more = {"rope_scaling": {}, "qkv_bias": None, "mlp_bias": None, "head_width": 0}
    more["out_bias"] = None
    if name == "qwen3":
        more["head_width"] = 128  # it takes its own default, whatever the file says
    if name == "gpt2":
        more |= {"hidden": 256, "context": 1024}
    model = model_of(name, tokenizer, **more)
    save_gguf(model, tmp_path / "x.gguf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf").eval()
    ids = torch.randint(0, 331, (2, 30), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(ids).logits
    torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_1", "bf16"])
def test_quantised_files_hold_the_librarys_own_codes(kind, tokenizer, tmp_path):
    model = model_of("llama", tokenizer)
    save_gguf(model, tmp_path / "x.gguf", kind)
    found = {each.name: each for each in GGUFReader(tmp_path / "x.gguf").tensors}
    weight = model.network.state_dict()["stack.0.mlp.sublayer.up.weight"].numpy()
    inner = found["blk.0.ffn_up.weight"]
    assert inner.tensor_type.name == kind.upper()
    assert np.array_equal(inner.data, quantize(weight, GGMLQuantizationType[kind.upper()]))
    embedding = found["token_embd.weight"].tensor_type.name
    assert embedding == ("Q8_0" if kind.startswith("q") else "BF16")
    assert found["blk.0.attn_norm.weight"].tensor_type.name == "F32"


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_four_bits_are_held_as_they_stand(kind, tokenizer, tmp_path):
    save_gguf(model_of("llama", tokenizer), tmp_path / "x.gguf", kind.lower())
    held = bedstone.load(tmp_path / "x.gguf")
    whole = bedstone.load(tmp_path / "x.gguf", dtype=torch.float32)
    layers = [m for m in held.network.modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == 2 * 7
    assert not any(isinstance(m, QuantizedLinear) for m in whole.network.modules())
    expected = whole.network.state_dict()
    for name, weight in held.network.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=3e-7, atol=1e-9)
    ids = torch.randint(0, 331, (2, 30), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(logits(held, ids), logits(whole, ids), rtol=0, atol=1e-5)
    assert weights_of(held.network)[0] == weights_of(whole.network)[0]
    assert weights_of(held.network)[1] < 0.51 * weights_of(whole.network)[1]
    held.save(tmp_path / "folder")
    again = bedstone.load(tmp_path / "folder")
    torch.testing.assert_close(logits(again, ids), logits(whole, ids), rtol=0, atol=1e-5)


# The library quantises few kinds; of the others, random blocks of the right size are a file.
@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q5_K", "F16"])
def test_every_kind_is_made_whole_as_the_library_does(kind, tmp_path):
    number = GGMLQuantizationType[kind]
    block, size = gguf.constants.GGML_QUANT_SIZES[number]
    random = np.random.default_rng(5)
    data = random.integers(0, 256, (6, 512 // block * size), dtype=np.uint8)
    if kind == "F16":
        data = random.standard_normal((6, 512)).astype(np.float16).view(np.uint8)
    else:  # scales must be finite
        halves = data.reshape(-1, size)
        at = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q2_K": (size - 4, size - 2), "Q5_1": (0, 2)}
        for place in at.get(kind, (size - 2,) if kind in ("Q6_K", "Q3_K") else (0,)):
            halves[:, place + 1] &= 0b00111111
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("w", data, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    stored = read_gguf(tmp_path / "x.gguf").tensors["w"]
    expected = torch.from_numpy(dequantize(data, number))
    assert stored.shape == (6, 512)
    assert torch.equal(gguf_blocks.whole(stored, torch.float32), expected)
    if kind == "Q4_K":
        codes = gguf_blocks.codes(stored)
        whole = torch.cat((codes.packed & 15, codes.packed >> 4), 1)
        made = whole.unflatten(1, (-1, 32)) * codes.scales[..., None]
        torch.testing.assert_close((made + codes.lowest[..., None]).flatten(1), expected)


def test_a_folder_with_one_file_and_a_set_of_parts_open(tokenizer, tmp_path):
    model = model_of("qwen3", tokenizer)
    (tmp_path / "one").mkdir()
    save_gguf(model, tmp_path / "one" / "whole.gguf")
    ids = torch.arange(20)[None]
    expected = logits(model, ids)
    assert torch.equal(logits(bedstone.load(tmp_path / "one"), ids), expected)

    parts = split(tmp_path / "one" / "whole.gguf", tmp_path, 3)
    for name in (parts[0], parts[2], tmp_path):
        assert torch.equal(logits(bedstone.load(name), ids), expected)
    parts[1].unlink()
    with pytest.raises(BedstoneError, match=r"m-00002-of-00003\.gguf is missing beside it"):
        bedstone.load(parts[0])
    save_gguf(model, tmp_path / "one" / "second.gguf")
    with pytest.raises(BedstoneError, match="holds 2 GGUF files"):
        bedstone.load(tmp_path / "one")


def split(source: Path, folder: Path, count: int) -> list[Path]:
    """Writes a file as a set of parts, as llama.cpp does."""
    reader = GGUFReader(source)
    found = []
    for part in range(count):
        path = folder / f"m-{part + 1:05d}-of-{count:05d}.gguf"
        writer = GGUFWriter(path, "qwen3")
        for name, field in reader.fields.items():
            if part or name.startswith("GGUF.") or name == "general.architecture":
                continue
            kinds = [*field.types, None]
            writer.add_key_value(name, field.contents(), kinds[0], sub_type=kinds[1])
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[part::count]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        found.append(path)
    return found


def test_end_tokens_and_sampling_settings_are_kept(tokenizer, tmp_path):
    model = model_of("qwen3", tokenizer)
    model.generation = {"eos_token_id": [4, 2], "temperature": 0.5, "top_k": 7, "do_sample": True}
    model.tokenizer.settings["chat_template"] = "{{ messages[0].content }}"
    try:
        save_gguf(model, tmp_path / "x.gguf")
    finally:
        del model.tokenizer.settings["chat_template"]
    again = bedstone.load(tmp_path / "x.gguf")
    assert again.end_ids == {2, 4}
    assert again.generation["temperature"] == 0.5
    assert again.generation["top_k"] == 7
    assert again.tokenizer.chat_template == "{{ messages[0].content }}"


def test_what_has_no_place_in_a_file_is_refused(tokenizer, tmp_path):
    dynamic = {"rope_type": "dynamic", "factor": 2.0}
    for more, fault in [
        ({"rope_scaling": dynamic}, "rope_type 'dynamic'"),
        ({"activation": "gelu"}, "activation 'gelu'"),
    ]:
        with pytest.raises(BedstoneError, match=f"GGUF has no place for {fault}"):
            save_gguf(model_of("llama", tokenizer, **more), tmp_path / "x.gguf")
    with pytest.raises(BedstoneError, match=r"quantize: 'q5' was given; expected one of .*q4_0"):
        save_gguf(model_of("llama", tokenizer), tmp_path / "x.gguf", "q5")
    assert list(tmp_path.iterdir()) == []
