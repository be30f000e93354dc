"""Augmentation of text: new rows from old ones, with the same labels.

Easy data augmentation (Wei and Zou, 2019): synonyms, random insertion, swap and deletion, one
operation a new row; paraphrase by a model, and translation there and back by two (Sennrich et al.,
2016). Models are handed in as callables. A new row depends on the seed, the row, its number and the
number of the copy alone, not on other rows or their order.
"""

import io
import random
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, ClassVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bedstone.data.text.synonyms import Synonyms, read_synonyms
from bedstone.errors import BedstoneError, nearest
from bedstone.settings import Settings, share, whole

Candidates = Callable[[int], Sequence[str]]  # what may stand for the word at a place


@dataclass(frozen=True)
class Slot:
    """A word of the result.

    Attributes:
        word: as it is to be written.
        source: the word of the original that its tag comes from.
        place: the word of the original whose spacing and punctuation it takes; None for none.
    """

    word: str
    source: int
    place: int | None


@dataclass(frozen=True)
class Words:
    """Words of a text, and which of them may be edited.

    Attributes:
        words: of a text, without their punctuation.
        free: of each, whether it may be replaced or moved.
        loose: whether it may be deleted.
        gaps: before each, whether a word may be added there.
    """

    words: Sequence[str]
    free: Sequence[bool]
    loose: Sequence[bool]
    gaps: Sequence[bool]


def replace(text: Words, share: float, options: Candidates, rng: random.Random) -> list[Slot]:
    """Puts one of its `options` in the place of about `share` of the words, at least one."""
    slots = _same(text)
    places = [place for place, free in enumerate(text.free) if free]
    rng.shuffle(places)
    left = _amount(text, share)
    for place in places:
        if not left:
            break
        word = text.words[place]
        found = _fitting(word, place, options)
        if found:
            slots[place] = Slot(in_case_of(word, rng.choice(found)), place, place)
            left -= 1
    return slots


def insert(text: Words, share: float, options: Candidates, rng: random.Random) -> list[Slot]:
    """Adds, at random gaps, `options` of about `share` of the words, at least one."""
    gaps = [place for place, gap in enumerate(text.gaps) if gap and place]
    places = [place for place, free in enumerate(text.free) if free]
    rng.shuffle(places)
    added: dict[int, list[Slot]] = {}
    left = _amount(text, share) if gaps else 0
    for place in places:
        if not left:
            break
        found = _fitting(text.words[place], place, options)
        if found:
            added.setdefault(rng.choice(gaps), []).append(Slot(rng.choice(found), place, None))
            left -= 1
    return [part for slot in _same(text) for part in (*added.get(slot.source, ()), slot)]


def delete(text: Words, share: float, rng: random.Random) -> list[Slot]:
    """Drops each word with a chance of `share`, at least one and never all of them."""
    places = [place for place, loose in enumerate(text.loose) if loose]
    if len(text.words) < 2 or not places:
        return _same(text)
    dropped = [place for place in places if rng.random() < share] or [rng.choice(places)]
    rng.shuffle(dropped)
    gone = set(dropped[: len(text.words) - 1])
    slots = [slot for slot in _same(text) if slot.source not in gone]
    return _recased(text, slots)


def swap(text: Words, share: float, rng: random.Random) -> list[Slot]:
    """Exchanges two words, as often as about `share` of the words are many, at least once."""
    slots = _same(text)
    places = [place for place, free in enumerate(text.free) if free]
    if len(places) > 1:
        for _ in range(_amount(text, share)):
            one, other = rng.sample(places, 2)
            a, b = slots[one], slots[other]
            slots[one] = Slot(b.word, b.source, one)
            slots[other] = Slot(a.word, a.source, other)
    return _recased(text, slots)


def in_case_of(model: str, word: str) -> str:
    """`word` with a capital where `model` begins with one."""
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


def common(words: Sequence[str]) -> list[bool]:
    """Of each word, whether it is one that synonyms can stand for.

    A capital inside a text marks a name; digits and signs have no synonyms.
    """
    found = []
    for place, word in enumerate(words):
        tail = word[1:] if place == 0 and len(word) > 1 else word
        found.append(word.replace("-", "").isalpha() and tail == tail.lower())
    return found


