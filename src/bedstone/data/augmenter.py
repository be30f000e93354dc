"""One row in, new rows out: what to do is an `AugmentConfig`, who does it an `Augmenter`.

A new row depends on the seed, the row, its number and the number of the copy alone: neither on
other rows nor on their order, so any number of workers makes the same.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bedstone.checks import at_least
from bedstone.data import word_edits
from bedstone.data.synonyms import Synonyms, read_synonyms
from bedstone.data.word_edits import Slot, Words
from bedstone.errors import BedstoneError, nearest

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
            pieces, end = word_edits.cut(text)
            words = word_edits.text_words(pieces, self.kept)
            slots = self._edited(operation, words, rng, single=False)
            found[name] = word_edits.joined(pieces, end, slots)
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
        text = word_edits.tagged_words(words, outside, self.kept)
        slots = self._edited(operation, text, rng, single=True)
        found = {name: [row[name][slot.source] for slot in slots] for name in columns}
        found["tokens"] = [slot.word for slot in slots]
        return found if found["tokens"] != list(words) else None

    def _edited(
        self, operation: str, text: Words, rng: random.Random, *, single: bool
    ) -> list[Slot]:
        share = getattr(self.config, next(n for n, mark in SHARES.items() if mark == operation))
        if operation == "deletion":
            return word_edits.delete(text, share, rng)
        if operation == "swap":
            return word_edits.swap(text, share, rng)
        edit = word_edits.replace if operation == "synonym" else word_edits.insert
        return edit(text, share, self._options(text.words, single), rng)

    def _options(self, words: Sequence[str], single: bool) -> word_edits.Candidates:
        """What may stand for a word; of tagged words, one word alone."""
        usual = word_edits.common(words)

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
