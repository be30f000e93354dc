"""Captions as a task: equal to transformers' BLIP, ranked, by chance, and what inputs they take."""

import math

import pytest
import torch
from PIL import Image

import bedstone
from bedstone.errors import BedstoneError
from bedstone.generation.ranking import rank
from image_models import pictures
from image_text_models import told_model

GIVEN = ["a red circle", "two yellow triangles", "blue square"]


@pytest.fixture(scope="module")
def model():
    return told_model()


@pytest.fixture(scope="module")
def task(model):
    return bedstone.pipeline("image-to-text", model, max_new_tokens=6)


def texts(found):
    return [[one["generated_text"] for one in own] for own in found]


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """Ours, transformers' BLIP of the same weights, and the pixels that its processor makes."""
    transformers = pytest.importorskip("transformers")
    ours = told_model("captions")
    with torch.no_grad():  # so that some texts end
        ours.network.head.out.bias[ours.config.text.eos_id] += 3.0
    folder = ours.save(tmp_path_factory.mktemp("peer") / "model")
    theirs = transformers.BlipForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.BlipImageProcessor.from_pretrained(folder)

    def pixels(picture):
        return processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"]

    return ours, theirs, pixels


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.2},
        {"num_beams": 2, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
        {"repetition_penalty": 1.6},
    ],
    ids=lambda options: "-".join(options) or "greedy",
)
@pytest.mark.parametrize("prompt", [None, "a red"])
def test_captions_are_those_of_transformers(peer, options, prompt):
    ours, theirs, pixels = peer
    known = ours.tokenizer
    task = bedstone.pipeline("image-to-text", ours, max_new_tokens=7, generate_kwargs=options)
    given = pictures(2, seed=4)
    begin = [known.bos_id, *known.encode(prompt or ""), known.sep_id]
    for picture, found in zip(given, task(given, prompt=prompt), strict=True):
        ids = theirs.generate(
            pixels(picture), input_ids=torch.tensor([begin]), max_new_tokens=7, **options
        )
        assert [one["generated_text"] for one in found] == [known.decode(row) for row in ids]
        assert {tuple(one) for one in found} == {("generated_text",)}
        assert all(one["generated_text"].startswith(prompt or "") for one in found)


def test_one_and_several_and_a_generator(task):
    given = pictures(5)
    every = task(given, num_beams=2)
    assert [task(each, num_beams=2) for each in given] == every
    assert list(task(iter(given), num_beams=2)) == every
    assert task(given, num_beams=2, batch_size=2) == every
    assert task({"image": given[0]}, generate_kwargs={"num_beams": 2}) == every[0]
    assert task(images=given[:1], num_beams=2) == every[:1]


def test_scores_are_probabilities_of_the_whole_text(model, task):
    picture = pictures(1)[0]
    found = task(picture, num_beams=3, num_return_sequences=3, return_scores=True)
    assert [set(one) for one in found] == [{"generated_text", "score"}] * 3
    engine = task.engine
    with torch.inference_mode():
        memory = engine.see(torch.tensor(engine.fitted(picture))[None])
        (own,) = engine.write(
            engine.network.writer(memory),
            [engine.words.begin],
            task.options.generation().resolve({}, 1),
        )
        ids = own[0].ids
        logits = model.network.head(
            model.network.caption_states(torch.tensor([[*engine.words.begin, *ids]]), None, memory)
        )
    total = sum(float(logits[0, at].log_softmax(-1)[token]) for at, token in enumerate(ids))
    assert own[0].probability == pytest.approx(math.exp(total), rel=1e-3)


