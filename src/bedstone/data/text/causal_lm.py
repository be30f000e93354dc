"""Batches for causal language modelling: packed without padding, shuffled, exactly resumable.

Documents are laid end to end in a random order and cut into windows of `context` inputs; window
edges ignore document edges. Every token is a target once an epoch, except each document's first:
what follows an end token can't be predicted. The end token itself is a target. Attention must not
reach over a document's edge: `documents` numbers them within a row, `positions` restarts with each.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from bedstone.data.sources import Source
from bedstone.data.stream import IGNORED, Batch, Batches
from bedstone.data.text.fim_cuts import FimCounts, FimCutter
from bedstone.data.text.token_cache import Encoded, TokenSplit, encode_source
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.settings import check_whole


@dataclass(frozen=True)
class TokenBatch(Batch):
    """A batch of B rows of T tokens.

    Attributes:
        ids: (B, T) int64 inputs.
        targets: (B, T) int64, the token after each input; -100 where none is to be predicted.
        documents: (B, T) int32, 0, 1, 2, ... within a row: attend only where these are equal.
        positions: (B, T) int64, from 0 at the start of a row and of each document in it.
        target_count: how many targets there are.
        number: which batch of the stream this is, from 0.
        origin: (B, T) int64 on the CPU, the document of the split that each input is from; -1 for
            filling.
        offsets: (B, T) int64 on the CPU, where in that document.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    documents: torch.Tensor
    positions: torch.Tensor
    target_count: int
    number: int
    origin: np.ndarray
    offsets: np.ndarray

    unit: ClassVar[str] = "tokens"
    by_row = ("ids", "targets", "documents", "positions", "origin", "offsets")

    @property
    def items(self) -> int:
        return self.ids.numel()

    def identify(self) -> bytes:
        return self.origin.tobytes() + self.offsets.tobytes()

    def pick(self, rows: np.ndarray) -> "TokenBatch":
        found = super().pick(rows)
        count = int((found.targets != IGNORED).sum())
        return dataclasses.replace(found, target_count=count)

    def describe(self) -> str:
        """Which tokens of which documents are in it, a line a row."""
        lines = [f"batch {self.number}: {self.target_count} targets"]
        for row, (origin, offsets) in enumerate(zip(self.origin, self.offsets, strict=True)):
            edges = np.flatnonzero(np.diff(self.documents[row].cpu().numpy())) + 1
            spans = []
            for start, stop in zip([0, *edges], [*edges, len(origin)], strict=True):
                if origin[start] >= 0:
                    first, last = offsets[start], offsets[stop - 1]
                    spans.append(f"document {origin[start]} tokens {first}-{last}")
            lines.append(f"  row {row}: {', '.join(spans) or 'filling'}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Rows:
    """Windows as arrays, before they are a batch. Fields as in `TokenBatch`, as NumPy."""

    ids: np.ndarray
    targets: np.ndarray
    documents: np.ndarray
    positions: np.ndarray
    origin: np.ndarray
    offsets: np.ndarray


class Windows:
    """The windows of one pass over a split, in the order of the stream.

    `shuffle` None keeps the split's order. Else documents are laid in an order drawn from it, the
    windows too, and the windows of a single document start at a place drawn from it. At most two
    windows are shorter than `context`, the first and the last: these are filled up.
    """

    def __init__(
        self,
        split: TokenSplit,
        context: int,
        shuffle: tuple[int, ...] | None = None,
        stride: int | None = None,
    ):
        self.split, self.context = split, context
        total = len(split)
        lengths = split.lengths()
        self.order = np.arange(split.documents)
        first = 0
        random = None if shuffle is None else np.random.default_rng(shuffle)
        if random is not None:
            random.shuffle(self.order)
            if split.documents == 1:
                first = int(random.integers(0, min(context, total - 1)))
        self.ends = np.cumsum(lengths[self.order])  # of each document, in their order
        self.begins = self.ends - lengths[self.order]
        # The last token is no input: nothing follows it.
        starts = np.arange(first, max(total - 1, first), stride or context)
        stops = np.minimum(starts + context, total - 1)
        scored = starts.copy()  # targets before this belong to another window
        if stride is not None and len(starts):
            scored[1:] = stops[:-1]
            keep = scored < stops
            starts, stops, scored = starts[keep], stops[keep], scored[keep]
        if first:
            starts, stops = np.r_[0, starts], np.r_[first, stops]
            scored = np.r_[0, scored]
        if random is not None:
            turn = random.permutation(len(starts))
            starts, stops, scored = starts[turn], stops[turn], scored[turn]
        self.starts, self.stops, self.scored = starts, stops, scored

    def __len__(self) -> int:
        return len(self.starts)

    def rows(self, first: int, last: int) -> Rows:
        """Windows `first` to `last`, (last - first, context) each."""
        split = self.split
        start = self.starts[first:last, None]
        stop = self.stops[first:last, None]
        at = start + np.arange(self.context + 1)  # (B, T+1) places in the laid-out documents
        filled = at > stop  # beyond the window's last target
        at = np.minimum(at, stop)
        document = np.searchsorted(self.ends, at, side="right")
        origin = self.order[document]
        offset = at - self.begins[document]
        places = split.starts[origin] + offset
        tokens = split.tokens[places].astype(np.int64)
        if split.eos_id is not None:
            tokens[filled] = split.eos_id
        nothing = (document[:, 1:] != document[:, :-1]) | filled[:, 1:]
        nothing |= at[:, :-1] < self.scored[first:last, None]
        if split.targets is not None:
            nothing |= ~split.targets[places[:, 1:]]
        spare = at[:, :-1] == stop  # inputs that are only filling
        # Filling is a document of its own, so that nothing attends to it.
        past = np.searchsorted(self.ends, stop - 1, side="right") + 1
        number = np.where(spare, past, document[:, :-1]) - document[:, :1]
        position = at[:, :-1] - np.maximum(self.begins[document[:, :-1]], start)
        return Rows(
            ids=tokens[:, :-1],
            targets=np.where(nothing, IGNORED, tokens[:, 1:]),
            documents=number.astype(np.int32),
            positions=np.where(spare, 0, position),
            origin=np.where(spare, -1, origin[:, :-1]),
            offsets=offset[:, :-1],
        )


def answers_alone(
    split: TokenSplit, line_end: int, before: Sequence[int] = (), first: Sequence[int] = ()
) -> TokenSplit:
    """A split whose targets are each line's answer, the line's end included.

    Args:
        line_end: the token that ends a line.
        before: tokens that stand before an answer.
        first: tokens that begin an answer.

    Raises:
        BedstoneError: no token would be a target.
    """
    tokens, numbers = np.asarray(split.tokens), np.arange(len(split))
    edges = tokens == line_end
    edges[split.starts[1:] - 1] = True  # an answer doesn't go on in the next document
    marks = np.r_[False, np.isin(tokens, before)[:-1]] | np.isin(tokens, first)
    begun = np.maximum.accumulate(np.where(marks, numbers, -1))
    ended = np.r_[-1, np.maximum.accumulate(np.where(edges, numbers, -1))[:-1]]
    targets = begun > ended
    if not targets.any():
        raise BedstoneError(
            f"data.answers: no line of the {split.name} split has this text before its end. Name "
            "the text that stands before each answer, with its spaces."
        )
    return dataclasses.replace(split, targets=targets)


def make_batch(parts: list[Rows], number: int) -> TokenBatch:
    """One batch of the rows of all `parts`."""

    def joined(name: str) -> np.ndarray:
        arrays = [getattr(part, name) for part in parts]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    targets = joined("targets")
    return TokenBatch(
        ids=torch.from_numpy(np.ascontiguousarray(joined("ids"))),
        targets=torch.from_numpy(targets),
        documents=torch.from_numpy(joined("documents")),
        positions=torch.from_numpy(joined("positions")),
        target_count=int((targets != IGNORED).sum()),
        number=number,
        origin=joined("origin"),
        offsets=joined("offsets"),
    )


def check_enough(split: TokenSplit, context: int, what: str = "the data") -> None:
    """Raises BedstoneError if `split` has fewer tokens than one window needs."""
    if len(split) < context + 1:
        raise BedstoneError(
            f"{what}: the {split.name} split has {len(split):,} tokens in {split.documents:,} "
            f"documents; one window of context {context:,} needs {context + 1:,}. Name more data, "
            "lower the context, or change the share held out for validation."
        )


class PackedBatches(Batches[TokenBatch]):
    """An endless stream of batches from a tokenised split.

    The order of documents and of windows is drawn anew each epoch from `seed`; a batch may hold
    the last windows of one epoch and the first of the next. The state is a position, so resuming
    costs nothing and loses nothing; `batch_size` may change between.

    Raises:
        BedstoneError: the split has fewer than `context` + 1 tokens.
    """

    def __init__(
        self, split: TokenSplit, context: int, batch_size: int, seed: int = 0, shuffle: bool = True
    ):
        _check_sizes(context, batch_size)
        check_enough(split, context)
        self.split, self.context, self.batch_size = split, context, batch_size
        self.seed, self.shuffle = seed, shuffle
        self._epoch, self._window, self._number = 0, 0, 0
        self._windows = self._draw()

    def _draw(self) -> Windows:
        order = (self.seed, self._epoch) if self.shuffle else None
        return Windows(self.split, self.context, order)

    @property
    def epoch(self) -> float:
        """Passes over the split so far, such as 1.25."""
        return self._epoch + self._window / len(self._windows)

    def __next__(self) -> TokenBatch:
        parts, wanted = [], self.batch_size
        while wanted:
            if self._window == len(self._windows):
                self._epoch, self._window = self._epoch + 1, 0
                self._windows = self._draw()
            last = min(self._window + wanted, len(self._windows))
            parts.append(self._windows.rows(self._window, last))
            wanted -= last - self._window
            self._window = last
        self._number += 1
        return make_batch(parts, self._number - 1)

    def identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "context": self.context,
            "shuffle": self.shuffle,
            "tokens": len(self.split),
            "documents": self.split.documents,
        }

    def position(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "window": self._window, "batch": self._number}

    def go(self, position: Mapping[str, Any]) -> None:
        self._epoch, self._window = position["epoch"], position["window"]
        self._number = position["batch"]
        self._windows = self._draw()


