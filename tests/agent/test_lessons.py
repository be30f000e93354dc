"""Runs of agents as rows to learn from: what a model read and said, and nothing else."""

import json

import pytest

from bedstone.agent.lessons import lesson, lessons
from bedstone.agent.loop import Agent, Limits, Turn
from bedstone.agent.tools import tool
from bedstone.agent.transcript import read_transcript
from bedstone.data.text.tool_calls import Call
from bedstone.data.text.tool_turns import as_plain, read_turn
from bedstone.errors import BedstoneError


def stock(item: str) -> int:
    """How many pieces of an item there are."""
    return {"lamp": 14}[item]


def burn(item: str) -> str:
    """Burns an item."""
    raise AssertionError("no tool may run here")


class Spoken:
    """Turns that are given, and the messages that each was asked with."""

    name = "spoken"

    def __init__(self, *turns):
        self.turns, self.asked = list(turns), []

    def turn(self, messages, tools, most):
        self.asked.append((list(messages), list(tools)))
        return self.turns.pop(0)


TOOLS = [tool(stock, effects=False), tool(burn)]


def run(*turns, path=None, **limits):
    driver = Spoken(*turns)
    found = Agent(driver, TOOLS, limits=Limits(**limits)).run("How many lamps?", path)
    return found, driver


def test_a_row_is_what_the_model_read_and_said(tmp_path):
    first = Turn(calls=(Call("burn", {"item": "lamp"}),))  # denied
    wrong = Turn(calls=(Call("stock", {"item": "lamb"}),))  # an error is a result
    right = Turn(calls=(Call("stock", {"item": "lamp"}),))
    found, driver = run(first, wrong, right, Turn("There are 14."), path=tmp_path / "run.jsonl")
    row = lesson(read_transcript(tmp_path / "run.jsonl"), TOOLS)["messages"]
    assert row == lesson(found.transcript, TOOLS)["messages"]
    messages, tools = driver.asked[-1]
    schemas = [each.schema for each in tools]
    shown = [
        {"role": one["role"], "content": one["content"]} for one in as_plain(messages, schemas)
    ]
    assert row[:-1] == shown
    assert [one["role"] for one in row] == ["system", "user", *["assistant", "user"] * 3,
                                            "assistant"]  # fmt: skip
    said = [read_turn(one["content"]) for one in row if one["role"] == "assistant"]
    assert said == [*(each.calls[0] for each in (first, wrong, right)), "There are 14."]
    assert row[3]["content"].startswith("Result of burn: denied: it has effects; nobody")
    assert row[-2]["content"] == "Result of stock: 14"
    json.dumps(row)


def test_runs_without_an_answer_are_left_out():
    call = Turn(calls=(Call("stock", {"item": "lamp"}),))
    good, bad = run(call, Turn("14"))[0].transcript, run(call, call, steps=1)[0].transcript
    assert lessons([bad, good, bad], TOOLS) == [lesson(good, TOOLS)]
    with pytest.raises(BedstoneError, match="ended by steps"):
        lesson(bad, TOOLS)
    bad.events.pop()
    with pytest.raises(BedstoneError, match="was killed"):
        lesson(bad, TOOLS)
    with pytest.raises(BedstoneError, match="is of the tools"):
        lesson(good, TOOLS[:1])
