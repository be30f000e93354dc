"""`/v1/responses`: conversations as items, by the same answers as `/v1/chat/completions`.

A response that may be stored (`store`, true where nothing is said) is kept by `serve.kept`: it can
be gone on from by `previous_response_id`.
"""

import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.reading import shown
from bedstone.serve.chat import Answers, ChatRequest, Delta, Said, answers_of
from bedstone.serve.kept import Conversations
from bedstone.serve.models import Served
from bedstone.serve.tools import written_calls
from bedstone.serve.wire import ApiError, Context, event_of, logged_error, parse
from bedstone.settings import Settings, number, one_of, optional, share, whole

ITEMS = 2048
LOGPROBS = "message.output_text.logprobs"  # what `include` may name
# Fields of a chat completion by what they are called here, for messages.
RENAMED = {
    "messages": "input", "max_completion_tokens": "max_output_tokens",
    "response_format": "text", "logprobs": "include",
}  # fmt: skip


@dataclass(frozen=True)
class ResponsesRequest(Settings):
    """Fields of a response; `seed`, `top_k` and `cache_salt` are none of OpenAI's.

    Those of the last part are taken and change nothing here.
    """

    model: str = ""
    input: Any = None
    instructions: str | None = None
    max_output_tokens: int | None = optional(whole(1))
    temperature: float | None = optional(number(0, 2))
    top_p: float | None = optional(share())
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    text: Any = None
    previous_response_id: str | None = None
    store: bool = True
    stream: bool = False
    include: Any = None
    top_logprobs: int | None = optional(whole(0, 20))
    truncation: str = one_of("disabled", "auto", default="disabled")
    background: bool = False
    seed: int | None = optional(whole(-(2**63), 2**63 - 1))
    top_k: int | None = optional(whole(-1))
    cache_salt: str = ""

    stream_options: Any = None
    metadata: Any = None
    reasoning: Any = None
    user: str = ""
    safety_identifier: str = ""
    prompt_cache_key: str = ""
    service_tier: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.background:
            raise BedstoneError("background: nothing is done in the background. Leave it out.")
        if self.truncation == "auto":
            raise BedstoneError("truncation: nothing is left out here; expected disabled.")
        include = self.include if self.include is not None else []
        if not isinstance(include, list) or any(each != LOGPROBS for each in include):
            raise BedstoneError(f'include: {shown(include)} was given; expected ["{LOGPROBS}"].')
        options = self.stream_options if self.stream_options is not None else {}
        known = isinstance(options, dict) and options.keys() <= {"include_obfuscation"}
        if not known or not all(isinstance(each, bool) for each in options.values()):
            raise BedstoneError(
                f"stream_options: {shown(options)} was given; expected include_obfuscation, true "
                "or false."
            )
        if not isinstance(self.metadata, dict | None):
            raise BedstoneError(f"metadata: {shown(self.metadata)}; expected an object.")

    @property
    def form(self) -> dict[str, Any]:
        """What `text` says of the answer's form.

        Raises:
            ApiError: it is no object with a format.
        """
        given = self.text if self.text is not None else {}
        form = given.get("format", {"type": "text"}) if isinstance(given, dict) else None
        if not isinstance(form, dict) or not set(given) <= {"format", "verbosity"}:
            raise ApiError(400, f"text: {shown(given)}; expected {{'format': ...}}.", "text")
        return form

    def chat(self, messages: list[dict[str, Any]]) -> ChatRequest:
        """The same as a chat completion.

        Raises:
            ApiError: a field has a wrong value.
        """
        form = self.form
        if form.get("type") == "json_schema":
            held = {name: value for name, value in form.items() if name != "type"}
            form = {"type": "json_schema", "json_schema": held}
        body = {
            "model": self.model, "messages": messages, "temperature": self.temperature,
            "top_p": self.top_p, "max_completion_tokens": self.max_output_tokens,
            "tools": self._tools(), "tool_choice": self._choice(), "seed": self.seed,
            "parallel_tool_calls": self.parallel_tool_calls, "response_format": form,
            "top_k": self.top_k, "cache_salt": self.cache_salt,
        }  # fmt: skip
        if self.include:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return parse(ChatRequest, body)

    def _tools(self) -> Any:
        """Functions as a chat completion has them."""
        if not isinstance(self.tools, list):
            return self.tools
        found = []
        for each in self.tools:
            if not isinstance(each, dict) or each.get("type") != "function":
                raise ApiError(400, f"tools: {shown(each)}; only functions are called.", "tools")
            function = {name: value for name, value in each.items() if name != "type"}
            found.append({"type": "function", "function": function})
        return found

    def _choice(self) -> Any:
        choice = self.tool_choice
        if isinstance(choice, dict) and choice.get("type") == "function" and "name" in choice:
            return {"type": "function", "function": {"name": choice["name"]}}
        return choice


