"""Batches for masked language modelling: rows with masked tokens, packed without padding.

Shapes: n rows, N tokens of all rows, S spans, M masked tokens, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from tokenizers import decoders
from torch import Tensor

from bedstone import settings
from bedstone.data.stream import Batches, entries
from bedstone.data.text.packing import Packed, PackedBatch, lay, moved
from bedstone.data.text.sentences import ALONE, Documents, Segments, full_sentences, sentence_pairs
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError


@dataclass
class MaskingConfig(settings.Settings):
    """Which tokens are masked, and whether rows are sentence pairs.

    Attributes:
        share: of the tokens that are masked.
        mask: share of these that become the mask token.
        other: share of these that become another token; the rest stays, and is predicted too.
        whole_words: mask all pieces of a word or none.
        pairs: predict too whether the second of two texts follows the first; null does in bert
            alone.
        short_rows: share of the rows of pairs that are made shorter than `context`, at random.
    """

    share: float = settings.share(default=0.15)
    mask: float = settings.share(default=0.8)
    other: float = settings.share(default=0.1)
    whole_words: bool = False
    pairs: bool | None = None
    short_rows: float = settings.share(default=0.1)

    section: ClassVar[str] = "masking."

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.share or self.mask + self.other > 1:
            raise BedstoneError(
                f"masking: share {self.share} must be above 0, and mask {self.mask} and other "
                f"{self.other} at most 1 together."
            )


# Masking of tokens.
#
# BERT (Devlin et al., 2019, section 3.1) chooses 15 % of the tokens of a row; of these 80 % become
# the mask token, 10 % another token, 10 % stay. Whole-word masking (Xu et al., 2021; BERT's own
# later code) masks all pieces of a word or none. RoBERTa (Liu et al., 2019) masks others at each
# visit.
#
# Nothing here has a state: the masked tokens are a function of a row's key and a token's place in
# it, so a stream that resumes masks those that it would have masked, whatever its batches are.

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_CHOICE, _KIND, _WORD, _COUNT = range(4)  # streams of random numbers
_STREAMS = 4


def row_keys(seed: tuple[int, ...], rows: np.ndarray) -> np.ndarray:
    """A key, uint64, for each of `rows` (n,) under a seed, such as (seed, epoch)."""
    base = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    return _mixed(base + rows.astype(np.uint64) * _STEP)


def _mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele et al., 2014): every bit of the input moves every other."""
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))


def _draw(keys: np.ndarray, places: np.ndarray, stream: int) -> np.ndarray:
    """Uniform numbers in [0, 1), one for each key and place."""
    at = places.astype(np.uint64) * np.uint64(_STREAMS) + np.uint64(stream + 1)
    return (_mixed(keys + at * _STEP) >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True)
