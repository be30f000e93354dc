"""One row in, new rows out: what to do is an `AugmentConfig`, who does it an `Augmenter`.

A new row depends on the seed, the row, its number and the number of the copy alone: neither on
other rows nor on their order, so any number of workers makes the same.
"""

import io
import json
import random
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bedstone.errors import BedstoneError, nearest
from bedstone.settings import at_least

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
    """What may be edited.

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
    """A word of a text with what stands around it: space before, punctuation at both ends."""

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
    """What may be edited of a text: words that have letters and are not to be kept.

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
    """What may be edited of tagged words: those outside of entities.

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
    """The capital stays at the head of the text: the word that comes there gets it, where it may
    be touched, and the one that left gives it up."""
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


# Where synonyms come from: a thesaurus file of one's own, or the database of WordNet.
#
# A thesaurus is a JSON object of lists, or lines `word: other, another` or
# `word<TAB>other<TAB>...`. WordNet (Miller, 1995; file formats in its manual page wndb) is a folder
# of `index.*` and `data.*`; Debian and Ubuntu have it as the package wordnet-base, in
# /usr/share/wordnet.
#
# Only the very form of a word is looked up: of an inflected one, the synonyms would be base forms
# and the sentence would no longer agree.

Synonyms = Callable[[str], tuple[str, ...]]  # of a word in lower case; () where none is known

PARTS = ("noun", "verb", "adj", "adv")
SENSES = 2  # of a word, the most frequent ones; rarer ones seldom fit

Sense = tuple[str, int]  # part of speech, offset in its data

# WordNet knows these as rare nouns and verbs (`in` as indium, `does` as plural of doe).
FUNCTION_WORDS = (
    "a about after all am an and any are as at back be been before being but by can could did do "
    "does done down each even few for from get go had has have having he her here hers him his "
    "how i if in into is it its just like may me might mine more most much must my no nor not now "
    "of off on once one only or other our out over own same shall she should so some such than "
    "that the their them then there these they this those through to too two under until up upon "
    "us very was we well were what when where which while who whom why will with would you your "
)


def read_synonyms(path: str | Path) -> Synonyms:
    """The synonyms of a thesaurus file or a folder of WordNet's database.

    Raises:
        BedstoneError: it can't be read, or is neither.
    """
    path = Path(path)
    if path.is_dir():
        return WordNet(path)
    try:
        text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode()
    except OSError as error:
        raise BedstoneError(
            f"{path}: the thesaurus can't be read ({error.strerror}); expected a file of "
            "`word: other, another` lines, TSV or JSON, or the folder of WordNet's database."
        ) from error
    except UnicodeDecodeError as error:
        raise BedstoneError(f"{path}: is not UTF-8 (byte {error.start:,}); save it so.") from error
    words = _from_json(path, text) if path.suffix == ".json" else _from_lines(path, text)
    if not words:
        raise BedstoneError(f"{path}: the thesaurus holds no words.")
    return lambda word: words.get(word, ())


class WordNet:
    """Words of the same synset, of the most frequent senses of a word's most frequent part of
    speech. Names are left out, and irregular forms (`saw` is seldom the tool).

    Raises:
        BedstoneError: the folder lacks its files, or they don't belong together.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data: dict[str, bytes] = {}
        self.senses: dict[str, list[Sense]] = {}
        tagged: dict[str, int] = {}  # senses found in tagged text, of the part that has most
        skipped = set(FUNCTION_WORDS.split())
        for part in PARTS:
            try:
                self.data[part] = (folder / f"data.{part}").read_bytes()
                index = (folder / f"index.{part}").read_text(encoding="utf-8")
                forms = folder / f"{part}.exc"
                lines = forms.read_text(encoding="utf-8").splitlines() if forms.exists() else []
            except (OSError, UnicodeDecodeError) as error:
                raise BedstoneError(
                    f"{folder}: is not a folder of WordNet's database: index.{part} or "
                    f"data.{part} can't be read. It needs both for {', '.join(PARTS)}."
                ) from error
            skipped |= {line.partition(" ")[0] for line in lines}
            for number, line in enumerate(index.splitlines(), 1):
                if line.startswith("  "):  # the licence
                    continue
                word, count, offsets = self._entry(part, line.split(), number)
                if count > tagged.get(word, -1):
                    tagged[word] = count
                    self.senses[word] = [(part, offset) for offset in offsets[:SENSES]]
        for word in skipped:
            self.senses.pop(word, None)

    def _entry(self, part: str, fields: list[str], number: int) -> tuple[str, int, list[int]]:
        """lemma, pos, synsets, p, p pointers, senses, tagged senses, offsets of the synsets."""
        try:
            after = 4 + int(fields[3])
            count, offsets = int(fields[after + 1]), [int(item) for item in fields[after + 2 :]]
            if len(offsets) != int(fields[2]):
                raise ValueError("another number of synsets than it says")
        except (IndexError, ValueError) as error:
            raise BedstoneError(
                f"{self.folder / f'index.{part}'}: line {number:,} is not WordNet's ({error}); "
                "fetch the database again."
            ) from error
        return fields[0], count, offsets

    def __call__(self, word: str) -> tuple[str, ...]:
        others = (other for sense in self.senses.get(word, ()) for other in self._synset(*sense))
        return tuple(o for o in _others(word, others) if len(o) > 1 and o == o.lower())

    def _synset(self, part: str, offset: int) -> list[str]:
        """offset, file, kind, words in hexadecimal, then each word and a number."""
        data = self.data[part]
        end = data.find(b"\n", offset)
        fields = data[offset:end].decode("utf-8", "replace").split(" ")
        if offset >= len(data) or not fields[0].isdigit() or int(fields[0]) != offset:
            raise BedstoneError(
                f"{self.folder}: index.{part} and data.{part} are not of one version of WordNet; "
                "fetch the database again."
            )
        words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
        return [word.partition("(")[0].replace("_", " ") for word in words]


