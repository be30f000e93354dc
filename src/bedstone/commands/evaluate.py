"""`bedstone evaluate`: how well a model predicts text."""

import json
import math

from rich.console import Console
from rich.table import Table

from bedstone.commands.opening import open_model, tokenizer_of
from bedstone.commands.text_data import cached
from bedstone.data.batches import evaluation_batches
from bedstone.data.sources import open_source
from bedstone.errors import BedstoneError
from bedstone.inspect.evaluate import text_figures, text_loss
from bedstone.objectives.tokens import next_token_loss
from bedstone.runtime import pick_device, pick_precision
from bedstone.train.progress import ProgressBar


def evaluate(
    path: str,
    data: str,
    *,
    column: str = "text",
    split: str | None = None,
    context: int | None = None,
    batch_size: int = 8,
    as_json: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> dict[str, float]:
    """Prints and returns loss, perplexity and bits per byte over all of the data.

    Every token but a document's first is scored once, with at most `context` tokens before it.

    Raises:
        BedstoneError: the model or the data can't be opened, or the context is too long.
    """
    how = pick_precision(precision, pick_device(device))
    model = open_model(path, device=how.device)
    longest = min(context or model.config.context, model.config.context)
    if context and context > longest:
        raise BedstoneError(
            f"context: {context} was given; the model is made for {longest} tokens at most."
        )
    tokenizer = tokenizer_of(model)
    source = open_source(data, text_column=column, split=split)
    tokens = cached(source, tokenizer, 0.0, quiet=as_json).train
    longest = min(longest, max(len(tokens) - 1, 1))
    batches = evaluation_batches(tokens, longest, batch_size)
    total = math.ceil(len(tokens) / (longest * batch_size))
    with ProgressBar("evaluating", quiet=as_json) as bar:
        loss, count = text_loss(
            model.network,
            next_token_loss,
            batches,
            how,
            told=lambda done: bar.update(done / total),
        )
    figures = text_figures(loss, count / max(tokens.bytes, 1))
    if as_json:
        print(json.dumps({**figures, "tokens": count, "bytes": tokens.bytes, "context": longest}))
        return figures
    table = Table(title=f"{path} on {data}", show_header=False, title_justify="left")
    table.add_row("loss", f"{figures['loss']:.4f} nats a token")
    table.add_row("perplexity", f"{figures['perplexity']:.3f}")
    table.add_row("bits per byte", f"{figures['bits_per_byte']:.4f}")
    table.add_row("scored", f"{count:,} tokens, {tokens.bytes:,} bytes, context {longest}")
    Console().print(table)
    return figures
