"""Questions about pictures: equal to transformers' BLIP, ranked, learnt answers, bad inputs."""

import numpy as np
import pytest
import torch
from PIL import Image

import bedstone
from bedstone.data.images.image_text import padded, targets_of
from bedstone.errors import BedstoneError
from bedstone.objectives.image_text import word_loss
from image_models import pictures
from image_text_models import SIZE, sighted_model, told_model
from task_checks import same

VQA = "visual-question-answering"
ASKED = ["how many stars are there?", "what colour is the large one?"]
ANSWERS = ["yes", "no", "two red", "blue"]


@pytest.fixture(scope="module")
def model():
    return told_model()


@pytest.fixture(scope="module")
def task(model):
    return bedstone.pipeline(VQA, model, max_new_tokens=5)


def test_answers_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = told_model("answers")
    with torch.no_grad():
        ours.network.head.out.bias[ours.config.text.eos_id] += 3.0
    folder = ours.save(tmp_path / "model")
    theirs = transformers.BlipForQuestionAnswering.from_pretrained(folder).eval()
    processor = transformers.BlipImageProcessor.from_pretrained(folder)
    task = bedstone.pipeline(VQA, folder, device="cpu", top_k=3, num_beams=4, max_new_tokens=6)
    for picture in pictures(2):
        pixels = processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
        for question in ASKED:
            ids = torch.tensor([ours.tokenizer.encode(question, special=True)])
            found = theirs.generate(
                ids, pixels, num_beams=4, num_return_sequences=3, max_new_tokens=6
            )
            expected = {ours.tokenizer.decode(row).strip() for row in found}
            assert {one["answer"] for one in task(picture, question)} == expected


def test_candidates_are_ranked_by_how_likely_they_are_written(model, task):
    picture, engine = pictures(1)[0], task.engine
    known = model.tokenizer
    for question in ASKED:
        found = task(picture, question, candidates=ANSWERS, top_k=9)
        assert [list(one) for one in found] == [["score", "answer"]] * len(ANSWERS)
        with torch.inference_mode():
            memory = engine.see(torch.tensor(engine.fitted(picture))[None])
            ids = torch.tensor([known.encode(question, special=True)])
            read = model.network.read(ids, None, memory)
            scores = []
            for answer in ANSWERS:
                said = [*known.encode(answer), known.sep_id]
                ids_in, targets = targets_of([[known.bos_id]], [said], 0)
                states = model.network.answer_states(ids_in, None, read)
                scores.append(-float(word_loss(model.network.head, states, targets)[0]))
        chances = torch.tensor(scores).softmax(-1).tolist()
        expected = dict(zip(ANSWERS, chances, strict=True))
        assert {one["answer"]: one["score"] for one in found} == pytest.approx(expected, abs=1e-4)
        assert [one["answer"] for one in found] == sorted(
            expected, key=lambda text: -expected[text]
        )
        assert task(picture, question, candidates=ANSWERS, top_k=2) == found[:2]


def test_the_ways_to_ask_are_those_of_version_4(task):
    one, two = pictures(2)
    given = {"candidates": ANSWERS, "top_k": 1}
    each = [task(image=one, question=text, **given) for text in ASKED]
    other = [task(two, text, **given) for text in ASKED]
    same(task({"image": one, "question": ASKED[0]}, **given), each[0])
    same(task(one, ASKED, **given), each)
    same(task([one, two], ASKED[0], **given), [each[0], other[0]])
    same(task([one, two], ASKED, **given), [each[0], other[0], each[1], other[1]])
    rows = [{"image": one, "question": text} for text in ASKED]
    same(task(rows, **given), each)
    same(list(task(iter(rows), **given)), each)
    same(list(task(iter([one, two]), ASKED[1], **given)), [each[1], other[1]])
    asks = bedstone.pipeline(VQA, task.model, question=ASKED[0], **given)
    same([asks(one), asks(two)], [each[0], other[0]])


