"""`bedstone evaluate` for a model with a task's head: its figures on labelled rows."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.rule import Rule

from bedstone.checkpoints.artefact import Model, tokenizer_of
from bedstone.commands.scoring import score
from bedstone.data.examples import Examples, make_examples
from bedstone.data.labelled import open_rows
from bedstone.data.pair_reader import Reader, open_pairs
from bedstone.data.picture_examples import PictureExamples
from bedstone.errors import BedstoneError
from bedstone.inspect.confusion import draw_confusion
from bedstone.runtime import Precision
from bedstone.tasks.picture_engine import processor_of
from bedstone.tasks.task import sees
from bedstone.train.progress import ProgressBar

TASKS = {
    "sequence": "text-classification",
    "tokens": "token-classification",
    "spans": "question-answering",
}


def evaluate_labels(
    model: Model,
    data: str,
    precision: Precision,
    *,
    columns: dict[str, str] | None = None,
    split: str | None = None,
    context: int | None = None,
    stride: int = 0,
    batch_size: int = 64,
    as_json: bool = False,
    picture: str | None = None,
) -> dict[str, Any]:
    """Prints and returns the task's figures with 95 % intervals over all rows.

    Args:
        model: with a head for labels, tags or answers.
        data: rows with what is so, in the columns of the task.
        columns: which column holds what, where the usual names aren't used; of pictures, `text`
            is the column of their labels.
        context: tokens a row at most; longer rows become windows.
        stride: tokens that a window shares with the one before.
        picture: a PNG to draw the confusion matrix into.

    Raises:
        BedstoneError: the rows can't be read, or have labels that the model hasn't.
    """
    kind = model.config.head.kind
    examples: Any
    if sees(model):
        examples = _pictures(model, data, columns, split)
    else:
        examples = _texts(model, data, columns, split, context, stride)
    with ProgressBar("evaluating", quiet=as_json) as bar:
        found = score(model, examples, precision, batch_size=batch_size, told=bar.update)
    assert found.figures is not None
    record = {"loss": found.loss, **found.figures.record()}
    if picture is not None:
        if found.figures.confusion is None:
            raise BedstoneError(f"confusion: a model for {TASKS[kind]} has no such matrix.")
        title = f"{model.path} on {Path(data).name}"
        draw_confusion(found.figures.confusion, found.figures.labels, picture, title)
    if as_json:
        print(json.dumps(record))
        return record
    Console().print(Rule(f"{model.path} on {data}", align="left"), found.figures)
    return record


def _texts(
    model: Model,
    data: str,
    columns: dict[str, str] | None,
    split: str | None,
    context: int | None,
    stride: int,
) -> Examples:
    head = model.config.head
    limit = min(context or model.config.context, model.config.context)
    return make_examples(
        TASKS[head.kind],
        open_rows(data, columns=columns, split=split),
        tokenizer_of(model),
        labels=list(head.labels) or None,
        problem=head.problem if head.kind == "sequence" else "auto",
        limit=limit,
        stride=stride or (limit // 4 if head.kind == "spans" else 0),
        known=True,
    )


def _pictures(
    model: Model, data: str, columns: dict[str, str] | None, split: str | None
) -> PictureExamples:
    named = {} if columns is None else {"label": columns["text"]}
    rows = open_pairs(data, Reader(named), split=split)
    return PictureExamples(rows, processor_of(model), labels=model.config.head.labels, known=True)
