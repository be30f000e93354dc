"""The network that a pretraining run begins with, for every family, and what the run will spend."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from bedstone.checkpoints.artefact import Model, load
from bedstone.checkpoints.hub import resolve
from bedstone.checkpoints.store import Checkpoint
from bedstone.config import PretrainRecipe
from bedstone.data.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.files import read_json
from bedstone.mapping import from_mapping
from bedstone.runtime import Precision


@dataclasses.dataclass(frozen=True)
class Fresh:
    """How a family's network is built.

    Attributes:
        config: its configuration's class.
        build: (configuration, seed) to the network.
        shape: fields that the run decides where the recipe doesn't say.
    """

    config: type[Any]
    build: Callable[..., Any]
    shape: dict[str, Any] = dataclasses.field(default_factory=dict)


def layout_of(recipe: PretrainRecipe, checkpoint: Checkpoint | None) -> str | None:
    """The layout that the recipe names, or that of the model it begins with."""
    if recipe.model or not (checkpoint or recipe.init):
        return recipe.model.get("layout")
    config = (checkpoint.path if checkpoint else resolve(recipe.init)) / "config.json"
    published = read_json(config) if config.is_file() else {}
    return published.get("model_type") if isinstance(published, dict) else None


def pretrain_model(
    recipe: PretrainRecipe, tokenizer: Tokenizer, checkpoint: Checkpoint | None, fresh: Fresh
) -> Model:
    """The checkpoint's, the initial one, or a new one; in fp32, its record empty."""
    if checkpoint is not None or recipe.init:
        if checkpoint is None and recipe.model:
            raise BedstoneError(
                f"model: the shape of init = {recipe.init} is what it is; leave model out, or init."
            )
        model = load(checkpoint.path if checkpoint else recipe.init, dtype=torch.float32)
        model.tokenizer, model.record = tokenizer, {}
        if tokenizer.vocab_size > model.config.vocab_size:
            raise BedstoneError(
                f"tokenizer: has {tokenizer.vocab_size} tokens, more than the "
                f"{model.config.vocab_size} of {recipe.init}; leave tokenizer.path out."
            )
        return model
    tokens = tokenizer.vocab_size
    # Products of matrices are fastest at multiples of 64; small vocabularies stay as they are.
    vocabulary = -(-tokens // 64) * 64 if tokens > 512 else tokens
    shape = {"vocab_size": vocabulary, "context": recipe.context, **fresh.shape, **recipe.model}
    config = from_mapping(fresh.config, shape, "recipe", "model.")
    if config.vocab_size < tokens:
        raise BedstoneError(
            f"model.vocab_size: {config.vocab_size} is less than the tokenizer's {tokens} tokens; "
            "leave it out, and it will fit."
        )
    if config.context < recipe.context:
        raise BedstoneError(
            f"context: {recipe.context} tokens a row is more than model.context = {config.context}."
        )
    return Model(fresh.build(config, seed=recipe.seed), tokenizer)


def plan(recipe: PretrainRecipe, model: Model, data: dict[str, Any], precision: Precision) -> str:
    """What is about to be spent, said before it is."""
    assert model.tokenizer is not None
    count = sum(parameter.numel() for parameter in model.network.parameters())
    step = recipe.context * recipe.batch_size * recipe.accumulate
    tokens = data.get("train_tokens")
    size = f"{tokens:,} tokens" if tokens else "streamed"
    return (
        f"{recipe.data.source}: {size}, vocabulary {model.tokenizer.vocab_size:,}\n"
        f"{model.config.layout}: {count / 1e6:.2f}M parameters, {precision.name} on "
        f"{precision.device}\n{step:,} tokens a step, budget {recipe.budget}, into {recipe.out}"
    )
