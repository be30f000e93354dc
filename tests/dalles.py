"""Small random DALL-Es, as several tests use them; nothing is trained."""

import functools

import torch

from bedstone.checkpoints.dalle import DallePipeline
from bedstone.checkpoints.model import Model, fingerprint
from bedstone.checkpoints.pipeline import SignalSpec
from bedstone.data.text.train_tokenizer import train_wordpiece
from bedstone.generation.codes import CodeSampling
from bedstone.models.autoencoder.config import DiscreteConfig
from bedstone.models.autoencoder.discrete import build_discrete
from bedstone.models.dalle.network import DalleConfig, build
from drawings import WORDS
from image_models import clip_model
from networks import randomise

TOKENS = 12


def coder(seed: int = 5) -> Model:
    """An autoencoder of images of 16 pixels, 4 x 4 codes of 20."""
    config = DiscreteConfig(image_size=16, widths=(8, 8), groups=4, levels=(5, 4))
    network = build_discrete(config, seed=seed)
    randomise(network, seed=seed)
    return Model(network.eval())


@functools.cache
def dalle(order: str = "raster", *, clip: bool = False, drops: bool = True) -> DallePipeline:
    """A DALL-E of that order; with a CLIP, which knows other words, where it is to have one."""
    words = train_wordpiece(WORDS, 120)
    config = DalleConfig(
        codes=20,
        grid=(4, 4),
        vocab_size=words.vocab_size,
        text_tokens=TOKENS,
        order=order,
        width=16,
        layers=2,
        heads=2,
    )
    network = build(config, seed=1)
    randomise(network, seed=3)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(5.0 if weight.dim() == 2 else 1.0)
    parts = {"autoencoder": coder(), **({"clip": clip_model()} if clip else {})}
    return DallePipeline(
        network.eval(),
        words,
        signal=SignalSpec("image", (3, 16, 16), "text", context=TOKENS),
        sampling=CodeSampling(guidance=2.0 if drops else 1.0, steps=4),
        drops=drops,
        made_with={name: fingerprint(part) for name, part in parts.items()},
        **parts,
    )