def test_a_picture_is_seen_once_for_all_its_questions(task, monkeypatch):
    seen = []
    see = task.engine.see

    def counted(pixels):
        seen.append(len(pixels))
        return see(pixels)

    one, two = pictures(2)
    rows = [(one, ASKED[0]), (one, ASKED[1]), (two, ASKED[0]), (one, "yes or no?")]
    rows = [{"image": picture, "question": question} for picture, question in rows]
    alone = [task(row, candidates=ANSWERS) for row in rows]
    monkeypatch.setattr(task.engine, "see", counted)
    together = task(rows, candidates=ANSWERS)
    assert seen == [3]
    for found, expected in zip(together, alone, strict=True):  # questions of other lengths beside
        for ours, theirs in zip(found, expected, strict=True):
            assert ours["answer"] == theirs["answer"]
            assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
    seen.clear()
    task([one, two], ASKED, candidates=ANSWERS)
    assert seen == [2]


def test_answers_that_were_learnt_are_ranked_unless_it_is_free():
    model = told_model()
    model.record["data"] = {"answers": ANSWERS}
    task = bedstone.pipeline(VQA, model, top_k=4)
    found = task(pictures(1)[0], ASKED[0])
    assert {one["answer"] for one in found} == set(ANSWERS)
    assert sum(one["score"] for one in found) == pytest.approx(1, abs=1e-4)
    free = task(pictures(1)[0], ASKED[0], free=True, max_new_tokens=3)
    assert not {one["answer"] for one in free} & set(ANSWERS)
    other = task(pictures(1)[0], ASKED[0], candidates=["one", "three"])
    assert {one["answer"] for one in other} == {"one", "three"}


def test_learnt_answers_longer_than_the_context_are_cut_as_in_training(caplog):
    learnt = told_model()
    long = "a red circle left of a blue square " * 9
    learnt.record["answers"] = ["yes", "no", long]
    task = bedstone.pipeline(VQA, learnt, top_k=3)
    found = {each["answer"].strip() for each in task(pictures(1)[0], ASKED[0])}
    assert found == {"yes", "no", long.strip()}
    assert "were cut, as they were in training" in caplog.text
    with pytest.raises(BedstoneError, match=r"candidates\[1\]: has .*truncation=True"):
        task(pictures(1)[0], ASKED[0], candidates=["yes", long])


def test_learnt_answers_that_are_written_alike_count_once():
    model = told_model()
    model.record["answers"] = ["yes", "no", "Yes", "NO", "two red"]
    found = bedstone.pipeline(VQA, model)(pictures(1)[0], ASKED[0])
    assert sorted(one["answer"] for one in found) == ["no", "two red", "yes"]
    assert sum(one["score"] for one in found) == pytest.approx(1, abs=1e-4)


def test_an_answer_that_chance_brings_twice_counts_once(task):
    drawn = {"do_sample": True, "temperature": 0.1, "seed": 1, "num_return_sequences": 20}
    found = task(pictures(1)[0], ASKED[0], **{**drawn, "max_new_tokens": 1})
    alone = task(pictures(1)[0], ASKED[0], num_beams=3, max_new_tokens=1)
    assert len(found) < 20
    expected = {one["answer"]: one["score"] for one in alone}
    assert found[0]["score"] == pytest.approx(expected[found[0]["answer"]], abs=1e-4)


def test_a_network_that_learnt_colours_answers_them():
    """One that was trained in a second tells colours, with candidates or freely."""
    model = told_model("answers", seed=None)
    network, known = model.network, model.tokenizer
    names = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 200)}
    draw = np.random.default_rng(0)

    def painted(colour):
        noise = draw.integers(-25, 25, (SIZE, SIZE, 3))
        return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)

    given = [(painted(colour), name) for _ in range(2) for name, colour in names.items()]
    shown = torch.tensor(np.stack([model.processor.fit(picture) for picture, _ in given]))
    pixels = model.processor.normalise(shown)
    ids, keep = padded([known.encode("what colour is it?", special=True)] * len(given), 0)
    rows = [[*known.encode(name), known.sep_id] for _, name in given]
    ids_in, targets = targets_of([[known.bos_id]] * len(given), rows, 0)
    learner = torch.optim.AdamW(network.parameters(), lr=4e-3)
    for _ in range(100):
        read = network.read(ids, keep, network.memory(pixels))
        states = network.answer_states(ids_in, None, read, keep)
        loss, count = word_loss(network.head, states, targets)
        learner.zero_grad()
        (loss / count).backward()
        learner.step()
    network.eval()
    task = bedstone.pipeline(VQA, model, question="what colour is it?", top_k=1)
    new = [(painted(colour), name) for name, colour in names.items()]
    for options in ({"candidates": list(names)}, {"max_new_tokens": 4}):
        found = task([picture for picture, _ in new], **options)
        assert [own[0]["answer"] for own in found] == [name for _, name in new]
        assert all(0.5 < own[0]["score"] <= 1 for own in found)


