"""Pretraining of encoders: hidden words, and pairs of texts where the layout has them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from bedstone.checkpoints.model import Model
from bedstone.checkpoints.store import Checkpoint
from bedstone.data.text.masked_lm import Corruption, MaskedBatches, RowMaker, evaluation_batches
from bedstone.data.text.token_cache import TokenSplit
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.evaluate.language import figures, row_maker
from bedstone.models.bert.network import BertConfig, build
from bedstone.models.heads import HeadConfig
from bedstone.objectives.masked import MaskedLoss, masked_scores
from bedstone.recipes.base import Fresh, PretrainRecipe, SentenceData, plan, pretrain_model
from bedstone.runtime import Precision, seed_everything
from bedstone.train.run import RunPlan


def masked_course(
    recipe: PretrainRecipe,
    run: Path,
    precision: Precision,
    checkpoint: Checkpoint | None,
    quiet: bool,
) -> RunPlan:
    """Restoring hidden words and telling pairs of texts, as a recipe's `masking` says.

    Raises:
        BedstoneError: the recipe, the data or the tokenizer can't do it.
    """
    text = SentenceData.open(recipe, run, quiet=quiet)
    corruption = Corruption.of(text.tokenizer, recipe.masking)
    seed_everything(recipe.seed)
    model = _model(recipe, text.tokenizer, checkpoint)
    pairs = model.config.head.kind == "pretraining"
    model.network.to(precision.device)

    def rows(split: TokenSplit) -> RowMaker:
        return row_maker(text.tokenizer, split, corruption, recipe, pairs)

    # In a full row a pair weighs as much as all hidden words together: the sum of two means.
    weight = recipe.masking.share * recipe.context if pairs else 0.0
    held = rows(text.validation) if text.validation else None
    return RunPlan(
        model=model,
        batches=MaskedBatches(rows(text.train), recipe.context * recipe.batch_size, recipe.seed),
        objective=MaskedLoss(weight),
        evaluate=_evaluation(recipe, held, precision) if held else None,
        data=text.record,
        plan=plan(recipe, model, text.record, precision),
        budget=recipe.budget,
    )


def _model(recipe: PretrainRecipe, tokenizer: Tokenizer, checkpoint: Checkpoint | None) -> Model:
    """With the heads that `masking` asks for."""
    layout, pairs = recipe.model.get("layout"), recipe.masking.pairs
    if pairs is None:
        pairs = layout == "bert"
    elif pairs and layout not in ("bert", None):
        raise BedstoneError(
            f"masking.pairs: the {layout} layout has no head for pairs; set it to false, or take "
            "model.layout: bert."
        )
    head = HeadConfig("pretraining" if pairs else "language")
    shape: dict[str, Any] = {"head": head}
    if tokenizer.pad_id is not None:
        shape["pad_id"] = tokenizer.pad_id
    model = pretrain_model(recipe, tokenizer, checkpoint, Fresh(BertConfig, build, shape))
    kind = model.config.head.kind
    asked = recipe.masking.pairs is not None and kind != head.kind
    if kind not in ("language", "pretraining") or asked:
        dataclasses.replace(model.config, head=head)  # refuses what the layout can't have
        model.network.set_head(head, seed=recipe.seed)
    return model


def _evaluation(
    recipe: PretrainRecipe, rows: RowMaker, precision: Precision
) -> Callable[[nn.Module], dict[str, float]]:
    """The callable that measures the network on held-out text, the same words always hidden."""
    tokens = recipe.context * recipe.batch_size
    most = -(-recipe.evaluate_tokens // tokens) or None

    def evaluate(network: nn.Module) -> dict[str, float]:
        batches = evaluation_batches(rows, tokens, recipe.seed)
        return figures(masked_scores(network, batches, precision, most_batches=most))

    return evaluate