def evaluation_batches(
    split: TokenSplit, context: int, batch_size: int, stride: int | None = None
) -> Iterator[TokenBatch]:
    """The whole split in order, each token but a document's first a target exactly once.

    With a `stride` below `context`, windows overlap and a window only scores what the one before
    did not, so that most tokens see at least `context` - `stride` tokens before them. The last
    batch is filled up with rows without targets.

    Raises:
        BedstoneError: the split has fewer than two tokens, or the stride is not in 1..context.
    """
    _check_sizes(context, batch_size)
    if stride is not None and not 1 <= stride <= context:
        raise BedstoneError(f"stride: {stride} is out of range; expected 1 to context={context}.")
    check_enough(split, 1)
    return _evaluation_batches(Windows(split, context, stride=stride), batch_size)


def _evaluation_batches(windows: Windows, batch_size: int) -> Iterator[TokenBatch]:
    for number, first in enumerate(range(0, len(windows), batch_size)):
        rows = windows.rows(first, min(first + batch_size, len(windows)))
        missing = batch_size - len(rows.ids)
        yield make_batch([rows, _filling(rows, missing)] if missing else [rows], number)


def _filling(rows: Rows, count: int) -> Rows:
    shape = (count, rows.ids.shape[1])
    return Rows(
        ids=np.zeros(shape, np.int64),
        targets=np.full(shape, IGNORED, np.int64),
        documents=np.zeros(shape, np.int32),
        positions=np.zeros(shape, np.int64),
        origin=np.full(shape, -1, np.int64),
        offsets=np.zeros(shape, np.int64),
    )


