"""Evaluation of models with a head for labels, tags or answers: loss and figures on rows.

Shapes: M read states, L labels, N tokens, n rows of a batch.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from torch import Tensor

from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.data.dataset import Dataset
from bedstone.data.fields import PAIRS
from bedstone.data.images.supervised import ImageExamples
from bedstone.data.open import first_row, open_dataset
from bedstone.data.records import MOST_BROKEN
from bedstone.data.text.examples import ExampleBatch, Examples, evaluation_batches
from bedstone.data.text.supervised import make_examples
from bedstone.errors import BedstoneError
from bedstone.evaluate.runner import Evaluation, present
from bedstone.files import write_text
from bedstone.metrics.classification import classification, multi_label
from bedstone.metrics.figures import Figures
from bedstone.metrics.ner import entities
from bedstone.metrics.regression import regression
from bedstone.metrics.squad import answers
from bedstone.models.heads import HeadConfig
from bedstone.objectives.supervised import completion_loss, loss_of_scores, scores
from bedstone.report.plots import draw_confusion
from bedstone.runtime import Precision
from bedstone.tasks.images.engine import processor_of
from bedstone.tasks.task import embeds_images
from bedstone.tasks.text.question_answering import best_answer
from bedstone.train.data import recorded_columns
from bedstone.train.logs import ProgressBar

WORST = 20  # mistaken rows that are kept
LONGEST = 300  # characters of a row's text

# The figure that picks the best checkpoint, by head and problem; `-` says that higher is better.
MAIN = {
    ("sequence", "single"): "-validation_accuracy",
    ("sequence", "multi"): "-validation_f1_micro",
    ("sequence", "regression"): "-validation_spearman",
    ("tokens", "single"): "-validation_f1",
    ("spans", "single"): "-validation_f1",
    ("language", "single"): "validation_loss",
}


@dataclass
class Scored:
    """Loss, figures and predictions of an evaluation.

    Attributes:
        loss: mean over targets, in nats or squared units.
        figures: of the task; None where it has a loss alone.
        predicted: what was said of each source row.
        actual: what is so.
        worst: the rows that were mistaken most surely, as `PredictionReader.worst` gives them.
        targets: that the loss is over.
    """

    loss: float
    figures: Figures | None
    predicted: list[Any]
    actual: list[Any]
    worst: list[dict[str, Any]] = field(default_factory=list)
    targets: int = 0


class PredictionReader:
    """Collects a head's outputs and turns them into a prediction for each source row."""

    def __init__(self, examples: Examples, head: HeadConfig) -> None:
        self.examples = examples
        self.head = head
        self.found: dict[int, list[Any]] = defaultdict(list)  # by source row

    def add(self, batch: ExampleBatch, outputs: Tensor) -> None:
        """Takes the outputs for a batch, (M, L)."""
        raise NotImplementedError

    def figures(self, resamples: int) -> Figures:
        raise NotImplementedError

    def worst(self, most: int) -> list[dict[str, Any]]:
        """The rows that were mistaken most surely: `row`, `predicted`, `actual`, `probability`."""
        return []

    def predicted(self) -> list[Any]:
        """What is said of each row, in the rows' order."""
        return [self.say(self.found[row]) for row in range(len(self.examples.rows))]

    def say(self, found: list[Any]) -> Any:
        raise NotImplementedError


class LabelReader(PredictionReader):
    """A label, several or numbers a row; of a row in several windows, the mean of their logits."""

    def add(self, batch: ExampleBatch, outputs: Tensor) -> None:
        for origin, logits in zip(batch.origins, outputs, strict=True):
            self.found[origin].append(logits)

    def say(self, found: list[Any]) -> Any:
        logits, labels = torch.stack(found).mean(0), self.head.labels
        if self.head.measured_as == "single":
            return labels[int(logits.argmax())]
        if self.head.measured_as == "multi":
            return [label for label, logit in zip(labels, logits, strict=True) if logit > 0]
        return logits.tolist()

    def worst(self, most: int) -> list[dict[str, Any]]:
        if self.head.measured_as != "single":
            return []
        found = []
        for row, actual in enumerate(self.examples.actual):
            chances = torch.stack(self.found[row]).float().mean(0).softmax(-1)
            best = int(chances.argmax())
            if self.head.labels[best] != actual:
                said = {"predicted": self.head.labels[best], "actual": actual}
                found.append({"row": row, **said, "probability": float(chances[best])})
        return sorted(found, key=lambda one: -one["probability"])[:most]

    def figures(self, resamples: int) -> Figures:
        by_problem = {"single": classification, "multi": multi_label, "regression": regression}
        measure = by_problem[self.head.measured_as]
        actual = self.examples.actual
        return measure(self.predicted(), actual, list(self.head.labels), resamples=resamples)


