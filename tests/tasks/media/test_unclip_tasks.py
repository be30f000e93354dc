"""unCLIP behind the tasks and `bedstone imagine`: prior, variations, ways between, refusals."""

import json
from dataclasses import replace
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
from bedstone.models.unclip.network import joint, read_words
from bedstone.tasks.media.unclip import TURN, UnclipGenerator, open_generator
from drawings import drawing
from image_models import pictures
from task_checks import check_task
from unclips import unclip

ONE, OTHER = pictures(2, 24)


def generator(**options: Any) -> UnclipGenerator:
    found = open_generator(unclip(**options))
    assert isinstance(found, UnclipGenerator)
    return found


def test_what_holds_for_every_task() -> None:
    words = ["a red circle", "this is a blue square.", "things"]
    check_task("text-to-image", unclip(), words, 3.5, "expected words")
    check_task("image-variation", unclip("clip_resnet"), pictures(3, 24), 3, "expected a picture")


def test_the_task_is_found_by_the_model(tmp_path: Path) -> None:
    unclip().save(tmp_path / "model")
    task = bedstone.pipeline(model=str(tmp_path / "model"))
    assert task.name == "text-to-image"
    found = task("things", seed=3, prior="none", prior_samples=1)
    assert found["image"].size == (8, 8) and found["seed"] == 3
    with pytest.raises(BedstoneError, match="image-variation: needs an unCLIP"):
        bedstone.pipeline("image-variation", drawing("text"))
    with pytest.raises(BedstoneError, match="prior"):
        task("things", prior="autoregressive")
    with pytest.raises(BedstoneError, match="prior"):
        bedstone.pipeline("text-to-image", drawing("text"))("ink", prior="none")
    several = bedstone.pipeline("image-variation", unclip(), num_images_per_prompt=2)(ONE)
    assert [each["seed"] for each in several] == [0, 1]
    for name, value in (("prompt", "ink"), ("strength", 0.5), ("size", (8, 8))):
        with pytest.raises(BedstoneError, match=f"{name}: a variation is drawn of the image"):
            bedstone.pipeline("image-variation", unclip(), **{name: value})(ONE)


# The prior.


def test_of_two_embeddings_the_nearer_to_the_words_is_kept() -> None:
    model = unclip()
    condition = model.prompts.condition(["a red circle", "things"])
    words, _ = read_words(model.clip.network, condition.ids, condition.keep)
    one, two, four = (
        model.embeddings(
            [7, 8], condition, type(model.sampling)(prior_steps=3, prior_samples=count)
        )
        for count in (1, 2, 4)
    )
    scores = [(each * words).sum(1) for each in (one, two, four)]
    assert (scores[1] >= scores[0]).all() and (scores[2] >= scores[1]).all()
    assert (scores[2] > scores[0]).any()
    assert torch.allclose(two.square().mean(1), torch.ones(2), atol=1e-5)
    alone = model.embeddings([8], condition.pick([1]), type(model.sampling)(prior_steps=3))
    assert torch.allclose(alone[0], two[1], atol=1e-4)  # whatever stands beside it
    assert candidate_seeds(8, 3)[1:] != candidate_seeds(7, 3)[1:]


def test_without_a_prior_it_is_the_words_own_embedding() -> None:
    model = unclip()
    condition = model.prompts.condition(["things"])
    own = model.embeddings([7], condition, type(model.sampling)(prior="none"))
    assert torch.allclose(own, read_words(model.clip.network, condition.ids, condition.keep)[0])
    draw = generator().draw
    one, other = (draw(["things"], [1], prior=each).signals for each in ("diffusion", "none"))
    assert not torch.allclose(one, other)


def test_guidance_of_the_prior_counts_and_one_is_none() -> None:
    model = unclip()
    condition = model.prompts.condition(["a red circle"])
    kind = type(model.sampling)
    found = [
        model.embeddings([7], condition, kind(prior_steps=3, prior_samples=1, prior_guidance=scale))
        for scale in (1.0, 3.0, 0.0)
    ]
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    empty = model.embeddings(
        [7], model.prompts.condition([""]), kind(prior_steps=3, prior_samples=1)
    )
    assert torch.allclose(found[2], empty, atol=1e-4)  # 0 is the empty text


# Guidance of what draws.


def test_guidance_of_one_is_none_and_of_zero_nothing() -> None:
    own = generator()
    plain = own.draw(["things"], [1], guidance=1.0).signals
    again = own.draw(["things"], [1], guidance=1.0).signals
    assert torch.equal(plain, again)
    led = own.draw(["things"], [1], guidance=3.0).signals
    assert not torch.allclose(plain, led)
    null = own.draw(["things"], [1], guidance=0.0).signals
    zeros = torch.zeros(1, own.model.config.embedding_width)
    nothing = own.decoded(zeros, [1], {}, {"guidance": 1.0}).signals
    assert torch.allclose(null, nothing, atol=1e-4)


def test_guidance_of_a_model_trained_without_nothing_is_refused() -> None:
    own = generator(drops=False)
    own.draw(["things"], [1])
    with pytest.raises(BedstoneError, match=r"guidance: 2 was given; .* Take 1 = none"):
        own.draw(["things"], [1], guidance=2.0)


# By embeddings.


