"""Tasks by their names in version 4 of transformers: `pipeline("ner", model)`.

A task's module is loaded when the task is first used.
"""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model
from bedstone.checkpoints.pipeline import DiffusionPipeline
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError, nearest
from bedstone.runtime import pick_device
from bedstone.tasks.task import Task, embeds_images, reads_image_and_text

TASKS = {
    "text-classification": "text.text_classification:TextClassification",
    "token-classification": "text.token_classification:TokenClassification",
    "fill-mask": "text.fill_mask:FillMask",
    "zero-shot-classification": "text.zero_shot_classification:ZeroShotClassification",
    "question-answering": "text.question_answering:QuestionAnswering",
    "information-extraction": "text.question_answering:InformationExtraction",
    "feature-extraction": "text.feature_extraction:FeatureExtraction",
    "sentence-similarity": "text.feature_extraction:SentenceSimilarity",
    "semantic-search": "text.semantic_search:SemanticSearch",
    "text-generation": "text.text_generation:TextGeneration",
    "image-classification": "images.image_classification:ImageClassification",
    "zero-shot-image-classification": "images.image_classification:ZeroShotImageClassification",
    "image-feature-extraction": "images.image_classification:ImageFeatureExtraction",
    "image-to-text": "image_text.image_to_text:ImageToText",
    "visual-question-answering": "image_text.visual_question_answering:VisualQuestionAnswering",
    "image-text-matching": "image_text.image_text_matching:ImageTextMatching",
    "image-text-to-text": "image_text.image_text_to_text:ImageTextToText",
    "moderation": "moderation.moderation:Moderation",
    "similar-items": "search.recommend:SimilarItems",
    "complementary-items": "search.recommend:ComplementaryItems",
    "text-to-image": "media.tasks:TextToImage",
    "class-to-image": "media.tasks:ClassToImage",
    "unconditional-image-generation": "media.tasks:UnconditionalImageGeneration",
    "image-to-image": "media.tasks:ImageToImage",
    "text-to-audio": "media.tasks:TextToAudio",
    "class-to-audio": "media.tasks:ClassToAudio",
    "unconditional-audio-generation": "media.tasks:UnconditionalAudioGeneration",
    "text-to-video": "media.tasks:TextToVideo",
    "class-to-video": "media.tasks:ClassToVideo",
    "unconditional-video-generation": "media.tasks:UnconditionalVideoGeneration",
    "text-to-volume": "media.tasks:TextToVolume",
    "class-to-volume": "media.tasks:ClassToVolume",
    "unconditional-volume-generation": "media.tasks:UnconditionalVolumeGeneration",
}
ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}
ALIASES |= {"vqa": "visual-question-answering"}


def pipeline(
    task: str,
    model: Model | str | Path | None = None,
    *,
    tokenizer: Tokenizer | str | Path | None = None,
    precision: str = "fp32",
    device: str | int | torch.device = "auto",
    **options: Any,
) -> Any:
    """A task over a model, to be called with one input, a list, or a generator.

    Args:
        task: one of `TASKS`, or of `ALIASES`.
        model: a `Model`, a folder (a model's or a run's) or a hub id.
        tokenizer: another than the model's own.
        precision: of matrix products: fp32, bf16, auto for bf16 where the hardware has it, or
            mixed for fp32 with such bf16 in late MLPs alone (`nn/fast/inference.py`): embeddings
            stay the same to five digits of the cosine.
        device: cpu, cuda, ... or a number as in transformers (-1 is the CPU). A `Model` is moved
            there, and stays where it is with auto.
        options: the task's own, defaults of its calls.

    Raises:
        BedstoneError: the task is unknown, no model was named, or it has no head for the task.
    """
    kind = task_class(task)
    if model is None:
        raise BedstoneError(
            f"{task}: no model was named, and Bedstone takes none on its own. Give as model= the "
            f"folder or hub id of one with {kind.asks}."
        )
    where = _device(device)
    if not isinstance(model, Model):
        model = open_model(model, device=pick_device("auto") if where is None else where)
    elif where is not None:
        model.network.to(where)
    if tokenizer is not None:
        model = _with_tokenizer(model, tokenizer)
    check_head(kind, model)
    return kind(model, precision=precision, **options)


def task_class(task: str) -> type[Task]:
    """The class of a task, by its name or its alias.

    Raises:
        BedstoneError: there is none of that name.
    """
    name = ALIASES.get(task, task) if isinstance(task, str) else task
    if not isinstance(name, str) or name not in TASKS:
        raise BedstoneError(f"task: {task!r} is unknown{nearest(str(task), [*TASKS, *ALIASES])}.")
    module, _, found = TASKS[name].partition(":")
    kind: type[Task] = getattr(importlib.import_module(f"bedstone.tasks.{module}"), found)
    return kind


def check_head(kind: type[Task], model: Model) -> None:
    """Raises BedstoneError if the model lacks what the task needs."""
    if _fits(kind, model):
        return
    head = getattr(model.config, "head", None)
    labels = f" with the labels {', '.join(head.labels[:8])}" if head and head.labels else ""
    has = f"has the head {head.kind!r}{labels}" if head else f"is a {model.config.layout}"
    if isinstance(model, DiffusionPipeline):
        has = f"draws {model.signal.kind}: {model.inputs()}"
    able = [name for name in TASKS if _fits(task_class(name), model)]
    raise BedstoneError(
        f"{kind.name}: needs {kind.asks}; {model.path or 'this model'} {has}, which can do "
        f"{', '.join(able) or 'no task'}. Choose one of these, or fine-tune the model for the task."
    )


def _fits(kind: type[Task], model: Model) -> bool:
    if isinstance(model, DiffusionPipeline) or kind.reads == "prompts":
        return kind.reads == "prompts" and kind.fits(model)
    if not hasattr(model.config, "head"):  # an autoencoder, or what else answers nobody
        return False
    if kind.reads == "pictures":
        able = embeds_images(model) or reads_image_and_text(model)
    else:  # a GPT that sees reads texts alone too
        able = kind.reads == "both" or not (embeds_images(model) or reads_image_and_text(model))
        able = able or (reads_image_and_text(model) and model.network.causal)
    return able and kind.fits(model)


def _with_tokenizer(model: Model, tokenizer: Tokenizer | str | Path) -> Model:
    chosen = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer.load(tokenizer)
    if chosen.vocab_size > model.config.vocab_size:
        raise BedstoneError(
            f"tokenizer: has {chosen.vocab_size:,} tokens, the model's weights "
            f"{model.config.vocab_size:,}. Take both from the same model."
        )
    return replace(model, tokenizer=chosen)


def _device(device: str | int | torch.device) -> torch.device | None:
    """None for auto."""
    if device == "auto":
        return None
    if isinstance(device, int):
        return pick_device("cpu" if device < 0 else f"cuda:{device}")
    return pick_device(str(device))
