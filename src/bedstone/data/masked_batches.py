"""The stream of batches of masked rows: hidden anew at each visit, exactly resumable.

An epoch is cut into blocks of documents in a random order; of each block rows are made and
shuffled. So an epoch begins at once however large the data is, and a position in it is three
numbers. What is hidden depends on seed, epoch and row alone, not on how rows fall into batches.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from bedstone.data.batches import check_identity
from bedstone.data.corruption import row_keys
from bedstone.data.masked_rows import Chosen, MaskedBatch, RowMaker, check_rows

BLOCK_TOKENS = 1 << 21


class MaskedBatches:
    """An endless stream of batches of at most `batch_tokens` tokens, if a row isn't longer.

    Raises:
        BedstoneError: there is too little to make rows of.
    """

    def __init__(
        self, rows: RowMaker, batch_tokens: int, seed: int = 0, *, block_tokens: int = BLOCK_TOKENS
    ):
        check_rows(rows)
        self.rows, self.batch_tokens = rows, batch_tokens
        self.seed, self.block_tokens = seed, block_tokens
        self._number = 0
        self._go(0, 0, 0)

    def _go(self, epoch: int, block: int, row: int) -> None:
        """To a row of a block of an epoch, or to where the next begins."""
        sizes = np.maximum(self.rows.documents.stops - self.rows.documents.starts, 0)
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(len(sizes))
        blocks = (np.cumsum(sizes[order]) - 1).clip(0) // self.block_tokens
        edges = np.flatnonzero(np.diff(blocks, prepend=-1))
        self._epoch, self._block, self._row, self._blocks = epoch, block, row, len(edges)
        stop = edges[block + 1] if block + 1 < len(edges) else len(order)
        seed = (self.seed, epoch, block)
        self._segments = self.rows.segments(order[edges[block] : stop], seed)
        count = len(self._segments)
        self._turn = np.random.default_rng(seed).permutation(count)
        self._keys = row_keys(seed, np.arange(count))
        lengths = self._segments.lengths()[self._turn]
        self._before = np.concatenate(([0], np.cumsum(lengths)))  # tokens before a row in turn

    def _advance(self) -> None:
        last = self._block + 1 == self._blocks
        self._go(self._epoch + last, 0 if last else self._block + 1, 0)

    @property
    def epoch(self) -> float:
        """Passes over the split so far, such as 1.25."""
        inside = self._row / max(len(self._turn), 1)
        return self._epoch + (self._block + inside) / self._blocks

    def __iter__(self) -> Iterator[MaskedBatch]:
        return self

    def __next__(self) -> MaskedBatch:
        parts: list[Chosen] = []
        left = self.batch_tokens
        while True:
            if self._row == len(self._turn):
                self._advance()
                continue
            spent = self._before[self._row]
            stop = int(np.searchsorted(self._before, spent + left, side="right")) - 1
            if stop == self._row and parts:
                break
            stop = max(stop, self._row + 1)
            turn = self._turn[self._row : stop]
            parts.append(Chosen(self._segments, turn, self._keys[turn]))
            left -= int(self._before[stop] - spent)
            self._row = stop
            if stop < len(self._turn) or left < self.rows.context // 2:
                break
        self._number += 1
        return self.rows.batch(parts, self._number - 1)

    def _identity(self) -> dict[str, Any]:
        split = self.rows.documents.split
        return {
            "seed": self.seed,
            "context": self.rows.context,
            "pairs": self.rows.pairs,
            "tokens": len(split),
            "documents": split.documents,
            "block_tokens": self.block_tokens,
        }

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is; plain numbers, for JSON."""
        position = {"epoch": self._epoch, "block": self._block, "row": self._row}
        return {**position, "batch": self._number, "identity": self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes where `state` was taken: the next batch is the one that would have come then.

        Raises:
            BedstoneError: it was taken with other data, seed or context.
        """
        check_identity(state, self._identity())
        self._go(state["epoch"], state["block"], state["row"])
        self._number = state["batch"]


def evaluation_batches(rows: RowMaker, batch_tokens: int, seed: int = 0) -> Iterator[MaskedBatch]:
    """All rows of a split in order, the same tokens hidden each time."""
    segments = rows.segments(np.arange(len(rows.documents)), (seed,))
    keys = row_keys((seed,), np.arange(len(segments)))
    lengths = segments.lengths()
    taken, spent, number = 0, 0, 0
    for row, length in enumerate(lengths.tolist()):
        if spent + length > batch_tokens and row > taken:
            chosen = np.arange(taken, row)
            yield rows.batch([Chosen(segments, chosen, keys[chosen])], number)
            taken, spent, number = row, 0, number + 1
        spent += length
    if taken < len(segments):
        chosen = np.arange(taken, len(segments))
        yield rows.batch([Chosen(segments, chosen, keys[chosen])], number)
