"""Tasks by their names: `pipeline("ner", model)`, as users of version 4 of transformers know them.

A task's module is loaded when the task is first asked for.
"""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bedstone.checkpoints.artefact import Model
from bedstone.checkpoints.drawing import DrawingModel
from bedstone.checkpoints.opening import open_model
from bedstone.data.tokenizer import Tokenizer
from bedstone.errors import BedstoneError, nearest
from bedstone.runtime import pick_device
from bedstone.tasks.task import Task, sees, tells

TASKS = {
    "text-classification": "classify:TextClassification",
    "token-classification": "entities:TokenClassification",
    "fill-mask": "fill:FillMask",
    "zero-shot-classification": "zero_shot:ZeroShotClassification",
    "question-answering": "answers:QuestionAnswering",
    "information-extraction": "answers:InformationExtraction",
    "feature-extraction": "embed:FeatureExtraction",
    "sentence-similarity": "embed:SentenceSimilarity",
    "semantic-search": "search:SemanticSearch",
    "text-generation": "write:TextGeneration",
    "image-classification": "see:ImageClassification",
    "zero-shot-image-classification": "see:ZeroShotImageClassification",
    "image-feature-extraction": "see:ImageFeatureExtraction",
    "image-to-text": "caption:ImageToText",
    "visual-question-answering": "ask_picture:VisualQuestionAnswering",
    "image-text-matching": "match:ImageTextMatching",
    "image-text-to-text": "picture_chat:PictureChat",
    "moderation": "moderate:Moderation",
    "similar-items": "catalogue:SimilarItems",
    "complementary-items": "complementary:ComplementaryItems",
    "text-to-image": "draw_tasks:TextToImage",
    "class-to-image": "draw_tasks:ClassToImage",
    "unconditional-image-generation": "draw_tasks:UnconditionalImageGeneration",
    "image-to-image": "draw_tasks:ImageToImage",
    "text-to-audio": "draw_tasks:TextToAudio",
    "class-to-audio": "draw_tasks:ClassToAudio",
    "unconditional-audio-generation": "draw_tasks:UnconditionalAudioGeneration",
    "text-to-video": "draw_tasks:TextToVideo",
    "class-to-video": "draw_tasks:ClassToVideo",
    "unconditional-video-generation": "draw_tasks:UnconditionalVideoGeneration",
    "text-to-volume": "draw_tasks:TextToVolume",
    "class-to-volume": "draw_tasks:ClassToVolume",
    "unconditional-volume-generation": "draw_tasks:UnconditionalVolumeGeneration",
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
            mixed for fp32 with such bf16 in late MLPs alone (`nn/mixed.py`): embeddings stay the
            same to five digits of the cosine.
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
    if isinstance(model, DrawingModel):
        has = f"draws {model.signal.kind}: {model.told()}"
    able = [name for name in TASKS if _fits(task_class(name), model)]
    raise BedstoneError(
        f"{kind.name}: needs {kind.asks}; {model.path or 'this model'} {has}, which can do "
        f"{', '.join(able) or 'no task'}. Choose one of these, or fine-tune the model for the task."
    )


def _fits(kind: type[Task], model: Model) -> bool:
    if isinstance(model, DrawingModel) or kind.reads == "prompts":
        return kind.reads == "prompts" and kind.fits(model)
    if not hasattr(model.config, "head"):  # an autoencoder, or what else answers nobody
        return False
    if kind.reads == "pictures":
        able = sees(model) or tells(model)
    else:  # a GPT that sees reads texts alone too
        able = kind.reads == "both" or not (sees(model) or tells(model))
        able = able or (tells(model) and model.network.causal)
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
