"""Built-in text and rows of a small world, for a chat model that is made from nothing.

The world has facts (`the capital of France` is `Paris`) and stories with numbers. Of it there are:

- `small-talk`: documents, for pretraining: all facts, and stories of one or two steps;
- `small-talk-chats`: conversations: questions about facts, stories of several steps that are worked
  out, names, greetings. A fact is stated answer first or last, by chance;
- `small-talk-preferences`: pairs of answers about facts; the one with the answer first is chosen;
- `small-talk-problems`: stories of several steps as prompts, of which only the result is known.

Rows whose names end with `-held-out` are about facts that no conversation and no preference is
about (the documents have them), and stories that are in no other rows.
"""

import functools
import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bedstone.data.bytes import Piece

DOCUMENTS, CHATS, PREFERENCES, PROBLEMS = 30_000, 4_000, 3_000, 12_000
HELD_OUT_ROWS = 300
HELD_OUT = 0.2  # share of facts
MOST = 40  # of anything that is counted
CHANGE = 9  # of a step
STEPS = 3  # of a problem; a story of the documents has fewer


def _pairs(text: str) -> dict[str, str]:
    """`key answer` pairs, an underscore for a space."""
    words = [word.replace("_", " ") for word in text.split()]
    return dict(zip(words[::2], words[1::2], strict=True))


RELATIONS = {
    "capital of": _pairs(
        "France Paris Spain Madrid Italy Rome Germany Berlin Poland Warsaw Austria Vienna Greece "
        "Athens Portugal Lisbon Ireland Dublin Norway Oslo Sweden Stockholm Finland Helsinki "
        "Denmark Copenhagen Hungary Budapest Romania Bucharest Bulgaria Sofia Croatia Zagreb "
        "Serbia Belgrade Latvia Riga Estonia Tallinn Lithuania Vilnius Belgium Brussels Egypt "
        "Cairo Kenya Nairobi Ghana Accra Senegal Dakar Japan Tokyo China Beijing Thailand Bangkok "
        "Vietnam Hanoi Nepal Kathmandu Iran Tehran Iraq Baghdad Cuba Havana Peru Lima Chile "
        "Santiago Canada Ottawa Brazil Brasilia Russia Moscow Turkey Ankara Malta Valletta"
    ),
    "opposite of": _pairs(
        "hot cold big small long short high low old new fast slow light dark full empty open "
        "closed early late rich poor strong weak hard soft wet dry clean dirty loud quiet near far "
        "deep shallow wide narrow thick thin sharp blunt sweet sour happy sad brave afraid right "
        "wrong true false first last up down left right_side in out over under before after day "
        "night war peace friend enemy begin end buy sell push pull win lose give take"
    ),
    "sound of": _pairs(
        "a_cow moo a_cat meow a_dog woof a_duck quack a_sheep baa a_pig oink a_lion roar a_bee "
        "buzz a_snake hiss an_owl hoot a_crow caw a_frog croak a_horse neigh a_wolf howl a_mouse "
        "squeak a_dove coo a_hen cluck a_donkey bray"
    ),
    "young of": _pairs(
        "a_dog a_puppy a_cat a_kitten a_cow a_calf a_sheep a_lamb a_horse a_foal a_pig a_piglet "
        "a_hen a_chick a_duck a_duckling a_goat a_kid a_lion a_cub a_frog a_tadpole a_deer a_fawn "
        "a_goose a_gosling an_owl an_owlet a_swan a_cygnet an_eagle an_eaglet a_hare a_leveret"
    ),
    "colour of": _pairs(
        "grass green snow white coal black blood red the_sky blue a_lemon yellow a_carrot orange "
        "an_elephant grey chocolate brown a_cherry red milk white a_banana yellow a_pea green "
        "a_raven black a_flamingo pink a_plum purple sand yellow smoke grey a_tomato red the_sea "
        "blue ash grey a_frog green"
    ),
    "day after": _pairs(
        "Monday Tuesday Tuesday Wednesday Wednesday Thursday Thursday Friday Friday Saturday "
        "Saturday Sunday Sunday Monday"
    ),
    "month after": _pairs(
        "January February February March March April April May May June June July July August "
        "August September September October October November November December December January"
    ),
    "letter after": _pairs(" ".join(f"{chr(n)} {chr(n + 1)}" for n in range(65, 90))),
    "plural of": _pairs(
        "mouse mice goose geese foot feet tooth teeth child children man men woman women ox oxen "
        "leaf leaves wolf wolves knife knives life lives shelf shelves half halves thief thieves "
        "loaf loaves city cities baby babies story stories berry berries fish fish sheep sheep "
        "box boxes fox foxes bus buses potato potatoes hero heroes"
    ),
    "past of": _pairs(
        "go went see saw take took give gave come came run ran eat ate drink drank sing sang swim "
        "swam write wrote read read speak spoke break broke drive drove ride rode fly flew grow "
        "grew know knew throw threw draw drew find found think thought bring brought buy bought "
        "catch caught teach taught sell sold hold held keep kept sleep slept feel felt "
        "leave left lose lost build built send sent spend spent stand stood sit sat win won"
    ),
}
NAMES = ("Mia", "Tom", "Anna", "Ben", "Lea", "Max", "Eva", "Jan", "Ida", "Leo", "Nina", "Paul")
THINGS = ("apples", "books", "coins", "stones", "cards", "shells", "pens", "nuts")
GAINS = ("finds {n} more", "buys {n} more", "gets {n} from {other}", "picks up {n} more")
LOSSES = ("loses {n}", "gives {n} to {other}", "sells {n}", "breaks {n}")
QUESTIONS = (
    "What is {fact}?", "Tell me {fact}.", "Do you know {fact}?", "Can you tell me {fact}?",
    "I want to know {fact}.", "Say {fact}.",
)  # fmt: skip
HELLOS = ("Hello!", "Hi!", "Good morning!", "Good evening!")
THANKS = ("Thank you.", "Thanks!", "Thank you very much.")
Message = dict[str, str]


