"""Batches of pictures with what is told of them: what they hold, their order, resuming."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor

from bedstone.data.dataset import Dataset
from bedstone.data.fields import Question, Sample
from bedstone.data.images.augment import FactAugment, ImageAugment
from bedstone.data.images.image_text import (
    BlipWords,
    ImageTextBatch,
    ImageTexts,
    Part,
    image_text_stream,
    train_image_text,
)
from bedstone.data.images.pixels import ImageCache
from bedstone.data.stream import Stream
from bedstone.errors import BedstoneError

LETTERS = "abcdefghij"
WORDS = " ".join([*LETTERS, *"0123456789", "left up it is so"])
TOKENIZER = train_image_text([WORDS] * 3, 150)


def rows(count: int = 10) -> Dataset:
    """Picture i has i + 1 captions, and questions of the same letter."""
    found = []
    for i in range(count):
        picture = np.zeros((4, 4, 3), np.uint8)
        picture[:, 0] = i  # the first column tells which it is, and where it stands whether flipped
        questions = tuple(Question(f"is {LETTERS[i]} {n}", (f"{n}", f"{n} so")) for n in range(2))
        captions = tuple(f"{LETTERS[i]} {n}" for n in range(i + 1))
        found.append(Sample(picture, captions, questions, f"row {i}"))
    return Dataset(found)


def normalise(pixels: Tensor) -> Tensor:
    return pixels.permute(0, 3, 1, 2).float()


def stream(
    found: Dataset | None = None,
    size: int = 3,
    context: int = 32,
    prompt: str = "",
    **options: object,
) -> Stream[ImageTextBatch]:
    found = found or rows()
    texts = ImageTexts(found, BlipWords.of(TOKENIZER, context, prompt))
    options.setdefault("workers", 0)
    return image_text_stream(
        ImageCache(found, lambda x: x, (4, 4)), texts, size, normalise, **options
    )  # type: ignore[arg-type]


def read(part: Part) -> list[str]:
    """What the encoder reads; the special tokens around it checked."""
    texts = []
    for ids, keep in zip(part.ids, part.keep, strict=True):
        row = ids[keep].tolist()
        assert (row[0], row[-1]) == (TOKENIZER.cls_id, TOKENIZER.sep_id)
        assert (ids[~keep] == TOKENIZER.pad_id).all()
        texts.append(TOKENIZER.decode(row))
    return texts


def said(part: Part) -> list[str]:
    """What the decoder is to say; what it is fed checked."""
    texts = []
    for ids, targets in zip(part.ids_in, part.targets, strict=True):
        row = targets[targets != -100]
        assert ids[0] == TOKENIZER.bos_id and row[-1] == TOKENIZER.sep_id
        start = int((targets != -100).nonzero()[0])
        assert torch.equal(ids[start + 1 : start + len(row)], row[:-1])
        texts.append(TOKENIZER.decode(row.tolist()))
    return texts


def numbers(batch: ImageTextBatch) -> list[int]:
    return [int(place.removeprefix("row ")) for place in batch.places]


def same(one: ImageTextBatch, other: ImageTextBatch) -> bool:
    names = ("ids", "keep", "ids_in", "targets", "groups")
    parts = zip(one.parts, other.parts, strict=True)
    equal = all(torch.equal(getattr(a, name), getattr(b, name)) for a, b in parts for name in names)
    return equal and torch.equal(one.pixels, other.pixels) and one.number == other.number


@pytest.mark.parametrize("workers", [0, 2])
def test_each_picture_with_its_own_texts(workers: int) -> None:
    made = stream(captions=2, answers=3, workers=workers)
    seen = []
    for _ in range(3):
        batch = next(made)
        assert batch.captions is not None and batch.answers is not None
        assert (batch.captions.each, batch.answers.each) == (2, 3)
        captions, questions, answers = (
            read(batch.captions),
            read(batch.answers),
            said(batch.answers),
        )
        assert captions == said(batch.captions) and len(captions) == 6
        assert len(questions) == len(answers) == 9
        for i, number in enumerate(numbers(batch)):
            assert batch.pixels[i, 0, 0, 0] == number
            letter = LETTERS[number]
            assert all(text.startswith(letter) for text in captions[2 * i : 2 * i + 2])
            for question, answer in zip(
                questions[3 * i : 3 * i + 3], answers[3 * i : 3 * i + 3], strict=True
            ):
                assert question.startswith(f"is {letter}") and answer[0] == question[-1]
            seen.append(number)
    assert len(set(seen)) == 9


def test_texts_repeat_only_where_there_are_too_few() -> None:
    made = stream(captions=3, size=10)
    for _ in range(5):
        batch = next(made)
        captions = read(batch.parts[0])
        for i, number in enumerate(numbers(batch)):
            assert len(set(captions[3 * i : 3 * i + 3])) == min(number + 1, 3)


def test_another_answer_and_caption_is_drawn_each_time() -> None:
    made = stream(rows(1), size=1, answers=1)
    assert {said(next(made).parts[0])[0] for _ in range(30)} == {"0", "1", "0 so", "1 so"}


def test_equal_texts_have_equal_groups() -> None:
    found = Dataset([Sample(np.zeros((4, 4, 3), np.uint8), (text,)) for text in ("a", "b", "a")])
    batch = next(stream(found, captions=2))
    (part,) = batch.parts
    for text, group in zip(read(part), part.groups, strict=True):
        for other, theirs in zip(read(part), part.groups, strict=True):
            assert (text == other) == bool(group == theirs)


def test_only_what_is_said_is_counted() -> None:
    batch = next(stream(captions=1, answers=1, prompt="it is"))
    captions, answers = batch.parts
    # letter, number, [SEP]; and the number, perhaps a word, [SEP]: no prompt, no padding
    words = sum(len(text.split()) + 1 for text in (*said(captions), *said(answers)))
    assert batch.target_count == words
    assert batch.items == captions.ids_in.numel() + answers.ids_in.numel()
    assert TOKENIZER.decode(captions.ids_in[0, :3].tolist(), skip_special=False) == "[DEC] it is"
    assert (captions.targets[:, :2] == -100).all() and (captions.targets[:, 2] != -100).all()
    assert (answers.targets[:, 0] != -100).all()  # answers have no prompt


def test_pictures_without_a_caption_or_question_teach_nothing_of_it() -> None:
    blank = np.zeros((4, 4, 3), np.uint8)
    found = Dataset([Sample(blank, ("a",), ()), Sample(blank, (), (Question("is a", ("so",)),))])
    batch = next(stream(found, size=2, captions=2, answers=2))
    assert batch.captions is not None and batch.answers is not None
    for part in (batch.captions, batch.answers):
        without = part.groups == -1
        assert without.sum() == 2 and part.keep[without].sum(1).tolist() == [2, 2]
        assert (part.targets[without] == -100).all()
        assert ((part.targets[~without] != -100).sum(1) == 2).all()
    assert batch.target_count == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on_exactly(workers: int) -> None:
    augment = FactAugment(ImageAugment(flip=0.5))
    options: dict[str, object] = {"captions": 2, "answers": 2, "augment": augment, "seed": 5}
    first = stream(workers=workers, **options)
    for _ in range(5):
        next(first)
    state = first.state_dict()
    later = [next(first) for _ in range(4)]
    second = stream(**options)
    second.load_state_dict(state)
    assert all(same(next(second), batch) for batch in later)
    other = stream(**{**options, "seed": 6})
    with pytest.raises(BedstoneError, match="seed"):
        other.load_state_dict(state)
    with pytest.raises(BedstoneError, match="texts"):
        stream(rows(9).pick([*range(9), 0]), **options).load_state_dict(state)


def test_a_flip_never_meets_left() -> None:
    """Of pictures with captions of both kinds, the one drawn decides."""
    pictures = []
    for i in range(6):
        pixels = np.zeros((4, 4, 3), np.uint8)
        pixels[:, 0] = 200
        pictures.append(
            Sample(pixels, (f"{LETTERS[i]} left", f"{LETTERS[i]} up"), place=f"row {i}")
        )
    made = stream(Dataset(pictures), size=6, captions=1, augment=FactAugment(ImageAugment(flip=1)))
    met = set()
    for _ in range(10):
        batch = next(made)
        for text, pixels in zip(read(batch.parts[0]), batch.pixels, strict=True):
            flipped = bool(pixels[0, 0, -1] == 200)
            met.add(("left" in text, flipped))
    assert met == {(True, False), (False, True)}


def test_an_answer_that_says_left_forbids_a_flip_too() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:, 0] = 200
    questions = (Question("so it is", ("left",)), Question("so it is", ("up",)))
    found = Dataset([Sample(pixels, ("a",), questions)])
    made = stream(found, size=1, captions=1, answers=1, augment=FactAugment(ImageAugment(flip=1)))
    met = set()
    for _ in range(20):
        batch = next(made)
        assert batch.answers is not None
        met.add((said(batch.answers)[0], bool(batch.pixels[0, 0, 0, -1] == 200)))
    assert met == {("left", False), ("up", True)}


def test_hidden_pictures_and_the_same_texts() -> None:
    shown, hidden = next(stream(answers=2)), next(stream(answers=2, blank=True))
    assert shown.pixels.any() and not hidden.pixels.any()
    assert hidden.pixels.shape == shown.pixels.shape
    assert torch.equal(shown.parts[0].ids, hidden.parts[0].ids)


def test_what_is_too_long_is_cut_and_counted() -> None:
    found = Dataset([Sample(np.zeros((4, 4, 3), np.uint8), ("a b c d e f g h i j", "a"))])
    made = stream(found, size=1, captions=2, context=8)
    assert made.collate.texts.cut == 1
    (part,) = next(made).parts
    assert sorted(read(part)) == sorted(said(part)) == ["a", "a b c d e f"]
    assert part.ids.shape == (2, 8) and part.ids_in.shape[1] <= 8


def test_a_batch_without_texts_is_refused() -> None:
    with pytest.raises(BedstoneError, match="1 or more"):
        stream()


def test_it_moves_and_tells_what_it_holds() -> None:
    batch = next(stream(captions=2)).to("cpu")
    assert batch.answers is None
    assert batch.describe().startswith("batch 0: 3 pictures, 6 texts: row ")


def test_all_texts_are_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    plain = BlipWords.plain

    def counted(self: BlipWords, texts: list[str]) -> Iterable[np.ndarray]:
        seen.extend(texts)
        return plain(self, texts)

    monkeypatch.setattr(BlipWords, "plain", counted)
    made = stream(captions=2, answers=2)
    before = len(seen)
    next(made), next(made)
    assert len(seen) == before == len(set(seen)) == len(set(rows().all_texts()))
