"""Preferences: prompts with a chosen and a rejected answer, or with one answer that is judged.

Columns are those of TRL: `prompt`, `chosen` and `rejected`, with `margin`; or `prompt`,
`completion` and `label`. Each is a text or a list of messages. Without a `prompt` it is what both
answers begin with. `data.text.preference_examples` makes tokens of them.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bedstone.data.dataset import Dataset
from bedstone.data.text.chat import read_messages, system_of, with_system
from bedstone.errors import BedstoneError
from bedstone.reading import shown

Text = str | list[dict[str, Any]]  # of a prompt or an answer: a text, or messages
TURN = "\n\nAssistant:"  # begins an answer in dialogues that are one text
MEND = "Mend it, or leave the row out."
LARGEST = 1e6  # of a margin, which is in the unit of rewards


@dataclass(frozen=True)
class Answered:
    """A prompt with its answers, as a row has them.

    Attributes:
        prompt: a text or messages; "" where there is none.
        answers: the chosen and the rejected one; or one that `label` judges.
        label: whether that one is desirable.
        margin: by how much the chosen one is better, in the unit of rewards.
        tools: JSON schemas of the functions that the assistant may call.
    """

    prompt: Text
    answers: tuple[Text, ...]
    label: bool = True
    margin: float = 0.0
    tools: list[Any] | None = None


# Reading rows.


def read_pair(rows: Dataset, row: int) -> Answered:
    """A row with `chosen` and `rejected`.

    Raises:
        BedstoneError: naming the row and column of what can't be learnt.
    """
    columns = rows.need("chosen"), rows.need("rejected")
    chosen, rejected = (_text(rows, row, column) for column in columns)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise rows.fault(row, columns[1], "and the chosen answer are of two forms", _TWO_FORMS)
    prompt = _prompt(rows, row)
    if prompt is None:
        split: Any = _common_text if isinstance(chosen, str) else _common_messages
        prompt, chosen, rejected = split(rows, row, chosen, rejected)
    prompt, answers = _joined(prompt, (chosen, rejected))
    for column, answer in zip(columns, answers, strict=True):
        _check_answer(rows, row, column, answer)
    if answers[0] == answers[1]:
        raise rows.fault(row, columns[0], "is equal to the rejected answer", "Leave the row out.")
    return Answered(prompt, answers, margin=_margin(rows, row), tools=_tools(rows, row))


def read_answer(rows: Dataset, row: int) -> Answered:
    """A row with `prompt` and `completion`; raises as `read_pair`."""
    column = rows.need("completion")
    answer = _text(rows, row, column)
    prompt = _prompt(rows, row)
    if prompt is None:
        raise BedstoneError(
            f"data {rows.name!r}: has no column for the prompt. Name it by data.columns.prompt."
        )
    prompt, answers = _joined(prompt, (answer,))
    _check_answer(rows, row, column, answers[0])
    return Answered(prompt, answers, tools=_tools(rows, row))


def read_judged(rows: Dataset, row: int) -> Answered:
    """A row with `label` besides; raises as `read_pair`."""
    judged = rows.need("label")
    found = read_answer(rows, row)
    label = rows.value(row, judged)
    known = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
    known |= {"1.0": True, "0.0": False}  # a column of numbers that has gaps
    key = label.strip().lower() if isinstance(label, str) else label
    if not isinstance(key, bool | int | float | str) or key not in known:
        what = f"is {shown(label)}; expected true or 1 (desirable), or false or 0"
        raise rows.fault(row, judged, what, MEND)
    return replace(found, label=known[key])


def read_prompt(rows: Dataset, row: int) -> tuple[Text, list[Any] | None]:
    """The prompt of a row that is to be answered, and the tools; raises as `read_pair`."""
    prompt = _prompt(rows, row)
    if isinstance(prompt, list) and prompt and prompt[-1]["role"] == "assistant":
        column = rows.column("prompt") or rows.need("messages")
        what = "ends with an answer of the assistant, so there is none to write"
        raise rows.fault(row, column, what, "Leave that answer out.")
    return prompt or "", _tools(rows, row)


_TWO_FORMS = "Give both as texts, or both as lists of messages."


def usable_pairs(rows: Dataset) -> Dataset:
    """The rows with a chosen and a rejected answer that can be learnt; broken ones are counted.

    Raises:
        BedstoneError: a column is missing, or too many rows are broken.
    """
    rows.need("chosen"), rows.need("rejected")
    return rows.usable(lambda row: read_pair(rows, row))


def usable_judged(rows: Dataset) -> Dataset:
    """Likewise of rows with judged answers; both judgements must be there."""
    rows.need("completion"), rows.need("label")
    rows = rows.usable(lambda row: read_judged(rows, row))
    found = {read_judged(rows, row).label for row in range(len(rows))}
    if len(found) == 1:
        one, other = ("desirable", "undesirable")[:: 1 if True in found else -1]
        raise BedstoneError(
            f"data {rows.name!r}: the column {rows.need('label')!r} calls all {len(rows):,} rows "
            f"{one}; KTO learns from both kinds. Add {other} ones, or train on pairs of a chosen "
            "and a rejected answer (method: dpo)."
        )
    return rows


def _text(rows: Dataset, row: int, column: str) -> Text:
    """A cell as a text or as messages: a list of them, one alone, or a JSON of them."""
    value: Any = rows.value(row, column)
    if isinstance(value, str):
        read = _json_messages(value)
        if read is None:
            return value if not value.strip() else rows.text(row, column)
        value = read
    value = [value] if isinstance(value, Mapping) else value
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        what = f"is {shown(value)}; expected a text or a list of messages"
        raise rows.fault(row, column, what, MEND)
    if not value:
        return []
    return read_messages(list(value), f"{rows.where(row)}: column {column!r}")


def _json_messages(text: str) -> list[Any] | None:
    """The messages that a text holds as JSON, one alone or a list; None where it is only a text."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    found = [found] if isinstance(found, Mapping) else found
    if not isinstance(found, list) or not found:
        return None
    held = all(isinstance(each, Mapping) and ("role" in each or "from" in each) for each in found)
    return found if held else None


