"""Messages with pictures, and `bedstone run` on pictures and words."""

import json

import pytest
from PIL import Image

import bedstone
from bedstone.cli import main
from bedstone.errors import BedstoneError
from image_models import pictures
from image_text_models import sighted_model, told_model

CHAT = "image-text-to-text"
ASKED = "how many stars are there?"
HOW = {"max_new_tokens": 3}


def user(*parts):
    shown = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": part}
        for part in parts
    ]
    return {"role": "user", "content": shown}


@pytest.fixture(scope="module")
def task():
    return bedstone.pipeline(CHAT, told_model(), **HOW)


def test_messages_and_texts_with_a_picture_are_answered(task):
    one, two = pictures(2)
    answer = bedstone.pipeline("visual-question-answering", task.model, top_k=1, **HOW)
    expected = [answer(picture, ASKED)[0]["answer"] for picture in (one, two)]
    chat = [user(one, ASKED)]
    (found,) = task(chat)
    assert list(found) == ["input_text", "generated_text"]
    assert found["input_text"] == chat
    assert found["generated_text"] == [*chat, {"role": "assistant", "content": expected[0]}]
    told = [one["generated_text"] for one in task(text=chat, return_full_text=False)]
    assert told == expected[:1]
    several = task([chat, [user(ASKED, two)]], return_full_text=False)
    assert [own[0]["generated_text"] for own in several] == expected
    short = {"return_full_text": False}
    (found,) = task(one, text=ASKED, **short)
    assert found == {"input_text": ASKED, "generated_text": expected[0]}
    assert task(images=[one], text=f"<image> {ASKED}", **short)[0]["generated_text"] == expected[0]
    pairs = task(images=[one, two], text=[ASKED, ASKED], **short)
    assert [own[0]["generated_text"] for own in pairs] == expected
    place = {"messages": [{"role": "user", "content": f"<image>\n{ASKED}"}], "image": one}
    assert task(place, **short)[0]["generated_text"] == expected[0]


def test_what_was_said_before_is_not_told_to_the_network(task, caplog):
    (picture,) = pictures(1)
    before = [user(picture, "what colour?"), {"role": "assistant", "content": "red"}]
    (found,) = task([*before, user(ASKED)], return_full_text=False)
    assert "by itself" in caplog.text
    caplog.clear()
    asked = {"from": "human", "value": f"<image> {ASKED}"}
    fresh = bedstone.pipeline(CHAT, task.model, **HOW)
    fresh({"image": picture, "messages": [asked]})
    assert "by itself" not in caplog.text  # nothing was said before
    assert (
        found["generated_text"]
        == task(picture, text=ASKED, return_full_text=False)[0]["generated_text"]
    )


def test_a_picture_alone_is_described(task):
    (picture,) = pictures(1)
    caption = bedstone.pipeline("image-to-text", task.model, **HOW)(picture)[0]["generated_text"]
    (found,) = task([user(picture)], return_full_text=False)
    assert found["generated_text"] == caption
    writer = bedstone.pipeline(CHAT, told_model("captions"), **HOW)
    (found,) = writer(picture, text="a red")  # as transformers has it: what goes on from the text
    assert found["generated_text"].startswith("a red")


def test_a_gpt_that_sees_is_asked_the_same_way():
    model = sighted_model()
    task = bedstone.pipeline(CHAT, model, return_full_text=False, **HOW)
    (picture,) = pictures(1)
    (found,) = task([user(picture, ASKED)])
    (answer,) = bedstone.pipeline("visual-question-answering", model, top_k=1, **HOW)(
        picture, ASKED
    )
    assert found["generated_text"] == answer["answer"]


