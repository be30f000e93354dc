"""Labelled rows as examples: tokenised once, packed without padding, in batches.

A row that is longer than the network's context becomes several windows. A batch is made of
windows, so that a few long rows can't make it large; each knows the row it is from.

Shapes: n windows of a batch, N tokens, M read states, L labels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bedstone.data.dataset import Dataset
from bedstone.data.stream import Stream, entries
from bedstone.data.text.encode import Input
from bedstone.data.text.packing import Packed, PackedBatch, ReadStates, lay, moved
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.settings import check_whole

BATCH = 1024  # rows tokenised at a time


@dataclass(frozen=True)
class ExampleBatch(ReadStates, PackedBatch):
    """A batch of windows of labelled rows.

    Attributes:
        rows: n windows laid end to end, N tokens.
        read: (M,) int64, places in 0..N-1 whose states the head reads.
        targets: one label of several (M,) int64; any labels or figures (M, L) float32; a tag
            (M,) int64; the next token (M,) int64; an answer's first and last place (n, 2) int64.
        owners: (M,) int64 on the CPU, which window each read state is of.
        weights: (M,) float32, what each target counts for; None says 1 each.
        target_count: how many targets there are; a long row's windows are one together. It
            isn't the sum of class weights: a batch without the rare label would then push as
            hard as one with it, and the weights would be undone.
        number: which batch of the stream this is, from 0.
        origins: the source row of each window.
        windows: which window of that row, from 0.
        words: (M,) int64 on the CPU, which word of its row is read; of tags alone.
    """

    rows: Packed
    read: Tensor
    targets: Tensor
    owners: Tensor
    weights: Tensor | None
    target_count: float
    number: int
    origins: list[int]
    windows: list[int]
    words: Tensor | None = None

    on_cpu: ClassVar[tuple[str, ...]] = ("owners", "words")

    def identify(self) -> bytes:
        return np.array([self.origins, self.windows], np.int64).tobytes()

    def pick(self, rows: np.ndarray) -> "ExampleBatch":
        picked, places = self.rows.pick(rows)
        read, kept = moved(self.read, places, self.items)

        def of(values: Tensor | None) -> Tensor | None:
            """Entries by read state, or by row: spans have those."""
            if values is None or len(values) == len(self.read):
                return None if values is None else values[kept]
            return entries(values, rows)

        targets = of(self.targets)
        assert targets is not None
        owners = torch.from_numpy(np.searchsorted(rows, self.owners[kept].numpy()))
        return replace(
            self,
            rows=picked,
            read=read,
            targets=targets,
            owners=owners,
            weights=of(self.weights),
            target_count=self.target_count * len(rows) / self.row_count,
            origins=entries(self.origins, rows),
            windows=entries(self.windows, rows),
            words=of(self.words),
        )

    def describe(self) -> str:
        """Which rows are in it."""
        parts = [
            f"row {origin}" + (f" window {window}" if window else "") + f" ({length} tokens)"
            for origin, window, length in zip(
                self.origins, self.windows, self.rows.lengths, strict=True
            )
        ]
        return f"batch {self.number}: {self.target_count:g} targets\n  {', '.join(parts)}"


@dataclass(frozen=True)
class Targets:
    """The targets of a batch's windows. Fields as in `ExampleBatch`, as arrays.

    `count` is how many they are together; None says that each is one.
    """

    read: np.ndarray
    owners: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None = None
    words: np.ndarray | None = None
    count: float | None = None


class Examples:
    """Labelled rows, checked and tokenised: all of them, before training begins.

    Attributes:
        kind, labels, problem: of the head that learns them.
        rows: the source rows.
        actual: what is so of each source row.
        owner: (windows,) the source row of each window.
        window: (windows,) which of that row's it is.
    """

    kind: str
    labels: tuple[str, ...] = ()
    problem = "single"
    actual: list[Any]

    def __init__(self, rows: Dataset, tokenizer: Tokenizer, *, limit: int, stride: int = 0) -> None:
        self.rows, self.tokenizer = rows, tokenizer
        self.limit, self.stride = limit, stride
        ids: list[np.ndarray] = []
        types: list[np.ndarray] = []
        lengths: list[int] = []
        owner: list[int] = []
        window: list[int] = []
        for start in range(0, len(rows), BATCH):
            numbers = range(start, min(start + BATCH, len(rows)))
            for row, made in zip(numbers, self._tokenised(numbers), strict=True):
                ids += [np.array(each.ids, dtype=np.int32) for each in made]
                types += [np.array(each.types, dtype=np.int8) for each in made]
                lengths += [len(each) for each in made]
                owner += [row] * len(made)
                window += range(len(made))
                self._keep(row, made)
        self.ids, self.types = np.concatenate(ids), np.concatenate(types)
        self.lengths = np.array(lengths, dtype=np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.owner, self.window = np.array(owner), np.array(window)

    def __len__(self) -> int:
        """Windows in all: as many as there are rows, and more where some are long."""
        return len(self.lengths)

    @property
    def token_count(self) -> int:
        """Tokens of all windows."""
        return len(self.ids)

    @property
    def head(self) -> tuple[str, tuple[str, ...], str]:
        """kind, labels and problem of the head that learns them."""
        return self.kind, self.labels, self.problem

    def input(self, row: int) -> list[Input]:
        """A row's windows, as they are fed to the network."""
        return self._inputs([row])[0]

    def describe(self) -> str:
        """Rows, tokens, and how many are long, in a line."""
        several = np.bincount(self.owner) > 1
        text = f"{len(self.rows):,} rows, {len(self.ids):,} tokens, longest {self.lengths.max():,}"
        if several.any():
            windows = int(np.bincount(self.owner)[several].sum())
            text += f"; {several.sum():,} longer than {self.limit:,} became {windows:,} windows"
        return text + self.rows.faults.left_out("; ")

    def fingerprint(self) -> str:
        """A hash (hex) of the rows."""
        return self.rows.fingerprint()

    def batch(
        self,
        windows: np.ndarray,
        number: int = 0,
        *,
        reads: str = "first",
        weights: np.ndarray | None = None,
    ) -> ExampleBatch:
        """The windows of those numbers, laid end to end.

        Args:
            reads: first or last: which token the head reads, where it reads one a row.
            weights: (L,) what a target of each label counts for.
        """
        lengths = self.lengths[windows]
        ends = np.cumsum(lengths)
        starts = ends - lengths
        places = np.repeat(self.starts[windows] - starts, lengths) + np.arange(ends[-1])
        made = self._targets(windows, starts, ends - 1 if reads == "last" else starts, weights)
        return ExampleBatch(
            rows=lay(self.ids[places], self.types[places], lengths),
            read=torch.from_numpy(made.read),
            targets=torch.from_numpy(made.targets),
            owners=torch.from_numpy(made.owners),
            weights=None if made.weights is None else torch.from_numpy(made.weights),
            target_count=len(made.targets) if made.count is None else made.count,
            number=number,
            origins=self.owner[windows].tolist(),
            windows=self.window[windows].tolist(),
            words=None if made.words is None else torch.from_numpy(made.words),
        )

    def label_weights(self, weights: str | Mapping[str, float] | None) -> np.ndarray | None:
        """The weight of a target of each label, (L,).

        Raises:
            BedstoneError: these examples have no classes to weigh, or a weight is wrong.
        """
        if not weights:
            return None
        raise BedstoneError(
            "class_weights: weigh the labels of text-classification with one label a row and of "
            f"token-classification; the head here is for {self.kind} ({self.problem}). Leave them "
            "out."
        )

    def _tokenised(self, numbers: range) -> list[list[Input]]:
        try:
            return self._inputs(numbers)
        except BedstoneError:
            for number in numbers:  # which one was it?
                try:
                    self._inputs([number])
                except BedstoneError as error:
                    raise BedstoneError(f"{self.rows.where(number)}: {error}") from error
            raise

    def _inputs(self, numbers: Sequence[int]) -> list[list[Input]]:
        """The windows of each of these rows."""
        raise NotImplementedError

    def _keep(self, row: int, windows: list[Input]) -> None:
        """Takes from a row's windows what its targets need, in the order of rows."""

    def _targets(
        self,
        windows: np.ndarray,
        starts: np.ndarray,
        reads: np.ndarray,
        weights: np.ndarray | None,
    ) -> Targets:
        """The targets of these windows.

        Args:
            windows: (n,) numbers of the windows.
            starts: (n,) where each begins in the batch.
            reads: (n,) the one place of each that a head of sequences reads.
            weights: (L,) of labels.
        """
        raise NotImplementedError


