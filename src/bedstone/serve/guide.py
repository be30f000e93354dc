"""Constrained decoding for `response_format`: only tokens that lead to JSON of a schema.

Grammars are compiled and followed by llguidance (https://github.com/guidance-ai/llguidance), the
extra `structured`. Where it isn't installed, or doesn't take a schema, the request is refused:
nothing is generated without the constraint that was wanted. JSON that max_tokens cuts short has the
finish reason "length".

Shapes: V vocabulary.
"""

import functools
import json
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.serve.wire import ApiError

LONGEST = 64 << 10  # characters of a schema
PARAM = "response_format"


class Guide:
    """Which tokens may follow, of one continuation."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def masked(self, logits: Tensor) -> Tensor:
        """Logits (1, V) without the tokens that lead away.

        Raises:
            BedstoneError: no token may follow.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: logits.shape[1]].astype(bool)
        if self._matcher.is_error() or not allowed.any():
            raise BedstoneError(
                "response_format: no token may follow any more "
                f"({str(self._matcher.get_error())[:200]}). Give a simpler schema."
            )
        wide = np.zeros(logits.shape[1], bool)
        wide[: len(allowed)] = allowed
        return logits.masked_fill(~torch.from_numpy(wide), -math.inf)

    def take(self, token: int) -> bool:
        """Goes on by a token; whether the JSON is whole and nothing may follow it."""
        self._matcher.consume_token(token)
        return bool(self._matcher.is_stopped())


def guides_of(
    given: Any, tokenizer: Tokenizer, vocabulary: int, ends: frozenset[int], count: int
) -> list[Guide]:
    """A guide for each of `count` continuations; none where nothing is constrained.

    Args:
        given: `response_format`, as OpenAI has it.
        ends: ids that end an answer.

    Raises:
        ApiError: the format is unknown, or can't be kept to.
    """
    schema = _schema(given)
    if schema is None:
        return []
    text = json.dumps(schema)
    if len(text) > LONGEST:
        raise ApiError(
            400, f"response_format: the schema has {len(text):,} characters; at most {LONGEST:,}.",
            PARAM,
        )  # fmt: skip
    try:
        from llguidance import LLMatcher
    except ImportError:
        raise ApiError(
            400, "response_format: JSON can't be constrained by this server; its owner would have "
            "to install the extra: pip install 'bedstone[structured]'. Leave it out.", PARAM,
        ) from None  # fmt: skip
    known = _tokenizer(tokenizer.backend.to_str(), vocabulary, tuple(sorted(ends)))
    try:
        grammar = LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_flexible": False})
        matcher = LLMatcher(known, grammar)
    except ValueError as error:
        raise _refused(str(error)) from None
    if matcher.is_error():
        raise _refused(str(matcher.get_error()))
    return [Guide(matcher.deep_copy()) for _ in range(count)]


def _refused(why: str) -> ApiError:
    return ApiError(400, f"response_format: the schema isn't taken: {why[:300]}", PARAM)


def _schema(given: Any) -> Any:
    """The schema that a format asks for; None where it asks for nothing."""
    kind = given.get("type") if isinstance(given, dict) else None
    if given is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    held = given.get("json_schema") if kind == "json_schema" else None
    if isinstance(held, dict) and isinstance(held.get("schema"), dict):
        return held["schema"]
    raise ApiError(
        400, "response_format: expected the type text, json_object, or json_schema with "
        "{'json_schema': {'name': ..., 'schema': {...}}}.", PARAM,
    )  # fmt: skip


@functools.lru_cache(maxsize=8)
def _tokenizer(rules: str, vocabulary: int, ends: tuple[int, ...]) -> Any:
    """A tokenizer as llguidance has it, of a tokenizer.json."""
    from llguidance import LLTokenizer

    return LLTokenizer(rules, n_vocab=vocabulary, eos_token=list(ends) or None)