def test_bad_inputs_are_named(task):
    one, two = pictures(2)
    good = [user(one, ASKED)]
    place = {"role": "user", "content": f"<image> <image> {ASKED}"}
    cases = [
        (lambda: task([good, [user(ASKED)]]), r"inputs\[1\]: 0 pictures were given"),
        (lambda: task([good, [user(one, two, ASKED)]]), r"inputs\[1\]: 2 pictures were given"),
        (lambda: task([good, {"messages": [place], "image": one}]), r"inputs\[1\]: has 2 places"),
        (lambda: task(one, text="<image><image> a"), "has 2 places.*1 pictures were given"),
        (lambda: task([*good, {"role": "assistant", "content": "a"}]), "message 2: is the assis"),
        (lambda: task([{"role": "robot", "content": "a"}]), "message 1: role 'robot'"),
        (lambda: task([{"role": "user", "content": [{"type": "audio"}]}]), "part of type 'audio'"),
        (lambda: task([one, two], text=[ASKED]), "2 pictures and 1 texts"),
        (lambda: task(one, text=good), "messages hold their pictures themselves"),
        (lambda: task(3), "3"),
        (
            lambda: task([good, {"image": one, "msgs": good}]),
            r"inputs\[1\]: the keys are image, ms",
        ),
        (lambda: task({"role": "user", "content": ASKED}), "the keys are role, content"),
        (lambda: task([user(one, "why " * 10_000)]), "question: has 10,000 words"),
        (lambda: bedstone.pipeline(CHAT, told_model("answers"))([user(one)]), "nothing is asked"),
    ]
    for number, (call, told) in enumerate(cases):
        with pytest.raises(BedstoneError, match=told):
            call()
            pytest.fail(f"case {number}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    told_model().save(place / "model")
    (place / "photos").mkdir()
    for number, picture in enumerate(pictures(3)):
        Image.fromarray(picture).save(place / "photos" / f"{number}.png")
    (place / "photos" / "bad.jpg").write_text("no picture")
    (place / "photos" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    rows = [
        {"image": "photos/0.png", "question": ASKED},
        {"image": "photos/1.png", "question": [ASKED, "what colour?"]},
    ]
    (place / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chat = {"image": "photos/2.png", "messages": [{"role": "user", "content": f"<image> {ASKED}"}]}
    (place / "chats.jsonl").write_text(json.dumps(chat))
    return place


@pytest.fixture
def run(folder, capsys):
    def call(task, *words, code=0):
        few = ["--option", "max_new_tokens=3", "--precision", "fp32"]
        assert main(["run", task, str(folder / "model"), *map(str, words), *few]) == code
        return capsys.readouterr()

    return call


def test_a_folder_becomes_lines_and_a_page(run, folder, tmp_path):
    page = tmp_path / "page.html"
    told = run("image-to-text", folder / "photos", "--json", "--page", page)
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert [line["input"][-5:] for line in lines] == ["0.png", "1.png", "2.png"]
    assert "2 of 5 pictures were left out" in told.err and "bad.jpg" in told.err
    assert "IMG_1.HEIC: is a picture in the format HEIC. JPEG, PNG" in told.err
    alone = run("image-to-text", folder / "photos" / "IMG_1.HEIC", code=2).err
    assert "IMG_1.HEIC: is a picture in the format HEIC" in alone and "save it as one" in alone
    written = page.read_text()
    assert written.count("<figure>") == 3 and "bad.jpg" in written
    assert f'alt="{lines[0]["result"][0]["generated_text"]}"' in written


def test_questions_are_asked_of_each_picture(run, folder, tmp_path):
    asked = ["--question", ASKED, "--question", "what colour?"]
    page = tmp_path / "page.html"
    vqa = "visual-question-answering"
    told = run(vqa, folder / "photos", *asked, "--json", "--page", page)
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert [line["input"]["question"] for line in lines] == [ASKED, "what colour?"] * 3
    assert "2 of 5 pictures were left out" in told.err
    assert page.read_text().count("<figure>") == 3 and page.read_text().count(ASKED) == 3
    rows = run(vqa, "--file", folder / "asked.jsonl", "--json").out.splitlines()
    # in other company the last bits of a score differ
    for line, number in zip(rows, (0, 2, 3), strict=True):
        for found, before in zip(json.loads(line)["result"], lines[number]["result"], strict=True):
            assert found["answer"] == before["answer"]
            assert found["score"] == pytest.approx(before["score"], rel=1e-4)
    table = run(vqa, folder / "photos" / "0.png", *asked).out
    assert f"0.png: {ASKED}" in "".join(table.split("\n"))


def test_conversations_are_read_from_a_file(run, folder):
    (line,) = run(CHAT, "--file", folder / "chats.jsonl", "--json").out.splitlines()
    (found,) = json.loads(line)["result"]
    assert [one["role"] for one in found["generated_text"]] == ["user", "assistant"]


def test_what_is_missing_is_told(run, folder):
    photo, vqa = folder / "photos" / "0.png", "visual-question-answering"
    cases = [
        ((vqa, photo), "nothing is asked of the pictures"),
        ((vqa, "--question", ASKED), "a question and no picture"),
        ((vqa, photo, "--question", "why " * 10_000), "10,000 words"),
        ((vqa, photo, "--question", ASKED, "--option", "candidates=[]"), "the list is empty"),
        (("image-to-text",), "nothing to read"),
        (("image-to-text", photo, "--question", ASKED), "takes none"),
        (("text-generation", "a", "--page", "a.html"), "makes none"),
        (("image-to-text", folder / "photos" / "bad.jpg"), "bad.jpg"),
    ]
    for words, told in cases:
        said = run(*words, code=2).err
        assert told in said and "Traceback" not in said