def _from_json(path: Path, text: str) -> dict[str, tuple[str, ...]]:
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BedstoneError(f"{path}: is not valid JSON ({error}).") from error
    if not isinstance(loaded, dict):
        raise BedstoneError(f'{path}: expected an object such as {{"film": ["movie"]}}.')
    return _merged((word, _listed(path, word, others)) for word, others in loaded.items())


def _listed(path: Path, word: str, others: Any) -> list[str]:
    if isinstance(others, str):
        return others.split(",")
    if isinstance(others, list) and all(isinstance(other, str) for other in others):
        return others
    raise BedstoneError(f"{path}: {word!r} has {others!r}; expected a list of words.")


def _from_lines(path: Path, text: str) -> dict[str, tuple[str, ...]]:
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        mark = "\t" if "\t" in line else ":"
        word, found, others = line.partition(mark)
        if not found or not word.strip():
            raise BedstoneError(
                f"{path}: line {number:,} is {line[:60]!r}; expected `word: other, another` or "
                "tabs between them."
            )
        pairs.append((word, others.replace("\t", ",").split(",")))
    return _merged(pairs)


def _merged(pairs: Iterable[tuple[str, Iterable[str]]]) -> dict[str, tuple[str, ...]]:
    words: dict[str, tuple[str, ...]] = {}
    for word, others in pairs:
        word = word.strip().lower()
        words[word] = _others(word, [*words.get(word, ()), *others])
    return words


def _others(word: str, others: Iterable[str]) -> tuple[str, ...]:
    """Each once, in their order, without the word itself."""
    stripped = dict.fromkeys(" ".join(other.split()) for other in others)
    return tuple(other for other in stripped if other and other.lower() != word)


Propose = Callable[[list[str], int], Sequence[str]]  # words, a place -> words that fit there
Paraphrase = Callable[[list[str]], Sequence[str]]  # texts -> one paraphrase of each

MARK = "augmented"  # the column that says how a row was made
# Of words, and how a row is marked that was made so.
SHARES = {"synonyms": "synonym", "insertion": "insertion", "deletion": "deletion", "swap": "swap"}
NEGATIONS = (
    "not no never none nothing nobody neither nor without cannot hardly barely can't couldn't "
    "didn't doesn't don't hadn't hasn't haven't isn't aren't wasn't weren't won't wouldn't "
    "shouldn't n't"
)


