"""token-classification: strategies by hand, long texts, words in lists."""

import functools
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bedstone
from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from bedstone.tasks.text.token_classification import Piece, entities_of, words_of
from small_models import SENTENCES, TAGS, model

LONG = " ".join(SENTENCES * 8)
LABELS = ("O", "B-PER", "I-PER", "B-LOC")
EVERY = {"ignore_labels": []}


@pytest.fixture(scope="module")
def ner():
    return bedstone.pipeline("ner", model(TAGS))


def joined(names):
    return " ".join(names).replace(" ##", "")


def pieces(*given):
    """Pieces of (name, word, scores)."""
    made, at = [], 0
    for index, (name, word, scores) in enumerate(given):
        best = int(np.argmax(scores))
        size = len(name.removeprefix("##"))
        made.append(
            Piece((name,), np.array(scores), LABELS[best], scores[best], at, at + size, index, word)
        )
        at += size
    return made


def test_a_word_is_labelled_by_each_strategy():
    given = pieces(
        ("un", 0, [0.4, 0.6, 0, 0]), ("##kind", 0, [0.1, 0, 0, 0.9]), ("go", 1, [1.0, 0, 0, 0])
    )
    found = {name: words_of(given, name, LABELS) for name in ("first", "average", "max")}
    assert [word.names for word in found["first"]] == [("un", "##kind"), ("go",)]
    assert {name: words[0].label for name, words in found.items()} == {
        "first": "B-PER",
        "average": "B-LOC",
        "max": "B-LOC",
    }
    assert found["average"][0].score == pytest.approx(0.45)
    assert (found["max"][0].start, found["max"][0].end) == (0, 6)


def test_of_equally_sure_tokens_a_word_takes_the_first():
    given = pieces(("un", 0, [0.1, 0, 0.9, 0]), ("##kind", 0, [0.9, 0, 0.1, 0]))
    (word,) = words_of(given, "max", LABELS)
    assert (word.label, word.score) == ("I-PER", 0.9)
    assert word.scores.tolist() == [0.1, 0, 0.9, 0]


@pytest.mark.parametrize("strategy", ["simple", "first", "average", "max"])
@settings(deadline=None, max_examples=25)
@given(text=st.text("aé ïß漢🙂'.Ω", min_size=1, max_size=12).filter(str.strip))
def test_words_of_byte_level_tokens_are_those_of_the_text(text, strategy):
    """Each token is decoded once: decoded text isn't taken for tokens again."""
    tags = HeadConfig("tokens", ("PER", "LOC"))
    for each in _byte_level(tags)(text, aggregation_strategy=strategy):
        assert each["word"].strip() == text[each["start"] : each["end"]].strip()


@functools.cache
def _byte_level(tags):
    return bedstone.pipeline("ner", model(tags, "roberta"))


def kinds(*labels, bioes=False):
    given = [
        Piece((f"w{i}",), np.zeros(1), label, 0.5, i, i + 1, i, i) for i, label in enumerate(labels)
    ]
    return [
        (each["entity_group"], each["start"], each["end"])
        for each in entities_of(given, bioes, joined)
    ]


def test_neighbours_of_one_type_are_one_entity():
    assert kinds("B-PER", "I-PER", "B-PER", "O", "I-LOC") == [
        ("PER", 0, 2),
        ("PER", 2, 3),
        ("O", 3, 4),
        ("LOC", 4, 5),
    ]
    assert kinds("NOUN", "NOUN", "VERB") == [("NOUN", 0, 2), ("VERB", 2, 3)]
    tags = ("B-PER", "E-PER", "S-PER", "B-LOC", "I-LOC", "E-LOC", "I-LOC")
    assert kinds(*tags, bioes=True) == [
        ("PER", 0, 2),
        ("PER", 2, 3),
        ("LOC", 3, 6),
        ("LOC", 6, 7),
    ]
    assert entities_of([], False, joined) == []


@pytest.mark.parametrize("stride", [None, 0, 9, 40])
def test_each_token_of_a_long_text_comes_once(ner, stride):
    found = ner(LONG, stride=stride, **EVERY)
    short = [ner(text, **EVERY) for text in SENTENCES]
    assert [each["word"] for each in found] == [x["word"] for one in short for x in one] * 8
    assert [each["index"] for each in found] == list(range(1, len(found) + 1))
    for each in found:
        part = LONG[each["start"] : each["end"]].lower()
        assert each["word"].removeprefix("##")[0] in (part[0], "z", "m", "u")
    groups = ner(LONG, stride=stride, aggregation_strategy="first", **EVERY)
    assert [each["start"] for each in groups] == sorted(each["start"] for each in groups)
    assert all(one["end"] <= two["start"] for one, two in pairwise(groups))


def test_words_in_lists(ner):
    words = ["Zoë", "", "unfriendly", "cat"]
    [found] = ner(words, is_split_into_words=True, aggregation_strategy="first", **EVERY)
    text = " ".join(words)
    assert text[found[-1]["start"] : found[-1]["end"]].endswith("cat")
    always = bedstone.pipeline("ner", ner.model, is_split_into_words=True)
    assert always([words, words], **EVERY) == [always(words, **EVERY)[0]] * 2
    assert list(always(iter([words]), **EVERY)) == always(words, **EVERY)
    long = LONG.split()
    tokens = always(long, **EVERY)[0]
    assert len({(each["start"], each["end"]) for each in tokens}) == len(tokens) > 200


@pytest.mark.parametrize(
    ("value", "options", "said"),
    [
        ([["a", 3]], {"is_split_into_words": True}, "word 1: is 3"),
        ([["a"], "go"], {"is_split_into_words": True}, r"inputs\[1\]: 'go'.*a list of words"),
        ([[]], {"is_split_into_words": True}, "words: are empty"),
        ([["a\ud800"]], {"is_split_into_words": True}, "half a character"),
        (["go", ["a", "b"]], {}, r"inputs\[1\]: .*expected a string"),
        ("go", {"aggregation_strategy": "frist"}, "perhaps 'first'"),
        ("go", {"ignore_labels": "O"}, "ignore_labels: 'O'"),
        ("go", {"ignore_labels": 3}, "ignore_labels: 3"),
        ([["a"]], {"is_split_into_words": True, "delimiter": 3}, "delimiter: 3"),
    ],
)
def test_what_is_wrong_is_told(ner, value, options, said):
    with pytest.raises(BedstoneError, match=said):
        ner(value, **options)


def test_older_names(ner):
    text = SENTENCES[1]
    assert ner(text, grouped_entities=True) == ner(text, aggregation_strategy="simple")
    both = {"grouped_entities": True, "ignore_subwords": True}
    assert ner(text, ignore_labels=None) == ner(text)
    assert ner(text, **both) == ner(text, aggregation_strategy="first")


def test_labels_without_prefixes():
    task = bedstone.pipeline("ner", model(HeadConfig("tokens", ("NOUN", "VERB", "E-MAIL"))))
    assert {each["entity"] for each in task(LONG)} <= {"NOUN", "VERB", "E-MAIL"}
