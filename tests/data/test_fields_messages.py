"""Conversations about a picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bedstone.data.fields import IMAGE_TEXT, Sample
from bedstone.data.open import open_dataset
from bedstone.errors import BedstoneError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("0.png", "1.png"):
        Image.fromarray(np.zeros((6, 6, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def opened(folder: Path, row: dict[str, Any]) -> Sample:
    file = folder / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    sample: Sample = open_dataset(file, IMAGE_TEXT)[0]
    return sample


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else [*content]}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


IMAGE = {"type": "image"}
YES = {"role": "assistant", "content": "yes"}


@pytest.mark.parametrize(
    "row",
    [
        {"image": "0.png", "messages": [user(IMAGE, text("Is it red?")), YES]},
        {"images": ["0.png"], "messages": [user(text("Is it red?"), IMAGE), YES]},
        {"image": "0.png", "messages": [user("<image>\nIs it red?"), YES]},
        {"messages": [user({"type": "image", "path": "0.png"}, text("Is it red?")), YES]},
        {
            "messages": [
                user({"type": "image_url", "image_url": {"url": "0.png"}}, text("Is it red?")),
                YES,
            ]
        },
        {
            "image": "0.png",
            "conversations": [
                {"from": "human", "value": "<image>\nIs it red?"},
                {"from": "gpt", "value": "yes"},
            ],
        },
        {
            "image": "0.png",
            "messages": [
                {"role": "system", "content": "You see."},
                user(IMAGE, text("Is it red?")),
                {"role": "assistant", "content": [text("yes")]},
            ],
        },
    ],
)
def test_ways_to_write_the_same(folder: Path, row: dict[str, Any]) -> None:
    sample = opened(folder, row)
    assert sample.image == folder / "0.png"
    (question,) = sample.questions
    assert (question.question, question.answers, question.kind) == (
        "Is it red?",
        ("yes",),
        "yes/no",
    )


def test_turns_that_go_on_and_a_picture_without_a_question(folder: Path) -> None:
    turns = [user(IMAGE), {"role": "assistant", "content": "a red dog"}, user("Big?"), YES]
    sample = opened(folder, {"image": "0.png", "messages": turns})
    assert sample.captions == ("a red dog",)
    assert [(one.question, one.answers) for one in sample.questions] == [("Big?", ("yes",))]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "0.png", "messages": [user("Red?"), YES]}, "0 places .* 1 pictures"),
        ({"messages": [user("<image> Red?"), YES]}, "1 places .* 0 pictures"),
        ({"image": "0.png", "messages": [user("<image><image> Red?"), YES]}, "2 places .* 1 pic"),
        ({"images": ["0.png", "1.png"], "messages": [user(IMAGE, text("Red?")), YES]}, "1 places"),
        ({"images": ["0.png", "1.png"], "messages": [user(IMAGE, IMAGE), YES]}, "expected one"),
        ({"messages": [user("Red?"), YES]}, "has 0 pictures; expected one"),
        ({"image": "0.png", "messages": [user(IMAGE, text("Red?"))]}, "ends with a question"),
        ({"image": "0.png", "messages": [YES]}, "message 1: answers, and nothing was asked"),
        ({"image": "0.png", "messages": [user(IMAGE), {**YES, "content": ""}]}, "2: is empty"),
        ({"image": "0.png", "messages": [{"role": "usr", "content": "a"}]}, "'usr'.*'user'"),
        ({"image": "0.png", "messages": [user({"type": "audio"})]}, "type 'audio'"),
        ({"image": "0.png", "messages": "Red?"}, "expected a list of messages"),
        ({"messages": [user({**IMAGE, "url": "https://a.b/c.png"}), YES]}, "Fetch it first"),
    ],
)
def test_what_cant_be_learnt_names_the_row(folder: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(BedstoneError, match=rf"line 1.*{message}"):
        opened(folder, row)