@dataclass(frozen=True)
class Piece:
    """A word of a text with the space before it and the punctuation around it."""

    space: str
    lead: str
    word: str
    trail: str


def cut(text: str) -> tuple[list[Piece], str]:
    """The pieces of a text, and the space after the last; joined they are the text again."""
    pieces, start = [], 0
    for chunk in text.split():
        at = text.index(chunk, start)
        first, last = 0, len(chunk)
        while first < last and _is_mark(chunk[first]):
            first += 1
        while last > first and _is_mark(chunk[last - 1]):
            last -= 1
        pieces.append(Piece(text[start:at], chunk[:first], chunk[first:last], chunk[last:]))
        start = at + len(chunk)
    return pieces, text[start:]


def joined(pieces: Sequence[Piece], end: str, slots: Sequence[Slot]) -> str:
    """The text of an edit."""
    parts = []
    for slot in slots:
        if slot.place is None:
            parts.append(f" {slot.word}")
            continue
        piece = pieces[slot.place]
        # The space before a deleted first word stays, the one after it goes.
        space = piece.space if parts else pieces[0].space
        parts.append(f"{space}{piece.lead}{slot.word}{piece.trail}")
    return "".join(parts) + end


def text_words(pieces: Sequence[Piece], kept: frozenset[str]) -> Words:
    """The words of a text; those with letters that are not to be kept may be edited.

    A word with punctuation at it is not deleted, so that no punctuation is lost or left alone.
    """
    words = [piece.word for piece in pieces]
    free = [
        any(map(str.isalnum, piece.word))
        and piece.word.lower() not in kept
        and not (piece.lead[-1:] in ("'", "’") and len(piece.word) < 3)  # 's, 'll
        for piece in pieces
    ]
    loose = [
        may and not piece.lead and not piece.trail for may, piece in zip(free, pieces, strict=True)
    ]
    return Words(words, free, loose, [True] * len(words))


def tagged_words(words: Sequence[str], outside: Sequence[bool], kept: frozenset[str]) -> Words:
    """Tagged words; those outside of entities may be edited.

    The word before an entity is never deleted: with all words between them gone, two entities might
    become one. None is added inside of one.
    """
    free = [
        out and any(map(str.isalnum, word)) and word.lower() not in kept
        for word, out in zip(words, outside, strict=True)
    ]
    loose = [may and after for may, after in zip(free, [*outside[1:], True], strict=True)]
    gaps = [before or after for before, after in pairwise([True, *outside])]
    return Words(words, free, loose, gaps)


def _same(text: Words) -> list[Slot]:
    return [Slot(word, place, place) for place, word in enumerate(text.words)]


def _amount(text: Words, share: float) -> int:
    return max(1, round(share * len(text.words)))


def _fitting(word: str, place: int, options: Candidates) -> list[str]:
    return [
        other
        for other in options(place)
        if other.lower() != word.lower() and any(map(str.isalnum, other))
    ]


def _recased(text: Words, slots: list[Slot]) -> list[Slot]:
    """Moves the capital of a text's first word to the new first word, where that may be edited."""
    first = text.words[0] if text.words else ""
    if not first.istitle() or slots[0].source == 0 or not text.free[slots[0].source]:
        return slots
    head = slots[0]
    moved = [Slot(in_case_of(first, head.word), head.source, head.place), *slots[1:]]
    if first.startswith("I") and not first[1:2].isalpha():  # I, I'm
        return moved
    return [
        Slot(slot.word[:1].lower() + slot.word[1:], 0, slot.place) if slot.source == 0 else slot
        for slot in moved
    ]


