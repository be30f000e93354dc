"""Rows of pictures with captions, questions and answers: what counts, and what is left out."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bedstone.data.dataset import Dataset
from bedstone.data.fields import IMAGE_TEXT, Question, Sample, SampleReader
from bedstone.data.images.pixels import ImageCache
from bedstone.data.open import open_dataset
from bedstone.data.scenes.captions import all_captions
from bedstone.data.scenes.datasets import heldout_image_text_scenes, image_text_scenes
from bedstone.data.scenes.questions import KINDS, all_questions
from bedstone.data.scenes.render import draw
from bedstone.data.scenes.world import HELD_OUT
from bedstone.errors import BedstoneError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        pixels = np.full((6, 6, 3), 20 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def question(text: str, *answers: str, kind: str = "other") -> Question:
    return Question(text, answers, kind)


def test_captions_and_questions(folder: Path) -> None:
    file = written(
        folder,
        {"image": "0.png", "text": " a dog "},
        {"image": "1.png", "captions": ["a cat", "", "one cat"]},
        {"image": "2.png", "question": "Is it red?", "answer": "Yes"},
        {"image": "3.png", "question": "How many?", "answer": 3, "caption": "three"},
    )
    rows = open_dataset(file, IMAGE_TEXT)
    assert [row.captions for row in rows] == [("a dog",), ("a cat", "one cat"), (), ("three",)]
    assert rows[2].questions == (question("Is it red?", "Yes", kind="yes/no"),)
    assert rows[3].questions == (question("How many?", "3", kind="number"),)
    assert rows[0].image == folder / "0.png" and rows[0].place.endswith("line 1")
    assert rows.answers == {"Yes": 1, "3": 1}
    assert rows.describe() == "4 pictures, 4 captions, 2 questions, 2 different answers"
    assert list(rows.all_texts())[-3:] == ["three", "How many?", "3"]


def test_several_questions_and_several_right_answers(folder: Path) -> None:
    file = written(
        folder,
        {"image": "0.png", "questions": ["a?", "b?"], "answers": ["red, blue", "2"]},
        {"image": "1.png", "question": "c?", "answers": ["dog", "puppy"]},
        {"image": "2.png", "question": "d?", "answers": [{"answer": "x"}, {"answer": "y"}]},
        {"image": "3.png", "questions": ["e?"], "answers": [["u", "v"]], "kinds": ["shape"]},
    )
    rows = open_dataset(file, IMAGE_TEXT)
    assert rows[0].questions == (question("a?", "red, blue"), question("b?", "2", kind="number"))
    assert rows[1].questions == (question("c?", "dog", "puppy"),)
    assert rows[2].questions == (question("d?", "x", "y"),)
    assert rows[3].questions == (question("e?", "u", "v", kind="shape"),)
    apart = open_dataset(file, IMAGE_TEXT, separator=",")
    assert apart[0].questions[0].answers == ("red", "blue")


def test_named_columns(folder: Path) -> None:
    file = written(folder, {"photo": "0.png", "title": "a dog", "text": "not this"})
    rows = open_dataset(file, IMAGE_TEXT, columns={"image": "photo", "text": "title"})
    assert rows[0].captions == ("a dog",)
    with pytest.raises(BedstoneError, match=r"'pictur' is no part of a row.*picture|image"):
        SampleReader(IMAGE_TEXT, {"pictur": "photo"})
    with pytest.raises(BedstoneError, match=r"no column 'titel'.*'title'"):
        open_dataset(file, IMAGE_TEXT, columns={"image": "photo", "text": "titel"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a dog"}, "has no column for the picture"),
        ({"image": None, "text": "a dog"}, "holds no picture"),
        ({"image": "9.png", "text": "a dog"}, "there is no file .*9.png"),
        ({"image": "0.png"}, "says nothing of its picture"),
        ({"image": "0.png", "text": " "}, "'text': is empty"),
        ({"image": "0.png", "answer": "yes"}, "an answer and no question"),
        ({"image": "0.png", "question": None, "answer": "yes"}, "an answer and no question"),
        ({"image": "0.png", "question": "a?"}, "a question and no answer"),
        ({"image": "0.png", "question": "", "answer": "yes"}, "'question': is empty"),
        ({"image": "0.png", "question": "a?", "answer": ""}, "'answer': is empty"),
        ({"image": "0.png", "question": "a?", "answer": []}, "'answer': holds no answer"),
        ({"image": "0.png", "questions": ["a?", "b?"], "answers": ["x"]}, "2 questions.* and 1 a"),
        ({"image": "0.png", "questions": ["a?", "b?"], "answers": ["x", ""]}, "'answers' 2: is em"),
        ({"image": "0.png", "question": "w " * 10_000, "answer": "x"}, "question .*10,000 words"),
    ],
)
def test_broken_rows_are_counted_and_named(folder: Path, row: dict[str, Any], message: str) -> None:
    good = {"image": "1.png", "question": "a?", "answer": "yes"}
    rows = open_dataset(written(folder, good, row), IMAGE_TEXT, most_broken=0.5)
    assert len(rows) == 1 and rows.faults.rows == 2
    (fault,) = rows.faults.broken
    assert "line 2" in fault
    assert "1 rows left out" in rows.describe()
    with pytest.raises(BedstoneError, match=message):
        open_dataset(written(folder, good, row), IMAGE_TEXT, most_broken=0.4)


def test_a_picture_that_cant_be_decoded_is_left_out_and_named(folder: Path) -> None:
    (folder / "3.png").write_bytes(b"no picture at all")
    file = written(folder, *({"image": f"{number}.png", "text": "a"} for number in range(4)))
    rows = open_dataset(file, IMAGE_TEXT, most_broken=0.3)
    pictures = ImageCache(rows, lambda pixels: pixels, (6, 6))
    assert pictures.readable.tolist() == [0, 1, 2] and "3.png" in rows.faults.broken[0]
    with pytest.raises(BedstoneError, match=r"1 of 4 rows are broken"):
        ImageCache(open_dataset(file, IMAGE_TEXT, most_broken=0.2), lambda pixels: pixels, (6, 6))


def test_equal_pictures_stay_on_one_side(folder: Path) -> None:
    same = [Sample(np.full((2, 2, 3), n % 20, np.uint8), (f"text {n}",)) for n in range(60)]
    train, held = Dataset(same).hold_out(0.3)
    values = [{int(row.image[0, 0, 0]) for row in side} for side in (train, held)]  # type: ignore[index,call-overload]
    assert not values[0] & values[1] and len(train) + len(held) == 60
    assert train.fingerprint() != held.fingerprint() == held.pick(range(len(held))).fingerprint()
    assert len(train.take(5)) == 5


def test_answers_are_part_of_the_fingerprint() -> None:
    picture = np.zeros((2, 2, 3), np.uint8)
    found = {
        Dataset([Sample(picture, (), (Question("a?", (answer,), kind),))]).fingerprint()
        for answer, kind in (("x", "k"), ("y", "k"), ("x", "l"))
    }
    assert len(found) == 3


def test_scenes_tell_the_truth_and_keep_combinations_apart() -> None:
    rows = image_text_scenes(30, seed=3, objects=(2, 4))
    for row in rows:
        assert row.scene is not None and 2 <= len(row.scene.objects) <= 4
        assert row.captions == all_captions(row.scene)
        assert [one.question for one in row.questions] == [
            one.text for one in all_questions(row.scene)
        ]
        assert {one.kind for one in row.questions} <= set(KINDS)
    assert rows.fingerprint() == image_text_scenes(30, seed=3, objects=(2, 4)).fingerprint()
    assert rows.fingerprint() != image_text_scenes(30, seed=4, objects=(2, 4)).fingerprint()
    for row in heldout_image_text_scenes("validation", 10):
        assert row.scene is not None and row.scene.split == "validation"
        assert any(thing.pair in HELD_OUT["validation"] for thing in row.scene.objects)
    with pytest.raises(BedstoneError, match=r"split 'tset'.*'test'"):
        heldout_image_text_scenes("tset")


def test_scenes_are_drawn_when_they_are_read() -> None:
    rows = image_text_scenes(5)
    drawn: list[int] = []

    def fit(pixels: np.ndarray) -> np.ndarray:
        drawn.append(len(pixels))
        return pixels

    pictures = ImageCache(rows, fit, (64, 64))
    assert pictures.kept and not drawn
    for _ in range(2):
        numbers, pixels = pictures.read([3, 1])
        assert numbers.tolist() == [3, 1] and len(drawn) == 2  # once each
        for number, picture in zip(numbers, pixels, strict=True):
            scene = rows[int(number)].scene
            assert scene is not None and np.array_equal(picture, draw(scene, 64))
    pictures.read([0, 1])
    assert len(drawn) == 3


def test_of_scenes_only_what_is_learnt_is_made() -> None:
    whole = image_text_scenes(5, captions="whole", questions=False)
    full = image_text_scenes(5)
    assert [row.captions for row in whole] == [row.captions[:1] for row in full]
    assert not any(row.questions for row in whole)
    assert not any(row.captions for row in image_text_scenes(5, captions="none"))
    with pytest.raises(BedstoneError, match=r"data.captions: 'hole'.*'whole'"):
        image_text_scenes(5, captions="hole")


@pytest.mark.shared
def test_real_questions(shared_data: Path) -> None:
    easy = open_dataset(shared_data / "easy-vqa", IMAGE_TEXT, split="test")
    assert len(easy) == 1000 and sum(len(row.questions) for row in easy) == 9673
    assert len(easy.answers) == 13 and not easy.faults.broken
    daquar = open_dataset(shared_data / "daquar", IMAGE_TEXT, split="test")
    assert len(daquar) == 1129 and any("," in answer for answer in daquar.answers)
    picture = daquar[0].image
    assert isinstance(picture, bytes) and Image.open(io.BytesIO(picture)).size[0] > 100
