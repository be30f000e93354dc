"""Captions are true, negatives are wrong once, and the checker knows which is which."""

import re
from collections import Counter

import pytest

from bedstone.data.scenes.captions import (
    TEMPLATES,
    all_captions,
    check_caption,
    negatives,
    prompts,
    tell,
)
from bedstone.data.scenes.world import (
    COLOURS,
    SHAPES,
    SPLITS,
    Dice,
    Scene,
    Sign,
    Thing,
    allowed_pairs,
    make_scene,
)

SCENE = Scene(
    "meadow",
    (
        Thing("circle", "red", "large", 0.25, 0.25, 0),
        Thing("circle", "red", "small", 0.8, 0.2, 1),
        Thing("star", "blue", "medium", 0.42, 0.32, 2, "dotted"),
        Thing("heart", "orange", "medium", 0.5, 0.8, 3),
    ),
    Sign("STOP", 0.2, 0.85),
)

TRUE = {
    "a red circle": 1,
    "The large red circle.": 1,
    "two red circles, a blue star and an orange heart": 3,
    "a blue star is in front of a large red circle": 3,
    "a large red circle behind a blue star": 3,
    "a blue star is left of an orange heart and above an orange heart": 5,
    "the orange heart is below the blue star and to the right of a sign that says STOP": 5,
    "at the bottom there is an orange heart": 2,
    "a small red circle in the top right, on a meadow": 3,
    "a picture of a medium dotted blue star": 1,
    "four objects, two of them red": 2,
    "three objects": None,
    "there are two circles and no rings": 2,
    "the sign says stop": 1,
    'a sign with the word "stop" in the bottom left': 2,
    "the small red circle is smaller than the blue star": 3,
    "a picture on a meadow with a star": 2,
    "": 0,
    "a picture of": 0,
}
FALSE = [  # with one wrong each
    "three red circles",
    "one circle",
    "a red heart above a blue star",
    "a green circle",
    "a large blue star",
    "a striped blue star",
    "a blue star behind a large red circle",
    "an orange heart above a blue star",
    "an orange heart in front of a blue star",
    "an orange heart at the top",
    "at the top there is an orange heart",
    "a red circle on a plain background",
    "four objects, one of them red",
    "a sign that says taxi",
    "no sign",
    "no stars",
    "a blue star and a blue star",
    "the blue star is larger than the large red circle",
    "a red circle and some other gibberish",
    "an orange heart above",
    "a small red circle below a red circle",
]


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(seed, split=split) for split in SPLITS for seed in range(120)]


@pytest.mark.parametrize("text", TRUE)
def test_true_by_hand(text):
    if TRUE[text] is None:
        assert check_caption(SCENE, text) == (1, 0)
    else:
        assert check_caption(SCENE, text) == (TRUE[text], TRUE[text])


@pytest.mark.parametrize("text", FALSE)
def test_false_by_hand(text):
    stated, true = check_caption(SCENE, text)
    assert stated - true == 1


def test_a_thing_is_never_beside_itself():
    lonely = Scene("plain", (SCENE.objects[2],))
    assert check_caption(lonely, "a star in front of a star") == (3, 2)
    assert check_caption(Scene("plain", SCENE.objects), "no sign") == (1, 1)


def test_what_is_missing_is_wrong_once():
    assert check_caption(SCENE, "a green ring left of a blue star on a meadow") == (3, 2)
    assert check_caption(SCENE, "a green ring in the top left") == (1, 0)


def test_every_caption_is_true(scenes):
    for scene in scenes:
        found = all_captions(scene)
        assert len(found) == len(set(found)) >= 2
        for text in found:
            stated, true = check_caption(scene, text)
            assert stated == true > 0, (text, scene)
    assert sum(len(all_captions(scene)) for scene in scenes) > 4.5 * len(scenes)


def test_the_first_caption_names_every_thing(scenes):
    words = {"two": 2, "three": 3, "four": 4, "five": 5, "a": 1, "an": 1}
    for scene in scenes:
        named = Counter()
        pattern = rf"(\w+) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
        for count, colour, shape in re.findall(pattern, all_captions(scene)[0]):
            named[shape, colour] += words[count]
        assert named == Counter(thing.pair for thing in scene.objects)


def test_every_negative_is_wrong_once(scenes):
    kinds = 0
    for scene in scenes:
        true, wrong = all_captions(scene), negatives(scene)
        assert not set(true) & set(wrong)
        kinds += len(wrong)
        for text in wrong:
            stated, right = check_caption(scene, text)
            assert stated - right == 1, (text, scene)
    assert kinds > 3 * len(scenes)


def test_words_of_a_split_name_only_what_it_knows(scenes):
    pattern = rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    for scene in scenes:
        known = set(allowed_pairs(scene.split))
        for text in (*all_captions(scene), *negatives(scene)):
            assert {(shape, colour) for colour, shape in re.findall(pattern, text)} <= known


def test_every_template_is_used(scenes):
    """Each fills somewhere, with all its slots, and no two give the same words everywhere."""
    found = {}
    for template in (template for kind in TEMPLATES.values() for template in kind):
        texts = (tell(scene, template, Dice(template)) for scene in scenes)
        text = next(filter(None, texts), None)
        assert text and "{" not in text and "None" not in text, template
        found[template] = text
    assert len(found) >= 24 and len(set(found.values())) >= 24


def test_articles_and_numbers_agree(scenes):
    for scene in scenes[::5]:
        for text in (*all_captions(scene), *negatives(scene)):
            assert not re.search(r"\ba [aeio]|\ban [^aeio]", text), text
            assert not re.search(r"\b(a|an|one) ([a-z]+ )?(objects|circles|stars|rings)", text)
            assert not re.search(r"\b(two|three|four|five) ([a-z]+ )?(object|heart|moon)\b", text)
            assert not re.search(r"crosss|crosseses|  ", text)


def test_words_are_those_of_the_scene():
    assert all_captions(SCENE) == all_captions(SCENE)
    assert negatives(SCENE) == negatives(SCENE)
    assert all_captions(make_scene(1)) != all_captions(make_scene(2))


def test_prompts_name_a_pair_and_nothing_else():
    texts = prompts("star", "orange")
    assert len(texts) >= 5 and texts[0] == "an orange star"
    scene = Scene("night", (Thing("star", "orange", "small", 0.2, 0.2),))
    other = Scene("night", (Thing("ring", "orange", "small", 0.2, 0.2),))
    assert {check_caption(scene, text) for text in texts} == {(1, 1)}
    assert {check_caption(other, text) for text in texts} == {(1, 0)}