def _is_mark(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "PS"


Propose = Callable[[list[str], int], Sequence[str]]  # words, a place -> words that fit there
Paraphrase = Callable[[list[str]], Sequence[str]]  # texts -> one paraphrase of each
Known = Mapping[tuple[str, str], str]  # by operation and text, what a model wrote for it

MARK = "augmented"  # the column that says how a row was made
# Of words, and how a row is marked that was made so.
SHARES = {"synonyms": "synonym", "insertion": "insertion", "deletion": "deletion", "swap": "swap"}
NEGATIONS = (
    "not no never none nothing nobody neither nor without cannot hardly barely can't couldn't "
    "didn't doesn't don't hadn't hasn't haven't isn't aren't wasn't weren't won't wouldn't "
    "shouldn't n't"
)


@dataclass(frozen=True)
class AugmentConfig(Settings):
    """How new rows are made from old ones.

    Attributes:
        copies: new rows a row, at most; each by one of the operations below. 0 makes none.
        synonyms: share of words that a synonym stands for; 0 leaves the operation out.
        insertion: share of words a synonym of which is added somewhere.
        deletion: share of words that are left out.
        swap: share of words that change places with another, in pairs.
        paraphrase: a model that says the text in other words: one that follows instructions, or
            an encoder-decoder trained for it; empty leaves it out.
        back_translate: two models, of translation to another language and back; empty leaves it
            out.
        thesaurus: a file of synonyms, or the folder of WordNet's database.
        fill: a masked language model that proposes words where the thesaurus has none.
        keep: words that are never touched; negations, since without them a label turns.
        seed: of all that is random.
    """

    copies: int = whole(0, default=0)
    synonyms: float = share(below_one=True, default=0.0)
    insertion: float = share(below_one=True, default=0.0)
    deletion: float = share(below_one=True, default=0.1)
    swap: float = share(below_one=True, default=0.1)
    paraphrase: str = ""
    back_translate: tuple[str, ...] = ()
    thesaurus: str = ""
    fill: str = ""
    keep: tuple[str, ...] = tuple(NEGATIONS.split())
    seed: int = 0

    section: ClassVar[str] = "augment."

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.back_translate) not in (0, 2) or not all(self.back_translate):
            raise BedstoneError(
                f"augment.back_translate: {list(self.back_translate)} was given; expected two "
                "models, [there, back], of translation to another language and back."
            )
        if not self.synonyms and not self.insertion and (self.thesaurus or self.fill):
            name = "thesaurus" if self.thesaurus else "fill"
            raise BedstoneError(
                f"augment.{name}: is named, but nothing uses it; set augment.synonyms=0.1, the "
                "share of words to replace."
            )


