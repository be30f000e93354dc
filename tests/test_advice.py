"""What errors, help and pages advise exists: commands, options, recipe keys, extras and files."""

import ast
import dataclasses
import json
import re
import tomllib
from pathlib import Path

import pytest

from bedstone.cli import COMMANDS, Parser, find_command, main
from bedstone.data.images.augment import ImageAugment
from bedstone.data.text.augment import AugmentConfig
from bedstone.errors import BedstoneError, closest, nearest
from bedstone.models.heads import HeadConfig
from bedstone.nn.lora import LoraConfig
from bedstone.recipes import library
from bedstone.recipes.base import METHODS, load_method
from bedstone.settings import field_names
from bedstone.tasks.pipeline import ALIASES, TASKS
from small_models import saved

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "bedstone"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *library.LIBRARY.glob("*.yaml")]
NAMES = [name for group in COMMANDS.values() for name in group]
LONGEST_FIRST = sorted(NAMES, key=len, reverse=True)  # chat-life before chat
COMMAND = re.compile(rf"bedstone ({'|'.join(LONGEST_FIRST)})\b([^`\n]*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]+")
KEY = re.compile(r"(?<![\w./{`\]-])([a-z_]+(?:\.[a-z_0-9]+)+)(?:\.?=|(?=[ ,:;.)]|$))")
SECTIONS = {"data", "optim", "schedule", "tokenizer", "masking", "lora", "augment", "model", "text"}
# Options of other programs that messages and pages name.
OTHERS = {"--option", "--bf16", "--threads", "--no-deps"}
FILES = {"json", "model", "txt", "yaml"}  # endings of files, such as tokenizer.json
GGUF = "tokenizer.ggml"  # keys of a file's metadata, not of a recipe
# Sections of networks that recipes hold as a mapping, checked when the network is made.
OPEN = {"model", "data.sound"}


def options() -> dict[str, set[str]]:
    found = {}
    for name in NAMES:
        groups = Parser(name, find_command(name)).groups.values()
        found[name] = {each.flag for group in groups for each in group} | {"--help"}
    return found


OPTIONS = options()
KEYS = {key for method in METHODS for key in field_names(load_method(method).Recipe)}
KEYS |= {f"lora.{each.name}" for each in dataclasses.fields(LoraConfig)}
for augment in (AugmentConfig, ImageAugment):
    KEYS |= {f"augment.{each.name}" for each in dataclasses.fields(augment)}


def strings(tree: ast.Module) -> list[str]:
    """The texts of a file, those of f-strings whole, without docstrings."""
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            skipped.add(id(body[0].value))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else "{}" for p in node.values]
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += [] if id(node) in skipped else [node.value]
    return [text for text in found if " " in text]


MESSAGES = [
    (str(path.relative_to(SOURCE)), text)
    for path in sorted(SOURCE.rglob("*.py"))
    for text in strings(ast.parse(path.read_text()))
]
HELP = [(path.name, path.read_text()) for path in sorted((SOURCE / "commands").glob("*.py"))]
TEXTS = MESSAGES + [(path.name, path.read_text()) for path in PAGES]


def test_commands_and_their_options_exist():
    """An option that stands behind a command is that command's, and a word is one of its tasks."""
    wrong, found = [], 0
    for where, text in [*TEXTS, *HELP]:
        for command, rest in COMMAND.findall(text):
            found += 1
            rest = rest.partition("  #")[0].partition("; ")[0]
            bad = set(OPTION.findall(rest)) - OPTIONS[command]
            task = re.match(r" ([a-z][a-z-]+) ", rest) if command == "run" else None
            if bad or (task and task[1] not in {*TASKS, *ALIASES} and task[1] != "gives"):
                wrong.append((where, command, sorted(bad), rest[:60]))
    assert found > 100
    assert wrong == []


def test_options_in_messages_exist():
    every = set.union(*OPTIONS.values()) | OTHERS | {"--debug", "--version"}
    wrong = [
        (where, option)
        for where, text in MESSAGES
        for option in OPTION.findall(text)
        if option not in every and not where.startswith("report/")  # variables of CSS
    ]
    assert wrong == []


def keys_of(text: str) -> list[str]:
    found = [key for key in KEY.findall(text) if key.split(".")[0] in SECTIONS]
    found = [key for key in found if not key.startswith(GGUF)]
    return [key for key in found if key.rpartition(".")[2] not in FILES]


