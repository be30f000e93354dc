"""Text as a network reads it: ids with what the tokenizer sets around them, and where from.

Training and use make their inputs here and nowhere else, so a model is served the very ids it was
trained on. Nothing is cut in silence: what is longer than a row becomes several windows, each with
`stride` tokens of the one before. The name of a special token inside a text is only text, unless
`special_names` is asked for (to fill a mask).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from bedstone.data.reading import (
    Frame,
    Text,
    check_text,
    frame_of,
    parts,
    read_texts,
    read_word_lists,
    whole_words,
)
from bedstone.data.tokenizer import Tokenizer
from bedstone.errors import BedstoneError


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
) -> list[Input]:
    """A text or a pair as rows of at most `limit` tokens; see `text_batch`."""
    pairs = None if pair is None else [pair]
    return text_batch(
        tokenizer, [text], pairs, limit=limit, stride=stride, special_names=special_names
    )[0]


def text_batch(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    limit: int | None = None,
    stride: int = 0,
    special_names: bool = False,
) -> list[list[Input]]:
    """The rows of each text, or of each text with its pair.

    What is longer than `limit` tokens becomes windows. Of a pair the longer text is cut and the
    shorter stands whole in each; where the shorter takes more than half, it is cut too, and every
    part of one meets every part of the other.

    Raises:
        BedstoneError: a text is empty, far too long, or holds half a character; `stride` leaves
            no room for new tokens.
    """
    first = read_texts(tokenizer, texts, special_names)
    if pairs is None:
        frame = frame_of(tokenizer, 1)
        return [
            [_set(frame, [part]) for part in parts(row, frame.room(limit), stride)] for row in first
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
        sides = [parts(*each, stride) for each in zip((one, two), rooms, strict=True)]
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
    asked = read_texts(tokenizer, questions, False, "question")
    given = read_texts(tokenizer, contexts, False, "context")
    rows = []
    for text, question, context in zip(questions, asked, given, strict=True):
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
    """Words, such as those whose tags are asked for, as rows; see `word_batch`."""
    return word_batch(tokenizer, [words], limit=limit, stride=stride)[0]


def word_batch(
    tokenizer: Tokenizer, rows: Sequence[Sequence[str]], *, limit: int, stride: int = 0
) -> list[list[Input]]:
    """Lists of words as rows of at most `limit` tokens; no word is parted.

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
    """A prompt, what is to follow it and the end token, as one row; and where training begins.

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
    if prompt:
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


def _set(frame: Frame, texts: Sequence[Text]) -> Input:
    """One row: the texts with what the tokenizer sets around them."""
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
