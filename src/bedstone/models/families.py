"""Which published models open: their names in `config.json`, and where each is described.

Tables alone: nothing of the networks is loaded, so that a list of models is quick.
"""

from collections.abc import Mapping
from typing import Any

from bedstone.errors import BedstoneError, nearest
from bedstone.reading import shown

# Where each published model_type is described; a family adds a line.
FAMILIES = {
    "gpt2": "bedstone.models.gpt.published",
    "llama": "bedstone.models.gpt.published",
    "mistral": "bedstone.models.gpt.published",
    "qwen2": "bedstone.models.gpt.published",
    "qwen3": "bedstone.models.gpt.published",
    "bert": "bedstone.models.bert.published",
    "roberta": "bedstone.models.bert.published",
    "distilbert": "bedstone.models.bert.published",
    "vit": "bedstone.models.vit.published",
    "clip": "bedstone.models.clip.published",
    "siglip": "bedstone.models.clip.published",
    "clip_resnet": "bedstone.models.clip.published",
    "blip": "bedstone.models.blip.published",
    "blip_resnet": "bedstone.models.blip.published",
    "marian": "bedstone.models.encoder_decoder.published",
    "bart": "bedstone.models.encoder_decoder.published",
    "t5": "bedstone.models.encoder_decoder.published",
    "mt5": "bedstone.models.encoder_decoder.published",
    "flamingo": "bedstone.models.flamingo.published",
    "sighted_gpt": "bedstone.models.flamingo.published",  # as older folders name it
    "dit": "bedstone.models.dit.published",
    "pixart": "bedstone.models.dit.published",
    "bedstone_dit": "bedstone.models.dit.published",
    "autoencoder_kl": "bedstone.models.autoencoder.published",
    "fsq_autoencoder": "bedstone.models.autoencoder.published",
    "vq_model": "bedstone.models.autoencoder.published",
    "discrete_vae": "bedstone.models.autoencoder.published",
    "dalle": "bedstone.models.dalle.published",
    "prior_transformer": "bedstone.models.unclip.published",
    "autoregressive_prior": "bedstone.models.unclip.published",
}
# Layouts by the class that diffusers names (`_class_name`) in the place of a model_type.
CLASSES = {
    "AutoencoderKL": "autoencoder_kl",
    "VQModel": "vq_model",
    "DiTTransformer2DModel": "dit",
    "PixArtTransformer2DModel": "pixart",
    "BedstoneDiT": "bedstone_dit",
    "PriorTransformer": "prior_transformer",
}
# Older folders have one class for several; their norms tell which it is.
NORMS = {"ada_norm_zero": "dit", "ada_norm_single": "pixart"}
ADAPTER = "adapter_config.json"  # of an adapter's folder, as peft has it
# The file of the weights, by the library whose folder it is.
WEIGHTS = {
    "transformers": "model.safetensors",
    "diffusers": "diffusion_pytorch_model.safetensors",
    "peft": "adapter_model.safetensors",
}
QUANTIZED = "quantized.safetensors"  # weights in few bits, where a folder has them so


def model_type(published: Mapping[str, Any]) -> str:
    """The layout's name in a published configuration."""
    named = published.get("model_type")
    if named is None and (class_name := published.get("_class_name")) is not None:
        if class_name == "Transformer2DModel":
            return NORMS.get(str(published.get("norm_type")), class_name)
        return CLASSES.get(str(class_name), str(class_name))
    return str(named)


def home_of(model_type: str) -> str:
    """The module that describes a published `model_type`.

    Raises:
        BedstoneError: Bedstone has no such layout.
    """
    if model_type not in FAMILIES:
        raise BedstoneError(
            f"config.json: model_type {shown(model_type)} is not one Bedstone opens"
            f"{nearest(str(model_type), FAMILIES)}."
        )
    return FAMILIES[model_type]