class Ragged:
    """Arrays of different lengths, held end to end and fetched many at a time."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._ends = [0]

    def add(self, *columns: Sequence[int]) -> None:
        """One entry: columns of equal length."""
        self._parts.append(np.array(columns, dtype=np.int64).reshape(len(columns), -1))
        self._ends.append(self._ends[-1] + self._parts[-1].shape[1])

    @property
    def total(self) -> int:
        """Columns of all entries."""
        return int(self._ends[-1])

    def take(self, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(columns, M) the entries end to end, and (M,) which of `entries` each is of."""
        if len(self._parts) > 1:
            self._parts = [np.concatenate(self._parts, axis=1)]
        ends = np.array(self._ends) if isinstance(self._ends, list) else self._ends
        self._ends = ends  # type: ignore[assignment]
        counts = ends[entries + 1] - ends[entries]
        shift = ends[entries] - (np.cumsum(counts) - counts)
        places = np.repeat(shift, counts) + np.arange(counts.sum())
        return self._parts[0][:, places], np.repeat(np.arange(len(entries)), counts)


# The stream of examples.


@dataclass(frozen=True)
class ExampleCollate:
    """Makes an `ExampleBatch` of some windows.

    Attributes:
        reads: first or last: which token the head reads, where it reads one a row.
        weights: (L,) the weight of a target of each label; None is 1 each.
    """

    examples: Examples
    reads: str = "first"
    weights: np.ndarray | None = None

    def __call__(self, rows: np.ndarray, random: np.random.Generator, number: int) -> ExampleBatch:
        return self.examples.batch(rows, number, reads=self.reads, weights=self.weights)


