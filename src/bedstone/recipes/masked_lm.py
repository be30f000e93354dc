"""Masked language modelling: predicting masked tokens, and whether texts follow (BERT)."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bedstone.checkpoints.model import Model
from bedstone.data.sources import Source
from bedstone.data.text.masked_lm import Corruption, MaskedBatches, RowMaker, evaluation_batches
from bedstone.data.text.sentences import Sentences
from bedstone.data.text.token_cache import TokenSplit
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import train_roberta
from bedstone.errors import BedstoneError
from bedstone.evaluate.language import masked_figures, row_maker
from bedstone.evaluate.runner import Evaluation, LogOnly
from bedstone.models.bert.network import LAYOUTS, BertConfig, build
from bedstone.models.heads import HeadConfig
from bedstone.objectives.masked import MaskedLoss, masked_scores
from bedstone.recipes.base import PretrainRecipe, Trainer
from bedstone.recipes.causal_lm import TextMethod
from bedstone.train.data import Splits
from bedstone.train.loop import Batches, Objective
from bedstone.train.run import RunPlan
from bedstone.train.start import Start


@dataclass
class MaskedLMRecipe(PretrainRecipe):
    """Masked language modelling from scratch, or going on from a model.

    Attributes as in `PretrainRecipe`.
    """


class MaskedLM(TextMethod):
    """Predicting masked tokens and classifying pairs of texts, as `masking` says."""

    name = "masked_lm"
    Recipe = MaskedLMRecipe
    layouts = LAYOUTS
    config = BertConfig
    build = staticmethod(build)

    def check(self, recipe: Any) -> None:
        super().check(recipe)
        if recipe.data.streaming:
            raise BedstoneError(
                "data.streaming: rows of an encoder are made of whole documents, which a stream "
                "doesn't keep. Leave it out: tokens are kept on the disk, 2 bytes each."
            )
        if recipe.data.answers:
            raise BedstoneError(
                "data.answers: an encoder learns masked tokens, wherever they stand; only a "
                "decoder learns answers alone. Leave it out."
            )
        if recipe.fim is not None and recipe.fim.rate:
            raise BedstoneError(
                "fim: an encoder fills masked tokens in; only a decoder learns to write a middle. "
                "Leave it out."
            )

    def source(self, source: Source) -> Source:
        return Sentences(source)

    def trainers(self, recipe: Any) -> Mapping[str, Trainer]:
        # an encoder needs special tokens: its bpe is RoBERTa's
        return {
            **super().trainers(recipe),
            "bpe": lambda texts, section: train_roberta(texts, section.vocab_size),
        }

    def shape(self, recipe: Any, tokenizer: Tokenizer | None) -> dict[str, Any]:
        shape: dict[str, Any] = {"head": _head(recipe)}
        if tokenizer is not None and tokenizer.pad_id is not None:
            shape["pad_id"] = tokenizer.pad_id
        return shape

    def model(
        self, recipe: Any, splits: Splits, tokenizer: Tokenizer | None, start: Start
    ) -> Model:
        head = _head(recipe)
        model = super().model(recipe, splits, tokenizer, start)
        kind = model.config.head.kind
        other = recipe.masking.pairs is not None and kind != head.kind
        if kind not in ("language", "pretraining") or other:
            dataclasses.replace(model.config, head=head)  # refuses what the layout can't have
            model.network.set_head(head, seed=recipe.seed)
        return model

    def batches(self, recipe: Any, model: Model, splits: Splits, start: Start) -> Batches:
        self.cache(recipe, model, splits, start.quiet)
        rows = self._rows(recipe, model, splits.train)
        return MaskedBatches(rows, recipe.context * recipe.batch_size, recipe.seed)

    def objective(self, recipe: Any, model: Model, start: Start) -> Objective:
        # In a full row a pair weighs as much as all masked tokens together: the sum of two means.
        pairs = model.config.head.kind == "pretraining"
        return MaskedLoss(recipe.masking.share * recipe.context if pairs else 0.0)

    def evaluations(self, recipe: Any, plan: RunPlan) -> Sequence[Evaluation]:
        if not plan.splits.validation:
            return []
        rows = self._rows(recipe, plan.model, plan.splits.validation)
        tokens = recipe.context * recipe.batch_size
        most = -(-recipe.evaluate_tokens // tokens) or None

        def log(network: nn.Module) -> dict[str, float]:
            batches = evaluation_batches(rows, tokens, recipe.seed)  # always the same masks
            scores = masked_scores(network, batches, plan.start.precision, most_batches=most)
            return masked_figures(scores)

        return [LogOnly(log)]

    def _rows(self, recipe: Any, model: Model, split: TokenSplit) -> RowMaker:
        assert model.tokenizer is not None
        corruption = Corruption.of(model.tokenizer, recipe.masking)
        pairs = model.config.head.kind == "pretraining"
        return row_maker(
            model.tokenizer, split, corruption, recipe.context, recipe.masking.short_rows, pairs
        )


def _head(recipe: Any) -> HeadConfig:
    """The head that `masking` asks for.

    Raises:
        BedstoneError: the layout has no head for pairs.
    """
    layout, pairs = recipe.model.get("layout"), recipe.masking.pairs
    if pairs is None:
        pairs = layout == "bert"
    elif pairs and layout not in ("bert", None):
        raise BedstoneError(
            f"masking.pairs: the {layout} layout has no head for pairs; set it to false, or take "
            "model.layout: bert."
        )
    return HeadConfig("pretraining" if pairs else "language")
