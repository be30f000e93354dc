"""Small runs that learn to draw, and made rows for them to learn from."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from bedstone.commands.train import pretrain
from bedstone.data.signals.audio import write_sound
from bedstone.data.signals.open import open_signals
from bedstone.data.signals.signals import Signals
from bedstone.recipes.diffusion import DiffusionRecipe
from bedstone.recipes.given import read_pretraining
from bedstone.train.run import RunResult

SHAPE = {"patch": 4, "width": 16, "layers": 1, "heads": 2}
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}


def signals_of(recipe: DiffusionRecipe) -> tuple[Signals, Signals]:
    """The signals that a recipe trains on, and those held out."""
    return open_signals(recipe.data, recipe.task, seed=recipe.seed, held=recipe.evaluate_rows)


def pictures(path: Path, count: int = 24, side: int = 8) -> Path:
    """Rows of plain pictures with `image`, `label` and `caption`."""
    random, rows = np.random.default_rng(0), []
    for number in range(count):
        name = list(COLOURS)[number % len(COLOURS)]
        pixels = np.clip(random.normal(COLOURS[name], 20, (side, side, 3)), 0, 255)
        held = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(held, "PNG")
        row = {"image": {"bytes": held.getvalue()}, "label": number % len(COLOURS)}
        rows.append({**row, "caption": f"a picture all in {name}"})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def sounds(folder: Path, count: int = 12) -> Path:
    """A folder of tones, a tenth of a second each, and the rows that name them."""
    folder.mkdir(exist_ok=True)
    with (folder / "rows.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "label"])
        for number in range(count):
            tone = 200 + 200 * (number % 2) + number
            heard = 0.5 * np.sin(2 * np.pi * tone * np.arange(200) / 2000)
            write_sound(folder / f"{number}.wav", heard, 2000)
            rows.writerow([f"{number}.wav", ["low", "high"][number % 2]])
    return folder / "rows.csv"


def values(out: Path, **more: Any) -> dict[str, Any]:
    """A recipe of a second or two."""
    return {
        "task": "class-to-image",
        "model": dict(SHAPE),
        "out": str(out),
        "budget": "3 steps",
        "batch_size": 4,
        "evaluate_rows": 4,
        "samples": 2,
        "log_every": 1,
        "sampling": {"steps": 2},
        "precision": "fp32",
        "device": "cpu",
        **more,
    }


def recipe_of(out: Path, **more: Any) -> DiffusionRecipe:
    """The recipe, read from a file as the command line reads it."""
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values(out, **more)))
    read = read_pretraining(path)
    assert isinstance(read, DiffusionRecipe)
    return read


def run(out: Path, **more: Any) -> RunResult:
    """A whole run."""
    return pretrain(recipe_of(out, **more), quiet=True)
