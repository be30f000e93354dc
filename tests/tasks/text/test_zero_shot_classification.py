"""zero-shot-classification: by entailment, by embeddings, and what is asked of its labels."""

import numpy as np
import pytest
import torch

import bedstone
from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from bedstone.nn.layers import Pooling
from small_models import NLI, SENTENCES, model

CANDIDATES = ["sport", "weather", "film"]
LONG = " ".join(SENTENCES * 8)


@pytest.fixture(scope="module")
def judge():
    return bedstone.pipeline("zero-shot-classification", model(NLI))


@pytest.fixture(scope="module")
def embedder():
    made = model(HeadConfig("states"))
    made.pooling = Pooling(("mean",), normalise=True)
    return bedstone.pipeline("zero-shot-classification", made)


def test_the_contradiction_is_found_by_its_name(judge):
    """The same network with its outputs in another order gives the same scores."""
    other = model(HeadConfig("sequence", ("neutral", "Entailment", "CONTRADICTION")))
    order = [1, 2, 0]
    source = model(NLI).network.head.out
    with torch.no_grad():
        other.network.head.out.weight.copy_(source.weight[order])
        other.network.head.out.bias.copy_(source.bias[order])
    task = bedstone.pipeline("zero-shot-classification", other)
    for multi in (False, True):
        one = judge("a film", CANDIDATES, multi_label=multi)
        two = task("a film", CANDIDATES, multi_label=multi)
        assert one["labels"] == two["labels"]
        assert one["scores"] == pytest.approx(two["scores"], abs=1e-6)


def test_labels_come_as_a_list_or_with_commas(judge):
    one = judge("go", candidate_labels=CANDIDATES)
    assert judge("go", " sport,weather , film,") == one
    assert judge(sequences="go", candidate_labels=tuple(CANDIDATES)) == one
    assert one["sequence"] == "go"
    assert sum(one["scores"]) == pytest.approx(1)
    assert one["scores"] == sorted(one["scores"], reverse=True)
    assert judge("go", CANDIDATES, multi_class=True) == judge("go", CANDIDATES, multi_label=True)


def test_embeddings_are_compared(embedder):
    vectors = embedder.vectors(["a red cat", *CANDIDATES])
    cosines = vectors[1:] @ vectors[0]
    expected = torch.from_numpy(cosines * 20).softmax(-1).tolist()
    found = embedder(["a red cat"] * 2, CANDIDATES)[0]
    ranked = sorted(zip(expected, CANDIDATES, strict=True), reverse=True)
    assert found["labels"] == [label for _, label in ranked]
    assert found["scores"] == pytest.approx([score for score, _ in ranked], abs=1e-4)
    several = embedder("a red cat", CANDIDATES, multi_label=True)
    assert several["scores"] == pytest.approx(sorted(cosines.clip(0), reverse=True), abs=1e-5)
    other = embedder("a red cat", CANDIDATES, hypothesis_template="This is {}.")
    assert other["scores"] != found["scores"]  # labels embedded before are not taken for these


def test_a_long_text_is_embedded_whole(embedder):
    one = embedder(LONG + " dull", CANDIDATES)
    two = embedder(LONG + " unfriendly", CANDIDATES)
    assert not np.allclose(sorted(one["scores"]), sorted(two["scores"]), atol=1e-7)


@pytest.mark.parametrize("name", ["judge", "embedder"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "candidate_labels: none were given"),
        ({"candidate_labels": []}, "candidate_labels: none were given"),
        ({"candidate_labels": " , "}, "candidate_labels: none were given"),
        ({"candidate_labels": ["a", 3]}, "candidate_labels: holds 3"),
        ({"candidate_labels": ["a", ""]}, "candidate_labels: holds ''"),
        ({"candidate_labels": ["a", "b", "a "]}, "candidate_labels: 'a ' is there twice"),
        ({"candidate_labels": "a, b, a"}, "candidate_labels: 'a' is there twice"),
        ({"candidate_labels": 3}, "candidate_labels: 3"),
        ({"candidate_labels": "a", "hypothesis_template": "It is."}, "no place for the label"),
        ({"candidate_labels": "a", "hypothesis_template": "{x} {}"}, "no place for the label"),
        ({"candidate_labels": "a", "hypothesis_template": 3}, "no place for the label"),
        ({"candidate_labels": "a\ud800"}, "half a character"),
    ],
)
def test_what_is_wrong_is_told(name, options, said, request):
    with pytest.raises(BedstoneError, match=said):
        request.getfixturevalue(name)("go", **options)
    with pytest.raises(BedstoneError, match=r"inputs\[1\]: .*is empty"):
        request.getfixturevalue(name)(["go", ""], "a")
