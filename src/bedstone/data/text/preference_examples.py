"""Preferences as examples: prompts and answers tokenised, cut to fit, and in batches.

The prompt is encoded apart from the answer: it has the ids that generation is fed.

Shapes: P rows of a batch, n = 2 P windows, N tokens, M learnt tokens of answers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bedstone.data.dataset import Dataset
from bedstone.data.stream import Stream, entries
from bedstone.data.text.chat import learnt_chats, render
from bedstone.data.text.encode import Input, completion_input, frame_of, pair_input, read_texts
from bedstone.data.text.examples import Examples, Ragged, Targets
from bedstone.data.text.packing import Packed, PackedBatch, ReadStates, lay, moved
from bedstone.data.text.preferences import Answered, Text, read_answer, read_pair
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError

MOST_LOST = 0.5  # share of rows of which truncation may leave nothing


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
    cuts = Cuts()
    found = read_answer(Dataset([{"prompt": "", **value}], "input"), 0)
    how: Any = {"causal": causal, "scored": True}
    read = encode_answer(tokenizer, found.prompt, found.answers[0], found.tools, **how)
    return fitted(tokenizer, [read], limit, causal, cuts)[0], cuts


# Examples and batches.


@dataclass(frozen=True)
class PreferenceBatch(ReadStates, PackedBatch):
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

    @property
    def row_count(self) -> int:
        return len(self.labels)

    def pick(self, rows: np.ndarray) -> "PreferenceBatch":
        windows = np.r_[rows, rows + len(self.labels)]
        picked, places = self.rows.pick(windows)
        read, kept = moved(self.read, places, self.items)
        return replace(
            self,
            rows=picked,
            read=read,
            targets=self.targets[kept] if len(self.targets) else self.targets,
            owners=torch.from_numpy(np.searchsorted(windows, self.owners[kept].numpy())),
            reference=entries(self.reference, windows),
            labels=entries(self.labels, rows),
            margins=entries(self.margins, rows),
            target_count=float(len(rows)),
            places=entries(self.places, rows),
        )

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
            made = encoded[id(rows.rows[row])][1]
            if self._paired and made[0] == made[1]:
                what = "has the tokens of the rejected answer: the tokenizer reads both as one text"
                raise rows.fault(row, rows.need("chosen"), what, "Leave the row out.")

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
