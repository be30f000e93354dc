"""Whole folders of CLIP, SigLIP and ViT: weights, processor and tokenizer, both ways."""

import json

import numpy as np
import pytest
import torch

import bedstone
from bedstone.checkpoints.adapters import save_adapter
from bedstone.checkpoints.model import Model
from bedstone.commands.info import describe
from bedstone.data.images.contrastive import text_rows, was_cut
from bedstone.data.images.processor import clip_processor, siglip_processor, vit_processor
from bedstone.data.text.convert_tokenizer import clip_backend
from bedstone.data.text.packing import pack
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.models.clip import network as clip
from bedstone.models.heads import HeadConfig
from bedstone.models.vit import network as vit
from bedstone.nn.lora import LoraConfig, add_adapter
from clip_words import clip_words

TEXTS = ["a red square", "two blue circles,  and a SIGN: 42!", "naïve café 漢字"]
HARD = [*TEXTS, "don't I'll", "  two\nlines\t", "!!!...", "a <|endoftext|> b", "x" * 300]
IMAGE = {"image_size": 24, "patch": 6, "width": 32, "layers": 2, "heads": 4}
TEXT = {"context": 24, "width": 24, "layers": 2, "heads": 4}


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 31, 3), dtype=np.uint8)


def tokenizer() -> Tokenizer:
    return clip_words(TEXTS, context=TEXT["context"])


def model(name: str) -> Model:
    words = tokenizer()
    ends = {f"{role}_id": getattr(words, f"{role}_id") for role in ("bos", "eos", "pad")}
    shape = {
        "layout": name,
        "image": IMAGE,
        "text": {**TEXT, "vocab_size": words.vocab_size, **ends},
    }
    network = clip.build(clip.clip_config(shape), seed=0).eval()
    made = clip_processor if name == "clip" else siglip_processor
    return Model(network, words, processor=made(24))


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_theirs_opens_what_we_save(name, tmp_path):
    import transformers

    ours = model(name)
    ours.save(tmp_path / "m")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "m").eval()
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    seen = transformers.AutoImageProcessor.from_pretrained(tmp_path / "m")
    fixed = {"padding": "max_length", "max_length": TEXT["context"]}
    padding = fixed if name == "siglip" else {"padding": True}
    ids = words(TEXTS, return_tensors="pt", **padding)["input_ids"]
    pixels = seen([picture(), picture(1)], return_tensors="pt")["pixel_values"]
    mine = ours.processor([picture(), picture(1)])
    assert (mine - pixels).abs().max() < 0.02
    with torch.no_grad():
        expected = theirs(pixel_values=mine, input_ids=ids).logits_per_image
        rows = pack(text_rows(ours.tokenizer, TEXTS, ours.config))
        image = torch.nn.functional.normalize(ours.network.image_features(mine), dim=-1)
        text = torch.nn.functional.normalize(ours.network.text_features(rows), dim=-1)
        found = image @ text.T * ours.network.scale
        found = found if ours.network.bias is None else found + ours.network.bias
    assert (found - expected).abs().max() < 1e-4


def test_their_clip_processor_opens_our_folder(tmp_path):
    import transformers

    ours = model("clip")
    ours.save(tmp_path / "m")
    for kind in (transformers.AutoProcessor, transformers.CLIPProcessor):
        whole = kind.from_pretrained(tmp_path / "m")
        made = whole(text=TEXTS, images=[picture()], padding=True, return_tensors="pt")
        row = text_rows(ours.tokenizer, TEXTS, ours.config)[0].ids
        assert made["input_ids"][0][: len(row)].tolist() == row
        assert (made["pixel_values"] - ours.processor([picture()])).abs().max() < 0.02


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_we_open_what_theirs_saves(name, tmp_path):
    import transformers

    ours = model(name)
    ours.save(tmp_path / "m")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "m")
    theirs.save_pretrained(tmp_path / "t")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    words.save_pretrained(tmp_path / "t")
    transformers.AutoImageProcessor.from_pretrained(tmp_path / "m").save_pretrained(tmp_path / "t")
    again = bedstone.load(tmp_path / "t")
    assert again.config == ours.config
    assert again.processor == ours.processor
    for text in HARD:
        assert again.tokenizer.encode(text, special=True) == words(text)["input_ids"]
    for key, value in ours.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[key]), key


def test_a_folder_of_ours_is_opened_the_same(tmp_path):
    ours = model("clip")
    ours.record = {"data": {"source": "scenes"}, "metrics": {"recall": 0.5}}
    ours.save(tmp_path / "m")
    again = bedstone.load(tmp_path / "m")
    assert (again.config, again.processor) == (ours.config, ours.processor)
    card = (tmp_path / "m" / "README.md").read_text()
    assert "zero-shot-image-classification" in card
    assert "24 by 24 pixels" in card
    assert "scenes" in card
    assert not (tmp_path / "m" / "generation_config.json").exists()
    written = json.loads((tmp_path / "m" / "config.json").read_text())
    assert written["text_config"]["eos_token_id"] == ours.tokenizer.eos_id
    assert "eos_token_id" not in written
    facts = describe(again)
    assert (facts["image_width"], facts["text_context"], facts["joint_width"]) == (32, 24, 32)


