"""`/v1/chat/completions`: conversations, by the model's own chat template.

The text of a message is only text: names of control tokens in it are read as characters
(`data.text.chat`). A message with an image goes to a model of images and texts, whole and without
a stream of its tokens.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from bedstone.data.text.chat import render
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.tool_calls import Call as ToolCall
from bedstone.data.text.tool_calls import CallForm, call_form
from bedstone.errors import BedstoneError
from bedstone.reading import shown
from bedstone.serve.guide import guides_of
from bedstone.serve.models import Served
from bedstone.serve.wire import (
    DONE,
    ApiError,
    Context,
    Inbox,
    event_of,
    events_of,
    image_of,
    submit,
)
from bedstone.serve.work import Call, Result
from bedstone.serve.writing import (
    Choice,
    TokenTexts,
    WritingRequest,
    begin,
    bounded,
    check_length,
    head_of,
    room_of,
    tokenizer_of,
    usage_of,
)
from bedstone.settings import optional, whole

MESSAGES, TOOLS = 2048, 128


@dataclass(frozen=True)
class ChatRequest(WritingRequest):
    """Fields of a chat completion."""

    messages: Any = None
    max_completion_tokens: int | None = optional(whole(1))
    logprobs: bool = False
    top_logprobs: int | None = optional(whole(0, 20))
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    response_format: Any = None
    prompt_cache_key: str = ""
    reasoning_effort: str = ""
    modalities: Any = None
    chat_template_kwargs: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.messages, list) or not 0 < len(self.messages) <= MESSAGES:
            raise BedstoneError(
                f"messages: {shown(self.messages)} was given; expected a list of up to "
                f"{MESSAGES:,} messages."
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise BedstoneError("top_logprobs: needs logprobs: true.")
        if self.max_tokens == 0:
            raise BedstoneError("max_tokens: 0 was given; expected at least 1.")
        if self.modalities not in (None, ["text"]):
            raise BedstoneError(f'modalities: {shown(self.modalities)}; expected ["text"].')
        if self.chat_template_kwargs:
            raise BedstoneError("chat_template_kwargs: are not taken. Leave them out.")
        self._check_tools()

    def _check_tools(self) -> None:
        tools = self.tools if self.tools is not None else []
        fits = isinstance(tools, list) and len(tools) <= TOOLS
        for each in tools if fits else ():
            named = isinstance(each, dict) and each.get("type") == "function"
            function = each.get("function") if named else None
            name = function.get("name") if isinstance(function, dict) else None
            fits = fits and isinstance(name, str) and 0 < len(name) <= 64
        if not fits:
            raise BedstoneError(
                f"tools: expected up to {TOOLS} functions, {{'type': 'function', 'function': "
                "{'name': ...}}, with names of up to 64 characters."
            )
        choice = self.tool_choice
        if choice in (None, "none", "auto"):
            return
        if choice == "required" or isinstance(choice, dict):
            raise BedstoneError(
                "tool_choice: a call can't be forced here; expected none or auto. Leave it out."
            )
        raise BedstoneError(f"tool_choice: {shown(choice)} was given; expected none or auto.")

    @property
    def wanted(self) -> int | None:
        """Tokens to make."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def offered(self) -> list[dict[str, Any]] | None:
        """The tools that the model is shown."""
        return None if self.tool_choice == "none" else self.tools or None


@dataclass
class _Reply:
    """All that answers need."""

    request: ChatRequest
    tokenizer: Tokenizer
    ids: list[int]
    inbox: Inbox
    choices: list[Choice]
    form: CallForm | None
    ends: frozenset[int]

    def __post_init__(self) -> None:
        self.head = head_of("chat.completion", "chatcmpl", self.request.model)
        self.texts = [TokenTexts(self.tokenizer, self.ids) for _ in self.choices]

    def calls(self, choice: Choice) -> list[ToolCall]:
        """The calls of functions in what was made; none where it is no call."""
        if self.form is None:
            return []
        ids = [each for each in choice.tokens if each not in self.ends]
        found = self.form.read(self.tokenizer.decode(ids, skip_special=False).strip())
        return found if self.request.parallel_tool_calls else found[:1]

    def known(self, number: int, first: int = 0) -> dict[str, Any] | None:
        """Log-probabilities of a choice's tokens from `first` on."""
        if not self.request.logprobs:
            return None
        choice, texts = self.choices[number], self.texts[number]
        content = []
        for token, (own, top) in zip(choice.tokens[first:], choice.known[first:], strict=True):
            text, others = texts.of(token, [each for each, _ in top])
            likeliest = [
                _token(other, value) for other, (_, value) in zip(others, top, strict=True)
            ]
            content.append({**_token(text, own), "top_logprobs": likeliest})
        return {"content": content, "refusal": None}


