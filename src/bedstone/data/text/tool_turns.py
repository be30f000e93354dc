"""Turns as JSON, by which any chat model can call: one object, a call of a function or an answer.

A template that knows nothing of functions is given them in the words of the system; calls and their
results are written as JSON and as words of the user. With a decoder whose tokens are held to the
schema of a turn (`generation.structure`), a call can always be read.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bedstone.data.text.chat import read_messages
from bedstone.data.text.tool_calls import Call
from bedstone.errors import BedstoneError
from bedstone.reading import shown

TURN = ("tool", "arguments")  # keys of a call
_LOOSE = ("description", "title", "default", "examples", "$schema")  # keys that say nothing
_BEGUN = re.compile(r'\s*\{\s*"answer"\s*:\s*"((?:[^"\\]|\\.)*)', re.DOTALL)
_HALF_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\u[0-9a-fA-F]{0,3}$")
CALLING = 'To call a tool: {"tool": NAME, "arguments": {...}}.'
Message = dict[str, Any]
Schema = Mapping[str, Any]  # a function, as templates and endpoints take it


def function_of(tool: Schema) -> Mapping[str, Any]:
    """What a schema says of its function: name, description and parameters."""
    found: Mapping[str, Any] = tool.get("function", tool)
    return found


def turn_schema(
    tools: Sequence[Schema], *, answers: bool = True, keys: tuple[str, str] = TURN
) -> dict[str, Any]:
    """The JSON schema of a turn: a call of one of the tools, or an answer.

    Args:
        answers: whether `{"answer": TEXT}` is a turn too.
        keys: of a call's name and its arguments.
    """
    shared: dict[str, Any] = {}
    forms = []
    for number, each in enumerate(map(function_of, tools)):
        arguments = _arguments(each.get("parameters") or {}, f"{number}.", shared)
        forms.append(_closed({keys[0]: {"const": each["name"]}, keys[1]: arguments}))
    if answers:
        forms.append(_closed({"answer": {"type": "string"}}))
    return {"anyOf": forms, **({"$defs": shared} if shared else {})}


def read_turn(text: str, keys: tuple[str, str] = TURN) -> Call | str | None:
    """The call or the answer of a turn; None where the text is no whole turn."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    if isinstance(found.get("answer"), str):
        return _whole_characters(found["answer"])
    name, arguments = (found.get(key) for key in keys)
    return Call(name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


def answer_so_far(text: str) -> str:
    """What the answer of a turn says that isn't whole; "" where it is no answer."""
    found = _BEGUN.match(text)
    said = _HALF_ESCAPE.sub(r"\1", found[1]) if found else ""
    try:
        return _whole_characters(json.loads(f'"{said}"', strict=False))
    except ValueError:
        return ""


def _whole_characters(text: str) -> str:
    """A text whose half characters (lone surrogates, which no UTF-8 holds) are marked as such."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def as_plain(
    messages: Sequence[Message], tools: Sequence[Schema] = (), *, answers: bool = True
) -> list[Message]:
    """Messages as any chat template takes them: tools in the system's words, calls as JSON, results
    as words of the user, marked by the key `result`. Without tools answers stay as they are.

    Raises:
        BedstoneError: one is no message, or a call has no name and arguments.
    """
    given = read_messages(list(messages))
    aside = _aside(tools, answers) if tools else ""
    if aside and given[0]["role"] != "system":
        given.insert(0, {"role": "system", "content": ""})
    names: dict[str, str] = {}
    made: list[Message] = []
    for number, each in enumerate(given):
        role, content = each["role"], each.get("content") or ""
        if role == "system" and not number:
            made.append({"role": "system", "content": f"{content}\n{aside}".strip()})
        elif calls := each.get("tool_calls"):
            for call in calls:
                name, said = _call(call)
                names[str(call.get("id"))] = name
                made.append({"role": "assistant", "content": said})
        elif role == "tool":
            name = each.get("name") or names.get(str(each.get("tool_call_id"))) or "the tool"
            text = f"Result of {name}: {content}"
            made.append({"role": "user", "content": text, "result": True})
        elif role == "assistant" and tools:
            text = json.dumps({"answer": content}, ensure_ascii=False)
            made.append({"role": "assistant", "content": text})
        else:
            made.append({"role": role, "content": content})
    return _alternating(made)


def bare(messages: Sequence[Message]) -> list[Message]:
    """Roles and contents alone, as templates take them: without the mark of results."""
    return [{"role": each["role"], "content": each["content"]} for each in messages]


def _aside(tools: Sequence[Schema], answers: bool) -> str:
    """What the system says of the tools."""
    ways = CALLING + (' When the goal is reached: {"answer": TEXT}.' if answers else "")
    lines = [
        json.dumps(
            {
                "tool": each["name"],
                "what": each.get("description", ""),
                "arguments": each.get("parameters") or {},
            },
            ensure_ascii=False,
        )
        for each in map(function_of, tools)
    ]
    return "\n".join([f"Answer with one JSON object and nothing else. {ways}\nTools:", *lines])


def _call(call: Any) -> tuple[str, str]:
    """The name of a call that was made, and the call as JSON."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    given = function.get("arguments", {}) if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not isinstance(given, Mapping):
        raise BedstoneError(
            f"tool_calls: holds {shown(call)}; expected a function with a name and arguments, a "
            "JSON object as text."
        )
    return name, json.dumps({TURN[0]: name, TURN[1]: given}, ensure_ascii=False)


def _alternating(messages: list[Message]) -> list[Message]:
    """Of a turn with several calls: each call before its result, as templates want turns."""
    made: list[Message] = []
    waiting: list[Message] = []
    for each in messages:
        if each["role"] == "assistant":
            waiting.append(each)
            continue
        if waiting:
            made.append(waiting.pop(0))
        made.append(each)
    return [*made, *waiting]


def _closed(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _arguments(schema: Schema, prefix: str, shared: dict[str, Any]) -> dict[str, Any]:
    """A tool's parameters, in which only what is named may stand.

    Args:
        prefix: of names of its parts that are referred to.
        shared: these are put there, since references begin at the root of a schema.
    """
    made = {key: value for key, value in schema.items() if key not in _LOOSE}
    if made.keys().isdisjoint(("$ref", "anyOf", "oneOf", "allOf")):
        made.setdefault("type", "object")
        made.setdefault("properties", {})
        made.setdefault("additionalProperties", False)
    parts = {name: made.pop(name, None) or {} for name in ("$defs", "definitions")}
    for held in parts.values():
        for name, value in held.items() if isinstance(held, Mapping) else ():
            shared[prefix + name] = _moved(value, prefix)
    found: dict[str, Any] = _moved(made, prefix)
    if _refers(found, prefix) or _refers(shared, prefix):
        shared[prefix] = found
    return found


def _moved(value: Any, prefix: str) -> Any:
    """A schema whose references lead to the shared parts."""
    if isinstance(value, list):
        return [_moved(each, prefix) for each in value]
    if not isinstance(value, Mapping):
        return value
    found = {key: _moved(each, prefix) for key, each in value.items()}
    there = found.get("$ref")
    if isinstance(there, str) and there.startswith("#"):
        name = there.removeprefix("#/$defs/").removeprefix("#/definitions/")
        if name == there:  # the root, or a part of it that is no definition
            name = there.removeprefix("#")
        found["$ref"] = f"#/$defs/{prefix}{name}"
    return found


def _refers(value: Any, prefix: str) -> bool:
    """Whether a reference leads to the root of a tool's schema, or to a part of it."""
    if isinstance(value, list):
        return any(_refers(each, prefix) for each in value)
    if not isinstance(value, Mapping):
        return False
    root, there = f"#/$defs/{prefix}", value.get("$ref")
    if there == root or (isinstance(there, str) and there.startswith(f"{root}/")):
        return True
    return any(_refers(each, prefix) for each in value.values())