PROMPTS = ("prompt", "messages", "instruction", "question")  # columns that may hold a prompt


def _prompt(rows: Dataset, row: int) -> Text | None:
    """The prompt of a row; None where there is no column of prompts.

    Behind an instruction stands its `input`; what a column `system` says stands before, and the
    prompt is then messages.
    """
    part = next((each for each in PROMPTS if rows.column(each)), None)
    if part is None:
        return None
    column = rows.need(part)
    empty = rows.rows[row].get(column) in (None, "")
    prompt: Text = "" if empty else _text(rows, row, column)
    if part == "instruction" and isinstance(prompt, str) and (more := rows.column("input")):
        given = rows.rows[row].get(more) or ""
        prompt = f"{prompt}\n\n{given}".strip() if isinstance(given, str) else prompt
    if not (system := system_of(rows, row)):
        return prompt
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}] if prompt.strip() else []
    return with_system(prompt, system)


def _joined(prompt: Text, answers: tuple[Text, ...]) -> tuple[Text, tuple[Text, ...]]:
    """Prompt and answers of one form: where one is of messages, all are."""
    if isinstance(prompt, str) and all(isinstance(each, str) for each in answers):
        return prompt, answers
    said = prompt
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}] if prompt.strip() else []
    found = []
    for answer in answers:
        if isinstance(answer, str):
            answer = [{"role": "assistant", "content": answer}] if answer.strip() else []
        begins = answer[: len(prompt)] == prompt or (
            isinstance(said, str) and answer[:1] and answer[0].get("content") == said
        )
        found.append(answer[len(prompt) :] if prompt and begins else answer)
    return prompt, tuple(found)


def _common_text(rows: Dataset, row: int, chosen: str, rejected: str) -> tuple[str, str, str]:
    """Prompt and answers of two texts that begin with the prompt.

    Dialogues with turns of `Assistant:` are cut before the last answer of each, others at the last
    space of what both begin with.
    """
    if TURN in chosen and TURN in rejected:
        (prompt, _, one), (theirs, _, other) = (t.rpartition(TURN) for t in (chosen, rejected))
        if prompt != theirs:
            raise _differs(rows, row, _shared(prompt, theirs))
        return prompt + TURN, one, other
    found = re.match(r".*(?=\s)", chosen[: _shared(chosen, rejected)], re.DOTALL)
    prompt = found[0] if found else ""
    return prompt, chosen[len(prompt) :], rejected[len(prompt) :]


def _common_messages(
    rows: Dataset, row: int, chosen: list[Any], rejected: list[Any]
) -> tuple[list[Any], list[Any], list[Any]]:
    at = _shared(chosen, rejected)
    if chosen == rejected:
        at -= 1
    for rest in (chosen[at:], rejected[at:]):
        if rest and rest[0]["role"] != "assistant":
            raise _differs(rows, row, at, "message")
    return chosen[:at], chosen[at:], rejected[at:]


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _differs(rows: Dataset, row: int, at: int, what: str = "character") -> BedstoneError:
    return rows.fault(
        row,
        rows.need("rejected"),
        f"answers another prompt than the chosen answer: they differ from {what} {at + 1:,} on",
        "Give both answers to one prompt, or leave the row out.",
    )


def _check_answer(rows: Dataset, row: int, column: str, answer: Text) -> None:
    """Raises BedstoneError where there is nothing to learn."""
    if isinstance(answer, str):
        if not answer.strip():
            raise rows.fault(row, column, "has an empty answer", MEND)
        return
    own = [each for each in answer if each["role"] == "assistant"]
    if not answer or answer[0]["role"] != "assistant" or answer[-1]["role"] != "assistant":
        what = "has no answer of the assistant after the prompt, or goes on after it"
        raise rows.fault(row, column, what, MEND)
    if not any((each.get("content") or "").strip() or each.get("tool_calls") for each in own):
        raise rows.fault(row, column, "has an empty answer", MEND)


def _margin(rows: Dataset, row: int) -> float:
    column = rows.column("margin")
    if column is None:
        return 0.0
    value = rows.value(row, column)
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not abs(found) <= LARGEST:  # nan too
        what = f"is {shown(value)}; expected a number from -{LARGEST:g} to {LARGEST:g}"
        raise rows.fault(row, column, what, MEND)
    return found


def _tools(rows: Dataset, row: int) -> list[Any] | None:
    column = rows.column("tools")
    value = rows.rows[row].get(column) if column else None
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError:
            value = 0
    if value is None or value == "":
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(v, Mapping) for v in value):
        what = f"is {shown(value)}; expected a list of JSON schemas of functions"
        raise rows.fault(row, str(column), what, MEND)
    return list(value) or None
