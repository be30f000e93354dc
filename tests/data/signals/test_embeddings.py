"""Signals with embeddings: they follow their rows, and are dropped apart from the text."""

import numpy as np
import pytest
import torch

from bedstone.data.signals.batches import in_batches, signal_stream, texts_of
from bedstone.data.signals.signals import Prompts, Signals
from bedstone.data.text.train_tokenizer import train_wordpiece
from bedstone.errors import BedstoneError
from drawings import WORDS

COUNT = 400


def signals() -> Signals:
    values = np.zeros((COUNT, 3, 4, 4), np.uint8)
    embeddings = np.arange(1, COUNT * 2 + 1, dtype=np.float32).reshape(COUNT, 2)
    captions = [["a red circle"] if row % 2 else ["two green stars"] for row in range(COUNT)]
    return Signals(values, kind="image", name="t", captions=captions, embeddings=embeddings)


def test_rows_keep_their_embeddings() -> None:
    found = signals().pick([3, 1])
    assert found.embeddings is not None and found.embeddings.tolist() == [[7, 8], [3, 4]]
    with pytest.raises(BedstoneError, match="have 2 embeddings"):
        Signals(
            np.zeros((3, 1, 2, 2), np.uint8), kind="image", name="t", embeddings=np.ones((2, 2))
        )


def test_in_order_nothing_is_dropped() -> None:
    rows = signals()
    texts = texts_of(rows, Prompts(train_wordpiece(WORDS, 120), 12))
    batch = next(in_batches(rows, 4, texts))
    given = batch.conditions()
    assert given["embedding"].tolist() == rows.embeddings[:4].tolist()  # type: ignore[index]
    assert given.keys() == {"ids", "keep", "embedding"}


def test_text_and_embedding_are_dropped_apart() -> None:
    """Shares of 0.1 and 0.5, and of both together their product."""
    rows = signals()
    texts = texts_of(rows, Prompts(train_wordpiece(WORDS, 120), 12))
    assert texts is not None and texts.null.ids is not None
    batch = next(signal_stream(rows, COUNT, texts=texts, drop=0.1, drop_text=0.5, workers=0))
    given = batch.conditions()
    gone = (given["embedding"] == 0).all(1)
    silent = (given["ids"] == texts.null.ids).all(1)
    assert 0.05 < gone.float().mean() < 0.16
    assert 0.42 < silent.float().mean() < 0.58
    assert 0.02 < (gone & silent).float().mean() < 0.09
    kept = torch.from_numpy(rows.embeddings)[batch.rows]  # type: ignore[arg-type]
    assert torch.equal(given["embedding"][~gone], kept[~gone])
