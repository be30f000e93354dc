"""Tasks by their names in version 4 of transformers: `pipeline("ner", model)`.

A task's module is loaded when the task is first used.
"""

import importlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model
from bedstone.checkpoints.pipeline import MediaPipeline
from bedstone.data.text.marian_tokenizer import load_tokenizer
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError, nearest
from bedstone.remote.endpoint import is_remote
from bedstone.remote.model import RemoteModel
from bedstone.runtime import pick_device
from bedstone.tasks.task import Task, embeds_images, reads_image_and_text, shown

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
    "text2text-generation": "text.text2text_generation:Text2TextGeneration",
    "multiple-choice": "text.prompted_tasks:MultipleChoice",
    "translation": "text.translation:Translation",
    "summarization": "text.text2text_generation:Summarization",
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
    "image-variation": "media.tasks:ImageVariation",
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
# What a decoder without a head for a task does by prompting.
PROMPTED = {
    "text-classification": "text.prompted_tasks:PromptedClassification",
    "zero-shot-classification": "text.prompted_tasks:PromptedZeroShot",
    "multiple-choice": "text.prompted_tasks:MultipleChoice",
    "token-classification": "text.prompted_tasks:PromptedEntities",
    "question-answering": "text.prompted_tasks:PromptedAnswering",
    "translation": "text.prompted_tasks:PromptedTranslation",
    "summarization": "text.prompted_tasks:PromptedSummarization",
}
REMOTE = "text.remote_generation:RemoteTextGeneration"
ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}
ALIASES |= {"vqa": "visual-question-answering"}
_PAIR = re.compile(r"translation_(\w+?)_to_(\w+)")  # as version 4 names a pair of languages


def pipeline(
    task: str | None = None,
    model: Model | RemoteModel | str | Path | None = None,
    *,
    tokenizer: Tokenizer | str | Path | None = None,
    precision: str | None = None,
    device: str | int | torch.device = "auto",
    revision: str | None = None,
    **options: Any,
) -> Task:
    """A task over a model, to be called with one input, a list, or a generator.

        classify = bedstone.pipeline("text-classification", "runs/sentiment")
        classify("a lovely evening")  # [{"label": "good", "score": 0.98}]

    Args:
        task: one of `TASKS`, or of `ALIASES`, or translation_xx_to_yy; None takes the one that the
            model was made for.
        model: a `Model`, a folder (a model's or a run's), a short name such as `minilm`, or a
            hub id. A decoder does the tasks of `PROMPTED` by prompting; so does a model behind an
            endpoint: `openai:NAME`, `http://host/v1#NAME`, or a `RemoteModel`.
        tokenizer: another than the model's own.
        precision: fp32 (as None), bf16, auto for bf16 where the hardware has it, int8 or int4,
            which quantise weights, or mixed for fp32 with such bf16 in late MLPs alone
            (`nn/fast/inference.py`): embeddings stay the same to five digits of the cosine.
        device: cpu, cuda, ... or a number as in transformers (-1 is the CPU). A `Model` is moved
            there, and stays where it is with auto.
        revision: branch, tag or commit of a hub id.
        options: the task's own, defaults of its calls. Of version 4 of transformers also
            `torch_dtype`, `dtype`, `device_map`, `model_kwargs`, and what has no effect here.

    Raises:
        BedstoneError: the task is unknown, no model was named, or it has no head for the task.
    """
    opening, options = published_arguments(options)
    device = opening.get("device", device)
    precision, revision = (
        precision or opening.get("precision", "fp32"),
        opening.get("revision", revision),
    )
    if task is None and model is None:
        raise BedstoneError("task: none was given, and no model that says one. Name either.")
    if isinstance(task, Model):
        raise BedstoneError("task: a model was given; name it as model=.")
    kind = None if task is None else task_class(task)
    if model is None:
        assert kind is not None
        raise BedstoneError(
            f"{task}: no model was named, and Bedstone takes none on its own. Give as model= the "
            f"folder or hub id of one with {kind.asks}."
        )
    if is_remote(model):
        model = RemoteModel(str(model))
    if isinstance(model, RemoteModel):
        return _remote_task(kind, model, {**named_options(task), **options})
    where = _device(device)
    if not isinstance(model, Model):
        on = pick_device("auto") if where is None else where
        model = open_model(model, device=on, revision=revision)
    elif where is not None:
        model.network.to(where)
    if tokenizer is not None:
        model = _with_tokenizer(model, tokenizer)
    kind = kind or task_class(natural_task(model))
    if kind.name in PROMPTED and is_decoder(model):
        kind = prompted_class(kind.name)
    check_head(kind, model)
    return kind(model, precision=precision, **{**named_options(task), **options})