def is_key(key: str) -> bool:
    """Whether a recipe has a key; inside a section that is a mapping, anything may stand."""
    parts = key.split(".")
    known = key in KEYS or any(each.startswith(f"{key}.") for each in KEYS)
    inside = any(".".join(parts[:n]) in {*OPEN, "data.columns"} for n in range(1, len(parts)))
    return known or inside


def test_recipe_keys_in_messages_exist():
    wrong, found = [], 0
    for where, text in MESSAGES:
        for key in keys_of(text):
            found += 1
            if not is_key(key):
                wrong.append((where, key))
    assert found > 40
    assert wrong == []


def test_extras_that_are_advised_exist():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    advised = {extra for _, text in TEXTS for extra in re.findall(r"bedstone\[(\w+)\]", text)}
    assert advised
    assert advised - set(known) == set()


def test_recipes_that_are_named_exist():
    wrong = [
        (where, name)
        for where, text in TEXTS
        for name in re.findall(r"recipes/([a-z0-9-]+)\.yaml", text)
        + re.findall(r"bedstone (?:pretrain|finetune) ([a-z][a-z0-9-]*)(?= |`|\n|$)", text)
        if name not in {*library.names(), "mine", "or"} and where != "CHANGELOG.md"
    ]
    assert wrong == []


def test_what_is_wrong_would_be_found():
    assert keys_of("Name it: data.colums={} of a recipe") == ["data.colums"]
    assert not is_key("data.colums")
    assert is_key("data.columns.text")
    assert not is_key("lora.rang")
    assert COMMAND.findall("run bedstone search X --out Y.") == [("search", " X --out Y.")]
    assert "--out" not in OPTIONS["search"]


# The advice of single messages, followed.


def refused(capsys, *words) -> str:
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "key", "meant"),
    [
        ("finetune finetune-own", "lr=1e-4", "'optim.lr'"),
        ("pretrain tinyshakespeare", "lr=1e-4", "'optim.lr'"),
        ("pretrain tinyshakespeare", "optim.batch_size=4", "'batch_size'"),
        ("finetune finetune-own", "column=body", "'data.columns'"),
        ("finetune finetune-own", "optim.lrr=1", "'optim.lr'"),
    ],
)
def test_a_key_of_another_section_is_found(capsys, command, key, meant):
    assert f"perhaps {meant} is meant" in refused(capsys, *command.split(), key)


def test_near_names_are_near():
    assert "is meant" not in nearest("depth-estimation", [*TASKS, *ALIASES])
    assert closest("lr", ["lora", "model"]) == ""
    assert closest("sumarization", ["summarization"]) == "; perhaps 'summarization' is meant"
    assert closest("temp", ["temperature", "top_p"]) == "; perhaps 'temperature' is meant"
    assert nearest("x", map(str, range(1000))).endswith("... (1,000 in all)")


def test_a_task_that_is_none_lists_all(capsys, tmp_path):
    error = refused(capsys, "run", "depth-estimation", tmp_path, "a text")
    assert "expected one of" in error
    assert "text-generation" in error