@dataclass(frozen=True)
class AugmentConfig:
    """New rows from old ones.

    Attributes:
        copies: new rows a row, at most; each by one of the operations below. 0 makes none.
        synonyms: share of words that a synonym stands for; 0 leaves the operation out.
        insertion: share of words a synonym of which is added somewhere.
        deletion: share of words that are left out.
        swap: share of words that change places with another, in pairs.
        paraphrase: a model that says the text in other words; empty leaves it out.
        thesaurus: a file of synonyms, or the folder of WordNet's database.
        fill: a masked language model that proposes words where the thesaurus has none.
        keep: words that are never touched; negations, since without them a label turns.
        seed: of all that is random.
    """

    copies: int = 0
    synonyms: float = 0.0
    insertion: float = 0.0
    deletion: float = 0.1
    swap: float = 0.1
    paraphrase: str = ""
    thesaurus: str = ""
    fill: str = ""
    keep: tuple[str, ...] = tuple(NEGATIONS.split())
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, 0, "copies", prefix="augment.")
        for name in SHARES:
            if not 0 <= getattr(self, name) < 1:
                raise BedstoneError(
                    f"augment.{name}: {getattr(self, name)} was given; it is a share of words, "
                    "from 0 to below 1."
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
    ) -> None:
        self.config, self.columns, self.tags, self.outside = config, columns, tags, outside
        self.propose, self.paraphrase = propose, paraphrase
        self.kept = frozenset(word.lower() for word in config.keep)
        self.known: Synonyms = read_synonyms(config.thesaurus) if config.thesaurus else _unknown
        if (config.synonyms or config.insertion) and not config.thesaurus and propose is None:
            name = "synonyms" if config.synonyms else "insertion"
            raise BedstoneError(
                f"augment.{name}: needs words to take; name a thesaurus (augment.thesaurus=FILE) "
                f"or a masked language model (augment.fill=MODEL), or set augment.{name}=0."
            )
        if config.paraphrase and paraphrase is None:
            raise BedstoneError(
                f"augment.paraphrase: {config.paraphrase} was named, but no paraphraser was "
                "handed in; `paraphrase=` takes one."
            )
        self.operations = [mark for name, mark in SHARES.items() if getattr(config, name)]
        if paraphrase is not None:
            self.operations.append("paraphrase")
        if config.copies and not self.operations:
            raise BedstoneError(
                "augment.copies: there is no operation to make them by; set one of "
                f"{', '.join(SHARES)} above 0, or name a model to paraphrase."
            )

    def copies(
        self, row: Mapping[str, Any], number: int, said: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """New rows of one row: its own columns, the edited ones changed, and `augmented`.

        An operation that changes nothing (one word alone, no synonym known) gives way to the
        next, so there may be fewer than `copies`.

        Args:
            row: its columns by name.
            number: its place in the data; another number makes other rows.
            said: paraphrases that are known already.

        Raises:
            BedstoneError: a column is missing or holds something else than it should.
        """
        names = self.names(row, number)
        made: list[dict[str, Any]] = []
        rephrased = False
        for copy in range(self.config.copies):
            rng = self._rng(number, copy)
            for operation in self._order(rng):
                if operation == "paraphrase" and rephrased:
                    continue  # there is but one
                rephrased |= operation == "paraphrase"
                if names == ["tokens"]:
                    found = self._tagged(row, number, operation, rng)
                else:
                    found = self._texts(row, names, operation, rng, said or {})
                if found and not any(found.items() <= old.items() for old in made):
                    made.append({**row, **found, MARK: operation})
                    break
        return made

    def asked(self, row: Mapping[str, Any], number: int) -> list[str]:
        """The texts of a row whose paraphrases `copies` will want."""
        names = self.names(row, number)
        orders = [self._order(self._rng(number, copy)) for copy in range(self.config.copies)]
        if names == ["tokens"] or not any(order[0] == "paraphrase" for order in orders):
            return []
        return [row[name] for name in names]

    def _rng(self, number: int, copy: int) -> random.Random:
        return random.Random(f"{self.config.seed}/{number}/{copy}")

    def _order(self, rng: random.Random) -> list[str]:
        """All operations, the one to try first first."""
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
        said: Mapping[str, str],
    ) -> dict[str, Any] | None:
        """The columns of text after an operation; None where it changed none of them."""
        found = {}
        for name in names:
            text = row[name]
            if operation == "paraphrase":
                found[name] = said[text] if text in said else self.paraphrased([text])[text]
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
        if operation == "paraphrase":
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
        """What may stand for a word; of tagged words, one word alone."""
        usual = common(words)

        def options(place: int) -> Sequence[str]:
            if not usual[place]:
                return ()
            found: Sequence[str] = self.known(words[place].lower())
            if not found and self.propose is not None:
                found = self.propose(list(words), place)
            return [other for other in found if not single or len(other.split()) == 1]

        return options

    def paraphrased(self, texts: list[str]) -> dict[str, str]:
        """A paraphrase of each text; the text itself where there is none."""
        assert self.paraphrase is not None
        asked = [text for text in dict.fromkeys(texts) if text.strip()]
        told = list(self.paraphrase(asked)) if asked else []
        if len(told) != len(asked) or not all(isinstance(text, str) for text in told):
            raise BedstoneError(
                f"augment.paraphrase: {len(asked)} texts were handed over and {_short(told)} came "
                "back; expected a text for each."
            )
        better = {old: new if new.strip() else old for old, new in zip(asked, told, strict=True)}
        return {text: better.get(text, text) for text in texts}


def _unknown(word: str) -> tuple[str, ...]:
    return ()


def _short(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= 60 else told[:59] + "…"


# New rows of text from those there are, with the same labels.
#
# Easy data augmentation (Wei and Zou, 2019): synonyms, random insertion, swap and deletion, one
# operation a new row; and paraphrase by a model. What models do is handed in as callables.

BATCH = 32  # rows whose paraphrases are asked for at one time


def augment(
    rows: Iterable[Mapping[str, Any]], config: AugmentConfig, *, start: int = 0, **parts: Any
) -> Iterator[dict[str, Any]]:
    """Each row as it is, and after it its new rows, marked in the column `augmented`.

    Args:
        rows: rows by column.
        config: what to do.
        start: the number of the first row, where others hold those before it.
        parts: `columns`, `tags`, `outside`, `propose`, `paraphrase` of `Augmenter`.

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
    """Each row with its copies; paraphrases are asked for many rows at a time."""
    numbered = enumerate(rows, start)
    while batch := list(islice(numbered, BATCH)):
        texts = [text for number, row in batch for text in maker.asked(row, number)]
        said = maker.paraphrased(texts) if texts else {}
        for number, row in batch:
            yield row, maker.copies(row, number, said)


def _shown(row: Mapping[str, Any], names: Sequence[str]) -> str:
    values = [row[name] if isinstance(row[name], str) else " ".join(row[name]) for name in names]
    return "\n".join(value if len(value) <= 300 else value[:299] + "…" for value in values)
