"""Recipes: each of recipes/ reads, defaults, and errors that name the key."""

from pathlib import Path

import pytest

from bedstone.config import PretrainRecipe
from bedstone.errors import BedstoneError
from bedstone.mapping import from_mapping, read_recipe, read_values
from bedstone.models.bert import LAYOUTS, BertConfig
from bedstone.models.clip import clip_config
from bedstone.models.gpt_config import GPTConfig
from bedstone.recipes import FinetuneRecipe
from bedstone.recipes_pairs import LAYOUTS as PAIRED
from bedstone.recipes_pairs import ContrastiveRecipe
from bedstone.tasks.policy import read_policy

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_reads_and_opens_with_its_command(path):
    text = path.read_text()
    if f"--policy recipes/{path.name}" in text:
        assert read_policy(path).categories
        return
    if f"bedstone finetune recipes/{path.name}" in text:
        assert read_recipe(FinetuneRecipe, path).model
        return
    if read_values(path).get("model", {}).get("layout") in PAIRED:
        assert clip_config(read_recipe(ContrastiveRecipe, path).model).embed
        assert f"bedstone pretrain recipes/{path.name}" in text
        return
    recipe = read_recipe(PretrainRecipe, path)
    shape = BertConfig if recipe.model.get("layout") in LAYOUTS else GPTConfig
    from_mapping(shape, {"context": recipe.context, **recipe.model}, str(path))
    assert f"bedstone pretrain recipes/{path.name}" in text


MINIMAL = {"model": "m", "data": {"train": "rows.csv"}}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": ""}, "model: none was given"),
        ({"data": {}}, "data.train: none"),
        ({"task": "classification"}, "perhaps 'text-classification'"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"epochs": 0}, "epochs: 0"),
        ({"quantize": 3}, "expected 0, 4 or 8"),
        ({"quantize": 8}, "can't learn"),
        ({"patience": -1}, "patience: -1"),
        ({"optim": {"adam_lr": 1}}, "perhaps 'adamw_lr'"),
    ],
)
def test_recipes_of_finetuning_that_cannot_be(change, told):
    with pytest.raises(BedstoneError, match=told):
        from_mapping(FinetuneRecipe, {**MINIMAL, **change}, "recipe")


def test_finetuning_has_its_own_defaults_where_a_section_says_less():
    recipe = from_mapping(FinetuneRecipe, {**MINIMAL, "optim": {"adamw_lr": 1e-4}}, "recipe")
    assert recipe.optim.kind == "adamw"
    assert recipe.optim.betas == (0.9, 0.999)
