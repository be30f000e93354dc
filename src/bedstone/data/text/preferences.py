"""Preferences: prompts with a chosen and a rejected answer, or with one answer that is judged.

Columns are those of TRL: `prompt`, `chosen` and `rejected`, with `margin`; or `prompt`,
`completion` and `label`. Each is a text or a list of messages. Without a `prompt` it is what both
answers begin with. The prompt is encoded apart from the answer: it has the ids that generation is
fed.

Shapes: P rows of a batch, n = 2 P windows, N tokens, M learnt tokens of answers.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bedstone.data.dataset import Dataset
from bedstone.data.stream import Stream
from bedstone.data.text.chat import learnt_chats, read_messages, render
from bedstone.data.text.encode import Input, completion_input, frame_of, pair_input, read_texts
from bedstone.data.text.examples import Examples, Ragged, Targets
from bedstone.data.text.packing import Packed, PackedBatch, lay
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.reading import shown

Text = str | list[dict[str, Any]]  # of a prompt or an answer: a text, or messages
TURN = "\n\nAssistant:"  # begins an answer in dialogues that are one text
MOST_LOST = 0.5  # share of rows of which truncation may leave nothing
MEND = "Mend it, or leave the row out."


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


def read_judged(rows: Dataset, row: int) -> Answered:
    """A row with `completion` and `label`; raises as `read_pair`."""
    column, judged = rows.need("completion"), rows.need("label")
    answer = _text(rows, row, column)
    prompt = _prompt(rows, row)
    if prompt is None:
        raise BedstoneError(
            f"data {rows.name!r}: has no column for the prompt. Name it by data.columns.prompt."
        )
    prompt, (answer,) = _joined(prompt, (answer,))
    _check_answer(rows, row, column, answer)
    label = rows.value(row, judged)
    known = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
    key = label.strip().lower() if isinstance(label, str) else label
    if not isinstance(key, bool | int | str) or key not in known:
        what = f"is {shown(label)}; expected true (desirable) or false"
        raise rows.fault(row, judged, what, MEND)
    return Answered(prompt, (answer,), label=known[key], tools=_tools(rows, row))


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
        if not value.lstrip().startswith("[{") or '"role"' not in value:
            return value if not value.strip() else rows.text(row, column)
        try:
            value = json.loads(value)
        except ValueError:
            return rows.text(row, column)
    value = [value] if isinstance(value, Mapping) else value
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        what = f"is {shown(value)}; expected a text or a list of messages"
        raise rows.fault(row, column, what, MEND)
    if not value:
        return []
    return read_messages(list(value), f"{rows.where(row)}: column {column!r}")


def _prompt(rows: Dataset, row: int) -> Text | None:
    """The prompt of a row; None where there is no column of prompts."""
    column = rows.column("prompt") or rows.column("messages")
    if column is None:
        return None
    if rows.rows[row].get(column) in (None, ""):
        return ""
    return _text(rows, row, column)


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
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise rows.fault(row, column, f"is {shown(value)}; expected a number", MEND)
    return float(value)


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


# Encoding.


@dataclass(frozen=True)
class EncodedAnswer:
    """A prompt and an answer to it as tokens, each without what encoders set around them.

    Attributes:
        prompt, answer: ids.
        learnt: which ids of the answer the assistant wrote.
    """

    prompt: list[int]
    answer: list[int]
    learnt: list[bool]


def pad_apart(tokenizer: Tokenizer) -> None:
    """Makes a special token that ends no text the one for padding, where the end token is that.

    Published networks score a row at its last token that is no padding, so an end token that pads
    would not be read. A tokenizer without another special token stays as it is.
    """
    if tokenizer.pad_id not in (None, tokenizer.eos_id):
        return
    template = tokenizer.chat_template or ""
    ends = {tokenizer.eos_id, tokenizer.bos_id}
    found = {name: tokenizer.backend.token_to_id(name) for name in tokenizer.hidden_names}
    free = [name for name, number in found.items() if number not in ends and name not in template]
    if free:
        tokenizer.settings["pad_token"] = min(free, key=lambda name: found[name] or 0)


def ends_answers(tokenizer: Tokenizer) -> bool:
    """Whether the end token stands after an answer that is scored; see `pad_apart`."""
    return tokenizer.eos_id is not None and tokenizer.pad_id not in (None, tokenizer.eos_id)


def encode_answer(
    tokenizer: Tokenizer,
    prompt: Text,
    answer: Text,
    tools: Sequence[Any] | None = None,
    *,
    causal: bool = True,
    scored: bool = False,
) -> EncodedAnswer:
    """A prompt and an answer as tokens.

    Args:
        causal: whether a decoder reads them; an encoder reads texts alone.
        scored: whether a head reads the row, and no token is predicted.

    Raises:
        BedstoneError: a text is broken, or the chat template can't write the messages.
    """
    if not isinstance(answer, str):
        if not causal:
            raise BedstoneError(
                "messages: an encoder has no chat template that writes them; give prompt and "
                "answer as texts."
            )
        assert not isinstance(prompt, str)
        found = _chat(tokenizer, prompt, answer, tools)
        if scored and not ends_answers(tokenizer) and found.answer[-1] == tokenizer.eos_id:
            found = replace(found, answer=found.answer[:-1], learnt=found.learnt[:-1])
        return found
    assert isinstance(prompt, str)
    if causal and (not scored or ends_answers(tokenizer)):
        row, first = completion_input(tokenizer, prompt, answer)
        return EncodedAnswer(row.ids[:first], row.ids[first:], [True] * (len(row) - first))
    (read,) = read_texts(tokenizer, [answer], False, "answer")
    before = tokenizer.encode(prompt) if prompt else []
    if causal:
        before = [*frame_of(tokenizer, 1).before[0], *before]
    return EncodedAnswer(list(before), read.ids, [True] * len(read))


def _chat(
    tokenizer: Tokenizer,
    prompt: list[dict[str, Any]],
    answer: list[dict[str, Any]],
    tools: Sequence[Any] | None,
) -> EncodedAnswer:
    found = learnt_chats(tokenizer, [*prompt, *answer], tools=tools, first=len(prompt))
    if len(found) > 1:
        raise BedstoneError(
            "messages: the chat template writes an earlier answer otherwise once others follow, so "
            "an answer of several turns is not one text. Give the last turn alone as the answer, "
            "and those before it in the prompt."
        )
    (chat,) = found
    first = chat.trained.index(True)
    last = len(chat.ids) - chat.trained[::-1].index(True)
    before, ids = chat.ids[:first], chat.ids[first:last]
    if prompt:  # a token may span the end of the prompt and the beginning of the answer
        cue = render(tokenizer, prompt, tools=tools)
        start, end = chat.offsets[first]
        if before != cue.ids and start < len(cue) < end and chat.text.startswith(cue):
            piece = chat.text[len(cue) : end]
            own = tokenizer.plain.encode(piece, add_special_tokens=False).ids
            ids, before = [*own, *ids[1:]], cue.ids
            return EncodedAnswer(before, ids, [*[True] * len(own), *chat.trained[first + 1 : last]])
    return EncodedAnswer(before, ids, chat.trained[first:last])


@dataclass
class Cuts:
    """What truncation took of rows.

    Attributes:
        prompts, tokens: how many prompts lost their beginning, and tokens of them.
        answers: how many answers lost their end.
        lost: places of the rows of which nothing was left to compare.
    """

    prompts: int = 0
    tokens: int = 0
    answers: int = 0
    lost: list[str] = field(default_factory=list)

    def note(self, limit: int) -> str:
        """What was cut, in a line; empty where nothing was."""
        found = []
        if self.prompts:
            found.append(
                f"of {self.prompts:,} long prompts the first tokens were cut, {self.tokens:,} in "
                "all"
            )
        if self.answers:
            found.append(f"{self.answers:,} answers lost their end")
        if self.lost:
            found.append(
                f"{len(self.lost):,} rows were left out, their answers being equal as far as they "
                f"fit, such as {self.lost[0]}"
            )
        return f"rows of {limit:,} tokens: {'; '.join(found)}" if found else ""


def fitted(
    tokenizer: Tokenizer, answers: Sequence[EncodedAnswer], limit: int, causal: bool, cuts: Cuts
) -> list[Input]:
    """Answers to one prompt as rows of at most `limit` tokens.

    Of a long prompt the end is kept, as much for each of the answers: what the longest of them
    leaves, and no less than a quarter of a row. What is longer then loses its end.
    """
    prompt = answers[0].prompt
    around = 0 if causal else len(pair_input(tokenizer, [], [] if prompt else None)[0])
    room = limit - around
    if room < 2:
        raise BedstoneError(
            f"limit: rows of {limit:,} tokens leave no room for a prompt and an answer. Raise it."
        )
    longest = max(len(each.answer) for each in answers)
    kept = min(len(prompt), max(room - longest, room // 4, 1))
    cuts.prompts += kept < len(prompt)
    cuts.tokens += len(prompt) - kept
    rows = []
    for each in answers:
        own = each.answer[: room - kept]
        cuts.answers += len(own) < len(each.answer)
        before = each.prompt[len(each.prompt) - kept :] if kept else []
        if causal:
            ids, types = [*before, *own], [0] * (len(before) + len(own))
        elif before:
            ids, types = pair_input(tokenizer, before, own)
        else:
            ids, types = pair_input(tokenizer, own)
        learnt = [1 if one else 0 for one in each.learnt[: len(own)]]
        marks = [*[0] * (len(ids) - len(own)), *learnt]  # 1 where a token is learnt; of decoders
        rows.append(Input(ids, types, [(0, 0)] * len(ids), list(marks), [None] * len(ids)))
    return rows


def scored_input(
    tokenizer: Tokenizer, value: Mapping[str, Any], limit: int, *, causal: bool
) -> tuple[Input, Cuts]:
    """A prompt with an answer as a reward model reads them, and what was cut.

    Args:
        value: `prompt`, `completion` and maybe `tools`, as rows have them.

    Raises:
        BedstoneError: one is missing, empty, or can't be written.
    """
    rows, cuts = Dataset([dict(value)], "input"), Cuts()
    prompt, (answer,) = _joined(_prompt(rows, 0) or "", (_text(rows, 0, rows.need("completion")),))
    _check_answer(rows, 0, "completion", answer)
    read = encode_answer(tokenizer, prompt, answer, _tools(rows, 0), causal=causal, scored=True)
    return fitted(tokenizer, [read], limit, causal, cuts)[0], cuts


# Examples and batches.


@dataclass(frozen=True)
class PreferenceBatch(PackedBatch):
    """Answers to some prompts.

    Attributes:
        rows: n windows laid end to end, N tokens: the chosen answers of all rows, then the
            rejected ones; or all answers, then to each prompt the answer of another row.
        read: (M,) places in 0..N-1 before each token that is learnt; of scores, (n,) the place that
            the head reads.
        targets: (M,) the tokens that are learnt.
        owners: (M,) which window each is of.
        reference: (n,) log-probabilities of the answers by the reference; None where there is none.
        labels: (P,) bool, whether the answer is desirable.
        margins: (P,) fp32.
        target_count: P.
    """

    rows: Packed
    read: Tensor
    targets: Tensor
    owners: Tensor
    reference: Tensor | None
    labels: Tensor
    margins: Tensor
    target_count: float
    number: int
    places: list[str]

    unit: ClassVar[str] = "tokens"

    def states(self, network: Any) -> Tensor:
        """The states that are read, (M, D)."""
        found: Tensor = network.packed_states(self.rows, self.read)
        return found

    def half(self, number: int) -> "PreferenceBatch":
        """The first windows of all rows alone (0), or the second (1)."""
        count = len(self.rows.lengths) // 2
        first = self.rows.starts[number * count]
        mine = (self.owners >= count) == bool(number)
        known = self.reference
        return replace(
            self,
            rows=self.rows.part(number * count, (number + 1) * count),
            read=self.read[mine] - first,
            targets=self.targets[mine] if len(self.targets) else self.targets,
            owners=self.owners[mine] - number * count,
            reference=None if known is None else known.chunk(2)[number],
        )


class PreferenceExamples(Examples):
    """Rows with two windows each: a chosen and a rejected answer; or an answer and, of KTO's
    estimate of the divergence, the answer of the row before.

    Attributes:
        labels_of, margins: of each row.
        reference: (2 rows,) log-probabilities by the reference, once they are known.
        cuts: what truncation took.
        causal: whether a decoder reads them.
        scored: whether a head reads each window, and no token is predicted.
    """

    kind = "preferences"

    def __init__(
        self,
        rows: Dataset,
        tokenizer: Tokenizer,
        *,
        limit: int,
        read: Callable[[Dataset, int], Answered] = read_pair,
        causal: bool = True,
        scored: bool = False,
    ) -> None:
        self.cuts, self.causal, self.scored = Cuts(), causal, scored
        self.reference: np.ndarray | None = None
        self._marks = Ragged()
        self._paired = read is read_pair
        encoded: dict[int, tuple[Answered, list[EncodedAnswer]]] = {}

        def encode(row: int) -> None:
            found = read(rows, row)
            how: dict[str, Any] = {"causal": causal, "scored": scored}
            try:
                encoded[id(rows.rows[row])] = (
                    found,
                    [
                        encode_answer(tokenizer, found.prompt, each, found.tools, **how)
                        for each in found.answers
                    ],
                )
            except BedstoneError as error:
                raise BedstoneError(f"{rows.where(row)}: {error}") from error

        usable = rows.usable(encode)
        windows: dict[int, list[Input]] = {}
        for row, each in enumerate(usable.rows):
            made = encoded[id(each)][1]
            fit = fitted(tokenizer, made, limit, causal, self.cuts)
            if not self._paired:
                theirs = encoded[id(usable.rows[row - 1])][1][0]
                other = EncodedAnswer(made[0].prompt, theirs.answer, theirs.learnt)
                fit += fitted(tokenizer, [other], limit, causal, Cuts())
            if self._paired and fit[0].ids == fit[1].ids:
                self.cuts.lost.append(usable.where(row))
            else:
                windows[row] = fit
        if len(self.cuts.lost) > MOST_LOST * len(usable):
            raise BedstoneError(
                f"data {rows.name!r}: of {len(self.cuts.lost):,} of {len(usable):,} rows both "
                f"answers are equal as far as they fit into {limit:,} tokens, the first "
                f"{self.cuts.lost[0]}. Raise limit, or shorten the rows."
            )
        kept = usable.pick(list(windows)) if len(windows) < len(usable) else usable
        self._windows = list(windows.values())
        self.judged = [encoded[id(each)][0] for each in kept.rows]
        self.actual = [each.label for each in self.judged]
        self.margins = np.array([each.margin for each in self.judged], np.float32)
        super().__init__(kept, tokenizer, limit=limit)
        self._windows = []

    def _inputs(self, numbers: Sequence[int]) -> list[list[Input]]:
        return [self._windows[number] for number in numbers]

    def _keep(self, row: int, windows: list[Input]) -> None:
        for window in windows:
            marks = enumerate(window.sources)
            # nothing foretells the first token of a text
            self._marks.add([place for place, mark in marks if mark and place])

    def describe(self) -> str:
        text = f"{len(self.rows):,} rows, {len(self.ids):,} tokens, longest {self.lengths.max():,}"
        return text + self.rows.faults.left_out("; ")

    def counts(self) -> np.ndarray:
        """(windows,) tokens of the answer of each window that are learnt or, of scores, read."""
        found = np.zeros(len(self), np.int64)
        _, owners = self._marks.take(np.arange(len(self)))
        np.add.at(found, owners, 1)
        return found

    def arrays(self) -> list[np.ndarray]:
        """What tells these windows from others: tokens, and which of them are learnt."""
        return [self.ids, self.lengths, *self._marks.take(np.arange(len(self)))]

    def _targets(
        self,
        windows: np.ndarray,
        starts: np.ndarray,
        reads: np.ndarray,
        weights: np.ndarray | None,
    ) -> Targets:
        if self.scored:
            return Targets(reads, np.arange(len(windows)), np.zeros(0, np.int64))
        (places,), owners = self._marks.take(windows)
        targets = self.ids[self.starts[windows][owners] + places].astype(np.int64)
        return Targets(starts[owners] + places - 1, owners, targets)

    def pairs(self, rows: np.ndarray, number: int = 0, *, reads: str = "last") -> PreferenceBatch:
        """The windows of some rows, two each, laid end to end.

        Args:
            reads: first or last: which token a head reads.
        """
        windows = np.concatenate([2 * rows, 2 * rows + 1])
        lengths = self.lengths[windows]
        ends = np.cumsum(lengths)
        starts = ends - lengths
        places = np.repeat(self.starts[windows] - starts, lengths) + np.arange(ends[-1])
        made = self._targets(windows, starts, ends - 1 if reads == "last" else starts, None)
        known = None if self.reference is None else torch.from_numpy(self.reference[windows])
        return PreferenceBatch(
            rows=lay(self.ids[places], self.types[places], lengths),
            read=torch.from_numpy(made.read),
            targets=torch.from_numpy(made.targets),
            owners=torch.from_numpy(made.owners),
            reference=known,
            labels=torch.tensor([bool(self.actual[row]) for row in rows]),
            margins=torch.from_numpy(self.margins[rows]),
            target_count=len(rows),
            number=number,
            places=[self.rows.where(int(row)) for row in rows],
        )


@dataclass(frozen=True)
class PreferenceCollate:
    """Makes a `PreferenceBatch` of some rows."""

    examples: PreferenceExamples
    reads: str

    def __call__(
        self, rows: np.ndarray, random: np.random.Generator, number: int
    ) -> PreferenceBatch:
        return self.examples.pairs(rows, number, reads=self.reads)


def preference_stream(
    examples: PreferenceExamples, batch_size: int, *, reads: str = "last", seed: int = 0
) -> Stream[PreferenceBatch]:
    """The endless stream of `PreferenceBatch`: each row once an epoch, the last batch smaller."""
    return Stream(
        len(examples.rows),
        PreferenceCollate(examples, reads),
        batch_size,
        seed=seed,
        workers=0,
        whole=True,
        identity={"rows": len(examples.rows), "tokens": examples.token_count},
    )


def preference_batches(
    examples: PreferenceExamples, batch_size: int, *, reads: str = "last"
) -> list[PreferenceBatch]:
    """All rows in their order, for measuring."""
    starts = range(0, len(examples.rows), batch_size)
    chosen = (np.arange(at, min(at + batch_size, len(examples.rows))) for at in starts)
    return [examples.pairs(rows, number, reads=reads) for number, rows in enumerate(chosen)]
