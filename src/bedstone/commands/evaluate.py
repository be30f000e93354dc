"""`bedstone evaluate`: how well a model predicts text, hidden words, labels, answers or pairs, and
how well one draws."""

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import tokenizer_of
from bedstone.checkpoints.pipeline import DiffusionPipeline
from bedstone.data.sources import open_source
from bedstone.data.text.causal_lm import evaluation_batches
from bedstone.errors import BedstoneError
from bedstone.evaluate.contrastive import evaluate_contrastive
from bedstone.evaluate.generative import evaluate_generative
from bedstone.evaluate.image_text import IMAGE_TEXT_TASKS as TELLING
from bedstone.evaluate.image_text import evaluate_image_text
from bedstone.evaluate.language import evaluate_masked, text_figures
from bedstone.evaluate.runner import held_out_loss
from bedstone.evaluate.supervised import TASKS, evaluate_labels
from bedstone.models.flamingo.network import FLAMINGO
from bedstone.objectives.tokens import next_token_loss
from bedstone.runtime import pick_device, pick_precision
from bedstone.train.data import cached
from bedstone.train.logs import ProgressBar


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
    picture: str | None = None,
    judge: str = "",
    clip: str = "",
    samples: int = 1000,
    out: str = "",
) -> dict[str, Any]:
    """Prints and returns loss, perplexity and bits per byte over all of the data.

    Every token but a document's first is scored once, with at most `context` tokens before it.

    Raises:
        BedstoneError: the model or the data can't be opened, the context is too long, or an option
            is of another kind of model.
    """
    how = pick_precision(precision, pick_device(device))
    model = open_model(path, device=how.device)
    if isinstance(model, DiffusionPipeline):
        return evaluate_generative(
            model, data, how, judge=judge, clip=clip, samples=samples, out=out, as_json=as_json
        )
    if judge or clip:
        raise BedstoneError(
            f"{'judge' if judge else 'clip'}: {judge or clip} was given, and {path} draws nothing "
            "that it could see. Leave it out, or give a model that draws."
        )
    if not hasattr(model.config, "head"):
        raise BedstoneError(
            f"{path}: is a {model.config.layout}, which says nothing of texts or pictures to "
            "measure; its run's evaluation.json has its figures."
        )
    kind = model.config.head.kind
    if kind in TASKS:
        columns = None if column == "text" else {"text": column}
        return evaluate_labels(
            model,
            data,
            how,
            columns=columns,
            split=split,
            context=context,
            batch_size=batch_size,
            as_json=as_json,
            picture=picture,
        )
    if kind == "towers":
        return evaluate_contrastive(
            model, data, how, column=column, split=split, as_json=as_json, picture=picture
        )
    if picture is not None:
        raise BedstoneError("confusion: only a model with labels has such a matrix.")
    sees = model.config.layout == FLAMINGO and not is_text(data)
    if kind in TELLING.values() or sees:
        return evaluate_image_text(model, data, how, column=column, split=split, as_json=as_json)
    if kind != "language" or not model.network.causal:
        return evaluate_masked(
            model, data, how, column=column, split=split, context=context, as_json=as_json
        )
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
        loss, count = held_out_loss(
            model.network,
            next_token_loss,
            batches,
            how,
            progress=lambda done: bar.update(done / total),
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


def is_text(data: str) -> bool:
    """Whether a GPT that sees is measured on text alone there; all else has pictures."""
    return data == "python-docs" or Path(data).suffix in (".txt", ".md", ".gz")


def evaluate_(
    model: str,
    data: str,
    column: str = "text",
    split: str | None = None,
    context: int | None = None,
    batch_size: int = 8,
    json: bool = False,
    precision: str = "auto",
    device: str = "auto",
    confusion: str | None = None,
    judge: str = "",
    clip: str = "",
    samples: int = 1000,
    out: str = "",
) -> None:
    """A model's figures on data: of its task on labelled rows, else how well it predicts text.

    With 95 % intervals by the bootstrap, for a model with labels, tags or answers; loss,
    perplexity and bits per byte for one that predicts text; what judges and a CLIP see in drawings,
    for a model that draws.

    Args:
        model: a folder or a hub id.
        data: a built-in name, a path, a glob or a hub id.
        column: the column that holds the text, in formats that have columns; of pictures with
            labels, that of the labels.
        split: of a hub id or a folder with splits.
        context: tokens a window; the model's own context where not given.
        batch_size: windows at a time.
        json: print one JSON object.
        precision: auto, bf16 or fp32.
        device: auto, cpu, cuda, mps.
        confusion: a PNG to draw the confusion matrix into, for a model with labels.
        judge: of a model that draws: the network that judges, a folder or a file of weights.
        clip: of a model that draws from words: a CLIP (a run, a folder or a hub id) that scores how
            well each drawing shows its text; with a judge or without.
        samples: of a model that draws: how many drawings are judged.
        out: of a model that draws: a folder for sheets of what was drawn.
    """
    evaluate(
        model,
        data,
        column=column,
        split=split,
        context=context,
        batch_size=batch_size,
        as_json=json,
        precision=precision,
        device=device,
        picture=confusion,
        judge=judge,
        clip=clip,
        samples=samples,
        out=out,
    )