def test_chance_is_a_pictures_own(task):
    given = pictures(3)
    drawn = {"do_sample": True, "seed": 7, "num_return_sequences": 2, "temperature": 1.5}
    found = texts(task(given, **drawn))
    assert found == texts(task(given, **drawn, batch_size=1))
    assert found[1] == [one["generated_text"] for one in task(given[1], **drawn)]
    assert all(one != two for one, two in found)
    assert texts(task(given, **{**drawn, "seed": 8})) != found
    free = {**drawn, "seed": None, "max_new_tokens": 20}
    assert len({each for own in texts(task([given[0]] * 3, **free)) for each in own}) > 2


def test_candidates_have_the_probability_of_being_written(model, task):
    given = pictures(3)
    found = task(given, candidates=GIVEN)
    engine = task.engine
    ids = [[*model.tokenizer.encode(text), model.tokenizer.sep_id] for text in GIVEN]
    for picture, own in zip(given, found, strict=True):
        with torch.inference_mode():
            memory = engine.see(torch.tensor(engine.fitted(picture))[None])
            scores = rank(model.network.writer(memory), [list(engine.words.begin)], ids)
        expected = dict(zip(GIVEN, scores[0].softmax(-1).tolist(), strict=True))
        told = {one["generated_text"]: one["score"] for one in own}
        assert told == pytest.approx(expected, abs=1e-5)
        assert list(told.values()) == sorted(told.values(), reverse=True)
        assert sum(told.values()) == pytest.approx(1, abs=1e-5)
    assert task(given, candidates=[*GIVEN, GIVEN[0]]) == found  # each counts once
    assert [own[:1] for own in found] == task(given, candidates=GIVEN, top_k=1)
    rows = [{"image": given[0], "candidates": GIVEN[:1]}, {"image": given[1]}]
    alone, other = task(rows, candidates=GIVEN)
    assert alone == [{"generated_text": GIVEN[0], "score": pytest.approx(1)}]
    assert [one["generated_text"] for one in other] == [o["generated_text"] for o in found[1]]


def test_candidates_follow_a_prompt(model, task):
    picture = pictures(1)[0]
    (one, two) = task(picture, prompt="a red", candidates=["circle", "square"])
    whole = task(picture, candidates=["a red circle", "a red square"])
    ratio = [math.log(own[0]["score"] / own[1]["score"]) for own in ((one, two), whole)]
    assert abs(ratio[0]) == pytest.approx(abs(ratio[1]), abs=1e-3)


def test_a_cnn_and_bf16_write_too():
    given = pictures(2)
    for layout in ("blip", "blip_resnet"):
        small = told_model("captions", layout)
        task, low = (
            bedstone.pipeline("image-to-text", small, precision=name, candidates=GIVEN)
            for name in ("fp32", "bf16")
        )
        for own, other in zip(task(given), low(given), strict=True):
            scores = {one["generated_text"]: one["score"] for one in other}
            assert scores == pytest.approx({o["generated_text"]: o["score"] for o in own}, abs=0.05)
        assert len(bedstone.pipeline("image-to-text", small)(given, max_new_tokens=3)) == 2


def test_the_model_says_how_unless_the_call_does():
    model = told_model("captions")
    model.generation = {"num_beams": 3, "num_return_sequences": 2, "max_length": 5}
    task = bedstone.pipeline("image-to-text", model)
    beams = bedstone.pipeline("image-to-text", told_model("captions"), num_beams=3)
    picture = pictures(1)[0]
    assert task(picture)[0] == beams(picture, max_new_tokens=4)[0]
    assert task(picture, max_new_tokens=9)[0] == beams(picture, max_new_tokens=9)[0]
    greedy = bedstone.pipeline("image-to-text", told_model("captions"), max_new_tokens=4)
    assert task(picture, num_beams=1) == greedy(picture)


def test_what_counts_without_chance_alone(task):
    (picture,) = pictures(1)
    assert task(picture, do_sample=True, temperature=0.0) == task(picture)
    model = told_model()
    model.generation = {"num_return_sequences": 3}
    many = bedstone.pipeline("image-to-text", model, max_new_tokens=6)
    assert many(picture, min_new_tokens=3) == task(picture, min_new_tokens=3)