def _token(text: str, value: float) -> dict[str, Any]:
    return {"token": text, "logprob": bounded(value), "bytes": list(text.encode()) or None}


async def chat(
    served: Served, request: ChatRequest, context: Context, most_pixels: int
) -> dict[str, Any] | AsyncIterator[str]:
    """The answer to a conversation, or its events.

    Raises:
        ApiError: it can't be answered.
    """
    messages, images = await asyncio.to_thread(_read_messages, request.messages, most_pixels)
    if images:
        return await _seen(served, request, messages, context)
    tokenizer = tokenizer_of(served)
    ids, form = await asyncio.to_thread(_prompt, served, request, messages)
    room = room_of(len(ids), request.wanted, served, "messages")
    top = (request.top_logprobs or 0) if request.logprobs else None
    ends = frozenset(served.model.end_ids)
    if request.stop and request.response_format not in (None, {"type": "text"}):
        raise ApiError(
            400, "stop: was given beside response_format, which says where an answer ends. Leave "
            "one of them out.", "stop",
        )  # fmt: skip
    guides = await asyncio.to_thread(guides_of, request.response_format, tokenizer, ends, request.n)
    inbox, choices = begin(
        request, served, [ids], context, each=request.n, rooms=[room], top=top, guides=guides
    )
    reply = _Reply(request, tokenizer, ids, inbox, choices, form, ends)
    if request.stream:
        return _stream(reply)
    async for found in events_of(inbox, len(choices)):
        if found is not None:
            choices[found[0]].take(found[1])
    return {
        **reply.head,
        "choices": [_choice(reply, number) for number in range(len(choices))],
        "usage": usage_of([ids], choices),
        "service_tier": None,
        "system_fingerprint": None,
    }


def _choice(reply: _Reply, number: int) -> dict[str, Any]:
    choice = reply.choices[number]
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    finish = choice.finish
    if calls := reply.calls(choice):
        message |= {"content": None, "tool_calls": _written(calls)}
        finish = "tool_calls"
    known = reply.known(number)
    return {"index": number, "message": message, "logprobs": known, "finish_reason": finish}


def _written(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": json.dumps(call.arguments, ensure_ascii=False),
            },
        }
        for call in calls
    ]


async def _stream(reply: _Reply) -> AsyncIterator[str]:
    """Chunks: a first one of each choice with its role, pieces, a last with its finish."""
    request = reply.request
    head = {**reply.head, "object": "chat.completion.chunk", "system_fingerprint": None}
    usage = {"usage": None} if request.counts else {}

    def chunk(number: int, delta: dict[str, Any], finish: Any = None, known: Any = None) -> str:
        choice = {"index": number, "delta": delta, "logprobs": known, "finish_reason": finish}
        return event_of({**head, "choices": [choice], **usage})

    for number in range(len(reply.choices)):
        yield chunk(number, {"role": "assistant", "content": ""})
    async for found in events_of(reply.inbox, len(reply.choices)):
        if found is None:
            yield ": ping\n\n"
            continue
        number, event = found
        choice = reply.choices[number]
        first = len(choice.tokens)
        new = choice.take(event)
        if len(choice.tokens) == first:
            continue
        known = reply.known(number, first)
        if reply.form is None and (new or known):
            yield chunk(number, {"content": new}, known=known)
        if choice.finish is None:
            continue
        finish = choice.finish
        if reply.form is not None:  # only the whole says whether it calls
            if calls := reply.calls(choice):
                written = [{"index": i, **one} for i, one in enumerate(_written(calls))]
                yield chunk(number, {"tool_calls": written})
                finish = "tool_calls"
            else:
                yield chunk(number, {"content": choice.text})
        yield chunk(number, {}, finish)
    if request.counts:
        yield event_of({**head, "choices": [], "usage": usage_of([reply.ids], reply.choices)})
    yield DONE


