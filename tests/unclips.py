"""Small random unCLIPs, as several tests use them; nothing is trained."""

import functools

import torch

from bedstone.checkpoints.model import Model, fingerprint
from bedstone.checkpoints.pipeline import SignalSpec, text_part
from bedstone.checkpoints.unclip import UnclipPipeline, UnclipSampling
from bedstone.diffusion.process import Flow
from bedstone.diffusion.targets import target
from bedstone.models.bert import network as bert
from bedstone.models.bert.network import BertConfig
from bedstone.models.dit.config import DiTConfig
from bedstone.models.dit.network import Conditioned, build
from bedstone.models.heads import HeadConfig
from bedstone.models.unclip.autoregressive import CodePriorConfig
from bedstone.models.unclip.autoregressive import build as build_codes
from bedstone.models.unclip.network import PriorConfig
from bedstone.models.unclip.network import build as build_prior
from image_models import clip_model
from networks import randomise

TOKENS = 16


def prior_of(clip: Model, seed: int = 5, tokens: int = TOKENS) -> Model:
    """A prior of a CLIP's embeddings."""
    config = PriorConfig(embed=clip.config.embed, text_tokens=tokens, width=16, layers=1, heads=2)
    network = build_prior(config, seed=seed)
    randomise(network, seed=seed)
    network.mean.normal_(generator=torch.Generator().manual_seed(seed))
    network.std.uniform_(0.5, 1.0, generator=torch.Generator().manual_seed(seed))
    return Model(network.eval())


def code_prior(embed: int, seed: int = 5, tokens: int = TOKENS) -> Model:
    """An autoregressive prior of embeddings of that width, fitted to random ones."""
    config = CodePriorConfig(
        embed=embed,
        text_tokens=tokens,
        components=6,
        buckets=5,
        fits=4,
        width=16,
        layers=2,
        heads=2,
    )
    network = build_codes(config, seed=seed)
    randomise(network, seed=seed)
    chance = torch.Generator().manual_seed(seed)
    images = torch.randn(200, embed, generator=chance)
    network.fit(images, images + torch.randn(200, embed, generator=chance))
    return Model(network.eval())


@functools.cache
def unclip(
    kind: str = "clip", *, prior: bool = True, drops: bool = True, codes: bool = False
) -> UnclipPipeline:
    """An unCLIP of images of 8 pixels, with a CLIP of that layout; `codes`: with an autoregressive
    prior."""
    clip = clip_model(kind)
    text = BertConfig(
        layout="distilbert",
        vocab_size=clip.tokenizer.vocab_size,
        width=16,
        layers=1,
        heads=2,
        context=TOKENS,
        dropout=0.0,
        attention_dropout=0.0,
        head=HeadConfig("states"),
    )
    reader = Model(bert.build(text, seed=2).eval())
    randomise(reader.network, seed=4)
    config = DiTConfig(
        size=(8, 8),
        width=24,
        layers=2,
        heads=2,
        memory_width=16,
        embedding_width=clip.config.embed,
        embedding_tokens=2,
    )
    denoiser = build(config, seed=1)
    randomise(denoiser, seed=3)
    made = code_prior(clip.config.embed) if codes else prior_of(clip)
    parts = {"clip": clip, **({"prior": made} if prior else {})}
    return UnclipPipeline(
        Conditioned(denoiser, text_part(reader.network)).eval(),
        clip.tokenizer,
        process=Flow(),
        target=target("flow_prediction"),
        signal=SignalSpec("image", (3, 8, 8), "text", context=TOKENS),
        sampling=UnclipSampling(
            steps=3,
            guidance=2.0 if drops else 1.0,
            prior=made.config.kind if prior else "none",
            prior_steps=3,
        ),
        reader=reader,
        drops=drops,
        made_with={name: fingerprint(part) for name, part in parts.items()},
        **parts,
    )
