"""Responses that are kept: to be gone on from, to be read again, and to be deleted.

They are kept in memory, a bounded amount, each for the key that asked for it alone. Nothing is
written to disk, and a restart forgets all.
"""

import json
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bedstone.reading import shown
from bedstone.serve.wire import ApiError

KEPT, KEPT_CHARACTERS = 1024, 16 << 20  # responses, and the size of all
PAGE, PAGES = 20, 100  # items of a list where nothing is said, and at most


@dataclass(frozen=True)
class Kept:
    """A response.

    Attributes:
        messages: of its conversation, the answer as the last one.
        response: as it was given.
        size: in characters.
    """

    messages: list[dict[str, Any]]
    response: dict[str, Any]
    size: int


class Conversations:
    """Responses by the key that asked and by their ids; the one used least lately gives way.

    Attributes:
        keeps: whether anything is kept for a later request.
    """

    keeps = True

    def __init__(self, most: int = KEPT, characters: int = KEPT_CHARACTERS) -> None:
        self._most, self._room = most, characters
        self._held: OrderedDict[tuple[str, str], Kept] = OrderedDict()

    def find(self, identity: str, name: str) -> list[dict[str, Any]]:
        """The messages of a conversation.

        Raises:
            ApiError: there is none.
        """
        found = self._find(identity, name)
        if found is None:
            raise ApiError(
                400, f"previous_response_id: there is no response {name[:80]!r} here, or it isn't "
                "kept any more. Give the whole conversation as input.", "previous_response_id",
                "previous_response_not_found",
            )  # fmt: skip
        return found.messages

    def _find(self, identity: str, name: str) -> Kept | None:
        if (identity, name) not in self._held:
            return None
        self._held.move_to_end((identity, name))
        return self._held[identity, name]

    def keep(
        self,
        identity: str,
        name: str,
        messages: list[dict[str, Any]],
        response: dict[str, Any] | None = None,
    ) -> None:
        response = response or {}
        size = len(json.dumps(messages)) + len(json.dumps(response))
        if size > self._room:
            return
        self._held[identity, name] = Kept(messages, response, size)
        while len(self._held) > self._most or self._size > self._room:
            self._held.popitem(last=False)

    @property
    def _size(self) -> int:
        return sum(each.size for each in self._held.values())

    # What is asked for by a response's id.

    def get(self, identity: str, name: str) -> Kept:
        """A response.

        Raises:
            ApiError: there is none of this key.
        """
        found = self._find(identity, name)
        if found is None:
            raise ApiError(404, f"There is no response {name[:80]!r} here, or it isn't kept any "
                           "more.", code="response_not_found")  # fmt: skip
        return found

    def delete(self, identity: str, name: str) -> dict[str, Any]:
        """Forgets a response.

        Raises:
            ApiError: there is none of this key.
        """
        self.get(identity, name)
        del self._held[identity, name]
        return {"id": name, "object": "response", "deleted": True}

    def items(self, identity: str, name: str, query: Mapping[str, str]) -> dict[str, Any]:
        """A page of the items that a response answered, the latest first.

        Args:
            query: `after` an item's id, at most `limit` of them, in the `order` asc or desc.

        Raises:
            ApiError: there is no such response, or a field of the query is wrong.
        """
        found = self.get(identity, name)
        check_query(query, ("after", "limit", "order"))
        limit, order = query.get("limit", str(PAGE)), query.get("order", "desc")
        if not (limit.isdecimal() and len(limit) < 4 and 1 <= int(limit) <= PAGES):
            raise ApiError(400, f"limit: {shown(limit)} was given; expected 1 to {PAGES}.", "limit")
        if order not in ("asc", "desc"):
            raise ApiError(400, f"order: {shown(order)} was given; expected asc or desc.", "order")
        items = items_of(found.messages[:-1], name)[:: 1 if order == "asc" else -1]
        if "after" in query:
            places = [n for n, each in enumerate(items) if each["id"] == query["after"]]
            if not places:
                raise ApiError(
                    400, f"after: there is no item {shown(query['after'])} here.", "after"
                )
            items = items[places[0] + 1 :]
        page = items[: int(limit)]
        return {
            "object": "list", "data": page, "has_more": len(page) < len(items),
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
        }  # fmt: skip


def check_query(query: Mapping[str, str], known: Sequence[str]) -> None:
    """Raises ApiError for a field of a query that isn't taken."""
    for name in query:
        if name not in known:
            said = ", ".join(known) or "none"
            raise ApiError(400, f"{name[:80]}: isn't taken here; expected {said}.", name[:80])


def items_of(messages: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """The items that messages of a chat completion stand for.

    Args:
        name: the response's id, by which the items' own ids are always the same.
    """
    made: list[dict[str, Any]] = []

    def add(prefix: str, **fields: Any) -> None:
        number = uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {len(made)}").hex
        made.append({"id": f"{prefix}_{number}", "status": "completed", **fields})

    for message in messages:
        role, content = message["role"], message.get("content")
        if role == "tool":
            add("fco", type="function_call_output", call_id=message["tool_call_id"],
                output=content if isinstance(content, str) else _parts(content, role))  # fmt: skip
            continue
        calls = message.get("tool_calls") or ()
        if content or not calls:
            add("msg", type="message", role=role, content=_parts(content, role))
        for call in calls:
            function = call["function"]
            add("fc", type="function_call", call_id=call["id"], name=function["name"],
                arguments=function["arguments"])  # fmt: skip
    return made


def _parts(content: Any, role: str) -> list[dict[str, Any]]:
    """The content of a message as parts of an item."""
    found: list[dict[str, Any]] = content or []
    if isinstance(content, str):
        found = [{"type": "text", "text": content}]
    made: list[dict[str, Any]] = []
    for part in found:
        if part["type"] == "image_url":
            url = part["image_url"]["url"]
            made.append({"type": "input_image", "image_url": url, "detail": "auto"})
        elif role == "assistant":
            made.append({"type": "output_text", "text": part["text"], "annotations": [],
                         "logprobs": []})  # fmt: skip
        else:
            made.append({"type": "input_text", "text": part["text"]})
    return made
