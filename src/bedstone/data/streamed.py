"""Batches from a source that is tokenised as it is read: for data too large to keep as tokens.

The source is read in order, a block of about a million tokens at a time; a block's documents are
packed and its windows shuffled as `PackedBatches` does with a whole epoch. So the mixing reaches
as far as a block: data that is sorted on disk should be shuffled there first.

The state is small: how many pieces of the source come before the current block, and which window
of the block is next. Resuming reads past those pieces without tokenising them, tokenises the block
again and goes on at that window, so no token is lost or repeated. A block's windows never reach
into the next; the price is one window a block that is not full.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from bedstone.checks import check_whole
from bedstone.data.batches import Batch, Windows, check_enough, check_identity, make_batch
from bedstone.data.sources import Source
from bedstone.data.tokenizer import Tokenizer
from bedstone.data.tokens import Encoded, TokenSplit, encode_source
from bedstone.errors import BedstoneError

BLOCK_TOKENS = 1 << 20


class StreamedBatches:
    """An endless stream of batches from a source, in the contract of `PackedBatches`.

    Documents whose hash lies below `validation_share` are left out; `held_out` gives them.

    Raises:
        BedstoneError: one pass over the source has fewer than `context` + 1 tokens to train on.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        context: int,
        batch_size: int,
        seed: int = 0,
        validation_share: float = 0.05,
        block_tokens: int = BLOCK_TOKENS,
    ):
        if not 0 <= validation_share < 1:
            raise BedstoneError(
                f"validation_share: {validation_share} is out of range; expected 0 or more, "
                "below 1."
            )
        check_whole("context", context, 1)
        check_whole("batch_size", batch_size, 1)
        self.source, self.tokenizer = source, tokenizer
        self.context, self.batch_size, self.seed = context, batch_size, seed
        self.validation_share, self.block_tokens = validation_share, block_tokens
        self.block_tokens = max(block_tokens, context + 1)
        self._bytes = source.describe()["bytes"]
        self._number = 0
        self._go(epoch=0, piece=0, read=0)

    def _go(self, epoch: int, piece: int, read: int) -> None:
        """Opens the source where the block with this first piece begins, `read` bytes in."""
        self._epoch, self._window = epoch, 0
        self._piece = self._next_piece = piece
        self._read = self._next_read = read
        # Tokens of this epoch; one that is resumed has had enough before.
        self._tokens = self.context + 1 if piece else 0
        self._encoded = _flat(encode_source(self.source, self.tokenizer, skip=piece))
        self._windows: Windows | None = None

    def _advance(self) -> Windows:
        """The next block's windows; begins a new epoch where the source ends."""
        while True:
            self._piece, self._read, self._window = self._next_piece, self._next_read, 0
            taken: list[Encoded] = []
            count = 0
            for piece in self._encoded:
                self._next_piece += 1
                self._next_read += piece.bytes
                if piece.place >= self.validation_share:
                    taken.append(piece)
                    count += len(piece.ids)
                    if count >= self.block_tokens:
                        break
            self._tokens += count
            split = _join(taken, "train", self.tokenizer.eos_id)
            if self._tokens <= self.context:
                check_enough(split, self.context, f"data {self.source.name!r}")
            if count > 1:
                self._windows = Windows(split, self.context, (self.seed, self._epoch, self._piece))
                return self._windows
            self._go(self._epoch + 1, 0, 0)

    @property
    def epoch(self) -> float:
        """Passes over the source so far; whole numbers where its size is unknown."""
        if not self._bytes or self._windows is None:
            return float(self._epoch)
        inside = self._window / len(self._windows)
        done = self._read + inside * (self._next_read - self._read)
        return self._epoch + min(done / self._bytes, 1.0)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        parts, wanted = [], self.batch_size
        while wanted:
            windows = self._windows
            if windows is None or self._window == len(windows):
                windows = self._advance()
            last = min(self._window + wanted, len(windows))
            parts.append(windows.rows(self._window, last))
            wanted -= last - self._window
            self._window = last
        self._number += 1
        return make_batch(parts, self._number - 1)

    def held_out(self, most_tokens: int = 1 << 20) -> TokenSplit:
        """The validation documents, in memory, until there are `most_tokens`.

        Raises:
            BedstoneError: no document is held out.
        """
        taken: list[Encoded] = []
        count = 0
        for piece in _flat(encode_source(self.source, self.tokenizer)):
            if piece.place < self.validation_share:
                taken.append(piece)
                count += len(piece.ids)
                if count >= most_tokens:
                    break
        if not count:
            raise BedstoneError(
                f"data {self.source.name!r}: no document falls into the validation_share of "
                f"{self.validation_share}. Raise it, or name validation data of its own."
            )
        return _join(taken, "validation", self.tokenizer.eos_id)

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "context": self.context,
            "source": self.source.name,
            "bytes": self._bytes,  # its content is too much to hash
            "tokenizer": self.tokenizer.fingerprint(),
            "validation_share": self.validation_share,
            "block_tokens": self.block_tokens,
        }

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is; plain numbers and strings, for JSON."""
        return {
            "epoch": self._epoch,
            "piece": self._piece,
            "read": self._read,
            "window": self._window,
            "batch": self._number,
            "identity": self._identity(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes where `state` was taken: the next batch is the one that would have come then.

        Raises:
            BedstoneError: it was taken with another source, tokenizer, seed or context.
        """
        check_identity(state, self._identity())
        self._go(state["epoch"], state["piece"], state["read"])
        if state["window"]:
            self._advance()
            self._window = state["window"]
        self._number = state["batch"]


def _flat(groups: Iterator[list[Encoded]]) -> Iterator[Encoded]:
    for group in groups:
        yield from group


def _join(pieces: list[Encoded], name: str, eos: int | None) -> TokenSplit:
    """A split of these pieces; one that goes on with a document from before counts as its own."""
    lengths = np.array([0, *(len(piece.ids) for piece in pieces)], dtype=np.int64)
    at = np.cumsum(lengths)[:-1]
    begins = np.array([piece.begins for piece in pieces], dtype=bool)
    begins[:1] = True
    tokens = np.concatenate([piece.ids for piece in pieces]) if pieces else np.zeros(0, np.uint32)
    return TokenSplit(name, tokens, at[begins], sum(piece.bytes for piece in pieces), eos)
