"""Evaluation of language models: perplexity of causal ones, masked tokens of encoders."""

import math

from rich.table import Table

from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.data.sources import DataConfig, open_source
from bedstone.data.text.causal_lm import evaluation_batches as causal_batches
from bedstone.data.text.masked_lm import Corruption, MaskingConfig, RowMaker, evaluation_batches
from bedstone.data.text.sentences import Documents, Sentences
from bedstone.data.text.token_cache import TokenSplit
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.evaluate.runner import held_out_loss, present
from bedstone.objectives.masked import MaskedScores, masked_scores
from bedstone.objectives.tokens import next_token_loss
from bedstone.runtime import Precision
from bedstone.train.data import cached, recorded_data
from bedstone.train.logs import ProgressBar


def row_maker(
    tokenizer: Tokenizer,
    split: TokenSplit,
    corruption: Corruption,
    context: int,
    short_rows: float,
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
    documents = Documents(split)
    return RowMaker(documents, corruption, first, last, context, pairs, short_rows)


def masked_figures(scores: MaskedScores) -> dict[str, float]:
    """Figures by name; `loss` is the sum of both means, as in training."""
    word_loss = scores.word_loss / max(scores.words, 1)
    figures = {
        "loss": word_loss,
        "perplexity": math.exp(min(word_loss, 700.0)),
        "word_accuracy": scores.words_right / max(scores.words, 1),
    }
    if scores.pairs:
        pair_loss = scores.pair_loss / scores.pairs
        figures["loss"] = word_loss + pair_loss
        figures["word_loss"], figures["pair_loss"] = word_loss, pair_loss
        figures["pair_accuracy"] = scores.pairs_right / scores.pairs
    return figures


def text_column(model: Model, given: str) -> str:
    """The column of texts: the one given, else that of the model's recipe, else `text`."""
    return given or recorded_data(DataConfig, model.record).column


def evaluate_masked(
    model: Model,
    data: str,
    precision: Precision,
    *,
    column: str = "",
    split: str | None = None,
    context: int | None = None,
    as_json: bool = False,
) -> dict[str, float]:
    """Prints and returns loss, perplexity and accuracy on masked tokens, the same every time.

    15 % of the tokens are masked as in training (80/10/10); pairs of texts are classified too where
    the model has a head for them.

    Raises:
        BedstoneError: the model has no head for words, or the data can't be read.
    """
    kind = model.config.head.kind
    if kind not in ("language", "pretraining"):
        raise BedstoneError(
            f"{model.path}: has no head ({kind}), so there is nothing it could be measured by. "
            "Fine-tune it on a task, or use its embeddings: bedstone run feature-extraction."
        )
    tokenizer = tokenizer_of(model)
    longest = min(context or 128, model.config.context)
    masking = MaskingConfig()
    source = open_source(data, text_column=text_column(model, column), split=split)
    tokens = cached(Sentences(source), tokenizer, 0.0, quiet=as_json).train
    corruption, pairs = Corruption.of(tokenizer, masking), kind == "pretraining"
    rows = row_maker(tokenizer, tokens, corruption, longest, masking.short_rows, pairs)
    batches = evaluation_batches(rows, 32 * longest)
    scores = masked_scores(model.network, batches, precision)
    found = masked_figures(scores)
    table = Table(title=f"{model.path} on {data}", show_header=False, title_justify="left")
    for name, value in found.items():
        table.add_row(name.replace("_", " "), f"{value:.4f}")
    table.add_row("scored", f"{scores.words:,} masked tokens, rows of {longest} tokens")
    present({**found, "words": scores.words, "context": longest}, {"": table}, as_json=as_json)
    return found


def text_figures(loss: float, tokens_a_byte: float) -> dict[str, float]:
    """`loss` in nats a token as perplexity and bits per byte of UTF-8.

    Bits per byte don't depend on the tokenizer, so models that have different ones compare.
    """
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": loss / math.log(2) * tokens_a_byte,
    }


def evaluate_causal(
    model: Model,
    data: str,
    precision: Precision,
    *,
    column: str = "",
    split: str | None = None,
    context: int | None = None,
    batch_size: int = 8,
    as_json: bool = False,
) -> dict[str, float]:
    """Prints and returns loss, perplexity and bits per byte over all of the data.

    Every token but a document's first is scored once, with at most `context` tokens before it.

    Raises:
        BedstoneError: the data can't be opened, or the context is too long.
    """
    longest = min(context or model.config.context, model.config.context)
    if context and context > longest:
        raise BedstoneError(
            f"context: {context} was given; the model is made for {longest} tokens at most."
        )
    source = open_source(data, text_column=text_column(model, column), split=split)
    tokens = cached(source, tokenizer_of(model), 0.0, quiet=as_json).train
    longest = min(longest, max(len(tokens) - 1, 1))
    batches = causal_batches(tokens, longest, batch_size)
    total = math.ceil(len(tokens) / (longest * batch_size))
    with ProgressBar("evaluating", quiet=as_json) as bar:
        loss, count = held_out_loss(
            model.network,
            next_token_loss,
            batches,
            precision,
            progress=lambda done: bar.update(done / total),
        )
    figures = text_figures(loss, count / max(tokens.bytes, 1))
    table = Table(title=f"{model.path} on {data}", show_header=False, title_justify="left")
    table.add_row("loss", f"{figures['loss']:.4f} nats a token")
    table.add_row("perplexity", f"{figures['perplexity']:.3f}")
    table.add_row("bits per byte", f"{figures['bits_per_byte']:.4f}")
    table.add_row("scored", f"{count:,} tokens, {tokens.bytes:,} bytes, context {longest}")
    counts = {"tokens": count, "bytes": tokens.bytes, "context": longest}
    present({**figures, **counts}, {"": table}, as_json=as_json)
    return figures
