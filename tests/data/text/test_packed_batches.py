import json
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bedstone.data.stream import IGNORED
from bedstone.data.text.causal_lm import PackedBatches, evaluation_batches
from bedstone.data.text.packing import KnownTexts
from bedstone.data.text.token_cache import TokenSplit
from bedstone.errors import BedstoneError

END = 10**6  # every other token is its own place in the split


def make_split(lengths):
    """Every token is unique; each document's last is an end token."""
    ids = np.arange(sum(lengths))
    parts = np.split(ids, np.cumsum(lengths)[:-1])
    documents = [[*part[:-1].tolist(), END + number] for number, part in enumerate(parts)]
    return TokenSplit.from_documents(documents, bytes=100, eos_id=END)


def same(one, other):
    names = ("ids", "targets", "documents", "positions")
    return (
        all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)
        and one.number == other.number
        and one.target_count == other.target_count
        and np.array_equal(one.origin, other.origin)
    )


def scored(batches):
    found = [batch.targets[batch.targets != IGNORED] for batch in batches]
    return torch.cat(found).tolist()


def epoch_of(stream):
    while stream.epoch < 1:
        yield next(stream)


def expected_targets(split):
    """Every token but each document's first."""
    keep = np.ones(len(split), bool)
    keep[split.starts] = False
    return sorted(split.tokens[keep].tolist())


splits = st.lists(st.integers(1, 40), min_size=1, max_size=12).map(make_split)


@settings(deadline=None)
@given(splits, st.integers(1, 17), st.integers(0, 5), st.booleans())
def test_each_token_is_a_target_once_an_epoch(split, context, seed, shuffle):
    if len(split) <= context:
        return
    stream = PackedBatches(split, context, 1, seed, shuffle)
    for _ in range(2):
        batches, start = [], int(stream.epoch)
        while stream.epoch < start + 1:
            batches.append(next(stream))
        assert sorted(scored(batches)) == expected_targets(split)


@settings(deadline=None)
@given(splits, st.integers(1, 17), st.integers(1, 4), st.integers(0, 5))
def test_rows_hold_what_they_say(split, context, batch_size, seed):
    if len(split) <= context:
        return
    stream = PackedBatches(split, context, batch_size, seed)
    owner = np.searchsorted(split.starts, np.arange(len(split)), side="right") - 1
    place = {token: at for at, token in enumerate(split.tokens.tolist())}
    for _ in range(4):
        batch = next(stream)
        assert batch.ids.shape == batch.targets.shape == (batch_size, context)
        assert batch.documents.dtype == torch.int32
        assert batch.target_count == int((batch.targets != IGNORED).sum())
        for row in range(batch_size):
            position = number = 0
            for t in range(context):
                token, target = int(batch.ids[row, t]), int(batch.targets[row, t])
                if t and batch.documents[row, t] != batch.documents[row, t - 1]:
                    position, number = 0, number + 1
                assert batch.documents[row, t] == number
                if batch.origin[row, t] < 0:  # filling
                    assert target == IGNORED
                    continue
                assert batch.positions[row, t] == position
                position += 1
                at = place[token]
                assert batch.origin[row, t] == owner[at]
                assert batch.offsets[row, t] == at - split.starts[owner[at]]
                if target != IGNORED:  # the next token of the same document
                    assert place[target] == at + 1
                    assert owner[at + 1] == owner[at]


@settings(deadline=None)
@given(splits, st.integers(1, 9), st.integers(1, 4), st.integers(0, 12), st.booleans())
def test_resume_at_any_batch_gives_the_same(split, context, batch_size, steps, shuffle):
    if len(split) <= context:
        return
    stream = PackedBatches(split, context, batch_size, 7, shuffle)
    for _ in range(steps):
        next(stream)
    state = json.loads(json.dumps(stream.state_dict()))
    other = PackedBatches(split, context, batch_size, 7, shuffle)
    other.load_state_dict(state)
    assert other.epoch == stream.epoch
    for _ in range(6):
        assert same(next(stream), next(other))


def test_another_batch_size_resumes_at_the_same_window():
    split = make_split([30] * 20)
    small, large = PackedBatches(split, 8, 2), PackedBatches(split, 8, 4)
    for _ in range(6):
        next(small)
    large.load_state_dict(small.state_dict())
    assert torch.equal(next(large).ids, torch.cat([next(small).ids, next(small).ids]))