def example_stream(
    examples: Examples,
    batch_size: int,
    *,
    reads: str = "first",
    seed: int = 0,
    weights: str | Mapping[str, float] | None = None,
    shuffle: bool = True,
) -> Stream[ExampleBatch]:
    """The endless stream of `ExampleBatch`: each window once an epoch.

    An epoch's last batch may be smaller; `batch_size` may change when a run is resumed.

    Args:
        batch_size: windows in a batch; a row that is not long is one window.
        reads: first or last: which token the head reads, where it reads one a row.
        weights: `balanced`, or a weight for each label.
    """
    return Stream(
        len(examples),
        ExampleCollate(examples, reads, examples.label_weights(weights)),
        batch_size,
        seed=seed,
        workers=0,
        whole=True,
        shuffle=shuffle,
        identity={
            "shuffle": shuffle,
            "rows": len(examples.rows),
            "windows": len(examples),
            "tokens": examples.token_count,
        },
    )


def evaluation_batches(
    examples: Examples, batch_size: int, *, reads: str = "first"
) -> Iterator[ExampleBatch]:
    """All windows in their order; those of a row follow each other, if need be in two batches."""
    check_whole("batch_size", batch_size, 1)
    for number, first in enumerate(range(0, len(examples), batch_size)):
        windows = np.arange(first, min(first + batch_size, len(examples)))
        yield examples.batch(windows, number, reads=reads)
