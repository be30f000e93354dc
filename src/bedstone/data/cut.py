"""Where a long text may be cut so that its pieces tokenise as the whole would.

Tokenising needs memory in proportion to its input, and some tokenizers slow down on one enormous
word, so long texts are handed over in pieces. A single space between two letters or digits is a cut
that no published tokenizer notices: a word begins there and none reaches over it. (Beside other
signs it may be noticed: some treat a space next to a special token differently.) A piece that
follows such a cut begins with that space.
"""

import re
from collections.abc import Iterator

PIECE = 8_192  # characters; where tokenizers are fastest: cache-friendly, many per batch
LONGEST = 65_536  # characters; a text without a single space is cut here, whatever it costs

_SPACE = re.compile(r"(?<=\w) (?=\w)")


def find_cut(text: str, start: int, stop: int) -> int | None:
    """The first harmless cut in `text[start:stop]`, as an index of `text`; None if none is."""
    found = _SPACE.search(text, start, min(stop + 1, len(text)))
    return found.start() if found and found.start() < stop else None


def cuts(text: str, piece: int = PIECE, longest: int = LONGEST) -> Iterator[str]:
    """Pieces of `text`, in order: at least `piece` and at most `longest` characters but the last.

    Where `longest` characters hold no harmless cut, the piece ends after a line break if there is
    one, else anywhere: the ids near such a cut may differ from those of the uncut text.
    """
    start = 0
    while len(text) - start > piece:
        cut = find_cut(text, start + piece, start + longest)
        if cut is None:
            if len(text) - start <= longest:
                break
            cut = text.rfind("\n", start + piece, start + longest) + 1 or start + longest
        yield text[start:cut]
        start = cut
    yield text[start:] if start else text
