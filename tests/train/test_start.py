"""A VLM that begins with a tower and a BERT: what is taken computes as it did there."""

import pytest
import torch

from bedstone.errors import BedstoneError
from bedstone.models.bert import network as bert
from bedstone.models.bert.network import BertConfig
from bedstone.models.blip.config import blip_config
from bedstone.models.blip.network import Blip, build_blip
from bedstone.models.clip import network as clip
from bedstone.models.heads import HeadConfig
from bedstone.models.resnet import network as resnet
from bedstone.models.resnet.network import ResNetConfig
from bedstone.models.vit import network as vit
from bedstone.models.vit.network import ViTConfig
from bedstone.train.start import take_image, take_text
from networks import randomise

IMAGE = {"image_size": 20, "patch": 5, "width": 24, "layers": 2, "heads": 4}
CNN = {"image_size": 20, "width": 8, "blocks": [1, 1], "block": "basic", "shrink": 2}
TEXT = {"vocab_size": 43, "context": 11, "width": 24, "layers": 2, "heads": 4}


def network(kind: str = "joint", image=IMAGE, name: str = "blip", **text) -> Blip:
    words = {**TEXT, **text}
    shape = {"layout": name, "image": image, "text": words, "head": {"kind": kind}}
    return build_blip(blip_config(shape), seed=1).eval()


def source(**change) -> bert.Bert:
    shape = {**TEXT, "head": HeadConfig("language"), "dropout": 0.0, **change}
    made = bert.build(BertConfig(**shape), seed=2).eval()
    randomise(made, seed=3)
    return made


def pixels() -> torch.Tensor:
    return torch.randn((2, 3, 20, 20), generator=torch.Generator().manual_seed(5))


def ids(most: int = 43) -> torch.Tensor:
    return torch.randint(0, most, (2, 9), generator=torch.Generator().manual_seed(6))


def test_text_of_a_bert_reads_as_the_bert_did():
    ours, theirs = network(), source()
    fresh = take_text(ours, theirs)
    expected = theirs.states(ids())
    assert (ours.head(expected) - theirs.head(expected)).abs().max() < 1e-6
    assert fresh
    assert all(".cross." in name for name in fresh)
    for part in (ours.encoder, ours.decoder):
        assert (part.states(ids(), causal=False) - expected).abs().max() < 1e-6
    assert ours.head.out.weight is ours.decoder.embed.weight


def test_words_and_places_behind_those_of_the_bert_stay_fresh():
    ours, theirs = network(vocab_size=45, context=14), source()
    before = ours.encoder.embed.weight[43:].clone()
    take_text(ours, theirs)
    assert (ours.read(ids(), None) - theirs.states(ids())).abs().max() < 1e-6
    assert torch.equal(ours.encoder.embed.weight[43:], before)
    assert torch.equal(ours.decoder.embed.weight[:43], theirs.embed.weight)
    assert torch.equal(ours.head.out.bias[:43], theirs.head.out.bias)
    assert not ours.head.out.bias[43:].any()
    short = network(context=9)
    take_text(short, theirs)
    assert (short.read(ids(), None) - theirs.states(ids())).abs().max() < 1e-6


def test_text_of_another_vlm():
    ours, theirs = network(), network("captions")
    randomise(theirs)
    fresh = take_text(ours, theirs)
    assert fresh == []
    memory = ours.memory(pixels())
    found = ours.caption_states(ids(), None, memory)
    assert torch.equal(found, theirs.caption_states(ids(), None, memory))


def test_pictures_of_a_vit_and_of_a_vlm():
    theirs = vit.build(ViTConfig(**{**IMAGE, "norm_eps": 1e-5}), seed=4).eval()
    randomise(theirs)
    ours = network()
    assert take_image(ours, theirs) == []
    assert torch.equal(ours.memory(pixels()), theirs.states(pixels()))
    twin = network("captions")
    assert take_image(twin, ours) == []
    assert torch.equal(twin.memory(pixels()), theirs.states(pixels()))


def test_pictures_of_a_clip_but_for_the_norm_before_its_blocks():
    image = {**IMAGE, "activation": "quick_gelu"}
    theirs = clip.build(clip.clip_config({"layout": "clip", "image": image, "text": TEXT}), seed=4)
    ours = network(image=image)
    assert take_image(ours, theirs) == ["patches.bias"]
    for name, weight in ours.image.stack.state_dict().items():
        assert torch.equal(weight, theirs.image.stack.state_dict()[name])
    # SigLIP has no class token, so one place less: told, not guessed
    shape = {"layout": "siglip", "image": image, "text": TEXT}
    with pytest.raises(BedstoneError, match=r"its positions\.weight has the shape"):
        take_image(ours, clip.build(clip.clip_config(shape), seed=4))


def test_pictures_of_a_resnet():
    config = ResNetConfig(**{**CNN, "blocks": (1, 1), "features": 9, "heads": 2})  # of its pool
    theirs = resnet.build(config, seed=4).eval()
    randomise(theirs)
    ours = network(image=CNN, name="blip_resnet")
    fresh = take_image(ours, theirs)
    new = ("norm", "project")
    assert fresh == sorted(
        ["positions.weight", *(f"{n}.{p}" for n in new for p in ("bias", "weight"))]
    )
    assert torch.equal(ours.image.resnet.maps(pixels()), theirs.maps(pixels()))
    again = network("captions", image=CNN, name="blip_resnet")
    assert take_image(again, ours) == []
    assert torch.equal(again.memory(pixels()), ours.memory(pixels()))


def test_what_does_not_fit_is_named_and_nothing_is_taken():
    ours = network()
    before = {name: weight.clone() for name, weight in ours.state_dict().items()}
    cases = [
        (take_text, source(width=36), "embed.weight has the shape"),
        (take_text, source(layers=3), "has 3 blocks, model.text.layers is 2"),
        (take_text, source(layers=1), "has 1 blocks, model.text.layers is 2"),
        (take_text, source(heads=2), "has heads 2, model.text.heads is 4"),
        (take_text, source(activation="relu"), "Set it to 'relu'"),
        (take_text, source(vocab_size=50), "embed.weight has the shape"),
        (take_text, vit.build(ViTConfig(**IMAGE)), "take a bert"),
        (take_image, vit.build(ViTConfig(**{**IMAGE, "patch": 4})), "has the shape"),
        (take_image, vit.build(ViTConfig(**{**IMAGE, "heads": 3})), "has heads 3"),
        (take_image, resnet.build(ResNetConfig(**{**CNN, "blocks": (1, 1)})), "blip_resnet for"),
        (take_image, source(), "is a Bert, where a ViT is needed"),
    ]
    for take, theirs, told in cases:
        with pytest.raises(BedstoneError, match=told):
            take(ours, theirs)
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, before[name]), name
