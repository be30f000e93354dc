"""Causal language modelling: predicting the next token of text (GPT)."""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from bedstone.checkpoints.model import Model
from bedstone.data.sources import Source, open_source
from bedstone.data.text.causal_lm import (
    PackedBatches,
    StreamedBatches,
    answers_alone,
    evaluation_batches,
)
from bedstone.data.text.fim import SETTING, STYLES
from bedstone.data.text.fim_cuts import FimCounts, FimCutter
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import (
    END,
    UNKNOWN,
    train_bpe,
    train_characters,
    train_wordpiece,
)
from bedstone.errors import BedstoneError
from bedstone.evaluate.language import text_figures
from bedstone.evaluate.runner import Evaluation, LogOnly, held_out_loss
from bedstone.models.gpt.network import LAYOUTS, GPTConfig, build
from bedstone.objectives.tokens import next_token_loss
from bedstone.recipes.base import Method, PretrainRecipe, Trainer
from bedstone.settings import from_mapping
from bedstone.train.data import MB, Splits, cached
from bedstone.train.logs import ProgressBar
from bedstone.train.loop import Batches, Objective
from bedstone.train.run import RunPlan
from bedstone.train.start import Start


@dataclass
class CausalLMRecipe(PretrainRecipe):
    """Causal language modelling from scratch, or going on from a model.

    Attributes as in `PretrainRecipe`; `masking` has no effect.
    """