def test_a_vit_has_its_processor(tmp_path):
    import transformers

    head = HeadConfig("sequence", ("cat", "dog"))
    shape = {"image_size": 24, "patch": 6, "width": 32, "layers": 1, "heads": 2}
    ours = Model(vit.build(vit.ViTConfig(**shape, head=head)), processor=vit_processor(24))
    ours.save(tmp_path / "m")
    theirs = transformers.pipeline("image-classification", str(tmp_path / "m"))
    from PIL import Image

    found = {each["label"]: each["score"] for each in theirs(Image.fromarray(picture()))}
    again = bedstone.load(tmp_path / "m")
    with torch.no_grad():
        scores = again.network(again.processor([picture()])).softmax(-1)[0].tolist()
    assert found == pytest.approx(dict(zip(head.labels, scores, strict=True)), abs=1e-4)
    assert describe(again)["pixels"] == "24 by 24"


def test_texts_that_are_too_long_are_cut_before_their_end():
    words = tokenizer()
    config = clip.clip_config({"text": {"vocab_size": words.vocab_size, "context": 6}})
    short, long = "a red square", "two blue circles and a red square and more"
    rows = text_rows(words, [short, long], config)
    assert [len(row) <= 6 for row in rows] == [True, True]
    assert [row.ids[-1] for row in rows] == [words.eos_id] * 2
    assert [row.ids[0] for row in rows] == [words.bos_id] * 2
    assert [was_cut(*each) for each in zip(rows, [short, long], strict=True)] == [False, True]
    padded = clip.clip_config(
        {
            "layout": "siglip",
            "text": {"vocab_size": words.vocab_size, "context": 12},
            "image": IMAGE,
        }
    )
    assert [len(row) for row in text_rows(words, [short, long], padded)] == [12, 12]
    assert text_rows(words, [short], padded)[0].ids[-1] == words.pad_id


def test_tokenizers_that_no_tower_can_read_are_refused():
    config = clip.clip_config({"text": {"vocab_size": 300}})
    with pytest.raises(BedstoneError, match="the text tower 300"):
        text_rows(tokenizer(), TEXTS, config)
    backend, _ = clip_backend({"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}, [])
    with pytest.raises(BedstoneError, match="an id other than 2"):
        text_rows(Tokenizer(backend, {"eos_token": "<|endoftext|>"}), ["a"], config)


def test_a_tokenizer_of_clip_s_form_knows_every_text():
    words = tokenizer()
    assert words.eos_id == words.vocab_size - 1
    for text in HARD[:3]:
        assert words.encode(text, special=True)[0] == words.bos_id
    assert words.decode(words.encode("Zebra ünder  water")) == "zebra ünder water"


@pytest.mark.shared
def test_clip_s_own_vocabulary_gives_the_published_ids(shared_data, tmp_path):
    import transformers

    folder = shared_data / "tokenizers" / "clip"
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    published = json.loads((folder / "tokenizer.json").read_text())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in published["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(published["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    archive = shared_data / "tokenizers" / "clip-bpe.txt.gz"
    for path in (folder, tmp_path, archive):
        words = Tokenizer.load(path)
        assert (words.bos_id, words.eos_id, words.vocab_size) == (49406, 49407, 49408)
        for text in HARD:
            ids = theirs(text)["input_ids"]
            assert words.encode(text, special=True) == ids, text
            decoded = theirs.decode(ids, skip_special_tokens=True)
            assert words.decode(ids) == decoded, text


def test_a_broken_archive_of_merges_is_named(tmp_path):
    (tmp_path / "bpe.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(BedstoneError, match=r"bpe\.txt\.gz"):
        Tokenizer.load(tmp_path / "bpe.txt.gz")


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_adapters_go_to_peft_and_back(name, tmp_path):
    import peft
    import transformers

    shape = {"image_size": 24, "patch": 6, "width": 32, "layers": 2, "heads": 4}
    if name == "vit":
        ours = Model(vit.build(vit.ViTConfig(**shape, head=HeadConfig("sequence", ("a", "b")))))
    else:
        ours = model("clip")
    ours.save(tmp_path / "base")
    ours.path = tmp_path / "base"
    add_adapter(ours.network, LoraConfig(rank=2, targets=("q", "v", "up")))
    with torch.no_grad():
        for weight in ours.network.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.1)
    save_adapter(ours, tmp_path / "ours")
    kind = getattr(transformers, ours.layout.architecture(ours.config))
    theirs = peft.PeftModel.from_pretrained(
        kind.from_pretrained(tmp_path / "base"), tmp_path / "ours"
    )
    theirs.eval().save_pretrained(tmp_path / "theirs")
    again = bedstone.load(tmp_path / "theirs").network
    x = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if name == "vit":
            found, back = ours.network.eval()(x), again(x)
            expected = theirs(pixel_values=x).logits
        else:
            found, back = ours.network.eval().image_features(x), again.image_features(x)
            expected = theirs.base_model.get_image_features(pixel_values=x).pooler_output
    assert (found - expected).abs().max() < 1e-4
    assert (back - expected).abs().max() < 1e-4
