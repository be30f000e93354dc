"""`/v1/responses` by the official client: whole and as events, tools, forms, conversations."""

import json

import openai
import pytest

from bedstone.serve.kept import Conversations, items_of
from bedstone.serve.responses import read_items
from bedstone.serve.wire import ApiError
from served import KEY, OTHER_KEY, Running, saved_decoder

WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a day.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"day": {"type": "integer", "minimum": 1, "maximum": 31}},
        "required": ["day"],
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("models")
    keys = {"one": KEY, "two": OTHER_KEY}
    running = Running({"small": str(saved_decoder(folder / "small", 1024))}, keys=keys)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(
        base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, _strict_response_validation=True
    )


def test_a_response_is_what_a_chat_completion_is(client):
    options = {"model": "small", "temperature": 0, "max_output_tokens": 12}
    found = client.responses.create(input="a red cat", instructions="Be brief.", **options)
    said = client.chat.completions.create(
        model="small", temperature=0, max_tokens=12,
        messages=[{"role": "system", "content": "Be brief."},
                  {"role": "user", "content": "a red cat"}],
    )  # fmt: skip
    assert found.output_text == said.choices[0].message.content
    assert (found.object, found.status) == ("response", "incomplete")
    assert found.incomplete_details.reason == "max_output_tokens"
    assert found.usage.input_tokens == said.usage.prompt_tokens
    assert found.usage.output_tokens == 12
    parts = [{"type": "input_text", "text": "a red "}, {"type": "input_text", "text": "cat"}]
    items = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    assert client.responses.create(input=items, **options).output_text == found.output_text


def test_the_events_of_a_stream(client):
    options = {"model": "small", "input": "a red cat", "max_output_tokens": 16, "seed": 3}
    more = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    extra = {"extra_body": {"seed": options.pop("seed")}}
    whole = client.responses.create(**options, **more, **extra)
    events = list(client.responses.create(**options, **more, **extra, stream=True))
    assert [each.sequence_number for each in events] == list(range(len(events)))
    kinds = [each.type for each in events]
    assert kinds[:4] == ["response.created", "response.in_progress",
                         "response.output_item.added", "response.content_part.added"]  # fmt: skip
    assert kinds[-4:] == ["response.output_text.done", "response.content_part.done",
                          "response.output_item.done", "response.incomplete"]  # fmt: skip
    deltas = [each for each in events if each.type == "response.output_text.delta"]
    text = "".join(each.delta for each in deltas)
    assert text == whole.output_text == events[-1].response.output_text == events[-4].text
    known = [one for each in deltas for one in each.logprobs]
    assert len(events[-4].logprobs) == 16 >= len(known) > 0
    assert all(len(each.top_logprobs) == 2 for each in known)
    assert events[-1].response.usage == whole.usage or events[-1].response.usage.output_tokens == 16
    assert len({each.item_id for each in deltas}) == 1


def test_calls_are_items_and_their_results_are_read(client):
    options = {"model": "small", "tools": [WEATHER], "max_output_tokens": 400}
    found = client.responses.create(input="go", tool_choice="required", **options)
    (call,) = found.output
    assert (call.type, call.name, found.status) == ("function_call", "weather", "completed")
    assert 1 <= json.loads(call.arguments)["day"] <= 31
    turns = [
        {"role": "user", "content": "go"}, call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
    ]  # fmt: skip
    named = {"type": "function", "name": "weather"}
    events = list(client.responses.create(input=turns, tool_choice=named, stream=True, **options))
    kinds = [each.type for each in events]
    assert kinds[2:] == [
        "response.output_item.added", "response.function_call_arguments.delta",
        "response.function_call_arguments.done", "response.output_item.done",
        "response.completed",
    ]  # fmt: skip
    assert events[4].arguments == events[3].delta == events[-1].response.output[0].arguments