def test_variations_have_the_embedding_and_other_noise() -> None:
    own = generator()
    found = own.variations(ONE, [4, 5])
    assert found.signals.shape == (2, 3, 8, 8) and found.recipes[0]["prompt"] is None
    assert not torch.allclose(*found.signals)
    assert torch.allclose(own.variations(ONE, [5]).signals[0], found.signals[1], atol=1e-5)
    assert not torch.allclose(own.variations(OTHER, [5]).signals[0], found.signals[1], atol=1e-3)
    vectors = own.clip.images([ONE])[0] * own.model.config.embedding_width**0.5
    assert own.embedding(ONE).tolist() == pytest.approx(vectors.tolist(), abs=1e-4)
    for given, said in (({"prompt": "ink"}, "prompt: "), ({"change": 0.5}, "strength: ")):
        with pytest.raises(BedstoneError, match=said):
            own.variations(ONE, [4], **given)


def test_between_two_images_the_ends_are_their_variations() -> None:
    own = generator()
    found = own.like(ONE, [4] * 5, towards=OTHER)
    assert [each["share"] for each in found.recipes] == [0.0, 0.25, 0.5, 0.75, 1.0]
    for place, image in ((0, ONE), (4, OTHER)):
        end = own.variations(image, [4]).signals[0]
        assert torch.allclose(found.signals[place], end, atol=1e-4)
    with pytest.raises(BedstoneError, match="has the same embedding as the image"):
        own.like(ONE, [4] * 3, towards=ONE.copy())
    with pytest.raises(BedstoneError, match="expected one of them"):
        own.like(ONE, [4], towards=OTHER, towards_text="ink")
    with pytest.raises(BedstoneError, match=r"strength: 1\.5"):
        own.like(ONE, [4], towards=OTHER, strength=1.5)


def test_towards_words() -> None:
    own = generator()
    found = own.like(ONE, [4] * 3, towards_text="a blue square", prompt="a red circle")
    assert [each["share"] for each in found.recipes] == pytest.approx([0, 0.5, 1])
    assert torch.allclose(found.signals[0], own.variations(ONE, [4]).signals[0], atol=1e-4)
    # the image's embedding moves as the prior's do, from the same noise
    start, read = own.embedding(ONE)[None], own.model.prompts.condition
    sampling = replace(own.model.sampling, prior_samples=1)
    blue, red = (
        own.model.embeddings([0], read([text]), sampling)
        for text in ("a blue square", "a red circle")
    )
    moved = own.changed(start, ["a blue square"], ["a red circle"])
    assert torch.allclose(moved, joint(start + blue - red), atol=1e-4)
    end = own.decoded(moved, [4], {}, {}).signals[0]
    assert torch.allclose(found.signals[2], end, atol=1e-4)
    for text in ("a red circle", "  "):
        with pytest.raises(BedstoneError, match="says nothing else"):
            own.like(ONE, [4], towards_text=text, prompt="a red circle")


def test_towards_words_without_a_prior() -> None:
    own = generator(prior=False)
    found = own.like(ONE, [4] * 3, towards_text="a blue square", prompt="a red circle")
    assert [each["share"] for each in found.recipes] == pytest.approx([0, TURN / 2, TURN])
    start = own.embedding(ONE)[None]
    turn = own.changed(start, ["a blue square"], ["a red circle"])
    back = own.changed(start, ["a red circle"], ["a blue square"])
    assert torch.allclose(turn, -back, atol=1e-4)


def test_between_two_prompts() -> None:
    own = generator()
    found = own.between("a red circle", "things", 3, (4, 9))
    assert found.signals.shape[0] == 3
    condition = own.model.prompts.condition(["a red circle"])
    first = own.model.embeddings([4], condition)
    end = own.decoded(first, [4], {}, {}).signals[0]
    assert torch.allclose(found.signals[0], end, atol=1e-4)


# The command line.


def test_imagine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unclip().save(tmp_path / "model")
    for name, image in (("a", ONE), ("b", OTHER)):
        Image.fromarray(np.asarray(image)).save(tmp_path / f"{name}.png")
    start = ["imagine", str(tmp_path / "model")]
    one = [*start, "things", "--count", "1", "--out", str(tmp_path / "one.png"), "--prior", "none"]
    assert main([*one, "--prior-steps", "2", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["sampling"]["prior"] == "none" and row["sampling"]["prior_steps"] == 2
    like = [*start, "--like", str(tmp_path / "a.png")]
    assert main([*like, "--out", str(tmp_path / "like")]) == 0
    assert len(list((tmp_path / "like").glob("0*.png"))) == 4
    towards = ["--towards", str(tmp_path / "b.png"), "--out", str(tmp_path / "way")]
    assert main([*like, *towards]) == 0
    assert len(list((tmp_path / "way").glob("0*.png"))) == 7
    words = ["--towards-text", "a blue square", "--strength", "0.3", "--count", "2"]
    assert main([*start, "things", *like[2:], *words, "--out", str(tmp_path / "words")]) == 0
    capsys.readouterr()
    for extra, said in (
        (["--towards", str(tmp_path / "a.png")], "same embedding"),
        (["--like", str(tmp_path / "no.png")], "no.png"),
        (["--between", "ink"], "expected one of them"),
        (["--mask", "m.png"], "--mask: --like takes none"),
    ):
        assert main([*like, *extra, "--out", str(tmp_path / "bad")]) == 2, extra
        assert said in capsys.readouterr().err
    assert main([*start, "things", "--towards-text", "ink"]) == 2
    assert "given without --like" in capsys.readouterr().err
    drawing("text").save(tmp_path / "plain")
    assert main(["imagine", str(tmp_path / "plain"), *like[2:]]) == 2
    assert "the model is no unCLIP" in capsys.readouterr().err
