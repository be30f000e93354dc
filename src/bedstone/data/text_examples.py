"""Texts, or pairs of texts, with a label, several labels, or figures."""

from collections.abc import Mapping, Sequence

import numpy as np

from bedstone.data import labels as labelling
from bedstone.data.example_rows import Examples, Targets
from bedstone.data.inputs import Input, text_batch
from bedstone.data.labelled import LabelledRows
from bedstone.data.tokenizer import Tokenizer
from bedstone.errors import BedstoneError, nearest

PROBLEMS = ("single", "multi", "regression")


class TextExamples(Examples):
    """A row's `text`, with its `pair` where there is one, and its `label`.

    All windows of a long row learn its label, each for its share of one target.

    Args:
        labels: names of the outputs; None takes those of the rows.
        problem: single (one label of several), multi (a list of labels), regression (numbers);
            auto takes it from the labels.
        known: whether `labels` are those of a model: none else may come, and none is missed.

    Raises:
        BedstoneError: naming the file, row and column of what can't be learnt.
    """

    kind = "sequence"

    def __init__(
        self,
        rows: LabelledRows,
        tokenizer: Tokenizer,
        *,
        labels: Sequence[str] | None = None,
        problem: str = "auto",
        limit: int,
        stride: int = 0,
        known: bool = False,
    ) -> None:
        text, pair = rows.need("text"), rows.column("pair")
        self._texts = rows.texts(text)
        self._pairs = rows.texts(pair) if pair else None
        column = rows.need("label")
        if problem not in (*PROBLEMS, "auto"):
            raise BedstoneError(f"problem: {problem!r} is unknown{nearest(problem, PROBLEMS)}.")
        self.problem = labelling.find_problem(rows, column) if problem == "auto" else problem
        if self.problem == "regression":
            self._read_figures(rows, column, labels)
        else:
            self._read_labels(rows, column, labels, known)
        super().__init__(rows, tokenizer, limit=limit, stride=stride)
        count = np.bincount(self.owner)
        self._share = (1 / count).astype(np.float32) if (count > 1).any() else None

    def _read_figures(self, rows: LabelledRows, column: str, labels: Sequence[str] | None) -> None:
        self._all = labelling.figures(rows, column, len(labels) if labels else None)
        count = self._all.shape[1]
        self.labels = tuple(labels or ([column] if count == 1 else map(str, range(count))))
        self.actual = self._all[:, 0].tolist() if count == 1 else self._all.tolist()

    def _read_labels(
        self, rows: LabelledRows, column: str, labels: Sequence[str] | None, known: bool
    ) -> None:
        if self.problem == "multi":
            several = labelling.several(rows, column, labels)
            names = {name for each in several for name in each}
        else:
            names = set(one := labelling.single(rows, column, labels))
        self.labels = tuple(labels) if labels else labelling.ordered(names)
        least = 1 if self.problem == "multi" or known else 2
        if len(self.labels if known else names) < least:
            raise BedstoneError(
                f"data {rows.name!r}: column {column!r} holds {len(names)} labels in "
                f"{len(rows):,} rows ({', '.join(sorted(names)) or 'none'}); expected {least} or "
                "more to tell apart. Name data with more rows."
            )
        places = {name: place for place, name in enumerate(self.labels)}
        if self.problem == "single":
            self.actual = one
            self._all = np.array([places[name] for name in one], dtype=np.int64)
            return
        self.actual = several
        self._all = np.zeros((len(rows), len(self.labels)), dtype=np.float32)
        for row, each in enumerate(several):
            self._all[row, [places[name] for name in each]] = 1

    def label_weights(self, weights: str | Mapping[str, float] | None) -> np.ndarray | None:
        if not weights or self.problem != "single":
            return super().label_weights(weights)
        counts = np.bincount(self._all, minlength=len(self.labels))
        return labelling.label_weights(weights, self.labels, counts)

    def _inputs(self, numbers: Sequence[int]) -> list[list[Input]]:
        return text_batch(
            self.tokenizer,
            [self._texts[i] for i in numbers],
            [self._pairs[i] for i in numbers] if self._pairs else None,
            limit=self.limit,
            stride=self.stride,
        )

    def _targets(
        self,
        windows: np.ndarray,
        starts: np.ndarray,
        reads: np.ndarray,
        weights: np.ndarray | None,
    ) -> Targets:
        owner = self.owner[windows]
        targets = self._all[owner]
        each = None if self._share is None else self._share[owner]
        count = None if each is None else float(each.sum())
        if weights is not None:
            each = weights[targets] * (1 if each is None else each)
        return Targets(reads, np.arange(len(windows)), targets, each, count=count)
