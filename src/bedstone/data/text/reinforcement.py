"""Prompts to be answered by a policy that learns from rewards, and batches of sampled answers.

A row has a `prompt`, a text or messages; its other columns go to the rewards. Sampled tokens are
never read again as text: what is learnt from are the ids that were drawn.

Shapes: n answers, T tokens of the longest, M tokens of all answers, laid end to end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bedstone.data.dataset import Dataset
from bedstone.data.text.chat import render
from bedstone.data.text.encode import completion_input
from bedstone.data.text.packing import Packed, PackedBatch, ReadStates, lay
from bedstone.data.text.preferences import Text, read_prompt
from bedstone.data.text.tokenizer import CONTEXT, Tokenizer
from bedstone.errors import BedstoneError


class Prompts:
    """The prompts of rows as tokens.

    Args:
        room: tokens that a prompt may have.
        tools: JSON schemas of functions that all answers may call, beside those of a row.

    Attributes:
        rows: those whose prompts can be answered.
        ids: tokens of each prompt.
        texts: each prompt as its row has it.
        columns: names of the other columns, which rewards are given.

    Raises:
        BedstoneError: there is no column of prompts, or too many rows are broken.
    """

    def __init__(
        self, rows: Dataset, tokenizer: Tokenizer, *, room: int, tools: Sequence[Any] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self._ends: dict[int, str] = {}  # what prompts end with, as text
        found: dict[int, tuple[Text, list[int]]] = {}
        if not (rows.column("prompt") or rows.column("messages")):
            rows.need("prompt")

        def encode(row: int) -> None:
            prompt, own = read_prompt(rows, row)
            column = rows.column("prompt") or rows.need("messages")
            if tools and isinstance(prompt, str):
                what = "is a text, and functions are called in conversations"
                raise rows.fault(row, column, what, "Give it as a list of messages.")
            try:
                ids = prompt_ids(tokenizer, prompt, [*(own or ()), *tools] or None)
            except BedstoneError as error:
                raise BedstoneError(f"{rows.where(row)}: {error}") from error
            if not ids:
                what = "is empty, and the tokenizer sets nothing before a text"
                raise rows.fault(row, column, what, "Fill it in, or leave the row out.")
            if len(ids) > room:
                what = f"has {len(ids):,} tokens; {room:,} fit beside the longest answer"
                advice = "Shorten it, lower max_new_tokens, or leave the row out."
                raise rows.fault(row, column, what, advice)
            found[id(rows.rows[row])] = prompt, ids

        self.rows = rows.usable(encode)
        made = [found[id(each)] for each in self.rows.rows]
        self.texts, self.ids = [text for text, _ in made], [ids for _, ids in made]
        used = {self.rows.column("prompt") or self.rows.column("messages")}
        names = dict.fromkeys(key for row in self.rows.rows for key in row)
        self.columns = [str(name) for name in names if name not in used]

    def __len__(self) -> int:
        return len(self.ids)

    def values(self, rows: Sequence[int]) -> dict[str, list[Any]]:
        """The other columns of some rows, by name; None where a row lacks one."""
        return {name: [self.rows.rows[row].get(name) for row in rows] for name in self.columns}

    def all_values(self) -> tuple[dict[str, list[Any]], list[str]]:
        """The other columns of all rows, and where each row is from."""
        every = range(len(self))
        return self.values(every), [self.rows.where(row) for row in every]

    def written(self, row: int, ids: Sequence[int]) -> str:
        """An answer to a row's prompt as text, without special tokens."""
        before = self.ids[row][-CONTEXT:]
        if row not in self._ends:
            self._ends[row] = self.tokenizer.decode(before)
        end = self._ends[row]
        whole = self.tokenizer.decode([*before, *ids])
        if end.endswith("\ufffd") or not whole.startswith(end):  # the prompt ends in a character
            return self.tokenizer.continuation(before, ids)
        return whole[len(end) :]

    def describe(self) -> str:
        """How many there are, in a line."""
        longest = max(map(len, self.ids))
        text = f"{len(self):,} prompts, {sum(map(len, self.ids)):,} tokens, longest {longest:,}"
        return text + self.rows.faults.left_out("; ")


def prompt_ids(tokenizer: Tokenizer, prompt: Text, tools: Sequence[Any] | None = None) -> list[int]:
    """A prompt's tokens: a text as generation reads it, messages by the chat template.

    Raises:
        BedstoneError: a text is broken, or the template can't write the messages.
    """
    if not isinstance(prompt, str):
        return list(render(tokenizer, prompt, tools=tools).ids)
    row, first = completion_input(tokenizer, prompt, "a")
    return row.ids[:first]


@dataclass(frozen=True)
class PolicyBatch(ReadStates, PackedBatch):
    """Sampled answers to learn from.

    Attributes:
        rows: n prompts with their answers, laid end to end.
        read: (M,) places before each token of the answers.
        targets: (M,) those tokens.
        owners: (M,) which answer each is of.
        advantages: (M,).
        old: (M,) log-probabilities when they were sampled; None where the weights are the same.
        reference: (M,) log-probabilities by the reference; None where it isn't needed.
        values, returns: (M,) of a critic; None without one.
        reward: the mean of the rewards of the rollout.
        target_count: what the sum of losses is divided by.
    """

    rows: Packed
    read: Tensor
    targets: Tensor
    owners: Tensor
    advantages: Tensor
    old: Tensor | None
    reference: Tensor | None
    values: Tensor | None
    returns: Tensor | None
    reward: float
    target_count: float
    number: int
    places: list[str]


@dataclass(frozen=True)
class Laid(ReadStates):
    """Answers with their prompts, laid end to end; fields as in `PolicyBatch`.

    Attributes:
        places: (M,) where each token of an answer stands in a matrix (n, T) of them, flattened.
    """

    rows: Packed
    read: Tensor
    targets: Tensor
    owners: Tensor
    places: Tensor

    def to(self, device: torch.device) -> "Laid":
        """The same there."""
        moved = (each.to(device) for each in (self.read, self.targets, self.owners, self.places))
        return Laid(self.rows.to(device), *moved)


def lay_answers(
    prompts: Sequence[Sequence[int]], ids: Tensor, lengths: Tensor, given: Tensor | None = None
) -> Laid:
    """Prompts and answers to them as rows without padding.

    Args:
        prompts: token ids of each answer's prompt.
        ids: (n, T) tokens of the answers, padded on the right.
        lengths: (n,) tokens of each.
        given: (n, T) bool, tokens that weren't sampled: they are read, and no targets.
    """
    answers, sizes = ids.cpu().numpy(), lengths.cpu().numpy()
    before = np.array([len(each) for each in prompts])
    parts = [
        part
        for prompt, row, size in zip(prompts, answers, sizes, strict=True)
        for part in (np.asarray(prompt, np.int64), row[:size])
    ]
    whole, total = np.concatenate(parts), before + sizes
    starts = np.cumsum(total) - total
    owners = np.repeat(np.arange(len(sizes)), sizes)
    within = np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    if given is not None:
        sampled = ~given.cpu().numpy()[owners, within]
        owners, within = owners[sampled], within[sampled]
    places = starts[owners] + before[owners] + within
    return Laid(
        rows=lay(whole, np.zeros_like(whole), total),
        read=torch.from_numpy(places - 1),
        targets=torch.from_numpy(whole[places]),
        owners=torch.from_numpy(owners),
        places=torch.from_numpy(owners * answers.shape[1] + within),
    )
