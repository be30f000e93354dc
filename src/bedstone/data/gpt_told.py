"""What a GPT reads and writes of pictures: a question or the word for a caption, then the text.

A text is ended by the tokenizer's end token, and loss is on what follows the prompt alone.
"""

from collections.abc import Sequence

import numpy as np
import torch

from bedstone.data.tokenizer import Tokenizer
from bedstone.data.told_batches import NOTHING, Part, ToldTexts
from bedstone.data.told_prompts import CAPTION, question_text, said_text
from bedstone.data.told_text import Words, padded, taught
from bedstone.errors import BedstoneError


def gpt_words(tokenizer: Tokenizer, context: int) -> Words:
    """How a GPT's tokenizer reads and writes; captions begin with their prompt.

    Raises:
        BedstoneError: no token ends a text.
    """
    end = tokenizer.eos_id
    if end is None:
        raise BedstoneError(
            "tokenizer: has no eos_token, by which a GPT would end an answer; name one in its "
            "tokenizer_config.json."
        )
    begin = tuple(tokenizer.encode_batch([CAPTION])[0].tolist())
    return Words(tokenizer, context, tokenizer.pad_id or end, begin, end, (), ())


def prompt_ids(words: Words, questions: Sequence[str]) -> list[list[int]]:
    """Each question's prompt, its end kept where it is too long to leave room for an answer."""
    rows = words.plain([question_text(each) for each in questions])
    return [row[-(words.context // 2) :].tolist() for row in rows]


class GPTTexts(ToldTexts):
    """The texts of rows as a GPT has them, tokenised once, each distinct one once."""

    def _question(self, text: str) -> int:
        return super()._question(question_text(text))

    def _said(self, texts: Sequence[str]) -> list[int]:
        return super()._said([said_text(text) for text in texts])

    def _part(
        self, read: Sequence[int], said: Sequence[int], each: int, begin: Sequence[int]
    ) -> tuple[Part, np.ndarray]:
        words, captions = self.words, read is said
        begun: list[list[int]] = []
        rest: list[list[int]] = []
        for question, text in zip(read, said, strict=True):
            told = [*self.known[text], words.end][: words.context - 1] if text != NOTHING else []
            prompt = begin if captions or not told else self.known[question]
            begun.append([*prompt][-(words.context - len(told)) :])
            rest.append(told)
        ids, keep = padded(begun, words.pad)
        ids_in, targets = taught(begun, rest, words.pad)
        part = Part(ids, keep, ids_in, targets, torch.tensor(read), each)
        return part, self._facts(read, said, each)
