"""BLEU, ROUGE-L and CIDEr-D of captions, and true facts of scenes."""

import json
import math
import sys

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from bedstone.data.scenes.captions import all_captions as scene_captions
from bedstone.data.scenes.captions import check_caption, negatives
from bedstone.data.scenes.world import make_scene
from bedstone.errors import BedstoneError
from bedstone.metrics.captioning import captions, cider, true_facts, words

SAID = [
    "a red circle above a square",
    "two stars on a meadow",
    "a dog runs on the grass",
    "a dog a dog a dog a dog a dog",
    "star",
]
WRITTEN = [
    ["a red circle is above a blue square", "a circle above a square"],
    ["two yellow stars on a meadow"],
    ["a brown dog runs over grass", "the dog runs on the grass", "a dog outside"],
    ["a dog plays with a ball in the park"],
    ["a small star", "one star"],
]


def test_cider_worked_by_hand():
    """Two pictures: words of one alone weigh log 2, the common word nothing."""
    found = cider(["a b", "a c d"], [["a b"], ["a c"]])
    # "a b": cosine 1 for one word and for two, and nothing longer to compare: 2 / 4
    assert found[0] == pytest.approx(10 * 2 / 4)
    # one word: {c, d} with {c}, cosine 1 / sqrt 2; two: {a c, c d} with {a c}, likewise; a word too
    # many costs exp(-1 / 72)
    assert found[1] == pytest.approx(10 * 2 / math.sqrt(2) / 4 * math.exp(-1 / 72))


def test_cider_is_that_of_the_published_script():
    """pycocoevalcap 1.2 gave these numbers of the same words."""
    published = [4.91600927, 6.24564202, 3.63889986, 0.17827103, 1.70781012]
    assert cider(SAID, WRITTEN) == pytest.approx(published)


def test_repeating_a_word_gains_nothing():
    references = [["a red dog"], ["a cat"]]
    once, often = (cider([text, "a cat"], references)[0] for text in ("dog", "dog dog dog"))
    assert once > often


def test_words_are_those_of_any_script():
    assert words("A T-shirt, don't ask: 3.5 Äpfel!") == [
        "a",
        "t-shirt",
        "don't",
        "ask",
        "3.5",
        "äpfel",
    ]
    assert cider(["ein Haus", "x"], [["Ein Haus."], ["y"]])[0] == 5
    assert not cider(["a"], [["a"]]).any()  # one picture: nothing is rarer than anything
    assert cider(["", "b"], [["a"], ["b"]])[0] == 0
    assert not len(cider([], []))


def test_bleu_of_a_set_is_sacrebleus():
    found = captions(SAID, WRITTEN, resamples=0)
    most = max(map(len, WRITTEN))
    streams = [[row[n] if n < len(row) else None for row in WRITTEN] for n in range(most)]
    whole = BLEU(lowercase=True).corpus_score(SAID, streams).score / 100
    assert found["bleu"] == pytest.approx(whole)
    assert found["cider"] == pytest.approx(cider(SAID, WRITTEN).mean())
    assert found.score == found["cider"] and not found.intervals


def test_rouge_takes_the_best_reference():
    found = captions(["a b c d", "x"], [["c d", "a x c d", "z"], ["x"]], resamples=0)
    assert found["rouge_l"] == pytest.approx((3 / 4 + 1) / 2)  # longest in order: a c d
    assert captions(["Ähre ölig"], ["ähre"], resamples=0)["rouge_l"] == pytest.approx(2 / 3)


def test_intervals_draw_pictures():
    rows = 60
    texts = [f"thing number {n} on a table" for n in range(rows)]
    said = [text if n % 2 else "nothing like it" for n, text in enumerate(texts)]
    found = captions(said, texts)
    for name in ("cider", "bleu", "rouge_l"):
        low, high = found.intervals[name]
        assert low < found[name] < high < 1.3 * found[name] + 0.2
    assert found == captions(said, texts)
    assert captions(texts, texts)["bleu"] == pytest.approx(1)


def test_what_cannot_be_scored_is_named():
    with pytest.raises(BedstoneError, match="1 predictions for 2 pictures"):
        captions(["a"], ["a", "b"])
    with pytest.raises(BedstoneError, match="no pictures to score"):
        captions([], [])
    for given in ([], [3]):
        with pytest.raises(BedstoneError, match="references, row 1"):
            captions(["a", "b"], ["a", given])
    with pytest.raises(BedstoneError, match="predicted, row 0: None is no text"):
        captions([None], ["a"])


@pytest.mark.parametrize("absent", ["sacrebleu.metrics", "rouge_score.rouge_scorer"])
def test_without_the_extra_the_error_says_how_to_get_it(absent, monkeypatch):
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(BedstoneError, match=r"pip install 'bedstone\[evaluate\]'"):
        captions(["a"], ["a"])


def test_true_facts_of_scenes():
    scenes = [make_scene(n) for n in range(12)]
    true = [scene_captions(scene)[0] for scene in scenes]
    found = true_facts(true, scenes)
    stated = np.mean([check_caption(s, t)[0] for s, t in zip(scenes, true, strict=True)])
    assert found["all_true"] == found["facts_true"] == 1 and found["facts"] == pytest.approx(stated)
    assert found.intervals["all_true"] == (1, 1)
    half = [
        t if n % 2 else negatives(s)[0] for n, (s, t) in enumerate(zip(scenes, true, strict=True))
    ]
    found = true_facts(half, scenes)
    assert found["all_true"] == 0.5 and 0.5 < found["facts_true"] < 1
    silent = true_facts([""] * 12, scenes, resamples=0)  # says nothing: not false, but no caption
    assert silent.values == {"all_true": 0, "facts_true": 0, "facts": 0}


@pytest.mark.shared
def test_captions_of_people(shared_data):
    """One person's caption of a photo is nearer to the others' than to those of other photos."""
    lines = (shared_data / "flickr-1k/test/metadata.jsonl").read_text().splitlines()[:60]
    rows = [json.loads(line)["captions"] for line in lines]
    right = captions([row[0] for row in rows], [row[1:] for row in rows], resamples=0)
    wrong = captions(
        [row[0] for row in rows], [row[1:] for row in rows[1:] + rows[:1]], resamples=0
    )
    for name in right.values:
        assert right[name] > 1.5 * wrong[name]