def _check_sizes(context: int, batch_size: int) -> None:
    check_whole("context", context, 1)
    check_whole("batch_size", batch_size, 1)


# Streaming: a source is tokenised as it is read, for data too large to keep as tokens.
#
# The source is read in order, a block of about a million tokens at a time; a block's documents are
# packed and its windows shuffled as `PackedBatches` does with a whole epoch. Data that is sorted on
# disk should be shuffled there first: nothing is mixed beyond a block.
#
# The state is small: how many pieces of the source come before the current block, and which window
# of the block is next. Resuming reads past those pieces without tokenising them and tokenises the
# block again, so no token is lost or repeated. A block's windows never reach into the next.

BLOCK_TOKENS = 1 << 20


class StreamedBatches(Batches[TokenBatch]):
    """An endless stream of batches from a source that is tokenised as it is read.

    Documents whose hash lies below `validation_share` are left out; `held_out` gives them. `fim`
    cuts the others for fill-in-the-middle.

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
        fim: FimCutter | None = None,
    ):
        if not 0 <= validation_share < 1:
            raise BedstoneError(
                f"validation_share: {validation_share} is out of range; expected 0 or more, "
                "below 1."
            )
        check_whole("context", context, 1)
        check_whole("batch_size", batch_size, 1)
        self.source, self.tokenizer, self.fim = source, tokenizer, fim
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
        self._encoded = self._encode(piece)
        self._windows: Windows | None = None

    def _encode(self, skip: int = 0) -> Iterator[Encoded]:
        share = self.validation_share
        return _flat(encode_source(self.source, self.tokenizer, skip, fim=self.fim, share=share))

    def cut(self) -> FimCounts:
        """How much of the first block's documents is cut for fill-in-the-middle."""
        counts, tokens = FimCounts(), 0
        for piece in self._encode():
            counts, tokens = counts.plus(piece.counts), tokens + len(piece.ids)
            if tokens >= self.block_tokens:
                break
        return counts

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

    def __next__(self) -> TokenBatch:
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

    def identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "context": self.context,
            "source": self.source.name,
            "bytes": self._bytes,  # its content is too much to hash
            "tokenizer": self.tokenizer.fingerprint(),
            "validation_share": self.validation_share,
            "block_tokens": self.block_tokens,
            "fim": None if self.fim is None else self.fim.identity(),
        }

    def position(self) -> dict[str, Any]:
        return {
            "epoch": self._epoch,
            "piece": self._piece,
            "read": self._read,
            "window": self._window,
            "batch": self._number,
        }

    def go(self, position: Mapping[str, Any]) -> None:
        self._go(position["epoch"], position["piece"], position["read"])
        if position["window"]:
            self._advance()
            self._window = position["window"]
        self._number = position["batch"]


def _flat(groups: Iterator[list[Encoded]]) -> Iterator[Encoded]:
    for group in groups:
        yield from group


def _join(pieces: list[Encoded], name: str, eos: int | None) -> TokenSplit:
    """A split of these pieces; one that goes on with a document from before counts as its own."""
    lengths = np.array([0, *(len(piece.ids) for piece in pieces)], dtype=np.int64)
    at = np.cumsum(lengths)[:-1]
    begins = np.array([piece.begins for piece in pieces], dtype=bool)
    begins[:1] = True
    inner = [at[n] + start for n, piece in enumerate(pieces) for start in piece.inner]
    starts = np.sort(np.concatenate([at[begins], np.array(inner, dtype=np.int64)]))
    tokens = np.concatenate([piece.ids for piece in pieces]) if pieces else np.zeros(0, np.uint32)
    return TokenSplit(name, tokens, starts, sum(piece.bytes for piece in pieces), eos)
