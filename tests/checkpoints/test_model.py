"""The artefact: what we save opens in transformers, what they save opens here."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.errors import BedstoneError
from bedstone.models.gpt.network import LAYOUTS, GPTConfig, build
from networks import randomise

TEXT = ["def read(path):\n    return open(path).read()\n", "the cat sat, the dog ran. " * 9]


def small(name: str, **changes) -> Model:
    tokenizer = train_bpe(TEXT * 3, 300)
    shape = {"width": 32, "layers": 2, "heads": 4, "hidden": 48, "context": 96}
    network = build(GPTConfig(layout=name, vocab_size=tokenizer.vocab_size, **{**shape, **changes}))
    randomise(network)
    return Model(network.eval(), tokenizer)


@pytest.fixture(params=LAYOUTS)
def model(request) -> Model:
    return small(request.param)


def test_saved_folders_open_in_transformers_and_come_back(model, tmp_path):
    import transformers

    model.save(tmp_path / "ours")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(theirs).__name__ == model.layout.architecture(model.config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    prompt = tokenizer("def read(", return_tensors="pt").input_ids
    assert prompt[0].tolist() == model.tokenizer.encode("def read(")
    with torch.no_grad():
        assert (theirs(prompt).logits - model.network(prompt)).abs().max() < 1e-4
    assert theirs.generation_config.eos_token_id == model.tokenizer.eos_id
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer.save_pretrained(tmp_path / "theirs")
    again = bedstone.load(tmp_path / "theirs")
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name
    assert again.tokenizer.encode(TEXT[0]) == model.tokenizer.encode(TEXT[0])


def test_save_and_load_are_bitwise(model, tmp_path):
    model.save(tmp_path / "a")
    again = bedstone.load(tmp_path / "a")
    assert again.config == model.config
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name])
    again.save(tmp_path / "b")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_tied_weights_stay_one(tmp_path):
    small("llama", tied=True).save(tmp_path / "a")
    network = bedstone.load(tmp_path / "a").network
    assert network.head.weight is network.embed.weight
    assert not any("lm_head" in name for name in load_file(tmp_path / "a" / "model.safetensors"))


def test_the_stored_precision_is_kept_or_changed(tmp_path):
    model = small("qwen3")
    model.network.bfloat16()
    model.save(tmp_path / "a")
    assert bedstone.load(tmp_path / "a").network.embed.weight.dtype is torch.bfloat16
    wide = bedstone.load(tmp_path / "a", dtype=torch.float32).network
    assert wide.embed.weight.dtype is torch.float32


def rewrite(folder, tensors=None, **config):
    """Changes a saved folder as another writer might have left it."""
    (folder / "bedstone.json").unlink(missing_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    if tensors is not None:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_bare_gpt2_names_with_their_masks_open(tmp_path):
    model = small("gpt2")
    model.save(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    bare = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 96, 96)
    bare["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    rewrite(tmp_path / "a", bare)
    again = bedstone.load(tmp_path / "a").network
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_older_rope_keys_are_read(tmp_path):
    model = small("llama", rope_base=5e5)
    model.save(tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    scaling = {
        "type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    path.write_text(json.dumps(config | {"rope_theta": 5e5, "rope_scaling": scaling}))
    (tmp_path / "a" / "bedstone.json").unlink()
    read = bedstone.load(tmp_path / "a").config
    assert read.rope_base == 5e5
    assert read.rope_scaling["factor"] == 8.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "lama"}, "perhaps 'llama'"),
        ({"vocab_size": 7}, "vocabulary doesn't match"),
        ({"num_hidden_layers": 3}, "are missing, 'model.layers.2"),
        ({"hidden_size": 64, "head_dim": 8}, "has shape"),
        ({"num_attention_heads": None, "hidden_act": "silly"}, "num_attention_heads"),
    ],
)
def test_configurations_that_do_not_fit_are_named(tmp_path, config, message):
    small("llama").save(tmp_path / "a")
    rewrite(tmp_path / "a", **config)
    with pytest.raises(BedstoneError, match=message):
        bedstone.load(tmp_path / "a")


def test_pickled_weights_are_refused(tmp_path):
    small("llama").save(tmp_path / "a")
    rewrite(tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").unlink()
    (tmp_path / "a" / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(BedstoneError, match="pickle"):
        bedstone.load(tmp_path / "a")


def test_other_peoples_folders_are_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BedstoneError, match="holds other files"):
        small("llama").save(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_model_can_be_saved_over_itself(tmp_path):
    model = small("qwen3")
    model.save(tmp_path / "a")
    again = bedstone.load(tmp_path / "a")
    before = {name: value.clone() for name, value in again.network.state_dict().items()}
    again.save(tmp_path / "a")
    last = bedstone.load(tmp_path / "a").network.state_dict()
    assert all(torch.equal(last[name], value) for name, value in before.items())


# Weights that a configuration ties, and whose file holds both.

HEADS = {
    "LlamaForCausalLM": "lm_head.weight",
    "GPT2LMHeadModel": "lm_head.weight",
    "BertForMaskedLM": "cls.predictions.decoder.weight",
    "RobertaForMaskedLM": "lm_head.decoder.weight",
    "DistilBertForMaskedLM": "vocab_projector.weight",
}


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("name", HEADS)
def test_a_head_of_its_own_is_used_whatever_the_tied_flag_says(name, equal, tmp_path):
    import transformers

    kind = getattr(transformers, name)
    shape = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    if name.startswith("Distil"):
        shape = {"vocab_size": 50, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
    config = kind.config_class(**shape, tie_word_embeddings=True)
    torch.manual_seed(0)
    kind(config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    words = next(value for key, value in tensors.items() if "word_embed" in key or ".wte." in key
                 or "embed_tokens" in key)  # fmt: skip
    tensors[HEADS[name]] = words.clone() if equal else torch.randn(50, 16)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours, theirs = bedstone.load(tmp_path), kind.from_pretrained(tmp_path).eval()
    ids = torch.randint(5, 50, (1, 8))
    with torch.no_grad():
        assert (ours.network(ids) - theirs(ids).logits).abs().max() < 1e-4
    assert ours.config.tied is equal


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[]", "expected a JSON object"),
        ('{"files": ["a"]}', r"files = \['a'\]; expected an object"),
        ('{"files": {"config.json": {"size": Infinity, "sha256": "x"}}}', "is damaged"),
        ('{"files": {"config.json": 5}}', "is damaged"),
        ('{"recipe": 5}', "recipe = 5; expected an object"),
    ],
)
def test_a_record_of_another_shape_is_refused(tmp_path, text, fault):
    small("llama").save(tmp_path / "m")
    (tmp_path / "m" / "bedstone.json").write_text(text)
    with pytest.raises(BedstoneError, match=rf"bedstone\.json.*{fault}"):
        bedstone.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos_token_id", {"a": 1}),
        ("eos_token_id", [[1]]),
        ("temperature", "hot"),
        ("top_k", 1.5),
        ("repetition_penalty", [1]),
        ("do_sample", "yes"),
        ("top_p", float("nan")),
        ("bad_words_ids", [[""]]),
        ("sequence_bias", [[1, 2, 3]]),
        ("min_new_tokens", -1),
    ],
)
def test_generation_settings_of_another_kind_are_named(tmp_path, key, value):
    small("llama").save(tmp_path / "m")
    (tmp_path / "m" / "bedstone.json").unlink()
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(BedstoneError, match=rf"/m/generation_config\.json: {key} = "):
        bedstone.load(tmp_path / "m")


def test_a_tokenizer_that_links_to_itself_is_named(tmp_path):
    small("llama").save(tmp_path / "m")
    file = tmp_path / "m" / "tokenizer.json"
    file.unlink()
    file.symlink_to(file.name)
    with pytest.raises(BedstoneError, match=r"/m/tokenizer\.json: can't be read"):
        bedstone.load(tmp_path / "m", verify=False)
