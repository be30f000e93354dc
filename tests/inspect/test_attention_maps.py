"""Attention over a picture for a word: the weights that the network used, and where they lie."""

import numpy as np
import pytest
import torch
from PIL import Image

from bedstone.checkpoints.model import Model
from bedstone.data.images.image_text import train_image_text
from bedstone.data.images.processor import blip_processor
from bedstone.errors import BedstoneError
from bedstone.inspect.attention import (
    AttentionMap,
    attention_map,
    attention_sheet,
    grid,
    heat,
    over_places,
)
from bedstone.models.blip.config import blip_config
from bedstone.models.blip.network import build_blip
from bedstone.nn.attention import cross_attention
from networks import randomise

QUESTION = "What colour is the large star?"
TOKENIZER = train_image_text([QUESTION, "a red star above a moon"] * 4, 110)
VIT = {"image_size": 20, "patch": 5, "width": 24, "layers": 1, "heads": 2}
CNN = {"image_size": 32, "width": 8, "blocks": [1, 1], "block": "basic", "shrink": 2}


def made(kind, layout="blip", image=VIT):
    text = {"vocab_size": TOKENIZER.vocab_size, "context": 16, "width": 24, "layers": 2, "heads": 2}
    text |= {"bos_id": TOKENIZER.bos_id, "eos_id": TOKENIZER.sep_id, "pad_id": TOKENIZER.pad_id}
    config = blip_config({"layout": layout, "image": image, "text": text, "head": {"kind": kind}})
    network = build_blip(config, seed=0).eval()
    randomise(network)
    return Model(network, TOKENIZER, processor=blip_processor(image["image_size"]))


def picture(height=30, width=40):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_network_stays_as_it_was():
    model = made("answers")
    ids = torch.tensor([[1, 5, 6, 2]])
    with torch.no_grad():
        memory = model.network.memory(torch.randn(1, 3, 20, 20))
        before = model.network.read(ids, None, memory)
        watched = []
        cross_attention(
            model.network, lambda: watched.append(model.network.read(ids, None, memory))
        )
        after = model.network.read(ids, None, memory)
    assert torch.equal(before, watched[0]) and torch.equal(before, after)
    assert not any(part._forward_hooks for part in model.network.modules())
    cnn = made("answers", "blip_resnet", CNN)
    cnn.network.train()
    held = {name: value.clone() for name, value in cnn.network.state_dict().items()}
    attention_map(cnn, picture(), QUESTION)
    assert cnn.network.training  # and its norms' statistics are of what it learns from alone
    assert all(torch.equal(held[name], value) for name, value in cnn.network.state_dict().items())
    with pytest.raises(ZeroDivisionError):
        cross_attention(model.network, lambda: 1 / 0)
    assert not any(part._forward_hooks for part in model.network.modules())


@pytest.mark.parametrize("kind", ["answers", "captions", "joint"])
@pytest.mark.parametrize(("layout", "image"), [("blip", VIT), ("blip_resnet", CNN)])
def test_each_word_has_a_map(kind, layout, image):
    model = made(kind, layout, image)
    found = attention_map(model, picture(), QUESTION)
    assert found.words == ("What", "colour", "is", "the", "large", "star")
    side = found.maps.shape[1]
    assert found.maps.shape == (6, side, side) and side > 1
    assert found.maps.sum((1, 2)) == pytest.approx(np.ones(6))
    assert found.picture.shape == (image["image_size"],) * 2 + (3,)
    assert ((found.whole > 0) & (found.whole < 1)).all()
    assert found.of("STAR") is not None and np.array_equal(found.of("star"), found.maps[5])
    with pytest.raises(BedstoneError, match="word 'moon': isn't in"):
        found.of("moon")


def test_a_captions_word_has_the_map_of_the_moment_before_it():
    """What comes after a word can't change where it is looked for; what comes before does."""
    model = made("captions")
    short, long = (attention_map(model, picture(), text) for text in ("red star", "red star above"))
    np.testing.assert_allclose(short.maps, long.maps[:2], atol=1e-6)
    other = attention_map(model, picture(), "star star")
    np.testing.assert_allclose(other.maps[0], short.maps[0], atol=1e-6)  # both begin alike
    assert abs(other.maps[1] - short.maps[1]).max() > 1e-4


def test_places_lie_as_the_picture_does():
    """A network that looks at one corner alone is drawn as looking there."""
    weights = torch.full((2, 1, 3, 4, 1 + 12), 1e-6)
    weights[..., 1 + 3] = 0.6  # the end of the first of three rows
    weights[..., 0] = 0.4
    shares, whole = over_places(weights, (30, 40))
    assert shares.shape == (1, 4, 3, 4) and np.argmax(shares[0, 0]) == 3
    assert whole == pytest.approx(np.full((1, 4), 0.4))
    drawn = heat(np.full((30, 40, 3), 128, dtype=np.uint8), shares[0, 0], 80)
    assert drawn.shape == (60, 80, 3)
    light = drawn.sum(-1)
    assert light[:15, 65:].mean() > 3 * light[30:, :40].mean()
    even = heat(np.full((30, 40, 3), 128, dtype=np.uint8), np.full((3, 4), 1 / 12))
    assert np.ptp(even.reshape(-1, 3), axis=0).max() == 0


def test_rows_and_columns_are_told_by_the_pictures_shape():
    assert grid(17, (20, 20)) == (4, 4)
    assert grid(13, (30, 40)) == (3, 4) and grid(13, (40, 30)) == (4, 3)
    assert grid(2, (9, 1)) == (1, 1)
    with pytest.raises(BedstoneError, match="no places"):
        grid(1, (20, 20))


def test_the_sheet(tmp_path):
    model = made("answers")
    one = attention_map(model, picture(), QUESTION)
    path = attention_sheet([(one, ["star", "colour"]), (one, ["large"])], tmp_path / "a.png")
    with Image.open(path) as sheet:
        assert sheet.width > 3 * 192 and sheet.height > 2 * 192
    with pytest.raises(BedstoneError, match="isn't in"):
        attention_sheet([(one, ["moon"])], tmp_path / "b.png")
    with pytest.raises(BedstoneError, match="no picture"):
        attention_sheet([], tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()


def test_what_cannot_be_looked_at_is_told():
    model = made("answers")
    with pytest.raises(BedstoneError, match="nothing was attended across"):
        cross_attention(model.network, lambda: None)
    with pytest.raises(BedstoneError):
        attention_map(model, picture(), "")
    with pytest.raises(BedstoneError, match="Shorten"):
        attention_map(model, picture(), "star " * 100)
    with pytest.raises(BedstoneError, match="no network for captions"):
        attention_map(Model(torch.nn.Linear(2, 2), TOKENIZER), picture(), "star")


def test_a_looked_holds_the_last_of_equal_words():
    maps = np.arange(12.0).reshape(3, 2, 2)
    found = AttentionMap(picture(), "a star a", ("a", "star", "a"), maps, np.zeros(3))
    assert np.array_equal(found.of("a"), maps[2])