def _remote_task(kind: type[Task] | None, model: RemoteModel, options: dict[str, Any]) -> Task:
    """A task over a model behind an endpoint.

    Raises:
        BedstoneError: it can't be done from there.
    """
    name = "text-generation" if kind is None else kind.name
    made: Any = _found(REMOTE) if name == "text-generation" else None
    if name in PROMPTED:
        made = prompted_class(name)
    if made is None:
        raise BedstoneError(
            f"{name}: needs {task_class(name).asks} on this machine; {model.address} is asked for "
            f"text-generation, {', '.join(PROMPTED)}."
        )
    task: Task = made(model, **options)
    return task


def natural_task(model: Model) -> str:
    """The name of the task that a model was made for: that which it learnt to write texts over
    sources for, or the first that its head can do.

    Raises:
        BedstoneError: there is none.
    """
    if model.writes_text:
        return "text-generation"
    recipe = model.record.get("recipe")
    learnt = recipe.get("task") if isinstance(recipe, Mapping) else None
    kind = task_class(str(learnt)) if learnt in TASKS else None
    if kind is not None and "source" in kind.fields and _fits(kind, model):
        return kind.name
    for name in TASKS:
        # any encoder can do that one by its vectors
        if name != "zero-shot-classification" and _fits(task_class(name), model):
            return name
    raise BedstoneError(
        f"{model.path or 'this model'}: is a {model.config.layout}, which can do no task. "
        "Fine-tune it for one."
    )


# Arguments of version 4 of transformers: what each stands for here, or why it is refused.
HARMLESS = ("framework", "use_fast", "low_cpu_mem_usage", "attn_implementation", "use_safetensors")
REFUSED = {
    "token": "a hub's token is read from the environment, HF_TOKEN",
    "use_auth_token": "a hub's token is read from the environment, HF_TOKEN",
    "config": "a model is opened by its own config.json",
    "feature_extractor": "images are read as the model's own preprocessor_config.json says",
    "image_processor": "images are read as the model's own preprocessor_config.json says",
    "processor": "inputs are read as the model's own folder says",
    "quantization_config": "quantise by precision='int8' or precision='int4'",
    "streamer": "stream by bedstone.generation.text.stream_text, or `bedstone generate`",
}
FEW_BITS = {"load_in_8bit": "int8", "load_in_4bit": "int4"}
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "auto": "auto", "int8": "int8"}


