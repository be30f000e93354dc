"""The network that a run on pictures and words begins with: fresh, taken over, or adapted."""

import dataclasses
from typing import Any

import torch

from bedstone.checkpoints.adapters import adapt, load_adapter
from bedstone.checkpoints.artefact import Model, load
from bedstone.checkpoints.opening import open_model
from bedstone.checkpoints.store import Checkpoint
from bedstone.commands.pair_model import freeze
from bedstone.data.image_processor import ImageProcessor, blip_processor
from bedstone.data.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.mapping import from_mapping
from bedstone.models.heads import HeadConfig
from bedstone.models.vlm import VLM, build
from bedstone.models.vlm_config import VLMConfig, vlm_config
from bedstone.nn.lora import LoraConfig
from bedstone.recipes_told import LAYOUTS, ToldRecipe


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
    if recipe.model.keys() - {"layout"}:
        raise BedstoneError(
            f"model: the shape of init = {recipe.init} is what it is; leave model out, or init."
        )
    model = open_model(recipe.init, dtype=torch.float32)
    if model.config.layout not in LAYOUTS:
        raise BedstoneError(
            f"init: {recipe.init} is a {model.config.layout}, which puts no pictures into words; "
            f"expected one of {', '.join(LAYOUTS)}. A picture tower alone is named by image_init, "
            "a BERT by text_init."
        )
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
    """New weights, those of parts that the recipe names taken over."""
    shape = {**recipe.model, "head": {"kind": recipe.head}}
    begun: dict[str, Model] = {
        name: open_model(path, dtype=torch.float32)
        for name in ("image", "text")
        if (path := getattr(recipe, f"{name}_init"))
    }
    for name, (shape_of, _) in _PARTS.items():
        if name not in begun:
            continue
        if shape.get(name):
            raise BedstoneError(
                f"model.{name}: the shape of {name}_init = {getattr(recipe, f'{name}_init')} is "
                f"what it is; leave model.{name} out, or {name}_init."
            )
        with _Named(recipe, name):
            shape[name] = shape_of(begun[name].network)
    shape["text"] = _text_shape(shape.get("text") or {}, tokenizer)
    network = build(vlm_config(shape), seed=recipe.seed)
    for name, model in begun.items():
        with _Named(recipe, name):
            _PARTS[name][1](network, model.network)
    processor = begun["image"].processor if "image" in begun else None
    return Model(network, tokenizer, processor=processor)


_PARTS: dict[str, Any] = {}


def _text_shape(given: Any, tokenizer: Tokenizer) -> Any:
    """The text's shape with what the tokenizer decides."""
    ends = {
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.sep_id,
        "pad_id": tokenizer.pad_id,
    }
    if None in ends.values():
        missing = next(name for name, number in ends.items() if number is None)
        raise BedstoneError(
            f"tokenizer: has no token for {missing}, which texts begin, end or are padded with; "
            "take a BERT's tokenizer, or leave tokenizer.path out."
        )
    if dataclasses.is_dataclass(given):
        return dataclasses.replace(given, **ends)
    # Products of matrices are fastest at multiples of 64.
    vocabulary = -(-tokenizer.vocab_size // 64) * 64
    return {"vocab_size": vocabulary, **ends, **given}


class _Named:
    """Errors inside are said to be of a model that the recipe names."""

    def __init__(self, recipe: ToldRecipe, name: str) -> None:
        self.told = f"{name}_init: {getattr(recipe, f'{name}_init')}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, BedstoneError):
            raise BedstoneError(f"{self.told}: {error}") from error
