"""Pretraining of encoders: hidden words, and pairs of texts where the layout has them."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from bedstone.checkpoints.artefact import Model
from bedstone.checkpoints.store import Checkpoint
from bedstone.commands.pretrain_model import Fresh, plan, pretrain_model
from bedstone.commands.text_data import SentenceData
from bedstone.commands.training import Course
from bedstone.config import PretrainRecipe
from bedstone.data.corruption import Corruption
from bedstone.data.masked_batches import MaskedBatches, evaluation_batches
from bedstone.data.masked_rows import RowMaker
from bedstone.data.segments import Documents
from bedstone.data.tokenizer import Tokenizer
from bedstone.data.tokens import TokenSplit
from bedstone.errors import BedstoneError
from bedstone.models.bert import BertConfig, build
from bedstone.models.heads import HeadConfig
from bedstone.objectives.masked import MaskedLoss, MaskedScores, masked_scores
from bedstone.runtime import Precision, seed_everything


def masked_course(
    recipe: PretrainRecipe,
    run: Path,
    precision: Precision,
    checkpoint: Checkpoint | None,
    quiet: bool,
) -> Course:
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
    return Course(
        model=model,
        batches=MaskedBatches(rows(text.train), recipe.context * recipe.batch_size, recipe.seed),
        objective=MaskedLoss(weight),
        evaluate=_evaluation(recipe, held, precision) if held else None,
        data=text.record,
        plan=plan(recipe, model, text.record, precision),
        budget=recipe.budget,
    )


def row_maker(
    tokenizer: Tokenizer,
    split: TokenSplit,
    corruption: Corruption,
    recipe: PretrainRecipe,
    pairs: bool,
) -> RowMaker:
    """Rows of a split, between the tokenizer's own tokens.

    Raises:
        BedstoneError: the tokenizer has none.
    """
    first, last = tokenizer.cls_id, tokenizer.sep_id
    if first is None or last is None:
        raise BedstoneError(
            "tokenizer: has no tokens that stand before and after a text ([CLS] and [SEP], or <s> "
            "and </s>), which an encoder needs. Train one with tokenizer.kind: wordpiece."
        )
    short = recipe.masking.short_rows
    documents = Documents(split)
    return RowMaker(documents, corruption, first, last, recipe.context, pairs, short)


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


def figures(scores: MaskedScores) -> dict[str, float]:
    """What an evaluation says; `validation_loss` is the sum of both means, as in training."""
    word_loss = scores.word_loss / max(scores.words, 1)
    told = {
        "loss": word_loss,
        "perplexity": math.exp(min(word_loss, 700.0)),
        "word_accuracy": scores.words_right / max(scores.words, 1),
    }
    if scores.pairs:
        pair_loss = scores.pair_loss / scores.pairs
        told["loss"] = word_loss + pair_loss
        told["word_loss"], told["pair_loss"] = word_loss, pair_loss
        told["pair_accuracy"] = scores.pairs_right / scores.pairs
    return {f"validation_{name}": value for name, value in told.items()}
