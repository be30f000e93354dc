"""Signals, their conditions and their batches."""

import itertools
import json

import numpy as np
import pytest
import torch

from bedstone.data.signals.batches import SignalTexts, in_batches, signal_stream
from bedstone.data.signals.signals import (
    Condition,
    Signals,
    class_condition,
    joined,
    text_condition,
)
from bedstone.errors import BedstoneError

WORDS = ["", "a", "cat", "dog", "left", "of", "tree"]


def encode(texts):
    return [[7, *(WORDS.index(word) for word in text.split()), 8] for text in texts]


def some(count=40, **options):
    values = np.random.default_rng(0).integers(0, 256, (count, 1, 4, 6), dtype=np.uint8)
    values[:, 0, 0, 0] = np.arange(count)  # a row's number can be read off it
    return Signals(values, kind="image", name="some", **options)


def labelled(count=40):
    return some(count, classes=np.arange(count) % 3, names=("a", "b", "c"))


def number_of(signals):
    return ((signals[:, 0, 0, 0] + 1) * 127.5).round().long()


def test_values_become_minus_one_to_one_and_stay_with_their_class():
    signals = labelled()
    found = signals.read([3, 5])
    assert found.dtype == torch.float32 and found.shape == (2, 1, 4, 6)
    expected = torch.from_numpy(signals.values[[3, 5]].astype(np.float64)) / 127.5 - 1
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)
    batch = next(signal_stream(signals, 8, drop=0.0, workers=0))
    assert torch.equal(number_of(batch.signals), batch.rows)
    assert torch.equal(batch.conditions()["classes"], batch.rows % 3)
    assert batch.target_count == 8 and batch.items == 8


def test_a_stream_resumes_exactly_and_sees_each_row_once_an_epoch():
    def stream(workers):
        return signal_stream(labelled(), 8, drop=0.5, flip=0.5, seed=3, workers=workers)

    whole = list(itertools.islice(stream(0), 12))
    assert sorted(torch.cat([b.rows for b in whole[:5]]).tolist()) == list(range(40))
    assert not torch.equal(whole[0].rows, whole[5].rows)
    first = stream(1)
    for _ in range(7):
        next(first)
    state = json.loads(json.dumps(first.state_dict()))
    second = stream(1)
    next(second)
    second.load_state_dict(state)
    for expected, found in zip(whole[7:], second, strict=False):
        assert expected.number == found.number
        for name in ("signals", "rows", "drop"):
            assert torch.equal(getattr(expected, name), getattr(found, name))
    other = signal_stream(labelled(), 8, drop=0.4, flip=0.5, seed=3)
    with pytest.raises(BedstoneError, match=r"drop=0\.5"):
        other.load_state_dict(state)


def test_dropped_rows_have_the_class_that_is_none():
    batches = signal_stream(labelled(), 20, drop=0.25, workers=0)
    drawn = list(itertools.islice(batches, 60))
    share = torch.cat([batch.drop for batch in drawn]).float().mean()
    assert 0.2 < share < 0.3
    for batch in drawn:
        classes = batch.conditions()["classes"]
        assert torch.equal(classes == 3, batch.drop)
        assert torch.equal(classes[~batch.drop], batch.rows[~batch.drop] % 3)


def test_signals_without_a_condition_have_none():
    batch = next(signal_stream(some(), 8, workers=0))
    assert batch.condition is None and batch.conditions() == {}
    assert batch.to("cpu").conditions() == {}


def test_words_are_filled_up_and_a_dropped_row_says_nothing():
    captions = [("a cat",), ("a cat left of a tree", "a dog")] * 20
    signals = some(captions=captions)
    texts = SignalTexts(signals, encode, [7, 8], pad=9)
    assert texts.longest == 8 and texts.cut == 0
    seen = set()
    for batch in itertools.islice(signal_stream(signals, 20, texts=texts, drop=0.5), 20):
        given = batch.conditions()
        assert given["ids"].shape == given["keep"].shape == (20, 8)
        for row, dropped, ids, keep in zip(
            batch.rows.tolist(), batch.drop, given["ids"], given["keep"], strict=True
        ):
            said = " ".join(WORDS[i] for i in ids[keep][1:-1])
            assert (ids[~keep] == 9).all() and ids[keep][-1] == 8
            assert said == "" if dropped else said in captions[row]
            seen.add(said)
    assert seen == {"", "a cat", "a cat left of a tree", "a dog"}  # each of a row's texts
    assert SignalTexts(signals, encode, [7, 8], context=5).cut == 1


