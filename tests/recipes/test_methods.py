"""Every training method passes the same checks."""

from pathlib import Path

import pytest

from bedstone.errors import BedstoneError
from bedstone.recipes.base import METHODS, PretrainRecipe, load_method, method_of, read
from bedstone.recipes.contrastive import ContrastiveRecipe
from method_recipes import RECIPES
from methods import check_method

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ONES", 12), ("SEVERAL", 10)):
        monkeypatch.setattr(f"bedstone.data.scenes.datasets.{name}", value)
    monkeypatch.setattr("bedstone.recipes.image_text.MOST_MEASURED", 10)
    monkeypatch.setattr("bedstone.evaluate.image_text.LONGEST", 8)


assert RECIPES.keys() == METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_method(name: str, tmp_path: Path) -> None:
    check_method(name, RECIPES[name](tmp_path), tmp_path)


def test_the_method_of_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("method: contrastive\nmodel: {embed: 8}\n")
    found = read(path)
    assert isinstance(found, ContrastiveRecipe) and method_of(found).name == "contrastive"
    assert method_of(PretrainRecipe(model={"layout": "bert"})).name == "masked_lm"
    assert method_of(PretrainRecipe()).name == "causal_lm"
    with pytest.raises(BedstoneError, match="perhaps 'contrastive'"):
        load_method("contrastiv")
    found.method = "diffusion"
    with pytest.raises(BedstoneError, match="a recipe of another"):
        method_of(found)
