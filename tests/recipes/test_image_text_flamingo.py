"""Giving eyes to a GPT: what is trained, what stays, and what is measured."""

import json
import shutil

import numpy as np
import pytest
import torch

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.commands.train import pretrain, resume
from bedstone.data.dataset import Dataset
from bedstone.data.fields import Question, Sample
from bedstone.data.images.image_text import FlamingoTexts, gpt_words
from bedstone.data.images.processor import clip_processor
from bedstone.data.scenes.datasets import scene_texts
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.errors import BedstoneError
from bedstone.evaluate import image_text as told_scoring
from bedstone.generation.beam import beam_search
from bedstone.generation.ranking import rank
from bedstone.models.clip import network as clip
from bedstone.models.gpt import network as gpt
from bedstone.models.gpt.network import GPTConfig
from bedstone.recipes.flamingo import FlamingoRecipe
from bedstone.recipes.given import read_pretraining

IMAGE = {"image_size": 16, "width": 8, "blocks": [1, 1], "block": "basic", "shrink": 2}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Folders of a GPT that knows words and of a CLIP that knows pictures."""
    folder = tmp_path_factory.mktemp("begun")
    words = train_bpe([piece.text for piece in scene_texts(20)], 400)
    config = GPTConfig(vocab_size=400, width=32, layers=2, heads=2, context=64)
    Model(gpt.build(config, seed=0), words).save(folder / "gpt")
    shape = {"layout": "clip_resnet", "image": IMAGE, "text": {"vocab_size": 400, "width": 16}}
    towers = clip.build(clip.clip_config({**shape, "embed": 16}), seed=0)
    Model(towers, processor=clip_processor(16)).save(folder / "clip")
    return folder


def recipe(begun, out, **changes) -> FlamingoRecipe:
    values = {
        "init": str(begun / "gpt"),
        "image_init": str(begun / "clip"),
        "model": {"layout": "flamingo", "every": 2},
        "data": {"most_rows": 12},
        "texts": 2,
        "batch_size": 4,
        "budget": "3 steps",
        "evaluate_rows": 3,
        "out": str(out),
        "log_every": 1,
        **changes,
    }
    path = out.parent / "recipe.json"
    path.write_text(json.dumps(values))
    found = read_pretraining(path)
    assert isinstance(found, FlamingoRecipe)
    return found


@pytest.mark.parametrize("task", ["visual-question-answering", "joint"])
def test_eyes_are_trained_and_the_gpt_stays(begun, tmp_path, task, capsys):
    done = pretrain(recipe(begun, tmp_path / "run", task=task), quiet=True)
    again = bedstone.load(done.model)
    before = bedstone.load(begun / "gpt")
    for name, weight in before.network.state_dict().items():
        assert torch.equal(weight, again.network.gpt_only().state_dict()[name]), name
    clip_tower = bedstone.load(begun / "clip").network.image.state_dict()
    for name, weight in again.network.image.resnet.state_dict().items():
        assert torch.equal(weight, clip_tower[name]), name
    assert again.network.gpt.stack[1]["cross"].gate != 0
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        assert torch.equal(again.network(ids), before.network(ids))
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())["validation"]
    assert ("answers" in record) and ("true facts" in record) == (task == "joint")


def test_a_run_is_resumed_to_the_same_weights(begun, tmp_path):
    whole = pretrain(recipe(begun, tmp_path / "whole", budget="4 steps"), quiet=True)
    parts = recipe(begun, tmp_path / "parts", budget="4 steps", save_every=2, keep=9)
    pretrain(parts, quiet=True)
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-00000004")
    shutil.rmtree(tmp_path / "parts" / "model")
    resumed = resume(tmp_path / "parts", quiet=True)
    first, second = (bedstone.load(each.model).network.state_dict() for each in (whole, resumed))
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


def test_answers_are_ranked_and_captions_written_by_beams(begun, tmp_path, monkeypatch):
    ranked, searched = [], []

    def best(writer, prompts, given):
        ranked.extend(prompts)
        return rank(writer, prompts, given)

    def beams(writer, prompts, search, **more):
        searched.append(search.beams)
        return beam_search(writer, prompts, search, **more)

    monkeypatch.setattr(told_scoring, "rank", best)
    monkeypatch.setattr(told_scoring, "beam_search", beams)
    done = pretrain(recipe(begun, tmp_path / "run", task="joint", rank=True, beams=2), quiet=True)
    model = bedstone.load(done.model)
    asked = {model.tokenizer.decode(prompt).split()[0] for prompt in ranked}
    assert asked == {"Question:"} and set(searched) == {2}
    assert model.generation["num_beams"] == 2


def test_loss_is_on_the_answer_alone():
    words = train_bpe([piece.text for piece in scene_texts(20)], 400)
    asked = Question("What colour is it?", ("red",), "colour")
    picture = torch.zeros(4, 4, 3, dtype=torch.uint8).numpy()
    rows = Dataset([Sample(picture, ("a red circle",), (asked,)), Sample(picture, ("a dog",))])
    texts = FlamingoTexts(rows, gpt_words(words, 64))
    part, _ = texts.draw_answers(np.array([0, 1]), np.random.default_rng(0), 1)
    taught = part.targets != -100
    assert words.decode(part.targets[0][taught[0]].tolist()) == " red"
    assert part.targets[0][taught[0]][-1] == words.eos_id
    assert words.decode(part.ids_in[0].tolist()).startswith("Question: What colour is it? Answer:")
    assert not taught[1].any()
    part, _ = texts.draw_captions(np.array([0, 1]), np.random.default_rng(0), 1)
    told = [words.decode(row[row != -100].tolist()) for row in part.targets]
    assert told == [" a red circle", " a dog"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": ""}, "init: is needed"),
        ({"image_init": ""}, "image_init: is needed"),
        ({"task": "image-text-matching"}, "isn't one for a GPT that sees"),
        ({"model": {"layout": "flamingo", "width": 3}}, "model.width"),
        ({"lora": {"rank": 2}}, "leave it out"),
        ({"smoothing": 0.1}, "smoothing: .* leave it out"),
        ({"weights": {"answer": 2.0}}, "weights: .* leave it out"),
    ],
)
def test_wrong_recipes_are_named(begun, tmp_path, changes, message):
    with pytest.raises(BedstoneError, match=message):
        recipe(begun, tmp_path / "run", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": "clip"}, "only a GPT can be given eyes"),
        ({"image_init": "gpt"}, "reads no pictures"),
    ],
)
def test_wrong_folders_are_named(begun, tmp_path, changes, message):
    given = {name: str(begun / folder) for name, folder in changes.items()}
    with pytest.raises(BedstoneError, match=message):
        pretrain(recipe(begun, tmp_path / "run", **given), quiet=True)


def test_too_much_that_learns_is_refused(begun, tmp_path):
    wide = {"layout": "flamingo", "every": 1, "cross_heads": 64}
    with pytest.raises(BedstoneError, match="at most 30%"):
        pretrain(recipe(begun, tmp_path / "run", model=wide), quiet=True)
