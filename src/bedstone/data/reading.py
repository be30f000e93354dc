"""What a tokenizer makes of texts, before it is rows: tokens, what stands around them, and cuts."""

import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Encoding

from bedstone.data.tokenizer import Tokenizer
from bedstone.errors import BedstoneError

LARGEST = 1 << 22  # characters of one text: more than any book has

Offsets = list[tuple[int, int]]


@dataclass(frozen=True)
class Text:
    """A text as read, T tokens, without what stands around it. Fields as in `inputs.Input`."""

    ids: list[int]
    offsets: Offsets
    words: list[int | None]

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, start: int, end: int) -> "Text":
        kept = slice(start, end)
        return Text(self.ids[kept], self.offsets[kept], self.words[kept])


@dataclass(frozen=True)
class Frame:
    """What a tokenizer sets around one text or two.

    Attributes:
        before: ids and types of what stands before the first.
        after: ids and types of what follows each.
        types: the type of each text's own tokens.
    """

    before: tuple[list[int], list[int]]
    after: list[tuple[list[int], list[int]]]
    types: list[int]

    def room(self, limit: int | None) -> int | None:
        """Tokens of the texts themselves that a row of `limit` tokens holds."""
        if limit is None:
            return None
        own = len(self.before[0]) + sum(len(ids) for ids, _ in self.after)
        if limit <= own:
            raise BedstoneError(
                f"limit: rows of {limit:,} tokens leave no room beside the {own} that the "
                "tokenizer sets around a text. Raise it."
            )
        return limit - own


_FRAMES: weakref.WeakKeyDictionary[Tokenizer, dict[int, Frame]] = weakref.WeakKeyDictionary()


def frame_of(tokenizer: Tokenizer, texts: int) -> Frame:
    """The frame of one text or two, found by letting the tokenizer set it."""
    known = _FRAMES.setdefault(tokenizer, {})
    if texts not in known:
        known[texts] = _find_frame(tokenizer, texts)
    return known[texts]


def _find_frame(tokenizer: Tokenizer, texts: int) -> Frame:
    backend = tokenizer.backend
    some = ("a", "e", "0", ".", "\n")  # any that the vocabulary has
    letter = next((x for x in some if backend.encode(x, add_special_tokens=False).ids), "a")
    shown = backend.encode(letter, letter if texts == 2 else None)
    before: tuple[list[int], list[int]] = ([], [])
    after: list[tuple[list[int], list[int]]] = [([], []) for _ in range(texts)]
    types, at = [0] * texts, -1
    for number, kind, source in zip(shown.ids, shown.type_ids, shown.sequence_ids, strict=True):
        if source is not None:
            types[source], at = kind, source
        else:
            ids, kinds = before if at < 0 else after[at]
            ids.append(number)
            kinds.append(kind)
    return Frame(before, after, types)


def check_text(text: object, what: str) -> None:
    """Raises BedstoneError if `text` is no string, empty, far too long or broken."""
    if not isinstance(text, str):
        raise BedstoneError(
            f"{what}: is {str(text)[:60]!r} of type {type(text).__name__}; expected a string."
        )
    if not text.strip():
        raise BedstoneError(f"{what}: is empty; expected some text. Leave it out or mend it.")
    if len(text) > LARGEST:
        raise BedstoneError(
            f"{what}: has {len(text):,} characters, beginning {text[:20]!r}; one text may have "
            f"{LARGEST:,}. Split it into several."
        )
    check_characters(text, what)