def published_arguments(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of transformers' `pipeline` as ours: (how a model is opened, options that stay).

    Raises:
        BedstoneError: one is refused, with what to use.
    """
    inner = given.get("model_kwargs") or {}
    if not isinstance(inner, dict):
        raise BedstoneError(f"model_kwargs: {shown(inner)} was given; expected a dictionary.")
    found: dict[str, Any] = {}
    rest = {}
    for name, value in [*given.items(), *inner.items()]:
        if name == "model_kwargs" or name in HARMLESS:
            continue
        if name in REFUSED:
            if value is not None:
                raise BedstoneError(f"{name}: {REFUSED[name]}. Leave it out.")
        elif name == "trust_remote_code":
            if value:
                raise BedstoneError(
                    "trust_remote_code: no code of a model's folder is run. Leave it out."
                )
        elif name in FEW_BITS:
            if value:
                found["precision"] = FEW_BITS[name]
        elif name in ("torch_dtype", "dtype"):
            if value is not None:
                found["precision"] = _precision(name, value)
        elif name == "device_map":
            if value is not None:
                found["device"] = _device_map(value)
        elif name == "revision":
            found["revision"] = value
        elif name in given:
            rest[name] = value
        else:
            raise BedstoneError(f"model_kwargs: {name!r} is unknown. Leave it out.")
    return found, rest


def _precision(name: str, value: Any) -> str:
    said = str(value).removeprefix("torch.")
    if said not in DTYPES:
        hint = " fp16 overflows and is slow on a processor." if said == "float16" else ""
        raise BedstoneError(
            f"{name}: {said!r} isn't computed in;{hint} expected one of {', '.join(DTYPES)}."
        )
    return DTYPES[said]


def _device_map(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {""}:
        value = value[""]
    if isinstance(value, dict) or value in ("balanced", "sequential"):
        raise BedstoneError(
            f"device_map: {shown(value)} spreads a model over devices; expected one device, such "
            "as 'auto' or 'cuda:0'."
        )
    return value


def task_class(task: str) -> type[Task]:
    """The class of a task, by its name or its alias.

    Raises:
        BedstoneError: there is none of that name.
    """
    name = ALIASES.get(task, task) if isinstance(task, str) else task
    if isinstance(name, str) and _PAIR.fullmatch(name):
        name = "translation"
    if not isinstance(name, str) or name not in TASKS:
        raise BedstoneError(f"task: {task!r} is unknown{nearest(str(task), [*TASKS, *ALIASES])}.")
    return _found(TASKS[name])


def _found(place: str) -> type[Task]:
    module, _, name = place.partition(":")
    kind: type[Task] = getattr(importlib.import_module(f"bedstone.tasks.{module}"), name)
    return kind


def prompted_class(task: str) -> Any:
    """The class of a task by prompting, by its name or its alias.

    Raises:
        BedstoneError: there is no such task, or it can't be done by prompting.
    """
    name = task_class(task).name
    if name not in PROMPTED:
        raise BedstoneError(f"task: {task!r} can't be done by prompting{nearest(name, PROMPTED)}.")
    return _found(PROMPTED[name])


def is_decoder(model: Any) -> bool:
    """Whether a model continues texts."""
    return isinstance(model, Model) and model.writes_text


def named_options(task: str | None) -> dict[str, Any]:
    """Options that a task's name says: the languages of `translation_xx_to_yy`."""
    found = _PAIR.fullmatch(task) if isinstance(task, str) else None
    return {"src_lang": found[1], "tgt_lang": found[2]} if found else {}


def open_decoder(model: str, device: torch.device) -> Model:
    """Opens a model that writes text.

    Raises:
        BedstoneError: it can't be opened, or does something else.
    """
    if is_remote(model):
        raise BedstoneError(
            f"{model}: is behind an endpoint, which this command doesn't ask. `bedstone prompt` "
            "does, and bedstone.pipeline('text-generation', ...)."
        )
    opened = open_model(model, device=device)
    if isinstance(opened, MediaPipeline):
        raise BedstoneError(
            f"{model}: draws {opened.signal.kind} and writes no text; draw with `bedstone imagine`."
        )
    check_head(task_class("text-generation"), opened)
    return opened


def check_head(kind: type[Task], model: Model) -> None:
    """Raises BedstoneError if the model lacks what the task needs."""
    if _fits(kind, model):
        return
    head = getattr(model.config, "head", None)
    labels = f" with the labels {', '.join(head.labels[:8])}" if head and head.labels else ""
    has = f"has the head {head.kind!r}{labels}" if head else f"is a {model.config.layout}"
    if isinstance(model, MediaPipeline):
        has = f"draws {model.signal.kind}: {model.inputs()}"
    able = [name for name in TASKS if _fits(task_class(name), model)]
    advice = "Choose one of these, or fine-tune the model for the task."
    if kind.name in PROMPTED and is_decoder(model):
        advice = f"Let it do the task by prompting: bedstone prompt MODEL --task {kind.name}."
    raise BedstoneError(
        f"{kind.name}: needs {kind.asks}; {model.path or 'this model'} {has}, which can do "
        f"{', '.join(able) or 'no task'}. {advice}"
    )


def _fits(kind: type[Task], model: Model) -> bool:
    if isinstance(model, MediaPipeline) or kind.reads == "prompts":
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
    chosen = tokenizer if isinstance(tokenizer, Tokenizer) else load_tokenizer(_folder(tokenizer))
    if chosen.vocab_size > model.config.vocab_size:
        raise BedstoneError(
            f"tokenizer: has {chosen.vocab_size:,} tokens, the model's weights "
            f"{model.config.vocab_size:,}. Take both from the same model."
        )
    return replace(model, tokenizer=chosen)


def _folder(place: str | Path) -> Path:
    """Where a tokenizer's files are: of a run's folder, in it."""
    folder = Path(place)
    run = (folder / "recipe.yaml").is_file()
    inner = [folder / "tokenizer", folder / "model"] if run else []
    return next((each for each in inner if each.is_dir()), folder)


def _device(device: str | int | torch.device) -> torch.device | None:
    """None for auto."""
    if device == "auto":
        return None
    if isinstance(device, int):
        return pick_device("cpu" if device < 0 else f"cuda:{device}")
    return pick_device(str(device))
