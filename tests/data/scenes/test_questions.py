"""Answers are right by a count of their own, and guessing without looking is weak."""

import re
from collections import Counter, defaultdict

import pytest

from bedstone.data.scenes.questions import KINDS, all_questions
from bedstone.data.scenes.relations import OPPOSITE, PLACES, holds
from bedstone.data.scenes.world import COLOURS, SHAPES, SIZES, SPLITS, allowed_pairs, make_scene

ONE = r"the (?:(small|medium|large) )?(?:(\w+) )??(\w+?)"


@pytest.fixture(scope="module")
def answered():
    scenes = [make_scene(seed, split=split) for split in SPLITS for seed in range(300)]
    return [(scene, each) for scene in scenes for each in all_questions(scene)]


def meant(scene, size, colour, noun):
    """The things that words may mean: another reading than the questions' own."""
    shape = {"crosses": "cross", "objects": "object"}.get(noun, noun)
    shape = shape if shape in (*SHAPES, "object") else shape.removesuffix("s")
    assert shape in (*SHAPES, "object"), noun
    found = list(scene.objects)
    if size:
        found = [thing for thing in found if thing.size == size]
    if colour:
        assert colour in COLOURS
        found = [thing for thing in found if thing.colour == colour]
    return found if shape == "object" else [thing for thing in found if thing.shape == shape]


def the(scene, words):
    (thing,) = meant(scene, *re.fullmatch(ONE, words).groups())
    return thing


def yes(answer):
    return "yes" if answer else "no"


def expected(scene, text):
    relation = "|".join(OPPOSITE)
    if found := re.fullmatch(r"Is there an? (?:(\w+) )?(\w+)\?", text):
        return yes(meant(scene, None, *found.groups()))
    if found := re.fullmatch(r"How many (?:(\w+) )?(\w+) are there\?", text):
        return str(len(meant(scene, None, *found.groups())))
    if found := re.fullmatch(r"What shape is the (larger|smaller) of (.+) and (.+)\?", text):
        pair = [the(scene, found[2]), the(scene, found[3])]
        assert pair[0].size != pair[1].size
        return (max if found[1] == "larger" else min)(pair, key=lambda t: SIZES[t.size]).shape
    if found := re.fullmatch(r"What (colour|shape|size) is (the [\w ]+)\?", text):
        return getattr(the(scene, found[2]), found[1])
    if found := re.fullmatch(rf"What shape is ({relation}) (.+)\?", text):
        mark = the(scene, found[2])
        there = [t for t in scene.objects if t is not mark and holds(found[1], t, mark)]
        (one,) = there
        return one.shape
    if found := re.fullmatch(r"Where is (.+)\?", text):
        thing = the(scene, found[1])
        return list(PLACES)[int(thing.y * 3) * 3 + int(thing.x * 3)]
    if found := re.fullmatch(r"Is (.+) (left) or (right) of (.+)\?", text):
        return "left" if the(scene, found[1]).x < the(scene, found[4]).x else "right"
    if found := re.fullmatch(r"Is (.+) (above) or (below) (.+)\?", text):
        return "above" if the(scene, found[1]).y < the(scene, found[4]).y else "below"
    if found := re.fullmatch(rf"Is (.+) ({relation}) (.+)\?", text):
        return yes(holds(found[2], the(scene, found[1]), the(scene, found[3])))
    if found := re.fullmatch(r"Are there more (\w+) than (\w+)\?", text):
        one, other = (len(meant(scene, None, None, word)) for word in found.groups())
        return yes(one > other)
    if found := re.fullmatch(r"Are (.+) and (.+) of the same colour\?", text):
        return yes(the(scene, found[1]).colour == the(scene, found[2]).colour)
    assert "sign" in text or "read" in text
    return scene.sign.text.lower()


def test_every_answer_is_right(answered):
    for scene, each in answered:
        assert each.answer == expected(scene, each.text), (each, scene)


def test_all_kinds_and_many_answers(answered):
    kinds = Counter(each.kind for _, each in answered)
    assert set(kinds) == set(KINDS) and len(kinds) == 9
    assert min(kinds.values()) > 250
    assert len({each.answer for _, each in answered}) >= 60


def test_yes_is_as_frequent_as_no(answered):
    for kind in ("existence", "relation", "comparison"):
        answers = Counter(each.answer for _, each in answered if each.kind == kind)
        assert 0.44 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.56, kind


def test_guessing_is_weak(answered):
    """The commonest answer to a kind of question, and the commonest to its very words."""
    limits = {"existence": 0.55, "count": 0.4, "colour": 0.2, "shape": 0.25, "size": 0.45}
    limits |= {"position": 0.25, "relation": 0.5, "comparison": 0.55, "sign": 0.15}
    answers = defaultdict(Counter)
    words = defaultdict(Counter)
    for _, each in answered:
        answers[each.kind][each.answer] += 1
        words[re.sub("|".join((*COLOURS, *SHAPES)), "*", each.text)][each.answer] += 1
    for kind, known in answers.items():
        assert max(known.values()) / sum(known.values()) < limits[kind], kind
    common = {text: known for text, known in words.items() if sum(known.values()) > 100}
    for text, known in common.items():
        assert max(known.values()) / sum(known.values()) < 0.65, (text, known)
    right = sum(max(known.values()) for known in common.values())
    assert right / sum(sum(known.values()) for known in common.values()) < 0.4


def test_questions_of_a_split_name_only_what_it_knows(answered):
    pattern = rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    for scene, each in answered:
        named = {(shape, colour) for colour, shape in re.findall(pattern, each.text)}
        assert named <= set(allowed_pairs(scene.split))


def test_the_same_scene_has_the_same_questions():
    assert all_questions(make_scene(9)) == all_questions(make_scene(9))
