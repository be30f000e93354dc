"""DALL-E behind the tasks and `bedstone imagine`: candidates, half images, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bedstone
from bedstone.cli import main
from bedstone.diffusion.sample import candidate_seeds
from bedstone.errors import BedstoneError
from bedstone.tasks.media.dalle import DalleGenerator
from bedstone.tasks.media.files import image_signal, to_image
from bedstone.tasks.media.generator import MediaGenerator
from bedstone.tasks.media.unclip import open_generator
from dalles import dalle
from drawings import drawing
from image_models import pictures
from task_checks import check_task


def generator(order: str = "raster", clip: bool = False) -> DalleGenerator:
    return DalleGenerator(dalle(order, clip=clip))


@pytest.mark.parametrize("order", ["raster", "masked", "scale"])
def test_what_holds_for_every_task(order: str) -> None:
    said = "expected words"
    check_task("text-to-image", dalle(order), ["ink", "star", "a circle"], 3.5, said)
    inputs = [{"image": image, "prompt": "ink"} for image in pictures(3, 16)]
    check_task("image-to-image", dalle(order), inputs, 3, "expected")


def test_the_task_is_found_by_the_model(tmp_path: Path) -> None:
    dalle().save(tmp_path / "model")
    task = bedstone.pipeline(model=str(tmp_path / "model"))
    assert task.name == "text-to-image"
    found = task("ink", seed=3, guidance_scale=1.0, temperature=0.5)
    assert found["image"].size == (16, 16) and found["seed"] == 3
    with pytest.raises(BedstoneError, match="class-to-image: needs"):
        bedstone.pipeline("class-to-image", str(tmp_path / "model"))


def test_what_draws() -> None:
    assert isinstance(open_generator(dalle()), DalleGenerator)
    assert isinstance(open_generator(drawing("text")), MediaGenerator)


# Candidates.


def test_four_candidates_are_the_first_four_of_sixteen() -> None:
    assert candidate_seeds(7, 16)[:4] == candidate_seeds(7, 4)
    assert candidate_seeds(7, 1) == [7]
    assert len({*candidate_seeds(7, 16), *candidate_seeds(8, 16)}) == 32


def test_the_best_of_several_is_the_nearest_to_its_words() -> None:
    own = generator(clip=True)
    prompts, seeds = ["a red circle", "two stars"], [4, 5]
    found = own.draw(prompts, seeds, candidates=4)
    assert found.signals.shape == (2, 3, 16, 16)
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        every = [own.draw([prompt], [each]).signals[0] for each in candidate_seeds(seed, 4)]
        images = own.clip.images([np.asarray(to_image(each)) for each in every])
        scores = images @ own.clip.texts([prompt])[0]
        recipe = found.recipes[row]
        assert recipe["scores"] == pytest.approx(scores.tolist(), abs=1e-4)
        assert recipe["candidate"] == int(scores.argmax())
        assert torch.equal(found.signals[row], every[recipe["candidate"]])
    alone = own.draw(prompts[1:], seeds[1:], candidates=4)
    assert torch.equal(alone.signals[0], found.signals[1])


def test_the_task_returns_scores() -> None:
    task = bedstone.pipeline("text-to-image", dalle(clip=True), candidates=3)
    found = task("ink", num_images_per_prompt=2)
    assert [len(each["scores"]) for each in found] == [3, 3]
    assert all(0 <= each["candidate"] < 3 for each in found)
    assert "scores" not in bedstone.pipeline("text-to-image", dalle())("ink")


def test_candidates_that_can_not_be() -> None:
    with pytest.raises(BedstoneError, match="has no CLIP"):
        generator().draw(["ink"], [0], candidates=2)
    with pytest.raises(BedstoneError, match=r"candidates: 0"):
        generator(clip=True).draw(["ink"], [0], candidates=0)
    with pytest.raises(BedstoneError, match="without words has no best"):
        generator(clip=True).draw([None], [0], candidates=2)


# Words, and what is to be otherwise.


def test_words_decide_and_none_is_the_null_prompt() -> None:
    own = generator()
    one, other, free = own.draw(["ink", "two stars", None], [1, 1, 1]).signals
    assert not torch.equal(one, other) and not torch.equal(one, free)
    with pytest.raises(BedstoneError, match="prompt: is empty"):
        own.draw(["  "], [1])
    with pytest.raises(BedstoneError, match="the model reads 12 at most"):
        own.draw(["a red circle and a blue square and two green stars on white paper"], [1])


def test_a_negative_prompt_takes_the_place_of_the_null_prompt() -> None:
    own = generator()
    plain = own.draw(["ink"], [1]).signals
    led = own.draw(["ink"], [1], negative="two stars")
    assert not torch.equal(led.signals, plain) and led.recipes[0]["negative"] == "two stars"
    with pytest.raises(BedstoneError, match="negative: 'two stars' has no effect"):
        own.draw(["ink"], [1], negative="two stars", guidance=1.0)


def test_guidance_of_one_is_none() -> None:
    own = generator()
    plain = own.draw(["ink"], [1], guidance=1.0)
    assert plain.recipes[0]["sampling"]["guidance"] == 1.0
    other = own.model.sample(
        [1],
        condition=own.model.prompts.condition(["ink"]),
        null=own.model.prompts.condition(["two stars"]),
        sampling=own.settings({"guidance": 1.0}),
        **own.options,
    )
    assert torch.equal(plain.signals, other)  # whatever the null prompt is
    null = own.draw(["ink"], [1], guidance=0.0).signals
    assert torch.equal(null, own.draw([None], [1], guidance=1.0).signals)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "ddim"}, "method: is no setting of a DALL-E"),
        ({"temprature": 1.0}, "perhaps 'temperature'"),
        ({"temperature": -1.0}, "temperature"),
        ({"size": [32, 32]}, "size: .* has learnt"),
        ({"strength": 0.5}, "strength: was given without an image"),
        ({"mask": 1}, "mask: was given without an image"),
    ],
)
def test_what_can_not_be(given: dict[str, Any], said: str) -> None:
    with pytest.raises(BedstoneError, match=said):
        generator().draw(["ink"], [0], **given)
    with pytest.raises(BedstoneError, match="draws none of an image"):
        generator().variations(None, [0])
    with pytest.raises(BedstoneError, match="nothing between"):
        generator().between("ink", "star", 3)


def test_no_temperature_of_zero_in_masked_order() -> None:
    with pytest.raises(BedstoneError, match="temperature: 0"):
        generator("masked").draw(["ink"], [0], temperature=0.0)
    assert generator().draw(["ink"], [0], temperature=0.0).signals.isfinite().all()


# A part of an image.


@pytest.mark.parametrize("order", ["raster", "masked", "scale"])
def test_half_an_image_is_completed(order: str) -> None:
    own = generator(order)
    photo = pictures(1, 16)[0]
    found = own.draw(["ink", "ink"], [1, 2], image=photo)
    above = image_signal(photo, (3, 16, 16))[:, :, :8]
    assert torch.equal(found.signals[:, :, :8], above.expand(2, -1, -1, -1))
    assert not torch.equal(found.signals[0, :, 8:], found.signals[1, :, 8:])
    assert found.recipes[0]["image"].startswith("a ")
    quarter = own.draw(["ink"], [1], image=photo, strength=0.25)
    assert quarter.recipes[0]["strength"] == 0.25
    assert torch.equal(quarter.signals[:, :, :12], image_signal(photo, (3, 16, 16))[:, :, :12])


def test_a_mask_says_what_is_drawn_anew() -> None:
    photo = np.full((16, 16, 3), 90, np.uint8)
    corner = np.zeros((16, 16), np.uint8)
    corner[:4, :4] = 255
    found = generator("masked").draw(["ink"], [0], image=photo, mask=corner).signals[0]
    changed = (found - image_signal(photo, (3, 16, 16))[0]).abs().amax(0) > 0
    assert changed[:4, :4].any() and not changed[4:].any() and not changed[:, 4:].any()
    with pytest.raises(BedstoneError, match="raster order"):
        generator().draw(["ink"], [0], image=photo, mask=corner)
    signal, white = torch.zeros(3, 16, 16), torch.zeros(1, 16, 16)
    white[:, 9:] = 1  # a code is drawn anew if one of its pixels is
    below = generator().draw(["ink"], [0], image=signal, mask=white).signals[0]
    assert not below[:, :8].any() and below[:, 8].any()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"image": torch.zeros(3, 8, 16)}, r"\(3, 8, 16\) was given; expected"),
        ({"image": torch.full((3, 16, 16), float("nan"))}, "finite"),
        ({"image": b"no image"}, "read|image"),
        ({"image": "no/such.png"}, "no/such.png"),
        ({"image": torch.zeros(3, 16, 16), "strength": 0.0}, "covers nothing"),
        ({"image": torch.zeros(3, 16, 16), "strength": 1.0}, "covers everything"),
        ({"image": torch.zeros(3, 16, 16), "strength": 2.0}, "expected 0 to 1"),
        ({"image": torch.zeros(3, 16, 16), "mask": torch.zeros(1, 16, 16)}, "covers nothing"),
        ({"image": torch.zeros(3, 16, 16), "mask": torch.ones(1, 16, 16)}, "covers everything"),
        ({"image": torch.zeros(3, 16, 16), "mask": torch.ones(1, 8, 8)}, "mask: its shape"),
        (
            {"image": torch.zeros(3, 16, 16), "mask": torch.ones(1, 16, 16), "strength": 0.5},
            "leave strength out",
        ),
    ],
)
def test_images_that_can_not_be_completed(given: dict[str, Any], said: str) -> None:
    with pytest.raises(BedstoneError, match=said):
        generator().draw(["ink"], [0], **given)


# The command line.


def test_imagine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dalle(clip=True).save(tmp_path / "model")
    words = ["imagine", str(tmp_path / "model"), "a red circle", "--out", str(tmp_path / "a.png")]
    more = ["--count", "1", "--candidates", "3", "--guidance", "1.5", "--top-k", "9"]
    assert main([*words, *more, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert len(row["scores"]) == 3 and row["sampling"]["top_k"] == 9
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (16, 16)
        half = ["--image", str(tmp_path / "a.png"), "--out", str(tmp_path / "half")]
    assert main([*words[:3], *half, "--strength", "0.5", "--count", "2"]) == 0
    assert (tmp_path / "half" / "sheet.png").is_file()
    for extra, said in (
        (["--strip", str(tmp_path / "s.png")], "--strip"),
        (["--method", "ddim"], "method: is no setting"),
        (["--variations", str(tmp_path / "a.png")], "variations"),
    ):
        out = ["--out", str(tmp_path / "other")]
        assert main([*words[:2], *([] if "--variations" in extra else ["ink"]), *out, *extra]) == 2
        assert said in capsys.readouterr().err
    story = tmp_path / "story.txt"
    story.write_text("ink\na red circle\n")
    assert main([*words[:2], "--story", str(story), "--out", str(tmp_path / "told")]) == 0
