"""Conversations as examples for decoders: what the assistant writes is learnt, the rest is read.

A row holds `messages`, or a `prompt` of messages and a `completion` of messages; in OpenAI's or
ShareGPT's form. Or it holds Alpaca's columns with a `history`, pairs of an instruction and its
output, or with a `system`. The model's chat template writes them (`data.text.chat.learnt_chats`).
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bedstone.data.dataset import Dataset
from bedstone.data.text.chat import (
    LearntChat,
    is_learnt,
    learnt_chats,
    read_messages,
    system_of,
    with_system,
)
from bedstone.data.text.encode import Input
from bedstone.data.text.examples import Examples, Ragged, Targets
from bedstone.data.text.instructions import conversation_template
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.reading import shown

TURNS = ("all", "last")  # which answers of a conversation are learnt
ALL_BROKEN = 20  # rows from the first on that a template can't write, after which no more are read


def holds_conversations(rows: Dataset) -> bool:
    """Whether rows are conversations: lists of messages, not texts."""
    if column := rows.column("completion"):
        return isinstance(_cell(rows.rows[0], column), list)
    if rows.column("instruction"):
        return any(rows.column(each) for each in ("history", "system"))
    return rows.column("messages") is not None


def _cell(row: Mapping[str, Any], column: str) -> Any:
    value = row.get(column)
    return list(value) if isinstance(value, list | tuple | np.ndarray) else value


class Conversations:
    """The conversations of rows: messages, tools, and how many messages are read alone."""

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows
        self.instructs = not rows.column("completion") and rows.column("instruction") is not None
        apart = self.instructs or rows.column("completion")
        self.messages = None if apart else rows.need("messages")
        self.tools = rows.column("tools")

    def read(
        self, row: int, *, answered: bool = True
    ) -> tuple[list[dict[str, Any]], list[Any] | None, int]:
        """Messages, tools, and the number of messages that are a prompt.

        Args:
            answered: whether an answer that is to be learnt is needed.

        Raises:
            BedstoneError: naming the row and column of what is no conversation, or of one without
                an answer.
        """
        if self.instructs:
            messages = with_system(self._instructed(row, answered), system_of(self.rows, row))
            return messages, self._tools(row), 0
        if self.messages is None:
            prompt = with_system(
                self._messages(row, self.rows.need("prompt")), system_of(self.rows, row)
            )
            messages = [*prompt, *self._messages(row, self.rows.need("completion"))]
            if answered:
                self._check(row, self.rows.need("completion"), messages[len(prompt) :])
            return messages, self._tools(row), len(prompt)
        messages = with_system(self._messages(row, self.messages), system_of(self.rows, row))
        if answered:
            self._check(row, self.messages, messages)
        return messages, self._tools(row), 0

    def _instructed(self, row: int, answered: bool) -> list[dict[str, Any]]:
        """Alpaca's columns as messages: what came before, the instruction with its input, and the
        output where it is wanted."""
        rows, more = self.rows, self.rows.column("input")
        asks = rows.text(row, rows.need("instruction"))
        given = rows.text(row, more, empty=True) if more else ""
        turns = [*self._history(row), (f"{asks}\n\n{given}" if given.strip() else asks, None)]
        if answered:
            turns[-1] = turns[-1][0], rows.text(row, rows.need("output"))
        return [
            {"role": role, "content": text}
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
            if text is not None
        ]

    def _history(self, row: int) -> list[tuple[str, str | None]]:
        """Pairs of an instruction and its output that came before.

        Raises:
            BedstoneError: naming the row of what is no such list.
        """
        column = self.rows.column("history")
        value = self.rows.rows[row].get(column) if column else None
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value)
            except ValueError:
                value = [value]
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if value is None or value == "" or value != value:  # a gap of a table is nan
            return []
        pairs = value if isinstance(value, list | tuple) else [value]
        found: list[tuple[str, str | None]] = []
        for pair in pairs:
            texts = list(pair) if isinstance(pair, list | tuple | np.ndarray) else []
            if len(texts) != 2 or not all(isinstance(each, str) and each.strip() for each in texts):
                assert column is not None
                what = f"holds {shown(pair)}; expected pairs of an instruction and its output"
                raise self.rows.fault(row, column, what, "Mend it, or leave the row out.")
            found.append((texts[0], texts[1]))
        return found

    def _check(self, row: int, column: str, messages: Sequence[Mapping[str, Any]]) -> None:
        """Raises BedstoneError where no answer is to be learnt, or an empty one is."""
        learnt = [m for m in messages if m["role"] == "assistant" and is_learnt(m)]
        if not learnt:
            what = "has no turn of the assistant that is to be learnt"
            raise self.rows.fault(row, column, what, "Leave the row out.")
        if not all((m.get("content") or "").strip() or m.get("tool_calls") for m in learnt):
            what = "has an empty turn of the assistant, which would teach to say nothing"
            raise self.rows.fault(row, column, what, "Leave it out, or give it weight: 0.")

    def _messages(self, row: int, column: str) -> list[dict[str, Any]]:
        value = self.rows.value(row, column)
        return read_messages(_cell({column: value}, column), f"{self.rows.where(row)}: {column}")

    def _tools(self, row: int) -> list[Any] | None:
        value = self.rows.rows[row].get(self.tools) if self.tools else None
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value)
            except ValueError:
                value = None
        if value is None or value == "":
            return None
        if not isinstance(value, list | tuple) or not all(isinstance(v, Mapping) for v in value):
            assert self.tools is not None
            what = f"holds {shown(value)}; expected a list of JSON schemas of functions"
            raise self.rows.fault(row, self.tools, what, "Mend it, or leave the row out.")
        return list(value) or None


class ConversationExamples(Examples):
    """A conversation a row, of which the answers are learnt, their end token included.

    What is longer than a row becomes windows that begin before an answer, with as much before it as
    fits; a token is learnt once. A tokenizer without a chat template gets that of
    `instructions.conversation_template`.

    Args:
        stride: tokens that stand before an answer in a window, at least.
        turns: all answers are learnt, or the last one of each conversation.

    A conversation that the template can't write is a broken row, which is left out and named.

    Raises:
        BedstoneError: naming the file, row and column of what can't be learnt; or more than half
            of the rows leave nothing to learn.
    """

    kind = "language"

    def __init__(
        self,
        rows: Dataset,
        tokenizer: Tokenizer,
        *,
        limit: int,
        stride: int = 0,
        turns: str = "all",
    ) -> None:
        if not 0 <= stride < limit - 1:
            raise BedstoneError(
                f"stride: {stride:,} tokens shared between windows leave nothing new in rows of "
                f"{limit:,}. Lower it, or raise the limit."
            )
        self.chat_template = ""  # that makes the learnt form of a conversation
        if not tokenizer.chat_template:
            self.chat_template = conversation_template(tokenizer)
            tokenizer.settings["chat_template"] = self.chat_template
        self._source, self._turns = Conversations(rows), turns
        self._targets_of = Ragged()
        self._apart = self._open_ended = 0
        named = set(re.findall(r"<\|[\w/]+\|>", str(tokenizer.chat_template)))
        self._absent = {name for name in named if tokenizer.backend.token_to_id(name) is None}
        self._written: set[str] = set()  # of the absent ones
        self.end_ids: set[int] = set()  # that answers end with
        self._broken: dict[int, BedstoneError] = {}
        super().__init__(rows, tokenizer, limit=limit, stride=stride)
        if self._broken:
            self._leave_out()
        self.actual = [self._source.read(row)[0] for row in range(len(self.rows))]

    @property
    def trained_count(self) -> int:
        """Tokens that are learnt."""
        return self._targets_of.total

    @property
    def open_ended(self) -> int:
        """Conversations with answers that the chat template ends with no special token."""
        return self._open_ended

    def chats(self, row: int) -> list[LearntChat]:
        """A row's conversation, or several that end with an answer each."""
        messages, tools, first = self._source.read(row)
        last = self._turns == "last"
        return learnt_chats(self.tokenizer, messages, tools=tools, last=last, first=first)

    def _inputs(self, numbers: Sequence[int]) -> list[list[Input]]:
        return [
            [window for chat in self._chats(number) for window in self._windows(chat)]
            for number in numbers
        ]

    def _tokenised(self, numbers: range) -> list[list[Input]]:
        found: list[list[Input]] = []
        for number in numbers:
            try:
                found += self._inputs([number])
            except BedstoneError as error:
                self._broken[number] = BedstoneError(f"{self.rows.where(number)}: {error}")
                found.append([])
                if len(self._broken) == number + 1 == min(len(self.rows), ALL_BROKEN):
                    raise self._broken[0] from error  # what is wrong is the template
        return found

    def _leave_out(self) -> None:
        """Leaves out the rows that are broken.

        Raises:
            BedstoneError: they are too many.
        """

        def check(row: int) -> None:
            if row in self._broken:
                raise self._broken[row]

        before = len(self.rows)
        self.rows = self.rows.usable(check)
        self._source = Conversations(self.rows)
        kept = np.array([row not in self._broken for row in range(before)])
        self.owner = (np.cumsum(kept) - 1)[self.owner]

    def _chats(self, row: int) -> list[LearntChat]:
        found = self.chats(row)
        self._apart += len(found) > 1
        self._open_ended += any(chat.open_ended for chat in found)
        for chat in found:
            self._written |= {name for name in self._absent if name in chat.text}
            after = [*chat.trained[1:], False]
            ends = [n for n, learnt, on in zip(chat.ids, chat.trained, after, strict=True)
                    if learnt and not on]  # fmt: skip
            self.end_ids.update(ends if not chat.open_ended else ())
        return found

    def _windows(self, chat: LearntChat) -> list[Input]:
        """Windows with targets, which `sources` are 1 of; what stands before them is kept."""
        size = len(chat.ids)
        whole = Input(chat.ids, [0] * size, chat.offsets, [0] * size, [None] * size)
        wanted = [at for at in range(1, size) if chat.trained[at]]  # nothing foretells the first
        windows, end = [], 0
        while left := [at for at in wanted if at >= end]:
            first, start = left[0], 0
            if size > self.limit:
                run = next((n for n, at in enumerate(left) if at != first + n), len(left))
                room = max(self.limit - min(run, self.limit // 2), self.stride)
                start = max(first - room, 0)
            end = min(start + self.limit, size)
            window = whole.cut(start, end)
            for at in left:
                if at < end:
                    window.sources[at - start] = 1
            windows.append(window)
        return windows

    def _keep(self, row: int, windows: list[Input]) -> None:
        for window in windows:
            self._targets_of.add([at for at, one in enumerate(window.sources) if one == 1])

    def describe(self) -> str:
        text = f"{super().describe()}; {self.trained_count:,} tokens of answers are learnt"
        if self._apart:
            text += (
                f"; {self._apart:,} conversations became one for each answer, as the chat template "
                "writes earlier turns otherwise once others follow"
            )
        if self._written:
            names = ", ".join(sorted(self._written))
            text += f"; the chat template writes {names}, which the tokenizer reads as plain text"
        if self._open_ended:
            text += (
                f"; {self._open_ended:,} conversations have answers that the chat template ends "
                "with no special token, so the model won't learn where to stop"
            )
        return text

    def _targets(
        self,
        windows: np.ndarray,
        starts: np.ndarray,
        reads: np.ndarray,
        weights: np.ndarray | None,
    ) -> Targets:
        (within,), owners = self._targets_of.take(windows)
        targets = self.ids[self.starts[windows][owners] + within].astype(np.int64)
        return Targets(starts[owners] + within - 1, owners, targets)
