"""The Model Context Protocol: servers that die, hang, lie or rename, and our tools for others."""

import sys
import time

import mcp_types as types
import pytest
from mcp.server import Server

from bedstone.agent.loop import Agent, Turn
from bedstone.agent.mcp import McpServer, make_server
from bedstone.agent.own_tools import named_tools
from bedstone.agent.policy import Policy
from bedstone.agent.tools import Toolbox, tool
from bedstone.data.text.tool_calls import Call
from bedstone.errors import BedstoneError

SERVER = '''
import os, time
from bedstone.agent.mcp import serve_stdio
from bedstone.agent.tools import tool

def add(a: int, b: int) -> int:
    """Adds."""
    return a + b

def die() -> str:
    """Ends the process."""
    os._exit(1)

def hang() -> str:
    """Takes long."""
    time.sleep(60)

def big() -> str:
    """Says much."""
    return "x" * 3_000_000

def fail() -> str:
    """Fails."""
    raise ValueError("no luck")

serve_stdio([tool(each) for each in (add, die, hang, big, fail)])
'''


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


class Script:
    name = "script"

    def __init__(self, *calls):
        self.calls, self.seen = list(calls), []

    def turn(self, messages, tools, most):
        self.seen = [each["content"] for each in messages if each["role"] == "tool"]
        return Turn(calls=(self.calls.pop(0),)) if self.calls else Turn("done")


def test_in_memory():
    with McpServer(make_server([tool(add, effects=False, untrusted=False)])) as server:
        (found,) = server.tools()
        assert found.name == "add" and found.description == "Adds two numbers."
        assert found.parameters["required"] == ["a", "b"]
        assert found.effects and found.untrusted  # whatever it says of itself
        assert found.function(a=1, b=2) == "3"
        with pytest.raises(BedstoneError, match="'b' is missing"):
            found.function(a=1)


def test_a_server_that_dies_hangs_and_says_too_much(tmp_path):
    (tmp_path / "server.py").write_text(SERVER)
    with McpServer(f"{sys.executable} {tmp_path}/server.py", seconds=1.5) as server:
        calls = [Call("add", {"a": 1, "b": 2}), Call("fail", {}), Call("big", {}), Call("hang", {}),
                 Call("die", {}), Call("add", {"a": 3, "b": 4})]  # fmt: skip
        script = Script(*calls)
        began = time.monotonic()
        found = Agent(script, server.tools(), policy=Policy(["trust *"])).run("Try all")
        assert found.answered and time.monotonic() - began < 20
    texts = script.seen
    assert texts[0] == "3" and "no luck" in texts[1]
    assert len(texts[2]) < 5000 and "in time" in texts[3]
    assert texts[4].startswith("error:") and texts[5].startswith("error:")


def test_a_tool_that_was_renamed_between_calls():
    async def list_tools(context, params):
        listed = types.Tool(name="add", input_schema={"type": "object"})
        return types.ListToolsResult(tools=[listed])

    async def call_tool(context, params):  # it is called sum by now
        text = types.TextContent(type="text", text=f"unknown tool {params.name}")
        return types.CallToolResult(content=[text], is_error=True)

    with McpServer(Server("other", on_list_tools=list_tools, on_call_tool=call_tool)) as server:
        text, good = Toolbox(server.tools()).run("add", {})
        assert not good and "unknown tool add" in text


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("/missing/server", "No such file"),
        ("http://127.0.0.1:9/mcp", "can't be started or reached"),
        (f"{sys.executable} -c 'print(1)'", "can't be started or reached"),
        ("", "names no command"),
        ('"unclosed', "quotation mark"),
    ],
)
def test_servers_that_are_none(place, message):
    with pytest.raises(BedstoneError, match=message):
        McpServer(place, start=2)


def test_our_tools_for_other_agents():
    """`bedstone mcp`, asked by the protocol's own client."""
    command = f"{sys.executable} -m bedstone mcp --tools calculator"
    (found,) = named_tools([f"mcp={command}"])
    assert found.name == "calculator" and found.function(expression="6 * 7") == "42"
    with pytest.raises(BedstoneError, match="no expression"):
        found.function(expression="6 *")
    two = named_tools(["calculator", f"mcp={command}"])
    assert [each.name for each in two] == ["calculator", "mcp_calculator"]
