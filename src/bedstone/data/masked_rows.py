"""Masked rows: what an encoder learns from, laid end to end without padding.

Shapes: n rows, N tokens of all rows, S spans, M hidden tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bedstone.data.corruption import Corruption
from bedstone.data.packing import Packed, lay
from bedstone.data.segments import (
    ALONE,
    Documents,
    Segments,
    full_sentences,
    sentence_pairs,
)
from bedstone.errors import BedstoneError

LEAST_CONTEXT = 8


@dataclass(frozen=True)
class MaskedBatch:
    """What a step of masked pretraining sees.

    Attributes:
        rows: the rows, some of their tokens hidden.
        read: (M,) int64, where in the N tokens they are, ascending.
        targets: (M,) int64, which tokens they were.
        pairs: (n,) int64, 0 where a row's second text follows its first, 1 where it is another's,
            -100 where there is none; None where no row has two.
        number: which batch of the stream this is, from 0.
        spans: (S, 4) int64 on the CPU: row, document, and which of its tokens.
    """

    rows: Packed
    read: Tensor
    targets: Tensor
    pairs: Tensor | None
    number: int
    spans: np.ndarray

    @property
    def ids(self) -> Tensor:
        """(1, N)."""
        return self.rows.ids

    @property
    def target_count(self) -> int:
        return len(self.read)

    def to(self, device: torch.device | str) -> "MaskedBatch":
        """The same batch with its tensors there."""
        if torch.device(device) == self.read.device:
            return self

        def moved(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True)

        rows = self.rows
        return replace(
            self,
            rows=replace(
                rows,
                ids=moved(rows.ids),
                types=moved(rows.types),
                positions=moved(rows.positions),
                documents=moved(rows.documents),
            ),
            read=moved(self.read),
            targets=moved(self.targets),
            pairs=None if self.pairs is None else moved(self.pairs),
        )

    def describe(self) -> str:
        """Which tokens of which documents are in it, a line a row."""
        lines = [f"batch {self.number}: {self.target_count} hidden tokens"]
        for row in range(len(self.rows.lengths)):
            parts = [
                f"document {document} tokens {first}-{last - 1}"
                for owner, document, first, last in self.spans.tolist()
                if owner == row
            ]
            lines.append(f"  row {row}: {', '.join(parts)}")
        return "\n".join(lines)


class Chosen(NamedTuple):
    """k rows of segments, and the key of each."""

    segments: Segments
    rows: np.ndarray  # (k,) int64
    keys: np.ndarray  # (k,) uint64


@dataclass(frozen=True)
class RowMaker:
    """Rows of a split, as a network reads them.

    Attributes:
        documents: what they are made of.
        corruption: what is hidden of them.
        cls_id, sep_id: set before a row, and after each of its texts.
        context: tokens of a row, at most.
        pairs: rows of two texts; else full sentences.
        short: share of the rows of pairs that are shorter.
    """

    documents: Documents
    corruption: Corruption
    cls_id: int
    sep_id: int
    context: int
    pairs: bool
    short: float = 0.0

    def segments(self, order: np.ndarray, seed: tuple[int, ...]) -> Segments:
        """The rows of the documents in `order`."""
        if not self.pairs:
            return full_sentences(self.documents, order.tolist(), self.context - 1)
        drawn = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        return sentence_pairs(self.documents, order.tolist(), self.context - 3, self.short, drawn)

    def batch(self, parts: Sequence[Chosen], number: int) -> MaskedBatch:
        """A batch of the rows of all `parts`."""
        laid = [self._lay(segments, rows) for segments, rows, _ in parts]
        tokens, types, lengths = (np.concatenate([each[i] for each in laid]) for i in range(3))
        ids, read = self.corruption(tokens, lengths, np.concatenate([keys for *_, keys in parts]))
        pairs = np.concatenate([segments.pairs[rows] for segments, rows, _ in parts])
        return MaskedBatch(
            rows=lay(ids, types, lengths),
            read=torch.from_numpy(read),
            targets=torch.from_numpy(tokens[read]),
            pairs=torch.from_numpy(pairs) if (pairs != ALONE).any() else None,
            number=number,
            spans=self._origins(parts),
        )

    def _lay(self, segments: Segments, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Ids (N,), types (N,) and lengths (k,) of these rows laid end to end."""
        chosen, counts = _spans_of(segments, rows)
        begin, end = segments.spans[chosen].T
        sizes = end - begin
        first = np.cumsum(counts) - counts  # each row's first span, among the chosen
        widths = sizes + 1
        widths[first] += 1
        at = np.cumsum(widths) - widths
        at[first] += 1  # where a span's tokens go
        ids = np.full(int(widths.sum()), self.sep_id, np.int64)
        ids[at[first] - 1] = self.cls_id
        within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        ids[np.repeat(at, sizes) + within] = self.documents.split.tokens[
            np.repeat(begin, sizes) + within
        ]
        types = np.repeat(segments.types[chosen], widths)
        return ids, types, np.add.reduceat(widths, first)

    def _origins(self, parts: Sequence[Chosen]) -> np.ndarray:
        found, before = [], 0
        for segments, rows, _ in parts:
            chosen, counts = _spans_of(segments, rows)
            begin, end = segments.spans[chosen].T
            starts = self.documents.starts
            document = np.searchsorted(starts, begin, side="right") - 1
            row = np.repeat(np.arange(len(rows)), counts) + before
            found.append(
                np.stack((row, document, begin - starts[document], end - starts[document]))
            )
            before += len(rows)
        return np.concatenate(found, 1).T


def _spans_of(segments: Segments, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the spans of `rows`, row by row, and how many each row has."""
    firsts, counts = segments.rows[rows], segments.rows[rows + 1] - segments.rows[rows]
    before = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) + np.repeat(firsts - before, counts), counts


def check_rows(rows: RowMaker) -> None:
    """Raises BedstoneError if there is nothing to make rows of, or no pairs."""
    split = rows.documents.split
    if rows.context < LEAST_CONTEXT:
        raise BedstoneError(
            f"context: {rows.context} was given; a row of an encoder needs {LEAST_CONTEXT} tokens."
        )
    if not len(rows.documents.sentences):
        raise BedstoneError(f"the {split.name} split holds no text; name more data.")
    if rows.pairs and not rows.documents.several:
        raise BedstoneError(
            f"masking.pairs: the {split.name} split is a single document, and the text that does "
            "not follow has to come from another. Name data of several documents (a folder, or "
            "rows), or set masking.pairs=false."
        )