def check_characters(text: str, what: str) -> None:
    """Raises BedstoneError if `text` holds half of a surrogate pair."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can write such a half
        raise BedstoneError(
            f"{what}: holds half a character ({text[error.start]!a}) at position "
            f"{error.start:,}, which UTF-8 can't write. Mend or remove it."
        ) from error


def read_texts(
    tokenizer: Tokenizer, texts: Sequence[str], special_names: bool = False, what: str = "text"
) -> list[Text]:
    """Each text as tokens, without what stands around it.

    Raises:
        BedstoneError: one is empty, far too long, broken, or holds nothing that the tokenizer
            knows.
    """
    pieces: list[str] = []
    counts = []
    for text in texts:
        check_text(text, what)
        new = tokenizer.pieces(text)
        pieces += new
        counts.append(len(new))
    engine = tokenizer.backend if special_names else tokenizer.plain
    encodings = engine.encode_batch(pieces, add_special_tokens=False)
    read, at = [], 0
    for text, count in zip(texts, counts, strict=True):
        row = _joined(text, pieces[at : at + count], encodings[at : at + count])
        at += count
        if not len(row):
            raise BedstoneError(
                f"{what}: {text[:20]!a} holds no character that the tokenizer reads; expected "
                "some text. Leave it out or mend it."
            )
        read.append(row)
    return read


def _joined(text: str, pieces: list[str], encodings: list[Encoding]) -> Text:
    if len(pieces) == 1:
        (one,) = encodings
        return Text(one.ids, one.offsets, one.word_ids)
    whole = Text([], [], [])
    at = words = 0
    for piece, encoding in zip(pieces, encodings, strict=True):
        at = text.index(piece, at, at + len(piece) + 1)  # it may go without its space
        whole.ids.extend(encoding.ids)
        whole.offsets.extend((at + start, at + end) for start, end in encoding.offsets)
        own = encoding.word_ids
        whole.words.extend(None if word is None else words + word for word in own)
        words += max((word for word in own if word is not None), default=-1) + 1
        at += len(piece)
    return whole


def read_word_lists(tokenizer: Tokenizer, rows: Sequence[Sequence[str]]) -> list[Text]:
    """Lists of words as tokens: those of the words with a space between.

    Raises:
        BedstoneError: a list has no word with a token, or a word is broken.
    """
    spaced = not _parts_words(tokenizer)
    given = []
    for words in rows:
        for number, word in enumerate(words):
            if not isinstance(word, str):
                raise BedstoneError(f"word {number}: is {word!r}; expected a string.")
            check_characters(word, f"word {number}")
        if sum(map(len, words)) > LARGEST:
            raise BedstoneError(f"words: have more than {LARGEST:,} characters. Split the row.")
        given.append([f" {w}" if spaced and n and w else w for n, w in enumerate(words)])
    read = []
    for encoding in tokenizer.plain.encode_batch(
        given, is_pretokenized=True, add_special_tokens=False
    ):
        if not encoding.ids:
            raise BedstoneError(
                "words: are empty, or hold no character that the tokenizer reads; expected at "
                "least one word. Leave the row out or mend it."
            )
        offsets, words_of = encoding.offsets, encoding.word_ids
        if spaced:
            offsets = [
                (max(start - 1, 0), max(end - 1, 0)) if word else (start, end)
                for (start, end), word in zip(offsets, words_of, strict=True)
            ]
        read.append(Text(encoding.ids, offsets, words_of))
    return read


def _parts_words(tokenizer: Tokenizer) -> bool:
    """Whether words given in a list are read as words, not as one long word."""

    def ids(text: str | list[str]) -> list[int]:
        listed = isinstance(text, list)
        return tokenizer.plain.encode(text, is_pretokenized=listed, add_special_tokens=False).ids

    return ids(["the", "cat"]) == ids("the cat") or ids(["the", " cat"]) != ids("the cat")


def parts(text: Text, room: int | None, stride: int) -> list[Text]:
    """Windows of `room` tokens, each with `stride` of the one before; one where all fits.

    Raises:
        BedstoneError: `stride` leaves no room for new tokens.
    """
    if room is None or len(text) <= room:
        return [text]
    _check_stride(room, stride)
    starts = range(0, len(text) - stride, room - stride)
    return [text.cut(start, start + room) for start in starts]


def whole_words(text: Text, room: int, stride: int) -> list[tuple[int, int]]:
    """(start, end) of windows of at most `room` tokens that part no word but one longer than that.

    Raises:
        BedstoneError: `stride` leaves no room for new tokens.
    """
    if len(text) <= room:
        return [(0, len(text))]
    _check_stride(room, stride)
    words = text.words
    begins = [at for at in range(len(text)) if not at or words[at] != words[at - 1]]

    def last_begin(start: int, stop: int) -> int | None:
        """The last place in start < place <= stop at which a word begins."""
        at = bisect_right(begins, stop) - 1
        return begins[at] if begins[at] > start else None

    spans = []
    start = covered = 0
    while start + room < len(text):
        end = last_begin(covered, start + room)
        if end is None:  # the next word needs all the room, or more
            start = covered
            end = last_begin(start, start + room) or start + room
        spans.append((start, end))
        covered = end
        at = bisect_left(begins, max(end - stride, start + 1))
        start = min(begins[at], end) if at < len(begins) else end
    return [*spans, (start, len(text))]


def _check_stride(room: int, stride: int) -> None:
    if not 0 <= stride < room:
        raise BedstoneError(
            f"stride: {stride:,} tokens shared between windows leave nothing new in windows that "
            f"hold {room:,} tokens of the text. Lower it, or raise the limit."
        )