async def respond(
    served: Served,
    request: ResponsesRequest,
    context: Context,
    most_pixels: int,
    kept: Conversations,
) -> dict[str, Any] | AsyncIterator[str]:
    """A response, or its events.

    Raises:
        ApiError: there can be none.
    """
    messages = read_items(request.input)
    if request.previous_response_id is not None:
        messages = [*kept.find(context.identity, request.previous_response_id), *messages]
    if not kept.keeps:
        request = replace(request, store=False)
    given = messages
    if request.instructions:
        messages = [{"role": "system", "content": request.instructions}, *messages]
    try:
        answers = await answers_of(
            served, request.chat(_one_system(messages)), context, most_pixels
        )
    except ApiError as error:
        raise _renamed(error) from None
    making = _Making(request, answers)
    if request.stream:
        return _events(making, context, kept, given)
    async for delta in answers.deltas():
        if delta is not None:
            making.take(delta)
    making.finish()
    _keep(making, context, kept, given)
    return making.response()


def _keep(
    making: "_Making", context: Context, kept: Conversations, given: list[dict[str, Any]]
) -> None:
    if making.request.store:
        messages = [*given, making.message]
        kept.keep(context.identity, making.id, messages, making.response())


def _renamed(error: ApiError) -> ApiError:
    """An error of a chat completion with the names that fields have here."""
    first, bracket, rest = (error.param or "").partition("[")
    if first not in RENAMED:
        return error
    message = error.message.replace(first, RENAMED[first], 1)
    param = RENAMED[first] + bracket + rest
    return ApiError(error.status, message, param, error.code, error.seconds)


# Items.


