"""The server's routes by the official client, strictly validated; the exact bytes of streams."""

import asyncio
import base64
import json

import jsonschema
import numpy as np
import openai
import pytest

import bedstone
from bedstone.generation.likelihood import scorer_of
from bedstone.models.heads import HeadConfig
from bedstone.runtime import pick_precision
from served import CALLING, Running, saved_decoder
from small_models import saved as saved_encoder

HELLO = [{"role": "user", "content": "a red cat sat on the mat"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("models")
    sources = {
        "small": str(saved_decoder(folder / "small")),
        "caller": str(saved_decoder(folder / "caller", template=CALLING)),
        "encoder": str(saved_encoder(folder / "encoder", HeadConfig("states"))),
        "labels": str(saved_encoder(folder / "labels", HeadConfig("sequence", ("bad", "good")))),
    }
    running = Running(sources)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(server):
    return server.client()


@pytest.fixture(scope="module")
def lenient(server):
    """For what the client's own types leave out: null before the first token, base64."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_a_conversation_is_answered(client):
    found = client.chat.completions.create(
        model="small", messages=HELLO, max_completion_tokens=12, seed=3, n=2
    )
    assert found.object == "chat.completion"
    assert [each.index for each in found.choices] == [0, 1]
    assert {each.finish_reason for each in found.choices} <= {"stop", "length"}
    assert found.choices[0].message.role == "assistant"
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.usage.completion_tokens <= 24
    again = client.chat.completions.create(
        model="small", messages=HELLO, max_completion_tokens=12, seed=3, n=2
    )
    assert [each.message.content for each in again.choices] == [
        each.message.content for each in found.choices
    ]
    assert again.usage.prompt_tokens_details.cached_tokens >= 0


def test_a_stream_gives_what_the_whole_gives(client):
    options = {"model": "small", "messages": HELLO, "max_tokens": 20, "seed": 5, "n": 2}
    whole = client.chat.completions.create(**options, logprobs=True, top_logprobs=2)
    texts, finishes, tokens = ["", ""], [None, None], [[], []]
    chunks = list(
        client.chat.completions.create(
            **options,
            stream=True,
            stream_options={"include_usage": True},
            logprobs=True,
            top_logprobs=2,
        )
    )
    assert len({each.id for each in chunks}) == 1
    assert len({each.created for each in chunks}) == 1
    for each in chunks[:-1]:
        (choice,) = each.choices
        assert each.usage is None
        texts[choice.index] += choice.delta.content or ""
        tokens[choice.index] += choice.logprobs.content if choice.logprobs else []
        if choice.finish_reason:
            assert finishes[choice.index] is None
            finishes[choice.index] = choice.finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage or chunks[-1].usage.total_tokens
    assert texts == [each.message.content for each in whole.choices]
    assert finishes == [each.finish_reason for each in whole.choices]
    assert tokens == [each.logprobs.content for each in whole.choices]
    assert all(len(each.top_logprobs) == 2 for each in tokens[0])


def test_a_stream_s_bytes(server):
    body = {"model": "small", "messages": HELLO, "max_tokens": 3, "stream": True, "seed": 1}
    status, headers, read = server.ask(
        "/v1/chat/completions", {**body, "stream_options": {"include_usage": True}}
    )
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["x-request-id"].startswith("req-")
    text = read.decode()
    assert text.endswith("data: [DONE]\n\n")
    events = text.split("\n\n")
    assert events.pop() == ""
    assert events.pop() == "data: [DONE]"
    assert all(each.startswith("data: {") and "\n" not in each for each in events)
    found = [json.loads(each.removeprefix("data: ")) for each in events]
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(each["object"] == "chat.completion.chunk" for each in found)
    assert [each["usage"] for each in found[:-1]] == [None] * (len(found) - 1)
    assert found[-1]["usage"]["completion_tokens"] <= 3
    assert "usage" not in json.loads(
        server.ask("/v1/chat/completions", body)[2].split(b"\n\n")[0].removeprefix(b"data: ")
    )


def test_stop_texts_are_left_out(client):
    whole = client.completions.create(model="small", prompt="a cat", max_tokens=30, seed=2)
    text = whole.choices[0].text
    stop = text[8:11]
    cut = client.completions.create(model="small", prompt="a cat", max_tokens=30, seed=2, stop=stop)
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_texts_are_continued_as_the_library_does(client, server):
    model = server.models.entries["small"].served.model
    prompts = ["a red cat", "two films, far too long"]
    found = client.completions.create(model="small", prompt=prompts, max_tokens=9, temperature=0)
    assert [each.text for each in found.choices] == model.generate(prompts, max_new_tokens=9)
    ids = [model.tokenizer.encode(each) for each in prompts]
    by_ids = client.completions.create(model="small", prompt=ids, max_tokens=9, temperature=0)
    assert [each.text for each in by_ids.choices] == [each.text for each in found.choices]
    assert found.usage.prompt_tokens == sum(map(len, ids))


def test_echo_with_log_probabilities_as_evaluation_harnesses_read_them(lenient, server):
    model = server.models.entries["small"].served.model
    ids = model.tokenizer.encode("nobody in Bremen expected such a lovely evening")
    found = lenient.completions.create(
        model="small", prompt=[ids], max_tokens=1, temperature=0, echo=True, logprobs=1
    )
    known = found.choices[0].logprobs
    assert len(known.tokens) == len(known.token_logprobs) == len(ids) + 1
    assert known.token_logprobs[0] is None
    assert known.top_logprobs[0] is None
    assert "".join(known.tokens) == found.choices[0].text
    assert known.text_offset == list(np.cumsum([0, *map(len, known.tokens[:-1])]))
    import torch

    with torch.no_grad():
        logits = model.network(torch.tensor([ids]))[0].log_softmax(-1)
    expected = logits[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    assert known.token_logprobs[1:-1] == pytest.approx(expected, abs=1e-4)
    best = logits[:-1].argmax(-1).tolist()
    pairs = zip(known.token_logprobs[1:-1], known.top_logprobs[1:-1], strict=True)
    greedy = [own == max(top.values()) for own, top in pairs]
    assert greedy == [token == other for token, other in zip(ids[1:], best, strict=True)]
    assert known.token_logprobs[-1] == max(known.top_logprobs[-1].values())


def test_a_harness_is_given_the_same_bits_over_http_as_in_process(lenient, server):
    model = server.models.entries["small"].served.model
    texts = ["nobody in Bremen expected", " such a lovely evening", " rain", " " + "a cat " * 30]
    pairs = [(texts[0], after) for after in texts[1:]] + [(texts[3], after) for after in texts[1:3]]
    scorer = scorer_of(model.network, pick_precision("fp32", model.device), model.tokenizer)
    for found, pair in zip(scorer.score(pairs), pairs, strict=True):
        each = scorer.request(*pair)
        (choice,) = lenient.completions.create(
            model="small", prompt=[list(each.ids)], max_tokens=1, temperature=0, echo=True,
            logprobs=1,
        ).choices  # fmt: skip
        own = choice.logprobs.token_logprobs[each.first : -1]
        top = choice.logprobs.top_logprobs[each.first : -1]
        assert sum(own) == found.log_probability
        assert found.greedy == all(a == max(b.values()) for a, b in zip(own, top, strict=True))


def test_echo_without_new_tokens(client):
    found = client.completions.create(model="small", prompt="a cat", max_tokens=0, echo=True)
    assert found.choices[0].text == "a cat"
    assert found.choices[0].finish_reason == "length"
    assert found.usage.completion_tokens == 0


def test_a_stream_of_completions(lenient):
    options = {"model": "small", "prompt": ["a cat", "go"], "max_tokens": 8, "seed": 4}
    whole = lenient.completions.create(**options, logprobs=2, echo=True)
    texts, tokens = ["", ""], [[], []]
    for each in lenient.completions.create(**options, logprobs=2, echo=True, stream=True):
        (choice,) = each.choices
        texts[choice.index] += choice.text
        tokens[choice.index] += choice.logprobs.token_logprobs if choice.logprobs else []
    assert texts == [each.text for each in whole.choices]
    assert tokens == [each.logprobs.token_logprobs for each in whole.choices]


def test_best_of_gives_the_likeliest(client):
    options = {"model": "small", "prompt": "a cat", "max_tokens": 6, "seed": 1, "logprobs": 0}
    several = client.completions.create(**options, n=6)
    best = client.completions.create(**options, n=1, best_of=6)
    means = [np.mean(each.logprobs.token_logprobs) for each in several.choices]
    assert best.choices[0].text == several.choices[int(np.argmax(means))].text


def test_logit_bias_and_penalties_are_taken(client, server):
    tokenizer = server.models.entries["small"].served.model.tokenizer
    (token,) = tokenizer.encode("a")[:1]
    found = client.chat.completions.create(
        model="small", messages=HELLO, max_tokens=4, logit_bias={str(token): 100}, temperature=0
    )
    assert found.choices[0].message.content == tokenizer.decode([token] * 4)
    client.chat.completions.create(
        model="small", messages=HELLO, max_tokens=4, presence_penalty=1.5, frequency_penalty=-1.0
    )


def test_embeddings_in_both_forms(lenient, server):
    texts = ["a red cat", "nobody in Bremen"]
    found = lenient.embeddings.create(model="encoder", input=texts, encoding_format="float")
    base = lenient.embeddings.create(model="encoder", input=texts)  # the client asks for base64
    vectors = np.array([each.embedding for each in found.data])
    assert np.array_equal(vectors, [each.embedding for each in base.data])
    _, _, raw = server.ask(
        "/v1/embeddings", {"model": "encoder", "input": texts, "encoding_format": "base64"}
    )
    bytes_ = base64.b64decode(raw["data"][1]["embedding"])
    assert np.array_equal(np.frombuffer(bytes_, "<f4"), vectors[1].astype("f4"))
    from bedstone.tasks.text.feature_extraction import SentenceEmbedding

    embed = SentenceEmbedding(server.models.entries["encoder"].served.model)
    assert vectors == pytest.approx(embed(texts), abs=1e-5)
    assert found.usage.prompt_tokens > 4


def test_embeddings_refuse_what_is_too_long(lenient):
    with pytest.raises(openai.BadRequestError, match="tokens; the model embeds 64") as refusal:
        lenient.embeddings.create(model="encoder", input="a cat " * 100)
    assert refusal.value.code == "context_length_exceeded"
    cut = lenient.embeddings.create(
        model="encoder", input="a cat " * 100, extra_body={"truncate": True}
    )
    assert cut.usage.prompt_tokens == 64
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        lenient.embeddings.create(model="encoder", input="a", dimensions=5)


def test_tasks_have_the_arguments_and_keys_of_pipeline(server):
    texts = ["a lovely evening", "far too long"]
    body = {"model": "labels", "inputs": texts, "parameters": {"top_k": None}}
    status, _, found = server.ask("/v1/tasks/text-classification", body)
    assert status == 200
    model = server.models.entries["labels"].served.model
    expected = bedstone.pipeline("text-classification", model)(texts, top_k=None)
    for one, other in zip(found["results"], expected, strict=True):
        assert [each["label"] for each in one] == [each["label"] for each in other]
        assert [each["score"] for each in one] == pytest.approx(
            [each["score"] for each in other], abs=1e-5
        )
    status, _, found = server.ask(
        "/v1/tasks/sentiment-analysis", {"model": "labels", "inputs": texts[0], "top_k": 1}
    )
    assert status == 200
    assert found["task"] == "text-classification"
    assert isinstance(found["results"], list)
    status, _, found = server.ask("/v1/tasks/nothing", {"model": "labels", "inputs": "x"})
    assert (status, found["error"]["code"]) == (404, "task_not_found")
    status, _, found = server.ask("/v1/tasks/fill-mask", {"model": "labels", "inputs": "x"})
    assert status == 400
    assert "fill-mask: needs" in found["error"]["message"]
    status, _, found = server.ask(
        "/v1/tasks/text-classification", {"model": "labels", "inputs": ["fine", 3]}
    )
    assert status == 400
    assert "inputs[1]" in found["error"]["message"]


def test_requests_of_tasks_are_read_together_and_a_bad_one_fails_alone(server):
    async def ask(client, inputs):
        try:
            found = await client.post(
                "/tasks/text-classification", cast_to=object,
                body={"model": "labels", "inputs": inputs},
            )  # fmt: skip
            return found["results"]
        except openai.BadRequestError as error:
            return error.status_code

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
            return await asyncio.gather(*(ask(client, one) for one in ["a", ["b", 3], "c", "d"]))

    one, bad, *others = asyncio.run(all_of_them())
    assert bad == 400
    assert all(isinstance(each, list) for each in (one, *others))


def test_models_are_listed(client):
    found = client.models.list()
    assert [each.id for each in found.data][:1]
    assert {each.id for each in found.data} == {"small", "caller", "encoder", "labels"}
    small = client.models.retrieve("small")
    assert "text-generation" in small.tasks
    assert small.architecture["output_modalities"] == ["text"]
    assert client.models.retrieve("encoder").architecture["output_modalities"] == ["embeddings"]
    with pytest.raises(openai.NotFoundError) as refusal:
        client.models.retrieve("smal")
    assert refusal.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("changed", "status", "param"),
    [
        ({"temperature": 3}, 400, "temperature"),
        ({"n": 0}, 400, "n"),
        ({"n": 10**30}, 400, "n"),
        ({"max_tokens": -1}, 400, "max_tokens"),
        ({"max_tokens": 10_000}, 400, "messages"),
        ({"top_logprobs": 3}, 400, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
        ({"stop": ["a"] * 5}, 400, "stop"),
        ({"stop": ["x"] * 1_000_000}, 400, "stop"),
        ({"logit_bias": {"99999": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"1": 1000}}, 400, "logit_bias"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "x " * 5000}]}, 400, "messages"),
        ({"max_token": 4}, 400, "max_token"),
        ({"tool_choice": "required", "tools": []}, 400, "tool_choice"),
        ({"response_format": {"type": "grammar"}}, 400, "response_format"),
        ({"temperature": "0.5"}, 400, "temperature"),
        ({"prediction": {"type": "content", "content": 3}}, 400, "prediction"),
        ({"seed": "x"}, 400, "seed"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
        ({"store": True}, 400, "store"),
        ({"model": "other"}, 404, "model"),
        ({"model": "../small"}, 404, "model"),
        ({"model": None}, 400, "model"),
        ({"model": "encoder"}, 400, "model"),
    ],
)
def test_a_wrong_field_is_named(server, changed, status, param):
    body = {"model": "small", "messages": HELLO, "max_tokens": 4, **changed}
    found, _, answer = server.ask("/v1/chat/completions", body)
    assert found == status
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error


def test_pictures_go_to_models_that_see_and_only_as_data(server):
    part = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    body = {"model": "small", "messages": [{"role": "user", "content": [part]}]}
    status, _, answer = server.ask("/v1/chat/completions", body)
    assert status == 400
    assert "no address is fetched" in answer["error"]["message"]


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "enum": ["Ann", "Bob"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_answers_keep_to_a_schema(client):
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    options = {"model": "small", "messages": HELLO, "response_format": form}
    found = client.chat.completions.create(**options, max_tokens=100, n=6, seed=1, temperature=1.5)
    for each in found.choices:
        assert each.finish_reason == "stop"
        value = json.loads(each.message.content)
        assert set(value) == {"name", "age"}
        assert value["name"] in ("Ann", "Bob")
        assert 0 <= value["age"] <= 99
    assert len({each.message.content for each in found.choices}) > 1
    cut = client.chat.completions.create(**options, max_tokens=3)
    assert cut.choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError, match="stop: was given beside response_format"):
        client.chat.completions.create(**options, stop=["}"])
    loose = client.chat.completions.create(
        model="small", messages=HELLO, max_tokens=5, response_format={"type": "json_object"}
    )
    assert loose.choices[0].message.content.startswith("{")


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a day.",
        "parameters": {"type": "object", "properties": {"day": {"type": "integer"}}},
    },
}


def test_calls_of_functions_are_read(client):
    """A schema makes the small model call; the template says how calls are written."""
    schema = {
        "type": "object",
        "properties": {
            "name": {"const": "weather"},
            "arguments": {
                "type": "object",
                "properties": {"day": {"type": "integer", "minimum": 1, "maximum": 31}},
                "required": ["day"],
                "additionalProperties": False,
            },
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "call", "schema": schema}}
    options = {"model": "caller", "messages": HELLO, "tools": [TOOL], "max_tokens": 100, "seed": 1}
    found = client.chat.completions.create(**options, response_format=form)
    (choice,) = found.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.function.name == "weather"
    day = json.loads(call.function.arguments)["day"]
    assert 1 <= day <= 31
    chunks = list(client.chat.completions.create(**options, response_format=form, stream=True))
    first, more = [each for c in chunks for each in c.choices[0].delta.tool_calls or []]
    assert (first.index, first.function.name, first.function.arguments) == (0, "weather", "")
    assert (more.index, json.loads(more.function.arguments)) == (0, {"day": day})
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    turns = [*HELLO, choice.message.model_dump(exclude_none=True), result]
    again = client.chat.completions.create(**{**options, "messages": turns, "max_tokens": 5})
    assert again.choices[0].finish_reason in ("stop", "length")
    none = client.chat.completions.create(**options, response_format=form, tool_choice="none")
    assert none.choices[0].message.tool_calls is None
    assert json.loads(none.choices[0].message.content)["name"] == "weather"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"}, {"$ref": "#/nowhere"}, {"type": "string", "pattern": "("},
        {"enum": ["x" * 70_000]}, {"type": "string", "pattern": "(?=a)b"}, {"allOf": 3},
    ],
)  # fmt: skip
def test_a_schema_that_is_not_taken_is_refused(server, schema):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"model": "small", "messages": HELLO, "max_tokens": 4, "response_format": form}
    status, _, answer = server.ask("/v1/chat/completions", body)
    assert status == 400
    assert answer["error"]["param"] == "response_format"


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"}, {"type": "string", "pattern": "^(a+)+$"},
        {"enum": [f"value {number}" for number in range(3000)]},
        {"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(24)}},
        {"type": "string", "pattern": "^(a|aa){1,3000}$"}, {"type": "string", "maxLength": 10**9},
    ],
)  # fmt: skip
def test_a_schema_that_costs_ends_its_own_request_alone(server, schema):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"model": "small", "messages": HELLO, "max_tokens": 4, "response_format": form}
    assert server.ask("/v1/chat/completions", body)[0] in (200, 400)
    plain = {"model": "small", "messages": HELLO, "max_tokens": 4}
    assert server.ask("/v1/chat/completions", plain)[0] == 200


def test_health_version_and_metrics(server, client):
    assert server.ask("/health")[0] == 200
    assert server.ask("/ready")[::2] == (200, {"ready": True})
    assert server.ask("/version")[2] == {"version": bedstone.__version__}
    before = server.ask("/metrics")[2].decode()
    client.completions.create(model="small", prompt="a cat", max_tokens=5, temperature=0)
    text = server.ask("/metrics")[2].decode()
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    old = dict(line.rsplit(" ", 1) for line in before.splitlines() if not line.startswith("#"))
    made = 'vllm:generation_tokens_total{model_name="small"}'
    assert float(figures[made]) - float(old[made]) == 5
    assert float(figures['vllm:time_to_first_token_seconds_count{model_name="small"}']) > 0
    assert 'vllm:request_success_total{model_name="small",finished_reason="length"}' in figures
    assert 'vllm:kv_cache_usage_perc{model_name="small"}' in figures


def test_a_prediction_changes_nothing_but_the_speed(client, server):
    options = {"model": "small", "messages": HELLO, "max_tokens": 60, "temperature": 0}
    plain = client.chat.completions.create(**options)
    text = plain.choices[0].message.content
    before = server.models.entries["small"].served.scheduler.metrics.accepted
    for said in (text, f"{text[:20]} and {text[20:]}", "two films, far too long"):
        found = client.chat.completions.create(
            **options, prediction={"type": "content", "content": said}
        )
        assert found.choices[0].message.content == text
        used = found.usage.completion_tokens_details
        if said == text:
            assert used.accepted_prediction_tokens > 10
    assert server.models.entries["small"].served.scheduler.metrics.accepted > before + 10


def test_the_api_describes_itself(server):
    """Each route is described, and what the description says fits and doesn't is so taken."""
    status, _, found = server.ask("/openapi.json")
    assert status == 200
    app = server.server.config.loaded_app._app
    paths = {each.path.replace(":path", "") for each in app.routes} - {"/openapi.json"}
    assert set(found["paths"]) == paths
    body = found["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]
    schema = body["application/json"]["schema"]
    good = {"model": "small", "messages": HELLO, "max_tokens": 2, "temperature": 0.5, "n": 1}
    jsonschema.validate(good, schema)
    assert server.ask("/v1/chat/completions", good)[0] == 200
    for wrong in ({"temperature": 3}, {"n": 0}, {"model": "other"}, {"seed": "x"}, {"x": 1},
                  {"messages": []}, {"top_logprobs": 21}, {"temperature": "0"}):  # fmt: skip
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**good, **wrong}, schema)
        status, _, answer = server.ask("/v1/chat/completions", {**good, **wrong})
        assert status in (400, 404), wrong
        jsonschema.validate(answer, found["components"]["schemas"]["Error"])


def test_the_asynchronous_client_with_many_at_once(server):
    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x") as client:

            async def one(seed):
                found = await client.completions.create(
                    model="small", prompt="a red cat", max_tokens=10, seed=seed, logprobs=1
                )
                return found.choices[0].text, found.choices[0].logprobs.token_logprobs

            together = await asyncio.gather(*(one(seed) for seed in range(16)))
            return together, [await one(seed) for seed in range(16)]

    together, alone = asyncio.run(all_of_them())
    assert together == alone
    assert len({text for text, _ in alone}) > 8
