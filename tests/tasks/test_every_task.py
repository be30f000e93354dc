"""Every task of the table passes `check_task` on a small model."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from bedstone.checkpoints.model import Model
from bedstone.data.signals.signals import TASKS as MEDIA
from bedstone.models.heads import HeadConfig
from bedstone.tasks.pipeline import TASKS
from drawings import drawing
from encoder_decoders import small_model
from image_models import clip_model, labelled_model, pictures
from image_text_models import told_model
from small_models import NLI, SENTENCES, TAGS, decoder, model
from task_checks import check_task
from unclips import unclip

LABELS = HeadConfig("sequence", ("bad", "fair", "good"))
TEXTS = SENTENCES[:4]
POLICY = {
    "categories": {"pets": {"sentences": ["a cat"], "threshold": 0.5, "action": "flag"}},
    "counters": ["a film"],
}
CATALOGUE = [{"id": str(number), "text": text} for number, text in enumerate(SENTENCES)]
CONTEXT = "Zoë Müller flew from Paris to New York in the evening."


@dataclass(frozen=True)
class Case:
    """A small model of a task, inputs that it reads and one that it can't."""

    model: Callable[[], Model]
    inputs: Sequence[Any]
    bad: Any = 3
    said: str = "expected"
    options: dict[str, Any] = field(default_factory=dict)


@functools.cache
def encoder(kind: str) -> Model:
    return model(HeadConfig(kind))


def text(head: HeadConfig, inputs: Sequence[Any] = tuple(TEXTS), **options: Any) -> Case:
    return Case(lambda: model(head), inputs, options=options)


def media(task: str) -> Case:
    condition, kind = MEDIA[task]
    inputs = {"none": [None] * 3, "class": ["dog", "cat", 2], "text": ["ink", "star", "a circle"]}
    bad = {"none": "ink", "class": "bird", "text": 3.5}[condition]
    said = {"none": "Leave it out", "class": "'bird' is unknown", "text": "expected words"}
    return Case(lambda: drawing(condition, kind), inputs[condition], bad, said[condition])


def questions(*texts: str) -> list[dict[str, str]]:
    return [{"question": text, "context": CONTEXT} for text in texts]


PICTURES = pictures(4, seed=1)
ASKED = ["how many green stars are there?", "what colour is the large one?", "yes", "no"]
CASES: dict[str, Case] = {
    "text-classification": text(LABELS),
    "token-classification": text(TAGS, ignore_labels=[]),
    "fill-mask": text(HeadConfig("language"), [f"{each} [MASK]" for each in TEXTS]),
    "zero-shot-classification": text(NLI, candidate_labels=["sport", "film"]),
    "question-answering": Case(
        lambda: encoder("spans"), questions("who flew?", "where from?", "when?")
    ),
    "information-extraction": Case(
        lambda: encoder("spans"), TEXTS, options={"fields": {"who": "who?"}, "threshold": 0}
    ),
    "feature-extraction": text(HeadConfig("states")),
    "sentence-similarity": text(
        HeadConfig("states"),
        [{"source_sentence": each, "sentences": ["a cat", "a film"]} for each in TEXTS],
    ),
    "semantic-search": text(HeadConfig("states"), texts=SENTENCES, top_k=2),
    "text-generation": Case(
        lambda: decoder(HeadConfig("language"), "gpt2"), TEXTS, options={"max_new_tokens": 5}
    ),
    "multiple-choice": Case(
        lambda: decoder(HeadConfig("language"), "llama"),
        [{"question": each[:12], "choices": ["a cat", "Paris", "go"]} for each in TEXTS],
    ),
    **{
        task: Case(small_model, TEXTS, options={"return_scores": True})
        for task in ("text2text-generation", "translation", "summarization")
    },
    "image-classification": Case(labelled_model, PICTURES),
    "zero-shot-image-classification": Case(
        clip_model, PICTURES, options={"candidate_labels": ["a circle", "a square"]}
    ),
    "image-feature-extraction": Case(clip_model, PICTURES),
    "image-to-text": Case(told_model, PICTURES, options={"return_scores": True}),
    "visual-question-answering": Case(
        told_model,
        [{"image": image, "question": each} for image, each in zip(PICTURES, ASKED, strict=True)],
    ),
    "image-text-matching": Case(
        told_model,
        [{"image": image, "text": each} for image, each in zip(PICTURES, ASKED, strict=True)],
    ),
    "image-text-to-text": Case(
        told_model,
        [{"image": image, "text": each} for image, each in zip(PICTURES, ASKED, strict=True)],
    ),
    "moderation": Case(lambda: encoder("states"), TEXTS, options={"policy": POLICY}),
    "similar-items": Case(
        lambda: encoder("states"),
        [{"text": each} for each in TEXTS],
        3.5,
        options={"catalogue": CATALOGUE},
    ),
    "complementary-items": Case(
        lambda: encoder("states"),
        [{"text": each} for each in TEXTS],
        3.5,
        options={"catalogue": CATALOGUE, "pairs": [{"items": ["0", "1"]}, {"items": ["2", "3"]}]},
    ),
    "image-to-image": Case(
        lambda: drawing("text"),
        [{"image": image, "prompt": "ink"} for image in pictures(3, 16)],
        options={"strength": 0.5},
    ),
    "image-variation": Case(unclip, pictures(3, 16)),
    **{task: media(task) for task in MEDIA},
}


def test_every_task_of_the_table_has_a_case():
    assert set(CASES) == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_what_holds_for_every_task(name, tmp_path, monkeypatch):
    monkeypatch.setenv("BEDSTONE_CACHE", str(tmp_path))
    case = CASES[name]
    check_task(name, case.model(), case.inputs, case.bad, case.said, **case.options)
