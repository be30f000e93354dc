"""Small random models that draw, as several tests use them; nothing is trained."""

import functools

from bedstone.checkpoints.model import Model
from bedstone.checkpoints.pipeline import DiffusionPipeline, SignalSpec, text_part
from bedstone.data.text.train_tokenizer import train_wordpiece
from bedstone.diffusion.process import Discrete, Flow, Process
from bedstone.diffusion.sample import SamplingConfig
from bedstone.diffusion.targets import Target, target
from bedstone.models.autoencoder import network as autoencoder
from bedstone.models.autoencoder.config import AutoencoderConfig
from bedstone.models.bert import network as bert
from bedstone.models.bert.network import BertConfig
from bedstone.models.dit.config import DiTConfig
from bedstone.models.dit.network import Conditioned, build
from bedstone.models.heads import HeadConfig
from networks import randomise

NAMES = ("cat", "dog", "tree frog, tailed frog")
WORDS = ["a red circle and a blue square on white", "two green stars, drawn in ink"] * 3
SHAPES = {"image": (3, 8, 8), "audio": (16, 12), "video": (3, 4, 8, 8), "volume": (1, 8, 8, 8)}


def reader(width: int = 16) -> Model:
    """A small encoder of words."""
    known = train_wordpiece(WORDS, 120)
    head = HeadConfig("states")
    layout = {"layout": "distilbert", "head": head, "dropout": 0.0, "attention_dropout": 0.0}
    config = BertConfig(
        vocab_size=known.vocab_size, width=width, layers=1, heads=2, context=24, **layout
    )
    network = bert.build(config, seed=2)
    randomise(network, seed=4)
    return Model(network.eval(), known)


def coder(latents: int = 4, channels: int = 3) -> Model:
    """A small autoencoder, of places of two pixels."""
    config = AutoencoderConfig(
        image_size=16,
        channels=channels,
        widths=(8, 8),
        groups=4,
        latent_channels=latents,
        attention=False,
    )
    return Model(autoencoder.build(config, seed=5).eval())


@functools.cache
def drawing(
    condition: str = "class",
    kind: str = "image",
    *,
    latent: bool = False,
    process: Process | None = None,
    predicts: str = "",
    method: str = "dpm_solver_2m",
    guidance: float = 2.0,
) -> DiffusionPipeline:
    """A model that draws; of latents, pictures of 16 pixels, 8 places of a latent."""
    shape = SHAPES[kind]
    process = process or Flow()
    said: Target = target(
        predicts or ("flow_prediction" if isinstance(process, Flow) else "epsilon")
    )
    words = reader() if condition == "text" else None
    config = DiTConfig(
        size=shape[1:],
        channels=4 if latent else shape[0],
        width=24,
        layers=2,
        heads=2,
        classes=len(NAMES) if condition == "class" else 0,
        memory_width=16 if words else 0,
    )
    denoiser = build(config, seed=1)
    randomise(denoiser, seed=3)
    signal = SignalSpec(
        kind,
        (3, 16, 16) if latent else shape,
        condition,
        NAMES if condition == "class" else (),
        24 if words else 0,
        {"rate": 1000, "window": 32, "hop": 16, "rounds": 2} if kind == "audio" else {},
    )
    text = None if words is None else text_part(words.network)
    return DiffusionPipeline(
        Conditioned(denoiser, text).eval(),
        None if words is None else words.tokenizer,
        process=process,
        target=said,
        signal=signal,
        sampling=SamplingConfig(
            method=method, steps=4, guidance=guidance if condition != "none" else 1.0
        ),
        reader=words,
        autoencoder=coder() if latent else None,
    )


STEPS = Discrete()
