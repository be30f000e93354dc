"""Batches of pairs: what they hold, their order, resuming, threads."""

import threading
import time

import numpy as np
import pytest
import torch
from torch import Tensor

from bedstone.data.dataset import Dataset
from bedstone.data.fields import Sample
from bedstone.data.images.augment import fact_augment
from bedstone.data.images.contrastive import ContrastiveBatch, ContrastiveTexts, contrastive_stream
from bedstone.data.images.pixels import ImageCache
from bedstone.data.stream import Stream
from bedstone.errors import BedstoneError


def rows(count: int = 10, made: bool = False) -> Dataset:
    pairs = []
    for i in range(count):
        picture = np.full((4, 4, 3), i, dtype=np.uint8)
        captions = (f"first {i}", f"second {i}", "shared")
        if made:
            captions = (f"a {i % 2}", f"the {i % 2}")
        label = str(i % 2) if made else None
        pairs.append(
            Sample(
                picture,
                captions,
                negatives=(f"wrong {i}", "false"),
                label=label,
                made=made,
                place=f"row {i}",
            )
        )
    return Dataset(pairs)


def encode(texts: list[str]) -> list[list[int]]:  # type: ignore[type-arg]
    return [[1, *map(ord, text), 2] for text in texts]


def normalise(pixels: Tensor) -> Tensor:
    return pixels.permute(0, 3, 1, 2).float()


def batches(
    count: int = 10, size: int = 3, made: bool = False, **options: object
) -> Stream[ContrastiveBatch]:
    found = rows(count, made)
    pictures = ImageCache(found, lambda x: x, (4, 4))
    return contrastive_stream(pictures, ContrastiveTexts(found, encode), size, normalise, **options)  # type: ignore[arg-type]


def text(batch: ContrastiveBatch, row: int) -> str:
    start, end = batch.rows.spans[row]
    return "".join(chr(i) for i in batch.ids[0, start + 1 : end - 1])


