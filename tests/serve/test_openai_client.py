"""OpenAI's client over every route that it has: sync, async and streams, each answer validated.

The client checks all that it is given against its own types (`_strict_response_validation`), but
for two that are wrong: in a stream of completions it has no null for `finish_reason`, which every
piece but the last has, and embeddings it asks for as base64 it expects as lists. What a stream says
has to be what the whole says; what the async client is given, what the sync one is.
"""

import asyncio
import base64
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from bedstone.models.heads import HeadConfig
from bedstone.tasks.moderation.policy import read_policy
from drawings import drawing
from image_models import clip_model
from served import Running, saved_decoder
from small_models import saved as saved_encoder

HELLO = [{"role": "user", "content": "a red cat sat on the mat"}]
POLICY = {"categories": {"violence": {"sentences": ["a star"], "threshold": 0.0}}}
DAY = {
    "type": "object",
    "properties": {"day": {"type": "integer", "minimum": 1, "maximum": 31}},
    "required": ["day"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": DAY}}
FORM = {"type": "json_schema", "json_schema": {"name": "day", "schema": DAY, "strict": True}}
CALLED = [
    *HELLO,
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "rain"},
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("models")
    clip_model().save(folder / "clip")
    drawing("text").save(folder / "draws")
    sources = {name: str(folder / name) for name in ("clip", "draws")}
    sources["small"] = str(saved_decoder(folder / "small", 1024))
    sources["encoder"] = str(saved_encoder(folder / "encoder", HeadConfig("states")))
    running = Running(sources, policy=read_policy(POLICY))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(server):
    with server.client() as made:
        yield made


@pytest.fixture(scope="module")
def lenient(server):
    """For what the client's own types have wrong."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def gone_through(server, does: Callable[[Any], Any], strict: bool = True) -> Any:
    """What the async client is given: an answer, or all events of a stream."""

    async def run() -> Any:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0,
            _strict_response_validation=strict,
        ) as client:  # fmt: skip
            found = await does(client)
            return [each async for each in found] if hasattr(found, "__aiter__") else found

    return asyncio.run(run())


def png(size: tuple[int, int] = (16, 16)) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((*size, 3), 128, np.uint8)).save(data, "PNG")
    return data.getvalue()


def url() -> str:
    return f"data:image/png;base64,{base64.b64encode(png()).decode()}"


# Chat completions: the fields of a request, by what they try.
CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, *HELLO]},
    "parts": {"messages": [{"role": "user", "content": [
        {"type": "text", "text": "a red "}, {"type": "text", "text": "cat"}]}]},
    "turns": {"messages": [*HELLO, {"role": "assistant", "content": "yes"}, *HELLO]},
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 1.3, "top_p": 0.8},
    "several": {"n": 3},
    "length": {"max_tokens": 5},
    "new length": {"max_completion_tokens": 5, "max_tokens": openai.omit},
    "stop": {"stop": ["e", "zzz"]},
    "one stop": {"stop": "a"},
    "logprobs": {"logprobs": True},
    "top logprobs": {"logprobs": True, "top_logprobs": 3},
    "bias": {"logit_bias": {"20": 40, "21": -100}},
    "penalties": {"presence_penalty": 1.5, "frequency_penalty": -0.5},
    "json": {"response_format": {"type": "json_object"}, "max_tokens": 60},
    "schema": {"response_format": FORM, "max_tokens": 80},
    "text": {"response_format": {"type": "text"}},
    "required": {"tools": [TOOL], "tool_choice": "required", "max_tokens": 200},
    "named": {"tools": [TOOL], "max_tokens": 200,
              "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    "no tools": {"tools": [TOOL], "tool_choice": "none"},
    "results": {"messages": CALLED},
    "prediction": {"prediction": {"type": "content", "content": "a red cat"}, "temperature": 0},
    "labels": {"user": "someone", "metadata": {"a": "b"}, "service_tier": "auto",
               "prompt_cache_key": "x", "safety_identifier": "y"},
}  # fmt: skip


def chat(client: Any, fields: dict[str, Any], **more: Any) -> Any:
    usual = {"model": "small", "messages": HELLO, "max_tokens": 12, "seed": 3}
    given = {**usual, **fields, **more}
    return client.chat.completions.create(**{k: v for k, v in given.items() if v != openai.omit})


def answers(found: Any) -> list[tuple[Any, ...]]:
    """What the choices say, but for what differs from call to call."""
    return [
        (
            each.message.content or "",
            each.finish_reason,
            [(c.function.name, c.function.arguments) for c in each.message.tool_calls or ()],
            each.logprobs and [one.token for one in each.logprobs.content],
        )
        for each in found.choices
    ]


def put_together(chunks: list[Any]) -> list[tuple[Any, ...]]:
    """The same of the chunks of a stream."""
    found: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        assert chunk.object == "chat.completion.chunk" and chunk.id == chunks[0].id
        for each in chunk.choices:
            fresh = {"text": "", "finish": None, "calls": {}, "tokens": None}
            held = found.setdefault(each.index, fresh)
            assert held["finish"] is None, "something follows the finish"
            held["text"] += each.delta.content or ""
            held["finish"] = each.finish_reason
            for call in each.delta.tool_calls or ():
                name, said = held["calls"].setdefault(call.index, ["", ""])
                held["calls"][call.index] = [
                    name + (call.function.name or ""), said + (call.function.arguments or "")
                ]  # fmt: skip
            if each.logprobs:
                tokens = [one.token for one in each.logprobs.content]
                held["tokens"] = [*(held["tokens"] or ()), *tokens]
    return [
        (held["text"], held["finish"], [tuple(c) for c in held["calls"].values()], held["tokens"])
        for _, held in sorted(found.items())
    ]


@pytest.mark.parametrize("way", ["async", "stream", "async stream"])
@pytest.mark.parametrize("name", CHATS)
def test_chat_completions(client, server, name, way):
    fields = CHATS[name]
    whole = chat(client, fields)
    assert len(whole.choices) == fields.get("n", 1)
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    if "tool_choice" in fields and fields["tool_choice"] != "none":
        (call,) = whole.choices[0].message.tool_calls
        assert 1 <= json.loads(call.function.arguments)["day"] <= 31
    if name == "schema" and whole.choices[0].finish_reason == "stop":
        assert 1 <= json.loads(whole.choices[0].message.content)["day"] <= 31
    if way == "async":
        other = gone_through(server, lambda client: chat(client, fields))
        assert answers(other) == answers(whole)
        assert other.usage.completion_tokens == whole.usage.completion_tokens
        return
    more = {"stream": True, "stream_options": {"include_usage": True}}
    if way == "stream":
        chunks = list(chat(client, fields, **more))
    else:
        chunks = gone_through(server, lambda client: chat(client, fields, **more))
    assert put_together(chunks) == answers(whole)
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(each.usage is None for each in chunks[:-1])


COMPLETIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "texts": {"prompt": ["a cat", "two dogs"]},
    "ids": {"prompt": [9, 10, 11]},
    "lists of ids": {"prompt": [[9, 10, 11], [12, 13]]},
    "several": {"n": 2},
    "echo": {"echo": True},
    "stop": {"stop": ["e"]},
    "usual length": {"max_tokens": openai.omit},
    "bias": {"logit_bias": {"20": 40}, "temperature": 0},
}  # fmt: skip


def complete(client: Any, fields: dict[str, Any], **more: Any) -> Any:
    usual = {"model": "small", "prompt": "a red cat", "max_tokens": 10, "seed": 5}
    given = {**usual, **fields, **more}
    return client.completions.create(**{k: v for k, v in given.items() if v != openai.omit})


@pytest.mark.parametrize("way", ["async", "stream", "async stream"])
@pytest.mark.parametrize("name", COMPLETIONS)
def test_completions(client, lenient, server, name, way):
    fields = COMPLETIONS[name]
    whole = complete(client, fields)
    said = [(each.text, each.finish_reason) for each in whole.choices]
    if way == "async":
        other = gone_through(server, lambda client: complete(client, fields))
        assert [(each.text, each.finish_reason) for each in other.choices] == said
        assert other.usage == whole.usage or other.usage.total_tokens == whole.usage.total_tokens
        return
    if way == "stream":
        chunks = list(complete(lenient, fields, stream=True))
    else:
        chunks = gone_through(server, lambda c: complete(c, fields, stream=True), strict=False)
    texts, finishes = [""] * len(said), [None] * len(said)
    for chunk in chunks:
        for each in chunk.choices:
            texts[each.index] += each.text
            finishes[each.index] = each.finish_reason or finishes[each.index]
    assert list(zip(texts, finishes, strict=True)) == said


RESPONSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "instructions": {"instructions": "Be brief."},
    "items": {"input": [{"role": "developer", "content": "Be brief."},
                        {"role": "user", "content": "a cat"}]},
    "parts": {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a cat"}]}]},
    "sampled": {"temperature": 0.9, "top_p": 0.9},
    "json": {"text": {"format": {"type": "json_object"}}, "max_output_tokens": 60},
    "schema": {"text": {"format": {"type": "json_schema", "name": "day", "schema": DAY,
                                   "strict": True}}, "max_output_tokens": 80},
    "tools": {"tools": [{"type": "function", "name": "weather", "parameters": DAY,
                         "strict": True}], "tool_choice": "required", "max_output_tokens": 200},
    "results": {"input": [
        {"role": "user", "content": "go"},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"}]},
    "logprobs": {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    "unkept": {"store": False, "metadata": {"a": "b"}, "user": "someone"},
}  # fmt: skip


def respond(client: Any, fields: dict[str, Any], **more: Any) -> Any:
    usual = {"model": "small", "input": "a red cat", "max_output_tokens": 12}
    return client.responses.create(**{**usual, **fields, **more}, extra_body={"seed": 7})


def outputs(found: Any) -> list[Any]:
    """What the items of a response say, but for their ids."""
    calls = [(each.name, each.arguments) for each in found.output if each.type == "function_call"]
    return [found.status, found.output_text, calls]


@pytest.mark.parametrize("way", ["async", "stream", "async stream"])
@pytest.mark.parametrize("name", RESPONSES)
def test_responses(client, server, name, way):
    fields = RESPONSES[name]
    whole = respond(client, fields)
    if way == "async":
        other = gone_through(server, lambda client: respond(client, fields))
        assert outputs(other) == outputs(whole)
        return
    if way == "stream":
        events = list(respond(client, fields, stream=True))
    else:
        events = gone_through(server, lambda client: respond(client, fields, stream=True))
    assert [each.sequence_number for each in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert outputs(events[-1].response) == outputs(whole)
    text = "".join(each.delta for each in events if each.type == "response.output_text.delta")
    assert text == whole.output_text


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_kept_response_is_read_listed_and_deleted(client, server, way):
    def does(call: Callable[[Any], Any]) -> Any:
        return call(client) if way == "sync" else gone_through(server, call)

    items = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"},
             {"role": "user", "content": "three"}]  # fmt: skip
    made = does(lambda client: respond(client, {"input": items}))
    again = does(lambda client: client.responses.retrieve(made.id))
    assert again == made
    page = does(lambda client: client.responses.input_items.list(made.id, order="asc", limit=2))
    data = page if isinstance(page, list) else page.data
    assert [each.content[0].text for each in data][:2] == ["one", "two"]
    assert does(lambda client: client.responses.delete(made.id)) is None
    for call in (lambda client: client.responses.retrieve(made.id),
                 lambda client: client.responses.delete(made.id),
                 lambda client: client.responses.input_items.list(made.id)):  # fmt: skip
        with pytest.raises(openai.NotFoundError):
            does(call)
    with pytest.raises(openai.BadRequestError) as refused:
        does(lambda client: respond(client, {"previous_response_id": made.id}))
    assert refused.value.param == "previous_response_id"


EMBEDDINGS: dict[str, dict[str, Any]] = {
    "text": {"input": "a red cat"},
    "texts": {"input": ["a red cat", "two dogs"]},
    "ids": {"input": [9, 10, 11]},
    "floats": {"input": "a red cat", "encoding_format": "float"},
    "clip": {"input": ["a star", "a circle"], "model": "clip"},
}


@pytest.mark.parametrize("way", ["sync", "async"])
@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embeddings(client, lenient, server, name, way):
    fields = {"model": "encoder", **EMBEDDINGS[name]}
    strict = "encoding_format" in fields
    if way == "sync":
        found = (client if strict else lenient).embeddings.create(**fields)
    else:
        found = gone_through(server, lambda c: c.embeddings.create(**fields), strict)
    texts = fields["input"]
    count = len(texts) if isinstance(texts, list) and isinstance(texts[0], str) else 1
    assert [each.index for each in found.data] == list(range(count))
    assert found.usage.total_tokens > 0
    floats = client.embeddings.create(**{**fields, "encoding_format": "float"})
    for one, other in zip(found.data, floats.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)


IMAGES: dict[str, tuple[str, dict[str, Any], str]] = {
    "plain": ("generate", {}, "PNG"),
    "several": ("generate", {"n": 2}, "PNG"),
    "options": ("generate", {"size": "auto", "quality": "auto", "background": "opaque",
                          "moderation": "low", "user": "someone"}, "PNG"),
    "jpeg": ("generate", {"output_format": "jpeg", "output_compression": 10}, "JPEG"),
    "webp": ("generate", {"output_format": "webp"}, "WEBP"),
    "edit": ("edit", {"image": ("a.png", png(), "image/png")}, "PNG"),
    "variation": ("create_variation", {"image": ("a.png", png(), "image/png"),
                                       "prompt": openai.omit}, "PNG"),
}  # fmt: skip


@pytest.mark.parametrize("way", ["sync", "async"])
@pytest.mark.parametrize("name", IMAGES)
def test_images(client, server, name, way):
    does, fields, form = IMAGES[name]
    given = {"model": "draws", "prompt": "a star", **fields}
    given = {key: value for key, value in given.items() if value != openai.omit}
    given["extra_body"] = {"seed": 4, "steps": 2}
    if way == "sync":
        found = getattr(client.images, does)(**given)
    else:
        found = gone_through(server, lambda client: getattr(client.images, does)(**given))
    assert [each.seed for each in found.data] == [4, 5][: fields.get("n", 1)]
    for each in found.data:
        assert Image.open(io.BytesIO(base64.b64decode(each.b64_json))).format == form


@pytest.mark.parametrize("way", ["sync", "async"])
@pytest.mark.parametrize(
    "given",
    ["a star", ["a star", "a circle"], [{"type": "text", "text": "a star"},
     {"type": "image_url", "image_url": {"url": url()}}]],
    ids=["text", "texts", "parts"],
)  # fmt: skip
def test_moderations(client, server, given, way):
    if way == "sync":
        found = client.moderations.create(model="clip", input=given)
    else:
        found = gone_through(server, lambda c: c.moderations.create(model="clip", input=given))
    assert len(found.results) == (2 if isinstance(given[0], str) and len(given) == 2 else 1)
    assert all(each.flagged and each.categories.violence for each in found.results)


@pytest.mark.parametrize("way", ["sync", "async"])
def test_models(client, server, way):
    if way == "sync":
        listed, one = client.models.list().data, client.models.retrieve("small")
    else:
        listed = gone_through(server, _listed)
        one = gone_through(server, lambda client: client.models.retrieve("small"))
    assert {each.id for each in listed} == {"small", "encoder", "clip", "draws"}
    assert (one.id, one.object) == ("small", "model")


async def _listed(client: Any) -> Any:
    return (await client.models.list()).data


REFUSED: dict[str, tuple[Callable[[Any], Any], type[Exception], str | None]] = {
    "model": (lambda c: chat(c, {"model": "none"}), openai.NotFoundError, "model"),
    "temperature": (lambda c: chat(c, {"temperature": 3}), openai.BadRequestError, "temperature"),
    "top_logprobs": (lambda c: chat(c, {"top_logprobs": 3}), openai.BadRequestError,
                     "top_logprobs"),
    "n": (lambda c: chat(c, {"n": 129}), openai.BadRequestError, "n"),
    "messages": (lambda c: chat(c, {"messages": []}), openai.BadRequestError, "messages"),
    "store": (lambda c: chat(c, {"store": True}), openai.BadRequestError, "store"),
    "prompt": (lambda c: complete(c, {"prompt": []}), openai.BadRequestError, "prompt"),
    "length": (lambda c: complete(c, {"max_tokens": 5000}), openai.BadRequestError, "prompt"),
    "background": (lambda c: respond(c, {"background": True}), openai.BadRequestError,
                   "background"),
    "input": (lambda c: respond(c, {"input": []}), openai.BadRequestError, "input"),
    "dimensions": (lambda c: c.embeddings.create(model="encoder", input="a", dimensions=3),
                   openai.BadRequestError, "dimensions"),
    "quality": (lambda c: drawn(c, quality="high"), openai.BadRequestError, "quality"),
    "style": (lambda c: drawn(c, style="vivid"), openai.BadRequestError, "style"),
    "transparent": (lambda c: drawn(c, background="transparent"), openai.BadRequestError,
                    "background"),
    "compression": (lambda c: drawn(c, output_compression=5), openai.BadRequestError,
                    "output_compression"),
    "format": (lambda c: drawn(c, output_format="gif"), openai.BadRequestError, "output_format"),
    "moderation": (lambda c: drawn(c, moderation="none"), openai.BadRequestError, "moderation"),
    "fidelity": (lambda c: c.images.edit(model="draws", prompt="a", input_fidelity="high",
                                         image=("a.png", png(), "image/png")),
                 openai.BadRequestError, "input_fidelity"),
    "url": (lambda c: drawn(c, response_format="url"), openai.BadRequestError, "response_format"),
    "no texts": (lambda c: chat(c, {"model": "encoder"}), openai.BadRequestError, "model"),
}  # fmt: skip


def drawn(client: Any, **fields: Any) -> Any:
    return client.images.generate(model="draws", prompt="a star", **fields)


@pytest.mark.parametrize("way", ["sync", "async"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_has_the_client_s_own_error(client, server, name, way):
    does, kind, param = REFUSED[name]
    with pytest.raises(kind) as refused:
        does(client) if way == "sync" else gone_through(server, does)
    assert refused.value.param == param
    assert refused.value.body.keys() == {"message", "type", "param", "code"}


def test_how_many_cases_there_are():
    streams = 3 * (len(CHATS) + len(COMPLETIONS) + len(RESPONSES))
    others = 2 * (len(EMBEDDINGS) + len(IMAGES) + 3 + 1 + 1 + len(REFUSED))
    assert streams + others >= 120
