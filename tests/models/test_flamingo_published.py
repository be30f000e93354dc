"""Folders of GPTs that see: bitwise back, the GPT's own names, the GPT taken out again."""

import json

import pytest
import torch
from safetensors.torch import load_file

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.commands.info import describe
from bedstone.data.images.processor import clip_processor
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.errors import BedstoneError
from bedstone.models.flamingo.network import FlamingoConfig, build_flamingo
from bedstone.models.gpt.network import GPTConfig
from bedstone.models.published import layout, to_published
from bedstone.models.resnet.network import ResNetConfig
from bedstone.models.vit.network import ViTConfig
from networks import randomise

WORDS = {"vocab_size": 300, "width": 32, "layers": 2, "heads": 4, "hidden": 48, "context": 64}
VIT = {"image_size": 12, "patch": 4, "width": 24, "layers": 2, "heads": 4}
CNN = ResNetConfig(image_size=16, width=8, blocks=(1, 1), block="basic", shrink=2)
TOWERS = {
    "clip": ViTConfig("clip_vision_model", **VIT),
    "siglip": ViTConfig("siglip_vision_model", **VIT),
    "blip": ViTConfig("blip_vision_model", **VIT),
    "vit": ViTConfig(**VIT),
    "blip_resnet": CNN,
}


def model(gpt: str, tower: str, **changes) -> Model:
    config = FlamingoConfig(gpt=GPTConfig(gpt, **WORDS), image=TOWERS[tower], every=2, **changes)
    network = build_flamingo(config, seed=0).eval()
    randomise(network)
    words = train_bpe(["two red circles and a blue square"] * 4, 270)
    return Model(network, words, processor=clip_processor(config.image.size[0]))


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("gpt", ["gpt2", "qwen3", "llama"])
def test_a_folder_opens_as_it_was_to_the_last_bit(gpt, tower, tmp_path):
    ours = model(gpt, tower)
    ours.save(tmp_path / "m")
    again = bedstone.load(tmp_path / "m")
    assert again.config == ours.config
    state = again.network.state_dict()
    for name, weight in ours.network.state_dict().items():
        assert torch.equal(weight, state[name]), name
    ids = torch.arange(20).view(2, 10)
    pixels = again.processor([torch.zeros(20, 20, 3, dtype=torch.uint8).numpy()])
    with torch.no_grad():
        assert torch.equal(again.network(ids, pixels=pixels), ours.network(ids, pixels=pixels))
    assert again.end_ids == ours.end_ids != set()
    assert again.generation["eos_token_id"] == ours.tokenizer.eos_id


@pytest.mark.parametrize("gpt", ["gpt2", "qwen3", "mistral"])
def test_the_gpt_keeps_its_published_names_and_opens_in_theirs(gpt, tmp_path):
    import transformers

    ours = model(gpt, "blip_resnet", memory_width=20)
    ours.save(tmp_path / "m")
    stored = load_file(tmp_path / "m" / "model.safetensors")
    alone = to_published(layout(gpt), ours.network.gpt_only())
    for name, weight in alone.items():
        assert torch.equal(stored[name], weight), name
    others = {name.split(".")[0] for name in stored.keys() - alone.keys()}
    assert others == {"sight", "visual"}
    # what stands in text_config is all that the published class needs
    written = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.json").write_text(json.dumps(written["text_config"]))
    theirs = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(tmp_path / "gpt")
    ).eval()
    missing, _ = theirs.load_state_dict(stored, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    theirs.tie_weights()
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        assert (theirs(ids).logits - ours.network(ids)).abs().max() < 1e-4


def test_the_gpt_is_taken_out_again(tmp_path):
    ours = model("qwen3", "clip")
    whole = Model(ours.network.gpt_only(), ours.tokenizer)
    whole.save(tmp_path / "gpt")
    again = bedstone.load(tmp_path / "gpt")
    assert again.config == ours.config.gpt
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        assert torch.equal(again.network(ids), ours.network(ids))


def test_what_it_is_is_said(tmp_path):
    ours = model("qwen3", "blip_resnet")
    ours.save(tmp_path / "m")
    facts = describe(bedstone.load(tmp_path / "m"))
    assert facts["layout"] == "flamingo"
    assert facts["head"] == "language"
    assert facts["image_pixels"] == "16 by 16"
    assert "Bedstone alone" in (tmp_path / "m" / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_config": None}, "text_config"),
        ({"vision_config": 3}, "vision_config = 3"),
        ({"vision_layout": "clop"}, "perhaps 'clip'"),
        ({"cross_attention_every": 7}, "none would see"),
    ],
)
def test_a_wrong_configuration_is_named(change, message, tmp_path):
    model("qwen3", "clip").save(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BedstoneError, match=message):
        bedstone.load(tmp_path / "m", verify=False)
