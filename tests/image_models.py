"""Small random models of pictures, and pictures, as the tests of tasks use them."""

from pathlib import Path

import numpy as np

from bedstone.checkpoints.model import Model
from bedstone.data.images.processor import clip_processor, plain_processor, siglip_processor
from bedstone.data.text.convert_tokenizer import train_roberta
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.models.clip import network as clip
from bedstone.models.clip import network as labelled_tower
from bedstone.models.clip.network import CLIPConfig, ImageClassifierConfig, TextConfig
from bedstone.models.heads import HeadConfig
from bedstone.models.resnet.network import ResNetConfig
from bedstone.models.vit import network as vit
from bedstone.models.vit.network import ViTConfig
from clip_words import clip_words
from networks import randomise

SIZE = 32
WORDS = ["a photo of a red circle", "this is a blue square.", "green things, and others"]
LABELS = HeadConfig("sequence", ("circle", "square", "star"))
TOWER = {"width": 32, "layers": 2, "heads": 4, "hidden": 48}


def pictures(count: int = 5, size: int = 40, seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    sizes = draw.integers(size // 2, size, (count, 2))
    return [draw.integers(0, 256, (*each, 3), dtype=np.uint8) for each in sizes]


def image_config(layout: str = "") -> ViTConfig | ResNetConfig:
    if layout == "clip_resnet":
        return ResNetConfig(SIZE, width=8, blocks=(1, 1), block="basic", shrink=2, features=24)
    return ViTConfig(image_size=SIZE, patch=8, **TOWER)


def clip_model(layout: str = "clip") -> Model:
    trained = clip_words(WORDS)
    known = Tokenizer(*train_roberta(WORDS * 3, 300)) if layout == "siglip" else trained
    if layout == "siglip":  # as its own: the tower sees the padding
        known.settings["model_input_names"] = ["input_ids"]
    ends = {"bos_id": known.bos_id, "eos_id": known.eos_id, "pad_id": known.pad_id}
    text = TextConfig(vocab_size=known.vocab_size, context=64, **TOWER, **ends)
    network = clip.build(CLIPConfig(layout, image_config(layout), text), seed=1)
    randomise(network, seed=3)
    processor = siglip_processor(SIZE) if layout == "siglip" else clip_processor(SIZE)
    return Model(network.eval(), known, processor=processor)


def labelled_model(layout: str = "vit", head: HeadConfig = LABELS) -> Model:
    if layout == "vit":
        config = ViTConfig(layout="vit", image_size=SIZE, patch=8, head=head, **TOWER)
        network = vit.build(config, seed=1)
    else:
        tower = clip_model(layout).config.image
        network = labelled_tower.build_classifier(
            ImageClassifierConfig(layout, tower, head), seed=1
        )
    randomise(network, seed=3)
    return Model(network.eval(), processor=plain_processor(SIZE))


def saved(model: Model, folder: Path) -> Path:
    path: Path = model.save(folder / "model")
    return path
