"""Prompts and what is to follow them, or texts to be learnt as they are, for decoders.

Only the completion and the end token are learnt. The wording of Alpaca's prompts is that of Taori
et al., 2023 (https://github.com/tatsu-lab/stanford_alpaca).
"""

from collections.abc import Sequence

import numpy as np

from bedstone.data.example_rows import Examples, Targets
from bedstone.data.inputs import Input, completion_input
from bedstone.data.labelled import LabelledRows
from bedstone.data.tokenizer import Tokenizer
from bedstone.errors import BedstoneError

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)


class CompletionExamples(Examples):
    """A row's `prompt` and `completion`, or Alpaca's `instruction`, `input` and `output`, or a
    `text` alone.

    What is longer than a row goes on in windows, each with `stride` tokens of the one before; a
    token is learnt once, and a window without any to learn is left out.

    Raises:
        BedstoneError: naming the file, row and column of what can't be learnt.
    """

    kind = "language"

    def __init__(
        self, rows: LabelledRows, tokenizer: Tokenizer, *, limit: int, stride: int = 0
    ) -> None:
        if not 0 <= stride < limit - 1:
            raise BedstoneError(
                f"stride: {stride:,} tokens shared between windows leave nothing new in rows of "
                f"{limit:,}. Lower it, or raise the limit."
            )
        self.prompts, self.completions = find_prompts(rows)
        self.actual = self.completions
        self._learnt: list[tuple[int, int]] = []  # of each window: first target, end
        super().__init__(rows, tokenizer, limit=limit, stride=stride)
        self._spans = np.array(self._learnt, dtype=np.int64)

    def _inputs(self, numbers: Sequence[int]) -> list[list[Input]]:
        return [self._cut(number) for number in numbers]

    def _keep(self, row: int, windows: list[Input]) -> None:
        for number, window in enumerate(windows):
            # nothing foretells the first token of a text
            first = max(window.sources.index(1), 1) if number == 0 else max(self.stride, 1)
            self._learnt.append((first, len(window)))

    def _cut(self, number: int) -> list[Input]:
        """A row's windows that have something to learn."""
        row, first = completion_input(
            self.tokenizer, self.prompts[number], self.completions[number]
        )
        windows, start = [], 0
        while True:
            end = min(start + self.limit, len(row))
            if first < end:
                windows.append(row.cut(start, end))
            if end == len(row):
                return windows
            # at least one, to foretell the first new token
            start = end - max(self.stride, 1)

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


def find_prompts(rows: LabelledRows) -> tuple[list[str], list[str]]:
    """The prompt and the completion of each row.

    Raises:
        BedstoneError: the rows have no such columns, or one is empty.
    """
    if rows.column("completion"):
        return rows.texts(rows.need("prompt"), empty=True), rows.texts(rows.need("completion"))
    if rows.column("instruction"):
        told, given = rows.texts(rows.need("instruction")), rows.column("input")
        inputs = rows.texts(given, empty=True) if given else [""] * len(rows)
        prompts = [alpaca_prompt(*each) for each in zip(told, inputs, strict=True)]
        return prompts, rows.texts(rows.need("output"))
    texts = rows.texts(rows.need("text"))
    return [""] * len(texts), texts


def alpaca_prompt(instruction: str, given: str = "") -> str:
    """An instruction, with what it is about where that is given, as a prompt."""
    form = ALPACA_INPUT if given.strip() else ALPACA
    return form.format(instruction=instruction, input=given)
