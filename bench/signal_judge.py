"""The judge of a recipe's signals: trains on real ones, and prints how often it is right of others.

    python bench/signal_judge.py recipes/diffusion-digits.yaml runs/judge-digits
    data.source=spoken-digits/train.parquet --held spoken-digits/test.parquet

`bedstone evaluate MODEL DATA --judge FOLDER` reads the folder that it writes.
"""

import argparse
import json
import time
from pathlib import Path

from bedstone.commands.train import read_pretraining
from bedstone.data.signals.open import open_signals, signals_to_measure
from bedstone.evaluate.judges import train_signal_judge
from bedstone.recipes.diffusion import DiffusionRecipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*", help="of the recipe, as data.source=FILE")
    parser.add_argument("--held", default="", help="signals that its accuracy is of")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--width", type=int, default=32)
    given = parser.parse_args()
    recipe = read_pretraining(given.recipe, given.overrides)
    assert isinstance(recipe, DiffusionRecipe)
    learnt, held = open_signals(
        recipe.data, recipe.task, seed=recipe.seed, held=recipe.evaluate_rows
    )
    if given.held:
        held = signals_to_measure(recipe.data, recipe.task, given.held, 1000, learnt.names)
    began = time.perf_counter()

    def told(step: int, loss: float) -> None:
        if step % 50 == 0:
            print(f"step {step}: loss {loss:.3f}, {time.perf_counter() - began:.0f} s", flush=True)

    judge = train_signal_judge(learnt, held, steps=given.steps, width=given.width, progress=told)
    judge.record["seconds"] = round(time.perf_counter() - began)
    judge.save(given.folder)
    print(json.dumps(judge.record, indent=1))


if __name__ == "__main__":
    main()
