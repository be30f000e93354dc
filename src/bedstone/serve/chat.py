"""`/v1/chat/completions`: conversations, by the model's own chat template.

The text of a message is only text: names of control tokens in it are read as characters
(`data.text.chat`). A message with an image goes to a model of images and texts, whole and without
a stream of its tokens. `answers_of` is what `/v1/responses` is answered by, too.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from bedstone.data.text.chat import render
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.tool_calls import Call as ToolCall
from bedstone.data.text.tool_turns import as_plain, bare
from bedstone.errors import BedstoneError
from bedstone.reading import shown
from bedstone.serve.guide import guides_of, schema_of
from bedstone.serve.models import Served
from bedstone.serve.tools import Halts, ToolUse, check_tools, written_calls
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
    check_rows,
    head_of,
    room_of,
    tokenizer_of,
    usage_of,
)
from bedstone.settings import optional, whole

MESSAGES = 2048


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
    prediction: Any = None

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
        self.predicted()
        check_tools(self.tools, self.tool_choice)

    def predicted(self) -> str:
        """The text that is expected to come; "" where none is.

        Raises:
            BedstoneError: it is no text.
        """
        given = self.prediction
        if given is None:
            return ""
        content = given.get("content") if isinstance(given, dict) else None
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        texts = [each.get("text") if isinstance(each, dict) else None for each in parts]
        if not all(isinstance(each, str) for each in texts) or given.get("type") != "content":
            raise BedstoneError(
                f"prediction: {shown(given)} was given; expected {{'type': 'content', 'content': "
                "TEXT}."
            )
        return "".join(str(each) for each in texts)

    @property
    def wanted(self) -> int | None:
        """Tokens to make."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def offered(self) -> list[dict[str, Any]] | None:
        """The tools that the model is shown."""
        return None if self.tool_choice == "none" else self.tools or None


# Answers, whatever they are made by.


@dataclass(frozen=True)
class Said:
    """A whole answer.

    Attributes:
        finish: stop, length or tool_calls.
    """

    text: str
    calls: Sequence[ToolCall]
    finish: str


@dataclass(frozen=True)
class Delta:
    """What is new of one answer.

    Attributes:
        number: of the answer.
        known: log-probabilities of the new tokens, as OpenAI has them; None where none are wanted.
        said: the whole, with the last delta.
    """

    number: int
    text: str
    known: list[dict[str, Any]] | None
    said: Said | None = None


class Answers(Protocol):
    """Answers to a conversation, in the making.

    Attributes:
        count: of answers.
    """

    count: int

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens that it took so far."""

    def deltas(self) -> AsyncIterator[Delta | None]:
        """What is new, as it comes; None where nothing came for a while."""


@dataclass
class _Written:
    """Answers of a decoder."""

    request: ChatRequest
    tokenizer: Tokenizer
    ids: list[int]
    inbox: Inbox
    choices: list[Choice]
    use: ToolUse | None
    ends: frozenset[int]

    def __post_init__(self) -> None:
        self.count = len(self.choices)
        self._texts = [TokenTexts(self.tokenizer, self.ids) for _ in self.choices]

    @property
    def usage(self) -> dict[str, Any]:
        return usage_of([self.ids], self.choices)

    async def deltas(self) -> AsyncIterator[Delta | None]:
        async for found in events_of(self.inbox, len(self.choices)):
            if found is None:
                yield None
                continue
            number, event = found
            choice = self.choices[number]
            first = len(choice.tokens)
            text = choice.take(event)
            if len(choice.tokens) == first:
                continue
            said = None if choice.finish is None else self._said(choice)
            if self.use is not None:  # only the whole says whether it calls
                if said is None:
                    continue
                text, first = said.text, 0
            yield Delta(number, text, self._known(number, first), said)

    def _said(self, choice: Choice) -> Said:
        finish = str(choice.finish)
        if self.use is None:
            return Said(choice.text, (), finish)
        ids = [each for each in choice.tokens if each not in self.ends]
        named = self.tokenizer.decode(ids, skip_special=False)
        text, calls = self.use.read(choice.text, named, finish == "stop")
        ends = [text.index(each) for each in self.request.stops if each in text]
        text = text[: min(ends)] if ends else text
        return Said(text, calls, "tool_calls" if calls else finish)

    def _known(self, number: int, first: int) -> list[dict[str, Any]] | None:
        """Log-probabilities of an answer's tokens from `first` on."""
        if not self.request.logprobs:
            return None
        choice, texts, content = self.choices[number], self._texts[number], []
        for token, (own, top) in zip(choice.tokens[first:], choice.known[first:], strict=True):
            text, others = texts.of(token, [each for each, _ in top])
            likeliest = [
                _token(other, value) for other, (_, value) in zip(others, top, strict=True)
            ]
            content.append({**_token(text, own), "top_logprobs": likeliest})
        return content


