"""Functions that a chat model may call, or has to: how it is shown them, and how calls are read.

A template that writes calls is used as it is: what a model then writes of its own accord is read
back. Where a call has to be made, the template's mark is set before the answer, whose tokens are
held to the functions' schemas. Any other template is given the functions in the system's words, and
each turn is held to be a call or an answer in JSON (`data.text.tool_turns`).
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bedstone.data.text.chat import render
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.tool_calls import Call, CallForm, call_form
from bedstone.data.text.tool_turns import (
    TURN,
    answer_so_far,
    as_plain,
    bare,
    read_turn,
    turn_schema,
)
from bedstone.errors import BedstoneError
from bedstone.reading import shown

TOOLS = 128
NAME = 64  # characters
Tools = list[dict[str, Any]]


def check_tools(tools: Any, choice: Any) -> None:
    """Raises BedstoneError where these are no tools, or no choice among them."""
    given = tools if tools is not None else []
    fits = isinstance(given, list) and len(given) <= TOOLS
    names: list[str] = []
    for each in given if fits else ():
        named = isinstance(each, dict) and each.get("type") == "function"
        function = each.get("function") if named else None
        function = function if isinstance(function, dict) else {}
        name, parameters = function.get("name"), function.get("parameters")
        said = function.get("description")
        fits = fits and isinstance(name, str) and 0 < len(name) <= NAME and name not in names
        fits = fits and isinstance(parameters, dict | None) and isinstance(said, str | None)
        names.append(str(name))
    if not fits:
        raise BedstoneError(
            f"tools: expected up to {TOOLS} functions, {{'type': 'function', 'function': "
            f"{{'name': ..., 'parameters': {{...}}}}}}, each with a name of its own, of up to "
            f"{NAME} characters."
        )
    if choice in (None, "none", "auto"):
        return
    if not names:
        raise BedstoneError("tool_choice: was given without tools. Leave it out, or give tools.")
    name = chosen_name(choice)
    if choice != "required" and name is None:
        raise BedstoneError(
            f"tool_choice: {shown(choice)} was given; expected none, auto, required, or "
            "{'type': 'function', 'function': {'name': ...}}."
        )
    if name is not None and name not in names:
        raise BedstoneError(f"tool_choice: names {shown(name)}, which isn't among the tools.")


def chosen_name(choice: Any) -> str | None:
    """The function that a choice names; None where it names none."""
    named = isinstance(choice, dict) and choice.get("type") == "function"
    function = choice.get("function") if named else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


@dataclass(frozen=True)
class ToolUse:
    """The functions of a request.

    Attributes:
        tools: that the model is shown.
        forced: one of which it has to call; none lets it answer.
        form: how the template writes calls; None where turns are JSON in the conversation's words.
        parallel: whether an answer may hold several calls.
    """

    tools: Tools
    forced: Tools
    form: CallForm | None
    parallel: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer, tools: Tools, choice: Any, parallel: bool) -> "ToolUse":
        """That of a request whose tools and choice were checked."""
        name = chosen_name(choice)
        forced = [each for each in tools if name in (None, each["function"]["name"])]
        try:
            form = call_form(tokenizer, tools)
        except BedstoneError:
            form = None
        return cls(tools, [] if choice in (None, "auto") else forced, form, parallel)

    @property
    def held(self) -> bool:
        """Whether tokens are held to a schema."""
        return bool(self.forced) or self.form is None

    @property
    def schema(self) -> dict[str, Any] | None:
        """What an answer is held to; None where it isn't."""
        if not self.held:
            return None
        keys = TURN if self.form is None else self.form.keys
        return turn_schema(self.forced or self.tools, answers=not self.forced, keys=keys)

    def prompt(self, tokenizer: Tokenizer, messages: Sequence[dict[str, Any]]) -> list[int]:
        """The tokens of a conversation.

        Raises:
            BedstoneError: it can't be written.
        """
        if self.form is None:
            plain = as_plain(messages, self.tools, answers=not self.forced)
            return render(tokenizer, bare(plain)).ids
        ids = render(tokenizer, messages, tools=self.tools).ids
        if self.forced and self.form.lead:
            lead = tokenizer.backend.encode(self.form.lead, add_special_tokens=False)
            ids = [*ids, *lead.ids]
        return ids

    def read(self, text: str, named: str, whole: bool) -> tuple[str, list[Call]]:
        """What an answer says, and the calls in it; nothing of a call that isn't whole.

        Args:
            text: of the answer.
            named: the same with the names of special tokens in it.
            whole: whether it ended of its own accord.
        """
        if not self.held:
            assert self.form is not None
            calls = self.form.read(named.strip())
            said = self.said_so_far(named)
            if not calls:
                return (text if whole or said == named else said), []
            return "", (calls if self.parallel else calls[:1])
        turn = read_turn(text, TURN if self.form is None else self.form.keys)
        if isinstance(turn, Call):
            return "", [turn]
        return (self.said_so_far(text) if turn is None else turn), []

    def said_so_far(self, named: str) -> str:
        """What an answer in the making says; a call says nothing."""
        if self.forced:
            return ""
        if self.form is None:
            return answer_so_far(named)
        if self.form.before:
            return named.partition(self.form.before)[0]
        return "" if named.lstrip().startswith("{") else named


class Halts:
    """Whether what an answer says holds a stop text; what is in a call doesn't end it."""

    def __init__(self, use: ToolUse, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._use, self._tokenizer, self._stops = use, tokenizer, stops
        self._special = frozenset(tokenizer.special_ids)
        self._named = ""

    def __call__(self, token: int, text: str) -> bool:
        if token in self._special:
            text += self._tokenizer.decode([token], skip_special=False)
        self._named += text
        said = self._use.said_so_far(self._named)
        return any(each in said for each in self._stops)


def written_calls(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Calls as an answer's message has them, each with an id of its own."""
    return [
        {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": _written(call.arguments),
            },
        }
        for call in calls
    ]


def _written(arguments: Any) -> str:
    """Arguments as JSON; half characters, which no UTF-8 holds, stay escaped."""
    text = json.dumps(arguments, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(arguments)
    return text
