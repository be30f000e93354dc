"""From a recipe to signals: pictures of rows, drawn scenes."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from bedstone.data.scenes.captions import check_caption
from bedstone.data.scenes.render import draw
from bedstone.data.scenes.world import COLOURS, HELD_OUT, PAIRS, SHAPES, held_out, make_scene
from bedstone.data.signals.open import covering, held_out_prompts, scene_captions
from bedstone.data.signals.signals import SignalsConfig
from bedstone.errors import BedstoneError
from bedstone.recipes.diffusion import DiffusionRecipe
from diffusion_runs import signals_of


def recipe(task="class-to-image", **data):
    return DiffusionRecipe(task=task, data=SignalsConfig(**data))


@pytest.fixture
def folder(tmp_path):
    for kind, green in (("cat", 200), ("dog", 20)):
        (tmp_path / kind).mkdir()
        for number in range(8):
            Image.new("RGB", (12, 8), (10 * number, green, 90)).save(
                tmp_path / kind / f"{number}.png"
            )
    return tmp_path


def test_a_folder_of_classes(folder):
    options = {"source": str(folder), "size": (8, 8), "validation": str(folder)}
    learnt, held = signals_of(recipe(**options))
    assert learnt.shape == (3, 8, 8) and learnt.names == held.names == ("cat", "dog")
    assert np.array_equal(learnt.values[:, 1, 0, 0] == 200, learnt.classes == 0)
    grey, _ = signals_of(recipe(**options, channels=1))
    expected = round(0.299 * 70 + 0.587 * 20 + 0.114 * 90)
    assert grey.shape == (1, 8, 8) and grey.values[-1, 0, 0, 0] == expected
    none, _ = signals_of(recipe("unconditional-image-generation", **options))
    assert none.classes is None and none.captions is None
    captioned, _ = signals_of(
        recipe("text-to-image", **options, templates=["a {label}", "one {label}"])
    )
    assert captioned.captions[0] == ("a cat", "one cat")


@pytest.mark.parametrize("sides", [(20, 40), (33, 40), (20, 61), (70, 50), (60, 20), (151, 100)])
@pytest.mark.parametrize("size", [(8, 8), (8, 16), (24, 9)])
def test_a_picture_just_covers_the_size_and_its_middle_is_kept(sides, size):
    high, wide = sides
    ramp = np.zeros((high, wide, 3), np.uint8)
    ramp[..., 0] = np.linspace(50, 250, high)[:, None]
    ramp[..., 1] = np.linspace(50, 250, wide)
    found = covering(ramp, size)
    assert found.shape == (*size, 3)
    assert found[..., :2].min() >= 45  # nothing is filled up
    scale = max(size[0] / high, size[1] / wide)
    for channel, (side, kept) in enumerate(zip(sides, size, strict=True)):
        line = found.astype(int)[..., channel]
        seen = np.ptp(line[:, 0] if channel == 0 else line[0])
        assert seen == pytest.approx(200 * (kept - 1) / (scale * side), abs=25)


def test_what_is_wrong_with_rows_is_reported(folder):
    def refused(task="class-to-image", **data):
        with pytest.raises(BedstoneError) as error:
            signals_of(recipe(task, **{"source": str(folder), "size": (8, 8)} | data))
        return str(error.value)

    assert "'lable', which data.columns.label names" in refused(columns={"label": "lable"})
    assert "perhaps 'label'" in refused(columns={"label": "lable"})
    assert "'sound' is no part of a row" in refused(columns={"sound": "x"})
    assert "has no text" not in refused(columns={"text": "caption"})  # the column is named
    assert "more than data.memory_mb" in refused(memory_mb=0.001)
    assert "holds 'cat', which is none of the 1 classes" in refused(classes=["dog"])
    (folder / "dog" / "0.png").write_bytes(b"no picture")
    assert "dog/0.png: is no picture" in refused()
    assert len(signals_of(recipe(source=str(folder), size=(8, 8), most_broken=0.2))[0]) < 16
    other = folder.parent / "other" / "bird"
    other.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(other / "x.png")
    message = refused(most_broken=0.2, validation=str(other.parent))
    assert "x.png: is of class 'bird', which is none of the 2 learnt" in message


def test_a_number_that_is_no_class_is_reported(tmp_path):
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = [{"file_name": f"{n}.png", "label": n} for n in range(4)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(BedstoneError, match=r"line 3.*holds '2', which is none of the 2 classes"):
        signals_of(recipe(source=str(tmp_path), classes={0: "zero", 1: "one"}))


def test_scenes_to_learn_from_never_show_or_name_what_is_held_out():
    learnt, held = signals_of(recipe("text-to-image", most_rows=300, size=(32, 32)))
    assert learnt.shape == (3, 32, 32) and len(learnt) == 300
    named = "|".join(learnt.texts())
    pairs = [(s, c) for s, c in PAIRS if f"{c} {s}" in named]
    assert len(pairs) > 50 and not any(held_out(*pair) for pair in pairs)
    shown = [make_scene(number, objects=(1, 2)) for number in range(300)]
    assert not any(held_out(*thing.pair) for scene in shown for thing in scene.objects)
    picture = draw(dataclasses.replace(shown[7], sign=None), 32).transpose(2, 0, 1)
    assert torch.equal(learnt.read([7])[0], torch.from_numpy(picture).float() / 127.5 - 1)
    first = [texts[0] for texts in held.captions]
    assert all(any(f"{c} {s}" in text for s, c in HELD_OUT["validation"]) for text in first)


def test_scenes_can_be_of_large_plain_things():
    wished = recipe(
        "text-to-image", most_rows=40, size=(32, 32), sizes=["large"], textures=False, signs=True
    )
    learnt, _ = signals_of(wished)
    for number in range(40):
        scene = make_scene(number, objects=(1, 2), sizes=["large"])
        things = tuple(dataclasses.replace(thing, texture="plain") for thing in scene.objects)
        picture = draw(dataclasses.replace(scene, objects=things), 32).transpose(2, 0, 1)
        assert torch.equal(learnt.read([number])[0], torch.from_numpy(picture).float() / 127.5 - 1)
    ways = [f"{texture} {colour}" for texture in ("striped", "dotted") for colour in COLOURS]
    assert not any(way in text for text in learnt.texts() for way in ways)


def test_captions_of_scenes_are_short_true_and_name_everything():
    for number in range(200):
        scene = dataclasses.replace(make_scene(number, objects=(1, 2)), sign=None)
        texts = scene_captions(scene)
        assert 2 <= len(texts) <= 4 and all(len(text.split()) < 20 for text in texts)
        for text in texts:
            assert check_caption(scene, text)
            assert all(one.colour in text and one.shape in text for one in scene.objects)
        assert len(scene_captions(scene, "all")) > len(texts)


def test_prompts_say_what_must_be_there():
    prompts = held_out_prompts(60)
    assert {len(prompt.things) for prompt in prompts} == {1, 2}
    for prompt in prompts:
        assert any(pair in HELD_OUT["test"] for pair in prompt.things)
        assert all(
            colour in prompt.text and shape in prompt.text for shape, colour in prompt.things
        )
    assert prompts[:5] == held_out_prompts(5)


def test_scenes_of_one_thing_have_its_shape_as_class():
    learnt, held = signals_of(recipe(most_rows=80, size=(32, 32)))
    assert learnt.names == SHAPES and set(learnt.classes) == set(range(8))
    assert len(held) == 1000 and held.fingerprint() != learnt.fingerprint()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"task": "class-to-picture"}, "task: 'class-to-picture' is unknown; perhaps"),
        ({"task": "class-to-audio"}, "'scenes' is image, and class-to-audio makes audio"),
        ({"data": SignalsConfig(size=(8, 9))}, "scenes are square"),
        ({"data": SignalsConfig(channels=1)}, "scenes have 3"),
        ({"data": SignalsConfig(size=(8,))}, "signals of 2 sides"),
        ({"target": "noise"}, "target: 'noise' is unknown"),
        ({"process": {"kind": "flows"}}, "process.kind: 'flows' is unknown; perhaps 'flow'"),
        ({"drop": 1.0}, "drop: 1.0"),
        ({"task": "class-to-volume", "augment": {"flip": 0.5}}, "augment.flip: mirrors"),
    ],
)
def test_what_a_recipe_says_wrong_is_reported(wrong, message):
    from bedstone.settings import from_mapping

    with pytest.raises(BedstoneError, match=message):
        signals_of(from_mapping(DiffusionRecipe, wrong, "recipe"))


@pytest.mark.shared
def test_written_digits(shared_data):
    source = str(shared_data / "mnist" / "test.parquet")
    learnt, held = signals_of(recipe(source=source, size=(28, 28), channels=1, most_rows=200))
    assert learnt.shape == (1, 28, 28) and len(learnt) + len(held) == 200
    assert learnt.names == tuple("0123456789")
    assert learnt.read([0]).min() == -1
