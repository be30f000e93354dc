"""Calls of functions in answers, and the tokens of their results, by a model's chat template.

How calls are written is found by rendering one: a template that writes JSON with a name and
arguments, maybe between marks such as `<tool_call>`, can be read back; others are refused. Results
become the tokens that the template sets between the end of a call and the next answer. What was
sampled is never written as text and read again.
"""

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bedstone.data.text.chat import form_ids, form_text
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError

ARGUMENTS = ("arguments", "parameters")  # what templates call them
PROBE = {"name": "probe_name", "arguments": {"probe_value": 1}}
KINDS = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array",
         dict: "object"}  # fmt: skip
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Call:
    """A call of a function: its name and arguments."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class CallForm:
    """How a template writes calls.

    Attributes:
        before, after: the marks around each, "" where there are none.
        lead: all that it writes of an answer before the JSON of a call.
        keys: of a call's name and its arguments.
    """

    before: str
    after: str
    lead: str = field(default="", compare=False)
    keys: tuple[str, str] = field(default=("name", ARGUMENTS[0]), compare=False)

    def read(self, answer: str) -> list[Call]:
        """The calls in an answer; what isn't of the form is none.

        Args:
            answer: as text, the names of special tokens in it, without the end token.
        """
        found: list[Call] = []
        mark = re.escape(self.before) if self.before else r"\A"
        for place in re.finditer(rf"{mark}\s*", answer):
            call, end = _call_at(answer, place.end())
            rest = answer[end:].lstrip()
            if call is None or not rest.startswith(self.after) or (rest and not self.before):
                continue
            found.append(call)
        return found


def _call_at(text: str, start: int) -> tuple[Call | None, int]:
    """The call whose JSON begins at a place, and where it ends."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None, start
    given = next((value[name] for name in ARGUMENTS if name in value), None)
    return (Call(value["name"], given), end) if isinstance(given, Mapping) else (None, start)


def call_form(tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]]) -> CallForm:
    """How a tokenizer's template writes calls.

    Args:
        tools: JSON schemas of the functions.

    Raises:
        BedstoneError: it writes none, or in a form that can't be read back.
    """
    asks = [{"role": "user", "content": "."}]
    cue = form_text(tokenizer, asks, tools=tools)
    text = form_text(tokenizer, [*asks, _calling([Call(**PROBE)])], tools=tools, cue=False)  # type: ignore[arg-type]
    answer = text.removeprefix(cue)
    for name in tokenizer.hidden_names:
        answer = answer.rstrip().removesuffix(name)
    places = (place.start() for place in re.finditer(r"\{", answer))
    for start in places:
        call, end = _call_at(answer, start)
        if call is not None and call == Call(**PROBE):  # type: ignore[arg-type]
            name = next(each for each in ARGUMENTS if f'"{each}"' in answer[start:end])
            lead = answer[:start]
            form = CallForm(lead.strip(), answer[end:].strip(), lead, ("name", name))
            if text.startswith(cue) and form.read(answer.strip()) == [call]:
                return form
    raise BedstoneError(
        "tools: the model's chat template writes no calls of functions that could be read back: "
        f"{answer.strip()[:200]!r}; expected JSON with a name and arguments. Take a model whose "
        "template writes them so."
    )


def _calling(calls: Sequence[Call]) -> dict[str, Any]:
    """A message of the assistant that calls."""
    made = [
        {
            "id": f"{number:09d}",
            "type": "function",
            "function": {"name": call.name, "arguments": dict(call.arguments)},
        }
        for number, call in enumerate(calls)
    ]
    return {"role": "assistant", "content": "", "tool_calls": made}


def result_ids(
    tokenizer: Tokenizer,
    calls: Sequence[Call],
    results: Sequence[str],
    ends: Iterable[int],
    tools: Sequence[Mapping[str, Any]],
) -> list[int]:
    """The tokens from the end of an answer that calls to the beginning of the next one.

    A result is text: names of control tokens in it are read as characters.

    Args:
        ends: ids that end an answer.

    Raises:
        BedstoneError: the template writes no results, or ends calls with no end token.
    """
    asks = [{"role": "user", "content": "."}, _calling(calls)]
    said = [
        {"role": "tool", "name": call.name, "tool_call_id": f"{number:09d}", "content": text}
        for number, (call, text) in enumerate(zip(calls, results, strict=True))
    ]
    cue = form_text(tokenizer, asks[:1], tools=tools)
    head = form_text(tokenizer, asks, tools=tools, cue=False)
    text, ids, offsets = form_ids(tokenizer, [*asks, *said], tools=tools)
    if not text.startswith(head):
        raise BedstoneError(
            "tools: the model's chat template writes a call otherwise once its result follows, so "
            "what was sampled couldn't stay as it is. Take a model whose template doesn't."
        )
    known = set(ends)
    of_call = [
        n for n, (start, end) in enumerate(offsets) if start >= len(cue) and end <= len(head)
    ]
    last = [n for n in of_call if ids[n] in known]
    if not last or len(text) == len(head):
        what = "ends calls with none of the model's end tokens" if not last else "writes no results"
        raise BedstoneError(
            f"tools: the model's chat template {what}. Take a model whose template does."
        )
    return ids[last[-1] + 1 :]


# Functions of the user.


def schema_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The JSON schema of a function, of its signature and docstring, as templates take it.

    Raises:
        BedstoneError: it takes arguments without names.
    """
    name, properties, needed = function.__name__, {}, []
    try:
        hints = typing.get_type_hints(function)
        parameters = inspect.signature(function).parameters.values()
    except (NameError, TypeError, ValueError) as error:
        raise BedstoneError(
            f"tools: {name}: its signature can't be read: {error}. Give it plain types."
        ) from error
    for each in parameters:
        if each.kind not in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
            raise BedstoneError(
                f"tools: {name}: takes {each}; a call names each argument. Name its parameters."
            )
        kind = hints.get(each.name, str)
        if typing.get_origin(kind) in (types.UnionType, typing.Union):  # `int | None`
            kind = next(one for one in typing.get_args(kind) if one is not type(None))
        kind = typing.get_origin(kind) or kind
        properties[each.name] = (
            {"enum": list(typing.get_args(hints[each.name]))}
            if kind is typing.Literal
            else {"type": KINDS.get(kind, "string")}
        )
        if each.default is each.empty:
            needed.append(each.name)
    said = (inspect.getdoc(function) or "").partition("\n\n")[0]
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": " ".join(said.split()),
            "parameters": {"type": "object", "properties": properties, "required": needed},
        },
    }
