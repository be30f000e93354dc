"""Encoding of text as a network's input: ids with special tokens, segments and offsets.

Training and use make their inputs here and nowhere else, so a model is served the very ids it was
trained on. Nothing is cut in silence: what is longer than a row becomes several windows, each with
`stride` tokens of the one before. The name of a special token inside a text is only text, unless
`special_names` is asked for (to fill a mask).
"""

import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from tokenizers import Encoding

from bedstone.data.bytes import LARGEST, check_characters, check_text
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.tokenizer_limits import guarded
from bedstone.errors import BedstoneError

Offsets = list[tuple[int, int]]


@dataclass(frozen=True)
class Text:
    """A text of T tokens without special tokens. Fields as in `Input`."""

    ids: list[int]
    offsets: Offsets
    words: list[int | None]

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, start: int, end: int) -> "Text":
        kept = slice(start, end)
        return Text(self.ids[kept], self.offsets[kept], self.words[kept])


@dataclass(frozen=True)
class SpecialTokenFrame:
    """The special tokens that a tokenizer sets around one text or two.

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


_FRAMES: weakref.WeakKeyDictionary[Tokenizer, dict[int, SpecialTokenFrame]] = (
    weakref.WeakKeyDictionary()
)


def frame_of(tokenizer: Tokenizer, texts: int) -> SpecialTokenFrame:
    """The special tokens around one text or two, read off the tokenizer."""
    known = _FRAMES.setdefault(tokenizer, {})
    if texts not in known:
        known[texts] = _find_frame(tokenizer, texts)
    return known[texts]


def _find_frame(tokenizer: Tokenizer, texts: int) -> SpecialTokenFrame:
    backend = tokenizer.backend
    some = ("a", "e", "0", ".", "\n")  # any that the vocabulary has
    with guarded(tokenizer.path):
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
    return SpecialTokenFrame(before, after, types)


def read_texts(
    tokenizer: Tokenizer, texts: Sequence[str], special_names: bool = False, what: str = "text"
) -> list[Text]:
    """Each text as tokens, without special tokens.

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
    with guarded(tokenizer.path, pieces[0] if pieces else ""):
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
    with guarded(tokenizer.path):
        encodings = tokenizer.plain.encode_batch(
            given, is_pretokenized=True, add_special_tokens=False
        )
    for encoding in encodings:
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
        with guarded(tokenizer.path):
            plain = tokenizer.plain
            return plain.encode(text, is_pretokenized=listed, add_special_tokens=False).ids

    return ids(["the", "cat"]) == ids("the cat") or ids(["the", " cat"]) != ids("the cat")


def parts(text: Text, room: int | None, stride: int, from_end: bool = False) -> list[Text]:
    """Windows of `room` tokens, each with `stride` of the one before; one where all fits.

    With `from_end` the first holds the last tokens, the next those before them, and so on.

    Raises:
        BedstoneError: `stride` leaves no room for new tokens.
    """
    if room is None or len(text) <= room:
        return [text]
    _check_stride(room, stride)
    starts = range(0, len(text) - stride, room - stride)
    if from_end:
        ends = [len(text) - start for start in starts]
        return [text.cut(max(end - room, 0), end) for end in ends]
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


@dataclass(frozen=True)
class Input:
    """One row for a network. T tokens.

    Attributes:
        ids: (T,) token ids, special tokens included.
        types: (T,) 0 for the first text, 1 for the second (`token_type_ids`).
        offsets: (T,) (start, end) characters in the text that a token is from; (0, 0) for special
            tokens. Of words, within the word.
        sources: (T,) 0 or 1 for the text that a token is from, None for special tokens.
        words: (T,) the index of the word that a token is of; None for special tokens.
    """

    ids: list[int]
    types: list[int]
    offsets: list[tuple[int, int]]
    sources: list[int | None]
    words: list[int | None]

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, start: int, end: int) -> "Input":
        """Tokens `start` to `end`."""
        kept = slice(start, end)
        return Input(
            self.ids[kept],
            self.types[kept],
            self.offsets[kept],
            self.sources[kept],
            self.words[kept],
        )


def text_input(
    tokenizer: Tokenizer, text: str, pair: str | None = None, *, special_names: bool = False
) -> Input:
    """A text or a pair as one row of any length.

    Raises:
        BedstoneError: a text is empty, far too long, or holds half a character.
    """
    pairs = None if pair is None else [pair]
    return text_batch(tokenizer, [text], pairs, special_names=special_names)[0][0]


