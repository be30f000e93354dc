"""Documents as one flat array of token ids, and the stream that turns a source into it."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bedstone.data.readers import Piece
from bedstone.data.sources import Source
from bedstone.data.tokenizer import Tokenizer

GROUP = 2 << 20  # characters tokenised at once: enough for all processors, about 200 MB of memory


@dataclass(frozen=True)
class TokenSplit:
    """Documents laid end to end; each ends with the tokenizer's end token, if it has one.

    Attributes:
        name: for messages, such as `train`.
        tokens: (N,) uint16 or uint32 ids, in memory or mapped from a file.
        starts: (D,) int64, ascending: the index of each document's first token; starts[0] is 0.
        bytes: the UTF-8 bytes of the text, for bits per byte; end tokens don't count.
        eos_id: the id that ends a document, or None.
        pieces: (P,) int64, ascending: the index of the first token of each piece of the source,
            such as a sentence; None where that isn't known.
    """

    name: str
    tokens: np.ndarray
    starts: np.ndarray
    bytes: int
    eos_id: int | None = None
    pieces: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def documents(self) -> int:
        return len(self.starts)

    def lengths(self) -> np.ndarray:
        """(D,) int64 tokens of each document, end token included."""
        return np.diff(self.starts, append=len(self.tokens))

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[Sequence[int] | np.ndarray],
        *,
        name: str = "memory",
        bytes: int = 0,
        eos_id: int | None = None,
    ) -> "TokenSplit":
        """A split in memory, of documents that bring their end tokens; empty ones are left out."""
        arrays = [np.asarray(each, dtype=np.uint32) for each in documents if len(each)]
        starts = np.cumsum([0, *(len(each) for each in arrays)], dtype=np.int64)[:-1]
        tokens = np.concatenate(arrays) if arrays else np.zeros(0, np.uint32)
        return cls(name, tokens, starts, bytes, eos_id)


class Encoded(NamedTuple):
    """One tokenised piece of a document.

    `place` is in [0, 1), the same for all pieces of a document and for documents of equal content
    or key: those below a share are held out.
    """

    ids: np.ndarray  # (T,) uint32
    begins: bool
    ends: bool
    bytes: int
    place: float


class _Placed(NamedTuple):
    piece: Piece
    begins: bool
    place: float


def encode_source(source: Source, tokenizer: Tokenizer, skip: int = 0) -> Iterator[list[Encoded]]:
    """The pieces of `source` in order, tokenised in groups; memory is that of two groups.

    The first `skip` pieces are read but not tokenised. Reading, tokenising and what the caller does
    with a group overlap.
    """
    eos = tokenizer.eos_id
    tail = np.array([] if eos is None else [eos], dtype=np.uint32)

    def encode(group: list[_Placed]) -> list[Encoded]:
        ids = tokenizer.encode_batch(
            [each.piece.text for each in group], continued=[not each.begins for each in group]
        )
        return [
            Encoded(
                np.concatenate([part, tail]) if piece.ends else part,
                begins,
                piece.ends,
                len(piece.text.encode()),
                place,
            )
            for part, (piece, begins, place) in zip(ids, group, strict=True)
        ]

    pool = ThreadPoolExecutor(2)  # one group's ids become arrays while the other is tokenised
    waiting: list[Future[list[Encoded]]] = []
    try:
        for group in _groups(itertools.islice(_placed(source.pieces()), skip, None)):
            waiting.append(pool.submit(encode, group))
            if len(waiting) > 2:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    finally:
        for future in waiting:  # the threads end with the pool, when nothing refers to it
            future.cancel()


def _placed(pieces: Iterable[Piece]) -> Iterator[_Placed]:
    begins, place = True, 0.0
    for piece in pieces:
        if begins:
            if piece.ends and not piece.text:
                continue  # an empty document
            name = (piece.key or piece.text).encode()
            digest = hashlib.blake2b(name, digest_size=8).digest()
            place = int.from_bytes(digest, "big") / 2**64
        yield _Placed(piece, begins, place)
        begins = piece.ends


def _groups(placed: Iterable[_Placed]) -> Iterator[list[_Placed]]:
    group: list[_Placed] = []
    size = 0
    for each in placed:
        group.append(each)
        size += len(each.piece.text) + 64  # what an empty text costs
        if size >= GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group
