"""Built-in documents of small tasks, for a model that learns in context.

A document is a list of examples of one hidden task, `input output`, a line each. Every task is
drawn anew, so that nothing but the examples before it says what an input's output is (as Chan et
al., 2022, section 2, and Garg et al., 2022, have it). The output follows its input at once: what
followed this input before is what a small network learns first to find (Olsson et al., 2022).
Families of tasks:

- `lookup`: 2 to 4 things, each with a value of its own: `k seven`
- `labels`: two or three classes, such as animals and tools, whose labels are renamed in each
  document: `dog left`
- `positions`: which letters or numbers of the input come out, and in which order: `a-b-c c-b-a`
- `mod`: a x + b mod 10 of a number x: `three eight`

A task is known by its rule, the text that says it whole. `HELD_OUT` of all rules, by a hash of
that text, are in no training document; held-out documents have those alone. What is unseen is so
the mapping, the pairing of classes with labels, the list of positions, or the pair (a, b). Words
themselves are known.
"""

import functools
import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bedstone.data.bytes import Piece
from bedstone.errors import BedstoneError, nearest

EXAMPLES = (3, 20)  # of a document, at least and at most
DOCUMENTS, HELD_OUT_DOCUMENTS = 150_000, 2_000
HELD_OUT = 0.2  # share of rules


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NUMBERS = _words("zero one two three four five six seven eight nine")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
LABELS = _words(
    "left right up down in out on off hot cold yes no true false north south east west old new "
    "big small fast slow day night open shut good bad high low"
)
NOUNS = {
    "animal": _words("dog cat cow pig hen fox bear wolf lion mouse horse sheep"),
    "food": _words("bread rice cake soup meat cheese egg corn bean pie jam salt"),
    "body": _words("hand foot head nose ear eye leg arm knee neck back chin"),
    "tool": _words("saw axe drill nail rope knife spoon fork pen brush pin key"),
    "clothes": _words("hat coat shoe sock shirt belt dress glove scarf boot cap tie"),
    "nature": _words("sun moon star rain snow wind sea hill river tree rock sand"),
}
# Classes that exclude each other, by their name; a task takes two or three of a group.
GROUPS: tuple[Mapping[str, Sequence[str]], ...] = (
    NOUNS,
    {"even": NUMBERS[::2], "odd": NUMBERS[1::2]},
    {"below five": NUMBERS[:5], "five or more": NUMBERS[5:]},
    {"vowel": tuple("aeiou"), "consonant": tuple("bcdfghjklmnpqrstvwxyz")},
    {"a to m": LETTERS[:13], "n to z": LETTERS[13:]},
)
WORDS = tuple(word for words in NOUNS.values() for word in words)
POOLS = {"letter": LETTERS, "number": NUMBERS, "word": WORDS, "label": LABELS}


class Example(NamedTuple):
    """One example of a task: a word each, or words joined by `-`."""

    input: str
    output: str


