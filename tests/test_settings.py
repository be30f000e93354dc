"""Plain values to dataclasses and back: overrides, YAML, and errors that name the key."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bedstone.errors import BedstoneError
from bedstone.recipes.base import PretrainRecipe
from bedstone.recipes.contrastive import ContrastiveRecipe
from bedstone.recipes.supervised import FinetuneRecipe
from bedstone.settings import from_mapping, read_recipe, to_yaml
from bedstone.train.optim import OptimConfig


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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optm": {}}, "unknown key 'optm'; perhaps 'optim'"),
        ({"optim": {"lrr": 1}}, r"unknown key 'optim.lrr'; perhaps 'optim.lr'"),
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


def test_an_override_without_a_value_clears_what_the_recipe_says(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("model: m\ndata: {train: a, test: b, split: train, labels: [x]}\n")
    clear = ["data.test=", "data.split=", "data.labels="]
    recipe = read_recipe(FinetuneRecipe, path, clear)
    assert (recipe.data.test, recipe.data.split, recipe.data.labels) == ("", None, [])
    assert "labels: []" in to_yaml(recipe)
    with pytest.raises(BedstoneError, match=r"epochs = ''; expected a number"):
        read_recipe(FinetuneRecipe, path, ["epochs="])


def test_a_list_of_texts_with_braces_needs_no_quotes():
    for override, wanted in (
        ("data.templates=[a photo of a {label}, a {label}]", ["a photo of a {label}", "a {label}"]),
        ("data.templates=a {label}", ["a {label}"]),
        ('data.templates=["a, {label}"]', ["a, {label}"]),
    ):
        assert read_recipe(ContrastiveRecipe, None, [override]).data.templates == wanted


# YAML from anyone.

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9)
)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (LAUGHS, "aliases written out"),
        ("model: &top\n  x: *top\n", "aliases written out"),
        ("model: " + "[" * 20_000, "nested too deeply"),
        ("seed: " + "9" * 5000, "can be read"),
        ("{[1]: 2}", "can be read"),
        ("seed: 1\nseed: 2\n", "'seed' is there twice"),
        ("!!python/object:os.system {}", "can be read"),
        ("#" * (2 << 20), "expected at most 1,048,576"),
    ],
)
def test_yaml_that_blows_up_or_is_no_recipe_is_refused(tmp_path, text, fault):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(BedstoneError, match=fault) as caught:
        read_recipe(PretrainRecipe, tmp_path / "r.yaml")
    assert "r.yaml" in str(caught.value) and len(str(caught.value)) < 700


def test_aliases_of_a_recipe_are_read(tmp_path):
    (tmp_path / "r.yaml").write_text("optim: &o {lr: 0.1}\nmodel: {a: *o, b: *o}\n")
    recipe = read_recipe(PretrainRecipe, tmp_path / "r.yaml")
    assert recipe.model == {"a": {"lr": 0.1}, "b": {"lr": 0.1}}


@pytest.mark.parametrize("text", ["seed=" + "9" * 5000, "model=" + "[" * 9000, "context=9e99"])
def test_overrides_that_are_no_values_are_named(text):
    with pytest.raises(BedstoneError) as caught:
        read_recipe(PretrainRecipe, None, [text])
    assert len(str(caught.value)) < 400