def test_epochs_and_seeds_differ():
    split = make_split([30] * 20)

    def first(seed, epoch=0):
        stream = PackedBatches(split, 16, 4, seed)
        while stream.epoch < epoch:
            next(stream)
        return next(stream).ids

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))
    assert not torch.equal(first(1), first(1, epoch=1))


def test_one_document_is_cut_elsewhere_each_epoch():
    split = make_split([1000])
    stream = PackedBatches(split, 50, 1, 0)
    edges = []
    for epoch in range(3):
        starts = set()
        while stream.epoch < epoch + 1:
            batch = next(stream)
            starts.add(int(batch.offsets[0, 0]) % 50)
        edges.append(starts - {0})
    assert len({frozenset(each) for each in edges}) > 1
    assert all(len(each) <= 1 for each in edges)


def test_the_state_of_other_data_is_refused():
    state = PackedBatches(make_split([50]), 8, 2, seed=1).state_dict()
    with pytest.raises(BedstoneError, match="seed=1, and now seed is 2"):
        PackedBatches(make_split([50]), 8, 2, seed=2).load_state_dict(state)
    with pytest.raises(BedstoneError, match="tokens=50, and now tokens is 51"):
        PackedBatches(make_split([51]), 8, 2, seed=1).load_state_dict(state)


def test_too_few_tokens_and_bad_sizes():
    with pytest.raises(BedstoneError, match="8 tokens in 2 documents; one window of context 8"):
        PackedBatches(make_split([4, 4]), 8, 1)
    with pytest.raises(BedstoneError, match="0 tokens"):
        PackedBatches(TokenSplit.from_documents([]), 8, 1)
    with pytest.raises(BedstoneError, match="context: 0"):
        PackedBatches(make_split([9]), 0, 1)
    with pytest.raises(BedstoneError, match="batch_size: 0"):
        evaluation_batches(make_split([9]), 4, 0)
    with pytest.raises(BedstoneError, match="stride: 5"):
        evaluation_batches(make_split([9]), 4, 1, stride=5)


@settings(deadline=None)
@given(splits, st.integers(1, 17), st.integers(1, 5), st.data())
def test_evaluation_scores_each_token_once_in_order(split, context, batch_size, data):
    if len(split) < 2:
        return
    stride = data.draw(st.none() | st.integers(1, context))
    batches = list(evaluation_batches(split, context, batch_size, stride))
    keep = np.ones(len(split), bool)
    keep[split.starts] = False
    assert scored(batches) == split.tokens[keep].tolist()
    assert all(batch.ids.shape == (batch_size, context) for batch in batches)
    assert [batch.number for batch in batches] == list(range(len(batches)))


def test_a_stride_gives_every_target_what_came_before_it():
    split = make_split([200])
    for batch in evaluation_batches(split, 16, 2, stride=4):
        for row in range(2):
            hits = np.flatnonzero(batch.targets[row].numpy() != IGNORED)
            if len(hits) and batch.offsets[row, 0]:
                assert hits[0] >= 12


def test_a_batch_says_what_is_in_it():
    batch = next(PackedBatches(make_split([5, 5, 5]), 12, 1, shuffle=False))
    text = batch.describe()
    assert "batch 0: 10 targets" in text
    assert "document 0 tokens 0-4, document 1 tokens 0-4, document 2 tokens 0-1" in text
    assert batch.to("cpu").ids.device.type == "cpu"


def test_a_batch_takes_less_than_a_millisecond_or_so():
    split = make_split([300] * 3000)
    stream = PackedBatches(split, 256, 16)
    times = []
    for _ in range(50):
        began = time.perf_counter()
        next(stream)
        times.append(time.perf_counter() - began)
    assert min(times) < 0.002  # 0.4 ms on an idle core


@pytest.mark.parametrize(("room", "cut"), [(None, 0), (5, 0), (4, 1), (3, 2), (1, 2)])
def test_known_texts_are_cut_and_counted_only_where_they_are_longer(room, cut):
    known = KnownTexts()
    assert known.add(["abcd", "e", "abcd", "fghij"]) == [0, 1, 0, 2]
    assert known.finish(lambda texts: [[ord(letter) for letter in t] for t in texts], room) == cut
    for number, text in enumerate(("abcd", "e", "fghij")):
        assert "".join(map(chr, known[number])) == text[:room]
