"""Questions about scenes with exact answers, of nine kinds.

They are balanced, so that a question-only baseline gains little: yes and no are drawn before the
question, numbers by the number and not by the object, and no question implies its answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

from bedstone.data.scenes.captions import articles, name, noun
from bedstone.data.scenes.relations import OPPOSITE, clearly, matching, place, relations
from bedstone.data.scenes.world import COLOURS, SHAPES, Dice, Scene, Thing, allowed_pairs


@dataclass(frozen=True)
class Question:
    """A question, its one right answer, and what kind of question it is."""

    text: str
    answer: str
    kind: str


AnsweredQuestion = tuple[str, str] | None


def all_questions(scene: Scene) -> tuple[Question, ...]:
    """One question of each kind that has a plain answer in this scene, in random order.

    No question names a combination that the scene's split doesn't know: else training would learn
    that the answer about what is held out is always no.
    """
    dice = Dice(f"questions {scene}")
    found = []
    for kind, ask in dice.shuffled(tuple(KINDS.items())):
        if question := ask(scene, dice):
            found.append(Question(articles(question[0]), question[1], kind))
    return tuple(found)


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _existence(scene: Scene, dice: Dice) -> AnsweredQuestion:
    """Whether there is an object; an absent one has a colour and a shape of the scene's."""
    yes, form = dice.chance(0.5), dice.below(4)
    there = {thing.pair for thing in scene.objects}
    if form == 0:
        known = {shape for shape, _ in there}
        shape = dice.pick(sorted(known if yes else set(SHAPES) - known))
        return f"Is there a {shape}?", _yes(yes)
    if form == 1:
        seen = {colour for _, colour in there}
        colour = dice.pick(sorted(seen if yes else set(COLOURS) - seen))
        return f"Is there a {colour} object?", _yes(yes)
    pairs = set(allowed_pairs(scene.split)) - there
    shapes, colours = {shape for shape, _ in there}, {colour for _, colour in there}
    close = [pair for pair in pairs if pair[0] in shapes or pair[1] in colours]
    shape, colour = dice.pick(sorted(there if yes else close))
    return f"Is there a {colour} {shape}?", _yes(yes)


def _count(scene: Scene, dice: Dice) -> AnsweredQuestion:
    """How many there are: the number is drawn first, then objects that are so many."""
    counted: dict[int, list[str]] = {len(scene.objects): ["objects"] * 2}
    for shape in SHAPES:
        counted.setdefault(len(matching(scene, shape)), []).append(noun(2, shape))
    for colour in COLOURS:
        several = len(matching(scene, colour=colour))
        counted.setdefault(several, []).append(f"{colour} objects")
    # Where there is more than one to be counted, none and one are asked for half as often.
    numbers = [n for n in sorted(counted) for _ in range(1 if n < 2 else 2)]
    number = dice.pick(numbers)
    return f"How many {dice.pick(counted[number])} are there?", str(number)


def _colour(scene: Scene, dice: Dice) -> AnsweredQuestion:
    for thing in dice.shuffled(scene.objects):
        phrases = [f"the {thing.size} {thing.shape}"] * (
            len(matching(scene, thing.shape, size=thing.size)) == 1
        )
        phrases += [f"the {thing.shape}"] * (len(matching(scene, thing.shape)) == 1)
        phrases += [f"the {thing.size} object"] * (len(matching(scene, size=thing.size)) == 1)
        if phrases:
            return f"What colour is {dice.pick(phrases)}?", thing.colour
    return None


def _shape(scene: Scene, dice: Dice) -> AnsweredQuestion:
    for thing in dice.shuffled(scene.objects):
        same = matching(scene, colour=thing.colour)
        phrases = [f"the {thing.colour} object"] * (len(same) == 1)
        sized = matching(scene, colour=thing.colour, size=thing.size)
        phrases += [f"the {thing.size} {thing.colour} object"] * (len(sized) == 1)
        phrases += [f"the {thing.size} object"] * (len(matching(scene, size=thing.size)) == 1)
        if phrases:
            return f"What shape is {dice.pick(phrases)}?", thing.shape
    return None


def _unique(scene: Scene, dice: Dice) -> list[tuple[Thing, str]]:
    """Objects with a phrase that names no other, in random order."""
    found = []
    for thing in dice.shuffled(scene.objects):
        phrase = name(scene, thing)
        phrases = [f"the {phrase}"] if phrase else []
        phrases += [f"the {thing.shape}"] * (len(matching(scene, thing.shape)) == 1)
        phrases += [f"the {thing.colour} object"] * (len(matching(scene, colour=thing.colour)) == 1)
        if phrases:
            found.append((thing, dice.pick(phrases)))
    return found


def _size(scene: Scene, dice: Dice) -> AnsweredQuestion:
    for thing, phrase in _unique(scene, dice):
        if not any(f" {size} " in phrase for size in ("small", "medium", "large")):
            return f"What size is {phrase}?", thing.size
    return None


def _position(scene: Scene, dice: Dice) -> AnsweredQuestion:
    for thing, phrase in _unique(scene, dice):
        if where := place(thing):
            return f"Where is {phrase}?", where
    return None