class TagReader(PredictionReader):
    """A tag a word."""

    def add(self, batch: ExampleBatch, outputs: Tensor) -> None:
        assert batch.words is not None
        places = (batch.owners, batch.words, outputs.argmax(-1))
        for owner, word, tag in zip(*(each.tolist() for each in places), strict=True):
            self.found[batch.origins[owner]].append((word, self.head.labels[tag]))

    def predicted(self) -> list[list[str]]:
        said = []
        for row, actual in enumerate(self.examples.actual):
            tags = dict(self.found[row])
            # a word without any token, such as an empty one, is read nowhere
            said.append([tags.get(word, "O") for word in range(len(actual))])
        return said

    def figures(self, resamples: int) -> Figures:
        return entities(self.predicted(), self.examples.actual, resamples=resamples)


class SpanReader(PredictionReader):
    """An answer a row, the best of its windows; "" says that there is none."""

    def add(self, batch: ExampleBatch, outputs: Tensor) -> None:
        parts = outputs.split(batch.rows.lengths)
        for origin, window, logits in zip(batch.origins, batch.windows, parts, strict=True):
            self.found[origin].append((window, logits))

    def predicted(self) -> list[str]:
        rows, gold = self.examples.rows, self.examples.actual
        contexts = rows.texts(rows.need("context"))
        impossible = any(not each["text"] for each in gold)
        found = []
        for row, context in enumerate(contexts):
            inputs = self.examples.input(row)
            windows = [(inputs[window], logits) for window, logits in self.found[row]]
            found.append(best_answer(windows, context, impossible=impossible))
        return found

    def figures(self, resamples: int) -> Figures:
        return answers(self.predicted(), self.examples.actual, resamples=resamples)


READERS = {"sequence": LabelReader, "tokens": TagReader, "spans": SpanReader}


def score(
    model: Any,
    examples: Examples,
    precision: Precision,
    *,
    batch_size: int = 64,
    resamples: int = 1000,
    progress: Callable[[float], None] = lambda share: None,
) -> Scored:
    """The network's predictions on all rows, its mean loss, and the figures of both.

    Args:
        model: a `Model`, whose network has the head of the examples.
        resamples: of the bootstrap; 0 leaves intervals out.
        progress: called with the share that is done.
    """
    network, head = model.network, model.config.head
    reader = READERS[head.kind](examples, head) if head.kind in READERS else None
    total, count = 0.0, 0.0
    was_training = network.training
    network.eval()
    reads = getattr(network.head, "reads", "all")
    with torch.inference_mode(), precision.autocast():
        for batch in evaluation_batches(examples, batch_size, reads=reads):
            there = batch.to(precision.device)
            if reader is None:
                loss, targets = completion_loss(network, there)
            else:
                outputs = scores(network, there)
                loss, targets = loss_of_scores(head, outputs, there)
                reader.add(batch, outputs.cpu())
            total, count = total + loss.item(), count + targets
            progress((max(batch.origins) + 1) / len(examples.rows))
    network.train(was_training)
    loss_mean = total / max(count, 1)
    if reader is None:
        return Scored(loss_mean, None, [], [], targets=round(count))
    figures = reader.figures(resamples)
    worst = reader.worst(WORST)
    return Scored(loss_mean, figures, reader.predicted(), examples.actual, worst)


@dataclass
class SupervisedEvaluation(Evaluation):
    """Loss and figures of a model on labelled rows.

    Attributes:
        name: of the rows: validation or test.
        model: whose network has the head of the examples.
        examples: the rows.
        precision: of the matrix products.
    """

    name: str
    model: Model
    examples: Any
    precision: Precision

    def log(self, network: Any) -> dict[str, float]:
        found = score(self.model, self.examples, self.precision, resamples=0)
        figures = found.figures.values if found.figures else {}
        named = {name: value for name, value in figures.items() if "/" not in name}
        return {f"validation_{name}": v for name, v in {"loss": found.loss, **named}.items()}

    def report(
        self, folder: Path, metrics: dict[str, float], *, quiet: bool = False
    ) -> dict[str, Any]:
        found = score(self.model, self.examples, self.precision)
        if (figures := found.figures) is None:
            return {}
        if figures.confusion is not None:
            path, title = folder / f"confusion-{self.name}.png", f"{folder.name}: {self.name}"
            draw_confusion(figures.confusion or [], figures.labels, path, title)
        if found.worst:
            lines = [json.dumps(self._named(one), ensure_ascii=False) for one in found.worst]
            write_text(folder / f"worst-{self.name}.jsonl", "".join(f"{line}\n" for line in lines))
        if not quiet:
            Console().print(Rule(f"{self.name}: {self.examples.rows.name}", align="left"), figures)
        return {self.name: {"loss": found.loss, **figures.record()}}

    def _named(self, one: dict[str, Any]) -> dict[str, Any]:
        """A mistaken row with its place and the start of its text."""
        rows = self.examples.rows
        found = {**one, "where": rows.where(one["row"])}
        if not rows.samples and (column := rows.column("text")):
            found["text"] = str(rows.rows[one["row"]].get(column) or "")[:LONGEST]
        return found


