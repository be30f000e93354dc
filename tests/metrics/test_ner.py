"""Entities by conlleval's definition, whatever the scheme of the tags."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from nervaluate import Evaluator

from bedstone.errors import BedstoneError
from bedstone.metrics.ner import entities, entity_spans

TAGS = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("PER", "LOC"))]
INNER = [tag for tag in TAGS if tag[0] in "OBI"]


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O O", []),
        ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
        ("O I-PER I-PER", [("PER", 1, 2)]),  # I- after O begins one
        ("B-PER I-LOC", [("PER", 0, 0), ("LOC", 1, 1)]),  # I- of another type too
        ("B-PER B-PER I-PER", [("PER", 0, 0), ("PER", 1, 2)]),  # neighbours
        ("I-PER B-PER I-PER", [("PER", 0, 0), ("PER", 1, 2)]),  # IOB1
        ("B-PER I-PER E-PER S-PER S-PER", [("PER", 0, 2), ("PER", 3, 3), ("PER", 4, 4)]),
        ("B-PER E-PER I-PER", [("PER", 0, 1), ("PER", 2, 2)]),
        ("B-PER L-PER U-LOC", [("PER", 0, 1), ("LOC", 2, 2)]),  # BILOU
        ("PER PER O LOC", [("PER", 0, 1), ("LOC", 3, 3)]),  # no prefixes
        ("B-event-sport I-event-sport", [("event-sport", 0, 1)]),
        ("B I O I", [("_", 0, 1), ("_", 3, 3)]),
    ],
)
def test_spans(tags, spans):
    assert entity_spans(tags.split()) == spans


def joined(tags):
    """The same definition, said of pairs: does a token go on with the entity of the one before?"""
    spans = []
    for place, tag in enumerate(tags):
        if tag == "O":
            continue
        before = tags[place - 1] if place else "O"
        goes_on = before[0] in "BI" and tag[0] in "IE" and before[2:] == tag[2:]
        start = spans.pop()[1] if goes_on else place
        spans.append((tag[2:], start, place))
    return spans


@given(some.lists(some.sampled_from(TAGS), max_size=12))
def test_spans_of_any_tags(tags):
    assert entity_spans(tags) == joined(tags)


def by_sets(predicted, actual):
    guess = {(row, *span) for row, tags in enumerate(predicted) for span in joined(tags)}
    truth = {(row, *span) for row, tags in enumerate(actual) for span in joined(tags)}
    right = len(guess & truth)
    return 2 * right / (len(guess) + len(truth)) if guess or truth else 0.0


def sentences(tags):
    tag = some.sampled_from(tags)
    return some.lists(
        some.integers(1, 8).flatmap(
            lambda n: some.tuples(*[some.lists(tag, min_size=n, max_size=n)] * 2)
        ),
        min_size=1,
        max_size=5,
    ).map(lambda pairs: tuple(map(list, zip(*pairs, strict=True))))


@settings(max_examples=60, deadline=None)
@given(sentences(TAGS))
def test_f1_is_conllevals(pair):
    assert entities(*pair, resamples=0).score == pytest.approx(by_sets(*pair))


@settings(max_examples=60, deadline=None)
@given(sentences(INNER))
def test_on_inside_outside_tags_nervaluate_agrees(pair):
    predicted, actual = pair
    peer = Evaluator(actual, predicted, tags=["PER", "LOC"], loader="list").evaluate()
    found = entities(predicted, actual, resamples=0)
    assert found.score == pytest.approx(peer["overall"]["strict"].f1)
    for kind, figures in peer["entities"].items():
        assert found[f"f1/{kind}"] == pytest.approx(figures["strict"].f1)


def test_figures_by_hand():
    predicted = [["B-PER", "I-PER", "O"], ["B-LOC", "O"], ["O"]]
    actual = [["B-PER", "I-PER", "O"], ["B-PER", "O"], ["B-LOC"]]
    found = entities(predicted, actual)
    assert found["precision"] == 1 / 2 and found["recall"] == 1 / 3 and found["f1"] == 2 / 5
    assert found["recall/PER"] == 1 / 2 and found["precision/PER"] == 1 and found["f1/LOC"] == 0
    assert found["accuracy"] == 4 / 6
    assert found.support == {"LOC": 1, "PER": 2} and found.rows == 3
    low, high = found.intervals["f1"]
    assert low == 0 and high == 1
    assert found == entities(predicted, actual)


def test_all_outside_is_no_error():
    found = entities([["O", "O"]], [["O", "O"]])
    assert found["f1"] == 0 and found["accuracy"] == 1


@pytest.mark.parametrize(
    ("predicted", "actual", "named"),
    [
        ([], [], "no sentences"),
        ([["O"]], [["O"], ["O"]], "1 predictions for 2 sentences"),
        ([["O"]], [["O", "O"]], "sentence 0: 1 tags for 2 tokens"),
        (["O"], [["O"]], "predicted, sentence 0: is one string"),
        ([["O"]], [[0]], "actual, sentence 0: 0 is no tag"),
    ],
)
def test_bad_input_is_named(predicted, actual, named):
    with pytest.raises(BedstoneError, match=named):
        entities(predicted, actual)
