"""`/v1/embeddings` and `/v1/tasks/{task}`: what is no stream of tokens.

A task takes the inputs and options of `bedstone.pipeline` and gives its keys. Of a request no text
names a file: images are data URLs, and options that could name a file or a folder are refused.
"""

import asyncio
import base64
import io
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from bedstone.data.bytes import check_characters
from bedstone.errors import BedstoneError
from bedstone.models.interfaces import DualEncoder
from bedstone.reading import shown
from bedstone.serve.indexes import Indexes
from bedstone.serve.models import EMBED, SINGLE, Served, ServeSettings, can_embed_texts
from bedstone.serve.wire import ApiError, Context, Inbox, events_of, image_of, listed, submit
from bedstone.serve.work import Call, Result
from bedstone.serve.writing import is_ids
from bedstone.settings import Settings, one_of, optional, whole
from bedstone.tasks.pipeline import (
    PROMPTED,
    is_decoder,
    named_options,
    prompted_class,
    task_class,
)

IMAGES = ("image", "images", "mask")  # keys and options that hold images
# Options that name files, folders or models of the server: none may come from outside.
OF_SERVER = ("out", "file", "cache", "embed", "precision", "device", "model", "tokenizer")
# Options that may name a file where they are a text: taken as lists and objects alone.
NO_TEXT = ("catalogue", "policy", "pairs", "examples", "template", "glossary", "fields")
# What an option may be, at most, so that one request can't take all of the server's time.
MOST = {
    "max_new_tokens": 4096, "max_length": 8192, "min_new_tokens": 4096, "num_beams": 16,
    "num_beam_groups": 16, "num_return_sequences": 16, "num_images_per_prompt": 10,
    "num_inference_steps": 1000, "top_k": 100_000, "shots": 64, "batch_size": 64,
    "return_alternatives": 16, "prompt_lookup_num_tokens": 16, "candidates": 64,
    "prior_samples": 16, "prior_steps": 1000, "upsample_steps": 1000, "return_steps": 16,
}  # fmt: skip
# Of a policy, which is read for each input: texts, their characters, and all of it as JSON.
POLICY_TEXTS, POLICY_CHARACTERS, POLICY_SIZE = 256, 32 << 10, 1 << 20
SIDE = 512  # of what is drawn
# Tasks over a catalogue, whose rows would name files of the server: they go over an index of it.
OVER_INDEX = ("similar-items", "complementary-items")
DRAWN_FROM = ("image-to-image", "image-variation")  # drawing tasks whose input is an image
NO_OPTION = ("self", "inputs", "parameters", "task", "options")
NEW_TOKENS = 256  # that an input of a decoder's task is counted with, where nothing says how many


async def called(
    served: Served,
    task: str,
    inputs: list[Any],
    options: Mapping[str, Any],
    context: Context,
    cost: int,
) -> list[Any]:
    """What a task gives for inputs, in its turn."""
    inbox = Inbox()
    key = json.dumps([task, options], sort_keys=True, default=lambda value: str(id(value)))
    call = Call(task, inputs, options, inbox.of(0), key, max(cost, 1))
    submit(served.scheduler, [call], context)
    found: list[Any] = []
    async for each in events_of(inbox, 1):
        if each is not None and isinstance(each[1], Result):
            found = each[1].values
    return found


# Embeddings.


@dataclass(frozen=True)
class EmbeddingRequest(Settings):
    """Fields of a request for embeddings; `truncate` cuts texts that are too long."""

    model: str = ""
    input: Any = None
    encoding_format: str = one_of("float", "base64", default="float")
    dimensions: int | None = optional(whole(1))
    truncate: bool = False
    user: str = ""
    prompt_name: str | None = None


async def embed(
    served: Served, request: EmbeddingRequest, context: Context, limits: ServeSettings
) -> dict[str, Any]:
    """Vectors of texts.

    Raises:
        ApiError: the model embeds none, or a text is empty or too long.
    """
    if not can_embed_texts(served.model):
        raise ApiError(
            400, f"The model {served.name!r} gives no embeddings.", "model", "unsupported_model"
        )
    texts, sizes = await asyncio.to_thread(_texts, served, request, limits.max_inputs)
    options: dict[str, Any] = {}
    if request.prompt_name is not None:
        options["prompt_name"] = request.prompt_name
    vectors = await called(served, EMBED, texts, options, context, sum(sizes))
    wide = len(vectors[0])
    if request.dimensions not in (None, wide):
        raise ApiError(
            400, f"dimensions: the model's vectors have {wide} numbers and were not trained to be "
            "cut. Leave it out.", "dimensions",
        )  # fmt: skip
    data = [
        {"object": "embedding", "index": place, "embedding": _vector(each, request.encoding_format)}
        for place, each in enumerate(vectors)
    ]
    used = {"prompt_tokens": sum(sizes), "total_tokens": sum(sizes)}
    return {"object": "list", "data": data, "model": request.model, "usage": used}