class Fact(NamedTuple):
    """`the capital of France`, and what it is."""

    asks: str
    answer: str

    @property
    def first(self) -> str:
        """The answer comes first."""
        return f"{_upper(self.answer)} is {self.asks}."

    @property
    def last(self) -> str:
        """The answer comes last."""
        return f"{_upper(self.asks)} is {self.answer}."

    @property
    def both(self) -> tuple[str, str]:
        """The answer first and last."""
        return self.first, self.last


class Story(NamedTuple):
    """Things that are counted.

    Attributes:
        who, things: whose they are, and what.
        text: how many there are at first, and what happens.
        sums: each step, such as `7 + 5 = 12`.
        total: how many there are at last.
    """

    who: str
    things: str
    text: str
    sums: tuple[str, ...]
    total: int

    @property
    def question(self) -> str:
        return f"{self.text} How many {self.things} does {self.who} have?"

    @property
    def answer(self) -> str:
        return f"{', '.join(self.sums)}. {self.who} has {self.total} {self.things}."


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


@functools.cache
def facts(held_out: bool | None = None) -> tuple[Fact, ...]:
    """All facts; or those that are held out of conversations, or aren't."""
    found = [
        Fact(f"the {relation} {key}", answer)
        for relation, known in RELATIONS.items()
        for key, answer in known.items()
    ]
    return tuple(each for each in found if held_out is None or _is_held_out(each) == held_out)


