"""Text as sentences in documents: what rows of masked words and pairs of texts are made of.

A source is wrapped so that its pieces are sentences; tokenised and kept by `data.token_cache` as
any other, it then says where each sentence begins. Nothing of the text is lost or moved.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

from bedstone.data.readers import BLOCK, Piece
from bedstone.data.sources import Source

RULES = 1  # raise it when the same text would be parted otherwise

# A sentence ends with its line or lines, or with . ! ? (and what closes a quotation) before blanks
# and what a sentence begins with. The blanks are the next sentence's, as tokenizers have it.
_END = re.compile(r"\n\s*\n|\n|[.!?][\"'”’)\]]*(?=[ \t]+[\"'“‘(\[]*[A-Z0-9])")


def sentences(text: str) -> list[str]:
    """The sentences of `text` in order; joined they are the text."""
    ends = [found.end() for found in _END.finditer(text)]
    starts = [0, *(end for end in ends if end < len(text))]
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


class Sentences(Source):
    """The same documents, each piece a sentence."""

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
        told = f"sentences {RULES} {self.source.fingerprint()}"
        return hashlib.sha256(told.encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        return self.source.describe()
