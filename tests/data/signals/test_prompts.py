"""Prompts as a network that draws reads them: as the captions it learnt from."""

import numpy as np
import pytest

from bedstone.data.signals.batches import SignalTexts
from bedstone.data.signals.signals import Condition, Prompts, Signals
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.errors import BedstoneError
from drawings import WORDS, reader


def prompts(context: int = 24) -> Prompts:
    tokenizer = reader().tokenizer
    assert tokenizer is not None
    return Prompts(tokenizer, context)


def rows(condition: Condition) -> list[list[int]]:
    assert condition.ids is not None
    assert condition.keep is not None
    pairs = zip(condition.ids, condition.keep, strict=True)
    return [ids[keep].tolist() for ids, keep in pairs]


def test_a_prompt_is_read_as_a_caption_was():
    made = prompts()
    values = np.zeros((2, 3, 4, 4), np.uint8)
    signals = Signals(values, kind="image", name="made", captions=[[WORDS[0]], [WORDS[1]]])
    texts = SignalTexts(signals, made.encode, made.nothing, context=24, pad=made.pad)
    learnt, _ = texts.draw(np.array([0, 1]), None)
    assert rows(learnt) == rows(made.condition(WORDS[:2]))
    assert rows(texts.null) == rows(made.condition([""])) == [made.nothing]
    assert texts.cut == 0


def test_texts_are_filled_up_and_marked():
    both = prompts().condition(["a red circle and a blue square", "ink"])
    assert both.ids is not None
    assert both.keep is not None
    assert both.ids.shape == both.keep.shape
    assert both.keep[0].all()
    assert not both.keep[1].all()
    assert (both.ids[1][~both.keep[1]] == prompts().pad).all()


def test_a_prompt_that_is_too_long_is_refused_and_not_cut():
    with pytest.raises(BedstoneError, match=r"has \d+ tokens; the model reads 5 at most"):
        prompts(5).condition(["ink", "a red circle and a blue square on white"])


def test_a_tokenizer_that_leaves_nothing_of_nothing_is_refused():
    with pytest.raises(BedstoneError, match="no token around a text"):
        Prompts(train_bpe(WORDS, 300), 24)