def _token(text: str, value: float) -> dict[str, Any]:
    return {"token": text, "logprob": bounded(value), "bytes": list(text.encode()) or None}


@dataclass
class _Seen:
    """The answer of a model of images and texts, which is there in one piece."""

    text: str
    usage: dict[str, Any]
    count: int = 1

    async def deltas(self) -> AsyncIterator[Delta | None]:
        yield Delta(0, self.text, None, Said(self.text, (), "stop"))


async def answers_of(
    served: Served, request: ChatRequest, context: Context, most_pixels: int
) -> Answers:
    """Begins to answer a conversation.

    Raises:
        ApiError: it can't be answered.
    """
    messages, images = await asyncio.to_thread(_read_messages, request.messages, most_pixels)
    if images:
        return await _seen(served, request, messages, context)
    tokenizer = tokenizer_of(served)
    check_rows(request.n, served, "n")
    ends = frozenset(served.model.end_ids)
    texts = [each["content"] for each in messages if isinstance(each.get("content"), str)]
    check_length("".join(texts), served, "messages")
    use, schema, param = None, schema_of(request.response_format), "response_format"
    if request.offered:
        use = await asyncio.to_thread(
            ToolUse.of, tokenizer, request.offered, request.tool_choice, request.parallel_tool_calls
        )
        if use.held and schema is not None:
            raise ApiError(
                400, "response_format: was given beside tools that the answer is held to call. "
                "Leave one of them out.", param,
            )  # fmt: skip
    if request.stops and schema is not None:
        raise ApiError(
            400, "stop: was given beside response_format, which says where an answer ends. Leave "
            "one of them out.", "stop",
        )  # fmt: skip
    if use is not None and use.held:
        schema, param = use.schema, "tools"
    ids = await asyncio.to_thread(_prompt, tokenizer, messages, use)
    room = room_of(len(ids), request.wanted, served, "messages")
    top = (request.top_logprobs or 0) if request.logprobs else None
    guides = await asyncio.to_thread(guides_of, schema, tokenizer, ends, request.n, param)
    predicted = request.predicted()
    check_length(predicted, served, "prediction")
    prediction = await asyncio.to_thread(tokenizer.encode, predicted) if predicted else []
    halts = []
    if use is not None and request.stops:  # which are of what an answer says, not of its calls
        halts = [Halts(use, tokenizer, request.stops) for _ in range(request.n)]
    inbox, choices = begin(
        replace(request, stop=None) if halts else request, served, [ids], context,
        each=request.n, rooms=[room], top=top, guides=guides, prediction=prediction, halts=halts,
    )  # fmt: skip
    return _Written(request, tokenizer, ids, inbox, choices, use, ends)


def _prompt(tokenizer: Tokenizer, messages: list[dict[str, Any]], use: ToolUse | None) -> list[int]:
    called = use is None and any(m.get("tool_calls") or m["role"] == "tool" for m in messages)
    try:
        if use is not None:
            return use.prompt(tokenizer, messages)
        if called:  # calls of before, whether the template knows such or not
            messages = bare(as_plain(messages))
        return render(tokenizer, messages).ids
    except BedstoneError as error:
        raise ApiError(400, str(error), "messages") from None


# Chat completions.