def text_windows(
    tokenizer: Tokenizer,
    text: str,
    pair: str | None = None,
    *,
    limit: int,
    stride: int = 0,
    special_names: bool = False,
    from_end: bool = False,
) -> list[Input]:
    """A text or a pair as rows of at most `limit` tokens; see `text_batch`."""
    pairs = None if pair is None else [pair]
    return text_batch(
        tokenizer,
        [text],
        pairs,
        limit=limit,
        stride=stride,
        special_names=special_names,
        from_end=from_end,
    )[0]


def text_batch(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    limit: int | None = None,
    stride: int = 0,
    special_names: bool = False,
    from_end: bool = False,
) -> list[list[Input]]:
    """The rows of each text, or of each text with its pair.

    What is longer than `limit` tokens becomes windows. Of a pair the longer text is cut and the
    shorter stands whole in each; where the shorter takes more than half, it is cut too, and every
    part of one meets every part of the other.

    Args:
        from_end: whether windows begin at a text's end: the first then holds its last tokens.

    Raises:
        BedstoneError: a text is empty, far too long, or holds half a character; `stride` leaves
            no room for new tokens.
    """
    first = read_texts(tokenizer, texts, special_names)
    if pairs is None:
        frame = frame_of(tokenizer, 1)
        return [
            [_set(frame, [part]) for part in parts(row, frame.room(limit), stride, from_end)]
            for row in first
        ]
    frame = frame_of(tokenizer, 2)
    room = frame.room(limit)
    rows = []
    for one, two in zip(first, read_texts(tokenizer, pairs, special_names), strict=True):
        rooms: tuple[int | None, int | None] = (None, None)
        if room is not None and len(one) + len(two) > room:
            least = min(len(one), len(two), room // 2)
            rooms = (least, room - least) if len(one) <= len(two) else (room - least, least)
        # a text that fits whole is one part, whatever the stride
        sides = [parts(*each, stride, from_end) for each in zip((one, two), rooms, strict=True)]
        rows.append([_set(frame, each) for each in product(*sides)])
    return rows


def question_windows(
    tokenizer: Tokenizer, question: str, context: str, *, limit: int, stride: int = 0
) -> list[Input]:
    """A question with windows of its context; see `question_batch`."""
    return question_batch(tokenizer, [question], [context], limit=limit, stride=stride)[0]


def question_batch(
    tokenizer: Tokenizer,
    questions: Sequence[str],
    contexts: Sequence[str],
    *,
    limit: int,
    stride: int = 0,
) -> list[list[Input]]:
    """Each question, whole, with each window of its context, as for SQuAD.

    Raises:
        BedstoneError: as `text_batch`; or a question leaves no room for its context.
    """
    frame = frame_of(tokenizer, 2)
    room = frame.room(limit) or 0
    questions_read = read_texts(tokenizer, questions, False, "question")
    contexts_read = read_texts(tokenizer, contexts, False, "context")
    rows = []
    for text, question, context in zip(questions, questions_read, contexts_read, strict=True):
        if len(question) + min(stride + 1, len(context)) > room:
            raise BedstoneError(
                f"question: {text[:60]!r} has {len(question):,} tokens, which leave no "
                f"room for its context in rows of {limit:,} with {stride:,} shared. Shorten it, "
                "or raise the limit."
            )
        cut = parts(context, room - len(question), stride)
        rows.append([_set(frame, [question, part]) for part in cut])
    return rows


def word_windows(
    tokenizer: Tokenizer, words: Sequence[str], *, limit: int, stride: int = 0
) -> list[Input]:
    """Words, such as those to be tagged, as rows; see `word_batch`."""
    return word_batch(tokenizer, [words], limit=limit, stride=stride)[0]


def word_batch(
    tokenizer: Tokenizer, rows: Sequence[Sequence[str]], *, limit: int, stride: int = 0
) -> list[list[Input]]:
    """Lists of words as rows of at most `limit` tokens; no word is split.

    The ids are those of the words with a space between. Windows share at most `stride` tokens,
    whole words of them. A word may have no token (an empty one); one that is longer than a row
    goes on in the next.

    Raises:
        BedstoneError: no word has a token, a word holds half a character, `stride` is too large.
    """
    frame = frame_of(tokenizer, 1)
    room = frame.room(limit) or 0
    result = []
    for row in read_word_lists(tokenizer, rows):
        result.append([_set(frame, [row.cut(*span)]) for span in whole_words(row, room, stride)])
    return result


def read_words(windows: Sequence[Input]) -> list[list[int]]:
    """Where each word of a row is read: places of first sub-words, a list for each window.

    A word that several windows hold is read once, where it has most tokens on both sides.
    """
    best: dict[int, tuple[int, int, int, int]] = {}  # word: offset, -context, window, place
    for number, window in enumerate(windows):
        before = None
        for place, word in enumerate(window.words):
            if word is not None and word != before:
                around = min(place, len(window) - 1 - place)
                found = (window.offsets[place][0], -around, number, place)
                best[word] = min(best.get(word, found), found)
            before = word
    places: list[list[int]] = [[] for _ in windows]
    for _, _, number, place in best.values():
        places[number].append(place)
    return [sorted(each) for each in places]


def completion_input(tokenizer: Tokenizer, prompt: str, completion: str) -> tuple[Input, int]:
    """A prompt, its completion and the end token as one row; and where the targets begin.

    The prompt's ids are those that generation is fed; the completion's are read apart from it, so
    that they don't change them. An empty prompt gives a text to learn as it is.

    Returns:
        The row, and the place of its first token that is to be learnt.

    Raises:
        BedstoneError: the completion is empty, or the tokenizer has no end token.
    """
    if tokenizer.eos_id is None:
        raise BedstoneError(
            "tokenizer: has no end token (eos_token), so a model can't learn where to stop. Name "
            "one in tokenizer_config.json."
        )
    before = list(frame_of(tokenizer, 1).before[0])
    if (written := getattr(prompt, "ids", None)) is not None:  # by a chat template, which says all
        before = list(written)
    elif prompt:
        check_text(prompt, "prompt")
        before = before + tokenizer.encode(prompt)
    (read,) = read_texts(tokenizer, [completion], False, "completion")
    ids = [*before, *read.ids, tokenizer.eos_id]
    first, size = len(before), len(ids)
    none: list[int | None] = [None]
    row = Input(
        ids,
        [0] * size,
        [*[(0, 0)] * first, *read.offsets, (0, 0)],
        [*[0] * first, *[1] * len(read), None],
        [*none * first, *read.words, None],
    )
    return row, first


def pair_input(
    tokenizer: Tokenizer, first: Sequence[int], second: Sequence[int] | None = None
) -> tuple[list[int], list[int]]:
    """Ids and types of a text of tokens, or of two, with the special tokens around them."""
    texts = [first] if second is None else [first, second]
    frame = frame_of(tokenizer, len(texts))
    ids, types = list(frame.before[0]), list(frame.before[1])
    for number, text in enumerate(texts):
        after_ids, after_types = frame.after[number]
        ids += [*text, *after_ids]
        types += [*[frame.types[number]] * len(text), *after_types]
    return ids, types


def source_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """A source of an encoder-decoder: its special tokens around it, and the end token in any case.

    Raises:
        BedstoneError: the tokenizer has no end token.
    """
    return _ended(tokenizer, tokenizer.encode(text, special=True))


def target_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """A target of an encoder-decoder, as `source_ids`, by the tokenizer of targets."""
    return _ended(tokenizer.target, tokenizer.target.encode(text, special=True))


def _ended(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    if tokenizer.eos_id is None:
        raise BedstoneError(
            f"{tokenizer.path}: has no end token (eos_token), which every source and target ends "
            "with. Name one in tokenizer_config.json."
        )
    return ids if ids and ids[-1] == tokenizer.eos_id else [*ids, tokenizer.eos_id]


def special_ids(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids before and after every source and target, as `source_ids` has them."""
    frame = frame_of(tokenizer, 1)
    return tuple(frame.before[0]), tuple(_ended(tokenizer, frame.after[0][0]))


def _set(frame: SpecialTokenFrame, texts: Sequence[Text]) -> Input:
    """One row: the texts with the special tokens around them."""
    ids, types = frame.before
    offsets, bare = [(0, 0)] * len(ids), [None] * len(ids)
    sources: list[int | None] = [*bare]
    words: list[int | None] = [*bare]
    for source, text in enumerate(texts):
        size = len(text.ids)
        after_ids, after_types = frame.after[source]
        bare = [None] * len(after_ids)
        ids = ids + text.ids + after_ids
        types = types + [frame.types[source]] * size + after_types
        offsets = offsets + text.offsets + [(0, 0)] * len(after_ids)
        sources = [*sources, *[source] * size, *bare]
        words = [*words, *text.words, *bare]
    return Input(ids, types, offsets, sources, words)
