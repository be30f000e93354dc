"""Recall both ways and zero-shot accuracy, by hand-made vectors."""

import numpy as np
import pytest

from bedstone.errors import BedstoneError
from bedstone.metrics.retrieval import class_vectors, prompts, recall_at, retrieval, zero_shot


def test_recall_counts_the_nearest() -> None:
    similarity = np.array([[0.9, 0.1, 0.5], [0.8, 0.7, 0.9], [0.3, 0.2, 0.1]])
    right = np.eye(3, dtype=bool)
    assert recall_at(similarity, right, (1, 2, 3)).tolist() == [1 / 3, 1 / 3, 1.0]


def test_all_alike_finds_nothing() -> None:
    one = np.ones((20, 4)) / 2
    found = retrieval(one, one, np.arange(20), resamples=0)
    assert set(found.values.values()) == {0.0}


def test_several_texts_a_picture_and_equal_texts() -> None:
    images = np.eye(3)
    texts = np.array([[1.0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0.6, 0.8], [0, 0, 1]])
    owners = np.array([0, 0, 1, 2, 1])
    found = retrieval(images, texts, owners, ks=(1, 2), resamples=200)
    # picture 2's nearest text is another's; text 1 lies at picture 1, and so does its equal
    assert found["image_to_text_recall@1"] == pytest.approx(1 / 3)  # picture 1: tie with text 1
    assert found["text_to_image_recall@1"] == pytest.approx(3 / 5)
    # texts 1 and 2 are one text: right for both pictures
    groups = np.array([0, 1, 1, 2, 3])
    same = retrieval(images, texts, owners, groups, ks=(1, 2), resamples=200)
    assert same["image_to_text_recall@1"] == pytest.approx(2 / 3)
    assert same["text_to_image_recall@1"] == pytest.approx(4 / 5)
    low, high = same.intervals["text_to_image_recall@1"]
    assert low <= same["text_to_image_recall@1"] <= high and low < high
    assert same.main == "text_to_image_recall@1"


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    images, texts = random.normal(size=(30, 5)), random.normal(size=(60, 5))
    owners = np.repeat(np.arange(30), 2)
    whole = retrieval(images, texts, owners, resamples=0)
    monkeypatch.setattr("bedstone.metrics.retrieval.AT_ONCE", 100)
    assert retrieval(images, texts, owners, resamples=0).values == whole.values


def test_picture_without_text_is_told() -> None:
    with pytest.raises(BedstoneError, match="every picture needs"):
        retrieval(np.eye(3), np.eye(3)[:2], np.array([0, 1]))


def test_zero_shot_by_an_ensemble() -> None:
    assert prompts(["cat", "dog"], ["a {label}", "one {label}"])[1:3] == ["one cat", "a dog"]
    texts = np.array([[1.0, 0], [0.6, 0.8], [0, 1], [-0.6, 0.8]])
    vectors = class_vectors(texts, 2)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1)
    np.testing.assert_allclose(vectors[0], np.array([1.6, 0.8]) / np.hypot(1.6, 0.8))
    images = np.array([[1.0, 0], [0.8, 0.6], [0, 1], [1, 0]])
    found = zero_shot(images, vectors, np.array([0, 0, 1, 1]), ["cat", "dog"])
    assert found["accuracy"] == 0.75 and found["class_accuracy"] == 0.75
    assert found.confusion == [[2, 0], [1, 1]]
    low, high = found.intervals["accuracy"]
    assert low < 0.75 < high
    with pytest.raises(BedstoneError, match="two classes"):
        zero_shot(images, vectors[:1], np.zeros(4, int), ["cat"])


def test_zero_shot_of_one_point_is_nothing() -> None:
    alike = zero_shot(np.ones((3, 2)), np.ones((2, 2)), np.array([0, 0, 1]), ["a", "b"])
    assert alike["accuracy"] == 0.0
