"""Packed rows of tokens: a batch without padding.

All rows of a batch are laid end to end in one row of N tokens; `documents` numbers them, so that
attention stays within each, and positions begin anew with each. No work is done for padding, and a
loss can't depend on it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bedstone.data.stream import Batch, Tensors
from bedstone.data.text.encode import Input


@dataclass(frozen=True)
class Packed(Tensors):
    """n rows laid end to end, N tokens in all.

    Attributes:
        ids: (1, N) int64.
        types: (1, N) int64, the segment of each token.
        positions: (1, N) int64, from 0 in each row.
        documents: (1, N) int32, which row a token is of: 0, 1, 2, ...
        lengths: tokens of each row.
    """

    ids: Tensor
    types: Tensor
    positions: Tensor
    documents: Tensor
    lengths: tuple[int, ...]

    @cached_property
    def starts(self) -> list[int]:
        """Where each row begins, and at last N: n + 1 places."""
        places = [0]
        for length in self.lengths:
            places.append(places[-1] + length)
        return places

    @property
    def spans(self) -> list[tuple[int, int]]:
        """(start, end) of each row."""
        return list(pairwise(self.starts))

    def part(self, first: int, last: int) -> "Packed":
        """Rows `first` to `last` by themselves."""
        start, end = self.starts[first], self.starts[min(last, len(self.lengths))]
        return Packed(
            ids=self.ids[:, start:end],
            types=self.types[:, start:end],
            positions=self.positions[:, start:end],
            documents=self.documents[:, start:end] - first,
            lengths=self.lengths[first:last],
        )

    def pick(self, rows: np.ndarray) -> tuple["Packed", np.ndarray]:
        """Some rows, (k,) ascending numbers, and the places of their tokens in 0..N-1."""
        spans = self.spans
        places = np.concatenate([np.arange(*spans[row]) for row in rows])
        lengths = np.array([self.lengths[row] for row in rows], dtype=np.int64)
        found = torch.from_numpy(places)
        documents = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)
        picked = Packed(
            ids=self.ids[:, found],
            types=self.types[:, found],
            positions=self.positions[:, found],
            documents=torch.from_numpy(documents)[None],
            lengths=tuple(lengths.tolist()),
        )
        return picked, places


def moved(read: Tensor, places: np.ndarray, count: int) -> tuple[Tensor, Tensor]:
    """Places (M,) among N tokens, after some tokens were picked: those left, and which they were.

    Args:
        places: of the tokens that were picked.
        count: N.
    """
    new = torch.full((count,), -1, dtype=torch.int64)
    new[torch.from_numpy(places)] = torch.arange(len(places))
    found = new[read]
    kept = (found >= 0).nonzero()[:, 0]
    return found[kept], kept


class ReadStates:
    """Packed rows of which some states are read.

    Attributes:
        rows: laid end to end, N tokens.
        read: (M,) int64, places in 0..N-1 whose states are read.
    """

    rows: Packed
    read: Tensor

    def states(self, network: Any) -> Tensor:
        """The states that are read, (M, D)."""
        found: Tensor = network.packed_states(self.rows, self.read)
        return found


class PackedBatch(Batch):
    """Base of batches of packed rows.

    Attributes, besides those of all batches:
        rows: laid end to end, N tokens.
    """

    rows: Packed

    @property
    def ids(self) -> Tensor:
        """(1, N) token ids."""
        return self.rows.ids

    unit: ClassVar[str] = "tokens"

    @property
    def items(self) -> int:
        """Tokens."""
        return self.rows.ids.numel()

    @property
    def row_count(self) -> int:
        return len(self.rows.lengths)


def pack(rows: Sequence[Input]) -> Packed:
    """The rows as one, in their order."""
    return lay(
        np.array([number for row in rows for number in row.ids], dtype=np.int64),
        np.array([kind for row in rows for kind in row.types], dtype=np.int64),
        np.array([len(row) for row in rows], dtype=np.int64),
    )


def lay(ids: np.ndarray, types: np.ndarray, lengths: np.ndarray) -> Packed:
    """Rows that lie end to end already: (N,) ids and types, (n,) tokens of each row."""
    starts = np.cumsum(lengths) - lengths
    positions = np.arange(len(ids)) - np.repeat(starts, lengths)
    documents = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return Packed(
        ids=torch.from_numpy(ids.astype(np.int64))[None],
        types=torch.from_numpy(types.astype(np.int64))[None],
        positions=torch.from_numpy(positions)[None],
        documents=torch.from_numpy(documents)[None],
        lengths=tuple(lengths.tolist()),
    )


# Distinct texts, each tokenised once.

BATCH = 4096  # texts tokenised at a time
Encode = Callable[[Sequence[str]], Sequence[Sequence[int] | np.ndarray]]


class KnownTexts:
    """Distinct texts: all are added, then tokenised together.

    Attributes:
        ids: (N,) int32, the tokens of all texts, laid end to end.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.ids = np.zeros(0, np.int32)
        self._starts = np.zeros(1, np.int64)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> np.ndarray:
        """A text's tokens."""
        return self.ids[self._starts[number] : self._starts[number + 1]]

    def add(self, texts: Iterable[str]) -> list[int]:
        """The numbers of texts, new ones included."""
        return [self.numbers.setdefault(text, len(self.numbers)) for text in texts]

    def finish(self, encode: Encode, room: int | None = None) -> int:
        """Tokenises all; how many were longer than `room` tokens, and are cut."""
        texts, parts, cut = list(self.numbers), [self.ids], 0
        for at in range(0, len(texts), BATCH):
            for row in encode(texts[at : at + BATCH]):
                cut += room is not None and len(row) > room
                parts.append(np.asarray(row, np.int32)[:room])
        self.ids = np.concatenate(parts)
        self._starts = np.cumsum([len(part) for part in parts])
        return cut