class TextMethod(Method[Any]):
    """What training on text shares: sources, tokenizer, the network's shape.

    Attributes:
        config: the class of the network's configuration.
        build: (configuration, seed) to the network.
    """

    unit = "tokens"
    fault = "predicts no tokens of text"
    config: ClassVar[type[Any]]
    build: ClassVar[Any]

    def check(self, recipe: Any) -> None:
        if recipe.init and recipe.model:
            raise BedstoneError(
                f"model: the shape of init = {recipe.init} is what it is; "
                "clear the recipe's model (model=), or leave init out."
            )

        if not recipe.init:  # the vocabulary alone is not known before the data is
            shape = {"vocab_size": 2**20, "context": recipe.context, **self.shape(recipe, None)}
            from_mapping(self.config, shape | recipe.model, "recipe", "model.")

    def source(self, source: Source) -> Source:
        """The source as documents are cut."""
        return source

    def open(self, recipe: Any, start: Start) -> Splits:
        data = recipe.data
        how = {"text_column": data.column, "split": data.split, "most_broken": data.most_broken}
        source = open_source(data.source, **how)
        held = None
        if data.validation:
            held = open_source(data.validation, **how)
        # What is too much to keep is too much to hash; its size has to do.
        print_of = str(source.describe()["bytes"]) if data.streaming else source.fingerprint()
        return Splits(source, held, record={"source": source.name, "fingerprint": print_of})

    def texts(self, recipe: Any, splits: Splits, start: Start) -> Iterable[str]:
        return sampled_texts(splits.train, recipe.tokenizer, start.quiet)

    def trainers(self, recipe: Any) -> Mapping[str, Trainer]:
        return {
            "bpe": lambda texts, section: train_bpe(texts, section.vocab_size),
            "wordpiece": lambda texts, section: train_wordpiece(
                texts, section.vocab_size, lowercase=section.lowercase
            ),
            "characters": lambda texts, section: train_characters(texts),
        }

    def step_size(self, recipe: Any) -> int:
        return int(recipe.context * recipe.batch_size)

    def shape(self, recipe: Any, tokenizer: Tokenizer | None) -> dict[str, Any]:
        """Fields of the configuration that the run decides where the recipe doesn't say."""
        return {}

    def model(
        self, recipe: Any, splits: Splits, tokenizer: Tokenizer | None, start: Start
    ) -> Model:
        assert tokenizer is not None
        tokens = tokenizer.vocab_size
        model: Model | None = start.model
        if model is not None:
            model.tokenizer = tokenizer
            if tokens > model.config.vocab_size:
                raise BedstoneError(
                    f"tokenizer: has {tokens} tokens, more than the {model.config.vocab_size} of "
                    f"{recipe.init}; leave tokenizer.path out."
                )
            return model
        # Products of matrices are fastest at multiples of 64; small vocabularies stay as they are.
        vocabulary = -(-tokens // 64) * 64 if tokens > 512 else tokens
        shape = {"vocab_size": vocabulary, "context": recipe.context}
        shape |= self.shape(recipe, tokenizer) | recipe.model
        config = from_mapping(self.config, shape, "recipe", "model.")
        if config.vocab_size < tokens:
            raise BedstoneError(
                f"model.vocab_size: {config.vocab_size} is less than the tokenizer's {tokens} "
                "tokens; leave it out, and it will fit."
            )
        if config.context < recipe.context:
            raise BedstoneError(
                f"context: {recipe.context} tokens a row is more than model.context = "
                f"{config.context}."
            )
        return Model(type(self).build(config, seed=recipe.seed), tokenizer)

    def cache(self, recipe: Any, model: Model, splits: Splits, quiet: bool) -> None:
        """Tokenises both splits, which become tokens of the token cache."""
        assert model.tokenizer is not None
        held = None
        if splits.validation is not None:
            held = cached(self.source(splits.validation), model.tokenizer, 0.0, quiet).train
        share = 0.0 if held else recipe.data.validation_share
        fim = self.fim(recipe, model.tokenizer)
        tokens = cached(self.source(splits.train), model.tokenizer, share, quiet, fim)
        splits.train, splits.validation = tokens.train, held or tokens.validation or None
        splits.record["train_tokens"] = len(tokens.train)
        splits.record["train_bytes"] = tokens.train.bytes
        splits.notes = [f"{recipe.data.source}: {len(tokens.train):,} tokens"]
        if fim is not None:
            splits.notes.append(_cut_note(fim, tokens.counts))
            splits.record["fim"] = tokens.counts._asdict()

    def fim(self, recipe: Any, tokenizer: Tokenizer) -> FimCutter | None:
        """What cuts documents for fill-in-the-middle; None where nothing does."""
        return None


class CausalLM(TextMethod):
    """Predicting the next token of text."""

    name = "causal_lm"
    Recipe = CausalLMRecipe
    layouts = tuple(LAYOUTS)
    config = GPTConfig
    build = staticmethod(build)

    def check(self, recipe: Any) -> None:
        super().check(recipe)
        if recipe.data.answers and recipe.data.streaming:
            raise BedstoneError(
                "data.answers: which tokens are answers is known of tokens that are kept, not of "
                "a stream. Leave data.streaming out."
            )
        if recipe.data.answers and _fills(recipe):
            raise BedstoneError(
                "fim: moves the middle of documents to their end, and data.answers learns what "
                "stands at the end of lines. Leave one of the two out."
            )

    def trainers(self, recipe: Any) -> Mapping[str, Trainer]:
        """Those of all text; the tokens of fill-in-the-middle are special from the beginning."""
        if not _fills(recipe):
            return super().trainers(recipe)
        style = STYLES[recipe.fim.style or "starcoder"]

        def named(tokenizer: Tokenizer) -> Tokenizer:
            tokenizer.settings[SETTING] = style.name
            return tokenizer

        return {
            "bpe": lambda texts, section: named(
                train_bpe(texts, section.vocab_size, special_tokens=(END, *style.tokens))
            ),
            "characters": lambda texts, section: named(
                train_characters(texts, special_tokens=(END, UNKNOWN, *style.tokens))
            ),
        }

    def model(
        self, recipe: Any, splits: Splits, tokenizer: Tokenizer | None, start: Start
    ) -> Model:
        assert tokenizer is not None
        if (fim := self.fim(recipe, tokenizer)) is not None:
            tokenizer.settings[SETTING] = fim.tokens.style.name  # the artefact says it
        return super().model(recipe, splits, tokenizer, start)

    def fim(self, recipe: Any, tokenizer: Tokenizer) -> FimCutter | None:
        if not _fills(recipe):
            return None
        return FimCutter(tokenizer, recipe.fim, PASSAGE * recipe.context, recipe.seed)

    def cache(self, recipe: Any, model: Model, splits: Splits, quiet: bool) -> None:
        super().cache(recipe, model, splits, quiet)
        if recipe.data.answers:
            assert model.tokenizer is not None
            ids = _answer_tokens(model.tokenizer, recipe.data.answers)
            splits.train = answers_alone(splits.train, *ids)
            if splits.validation is not None:
                splits.validation = answers_alone(splits.validation, *ids)

    def batches(self, recipe: Any, model: Model, splits: Splits, start: Start) -> Batches:
        if not recipe.data.streaming:
            self.cache(recipe, model, splits, start.quiet)
            return PackedBatches(splits.train, recipe.context, recipe.batch_size, recipe.seed)
        assert model.tokenizer is not None
        held = None
        if splits.validation is not None:
            held = cached(splits.validation, model.tokenizer, 0.0, start.quiet).train
        share = 0.0 if held else recipe.data.validation_share
        fim = self.fim(recipe, model.tokenizer)
        batches = StreamedBatches(
            splits.train,
            model.tokenizer,
            recipe.context,
            recipe.batch_size,
            recipe.seed,
            validation_share=share,
            fim=fim,
        )
        if held is None and share:
            held = batches.held_out(recipe.evaluate_tokens or MB)
        splits.validation = held
        splits.notes = [f"{recipe.data.source}: streamed"]
        if fim is not None:
            splits.notes.append(f"{_cut_note(fim, batches.cut())}, in the first block")
        return batches

    def objective(self, recipe: Any, model: Model, start: Start) -> Objective:
        return next_token_loss

    def evaluations(self, recipe: Any, plan: RunPlan) -> Sequence[Evaluation]:
        if (split := plan.splits.validation) is None or len(split) < 2:
            return []
        most = -(-recipe.evaluate_tokens // (recipe.batch_size * recipe.context)) or None
        tokens_a_byte = len(split) / max(split.bytes, 1)

        def log(network: nn.Module) -> dict[str, float]:
            batches = evaluation_batches(split, recipe.context, recipe.batch_size)
            loss, _ = held_out_loss(
                network, next_token_loss, batches, plan.start.precision, most_batches=most
            )
            figures = text_figures(loss, tokens_a_byte)
            if split.targets is not None:  # the bytes are of all tokens
                del figures["bits_per_byte"]
            return figures

        return [LogOnly(log)]


PASSAGE = 2  # characters of a passage that is cut, for each token of a context


def _fills(recipe: Any) -> bool:
    """Whether documents are cut for fill-in-the-middle."""
    return recipe.fim is not None and recipe.fim.rate > 0


def _cut_note(fim: FimCutter, counts: FimCounts) -> str:
    """What was cut, for the plan.

    Raises:
        BedstoneError: nothing was, though it was asked for.
    """
    if not counts.cut:
        raise BedstoneError(
            f"fim: of {counts.passages:,} documents or passages none was cut. Raise fim.rate, name "
            "more data, or leave fim.passage out: whole documents are cut where they are at most "
            "a megabyte."
        )
    return (
        f"fill-in-the-middle ({fim.tokens.style.name}): {counts.cut:,} of {counts.passages:,} "
        f"documents or passages cut, {counts.spm:,} of them suffix first"
    )


def _answer_tokens(tokenizer: Tokenizer, text: str) -> tuple[int, list[int], list[int]]:
    """The token that ends a line, those that stand before an answer, and those that begin one."""
    line_end, whole = tokenizer.encode("\n"), tokenizer.encode(text)
    texts = {number: tokenizer.decode([number]) for number in range(tokenizer.vocab_size)}
    before = whole if len(whole) == 1 else []
    first = [number for number, each in texts.items() if each.startswith(text) and each != text]
    if len(line_end) != 1:
        raise BedstoneError(
            f"data.answers: a line's end is {len(line_end)} tokens of the tokenizer; expected one. "
            "Train a tokenizer on this data."
        )
    if not before and not first:
        raise BedstoneError(
            f"data.answers: {text!r} is {len(whole)} tokens of the tokenizer, and none begins with "
            "it; expected one that stands before each answer, or tokens that begin it. Train a "
            "tokenizer on this data, or name another text."
        )
    return line_end[0], before, first


def sampled_texts(source: Source, section: Any, quiet: bool) -> Iterator[str]:
    """Texts spread over all of a source, `sample_mb` megabytes of them at most.

    Args:
        section: the `tokenizer` section of a recipe.
    """
    total = source.describe()["bytes"]
    # Every character must be known; merges are learnt from a sample as well.
    share = 1.0 if section.kind == "characters" or not total else section.sample_mb * MB / total
    read = 0
    with ProgressBar("training the tokenizer", quiet=quiet) as bar:
        for piece in source.pieces():
            data = piece.text.encode()
            read += len(data)
            bar.update(min(read / total, 1.0) if total else 0.0, read=f"{read / MB:,.0f} MB")
            if zlib.crc32(data[:4096]) < share * 2**32:
                yield piece.text
