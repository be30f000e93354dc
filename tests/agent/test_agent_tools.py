"""Tools of Bedstone's own, models that drive an agent, and the command."""

import json
import math
from typing import Literal, Optional

import jsonschema
import numpy as np
import pytest
from PIL import Image

from bedstone.agent.drivers import LocalDriver, RemoteDriver
from bedstone.agent.loop import Agent, Limits, Turn, calling
from bedstone.agent.own_tools import calculator, file_tools, named_tools, read_passages
from bedstone.agent.policy import Policy
from bedstone.agent.tools import tool
from bedstone.checkpoints.model import Model
from bedstone.cli import main
from bedstone.data.text.tool_calls import Call
from bedstone.data.text.tool_turns import as_plain, turn_schema
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.errors import BedstoneError
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.remote import endpoint as endpoint_module
from bedstone.remote.model import RemoteModel
from bedstone.sandbox.run import Sandbox
from fake_endpoint import endpoint, said, usage
from networks import randomise

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_model(seed=5, context=2000):
    words = 'The {"tool": "add", "arguments": {"a": 12, "b": 3}} {"answer": "it is 7"} goal .\n' * 9
    known = train_bpe([words], 330, special_tokens=("<|im_end|>", "<|im_start|>"))
    known.settings["chat_template"] = TEMPLATE
    config = GPTConfig(vocab_size=known.vocab_size, width=24, layers=2, heads=4, context=context)
    network = build(config)
    randomise(network, seed=seed)
    return Model(network.eval(), known)


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


ADD = tool(add, effects=False, untrusted=False)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 + 3 * 4", "14"), ("(2+3)*4", "20"), ("2**10", "1024"), ("7 // 2", "3"), ("-5 % 3", "1"),
        ("sqrt(2)", str(math.sqrt(2))), ("0.17 * 2340", "397.8"), ("max(3, 9, 2)", "9"),
        ("1e3", "1000"), ("round(pi, 2)", "3.14"),
    ],
)  # fmt: skip
def test_the_calculator(text, value):
    assert calculator(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "", "2 +", "a", "__import__('os')", "().__class__", "'a' * 9", "[1]", "9**9**9", "2**1e9",
        "(lambda: 1)()", "1 if 2 else 3", "open('x')", "x := 3", "1" * 2000, "True + 1", "1j",
    ],
)  # fmt: skip
def test_the_calculator_works_out_numbers_alone(text):
    with pytest.raises(BedstoneError):
        calculator(text)


def test_files_of_one_folder_and_nothing_outside(tmp_path):
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("secret")
    (home / "a.txt").write_text("hello")
    (home / "link").symlink_to(tmp_path / "secret.txt")
    (home / "way").symlink_to(tmp_path)
    listing, read, write = (each.function for each in file_tools(home))
    assert listing() == ["a.txt"] and read(path="a.txt") == "hello"
    assert "5 characters" in write(path="sub/b.txt", text="world")
    assert (home / "sub" / "b.txt").read_text() == "world"
    out = ["../secret.txt", "/etc/passwd", "link", "way/secret.txt", "sub/../../secret.txt"]
    out += ["", ".", "a.txt/../../secret.txt", "..\\secret.txt", "a\0b", "x" * 300, "sub\\b.txt"]
    for path in out:
        with pytest.raises(BedstoneError):
            read(path=path)
        with pytest.raises(BedstoneError):
            write(path=path, text="gone")
    assert (tmp_path / "secret.txt").read_text() == "secret"
    with pytest.raises(BedstoneError, match="is no folder"):
        file_tools(tmp_path / "missing")


def test_schemas_of_functions():
    def paint(colour: Literal["red", "blue"], count: Optional[int] = None) -> str:  # noqa: UP045
        """Paints."""
        return colour

    made = tool(paint)
    assert made.parameters["properties"] == {
        "colour": {"enum": ["red", "blue"]}, "count": {"type": "integer"},
    }  # fmt: skip
    assert made.check({"colour": "green"}) and not made.check({"colour": "red", "count": 3})

    def odd(x: "Nope") -> str:  # noqa: F821
        """Odd."""

    for wrong in (odd, dict):
        with pytest.raises(BedstoneError, match=r"signature can't be read|takes"):
            tool(wrong)


def test_python_in_the_sandbox():
    try:
        Sandbox()
    except BedstoneError as error:
        pytest.skip(str(error))
    (run,) = named_tools(["python"])
    assert run.function(program="print(6 * 7)").strip() == "42"
    assert "refused" in run.function(program="import socket; socket.socket()")
    assert "ZeroDivisionError" in run.function(program="1/0")


def test_passages_hold_every_word_of_the_texts(tmp_path):
    words = [f"word{n}" for n in range(900)]
    text = "\n\n".join(" ".join(words[n : n + 37]) for n in range(0, 900, 37))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.bin").write_bytes(b"\x00\xff")
    (tmp_path / "c.md").write_text("y" * 2000)
    found = list(read_passages(tmp_path))
    assert " ".join(text for name, text in found if name == "a.txt").split() == words
    assert "".join(text for name, text in found if name == "c.md") == "y" * 2000
    assert max(len(text) for _, text in found) <= 601


