"""The models that come with Bedstone: small, whole, opened by name, as good as their cards say."""

import pytest

import bedstone
from bedstone.checkpoints.names import BUILT_IN, built_in
from bedstone.cli import main
from bedstone.data.scenes.captions import all_captions
from bedstone.data.scenes.questions import all_questions
from bedstone.data.scenes.render import draw
from bedstone.data.scenes.world import make_scene
from bedstone.metrics.vqa import right_answer
from builtin_models import ALL, LARGEST, MODELS, measured, size_of


def test_each_is_there_and_small():
    assert set(built_in()) == set(MODELS)
    sizes = {name: size_of(folder) for name, folder in built_in().items()}
    assert max(sizes.values()) <= LARGEST
    assert sum(sizes.values()) <= ALL


@pytest.mark.parametrize("name", MODELS)
def test_its_record_says_how_it_was_made_and_how_good_it_is(name):
    record = bedstone.load(name).record
    assert record["recipe"]["budget"].endswith("steps")
    assert isinstance(record["recipe"]["seed"], int)
    assert record["metrics"][MODELS[name].main]
    card = (BUILT_IN / name / "README.md").read_text(encoding="utf-8")
    assert f"\n| {MODELS[name].main}" in card


@pytest.mark.parametrize("name", MODELS)
def test_it_gives_the_outputs_that_are_stored_with_it(name):
    assert main(["check", name, "--device", "cpu"]) == 0


def test_they_do_what_they_are_for():
    scenes = [make_scene(10**6 + number, split="test", objects=(2, 3)) for number in range(8)]
    images, texts = [draw(scene) for scene in scenes], [all_captions(each)[0] for each in scenes]
    find = bedstone.pipeline("zero-shot-image-classification", "scenes-clip")
    best = [find(image, candidate_labels=texts)[0]["label"] for image in images]
    assert sum(a == b for a, b in zip(best, texts, strict=True)) >= 6
    ask = bedstone.pipeline("visual-question-answering", "scenes-vlm")
    known = [all_questions(scene)[0] for scene in scenes]
    rows = [{"image": i, "question": q.text} for i, q in zip(images, known, strict=True)]
    said = [found[0]["answer"] for found in ask(rows, top_k=1)]
    right = [right_answer(a, q.answer) for a, q in zip(said, known, strict=True)]
    assert sum(right) >= 5
    assert bedstone.load("python-gpt").generate("def read(", max_new_tokens=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_it_is_as_good_as_its_card_says(name):
    given, said = MODELS[name], bedstone.load(name).record["metrics"]
    found = measured(name, BUILT_IN / name)
    worse = said[given.main] - found[given.main]
    assert (-worse if "loss" in given.main else worse) <= given.slack