def _is_held_out(fact: Fact) -> bool:
    digest = hashlib.blake2b(fact.asks.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < HELD_OUT * 2**32


def story(draw: random.Random, steps: int) -> Story:
    """A story of so many steps; there are always 2 to `MOST` of the things."""
    who, things = draw.choice(NAMES), draw.choice(THINGS)
    total = draw.randint(2, MOST)
    parts, sums = [f"{who} has {total} {things}."], []
    for _ in range(steps):
        gains = total == 2 or (total < MOST and draw.random() < 0.5)
        count = draw.randint(1, min(CHANGE, MOST - total if gains else total - 2))
        other = draw.choice([name for name in NAMES if name != who])
        text = draw.choice(GAINS if gains else LOSSES).format(n=count, other=other)
        after = total + count if gains else total - count
        sums.append(f"{total} {'+' if gains else '-'} {count} = {after}")
        parts.append(f"{who} {text}.")
        total = after
    return Story(who, things, " ".join(parts), tuple(sums), total)


# Documents.


def talk_pieces() -> Iterator[Piece]:
    """The documents: people who ask each other, for facts or of a story of one or two steps."""
    for number in range(DOCUMENTS):
        yield Piece(_document(random.Random(f"document {number}")))


def _document(draw: random.Random) -> str:
    if draw.random() < 0.5:
        stories = [story(draw, draw.randint(1, STEPS - 1)) for _ in range(draw.randint(1, 2))]
        return " ".join(_talk(draw, one.question, one.answer) for one in stories)
    known = draw.sample(facts(), draw.randint(2, 4))
    return " ".join(_talk(draw, _question(draw, each), draw.choice(each.both)) for each in known)


def _talk(draw: random.Random, asks: str, answers: str) -> str:
    one, other = draw.sample(NAMES, 2)
    return f"{one} asks: {asks} {other} says: {answers}"


# Rows.


def chat_rows() -> list[dict[str, Any]]:
    """Conversations to learn from: `messages`."""
    return [_chat(random.Random(f"chat {number}"), False) for number in range(CHATS)]


def held_out_chats() -> list[dict[str, Any]]:
    """Conversations that are held out."""
    return [_chat(random.Random(f"held chat {n}"), True) for n in range(HELD_OUT_ROWS)]


def preference_rows() -> list[dict[str, Any]]:
    """Pairs of answers: `prompt`, `chosen`, `rejected`."""
    return [_preference(random.Random(f"pair {n}"), False) for n in range(PREFERENCES)]


def held_out_preferences() -> list[dict[str, Any]]:
    """Pairs that are held out."""
    return [_preference(random.Random(f"held pair {n}"), True) for n in range(HELD_OUT_ROWS)]


def problem_rows() -> list[dict[str, Any]]:
    """Stories as prompts: `prompt`, and `total`, which is the number that is right."""
    return [_problem(random.Random(f"problem {n}")) for n in range(PROBLEMS)]


def held_out_problems() -> list[dict[str, Any]]:
    """Stories that are held out."""
    known = {row["prompt"][0]["content"] for row in problem_rows()}
    drawn = (_problem(random.Random(f"held problem {n}")) for n in range(2 * HELD_OUT_ROWS))
    found = [row for row in drawn if row["prompt"][0]["content"] not in known]
    return found[:HELD_OUT_ROWS]


def said(role: str, text: str) -> Message:
    """A message."""
    return {"role": role, "content": text}


def _chat(draw: random.Random, held_out: bool) -> dict[str, Any]:
    """One to three turns, at times behind a greeting, at times with a name."""
    messages: list[Message] = []

    def turn(asks: str, answers: str) -> None:
        messages.extend((said("user", asks), said("assistant", answers)))

    name = ""
    if draw.random() < 0.3:
        turn(draw.choice(HELLOS), "Hello! What would you like to know?")
    if draw.random() < 0.2:
        name = draw.choice(NAMES)
        turn(f"My name is {name}.", f"Hello, {name}!")
    for _ in range(draw.randint(1, 2)):
        if draw.random() < CHAT_PROBLEMS:
            one = story(draw, draw.randint(2, STEPS))
            turn(one.question, one.answer)
        else:
            fact = draw.choice(facts(held_out))
            turn(_question(draw, fact), draw.choice(fact.both))
    if name:
        turn("What is my name?", f"Your name is {name}.")
    if draw.random() < 0.2:
        turn(draw.choice(THANKS), "You are welcome.")
    return {"messages": messages}


CHAT_PROBLEMS = 0.15  # share of turns


def _question(draw: random.Random, fact: Fact) -> str:
    return draw.choice(QUESTIONS).format(fact=fact.asks)


def _preference(draw: random.Random, held_out: bool) -> dict[str, Any]:
    fact = draw.choice(facts(held_out))
    return {
        "prompt": [said("user", _question(draw, fact))],
        "chosen": [said("assistant", fact.first)],
        "rejected": [said("assistant", fact.last)],
        "answer": fact.answer,
    }


def _problem(draw: random.Random) -> dict[str, Any]:
    one = story(draw, STEPS)
    return {"prompt": [said("user", one.question)], "total": one.total}


# Rewards: each a number for every answer.


def right_total(completions: Sequence[Any], total: Sequence[int]) -> list[float]:
    """1 where the last number of an answer is the right one."""
    found = (re.findall(r"\d+", text) for text in _texts(completions))
    pairs = zip(found, total, strict=True)
    return [float(bool(numbers) and numbers[-1] == str(wanted)) for numbers, wanted in pairs]


def right_fact(completions: Sequence[Any], answer: Sequence[str]) -> list[float]:
    """1 where an answer states what was to be found, at its beginning or its end."""
    pairs = zip(_texts(completions), answer, strict=True)
    return [float(_begins(text, each) or _ends(text, each)) for text, each in pairs]


def answer_first(completions: Sequence[Any], answer: Sequence[str]) -> list[float]:
    """1 where an answer begins with what was to be found."""
    pairs = zip(_texts(completions), answer, strict=True)
    return [float(_begins(text, each)) for text, each in pairs]


def _texts(completions: Sequence[Any]) -> list[str]:
    return [each if isinstance(each, str) else str(each[0]["content"]) for each in completions]


def _begins(text: str, answer: str) -> bool:
    return text.strip().startswith(f"{_upper(answer)} is the ")


def _ends(text: str, answer: str) -> bool:
    return text.strip().endswith(f" is {answer}.")