def test_names_of_tools(tmp_path):
    (tmp_path / "mine.py").write_text(
        'def double(n: int) -> int:\n    """Doubles."""\n    return 2 * n\n'
    )
    found = named_tools(["calculator", f"files={tmp_path}", f"{tmp_path}/mine.py:double"])
    assert [each.name for each in found] == [
        "calculator", "list_files", "read_file", "write_file", "double",
    ]  # fmt: skip
    assert [each.effects for each in found] == [False, False, False, True, True]
    for wrong in ("calculater", "files", "search", f"{tmp_path}/mine.py:triple", "ask"):
        with pytest.raises(BedstoneError, match=r"tools:"):
            named_tools([wrong])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BedstoneError, match="holds no texts"):
        named_tools([f"search={tmp_path / 'empty'}"])


# A decoder of ours.


def test_every_turn_of_any_model_can_be_read():
    """A network of random weights calls and answers in form, whatever it would have said."""
    model = chat_model()
    driver = LocalDriver(
        model, precision="fp32", max_new_tokens=160, do_sample=True, temperature=1.0, top_k=0
    )
    messages = [{"role": "system", "content": "Go."}, {"role": "user", "content": "Add 1 and 2."}]
    kinds = []
    for _ in range(8):
        turn = driver.turn(messages, [ADD], None)
        assert turn.tokens > 0
        if turn.calls:
            (one,) = turn.calls
            assert one.name == "add" and ADD.check(one.arguments) == ""
            kinds.append("call")
        else:
            kinds.append("fault" if turn.fault else "answer")
            assert not turn.fault or "cut after" in turn.fault
    assert set(kinds) & {"call", "answer"}
    assert driver.turn(messages, [ADD], 5) is None


def test_the_schema_of_a_turn():
    schema = turn_schema([ADD.schema])
    for good in ({"tool": "add", "arguments": {"a": 1, "b": 2}}, {"answer": "x"}):
        jsonschema.validate(good, schema)
    bad = {"tool": "add", "arguments": {"a": "x", "b": 2}}
    for wrong in (bad, {"tool": "sub", "arguments": {}}, {"tool": "add"},
                  {"answer": 3}, {"answer": "x", "tool": "add"}, {}):  # fmt: skip
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_turns_alternate_as_templates_want_them():
    calls = Turn(calls=(Call("add", {"a": 1, "b": 2}), Call("add", {"a": 3, "b": 4})))
    results = [{"role": "tool", "name": "add", "content": text} for text in ("3", "7")]
    messages = [{"role": "system", "content": "Go."}, {"role": "user", "content": "x"}]
    plain = as_plain([*messages, calling(calls), *results], [ADD.schema])
    roles = [each["role"] for each in plain]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert plain[3]["content"] == "Result of add: 3" and plain[5]["content"] == "Result of add: 7"


def test_old_results_are_shortened_where_the_context_is_full():
    model = chat_model(context=700)
    driver = LocalDriver(model, precision="fp32", max_new_tokens=64)
    calls = Turn(calls=(Call("add", {"a": 1, "b": 2}),))
    messages = [{"role": "system", "content": "Go."}, {"role": "user", "content": "x"}]
    long = {"role": "tool", "name": "add", "content": "goal . " * 200}
    turn = driver.turn([*messages, calling(calls), long], [], None)
    assert turn is not None and turn.tokens <= 700
    with pytest.raises(BedstoneError, match="has room for"):
        driver.turn([messages[0], {"role": "user", "content": "goal . " * 900}], [], None)
    with pytest.raises(BedstoneError, match="max_new_tokens"):
        LocalDriver(model, max_new_tokens=700).turn(messages, [], None)
    bare = chat_model()
    bare.tokenizer.settings.pop("chat_template")
    with pytest.raises(BedstoneError, match="chat"):
        LocalDriver(bare)


# A model behind an endpoint.


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(endpoint_module, "FIRST", 0.01)
    with endpoint() as made:
        yield made


