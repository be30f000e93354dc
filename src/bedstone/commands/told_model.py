"""The network that a run on pictures and words begins with: fresh, taken over, or adapted."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from bedstone.checkpoints.adapters import adapt, load_adapter
from bedstone.checkpoints.artefact import Model, load
from bedstone.checkpoints.opening import open_model
from bedstone.checkpoints.store import Checkpoint
from bedstone.commands.initial import initial_model
from bedstone.commands.pair_model import freeze
from bedstone.data.image_processor import ImageProcessor, blip_processor
from bedstone.data.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.generation.beam_settings import BeamSearch, published
from bedstone.mapping import from_mapping
from bedstone.models.heads import HeadConfig
from bedstone.models.map_tower import MapTower
from bedstone.models.resnet import ResNet
from bedstone.models.vit import ViT, ViTConfig
from bedstone.models.vlm import VLM, build
from bedstone.models.vlm_begin import take_image, take_text
from bedstone.models.vlm_config import VLMConfig, vlm_config
from bedstone.nn.lora import LoraConfig
from bedstone.recipes_told import LAYOUTS, ToldRecipe

# What a text's shape takes from a BERT whose weights it begins with.
SIZES = ("width", "layers", "heads", "hidden", "context", "norm_eps", "activation")


def told_model(recipe: ToldRecipe, tokenizer: Tokenizer, checkpoint: Checkpoint | None) -> Model:
    """The checkpoint's, the initial one, or a new one, in fp32; frozen or adapted as is said.

    Raises:
        BedstoneError: a shape, a folder or a tokenizer that doesn't fit.
    """
    if checkpoint is not None and not recipe.lora:
        model = load(checkpoint.path, dtype=torch.float32)
    elif recipe.init:
        model = _initial(recipe)
    else:
        model = _fresh(recipe, tokenizer)
    model.tokenizer, model.record = tokenizer, {}
    keep_beams(model, recipe)
    if model.processor is None:
        model.processor = usual_processor(model.config)
    network = model.network
    if recipe.lora:
        freeze(network.image)  # its norms' statistics are the base's too
        if checkpoint is not None:
            load_adapter(model, checkpoint.path)
        else:
            config = from_mapping(LoraConfig, recipe.lora, "recipe", "lora.")
            adapt(network, config, seed=recipe.seed)
    elif recipe.freeze == "image":
        freeze(network.image)
    elif recipe.freeze == "text":
        freeze_text(network)
    return model


def keep_beams(model: Model, recipe: ToldRecipe) -> None:
    """Writes into a model how its texts are looked for.

    Raises:
        BedstoneError: there is no such search.
    """
    if recipe.beams > 1:
        beams = {"num_beams": recipe.beams, "length_penalty": recipe.length_penalty}
        BeamSearch(**published(beams))  # refused now, not at the first evaluation
        model.generation = {**model.generation, **beams}


def usual_processor(config: VLMConfig) -> ImageProcessor:
    """How pictures become pixels for a new model."""
    return blip_processor(max(config.image.size))


def freeze_text(network: VLM) -> None:
    """All of the text networks but their cross-attention keeps its weights."""
    for part in (network.encoder, network.decoder, network.head):
        if part is not None:
            part.requires_grad_(False)
            for name, block in part.named_modules():
                if name.rpartition(".")[2] == "cross":
                    block.requires_grad_(True)


def _initial(recipe: ToldRecipe) -> Model:
    hint = "A picture tower alone is named by image_init, a BERT by text_init."
    model = initial_model(recipe, LAYOUTS, "puts no pictures into words", hint)
    if model.config.head.kind != recipe.head:
        if recipe.lora:
            raise BedstoneError(
                f"lora: {recipe.init} was made for {model.config.head.kind}, and {recipe.task} "
                "needs parts that it lacks, which an adapter can't hold. Train it whole."
            )
        model.network = fitted(model.network, recipe.head, seed=recipe.seed)
    return model


def fitted(network: VLM, kind: str, *, seed: int) -> VLM:
    """The same network for another head: what both have is taken over, the rest is fresh.

    An encoder that isn't there begins as the decoder, and a decoder as the encoder, as BLIP begins
    its network for questions (Li et al., 2022, section 4.4).
    """
    made = build(dataclasses.replace(network.config, head=HeadConfig(kind)), seed=seed)
    known = network.state_dict()
    for name, weight in made.state_dict().items():
        part, _, rest = name.partition(".")
        twin = {"encoder": "decoder", "decoder": "encoder"}.get(part, part)
        found = known.get(name, known.get(f"{twin}.{rest}"))
        if found is not None:
            weight.copy_(found)
    return made


def _fresh(recipe: ToldRecipe, tokenizer: Tokenizer) -> Model:
    """New weights, those of parts that the recipe names taken over, their shapes too."""
    shape = {**recipe.model, "head": {"kind": recipe.head}}
    begun = {
        name: open_model(path, dtype=torch.float32)
        for name in ("image", "text")
        if (path := getattr(recipe, f"{name}_init"))
    }
    if "image" in begun and not shape.get("image"):
        shape["image"] = _tower_shape(tower_of(begun["image"].network, recipe.image_init))
    text = shape.get("text") or (_text_shape(begun["text"]) if "text" in begun else {})
    shape["text"] = {**_ends(tokenizer, text), **text}
    network = build(vlm_config(shape), seed=recipe.seed)
    if "image" in begun:
        take_image(network, begun["image"].network)
    if "text" in begun:
        take_text(network, begun["text"].network)
    processor = begun["image"].processor if "image" in begun else None
    return Model(network, tokenizer, processor=processor)


def tower_of(network: Any, where: str) -> Any:
    """The picture tower of a network, or the network itself.

    Raises:
        BedstoneError: it has none.
    """
    while not isinstance(network, ViT | ResNet | MapTower):
        network = getattr(network, "image", None)
        if network is None:
            raise BedstoneError(
                f"image_init: {where} reads no pictures; name a VLM, a CLIP or a ViT."
            )
    return network


def _tower_shape(tower: Any) -> Any:
    """The shape of a picture tower, as one that gives states."""
    config = tower.config
    if not isinstance(config, ViTConfig):
        return config
    return dataclasses.replace(config, layout="", head=HeadConfig("states"))


def _text_shape(model: Model) -> dict[str, Any]:
    """The sizes of a BERT's or another VLM's text."""
    config = getattr(model.config, "text", model.config)
    return {name: getattr(config, name) for name in SIZES if hasattr(config, name)}


def _ends(tokenizer: Tokenizer, text: Mapping[str, Any]) -> dict[str, Any]:
    """What the tokenizer decides of the text's shape."""
    # Products of matrices are fastest at multiples of 64.
    vocabulary = max(-(-tokenizer.vocab_size // 64) * 64, text.get("vocab_size", 0))
    ends = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.sep_id, "pad_id": tokenizer.pad_id}
    return {"vocab_size": vocabulary, **ends}
