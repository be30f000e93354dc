"""Whether texts belong to pictures: equal to transformers' BLIP; search results put in order."""

import json

import pytest
import torch
from PIL import Image

import bedstone
import bedstone.commands.search
import bedstone.tasks.image_text.image_text_matching
from bedstone.cli import main
from bedstone.errors import BedstoneError
from bedstone.tasks.image_text.image_text_matching import rerank
from colours import Colours, paint
from image_models import pictures
from image_text_models import SIZE, told_model
from task_checks import same

MATCH = "image-text-matching"
TEXTS = ["a red circle", "two blue squares", "a large yellow star"]


@pytest.fixture(scope="module")
def task():
    return bedstone.pipeline(MATCH, told_model())


def test_scores_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = told_model("matching")
    folder = ours.save(tmp_path / "model")
    theirs = transformers.BlipForImageTextRetrieval.from_pretrained(folder).eval()
    processor = transformers.BlipImageProcessor.from_pretrained(folder)
    task = bedstone.pipeline(MATCH, folder, device="cpu")
    given = pictures(2)
    for picture, found in zip(given, task(given, TEXTS), strict=True):
        told = {one["text"]: one for one in found}
        pixels = processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
        for text in TEXTS:
            ids = torch.tensor([ours.tokenizer.encode(text, special=True)])
            with torch.no_grad():
                logits = theirs(ids, pixels, use_itm_head=True)[0]
                cosine = theirs(ids, pixels, use_itm_head=False)[0]
            assert told[text]["score"] == pytest.approx(float(logits.softmax(-1)[0, 1]), abs=1e-4)
            assert told[text]["similarity"] == pytest.approx(float(cosine), abs=1e-4)


def test_one_text_and_several_of_each_picture(task):
    given = pictures(3)
    alone = [[task(picture, text) for text in TEXTS] for picture in given]
    assert set(alone[0][0]) == {"score", "similarity"}
    several = task(given, TEXTS)
    for own, found in zip(alone, several, strict=True):
        expected = sorted(
            ({"text": text} | one for text, one in zip(TEXTS, own, strict=True)),
            key=lambda one: -one["score"],
        )
        same(found, expected)
    rows = [{"image": given[0], "text": TEXTS}, {"image": given[1]}, {"image": given[2]}]
    mixed = task(rows, text=TEXTS[0])  # as many texts as a picture has, side by side
    same(mixed[0], several[0])
    same(mixed[1:], [alone[1][0], alone[2][0]])
    same(list(task.each(given, lambda *_: None, text=TEXTS[1]))[2][1], alone[2][1])


def test_many_texts_of_a_picture_are_read_some_at_a_time(task, monkeypatch):
    given = pictures(2)
    expected = task(given, TEXTS)
    for together in (1, 2, 4):
        monkeypatch.setattr(bedstone.tasks.image_text.image_text_matching, "BATCH", together)
        same(task(given, TEXTS), expected)


def test_rerank_tells_of_each_picture_and_of_none_that_is_gone(task, tmp_path):
    (tmp_path / "bad.png").write_text("none")
    one, two = pictures(2)
    found = rerank(task, TEXTS[0], [one, None, tmp_path / "bad.png", two])
    assert found[1] is found[2] is None
    same([found[0], found[3]], [task(one, TEXTS[0]), task(two, TEXTS[0])])


def test_search_puts_the_nearest_in_order(tmp_path, monkeypatch, capsys):
    for module in (bedstone.commands.search, bedstone.commands.search):
        monkeypatch.setattr(module, "open_embedder", lambda *_: Colours())
    for number, colour in enumerate([(220, 30, 30), (180, 60, 40), (30, 40, 220)]):
        paint(tmp_path / "photos" / f"{number}.png", colour, seed=number)
    judge = told_model().save(tmp_path / "judge")
    index = str(tmp_path / "i")
    assert main(["index", str(tmp_path / "photos"), "--model", "m", "--out", index]) == 0
    capsys.readouterr()

    def searched(*more, code=0):
        assert main(["search", index, *more]) == code
        told = capsys.readouterr()
        return told.err if code else [json.loads(line) for line in told.out.splitlines()]

    plain = searched("red", "--json")
    found = searched("red", "--json", "--rerank", str(judge), "--precision", "fp32")
    assert {one["key"] for one in found} == {one["key"] for one in plain}
    task = bedstone.pipeline(MATCH, judge, device="cpu")
    chances = {one["key"]: task(tmp_path / "photos" / one["key"], "red")["score"] for one in found}
    assert {one["key"]: one["score"] for one in found} == pytest.approx(chances, abs=1e-4)
    assert [one["key"] for one in found] == sorted(chances, key=lambda key: -chances[key])
    few = searched("red", "--json", "--rerank", str(judge), "--count", "1")
    assert [one["key"] for one in few] == [found[0]["key"]]
    photo = str(tmp_path / "photos" / "0.png")
    assert "--rerank" in searched("--image", photo, "--rerank", str(judge), code=2)
    captions = told_model("captions").save(tmp_path / "captions")
    assert "matches texts" in searched("red", "--rerank", str(captions), code=2)


def test_bad_inputs_are_named(task):
    good = pictures(1)[0]
    cases = [
        (lambda: task(good), "text: none was given"),
        (lambda: task([{"image": good, "text": "a"}, {"image": good}]), r"inputs\[1\]: text: none"),
        (lambda: task(good, []), "text: the list is empty"),
        (lambda: task(good, ["a", 3]), r"text\[1\]: is '3'"),
        (lambda: task(good, ""), "text: is empty"),
        (lambda: task(good, ["a", "red " * 900]), r"text\[1\]: has 900 words"),
        (lambda: task([{"text": "a"}]), r"inputs\[0\]: the keys are text"),
    ]
    for number, (call, told) in enumerate(cases):
        with pytest.raises(BedstoneError, match=told):
            call()
            pytest.fail(f"case {number}")
    assert SIZE and task(good, "red " * 900, truncation=True)
