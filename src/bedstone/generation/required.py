"""Words that must occur: how far a continuation is with them, and which tokens bring one nearer.

A word is a token sequence, or several of which one is enough (a disjunction: spellings,
inflections). Each occurrence serves one word: the same word twice needs two, and "New York" doesn't
serve "New" as well. A word that is given by its text stands alone: "sea" isn't found in "season",
whose tokens may begin with its own.

An automaton over all ways to share tokens out between words says of any continuation the fewest
tokens that complete it; its states are made as they are met. Beams are chosen from banks by that
number (Post and Vilar, 2018: dynamic beam allocation), so that unlikely words find a place early,
and a beam that couldn't be completed in the room that is left is dropped: what ends has all words.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from bedstone.data.text.glossary import Glossary, Term, is_alone
from bedstone.errors import BedstoneError
from bedstone.reading import shown

if TYPE_CHECKING:
    from bedstone.data.text.tokenizer import Tokenizer

Ids = tuple[int, ...]
Word = tuple[Ids, ...]  # alternatives
# Ways that are still open: the words to come (by number, sorted) and the tokens of one begun.
State = frozenset[tuple[Ids, Ids]]
WAYS = 64  # at most that a state keeps: those nearest to the end
START = -1  # before the ids of an alternative: it stands at the beginning of a text alone
CLOSED = -2  # behind the ids of an alternative: no token that goes on with a word follows
OTHER, JOINING = -3, -4  # tokens that no word has: any, and those that go on with one
BEFORE = (("a", " "), ("", ""), ("(", ""))  # where words stand: in a text, at its beginning, joined
C = TypeVar("C")


class RequiredWords:
    """The automaton of some words.

    Args:
        words: each with its alternatives, one of which at least may stand anywhere; the same one
            twice must occur twice.
        joining: tokens that go on with the word before them.
    """

    def __init__(self, words: Sequence[Word], joining: frozenset[int] = frozenset()) -> None:
        self._words = list(dict.fromkeys(tuple(dict.fromkeys(word)) for word in words))
        numbers = {word: number for number, word in enumerate(self._words)}
        unmet = sorted(numbers[tuple(dict.fromkeys(word))] for word in words)
        self._joining = joining
        self._least = [min(_size(ids) for ids in word if ids[0] != START) for word in self._words]
        self._tokens = frozenset(token for word in self._words for ids in word for token in ids)
        self._known: dict[tuple[State, int], State] = {}
        self._needed: dict[State, int] = {}
        self._wanted: dict[State, Ids] = {}
        self.start: State = frozenset({(tuple(unmet), ())})

    def after(self, state: State, ids: Iterable[int]) -> State:
        """The state after more tokens."""
        for token in ids:
            if token not in self._tokens:
                token = JOINING if token in self._joining else OTHER
            key = state, token
            if key not in self._known:
                self._known[key] = self._next(state, token)
            state = self._known[key]
        return state

    def needed(self, state: State) -> int:
        """The fewest tokens that complete all words; 0 where they are complete."""
        if state not in self._needed:
            self._needed[state] = min(self._distance(*way) for way in state)
        return self._needed[state]

    def wanted(self, state: State) -> Ids:
        """Tokens that bring the words nearer to their end."""
        if state not in self._wanted:
            least = self.needed(state)
            self._wanted[state] = tuple(
                token
                for token in sorted(self._tokens)
                if token != START and self.needed(self.after(state, [token])) < least
            )
        return self._wanted[state]

    def _next(self, state: State, token: int) -> State:
        found = set()
        for unmet, begun in (*state, *self._closed(state, token)):
            if not begun:
                found.add((unmet, begun))
            longer = (*begun, token)
            for number in set(unmet):
                for ids in self._words[number]:
                    if ids == longer:
                        found.add((_less(unmet, number), ()))
                    elif ids[: len(longer)] == longer:
                        found.add((unmet, longer))
        nearest = sorted(found, key=lambda way: (self._distance(*way), way))
        return frozenset(nearest[:WAYS])

    def _closed(self, state: State, token: int) -> Iterator[tuple[Ids, Ids]]:
        """Ways whose word ends where the token comes."""
        if token == JOINING or token in self._joining:
            return
        for unmet, begun in state:
            for number in set(unmet):
                if begun and (*begun, CLOSED) in self._words[number]:
                    yield _less(unmet, number), ()

    def _distance(self, unmet: Ids, begun: Ids) -> int:
        whole = sum(self._least[number] for number in unmet)
        if not begun:
            return whole
        return whole + min(
            _size(ids) - _size(begun) - self._least[number]
            for number in set(unmet)
            for ids in self._words[number]
            if ids[: len(begun)] == begun
        )


def _size(ids: Ids) -> int:
    """Tokens of an alternative, without marks."""
    return sum(token >= 0 for token in ids)


def _less(unmet: Ids, number: int) -> Ids:
    left = list(unmet)
    left.remove(number)
    return tuple(left)


@lru_cache(1024)
def required_words(
    words: tuple[Word, ...], joining: frozenset[int] = frozenset()
) -> RequiredWords | None:
    """The automaton of some words, made once; None of none."""
    return RequiredWords(words, joining) if words else None


def in_turn(candidates: Iterable[tuple[int, C]]) -> list[tuple[int, C]]:
    """Candidates by bank, the best of each bank first, then the second of each.

    Args:
        candidates: (tokens needed, candidate), best first.

    Returns:
        (rank within its bank, candidate); of equal ranks the one that needs fewest tokens first.
    """
    ranks: dict[int, int] = {}
    placed = []
    for needed, candidate in candidates:
        rank = ranks.get(needed, 0)
        ranks[needed] = rank + 1
        placed.append((rank, needed, candidate))
    placed.sort(key=lambda each: each[:2])
    return [(rank, candidate) for rank, _, candidate in placed]


def parse_words(value: object, name: str, least: int = 0) -> tuple[Word, ...]:
    """Words of `force_words_ids`: lists of ids, or lists of such lists, of which one is enough.

    Args:
        least: the least id there is.

    Raises:
        BedstoneError: it is something else.
    """
    words: Sequence[Any] = value if isinstance(value, list | tuple) else [None]
    made = []
    for word in words:
        several = isinstance(word, list | tuple) and all(isinstance(x, list | tuple) for x in word)
        choices: Sequence[Any] = word if several else [word]
        if not choices or not all(
            isinstance(ids, list | tuple)
            and ids
            and all(type(token) is int and token >= least for token in ids)
            for ids in choices
        ):
            raise BedstoneError(
                f"{name}: {shown(word if words is value else value)} was given; expected a list of "
                "words, each a list of token ids, or a list of such lists of which one is enough."
            )
        made.append(tuple(tuple(ids) for ids in choices))
    return tuple(made)


def words_of(
    tokenizer: "Tokenizer", texts: Iterable[str | Sequence[str]], name: str
) -> tuple[Word, ...]:
    """Words that must occur by their text: each one text, or several of which one is enough.

    Alternatives in one text stand between bars: `sea|ocean`. A word is found where a space is
    before it, and at the beginning of a text, and where it doesn't go on; in scripts without spaces
    anywhere.

    Raises:
        BedstoneError: a text is blank, or the tokenizer can't spell it.
    """
    found = []
    for text in texts:
        choices = text.split("|") if isinstance(text, str) else list(text)
        spelled: list[Ids] = []
        for choice in choices:
            free, bound, joined = _spellings(tokenizer, choice, BEFORE, name)
            if is_alone(choice.strip()[0]):
                free = joined
            end = () if is_alone(choice.strip()[-1]) else (CLOSED,)
            spelled += [(*free, *end), (START, *bound, *end)]
        found.append(tuple(dict.fromkeys(spelled)))
    return tuple(found)


def glossary_words(
    glossary: Glossary, tokenizer: "Tokenizer", sources: Iterable[str]
) -> list[tuple[Word, ...]]:
    """Of each source text the words that a glossary requires of its translation.

    Raises:
        BedstoneError: the tokenizer can't spell a target term.
    """
    known: dict[Term, Word] = {}
    found = []
    for source in sources:
        terms = glossary.find(source)
        for term in terms:
            if term not in known:
                name = f"glossary: {term.source!r}"
                (known[term],) = words_of(tokenizer, [term.targets], name)
        found.append(tuple(known[term] for term in terms))
    return found


def banned_words(tokenizer: "Tokenizer", texts: Iterable[str], name: str) -> tuple[Ids, ...]:
    """Words that must not occur: each with and without a space before it, in all usual cases.

    Raises:
        BedstoneError: as of `words_of`.
    """
    found = []
    for text in texts:
        for way in (text, text.lower(), text[:1].upper() + text[1:], text.upper()):
            found += _spellings(tokenizer, way, BEFORE, name, some=way != text)
    return tuple(dict.fromkeys(found))


def _spellings(
    tokenizer: "Tokenizer",
    text: str,
    before: Iterable[tuple[str, str]],
    name: str,
    *,
    some: bool = False,
) -> list[Ids]:
    """The ids of a text after each of several beginnings; with `some` those there are.

    Args:
        before: what precedes it and isn't its own, and what is: a space.
    """
    word = text.strip() if isinstance(text, str) else ""
    if not word:
        raise BedstoneError(f"{name}: {shown(text)} was given; expected one letter or more.")
    found = []
    for start, space in before:
        lead, whole = tokenizer.encode(start), tokenizer.encode(start + space + word)
        ids = whole[len(lead) :] if whole[: len(lead)] == lead else whole
        if tokenizer.decode(ids).strip().casefold() == word.casefold():
            found.append(tuple(ids))
        elif not some:
            raise BedstoneError(
                f"{name}: {word!r} can't be spelled by the model's tokenizer: it reads "
                f"{tokenizer.decode(ids)!r}. Take the word out, or spell it otherwise."
            )
    return found


def allowed(
    words: Sequence[Word], banned: Sequence[Ids], ends: Iterable[int], vocabulary: int
) -> tuple[Word, ...]:
    """Words without the alternatives that can't be generated.

    Args:
        banned: token sequences that never occur.
        ends: ids that end a continuation.

    Raises:
        BedstoneError: nothing is left of a word, or it has an id that the network doesn't know.
    """
    ends = set(ends)
    found = []
    for word in words:
        for ids in word:
            if max(ids) >= vocabulary:
                raise BedstoneError(
                    f"force_words_ids: {list(ids)} has id {max(ids)}; ids must be from 0 to "
                    f"{vocabulary - 1}. Are they another tokenizer's?"
                )
        left = tuple(
            ids
            for ids in word
            if not ends & set(ids) and not any(_holds(ids, other) for other in banned)
        )
        if not left:
            raise BedstoneError(
                f"force_words_ids: {[list(ids) for ids in word]} must occur, and bad_words_ids, "
                "suppress_tokens or the end token keep it out. Take it out of one of them."
            )
        found.append(left)
    return tuple(found)


def _holds(ids: Ids, part: Ids) -> bool:
    return any(ids[at : at + len(part)] == part for at in range(len(ids) - len(part) + 1))