def read_items(given: Any) -> list[dict[str, Any]]:
    """Messages of a chat completion that stand for items.

    Raises:
        ApiError: one is unknown.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not 0 < len(given) <= ITEMS:
        raise ApiError(
            400, f"input: {shown(given)} was given; expected a text, or up to {ITEMS:,} items.",
            "input",
        )  # fmt: skip
    messages: list[dict[str, Any]] = []
    for place, item in enumerate(given):
        where = f"input[{place}]"
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if kind == "message":
            messages.append(_read_message(item, where))
        elif kind == "function_call":
            call = {"id": _text(item, "call_id", where), "type": "function", "function": {
                "name": _text(item, "name", where),
                "arguments": _text(item, "arguments", where)}}  # fmt: skip
            if messages and messages[-1].get("tool_calls"):
                messages[-1]["tool_calls"].append(call)
            else:
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif kind == "function_call_output":
            output = item.get("output")
            content = output if isinstance(output, str) else _read_parts(output, where)
            called = _text(item, "call_id", where)
            messages.append({"role": "tool", "tool_call_id": called, "content": content})
        elif kind != "reasoning":  # which says nothing to another model
            raise ApiError(
                400, f"{where}: {shown(item)}; expected a message, function_call or "
                "function_call_output.", "input",
            )  # fmt: skip
    if not messages:
        raise ApiError(400, "input: holds no message.", "input")
    return messages


def _text(item: Mapping[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise ApiError(400, f"{where}.{name}: {shown(value)}; expected a text.", "input")
    return value


def _read_message(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    role, content = item.get("role"), item.get("content")
    if role not in ("user", "assistant", "system", "developer"):
        raise ApiError(
            400, f"{where}.role: {shown(role)}; expected user, assistant, system or developer.",
            "input",
        )  # fmt: skip
    content = content if isinstance(content, str) else _read_parts(content, where)
    return {"role": "system" if role == "developer" else role, "content": content}


def _read_parts(parts: Any, where: str) -> Any:
    """The parts of a content: one text, or texts and images."""
    if not isinstance(parts, list):
        raise ApiError(400, f"{where}: {shown(parts)}; expected a text or parts.", "input")
    found: list[dict[str, Any]] = []
    for place, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_text", "output_text", "text", "refusal"):
            name = "refusal" if kind == "refusal" else "text"
            found.append({"type": "text", "text": _text(part, name, f"{where}[{place}]")})
        elif kind == "input_image":
            url = _text(part, "image_url", f"{where}[{place}]")
            found.append({"type": "image_url", "image_url": {"url": url}})
        else:
            raise ApiError(
                400, f"{where}[{place}]: {shown(part)}; expected input_text or input_image.",
                "input",
            )  # fmt: skip
    if all(each["type"] == "text" for each in found):
        return "".join(each["text"] for each in found)
    return found


def _one_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose first ones of the system are one, as templates want it."""
    count = 0
    while count < len(messages) and messages[count]["role"] == "system":
        count += 1
    first = [each["content"] for each in messages[:count]]
    if count < 2 or not all(isinstance(each, str) for each in first):
        return messages
    return [{"role": "system", "content": "\n\n".join(first)}, *messages[count:]]


# The response.


class _Making:
    """A response in the making: its items as they grow."""

    def __init__(self, request: ResponsesRequest, answers: Answers) -> None:
        self.request, self.answers = request, answers
        self.id = _named("resp")
        self.created = int(time.time())
        self.status = "in_progress"
        self.error: dict[str, Any] | None = None
        self.item = _named("msg")
        self.text = ""
        self.known: list[dict[str, Any]] = []
        self.said: Said | None = None
        self.calls: list[dict[str, Any]] = []

    def take(self, delta: Delta) -> None:
        self.text += delta.text
        self.known += known_of(delta)
        self.said = delta.said or self.said

    def finish(self) -> None:
        said = self.said or Said(self.text, (), "length")
        self.status = "incomplete" if said.finish == "length" else "completed"
        self.calls = [
            {
                "type": "function_call", "id": _named("fc"), "call_id": call["id"],
                "name": call["function"]["name"], "arguments": call["function"]["arguments"],
                "status": "completed",
            }
            for call in written_calls(said.calls)
        ]  # fmt: skip

    @property
    def message(self) -> dict[str, Any]:
        """What was answered, as a message of the conversation."""
        if not self.calls:
            return {"role": "assistant", "content": self.text}
        calls = [
            {
                "id": each["call_id"], "type": "function",
                "function": {"name": each["name"], "arguments": each["arguments"]},
            }
            for each in self.calls
        ]  # fmt: skip
        return {"role": "assistant", "content": self.text or None, "tool_calls": calls}

    @property
    def writes(self) -> bool:
        """Whether there is a message beside calls."""
        return bool(self.text) or not self.calls

    def part(self) -> dict[str, Any]:
        part = {"type": "output_text", "text": self.text, "annotations": []}
        return {**part, "logprobs": self.known}

    def written(self, status: str | None = None) -> dict[str, Any]:
        """The item of the message."""
        status = status or self.status
        content = [] if status == "in_progress" else [self.part()]
        return {
            "type": "message", "id": self.item, "status": status, "role": "assistant",
            "content": content,
        }  # fmt: skip

    def response(self) -> dict[str, Any]:
        request, ended = self.request, self.status in ("completed", "incomplete")
        output = [*([self.written()] if self.writes else []), *self.calls] if ended else []
        cut = {"reason": "max_output_tokens"} if self.status == "incomplete" else None
        return {
            "id": self.id, "object": "response", "created_at": self.created,
            "status": self.status, "background": False, "error": self.error,
            "incomplete_details": cut, "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens, "model": request.model,
            "output": output, "parallel_tool_calls": request.parallel_tool_calls,
            "previous_response_id": request.previous_response_id,
            "reasoning": {"effort": None, "summary": None}, "store": request.store,
            "temperature": request.temperature, "text": {"format": request.form},
            "tool_choice": request.tool_choice or "auto", "tools": request.tools or [],
            "top_p": request.top_p, "top_logprobs": request.top_logprobs or 0,
            "truncation": "disabled", "usage": _usage(self.answers) if ended else None,
            "user": request.user or None, "metadata": request.metadata or {},
        }  # fmt: skip


