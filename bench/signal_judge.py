"""The judge of a recipe's signals: trains on real ones, and prints how often it is right of others.

    python bench/signal_judge.py recipes/diffusion-digits.yaml runs/judge-digits
    data.source=spoken-digits/train.parquet --held spoken-digits/test.parquet

`bedstone evaluate MODEL DATA --judge FOLDER` reads the folder that it writes.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bedstone.data.signals.open import open_signals, signals_to_measure
from bedstone.data.signals.signals import Signals
from bedstone.errors import BedstoneError
from bedstone.evaluate.judges import SignalClassifier, SignalClassifierConfig, SignalJudge
from bedstone.recipes.diffusion import DiffusionRecipe
from bedstone.recipes.given import read_pretraining

SHIFT = 0.06  # of a side, at most, that a training signal is moved by
NOISE = 0.08  # deviation, at most, of what is added to it


def train_signal_judge(
    learnt: Signals,
    held: Signals,
    *,
    steps: int = 600,
    batch: int = 32,
    rate: float = 2e-3,
    width: int = 32,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> SignalJudge:
    """A judge of the classes of `learnt`, with its accuracy on `held` in its record.

    Each signal is moved a little and gets a little noise, so that grain says nothing.

    Args:
        progress: is handed the step and the loss, every 25 steps.

    Raises:
        BedstoneError: the signals have no classes, or those held out have others.
    """
    if learnt.classes is None or held.classes is None:
        raise BedstoneError("judge: the signals have no classes to tell apart.")
    if learnt.names != held.names:
        raise BedstoneError(
            f"judge: it learns {', '.join(learnt.names)}; those held out are of "
            f"{', '.join(held.names)}. Number both alike, by the names that are learnt."
        )
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    network = SignalClassifier(SignalClassifierConfig(learnt.shape, learnt.names, width)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    for step in range(1, steps + 1):
        rows = random.integers(0, len(learnt), batch)
        signals = _varied(learnt.read(rows), random)
        loss = F.cross_entropy(
            network(signals), torch.from_numpy(learnt.classes[rows]), label_smoothing=0.05
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None and step % 25 == 0:
            progress(step, loss.item())
    judge = SignalJudge(network)
    _, said = judge.read(held.read(np.arange(len(held))))
    right = (said.argmax(1).numpy() == held.classes).mean()
    judge.record = {"accuracy": float(right), "held_out": len(held), "steps": steps, "batch": batch}
    return judge


def _varied(signals: Tensor, random: np.random.Generator) -> Tensor:
    """Signals moved along their sides, what leaves on one end being repeated, and with noise."""
    for side in range(2, signals.dim()):
        most = int(SHIFT * signals.shape[side])
        move = int(random.integers(-most, most + 1))
        if move:
            places = torch.arange(signals.shape[side]).sub(move).clamp(0, signals.shape[side] - 1)
            signals = signals.index_select(side, places)
    return signals + float(random.uniform(0, NOISE)) * torch.randn_like(signals)


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
