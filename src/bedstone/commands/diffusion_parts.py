"""What a recipe that draws names beside its network: who reads its words, and whose latents."""

from typing import Any

import torch

from bedstone.checkpoints.artefact import Model
from bedstone.checkpoints.drawing import text_part
from bedstone.checkpoints.opening import open_model
from bedstone.data.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.models import bert
from bedstone.models.bert import BertConfig
from bedstone.models.heads import HeadConfig
from bedstone.recipes_diffusion import DiffusionRecipe


def named_reader(recipe: DiffusionRecipe) -> Model | None:
    """The model that a recipe names to read words; None where it names none.

    Raises:
        BedstoneError: it can't be opened, or reads no words.
    """
    if recipe.condition != "text" or not recipe.text.encoder:
        return None
    model = open_model(recipe.text.encoder, dtype=torch.float32)
    text_part(model.network)
    return model


def named_autoencoder(recipe: DiffusionRecipe) -> Model | None:
    """The autoencoder that a recipe names; None where it names none.

    Raises:
        BedstoneError: it can't be opened, or doesn't fit the recipe's signals.
    """
    if not recipe.autoencoder:
        return None
    model = open_model(recipe.autoencoder, dtype=torch.float32)
    if model.config.layout != "autoencoder_kl":
        raise BedstoneError(
            f"autoencoder: {recipe.autoencoder} is a {model.config.layout}; expected an "
            "autoencoder_kl, such as recipes/autoencoder-scenes.yaml makes."
        )
    if recipe.kind != "image":
        raise BedstoneError(
            f"autoencoder: {recipe.autoencoder} reads pictures; {recipe.task} makes none. Leave it "
            "out."
        )
    if model.config.channels != recipe.data.channels:
        raise BedstoneError(
            f"autoencoder: {recipe.autoencoder} reads pictures of {model.config.channels} "
            f"channels; {recipe.task} has data.channels = {recipe.data.channels}. Use another "
            "autoencoder, or none."
        )
    check_flip(recipe)
    return model


def check_flip(recipe: DiffusionRecipe) -> None:
    """Raises BedstoneError where latents would have to be mirrored."""
    if recipe.augment.flip:
        raise BedstoneError(
            "augment.flip: latents are made once, before training, and can't be mirrored. Leave "
            "it out, or the autoencoder."
        )


def text_config(reader: Model) -> Any:
    """The configuration of what reads words in a model."""
    return text_part(reader.network).config


def fresh_reader(recipe: DiffusionRecipe, tokenizer: Tokenizer) -> Model:
    """A small encoder that learns with the network."""
    shape = recipe.text
    config = BertConfig(
        layout="distilbert",
        vocab_size=tokenizer.vocab_size,
        width=shape.width,
        layers=shape.layers,
        heads=shape.heads,
        context=shape.context,
        dropout=0.0,
        attention_dropout=0.0,
        head=HeadConfig("states"),
    )
    return Model(bert.build(config))