def _prompt(
    served: Served, request: ChatRequest, messages: list[dict[str, Any]]
) -> tuple[list[int], CallForm | None]:
    """The ids of a conversation, and how its template writes calls."""
    tokenizer = tokenizer_of(served)
    texts = [each["content"] for each in messages if isinstance(each.get("content"), str)]
    check_length("".join(texts), served, "messages")
    tools = request.offered
    try:
        form = call_form(tokenizer, tools) if tools else None
        return render(tokenizer, messages, tools=tools).ids, form
    except BedstoneError as error:
        raise ApiError(400, str(error), "messages") from None


def _read_messages(given: list[Any], most_pixels: int) -> tuple[list[dict[str, Any]], int]:
    """Messages with their texts joined and images decoded, and how many images there are."""
    messages: list[dict[str, Any]] = []
    images = 0
    for number, message in enumerate(given):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ApiError(400, f"{where}: expected a role and content.", "messages")
        content = message.get("content")
        if not isinstance(content, list):
            messages.append(dict(message))
            continue
        parts: list[dict[str, Any]] = []
        for place, part in enumerate(content):
            param = f"{where}.content[{place}]"
            kind = part.get("type") if isinstance(part, dict) else None
            if kind in ("text", "refusal") and isinstance(part.get(kind), str):
                parts.append({"type": "text", "text": part[kind]})
            elif kind == "image_url" and isinstance(part.get("image_url"), dict):
                pixels = image_of(part["image_url"].get("url"), param, most_pixels)
                most_pixels -= pixels.shape[0] * pixels.shape[1]
                parts.append({"type": "image", "image": pixels})
                images += 1
            else:
                raise ApiError(
                    400, f"{param}: expected a part of type text or image_url.", "messages"
                )
        messages.append({**message, "content": parts})
    return messages, images


async def _seen(
    served: Served, request: ChatRequest, messages: list[dict[str, Any]], context: Context
) -> dict[str, Any] | AsyncIterator[str]:
    """The answer to messages with an image, by the task image-text-to-text."""
    refused = {
        "n": request.n > 1, "logprobs": request.logprobs, "tools": bool(request.offered),
        "stop": bool(request.stops), "logit_bias": bool(request.logit_bias),
        "response_format": request.response_format not in (None, {"type": "text"}),
        "presence_penalty": request.presence_penalty != 0,
        "frequency_penalty": request.frequency_penalty != 0,
    }  # fmt: skip
    for name, given in refused.items():
        if given:
            raise ApiError(400, f"{name}: doesn't go with images. Leave it out.", name)
    options: dict[str, Any] = {"return_full_text": False}
    if request.wanted is not None:
        options["max_new_tokens"] = request.wanted
    if request.temperature:
        options |= {"temperature": request.temperature, "do_sample": True}
        options |= {"seed": (request.seed or 0) % 2**63, "top_p": request.top_p}
    options = {name: value for name, value in options.items() if value is not None}
    inbox = Inbox()
    key = json.dumps(options, sort_keys=True)
    call = Call("image-text-to-text", [{"messages": messages}], options, inbox.of(0), key, 256)
    submit(served.scheduler, [call], context)
    text = ""
    async for found in events_of(inbox, 1):
        if found is not None and isinstance(found[1], Result):
            text = found[1].values[0][0]["generated_text"]
    head = head_of("chat.completion", "chatcmpl", request.model)
    usage = _words(served, messages, text)
    if request.stream:
        return _one_piece(head, text, usage if request.counts else None)
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return {**head, "choices": [choice], "usage": usage}


def _words(served: Served, messages: list[dict[str, Any]], text: str) -> dict[str, Any]:
    """Tokens of the texts alone: what an image is to a network differs between families."""
    known = served.model.tokenizer
    assert known is not None
    parts = [
        part["text"] for each in messages if isinstance(each["content"], list)
        for part in each["content"] if part["type"] == "text"
    ]  # fmt: skip
    read, made = sum(len(known.encode(part)) for part in parts), len(known.encode(text))
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


async def _one_piece(head: dict[str, Any], text: str, usage: Any) -> AsyncIterator[str]:
    head = {**head, "object": "chat.completion.chunk"}
    more = {} if usage is None else {"usage": None}
    for delta, finish in (({"role": "assistant", "content": text}, None), ({}, "stop")):
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        yield event_of({**head, "choices": [choice], **more})
    if usage is not None:
        yield event_of({**head, "choices": [], "usage": usage})
    yield DONE