# `bedstone evaluate` for a model with a task's head: its figures on labelled rows.

TASKS = {
    "sequence": "text-classification",
    "tokens": "token-classification",
    "spans": "question-answering",
}
ANSWERS = "text-generation"  # of a decoder, on rows with answers


def holds_answers(model: Model, data: str, split: str | None = None) -> bool:
    """Whether rows are such that answers are learnt of them, not all of their text."""
    try:
        values = first_row(data, split) if model.network.causal else {}
    except BedstoneError:  # no rows: whoever reads it as text says what is wrong
        return False
    if not values:
        return False
    row = Dataset([values], data, recorded_columns(model.record, data, split=split))
    return any(row.column(part) for part in ("messages", "completion", "instruction"))


def evaluate_answers(
    model: Model,
    data: str,
    precision: Precision,
    *,
    split: str | None = None,
    context: int | None = None,
    batch_size: int = 8,
    as_json: bool = False,
) -> dict[str, Any]:
    """Prints and returns a decoder's loss on the answers of conversations, completions or
    instructions, a token that the assistant writes, as in training (method: sft).

    Args:
        data: rows as of that method.
        context: tokens a row at most; longer rows become windows.

    Raises:
        BedstoneError: the rows can't be read.
    """
    columns = recorded_columns(model.record, data, split=split)
    examples = _texts(model, data, columns, split, context, 0, ANSWERS)
    with ProgressBar("evaluating", quiet=as_json) as bar:
        found = score(model, examples, precision, batch_size=batch_size, progress=bar.update)
    figures = {"loss": found.loss, "perplexity": math.exp(min(found.loss, 700.0))}
    table = Table(title=f"{model.path} on {data}", show_header=False, title_justify="left")
    table.add_row("loss", f"{found.loss:.4f} nats a token of answers")
    table.add_row("perplexity", f"{figures['perplexity']:.3f}")
    table.add_row("scored", examples.describe())
    counts = {"rows": len(examples.rows), "answer_tokens": found.targets}
    present({**figures, **counts}, {"": table}, as_json=as_json)
    return {**figures, **counts}


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
    confusion: str | None = None,
) -> dict[str, Any]:
    """Prints and returns the task's figures with 95 % intervals over all rows.

    Args:
        model: with a head for labels, tags or answers.
        data: rows with what is so, in the columns of the task.
        columns: which column holds what, where it isn't the column that the model learnt from; of
            images, `text` is the column of their labels too.
        context: tokens a row at most; longer rows become windows.
        stride: tokens that a window shares with the one before.
        confusion: a PNG to draw the confusion matrix into.

    Raises:
        BedstoneError: the rows can't be read, or have labels that the model hasn't.
    """
    kind = model.config.head.kind
    examples: Any
    images = embeds_images(model)
    if images and columns:
        columns = {"label": columns.get("label") or columns["text"]}
    columns = recorded_columns(model.record, data, columns, split=split, images=images)
    if images:
        examples = _images(model, data, columns, split)
    else:
        examples = _texts(model, data, columns, split, context, stride)
    with ProgressBar("evaluating", quiet=as_json) as bar:
        found = score(model, examples, precision, batch_size=batch_size, progress=bar.update)
    assert found.figures is not None
    record = {"loss": found.loss, **found.figures.record()}
    if confusion is not None:
        if found.figures.confusion is None:
            raise BedstoneError(f"confusion: a model for {TASKS[kind]} has no such matrix.")
        title = f"{model.path} on {Path(data).name}"
        draw_confusion(found.figures.confusion, found.figures.labels, confusion, title)
    notes = list(filter(None, [examples.rows.faults.left_out()]))
    title = f"{model.path} on {data}"
    return present(record, {title: found.figures}, notes=notes, as_json=as_json)


def _texts(
    model: Model,
    data: str,
    columns: dict[str, str] | None,
    split: str | None,
    context: int | None,
    stride: int,
    task: str = "",
) -> Examples:
    head = model.config.head
    limit = min(context or model.config.context, model.config.context)
    return make_examples(
        task or TASKS[head.kind],
        open_dataset(data, columns=columns, split=split, most_broken=MOST_BROKEN, option=""),
        tokenizer_of(model),
        labels=list(head.labels) or None,
        problem=head.measured_as if head.kind == "sequence" else "auto",
        limit=limit,
        stride=stride or (limit // 4 if head.kind == "spans" else 0),
        known=True,
    )


def _images(
    model: Model, data: str, columns: dict[str, str] | None, split: str | None
) -> ImageExamples:
    rows = open_dataset(data, PAIRS, columns=columns, split=split)
    return ImageExamples(rows, processor_of(model), labels=model.config.head.labels, known=True)
