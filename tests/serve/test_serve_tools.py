"""Calls of functions that have to be made, by the official client and by an agent of ours."""

import json
from typing import Literal

import jsonschema
import pytest

from bedstone.agent.drivers import RemoteDriver
from bedstone.agent.loop import Agent, Limits
from bedstone.agent.tools import tool
from bedstone.data.text.tool_calls import Call, CallForm, call_form
from bedstone.data.text.tool_turns import answer_so_far, as_plain, read_turn, turn_schema
from bedstone.errors import BedstoneError
from bedstone.remote.model import RemoteModel
from bedstone.serve.tools import ToolUse, written_calls
from served import CALLING, Running, saved_decoder

HELLO = [{"role": "user", "content": "a red cat sat on the mat"}]
MARKED = CALLING.replace("{{ {'name'", "{{ '<call>' + {'name'").replace(
    "| tojson }}", "| tojson + '</call>' }}"
)
DAY = {
    "type": "object",
    "properties": {"day": {"type": "integer", "minimum": 1, "maximum": 31}},
    "required": ["day"],
}
PLACE = {
    "$defs": {"town": {"type": "string", "enum": ["Bremen", "Bonn"]}},
    "type": "object",
    "properties": {"town": {"$ref": "#/$defs/town"}},
    "required": ["town"],
}


def function(name: str, parameters: dict) -> dict:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def calling(*names: str) -> dict:
    function = {"name": "weather", "arguments": "{}"}
    calls = [{"id": each, "type": "function", "function": function} for each in names]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(name: str | None) -> dict:
    return {"role": "tool", "tool_call_id": name, "content": "rain"}


TOOLS = [function("weather", DAY), function("map", PLACE)]


