"""How the families that put pictures into words read and write text: BLIP, and a GPT that sees.

A BLIP's encoder reads a question with the picture, and its decoder writes over what was read; a GPT
reads the question as the beginning of what it writes. Texts are made as in training: by `Words` and
by the prompts of `data.told_prompts`.

Shapes: P pictures, n = m P texts (row i of picture i // m), S states of a picture, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bedstone.checkpoints.artefact import Model, tokenizer_of
from bedstone.data.gpt_told import gpt_words
from bedstone.data.told_prompts import question_text, said_text
from bedstone.data.told_text import Words, padded

SIGHTED = "sighted_gpt"


def writes(model: Model) -> bool:
    """Whether a model describes pictures."""
    return _is(model, "captions", "joint")


def answers(model: Model) -> bool:
    """Whether a model answers questions about pictures."""
    return _is(model, "answers", "joint")


def matches(model: Model) -> bool:
    """Whether a model says which text belongs to which picture."""
    return _is(model, "matching", "joint") and model.config.layout != SIGHTED


def _is(model: Model, *kinds: str) -> bool:
    layout = str(model.config.layout)
    return layout == SIGHTED or (layout.startswith("blip") and model.config.head.kind in kinds)


@dataclass(frozen=True)
class Reading:
    """Questions with all that their answers are written over.

    Attributes:
        sources: what a writer reads for each question, (n, ...).
        keep: which of it is real; None says all is.
        prompts: what each answer begins with.
    """

    network: Any
    sources: Tensor
    keep: Tensor | None
    prompts: Sequence[Sequence[int]]

    def part(self, rows: Sequence[int]) -> tuple[Any, list[Sequence[int]]]:
        """A writer over some of the questions, and their prompts."""
        known = () if self.keep is None else (self.keep[list(rows)],)
        writer = self.network.writer(self.sources[list(rows)], *known)
        return writer, [self.prompts[row] for row in rows]


class Form(Protocol):
    """What tasks ask of a family.

    Attributes:
        words: ids of texts, and what captions begin and end with.
        room: tokens of a question, at most.
        kept: those that stay where a question is longer and may be cut.
    """

    words: Words
    room: int
    kept: slice

    def said(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of texts as they are written, without their end."""

    def asked(self, ids: Sequence[int]) -> list[int]:
        """A question's ids with what stands around them."""

    def question(self, text: str) -> list[int]:
        """The ids of a question, which may be cut."""

    def prompt(self, ids: Sequence[int]) -> Sequence[int]:
        """What the answer to a question, as `asked` has it, begins with."""

    def read(self, network: Any, questions: Sequence[Sequence[int]], memory: Tensor) -> Reading:
        """Questions (n of them) about pictures, (P, S, D)."""


class BlipForm:
    """[CLS] question [SEP], and [DEC] what is written [SEP]."""

    def __init__(self, model: Model) -> None:
        text = model.config.text
        known = Words.of(tokenizer_of(model), text.context)
        # the network knows its ends: published tokenizers lack the name of the first
        self.words = replace(known, begin=(text.bos_id,), end=text.eos_id, pad=text.pad_id)
        self.room = self.words.room
        self.kept = slice(self.room)

    def said(self, texts: Sequence[str]) -> list[np.ndarray]:
        return self.words.plain(texts)

    def question(self, text: str) -> list[int]:
        ids: list[int] = self.words.plain([text])[0].tolist()
        return ids

    def asked(self, ids: Sequence[int]) -> list[int]:
        return [*self.words.before, *ids, *self.words.after]

    def prompt(self, ids: Sequence[int]) -> Sequence[int]:
        return self.words.begin

    def read(self, network: Any, questions: Sequence[Sequence[int]], memory: Tensor) -> Reading:
        ids, keep = (each.to(memory.device) for each in padded(questions, self.words.pad))
        states = network.read(ids, keep, memory)
        return Reading(network, states, keep, [self.prompt(ids) for ids in questions])


class GPTForm:
    """`Question: ... Answer:` or `Caption:`, what is written, and the end token."""

    def __init__(self, model: Model) -> None:
        self.words = gpt_words(tokenizer_of(model), model.config.context)
        self.room = self.words.context // 2
        self.kept = slice(-self.room, None)  # as in training: it ends with `Answer:`

    def said(self, texts: Sequence[str]) -> list[np.ndarray]:
        return self.words.plain([said_text(text) for text in texts])

    def question(self, text: str) -> list[int]:
        ids: list[int] = self.words.plain([question_text(text)])[0].tolist()
        return ids

    def asked(self, ids: Sequence[int]) -> list[int]:
        return list(ids)

    def prompt(self, ids: Sequence[int]) -> Sequence[int]:
        return ids

    def read(self, network: Any, questions: Sequence[Sequence[int]], memory: Tensor) -> Reading:
        each = len(questions) // len(memory)
        owners = torch.arange(len(memory), device=memory.device).repeat_interleave(each)
        return Reading(network, memory[owners], None, questions)


def form_of(model: Model) -> Form:
    """The form of a model's family."""
    return GPTForm(model) if model.config.layout == SIGHTED else BlipForm(model)
