"""Labelled rows by the task they are for, and their batches: endless and exactly resumable."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bedstone.checks import check_whole
from bedstone.data.batches import check_identity
from bedstone.data.completion_examples import CompletionExamples
from bedstone.data.example_rows import ExampleBatch, Examples
from bedstone.data.labelled import LabelledRows
from bedstone.data.span_examples import SpanExamples
from bedstone.data.tag_examples import TagExamples
from bedstone.data.text_examples import TextExamples
from bedstone.data.tokenizer import Tokenizer
from bedstone.errors import BedstoneError, nearest

__all__ = [
    "CompletionExamples",
    "ExampleBatch",
    "ExampleBatches",
    "Examples",
    "SpanExamples",
    "TagExamples",
    "TextExamples",
    "evaluation_batches",
    "make_examples",
]

TASKS = ("text-classification", "token-classification", "question-answering", "text-generation")


def make_examples(
    task: str,
    rows: LabelledRows,
    tokenizer: Tokenizer,
    *,
    labels: Sequence[str] | None = None,
    problem: str = "auto",
    limit: int,
    stride: int = 0,
    known: bool = False,
) -> Examples:
    """The rows as examples of a task, all of them checked and tokenised.

    Args:
        task: one of `TASKS`.
        labels: names of the outputs; None takes those of the rows.
        problem: of text-classification: single, multi, regression, or auto.
        limit: tokens of a row at most; what is longer becomes windows.
        stride: tokens that a window shares with the one before.
        known: whether labels and problem are those of a model that is there.

    Raises:
        BedstoneError: the task is unknown, or a row can't be learnt.
    """
    room = {"limit": limit, "stride": stride}
    if task == "text-classification":
        return TextExamples(rows, tokenizer, labels=labels, problem=problem, known=known, **room)
    if task == "token-classification":
        return TagExamples(rows, tokenizer, labels=labels, **room)
    if task == "question-answering":
        return SpanExamples(rows, tokenizer, **room)
    if task == "text-generation":
        return CompletionExamples(rows, tokenizer, **room)
    raise BedstoneError(f"task: {task!r} can't be learnt from rows{nearest(task, TASKS)}.")


class ExampleBatches:
    """An endless stream of batches of examples: each window once an epoch, in an order drawn anew.

    An epoch's last batch may be smaller. The state is a position, so resuming costs nothing and
    loses nothing; `batch_size` may change between.

    Args:
        batch_size: windows in a batch; a row that is not long is one window.
        reads: first or last: which token the head reads, where it reads one a row.
        weights: `balanced`, or a weight for each label.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        *,
        reads: str = "first",
        seed: int = 0,
        weights: str | Mapping[str, float] | None = None,
        shuffle: bool = True,
    ) -> None:
        check_whole("batch_size", batch_size, 1)
        self.examples, self.batch_size, self.reads = examples, batch_size, reads
        self.seed, self.shuffle = seed, shuffle
        self.weights = examples.label_weights(weights)
        self._epoch, self._window, self._number = 0, 0, 0
        self._order = self._draw()

    def _draw(self) -> np.ndarray:
        order = np.arange(len(self.examples))
        if self.shuffle:
            np.random.default_rng((self.seed, self._epoch)).shuffle(order)
        return order

    @property
    def epoch(self) -> float:
        """Passes over the examples so far, such as 1.25."""
        return self._epoch + self._window / len(self._order)

    @property
    def steps_per_epoch(self) -> int:
        """Batches that hold every window once."""
        return -(-len(self.examples) // self.batch_size)

    def __iter__(self) -> Iterator[ExampleBatch]:
        return self

    def __next__(self) -> ExampleBatch:
        if self._window == len(self._order):
            self._epoch, self._window = self._epoch + 1, 0
            self._order = self._draw()
        windows = self._order[self._window : self._window + self.batch_size]
        self._window += len(windows)
        self._number += 1
        return self.examples.batch(
            windows, self._number - 1, reads=self.reads, weights=self.weights
        )

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "shuffle": self.shuffle,
            "rows": len(self.examples.rows),
            "windows": len(self.examples),
            "tokens": len(self.examples.ids),
        }

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is; plain numbers, for JSON."""
        position = {"epoch": self._epoch, "window": self._window, "batch": self._number}
        return {**position, "identity": self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes where `state` was taken: the next batch is the one that would have come then.

        Raises:
            BedstoneError: it was taken with other data or another seed.
        """
        check_identity(state, self._identity())
        self._epoch, self._window = state["epoch"], state["window"]
        self._number = state["batch"]
        self._order = self._draw()


def evaluation_batches(
    examples: Examples, batch_size: int, *, reads: str = "first"
) -> Iterator[ExampleBatch]:
    """All windows in their order; those of a row follow each other, if need be in two batches."""
    check_whole("batch_size", batch_size, 1)
    for number, first in enumerate(range(0, len(examples), batch_size)):
        windows = np.arange(first, min(first + batch_size, len(examples)))
        yield examples.batch(windows, number, reads=reads)