@pytest.fixture(scope="module")
def server(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("models")
    templates = {"caller": CALLING, "marked": MARKED}
    sources = {n: str(saved_decoder(folder / n, 2048, t)) for n, t in templates.items()}
    running = Running({"small": str(saved_decoder(folder / "small", 2048)), **sources})
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(server):
    return server.client()


def fits(call) -> bool:
    schema = {"weather": DAY, "map": PLACE}[call.function.name]
    jsonschema.validate(json.loads(call.function.arguments), schema)
    return True


@pytest.mark.parametrize("model", ["small", "caller", "marked"])
def test_a_call_is_forced_whatever_the_template(client, model):
    options = {"model": model, "messages": HELLO, "tools": TOOLS, "max_tokens": 300, "n": 3}
    found = client.chat.completions.create(**options, tool_choice="required", seed=1)
    for choice in found.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        (call,) = choice.message.tool_calls
        assert fits(call)
    named = {"type": "function", "function": {"name": "map"}}
    found = client.chat.completions.create(
        **options, tool_choice=named, parallel_tool_calls=False, seed=2
    )
    for choice in found.choices:
        (call,) = choice.message.tool_calls
        assert call.function.name == "map" and fits(call)
    cut = client.chat.completions.create(
        **{**options, "max_tokens": 3, "n": 1}, tool_choice=named, seed=2
    )
    assert cut.choices[0].finish_reason == "length"
    assert cut.choices[0].message.tool_calls is None
    assert cut.choices[0].message.content == ""
    chunks = list(client.chat.completions.create(
        **{**options, "max_tokens": 3, "n": 1}, tool_choice=named, seed=2, stream=True
    ))  # fmt: skip
    assert not any(each.choices[0].delta.tool_calls for each in chunks)
    assert not any(each.choices[0].delta.content for each in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_stream_of_calls_as_the_client_puts_it_together(client):
    options = {"model": "small", "messages": HELLO, "tools": TOOLS, "max_tokens": 300, "seed": 4}
    whole = client.chat.completions.create(**options, tool_choice="required")
    with client.chat.completions.stream(**options, tool_choice="required") as stream:
        events = list(stream)
        streamed = stream.get_final_completion()
    assert any(each.type == "tool_calls.function.arguments.done" for each in events)
    (one,), (other,) = (each.choices[0].message.tool_calls for each in (whole, streamed))
    assert one.function.name == other.function.name
    assert one.function.arguments == other.function.arguments
    assert streamed.choices[0].finish_reason == "tool_calls"


def test_without_a_template_of_calls_a_turn_is_a_call_or_an_answer(client):
    kinds = set()
    for seed in range(6):
        found = client.chat.completions.create(
            model="small", messages=HELLO, tools=TOOLS, max_tokens=400, seed=seed, temperature=0.7
        )
        (choice,) = found.choices
        for call in choice.message.tool_calls or ():
            assert fits(call)
        kinds.add(choice.finish_reason)
    assert "tool_calls" in kinds
    turns = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"}]  # fmt: skip
    again = client.chat.completions.create(
        model="small", messages=turns, tools=TOOLS, max_tokens=300, tool_choice="required"
    )
    assert fits(again.choices[0].message.tool_calls[0])


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tools": None, "response_format": {"type": "json_object"}, "stop": "x"}, "stop"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}},
         "response_format"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "x", "parameters": 3}}]}, "tools"),
        ({"tools": [function("x", {"type": "nonsense"})], "tool_choice": "required"}, "tools"),
        ({"messages": [*HELLO, {"role": "assistant", "content": None, "tool_calls": [3]}]},
         "messages"),
        ({"messages": [*HELLO, {"role": "assistant", "tool_calls": [{"id": [], "x": {}}]}]},
         "messages"),
        ({"messages": [*HELLO, result("c1")]}, "messages"),
        ({"messages": [*HELLO, calling("c1"), result("c2")]}, "messages"),
        ({"messages": [*HELLO, calling("c1"), result("c1"), result("c1")]}, "messages"),
        ({"messages": [*HELLO, calling("c1", "c1"), result("c1")]}, "messages"),
        ({"messages": [*HELLO, calling("c1"), result(None)]}, "messages"),
        ({"messages": [*HELLO, calling("")]}, "messages"),
    ],
)  # fmt: skip
def test_what_can_not_be_called_is_refused(server, changed, param):
    body = {"model": "small", "messages": HELLO, "max_tokens": 4, "tools": TOOLS, **changed}
    status, _, answer = server.ask("/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (400, param), answer


def test_results_of_calls_that_were_made_are_taken(server):
    messages = [*HELLO, calling("c1", "c2"), result("c2"), result("c1"), calling("c1"),
                result("c1")]  # fmt: skip
    for tools in (TOOLS, None):
        body = {"model": "caller", "messages": messages, "max_tokens": 4, "tools": tools}
        status, _, answer = server.ask("/v1/chat/completions", body)
        assert status == 200, answer


@pytest.mark.parametrize("model", ["small", "marked"])
def test_a_stop_text_ends_what_is_said_and_no_call(client, model):
    """A network of random weights answers at length: it is cut where the stop text stands."""
    said = {}
    options = {"model": model, "messages": HELLO, "tools": TOOLS, "max_tokens": 60}
    for seed in range(12):
        whole = client.chat.completions.create(**options, seed=seed)
        text = whole.choices[0].message.content
        if not text or not text[4:7].strip() or text[4:7] in text[:6]:
            continue
        assert '{"answer' not in text
        stop = text[4:7]
        cut = client.chat.completions.create(**options, seed=seed, stop=[stop, "not there"])
        (choice,) = cut.choices
        assert (choice.message.content, choice.finish_reason) == (text[:4], "stop")
        assert cut.usage.completion_tokens < whole.usage.completion_tokens
        said[seed] = choice
    assert said
    forced = {**options, "max_tokens": 300, "tool_choice": "required", "seed": 1}
    plain, stopped = (
        client.chat.completions.create(**forced, stop=stop).choices[0] for stop in (None, '"')
    )
    assert stopped.finish_reason == "tool_calls"
    assert (
        stopped.message.tool_calls[0].function.arguments
        == plain.message.tool_calls[0].function.arguments
    )


def test_of_a_call_that_is_cut_nothing_is_said():
    form = CallForm("<call>", "</call>")
    use = ToolUse(TOOLS, [], form, parallel=True)
    half = 'Well. <call>{"name": "map", "argu'
    assert use.read(half.replace("<call>", ""), half, whole=False) == ("Well. ", [])
    assert use.read("a<b", "a<b", whole=False) == ("a<b", [])
    whole = '<call>{"name": "map", "arguments": {}}</call>'
    assert use.read(whole, whole + " and", whole=False) == ("", [Call("map", {})])
    unmarked = ToolUse(TOOLS, [], CallForm("", ""), parallel=True)
    assert unmarked.read('{"name": "m', '{"name": "m', whole=False) == ("", [])
    assert unmarked.read("Well", "Well", whole=False) == ("Well", [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"answer": "a red', "a red"), (' {\n"answer" : "a\\n', "a\n"), ('{"answer": "', ""),
        ('{"answer": "a\\', "a"), ('{"answer": "a\\u00', "a"), ('{"answer": "a\\\\u00', "a\\u00"),
        ('{"answer": "\\ud83d', "\ufffd"), ('{"answer": "\\ud83d\\ude00', "\U0001f600"),
        ('{"tool": "map", "argum', ""), ("{", ""), ("", ""), ('{"answer": "a", ', "a"),
    ],
)  # fmt: skip
def test_an_answer_as_far_as_it_came(text, said):
    assert answer_so_far(text) == said


def test_half_characters_in_calls_and_answers_can_be_sent():
    (call,) = written_calls([Call("map", {"town": "\ud83d"})])
    assert call["function"]["arguments"].encode() == b'{"town": "\\ud83d"}'
    assert read_turn('{"answer": "a\\ud83d"}') == "a\ufffd"


def weather(town: Literal["Bremen", "Bonn"]) -> str:
    """The weather of a town."""
    return f"rain in {town}"


def test_an_agent_over_our_own_server(server):
    """A network of random weights makes calls that fit, and their results are read."""
    model = RemoteModel(f"{server.url}/v1#small")
    assert model.abilities["tools"] and model.abilities["json_schema"]
    texts = []
    for seed in range(6):
        driver = RemoteDriver(model, max_new_tokens=300, temperature=0.7, do_sample=True, seed=seed)
        agent = Agent(driver, [tool(weather, effects=False)], limits=Limits(steps=2))
        found = agent.run("What is the weather?")
        assert found.reason != "failed", found.answer
        texts += [each["text"] for each in found.transcript.of("result")]
    assert set(texts) & {"rain in Bremen", "rain in Bonn"} and set(texts) <= {
        "rain in Bremen", "rain in Bonn"
    }  # fmt: skip


def test_schemas_refer_to_their_own_parts():
    tree = {"type": "object", "properties": {"left": {"$ref": "#"}, "n": {"type": "integer"}}}
    schema = turn_schema([function("map", PLACE), function("tree", tree)], answers=False)
    jsonschema.validate({"tool": "map", "arguments": {"town": "Bonn"}}, schema)
    jsonschema.validate({"tool": "tree", "arguments": {"left": {"n": 1, "left": {}}}}, schema)
    for wrong in ({"tool": "map", "arguments": {"town": "Rome"}}, {"answer": "x"},
                  {"tool": "tree", "arguments": {"left": {"n": "x"}}}):  # fmt: skip
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
    assert read_turn('{"tool": "map", "arguments": {"town": "Bonn"}}') == Call(
        "map", {"town": "Bonn"}
    )
    assert read_turn('{"tool": "map", "argum') is None
    assert read_turn("[" * 100_000) is None
    odd = [{"role": "assistant", "tool_calls": [{"id": {}, "name": "map", "arguments": {}}]},
           {"role": "tool", "tool_call_id": [], "content": "x"}]  # fmt: skip
    assert [each["role"] for each in as_plain(odd, TOOLS)] == ["system", "assistant", "user"]
    with pytest.raises(BedstoneError, match="tool_calls"):
        as_plain([{"role": "assistant", "content": "", "tool_calls": [{"x": 1}]}], TOOLS)


def test_the_mark_before_a_call_is_known(server):
    marked = server.models.entries["marked"].served.model.tokenizer
    form = call_form(marked, TOOLS)
    assert (form.before, form.after, form.lead) == ("<call>", "</call>", "<call>")
    assert form.keys == ("name", "arguments")