def known_of(delta: Delta) -> list[dict[str, Any]]:
    """Log-probabilities as responses have them: bytes are a list, be it an empty one."""

    def filled(one: dict[str, Any]) -> dict[str, Any]:
        return {**one, "bytes": one["bytes"] or []}

    return [
        {**filled(each), "top_logprobs": [filled(one) for one in each["top_logprobs"]]}
        for each in delta.known or ()
    ]


def _usage(answers: Answers) -> dict[str, Any]:
    used = answers.usage
    cached = used.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    return {
        "input_tokens": used["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": used["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used["total_tokens"],
    }


def _named(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


async def _events(
    making: _Making, context: Context, kept: Conversations, given: list[dict[str, Any]]
) -> AsyncIterator[str]:
    """The events of a response, each with its number; an error is one, too."""
    count = 0

    def event(kind: str, **fields: Any) -> str:
        nonlocal count
        count += 1
        value = {"type": kind, "sequence_number": count - 1, **fields}
        return f"event: {kind}\n{event_of(value)}"

    try:
        for kind in ("response.created", "response.in_progress"):
            yield event(kind, response=making.response())
        at: dict[str, Any] = {"item_id": making.item, "output_index": 0, "content_index": 0}
        begun = False
        async for delta in making.answers.deltas():
            if delta is None:
                yield ": ping\n\n"
                continue
            making.take(delta)
            if delta.said is not None:
                making.finish()
            if not begun and (delta.text or delta.said is not None) and making.writes:
                begun = True
                item = making.written("in_progress")
                yield event("response.output_item.added", output_index=0, item=item)
                empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
                yield event("response.content_part.added", **at, part=empty)
            if delta.text:
                known = known_of(delta)
                yield event("response.output_text.delta", **at, delta=delta.text, logprobs=known)
        if begun:
            text = making.text
            yield event("response.output_text.done", **at, text=text, logprobs=making.known)
            yield event("response.content_part.done", **at, part=making.part())
            yield event("response.output_item.done", output_index=0, item=making.written())
        for place, call in enumerate(making.calls, int(begun)):
            item = {**call, "arguments": "", "status": "in_progress"}
            yield event("response.output_item.added", output_index=place, item=item)
            where = {"item_id": call["id"], "output_index": place}
            said = call["arguments"]
            yield event("response.function_call_arguments.delta", **where, delta=said)
            kind = "response.function_call_arguments.done"
            yield event(kind, **where, arguments=said, name=call["name"])
            yield event("response.output_item.done", output_index=place, item=call)
        _keep(making, context, kept, given)
        yield event(f"response.{making.status}", response=making.response())
    except Exception as error:
        found = logged_error(error, context.number)
        making.status, code = "failed", "server_error"
        code = "rate_limit_exceeded" if found.status == 429 else code
        making.error = {"code": code, "message": found.message}
        yield event("error", code=found.code, message=found.message, param=found.param)
        yield event("response.failed", response=making.response())
