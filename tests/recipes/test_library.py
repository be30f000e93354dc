"""The recipes of the package: found by name, listed, printed, described; completion of shells."""

import inspect
import json
import shutil
import subprocess

import pytest
import yaml

from bedstone.cli import COMMANDS, find_command, main
from bedstone.commands.recipes import OF_MODELS
from bedstone.errors import BedstoneError
from bedstone.recipes import library
from bedstone.recipes.base import METHODS


@pytest.mark.parametrize(
    "name", ["tinyshakespeare", "tinyshakespeare.yaml", "recipes/tinyshakespeare.yaml"]
)
def test_a_recipe_is_found_by_its_name_wherever_one_is(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert library.find(name) == library.LIBRARY / "tinyshakespeare.yaml"


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tinyshakespeare").write_text("budget: 1 steps")
    assert str(library.find("tinyshakespeare")) == "tinyshakespeare"


@pytest.mark.parametrize(
    "name", ["tinyshakespear", "a\0b", "y" * 5000, "elsewhere/tinyshakespear", ""]
)
def test_what_is_no_recipe(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BedstoneError) as error:
        library.find(name)
    assert len(str(error.value)) < 500
    assert ("perhaps 'tinyshakespeare' is meant" in str(error.value)) == name.endswith(
        "tinyshakespear"
    )


def test_every_recipe_is_listed_and_printed(capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    for name in library.names():
        assert f"  {name} " in listed
        assert main(["recipes", name]) == 0
        printed = capsys.readouterr().out
        assert printed == library.find(name).read_text(encoding="utf-8")
        assert library.summary(library.find(name))
        assert library.command(library.find(name)) in ("pretrain", "finetune", "run")


@pytest.mark.slow
def test_the_schema_takes_every_recipe_and_refuses_others(capsys):
    jsonschema = pytest.importorskip("jsonschema")
    assert main(["recipes", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert [each["title"] for each in schema["anyOf"]] == list(METHODS)
    budget = schema["anyOf"][0]["properties"]["budget"]
    assert budget["description"].startswith("how long to train")
    for name in library.names():
        path = library.find(name)
        if library.command(path) != "run":
            jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), schema)
    for wrong in ({"budgte": "5m"}, {"batch_size": "many"}, {"optim": {"kidn": "adamw"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["bedstone", "pre"], ["pretrain"]),
        (["bedstone", "pretrain", "tiny"], ["tinyshakespeare"]),
        (["bedstone", "run", "image-to"], ["image-to-text", "image-to-image"]),
        (["bedstone", "generate", "--max-n"], ["--max-new-tokens"]),
        (["bedstone", "info", "mini"], ["minilm"]),
    ],
)
def test_bash_completes_commands_recipes_tasks_and_options(words, expected, capsys):
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    script += f"\nCOMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _bedstone; "
    script += 'printf "%s\\n" "${COMPREPLY[@]}"'
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert set(expected) <= set(found.stdout.split())
    assert all(each.startswith(words[-1]) for each in found.stdout.split())


def test_names_of_models_complete_where_a_model_is_the_first_word():
    first = {
        name: next(iter(inspect.signature(find_command(name)).parameters))
        for group in COMMANDS.values()
        for name in group
    }
    assert {name for name, word in first.items() if word == "model"} == set(OF_MODELS)


def test_fish_and_zsh_know_all_commands(capsys):
    for shell in ("fish", "zsh"):
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert all(name in script for group in COMMANDS.values() for name in group)
    assert main(["completion", "csh"]) == 2
    assert "expected one of bash, zsh, fish" in capsys.readouterr().err
