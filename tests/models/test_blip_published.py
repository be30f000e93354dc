"""Whole folders of BLIP: weights, processor and tokenizer, both ways."""

import json

import numpy as np
import pytest
import torch

import bedstone
from bedstone.checkpoints.adapters import adapt, save_adapter
from bedstone.checkpoints.model import Model
from bedstone.commands.info import describe
from bedstone.data.images.processor import blip_processor
from bedstone.data.text.convert_tokenizer import wordpiece
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import generate
from bedstone.generation.sampling import Sampling
from bedstone.models.blip.config import blip_config
from bedstone.models.blip.network import build_blip
from bedstone.nn.lora import LoraConfig, add_adapter
from networks import randomise

CLASSES = {
    "captions": "BlipForConditionalGeneration",
    "answers": "BlipForQuestionAnswering",
    "matching": "BlipForImageTextRetrieval",
}
WORDS = ["a", "red", "square", "two", "blue", "circles", "what", "is", "this", "?", "##s", ","]
TEXTS = ["a red square", "two blue circles", "what is this?"]
IMAGE = {"image_size": 24, "patch": 6, "width": 24, "layers": 2, "heads": 4}
CNN = {"image_size": 24, "width": 8, "blocks": [1, 1], "block": "basic", "shrink": 2}


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 31, 3), dtype=np.uint8)


