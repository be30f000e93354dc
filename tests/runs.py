"""A small run on text made up here, for tests of whole commands."""

import hashlib
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from bedstone.train.logs import read_log
from bedstone.train.loop import Trainer

WORDS = ["the", "a", "cat", "dog", "sees", "hears", "red", "small", "house", "tree", "runs"]


def make_text(path: Path, documents: int = 40, seed: int = 0) -> Path:
    """A folder of documents with words in an order that can be learnt."""
    draw = random.Random(seed)
    path.mkdir(parents=True, exist_ok=True)
    for number in range(documents):
        at, words = draw.randrange(len(WORDS)), []
        for _ in range(120):
            at = (at * 3 + draw.choice((1, 1, 1, 5))) % len(WORDS)
            words.append(WORDS[at])
        (path / f"{number:03}.txt").write_text(" ".join(words) + ".\n")
    return path


def recipe_values(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of a few seconds; the text is made beside the run."""
    text = folder / "text"
    if not text.exists():
        make_text(text)
    return {
        "out": str(folder / "run"),
        "budget": "40 steps",
        "model": {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 64},
        "data": {"source": str(text), "validation_share": 0.1},
        "tokenizer": {"vocab_size": 300},
        "context": 32,
        "batch_size": 4,
        "accumulate": 2,
        "log_every": 1,
        "save_every": 10,
        "evaluate_every": 20,
        "evaluate_tokens": 2000,
        "device": "cpu",
        **changes,
    }


def write_recipe(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values(folder, **changes)))
    return path


def start(*words: str | Path) -> subprocess.Popen[str]:
    """`bedstone WORDS` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "bedstone.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def weights_hash(model: Path) -> str:
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()


def losses(run: Path) -> dict[int, float]:
    """The training loss of each step that the log tells of."""
    return {r["step"]: r["loss"] for r in read_log(run / "log.jsonl") if r.get("loss")}


def stop_after(monkeypatch: Any, step: int) -> None:
    """As if SIGTERM came after that step."""
    one_step = Trainer.one_step

    def counted(self: Trainer, share: float) -> tuple[float, float, float]:
        result = one_step(self, share)
        if self.step == step:
            signal.raise_signal(signal.SIGTERM)
        return result

    monkeypatch.setattr(Trainer, "one_step", counted)
