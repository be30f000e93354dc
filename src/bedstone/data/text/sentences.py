"""Sentences of documents, and rows made of them: sentence pairs (BERT) or full sentences (RoBERTa).

`Sentences` wraps a source so that its pieces are sentences; tokenised by `data.text.token_cache`,
a split then knows where each sentence begins.

Sentence pairs are those of BERT (Devlin et al., 2019, section 3.1 and appendix A.2): a row is
filled with the text of a document, split at the edge of a sentence drawn at random; in half of the
rows the second part is replaced by text of another document. Full sentences are those of RoBERTa
(Liu et al., 2019, section 4.2): a row goes on over the ends of documents. The rest of a row that is
too long begins the next one, so every token is read once an epoch.

Shapes: R rows, S spans.
"""

import hashlib
import random
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bedstone.data.bytes import BLOCK, Piece
from bedstone.data.sources import Source
from bedstone.data.text.token_cache import TokenSplit

RULES = 1  # raise it when the same text would be split otherwise

# A sentence ends with its line or lines, or with . ! ? (and closing quotation marks) before blanks
# and the beginning of a sentence. The blanks are the next sentence's, as tokenizers have it.
_END = re.compile(r"\n\s*\n|\n|[.!?][\"'”’)\]]*(?=[ \t]+[\"'“‘(\[]*[A-Z0-9])")


def sentences(text: str) -> list[str]:
    """The sentences of `text` in order; joined they are the text."""
    ends = [found.end() for found in _END.finditer(text)]
    starts = [0, *(end for end in ends if end < len(text))]
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


class Sentences(Source):
    """The documents of a source, each piece of which is a sentence."""

    def __init__(self, source: Source):
        self.source, self.name = source, source.name

    def pieces(self) -> Iterator[Piece]:
        held, key = "", None  # a sentence that a piece of the document was cut in
        for piece in self.source.pieces():
            # Held-out documents are chosen by key: documents that begin alike must not share one.
            key = key or piece.key or piece.text
            parts = sentences(held + piece.text)
            held = "" if piece.ends or len(parts[-1]) > BLOCK else parts.pop()
            for number, part in enumerate(parts):
                yield Piece(part, piece.ends and number == len(parts) - 1, key)
            if piece.ends:
                key = None

    def fingerprint(self) -> str:
        content = f"sentences {RULES} {self.source.fingerprint()}"
        return hashlib.sha256(content.encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        return self.source.describe()


# Rows as spans of a tokenised split.

NEXT, OTHER, ALONE = 0, 1, -100  # the second text follows, is another's; there is none
SHORTEST = 4  # tokens of a short row, at least


@dataclass(frozen=True)
class Segments:
    """R rows of S spans in all.

    Attributes:
        spans: (S, 2) int64, the first token of the split in each span and the one after its last.
        types: (S,) int64, 0 for a row's first text and 1 for its second.
        rows: (R + 1,) int64, each row's first span, and at last S.
        pairs: (R,) int64, `NEXT`, `OTHER` or `ALONE`.
    """

    spans: np.ndarray
    types: np.ndarray
    rows: np.ndarray
    pairs: np.ndarray

    def __len__(self) -> int:
        return len(self.pairs)

    def lengths(self) -> np.ndarray:
        """(R,) tokens of each row: one before it, one after each span."""
        sizes = self.spans[:, 1] - self.spans[:, 0] + 1
        before = np.concatenate(([0], np.cumsum(sizes)))
        return np.diff(before[self.rows]) + 1


class Documents:
    """The documents and sentences of a split."""

    def __init__(self, split: TokenSplit):
        self.split = split
        self.starts = split.starts
        # What ends a document in the split is a matter of rows here.
        self.stops = self.starts + split.lengths() - (split.eos_id is not None)
        pieces = np.unique(split.starts if split.pieces is None else split.pieces)
        owners = np.searchsorted(self.starts, pieces, side="right") - 1
        real = pieces < self.stops[owners]
        self.sentences, self.owners = pieces[real], owners[real]  # (P,) starts; of which document
        places = np.arange(len(self.starts) + 1)
        self.first = np.searchsorted(self.owners, places)  # a document's first sentence

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def several(self) -> bool:
        """Whether at least two documents have text."""
        return len(self.owners) > 0 and self.owners[0] != self.owners[-1]

    def edges(self, document: int) -> list[int]:
        """Where its sentences begin."""
        return self.sentences[self.first[document] : self.first[document + 1]].tolist()

    def elsewhere(self, document: int, draw: random.Random) -> tuple[int, int]:
        """A random sentence of another document: its start and the document's stop."""
        first, after = int(self.first[document]), int(self.first[document + 1])
        at = draw.randrange(len(self.sentences) - (after - first))
        at += (after - first) * (at >= first)
        return int(self.sentences[at]), int(self.stops[self.owners[at]])


def sentence_pairs(
    documents: Documents, order: Iterable[int], room: int, short: float, seed: int
) -> Segments:
    """Rows of pairs from the documents of `order`.

    Args:
        room: tokens of both texts together, at most; a share `short` of rows gets less.
        seed: of what is drawn.
    """
    draw = random.Random(seed)
    rows: list[tuple[int, int, int, int, int]] = []  # both spans, and what they are
    several = documents.several
    for document in order:
        edges = documents.edges(document)
        at, end = int(documents.starts[document]), int(documents.stops[document])
        while at < end:
            target = room
            if draw.random() < short:
                target = draw.randint(min(SHORTEST, room), room)
            stop = min(at + target, end)
            low = bisect_right(edges, at)
            high = bisect_left(edges, stop, low)
            if low == high or not several:
                rows.append((at, stop, 0, 0, ALONE))
                at = stop
                continue
            edge = edges[low + int(draw.random() * (high - low))]
            if draw.random() < 0.5:
                rows.append((at, edge, edge, stop, NEXT))
                at = stop
            else:
                other, last = documents.elsewhere(document, draw)
                rows.append((at, edge, other, min(other + target - (edge - at), last), OTHER))
                at = edge
    table = np.array(rows, np.int64).reshape(-1, 5)
    spans, types = table[:, :4].reshape(-1, 2), np.tile([0, 1], len(table))
    real = spans[:, 1] > spans[:, 0]
    firsts = np.concatenate(([0], np.cumsum(real)))[::2]
    return Segments(spans[real], types[real], firsts, table[:, 4])


def full_sentences(documents: Documents, order: Iterable[int], room: int) -> Segments:
    """Rows filled with sentences that follow each other, over the ends of documents.

    Args:
        room: tokens of a row's spans together with one after each, at most.
    """
    spans: list[tuple[int, int]] = []
    rows = [0]
    left = room
    for document in order:
        edges = [*documents.edges(document), int(documents.stops[document])]
        at, end = edges[0], edges[-1]
        while at < end:
            stop = min(at + left - 1, end)
            if stop < end:
                stop = edges[bisect_right(edges, stop) - 1]  # the last sentence that fits whole
            if stop <= at and left == room:
                stop = at + room - 1  # a sentence longer than a row
            if stop > at:
                spans.append((at, stop))
                left -= stop - at + 1
                at = stop
            if at < end or left < 2:
                rows.append(len(spans))
                left = room
    if rows[-1] < len(spans):
        rows.append(len(spans))
    table = np.array(spans, np.int64).reshape(-1, 2)
    alone = np.full(len(rows) - 1, ALONE)
    return Segments(table, np.zeros(len(table), np.int64), np.array(rows), alone)