def test_a_folder_of_images_is_no_index(capsys, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    error = refused(capsys, "search", folder, "a cat")
    made = re.search(
        r"Make one: bedstone (index \S+ --model MODEL); it is written to (\S+),", error
    )
    assert made[2] == str(tmp_path / "photos.index")
    assert "--out" not in error
    (tmp_path / "photos.index").mkdir()
    (tmp_path / "photos.index" / "index.json").write_text("{}")
    assert f"the index of it is {tmp_path / 'photos.index'}" in refused(
        capsys, "search", folder, "x"
    )
    assert "perhaps" in refused(capsys, "search", tmp_path / "photo.index", "a cat")


def test_sizes_of_groups_that_are_advised_fit():
    import torch

    from bedstone.models.gpt.network import GPTConfig, build
    from bedstone.nn.quantize import quantize

    fits = build(GPTConfig(vocab_size=40, width=96, layers=1, heads=2, hidden=160), seed=0)
    with pytest.raises(BedstoneError, match="group=64 doesn't divide 96") as caught:
        quantize(fits, bits=4, group=64)
    quantize(fits, bits=4, group=int(re.search(r"Take group=(\d+)", str(caught.value))[1]))
    odd = build(GPTConfig(vocab_size=40, width=64, layers=1, heads=2, hidden=172), seed=0)
    for group in (64, 32):
        with pytest.raises(BedstoneError, match=r"take 8 bits \(bits=8") as caught:
            quantize(odd, bits=4, group=group)
        assert "hoose" not in str(caught.value)
    quantize(odd, bits=8)
    assert torch.isfinite(odd(torch.tensor([[1, 2]]))).all()


@pytest.fixture
def rows(tmp_path):
    """Rows whose columns have other names than usual."""
    path = tmp_path / "rows.csv"
    path.write_text(
        "body,kind\n"
        + "".join(f"a fine film {n},praise\na dull film {n},blame\n" for n in range(20))
    )
    return path


def test_columns_are_named_as_the_error_says(capsys, rows, tmp_path):
    """Each error names the next column, until all are named, and the run trains."""
    folder = saved(tmp_path / "bert", HeadConfig("sequence", ("praise", "blame")))
    words = ["finetune", "finetune-own", f"model={folder}", f"data.train={rows}"]
    words += [f"out={tmp_path / 'run'}", "budget=1 steps", "data.validation_share=0.2"]
    words.append("limit=512")
    for part, column in (("text", "body"), ("label", "kind")):
        error = refused(capsys, *words)
        key = re.search(r"(data\.columns\.\w+)=NAME", error)[1]
        assert key == f"data.columns.{part}"
        words.append(f"{key}={column}")
    assert main(words) == 0
    said = "".join(capsys.readouterr())
    assert "\n1 step, " in said
    assert "limit: 512 is more than the model's context, 64" in said
    for command in ("evaluate", "predict"):
        assert main([command, str(tmp_path / "run"), str(rows)]) == 0


def test_columns_of_commands_are_options(capsys, rows, tmp_path):
    folder = saved(tmp_path / "bert", HeadConfig("sequence", ("praise", "blame")))
    words = ["evaluate", str(folder), str(rows)]
    for column in ("body", "kind"):
        error = refused(capsys, *words)
        words += [re.search(r"or by (--[a-z-]+)", error)[1], column]
    assert main(words) == 0
    words = ["run", "text-classification", str(folder), "--file", str(rows)]
    error = refused(capsys, *words)
    assert main([*words, re.search(r"or (?:by )?(--[a-z-]+)", error)[1], "body"]) == 0


def test_a_share_of_broken_rows_is_raised_where_there_is_one(capsys, tmp_path):
    """A recipe has `data.most_broken`; a command has no such option, and advises none."""
    path = tmp_path / "rows.jsonl"
    good = [{"text": f"a fine film {n}", "label": "praise"} for n in range(16)]
    good += [{"text": f"a dull film {n}", "label": "blame"} for n in range(16)]
    broken = [{"text": "", "label": "praise"}] * 6
    path.write_text("".join(json.dumps(row) + "\n" for row in good + broken) + "{\n" * 4)
    folder = saved(tmp_path / "bert", HeadConfig("sequence", ("praise", "blame")))
    words = ["finetune", "finetune-own", f"model={folder}", f"data.train={path}"]
    words += [f"out={tmp_path / 'run'}", "budget=1 steps", "data.validation_share=0.2"]
    key = re.search(r"or raise (\S+)\.", refused(capsys, *words))[1]
    assert main([*words, f"{key}=0.5"]) == 0
    error = refused(capsys, "evaluate", folder, path)
    assert "broken" in error
    assert "most_broken" not in error


def test_the_column_of_texts_for_pretraining(capsys, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"body": f"some words {n}"}) + "\n" for n in range(40)))
    words = ["pretrain", "own-text", f"data.source={path}", f"out={tmp_path / 'run'}"]
    key = re.search(r"(data\.column) of a recipe", refused(capsys, *words))[1]
    error = refused(capsys, *words, f"{key}=body", "context=0")
    assert "column" not in error  # it is found; what is wrong next is the context


def test_a_missing_folder_is_no_matter_of_the_network(capsys, tmp_path, monkeypatch):
    import huggingface_hub

    def download(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "bert").mkdir(parents=True)
    assert "perhaps 'runs/bert' is meant" in refused(capsys, "info", "runs/brt")
    assert "perhaps 'runs' is meant" in refused(capsys, "info", "run/bert")
    assert "no such folder (looked in" in refused(capsys, "info", "runs/other")
    with pytest.raises(AssertionError):
        main(["info", "hub:runs/brt"])
    with pytest.raises(AssertionError):
        main(["info", "acme/tiny"])
    for recipe in ("finetune-own", "lora-instruct"):  # what their model stands for is named
        error = refused(capsys, "finetune", recipe, "data.train=rows.csv")
        assert "bedstone models lists: model=NAME" in error