def tokenizer() -> Tokenizer:
    """BERT's words and, as in BLIP's own code, [DEC] and [ENC] behind them."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend, settings = wordpiece({word: i for i, word in enumerate(special + WORDS)})
    backend.add_special_tokens(["[DEC]", "[ENC]"])
    return Tokenizer(backend, {**settings, "bos_token": "[DEC]"})


def model(kind: str, name: str = "blip", seed: int = 0) -> Model:
    words = tokenizer()
    text = {"vocab_size": 24, "context": 16, "width": 24, "layers": 2, "heads": 4}
    text |= {"bos_id": words.bos_id, "eos_id": words.sep_id, "pad_id": words.pad_id}
    image = IMAGE if name == "blip" else CNN
    shape = {"layout": name, "image": image, "text": text, "embed": 9, "head": {"kind": kind}}
    network = build_blip(blip_config(shape)).eval()
    randomise(network, seed)
    return Model(network, words, processor=blip_processor(24))


def pixels() -> torch.Tensor:
    return blip_processor(24)([picture(), picture(1), picture(2)])


def ids() -> torch.Tensor:
    return torch.randint(5, 22, (3, 6), generator=torch.Generator().manual_seed(3))


def ours(network, kind: str) -> torch.Tensor:
    given = {"answers": ids()} if kind == "answers" else {}
    with torch.no_grad():
        return network(pixels(), ids(), **given)


def theirs(network, kind: str) -> torch.Tensor:
    given = {"pixel_values": pixels(), "input_ids": ids()}
    with torch.no_grad():
        if kind == "captions":
            return network(**given).logits
        if kind == "matching":
            return network(**given).itm_score
        found = {}
        hook = network.text_decoder.register_forward_hook(lambda *call: found.update(out=call[-1]))
        network(**given, decoder_input_ids=ids())
        hook.remove()
        return found["out"].logits


def opened(folder, kind: str):
    """By the class that our configuration or the caller names; nothing missing."""
    import transformers

    kind_of = getattr(transformers, CLASSES[kind])
    network, report = kind_of.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    return network.eval(), report["unexpected_keys"]


@pytest.mark.parametrize("kind", CLASSES)
def test_theirs_opens_what_we_save(kind, tmp_path):
    mine = model(kind)
    mine.save(tmp_path / "m")
    written = json.loads((tmp_path / "m" / "config.json").read_text())
    assert written["architectures"] == [CLASSES[kind]]
    network, left = opened(tmp_path / "m", kind)
    assert set(left) == ({"logit_scale"} if kind == "matching" else set())
    assert (ours(mine.network, kind) - theirs(network, kind)).abs().max() < 1e-4


@pytest.mark.parametrize("kind", CLASSES)
def test_we_open_what_theirs_saves(kind, tmp_path):
    mine = model(kind)
    mine.save(tmp_path / "m")
    network, _ = opened(tmp_path / "m", kind)
    network.save_pretrained(tmp_path / "t")
    again = bedstone.load(tmp_path / "t")
    assert again.config == mine.config
    for name, value in mine.network.state_dict().items():
        if name == "logit_scale":  # no published class has it: contrast starts anew
            assert again.network.scale.item() == pytest.approx(1 / 0.07)
        else:
            assert torch.equal(value, again.network.state_dict()[name]), name
    assert torch.equal(ours(again.network, kind), ours(mine.network, kind))


def test_each_class_finds_its_own_in_a_joint_network(tmp_path):
    mine = model("joint")
    mine.save(tmp_path / "m")
    network = mine.network
    with torch.no_grad():
        memory = network.memory(pixels())
        states = network.read(ids(), None, memory)
        expected = {
            "captions": network.head(network.caption_states(ids(), None, memory)),
            "answers": network.head(network.answer_states(ids(), None, states)),
            "matching": network.match_logits(ids(), None, memory),
        }
    for kind, logits in expected.items():
        assert (theirs(opened(tmp_path / "m", kind)[0], kind) - logits).abs().max() < 1e-4


@pytest.mark.parametrize("kind", [*CLASSES, "joint"])
@pytest.mark.parametrize("name", ["blip", "blip_resnet"])
def test_a_folder_of_ours_is_opened_the_same(kind, name, tmp_path):
    mine = model(kind, name)
    mine.record = {"data": {"source": "scenes"}}
    mine.save(tmp_path / "m")
    again = bedstone.load(tmp_path / "m")
    assert (again.config, again.processor) == (mine.config, mine.processor)
    for key, value in mine.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[key]), key
    card = (tmp_path / "m" / "README.md").read_text()
    assert "scenes" in card
    task = {"answers": "visual-question-answering", "matching": "image-text-matching"}
    assert f"pipeline_tag: {task.get(kind, 'image-to-text')}" in card
    if name == "blip":
        assert f"{CLASSES.get(kind, CLASSES['captions'])}.from_pretrained" in card
    else:
        assert "Bedstone alone opens it" in card
    facts = describe(again)
    assert (facts["head"], facts["text_width"], facts["joint_width"]) == (kind, 24, 9)


def test_their_processor_opens_our_folder_and_generation_is_equal(tmp_path):
    import transformers

    mine = model("captions")
    mine.save(tmp_path / "m")
    network, _ = opened(tmp_path / "m", "captions")
    whole = transformers.BlipProcessor.from_pretrained(tmp_path / "m")
    made = whole(
        text=TEXTS, images=[picture(n) for n in range(3)], padding=True, return_tensors="pt"
    )
    assert "token_type_ids" not in made
    for row, text in zip(made["input_ids"].tolist(), TEXTS, strict=True):
        mine_row = mine.tokenizer.encode(text, special=True)
        assert row[: len(mine_row)] == mine_row
    assert (made["pixel_values"] - pixels()).abs().max() < 0.02
    rows = network.generate(pixel_values=pixels(), max_new_tokens=6).tolist()
    end, begin = mine.config.text.eos_id, mine.config.text.bos_id
    assert all(row[0] == begin for row in rows)
    with torch.no_grad():
        writer = mine.network.writer(mine.network.memory(pixels()))
        found = generate(writer, [[begin]] * 3, Sampling(temperature=0, max_tokens=6), eos=[end])
    for row, said in zip(rows, found, strict=True):
        assert row[1 : 1 + len(said.ids)] == said.ids
        assert whole.decode(row, skip_special_tokens=True) == mine.tokenizer.decode(said.ids)


def test_the_tokenizer_that_their_processor_saves_is_ours(tmp_path):
    """Of bert-base-uncased's kind: published folders have no [DEC] in it, ours may."""
    import transformers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join(special + WORDS))
    words = transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt"))
    seen = transformers.BlipImageProcessor(size={"height": 24, "width": 24})
    for added in (False, True):
        if added:  # as BLIP's own code has them
            words.add_special_tokens({"bos_token": "[DEC]"})
            words.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
        folder = tmp_path / f"p{added}"
        model("captions").save(folder)
        for old in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
            (folder / old).unlink()
        (folder / "bedstone.json").unlink()
        transformers.BlipProcessor(seen, words).save_pretrained(folder)
        again = bedstone.load(folder)
        for text in (*TEXTS, "Two RED squares, naïve 漢字", "x" * 200):
            assert again.tokenizer.encode(text, special=True) == words(text)["input_ids"]
        assert again.processor == blip_processor(24)
        assert again.tokenizer.id_of("[DEC]") == (17 if added else None)
        assert again.tokenizer.bos_id == (17 if added else None)
        assert again.config.text.bos_id == 17  # the network's own, whatever the tokenizer says


