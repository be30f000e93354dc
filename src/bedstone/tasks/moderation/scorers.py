"""Raw scores of texts and images for each category of a policy, with their reasons.

By sentences: the cosine with the nearest sentence of the category, less that with the nearest
counter-sentence, if there are any. By labels: the log-odds of a classifier's labels.

Shapes: n texts or images, C categories, E numbers of an embedding.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bedstone.checkpoints.model import Model
from bedstone.data.text.sentences import sentences
from bedstone.errors import BedstoneError, nearest
from bedstone.tasks.moderation.policy import Policy, sigmoid
from bedstone.tasks.task import embeds_images
from bedstone.tasks.text.feature_extraction import Embeds, scale_of
from bedstone.tasks.text.text_classification import TextClassification

WHOLE = 300  # characters of a text that is read as one: about a CLIP's context, or a tweet
PASSAGE = 120  # of a stretch of a longer one, in which a bad line must not drown


@dataclass(frozen=True)
class Scored:
    """Raw scores of n texts or images, and the reason of each.

    Attributes:
        raw: (n, C) any numbers, the higher the likelier: what calibration starts from.
        plain: (n, C) from 0 to 1: scores where nothing was calibrated; no probabilities.
        why: for each, for each category the sentence or label that was nearest.
        vectors: (n, E) embeddings of length 1; of a text of several passages, their mean. None of
            a classifier.
    """

    raw: np.ndarray
    plain: np.ndarray
    why: list[list[str]]
    vectors: np.ndarray | None = None


class Scorer(Protocol):
    """Scores texts and images by one policy."""

    def texts(self, texts: Sequence[str]) -> Scored:
        """Of each text its worst passage counts."""

    def images(self, images: Sequence[Any]) -> Scored:
        """Of images."""


class BySentences:
    """Compares embeddings with those of a policy's sentences.

    Args:
        embedder: whose `texts` and `images` give vectors of length 1.
        scale: of cosines, where a sentence is weighed against a counter-sentence.
    """

    def __init__(self, embedder: Embeds, policy: Policy, scale: float) -> None:
        self.embedder, self.scale = embedder, scale
        self.sides = [policy.sentences_of(name) for name in policy.categories]
        known = list(dict.fromkeys(each for sides in self.sides for side in sides for each in side))
        place = {text: number for number, text in enumerate(known)}
        self.known = self.embedder.texts(known)
        self.places = [[[place[each] for each in side] for side in sides] for sides in self.sides]

    def texts(self, texts: Sequence[str]) -> Scored:
        parts = [passages(text) for text in texts]
        vectors = self.embedder.texts([part for each in parts for part in each])
        return self._scored(vectors, [len(each) for each in parts])

    def images(self, images: Sequence[Any]) -> Scored:
        return self._scored(self.embedder.images(images), [1] * len(images))

    def _scored(self, vectors: np.ndarray, counts: Sequence[int]) -> Scored:
        starts = np.cumsum([0, *counts[:-1]])
        cosines = vectors @ self.known.T
        raw, plain, why = [], [], []
        for (sentences_, _), (own, against) in zip(self.sides, self.places, strict=True):
            near = cosines[:, own]
            score = near.max(1)
            if against:
                score = score - cosines[:, against].max(1)
            worst = _worst(score, starts, counts)
            raw.append(score[worst])
            plain.append(
                sigmoid(self.scale * raw[-1]) if against else np.clip(score[worst], 0.0, 1.0)
            )
            why.append([sentences_[place] for place in near[worst].argmax(1)])
        sums = np.add.reduceat(vectors, starts, axis=0)
        means = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        reasons = [list(each) for each in zip(*why, strict=True)]
        return Scored(np.stack(raw, 1).astype(float), np.stack(plain, 1), reasons, means)


class ByLabels:
    """Reads the labels of a classifier of texts, or of images, as categories.

    Of one label among several, those of a category are added; of any number of them, the likeliest
    counts.
    """

    def __init__(self, model: Model, policy: Policy, precision: str) -> None:
        head = model.config.head
        self.model, self.adds = model, head.measured_as == "single"
        self.labels = [list(each.labels) for each in policy.categories.values()]
        for name, each in policy.categories.items():
            for label in each.labels:
                if label not in head.labels:
                    raise BedstoneError(
                        f"{policy.where}: categories.{name}.labels: the model has no label "
                        f"{label!r}{nearest(label, head.labels)}."
                    )
        self.reads_text = not embeds_images(model)
        if self.reads_text:
            self.classify: Any = TextClassification(model, precision=precision)
        else:
            from bedstone.tasks.images.image_classification import ImageClassification

            self.classify = ImageClassification(model, precision=precision)

    def texts(self, texts: Sequence[str]) -> Scored:
        if not self.reads_text:
            raise BedstoneError(f"{self.model.path}: classifies pictures, and a text was given.")
        parts = [passages(text) for text in texts]
        return self._scored([part for each in parts for part in each], [len(p) for p in parts])

    def images(self, images: Sequence[Any]) -> Scored:
        if self.reads_text:
            raise BedstoneError(f"{self.model.path}: classifies texts, and a picture was given.")
        return self._scored(list(images), [1] * len(images))

    def _scored(self, parts: list[Any], counts: Sequence[int]) -> Scored:
        starts = np.cumsum([0, *counts[:-1]])
        found = [
            {each["label"]: each["score"] for each in one}
            for one in self.classify(parts, top_k=None)
        ]
        raw, plain, why = [], [], []
        for labels in self.labels:
            each = np.array([[one[label] for label in labels] for one in found])
            score = np.clip(each.sum(1) if self.adds else each.max(1), 0, 1)
            worst = _worst(score, starts, counts)
            plain.append(score[worst])
            safe = np.clip(plain[-1], 1e-7, 1 - 1e-7)
            raw.append(np.log(safe / (1 - safe)))
            why.append([labels[place] for place in each[worst].argmax(1)])
        reasons = [list(each) for each in zip(*why, strict=True)]
        return Scored(np.stack(raw, 1), np.stack(plain, 1), reasons)


def passages(text: str) -> list[str]:
    """A long text split into passages of about `PASSAGE` characters; a short one whole.

    Stretches are whole sentences. One longer than that stands alone, and one longer than `WHOLE` is
    parted between words, a word longer than that anywhere.
    """
    if len(text) <= WHOLE:
        return [text]
    pieces: list[str] = []
    for sentence in sentences(text):
        pieces += re.findall(rf"\S.{{0,{WHOLE - 1}}}(?!\S)|\S{{1,{WHOLE}}}", sentence, re.S)
    found = [""]
    for piece in pieces:
        if found[-1] and len(found[-1]) + 1 + len(piece) > PASSAGE:
            found.append("")
        found[-1] = f"{found[-1]} {piece}".strip()
    return found


def _worst(score: np.ndarray, starts: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Of each text, the number of the passage with the highest score."""
    return np.array(
        [
            start + int(score[start : start + count].argmax())
            for start, count in zip(starts, counts, strict=True)
        ],
        dtype=int,
    )


def scorer_of(model: Model, embedder: Embeds | None, policy: Policy, precision: str) -> Scorer:
    """What scores by this policy with this model.

    Raises:
        BedstoneError: the policy asks for labels of a model that has none, or for sentences of one
            that doesn't embed.
    """
    head = getattr(model.config, "head", None)
    if policy.by_labels:
        if not classifies(model):
            raise BedstoneError(
                f"{policy.where}: names labels of a classifier, and {model.path or 'the model'} "
                "is none. Describe the categories in sentences, or name a classifier."
            )
        return ByLabels(model, policy, precision)
    if embedder is None:
        has = ", ".join(head.labels[:8]) if head else ""
        raise BedstoneError(
            f"{policy.where}: describes categories in sentences, which needs a model that embeds; "
            f"{model.path or 'the model'} has the labels {has}. Name those of each category, as "
            "labels: [...], instead of sentences."
        )
    return BySentences(embedder, policy, scale_of(model))


def classifies(model: Model) -> bool:
    """Whether a model has labels for a text or an image."""
    head = getattr(model.config, "head", None)
    if head is None or not getattr(head, "labels", ()):
        return False
    return bool(head.kind == "sequence" and head.problem != "regression")
