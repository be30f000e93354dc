"""Prompts with completions, or texts alone, as examples for decoders.

Only the completion and the end token are learnt.
"""

from collections.abc import Sequence

import numpy as np

from bedstone.data.dataset import Dataset
from bedstone.data.text.encode import Input, completion_input
from bedstone.data.text.examples import Examples, Targets
from bedstone.data.text.instructions import (
    alpaca_template,
    has_own_template,
    instruction_prompts,
)
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError


class CompletionExamples(Examples):
    """A row's `prompt` and `completion`, or Alpaca's `instruction`, `input` and `output`, or a
    `text` alone.

    What is longer than a row goes on in windows, each with `stride` tokens of the one before; a
    token is learnt once, and a window without any to learn is left out. Of a prompt that leaves too
    little room, the end is kept that fits before the completion, or before its first half row.

    Args:
        keep_ends: whether prompts are cut so; runs of earlier versions cut them anywhere.
        own_template: whether instructions are written by the tokenizer's own chat template, where
            it has one; runs of earlier versions take Alpaca's form always.

    Raises:
        BedstoneError: naming the file, row and column of what can't be learnt.
    """

    kind = "language"

    def __init__(
        self,
        rows: Dataset,
        tokenizer: Tokenizer,
        *,
        limit: int,
        stride: int = 0,
        keep_ends: bool = True,
        own_template: bool = True,
    ) -> None:
        self._keep_ends, self._cut_off = keep_ends, [0, 0]  # prompts, and tokens of them
        if not 0 <= stride < limit - 1:
            raise BedstoneError(
                f"stride: {stride:,} tokens shared between windows leave nothing new in rows of "
                f"{limit:,}. Lower it, or raise the limit."
            )
        form = tokenizer if own_template else None
        self.prompts, self.completions = find_prompts(rows, form)
        self.chat_template = ""  # that makes the learnt prompt of an instruction
        instructed = not rows.column("completion") and rows.column("instruction")
        if instructed and not (own_template and has_own_template(tokenizer)):
            self.chat_template = alpaca_template(tokenizer)
        self.actual = self.completions
        self._learnt: list[tuple[int, int]] = []  # of each window: first target, end
        super().__init__(rows, tokenizer, limit=limit, stride=stride)
        self._spans = np.array(self._learnt, dtype=np.int64)

    @property
    def trained_count(self) -> int:
        """Tokens that are learnt."""
        return int((self._spans[:, 1] - self._spans[:, 0]).sum())

    def _inputs(self, numbers: Sequence[int]) -> list[list[Input]]:
        return [self._cut(number) for number in numbers]

    def _keep(self, row: int, windows: list[Input]) -> None:
        for number, window in enumerate(windows):
            # nothing foretells the first token of a text
            first = max(window.sources.index(1), 1) if number == 0 else max(self.stride, 1)
            self._learnt.append((first, len(window)))

    def _cut(self, number: int) -> list[Input]:
        """A row's windows that have targets."""
        row, first = completion_input(
            self.tokenizer, self.prompts[number], self.completions[number]
        )
        windows, start = [], 0
        if self._keep_ends and len(row) > self.limit and self.prompts[number]:
            room = self.limit - min(len(row) - first, self.limit // 2)
            start = max(first - room, 0)
            self._cut_off[0] += start > 0
            self._cut_off[1] += start
        while True:
            end = min(start + self.limit, len(row))
            if first < end:
                windows.append(row.cut(start, end))
            if end == len(row):
                return windows
            # at least one, to foretell the first new token
            start = end - max(self.stride, 1)

    def describe(self) -> str:
        text, (prompts, tokens) = super().describe(), self._cut_off
        if prompts:
            text += f"; of {prompts:,} long prompts the first tokens were cut, {tokens:,} in all"
        return text

    def _targets(
        self,
        windows: np.ndarray,
        starts: np.ndarray,
        reads: np.ndarray,
        weights: np.ndarray | None,
    ) -> Targets:
        first, end = self._spans[windows].T
        counts = end - first
        owners = np.repeat(np.arange(len(windows)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        places = within + first[owners]
        targets = self.ids[self.starts[windows][owners] + places].astype(np.int64)
        return Targets(starts[owners] + places - 1, owners, targets)


def find_prompts(rows: Dataset, tokenizer: Tokenizer | None = None) -> tuple[list[str], list[str]]:
    """The prompt and the completion of each row.

    Args:
        tokenizer: whose chat template writes instructions; None takes Alpaca's form.

    Raises:
        BedstoneError: the rows have no such columns, or one is empty.
    """
    if rows.column("completion"):
        return rows.texts(rows.need("prompt"), empty=True), rows.texts(rows.need("completion"))
    if rows.column("instruction"):
        tasks, given = rows.texts(rows.need("instruction")), rows.column("input")
        inputs = rows.texts(given, empty=True) if given else [""] * len(rows)
        return instruction_prompts(tokenizer, tasks, inputs), rows.texts(rows.need("output"))
    texts = rows.texts(rows.need("text"))
    return [""] * len(texts), texts
