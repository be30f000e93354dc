"""Sizes in a config.json that the weights belie are refused at once, by file, key and value."""

import json
import resource
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.data.images.processor import vit_processor
from bedstone.errors import BedstoneError
from bedstone.models.bert.network import BertConfig
from bedstone.models.bert.network import build as build_bert
from bedstone.models.clip.network import CLIPConfig, TextConfig
from bedstone.models.clip.network import build as build_clip
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.models.heads import HeadConfig
from bedstone.models.vit.network import ViTConfig
from bedstone.models.vit.network import build as build_vit

SHAPE = {"vocab_size": 40, "width": 16, "layers": 2, "heads": 2, "hidden": 32, "context": 24}
VIT = {"image_size": (16, 16), "patch": (8, 8), "width": 16, "layers": 1, "heads": 2, "hidden": 32}


def _clip():
    text = TextConfig(vocab_size=40, width=16, layers=1, heads=2, hidden=32, context=8)
    return build_clip(CLIPConfig("clip", ViTConfig("clip_vision_model", **VIT), text, 8))


NETWORKS = {
    "qwen3": lambda: build(GPTConfig(layout="qwen3", **SHAPE)),
    "gpt2": lambda: build(GPTConfig(layout="gpt2", **SHAPE)),
    "bert": lambda: build_bert(BertConfig(**SHAPE, head=HeadConfig("sequence", ("a", "b")))),
    "distilbert": lambda: build_bert(
        BertConfig(layout="distilbert", **SHAPE, head=HeadConfig("language"))
    ),
    "vit": lambda: build_vit(ViTConfig(**VIT, head=HeadConfig("sequence", ("a", "b")))),
    "clip": _clip,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    for name, make in NETWORKS.items():
        Model(make().eval()).save(home / name)
        (home / name / "bedstone.json").unlink()
    return home


@pytest.fixture
def changed(folders):
    """Changes one key of a folder's config.json (`section.key` of a section) for one test."""
    kept = {}

    def change(name, key, value):
        path = folders / name / "config.json"
        kept.setdefault(path, path.read_text())
        config = json.loads(kept[path])
        section, _, leaf = key.rpartition(".")
        (config[section] if section else config)[leaf] = value
        path.write_text(json.dumps(config))
        return folders / name

    yield change
    for path, text in kept.items():
        path.write_text(text)


def refused(folder, *words):
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BedstoneError) as caught:
        bedstone.load(folder)
    message = str(caught.value)
    assert message.startswith(str(folder)) and "\n" not in message and len(message) < 700, message
    assert all(word in message for word in words), message
    assert time.process_time() - began < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024


COUNTED = {
    "qwen3": ("num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim"),
    "gpt2": ("n_layer", "n_embd", "n_head", "n_inner"),
    "bert": ("num_hidden_layers", "hidden_size", "intermediate_size", "type_vocab_size"),
    "distilbert": ("n_layers", "dim", "n_heads", "hidden_dim"),
    "vit": ("num_hidden_layers", "hidden_size", "image_size", "patch_size"),
    "clip": ("vision_config.num_hidden_layers", "text_config.hidden_size", "projection_dim"),
}
BAD = (10**9, 10**30, -1, "x", [1], {"a": 1}, True, float("nan"), float("inf"))


@pytest.mark.parametrize(("name", "key"), [(n, k) for n, keys in COUNTED.items() for k in keys])
@pytest.mark.parametrize("value", BAD, ids=str)
def test_a_size_is_refused_by_file_key_and_value(changed, name, key, value):
    refused(changed(name, key, value), "config.json", key.rpartition(".")[2])


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("bert", "architectures", [True]),
        ("bert", "architectures", 5),
        ("bert", "id2label", ["a"]),
        ("bert", "id2label", {"x": "a"}),
        ("bert", "problem_type", ["x"]),
        ("bert", "hidden_act", ["x"]),
        ("bert", "hidden_dropout_prob", 7),
        ("bert", "pad_token_id", "x"),
        ("bert", "layer_norm_eps", float("nan")),
        ("qwen3", "rope_parameters", "x"),
        ("qwen3", "rope_theta", -1),
        ("qwen3", "layer_types", 5),
        ("qwen3", "rms_norm_eps", 0),
        ("qwen3", "tie_word_embeddings", "no"),
        ("clip", "text_config", 3),
        ("clip", "vision_config.hidden_act", 5),
    ],
)
def test_values_of_another_kind_are_named(changed, name, key, value):
    refused(changed(name, key, value), "config.json", key.rpartition(".")[2])


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": {}},
        {"rope_type": "linear", "factor": "x"},
        {"rope_type": "linear", "factor": 0},
        {"rope_type": "linear"},
        {"rope_type": "yarn", "factor": -2},
        {"rope_type": "llama3", "factor": 2, "low_freq_factor": 0, "high_freq_factor": 0},
    ],
)
def test_rotary_numbers_that_give_no_frequencies_are_refused(changed, rope):
    refused(changed("qwen3", "rope_parameters", rope), "config.json")


def test_weights_of_more_layers_are_not_read_as_fewer(changed):
    refused(changed("bert", "num_hidden_layers", 1), "encoder.layer.1", "a layer more")
    refused(changed("gpt2", "n_layer", 1), "h.1.")


def test_many_labels_on_paper_are_compared_with_the_head(changed):
    folder = changed("bert", "id2label", {str(n): f"L{n}" for n in range(5000)})
    refused(folder, "(2, 16)", "(5000, 16)")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_weights_that_are_no_plain_numbers_are_named(folders, dtype):
    path = folders / "bert" / "model.safetensors"
    tensors = load_file(path)
    try:
        save_file({key: tensor.to(dtype) for key, tensor in tensors.items()}, path)
        refused(folders / "bert", "word_embeddings", str(dtype).removeprefix("torch."))
    finally:
        save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(folders, value):
    path = folders / "gpt2" / "model.safetensors"
    tensors = load_file(path)
    try:
        hurt = {key: tensor.clone() for key, tensor in tensors.items()}
        hurt["transformer.h.1.mlp.c_fc.weight"][3, 5] = value
        save_file(hurt, path)
        refused(folders / "gpt2", "h.1.mlp.c_fc.weight", "aren't finite")
    finally:
        save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("shape", [(2, 2), (), (16, 47)])
def test_stacked_weights_that_do_not_divide_are_named(folders, shape):
    path = folders / "gpt2" / "model.safetensors"
    tensors = load_file(path)
    try:
        key = "transformer.h.0.attn.c_attn.weight"
        save_file({**tensors, key: torch.zeros(shape)}, path)
        refused(folders / "gpt2", key)
    finally:
        save_file(tensors, path, metadata={"format": "pt"})


def test_pictures_much_larger_than_the_network_reads_are_refused(tmp_path):
    model = Model(NETWORKS["vit"]().eval(), processor=vit_processor(16))
    model.save(tmp_path / "m")
    (tmp_path / "m" / "bedstone.json").unlink()
    path = tmp_path / "m" / "preprocessor_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "size": {"height": 16384, "width": 16384}}))
    refused(tmp_path / "m", "preprocessor_config.json", "16384 x 16384", "16 x 16")