def test_what_published_files_leave_out_is_as_usual(tmp_path):
    from bedstone.models.published import layout

    bare = {"model_type": "blip", "architectures": ["BlipForQuestionAnswering"]}
    config = layout("blip").read_config({**bare, "text_config": {}, "vision_config": {}})
    import transformers

    theirs = transformers.BlipConfig()
    assert (config.text.heads, config.image.heads) == (8, 12)
    assert config.image.size == (384, 384)
    assert config.text.vocab_size == theirs.text_config.vocab_size
    assert config.text.bos_id == theirs.text_config.bos_token_id
    assert config.text.eos_id == theirs.text_config.sep_token_id
    assert config.image.norm_eps == theirs.vision_config.layer_norm_eps
    assert config.text.norm_eps == theirs.text_config.layer_norm_eps
    assert config.embed == theirs.image_text_hidden_size


@pytest.mark.parametrize(("whole", "text"), [(True, False), (False, True), (False, False)])
def test_words_are_tied_where_theirs_ties_them(whole, text, tmp_path):
    import transformers

    from bedstone.models.published import layout

    mine = layout("blip").write_config(model("captions").config)
    mine["tie_word_embeddings"], mine["text_config"]["tie_word_embeddings"] = whole, text
    (tmp_path / "config.json").write_text(json.dumps(mine))
    shape = transformers.BlipConfig.from_pretrained(tmp_path)
    words = transformers.BlipForConditionalGeneration(shape).text_decoder
    tied = words.cls.predictions.decoder.weight is words.bert.embeddings.word_embeddings.weight
    assert layout("blip").read_config(mine).text.tied == tied


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"architectures": ["BlipModel"]}, "'BlipModel'"),
        ({"text_config": 3}, "text_config = 3"),
        ({"text_config": {"is_decoder": False}}, "is_decoder"),
        (
            {"vision_config": {"hidden_size": "wide"}},
            "vision_config.hidden_size = 'wide'; expected a whole number",
        ),
    ],
)
def test_configurations_that_cannot_be(change, told, tmp_path):
    model("captions").save(tmp_path / "m")
    (tmp_path / "m" / "bedstone.json").unlink()
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BedstoneError, match=told):
        bedstone.load(tmp_path / "m")


@pytest.mark.shared
def test_pixels_of_real_photos_are_the_published(shared_data):
    import transformers
    from PIL import Image

    from bedstone.data.images.decode import decode

    photos = sorted((shared_data / "flickr-1k").rglob("*.jpg"))[:12]
    assert len(photos) == 12
    theirs = transformers.BlipImageProcessor()  # as published: 384 by 384
    mine = blip_processor()
    for photo in photos:
        found = mine([decode(photo.read_bytes())])
        expected = theirs(Image.open(photo).convert("RGB"), return_tensors="pt")["pixel_values"]
        assert torch.equal(found, expected)


@pytest.mark.parametrize("make", [add_adapter, adapt])
@pytest.mark.parametrize("kind", CLASSES)
def test_adapters_go_to_peft_and_back(kind, make, tmp_path):
    import peft

    mine = model(kind)
    mine.save(tmp_path / "base")
    mine.path = tmp_path / "base"
    make(mine.network, LoraConfig(rank=2))
    with torch.no_grad():
        for weight in mine.network.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.1)
    save_adapter(mine, tmp_path / "ours")
    base, _ = opened(tmp_path / "base", kind)
    before = theirs(base, kind)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    found = ours(mine.network, kind)
    assert (theirs(adapted.get_base_model(), kind) - found).abs().max() < 1e-4
    assert (found - before).abs().max() > 0.01
    adapted.save_pretrained(tmp_path / "theirs")
    again = bedstone.load(tmp_path / "theirs")
    assert (ours(again.network, kind) - found).abs().max() < 1e-5
