"""Tools that a model may call: Python functions with what is needed to judge a call.

A call's arguments are checked against the tool's schema before it runs, and what goes wrong is a
result too, which the model reads.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bedstone.data.text.tool_calls import schema_of
from bedstone.errors import BedstoneError, nearest
from bedstone.reading import shown

LONGEST = 4000  # characters of a result that a model reads
_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list, tuple),
    "object": (dict,),
    "null": (type(None),),
}


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    Attributes:
        name: as the model calls it.
        description: what it does, for the model.
        parameters: JSON schema of its arguments, an object.
        function: called with the arguments by name; what it returns is told as text or JSON.
        effects: whether it changes something, sends something, or costs something.
        untrusted: whether its results hold texts that others wrote, such as files or pages.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    function: Callable[..., Any] = field(repr=False, compare=False)
    effects: bool = True
    untrusted: bool = True

    @property
    def schema(self) -> dict[str, Any]:
        """The tool as chat templates and endpoints take it."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
        return {"type": "function", "function": function}

    def check(self, arguments: Mapping[str, Any]) -> str:
        """What is wrong with the arguments of a call; "" where nothing is."""
        known = self.parameters.get("properties") or {}
        for name in self.parameters.get("required") or ():
            if name not in arguments:
                return f"{self.name}: the argument {name!r} is missing"
        for name, value in arguments.items():
            if name not in known:
                return (
                    f"{self.name}: there is no argument {name!r}{nearest(name, known)}"
                    if known
                    else f"{self.name}: takes no arguments"
                )
            wrong = _unfit(value, known[name])
            if wrong:
                return f"{self.name}: the argument {name!r} is {shown(value, 60)}; {wrong}"
        return ""


def tool(function: Callable[..., Any], *, effects: bool = True, untrusted: bool = True) -> Tool:
    """A Python function as a tool: its signature and docstring are the schema.

    Raises:
        BedstoneError: it takes arguments without names.
    """
    schema = schema_of(function)["function"]
    return Tool(
        schema["name"], schema["description"], schema["parameters"], function, effects, untrusted
    )


class Toolbox:
    """The tools of an agent, by name.

    Raises:
        BedstoneError: two have one name, or one has none.
    """

    def __init__(self, tools: Iterable[Tool | Callable[..., Any]]) -> None:
        self.tools: dict[str, Tool] = {}
        for each in tools:
            made = each if isinstance(each, Tool) else tool(each)
            if not made.name:
                raise BedstoneError("tools: one has no name. Give it one.")
            if made.name in self.tools:
                raise BedstoneError(f"tools: two are called {made.name!r}. Rename one of them.")
            self.tools[made.name] = made

    @property
    def schemas(self) -> list[dict[str, Any]]:
        return [each.schema for each in self.tools.values()]

    def fault(self, name: str, arguments: Any) -> str:
        """What is wrong with a call; "" where it may be made."""
        if name not in self.tools:
            return f"there is no tool {name!r}; there are {', '.join(self.tools) or 'none'}"
        if not isinstance(arguments, Mapping):
            return f"{name}: the arguments are {shown(arguments, 60)}; expected an object"
        return self.tools[name].check(arguments)

    def run(self, name: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        """The result of a call as text, and whether it is one, or what went wrong."""
        try:
            found = self.tools[name].function(**arguments)
        except (Exception, SystemExit) as error:  # whatever a tool raises, the loop goes on
            kind = "" if isinstance(error, BedstoneError) else f"{type(error).__name__}: "
            return readable(f"error: {kind}{error}"), False
        if not isinstance(found, str):
            try:
                found = json.dumps(found, ensure_ascii=False, default=str)
            except (TypeError, ValueError, RecursionError) as error:
                return readable(f"error: the result can't be told: {error}"), False
        return readable(found), True


def readable(text: str) -> str:
    """A text that a model can read: no control characters, and not too long."""
    text = text.encode("utf-8", "replace").decode()
    text = "".join(c if c.isprintable() or c in "\n\t" else " " for c in text[: LONGEST + 1])
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... (cut)"


def _unfit(value: Any, schema: Any) -> str:
    """Why a value isn't of a property's schema, in what is checked here: kind, enum, const."""
    if not isinstance(schema, Mapping):
        return ""
    kinds = schema.get("type")
    if kinds is not None:
        names = [kinds] if isinstance(kinds, str) else list(kinds)
        fits = any(_is_kind(value, name) for name in names)
        if not fits:
            return f"expected {' or '.join(names)}"
    if "enum" in schema and value not in schema["enum"]:
        return f"expected one of {', '.join(map(repr, schema['enum']))}"
    if "const" in schema and value != schema["const"]:
        return f"expected {schema['const']!r}"
    return ""


def _is_kind(value: Any, name: str) -> bool:
    if isinstance(value, bool) and name in ("integer", "number"):
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _KINDS.get(name, (object,)))
