"""The tasks of models that draw, as `bedstone.pipeline` gives them."""

import numpy as np
import pytest
from PIL import Image

import bedstone
from bedstone.errors import BedstoneError
from bedstone.tasks.media.files import to_image
from bedstone.tasks.media.generator import MediaGenerator
from drawings import drawing
from small_models import TAGS, model

TASKS = {
    "text-to-image": ("text", "image", "a red circle"),
    "class-to-image": ("class", "image", "dog"),
    "unconditional-image-generation": ("none", "image", None),
    "class-to-audio": ("class", "audio", 1),
    "text-to-video": ("text", "video", "two stars"),
    "class-to-volume": ("class", "volume", "cat"),
}


@pytest.mark.parametrize("task", TASKS)
def test_each_task_gives_what_it_says(task):
    condition, kind, prompt = TASKS[task]
    one = bedstone.pipeline(task, drawing(condition, kind))(prompt, seed=2)
    assert (one["prompt"], one["seed"]) == (prompt, 2)
    if kind == "image":
        drawn = MediaGenerator(drawing(condition, kind)).draw([prompt], [2])
        assert one["image"].tobytes() == to_image(drawn.signals[0]).tobytes()
    elif kind == "audio":
        assert one["sampling_rate"] == 1000
        assert one["audio"].shape == (11 * 16,)
        assert 0.8 < np.abs(one["audio"]).max() <= 0.91
    elif kind == "video":
        assert one["video"].shape == (4, 8, 8, 3)
    else:
        assert one["volume"].shape == (8, 8, 8)


def test_several_of_each_of_several():
    task = bedstone.pipeline("text-to-image", drawing("text"), num_inference_steps=3)
    found = task(["ink", "a red circle"], num_images_per_prompt=2, seed=5, guidance_scale=3.0)
    assert [[one["seed"] for one in each] for each in found] == [[5, 6], [5, 6]]
    alone = task("a red circle", seed=6, guidance_scale=3.0)
    assert alone["image"].tobytes() == found[1][1]["image"].tobytes()
    assert len(list(task(iter(["ink", "stars"])))) == 2


def test_from_a_picture():
    task = bedstone.pipeline("image-to-image", drawing("text"))
    photo = Image.fromarray(np.full((16, 16, 3), 200, np.uint8))
    near = np.asarray(task(photo, prompt="ink", strength=0.3)["image"]).astype(int)
    far = np.asarray(task({"image": photo, "prompt": "ink"}, strength=1.0)["image"]).astype(int)
    assert np.abs(near - 200).mean() < np.abs(far - 200).mean()
    keep = np.zeros((16, 16), np.uint8)
    keep[0, 0] = 255
    kept = np.asarray(task({"image": photo, "prompt": "ink", "mask": keep})["image"])
    assert (kept[1:] == 200).all()
    for wrong, said in (
        ({"image": photo, "words": "ink"}, "'words'"),
        ({"image": 4}, "expected a picture"),
    ):
        with pytest.raises(BedstoneError, match=said):
            task(wrong)


def test_what_cannot_draw_or_draws_otherwise():
    with pytest.raises(BedstoneError, match=r"draws image: one of 3 classes.*class-to-image"):
        bedstone.pipeline("text-to-image", drawing())
    with pytest.raises(
        BedstoneError, match=r"needs a model that draws image from words; .*'tokens'"
    ):
        bedstone.pipeline("text-to-image", model(TAGS))
    with pytest.raises(BedstoneError, match=r"fill-mask: needs .*text-to-image"):
        bedstone.pipeline("fill-mask", drawing("text"))
    task = bedstone.pipeline("text-to-image", drawing("text"))
    for wrong, said in (
        ({"mask": "m.png"}, "mask: belongs to image-to-image"),
        ({"num_inference_steps": 0}, "steps: 0"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt: 0"),
        ({"guidance": 2}, "'guidance' is unknown"),
    ):
        with pytest.raises(BedstoneError, match=said):
            task("ink", **wrong)
    with pytest.raises(BedstoneError, match="prompt"):
        task([{"a": 1}])


def test_the_steps_of_drawing_are_given():
    task = bedstone.pipeline("text-to-image", drawing("text"), num_inference_steps=5)
    plain = task("a red circle", seed=3)
    assert "steps" not in plain
    found = task("a red circle", seed=3, return_steps=3, num_images_per_prompt=2)
    assert [len(each["steps"]) for each in found] == [3, 3]
    assert np.array_equal(found[0]["image"], plain["image"])
    # the last step takes what is left of the noise: what it predicts is what is drawn
    assert np.array_equal(found[0]["steps"][-1], plain["image"])
    assert not np.array_equal(found[0]["steps"][0], found[0]["steps"][-1])
    assert not np.array_equal(found[0]["steps"][0], found[1]["steps"][0])
    (only,) = task("a red circle", seed=3, return_steps=1)["steps"]
    assert np.array_equal(only, plain["image"])
    assert len(task("a red circle", return_steps=16)["steps"]) == 5
    latent = bedstone.pipeline("class-to-image", drawing(latent=True))("cat", return_steps=2)
    assert [each.size for each in latent["steps"]] == [(16, 16)] * 2


def test_what_has_no_steps_is_said(tmp_path):
    sound = bedstone.pipeline("class-to-audio", drawing(kind="audio"))
    with pytest.raises(BedstoneError, match="return_steps: gives images"):
        sound(1, return_steps=2)
    draw = bedstone.pipeline("class-to-image", drawing())
    with pytest.raises(BedstoneError, match="return_steps: gives images beside"):
        draw("cat", return_steps=2, out=str(tmp_path))
    with pytest.raises(BedstoneError, match="return_steps"):
        draw("cat", return_steps=-1)
