"""Runs of agents as rows to learn from: a smaller model learns calls that a larger one made.

    rows = lessons([read_transcript(path) for path in paths], tools)
    bedstone.finetune({"method": "sft", "model": ..., ...}, data={"train": rows})

A row is a conversation as `LocalDriver` shows it to a model: tools in the system's words, each call
and the answer as the JSON that a turn is held to. So what is learnt is what is asked for later.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bedstone.agent.loop import Message, Turn, replaying
from bedstone.agent.tools import Tool, Toolbox
from bedstone.agent.transcript import Transcript
from bedstone.data.text.tool_turns import as_plain, bare
from bedstone.errors import BedstoneError

Row = dict[str, list[dict[str, str]]]


class Listening:
    """A driver that keeps the messages of the last turn.

    Args:
        driver: whose turns they are.

    Attributes:
        heard: messages before the last turn, in OpenAI's form.
    """

    def __init__(self, driver: Any) -> None:
        self.driver, self.name = driver, driver.name
        self.heard: list[Message] = []

    def turn(
        self, messages: Sequence[Message], tools: Sequence[Tool], most: int | None
    ) -> Turn | None:
        """The driver's turn."""
        self.heard = list(messages)
        found: Turn | None = self.driver.turn(messages, tools, most)
        return found


def lesson(transcript: Transcript, tools: Iterable[Tool | Callable[..., Any]]) -> Row:
    """A run that ended with an answer, as a row of conversations; no tool is called.

    Args:
        transcript: of the run.
        tools: of the run, for their schemas.

    Raises:
        BedstoneError: the run gave no answer, or is of other tools.
    """
    end = transcript.end
    if end is None or end["reason"] != "answered":
        reason = "was killed" if end is None else f"ended by {end['reason']}"
        raise BedstoneError(
            f"transcript: the run {reason}, so it shows no way to an answer. Leave it out."
        )
    tools = list(tools)
    agent = replaying(transcript, tools)
    agent.driver = listening = Listening(agent.driver)
    found = agent.run(transcript.start["goal"])
    said = {"role": "assistant", "content": found.answer}
    plain = as_plain([*listening.heard, said], Toolbox(tools).schemas)
    return {"messages": bare(plain)}


def lessons(
    transcripts: Iterable[Transcript], tools: Iterable[Tool | Callable[..., Any]]
) -> list[Row]:
    """Rows of all runs that ended with an answer; the others are left out."""
    tools = list(tools)
    answered = (each for each in transcripts if each.end and each.end["reason"] == "answered")
    return [lesson(each, tools) for each in answered]
