"""Answers that keep to a JSON schema, by `generation.structure`: `response_format`, forced calls.

Where a schema isn't understood whole, or llguidance isn't installed, the request is refused:
nothing is generated without the constraint that was wanted. JSON that max_tokens cuts short has the
finish reason "length".

Shapes: V vocabulary.
"""

import json
from collections.abc import Collection
from typing import Any

from torch import Tensor

from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.generation import structure
from bedstone.serve.wire import ApiError

LONGEST = 64 << 10  # characters of a schema
PARAM = "response_format"


class Guide:
    """Which tokens may follow, of one continuation."""

    def __init__(self, form: structure.Form, ends: Collection[int]) -> None:
        self._way, self._ends = form.start(), ends

    def masked(self, logits: Tensor) -> Tensor:
        """Logits (1, V) without the tokens that lead away.

        Raises:
            BedstoneError: no token may follow.
        """
        return structure.guided(logits, [self._way], self._ends)

    def take(self, token: int) -> bool:
        """Goes on by a token; whether the JSON is whole and nothing may follow it."""
        if token in self._ends:
            return False
        self._way.take(token)
        return self._way.ended


def guides_of(
    schema: Any, tokenizer: Tokenizer, ends: Collection[int], count: int, param: str = PARAM
) -> list[Guide]:
    """A guide for each of `count` continuations; none where nothing is constrained.

    Args:
        schema: as JSON, or True for any object; None constrains nothing.
        ends: ids that end an answer.
        param: the field of the request that it comes from.

    Raises:
        ApiError: the schema can't be kept to.
    """
    if schema is None:
        return []
    size = len(json.dumps(schema))
    if size > LONGEST:
        raise ApiError(
            400, f"{param}: the schema has {size:,} characters; at most {LONGEST:,}.", param
        )
    try:
        form = structure.read_form({"json_schema": schema}, tokenizer)
    except BedstoneError as error:
        text = str(error).replace(str(tokenizer.path), "the model")
        raise ApiError(400, f"{param}: {text}", param) from None
    assert form is not None
    return [Guide(form, ends) for _ in range(count)]


def schema_of(given: Any) -> Any:
    """The schema that a `response_format` asks for; None where it asks for nothing.

    Raises:
        ApiError: the format is unknown.
    """
    kind = given.get("type") if isinstance(given, dict) else None
    if given is None or kind == "text":
        return None
    if kind == "json_object":
        return True
    held = given.get("json_schema") if kind == "json_schema" else None
    if isinstance(held, dict) and isinstance(held.get("schema"), dict):
        return held["schema"]
    raise ApiError(
        400,
        "response_format: expected the type text, json_object, or json_schema with "
        "{'json_schema': {'name': ..., 'schema': {...}}}.",
        PARAM,
    )
