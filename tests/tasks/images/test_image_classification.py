"""Tasks on pictures: equal to transformers' own pipelines, and what inputs they take."""

import io
import math
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import bedstone
from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from bedstone.tasks.images.engine import ImageEngine
from image_models import LABELS, clip_model, labelled_model, pictures, saved
from task_checks import same

NAMES = ["a red circle", "blue", "green square"]
SHOTS = "zero-shot-image-classification"

same = partial(same, near=1e-4)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(ours, theirs) of a task over a saved model."""
    transformers = pytest.importorskip("transformers")
    made = {}

    def make(task, model, name):
        if (task, name) not in made:
            folder = saved(model(), tmp_path_factory.mktemp(name))
            theirs = transformers.pipeline(task, model=str(folder), device="cpu")
            made[task, name] = bedstone.pipeline(task, folder, device="cpu"), theirs
        return made[task, name]

    return make


def shown(count=3):
    return [Image.fromarray(each) for each in pictures(count)]


HEADS = {
    "single": LABELS,
    "multi": HeadConfig("sequence", ("circle", "square", "star"), "multi"),
    "one": HeadConfig("sequence", ("size",), "regression"),
}


@pytest.mark.parametrize("problem", HEADS)
def test_labels_are_those_of_transformers(both, problem):
    def model():
        return labelled_model("vit", HEADS[problem])

    ours, theirs = both("image-classification", model, f"vit-{problem}")
    given = shown()
    for inputs in (given[0], given, given[:1]):
        for options in ({}, {"top_k": 1}, {"top_k": 2}, {"function_to_apply": "sigmoid"}):
            same(ours(inputs, **options), theirs(inputs, **options))


@pytest.mark.parametrize("layout", ["clip", "siglip"])
def test_labels_over_the_towers_of_clip(both, layout):
    ours, theirs = both("image-classification", lambda: labelled_model(layout), layout)
    same(ours(shown()), theirs(shown()))


@pytest.mark.parametrize("layout", ["clip", "siglip"])
def test_zero_shot_is_that_of_transformers(both, layout):
    ours, theirs = both(SHOTS, lambda: clip_model(layout), layout)
    given = shown()
    for inputs in (given[0], given):
        for options in ({}, {"hypothesis_template": "{}, drawn"}):
            expected = theirs(inputs, candidate_labels=NAMES, **options)
            same(ours(inputs, candidate_labels=NAMES, **options), expected)


@pytest.mark.parametrize("pool", [False, True])
def test_features_are_those_of_transformers(both, pool):
    def model():
        return labelled_model("vit", HeadConfig("pooled"))

    ours, theirs = both("image-feature-extraction", model, "vit-pooled")
    found, expected = (
        each(shown(1)[0], return_tensors=True, **({"pool": True} if pool else {}))
        for each in (ours, theirs)
    )
    if pool:  # theirs goes through the pooler's layer; ours is what the head is handed
        head = ours.model.network.head
        with torch.no_grad():
            found = head(found)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4


def test_features_of_a_clip_stand_in_the_joint_space():
    model = clip_model("clip_resnet")
    task = bedstone.pipeline("image-feature-extraction", model)
    picture = pictures(1)[0]
    pooled = np.array(task(picture, pool=True))
    unit = ImageEngine(model).images([picture])
    assert np.allclose(pooled / np.linalg.norm(pooled), unit, atol=1e-5)
    assert len(np.array(task(picture)).shape) == 4  # a CNN's last map


def test_an_ensemble_is_the_mean_of_unit_vectors():
    model = clip_model()
    templates = ["a photo of {}", "{}", "things, {}"]
    picture = pictures(1)[0]
    task = bedstone.pipeline(SHOTS, model)
    found = task(picture, candidate_labels=NAMES, hypothesis_template=templates)
    engine = ImageEngine(model)
    means = [engine.texts([t.replace("{}", n) for t in templates]).mean(0) for n in NAMES]
    means = np.stack([mean / np.linalg.norm(mean) for mean in means])
    logits = float(model.network.scale.detach()) * means @ engine.images([picture])[0]
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    assert {each["label"]: each["score"] for each in found} == pytest.approx(
        dict(zip(NAMES, expected.tolist(), strict=True)), abs=1e-5
    )
    alone = task(picture, candidate_labels=NAMES, hypothesis_template=templates[:1])
    same(alone, task(picture, candidate_labels=NAMES, hypothesis_template=templates[0]))
    assert [each["score"] for each in alone] != [each["score"] for each in found]


def test_every_kind_of_input_gives_the_same(tmp_path):
    task = bedstone.pipeline("image-classification", labelled_model())
    picture = pictures(1)[0]
    Image.fromarray(picture).save(tmp_path / "a.png")
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    expected = task(picture)
    kinds = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        data.getvalue(),
        Image.fromarray(picture),
        {"image": picture},
        {"image": {"bytes": data.getvalue(), "path": None}},
    ]
    for kind in kinds:
        same(task(kind), expected)
    same(task(images=picture), expected)
    same(task([picture, picture]), [expected, expected])
    same(task(kinds), [expected] * len(kinds))


def test_a_generator_is_read_as_results_are_taken():
    task = bedstone.pipeline("image-classification", labelled_model())
    given = pictures(7)
    taken = []

    def some():
        for picture in given:
            taken.append(picture)
            yield picture

    results = task(some())
    first = next(results)
    assert len(taken) == 1  # not one ahead: the next may not be there yet
    same([first, *results], task(given))
    same(list(task(iter(given), batch_size=2)), task(given))
    assert task([]) == []


def test_another_tokenizer_leaves_the_processor():
    model = clip_model()
    given = {"candidate_labels": NAMES}
    expected = bedstone.pipeline(SHOTS, model)(pictures(1)[0], **given)
    same(
        bedstone.pipeline(SHOTS, model, tokenizer=model.tokenizer)(pictures(1)[0], **given),
        expected,
    )


def test_labels_of_a_picture_alone():
    task = bedstone.pipeline(SHOTS, clip_model(), candidate_labels="blue, red")
    first, second = pictures(2)
    found = task([first, {"image": second, "candidate_labels": ["red", "a star"]}])
    assert [sorted(each["label"] for each in one) for one in found] == [
        ["blue", "red"],
        ["a star", "red"],
    ]
    for one in found:
        assert math.isclose(sum(each["score"] for each in one), 1, abs_tol=1e-5)


def test_bad_inputs_are_named(tmp_path):
    task = bedstone.pipeline("image-classification", labelled_model())
    shots = bedstone.pipeline(SHOTS, clip_model())
    good = pictures(1)[0]
    (tmp_path / "text.jpg").write_text("not a picture")
    cases = [
        (lambda: task(tmp_path / "text.jpg"), "text.jpg"),
        (lambda: task([good, tmp_path / "none.png"]), r"inputs\[1\].*none.png"),
        (lambda: task("https://example.org/a.jpg"), "address on the web"),
        (lambda: task([good, 3]), r"inputs\[1\]: 3"),
        (lambda: task(3), "expected a picture"),
        (lambda: task({"picture": good}), "keys are picture"),
        (lambda: task(good, top_k=0), "top_k"),
        (lambda: task(good, top=2), "'top' is unknown"),
        (lambda: task(good, function_to_apply="max"), "function_to_apply"),
        (lambda: task(good, batch_size=0), "batch_size"),
        (lambda: shots(good), "candidate_labels: none"),
        (lambda: shots(good, candidate_labels=[3]), "candidate_labels"),
        (lambda: shots(good, candidate_labels="a,b", hypothesis_template="a photo"), "no place"),
        (lambda: shots(good, candidate_labels="a,b", hypothesis_template=[]), "hypothesis_temp"),
    ]
    for call, told in cases:
        with pytest.raises(BedstoneError, match=told):
            call()


def test_models_that_lack_what_is_asked():
    with pytest.raises(BedstoneError, match="image-feature-extraction") as error:
        bedstone.pipeline("image-classification", clip_model())
    assert "text-classification" not in str(error.value).split("which can do")[1].split(".")[0]
    with pytest.raises(BedstoneError, match="can do image-classification"):
        bedstone.pipeline("text-classification", labelled_model())
    with pytest.raises(BedstoneError, match="such as a CLIP"):
        bedstone.pipeline(SHOTS, labelled_model())
    model = labelled_model()
    model.processor = None
    with pytest.raises(BedstoneError, match="preprocessor_config"):
        bedstone.pipeline("image-classification", model)