class Augmenter:
    """Makes copies of one row.

    Args:
        config: what to do.
        columns: the columns of text to edit; None finds them: `tokens` with tags, else `question`
            beside `context` (which answers point into, so it stays), else `text`.
        tags: the column of tags of `tokens`.
        outside: the tag of words outside of entities; None says O, and 0 for numbers.
        propose: words that fit at a place, the best first.
        paraphrase: one paraphrase of each text, which must not depend on the others.
        back_translate: each text, translated there and back, likewise.

    Raises:
        BedstoneError: an operation lacks what it needs, or the thesaurus can't be read.
    """

    def __init__(
        self,
        config: AugmentConfig,
        *,
        columns: Sequence[str] | None = None,
        tags: str = "ner_tags",
        outside: str | int | None = None,
        propose: Propose | None = None,
        paraphrase: Paraphrase | None = None,
        back_translate: Paraphrase | None = None,
    ) -> None:
        self.config, self.columns, self.tags, self.outside = config, columns, tags, outside
        self.propose = propose
        given = {"paraphrase": paraphrase, "back_translate": back_translate}
        self.models = {name: model for name, model in given.items() if model is not None}
        self.kept = frozenset(word.lower() for word in config.keep)
        self.known: Synonyms = read_synonyms(config.thesaurus) if config.thesaurus else _unknown
        if (config.synonyms or config.insertion) and not config.thesaurus and propose is None:
            name = "synonyms" if config.synonyms else "insertion"
            raise BedstoneError(
                f"augment.{name}: needs words to take; name a thesaurus (augment.thesaurus=FILE) "
                f"or a masked language model (augment.fill=MODEL), or set augment.{name}=0."
            )
        for name in given:
            if (named := getattr(config, name)) and name not in self.models:
                raise BedstoneError(
                    f"augment.{name}: {named} was named, but no function that writes was handed "
                    f"in; `{name}=` takes one."
                )
        self.operations = [mark for name, mark in SHARES.items() if getattr(config, name)]
        self.operations += self.models
        if config.copies and not self.operations:
            raise BedstoneError(
                "augment.copies: there is no operation to make them by; set one of "
                f"{', '.join(SHARES)} above 0, or name a model to paraphrase."
            )

    def copies(
        self, row: Mapping[str, Any], number: int, known: Known | None = None
    ) -> list[dict[str, Any]]:
        """New rows of one row: its own columns, the edited ones changed, and `augmented`.

        An operation that changes nothing (one word alone, no synonym known) gives way to the
        next, so there may be fewer than `copies`.

        Args:
            row: its columns by name.
            number: its place in the data; another number makes other rows.
            known: what models wrote already.

        Raises:
            BedstoneError: a column is missing or holds something else than it should.
        """
        names = self.names(row, number)
        made: list[dict[str, Any]] = []
        used: set[str] = set()
        for copy in range(self.config.copies):
            rng = self._rng(number, copy)
            for operation in self._order(rng):
                if operation in self.models and operation in used:
                    continue  # there is but one
                used.add(operation)
                if names == ["tokens"]:
                    found = self._tagged(row, number, operation, rng)
                else:
                    found = self._texts(row, names, operation, rng, known or {})
                if found and not any(found.items() <= old.items() for old in made):
                    made.append({**row, **found, MARK: operation})
                    break
        return made

    def to_write(self, row: Mapping[str, Any], number: int) -> list[tuple[str, str]]:
        """The operations by models, and the texts for them, that `copies` of a row will need."""
        names = self.names(row, number)
        orders = [self._order(self._rng(number, copy)) for copy in range(self.config.copies)]
        firsts = {order[0] for order in orders if order[0] in self.models}
        if names == ["tokens"]:
            return []
        return [(each, row[name]) for each in sorted(firsts) for name in names]

    def _rng(self, number: int, copy: int) -> random.Random:
        return random.Random(f"{self.config.seed}/{number}/{copy}")

    def _order(self, rng: random.Random) -> list[str]:
        """All operations in the order in which they are tried."""
        return rng.sample(self.operations, len(self.operations))

    def names(self, row: Mapping[str, Any], number: int) -> list[str]:
        """The columns to edit, each there and of the right kind."""
        if self.columns is not None:
            names = list(self.columns)
        elif "tokens" in row and self.tags in row:
            names = ["tokens"]
        elif "question" in row and "context" in row:
            names = ["question"]
        else:
            names = ["text"]
        for name in names if names != ["tokens"] else ["tokens", self.tags]:
            if name not in row:
                raise BedstoneError(
                    f"augment: row {number} has no column {name!r}{nearest(name, row)}. "
                    "Name the columns of text."
                )
        for name in names:
            value, wanted = row[name], "text"
            fits = isinstance(value, str)
            if names == ["tokens"]:
                wanted = "a list of words"
                fits = isinstance(value, list | tuple) and all(isinstance(w, str) for w in value)
            if not fits:
                raise BedstoneError(
                    f"augment: row {number}, column {name!r}: {_short(value)}; expected {wanted}."
                )
        return names

    def _texts(
        self,
        row: Mapping[str, Any],
        names: Sequence[str],
        operation: str,
        rng: random.Random,
        known: Known,
    ) -> dict[str, Any] | None:
        """The columns of text after an operation; None where it changed none of them."""
        found = {}
        for name in names:
            text = row[name]
            if operation in self.models:
                key = (operation, text)
                found[name] = known[key] if key in known else self.written([key])[key]
                continue
            pieces, end = cut(text)
            words = text_words(pieces, self.kept)
            slots = self._edited(operation, words, rng, single=False)
            found[name] = joined(pieces, end, slots)
        return found if any(found[name] != row[name] for name in names) else None

    def _tagged(
        self, row: Mapping[str, Any], number: int, operation: str, rng: random.Random
    ) -> dict[str, Any] | None:
        """Tokens and all columns of tags after an operation; None where it changed nothing."""
        if operation in self.models:
            return None
        words = row["tokens"]
        columns = [name for name in row if name == self.tags or name.endswith("_tags")]
        for name in columns:
            if not isinstance(row[name], list | tuple) or len(row[name]) != len(words):
                raise BedstoneError(
                    f"augment: row {number}, column {name!r}: {_short(row[name])}; expected a "
                    f"tag for each of the {len(words)} tokens."
                )
        outside = [
            tag == (0 if isinstance(tag, int) else "O")
            if self.outside is None
            else tag == self.outside
            for tag in row[self.tags]
        ]
        text = tagged_words(words, outside, self.kept)
        slots = self._edited(operation, text, rng, single=True)
        found = {name: [row[name][slot.source] for slot in slots] for name in columns}
        found["tokens"] = [slot.word for slot in slots]
        return found if found["tokens"] != list(words) else None

    def _edited(
        self, operation: str, text: Words, rng: random.Random, *, single: bool
    ) -> list[Slot]:
        share = getattr(self.config, next(n for n, mark in SHARES.items() if mark == operation))
        if operation == "deletion":
            return delete(text, share, rng)
        if operation == "swap":
            return swap(text, share, rng)
        edit = replace if operation == "synonym" else insert
        return edit(text, share, self._options(text.words, single), rng)

    def _options(self, words: Sequence[str], single: bool) -> Candidates:
        """The candidates for each word; for tagged words, single words alone."""
        usual = common(words)

        def options(place: int) -> Sequence[str]:
            if not usual[place]:
                return ()
            found: Sequence[str] = self.known(words[place].lower())
            if not found and self.propose is not None:
                found = self.propose(list(words), place)
            return [other for other in found if not single or len(other.split()) == 1]

        return options

    def written(self, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """What models write for texts, by operation and text; the text itself where it is blank."""
        found = {key: key[1] for key in wanted}
        for name, model in self.models.items():
            olds = [text for each, text in found if each == name and text.strip()]
            news = list(model(olds)) if olds else []
            if len(news) != len(olds) or not all(isinstance(text, str) for text in news):
                raise BedstoneError(
                    f"augment.{name}: {len(olds)} texts were handed over and {_short(news)} came "
                    "back; expected a text for each."
                )
            pairs = zip(olds, news, strict=True)
            found |= {(name, old): new for old, new in pairs if new.strip()}
        return found


def _unknown(word: str) -> tuple[str, ...]:
    return ()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


BATCH = 32  # rows whose texts a model is given at one time


def augment(
    rows: Iterable[Mapping[str, Any]], config: AugmentConfig, *, start: int = 0, **parts: Any
) -> Iterator[dict[str, Any]]:
    """Each row as it is, and after it its new rows, marked in the column `augmented`.

    Args:
        rows: rows by column.
        config: what to do.
        start: the number of the first row, where others hold those before it.
        parts: `columns`, `tags`, `outside`, `propose`, `paraphrase` and `back_translate` of
            `Augmenter`.

    Raises:
        BedstoneError: as `Augmenter` does, at once; a row that doesn't fit, when it is read.
    """
    maker = Augmenter(config, **parts)
    return (new for row, made in _all_copies(maker, rows, start) for new in ({**row}, *made))


def sample(
    rows: Iterable[Mapping[str, Any]], config: AugmentConfig, count: int = 5, **parts: Any
) -> str:
    """A table of the first `count` rows that are changed: before, after and how.

    Raises:
        BedstoneError: as `augment` does.
    """
    maker = Augmenter(config, **parts)
    table = Table(width=100)
    for name in ("row", "how", "text"):
        table.add_column(name, ratio=1 if name == "text" else None)
    changed = 0
    for number, (row, made) in enumerate(_all_copies(maker, rows)):
        if changed == count:
            break
        if made:
            changed += 1
            names = maker.names(row, number)
            table.add_row(str(number), "", Text(_shown(row, names)))
            for new in made:
                table.add_row("", new[MARK], Text(_shown(new, names)))
            table.add_section()
    console = Console(file=io.StringIO(), width=100)
    console.print(table if changed else "No row was changed.")
    return console.file.getvalue()  # type: ignore[attr-defined]


def _all_copies(
    maker: Augmenter, rows: Iterable[Mapping[str, Any]], start: int = 0
) -> Iterator[tuple[Mapping[str, Any], list[dict[str, Any]]]]:
    """Each row with its copies; models write for many rows at a time."""
    numbered = enumerate(rows, start)
    while batch := list(islice(numbered, BATCH)):
        known = maker.written([key for number, row in batch for key in maker.to_write(row, number)])
        for number, row in batch:
            yield row, maker.copies(row, number, known)


def _shown(row: Mapping[str, Any], names: Sequence[str]) -> str:
    values = [row[name] if isinstance(row[name], str) else " ".join(row[name]) for name in names]
    return "\n".join(value if len(value) <= 300 else value[:299] + "…" for value in values)