def scripted(route, body):
    """Adds the numbers of the goal by calls, then says the sum."""
    results = [each["content"] for each in body["messages"] if each["role"] == "tool"]
    if results:
        return said(f"It is {results[-1]}.")
    function = {"name": "add", "arguments": json.dumps({"a": 3, "b": 4})}
    message = {"role": "assistant", "content": None,
               "tool_calls": [{"id": "1", "type": "function", "function": function}]}  # fmt: skip
    return {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": usage()}


def test_an_endpoint_drives_an_agent(fake):
    fake.answer = scripted
    model = RemoteModel(f"{fake.url}#small", abilities={"tools": True})
    found = Agent(RemoteDriver(model), [ADD]).run("3 + 4?")
    assert (found.answer, found.steps, found.tokens) == ("It is 7.", 2, 16)
    sent = fake.asked[-1][1]["messages"]
    assert [each["role"] for each in sent] == ["system", "user", "assistant", "tool"]
    assert sent[2]["tool_calls"][0]["id"] == sent[3]["tool_call_id"]
    few = Agent(RemoteDriver(model), [ADD], limits=Limits(tokens=20)).run("3 + 4?")
    assert few.reason == "tokens" and few.tokens == 8
    lacking = RemoteModel(f"{fake.url}#small", abilities={})
    with pytest.raises(BedstoneError, match="calls of tools"):
        RemoteDriver(lacking)


def test_arguments_that_are_no_json_are_a_fault(fake):
    def broken(route, body):
        found = scripted(route, {"messages": []})
        found["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] = '{"a": 3, '
        return found if len(fake.asked) == 1 else said("done")

    fake.answer = broken
    model = RemoteModel(f"{fake.url}#small", abilities={"tools": True})
    found = Agent(RemoteDriver(model), [ADD]).run("x")
    assert found.answer == "done"
    assert "no JSON object" in next(found.transcript.of("turn"))["fault"]


# The command.


def test_the_command(fake, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        'def add(a: int, b: int) -> int:\n    """Adds."""\n    return a + b\n'
    )

    def able(route, body):
        if any(
            each.get("content") == "Write ten words about the sea." for each in body["messages"]
        ):
            function = {"name": "look", "arguments": '{"sea": true}'}
            call = {"id": "1", "type": "function", "function": function}
            return {"choices": [{"message": {"tool_calls": [call], "content": "x"}}],
                    "usage": usage()}  # fmt: skip
        return scripted(route, body)

    fake.answer = lambda route, body: able(route, body) if route.startswith("chat") else None
    words = [
        "agent",
        "3 + 4?",
        "--model",
        f"{fake.url}#small",
        "--tools",
        f"{tmp_path}/mine.py:add",
    ]
    assert main([*words, "--policy", "allow add", "--transcript", str(tmp_path / "run.jsonl")]) == 0
    out = capsys.readouterr()
    assert out.out.strip() == "It is 7." and 'add {"a": 3, "b": 4}' in out.err
    events = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [each["kind"] for each in events] == [
        "start",
        "turn",
        "decision",
        "result",
        "turn",
        "end",
    ]
    page = tmp_path / "page.html"
    assert main([*words, "--policy", "deny add", "--page", str(page)]) == 0
    text = page.read_text()
    assert "<strong>add</strong>" in text and "denied" in text and "It is denied: rule" in text
    assert main([*words, "--page", str(page)]) == 2
    capsys.readouterr()
    assert main([*words, "--json"]) == 0  # nobody is asked: the call is denied
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert next(each for each in lines if each["kind"] == "decision")["action"] == "deny"
    assert main([*words, "--policy", "allow ad"]) == 2
    assert main(["agent", "x", "--model", f"{fake.url}#small"]) == 2
    assert main(["agent", "x", "--tools", "calculator"]) == 2
    assert main([*words, "--transcript", str(tmp_path / "run.jsonl")]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--transcript", str(tmp_path / "run.jsonl"), "--overwrite"]) == 0
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 5  # the call was denied
    capsys.readouterr()

    def again(route, body):
        probed = "Write ten words" in str(body.get("messages"))
        return able(route, body) if probed else scripted(route, {"messages": []})

    fake.answer = lambda route, body: again(route, body) if route.startswith("chat") else None
    assert main([*words, "--policy", "allow add"]) == 1
    assert "the same call three times" in capsys.readouterr().err


def test_the_command_with_a_model_of_ours(tmp_path, capsys):
    chat_model().save(tmp_path / "model")
    words = [
        "agent",
        "Add",
        "--model",
        str(tmp_path / "model"),
        "--tools",
        "calculator",
        "--steps",
        "2",
    ]
    assert main([*words, "--max-new-tokens", "40", "--precision", "fp32"]) in (0, 1)
    assert "Traceback" not in capsys.readouterr().err


def test_images_are_files_of_the_folder(tmp_path):
    from bedstone.agent.own_tools import caption_tool

    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    see = caption_tool("scenes-vlm", tmp_path)
    assert see.function(image="a.png")
    with pytest.raises(BedstoneError, match="no file of the folder"):
        see.function(image="../a.png")


def test_a_policy_for_a_tool_that_writes(tmp_path):
    class Script:
        name = "script"
        turns = iter([Turn(calls=(Call("write_file", {"path": path, "text": "x"}),))
                 for path in ("reports/a.txt", "other.txt", "reports/../b.txt")])  # fmt: skip

        def turn(self, messages, tools, most):
            return next(self.turns, Turn("done"))

    rules = Policy(["allow write_file(path=reports/*)"])
    Agent(Script(), file_tools(tmp_path), policy=rules).run("x")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["a.txt"]