class Corruption:
    """Masks tokens of rows laid end to end.

    Attributes:
        mask_id: the mask token.
        ordinary: ids of ordinary tokens, one of which may replace another.
        hides: (V,) bool, True where a token may be masked: of text, not special or unknown.
        share: of these tokens, masked.
        mask, other: shares of the masked that become the mask token, or another token.
        begins, ends: (V,) bool, for whole-word masking: a token goes on with a word if it doesn't
            begin one and the token before it doesn't end one. None masks tokens one by one.
    """

    mask_id: int
    ordinary: np.ndarray
    hides: np.ndarray
    share: float = 0.15
    mask: float = 0.8
    other: float = 0.1
    begins: np.ndarray | None = None
    ends: np.ndarray | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, config: MaskingConfig) -> "Corruption":
        """The masking that a recipe sets.

        Raises:
            BedstoneError: the tokenizer has no mask token.
        """
        mask_id = tokenizer.mask_id
        if mask_id is None:
            raise BedstoneError(
                "tokenizer: has no mask token, which masked pretraining needs. Train one with "
                "tokenizer.kind: wordpiece (or bpe, which gets RoBERTa's), or name an encoder's."
            )
        hides = np.zeros(tokenizer.vocab_size, bool)
        hides[list(tokenizer.backend.get_vocab(with_added_tokens=True).values())] = True
        hides[tokenizer.special_ids] = False
        begins, ends = word_edges(tokenizer) if config.whole_words else (None, None)
        return cls(
            mask_id,
            np.flatnonzero(hides),
            hides,
            config.share,
            config.mask,
            config.other,
            begins,
            ends,
        )

    def __call__(
        self, ids: np.ndarray, lengths: np.ndarray, keys: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Masks rows.

        Args:
            ids: (N,) int64, n rows laid end to end.
            lengths: (n,) tokens of each row.
            keys: (n,) uint64, of each row.

        Returns:
            ids (N,) with tokens masked, and where: (M,) ascending. A row with any token that may
            be masked has at least one.
        """
        owner = np.repeat(np.arange(len(lengths)), lengths)
        places = np.flatnonzero(self.hides[ids])  # (C,) which may be masked
        read = places[self._chosen(ids, places, owner[places], lengths, keys)]
        mine, within = keys[owner[read]], read - (np.cumsum(lengths) - lengths)[owner[read]]
        kind = _draw(mine, within, _KIND)
        word = (_draw(mine, within, _WORD) * len(self.ordinary)).astype(np.int64)
        hidden = ids.copy()
        kept = np.where(kind < self.mask + self.other, self.ordinary[word], ids[read])
        hidden[read] = np.where(kind < self.mask, self.mask_id, kept)
        return hidden, read

    def _chosen(
        self,
        ids: np.ndarray,
        places: np.ndarray,
        owner: np.ndarray,
        lengths: np.ndarray,
        keys: np.ndarray,
    ) -> np.ndarray:
        """Which of `places` are masked, (C,) bool: in each row its share of words, drawn.

        Words are taken in a random order while at least half of the next still fits.
        """
        counts = np.bincount(owner, minlength=len(lengths))
        # Rounded up or down at random, so that short rows mask their share on average too.
        spare = _draw(keys, np.zeros(len(keys)), _COUNT)
        wanted = np.maximum(np.floor(self.share * counts + spare), 1)
        new = self._new_words(ids, places, owner)
        first = np.flatnonzero(new)  # of each word, among `places`
        size = np.diff(first, append=len(places))
        row = owner[first]
        within = places[first] - (np.cumsum(lengths) - lengths)[row]
        order = np.argsort(row + _draw(keys[row], within, _CHOICE))
        row, size = row[order], size[order]
        before = np.cumsum(size) - size - (np.cumsum(counts) - counts)[row]  # tokens, in its row
        taken = np.zeros(len(first), bool)
        taken[order] = (before + size / 2 <= wanted[row]) | (before == 0)
        return taken[np.cumsum(new) - 1]

    def _new_words(self, ids: np.ndarray, places: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """(C,) bool: where a word begins; everywhere if tokens are masked one by one."""
        new = np.ones(len(places), bool)
        if self.begins is not None and self.ends is not None and len(places):
            tokens = ids[places]
            apart = (np.diff(places) > 1) | (owner[1:] != owner[:-1])
            new[1:] = apart | self.begins[tokens[1:]] | self.ends[tokens[:-1]]
        return new


def word_edges(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens begin a word whatever is before them, and which end one: (V,) bool each.

    WordPiece marks what goes on with a word by `##`. Elsewhere a word is a run of letters, digits
    and bytes that are no ASCII; a space, or the sign that stands for one, is none of these.
    """
    begins, ends = (np.ones(tokenizer.vocab_size, bool) for _ in range(2))
    inner = getattr(tokenizer.backend.model, "continuing_subword_prefix", None)
    bytewise = isinstance(tokenizer.backend.decoder, decoders.ByteLevel)
    of_word = _is_byte_of_word if bytewise else str.isalnum
    for token, number in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        if inner:
            begins[number], ends[number] = not token.startswith(inner), False
        elif token:
            begins[number], ends[number] = not of_word(token[0]), not of_word(token[-1])
    return begins, ends


def _is_byte_of_word(letter: str) -> bool:
    """Of a letter that stands for a byte (GPT-2's table): ASCII letters and digits, or no ASCII."""
    if letter.isascii():
        return letter.isalnum()
    return ord(letter) < 256 or ord(letter) > 289  # between are blanks and controls


LEAST_CONTEXT = 8


@dataclass(frozen=True)
class MaskedBatch(PackedBatch):
    """A batch of masked language modelling.

    Attributes:
        rows: the rows, some of their tokens masked.
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
    def target_count(self) -> int:
        """Masked tokens."""
        return len(self.read)

    def identify(self) -> bytes:
        return np.asarray(self.spans, np.int64).tobytes()

    def pick(self, rows: np.ndarray) -> "MaskedBatch":
        picked, places = self.rows.pick(rows)
        read, kept = moved(self.read, places, self.items)
        spans = self.spans[np.isin(self.spans[:, 0], rows)]
        return replace(
            self,
            rows=picked,
            read=read,
            targets=self.targets[kept],
            pairs=entries(self.pairs, rows),
            spans=np.c_[np.searchsorted(rows, spans[:, 0]), spans[:, 1:]],
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
    """Makes the rows of a split, as a network reads them.

    Attributes:
        documents: of the split.
        corruption: masks their tokens.
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
    """Raises BedstoneError if a split is too small for rows, or for pairs."""
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


# The stream. An epoch is cut into blocks of documents in a random order; of each block rows are
# made and shuffled, so an epoch begins at once however large the data is. The masked tokens depend
# on seed, epoch and row alone, not on how rows fall into batches.

BLOCK_TOKENS = 1 << 21


class MaskedBatches(Batches[MaskedBatch]):
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
        """Goes to a row of a block of an epoch, or to where the next begins."""
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

    def identity(self) -> dict[str, Any]:
        split = self.rows.documents.split
        return {
            "seed": self.seed,
            "context": self.rows.context,
            "pairs": self.rows.pairs,
            "tokens": len(split),
            "documents": split.documents,
            "block_tokens": self.block_tokens,
        }

    def position(self) -> dict[str, Any]:
        position = {"epoch": self._epoch, "block": self._block, "row": self._row}
        return {**position, "batch": self._number}

    def go(self, position: Mapping[str, Any]) -> None:
        self._go(position["epoch"], position["block"], position["row"])
        self._number = position["batch"]


def evaluation_batches(rows: RowMaker, batch_tokens: int, seed: int = 0) -> Iterator[MaskedBatch]:
    """All rows of a split in order, the same tokens masked each time."""
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