def test_a_gpt_that_sees_answers_too():
    model = sighted_model()
    task = bedstone.pipeline(VQA, model, candidates=ANSWERS, top_k=9)
    one, two = pictures(2)
    rows = [{"image": one, "question": text} for text in ASKED] + [
        {"image": two, "question": ASKED[0]}
    ]
    found = task(rows)
    for row, own in zip(rows, found, strict=True):
        alone = task(row)
        assert [each["answer"] for each in own] == [each["answer"] for each in alone]
        scores = [each["score"] for each in own]
        assert scores == pytest.approx([each["score"] for each in alone], abs=1e-5)
    assert found[0] != found[2]  # another picture
    free = bedstone.pipeline(VQA, model, top_k=2)(one, ASKED[0], max_new_tokens=3)
    assert len(free) == 2
    (caption,) = bedstone.pipeline("image-to-text", model)(one, max_new_tokens=3)
    assert isinstance(caption["generated_text"], str)
    assert bedstone.pipeline("text-generation", model)("Question:", max_new_tokens=2)


def test_a_gpt_reads_the_end_of_a_long_question_and_leaves_room_for_the_answer():
    task = bedstone.pipeline(VQA, sighted_model(), candidates=["red", "blue"], truncation=True)
    (picture,) = pictures(1)
    asked = task.prepare({"image": picture, "question": "two red " * 50}, task.options)
    assert len(asked.ids) == task.engine.form.room
    assert task.engine.text(asked.ids).endswith("red two red Answer:")  # as in training
    rows = [{"image": picture, "question": question} for question in ("a?", "red " * 12)]
    long = ["red " * 40, "blue"]
    task = bedstone.pipeline(VQA, task.model, candidates=long)
    assert task(rows[0])
    with pytest.raises(BedstoneError, match=r"inputs\[1\]: candidates\[0\]: has 40 tokens"):
        task(rows)


def test_bad_inputs_are_named(task, tmp_path):
    good = pictures(1)[0]
    words = "why " * 10_000
    row = {"image": good, "question": ASKED[0]}
    cases = [
        (lambda: task(good), "question: none was given"),
        (lambda: task(None, ASKED[0]), "expected a picture"),
        (lambda: task([row, {"question": ASKED[0]}]), r"inputs\[1\]: the keys are question"),
        (lambda: task([row, {"image": good}]), r"inputs\[1\]: question: none"),
        (lambda: task(good, ""), "question: is empty"),
        (lambda: task([row, {"image": good, "question": " "}]), r"inputs\[1\]: question: is empty"),
        (lambda: task(good, 3), "question: 3"),
        (lambda: task([row, {"image": good, "question": 3}]), r"inputs\[1\]: question: is '3'"),
        (lambda: task(good, words), r"question: has 10,000 words.*truncation"),
        (lambda: task([row, {"image": good, "question": words}]), r"inputs\[1\]: question: has 10"),
        (lambda: task(good, ASKED[0], candidates=[]), "candidates: the list is empty"),
        (lambda: task([{**row, "candidates": []}]), r"inputs\[0\]: candidates: the list is empty"),
        (lambda: task(good, ASKED[0], candidates=["a"], free=True), "free: was asked for"),
        (lambda: task(good, ASKED[0], top_k=0), "top_k"),
        (lambda: task([row, {**row, "image": tmp_path / "no.png"}]), r"inputs\[1\].*no.png"),
        (lambda: task(iter([good]), ASKED), "with a list of questions"),
    ]
    for number, (call, told) in enumerate(cases):
        with pytest.raises(BedstoneError, match=told):
            call()
            pytest.fail(f"case {number}")


def test_a_question_that_is_too_long_may_be_cut(task, caplog):
    picture = pictures(1)[0]
    words = "two stars " * 5_000
    found = task(picture, words, truncation=True, candidates=ANSWERS)
    assert "10,000 words" in caplog.text and "cut" in caplog.text
    assert found == task(picture, "two stars " * 11, candidates=ANSWERS)
