"""`bedstone evaluate` for an encoder with a word head: how well it restores hidden words."""

import json
import math

from rich.console import Console
from rich.table import Table

from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.data.sources import open_source
from bedstone.data.text.masked_lm import Corruption, MaskingConfig, RowMaker, evaluation_batches
from bedstone.data.text.sentences import Documents, Sentences
from bedstone.data.text.token_cache import TokenSplit
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.objectives.masked import MaskedScores, masked_scores
from bedstone.runtime import Precision
from bedstone.train.data import cached


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


def evaluate_masked(
    model: Model,
    data: str,
    precision: Precision,
    *,
    column: str = "text",
    split: str | None = None,
    context: int | None = None,
    as_json: bool = False,
) -> dict[str, float]:
    """Prints and returns loss, perplexity and accuracy on hidden words, the same ones every time.

    15 % of the tokens are hidden as in training (80/10/10); pairs are asked too where the model has
    a head for them.

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
    source = open_source(data, text_column=column, split=split)
    tokens = cached(Sentences(source), tokenizer, 0.0, quiet=as_json).train
    corruption, pairs = Corruption.of(tokenizer, masking), kind == "pretraining"
    rows = row_maker(tokenizer, tokens, corruption, longest, masking.short_rows, pairs)
    batches = evaluation_batches(rows, 32 * longest)
    scores = masked_scores(model.network, batches, precision)
    found = masked_figures(scores)
    if as_json:
        print(json.dumps({**found, "words": scores.words, "context": longest}))
        return found
    table = Table(title=f"{model.path} on {data}", show_header=False, title_justify="left")
    for name, value in found.items():
        table.add_row(name.replace("_", " "), f"{value:.4f}")
    table.add_row("scored", f"{scores.words:,} hidden words, rows of {longest} tokens")
    Console().print(table)
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