@dataclass(frozen=True)
class FewShotTask:
    """A hidden task.

    Attributes:
        family: such as `lookup`.
        rule: the text that says the task whole: equal tasks have an equal one.
        draw: an example, of a source of random numbers.
        chance: how often the best guess without an example is right, the family being known.
    """

    family: str
    rule: str
    draw: Callable[[random.Random], Example]
    chance: float

    @property
    def held_out(self) -> bool:
        """Whether no training document has this task."""
        digest = hashlib.blake2b(self.rule.encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") < HELD_OUT * 2**32


def lookup_task(source: random.Random) -> FewShotTask:
    """A few things, each with a value of its own."""
    keys = POOLS[source.choice(("letter", "number", "word"))]
    values = POOLS[source.choice(("letter", "number", "label"))]
    chosen = source.sample(keys, source.randint(2, 4))
    table = dict(zip(chosen, source.choices(values, k=len(chosen)), strict=True))
    rule = ", ".join(f"{key} is {table[key]}" for key in sorted(table))

    def draw(source: random.Random) -> Example:
        key = source.choice(chosen)
        return Example(key, table[key])

    return FewShotTask("lookup", rule, draw, _lookup_chance())


def _lookup_chance() -> float:
    pools = [POOLS[name] for name in ("letter", "number", "label")]
    return max(1 / len(pool) for pool in pools) / len(pools)


def labels_task(source: random.Random) -> FewShotTask:
    """Classes of words, whose labels are names that say nothing of them."""
    group = NOUNS if source.random() < 0.5 else source.choice(GROUPS[1:])
    classes = source.sample(sorted(group), min(source.randint(2, 3), len(group)))
    labels = source.sample(LABELS, len(classes))
    rule = ", ".join(sorted(f"{each} is {one}" for each, one in zip(classes, labels, strict=True)))

    def draw(source: random.Random) -> Example:
        number = source.randrange(len(classes))
        return Example(source.choice(group[classes[number]]), labels[number])

    return FewShotTask("labels", rule, draw, 1 / len(LABELS))


LENGTHS, OUTPUTS = (2, 3, 4), (1, 2, 3, 4)  # words of an input, and of an output


def positions_task(source: random.Random) -> FewShotTask:
    """Which of the input's words come out, and in which order."""
    pool = source.choice((LETTERS, NUMBERS))
    length = source.choice(LENGTHS)
    places = source.choices(range(length), k=source.choice(OUTPUTS))
    rule = f"of {length}: {' '.join(str(place + 1) for place in places)}"

    def draw(source: random.Random) -> Example:
        words = source.sample(pool, length)
        return Example("-".join(words), "-".join(words[place] for place in places))

    chance = sum(1 / length for length in LENGTHS) / len(LENGTHS) / len(OUTPUTS)  # one word
    return FewShotTask("positions", rule, draw, chance)


def mod_task(source: random.Random) -> FewShotTask:
    """a x + b mod 10 of a number x."""
    a, b = source.randint(1, 9), source.randrange(10)

    def draw(source: random.Random) -> Example:
        number = source.randrange(10)
        return Example(NUMBERS[number], NUMBERS[(a * number + b) % 10])

    return FewShotTask("mod", f"{a} x + {b} mod 10", draw, 0.1)


# Each family, and how many of twenty training documents are of it.
TASK_FAMILIES: dict[str, tuple[Callable[[random.Random], FewShotTask], int]] = {
    "lookup": (lookup_task, 7),
    "labels": (labels_task, 7),
    "positions": (positions_task, 5),
    "mod": (mod_task, 1),
}


def draw_task(source: random.Random, family: str = "", *, held_out: bool = False) -> FewShotTask:
    """A task of a family, of those to learn from or of those held out.

    Args:
        family: in `TASK_FAMILIES`; empty draws one, as often as training has it.

    Raises:
        BedstoneError: there is no such family.
    """
    if family and family not in TASK_FAMILIES:
        raise BedstoneError(f"family: {family!r} is unknown{nearest(family, TASK_FAMILIES)}.")
    if not family:
        names, counts = list(TASK_FAMILIES), [count for _, count in TASK_FAMILIES.values()]
        family = source.choices(names, counts)[0]
    while True:
        task = TASK_FAMILIES[family][0](source)
        if task.held_out == held_out:
            return task


def document(examples: Sequence[Example]) -> str:
    """Examples as text, a line each."""
    return "".join(f"{each.input} {each.output}\n" for each in examples)


def documents(count: int, seed: int = 0, *, held_out: bool = False) -> Iterator[str]:
    """Documents of a task each, the same for the same arguments.

    How many examples a document has is drawn evenly on a logarithmic scale: in short documents a
    network learns soonest that what followed an input before follows it again.
    """
    source = random.Random(f"{seed} {held_out}")
    least, most = (math.log(count) for count in EXAMPLES)
    for _ in range(count):
        task = draw_task(source, held_out=held_out)
        examples = round(math.exp(source.uniform(least, most)))
        yield document([task.draw(source) for _ in range(examples)])


@functools.cache
def _pieces(count: int, held_out: bool) -> list[Piece]:
    """Documents, made once: a run reads them several times."""
    return [Piece(text) for text in documents(count, held_out=held_out)]


def task_pieces() -> Iterator[Piece]:
    """The training documents, the built-in source `few-shot-tasks`."""
    return iter(_pieces(DOCUMENTS, False))


def held_out_pieces() -> Iterator[Piece]:
    """Documents of held-out tasks, the built-in source `few-shot-tasks-held-out`."""
    return iter(_pieces(HELD_OUT_DOCUMENTS, True))
