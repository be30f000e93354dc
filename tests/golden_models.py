"""Small random models of every capability that golden outputs are kept of."""

from collections.abc import Callable

import dalles
import drawings
import image_models
import image_text_models
import small_models
import unclips
from bedstone.checkpoints.model import Model
from bedstone.models.autoencoder import discrete
from bedstone.models.autoencoder.config import DiscreteConfig, DiscreteVAEConfig, VQConfig
from bedstone.models.heads import HeadConfig
from bedstone.nn.layers import Pooling

LANGUAGE = HeadConfig("language")


def embedder() -> Model:
    made = small_models.model(HeadConfig("states"))
    made.pooling = Pooling(normalise=True)
    return made


def codes() -> Model:
    config = DiscreteConfig(image_size=16, widths=(8, 8), groups=4, attention=False)
    return Model(discrete.build_discrete(config, seed=5).eval())


def codebook() -> Model:
    config = VQConfig(image_size=16, widths=(8, 8), groups=4, codes=16, attention=False)
    return Model(discrete.build_vq(config, seed=5).eval())


def relaxed() -> Model:
    config = DiscreteVAEConfig(image_size=16, codes=16, code_width=8, layers=2, width=8)
    return Model(discrete.build_dvae(config, seed=5).eval())


MODELS: dict[str, Callable[[], Model]] = {
    **{
        name: lambda name=name: small_models.decoder(LANGUAGE, name)
        for name in ("gpt2", "llama", "mistral", "qwen2", "qwen3")
    },
    "llama labels": lambda: small_models.decoder(small_models.NLI, "llama"),
    "bert labels": lambda: small_models.model(small_models.NLI),
    "bert tags": lambda: small_models.model(small_models.TAGS),
    "bert pretraining": lambda: small_models.model(HeadConfig("pretraining")),
    "bert pooled": lambda: small_models.model(HeadConfig("pooled")),
    "roberta spans": lambda: small_models.model(HeadConfig("spans"), "roberta"),
    "distilbert words": lambda: small_models.model(LANGUAGE, "distilbert"),
    "embedder": embedder,
    "clip": image_models.clip_model,
    "siglip": lambda: image_models.clip_model("siglip"),
    "clip_resnet": lambda: image_models.clip_model("clip_resnet"),
    "vit": image_models.labelled_model,
    "clip labels": lambda: image_models.labelled_model("clip"),
    "resnet labels": lambda: image_models.labelled_model("clip_resnet"),
    "vit states": lambda: image_models.labelled_model(head=HeadConfig("states")),
    "blip": image_text_models.told_model,
    "blip captions": lambda: image_text_models.told_model("captions"),
    "blip answers": lambda: image_text_models.told_model("answers"),
    "blip matching": lambda: image_text_models.told_model("matching"),
    "blip_resnet": lambda: image_text_models.told_model(layout="blip_resnet"),
    "flamingo": image_text_models.sighted_model,
    "dit classes": drawings.drawing,
    "dit text": lambda: drawings.drawing("text"),
    "dit alone": lambda: drawings.drawing("none"),
    "dit latents": lambda: drawings.drawing(latent=True),
    "dit audio": lambda: drawings.drawing("none", "audio"),
    "dit video": lambda: drawings.drawing("none", "video"),
    "dit volume": lambda: drawings.drawing("none", "volume"),
    "autoencoder_kl": drawings.coder,
    "fsq_autoencoder": codes,
    "vq_model": codebook,
    "discrete_vae": relaxed,
    "dalle": dalles.dalle,
    "dalle scale": lambda: dalles.dalle("scale"),
    "dalle masked": lambda: dalles.dalle("masked", clip=True),
    "prior": lambda: unclips.prior_of(image_models.clip_model()),
    "code prior": lambda: unclips.code_prior(24),
    "unclip": unclips.unclip,
}
