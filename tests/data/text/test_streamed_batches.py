import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bedstone.data.bytes import Piece
from bedstone.data.sources import Texts
from bedstone.data.stream import IGNORED
from bedstone.data.text.causal_lm import StreamedBatches
from bedstone.data.text.token_cache import token_cache
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.errors import BedstoneError

TOKENIZER = train_bpe(["abc"], 257)  # a token a byte


def source(count=60, seed=0):
    choose = random.Random(seed)
    texts = ["".join(choose.choices("abcdefgh ", k=choose.randint(1, 60))) for _ in range(count)]
    return Texts(texts, "texts")


def stream_of(texts, context=8, batch_size=2, seed=3, share=0.1, block=200):
    return StreamedBatches(texts, TOKENIZER, context, batch_size, seed, share, block)


def same(one, other):
    names = ("ids", "targets", "documents", "positions")
    return one.number == other.number and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in names
    )


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 400), st.integers(1, 12), st.integers(1, 3), st.integers(20, 3000))
def test_resume_at_any_batch_gives_the_same(steps, context, batch_size, block):
    stream = stream_of(source(), context, batch_size, block=block)
    for _ in range(steps):
        next(stream)
    state = json.loads(json.dumps(stream.state_dict()))
    other = stream_of(source(), context, batch_size, block=block)
    other.load_state_dict(state)
    for _ in range(12):
        assert same(next(stream), next(other))


def one_epoch(texts, block, share=0.1):
    stream = stream_of(texts, batch_size=1, share=share, block=block)
    while True:
        batch = next(stream)
        if stream.state_dict()["epoch"]:
            return
        yield batch


def test_an_epoch_trains_each_kept_token_once_and_none_held_out(tmp_path):
    texts = source(300)
    cache = token_cache(texts, TOKENIZER, tmp_path, validation_share=0.1)
    keep = np.ones(len(cache.train), bool)
    keep[cache.train.starts] = False
    for block in (150, 2000, 10**6):
        found = torch.cat([batch.targets.flatten() for batch in one_epoch(texts, block)])
        found = found[found != IGNORED].numpy()
        counts = np.bincount(cache.train.tokens[keep], minlength=257)
        assert np.array_equal(np.bincount(found, minlength=257), counts)
    held = stream_of(texts).held_out()
    assert np.array_equal(held.tokens, cache.validation.tokens)
    assert np.array_equal(held.starts, cache.validation.starts)
    assert held.bytes == cache.validation.bytes
    assert len(stream_of(texts).held_out(most_tokens=50)) < 120


def test_a_document_in_many_pieces_streams_through():
    pieces = [Piece("abcdefgh " * 20, ends=False) for _ in range(10)] + [Piece("the end")]
    texts = Texts(pieces, "long")
    batches = list(one_epoch(texts, 300, share=0))
    targets = torch.cat([batch.targets.flatten() for batch in batches])
    assert int((targets == TOKENIZER.eos_id).sum()) == 1
    total = sum(len(piece.text) for piece in pieces) + 1
    blocks = -(-total // 360)
    assert total - int((targets != IGNORED).sum()) == blocks


def test_epochs_are_shuffled_anew():
    stream = stream_of(source(), batch_size=1)
    first = [next(stream).ids.tolist() for _ in range(5)]
    while stream.state_dict()["epoch"] == 0:
        next(stream)
    assert [next(stream).ids.tolist() for _ in range(5)] != first
    assert 1 <= stream.epoch < 2


def test_faults():
    with pytest.raises(BedstoneError, match="3 tokens in 1 documents"):
        next(stream_of(Texts(["ab"], "tiny"), share=0))
    with pytest.raises(BedstoneError, match="validation_share: 2"):
        stream_of(source(), share=2)
    with pytest.raises(BedstoneError, match="no document falls"):
        stream_of(source(), share=0).held_out()
    state = stream_of(source(), seed=1).state_dict()
    with pytest.raises(BedstoneError, match="seed=1"):
        stream_of(source(), seed=2).load_state_dict(state)