def test_a_broken_picture_is_left_out_and_told(task, tmp_path):
    good, bad = tmp_path / "a.png", tmp_path / "b.png"
    Image.fromarray(pictures(1)[0]).save(good)
    bad.write_text("no picture")
    told = []
    found = list(task.each([good, bad, bad, good], lambda number, error: told.append(number)))
    assert [number for number, _ in found] == [0, 3]
    assert told == [1, 2]
    assert found[0][1] == found[1][1] == task(good)


def test_neighbours_with_one_picture_are_seen_once(task, monkeypatch):
    seen = []
    see = task.engine.see

    def counted(pixels):
        seen.append(len(pixels))
        return see(pixels)

    monkeypatch.setattr(task.engine, "see", counted)
    one, two = pictures(2)
    rows = [{"image": one, "prompt": "a"}, {"image": one}, {"image": two}, {"image": one}]
    found = task(rows)
    assert seen == [3]
    assert found[1] == found[3] != found[0]


def test_bad_inputs_are_named(task, model, tmp_path):
    good = pictures(1)[0]
    long = "red " * 30
    cases = [
        (lambda: task(None), "expected a picture"),
        (lambda: task([]) or task([good, 3]), r"inputs\[1\]: 3"),
        (lambda: task([good, tmp_path / "none.png"]), r"inputs\[1\].*none.png"),
        (lambda: task([good, good, tmp_path / "none.png"]), r"inputs\[2\].*none.png"),
        (lambda: task({"picture": good}), "keys are picture"),
        (lambda: task(good, candidates=[]), "candidates: the list is empty"),
        (lambda: task([{"image": good, "candidates": []}]), r"inputs\[0\]: candidates: the list"),
        (lambda: task(good, candidates="a, b"), "expected a list of texts"),
        (lambda: task(good, candidates=["a", ""]), r"candidates\[1\]: is empty"),
        (lambda: task(good, candidates=["a", long]), r"candidates\[1\]: has 30 tokens"),
        (lambda: task(good, prompt=long), "prompt: has 30 words"),
        (lambda: task(good, prompt=3), "prompt: 3"),
        (lambda: task(good, num_beams=0), "num_beams: 0"),
        (lambda: task(good, num_beams="4"), "num_beams: '4'"),
        (lambda: task(good, num_beams=500), "num_beams: 500"),
        (lambda: task(good, num_beams=2, do_sample=True), "num_beams: 2 beams"),
        (lambda: task(good, num_return_sequences=2), "num_return_sequences: 2"),
        (lambda: task(good, temperature=-1.0), "temperature"),
        (lambda: task(good, min_new_tokens=99), "min_new_tokens: is 99"),
        (lambda: task(good, generate_kwargs={"beams": 2}), "generate_kwargs: 'beams'"),
        (lambda: task(good, generate_kwargs=3), "generate_kwargs: 3"),
        (lambda: task(good, num_beams=2, generate_kwargs={"num_beams": 2}), "given twice"),
        (lambda: task(good, beams=2), "'beams' is unknown"),
    ]
    for number, (call, told) in enumerate(cases):
        with pytest.raises(BedstoneError, match=told):
            call()
            pytest.fail(f"case {number}")
    assert task(good, candidates=["a", long], truncation=True)


def test_models_that_lack_what_is_asked():
    with pytest.raises(BedstoneError, match="can do visual-question-answering"):
        bedstone.pipeline("image-to-text", told_model("answers"))
    with pytest.raises(BedstoneError, match="can do image-to-text"):
        bedstone.pipeline("text-generation", told_model("captions"))
    with pytest.raises(BedstoneError, match="can do image-to-text"):
        bedstone.pipeline("image-classification", told_model("captions"))
    model = told_model("captions")
    model.processor = None
    with pytest.raises(BedstoneError, match="preprocessor_config"):
        bedstone.pipeline("image-to-text", model)
