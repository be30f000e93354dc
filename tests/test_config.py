"""Recipes: each of recipes/ reads, defaults, and errors that name the key."""

from pathlib import Path

import pytest

from bedstone.data.scenes import moving as moving_scenes
from bedstone.data.scenes import solids
from bedstone.errors import BedstoneError
from bedstone.models.bert.network import LAYOUTS, BertConfig
from bedstone.models.blip.config import blip_config
from bedstone.models.clip.network import clip_config
from bedstone.models.dit.config import DiTConfig
from bedstone.models.gpt.network import GPTConfig
from bedstone.recipes.base import PretrainRecipe
from bedstone.recipes.contrastive import ContrastiveRecipe
from bedstone.recipes.diffusion import DiffusionRecipe, check_sampling, process_of
from bedstone.recipes.given import read_finetuning, read_pretraining
from bedstone.recipes.image_text import ImageTextRecipe
from bedstone.recipes.supervised import FinetuneRecipe
from bedstone.settings import from_mapping
from bedstone.tasks.moderation.policy import read_policy

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))

BUILT_IN_SIZES = {moving_scenes.NAME: moving_scenes.SIZE, solids.NAME: solids.SIZE}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_reads_and_opens_with_its_command(path):
    text = path.read_text()
    if f"--policy {path.stem}" in text:
        assert read_policy(path).categories
        return
    if f"bedstone finetune {path.stem}" in text:
        assert read_finetuning(path).model
        return
    assert f"bedstone pretrain {path.stem}" in text
    recipe = read_pretraining(path)
    if isinstance(recipe, ContrastiveRecipe):
        assert clip_config(recipe.model).embed
    elif isinstance(recipe, DiffusionRecipe):
        size = recipe.data.size or BUILT_IN_SIZES[recipe.data.source]
        decided = {"size": size, "memory_width": recipe.text.width * (recipe.condition == "text")}
        shape = from_mapping(DiTConfig, {**decided, **recipe.model}, str(path), "model.")
        assert shape.tokens <= 512
        process, _ = process_of(recipe)
        check_sampling(process, recipe.sampling)
    elif type(recipe) is ImageTextRecipe:
        assert blip_config(recipe.model).decoder_layers
    elif isinstance(recipe, PretrainRecipe):
        shape = BertConfig if recipe.model.get("layout") in LAYOUTS else GPTConfig
        from_mapping(shape, {"context": recipe.context, **recipe.model}, str(path))


MINIMAL = {"model": "m", "data": {"train": "rows.csv"}}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": ""}, "model: none was given"),
        ({"data": {}}, "data.train: none"),
        ({"task": "classification"}, "perhaps 'text-classification'"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"epochs": 0}, "epochs: 0"),
        ({"quantize": 3}, "expected one of 0, 4, 8"),
        ({"quantize": 8}, "can't learn"),
        ({"patience": -1}, "patience: -1"),
        ({"optim": {"adam_lr": 1}}, "perhaps 'optim.adamw_lr'"),
    ],
)
def test_recipes_of_finetuning_that_cannot_be(change, told):
    with pytest.raises(BedstoneError, match=told):
        from_mapping(FinetuneRecipe, {**MINIMAL, **change}, "recipe")


def test_finetuning_has_its_own_defaults_where_a_section_says_less():
    recipe = from_mapping(FinetuneRecipe, {**MINIMAL, "optim": {"adamw_lr": 1e-4}}, "recipe")
    assert recipe.optim.kind == "adamw"
    assert recipe.optim.betas == (0.9, 0.999)


def test_the_old_import_of_the_recipe_stays():
    from bedstone.config import PretrainRecipe as old

    assert old is PretrainRecipe
