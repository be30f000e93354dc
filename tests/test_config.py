"""Recipes: YAML in and out, overrides, and errors that name the key."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bedstone.config import OptimConfig, PretrainRecipe, from_mapping, read_recipe, to_yaml
from bedstone.errors import BedstoneError
from bedstone.models.bert import LAYOUTS, BertConfig
from bedstone.models.gpt_config import GPTConfig
from bedstone.recipes import FinetuneRecipe

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


def test_overrides_reach_every_depth(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("budget: 5m\noptim: {lr: 1e-3, clip: 2}\nmodel: {width: 64}\n")
    recipe = read_recipe(
        PretrainRecipe,
        path,
        [
            "optim.adamw_lr=2e-4",
            "model.layers=3",
            "data.split=",
            "optim.betas=[0.8, 0.9]",
            "seed=7",
        ],
    )
    assert recipe.optim == OptimConfig(lr=1e-3, clip=2.0, adamw_lr=2e-4, betas=(0.8, 0.9))
    assert recipe.model == {"width": 64, "layers": 3}
    assert recipe.data.split is None
    assert recipe.seed == 7


def test_what_is_written_reads_back(tmp_path):
    recipe = read_recipe(PretrainRecipe, None, ["budget=3m", "optim.betas=[0.8, 0.95]", "out=x"])
    (tmp_path / "r.yaml").write_text(to_yaml(recipe))
    assert read_recipe(PretrainRecipe, tmp_path / "r.yaml") == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_reads_and_opens_with_its_command(path):
    text = path.read_text()
    if f"bedstone finetune recipes/{path.name}" in text:
        assert read_recipe(FinetuneRecipe, path).model
        return
    recipe = read_recipe(PretrainRecipe, path)
    shape = BertConfig if recipe.model.get("layout") in LAYOUTS else GPTConfig
    from_mapping(shape, {"context": recipe.context, **recipe.model}, str(path))
    assert f"bedstone pretrain recipes/{path.name}" in text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optm": {}}, "unknown key 'optm'; did you mean 'optim'"),
        ({"optim": {"lrr": 1}}, r"unknown key 'optim.lrr'; did you mean 'lr'"),
        ({"optim": 3}, "optim = 3; expected a section"),
        ({"context": 1.5}, "context = 1.5; expected a whole number"),
        ({"context": True}, "context = True; expected a whole number"),
        ({"compile": "maybe"}, "compile = 'maybe'; expected true or false"),
        ({"optim": {"lr": "fast"}}, "optim.lr = 'fast'; expected a number"),
        ({"optim": {"betas": 0.9}}, "optim.betas = 0.9; expected a list"),
        ({"out": None}, "out = None; expected text"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(BedstoneError, match=message):
        from_mapping(PretrainRecipe, values, "r.yaml")


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=4))
def test_any_value_is_taken_or_refused_in_words(value):
    for key in ("context", "budget", "optim", "model", "compile", "seed"):
        try:
            from_mapping(PretrainRecipe, {key: value}, "r.yaml")
        except BedstoneError as error:
            assert key in str(error)


def test_numbers_in_scientific_form_are_numbers():
    assert isinstance(yaml.safe_load("1e-3"), str)  # why recipes convert
    assert from_mapping(OptimConfig, {"lr": "1e-3"}, "r").lr == 1e-3


MINIMAL = {"model": "m", "data": {"train": "rows.csv"}}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": ""}, "model: none was given"),
        ({"data": {}}, "data.train: none"),
        ({"task": "classification"}, "did you mean 'text-classification'"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"epochs": 0}, "epochs: 0"),
        ({"quantize": 3}, "expected 0, 4 or 8"),
        ({"quantize": 8}, "can't learn"),
        ({"patience": -1}, "patience: -1"),
        ({"optim": {"adam_lr": 1}}, "did you mean 'adamw_lr'"),
    ],
)
def test_recipes_of_finetuning_that_cannot_be(change, told):
    with pytest.raises(BedstoneError, match=told):
        from_mapping(FinetuneRecipe, {**MINIMAL, **change}, "recipe")


def test_finetuning_has_its_own_defaults_where_a_section_says_less():
    recipe = from_mapping(FinetuneRecipe, {**MINIMAL, "optim": {"adamw_lr": 1e-4}}, "recipe")
    assert recipe.optim.kind == "adamw"
    assert recipe.optim.betas == (0.9, 0.999)
