"""`/v1/moderations`: the action of a policy for texts and images, in OpenAI's shape.

The policy is the server's own (`bedstone serve --policy FILE`), or stands in the request. Of
OpenAI's thirteen categories those that a policy doesn't have are false, with a score of 0, and were
applied to nothing; a policy's own stand beside them.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bedstone.data.bytes import check_characters
from bedstone.errors import BedstoneError
from bedstone.reading import shown
from bedstone.serve.models import Models, Served, ServeSettings
from bedstone.serve.predictions import Budget, called, check_policy
from bedstone.serve.wire import ApiError, Context
from bedstone.settings import Settings
from bedstone.tasks.moderation.policy import Policy, read_policy

TASK = "moderation"
CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit",
    "illicit/violent", "self-harm", "self-harm/instructions", "self-harm/intent", "sexual",
    "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip
TOKEN = 4  # characters, about


@dataclass(frozen=True)
class ModerationRequest(Settings):
    """Fields of a moderation; `policy`, as an object, is none of OpenAI's."""

    model: str = ""
    input: Any = None
    policy: Any = None


def moderating(models: Models) -> str:
    """The model that a request means which names none.

    Raises:
        ApiError: there is none, or it can't be known which.
    """
    able = [name for name, each in models.entries.items() if TASK in each.known.get("tasks", ())]
    if len(able) != 1:
        said = f"; {', '.join(able)} can" if able else "; none here can moderate"
        raise ApiError(400, f"model: name the one that shall judge{said}.", "model")
    return able[0]


async def moderate(
    served: Served,
    request: ModerationRequest,
    context: Context,
    limits: ServeSettings,
    policy: Policy | None,
) -> dict[str, Any]:
    """What a policy says of each input.

    Raises:
        ApiError: there is no policy, it isn't of this model, or an input is none.
    """
    read = 0
    if request.policy is not None:
        read = check_policy(request.policy)
        policy = _policy(request.policy)
    if policy is None:
        raise ApiError(400, "policy: this server has none. Give one as an object.", "policy")
    items = _items(request.input, limits)
    size = sum(len(each.get("text") or "") for each in items)
    options = {"policy": policy}
    cost = (size + read) // TOKEN + len(items)
    results = await called(served, TASK, items, options, context, cost)
    return {
        "id": f"modr-{uuid.uuid4().hex}",
        "model": request.model,
        "results": [_result(found, item) for found, item in zip(results, items, strict=True)],
    }


def _policy(given: Any) -> Policy:
    """A policy of a request, which can't name a file."""
    if not isinstance(given, Mapping):
        raise ApiError(400, f"policy: {shown(given)}; expected an object.", "policy")
    try:
        return read_policy(given)
    except BedstoneError as error:
        raise ApiError(400, str(error), "policy") from None


def _items(given: Any, limits: ServeSettings) -> list[dict[str, Any]]:
    """Items to judge: texts, or one of parts that belong together.

    Raises:
        ApiError: there is none, or one is empty or too long.
    """
    found = [given] if isinstance(given, str) else given
    if not isinstance(found, list) or not 0 < len(found) <= limits.max_inputs:
        raise ApiError(
            400, f"input: {shown(given)}; expected a text, up to {limits.max_inputs:,} texts, or "
            "parts of one item.", "input",
        )  # fmt: skip
    if all(isinstance(each, dict) for each in found):
        return [_item(found, limits)]
    texts = []
    for place, each in enumerate(found):
        if not isinstance(each, str):
            raise ApiError(400, f"input[{place}]: {shown(each)}; expected a text.", "input")
        texts.append({"text": _text(each, f"input[{place}]")})
    if sum(len(each["text"]) for each in texts) > limits.max_queue_tokens * TOKEN:
        raise ApiError(413, "input: is too long. Send less at a time.", "input")
    return texts


def _item(parts: Sequence[dict[str, Any]], limits: ServeSettings) -> dict[str, Any]:
    """One item of texts, which are joined, and at most one image."""
    texts, images = [], []
    budget = Budget(int(limits.max_pixels * 1e6))
    for place, part in enumerate(parts):
        where = f"input[{place}]"
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif part.get("type") == "image_url" and isinstance(part.get("image_url"), dict):
            images.append(budget.image(part["image_url"].get("url"), where))
        else:
            raise ApiError(400, f"{where}: expected a part of type text or image_url.", "input")
    if len(images) > 1:
        raise ApiError(400, "input: holds several images; send them one by one.", "input")
    item: dict[str, Any] = {"image": images[0]} if images else {}
    if texts:
        item["text"] = _text("\n".join(texts), "input")
    return item


def _text(text: str, where: str) -> str:
    if not text.strip():
        raise ApiError(400, f"{where}: is empty.", "input")
    try:
        check_characters(text, where)
    except BedstoneError as error:
        raise ApiError(400, str(error), "input") from None
    return text


def _result(found: Mapping[str, Any], item: Mapping[str, Any]) -> dict[str, Any]:
    """What was found of one item, in OpenAI's shape, with the policy's action and reason."""
    over = dict.fromkeys(CATEGORIES, False)
    scores = dict.fromkeys(CATEGORIES, 0.0)
    kinds: dict[str, list[str]] = {name: [] for name in CATEGORIES}
    for each in found["categories"]:
        name = each["category"]
        over[name], scores[name] = bool(each["over"]), float(each["score"])
        kinds[name] = [part for part in ("text", "image") if part in item]
    return {
        "flagged": found["action"] != "allow",
        "categories": over,
        "category_scores": scores,
        "category_applied_input_types": kinds,
        "action": found["action"],
        "reason": found["reason"],
    }