def same(one: ContrastiveBatch, other: ContrastiveBatch) -> bool:
    return (
        torch.equal(one.pixels, other.pixels)
        and torch.equal(one.ids, other.ids)
        and torch.equal(one.groups, other.groups)
        and one.number == other.number
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_each_picture_once_an_epoch_with_its_own_text(workers: int) -> None:
    stream = batches(workers=workers)
    seen = []
    for _ in range(3):
        batch = next(stream)
        assert batch.pixels.shape == (3, 3, 4, 4) and batch.target_count == 3
        for row in range(3):
            number = int(batch.pixels[row, 0, 0, 0])
            assert text(batch, row) in (f"first {number}", f"second {number}", "shared")
            assert batch.places[row] == f"row {number}"
            seen.append(number)
    assert len(set(seen)) == 9  # the tenth doesn't fill a batch
    assert stream.epoch == 1.0
    again = [int(value) for _ in range(3) for value in next(stream).pixels[:, 0, 0, 0]]
    assert len(set(again)) == 9 and again != seen  # another order


def test_captions_are_drawn_anew() -> None:
    stream = batches(2, 2)
    drawn = {text(next(stream), 0) for _ in range(30)}
    assert len(drawn) == 5  # three of each of two pictures, one shared


def test_equal_texts_have_one_group() -> None:
    stream = batches(10, 10)
    for _ in range(20):
        batch = next(stream)
        texts = [text(batch, row) for row in range(10)]
        for i in range(10):
            for j in range(10):
                assert (batch.groups[i] == batch.groups[j]) == (texts[i] == texts[j])


def test_captions_of_one_label_have_one_group() -> None:
    batch = next(batches(10, 10, made=True))
    parity = batch.pixels[:, 0, 0, 0] % 2
    assert torch.equal(batch.groups[:, None] == batch.groups, parity[:, None] == parity)


def test_hard_negatives_follow() -> None:
    batch = next(batches(negatives=1))
    assert batch.extra == 3 and len(batch.rows.lengths) == 6 and len(batch.groups) == 6
    for row in range(3):
        number = int(batch.pixels[row, 0, 0, 0])
        assert text(batch, 3 + row) in (f"wrong {number}", "false")
    assert next(batches(negatives=9)).extra == 6
    assert next(batches()).extra == 0


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_resumes_exactly(workers: int) -> None:
    def augment(pixels: Tensor, generator: torch.Generator, facts: object) -> Tensor:
        return pixels + torch.randint(0, 9, (1,), generator=generator).to(torch.uint8)

    options = {"augment": augment, "negatives": 1, "seed": 5}
    stream = batches(workers=workers, **options)
    for _ in range(5):
        next(stream)
    state = stream.state_dict()
    expected = [next(stream) for _ in range(6)]
    other = batches(workers=1, **options)
    next(other)
    other.load_state_dict(state)
    assert all(same(next(other), batch) for batch in expected)
    assert not same(next(batches(seed=6)), next(batches(seed=5)))
    with pytest.raises(BedstoneError, match="seed"):
        batches(seed=6).load_state_dict(state)


def test_made_ahead_on_other_threads() -> None:
    threads = set()

    def slow(pixels: Tensor, generator: torch.Generator, facts: object) -> Tensor:
        threads.add(threading.current_thread().name)
        time.sleep(0.05)
        return pixels

    stream = batches(30, 3, augment=slow, workers=2)
    next(stream)
    stream.figures()
    for _ in range(4):
        time.sleep(0.06)  # the network's step
        next(stream)
    assert stream.figures()["waited"] < 0.3
    assert threading.current_thread().name not in threads and len(threads) == 2
    stream = batches(30, 3, augment=slow, workers=0)
    stream.figures()
    for _ in range(3):
        next(stream)
    assert stream.figures()["waited"] > 0.9


def test_a_fault_in_a_thread_is_reported() -> None:
    def broken(pixels: Tensor, generator: torch.Generator, facts: object) -> Tensor:
        raise BedstoneError("augment: can't")

    with pytest.raises(BedstoneError, match="can't"):
        next(batches(augment=broken))


def test_pictures_that_break_later_are_left_out() -> None:
    pairs = [*rows(9), Sample(b"no picture", ("broken",), place="row 9")]
    found = Dataset(pairs)
    found.faults.most = 0.2
    found.faults.rows = 10
    pictures = ImageCache(found, lambda x: x, (4, 4), memory_mb=0)
    stream = contrastive_stream(pictures, ContrastiveTexts(found, encode), 5, normalise, workers=1)
    sizes = [len(next(stream).pixels) for _ in range(4)]
    assert sorted(sizes) == [4, 4, 5, 5]
    assert len(found.faults.broken) == 1


def test_small_sets_and_devices() -> None:
    stream = batches(2, 64)
    batch = next(stream)
    assert len(batch.pixels) == 2 and batch.to("cpu").describe().startswith("batch 0: 2 pictures")
    with pytest.raises(BedstoneError, match="batch_size"):
        batches(size=0)


def test_what_a_caption_says_stays_true_of_its_picture() -> None:
    picture = np.zeros((4, 4, 3), dtype=np.uint8)
    picture[:, :2] = (200, 30, 30)
    said = ("a red thing", "a thing on the left", "a thing")
    pairs = Dataset([Sample(picture, (text,), place=text) for text in said])
    pictures = ImageCache(pairs, lambda x: x, (4, 4))
    augment = fact_augment({"flip": 1.0, "hue": 0.5})
    stream = contrastive_stream(
        pictures, ContrastiveTexts(pairs, encode), 3, normalise, augment=augment, seed=3
    )
    batch = next(stream)
    shown = dict(zip(batch.places, batch.pixels, strict=True))
    old = normalise(torch.from_numpy(picture)[None])[0]
    red, left, free = (shown[text] for text in said)
    assert torch.equal(red, old.flip(2))
    assert (left[:, :, 2:] < 3).all() and not torch.equal(left, old)
    assert (free[:, :, :2] < 3).all() and not torch.equal(free, old.flip(2))


def test_facts_of_a_class_are_its_own() -> None:
    texts = ContrastiveTexts(rows(4, made=True), encode)
    assert not texts.facts[[each for own in texts.captions for each in own]].any()