def _relation(scene: Scene, dice: Dice) -> AnsweredQuestion:
    """A relation of two objects: yes or no, which of two, or the shape that is there."""
    pairs = list(permutations(_unique(scene, dice), 2))
    if dice.chance(0.4):  # things that hide others, often, since few do
        pairs.sort(key=lambda pair: not {"in front of", "behind"} & {*_known(pair)})
    for pair in pairs:
        if not (known := _known(pair)):
            continue
        (_, one), (_, other) = pair
        relation = dice.pick(known[-1:] if known[-1] in ("in front of", "behind") else known)
        form = dice.below(3)
        if form == 0 and relation in ("left of", "right of"):
            return f"Is {one} left or right of {other}?", relation.split()[0]
        if form == 0 and relation in ("above", "below"):
            return f"Is {one} above or below {other}?", relation
        if form == 1 and (shape := _shape_there(scene, pair[1][0], relation)):
            return f"What shape is {relation} {other}?", shape
        yes = dice.chance(0.5)
        return f"Is {one} {relation if yes else OPPOSITE[relation]} {other}?", _yes(yes)
    return None


def _known(pair: tuple[tuple[Thing, str], tuple[Thing, str]]) -> list[str]:
    return relations(pair[0][0], pair[1][0])


def _shape_there(scene: Scene, thing: Thing, relation: str) -> str | None:
    """The shape of the one object in a relation to `thing`; None if others nearly are."""
    others = [other for other in scene.objects if other is not thing]
    there = [other for other in others if clearly(relation, other, thing)]
    plain = [other for other in others if not clearly(OPPOSITE[relation], other, thing)]
    if relation in ("in front of", "behind"):
        plain = there
    return there[0].shape if len(there) == 1 and plain == there else None


def _comparison(scene: Scene, dice: Dice) -> AnsweredQuestion:
    forms = dice.shuffled((_more, _larger, _which, _same))
    return next((found for form in forms if (found := form(scene, dice))), None)


def _more(scene: Scene, dice: Dice) -> AnsweredQuestion:
    numbers = {shape: len(matching(scene, shape)) for shape in SHAPES}
    shapes = dice.shuffled([shape for shape in SHAPES if numbers[shape]])
    for one, other in permutations(shapes, 2):
        if numbers[one] > numbers[other]:
            yes = dice.chance(0.5)
            one, other = (one, other) if yes else (other, one)
            return f"Are there more {noun(2, one)} than {noun(2, other)}?", _yes(yes)
    return None


def _sized(scene: Scene, dice: Dice) -> tuple[str, str, Thing, Thing] | None:
    """Phrases for two objects, the larger first, that don't name their sizes."""
    unique = [
        (thing, phrase)
        for thing, phrase in _unique(scene, dice)
        if not any(f" {size} " in phrase for size in ("small", "medium", "large"))
    ]
    for (one, phrase), (other, too) in permutations(unique, 2):
        if clearly("larger than", one, other):
            return phrase, too, one, other
    return None


def _larger(scene: Scene, dice: Dice) -> AnsweredQuestion:
    if not (found := _sized(scene, dice)):
        return None
    larger, smaller, _, _ = found
    word, yes = dice.pick(("larger", "smaller")), dice.chance(0.5)
    one, other = (larger, smaller) if (word == "larger") == yes else (smaller, larger)
    return f"Is {one} {word} than {other}?", _yes(yes)


def _which(scene: Scene, dice: Dice) -> AnsweredQuestion:
    """Which of two objects is larger or smaller, answered by its shape."""
    found = _sized(scene, dice)
    if not found or found[2].shape == found[3].shape:
        return None
    larger, smaller, one, other = found
    word = dice.pick(("larger", "smaller"))
    first, second = dice.shuffled((larger, smaller))
    answer = one if word == "larger" else other
    return f"What shape is the {word} of {first} and {second}?", answer.shape


def _same(scene: Scene, dice: Dice) -> AnsweredQuestion:
    """Whether two shapes have one colour, asked where both answers are possible."""
    alone = [thing for thing in scene.objects if len(matching(scene, thing.shape)) == 1]
    coloured: dict[bool, list[tuple[Thing, Thing]]] = {True: [], False: []}
    for one, other in permutations(alone, 2):
        coloured[one.colour == other.colour].append((one, other))
    if not all(coloured.values()):
        return None
    yes = dice.chance(0.5)
    one, other = dice.pick(coloured[yes])
    return f"Are the {one.shape} and the {other.shape} of the same colour?", _yes(yes)


def _sign(scene: Scene, dice: Dice) -> AnsweredQuestion:
    if not scene.sign:
        return None
    forms = ("What does the sign say?", "What is written on the sign?", "What can you read?")
    return dice.pick(forms), scene.sign.text.lower()


KINDS: dict[str, Callable[[Scene, Dice], AnsweredQuestion]] = {
    "existence": _existence,
    "count": _count,
    "colour": _colour,
    "shape": _shape,
    "size": _size,
    "position": _position,
    "relation": _relation,
    "comparison": _comparison,
    "sign": _sign,
}