def test_mirrored_are_whole_rows_and_none_whose_text_names_a_side():
    signals = some(captions=[("a cat",), ("a cat left of a tree",)] * 20)
    texts = SignalTexts(signals, encode, [7, 8])
    flips = {0: 0, 1: 0}
    for batch in itertools.islice(signal_stream(signals, 20, texts=texts, flip=0.5), 20):
        plain = signals.read(batch.rows.numpy())
        for row, shown, own in zip(batch.rows.tolist(), batch.signals, plain, strict=True):
            same = torch.equal(shown, own)
            assert same or torch.equal(shown, own.flip(-1))
            flips[row % 2] += not same
    assert flips[1] == 0 and 70 < flips[0] < 130


def test_held_out_rows_come_in_order_and_as_they_are():
    found = list(in_batches(labelled(), 16, most=20))
    assert [len(batch.signals) for batch in found] == [16, 4]
    assert torch.cat([batch.rows for batch in found]).tolist() == list(range(20))
    assert not any(batch.drop.any() for batch in found)


def test_rows_held_out_are_others_and_equal_signals_stay_together():
    values = np.repeat(np.random.default_rng(1).normal(size=(60, 2, 5)), 2, axis=0)
    signals = Signals(values.astype(np.float32), kind="audio", name="some")
    learnt, held = signals.hold_out(0.3)
    assert len(learnt) + len(held) == 120 and 12 < len(held) < 60
    ours = {row.tobytes() for row in learnt.values}
    assert not any(row.tobytes() in ours for row in held.values)
    assert learnt.fingerprint() != held.fingerprint()
    assert len(signals.take(7)) == 7 and signals.take(7).places == signals.take(7).places


def test_what_is_drawn_is_drawn_once_and_picked_by_its_number():
    drawn = []

    def draw(row):
        drawn.append(row)
        return np.full((1, 2), row, np.uint8)

    signals = Signals(draw, kind="audio", name="drawn", shape=(30, 1, 2))
    picked = signals.pick([4, 9])
    assert [int(x) for x in number_of(picked.read([1, 0, 1])[..., None])] == [9, 4, 9]
    picked.read([0, 1])
    assert sorted(set(drawn)) == [4, 9] and len(drawn) <= 3
    assert picked.fingerprint() != signals.pick([4, 8]).fingerprint()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": [0, 1, 5], "names": ("a", "b")}, "some 2: is of class 5; expected 0 to 1"),
        ({"classes": [0, 1], "names": ("a", "b")}, "3 signals have 2 classes"),
        ({"captions": [("a",), (), ("a",)]}, "some 1: has no text"),
    ],
)
def test_what_is_wrong_with_a_row_is_reported(wrong, message):
    with pytest.raises(BedstoneError, match=message):
        some(3, **wrong)


def test_values_that_arent_finite_are_reported():
    values = np.zeros((3, 1, 2), np.float32)
    values[1, 0, 0] = np.nan
    with pytest.raises(BedstoneError, match="row 1: holds values that aren't finite"):
        Signals(values, kind="audio", name="row")
    with pytest.raises(BedstoneError, match="float64"):
        Signals(np.zeros((3, 1, 2)), kind="audio", name="row")
    with pytest.raises(BedstoneError, match="holds no signal"):
        Signals(np.zeros((0, 1, 2), np.uint8), kind="audio", name="row")


def test_conditions_are_checked_joined_and_picked():
    with pytest.raises(BedstoneError, match=r"class 5 is out of range.*3 classes, 0 to 2"):
        class_condition([0, 5], 3)
    assert class_condition([0, 3], 3).classes.tolist() == [0, 3]  # the last is no class
    both = joined((text_condition([[1, 2, 3]]), text_condition([[4], [5]])))
    assert both.ids.tolist() == [[1, 2, 3], [4, 0, 0], [5, 0, 0]]
    assert both.keep.sum(1).tolist() == [3, 1, 1]
    assert both.pick([2, 0]).ids.tolist() == [[5, 0, 0], [1, 2, 3]]
    assert len(text_condition([[4]]).spread(3)) == 3 and len(Condition()) == 0
    with pytest.raises(BedstoneError, match="no tokens"):
        text_condition([[1], []])