async def chat(
    served: Served, request: ChatRequest, context: Context, most_pixels: int
) -> dict[str, Any] | AsyncIterator[str]:
    """The answer to a conversation, or its events.

    Raises:
        ApiError: it can't be answered.
    """
    answers = await answers_of(served, request, context, most_pixels)
    head = head_of("chat.completion", "chatcmpl", request.model)
    if request.stream:
        return _stream(request, answers, head)
    choices = [_Whole() for _ in range(answers.count)]
    async for delta in answers.deltas():
        if delta is not None:
            choices[delta.number].take(delta)
    return {
        **head,
        "choices": [each.choice(number) for number, each in enumerate(choices)],
        "usage": answers.usage,
        "service_tier": None,
        "system_fingerprint": None,
    }


@dataclass
class _Whole:
    """An answer that is put together."""

    known: list[dict[str, Any]] | None = None
    said: Said = field(default_factory=lambda: Said("", (), "length"))

    def take(self, delta: Delta) -> None:
        if delta.known is not None:
            self.known = [*(self.known or ()), *delta.known]
        self.said = delta.said or self.said

    def choice(self, number: int) -> dict[str, Any]:
        said = self.said
        message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None}
        if said.calls:
            message |= {"content": said.text or None, "tool_calls": written_calls(said.calls)}
        return {
            "index": number, "message": message, "logprobs": _logprobs(self.known),
            "finish_reason": said.finish,
        }  # fmt: skip


def _logprobs(known: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    return None if known is None else {"content": known, "refusal": None}


async def _stream(
    request: ChatRequest, answers: Answers, head: dict[str, Any]
) -> AsyncIterator[str]:
    """Chunks: a first one of each choice with its role, pieces, a last with its finish."""
    head = {**head, "object": "chat.completion.chunk", "system_fingerprint": None}
    usage = {"usage": None} if request.counts else {}

    def chunk(number: int, delta: dict[str, Any], finish: Any = None, known: Any = None) -> str:
        choice = {
            "index": number, "delta": delta, "logprobs": _logprobs(known), "finish_reason": finish
        }  # fmt: skip
        return event_of({**head, "choices": [choice], **usage})

    for number in range(answers.count):
        yield chunk(number, {"role": "assistant", "content": ""})
    async for delta in answers.deltas():
        if delta is None:
            yield ": ping\n\n"
            continue
        number, said = delta.number, delta.said
        if delta.text or delta.known:
            yield chunk(number, {"content": delta.text}, known=delta.known)
        if said is None:
            continue
        for place, call in enumerate(written_calls(said.calls)):
            arguments = call["function"]["arguments"]
            call["function"]["arguments"] = ""
            yield chunk(number, {"tool_calls": [{"index": place, **call}]})
            more = {"index": place, "function": {"arguments": arguments}}
            yield chunk(number, {"tool_calls": [more]})
        yield chunk(number, {}, said.finish)
    if request.counts:
        yield event_of({**head, "choices": [], "usage": answers.usage})
    yield DONE


# Messages.


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
    _check_calls(messages)
    return messages, images


def _check_calls(messages: Sequence[dict[str, Any]]) -> None:
    """Raises ApiError for a call without an id, and for a result of no call that was made."""
    waiting: list[str] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        calls = message.get("tool_calls") if message["role"] == "assistant" else None
        for place, call in enumerate(calls if isinstance(calls, list) else ()):
            named = call.get("id") if isinstance(call, dict) else None
            if not isinstance(named, str) or not named or named in waiting:
                raise ApiError(
                    400, f"{where}.tool_calls[{place}].id: {shown(named)} was given; expected a "
                    "text that no other call has which waits for its result.", "messages",
                )  # fmt: skip
            waiting.append(named)
        if message["role"] != "tool":
            continue
        named = message.get("tool_call_id")
        if named not in waiting:
            raise ApiError(
                400, f"{where}.tool_call_id: {shown(named)} names no call before it that waits for "
                f"a result; expected {' or '.join(map(shown, waiting)) or 'none: no call was made'}"
                ".", "messages",
            )  # fmt: skip
        waiting.remove(named)


async def _seen(
    served: Served, request: ChatRequest, messages: list[dict[str, Any]], context: Context
) -> Answers:
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
    return _Seen(text, _words(served, messages, text))


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