def _vector(vector: np.ndarray, form: str) -> Any:
    values = np.ascontiguousarray(vector, "<f4")
    return base64.b64encode(values.tobytes()).decode() if form == "base64" else values.tolist()


def _texts(served: Served, request: EmbeddingRequest, most: int) -> tuple[list[str], list[int]]:
    """Texts to embed, and how many tokens each has."""
    known = served.model.tokenizer
    assert known is not None
    given = request.input
    found = [given] if isinstance(given, str) or is_ids(given) else given
    if not (listed(found, str) or (isinstance(found, list) and found and all(map(is_ids, found)))):
        raise ApiError(
            400, f"input: {shown(given)} was given; expected a text, texts, ids or lists of ids.",
            "input",
        )  # fmt: skip
    if len(found) > most:
        raise ApiError(400, f"input: {len(found):,} were given; at most {most:,}.", "input")
    vocabulary, limit = int(known.vocab_size), _limit(served)
    texts, sizes = [], []
    for place, each in enumerate(found):
        where = f"input[{place}]"
        if isinstance(each, list):
            if min(each) < 0 or max(each) >= vocabulary:
                raise ApiError(400, f"{where}: ids are from 0 to {vocabulary - 1}.", "input")
            each = known.decode(each)
        if not each.strip():
            raise ApiError(400, f"{where}: is empty.", "input")
        if len(each) > 256 * limit and not request.truncate:
            raise _too_long(where, len(each) // 8, limit, "about ")
        texts.append(each[: 256 * limit])
        sizes.append(len(known.encode(texts[-1], special=True)))
        if sizes[-1] > limit and not request.truncate:
            raise _too_long(where, sizes[-1], limit)
    return texts, [min(size, limit) for size in sizes]


def _too_long(where: str, size: int, limit: int, about: str = "") -> ApiError:
    return ApiError(
        400, f"{where}: has {about}{size:,} tokens; the model embeds {limit:,}. Shorten it, or "
        "give truncate: true.", "input", "context_length_exceeded",
    )  # fmt: skip


def _limit(served: Served) -> int:
    """Tokens of a text that a model embeds."""
    model = served.model
    if isinstance(model.network, DualEncoder):
        return int(model.config.context)
    if model.pooling is not None and model.pooling.max_tokens:
        return int(model.pooling.max_tokens)
    said = model.tokenizer.settings.get("model_max_length") if model.tokenizer else None
    context = int(model.config.context)
    return min(context, said) if isinstance(said, int) and said > 0 else context


# Tasks.


async def run_task(
    served: Served,
    task: str,
    body: Mapping[str, Any],
    context: Context,
    limits: ServeSettings,
    indexes: Indexes,
) -> dict[str, Any]:
    """What a task gives, by the arguments and keys of `bedstone.pipeline`.

    Options stand in `parameters` or beside `inputs`.

    Raises:
        ApiError: there is no such task, or what is given isn't taken.
    """
    try:
        kind = task_class(task)
        if kind.name in PROMPTED and is_decoder(served.model):
            kind = prompted_class(kind.name)
    except BedstoneError as error:
        raise ApiError(404, str(error), code="task_not_found") from None
    if kind.name in OVER_INDEX and not indexes:
        raise ApiError(
            404, f"{kind.name}: goes over an index, and this server has none.",
            code="task_not_found",
        )  # fmt: skip
    given = {name: value for name, value in body.items() if name not in ("model", "inputs")}
    more = given.pop("parameters", None) or {}
    if not isinstance(more, dict):
        raise ApiError(400, "parameters: expected an object of options.", "parameters")
    budget = Budget(int(limits.max_pixels * 1e6))
    options = {**named_options(task), **given, **more}
    index = options.pop("index", None) if kind.name in OVER_INDEX else None
    said = await asyncio.to_thread(_size_of, options, limits)
    await asyncio.to_thread(_check_options, options, budget)
    inputs = body.get("inputs")
    images = kind.reads == "pictures" or kind.name in DRAWN_FROM
    several = isinstance(inputs, list) and not _is_conversation(inputs)
    rows: Any = inputs if several else [inputs]
    if not isinstance(rows, list) or not rows or len(rows) > limits.max_inputs:
        raise ApiError(400, f"inputs: expected 1 to {limits.max_inputs:,} inputs.", "inputs")
    texts = await asyncio.to_thread(_check_texts, rows, served, limits)
    rows = await asyncio.to_thread(
        lambda: [_input(each, f"inputs[{n}]" if several else "inputs", images, budget)
                 for n, each in enumerate(rows)]
    )  # fmt: skip
    if kind.name in DRAWN_FROM:
        rows = [
            each["image"] if isinstance(each, dict) and "image" in each else each for each in rows
        ]
    elif kind.reads == "prompts" and any(isinstance(each, dict | list) for each in rows):
        raise ApiError(400, "inputs: expected texts, one for each image that is drawn.", "inputs")
    new = options.get("max_new_tokens") or (NEW_TOKENS if is_decoder(served.model) else 0)
    every = int(new) + said // 4
    if texts // 4 + len(rows) * every > 2 * limits.max_queue_tokens:
        raise ApiError(
            413, f"inputs: with these options each of the {len(rows):,} takes {every:,} "
            f"tokens and its own; at most {2 * limits.max_queue_tokens:,} in all. Send fewer at a "
            "time.", "inputs",
        )  # fmt: skip
    cost = len(json.dumps(inputs, default=str)) // 4 + len(rows) * every
    options |= {} if several else {SINGLE: True}
    if kind.name in OVER_INDEX:
        if "catalogue" in options:
            raise ApiError(400, "catalogue: is the server's index; give index.", "catalogue")
        options["catalogue"] = await indexes.find(index, served.name).catalogue(served.model)
    found = await called(served, kind.name, rows, options, context, cost)
    results = await asyncio.to_thread(plain, found)
    return {
        "object": "task.result",
        "created": int(time.time()),
        "model": served.name,
        "task": kind.name,
        "results": results if several else results[0],
    }


@dataclass
class Budget:
    """Pixels that a request may still have."""

    pixels: int

    def image(self, url: Any, where: str) -> np.ndarray:
        found = image_of(url, where, self.pixels)
        self.pixels -= found.shape[0] * found.shape[1]
        return found


def _check_options(options: dict[str, Any], budget: Budget) -> None:
    """Decodes images among options. Raises ApiError for one that isn't taken from outside."""
    for name, value in options.items():
        if name in (*OF_SERVER, *NO_OPTION) or name.startswith("_"):
            raise ApiError(400, f"{name}: isn't taken from a request. Leave it out.", name)
        if name in NO_TEXT and isinstance(value, str):
            raise ApiError(
                400, f"{name}: a text would name a file of the server; give what it holds.", name
            )
        if name in NO_TEXT:
            _no_paths(value, name)
        if name == "policy":
            check_policy(value)
        for each, limit in MOST.items():
            held = value if name == each else value.get(each) if isinstance(value, dict) else None
            if held is not None and not isinstance(held, int | float):
                raise ApiError(400, f"{each}: expected a number.", each)
            if isinstance(held, int | float) and held > limit:
                raise ApiError(400, f"{each}: {held} was given; at most {limit:,} here.", each)
        sides = value if name == "size" and isinstance(value, list) else []
        if not all(type(side) is int and 0 < side <= SIDE for side in sides):
            raise ApiError(400, f"size: expected sides of up to {SIDE:,} pixels.", name)
        if name == "hypothesis_template" and re.search(r"{[^}]", str(value)):
            raise ApiError(400, f"{name}: expected a text with {{}} where the label stands.", name)
        if name in IMAGES and value is not None:  # a text would be a file of the server
            several = isinstance(value, list)
            found = [budget.image(each, name) for each in (value if several else [value])]
            options[name] = found if several else found[0]


def check_policy(value: Any) -> int:
    """The characters of a policy's texts. Raises ApiError for a policy that is too long."""
    texts, size, left = 0, 0, [value]
    while left:
        each = left.pop()
        if isinstance(each, str):
            texts, size = texts + 1, size + len(each)
        elif isinstance(each, dict):
            left += each.values()
            size += sum(map(len, each))
        elif isinstance(each, list):
            left += each
    if (
        texts > POLICY_TEXTS
        or size > POLICY_CHARACTERS
        or len(json.dumps(value)) > POLICY_SIZE  # of numbers that were calibrated
    ):
        raise ApiError(
            413, f"policy: holds {texts:,} texts of {size:,} characters; at most {POLICY_TEXTS} of "
            f"{POLICY_CHARACTERS:,} are taken from a request. Shorten it, or start the server with "
            "--policy.", "policy",
        )  # fmt: skip
    return size


def _no_paths(value: Any, name: str) -> None:
    """Raises ApiError where rows name images: these would be files of the server."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            if any(each.get(key) is not None for key in (*IMAGES, "path", "bytes", "url")):
                raise ApiError(400, f"{name}: rows from a request have no images.", name)
            left += each.values()
        elif isinstance(each, list):
            left += each


def _size_of(options: Mapping[str, Any], limits: ServeSettings) -> int:
    """Characters of options, which are read with each input; images don't count.

    Raises:
        ApiError: one holds more values or text than is read at a time.
    """
    total = 0
    for name, value in options.items():
        left = [] if name in (*IMAGES, "policy") else [value]
        size = 0
        while left:
            each = left.pop()
            size += len(each) if isinstance(each, str) else 0
            if isinstance(each, dict | list):
                left += each.values() if isinstance(each, dict) else each
                size += len(each)
        if size > limits.max_queue_tokens:
            raise ApiError(
                413, f"{name}: holds {size:,} characters; at most {limits.max_queue_tokens:,}.",
                name,
            )  # fmt: skip
        total += size
    return total


def _check_texts(rows: Any, served: Served, limits: ServeSettings) -> int:
    """The characters of texts. Raises ApiError for half characters, and for more text than a model
    reads at a time."""
    total, left = 0, [rows]
    while left:
        value = left.pop()
        if isinstance(value, str) and not value.startswith("data:"):
            total += len(value)
            try:
                check_characters(value, "inputs")
            except BedstoneError as error:
                raise ApiError(400, str(error), "inputs") from None
        elif isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value
    most = limits.max_queue_tokens * 4
    if total > most:
        raise ApiError(413, f"inputs: hold {total:,} characters; at most {most:,}.", "inputs")
    return total


def _is_conversation(value: Any) -> bool:
    return listed(value, dict) and all("role" in each or "from" in each for each in value)


def _input(value: Any, where: str, images: bool, budget: Budget) -> Any:
    """An input with its images decoded; a text that stands for an image has to be a data URL."""
    if isinstance(value, str):
        return budget.image(value, where) if images else value
    if _is_conversation(value):
        return [_message(each, f"{where}[{n}]", budget) for n, each in enumerate(value)]
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for name, each in value.items():
        place = f"{where}.{name}"
        if name in IMAGES and isinstance(each, list):
            found[name] = [budget.image(one, place) for one in each]
        elif name in IMAGES:
            found[name] = budget.image(each, place)
        elif name == "messages" and _is_conversation(each):
            found[name] = _input(each, place, images, budget)
        elif name in ("path", "bytes", "url"):
            raise ApiError(400, f"{place}: isn't taken from a request; give image.", "inputs")
        else:
            found[name] = each
    return found


def _message(message: dict[str, Any], where: str, budget: Budget) -> dict[str, Any]:
    content = message.get("content", message.get("value"))
    if not isinstance(content, list):
        return message
    parts: list[Any] = []
    for part in content:
        if isinstance(part, dict) and part.get("type") in ("image", "image_url"):
            held = part.get("image", part.get("image_url", part.get("url")))
            held = held.get("url") if isinstance(held, dict) else held
            parts.append({"type": "image", "image": budget.image(held, where)})
        elif isinstance(part, dict) and part.get("type") == "text":
            parts.append({"type": "text", "text": str(part.get("text") or "")})
        else:
            raise ApiError(400, f"{where}: expected parts of type text or image.", "inputs")
    return {"role": message.get("role", message.get("from")), "content": parts}


def plain(value: Any) -> Any:
    """A result as JSON can hold it: images as data URLs of PNG, arrays as lists, nan as null."""
    if isinstance(value, Image.Image):
        return f"data:image/png;base64,{encoded(value, 'png')}"
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if not isinstance(value, str | int | float | bool | None):
        raise TypeError(f"a result holds {type(value).__name__}, which JSON doesn't")
    return value


def encoded(image: Image.Image, form: str, quality: int | None = None) -> str:
    """An image file as base64; `quality`, 0 to 100, is of the forms that lose something."""
    data = io.BytesIO()
    image.save(data, form.upper(), **({} if quality is None else {"quality": max(quality, 1)}))
    return base64.b64encode(data.getvalue()).decode()