def test_an_answer_of_a_form(client):
    schema = {
        "type": "object", "properties": {"name": {"enum": ["Ann", "Bob"]}}, "required": ["name"],
        "additionalProperties": False,
    }  # fmt: skip
    form = {"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}}
    found = client.responses.create(model="small", input="go", text=form, max_output_tokens=100)
    assert json.loads(found.output_text)["name"] in ("Ann", "Bob")
    assert found.status == "completed"
    options = {"model": "small", "input": "go", "text": form, "max_output_tokens": 100}
    with client.responses.stream(**options) as stream:
        kinds = [each.type for each in stream]
        assert json.loads(stream.get_final_response().output_text)["name"] in ("Ann", "Bob")
    assert kinds[-1] == "response.completed"


def test_a_conversation_is_gone_on_from_by_its_own_key_alone(client, server):
    options = {"model": "small", "temperature": 0, "max_output_tokens": 8}
    first = client.responses.create(input="a red cat", **options)
    again = client.responses.create(
        input="go on", previous_response_id=first.id, instructions="Be brief.", **options
    )
    assert again.previous_response_id == first.id
    items = [
        {"role": "user", "content": "a red cat"},
        {"role": "assistant", "content": first.output_text}, {"role": "user", "content": "go on"},
    ]  # fmt: skip
    whole = client.responses.create(input=items, instructions="Be brief.", **options)
    assert again.output_text == whole.output_text
    assert again.usage.input_tokens == whole.usage.input_tokens
    unkept = client.responses.create(input="a red cat", store=False, **options)
    body = {"model": "small", "input": "x", "max_output_tokens": 2}
    for name, key in ((first.id, OTHER_KEY), (unkept.id, KEY), ("resp_none", KEY)):
        status, _, answer = server.ask(
            "/v1/responses", {**body, "previous_response_id": name}, key=key
        )
        assert (status, answer["error"]["param"]) == (400, "previous_response_id")


def test_a_kept_response_is_its_own_key_s_alone(client, server):
    items = [{"role": "user", "content": f"text {n}"} for n in range(25)]
    made = client.responses.create(model="small", input=items, max_output_tokens=2)
    path = f"/v1/responses/{made.id}"
    assert server.ask(path)[0] == 401
    for method, there in (("GET", path), ("DELETE", path), ("GET", f"{path}/input_items")):
        status, _, answer = server.ask(there, key=OTHER_KEY, method=method)
        assert (status, answer["error"]["code"]) == (404, "response_not_found")
    status, _, found = server.ask(path, key=KEY)
    assert status == 200 and found["id"] == made.id and found["output"][0]["content"]
    _, _, page = server.ask(f"{path}/input_items", key=KEY)
    assert [len(page["data"]), page["has_more"]] == [20, True]
    assert page["data"][0]["content"] == [{"type": "input_text", "text": "text 24"}]
    _, _, rest = server.ask(f"{path}/input_items?after={page['last_id']}", key=KEY)
    texts = [each["content"][0]["text"] for each in rest["data"]]
    assert [texts, rest["has_more"]] == [[f"text {n}" for n in range(4, -1, -1)], False]
    for query, param in (("limit=0", "limit"), ("limit=x", "limit"), ("order=up", "order"),
                         ("after=x", "after"), ("include=x", "include")):  # fmt: skip
        status, _, answer = server.ask(f"{path}/input_items?{query}", key=KEY)
        assert (status, answer["error"]["param"]) == (400, param)
    assert server.ask(f"{path}?stream=true", key=KEY)[2]["error"]["param"] == "stream"
    assert server.ask(path, key=KEY, method="DELETE")[2]["deleted"] is True
    assert server.ask(path, key=KEY)[0] == 404


def test_items_of_a_conversation_with_calls():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "see"}, image]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "assistant", "content": "done"},
    ]
    found = items_of(messages, "resp_1")
    assert [each["type"] for each in found] == [
        "message", "function_call", "function_call_output", "message"
    ]  # fmt: skip
    assert [part["type"] for part in found[0]["content"]] == ["input_text", "input_image"]
    assert found[1]["call_id"] == found[2]["call_id"] == "c1"
    assert found[3]["content"][0]["type"] == "output_text"
    assert len({each["id"] for each in found}) == 4 and found == items_of(messages, "resp_1")


def test_conversations_have_bounds():
    kept = Conversations(most=2, characters=100)
    for name in "abc":
        kept.keep("key", name, [{"role": "user", "content": name}])
    with pytest.raises(ApiError, match="no response 'a'"):
        kept.find("key", "a")
    assert kept.find("key", "b")[0]["content"] == "b"
    kept.keep("key", "d", [{"role": "user", "content": "x" * 50}])
    kept.keep("key", "e", [{"role": "user", "content": "x" * 1000}])
    assert [kept.find("key", name)[0]["role"] for name in "d"] == ["user"]
    with pytest.raises(ApiError):
        kept.find("key", "e")


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"input": []}, "input"), ({"input": 3}, "input"), ({"input": [{"type": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input"),
        ({"input": [{"type": "function_call", "name": "x"}]}, "input"),
        ({"input": "x " * 9000}, "input"), ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"background": True}, "background"), ({"truncation": "auto"}, "truncation"),
        ({"text": {"format": {"type": "xml"}}}, "text"), ({"text": 3}, "text"),
        ({"tools": [{"type": "web_search"}]}, "tools"), ({"tool_choice": "required"},
         "tool_choice"), ({"include": ["reasoning"]}, "include"), ({"temperature": "1"},
         "temperature"), ({"unknown": 1}, "unknown"),
        ({"input": [{"role": "user", "content": [
            {"type": "input_image", "image_url": "http://x/a.png"}]}]}, "input"),
    ],
)  # fmt: skip
def test_a_wrong_field_of_a_response_is_named(server, changed, param):
    body = {"model": "small", "input": "a cat", "max_output_tokens": 2, **changed}
    status, _, answer = server.ask("/v1/responses", body, key=KEY)
    assert status == 400, answer
    assert (answer["error"]["param"] or "").startswith(param), answer


def test_items_are_messages():
    found = read_items([
        {"role": "user", "content": "a"}, {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "x"},
    ])  # fmt: skip
    assert [each["role"] for each in found] == ["user", "assistant", "tool"]
    assert [each["id"] for each in found[1]["tool_calls"]] == ["1", "2"]
